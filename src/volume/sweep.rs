//! The sweeper gives back what no manifest refers to any more: segment sets, manifests, and ranges inside
//! segments that live on. It acts only once the transaction that let go of them is durable, and when no read
//! of the file is under way that may still look for them.
//!
//! Sets and manifests that a disk could not remove are found by the next mount. Nothing finds ranges: those on a disk that
//! is away, or that failed, stay in the metadata until the disk is back or their set goes.

use std::sync::{Arc, Weak};

use crossbeam_channel::{Sender, unbounded};

use super::Volume;
use super::file::OpenFile;
use crate::disk::{DiskError, ObjectName};
use crate::ids::{DiskId, ManifestId, SetId};
use crate::meta::{Key, PunchKey, Records};

/// What can be given back.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Sets that this file refers to no more.
    pub sets: Vec<SetId>,
    /// Manifests.
    pub manifests: Vec<ManifestId>,
    /// Ranges of segments, with their lengths.
    pub punches: Vec<(PunchKey, u64)>,
}

impl Sweep {
    /// Makes one range of those that touch, of several windows too: a filesystem gives back whole pages only.
    pub fn join(&mut self) {
        self.punches
            .sort_by_key(|(key, _)| (key.set, key.disk, key.parity, key.offset));
        let mut joined: Vec<(PunchKey, u64)> = Vec::with_capacity(self.punches.len());
        for (key, length) in self.punches.drain(..) {
            match joined.last_mut() {
                Some((before, so_far))
                    if before.offset + *so_far == key.offset
                        && (before.set, before.disk, before.parity)
                            == (key.set, key.disk, key.parity) =>
                {
                    *so_far += length;
                }
                _ => joined.push((key, length)),
            }
        }
        self.punches = joined;
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.manifests.is_empty() && self.punches.is_empty()
    }
}

enum Job {
    Sweep(Option<Arc<OpenFile>>, Sweep),
    Wait(Sender<()>),
}

/// The thread that gives back.
#[derive(Debug)]
pub struct Sweeper {
    queue: Sender<Job>,
}

impl Sweeper {
    /// Starts the thread. It ends when the sweeper is dropped.
    pub fn start(volume: Weak<Volume>) -> std::io::Result<Sweeper> {
        let (queue, jobs) = unbounded();
        std::thread::Builder::new()
            .name("sweeper".into())
            .spawn(move || {
                for job in jobs {
                    match job {
                        Job::Sweep(file, sweep) => {
                            if let Some(volume) = volume.upgrade() {
                                volume.sweep(file.as_deref(), &sweep);
                            }
                        }
                        // Whoever asked may have gone.
                        Job::Wait(done) => drop(done.send(())),
                    }
                }
            })?;
        Ok(Sweeper { queue })
    }

    /// A sweeper that does nothing, for a volume that could not be started.
    pub fn none() -> Sweeper {
        Sweeper {
            queue: unbounded().0,
        }
    }

    /// Hands over what a file lets go of.
    pub fn add(&self, file: Arc<OpenFile>, sweep: Sweep) {
        self.send(Some(file), sweep);
    }

    /// Hands over what a file let go of that nobody has open.
    pub fn add_closed(&self, sweep: Sweep) {
        self.send(None, sweep);
    }

    fn send(&self, file: Option<Arc<OpenFile>>, sweep: Sweep) {
        if !sweep.is_empty() {
            // After the thread has ended the next mount removes what is left.
            let _ = self.queue.send(Job::Sweep(file, sweep));
        }
    }

    /// Waits until everything handed over before is done.
    pub fn wait(&self) {
        let (done, waiting) = crossbeam_channel::bounded(1);
        if self.queue.send(Job::Wait(done)).is_ok() {
            let _ = waiting.recv();
        }
    }
}

impl Volume {
    fn sweep(&self, file: Option<&OpenFile>, sweep: &Sweep) {
        if let Err(error) = self.meta.sync() {
            tracing::warn!(%error, "nothing is given back, as the metadata is not durable");
            return;
        }
        let _alone = file.map(|file| file.reading.write());
        let view = self.meta.view();
        let sets = sweep.sets.iter().copied();
        let gone: Vec<SetId> = sets
            .filter(|set| matches!(view.set(*set), Ok(None)))
            .collect();
        drop(view);
        for status in self.disks.list() {
            let Some(disk) = self.disks.get(status.id) else {
                continue;
            };
            let blocks = gone
                .iter()
                .flat_map(|set| [ObjectName::Blocks(*set), ObjectName::Parity(*set)]);
            let manifests = sweep.manifests.iter().map(|id| ObjectName::Manifest(*id));
            for object in blocks.chain(manifests) {
                if let Err(error) = disk.remove(object) {
                    // The next mount finds it without a reference.
                    tracing::debug!(%error, "not removed");
                }
            }
        }
        if let Err(error) = self.punch(&sweep.punches, &gone) {
            tracing::debug!(%error, "punches will be done again");
        }
        self.pipeline.room.given_back();
    }
}

impl Volume {
    /// Gives back ranges, and forgets those that are given back; with a set that is gone all of its ranges are.
    fn punch(&self, punches: &[(PunchKey, u64)], gone: &[SetId]) -> super::Result<()> {
        let mut done: Vec<PunchKey> = Vec::new();
        let view = self.meta.view();
        for set in gone {
            done.extend(view.punches_of(*set)?.into_iter().map(|(key, _)| key));
        }
        let mut here: Vec<&(PunchKey, u64)> = Vec::new();
        for punch in punches {
            // A disk that has left takes its ranges along.
            let of_nobody = !self.disks.is_member(punch.0.disk) || view.set(punch.0.set)?.is_none();
            match of_nobody {
                true => done.push(punch.0),
                false => here.push(punch),
            }
        }
        drop(view);
        let given_back = here
            .into_iter()
            .filter(|(key, length)| self.punch_one(key, *length));
        done.extend(given_back.map(|(key, _)| *key));
        if done.is_empty() {
            return Ok(());
        }
        self.meta.update(|update| {
            for key in &done {
                update.delete(Key::punch(key));
            }
            Ok(())
        })
    }

    /// Whether a range is given back, as far as its disk can.
    fn punch_one(&self, key: &PunchKey, length: u64) -> bool {
        let disk = self.disks.get(key.disk);
        let Some(disk) = disk.filter(|_| self.disks.is_online(key.disk)) else {
            return false;
        };
        let object = match key.parity {
            true => ObjectName::Parity(key.set),
            false => ObjectName::Blocks(key.set),
        };
        match disk.punch(object, key.offset..key.offset.saturating_add(length)) {
            Ok(()) | Err(DiskError::Unsupported { .. }) => true,
            // On a disk that has just gone away all objects are missing.
            Err(DiskError::Missing { .. }) => {
                self.disks.check(key.disk) && self.disks.is_online(key.disk)
            }
            Err(error) => {
                tracing::debug!(%error, "not punched");
                false
            }
        }
    }

    /// Gives back what a disk missed while it was away.
    pub(super) fn punch_again(&self, disk: DiskId) -> super::Result<()> {
        let mut punches = self.meta.view().punches()?;
        punches.retain(|(key, _)| key.disk == disk);
        self.sweeper.add_closed(Sweep {
            punches,
            ..Sweep::default()
        });
        Ok(())
    }

    /// Where the last range of an object ends that is still to be given back on a disk: what is put behind it now must not go
    /// with it.
    pub(super) fn end_of_punches(&self, disk: DiskId, object: ObjectName) -> super::Result<u64> {
        let (set, parity) = match object {
            ObjectName::Blocks(set) => (set, false),
            ObjectName::Parity(set) => (set, true),
            _ => return Ok(0),
        };
        let punches = self.meta.view().punches_of(set)?.into_iter();
        let own = punches.filter(|(key, _)| (key.disk, key.parity) == (disk, parity));
        let ends = own.map(|(key, length)| key.offset.saturating_add(length));
        Ok(ends.max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_joined_within_their_object() {
        let punch = |set, disk, parity, offset| PunchKey {
            set: SetId(set),
            disk: DiskId(disk),
            parity,
            offset,
        };
        let mut sweep = Sweep {
            punches: vec![
                (punch(1, 1, false, 300), 50),
                (punch(1, 1, false, 100), 100),
                (punch(1, 1, true, 200), 100),
                (punch(1, 2, false, 200), 100),
                (punch(1, 1, false, 200), 100),
                (punch(1, 1, false, 351), 9),
                (punch(2, 1, false, 350), 9),
            ],
            ..Sweep::default()
        };
        sweep.join();
        let expected = vec![
            (punch(1, 1, false, 100), 250),
            (punch(1, 1, false, 351), 9),
            (punch(1, 1, true, 200), 100),
            (punch(1, 2, false, 200), 100),
            (punch(2, 1, false, 350), 9),
        ];
        assert_eq!(sweep.punches, expected);
    }
}
