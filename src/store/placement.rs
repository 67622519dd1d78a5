//! Which disks a window is put on, and how much file data a set of disks can still take under a code.
//! Arithmetic only.

use super::records::Code;
use crate::ids::DiskId;

/// A disk that can take new windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The disk.
    pub disk: DiskId,
    /// Bytes that it can still take.
    pub free: u64,
}

/// How many steps of free space are told apart: disks of about the same room take turns, a clearly fuller
/// one is passed over.
const STEPS: u64 = 16;

/// The code that a window gets when only `disks` are at hand: `k` shrinks, `m` stays, so that a new file
/// survives as many losses as the policy says. `None` when not even one column and its parity fit.
pub fn fitted(code: Code, disks: usize) -> Option<Code> {
    let columns = disks
        .checked_sub(usize::from(code.m))?
        .min(usize::from(code.k));
    (columns > 0).then_some(Code {
        k: columns as u8,
        m: code.m,
    })
}

/// Chooses the disks of a window: first the columns', then the parity's. `turn` counts windows, so that all
/// disks take all parts in turn.
pub fn choose(code: Code, candidates: &[Candidate], turn: u64) -> Option<(Code, Vec<DiskId>)> {
    let code = fitted(code, candidates.len())?;
    let mut order: Vec<Candidate> = candidates.to_vec();
    order.sort_by_key(|candidate| candidate.disk);
    let count = order.len();
    order.rotate_left((turn % count as u64) as usize);
    let most = order
        .iter()
        .map(|candidate| candidate.free)
        .max()
        .unwrap_or(0)
        .max(1);
    // Counted from the emptiest: what is less by a little is in its step, however little another one has.
    order.sort_by_key(|candidate| {
        u128::from(most - candidate.free) * u128::from(STEPS) / u128::from(most)
    });
    order.truncate(usize::from(code.k) + usize::from(code.m));
    // The fullest of the chosen must not always be the one that gets the parity.
    let chosen = order.len();
    order.rotate_left((turn % chosen as u64) as usize);
    Some((
        code,
        order.into_iter().map(|candidate| candidate.disk).collect(),
    ))
}

/// The bytes of file data, uncompressed, that the candidates can take under the code: every window needs
/// `k + m` different disks, and `k` shrinks when disks run full.
pub fn data_capacity(code: Code, free: &[u64]) -> u64 {
    let most_columns = fitted(code, free.len()).map_or(0, |code| code.k);
    (1..=most_columns)
        .map(|k| stripes(usize::from(k) + usize::from(code.m), free) * u64::from(k))
        .max()
        .unwrap_or(0)
}

/// The most stripes of one byte on each of `width` different disks.
fn stripes(width: usize, free: &[u64]) -> u64 {
    let all: u128 = free.iter().map(|&bytes| u128::from(bytes)).sum();
    let (mut low, mut high) = (
        0u64,
        u64::try_from(all / width.max(1) as u128).unwrap_or(u64::MAX),
    );
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let room: u128 = free
            .iter()
            .map(|&bytes| u128::from(bytes.min(middle)))
            .sum();
        if room >= u128::from(middle) * width as u128 {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn candidates(free: &[u64]) -> Vec<Candidate> {
        free.iter()
            .enumerate()
            .map(|(i, &free)| Candidate {
                disk: DiskId(i as u16),
                free,
            })
            .collect()
    }

    #[test]
    fn fewer_disks_shrink_the_columns_and_never_the_parity() {
        let code = Code { k: 4, m: 2 };
        assert_eq!(fitted(code, 9), Some(code));
        assert_eq!(fitted(code, 5), Some(Code { k: 3, m: 2 }));
        assert_eq!(fitted(code, 3), Some(Code { k: 1, m: 2 }));
        assert_eq!(fitted(code, 2), None);
    }

    #[test]
    fn every_disk_takes_every_part_in_turn() {
        let code = Code { k: 4, m: 2 };
        let all = candidates(&[100; 6]);
        let mut parity: HashMap<DiskId, usize> = HashMap::new();
        for turn in 0..600 {
            let (_, disks) = choose(code, &all, turn).expect("enough disks");
            let mut distinct = disks.clone();
            distinct.sort();
            distinct.dedup();
            assert_eq!(distinct.len(), 6);
            for disk in &disks[4..] {
                *parity.entry(*disk).or_default() += 1;
            }
        }
        assert!(parity.values().all(|&count| count == 200), "{parity:?}");
    }

    #[test]
    fn disks_of_about_the_same_room_take_turns() {
        let code = Code { k: 2, m: 1 };
        let all = candidates(&[1000, 990, 1001, 980, 995]);
        let mut windows: HashMap<DiskId, usize> = HashMap::new();
        for turn in 0..500 {
            let (_, disks) = choose(code, &all, turn).expect("enough disks");
            for disk in disks {
                *windows.entry(disk).or_default() += 1;
            }
        }
        assert!(windows.values().all(|&count| count == 300), "{windows:?}");
    }

    #[test]
    fn a_clearly_fuller_disk_is_passed_over() {
        let all = candidates(&[1000, 1000, 10, 1000]);
        for turn in 0..40 {
            let (_, disks) = choose(Code { k: 2, m: 1 }, &all, turn).expect("enough disks");
            assert!(!disks.contains(&DiskId(2)));
        }
    }

    #[test]
    fn capacity_counts_only_stripes_over_different_disks() {
        let code = Code { k: 1, m: 2 };
        assert_eq!(data_capacity(code, &[100, 100, 100]), 100);
        assert_eq!(data_capacity(code, &[1000, 1000, 10]), 10);
        assert_eq!(data_capacity(code, &[100; 6]), 200);
        assert_eq!(data_capacity(Code { k: 4, m: 2 }, &[100; 6]), 400);
        assert_eq!(
            data_capacity(Code { k: 4, m: 2 }, &[100, 100, 100, 100, 0, 0]),
            200
        );
        assert_eq!(data_capacity(Code { k: 4, m: 2 }, &[100, 100]), 0);
    }
}
