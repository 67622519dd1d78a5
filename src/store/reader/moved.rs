//! What a disk holds of a window, whole and verified, to be put on another disk: off the disk itself, or out of the
//! others where it fares badly.

use xxhash_rust::xxh3::xxh3_64;

use super::{ReadError, Reader};
use crate::ids::FileId;
use crate::store::parity::shard_header;
use crate::store::records::WindowRecord;

impl Reader {
    /// A block's stored bytes, header included, as `read_stored` has them; but a disk that fares badly is asked last.
    pub fn stored_around(
        &self,
        file: FileId,
        window: &WindowRecord,
        index: u16,
    ) -> Result<Vec<u8>, ReadError> {
        let wanted = self.find(file, window, index)?;
        if wanted.is_protected()
            && self.disks.reads_fail(wanted.disk)
            && let Some(stored) = self.rebuild_quickly(wanted)
        {
            return Ok(stored);
        }
        self.stored(wanted)
            .or_else(|cause| self.rebuild(wanted, &cause))
    }

    /// A parity shard as it is stored, header included; computed anew where its disk does not give it. `None` when it
    /// cannot be had.
    pub fn shard_around(
        &self,
        file: FileId,
        window: &WindowRecord,
        parity: usize,
    ) -> Option<Vec<u8>> {
        let record = window.parity.get(parity)?;
        let shard = usize::from(window.code.k) + parity;
        let is_it = |bytes: &Vec<u8>| {
            bytes.len() == window.parity_length as usize && xxh3_64(bytes) == record.checksum
        };
        let whole = 0..window.parity_length;
        let direct = if self.disks.reads_fail(window.disk(shard)?) {
            None
        } else {
            self.fetch(window, shard, whole.clone()).ok().filter(is_it)
        };
        let bytes = match direct {
            Some(bytes) => bytes,
            None => {
                let again = self.parity_again(file, window);
                let again = again.and_then(|mut shards| {
                    (parity < shards.len()).then(|| shards.swap_remove(parity))
                });
                let again = again.filter(is_it);
                again.or_else(|| self.fetch(window, shard, whole).ok().filter(is_it))?
            }
        };
        let header = shard_header(
            self.parity_ids(file, window, parity),
            window.parity_length,
            record.checksum,
        );
        Some([&header[..], &bytes].concat())
    }
}
