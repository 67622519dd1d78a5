//! How many files refer to a segment set; with the last reference its record goes, and the sweeper removes its
//! objects.

use super::Volume;
use super::error::Result;
use crate::ids::SetId;
use crate::meta::{Key, Records, SetRecord, Update, WriteRecords};

impl Volume {
    /// A file begins to refer to a set.
    pub(super) fn add_set_reference(&self, update: &mut Update, set: SetId) -> Result<()> {
        let references = update.set(set)?.map_or(0, |record| record.references);
        update.put_set(
            set,
            SetRecord {
                references: references.saturating_add(1),
            },
        );
        Ok(())
    }

    /// A file refers to a set no more.
    pub(super) fn drop_set_reference(&self, update: &mut Update, set: SetId) -> Result<()> {
        match update.set(set)? {
            Some(SetRecord { references }) if references > 1 => {
                update.put_set(
                    set,
                    SetRecord {
                        references: references - 1,
                    },
                );
            }
            _ => update.delete(Key::set(set)),
        }
        Ok(())
    }
}
