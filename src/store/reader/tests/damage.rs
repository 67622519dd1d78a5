//! Damage here and there: silent, scattered, in several shards at once, and disks that lie now and then.

use proptest::prelude::*;

use super::rig::{FILE, Rig, random};
use crate::disk::{Disk, Fault, Operations, Rule, When};
use crate::store::reader::ReadError;
use crate::store::records::Code;

/// The byte of the disk at which a block of the column begins, for each protected block.
fn starts(rig: &Rig, column: u8) -> Vec<(u16, usize)> {
    let records = (0u16..).zip(&rig.window.blocks);
    records
        .filter(|(_, record)| record.protected && record.column == column)
        .map(|(index, record)| (index, record.offset as usize))
        .collect()
}

fn read_protected(rig: &Rig) {
    for (index, raw, _) in rig.blocks().filter(|(_, _, protected)| *protected) {
        let read = rig.reader.read_block(FILE, &rig.window, index);
        assert!(
            read.as_deref() == Ok(raw),
            "block {index}: {:?}",
            read.err()
        );
    }
}

/// A lost disk, and beside it shards that are silently wrong: found out, left out, and the block is right.
#[test]
fn silent_damage_beside_a_loss() {
    for seed in 0..12 {
        for silent in 1..6 {
            let rig = Rig::new(Code { k: 4, m: 2 }, 40, 4000, seed);
            rig.unplug(0);
            rig.change(silent, |bytes| {
                let mut at = 70;
                while at < bytes.len() {
                    bytes[at] ^= 1;
                    at += 500;
                }
            });
            read_protected(&rig);
        }
    }
}

/// More shards are bad than the code stands, but no two at one place for each loss.
#[test]
fn losses_at_different_places() {
    for seed in 0..20 {
        let mut rig = Rig::new(Code { k: 4, m: 1 }, 80, 2000, seed);
        rig.remount(true);
        // Ends of blocks that do not overlap, along the columns.
        let mut taken: Vec<(u32, u32)> = Vec::new();
        let mut bad = 0;
        for column in 0..4 {
            for (index, start) in starts(&rig, column) {
                let record = rig.window.blocks[usize::from(index)];
                let begin = record.column_offset / 64 * 64;
                let end = (record.column_offset + record.stored).next_multiple_of(64);
                if taken.iter().all(|&(from, to)| end <= from || begin >= to) {
                    taken.push((begin, end));
                    rig.change(column.into(), |bytes| bytes[start + 64] ^= 4);
                    bad += 1;
                }
            }
        }
        assert!(bad > 2, "{bad}");
        read_protected(&rig);
    }
}

/// Parity damaged far from the block that needs it still serves.
#[test]
fn parity_that_is_damaged_elsewhere() {
    for seed in 0..10 {
        let rig = Rig::new(Code { k: 3, m: 1 }, 40, 2000, seed);
        let at = rig.window.parity[0].offset as usize + rig.window.parity_length as usize - 1;
        rig.change(3, |bytes| bytes[at] ^= 1);
        rig.unplug(1);
        let tail = rig.window.parity_length - 64;
        for (index, raw, _) in rig.blocks().filter(|(_, _, protected)| *protected) {
            let record = rig.window.blocks[usize::from(index)];
            let read = rig.reader.read_block(FILE, &rig.window, index);
            if record.column != 1 || record.column_offset + record.stored <= tail {
                assert!(read.as_deref() == Ok(raw), "{:?}", read.err());
            }
        }
    }
    // Of several damaged shards the one that is good at the place is found.
    let mut tried = 0;
    for seed in 0..10 {
        let mut rig = Rig::new(Code { k: 3, m: 3 }, 40, 2000, seed);
        for shard in 0..3 {
            let at = rig.window.parity[shard].offset as usize;
            let far = rig.window.parity_length as usize - 1;
            rig.change(3 + shard, |bytes| {
                bytes[at + if shard == 2 { far } else { 70 }] ^= 1
            });
        }
        for (index, start) in starts(&rig, 1).into_iter().take(1) {
            rig.change(1, |bytes| bytes[start] ^= 1);
            rig.remount(true);
            let raw = rig.raws[usize::from(index)].clone().unwrap();
            let end = rig.window.blocks[usize::from(index)].stored;
            if raw.len() > 100 && end < rig.window.parity_length - 64 {
                let read = rig.reader.read_block(FILE, &rig.window, index);
                assert!(read.as_deref() == Ok(&raw[..]), "{:?}", read.err());
                tried += 1;
            }
        }
    }
    assert!(tried > 3);
}

#[test]
fn a_window_is_verified_and_repaired() {
    for seed in 0..8 {
        let rig = Rig::new(Code { k: 4, m: 2 }, 60, 3000, seed);
        let good: Vec<Vec<u8>> = (0..6).map(|shard| rig.bytes(shard)).collect();
        let report = rig.reader.verify_window(FILE, &rig.window);
        assert!(report.is_good(), "{report:?}");
        assert_eq!(report.blocks as usize, rig.blocks().count());
        // One block of each of two columns, a parity shard's bytes, another one's header.
        let mut bad = Vec::new();
        for column in [0, 2] {
            if let Some(&(index, start)) = starts(&rig, column).last() {
                rig.change(column.into(), |bytes| bytes[start + 30] ^= 2);
                bad.push(index);
            }
        }
        bad.sort();
        let at = rig.window.parity[1].offset as usize;
        rig.change(5, |bytes| bytes[at + 5] ^= 1);
        let report = rig.reader.verify_window(FILE, &rig.window);
        assert!(
            report
                .bad_blocks
                .iter()
                .map(|b| b.index)
                .eq(bad.iter().copied())
        );
        assert_eq!(
            report
                .bad_shards
                .iter()
                .map(|b| b.shard)
                .collect::<Vec<_>>(),
            [1]
        );
        let report = rig.reader.repair_window(FILE, &rig.window);
        assert!(report.is_good(), "{report:?}");
        assert_eq!(report.repaired as usize, bad.len() + 1);
        let at = rig.window.parity[0].offset as usize - 10;
        rig.change(4, |bytes| bytes[at] ^= 1);
        let report = rig.reader.repair_window(FILE, &rig.window);
        assert_eq!((report.repaired, report.is_good()), (1, true));
        for (shard, good) in good.iter().enumerate() {
            assert!(&rig.bytes(shard) == good, "shard {shard}");
        }
    }
}

/// A disk that was replaced by an empty one gets all of its protected blocks back, and parity.
#[test]
fn an_empty_disk_is_filled() {
    let rig = Rig::new(Code { k: 3, m: 2 }, 100, 3000, 77);
    for shard in [1, 4] {
        rig.media[shard].remove(rig.object(shard)).unwrap();
    }
    let report = rig.reader.repair_window(FILE, &rig.window);
    assert!(report.bad_shards.is_empty());
    let unprotected = |index: &u16| !rig.window.blocks[usize::from(*index)].protected;
    assert!(report.gone.iter().all(unprotected), "{report:?}");
    assert!(!report.gone.is_empty(), "{report:?}");
    assert_eq!(report.gone.len(), report.bad_blocks.len());
    let report = rig.reader.verify_window(FILE, &rig.window);
    assert!(report.bad_blocks.iter().all(|bad| !bad.protected));
    assert!(report.bad_shards.is_empty());
}

#[test]
fn a_lost_block_is_not_made_up() {
    let rig = Rig::new(Code { k: 2, m: 1 }, 40, 3000, 78);
    let unprotected = (0u16..).zip(&rig.window.blocks);
    let (index, record) = unprotected
        .into_iter()
        .find(|(_, r)| r.stored > 0 && !r.protected)
        .unwrap();
    rig.change(record.column.into(), |bytes| {
        bytes[record.offset as usize + 70] ^= 1
    });
    let read = rig.reader.read_block(FILE, &rig.window, index);
    let Err(ReadError::Lost { cause, .. }) = read else {
        panic!("{read:?}")
    };
    assert!(
        cause.contains("disk") && cause.contains(&record.offset.to_string()),
        "{cause}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Disks that lie, by chance, in every way a read can go wrong.
    #[test]
    fn disks_that_lie_now_and_then(
        k in 1u8..6,
        m in 0u8..4,
        seed in any::<u64>(),
        chance in 1_000u32..400_000,
        fault in prop::sample::select(vec![
            Fault::Io, Fault::Short, Fault::Dropped, Fault::BitFlip, Fault::Misdirected,
        ]),
    ) {
        let mut rig = Rig::new(Code { k, m }, 40, 3000, seed);
        for disk in &rig.media {
            disk.plan().add(Rule::new(Operations::READS, When::Chance(chance), fault));
        }
        for (index, raw, _) in rig.blocks() {
            if let Ok(block) = rig.reader.read_block(FILE, &rig.window, index) {
                prop_assert!(&block[..] == raw);
            }
        }
        let _ = rig.reader.repair_window(FILE, &rig.window);
        // Whatever was "repaired" meanwhile, everything is still there.
        rig.media.iter().for_each(|disk| disk.plan().clear());
        rig.remount(true);
        let report = rig.reader.verify_window(FILE, &rig.window);
        prop_assert!(report.is_good(), "{:?}", report);
    }

    /// Bytes changed at random on all disks: never a wrong block, and a right one where no more shards
    /// are bad anywhere than the code stands.
    #[test]
    fn scattered_damage(
        k in 2u8..6,
        m in 1u8..4,
        seed in any::<u64>(),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..30),
    ) {
        let mut rig = Rig::new(Code { k, m }, 40, 3000, seed);
        rig.remount(true);
        let mut harmed = std::collections::BTreeSet::new();
        let mut state = seed;
        for (shard, at) in hits {
            let shard = shard.index(usize::from(k + m));
            harmed.insert(shard);
            rig.change(shard, |bytes| if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << (random(&mut state) % 8);
            });
        }
        for (index, raw, protected) in rig.blocks() {
            match rig.reader.read_block(FILE, &rig.window, index) {
                Ok(block) => prop_assert!(&block[..] == raw),
                Err(error) => prop_assert!(!protected || harmed.len() > m.into(), "{}", error),
            }
        }
    }
}

/// Nobody writes to it, so nothing on it is made good, whatever it still gives.
#[test]
fn blocks_of_a_faulty_disk_that_can_be_read_are_not_repaired() {
    let rig = Rig::new(Code { k: 2, m: 1 }, 20, 2000, 1);
    let disk = rig.window.disks[0];
    rig.disks.mark_faulty(disk, "for this test");
    let report = rig.reader.repair_window(FILE, &rig.window);
    assert_eq!((report.repaired, report.gone), (0, Vec::new()));
    assert!(!report.bad_blocks.is_empty());
    assert!(report.bad_blocks.iter().all(|bad| bad.disk == disk));
}
