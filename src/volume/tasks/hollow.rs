//! Disks whose objects may be long and yet lack something: something was put at or behind an object's end while the disk
//! was being rebuilt. An object that was only ever appended to, or that is an old copy of one, has all that lies before
//! its end, and a rebuild need not read it. That ends with the first piece that is written to the disk out of order, so
//! this is noted before, for as long as the disk has not been looked over whole. Kept in the setting `hollow`: their
//! numbers, 2 bytes each.

use std::collections::BTreeSet;

use crate::ids::DiskId;
use crate::meta::{Records, WriteRecords};
use crate::store::DiskState;
use crate::volume::Volume;
use crate::volume::error::Result;

const SETTING: &[u8] = b"hollow";

impl Volume {
    /// The disks of which the length of an object does not tell what they have.
    pub(super) fn hollow(&self) -> Result<BTreeSet<DiskId>> {
        let kept = self.meta.view().setting(SETTING)?;
        let bytes = kept.as_deref().unwrap_or_default();
        let (numbers, _) = bytes.as_chunks::<2>();
        let numbers = numbers.iter().map(|number| u16::from_le_bytes(*number));
        Ok(numbers.map(DiskId).collect())
    }

    /// Something is about to be put on these disks: notes, durably, those of them that are being rebuilt.
    pub(super) fn note_hollow(&self, disks: &[DiskId]) -> Result<()> {
        let mut hollow = self.hollow()?;
        let known = hollow.len();
        let rebuilding = |disk: &DiskId| self.disks.state(*disk) == DiskState::Rebuilding;
        hollow.extend(disks.iter().copied().filter(rebuilding));
        if hollow.len() == known {
            return Ok(());
        }
        self.keep_hollow(&hollow)?;
        Ok(self.meta.sync()?)
    }

    /// These disks have all that they should have.
    pub(super) fn forget_hollow(&self, disks: &[DiskId]) -> Result<()> {
        let mut hollow = self.hollow()?;
        let known = hollow.len();
        hollow.retain(|disk| !disks.contains(disk));
        if hollow.len() == known {
            return Ok(());
        }
        self.keep_hollow(&hollow)
    }

    fn keep_hollow(&self, hollow: &BTreeSet<DiskId>) -> Result<()> {
        let bytes: Vec<u8> = hollow
            .iter()
            .flat_map(|disk| disk.0.to_le_bytes())
            .collect();
        self.meta.update(|update| -> Result<()> {
            update.put_setting(SETTING, &bytes);
            Ok(())
        })
    }
}
