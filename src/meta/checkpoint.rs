//! Bringing the databases up to the journal, so that a mount need not read much of it; and beginning a new
//! journal with an image when the old one has grown.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::change;
use super::commit::Commit;
use super::database::{Snapshot, State};
use super::error::{MetaError, Result};
use super::history::Mark;
use super::inner::Inner;
use super::journal::{
    Failed, HEADER, Journal, Kind, Record, abandon_all, append_all, begin_all, settle_all,
};
use super::layer::Layer;
use super::table::Key;
use super::view::View;
use crate::ids::VolumeId;
use crate::threads::side_by_side;

/// A part of an image is about this long. Bytes.
pub(super) const PART: usize = 256 << 10;

/// Keys read at once for an image.
const BATCH: usize = 512;

/// A journal longer than this, and than twice its image, makes way for an image when a volume is closed. Bytes.
const CLOSED_BYTES: u64 = 256 << 10;

impl Inner {
    /// Makes everything durable and brings every disk's database up to it.
    pub(super) fn checkpoint(self: &Arc<Self>) -> Result<()> {
        self.checkpoint_for(false)
    }

    /// The same when the volume is `closing`: then a journal makes way sooner, since nobody waits for it.
    pub(super) fn checkpoint_for(self: &Arc<Self>, closing: bool) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let mut last = self.checkpointing.lock();
        // 1. Everything is in the journals,
        let mut commit = self.commit.lock();
        let mark = self.commit_pending(&mut commit, true)?;
        let limit = self.options.journal_bytes.max(2 * commit.image_length);
        let long = commit.length > limit || closing && commit.length > CLOSED_BYTES;
        let journal = long.then_some(commit);
        // 2. then in the databases; unless a new journal is due others go on with the journals meanwhile,
        let (from, since) = self.since_checkpoint();
        self.advance_databases(mark)?;
        *last = Instant::now();
        // 3. and a journal that holds all that the databases hold can make way for an image of them.
        match journal {
            Some(commit) if commit.length <= limit && !self.is_worn(&commit) => {}
            Some(mut commit) if commit.mark == mark => self.begin_journal(&mut commit)?,
            _ => {}
        }
        // 4. The same goes into the manifests of the namespace, for the day when both are lost.
        self.write_names(from, &since, mark);
        Ok(())
    }

    /// Whether a journal is more than twice as long as what its volume holds now.
    fn is_worn(&self, commit: &Commit) -> bool {
        // A damaged database may not tell; all hold the same.
        let live = self
            .online()
            .find_map(|replica| replica.database().ok()?.live_bytes().ok());
        live.is_some_and(|live| commit.length > 2 * live)
    }

    pub(super) fn advance_databases(self: &Arc<Self>, mark: Mark) -> Result<()> {
        let frozen = self.frozen();
        let base = self.state.read().base.mark;
        if base.is_same_as(mark) && frozen.is_empty() {
            self.state.write().frozen = None;
            return Ok(());
        }
        let state = State {
            volume: self.options.volume,
            mark,
        };
        let online: Vec<_> = self.online().collect();
        let results = side_by_side(online.clone(), |replica| -> Result<Snapshot> {
            let database = replica.database()?;
            database.must_be_at(base)?;
            frozen.newest(|changes| database.apply(changes, Some(state)))?;
            database.snapshot()
        });
        let mut good = Vec::new();
        let mut broken = Vec::new();
        for (replica, result) in std::iter::zip(online, results) {
            let result = result.unwrap_or_else(|_| {
                Err(MetaError::Database {
                    disk: replica.disk.name().to_owned(),
                    what: "take changes",
                    why: "it is damaged".to_owned(),
                })
            });
            match result {
                Ok(snapshot) => good.push(snapshot),
                Err(error) => broken.push((replica, error)),
            }
        }
        let mut failed = None;
        // What this process may not have: no disk is to blame for it. One that lags behind for it is found not to be at the
        // base by the next checkpoint, and made anew.
        let mut own = None;
        for (replica, error) in broken {
            if error.is_own() {
                own = Some(error);
                continue;
            }
            // The journal has it all, and so have the other databases: a damaged one is no loss.
            let mut own_trouble = None;
            let again = good.iter().any(|good| match replica.rebuild(good, state) {
                Ok(_) => true,
                Err(again) => {
                    if again.is_own() {
                        own_trouble = Some(again);
                    }
                    false
                }
            });
            match again {
                true => tracing::warn!(
                    disk = replica.disk.name(),
                    %error,
                    "its metadata database was damaged and is made anew"
                ),
                false => {
                    if own_trouble.is_some() {
                        own = own_trouble;
                        continue;
                    }
                    // The next transaction begins a generation without this disk.
                    self.leave_out(replica.id, &error);
                    failed = Some(error);
                }
            }
        }
        match (good.into_iter().next(), failed) {
            // Those that have it all are the base from now on: from the old one nothing would lead on to them.
            (Some(snapshot), _) => {
                let mut state = self.state.write();
                state.base = Arc::new(snapshot);
                state.frozen = None;
            }
            (None, _) if own.is_some() => self.put_off(),
            (None, failed) => {
                let error = failed.unwrap_or(MetaError::TooFewDisks {
                    online: 0,
                    total: self.disks_of_volume.load(Ordering::SeqCst),
                });
                self.poison(error.clone());
                return Err(error);
            }
        }
        for replica in self.replicas.read().iter() {
            replica.close_if_idle();
        }
        own.map_or(Ok(()), Err)
    }

    /// No database has it all, and no disk is to blame: the journals have it, and another checkpoint will bring them up.
    fn put_off(&self) {
        let mut state = self.state.write();
        if let Some(frozen) = state.frozen.take() {
            state.current = Arc::new(Layer::joined(&frozen, &state.current));
        }
    }

    /// Begins a new journal with an image of the databases, which are at `commit`'s mark.
    pub(super) fn begin_journal(self: &Arc<Self>, commit: &mut Commit) -> Result<()> {
        let view = self.view();
        let number = commit.number + 1;
        let journals: Vec<&Journal> = commit.journals.iter().collect();
        let image = Image {
            volume: self.options.volume,
            mark: commit.mark,
            number,
        };
        match image.write(&journals, &|after| view.base_batch(after)) {
            Ok((length, failed)) => {
                commit.number = number;
                commit.length = length;
                commit.image_length = length;
                self.leave_out_failed(failed);
                Ok(())
            }
            Err(error) => {
                // The old journal is whole, and goes on.
                let failed = abandon_all(&journals);
                self.leave_out_failed(failed);
                Err(error)
            }
        }
    }
}

impl View {
    /// The next keys of the database, from another disk where its own fails.
    pub(super) fn base_batch(&self, after: Option<&Key>) -> Result<Batch> {
        let found = self.inner.after_base(&self.base, after, BATCH)?;
        found
            .into_iter()
            .map(|(key, value)| {
                let value = match value {
                    Some(value) => Some(value),
                    None => self.inner.read_base(&self.base, &key)?,
                };
                match value {
                    Some(value) => Ok((key, value)),
                    None => Err(MetaError::Damaged { key }),
                }
            })
            .collect()
    }
}

/// Keys with their values, in order.
pub(super) type Batch = Vec<(Key, super::table::Value)>;

/// An image to be written.
pub(super) struct Image {
    pub(super) volume: VolumeId,
    pub(super) mark: Mark,
    /// The number of the journal that it begins.
    pub(super) number: u64,
}

impl Image {
    /// Begins a journal on these disks with everything that `next` gives, makes it durable and removes the
    /// older ones. Gives the bytes written and the disks that failed. An error means that `next` failed, or this process and
    /// no disk, and that the journals begun must be abandoned.
    pub(super) fn write(
        &self,
        journals: &[&Journal],
        next: &dyn Fn(Option<&Key>) -> Result<Batch>,
    ) -> Result<(u64, Failed)> {
        let mut writing = Writing::new(self.volume, self.mark, journals.to_vec());
        let mut failed = begin_all(&writing.journals, self.number);
        if let Some(place) = failed.iter().position(|(_, error)| error.is_own()) {
            return Err(failed.swap_remove(place).1.into());
        }
        writing.leave_out(failed);
        let mut payload = Vec::with_capacity(PART + HEADER);
        let mut after: Option<Key> = None;
        loop {
            let batch = next(after.as_ref())?;
            for (key, value) in &batch {
                change::encode(key.as_bytes(), Some(value), &mut payload);
                if payload.len() >= PART {
                    writing.append(Kind::Image, &payload);
                    payload.clear();
                }
            }
            match batch.into_iter().next_back() {
                Some((key, _)) => after = Some(key),
                None => break,
            }
        }
        if !payload.is_empty() {
            writing.append(Kind::Image, &payload);
        }
        writing.append(Kind::ImageEnd, &[]);
        let failed = settle_all(&writing.journals);
        writing.leave_out(failed);
        Ok(writing.end())
    }
}

/// Records on their way to several disks, all of which reach one moment.
pub(super) struct Writing<'a> {
    volume: VolumeId,
    mark: Mark,
    journals: Vec<&'a Journal>,
    failed: Failed,
    parts: u32,
    length: u64,
}

impl<'a> Writing<'a> {
    pub(super) fn new(volume: VolumeId, mark: Mark, journals: Vec<&'a Journal>) -> Self {
        Writing {
            volume,
            mark,
            journals,
            failed: Vec::new(),
            parts: 0,
            length: 0,
        }
    }

    fn leave_out(&mut self, failed: Failed) {
        self.journals
            .retain(|journal| failed.iter().all(|(disk, _)| *disk != journal.disk));
        self.failed.extend(failed);
    }

    /// Appends a part, or the end of all, which is made durable.
    pub(super) fn append(&mut self, kind: Kind, payload: &[u8]) {
        let record = Record {
            kind,
            sequence: self.parts,
            epoch: self.mark.epoch,
            generation: self.mark.generation,
            previous: self.mark.fingerprint,
            volume: self.volume,
        };
        let sync = matches!(kind, Kind::ImageEnd | Kind::StepEnd);
        let (_, length, failed) = append_all(&self.journals, record, payload, sync);
        self.length += length;
        self.parts += 1;
        self.leave_out(failed);
    }

    /// The bytes written, and the disks that failed.
    pub(super) fn end(self) -> (u64, Failed) {
        (self.length, self.failed)
    }
}
