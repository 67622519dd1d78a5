//! Rebalance: shards are moved from the fullest disks to the emptiest, until all are about equally full. Windows that
//! survive fewer losses than the policy has it are written anew.

use std::collections::BTreeMap;

use super::relocate::{Plan, Wanted};
use super::scrub::shard_bytes;
use super::{Running, Walked, Work};
use crate::ids::{DiskId, FileId};
use crate::store::{Takes, WindowRecord};
use crate::volume::Volume;
use crate::volume::error::Result;

/// A disk counts as full or empty when it is further from the average than this part of it.
const SLACK: u64 = 100;

/// What is a whole where shares are told.
const WHOLE: u128 = 1 << 48;

/// How full a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fill {
    used: u64,
    /// What is used, and what can still be.
    size: u64,
}

impl Fill {
    /// In parts of `WHOLE`.
    fn share(self) -> u64 {
        (u128::from(self.used) * WHOLE / u128::from(self.size.max(1))) as u64
    }
}

/// The work of a rebalance.
pub(super) struct Rebalance {
    disks: BTreeMap<DiskId, Fill>,
}

impl Rebalance {
    pub(super) fn new(volume: &Volume) -> Result<Rebalance> {
        volume.pipeline.room.forget();
        let mut disks = BTreeMap::new();
        for candidate in volume.pipeline.room.candidates() {
            if volume.disks.takes_data(candidate.disk) != Takes::Anything {
                continue;
            }
            let Some(medium) = volume.disks.get(candidate.disk) else {
                continue;
            };
            let used: u64 = medium.list()?.iter().map(|(_, bytes)| bytes).sum();
            disks.insert(
                candidate.disk,
                Fill {
                    used,
                    size: used + candidate.free,
                },
            );
        }
        Ok(Rebalance { disks })
    }
}

/// How full all disks together are, in parts of `WHOLE`.
fn average(disks: &BTreeMap<DiskId, Fill>) -> u64 {
    let sum = disks
        .values()
        .fold(Fill { used: 0, size: 0 }, |sum, fill| Fill {
            used: sum.used + fill.used,
            size: sum.size + fill.size,
        });
    sum.share()
}

/// The bytes that a shard of a window takes.
fn bytes_of(record: &WindowRecord, shard: usize) -> u64 {
    if shard >= usize::from(record.code.k) {
        return if record.parity.is_empty() {
            0
        } else {
            shard_bytes(record)
        };
    }
    let own = record
        .blocks
        .iter()
        .filter(|block| usize::from(block.column) == shard);
    own.map(|block| u64::from(block.stored)).sum()
}

/// Which shards of a window go where.
fn choose(disks: &BTreeMap<DiskId, Fill>, record: &WindowRecord) -> Vec<(usize, DiskId)> {
    let average = average(disks);
    let slack = average / SLACK;
    let mut disks = disks.clone();
    let mut moves: Vec<(usize, DiskId)> = Vec::new();
    for (shard, disk) in record.disks.iter().enumerate() {
        let bytes = bytes_of(record, shard);
        let Some(from) = disks.get(disk).copied() else {
            continue;
        };
        if bytes == 0 || from.share() <= average + slack {
            continue;
        }
        let free =
            |to: &DiskId| !record.disks.contains(to) && moves.iter().all(|(_, taken)| taken != to);
        let emptiest = disks
            .iter()
            .filter(|(to, fill)| free(to) && fill.share() + slack < average)
            .min_by_key(|(_, fill)| fill.share());
        let Some((&to, &fill)) = emptiest else {
            continue;
        };
        moves.push((shard, to));
        let more = Fill {
            used: fill.used + bytes,
            ..fill
        };
        let less = Fill {
            used: from.used.saturating_sub(bytes),
            ..from
        };
        disks.insert(to, more);
        disks.insert(*disk, less);
    }
    moves
}

impl Work for Rebalance {
    fn begin(&mut self, _volume: &Volume, _running: &Running) -> Result<()> {
        Ok(())
    }

    fn file(&mut self, volume: &Volume, running: &Running, file: FileId) -> Result<Walked> {
        let m = volume.pipeline.policy.critical.m;
        let mut disks = self.disks.clone();
        let mut done: BTreeMap<u32, Vec<(usize, DiskId)>> = BTreeMap::new();
        let mut plan = Plan {
            choose: &mut |_, record| {
                let protected = record.blocks.iter().any(|block| block.protected);
                if protected && record.code.m < m {
                    return Wanted::Anew;
                }
                // Asked twice of a window: when it is found, and when it is moved.
                if let Some(moves) = done.get(&record.no.0) {
                    return match moves.is_empty() {
                        true => Wanted::Stay,
                        false => Wanted::Move(moves.clone()),
                    };
                }
                let moves = choose(&disks, record);
                for (shard, to) in &moves {
                    let bytes = bytes_of(record, *shard);
                    if let Some(fill) = disks.get_mut(to) {
                        fill.used += bytes;
                    }
                    let from = record.disk(*shard).and_then(|from| disks.get_mut(&from));
                    if let Some(fill) = from {
                        fill.used = fill.used.saturating_sub(bytes);
                    }
                }
                done.insert(record.no.0, moves.clone());
                if moves.is_empty() {
                    Wanted::Stay
                } else {
                    Wanted::Move(moves)
                }
            },
            give_up: &[],
            punch: true,
            patient: false,
            besides: 0,
        };
        let walked = volume.relocate(file, running, &mut plan, None)?;
        if walked == Walked::Done {
            self.disks = disks;
        }
        Ok(walked)
    }

    fn finish(&mut self, _volume: &Volume, _running: &Running) -> Result<bool> {
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{SetId, WindowNo};
    use crate::store::{Code, ParityShard};

    fn window(disks: &[u16]) -> WindowRecord {
        WindowRecord {
            no: WindowNo(1),
            set: SetId(1),
            code: Code { k: 1, m: 1 },
            disks: disks.iter().copied().map(DiskId).collect(),
            parity_set: SetId(1),
            parity_length: 1 << 20,
            parity: vec![ParityShard {
                offset: 64,
                checksum: 0,
            }],
            blocks: Vec::new(),
        }
    }

    #[test]
    fn a_full_disk_gives_to_the_emptiest_that_is_not_in_the_window() {
        let fill = |used| Fill {
            used,
            size: 1000 << 20,
        };
        let disks: BTreeMap<DiskId, Fill> = [(0, 100), (1, 900), (2, 300), (3, 50)]
            .map(|(disk, used)| (DiskId(disk), fill(used << 20)))
            .into();
        // The parity is on disk 1.
        assert_eq!(choose(&disks, &window(&[3, 1])), [(1, DiskId(0))]);
        assert_eq!(choose(&disks, &window(&[0, 1])), [(1, DiskId(3))]);
        assert_eq!(choose(&disks, &window(&[0, 2])), []);
    }
}
