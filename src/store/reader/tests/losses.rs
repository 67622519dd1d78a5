//! Whole disks that are gone, in every combination that the code stands.

use std::sync::Arc;

use super::rig::{BLOCKS, FILE, Rig, VOLUME};
use crate::disk::{DirectoryDisk, Disk};
use crate::store::cache::BlockCache;
use crate::store::disks::{DiskState, Disks};
use crate::store::reader::{ReadError, Reader};
use crate::store::records::Code;

const CODES: [(u8, u8); 9] = [
    (1, 0),
    (3, 0),
    (1, 1),
    (1, 2),
    (2, 1),
    (2, 2),
    (3, 3),
    (4, 2),
    (6, 3),
];

/// Sets of at most `m` of `n` shards.
fn losses(n: usize, m: u8) -> impl Iterator<Item = Vec<usize>> {
    let sets = 0u32..1 << n;
    sets.filter(move |set| set.count_ones() <= u32::from(m))
        .map(move |set| (0..n).filter(|shard| set & (1 << shard) != 0).collect())
}

/// Reads everything; what is protected must be there, what is not must be there unless its disk is lost.
fn read_all(rig: &Rig, lost: &[usize]) {
    for (index, raw, protected) in rig.blocks() {
        let column = usize::from(rig.window.blocks[usize::from(index)].column);
        let read = rig.reader.read_block(FILE, &rig.window, index);
        if protected || !lost.contains(&column) {
            assert!(
                read.as_deref() == Ok(raw),
                "block {index} without {lost:?}: {:?}",
                read.err()
            );
        } else {
            let Err(ReadError::Lost { cause, .. }) = read else {
                panic!("block {index} without {lost:?} is not lost")
            };
            assert!(cause.contains(&format!("disk{column}")), "{cause}");
        }
    }
}

fn every_loss(harm: impl Fn(&Rig, usize)) {
    for (k, m) in CODES {
        let code = Code { k, m };
        for (number, lost) in losses(usize::from(k + m), m).enumerate() {
            if number % 3 != 0 && k > 4 {
                continue;
            }
            let rig = Rig::new(code, 24, 3000, 1000 + number as u64);
            lost.iter().for_each(|&shard| harm(&rig, shard));
            read_all(&rig, &lost);
        }
    }
}

#[test]
fn disks_that_are_not_there() {
    every_loss(|rig, shard| rig.unplug(shard));
}

#[test]
fn disks_that_answer_with_errors() {
    every_loss(|rig, shard| rig.media[shard].die());
}

#[test]
fn objects_that_are_gone() {
    every_loss(|rig, shard| rig.media[shard].remove(rig.object(shard)).unwrap());
}

#[test]
fn disks_that_are_noise() {
    every_loss(|rig, shard| {
        rig.change(shard, |bytes| {
            bytes.iter_mut().for_each(|byte| *byte ^= 0x5a)
        });
    });
}

/// A disk's bytes under another's name, which is what a mix-up of disks looks like.
#[test]
fn disks_that_changed_places() {
    for seed in 0..10 {
        let rig = Rig::new(Code { k: 4, m: 2 }, 30, 3000, seed);
        let (first, second) = (rig.bytes(1), rig.bytes(2));
        rig.change(1, |bytes| *bytes = second);
        rig.change(2, |bytes| *bytes = first);
        for (index, raw, protected) in rig.blocks().filter(|(_, _, protected)| *protected) {
            let read = rig.reader.read_block(FILE, &rig.window, index);
            assert!(read.as_deref() == Ok(raw), "{protected}: {:?}", read.err());
        }
    }
}

#[test]
fn one_loss_too_many_names_every_disk() {
    let rig = Rig::new(Code { k: 4, m: 2 }, 60, 3000, 5);
    for shard in [0, 2, 4] {
        rig.unplug(shard);
    }
    let column_0 = |index: u16| rig.window.blocks[usize::from(index)].column == 0;
    let mut seen = 0;
    for (index, _, _) in rig.blocks().filter(|&(index, _, p)| p && column_0(index)) {
        // A block beside which column 2 has nothing can still be had.
        let Err(error) = rig.reader.read_block(FILE, &rig.window, index) else {
            continue;
        };
        let text = error.to_string();
        assert!(matches!(error, ReadError::Unreadable { .. }), "{text}");
        for disk in ["disk0", "disk2", "disk4"] {
            assert!(text.contains(disk), "{text}");
        }
        seen += 1;
    }
    assert!(seen > 0);
}

#[test]
fn a_block_that_there_is_none_of() {
    let rig = Rig::new(Code { k: 2, m: 1 }, 40, 500, 6);
    let given_up = rig.raws.iter().position(Option::is_none).unwrap();
    for index in [given_up as u16, 40, u16::MAX] {
        let read = rig.reader.read_block(FILE, &rig.window, index);
        assert!(matches!(read, Err(ReadError::NoBlock { .. })));
    }
}

/// Reads go around a disk that does nothing but fail, and it is no longer asked.
#[test]
fn a_dying_disk_is_left_alone() {
    let rig = Rig::new(Code { k: 3, m: 2 }, 120, 500, 7);
    rig.media[1].die();
    read_all(&rig, &[1]);
    assert!(matches!(
        rig.disks.state(rig.window.disks[1]),
        DiskState::Faulty
    ));
    let calls = rig.media[1].plan().calls();
    for (index, _, _) in rig.blocks().filter(|(_, _, protected)| *protected) {
        rig.reader.read_block(FILE, &rig.window, index).unwrap();
    }
    assert_eq!(rig.media[1].plan().calls(), calls);
}

#[test]
fn a_run_brings_the_blocks_behind() {
    let rig = Rig::new(Code { k: 4, m: 2 }, 200, 60_000, 8);
    rig.unplug(2);
    let cache = Arc::new(BlockCache::new(64 << 20));
    let reader = Reader::new(VOLUME, rig.disks.clone(), cache.clone()).unwrap();
    let calls = || {
        rig.media
            .iter()
            .map(|disk| disk.plan().calls())
            .sum::<u64>()
    };
    let column: Vec<_> = rig
        .blocks()
        .filter(|&(i, _, p)| p && rig.window.blocks[usize::from(i)].column == 2)
        .collect();
    assert!(column.len() > 10);
    let mut reads = Vec::new();
    for &(index, raw, _) in &column {
        let before = calls();
        let block = reader.read_block_in_run(FILE, &rig.window, index).unwrap();
        assert!(&block[..] == raw);
        reads.push(calls() - before);
    }
    let free = reads.iter().filter(|&&reads| reads == 0).count();
    assert!(free > reads.len() / 2, "{reads:?}");
    let fresh = Reader::new(
        VOLUME,
        rig.disks.clone(),
        Arc::new(BlockCache::new(64 << 20)),
    )
    .unwrap();
    let there = fresh.reconstruct_column(FILE, &rig.window, 2, 0..u32::MAX);
    assert!(there.iter().eq(column.iter().map(|(index, ..)| index)));
}

/// What was lost by its object comes back on the disk as it is read, and nothing is written in a
/// read-only mount.
#[test]
fn what_is_read_is_repaired() {
    let mut rig = Rig::new(Code { k: 3, m: 2 }, 30, 3000, 9);
    let blocks = |rig: &Rig| -> Vec<u16> {
        let ours = |index: u16| rig.window.blocks[usize::from(index)].column == 1;
        rig.blocks()
            .filter(|&(i, _, p)| p && ours(i))
            .map(|(i, ..)| i)
            .collect()
    };
    let good = rig.bytes(1);
    rig.media[1].remove(BLOCKS).unwrap();
    rig.remount(true);
    for index in blocks(&rig) {
        rig.reader.read_block(FILE, &rig.window, index).unwrap();
    }
    assert!(rig.bytes(1).is_empty());
    rig.remount(false);
    for index in blocks(&rig) {
        rig.reader.read_block(FILE, &rig.window, index).unwrap();
    }
    let back = rig.bytes(1);
    for index in blocks(&rig) {
        let record = rig.window.blocks[usize::from(index)];
        let place = record.offset as usize..(record.offset as usize + record.stored as usize);
        assert!(back[place.clone()] == good[place]);
    }
}

/// A directory calls a place beyond all files an error, and would be faulty after a few of them.
#[test]
fn a_shard_that_its_disk_never_took_is_got_around_and_costs_its_disk_nothing() {
    let mut rig = Rig::new(Code { k: 2, m: 2 }, 40, 3000, 5);
    rig.window.parity[0].offset = u64::MAX / 2;
    let place = tempfile::tempdir().expect("a directory");
    let disks = Arc::new(Disks::new(false));
    for (shard, id) in rig.window.disks.iter().enumerate() {
        let name = format!("disk{shard}");
        let disk = DirectoryDisk::create(&name, &place.path().join(&name)).expect("a disk");
        disk.put(rig.object(shard), &rig.bytes(shard)).expect("put");
        let disk: Arc<dyn Disk> = Arc::new(disk);
        disks.insert(*id, name, (shard != 0).then_some(disk));
    }
    let reader = Reader::new(VOLUME, Arc::clone(&disks), Arc::new(BlockCache::new(0)));
    let reader = reader.expect("a reader");
    let mut reconstructed = 0;
    for (index, raw, protected) in rig.blocks() {
        let of_lost = rig.window.blocks[usize::from(index)].column == 0;
        let read = reader.read_block(FILE, &rig.window, index);
        if protected || !of_lost {
            assert!(
                read.as_deref() == Ok(raw),
                "block {index}: {:?}",
                read.err()
            );
            reconstructed += u32::from(of_lost);
        }
    }
    assert!(reconstructed > 8, "{reconstructed}");
    for status in disks.list().iter().skip(1) {
        assert_eq!(status.state, DiskState::Online, "{status:?}");
        assert_eq!(status.read_errors, 0, "{status:?}");
    }
}
