//! A disk joins while the metadata is in use, or comes back, or leaves for good; and all copies are looked over. Whoever
//! changes something meanwhile waits for the copying only if there is too much of it to be kept in memory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use xxhash_rust::xxh3::Xxh3;

use super::database::{Database, Snapshot, State, Sums, WRITE_CACHE};
use super::error::{MetaError, Result};
use super::inner::Inner;
use super::journal::{Journal, Series, scan};
use super::rebuild::fill;
use super::replica::Replica;
use super::table::Key;
use crate::disk::Disk;
use crate::ids::DiskId;

/// Keys copied at once.
const BATCH: usize = 2_000;

/// What was found when all copies of the metadata were looked over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopiesReport {
    /// Bytes read.
    pub bytes: u64,
    /// Disks whose journal, database or manifest of the namespace was not what it should be, each with what was wrong.
    pub bad: Vec<(DiskId, String)>,
    /// Those of them that were made good.
    pub repaired: Vec<DiskId>,
}

fn same(base: &Snapshot, database: &Arc<Database>) -> bool {
    Arc::ptr_eq(&base.database, database)
}

impl Inner {
    /// Has a disk take part from now on: one that is new, or one that was left out. What it held of the metadata is
    /// written anew.
    pub(super) fn join(self: &Arc<Self>, id: DiskId, disk: &Arc<dyn Disk>) -> Result<()> {
        self.check_writable()?;
        let _last = self.checkpointing.lock();
        self.join_now(id, disk)
    }

    /// The same, with `checkpointing` locked. Tells of a disk that took part until now and could not begin anew.
    fn join_now(self: &Arc<Self>, id: DiskId, disk: &Arc<dyn Disk>) -> Result<()> {
        let took_part = self.online().any(|replica| replica.id == id);
        let joined = self.join_anew(id, disk);
        if let Err(error) = &joined {
            // One that came as far as to take part again was told of when it was left out.
            let replicas = self.replicas.read().clone();
            if took_part && replicas.iter().all(|replica| replica.id != id) {
                tracing::error!(
                    disk = disk.name(),
                    %error,
                    "its copy of the metadata was bad and cannot be written anew: the disk takes no part until it is brought \
                     online again or replaced"
                );
                (self.options.on_disk_failed)(id, error);
            }
        }
        joined
    }

    fn join_anew(self: &Arc<Self>, id: DiskId, disk: &Arc<dyn Disk>) -> Result<()> {
        // 1. An earlier part of the disk in this is ended, and nobody reads its database any more.
        self.part_with(id)?;
        // 2. The database as of the last checkpoint is copied, while others go on; from any disk that answers. They have a new
        // generation from here on: where this ends before the disk takes part, it knows of none of what they answer meanwhile,
        // and must not pass for one that does.
        let view = self.view();
        self.begin_generation(&mut self.commit.lock(), Vec::new())?;
        let state = State {
            volume: self.options.volume,
            mark: view.base.mark,
        };
        let sums: Arc<Sums> = Arc::default();
        let database = Database::create(&**disk, &sums, WRITE_CACHE)?;
        fill(&database, state, &|after| view.base_batch(after))?;
        drop((database, view));
        let journal = Journal::start(id, Arc::clone(disk), Series::Journal, None)?;
        // 3. Then nobody commits for a moment: what has changed since is brought into all databases, this one too. Nothing
        // that can fail comes between the two: a layer that is put aside and not brought in would be taken for the newest.
        let mut commit = self.commit.lock();
        let mark = self.commit_pending(&mut commit, true)?;
        let replica = Arc::new(Replica::new(id, Arc::clone(disk), sums));
        self.replicas.write().push(replica);
        let (from, since) = self.since_checkpoint();
        let advanced = self.advance_databases(mark);
        commit.journals.push(journal);
        // 4. and a journal is begun everywhere with an image of them.
        let begun = advanced.and_then(|()| self.begin_journal(&mut commit));
        if let Err(error) = begun {
            self.leave_out(id, &error);
            // By now its database tells of the generation that the others are in.
            if self.drop_left_out(&mut commit) && self.check_writable().is_ok() {
                // Where that fails nothing more can be written, and nothing is answered.
                let _ = self.begin_generation(&mut commit, Vec::new());
            }
            return Err(error);
        }
        // 5. The disks that there are now have a generation of their own.
        self.drop_left_out(&mut commit);
        self.begin_generation(&mut commit, Vec::new())?;
        drop(commit);
        self.write_names(from, &since, mark);
        if self.online().any(|replica| replica.id == id) {
            Ok(())
        } else {
            Err(MetaError::Database {
                disk: disk.name().to_owned(),
                what: "join the volume",
                why: "the disk failed meanwhile".to_owned(),
            })
        }
    }

    /// Ends a disk's part, and has the databases of others read from.
    pub(super) fn part_with(&self, id: DiskId) -> Result<()> {
        let old = {
            let mut replicas = self.replicas.write();
            let place = replicas.iter().position(|replica| replica.id == id);
            place.map(|place| replicas.remove(place))
        };
        let Some(old) = old else { return Ok(()) };
        if old.leave_out() {
            let mut commit = self.commit.lock();
            if self.drop_left_out(&mut commit) {
                self.begin_generation(&mut commit, Vec::new())?;
            }
        }
        self.read_from_others(&old)
    }

    /// Closes what is open on a disk that was left out.
    pub(super) fn let_go(&self, id: DiskId) {
        // In a checkpoint its database may be in use.
        let Some(_last) = self.checkpointing.try_lock() else {
            return;
        };
        let left_out = {
            let replicas = self.replicas.read();
            let found = replicas.iter().find(|replica| replica.id == id);
            found.filter(|replica| !replica.is_online()).cloned()
        };
        let Some(replica) = left_out else { return };
        self.names.lock().let_go(id);
        {
            let mut commit = self.commit.lock();
            if self.drop_left_out(&mut commit) && self.check_writable().is_ok() {
                // Where too few are left nothing more is written, which it has told.
                let _ = self.begin_generation(&mut commit, Vec::new());
            }
        }
        // Where no other has it, it stays open: names are still read.
        let _ = self.read_from_others(&replica);
        replica.close_if_idle();
        replica.disk.let_go();
    }

    /// Has the databases of others read from, if it is this disk's that is.
    fn read_from_others(&self, old: &Replica) -> Result<()> {
        let base = Arc::clone(&self.state.read().base);
        if !old.has_open(&base.database) {
            return Ok(());
        }
        for replica in self.online() {
            if let Ok(Some(snapshot)) = replica.snapshot_at(base.mark) {
                let mut state = self.state.write();
                if same(&state.base, &base.database) {
                    state.base = Arc::new(snapshot);
                }
                return Ok(());
            }
        }
        Err(MetaError::Nothing)
    }

    /// So many disks the volume has now.
    pub(super) fn set_members(&self, count: usize) {
        self.disks_of_volume.store(count, Ordering::SeqCst);
        let needed = if self.options.force {
            1
        } else {
            count.div_ceil(2)
        };
        self.disks_needed.store(needed, Ordering::SeqCst);
    }

    /// Reads every disk's journal, database and manifest of the namespace, compares them, and with `repair` writes anew
    /// those that are not what they should be. Nothing is committed while a journal is read.
    pub(super) fn check_copies(self: &Arc<Self>, repair: bool) -> Result<CopiesReport> {
        let mut report = CopiesReport::default();
        let mut last = self.checkpointing.lock();
        let (mark, from, since) = {
            let mut commit = self.commit.lock();
            let mark = self.commit_pending(&mut commit, true)?;
            let (from, since) = self.since_checkpoint();
            self.advance_databases(mark)?;
            *last = std::time::Instant::now();
            for replica in self.online() {
                let found = scan(&*replica.disk, self.options.volume)?;
                report.bytes += found.files.iter().map(|file| file.length).sum::<u64>();
                let newest = found.files.last();
                let reached = newest.and_then(|file| {
                    let last = file.transactions.last().map(|last| last.epoch);
                    last.or(file.image.as_ref().map(|image| image.epoch))
                });
                let sound = newest.is_some_and(|file| file.is_sound() && file.damaged_at.is_none());
                if !sound || reached != Some(mark.epoch) {
                    let what = "its journal is damaged".to_owned();
                    report.bad.push((replica.id, what));
                }
            }
            (mark, from, since)
        };
        self.write_names(from, &since, mark);
        let mut digests: Vec<(DiskId, u64)> = Vec::new();
        let at = self.state.read().base.mark;
        for replica in self.online() {
            let read = replica.snapshot_at(at).and_then(|snapshot| {
                let snapshot = snapshot.ok_or(MetaError::Nothing)?;
                digest(&snapshot, &mut report.bytes)
            });
            match read {
                Ok(digest) => digests.push((replica.id, digest)),
                Err(error) => report
                    .bad
                    .push((replica.id, format!("its database: {error}"))),
            }
            replica.close_if_idle();
        }
        // All say the same, or most of them know better.
        let agrees = |of: u64| digests.iter().filter(|(_, digest)| *digest == of).count();
        if let Some((_, right)) = digests.iter().max_by_key(|(_, digest)| agrees(*digest)) {
            for (id, digest) in &digests {
                if digest != right {
                    let what = "its database differs from the others'".to_owned();
                    report.bad.push((*id, what));
                }
            }
        }
        if repair {
            self.repair_copies(&mut report)?;
        }
        let at = self.state.read().base.mark;
        self.check_names(at, repair, &mut report);
        Ok(report)
    }

    fn repair_copies(self: &Arc<Self>, report: &mut CopiesReport) -> Result<()> {
        let bad: BTreeSet<DiskId> = report.bad.iter().map(|(id, _)| *id).collect();
        for id in bad {
            let disk = {
                let replicas = self.replicas.read();
                let replica = replicas.iter().find(|replica| replica.id == id);
                replica.map(|replica| Arc::clone(&replica.disk))
            };
            let Some(disk) = disk else { continue };
            // While it is written anew the others go on without it, which must be enough of them. What is not repaired is
            // healed value by value as it is read, and written anew by the next mount.
            if self.online().count() <= self.disks_needed.load(Ordering::SeqCst).max(1) {
                continue;
            }
            match self.join_now(id, &disk) {
                Ok(()) => report.repaired.push(id),
                Err(error) => {
                    self.check_writable()?;
                    let what = format!("its metadata cannot be written anew: {error}");
                    report.bad.push((id, what));
                }
            }
        }
        Ok(())
    }
}

/// A fingerprint of everything in a database; an error where any of it is damaged.
fn digest(of: &Snapshot, bytes: &mut u64) -> Result<u64> {
    let mut hash = Xxh3::new();
    let mut after: Option<Key> = None;
    loop {
        let batch = of.after(after.as_ref(), BATCH)?;
        for (key, value) in &batch {
            let Some(value) = value else {
                return Err(MetaError::Damaged { key: key.clone() });
            };
            for part in [key.as_bytes(), value] {
                hash.update(&(part.len() as u64).to_le_bytes());
                hash.update(part);
                *bytes += part.len() as u64;
            }
        }
        match batch.into_iter().next_back() {
            Some((key, _)) => after = Some(key),
            None => return Ok(hash.digest()),
        }
    }
}
