//! What a disk has of a window: which object it lies in, how much it is, where, and whether it is given up with a disk. Knows
//! records only; nothing here reads or moves anything.

use std::collections::BTreeSet;

use crate::disk::ObjectName;
use crate::ids::DiskId;
use crate::store::parity::PARITY_HEADER;
use crate::store::{BlockRecord, WindowRecord};
use crate::volume::fold::{parity_punches, punch_ranges};
use crate::volume::sweep::Sweep;

pub(super) fn object_of(record: &WindowRecord, shard: usize) -> ObjectName {
    if shard < usize::from(record.code.k) {
        ObjectName::Blocks(record.set)
    } else {
        ObjectName::Parity(record.parity_set)
    }
}

/// Whether every shard of a window lies on a disk of its own after these moves.
pub(super) fn leaves_apart(record: &WindowRecord, moves: &[(usize, DiskId)]) -> bool {
    let mut taken: BTreeSet<DiskId> = record.disks.iter().copied().collect();
    moves.iter().all(|(_, to)| taken.insert(*to))
}

/// Whether a block that cannot be had is given up with these disks: it is on one of them, and nothing that is on others
/// can give it, now or later.
pub(super) fn is_given_up(gone: &[DiskId], record: &WindowRecord, block: &BlockRecord) -> bool {
    let is_gone = |disk: &DiskId| gone.contains(disk);
    let own = record.disk(usize::from(block.column));
    let shards = record.disks.iter().filter(|disk| is_gone(disk)).count();
    let stored_once = !block.protected || record.parity.is_empty();
    own.is_some_and(|own| is_gone(&own)) && (stored_once || shards > usize::from(record.code.m))
}

/// Bytes of blocks that are recorded as lost now and were not before.
pub(super) fn newly_lost(old: &WindowRecord, new: &WindowRecord) -> u64 {
    std::iter::zip(&old.blocks, &new.blocks)
        .filter(|(old, new)| new.lost && !old.lost)
        .map(|(_, new)| u64::from(new.raw))
        .sum()
}

/// Bytes that a shard of a window takes.
pub(super) fn bytes_of_shard(record: &WindowRecord, shard: usize) -> u64 {
    if shard >= usize::from(record.code.k) {
        return u64::from(record.parity_length) + PARITY_HEADER as u64;
    }
    let own = record
        .blocks
        .iter()
        .filter(|block| !block.lost && usize::from(block.column) == shard);
    own.map(|block| u64::from(block.stored)).sum()
}

/// The places that a shard of a window takes on a disk.
pub(super) fn places(record: &WindowRecord, shard: usize, disk: DiskId, sweep: &mut Sweep) {
    let k = usize::from(record.code.k);
    if shard >= k {
        let mut all = Sweep::default();
        parity_punches(record, &mut all);
        let own = all.punches.into_iter().filter(|(key, _)| key.disk == disk);
        sweep.punches.extend(own);
        return;
    }
    let own = record
        .blocks
        .iter()
        .filter(|block| block.stored > 0 && !block.lost && usize::from(block.column) == shard);
    let ranges = own
        .map(|block| block.offset..block.offset + u64::from(block.stored))
        .collect();
    punch_ranges(record.set, disk, false, ranges, sweep);
}

/// The places that moved shards leave.
pub(super) fn left_places(old: &WindowRecord, moves: &[(usize, DiskId)], sweep: &mut Sweep) {
    for &(shard, _) in moves {
        if let Some(disk) = old.disk(shard) {
            places(old, shard, disk, sweep);
        }
    }
}
