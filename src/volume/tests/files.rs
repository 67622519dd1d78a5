//! What is written is read: before a commit, after it, after a remount, and by a model.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::commit::Purpose;
use super::super::open_file::Opening;
use super::*;
use crate::disk::{Fault, FaultPlan, ObjectName, Operation, Operations, Rule, When};
use crate::meta::{Records, Rename, Timestamp, WriteRecords};

#[test]
fn a_large_file_survives_a_remount() {
    let rig = Rig::new(6, "critical = \"4+2\"");
    let bytes = noise(1, 45 << 20);
    let volume = rig.open();
    write_file(&volume, "big", &bytes);
    assert!(read_file(&volume, "big").expect("readable") == bytes);
    volume.close().expect("closed");
    let volume = rig.open();
    assert!(read_file(&volume, "big").expect("readable") == bytes);
    let file = volume.lookup(ROOT, b"big").expect("there").file;
    let found = volume.inspect(file).expect("inspected");
    assert_eq!(found.state, "protected");
    assert!(found.windows >= 2 && found.parity_bytes > 0, "{found:?}");
}

#[test]
fn what_was_not_committed_is_gone_and_nothing_else() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let old = noise(2, 3 << 20);
    let file = write_file(&volume, "f", &old);
    let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
    volume
        .write(handle, 1 << 20, &noise(3, 1 << 20))
        .expect("written");
    volume.fsync(handle).expect("synced");
    let synced = read_file(&volume, "f").expect("readable");
    volume
        .write(handle, 0, &noise(4, 2 << 20))
        .expect("written");
    // The process dies: nothing is closed.
    drop(volume);
    let volume = rig.open();
    assert!(read_file(&volume, "f").expect("readable") == synced);
}

#[test]
fn small_files_take_no_segment() {
    let rig = Rig::new(6, "critical = \"4+2\"");
    let volume = rig.open();
    for number in 0..50u64 {
        write_file(
            &volume,
            &format!("s{number}"),
            &noise(number, 1000 + number as usize * 1000),
        );
    }
    volume.close().expect("closed");
    assert_eq!(rig.occupied(), 0);
    let volume = rig.open();
    for number in 0..50u64 {
        let expected = noise(number, 1000 + number as usize * 1000);
        assert!(read_file(&volume, &format!("s{number}")).expect("readable") == expected);
    }
}

#[test]
fn many_small_syncs_in_a_large_file_stay_right_and_small() {
    let rig = Rig::new(6, "critical = \"4+2\"");
    let volume = rig.open();
    let mut bytes = noise(5, 8 << 20);
    let file = write_file(&volume, "db", &bytes);
    let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
    for round in 0..300usize {
        let at = (round * 7919) % 2000 * 4096;
        let page = noise(round as u64 + 100, 4096);
        volume.write(handle, at as u64, &page).expect("written");
        bytes[at..at + 4096].copy_from_slice(&page);
        volume.fsync(handle).expect("synced");
    }
    assert!(read_file(&volume, "db").expect("readable") == bytes);
    drop(volume);
    let volume = rig.open();
    assert!(read_file(&volume, "db").expect("readable") == bytes);
}

#[test]
fn removing_everything_gives_everything_back() {
    let rig = Rig::new(4, "critical = \"2+2\"");
    let volume = rig.open();
    for number in 0..5 {
        write_file(&volume, &format!("f{number}"), &noise(number, 5 << 20));
    }
    // Written anew again and again, a file keeps only its last bytes.
    for round in 0..8 {
        let file = volume.lookup(ROOT, b"f0").expect("there").file;
        let handle = volume
            .open_file(file, libc::O_RDWR | libc::O_TRUNC)
            .expect("open")
            .handle;
        volume
            .write(handle, 0, &noise(round + 50, 5 << 20))
            .expect("written");
        close(&volume, handle);
    }
    volume.commit_all().expect("committed");
    volume.sweeper.wait();
    let most = 5 * 2 * (5 << 20) * 3 / 2;
    assert!(
        rig.occupied() < most,
        "{} bytes are occupied",
        rig.occupied()
    );
    for number in 0..5 {
        volume
            .remove(ROOT, format!("f{number}").as_bytes())
            .expect("removed");
    }
    volume.close().expect("closed");
    assert_eq!(rig.occupied(), 0);
}

/// What a file occupies is told of what it has, and not of all that it ever had.
#[test]
fn a_file_that_is_written_anew_counts_once() {
    const SIZE: usize = 1 << 20;
    for flags in [libc::O_RDWR, libc::O_RDWR | libc::O_TRUNC] {
        let rig = Rig::new(3, "critical = \"2+1\"");
        let volume = rig.open();
        let file = write_file(&volume, "f", &noise(1, SIZE));
        for round in 0..50 {
            let handle = volume.open_file(file, flags).expect("open").handle;
            volume
                .write(handle, 0, &noise(round + 2, SIZE))
                .expect("written");
            close(&volume, handle);
        }
        let allocated = volume.attributes(file).expect("attributes").allocated;
        let bounds = SIZE as u64 / 4..4 * SIZE as u64;
        assert!(bounds.contains(&allocated), "{allocated} with {flags:#x}");
        let unprotected = volume
            .in_use(file)
            .map(|open| open.state.lock().head.unprotected);
        assert!(unprotected.is_none_or(|bytes| bytes < 4 * SIZE as u64));
    }
}

#[test]
fn an_unlinked_file_lives_as_long_as_it_is_open() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let (_, handle) = create(&volume, "f");
    volume
        .write(handle, 0, &noise(1, 1 << 20))
        .expect("written");
    volume.fsync(handle).expect("synced");
    volume.remove(ROOT, b"f").expect("removed");
    volume
        .write(handle, 1 << 20, &noise(2, 1 << 20))
        .expect("written");
    let expected = [noise(1, 1 << 20), noise(2, 1 << 20)].concat();
    assert!(volume.read(handle, 0, 2 << 20).expect("readable") == expected);
    volume.sync_names().expect("synced");
    // A crash now leaves an orphan, which the next mount removes.
    drop(volume);
    let volume = rig.open();
    assert!(volume.lookup(ROOT, b"f").is_err());
    volume.commit_all().expect("tidy is done");
    volume.close().expect("closed");
    assert_eq!(rig.occupied(), 0);
}

#[test]
fn letting_go_of_one_handle_does_not_make_half_of_anothers_work_true() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let (file, first) = create(&volume, "f");
    let old = noise(1, 1 << 20);
    volume.write(first, 0, &old).expect("written");
    volume.flush(first).expect("committed");
    // The kernel sends the release of a closed file when it likes: here after the next open.
    let second = volume
        .open_file(file, libc::O_RDWR | libc::O_TRUNC)
        .expect("open")
        .handle;
    volume.release(first);
    volume.sync_names().expect("synced");
    drop(volume);
    let volume = rig.open();
    assert!(read_file(&volume, "f").expect("readable") == old);
    let _ = second;
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    write_file(&rig.open(), "f", &noise(1, 1 << 20));
    let volume = Volume::open(&rig.config, Mode::ReadOnly).expect("opens");
    assert!(read_file(&volume, "f").expect("readable") == noise(1, 1 << 20));
    let refused = volume
        .create_file(ROOT, b"g", 0o644, libc::O_RDWR, CALLER)
        .expect_err("refused");
    assert_eq!(refused.errno(), libc::EROFS);
}

#[derive(Clone, Debug)]
enum Step {
    Write { at: u64, length: usize, seed: u64 },
    Zeros { at: u64, length: usize },
    Resize(u64),
    Punch { at: u64, length: u64 },
    Sync,
    Reopen,
    Compact,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0u64..1_500_000;
    prop_oneof![
        6 => (at.clone(), 1usize..300_000, any::<u64>()).prop_map(|(at, length, seed)| Step::Write { at, length, seed }),
        3 => (at.clone(), 1usize..5000, any::<u64>()).prop_map(|(at, length, seed)| Step::Write { at, length, seed }),
        2 => (at.clone(), 1usize..200_000).prop_map(|(at, length)| Step::Zeros { at, length }),
        1 => at.clone().prop_map(Step::Resize),
        2 => (at, 1u64..400_000).prop_map(|(at, length)| Step::Punch { at, length }),
        3 => Just(Step::Sync),
        1 => Just(Step::Reopen),
        2 => Just(Step::Compact),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_file_equals_an_array_of_bytes(steps in prop::collection::vec(step(), 1..40)) {
        let rig = Rig::new(5, "critical = \"3+2\"\nblock_size = \"16K\"");
        let mut volume = rig.open();
        let (file, mut handle) = create(&volume, "f");
        volume.fsync(handle).expect("synced");
        // Nothing where nothing was written.
        let mut model: Vec<Option<u8>> = Vec::new();
        let mut synced = model.clone();
        let put = |model: &mut Vec<Option<u8>>, at: u64, bytes: &[u8]| {
            let end = at as usize + bytes.len();
            if model.len() < end { model.resize(end, None); }
            for (place, &byte) in model[at as usize..end].iter_mut().zip(bytes) {
                *place = Some(byte);
            }
        };
        for step in steps {
            match step {
                Step::Write { at, length, seed } => {
                    let bytes = noise(seed, length);
                    volume.write(handle, at, &bytes).expect("written");
                    put(&mut model, at, &bytes);
                }
                Step::Zeros { at, length } => {
                    volume.write(handle, at, &vec![0; length]).expect("written");
                    put(&mut model, at, &vec![0; length]);
                }
                Step::Resize(size) => {
                    let changes = Changes { size: Some(size), ..Changes::default() };
                    volume.set_attributes(file, Some(handle), &changes).expect("resized");
                    model.resize(size as usize, None);
                }
                Step::Punch { at, length } => {
                    volume.allocate(handle, at, length, Allocate::Punch).expect("punched");
                    let end = (at + length).min(model.len() as u64) as usize;
                    if (at as usize) < end { model[at as usize..end].fill(None); }
                }
                Step::Sync => {
                    volume.fsync(handle).expect("synced");
                    synced = model.clone();
                }
                Step::Reopen => {
                    close(&volume, handle);
                    synced = model.clone();
                    volume.close().expect("closed");
                    drop(volume);
                    volume = rig.open();
                    handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
                }
                Step::Compact => {
                    let open = volume.use_file(file).expect("in use");
                    volume.commit(&open, commit::Purpose::Compact).expect("compacted");
                }
                Step::Crash => {
                    drop(volume);
                    volume = rig.open();
                    model = synced.clone();
                    handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
                }
            }
            let found = volume.read(handle, 0, 4 << 20).expect("readable");
            prop_assert_eq!(found.len(), model.len());
            let bytes: Vec<u8> = model.iter().map(|byte| byte.unwrap_or(0)).collect();
            prop_assert!(found == bytes, "the bytes differ after {:?}", model.len());
            // Nothing was written to a hole that is told of, not even zeros.
            let mut at = 0;
            while let Ok(hole) = volume.seek(handle, at, false) {
                if hole as usize >= model.len() { break; }
                let end = volume.seek(handle, hole, true).unwrap_or(model.len() as u64);
                prop_assert!(model[hole as usize..end as usize].iter().all(Option::is_none));
                at = end;
            }
        }
    }
}

#[test]
fn a_time_set_by_hand_outlives_a_commit_that_runs() {
    use super::super::attributes::{Changes, SetTime};
    use crate::meta::{MetaError, Timestamp};
    use std::time::Duration;

    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let file = write_file(&volume, "f", b"old");
    let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
    volume.write(handle, 0, b"new").expect("written");
    let by_hand = Timestamp {
        seconds: 1_000_000_000,
        nanos: 7,
    };
    let changes = Changes {
        mtime: Some(SetTime::At(by_hand)),
        ..Changes::default()
    };
    // Both wait for their turn to change the metadata, first who sets the time. The commit has read what it owes by then.
    let queue = Duration::from_millis(50);
    std::thread::scope(|scope| {
        let held = volume.meta.update(|_| {
            scope.spawn(|| volume.set_attributes(file, None, &changes).expect("set"));
            std::thread::sleep(queue);
            scope.spawn(|| volume.fsync(handle).expect("synced"));
            std::thread::sleep(queue);
            Ok::<_, MetaError>(())
        });
        held.expect("nothing changed");
    });
    assert_eq!(volume.attributes(file).expect("there").mtime, by_hand);
    volume.release(handle);
    assert_eq!(volume.attributes(file).expect("there").mtime, by_hand);
}

#[test]
fn nothing_is_written_that_the_metadata_could_not_refer_to() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let file = write_file(&volume, "f", b"old");
    let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
    volume.meta.close().expect("closed");
    let error = volume
        .write(handle, 0, &noise(1, 1 << 20))
        .expect_err("no number for a set");
    assert_eq!(error.errno(), libc::EIO, "{error}");
    assert_eq!(rig.occupied(), 0);
}

/// A volume with a large file, whose manifest every disk takes so long to give.
fn with_a_slow_manifest(rig: &Rig, bytes: &[u8], slow: Duration) -> (Arc<Volume>, FileId) {
    let volume = rig.open();
    let file = write_file(&volume, "large", bytes);
    {
        let file = volume.use_file(file).expect("there");
        let commit = volume.commit(&file, Purpose::Compact);
        commit.expect("its manifest is on the disks");
    }
    volume.close().expect("closed");
    drop(volume);
    let plan = FaultPlan::new(1);
    let volume = rig.open_failing(&vec![Arc::clone(&plan); rig.config.disks.len()]);
    let rule = Rule::new(Operations::READS, When::Always, Fault::Delay(slow));
    plan.add(rule.only(|object| matches!(object, ObjectName::Manifest(_))));
    (volume, file)
}

#[test]
fn an_open_that_waits_for_a_disk_holds_nobody_up() {
    const SLOW: Duration = Duration::from_secs(4);
    let rig = Rig::new(3, "critical = \"2+1\"");
    let bytes = noise(1, 3 << 20);
    let (volume, file) = with_a_slow_manifest(&rig, &bytes, SLOW);
    let small = write_file(&volume, "small", b"bytes");
    // Who takes requests of the kernel is not held up himself.
    let begun = Instant::now();
    let opening = volume.begin_open(file, libc::O_RDWR).expect("begun");
    let Opening::Waiting(waiting) = opening else {
        panic!("it was opened although its manifest takes so long");
    };
    std::thread::scope(|scope| {
        let large = scope.spawn(|| volume.finish_open(waiting).expect("opened").handle);
        let other = scope.spawn(|| volume.open_file(file, libc::O_RDONLY));
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(volume.attributes(small).expect("told").size, 5);
        assert!(read_file(&volume, "small").expect("read") == b"bytes");
        let (_, another) = create(&volume, "another");
        write_all(&volume, another, b"bytes");
        volume.remove(ROOT, b"small").expect("removed");
        volume.status().expect("told");
        assert!(begun.elapsed() < SLOW, "{:?}", begun.elapsed());
        // That waits for disks that may be slow by themselves.
        close(&volume, another);
        let handle = large.join().expect("no panic");
        let other = other.join().expect("no panic").expect("opened").handle;
        assert!(volume.read(handle, 0, 3 << 20).expect("read") == bytes);
        close(&volume, handle);
        volume.release(other);
    });
    assert!(volume.files_in_use().is_empty());
}

#[test]
fn a_file_that_is_removed_while_it_is_opened_is_gone_for_good() {
    const SLOW: Duration = Duration::from_millis(700);
    let rig = Rig::new(3, "critical = \"2+1\"");
    let (volume, file) = with_a_slow_manifest(&rig, &noise(1, 3 << 20), SLOW);
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| volume.open_file(file, libc::O_RDONLY));
        std::thread::sleep(SLOW / 4);
        volume.remove(ROOT, b"large").expect("removed");
        let error = opening.join().expect("no panic").expect_err("gone");
        assert_eq!(error.errno(), libc::ENOENT);
    });
    volume.sweeper.wait();
    assert!(volume.files_in_use().is_empty());
    assert_eq!(rig.occupied(), 0);
    volume.close().expect("closed");
}

#[test]
fn a_name_that_was_renamed_while_it_was_listed_is_told_of_no_file() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    for name in ["a", "gone", "kept", "old", "renamed"] {
        write_file(&volume, name, name.as_bytes());
    }
    let listing = volume.open_directory(ROOT).expect("opened");
    // `.`, `..` and the first name.
    let first = volume.read_directory(listing, 0, 3).expect("listed");
    let rename = |from: &[u8], to: &[u8]| volume.rename(ROOT, from, ROOT, to, 0);
    rename(b"renamed", b"elsewhere").expect("renamed");
    rename(b"a", b"old").expect("replaced");
    volume.remove(ROOT, b"gone").expect("removed");

    let rest = volume.read_directory(listing, 3, 10).expect("listed");
    let told: Vec<(String, Option<u64>)> = first
        .iter()
        .chain(&rest)
        .map(|entry| {
            let listed = volume.listed(ROOT, entry).ok().flatten();
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            (name, listed.map(|attributes| attributes.file.0))
        })
        .collect();
    let kept = volume.lookup(ROOT, b"kept").expect("there").file.0;
    let expected = [
        (".", Some(ROOT.0)),
        ("..", Some(ROOT.0)),
        ("a", None),
        ("gone", None),
        ("kept", Some(kept)),
        ("old", None),
        ("renamed", None),
    ];
    let expected = expected.map(|(name, file)| (name.to_owned(), file));
    assert_eq!(told, expected);
    volume.close_directory(listing);
}

#[test]
fn a_copy_that_fails_on_its_way_says_how_far_it_came() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let (_, from) = create(&volume, "from");
    write_all(&volume, from, &noise(7, 3 << 20));
    let (_, to) = create(&volume, "to");
    // The second MiB would lie behind the end of the largest file.
    let end = super::super::write::SIZE_MAX - (1 << 20);
    let copied = volume.copy_range(from, 0, to, end, 3 << 20);
    assert_eq!(copied.expect("copied"), 1 << 20);
    let next = volume.copy_range(from, 1 << 20, to, end + (1 << 20), 2 << 20);
    assert_eq!(next.expect_err("too large").errno(), libc::EFBIG);
    volume.release(from);
    volume.remove(ROOT, b"to").expect("removed");
    volume.release(to);
}

/// Looks a name up, and does something when its file is known and nothing else is yet.
fn look_up_during(volume: &Volume, name: &str, change: impl FnOnce()) -> Result<Attributes> {
    std::thread::scope(|scope| {
        // Whoever wants to know whether the file is in use waits for this.
        let files = volume.files.lock();
        let lookup = scope.spawn(|| volume.lookup(ROOT, name.as_bytes()));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!lookup.is_finished());
        change();
        drop(files);
        lookup.join().expect("no panic")
    })
}

/// What was told of a file that was in use stays true when it is committed and let go of during a lookup.
#[test]
fn a_lookup_is_not_older_than_a_commit_that_ended_in_between() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let file = write_file(&volume, "f", b"one");
    let found = look_up_during(&volume, "f", || {
        let committed = volume.meta.update(|update| -> Result<()> {
            let mut inode = update.inode(file)?.expect("there");
            inode.size = 5;
            update.put_inode(file, &inode);
            Ok(())
        });
        committed.expect("committed");
    });
    assert_eq!(found.expect("there").size, 5);
}

/// A name that always leads to some file is always found, though the files change.
#[test]
fn a_lookup_finds_a_name_that_is_given_to_another_file() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    write_file(&volume, "f", b"");
    let other = write_file(&volume, "g", b"");
    let found = look_up_during(&volume, "f", || {
        let replaced = volume.meta.update(|update| {
            let (from, to) = ((ROOT, &b"g"[..]), (ROOT, &b"f"[..]));
            update.rename(from, to, Rename::Replace, Timestamp::now(), &|_| false)
        });
        replaced.expect("renamed");
    });
    assert_eq!(found.expect("there").file, other);
    assert!(volume.lookup(ROOT, b"g").is_err());
}

/// A disk that hangs when it is asked for its room holds up nobody for whom there is some.
#[test]
fn a_write_does_not_wait_for_who_asks_for_room() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let plans: Vec<_> = (0..3).map(FaultPlan::new).collect();
    let volume = rig.open_failing(&plans);
    let (_, handle) = create(&volume, "f");
    volume.write(handle, 0, b"one").expect("written");
    let hang = Duration::from_secs(4);
    let space = Operations::of(&[Operation::Space]);
    plans[1].add(Rule::new(space, When::Always, Fault::Delay(hang)));
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(volume.ask_for_room(1), "there is room"));
        std::thread::sleep(Duration::from_millis(200));
        // However long it is since the first write.
        volume.room.lock().until = Some(Instant::now() + 2 * hang);
        let begun = Instant::now();
        let written = volume.try_write(handle, 3, b"two");
        written.expect("at once").expect("written");
        volume.pipeline.room.forget();
        assert!(begun.elapsed() < hang / 2, "{:?}", begun.elapsed());
    });
    plans[1].clear();
    close(&volume, handle);
}

/// Who takes the last name of a large file away, or closes it last, is told before that it may take long.
#[test]
fn what_a_removal_has_to_read_is_known_before() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    write_file(&volume, "small", b"small");
    let file = write_file(&volume, "large", &noise(1, 40 << 20));
    let waits = |name: &str| volume.removal_may_wait(ROOT, name.as_bytes());
    assert!(waits("large"));
    assert!(!waits("small") && !waits("none"));
    volume.make_link(file, ROOT, b"link").expect("linked");
    assert!(!waits("large"), "another name is left");
    volume.remove(ROOT, b"link").expect("removed");
    let handle = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    // It is read when it is closed.
    assert!(!waits("large") && !volume.release_may_wait(handle));
    volume.remove(ROOT, b"large").expect("removed");
    assert!(volume.release_may_wait(handle));
    volume.release(handle);
    assert!(!volume.release_may_wait(handle));
}
