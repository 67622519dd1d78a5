//! What all parts of the metadata share, and the ways in: a view for reading, an update for changing.
//!
//! Locks are taken in this order: `checkpointing`, `names`, `commit`, `writer`, `state`, a layer; `replicas` is held for a
//! moment.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use super::commit::Commit;
use super::database::{Found, Snapshot};
use super::error::{MetaError, Result};
use super::flusher::Wake;
use super::history::Mark;
use super::layer::Layer;
use super::names::Names;
use super::open::Options;
use super::replica::Replica;
use super::table::{Key, Value};
use super::update::Update;
use super::view::{Read, View};
use crate::disk::DiskError;
use crate::ids::DiskId;

pub(super) struct Inner {
    pub(super) options: Options,
    pub(super) read_only: bool,
    /// All disks of the volume, those that are not here included.
    pub(super) disks_of_volume: AtomicUsize,
    /// How many of them must take a transaction.
    pub(super) disks_needed: AtomicUsize,
    pub(super) mounts: u32,
    pub(super) next_number: AtomicU64,
    pub(super) replicas: RwLock<Vec<Arc<Replica>>>,
    /// Disks that are here and take no part, since they were faulty.
    pub(super) excluded: Vec<DiskId>,
    /// Disks that missed transactions which others were answered for.
    pub(super) was_away: Vec<DiskId>,
    pub(super) state: RwLock<State>,
    pub(super) writer: Mutex<Writer>,
    pub(super) commit: Mutex<Commit>,
    /// The newest durable moment, for who must not wait for the next one.
    pub(super) newest: Mutex<Mark>,
    pub(super) names: Mutex<Names>,
    /// Held during a checkpoint: when the last one was.
    pub(super) checkpointing: Mutex<Instant>,
    pub(super) poisoned: Mutex<Option<MetaError>>,
    /// Keys whose value in the database that is read from went bad.
    pub(super) to_heal: Mutex<Vec<Key>>,
    pub(super) wake: Arc<Wake>,
}

/// What a new view sees.
pub(super) struct State {
    /// Counts updates.
    pub(super) version: u64,
    pub(super) current: Arc<Layer>,
    /// What a checkpoint is bringing into the databases.
    pub(super) frozen: Option<Arc<Layer>>,
    pub(super) base: Arc<Snapshot>,
}

/// What the next transaction will hold.
#[derive(Default)]
pub(super) struct Writer {
    pub(super) pending: BTreeMap<Key, Option<Value>>,
    pub(super) bytes: u64,
}

impl Inner {
    pub(super) fn view(self: &Arc<Self>) -> View {
        let state = self.state.read();
        View {
            inner: Arc::clone(self),
            version: state.version,
            current: Arc::clone(&state.current),
            frozen: state.frozen.clone(),
            base: Arc::clone(&state.base),
        }
    }

    pub(super) fn update<T, E: From<MetaError>>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Update) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        self.check_writable()?;
        let (result, urgent) = {
            let mut writer = self.writer.lock();
            let mut update = Update {
                view: self.view(),
                changes: BTreeMap::new(),
            };
            let result = change(&mut update)?;
            let Update { view, changes } = update;
            // Otherwise this view would count as somebody who is looking.
            drop(view);
            if changes.is_empty() {
                return Ok(result);
            }
            (result, self.make(&mut writer, changes))
        };
        match urgent {
            Urgency::None => {}
            Urgency::Wake => self.wake.ring(),
            // Somebody changes faster than the disks take it: let him wait. What comes of it is told by
            // his next sync.
            Urgency::Wait => {
                let _ = self.checkpoint();
            }
        }
        Ok(result)
    }

    fn make(&self, writer: &mut Writer, changes: BTreeMap<Key, Option<Value>>) -> Urgency {
        let first = writer.pending.is_empty();
        let in_memory = {
            let mut state = self.state.write();
            state.version += 1;
            let looked_at = Arc::strong_count(&state.current) > 1;
            let all = changes.iter();
            state.current.add(
                all.map(|(key, value)| (key.clone(), value.clone())),
                state.version,
                looked_at,
            );
            state.current.bytes()
        };
        for (key, value) in changes {
            writer.bytes += (key.as_bytes().len() + value.as_deref().map_or(0, <[u8]>::len)) as u64;
            writer.pending.insert(key, value);
        }
        let limit = self.options.checkpoint_bytes;
        if in_memory > 4 * limit {
            Urgency::Wait
        } else if first || writer.bytes > limit || in_memory > limit {
            Urgency::Wake
        } else {
            Urgency::None
        }
    }

    /// Puts a change that is in the journal already where views see it.
    pub(super) fn make_visible(&self, changes: Vec<(Key, Option<Value>)>) {
        let mut state = self.state.write();
        state.version += 1;
        state.current.add(changes.into_iter(), state.version, true);
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        if self.read_only {
            return Err(MetaError::ReadOnly);
        }
        match &*self.poisoned.lock() {
            Some(MetaError::Poisoned { why }) => Err(MetaError::Poisoned { why: why.clone() }),
            Some(error) => Err(MetaError::Poisoned {
                why: error.to_string(),
            }),
            None => Ok(()),
        }
    }

    /// No more writing from now on.
    pub(super) fn poison(&self, why: MetaError) {
        tracing::error!(error = %why, "no more metadata can be written");
        self.poisoned.lock().get_or_insert(why);
    }

    /// Leaves a disk out from now on and tells those who want to know.
    pub(super) fn leave_out(&self, disk: DiskId, error: &MetaError) {
        let replica = {
            let replicas = self.replicas.read();
            replicas.iter().find(|replica| replica.id == disk).cloned()
        };
        if replica.is_some_and(|replica| replica.leave_out()) {
            tracing::error!(%disk, %error, "a disk no longer takes metadata");
            (self.options.on_disk_failed)(disk, error);
        }
    }

    pub(super) fn leave_out_failed(&self, failed: Vec<(DiskId, DiskError)>) {
        for (disk, error) in failed {
            self.leave_out(disk, &error.into());
        }
    }

    pub(super) fn online(&self) -> impl Iterator<Item = Arc<Replica>> + use<> {
        let replicas = self.replicas.read().clone();
        replicas.into_iter().filter(|replica| replica.is_online())
    }

    pub(super) fn new_number(&self) -> Result<u64> {
        self.check_writable()?;
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        if number > u64::from(u32::MAX) {
            return Err(MetaError::NumbersUsedUp);
        }
        Ok(u64::from(self.mounts) << 32 | number)
    }

    /// A value of a view's database, from another disk where its own fails.
    pub(super) fn read_base(&self, base: &Arc<Snapshot>, key: &Key) -> Result<Option<Value>> {
        let error = match base.get(key) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        self.elsewhere(base, error, |snapshot| snapshot.get(key))
            .inspect(|_| {
                let mut to_heal = self.to_heal.lock();
                if !to_heal.contains(key) {
                    to_heal.push(key.clone());
                    self.wake.ring();
                }
            })
    }

    pub(super) fn range_base(
        &self,
        base: &Arc<Snapshot>,
        prefix: &Key,
        from: Bound<&Key>,
        limit: usize,
    ) -> Result<Vec<Found>> {
        let from = from.map(Key::as_bytes);
        match base.range(prefix.as_bytes(), from, limit) {
            Ok(found) => Ok(found),
            Err(error) => self.elsewhere(base, error, |snapshot| {
                snapshot.range(prefix.as_bytes(), from, limit)
            }),
        }
    }

    pub(super) fn after_base(
        &self,
        base: &Arc<Snapshot>,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Found>> {
        base.after(after, limit)
            .or_else(|error| self.elsewhere(base, error, |snapshot| snapshot.after(after, limit)))
    }

    /// Reads from another disk's database of the same moment; `error` if there is none that answers.
    fn elsewhere<T>(
        &self,
        base: &Arc<Snapshot>,
        error: MetaError,
        read: impl Fn(&Snapshot) -> Result<T>,
    ) -> Result<T> {
        tracing::error!(%error, "reading the metadata from another disk");
        if self.read_only {
            // The database is a copy in memory that was checked as a whole: another one is no better.
            return Err(error);
        }
        let replicas = self.replicas.read().clone();
        let online: Vec<DiskId> = self.online().map(|replica| replica.id).collect();
        let (online, left_out): (Vec<_>, Vec<_>) = replicas
            .into_iter()
            .partition(|replica| online.contains(&replica.id));
        // At the path of a disk that was left out there may be another one by now: it is asked last, and only where it is
        // still itself.
        let left_out = left_out
            .into_iter()
            .filter(|replica| replica.disk.check().is_ok());
        for replica in online.into_iter().chain(left_out) {
            let Ok(Some(snapshot)) = replica.snapshot_at(base.mark) else {
                continue;
            };
            if Arc::ptr_eq(&snapshot.database, &base.database) {
                continue;
            }
            let Ok(answer) = read(&snapshot) else {
                continue;
            };
            // One bad value is healed; a database that does not answer is no longer asked.
            if !matches!(error, MetaError::Damaged { .. }) {
                let mut state = self.state.write();
                if Arc::ptr_eq(&state.base, base) {
                    state.base = Arc::new(snapshot);
                }
            }
            return Ok(answer);
        }
        Err(error)
    }

    /// Writes values again that were found damaged, so that the next checkpoint heals every database.
    pub(super) fn heal(self: &Arc<Self>) -> Result<()> {
        let keys = std::mem::take(&mut *self.to_heal.lock());
        if keys.is_empty() {
            return Ok(());
        }
        self.update(|update| {
            for key in keys {
                if let Some(value) = update.get(&key)? {
                    update.put(key, &value);
                }
            }
            Ok(())
        })
    }
}

/// What an update leaves to be done.
enum Urgency {
    None,
    Wake,
    Wait,
}
