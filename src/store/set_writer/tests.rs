//! What a commit's writer asks of the disks, and when.

use std::time::Instant;

use super::*;
use crate::disk::{Disk, MemoryDisk};
use crate::ids::VolumeId;
use crate::store::budget::Budget;
use crate::store::compression::CompressLater;
use crate::store::disks::Disks;
use crate::store::pipeline::WritePolicy;

/// Waits until it is so.
fn until(what: &str, so: impl Fn() -> bool) {
    let since = Instant::now();
    while !so() {
        assert!(since.elapsed().as_secs() < 60, "in vain: {what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A pipeline with so many bytes of memory over disks in memory, 2+1 and without compression.
fn pipeline(memory: u64) -> (Arc<Pipeline>, Vec<Arc<MemoryDisk>>) {
    let disks = Arc::new(Disks::new(false));
    let media: Vec<Arc<MemoryDisk>> = (0..3)
        .map(|number| Arc::new(MemoryDisk::new(&format!("disk{number}"))))
        .collect();
    for (number, disk) in (0..).zip(&media) {
        let name = disk.name().to_owned();
        disks.insert(DiskId(number), name, Some(Arc::clone(disk) as _));
    }
    let policy = WritePolicy {
        critical: Code { k: 2, m: 1 },
        expendable: Code { k: 1, m: 0 },
        compression: Compression::None,
        compress_later: CompressLater::Never,
    };
    let budget = Budget::new(memory);
    let pipeline = Pipeline::start(VolumeId(7), policy, disks, budget).expect("threads");
    (pipeline, media)
}

/// Blocks in each window of writers that are given so many blocks each, by turns. The first one's set is numbered `first`.
fn windows(
    pipeline: &Arc<Pipeline>,
    first: u64,
    lane: Lane,
    writers: u64,
    blocks: u32,
) -> Vec<Vec<usize>> {
    let writers: Vec<_> = (first..first + writers)
        .map(|number| {
            let writer = SetWriter::new(Arc::clone(pipeline), FileId(number), SetId(number));
            (writer, AtomicU32::new(0))
        })
        .collect();
    for number in 0..blocks {
        for (writer, next_window) in &writers {
            let begun = writer.begin(lane, next_window).expect("disks");
            writer.seal(&begun, Arc::new(vec![number as u8; 100].into()), None);
        }
    }
    let windows = writers.iter().map(|(writer, _)| {
        let windows = writer.finish();
        windows.iter().map(|window| window.blocks.len()).collect()
    });
    windows.collect()
}

#[test]
fn windows_end_sooner_where_the_parity_of_many_would_take_all_memory() {
    // Half of it is 64 blocks.
    let (pipeline, _) = pipeline(16 << 20);
    assert_eq!(windows(&pipeline, 100, Lane::Critical, 1, 128), [[128]]);
    for of_one in windows(&pipeline, 200, Lane::Critical, 4, 100) {
        assert_eq!(of_one.iter().sum::<usize>(), 100);
        let longest = of_one.iter().max().copied();
        assert!(longest <= Some(32), "{of_one:?}");
    }
    // No fewer than 8 to a column.
    for of_one in windows(&pipeline, 300, Lane::Critical, 40, 40) {
        assert!(of_one.len() <= 3, "{of_one:?}");
    }
    // What has no parity waits for nothing.
    for of_one in windows(&pipeline, 400, Lane::Expendable, 4, 100) {
        assert_eq!(of_one, [100]);
    }
    // None is left that counts.
    assert_eq!(windows(&pipeline, 500, Lane::Critical, 1, 128), [[128]]);
}

#[test]
fn a_window_that_is_complete_makes_no_other_end_sooner() {
    let (pipeline, _) = pipeline(16 << 20);
    let writer = SetWriter::new(Arc::clone(&pipeline), FileId(1), SetId(5));
    let next_window = AtomicU32::new(0);
    for _ in 0..5 {
        for _ in 0..128 {
            let begun = writer.begin(Lane::Critical, &next_window).expect("disks");
            writer.seal(&begun, Arc::new(vec![1; 100].into()), None);
        }
        until("its parity is written", || pipeline.growing() == 0);
    }
    let windows = writer.finish();
    assert!(windows.iter().all(|window| window.blocks.len() == 128));
}

#[test]
fn the_disks_are_asked_to_write_down_what_they_have_when_a_commit_begins() {
    let (pipeline, media) = pipeline(64 << 20);
    let writer = SetWriter::new(Arc::clone(&pipeline), FileId(1), SetId(5));
    let next_window = AtomicU32::new(0);
    for number in 0..20u8 {
        let begun = writer.begin(Lane::Critical, &next_window).expect("disks");
        writer.seal(&begun, Arc::new(vec![number; 100_000].into()), None);
    }
    until("all is with the disks", || pipeline.unwritten() == 0);
    let blocks = ObjectName::Blocks(SetId(5));
    let asked = || {
        media
            .iter()
            .map(|disk| disk.asked_to_write(blocks))
            .sum::<u64>()
    };
    let there = || {
        media
            .iter()
            .map(|disk| disk.length(blocks).unwrap_or(0))
            .sum::<u64>()
    };
    assert!(there() > 20 * 100_000);
    assert_eq!(asked(), 0, "nobody waits yet");
    // It does not wait for that, but it makes nothing durable either.
    writer.finish();
    until("they are asked", || asked() == there());
}

/// Blocks are queued under the lock of their window, which whoever is told that one was refused takes too.
#[test]
fn a_block_for_a_disk_that_takes_nothing_more_fails_and_nobody_stands_still() {
    for gone in 0..3 {
        let (pipeline, _) = pipeline(16 << 20);
        let writer = SetWriter::new(Arc::clone(&pipeline), FileId(1), SetId(1));
        let next_window = AtomicU32::new(0);
        let block = |number: u8| {
            let begun = writer.begin(Lane::Critical, &next_window).expect("disks");
            writer.seal(&begun, Arc::new(vec![number; 100].into()), None);
        };
        (0..4).for_each(block);
        until("all is placed", || pipeline.unwritten() == 0);
        pipeline.disks.remove(DiskId(gone));
        pipeline.writers.end(DiskId(gone));
        let (sender, ended) = bounded(1);
        let (other, pipeline) = (Arc::clone(&writer), Arc::clone(&pipeline));
        std::thread::spawn(move || {
            let next_window = AtomicU32::new(1);
            for number in 4..8 {
                match other.begin(Lane::Critical, &next_window) {
                    Ok(begun) => other.seal(&begun, Arc::new(vec![number; 100].into()), None),
                    // Another window would need the disk that is gone.
                    Err(_) => break,
                }
            }
            until("all is placed", || pipeline.unwritten() == 0);
            other.finish();
            let _ = sender.send(other.failed_disks());
        });
        let failed = ended.recv_timeout(std::time::Duration::from_secs(20));
        let failed = failed.expect("it stands still");
        assert_eq!(failed, BTreeSet::from([DiskId(gone)]), "disk {gone}");
    }
}
