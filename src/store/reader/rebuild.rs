//! Reconstruction of a block, in two ways. The quick one takes any `k` shards as they are and sees by the
//! block's checksum whether they were good. When they were not, the careful one verifies everything that it
//! uses: blocks by their checksums, parity by that of the shard; and puts the range together piece by
//! piece, since different parts of it may have lost different shards. Parity that is damaged somewhere is
//! tried last, for the damage may lie elsewhere in it.

use std::ops::Range;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::shards::{column, in_column, widened};
use super::{Cause, ReadError, Reader, Wanted};
use crate::disk::ObjectName;
use crate::ids::{DiskId, FileId};
use crate::store::block::{check, open};
use crate::store::disks::ReadFailure;
use crate::store::parity::reconstruct;
use crate::store::records::{PARITY_ALIGN, WindowRecord};

/// Bytes of a parity shard that are hashed at a time.
const PIECE: u32 = 1 << 20;

/// A shard's range and what is known of it.
struct Verified {
    shard: usize,
    bytes: Vec<u8>,
    /// Ranges of the column, in units of the code, where it is certainly bad.
    bad: Vec<Range<u32>>,
    /// Parity whose checksum is wrong: good in places, perhaps.
    suspect: bool,
}

impl Reader {
    /// The stored bytes of a protected block, out of the other shards and verified.
    pub(super) fn rebuild(&self, wanted: Wanted<'_>, cause: &Cause) -> Result<Vec<u8>, ReadError> {
        let (file, block) = (wanted.file, wanted.block());
        if !wanted.is_protected() {
            return Err(ReadError::Lost {
                file,
                block,
                cause: cause.to_string(),
            });
        }
        if let Some(stored) = self.rebuild_quickly(wanted) {
            return Ok(stored);
        }
        self.rebuild_carefully(wanted)
            .map_err(|complaints| ReadError::Unreadable {
                file,
                block,
                cause: cause.to_string(),
                others: complaints.join("; "),
            })
    }

    /// The same out of any `k` shards; `None` when they are too few or not good.
    pub(super) fn rebuild_quickly(&self, wanted: Wanted<'_>) -> Option<Vec<u8>> {
        let range = widened(wanted.window, in_column(wanted.record));
        let bytes = self.quick(wanted.window, usize::from(wanted.record.column), &range)?;
        own_bytes(wanted, &range, &bytes)
    }

    /// The blocks of a column that lie whole in a range, the quick way; those that come out wrong are left
    /// out.
    pub(super) fn column_blocks(
        &self,
        file: FileId,
        window: &WindowRecord,
        number: u8,
        range: Range<u32>,
    ) -> Vec<(u16, Arc<[u8]>)> {
        let range = widened(window, range);
        let shard = usize::from(number);
        if window.parity.is_empty() || number >= window.code.k || range.is_empty() {
            return Vec::new();
        }
        let Some(bytes) = self.quick(window, shard, &range) else {
            return Vec::new();
        };
        let blocks = column(window, shard, range.clone());
        let opened = blocks.into_iter().filter_map(|(index, record)| {
            let start = record.column_offset.checked_sub(range.start)? as usize;
            let stored = bytes.get(start..start.checked_add(record.stored as usize)?)?;
            let wanted = self.find(file, window, index).ok()?;
            Some((index, open(self.ids(wanted), stored, record).ok()?))
        });
        opened.collect()
    }

    /// The range of a column out of any `k` others, unverified. `None` when there are not so many.
    fn quick(&self, window: &WindowRecord, column: usize, range: &Range<u32>) -> Option<Vec<u8>> {
        let k = usize::from(window.code.k);
        let mut candidates = self.order(window, column, range);
        let mut present: Vec<(usize, Vec<u8>)> = Vec::new();
        while present.len() < k && !candidates.is_empty() {
            let now = (k - present.len()).min(candidates.len());
            let round: Vec<usize> = candidates.drain(..now).collect();
            for (shard, fetched) in self.fetch_all(window, &round, range) {
                if let Ok(bytes) = fetched {
                    present.push((shard, bytes));
                }
            }
        }
        let present: Vec<(usize, &[u8])> = present.iter().map(|(s, b)| (*s, &b[..])).collect();
        reconstruct(window.code, &present, &[column]).ok()?.pop()
    }

    /// The block's stored bytes out of verified shards, or what is wrong with those.
    fn rebuild_carefully(&self, wanted: Wanted<'_>) -> Result<Vec<u8>, Vec<String>> {
        let window = wanted.window;
        let k = usize::from(window.code.k);
        let lost = usize::from(wanted.record.column);
        let range = widened(window, in_column(wanted.record));
        let shards = self.order(window, lost, &range);
        let fetched = self.side_by_side(&shards, |&shard| match shard.checked_sub(k) {
            None => self.verified_column(window, shard, &range),
            Some(parity) => self.verified_parity(window, shard, parity, &range),
        });
        let (mut sure, mut suspects, mut complaints) = (Vec::new(), Vec::new(), Vec::new());
        for (verified, said) in fetched {
            complaints.extend(said);
            match verified {
                Some(shard) if shard.suspect => suspects.push(shard),
                Some(shard) => sure.push(shard),
                None => {}
            }
        }
        for complaint in &complaints {
            tracing::warn!(file = %wanted.file, window = %window.no, complaint, "a shard is bad as well");
        }
        for _ in 0..suspects.len().max(1) {
            let bytes = pieced_together(window, lost, &range, &sure, &suspects);
            if let Some(stored) = bytes.and_then(|bytes| own_bytes(wanted, &range, &bytes)) {
                return Ok(stored);
            }
            // Each suspect comes first once.
            if !suspects.is_empty() {
                suspects.rotate_left(1);
            }
        }
        if complaints.is_empty() {
            complaints.push("its parity does not fit its blocks".to_owned());
        }
        Err(complaints)
    }

    /// A column's range, its blocks verified one by one. Only their bad ones are lost.
    fn verified_column(
        &self,
        window: &WindowRecord,
        shard: usize,
        range: &Range<u32>,
    ) -> (Option<Verified>, Vec<String>) {
        let disk = window.disk(shard).unwrap_or(DiskId(u16::MAX));
        let object = ObjectName::Blocks(window.set);
        let mut verified = Verified {
            shard,
            bytes: vec![0; range.len()],
            bad: Vec::new(),
            suspect: false,
        };
        let mut complaints = Vec::new();
        for (_, record) in column(window, shard, range.clone()) {
            let place = in_column(record);
            let mut stored = vec![0; record.stored as usize];
            let read = self.disks.read(disk, object, record.offset, &mut stored);
            let complaint = match read {
                Err(error) => Some(error.to_string()),
                Ok(()) => check(&stored, record).err().map(|error| {
                    let (disk, offset) = (self.disks.name(disk), record.offset);
                    format!("disk {disk}, {object} at {offset}: {error}")
                }),
            };
            let start = place.start.max(range.start);
            let end = place.end.min(range.end);
            match complaint {
                Some(complaint) => {
                    complaints.push(complaint);
                    verified.bad.push(widened(window, start..end));
                }
                None => {
                    let to = (start - range.start) as usize..(end - range.start) as usize;
                    let from = (start - place.start) as usize..(end - place.start) as usize;
                    if let (Some(to), Some(from)) = (verified.bytes.get_mut(to), stored.get(from)) {
                        to.copy_from_slice(from);
                    }
                }
            }
        }
        (Some(verified), complaints)
    }

    /// A range of a parity shard, all of which is hashed.
    fn verified_parity(
        &self,
        window: &WindowRecord,
        shard: usize,
        parity: usize,
        range: &Range<u32>,
    ) -> (Option<Verified>, Vec<String>) {
        let verified = |bytes, suspect| Verified {
            shard,
            bytes,
            bad: Vec::new(),
            suspect,
        };
        let complaint = match self.parity_is_good(window, parity) {
            Ok(true) => None,
            Ok(false) => {
                let disk = window.disk(shard).unwrap_or(DiskId(u16::MAX));
                let (disk, set) = (self.disks.name(disk), window.parity_set);
                Some(format!(
                    "disk {disk}: parity shard {parity} in set {set} is damaged"
                ))
            }
            Err(error) => Some(error.to_string()),
        };
        let bytes = self.fetch(window, shard, range.clone()).ok();
        let suspect = complaint.is_some();
        (
            bytes.map(|bytes| verified(bytes, suspect)),
            complaint.into_iter().collect(),
        )
    }

    /// Whether all of a parity shard is what was written.
    pub(super) fn parity_is_good(
        &self,
        window: &WindowRecord,
        parity: usize,
    ) -> Result<bool, ReadFailure> {
        let shard = usize::from(window.code.k) + parity;
        let mut hash = Xxh3::new();
        let mut start = 0;
        while start < window.parity_length {
            let end = window.parity_length.min(start + PIECE);
            hash.update(&self.fetch(window, shard, start..end)?);
            start = end;
        }
        let recorded = window.parity.get(parity).map(|parity| parity.checksum);
        Ok(recorded == Some(hash.digest()))
    }
}

/// A block out of a range of its column, if it is the block.
fn own_bytes(wanted: Wanted<'_>, range: &Range<u32>, bytes: &[u8]) -> Option<Vec<u8>> {
    let start = wanted.record.column_offset.checked_sub(range.start)? as usize;
    let stored = bytes.get(start..start.checked_add(wanted.record.stored as usize)?)?;
    check(stored, wanted.record).ok()?;
    Some(stored.to_vec())
}

/// The column's range out of shards each good in places: cut where any becomes good or bad, every piece
/// out of those that are good all along it. Suspects fill up where there are too few.
fn pieced_together(
    window: &WindowRecord,
    column: usize,
    range: &Range<u32>,
    sure: &[Verified],
    suspects: &[Verified],
) -> Option<Vec<u8>> {
    let k = usize::from(window.code.k);
    let mut cuts: Vec<u32> = sure
        .iter()
        .flat_map(|shard| &shard.bad)
        .flat_map(|bad| [bad.start, bad.end])
        .chain([range.start, range.end])
        .collect();
    debug_assert!(cuts.iter().all(|cut| cut.is_multiple_of(PARITY_ALIGN)));
    cuts.sort_unstable();
    cuts.dedup();
    let mut out = Vec::with_capacity(range.len());
    for (&start, &end) in cuts.iter().zip(cuts.iter().skip(1)) {
        let within = (start - range.start) as usize..(end - range.start) as usize;
        let good = |shard: &&Verified| !shard.bad.iter().any(|b| b.start < end && b.end > start);
        let present: Vec<(usize, &[u8])> = sure
            .iter()
            .filter(good)
            .chain(suspects)
            .filter_map(|shard| Some((shard.shard, shard.bytes.get(within.clone())?)))
            .take(k)
            .collect();
        out.extend(reconstruct(window.code, &present, &[column]).ok()?.pop()?);
    }
    Some(out)
}
