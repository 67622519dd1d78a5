//! What a commit's writer asks of the disks, and when.

use std::time::{Duration, Instant};

use super::*;
use crate::disk::{
    Disk, Fault, FaultPlan, FaultyDisk, MemoryDisk, Operation, Operations, Rule, When,
};
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
    let media: Vec<Arc<MemoryDisk>> = (0..3)
        .map(|number| Arc::new(MemoryDisk::new(&format!("disk{number}"))))
        .collect();
    let disks = media.iter().map(|disk| Arc::clone(disk) as _);
    (pipeline_over(memory, disks.collect()), media)
}

fn pipeline_over(memory: u64, media: Vec<Arc<dyn Disk>>) -> Arc<Pipeline> {
    let disks = Arc::new(Disks::new(false));
    for (number, disk) in (0..).zip(media) {
        disks.insert(DiskId(number), disk.name().to_owned(), Some(disk));
    }
    let policy = WritePolicy {
        critical: Code { k: 2, m: 1 },
        expendable: Code { k: 1, m: 0 },
        compression: Compression::None,
        compress_later: CompressLater::Never,
    };
    let budget = Budget::new(memory);
    Pipeline::start(VolumeId(7), policy, disks, budget).expect("threads")
}

/// The same over disks that fail by these plans.
fn failing_pipeline() -> (Arc<Pipeline>, Vec<Arc<FaultPlan>>) {
    let plans: Vec<_> = (0..3).map(FaultPlan::new).collect();
    let media = plans.iter().map(|plan| {
        let below = Arc::new(MemoryDisk::new("disk"));
        Arc::new(FaultyDisk::new(below, Arc::clone(plan))) as Arc<dyn Disk>
    });
    (pipeline_over(16 << 20, media.collect()), plans)
}

/// The next append to the blocks of a set takes so long.
fn hang(plan: &FaultPlan, set: SetId, long: Duration) {
    let once = When::Count { skip: 0, times: 1 };
    let append = Operations::of(&[Operation::Append]);
    let rule = Rule::new(append, once, Fault::Delay(long));
    plan.add(rule.only(move |object| object == ObjectName::Blocks(set)));
}

/// The next append to the parity of a set takes so long.
fn hang_parity(plan: &FaultPlan, set: SetId, long: Duration) {
    let once = When::Count { skip: 0, times: 1 };
    let append = Operations::of(&[Operation::Append]);
    let rule = Rule::new(append, once, Fault::Delay(long));
    plan.add(rule.only(move |object| object == ObjectName::Parity(set)));
}

/// Has an empty medium take part in the place of a disk, as one that was brought back.
fn bring_back(pipeline: &Pipeline, disk: DiskId) -> Arc<MemoryDisk> {
    let medium = Arc::new(MemoryDisk::new("brought back"));
    pipeline.end_writer(disk);
    pipeline
        .disks
        .insert(disk, "disk", Some(Arc::clone(&medium) as _));
    pipeline.room.forget();
    medium
}

fn block(writer: &Arc<SetWriter>, next_window: &AtomicU32) -> Begun {
    let begun = writer.begin(Lane::Critical, next_window).expect("disks");
    writer.seal(&begun, Arc::new(vec![1; 100].into()), None);
    begun
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

#[test]
fn a_disk_that_is_brought_back_is_not_held_up_by_what_its_old_medium_has_not_ended() {
    const LONG: Duration = Duration::from_secs(10);
    let (pipeline, plans) = failing_pipeline();
    let (set, next_window) = (SetId(5), AtomicU32::new(0));
    let writer = SetWriter::new(Arc::clone(&pipeline), FileId(1), set);
    let begun = writer.begin(Lane::Critical, &next_window).expect("disks");
    let disk = begun.window.disks[0];
    let plan = &plans[disk.0 as usize];
    hang(plan, set, LONG);
    let since = Instant::now();
    writer.seal(&begun, Arc::new(vec![1; 100].into()), None);
    until("it hangs", || plan.injected() > 0);
    let medium = bring_back(&pipeline, disk);
    for _ in 0..4 {
        block(&writer, &next_window);
    }
    // Others write to it, and it answers.
    assert_eq!(windows(&pipeline, 100, Lane::Critical, 1, 4), [[4]]);
    assert!(since.elapsed() < LONG / 2, "{:?}", since.elapsed());
    assert!(medium.length(ObjectName::Blocks(SetId(100))).is_ok());
    assert!(pipeline.disks.is_online(disk));
    writer.finish();
    assert_eq!(writer.sync(), [disk].into());
    assert!(medium.length(ObjectName::Blocks(set)).is_err());
    assert!(pipeline.disks.is_online(disk));
}

#[test]
fn what_a_disk_took_before_it_was_brought_back_is_not_counted_on() {
    let (pipeline, _) = failing_pipeline();
    for goes_on in [false, true] {
        let (set, next_window) = (SetId(5 + u64::from(goes_on)), AtomicU32::new(0));
        let writer = SetWriter::new(Arc::clone(&pipeline), FileId(1), set);
        let disk = block(&writer, &next_window).window.disks[0];
        block(&writer, &next_window);
        until("all is with the disks", || pipeline.unwritten() == 0);
        pipeline.disks.mark_missing(disk, "its directory is gone");
        if goes_on {
            block(&writer, &next_window);
        }
        let medium = bring_back(&pipeline, disk);
        if goes_on {
            block(&writer, &next_window);
        }
        writer.finish();
        assert_eq!(writer.sync(), [disk].into(), "goes on: {goes_on}");
        assert!(medium.list().expect("listed").is_empty());
        assert!(pipeline.disks.is_online(disk));
    }
}

#[test]
fn a_file_that_may_not_be_opened_fails_the_set_and_no_disk() {
    let (pipeline, plans) = failing_pipeline();
    let creates = Operations::of(&[Operation::Create]);
    plans[0].add(Rule::new(creates, When::Always, Fault::Exhausted));
    let writer = SetWriter::new(Arc::clone(&pipeline), FileId(1), SetId(1));
    let next_window = AtomicU32::new(0);
    for _ in 0..4 {
        block(&writer, &next_window);
    }
    writer.finish();
    assert_eq!(writer.sync(), BTreeSet::from([DiskId(0)]));
    assert!(pipeline.disks.is_online(DiskId(0)));
    // For a moment nothing new goes there.
    let candidates = pipeline.room.candidates();
    assert!(
        candidates
            .iter()
            .all(|candidate| candidate.disk != DiskId(0))
    );
    plans[0].clear();
    until("the disk to take something again", || {
        pipeline.room.candidates().len() == 3
    });
    let writer = SetWriter::new(Arc::clone(&pipeline), FileId(1), SetId(2));
    block(&writer, &next_window);
    writer.finish();
    assert_eq!(writer.sync(), BTreeSet::new());
}

#[test]
fn the_files_of_a_finished_set_are_closed_and_it_can_still_be_synced() {
    let (pipeline, plans) = failing_pipeline();
    let syncs = Operations::of(&[Operation::Sync]);
    let next_window = AtomicU32::new(0);
    let finished = |number: u64| {
        let writer = SetWriter::new(Arc::clone(&pipeline), FileId(1), SetId(number));
        for _ in 0..4 {
            block(&writer, &next_window);
        }
        writer.finish();
        writer.close_segments();
        writer
    };
    let writer = finished(1);
    until("the files to be closed", || {
        let state = writer.state.lock();
        !state.segments.is_empty() && state.segments.values().all(|segment| segment.is_closed())
    });
    assert_eq!(writer.sync(), BTreeSet::new());
    // What went wrong as they were closed the sync tells.
    plans[0].add(Rule::new(syncs, When::Always, Fault::Io));
    let writer = finished(2);
    assert_eq!(writer.sync(), BTreeSet::from([DiskId(0)]));
    assert!(!pipeline.disks.is_online(DiskId(0)));
}

#[test]
fn parity_that_a_disk_hangs_with_costs_no_memory_once_it_is_given_up() {
    const LONG: Duration = Duration::from_secs(40);
    let (pipeline, plans) = failing_pipeline();
    let set = SetId(5);
    plans.iter().for_each(|plan| hang_parity(plan, set, LONG));
    let writer = SetWriter::new(Arc::clone(&pipeline), FileId(1), set);
    let window = block(&writer, &AtomicU32::new(0)).window;
    let disk = window.disks[2];
    let since = Instant::now();
    let other = Arc::clone(&writer);
    let finished = std::thread::spawn(move || other.finish());
    until("it hangs", || plans[usize::from(disk.0)].injected() > 0);
    assert!(pipeline.budget.held() > 0);
    // One that is faulty for something else is not waited for so long.
    pipeline.disks.mark_faulty(disk, "for this test");
    until("it is given up", || {
        pipeline.writers.look_after();
        finished.is_finished()
    });
    finished.join().expect("finished");
    until("its memory to be given back", || {
        pipeline.budget.held() == 0
    });
    assert!(since.elapsed() < LONG, "the call is still under way");
    assert_eq!(writer.failed_disks(), [disk].into());
}
