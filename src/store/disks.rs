//! The disks of a mounted volume and how each fares: who may be written to, who may be asked, who is gone.
//! Everything that reads blocks, parity and manifests asks through here, so that errors are counted in one
//! place. It knows disks and objects, not what they hold.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

use crate::disk::{Disk, DiskError, ObjectName};
use crate::ids::DiskId;

/// So many failed reads with none that succeeds in between make a disk faulty. One bad sector does not: it
/// is repaired, or read around.
const READ_FAILURES_MAX: u32 = 8;

/// How a disk fares in this mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// Written to and read from.
    Online,
    /// It failed: nothing more is written to it, what it holds is read where it answers.
    Faulty(String),
    /// Not there.
    Missing,
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskState::Online => write!(f, "online"),
            DiskState::Faulty(why) => write!(f, "faulty ({why})"),
            DiskState::Missing => write!(f, "missing"),
        }
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
    /// Reads that failed in this mount, those for want of an object excluded.
    pub read_errors: u32,
}

/// Why a range of a disk could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFailure {
    /// The disk is not there.
    #[error("disk {0} is missing")]
    NoDisk(String),
    /// The disk said so.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

struct Slot {
    name: String,
    disk: Option<Arc<dyn Disk>>,
    state: DiskState,
    /// Failed reads since the last one that succeeded.
    in_a_row: AtomicU32,
    read_errors: AtomicU32,
}

/// Called, once a disk, when a disk becomes faulty, from any thread.
pub type OnFaulty = Box<dyn Fn(DiskId, &str) + Send + Sync>;

/// The table of a volume's disks. Shared by all that read and write.
#[derive(Default)]
pub struct Disks {
    read_only: bool,
    on_faulty: OnceLock<OnFaulty>,
    slots: RwLock<BTreeMap<DiskId, Slot>>,
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
            on_faulty: OnceLock::new(),
            slots: RwLock::default(),
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
            disk,
            in_a_row: AtomicU32::new(0),
            read_errors: AtomicU32::new(0),
        };
        self.slots.write().insert(id, slot);
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
        slots
            .get(&id)
            .map_or(DiskState::Missing, |slot| slot.state.clone())
    }

    /// Whether it is online: such a disk is asked first, and repaired.
    pub fn is_online(&self, id: DiskId) -> bool {
        let slots = self.slots.read();
        slots
            .get(&id)
            .is_some_and(|slot| slot.state == DiskState::Online)
    }

    /// Whether its last reads all failed, so that it is better asked after the others.
    pub fn reads_fail(&self, id: DiskId) -> bool {
        let slots = self.slots.read();
        slots.get(&id).is_none_or(|slot| {
            slot.disk.is_none() || slot.in_a_row.load(Ordering::Relaxed) >= READ_FAILURES_MAX
        })
    }

    /// Has disks that become faulty told of. The first wish stays.
    pub fn on_faulty(&self, tell: OnFaulty) {
        let _ = self.on_faulty.set(tell);
    }

    /// Nothing more is to be written to it. The first reason stays.
    pub fn mark_faulty(&self, id: DiskId, why: impl fmt::Display) {
        let why = {
            let mut slots = self.slots.write();
            let Some(slot) = slots
                .get_mut(&id)
                .filter(|slot| slot.state == DiskState::Online)
            else {
                return;
            };
            tracing::error!(disk = slot.name, %why, "disk is faulty: no more is written to it");
            slot.state = DiskState::Faulty(why.to_string());
            why.to_string()
        };
        // Without the lock: who is told may come back.
        if let Some(tell) = self.on_faulty.get() {
            tell(id, &why);
        }
    }

    /// Marks a disk faulty whose medium is gone. Tells whether it is there.
    pub fn check(&self, id: DiskId) -> bool {
        let gone = self.get(id).and_then(|disk| disk.check().err());
        if let Some(gone) = &gone {
            self.mark_faulty(id, gone);
        }
        gone.is_none()
    }

    /// The disks that new windows and metadata may go to, in the order of their numbers.
    pub fn usable_for_writing(&self) -> Vec<DiskId> {
        if self.read_only {
            return Vec::new();
        }
        let slots = self.slots.read();
        let online = slots
            .iter()
            .filter(|(_, slot)| slot.state == DiskState::Online);
        online.map(|(id, _)| *id).collect()
    }

    /// The whole table, in the order of the numbers.
    pub fn list(&self) -> Vec<DiskStatus> {
        let slots = self.slots.read();
        let status = |(id, slot): (&DiskId, &Slot)| DiskStatus {
            id: *id,
            name: slot.name.clone(),
            state: slot.state.clone(),
            read_errors: slot.read_errors.load(Ordering::Relaxed),
        };
        slots.iter().map(status).collect()
    }

    /// Fills `buffer` from an object of a disk, and counts how the disk does. A disk that fails again and
    /// again becomes faulty; an object that is missing or cut short tells of the object only.
    pub fn read(
        &self,
        id: DiskId,
        object: ObjectName,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), ReadFailure> {
        let Some(disk) = self.get(id) else {
            return Err(ReadFailure::NoDisk(self.name(id)));
        };
        let result = disk.read_at(object, offset, buffer);
        match &result {
            Err(error) if !error.is_missing() => {
                if self.count_failure(id) >= READ_FAILURES_MAX {
                    self.mark_faulty(
                        id,
                        format!("{READ_FAILURES_MAX} reads failed in a row: {error}"),
                    );
                }
            }
            // One object, or the whole disk.
            Err(_) => {
                if self.check(id) {
                    self.count_success(id);
                }
            }
            Ok(()) => self.count_success(id),
        }
        Ok(result?)
    }

    /// Tells a disk, if it is there, that the range is soon to be read.
    pub fn will_read(&self, id: DiskId, object: ObjectName, range: std::ops::Range<u64>) {
        if let Some(disk) = self.get(id) {
            disk.will_read(object, range);
        }
    }

    fn count_failure(&self, id: DiskId) -> u32 {
        let slots = self.slots.read();
        slots.get(&id).map_or(0, |slot| {
            slot.read_errors.fetch_add(1, Ordering::Relaxed);
            slot.in_a_row.fetch_add(1, Ordering::Relaxed) + 1
        })
    }

    fn count_success(&self, id: DiskId) {
        let slots = self.slots.read();
        if let Some(slot) = slots.get(&id)
            && slot.in_a_row.load(Ordering::Relaxed) != 0
        {
            slot.in_a_row.store(0, Ordering::Relaxed);
        }
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
        assert_eq!(
            disks.state(DiskId(1)),
            DiskState::Faulty("it smokes".into())
        );
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
}
