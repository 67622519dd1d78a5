//! Ranges of a window's shards off the disks: of a column, put together from its blocks, or of parity.

use std::ops::Range;

use super::Reader;
use crate::disk::ObjectName;
use crate::ids::DiskId;
use crate::store::disks::ReadFailure;
use crate::store::records::{BlockRecord, PARITY_ALIGN, WindowRecord};

/// A column's range in units that are coded by themselves, not beyond the end of the columns.
pub(super) fn widened(window: &WindowRecord, range: Range<u32>) -> Range<u32> {
    let start = range.start - range.start % PARITY_ALIGN;
    let end = range.end.checked_next_multiple_of(PARITY_ALIGN);
    let end = end.unwrap_or(u32::MAX).min(window.parity_length);
    start.min(end)..end
}

/// Where a protected block lies in its column.
pub(super) fn in_column(record: &BlockRecord) -> Range<u32> {
    let start = record.column_offset;
    start..start.saturating_add(record.stored)
}

/// The protected blocks of a column that overlap a range of it, in the column's order, with their places
/// in the window.
pub(super) fn column(
    window: &WindowRecord,
    column: usize,
    range: Range<u32>,
) -> Vec<(u16, &BlockRecord)> {
    let mut blocks: Vec<(u16, &BlockRecord)> = (0u16..)
        .zip(&window.blocks)
        .filter(|(_, block)| {
            let place = in_column(block);
            block.stored > 0
                && block.protected
                && usize::from(block.column) == column
                && place.start < range.end
                && place.end > range.start
        })
        .collect();
    blocks.sort_by_key(|(_, block)| block.column_offset);
    blocks
}

/// One read: where on the disk, and which bytes of the range it fills.
struct Piece {
    offset: u64,
    fills: Range<usize>,
}

/// The reads that make up a column's range; blocks that lie end to end on the disk are one read.
fn pieces(blocks: &[(u16, &BlockRecord)], range: Range<u32>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for (_, block) in blocks {
        let place = in_column(block);
        let (start, end) = (place.start.max(range.start), place.end.min(range.end));
        let offset = block.offset + u64::from(start - place.start);
        let fills = (start - range.start) as usize..(end - range.start) as usize;
        match pieces.last_mut() {
            Some(last)
                if last.fills.end == fills.start
                    && last.offset + last.fills.len() as u64 == offset =>
            {
                last.fills.end = fills.end;
            }
            _ => pieces.push(Piece { offset, fills }),
        }
    }
    pieces
}

/// A shard's range as it was read, or the reason why not.
pub(super) type Fetched = (usize, Result<Vec<u8>, ReadFailure>);

impl Reader {
    /// The disks of a window's shards other than `without`, in the order in which it is best to ask them:
    /// a column that has nothing in the range costs no read, and disks that fare badly come last.
    pub(super) fn order(
        &self,
        window: &WindowRecord,
        without: usize,
        range: &Range<u32>,
    ) -> Vec<usize> {
        let k = usize::from(window.code.k);
        let shards = k + window.parity.len();
        let mut order: Vec<(bool, bool, bool, usize)> = (0..shards)
            .filter(|&shard| shard != without)
            .map(|shard| {
                let empty = shard < k && column(window, shard, range.clone()).is_empty();
                let disk = window.disk(shard).unwrap_or(DiskId(u16::MAX));
                let (fails, online) = (self.disks.reads_fail(disk), self.disks.is_online(disk));
                (!empty, !empty && fails, !empty && !online, shard)
            })
            .collect();
        order.sort();
        order.into_iter().map(|(.., shard)| shard).collect()
    }

    /// A range of a shard; of a column, bytes where it has no block are zeros.
    pub(super) fn fetch(
        &self,
        window: &WindowRecord,
        shard: usize,
        range: Range<u32>,
    ) -> Result<Vec<u8>, ReadFailure> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let k = usize::from(window.code.k);
        let disk = window.disk(shard).unwrap_or(DiskId(u16::MAX));
        if let Some(parity) = shard.checked_sub(k) {
            let offset = window.parity.get(parity).map_or(0, |parity| parity.offset);
            let object = ObjectName::Parity(window.parity_set);
            let start = offset + u64::from(range.start);
            self.disks.read(disk, object, start, &mut bytes)?;
            return Ok(bytes);
        }
        let object = ObjectName::Blocks(window.set);
        for piece in pieces(&column(window, shard, range.clone()), range) {
            let room = bytes.get_mut(piece.fills).unwrap_or_default();
            self.disks.read(disk, object, piece.offset, room)?;
        }
        Ok(bytes)
    }

    /// The same of several shards, side by side.
    pub(super) fn fetch_all(
        &self,
        window: &WindowRecord,
        shards: &[usize],
        range: &Range<u32>,
    ) -> Vec<Fetched> {
        self.side_by_side(shards, |&shard| {
            (shard, self.fetch(window, shard, range.clone()))
        })
    }

    /// Does `work` for each item on the fetching threads; `work` must not wait for anything but a disk.
    pub(super) fn side_by_side<T: Sync, R: Send>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> R + Sync,
    ) -> Vec<R> {
        // A thread of some pool takes up other work of that pool while it waits, and that may want the very block which
        // this one is loading: it would wait for itself. It has company of its own, and works through the items.
        if items.len() == 1 || rayon::current_thread_index().is_some() {
            return items.iter().map(work).collect();
        }
        let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
        self.fetchers.in_place_scope(|scope| {
            for (item, result) in items.iter().zip(&mut results) {
                let work = &work;
                scope.spawn(move |_| *result = Some(work(item)));
            }
        });
        results.into_iter().flatten().collect()
    }
}
