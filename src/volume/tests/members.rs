//! Disks that leave the volume or are replaced, and tasks that stop and go on.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::tiers::{MadeUp, runs};
use super::*;
use crate::disk::{Fault, ObjectName, Operations, Rule, When};
use crate::volume::TaskState;

/// Waits for the end of the task that runs.
fn ended(volume: &Volume) -> TaskStatus {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let task = volume.task().expect("a status").expect("a task");
        if task.state != TaskState::Running {
            return task;
        }
        assert!(Instant::now() < end, "{task:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const FILES: usize = 16;
const SIZE: u64 = 3 << 20;

fn file_bytes(number: usize) -> Vec<u8> {
    noise(number as u64, SIZE as usize)
}

/// A volume with files of which a third of the pages are expendable.
fn with_expendable(disks: usize, policy: &str) -> Rig {
    let rig = Rig::new(disks, policy);
    let tiers = Arc::new(MadeUp::default());
    *tiers.runs.lock() = runs(SIZE, 96, 32);
    let volume = rig.open_with(tiers);
    for number in 0..FILES {
        write_file(&volume, &format!("f{number}"), &file_bytes(number));
    }
    volume.close().expect("closed");
    rig
}

/// The pages of the files that cannot be read; the others have to be right.
fn lost_now(volume: &Volume) -> BTreeSet<(usize, usize)> {
    lost_from(volume, 0)
}

/// The same of the pages from this one on.
fn lost_from(volume: &Volume, first: usize) -> BTreeSet<(usize, usize)> {
    let mut lost = BTreeSet::new();
    for number in 0..FILES {
        let name = format!("f{number}");
        let file = volume.lookup(ROOT, name.as_bytes()).expect("there").file;
        let handle = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
        for (page, expected) in file_bytes(number).chunks(4096).enumerate().skip(first) {
            match volume.read(handle, (page * 4096) as u64, 4096) {
                Ok(found) => assert!(found == expected, "page {page} of {name} is wrong"),
                Err(_) => {
                    lost.insert((number, page));
                }
            }
        }
        volume.release(handle);
    }
    lost
}

fn lost(rig: &Rig) -> BTreeSet<(usize, usize)> {
    lost_now(&Volume::open(&rig.config, Mode::ReadOnly).expect("opens"))
}

fn is_expendable((_, page): &(usize, usize)) -> bool {
    page % 96 < 32
}

fn members(volume: &Volume) -> Vec<String> {
    let list = volume.disks.list().into_iter();
    list.map(|disk| disk.name).collect()
}

#[test]
fn what_another_disk_may_still_give_is_not_given_up_with_a_disk() {
    let rig = with_expendable(4, "critical = \"2+1\"");
    rig.take_away(1);
    let with_it = lost(&rig);
    assert!(!with_it.is_empty() && with_it.iter().all(is_expendable));
    rig.take_away(3);
    let volume = rig.open();
    volume.remove_disk("d1", true, &[], None).expect("begun");
    let task = ended(&volume);
    assert_eq!(task.state, TaskState::Failed, "{task:?}");
    let told = task.problems.join("\n");
    assert!(told.contains("disk d3 is missing"), "{told}");
    let error = task.error.expect("an error");
    assert!(error.contains("besides: d3;"), "{error}");
    volume.close().expect("closed");
    drop(volume);
    rig.bring_back(3);
    let volume = rig.open();
    assert_eq!(lost_now(&volume), with_it);
    volume.remove_disk("d1", true, &[], None).expect("begun");
    let task = ended(&volume);
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    assert_eq!(members(&volume), ["d0", "d2", "d3"]);
    assert_eq!(lost_now(&volume), with_it);
}

#[test]
fn two_disks_that_are_gone_for_good_leave_when_both_are_named() {
    let rig = with_expendable(5, "critical = \"2+1\"");
    rig.take_away(1);
    rig.take_away(3);
    let with_both = lost(&rig);
    assert!(!with_both.iter().all(is_expendable));
    let volume = rig.open();
    let d3 = ["d3".to_owned()];
    let here = volume.remove_disk("d1", true, &["d0".to_owned()], None);
    assert!(here.is_err(), "d0 is here");
    assert!(volume.remove_disk("d1", false, &d3, None).is_err());
    for (disk, gone) in [("d1", &d3[..]), ("d3", &[])] {
        volume.remove_disk(disk, true, gone, None).expect("begun");
        let task = ended(&volume);
        assert_eq!(task.state, TaskState::Done, "{task:?}");
        assert_eq!(lost_now(&volume), with_both);
    }
    assert_eq!(members(&volume), ["d0", "d2", "d4"]);
}

/// A lost block is still told of by its window, and where it was is another one's place now.
#[test]
fn what_is_rewritten_after_a_loss_takes_nothing_else_away() {
    let policy = "critical = \"2+1\"\nblock_size = \"4K\"\ncompression = \"none\"";
    let rig = with_expendable(4, policy);
    rig.take_away(1);
    let tiers = Arc::new(MadeUp::default());
    *tiers.runs.lock() = runs(SIZE, 96, 32);
    let volume = rig.open_with(tiers);
    volume.remove_disk("d1", true, &[], None).expect("begun");
    assert_eq!(ended(&volume).state, TaskState::Done);
    const REWRITTEN: usize = 128;
    let before = lost_from(&volume, REWRITTEN);
    assert!(!before.is_empty());
    for number in 0..FILES {
        let name = format!("f{number}");
        let file = volume.lookup(ROOT, name.as_bytes()).expect("there").file;
        let handle = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
        let bytes = noise(100 + number as u64, REWRITTEN * 4096);
        volume.write(handle, 0, &bytes).expect("written");
        close(&volume, handle);
    }
    volume.sweeper.wait();
    assert_eq!(lost_from(&volume, REWRITTEN), before);
    volume.scrub(None).expect("begun");
    let scrub = ended(&volume);
    assert_eq!((scrub.state, scrub.bad), (TaskState::Done, 0), "{scrub:?}");
}

/// What was left of such windows had its bytes twice.
#[test]
fn what_is_written_anew_with_a_loss_gives_its_room_back() {
    let rig = with_expendable(5, "critical = \"2+1\"\ncompression = \"none\"");
    rig.take_away(1);
    rig.take_away(3);
    let volume = rig.open();
    let d3 = ["d3".to_owned()];
    for (disk, gone) in [("d1", &d3[..]), ("d3", &[])] {
        volume.remove_disk(disk, true, gone, None).expect("begun");
        let task = ended(&volume);
        assert_eq!(task.state, TaskState::Done, "{task:?}");
    }
    volume.sweeper.wait();
    let mut there = 0;
    for number in 0..FILES {
        let name = format!("f{number}");
        let file = volume.lookup(ROOT, name.as_bytes()).expect("there").file;
        let file = volume.use_file(file).expect("in use");
        let seen = volume.frozen_view(&file).each_window(|window| {
            let blocks = window.blocks.iter().filter(|block| !block.lost);
            there += blocks.map(|block| u64::from(block.stored)).sum::<u64>();
            there += u64::from(window.parity_length) * window.parity.len() as u64;
            Ok(())
        });
        seen.expect("windows");
    }
    let occupied = rig.occupied();
    assert!(
        occupied < there + (1 << 20),
        "{occupied} bytes for {there} that are there"
    );
}

#[test]
fn a_task_of_a_volume_that_is_not_mounted_does_not_run() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    write_file(&volume, "f", &file_bytes(0));
    volume.scrub(Some(1)).expect("begun");
    volume.close().expect("closed");
    drop(volume);
    let volume = Volume::open(&rig.config, Mode::ReadOnly).expect("opens");
    let task = volume.task().expect("a status").expect("a task");
    assert_eq!(task.state.word(), "interrupted");
    volume.cancel_task().expect_err("it does not run");
    volume.set_task_rate(None).expect_err("it does not run");
    drop(volume);
    let volume = rig.open();
    let task = volume.task().expect("a status").expect("a task");
    assert_eq!(task.state, TaskState::Running);
    let task = volume.cancel_task().expect("cancelled").expect("a task");
    assert_eq!(task.state, TaskState::Cancelled);
}

#[test]
fn a_disk_is_replaced_by_a_new_one_or_by_the_one_that_had_joined_for_it() {
    let rig = Rig::new(4, "critical = \"2+1\"");
    let volume = rig.open();
    for number in 0..FILES {
        write_file(&volume, &format!("f{number}"), &file_bytes(number));
    }
    let replace = |disk, path: &Path, rate| volume.replace_disk(disk, path, None, false, &[], rate);
    replace("d1", &rig.disk(2), None).expect_err("it is a disk of the volume");
    assert_eq!(members(&volume), ["d0", "d1", "d2", "d3"]);
    let new = rig.place.path().join("new");
    std::fs::create_dir(&new).expect("a directory");
    replace("d1", &new, Some(1)).expect("begun");
    // What has moved goes back as slowly: that task, too, stands still until it is cancelled.
    let moved = || volume.task().expect("told").map_or(0, |task| task.moved);
    while moved() == 0 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let back = volume.cancel_task().expect("cancelled").expect("a task");
    assert!(back.what.starts_with("the return"), "{back:?}");
    volume.cancel_task().expect("cancelled");
    volume.scrub(None).expect("begun");
    ended(&volume);
    assert_eq!(members(&volume), ["d0", "d1", "d2", "d3", "new"]);
    replace("d2", &new, None).expect_err("it had joined for another");
    replace("d1", &new, None).expect("begun");
    let task = ended(&volume);
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    assert_eq!(members(&volume), ["d0", "d2", "d3", "new"]);
    assert!(lost_now(&volume).is_empty());
}

/// What is given up in a commit that fails is not given up in memory either: a later commit would make the loss true.
#[test]
fn what_is_given_up_and_not_made_true_is_not_lost() {
    let rig = with_expendable(5, "critical = \"2+1\"");
    let plans: Vec<_> = (0..5).map(FaultPlan::new).collect();
    let volume = rig.open_failing(&plans);
    let handles: Vec<_> = (0..FILES)
        .map(|number| {
            let name = format!("f{number}");
            let file = volume.lookup(ROOT, name.as_bytes()).expect("there").file;
            volume.open_file(file, libc::O_RDWR).expect("open").handle
        })
        .collect();
    // Of some windows two disks are gone: those are written anew, without what was there.
    for number in [1, 3] {
        rig.take_away(number);
        let disk = volume.disk_called(&format!("d{number}")).expect("a disk");
        volume.disks.mark_missing(disk, "for this test");
    }
    // Manifests are not taken, and nothing else fails.
    for plan in &plans {
        let rule = Rule::new(Operations::WRITES, When::Always, Fault::Io);
        plan.add(rule.only(|object| matches!(object, ObjectName::Manifest(_))));
    }
    let d3 = ["d3".to_owned()];
    volume.remove_disk("d1", true, &d3, None).expect("begun");
    let task = ended(&volume);
    assert_ne!(task.state, TaskState::Done, "{task:?}");
    plans.iter().for_each(|plan| plan.clear());
    let is_lost =
        |record: &crate::store::WindowRecord| record.blocks.iter().any(|block| block.lost);
    for file in volume.files_in_use() {
        let state = file.state.lock();
        let windows = &state.map.windows;
        let lost = windows.values().any(|window| match window {
            crate::volume::filemap::Window::Made(record) => is_lost(record),
            crate::volume::filemap::Window::Making(_) => false,
        });
        // One that needs no manifest was committed.
        assert!(!lost || state.head.dropped > 0, "file {}", file.id);
    }
    for handle in handles {
        volume.release(handle);
    }
}
