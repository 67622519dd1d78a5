//! The operator's commands on a mounted volume: disks that come back, are replaced, join and leave; scrub, rebalance and
//! fsck; ended in the middle and gone on with.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};

use crate::harness::content::{self, Outside};
use crate::harness::disks::{Backing, Kind};
use crate::harness::process::{Outcome, shell};
use crate::harness::random::Random;
use crate::harness::volume::{Shape, Volume};
use crate::harness::wait_until;

const LENGTH: u64 = 12 << 20;
pub const PATIENCE: Duration = Duration::from_secs(60);

fn shape(disks: usize, critical: &'static str) -> Shape {
    Shape {
        disks,
        critical,
        ..Shape::default()
    }
}

/// Three files: of several windows, of one, and one that is in the metadata.
/// Nothing is left to be compressed: that would be written anew a second later, wherever there is room.
pub fn fill(volume: &Volume) {
    content::write_file(&volume.path("large"), 1, 3 * LENGTH).expect("a large file");
    content::write_file(&volume.path("file"), 2, LENGTH).expect("a file");
    content::write_file(&volume.path("small"), 3, 2000).expect("a small file");
    volume.until_compressed();
}

#[track_caller]
pub fn check(volume: &Volume, when: &str) {
    for (name, seed, length) in [
        ("large", 1, 3 * LENGTH),
        ("file", 2, LENGTH),
        ("small", 3, 2000),
    ] {
        if let Err(why) = content::check_file(&volume.path(name), seed, length) {
            panic!("{when}: {why}");
        }
    }
}

pub fn forget_cached() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches");
}

/// Runs a command on the mount point, or on the config where nothing is mounted.
fn on(volume: &Volume, before: &[&str], after: &[&str]) -> Outcome {
    let target = if volume.is_mounted() {
        volume.mountpoint.clone()
    } else {
        volume.config.clone()
    };
    let mut arguments: Vec<PathBuf> = before.iter().map(PathBuf::from).collect();
    arguments.push(target);
    arguments.extend(after.iter().map(PathBuf::from));
    volume.parsfs(arguments)
}

#[track_caller]
pub fn done(volume: &Volume, before: &[&str], after: &[&str]) -> Outcome {
    on(volume, before, after)
        .expect_success(&format!("parsfs {before:?} {after:?}\n{}", volume.said()))
}

/// The states of all disks by name.
pub fn state_of(volume: &Volume, disk: &str) -> Option<String> {
    let status = volume.status();
    let disks = status["disks"].as_array().expect("disks").clone();
    let found = disks.iter().find(|found| found["name"] == disk)?;
    Some(found["state"].as_str().expect("a state").to_owned())
}

/// A disk that is online and was slow once, as any is on a busy machine, is suspect for long.
#[track_caller]
pub fn becomes(volume: &Volume, disk: &str, state: &str) {
    wait_until(&format!("disk {disk} to be {state}"), PATIENCE, || {
        let found = state_of(volume, disk);
        found.as_deref() == Some(state) || state == "online" && found.as_deref() == Some("suspect")
    });
}

pub fn task(volume: &Volume) -> serde_json::Value {
    let outcome = done(volume, &["task", "--json"], &[]);
    serde_json::from_str(&outcome.stdout).expect("JSON from parsfs task --json")
}

pub fn new_directory(volume: &Volume, name: &str) -> PathBuf {
    volume.scratch.directory(name)
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// Any two disks may be gone, of those that there are: what an operator has done left all redundancy in place.
pub fn survives_any_two(volume: &mut Volume, paths: &[PathBuf]) {
    volume.umount();
    for (first, second) in [
        (0, 1),
        (paths.len() - 2, paths.len() - 1),
        (1, paths.len() - 1),
    ] {
        let away: Vec<(PathBuf, PathBuf)> = [first, second]
            .map(|at| (paths[at].clone(), paths[at].with_extension("off")))
            .into();
        for (path, off) in &away {
            fs::rename(path, off).expect("taking a disk away");
        }
        volume.mount_with(&["--read-only"]);
        check(
            volume,
            &format!("without disks {first} and {second} of {paths:?}"),
        );
        volume.umount();
        for (path, off) in &away {
            fs::rename(off, path).expect("bringing a disk back");
        }
    }
    volume.mount();
}

pub fn paths(volume: &Volume) -> Vec<PathBuf> {
    volume.disks.iter().map(|disk| disk.path.clone()).collect()
}

/// A directory is deleted under the daemon: it is noticed without anybody writing, and a new disk takes its place.
#[test]
fn a_deleted_disk_is_noticed_and_replaced() {
    let mut volume = Volume::mounted();
    fill(&volume);
    volume.disks[2].delete();
    becomes(&volume, "disk3", "missing");
    check(&volume, "without a disk");
    let new = new_directory(&volume, "new");
    done(&volume, &["disk", "replace"], &["disk3", text(&new)]);
    assert_eq!(
        state_of(&volume, "disk3"),
        None,
        "the old disk is still there"
    );
    assert_eq!(state_of(&volume, "new").as_deref(), Some("online"));
    check(&volume, "after the replacement");
    assert!(
        fs::read_to_string(&volume.config)
            .expect("the config")
            .contains(text(&new))
    );
    let mut all = paths(&volume);
    all[2] = new;
    survives_any_two(&mut volume, &all);
    volume.umount();
    done(&volume, &["fsck"], &[]);
}

/// A disk that works is replaced: what it held is copied, it is emptied, and the volume stays whole throughout.
#[test]
fn a_disk_that_works_is_replaced_while_the_mount_serves() {
    let mut volume = Volume::mounted();
    fill(&volume);
    let new = new_directory(&volume, "new");
    let writer = {
        let path = volume.path("meanwhile");
        std::thread::spawn(move || content::write_file(&path, 9, LENGTH))
    };
    done(
        &volume,
        &["disk", "replace", "--json"],
        &["disk1", text(&new)],
    );
    writer.join().expect("a writer").expect("writing meanwhile");
    content::check_file(&volume.path("meanwhile"), 9, LENGTH).expect("what was written meanwhile");
    assert!(!volume.disks[0].path.join("label").exists());
    for kind in [Kind::Segment, Kind::Journal, Kind::Database] {
        let left = volume.disks[0].files(kind);
        assert!(left.is_empty(), "the old disk is not emptied: {left:?}");
    }
    let mut all = paths(&volume);
    all[0] = new;
    survives_any_two(&mut volume, &all);
    // A crash came before the old disk was taken out of the config: fsck tells of it, and the next mount does it.
    volume.umount();
    let old = text(&volume.disks[0].path).to_owned();
    let config = fs::read_to_string(&volume.config).expect("the config");
    fs::write(
        &volume.config,
        format!("[[disk]]\npath = {old:?}\n\n{config}"),
    )
    .expect("the config");
    let found = on(&volume, &["fsck"], &[]);
    assert_eq!(found.status.code(), Some(3), "{}", found.stdout);
    assert!(
        found.stdout.contains("no disk of the volume"),
        "{}",
        found.stdout
    );
    volume.mount();
    let config = fs::read_to_string(&volume.config).expect("the config");
    assert!(!config.contains(&format!("{old:?}")), "{config}");
    volume.umount();
    done(&volume, &["fsck"], &[]);
}

/// A seventh disk joins and gets its part; then another one leaves.
#[test]
fn disks_join_and_leave() {
    let mut volume = Volume::mounted();
    fill(&volume);
    let seventh = new_directory(&volume, "seventh");
    let joined = done(&volume, &["disk", "add", "--json"], &[text(&seventh)]);
    // All lie on one device here.
    assert!(joined.stderr.contains("warning: "), "{joined:?}");
    let joined: serde_json::Value = serde_json::from_str(&joined.stdout).expect("JSON");
    assert_eq!(joined["name"], "seventh");
    assert_eq!(joined["path"], text(&seventh));
    assert_eq!(joined["state"], "online");
    assert_eq!(state_of(&volume, "seventh").as_deref(), Some("online"));
    let used = || -> u64 {
        let output = shell(
            &seventh,
            "du -s --block-size=1 segments 2>/dev/null || echo 0",
        )
        .stdout;
        output
            .split_whitespace()
            .next()
            .expect("a number")
            .parse()
            .expect("a number")
    };
    assert_eq!(used(), 0);
    done(&volume, &["rebalance"], &[]);
    assert!(
        used() > 3 << 20,
        "{} bytes are on the new disk\n{:#}",
        used(),
        task(&volume)
    );
    check(&volume, "after the rebalance");
    volume.remount();
    check(&volume, "mounted anew");
    done(&volume, &["disk", "remove"], &["disk4"]);
    assert_eq!(state_of(&volume, "disk4"), None);
    check(&volume, "after the removal");
    let mut all = paths(&volume);
    all.remove(3);
    all.push(seventh);
    survives_any_two(&mut volume, &all);
    // Now every disk is needed for the policy's width.
    let refused = on(&volume, &["disk", "remove"], &["disk1"]);
    assert!(
        !refused.success() && refused.stderr.contains("4+2"),
        "{}",
        refused.stderr
    );
    volume.umount();
    done(&volume, &["fsck"], &[]);
}

/// With fewer disks than the windows are wide, they are written anew.
#[test]
fn a_disk_leaves_although_every_window_uses_it() {
    let mut volume = Volume::mounted_as(&shape(6, "3+2"));
    fill(&volume);
    volume.umount();
    // Windows over all six disks, as an earlier policy had it, and one disk fewer wanted.
    let config = fs::read_to_string(&volume.config).expect("the config");
    fs::write(&volume.config, config.replace("3+2", "4+2")).expect("the config");
    volume.mount();
    content::write_file(&volume.path("wide"), 7, LENGTH).expect("a wide file");
    volume.umount();
    fs::write(&volume.config, config).expect("the config");
    volume.mount();
    done(&volume, &["disk", "remove"], &["disk6"]);
    check(&volume, "after the removal");
    content::check_file(&volume.path("wide"), 7, LENGTH).expect("the wide file");
    let mut all = paths(&volume);
    all.pop();
    survives_any_two(&mut volume, &all);
}

/// Flips a bit in the first record of each file of a kind.
fn flip_first(volume: &Volume, disk: usize, kind: Kind) {
    let files = volume.disks[disk].files(kind);
    assert!(!files.is_empty());
    for file in files {
        let mut bytes = fs::read(&file).expect("a file of a disk");
        bytes[90] ^= 4;
        fs::write(&file, bytes).expect("a file of a disk");
    }
}

/// Scrub finds flipped bits everywhere and puts them right, so that two other disks may go.
#[test]
fn a_scrub_repairs_what_nobody_reads() {
    let mut volume = Volume::mounted();
    fill(&volume);
    volume.umount();
    let mut random = Random::new(11);
    for disk in [0, 3] {
        let flips = volume.disks[disk].flip_bits(Kind::Segment, 40, &mut random);
        assert!(flips.len() > 20);
        volume.disks[disk].flip_bits(Kind::Manifest, 5, &mut random);
        flip_first(&volume, disk, Kind::Names);
    }
    volume.mount();
    done(&volume, &["scrub"], &[]);
    let first = task(&volume);
    assert!(first["repaired"].as_u64() > Some(20), "{first:#}");
    assert_eq!(first["problem_count"], 0, "{first:#}");
    let log = fs::read_to_string(volume.scratch.path().join("daemon.log")).expect("the log");
    assert!(log.contains("its manifest of the namespace is damaged"));
    done(&volume, &["scrub"], &[]);
    let second = task(&volume);
    assert_eq!(second["bad"], 0, "{second:#}");
    let all = paths(&volume);
    survives_any_two(
        &mut volume,
        &[
            all[1].clone(),
            all[2].clone(),
            all[4].clone(),
            all[5].clone(),
        ],
    );
}

/// More is damaged than the code can stand: the scrub says so, and names the file.
#[test]
fn a_scrub_tells_of_what_is_beyond_repair() {
    let mut volume = Volume::mounted();
    content::write_file(&volume.path("large"), 1, 3 << 20).expect("a file");
    volume.umount();
    for disk in [0, 2, 3] {
        for file in volume.disks[disk].files(Kind::Segment) {
            let bytes = fs::read(&file).expect("a segment");
            fs::write(&file, vec![7; bytes.len()]).expect("a segment");
        }
    }
    let outcome = on(&volume, &["scrub"], &[]);
    assert_told(&outcome);
    assert!(outcome.stdout.contains("large"), "{}", outcome.stdout);
}

/// A command is done, and something cannot be had or mended.
#[track_caller]
fn assert_told(outcome: &Outcome) {
    let code = outcome.status.code();
    assert_eq!(code, Some(4), "{}{}", outcome.stdout, outcome.stderr);
}

/// A scrub with a disk away has not looked at what lies there, and does not say that all is well.
#[test]
fn a_scrub_names_the_disk_that_it_could_not_look_at() {
    let mut volume = Volume::mounted();
    fill(&volume);
    volume.umount();
    volume.disks[3].take_away();
    volume.mount();
    let outcome = on(&volume, &["scrub"], &[]);
    assert_told(&outcome);
    assert!(
        outcome.stdout.contains("disk4 (missing)"),
        "{}",
        outcome.stdout
    );
}

/// A disk that joins on the device of another one is told of as `init` does; it joins all the same.
#[test]
fn a_disk_that_joins_on_the_device_of_another_is_warned_of() {
    let volume = Volume::mounted_as(&shape(3, "2+1"));
    let new = new_directory(&volume, "new");
    let outcome = done(&volume, &["disk", "add"], &[text(&new)]);
    let said = "new lie on one device";
    assert!(outcome.stdout.contains(said), "{}", outcome.stdout);
    let newer = new_directory(&volume, "newer");
    let outcome = done(&volume, &["disk", "replace"], &["disk1", text(&newer)]);
    assert!(
        outcome.stdout.contains("newer lie on one device"),
        "{}",
        outcome.stdout
    );
    assert!(task(&volume)["warnings"][0].is_string());
}

/// A disk is put back as it was a week ago: it lacks what was written since, and gets it.
#[test]
fn a_disk_comes_back_with_old_contents() {
    let mut volume = Volume::mounted();
    content::write_file(&volume.path("old"), 8, LENGTH).expect("an old file");
    volume.umount();
    let old = volume.scratch.path().join("a week ago");
    let disk = volume.disks[1].path.clone();
    shell(
        volume.scratch.path(),
        &format!("cp -a '{}' '{}'", disk.display(), old.display()),
    );
    volume.mount();
    fill(&volume);
    fs::remove_file(volume.path("old")).expect("unlink");
    volume.umount();
    fs::remove_dir_all(&disk).expect("the disk as it is");
    fs::rename(&old, &disk).expect("the disk as it was");
    volume.mount();
    becomes(&volume, "disk2", "online");
    let rebuilt = task(&volume);
    assert_eq!(
        rebuilt["kind"],
        serde_json::json!({ "rebuild": {} }),
        "{rebuilt:#}"
    );
    assert!(rebuilt["repaired"].as_u64() > Some(10), "{rebuilt:#}");
    check(&volume, "after its return");
    // It has all that it should have: two others may go.
    let all = paths(&volume);
    survives_any_two(
        &mut volume,
        &[
            all[0].clone(),
            all[2].clone(),
            all[3].clone(),
            all[4].clone(),
        ],
    );
}

/// The paths of two disks are exchanged, one is cloned, and the whole volume is copied to other disks.
#[test]
fn disks_are_known_by_what_is_on_them() {
    let mut volume = Volume::mounted();
    fill(&volume);
    volume.umount();
    let [a, b] = [0, 4].map(|disk| volume.disks[disk].path.clone());
    let aside = volume.scratch.path().join("aside");
    for (from, to) in [(&a, &aside), (&b, &a), (&aside, &b)] {
        fs::rename(from, to).expect("exchanging disks");
    }
    volume.mount();
    check(&volume, "two disks exchanged");
    content::write_file(&volume.path("after"), 5, LENGTH).expect("a file");
    volume.umount();

    // A clone beside its original is refused by name.
    let clone = volume.disks[2].path.clone();
    let kept = clone.with_extension("kept");
    fs::rename(&clone, &kept).expect("a disk put aside");
    shell(
        volume.scratch.path(),
        &format!(
            "cp -a '{}' '{}'",
            volume.disks[3].path.display(),
            clone.display()
        ),
    );
    let why = volume
        .try_mount(&[])
        .expect_err("a clone beside its original");
    assert!(
        why.contains("disk3") && why.contains("disk4") && why.contains("copy"),
        "{why}"
    );
    fs::remove_dir_all(&clone).expect("the clone");
    fs::rename(&kept, &clone).expect("the disk");

    // rsync to other disks: the same volume.
    let config = fs::read_to_string(&volume.config).expect("the config");
    let mut copied = config.clone();
    for disk in paths(&volume) {
        let copy = disk.with_extension("copy");
        shell(
            volume.scratch.path(),
            &format!("rsync -a '{}/' '{}/'", disk.display(), copy.display()),
        );
        copied = copied.replace(
            &format!("{}\"", disk.display()),
            &format!("{}\"", copy.display()),
        );
    }
    fs::write(&volume.config, copied).expect("the config");
    volume.mount();
    check(&volume, "copied to other disks");
    content::check_file(&volume.path("after"), 5, LENGTH).expect("the last file");
}

/// The daemon is killed in the middle of a scrub, a replacement and a rebalance; the next mount goes on with it.
#[test]
fn tasks_go_on_after_a_crash() {
    let mut volume = Volume::mounted();
    volume.limit(300);
    for number in 0..12 {
        content::write_file(&volume.path(&format!("f{number}")), number, 4 << 20).expect("a file");
    }
    let all_there = |volume: &Volume, when: &str| {
        for number in 0..12 {
            content::check_file(&volume.path(&format!("f{number}")), number, 4 << 20)
                .unwrap_or_else(|why| panic!("{when}: {why}"));
        }
    };
    let new = new_directory(&volume, "new");
    let seventh = new_directory(&volume, "seventh");
    for (begin, arguments) in [
        (vec!["scrub", "--rate", "3M", "--detach"], vec![]),
        (
            vec!["disk", "replace", "--rate", "400K", "--detach"],
            vec!["disk5", text(&new)],
        ),
        (vec!["rebalance", "--rate", "300K", "--detach"], vec![]),
    ] {
        if begin.contains(&"rebalance") {
            done(&volume, &["disk", "add"], &[text(&seventh)]);
        }
        done(&volume, &begin, &arguments);
        wait_until("the task to be some way on", PATIENCE, || {
            let now = task(&volume);
            now["files_done"].as_u64() > Some(2) || now["state"] != "running"
        });
        // What it has done is written down every two seconds.
        std::thread::sleep(Duration::from_secs(3));
        let before = task(&volume);
        assert_eq!(
            before["state"], "running",
            "it was over too soon: {before:#}"
        );
        volume.kill();
        volume.mount();
        let after = task(&volume);
        assert_eq!(after["what"], before["what"], "{after:#}");
        assert_eq!(after["state"], "running", "{after:#}");
        assert!(
            after["cursor"].as_u64() > Some(0),
            "it begins anew: {after:#}"
        );
        all_there(&volume, "in the middle");
        done(&volume, &["task", "--rate", "0"], &[]);
        done(&volume, &["task", "--wait"], &[]);
        assert_eq!(task(&volume)["state"], "done");
        all_there(&volume, "at the end");
    }
    assert_eq!(state_of(&volume, "disk5"), None);
    volume.umount();
    done(&volume, &["fsck"], &[]);
}

/// One task at a time, and one that is ended stops soon.
#[test]
fn one_task_at_a_time() {
    let volume = Volume::mounted();
    fill(&volume);
    assert!(task(&volume).is_null());
    let begun = done(
        &volume,
        &["scrub", "--rate", "100K", "--detach", "--json"],
        &[],
    );
    let begun: serde_json::Value = serde_json::from_str(&begun.stdout).expect("JSON");
    assert_eq!(begun["state"], "running");
    assert_eq!(begun["number"], task(&volume)["number"]);
    let second = on(&volume, &["rebalance"], &[]);
    assert!(
        !second.success() && second.stderr.contains("the scrub is under way"),
        "{}",
        second.stderr
    );
    let begin = Instant::now();
    done(&volume, &["task", "--cancel"], &[]);
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(task(&volume)["state"], "cancelled");
    done(&volume, &["scrub"], &[]);
    assert_eq!(task(&volume)["state"], "done");
}

/// Whoever ends a replacement has the volume as it was: what has moved goes back, and the new disk leaves. That can be ended
/// too, and the replacement gone on with.
#[test]
fn a_replacement_that_is_cancelled_is_taken_back() {
    let mut volume = Volume::mounted();
    fill(&volume);
    let new = new_directory(&volume, "new");
    let config = fs::read_to_string(&volume.config).expect("the config");
    let begin = |volume: &Volume| {
        done(
            volume,
            &["disk", "replace", "--rate", "1M", "--detach"],
            &["disk4", text(&new)],
        );
        wait_until("the replacement to move something", PATIENCE, || {
            task(volume)["moved"].as_u64() > Some(0)
        });
        assert_eq!(task(volume)["state"], "running", "{:#}", task(volume));
    };
    begin(&volume);
    let said = done(&volume, &["task", "--cancel"], &[]).stdout;
    assert!(said.contains("the return to disk disk4"), "{said}");
    // It keeps to the rate that the replacement had; ended as well, both disks stay.
    let said = done(&volume, &["task", "--cancel"], &[]).stdout;
    assert!(said.contains("disks disk4 and new both stay"), "{said}");
    for disk in ["disk4", "new"] {
        assert_eq!(state_of(&volume, disk).as_deref(), Some("online"));
    }
    check(&volume, "with both disks");
    // Gone on with, and taken back over a crash.
    begin(&volume);
    done(&volume, &["task", "--cancel"], &[]);
    volume.kill();
    volume.mount();
    done(&volume, &["task", "--rate", "0"], &[]);
    done(&volume, &["task", "--wait"], &[]);
    let last = task(&volume);
    assert_eq!(last["state"], "done", "{last:#}");
    assert!(last["kind"]["return"].is_object(), "{last:#}");
    assert_eq!(state_of(&volume, "new"), None);
    assert_eq!(state_of(&volume, "disk4").as_deref(), Some("online"));
    let after = fs::read_to_string(&volume.config).expect("the config");
    assert_eq!(after.trim(), config.trim());
    assert_eq!(
        fs::read_dir(&new)
            .expect("the new disk")
            .filter(|entry| {
                entry
                    .as_ref()
                    .is_ok_and(|entry| entry.file_name() == "label")
            })
            .count(),
        0,
        "the new disk is still one of the volume"
    );
    check(&volume, "taken back");
    let all = paths(&volume);
    survives_any_two(&mut volume, &all);
    volume.umount();
    done(&volume, &["fsck"], &[]);
}

/// A disk that answers nothing any more: reads go around it, and it is suspect and then faulty; an administrator brings it
/// back, and what it missed is written to it.
#[test]
fn a_disk_hangs() {
    let mut volume = Volume::mounted_as(&Shape {
        backing: Backing::Faulty,
        ..Shape::default()
    });
    fill(&volume);
    volume.remount();
    forget_cached();
    // Not the first disk: its database is the one that is read from.
    volume.disks[3]
        .faults()
        .set(|faults| faults.delay = Duration::from_secs(8));
    check(&volume, "one disk hangs");
    // Whoever had waited for it would have found it well.
    let state = state_of(&volume, "disk4").expect("a state");
    assert!(state == "suspect" || state == "faulty", "{state}");
    volume.disks[3].faults().heal();
    // What was asked of it before may still come to nothing, and count against it.
    wait_until("disk4 to be trusted", PATIENCE, || {
        done(&volume, &["disk", "online"], &["disk4"]);
        std::thread::sleep(Duration::from_secs(6));
        state_of(&volume, "disk4").as_deref() == Some("online")
    });
    volume.umount();
}

/// A disk that takes a write and never answers: who waits for it goes on without it after a minute, at once from then on, and
/// what was written is as safe as ever.
#[test]
fn a_disk_hangs_in_a_write() {
    let mut volume = Volume::mounted_as(&Shape {
        backing: Backing::Faulty,
        ..Shape::default()
    });
    fill(&volume);
    volume.disks[3]
        .faults()
        .set(|faults| faults.writes_hang = true);
    let begin = Instant::now();
    let mut file = Outside::begin(&volume.path("meanwhile"), 9, "notrunc").expect("dd");
    file.write(LENGTH).expect("written");
    file.end().expect("closed");
    let took = begin.elapsed();
    assert!(
        (Duration::from_secs(50)..Duration::from_secs(150)).contains(&took),
        "{took:?}"
    );
    becomes(&volume, "disk4", "faulty");
    let begin = Instant::now();
    content::write_file(&volume.path("later"), 10, LENGTH).expect("written");
    assert!(begin.elapsed() < Duration::from_secs(20));
    // Two more may go: the hanging disk is not needed for what was written since.
    for disk in [0, 5] {
        volume.disks[disk].faults().set(|faults| faults.dead = true);
    }
    forget_cached();
    for (name, seed) in [("meanwhile", 9), ("later", 10)] {
        content::check_file(&volume.path(name), seed, LENGTH).expect("what was written");
    }
    for disk in [0, 3, 5] {
        volume.disks[disk].faults().heal();
    }
    volume.umount();
    volume.mount();
    check(&volume, "mounted anew");
    for disk in ["disk1", "disk4", "disk6"] {
        done(&volume, &["disk", "online"], &[disk]);
        becomes(&volume, disk, "online");
    }
    content::check_file(&volume.path("meanwhile"), 9, LENGTH).expect("what was written");
}

/// It hangs with a file half written to it: what it was given of that and did not write down is not counted as written.
#[test]
fn a_disk_hangs_in_the_middle_of_a_file() {
    let volume = Volume::mounted_as(&Shape {
        backing: Backing::Faulty,
        ..Shape::default()
    });
    let mut file = Outside::begin(&volume.path("f"), 9, "fsync").expect("dd");
    let half = LENGTH / 2;
    file.write(half).expect("written");
    wait_until("disk4 to be written to", PATIENCE, || {
        !volume.disks[3].files(Kind::Segment).is_empty()
    });
    volume.disks[3]
        .faults()
        .set(|faults| faults.writes_hang = true);
    let begin = Instant::now();
    file.write(LENGTH - half).expect("written");
    file.end().expect("committed");
    let took = begin.elapsed();
    // One wait, not one more for the metadata.
    assert!(
        (Duration::from_secs(50)..Duration::from_secs(100)).contains(&took),
        "{took:?}"
    );
    becomes(&volume, "disk4", "faulty");
    for disk in [0, 5] {
        volume.disks[disk].faults().set(|faults| faults.dead = true);
    }
    forget_cached();
    content::check_file(&volume.path("f"), 9, LENGTH).expect("what was written");
    for disk in [0, 3, 5] {
        volume.disks[disk].faults().heal();
    }
}

/// A disk that fails to write is faulty, stays so over mounts, and is brought back by a command only.
#[test]
fn a_faulty_disk_stays_faulty_until_it_is_trusted_again() {
    let mut volume = Volume::mounted_as(&Shape {
        backing: Backing::Faulty,
        ..Shape::default()
    });
    fill(&volume);
    volume.disks[2]
        .faults()
        .set(|faults| faults.failing_writes = true);
    content::write_file(&volume.path("during"), 4, LENGTH).expect("a file");
    becomes(&volume, "disk3", "faulty");
    volume.umount();
    volume.disks[2].faults().heal();
    volume.mount();
    assert_eq!(state_of(&volume, "disk3").as_deref(), Some("faulty"));
    content::write_file(&volume.path("after"), 5, LENGTH).expect("a file");
    let back = done(&volume, &["disk", "online", "--json"], &["disk3"]);
    let back: serde_json::Value = serde_json::from_str(&back.stdout).expect("JSON");
    assert_eq!(back["name"], "disk3");
    let state = back["state"].as_str().expect("a state");
    assert!(matches!(state, "rebuilding" | "online"), "{state}");
    becomes(&volume, "disk3", "online");
    check(&volume, "trusted again");
    done(&volume, &["scrub"], &[]);
    volume.remount();
    assert_eq!(state_of(&volume, "disk3").as_deref(), Some("online"));
    content::check_file(&volume.path("during"), 4, LENGTH).expect("the file from then");
}

/// One disk alone is full: what is moved goes elsewhere, and nothing is lost.
#[test]
fn one_disk_is_full() {
    let mut volume = Volume::mounted_as(&Shape {
        disks: 7,
        backing: Backing::Ext4(128),
        ..Shape::default()
    });
    fill(&volume);
    let ballast = fs::File::create(volume.disks[6].path.join("ballast")).expect("ballast");
    let mut at = 0;
    while ballast.write_all_at(&vec![1; 1 << 20], at << 20).is_ok() {
        at += 1;
    }
    content::write_file(&volume.path("after"), 4, LENGTH).expect("a file with one disk full");
    done(&volume, &["disk", "remove"], &["disk1"]);
    check(&volume, "after the removal");
    content::check_file(&volume.path("after"), 4, LENGTH).expect("the file with one disk full");
    volume.umount();
}

/// The host's clock has gone back by years, so that everything on the disks is from the future: histories are told apart
/// by their epochs and not by time.
#[test]
fn the_clock_has_gone_back() {
    let mut volume = Volume::mounted();
    fill(&volume);
    volume.umount();
    let future = std::time::SystemTime::now() + Duration::from_secs(10 * 365 * 86400);
    for disk in &volume.disks {
        for file in disk.files(Kind::Any) {
            let file = fs::File::options().write(true).open(&file).expect("a file");
            file.set_modified(future).expect("a time");
        }
    }
    volume.disks[1].take_away();
    volume.mount();
    content::write_file(&volume.path("later"), 6, LENGTH).expect("a file");
    volume.umount();
    volume.disks[1].bring_back();
    volume.mount();
    becomes(&volume, "disk2", "online");
    check(&volume, "after the clock went back");
    content::check_file(&volume.path("later"), 6, LENGTH).expect("the last file");
    done(&volume, &["scrub"], &[]);
}

/// fsck finds what is wrong, sets right what is safe, and says what is not.
#[test]
fn fsck_finds_and_sets_right() {
    let mut volume = Volume::mounted();
    fill(&volume);
    fs::create_dir(volume.path("directory")).expect("mkdir");
    let mounted = volume.parsfs(["fsck".as_ref(), volume.config.as_os_str()]);
    assert_eq!(
        mounted.status.code(),
        Some(1),
        "a mounted volume is not checked: {}",
        mounted.stdout
    );
    volume.umount();
    done(&volume, &["fsck"], &[]);
    // A database, a journal, a manifest copy and a label are damaged, and something lies about.
    fs::write(volume.disks[1].path.join("meta.redb"), b"nonsense").expect("a database");
    for file in volume.disks[2].files(Kind::Journal) {
        fs::write(file, b"nonsense").expect("a journal");
    }
    for file in volume.disks[3].files(Kind::Manifest) {
        let bytes = fs::read(&file).expect("a manifest");
        fs::write(&file, vec![1; bytes.len()]).expect("a manifest");
    }
    fs::write(volume.disks[4].path.join("label"), b"nonsense").expect("a label");
    flip_first(&volume, 5, Kind::Names);
    let stray = volume.disks[0]
        .path
        .join("segments/07/0000000000000007.blocks");
    fs::create_dir_all(stray.parent().expect("a directory")).expect("a directory");
    fs::write(&stray, vec![1; 5000]).expect("an object that nothing refers to");
    let found = on(&volume, &["fsck"], &[]);
    assert_eq!(
        found.status.code(),
        Some(3),
        "{}{}",
        found.stdout,
        found.stderr
    );
    for what in [
        "database",
        "journal",
        "manifest",
        "label",
        "manifest of the namespace",
        "nothing refers to",
    ] {
        assert!(found.stdout.contains(what), "{what}: {}", found.stdout);
    }
    let repaired = on(&volume, &["fsck", "--repair"], &[]);
    assert_eq!(
        repaired.status.code(),
        Some(3),
        "{}{}",
        repaired.stdout,
        repaired.stderr
    );
    done(&volume, &["fsck"], &[]);
    assert!(!stray.exists());
    // A disk that is gone cannot be made.
    volume.disks[5].take_away();
    let missing = on(&volume, &["fsck"], &[]);
    assert_eq!(
        missing.status.code(),
        Some(4),
        "{}{}",
        missing.stdout,
        missing.stderr
    );
    volume.disks[5].bring_back();
    volume.mount();
    check(&volume, "after the repair");
}

/// Nobody but root and the owner may talk to a mount.
#[test]
fn others_cannot_use_the_control_socket() {
    let volume = Volume::mounted();
    let outcome = volume.parsfs(["status".as_ref(), volume.mountpoint.as_os_str()]);
    assert!(outcome.success());
    // Its own, which has answered already: those of other mounts come and go.
    let socket = socket_of(&volume);
    for (path, mode) in [(Path::new("/run/parsfs"), 0o700), (&socket, 0o600)] {
        let found = fs::metadata(path).expect("a socket's place");
        assert_eq!((found.mode() & 0o7777, found.uid()), (mode, 0), "{path:?}");
    }
    let other = shell(
        Path::new("/"),
        &format!(
            "setpriv --reuid=65534 --regid=65534 --clear-groups '{}' task --cancel '{}' 2>&1 || echo refused",
            crate::harness::volume::binary().display(),
            volume.mountpoint.display()
        ),
    );
    assert!(other.stdout.contains("refused"), "{}", other.stdout);
}

/// How the name of a mount's control socket ends.
fn end_of_socket(volume: &Volume) -> String {
    let device = fs::metadata(&volume.mountpoint).expect("a mount").dev();
    format!("-{}.{}.sock", libc::major(device), libc::minor(device))
}

fn socket_of(volume: &Volume) -> PathBuf {
    let status = volume.status();
    let id = status["id"].as_str().expect("an id");
    Path::new("/run/parsfs").join(format!("{id}{}", end_of_socket(volume)))
}

/// A name of a socket that goes when the test ends, however it does.
struct Link(PathBuf);

impl Drop for Link {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Commands reach a volume's own daemon although another one's socket has the name that it would have if it had had a mount
/// on the same device before.
#[track_caller]
fn is_reached_although(other: &Path, volume: &mut Volume) {
    // It comes before the right one, whatever that is called, and is not in the way of the next mount on this device.
    let own = volume.scratch.path().file_name().expect("a name");
    let name = format!("0{}{}", own.display(), end_of_socket(volume));
    let link = Path::new("/run/parsfs").join(name);
    let link = Link(link);
    fs::hard_link(other, &link.0).expect("another name");
    let status = volume.status();
    let first = status["disks"][0]["path"].as_str().expect("a path");
    let own = text(&volume.disks[0].path);
    assert_eq!(first, own, "another volume's: {status:#}");
    volume.umount();
}

/// The kernel gives the number of a device to the next mount, while a daemon that lost its own may go on for long.
#[test]
fn a_command_does_not_reach_a_daemon_that_lost_its_mount() {
    let mut other = Volume::mounted();
    let mut volume = Volume::mounted();
    let socket = socket_of(&other);
    let held = fs::File::create(other.path("held")).expect("a file");
    unmount(&other.mountpoint, UnmountFlags::DETACH).expect("umount -l");
    assert!(other.serves() && !other.is_mounted());
    is_reached_although(&socket, &mut volume);
    assert!(other.serves(), "it ended with the other's mount");
    drop(held);
}

/// The next mount is at the very place of the one before.
#[test]
fn a_command_does_not_reach_the_daemon_of_what_was_mounted_there_before() {
    let mut other = Volume::mounted();
    let socket = socket_of(&other);
    let held = fs::File::create(other.path("held")).expect("a file");
    unmount(&other.mountpoint, UnmountFlags::DETACH).expect("umount -l");
    let mut volume = Volume::unmade(&Shape::default());
    let config = fs::read_to_string(&volume.config).expect("the config");
    let config = config.replace("name = \"test\"", "name = \"next\"");
    fs::write(&volume.config, config).expect("the config");
    volume.mountpoint = other.mountpoint.clone();
    done(&volume, &["init"], &[]);
    volume.mount();
    is_reached_although(&socket, &mut volume);
    assert!(other.serves(), "it ended with the other's mount");
    drop(held);
}

/// Bytes of its own that the daemon has in memory.
fn memory_of_the_daemon(volume: &Volume) -> u64 {
    let status = format!("/proc/{}/status", volume.daemon().as_raw_nonzero());
    let status = fs::read_to_string(status).expect("the daemon's status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.expect("RssAnon").parse::<u64>().expect("a number") << 10
}

#[test]
fn memory_goes_back_when_nothing_is_wanted() {
    let volume = Volume::mounted();
    let source = volume.scratch.path().join("source");
    content::write_file(&source, 1, 400 << 20).expect("a large file");
    // As fast as it goes, so that memory fills up.
    shell(volume.scratch.path(), "cp source mnt/large");
    let busy = memory_of_the_daemon(&volume);
    volume.until_compressed();
    // On a busy machine the writer may be the slower one, and then little was taken.
    let at_rest = (busy / 2).max(100 << 20);
    println!("{busy} bytes when it was written");
    wait_until("memory that goes back", PATIENCE, || {
        memory_of_the_daemon(&volume) < at_rest
    });
    println!("{} bytes at rest", memory_of_the_daemon(&volume));
    content::check_file(&volume.path("large"), 1, 400 << 20).expect("what was written");
}

/// A daemon that may open few files keeps fewer open, and no disk is blamed for it.
#[test]
fn few_files_may_be_open() {
    const FILES: u64 = 150;
    const EACH: u64 = 560_000;
    let mut volume = Volume::new(&Shape::default());
    volume.open_files = Some(256);
    volume.mount();
    let name = |number: u64| format!("file{number}");
    for number in 0..FILES {
        content::write_file(&volume.path(&name(number)), number, EACH)
            .unwrap_or_else(|error| panic!("file {number}: {error}"));
    }
    let check = |volume: &Volume, when: &str| {
        for number in 0..FILES {
            content::check_file(&volume.path(&name(number)), number, EACH)
                .unwrap_or_else(|why| panic!("{when}: file {number}: {why}"));
        }
        let status = volume.status();
        for disk in status["disks"].as_array().expect("disks") {
            // A slow disk is no matter here.
            let is_used = disk["state"] == "online" || disk["state"] == "suspect";
            assert!(is_used, "{when}: {disk}");
        }
    };
    check(&volume, "as written");
    volume.remount();
    check(&volume, "mounted again");
    // Not only once: what was closed is opened again.
    forget_cached();
    check(&volume, "read again");
    let open =
        fs::read_dir(format!("/proc/{}/fd", volume.daemon().as_raw_nonzero())).expect("its files");
    assert!(open.count() < 200);
}
