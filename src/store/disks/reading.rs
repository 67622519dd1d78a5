//! Reading from a disk, which is waited for only so long, and counting how it does: a disk that fails again and again is faulty, one
//! that fails now and then, is slow or gives wrong bytes is suspect.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::score::{self, Fault};
use super::{DiskState, Disks, READ_FAILURES_MAX, ReadFailure, SOON};
use crate::disk::{AT_LAST, Disk, DiskError, ObjectName, Patience};
use crate::ids::DiskId;

impl Disks {
    /// Fills `buffer` from an object of a disk, and counts how the disk does. A disk that fails again and
    /// again becomes faulty; an object that is missing or cut short tells of the object only. Waits no longer
    /// than `SOON`.
    pub fn read(
        &self,
        id: DiskId,
        object: ObjectName,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), ReadFailure> {
        self.read_within(SOON, id, object, offset, buffer)
    }

    /// The same where nobody else has the bytes: waits for up to `AT_LAST`.
    pub fn read_at_last(
        &self,
        id: DiskId,
        object: ObjectName,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), ReadFailure> {
        self.read_within(AT_LAST, id, object, offset, buffer)
    }

    fn read_within(
        &self,
        limit: Duration,
        id: DiskId,
        object: ObjectName,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), ReadFailure> {
        let Some((disk, patience)) = self.with_patience(id) else {
            return Err(ReadFailure::NoDisk(self.name(id)));
        };
        // No object reaches so far: a record has such an offset for what its disk did not take, or is wrong. The system would
        // call the question an error, and the disk would pay for it.
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(ReadFailure::Disk(DiskError::Short {
                disk: self.name(id),
                object,
                offset,
                length: buffer.len() as u64,
            }));
        }
        // What is in memory needs no patience, and no other thread.
        if disk.read_at_once(object, offset, buffer) {
            self.count_success(id);
            return Ok(());
        }
        let length = buffer.len();
        let answer = patience.ask(limit, move |disk| {
            let mut bytes = vec![0; length];
            let read = disk.read_at(object, offset, &mut bytes);
            read.map(|()| bytes)
        });
        match answer {
            Some(Ok(bytes)) => {
                self.count_success(id);
                buffer.copy_from_slice(&bytes);
                Ok(())
            }
            // One object, or the whole disk.
            Some(Err(error)) if error.is_missing() => {
                if self.check(id) {
                    self.count_success(id);
                }
                Err(error.into())
            }
            Some(Err(error)) => {
                self.count_failure(id, &error);
                Err(error.into())
            }
            None => {
                self.count_wait(id);
                Err(ReadFailure::Slow {
                    disk: self.name(id),
                    seconds: limit.as_secs(),
                })
            }
        }
    }

    /// Tells a disk, if it is there and answers, that the range is soon to be read. Waits for nothing: opening the object may
    /// take for ever, and so may beginning to read, so the disk hears of it on a thread of its own.
    pub fn will_read(&self, id: DiskId, object: ObjectName, range: std::ops::Range<u64>) {
        if range.is_empty() || self.reads_fail(id) {
            return;
        }
        let Some((disk, patience)) = self.with_patience(id) else {
            return;
        };
        // What comes last in memory has all before it there too, or nearly all, and no thread need wake for it.
        if !disk.read_at_once(object, range.end - 1, &mut [0]) {
            patience.tell(move |disk| disk.will_read(object, range));
        }
    }

    fn with_patience(&self, id: DiskId) -> Option<(Arc<dyn Disk>, Patience)> {
        let slots = self.slots.read();
        let slot = slots.get(&id)?;
        slot.disk.clone().zip(slot.patience.clone())
    }

    /// Writing to a disk failed: it is faulty, unless it is not to blame. Tells whether it is.
    pub fn hold_against(&self, id: DiskId, error: &DiskError) -> bool {
        if error.is_own() {
            tracing::error!(disk = %id, %error, "cannot be written to at this moment");
            return false;
        }
        self.mark_faulty(id, error);
        true
    }

    pub(super) fn count_failure(&self, id: DiskId, error: &DiskError) {
        if error.is_own() {
            tracing::error!(disk = %id, %error, "cannot be read at this moment");
            return;
        }
        let (in_a_row, points) = {
            let slots = self.slots.read();
            let Some(slot) = slots.get(&id) else { return };
            slot.read_errors.fetch_add(1, Ordering::Relaxed);
            let points = slot.score.lock().add(Fault::Read, Instant::now());
            let in_a_row = slot.in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
            if points >= score::SUSPECT {
                slot.avoid.store(true, Ordering::Relaxed);
            }
            (in_a_row, points)
        };
        if in_a_row >= READ_FAILURES_MAX {
            self.mark_faulty(id, format!("{in_a_row} reads failed in a row: {error}"));
        } else if points >= score::FAULTY {
            self.mark_faulty(id, format!("it fails too often: {error}"));
        } else if points >= score::SUSPECT {
            self.become_suspect(id, &error.to_string());
        }
    }

    pub(super) fn become_suspect(&self, id: DiskId, why: &str) {
        self.set_state(id, why, |slot| {
            (slot.state == DiskState::Online).then_some(DiskState::Suspect)
        });
    }

    pub(super) fn count_wait(&self, id: DiskId) {
        {
            let slots = self.slots.read();
            let Some(slot) = slots.get(&id) else { return };
            slot.waits.fetch_add(1, Ordering::Relaxed);
            slot.avoid.store(true, Ordering::Relaxed);
            slot.hangs.lock().get_or_insert_with(Instant::now);
            slot.score.lock().add(Fault::Slow, Instant::now());
        }
        self.become_suspect(id, &format!("it did not answer in {} s", SOON.as_secs()));
    }

    /// A disk gave other bytes than were written, or lacks them. One that is being rebuilt may.
    pub fn count_wrong_bytes(&self, id: DiskId, what: impl fmt::Display) {
        let suspect = {
            let slots = self.slots.read();
            let Some(slot) = slots.get(&id) else { return };
            if slot.disk.is_none() || slot.state == DiskState::Rebuilding {
                return;
            }
            slot.wrong_bytes.fetch_add(1, Ordering::Relaxed);
            slot.score.lock().add(Fault::WrongBytes, Instant::now()) >= score::SUSPECT
        };
        if suspect {
            self.become_suspect(id, &what.to_string());
        }
    }

    pub(super) fn count_success(&self, id: DiskId) {
        let slots = self.slots.read();
        if let Some(slot) = slots.get(&id) {
            if slot.in_a_row.load(Ordering::Relaxed) != 0 {
                slot.in_a_row.store(0, Ordering::Relaxed);
            }
            if slot.avoid.load(Ordering::Relaxed) {
                *slot.hangs.lock() = None;
            }
        }
    }

    /// A program reads: work in the background makes way for a moment.
    pub fn note_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// How many reads by programs there were so far.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Writes good bytes again over bad ones, where the disk is online and the mount may write; says
    /// whether it did. Failing is logged and no error: the caller has its bytes.
    pub fn repair(&self, id: DiskId, object: ObjectName, offset: u64, bytes: &[u8]) -> bool {
        if self.read_only || !self.is_online(id) {
            return false;
        }
        let Some(disk) = self.get(id) else {
            return false;
        };
        match disk.restore(object, offset, bytes) {
            Ok(()) => {
                let length = bytes.len();
                tracing::warn!(disk = disk.name(), %object, offset, length, "repaired");
                true
            }
            Err(DiskError::Unsupported { .. }) => false,
            Err(error) => {
                tracing::warn!(disk = disk.name(), %object, offset, %error, "cannot be repaired");
                false
            }
        }
    }
}
