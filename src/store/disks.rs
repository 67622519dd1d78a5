//! The disks of a mounted volume and how each fares: who may be written to, who may be asked, who is gone.
//! Everything that reads blocks, parity and manifests asks through here, so that errors are counted in one
//! place, and nobody waits for ever for a disk that hangs. It knows disks and objects, not what they hold.

mod score;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use self::score::{Fault, Score};
use crate::disk::{AT_LAST, Disk, DiskError, ObjectName, Patience};
use crate::ids::DiskId;

/// So many failed reads with none that succeeds in between make a disk faulty. One bad sector does not: it
/// is repaired, or read around.
const READ_FAILURES_MAX: u32 = 8;

/// How long a read may take before its bytes are got from elsewhere, and the disk is suspect.
pub const SOON: Duration = Duration::from_secs(5);

/// How a disk fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// Written to and read from.
    Online,
    /// It fails now and then, is slow, or gave wrong bytes: it gets no new data while the others are enough.
    Suspect,
    /// It failed: nothing more is written to it, what it holds is read where nothing else has it.
    Faulty,
    /// Not there.
    Missing,
    /// Online, and what it lacks is being written to it.
    Rebuilding,
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiskState::Online => "online",
            DiskState::Suspect => "suspect",
            DiskState::Faulty => "faulty",
            DiskState::Missing => "missing",
            DiskState::Rebuilding => "rebuilding",
        })
    }
}

impl DiskState {
    /// Whether such a disk takes metadata, manifests and repairs.
    pub fn takes_writes(self) -> bool {
        matches!(
            self,
            DiskState::Online | DiskState::Suspect | DiskState::Rebuilding
        )
    }

    /// Whether such a disk has all that it should have.
    pub fn is_whole(self) -> bool {
        matches!(self, DiskState::Online | DiskState::Suspect)
    }
}

/// A line of the table of disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// The number.
    pub id: DiskId,
    /// What the administrator calls it.
    pub name: String,
    /// How it fares.
    pub state: DiskState,
    /// Why it is not online; empty when it is.
    pub note: String,
    /// Whether what it holds is being moved to others.
    pub leaving: bool,
    /// Reads that failed in this mount, those for want of an object excluded.
    pub read_errors: u32,
    /// Times that it gave other bytes than were written, or lacked them.
    pub wrong_bytes: u32,
    /// Times that somebody waited too long for it.
    pub waits: u32,
}

/// Why a range of a disk could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFailure {
    /// The disk is not there.
    #[error("disk {0} is missing")]
    NoDisk(String),
    /// It does not answer.
    #[error("disk {disk}: no answer in {seconds} s")]
    Slow {
        /// The disk.
        disk: String,
        /// How long somebody waited.
        seconds: u64,
    },
    /// The disk said so.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

struct Slot {
    name: String,
    disk: Option<Arc<dyn Disk>>,
    patience: Option<Patience>,
    state: DiskState,
    note: String,
    leaving: bool,
    score: Mutex<Score>,
    /// It is suspect for failing or hanging, so it is asked after the others.
    avoid: AtomicBool,
    /// Since when it has not answered.
    hangs: Mutex<Option<Instant>>,
    /// Failed reads since the last one that succeeded.
    in_a_row: AtomicU32,
    read_errors: AtomicU32,
    wrong_bytes: AtomicU32,
    waits: AtomicU32,
}

/// Called, once a disk, when a disk becomes faulty or goes missing, from any thread.
pub type OnFaulty = Box<dyn Fn(DiskId, &str) + Send + Sync>;

/// Told when a disk's state has changed. Must not wait, nor call back.
pub type OnChange = Box<dyn Fn() + Send + Sync>;

/// The table of a volume's disks. Shared by all that read and write.
#[derive(Default)]
pub struct Disks {
    read_only: bool,
    on_faulty: OnceLock<OnFaulty>,
    slots: RwLock<BTreeMap<DiskId, Slot>>,
    on_change: RwLock<Option<OnChange>>,
    /// Counts reads by programs, so that work in the background can make way.
    reads: AtomicU64,
}

impl fmt::Debug for Disks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

impl Disks {
    /// An empty table. When `read_only`, nothing is repaired.
    pub fn new(read_only: bool) -> Self {
        Disks {
            read_only,
            ..Disks::default()
        }
    }

    /// Enters a disk, or puts it in the place of one that was missing; `None` is a disk known to be missing.
    pub fn insert(&self, id: DiskId, name: impl Into<String>, disk: Option<Arc<dyn Disk>>) {
        let slot = Slot {
            name: name.into(),
            state: match disk {
                Some(_) => DiskState::Online,
                None => DiskState::Missing,
            },
            patience: disk.clone().map(Patience::new),
            disk,
            note: String::new(),
            leaving: false,
            score: Mutex::new(Score::new(Instant::now())),
            avoid: AtomicBool::new(false),
            hangs: Mutex::new(None),
            in_a_row: AtomicU32::new(0),
            read_errors: AtomicU32::new(0),
            wrong_bytes: AtomicU32::new(0),
            waits: AtomicU32::new(0),
        };
        self.slots.write().insert(id, slot);
        self.changed();
    }

    /// Takes a disk that has left out of the table.
    pub fn remove(&self, id: DiskId) {
        self.slots.write().remove(&id);
        self.changed();
    }

    /// Has `on_change` called whenever a disk's state changes.
    pub fn set_on_change(&self, on_change: OnChange) {
        *self.on_change.write() = Some(on_change);
    }

    fn changed(&self) {
        if let Some(on_change) = &*self.on_change.read() {
            on_change();
        }
    }

    /// The disk, faulty or not; `None` when it is missing.
    pub fn get(&self, id: DiskId) -> Option<Arc<dyn Disk>> {
        self.slots.read().get(&id)?.disk.clone()
    }

    /// What the administrator calls it; its number when the table does not know it.
    pub fn name(&self, id: DiskId) -> String {
        let slots = self.slots.read();
        slots
            .get(&id)
            .map_or_else(|| format!("#{id}"), |slot| slot.name.clone())
    }

    /// How it fares. One that the table does not know is missing.
    pub fn state(&self, id: DiskId) -> DiskState {
        let slots = self.slots.read();
        slots.get(&id).map_or(DiskState::Missing, |slot| slot.state)
    }

    /// Whether it takes writes: such a disk is asked first, and repaired.
    pub fn is_online(&self, id: DiskId) -> bool {
        self.state(id).takes_writes()
    }

    /// Whether every disk is online.
    pub fn all_online(&self) -> bool {
        let slots = self.slots.read();
        slots.values().all(|slot| slot.state.is_whole())
    }

    /// Whether it is better asked after the others: its last reads all failed, it hangs, or it failed altogether.
    pub fn reads_fail(&self, id: DiskId) -> bool {
        let slots = self.slots.read();
        slots.get(&id).is_none_or(|slot| {
            slot.disk.is_none()
                || slot.state == DiskState::Faulty
                || slot.avoid.load(Ordering::Relaxed)
                || slot.in_a_row.load(Ordering::Relaxed) >= READ_FAILURES_MAX
        })
    }

    /// Has disks that become faulty, or go missing, told of. The first wish stays.
    pub fn on_faulty(&self, tell: OnFaulty) {
        let _ = self.on_faulty.set(tell);
    }

    /// Changes a state, and tells of it.
    fn set_state(
        &self,
        id: DiskId,
        why: &str,
        to: impl FnOnce(&Slot) -> Option<DiskState>,
    ) -> bool {
        let mut slots = self.slots.write();
        let Some(slot) = slots.get_mut(&id) else {
            return false;
        };
        let Some(state) = to(slot).filter(|state| *state != slot.state) else {
            return false;
        };
        let disk = slot.name.clone();
        match state {
            DiskState::Faulty => {
                tracing::error!(disk, why, "disk is faulty: no more is written to it");
            }
            DiskState::Missing => tracing::error!(disk, why, "disk is missing"),
            DiskState::Suspect => tracing::warn!(
                disk,
                why,
                "disk is suspect: it gets no new data while the others are enough"
            ),
            DiskState::Online => tracing::info!(disk, why, "disk is online"),
            DiskState::Rebuilding => {
                tracing::info!(
                    disk,
                    why,
                    "disk is rebuilding: what it lacks is written to it"
                );
            }
        }
        slot.state = state;
        slot.note = match state {
            DiskState::Online => String::new(),
            _ => why.to_owned(),
        };
        if state == DiskState::Missing {
            slot.disk = None;
            slot.patience = None;
        }
        if matches!(state, DiskState::Online | DiskState::Rebuilding) {
            *slot.score.lock() = Score::new(Instant::now());
            slot.avoid.store(false, Ordering::Relaxed);
            slot.in_a_row.store(0, Ordering::Relaxed);
            *slot.hangs.lock() = None;
        }
        drop(slots);
        // Without the lock: who is told may come back.
        if matches!(state, DiskState::Faulty | DiskState::Missing)
            && let Some(tell) = self.on_faulty.get()
        {
            tell(id, why);
        }
        self.changed();
        true
    }

    /// Nothing more is to be written to it. The first reason stays.
    pub fn mark_faulty(&self, id: DiskId, why: impl fmt::Display) {
        self.set_state(id, &why.to_string(), |slot| {
            slot.state.takes_writes().then_some(DiskState::Faulty)
        });
    }

    /// Marks a disk missing whose medium is gone. Tells whether it is there.
    pub fn check(&self, id: DiskId) -> bool {
        match self.ask(id, |disk| disk.check()) {
            Some(Err(gone)) => {
                self.mark_missing(id, gone);
                false
            }
            Some(Ok(())) | None => true,
        }
    }

    /// Asks a disk something that is soon answered; `None` when it is missing, or hangs. One that hangs already is not
    /// waited for.
    pub fn ask<T: Send + 'static>(
        &self,
        id: DiskId,
        request: impl FnOnce(&dyn Disk) -> crate::disk::Result<T> + Send + 'static,
    ) -> Option<crate::disk::Result<T>> {
        let patience = {
            let slots = self.slots.read();
            let slot = slots.get(&id)?;
            if slot.hangs.lock().is_some() {
                return None;
            }
            slot.patience.clone()?
        };
        let answer = patience.ask(SOON, request);
        if answer.is_none() {
            self.count_wait(id);
        }
        answer
    }

    /// It is no longer where it was: what it held is not asked for any more.
    pub fn mark_missing(&self, id: DiskId, why: impl fmt::Display) {
        self.set_state(id, &why.to_string(), |_| Some(DiskState::Missing));
    }

    /// It gets no new data while the others are enough.
    pub fn mark_suspect(&self, id: DiskId, why: impl fmt::Display) {
        let changed = self.set_state(id, &why.to_string(), |slot| {
            (slot.state == DiskState::Online).then_some(DiskState::Suspect)
        });
        if changed {
            let slots = self.slots.read();
            if let Some(slot) = slots.get(&id) {
                *slot.score.lock() = Score::suspect(Instant::now());
            }
        }
    }

    /// It takes part, and what it lacks is to be written to it.
    pub fn mark_rebuilding(&self, id: DiskId, why: impl fmt::Display) {
        self.set_state(id, &why.to_string(), |slot| {
            slot.disk.is_some().then_some(DiskState::Rebuilding)
        });
    }

    /// It is trusted again.
    pub fn mark_online(&self, id: DiskId, why: impl fmt::Display) {
        self.set_state(id, &why.to_string(), |slot| {
            slot.disk.is_some().then_some(DiskState::Online)
        });
    }

    /// Whether what it holds is being moved to others: then it gets no new data.
    pub fn set_leaving(&self, id: DiskId, leaving: bool) {
        if let Some(slot) = self.slots.write().get_mut(&id) {
            slot.leaving = leaving;
        }
    }

    /// Gives it another name.
    pub fn rename(&self, id: DiskId, name: &str) {
        if let Some(slot) = self.slots.write().get_mut(&id) {
            slot.name = name.to_owned();
        }
    }

    /// The disks that metadata, manifests and new windows may go to, in the order of their numbers.
    pub fn usable_for_writing(&self) -> Vec<DiskId> {
        if self.read_only {
            return Vec::new();
        }
        let slots = self.slots.read();
        let usable = slots.iter().filter(|(_, slot)| slot.state.takes_writes());
        usable.map(|(id, _)| *id).collect()
    }

    /// Whether new data may go there although others could take it: not to a suspect disk, nor to one that leaves.
    pub fn takes_data(&self, id: DiskId) -> Takes {
        let slots = self.slots.read();
        match slots.get(&id) {
            Some(slot) if slot.leaving => Takes::Nothing,
            Some(slot) if slot.state == DiskState::Suspect => Takes::WhatOthersCannot,
            Some(slot) if slot.state.takes_writes() => Takes::Anything,
            _ => Takes::Nothing,
        }
    }

    /// The whole table, in the order of the numbers.
    pub fn list(&self) -> Vec<DiskStatus> {
        let slots = self.slots.read();
        let status = |(id, slot): (&DiskId, &Slot)| DiskStatus {
            id: *id,
            name: slot.name.clone(),
            state: slot.state,
            note: slot.note.clone(),
            leaving: slot.leaving,
            read_errors: slot.read_errors.load(Ordering::Relaxed),
            wrong_bytes: slot.wrong_bytes.load(Ordering::Relaxed),
            waits: slot.waits.load(Ordering::Relaxed),
        };
        slots.iter().map(status).collect()
    }

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
        let found = {
            let slots = self.slots.read();
            let slot = slots.get(&id);
            slot.and_then(|slot| slot.disk.clone().zip(slot.patience.clone()))
        };
        let Some((disk, patience)) = found else {
            return Err(ReadFailure::NoDisk(self.name(id)));
        };
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

    /// Tells a disk, if it is there, that the range is soon to be read.
    pub fn will_read(&self, id: DiskId, object: ObjectName, range: std::ops::Range<u64>) {
        if let Some(disk) = self.get(id) {
            disk.will_read(object, range);
        }
    }

    fn count_failure(&self, id: DiskId, error: &DiskError) {
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

    fn become_suspect(&self, id: DiskId, why: &str) {
        self.set_state(id, why, |slot| {
            (slot.state == DiskState::Online).then_some(DiskState::Suspect)
        });
    }

    fn count_wait(&self, id: DiskId) {
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

    fn count_success(&self, id: DiskId) {
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

    /// Asks every disk whether it is still there, and draws the conclusions: one that is gone is missing, one that
    /// answers nothing for long is faulty, a suspect one that has done well for long is online again.
    pub fn look_after(&self) {
        for status in self.list() {
            let patience = {
                let slots = self.slots.read();
                slots.get(&status.id).and_then(|slot| slot.patience.clone())
            };
            let Some(patience) = patience else { continue };
            match patience.ask(SOON, |disk| disk.check()) {
                Some(Ok(())) => {
                    self.count_success(status.id);
                    self.look_calmly(status.id);
                }
                Some(Err(error @ DiskError::Gone { .. })) => self.mark_missing(status.id, error),
                Some(Err(error)) => self.count_failure(status.id, &error),
                None => {
                    self.count_wait(status.id);
                    let hangs = {
                        let slots = self.slots.read();
                        let slot = slots.get(&status.id);
                        slot.and_then(|slot| *slot.hangs.lock())
                    };
                    if hangs.is_some_and(|since| since.elapsed() >= AT_LAST) {
                        self.mark_faulty(
                            status.id,
                            format!("it has not answered for {} s", AT_LAST.as_secs()),
                        );
                    }
                }
            }
        }
    }

    fn look_calmly(&self, id: DiskId) {
        let calm = {
            let slots = self.slots.read();
            slots.get(&id).is_some_and(|slot| {
                slot.state == DiskState::Suspect && slot.score.lock().is_calm(Instant::now())
            })
        };
        if calm {
            self.mark_online(id, "it has done well for hours");
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

    /// Looks whether every disk is still what it was: one that was taken away under the program is noticed before it is
    /// relied on. Those that are not there are named.
    pub fn absent(&self) -> Vec<DiskId> {
        self.look_after();
        let list = self.list().into_iter();
        list.filter(|status| status.state == DiskState::Missing)
            .map(|status| status.id)
            .collect()
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

/// What new data a disk is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Any.
    Anything,
    /// Only what the others have no place for.
    WhatOthersCannot,
    /// None.
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, MemoryDisk};
    use crate::ids::SetId;

    const OBJECT: ObjectName = ObjectName::Blocks(SetId(1));

    fn table(read_only: bool) -> Disks {
        let disks = Disks::new(read_only);
        let disk = MemoryDisk::new("a");
        disk.put(OBJECT, b"hello").unwrap();
        disks.insert(DiskId(1), "a", Some(Arc::new(disk)));
        disks.insert(DiskId(2), "b", None);
        disks
    }

    #[test]
    fn a_missing_object_does_not_harm_its_disk() {
        let disks = table(false);
        let mut room = [0; 9];
        for _ in 0..3 * READ_FAILURES_MAX {
            assert!(disks.read(DiskId(1), OBJECT, 0, &mut room).is_err());
            let other = ObjectName::Parity(SetId(1));
            assert!(disks.read(DiskId(1), other, 0, &mut room).is_err());
        }
        assert_eq!(disks.usable_for_writing(), [DiskId(1)]);
    }

    #[test]
    fn a_faulty_disk_is_read_and_not_written() {
        let disks = table(false);
        disks.mark_faulty(DiskId(1), "it smokes");
        disks.mark_faulty(DiskId(1), "later");
        disks.mark_faulty(DiskId(2), "it is not even there");
        assert_eq!(disks.state(DiskId(1)), DiskState::Faulty);
        assert_eq!(disks.list()[0].note, "it smokes");
        assert_eq!(disks.state(DiskId(2)), DiskState::Missing);
        assert_eq!(disks.usable_for_writing(), []);
        let mut room = [0; 5];
        disks.read(DiskId(1), OBJECT, 0, &mut room).unwrap();
        assert_eq!(&room, b"hello");
        assert!(!disks.repair(DiskId(1), OBJECT, 0, b"HELLO"));
        let error = disks.read(DiskId(2), OBJECT, 0, &mut room).unwrap_err();
        assert_eq!(error.to_string(), "disk b is missing");
    }

    #[test]
    fn a_mount_that_may_not_write_repairs_nothing() {
        let disks = table(true);
        assert!(!disks.repair(DiskId(1), OBJECT, 0, b"HELLO"));
        assert_eq!(disks.usable_for_writing(), []);
        assert!(table(false).repair(DiskId(1), OBJECT, 0, b"HELLO"));
    }

    #[test]
    fn a_disk_that_fails_now_and_then_is_suspect_and_one_that_gives_wrong_bytes_too() {
        let disks = table(false);
        for _ in 0..3 {
            disks.count_wrong_bytes(DiskId(1), "not what was written");
            assert_eq!(disks.state(DiskId(1)), DiskState::Online);
        }
        disks.count_wrong_bytes(DiskId(1), "not what was written");
        assert_eq!(disks.state(DiskId(1)), DiskState::Suspect);
        assert_eq!(disks.takes_data(DiskId(1)), Takes::WhatOthersCannot);
        assert!(!disks.reads_fail(DiskId(1)), "what it gives is verified");
        assert!(disks.repair(DiskId(1), OBJECT, 0, b"HELLO"));
        for _ in 0..1000 {
            disks.count_wrong_bytes(DiskId(1), "not what was written");
        }
        assert_eq!(
            disks.state(DiskId(1)),
            DiskState::Suspect,
            "never faulty by that"
        );
        disks.mark_online(DiskId(1), "looked at");
        disks.count_wrong_bytes(DiskId(1), "not what was written");
        assert_eq!(disks.state(DiskId(1)), DiskState::Online, "it begins anew");
        disks.mark_rebuilding(DiskId(1), "it was away");
        for _ in 0..100 {
            disks.count_wrong_bytes(DiskId(1), "it lacks that");
        }
        assert_eq!(disks.state(DiskId(1)), DiskState::Rebuilding);
        disks.set_leaving(DiskId(1), true);
        assert_eq!(disks.takes_data(DiskId(1)), Takes::Nothing);
    }

    #[test]
    fn a_disk_that_is_gone_is_not_asked_any_more() {
        let disks = table(false);
        disks.mark_missing(DiskId(1), "its directory was deleted");
        assert!(disks.get(DiskId(1)).is_none());
        disks.mark_faulty(DiskId(1), "later");
        disks.mark_online(DiskId(1), "nothing is there");
        assert_eq!(disks.state(DiskId(1)), DiskState::Missing);
    }
}
