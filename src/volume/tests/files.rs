//! What is written is read: before a commit, after it, after a remount, and by a model.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::commit::Purpose;
use super::super::open_file::Opening;
use super::*;
use crate::disk::{Fault, FaultPlan, ObjectName, Operation, Operations, Rule, When};
use crate::meta::{Records, Rename, Timestamp, WriteRecords};
use crate::store::Source;

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
fn zeros_that_were_written_are_data_and_take_no_room() {
    const SIZE: u64 = 8 << 20;
    const AT: u64 = 1 << 20;
    let rig = Rig::new(3, "critical = \"2+1\"");
    let mut volume = rig.open();
    let (file, handle) = create(&volume, "diff");
    volume
        .resize(&volume.use_file(file).expect("in use"), SIZE)
        .expect("longer");
    volume.write(handle, AT, &[0; 4096]).expect("written");
    volume
        .write(handle, SIZE, &vec![0; 5 << 20])
        .expect("written");
    for when in ["before the commit", "after it", "after a mount"] {
        let reads = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
        let told: Vec<u64> = [(0, true), (AT, false), (AT + 4096, true), (SIZE, false)]
            .map(|(at, data)| volume.seek(reads, at, data).expect("told"))
            .to_vec();
        assert_eq!(told, [AT, AT + 4096, SIZE, SIZE + (5 << 20)], "{when}");
        assert!(
            read_file(&volume, "diff")
                .expect("readable")
                .iter()
                .all(|&byte| byte == 0)
        );
        assert_eq!(
            volume.attributes(file).expect("there").allocated,
            0,
            "{when}"
        );
        volume.release(reads);
        match when {
            "before the commit" => close(&volume, handle),
            _ => {
                volume.close().expect("closed");
                drop(volume);
                volume = rig.open();
            }
        }
    }
    // What is copied by the filesystem is as sparse.
    let source = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    let (copy, target) = create(&volume, "copy");
    let length = SIZE + (5 << 20);
    let copied = volume
        .copy_range(source, 0, target, 0, length)
        .expect("copied");
    assert_eq!(copied, length);
    assert_eq!(volume.seek(target, 0, true).expect("told"), AT);
    assert_eq!(volume.seek(target, AT, false).expect("told"), AT + 4096);
    assert_eq!(volume.attributes(copy).expect("there").size, length);
    // Over bytes that are there a hole is copied, too.
    volume
        .write(target, 0, &noise(1, 1 << 20))
        .expect("written");
    volume
        .copy_range(source, 0, target, 0, 1 << 20)
        .expect("copied");
    let found = volume.read(target, 0, 1 << 20).expect("readable");
    assert!(found.iter().all(|&byte| byte == 0));
    close(&volume, target);
}

#[test]
fn dropped_and_zeros_of_more_than_an_entry_can_hold_are_several_extents() {
    const SIZE: u64 = 13 << 30;
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let (file, handle) = create(&volume, "f");
    let open = volume.use_file(file).expect("in use");
    {
        let mut state = open.state.lock();
        state.map.top.insert(0..SIZE, Source::Zeros);
        state.size = SIZE;
    }
    volume.fsync(handle).expect("as a delta");
    volume
        .commit(&open, commit::Purpose::Compact)
        .expect("as a base");
    drop(open);
    close(&volume, handle);
    volume.close().expect("closed");
    drop(volume);
    let volume = rig.open();
    let reads = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    assert_eq!(volume.seek(reads, 1, true).expect("told"), 1);
    assert_eq!(volume.seek(reads, 1, false).expect("told"), SIZE);
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
        write_file(&volume, "another", b"bytes");
        volume.remove(ROOT, b"small").expect("removed");
        volume.status().expect("told");
        assert!(begun.elapsed() < SLOW, "{:?}", begun.elapsed());
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
fn where_holes_are_is_told_without_a_look_at_the_disks_and_never_what_was_before() {
    const PIECE: u64 = 64 << 10;
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let (file, handle) = create(&volume, "f");
    let mut is_data = vec![false; 640];
    for (number, data) in is_data.iter_mut().enumerate() {
        *data = number % 3 != 1;
        if *data {
            let bytes = noise(number as u64, PIECE as usize);
            volume
                .write(handle, number as u64 * PIECE, &bytes)
                .expect("written");
        }
    }
    close(&volume, handle);
    // A program that goes from one to the next; how often it had to wait for an answer.
    let walk = |handle, is_data: &[bool]| {
        let (mut at, mut data, mut waits) = (0u64, true, 0);
        while at < is_data.len() as u64 * PIECE {
            let told = volume.try_seek(handle, at, data).unwrap_or_else(|| {
                waits += 1;
                volume.seek(handle, at, data)
            });
            let mut rest = (at / PIECE..is_data.len() as u64)
                .filter(|&number| is_data[number as usize] == data);
            let right = rest.next().map(|number| at.max(number * PIECE));
            let right = right.unwrap_or(is_data.len() as u64 * PIECE);
            assert_eq!(told.expect("told"), right, "{data} from {at}");
            (at, data) = (right, !data);
        }
        waits
    };
    let reads = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    let waits = walk(reads, &is_data);
    assert!((1..8).contains(&waits), "{waits}");
    let writes = volume.open_file(file, libc::O_RDWR).expect("open").handle;
    for (number, commit) in [(3, false), (300, true), (303, false), (630, true)] {
        volume.fsync(writes).expect("committed");
        walk(reads, &is_data);
        // What it saw last is where the change will be.
        volume.seek(reads, number * PIECE, false).expect("told");
        volume
            .allocate(writes, number * PIECE, PIECE, Allocate::Punch)
            .expect("punched");
        is_data[number as usize] = false;
        if commit {
            volume.fsync(writes).expect("committed");
        }
        let told = volume.try_seek(reads, number * PIECE, false);
        assert!(told.is_none_or(|told| told.expect("told") == number * PIECE));
        walk(reads, &is_data);
        let bytes = noise(number, PIECE as usize);
        volume
            .write(writes, (number + 1) * PIECE, &bytes)
            .expect("written");
        is_data[number as usize + 1] = true;
        walk(reads, &is_data);
    }
    let size = is_data.len() as u64 * PIECE;
    for answer in [
        volume.try_seek(reads, size, true),
        Some(volume.seek(reads, size, true)),
    ] {
        let error = answer.map(|answer| answer.map_err(|error| error.errno()));
        assert!(matches!(error, None | Some(Err(libc::ENXIO))), "{error:?}");
    }
}

#[test]
fn where_holes_are_is_told_as_it_was_written_while_a_commit_makes_it_true() {
    const HOLE: u64 = 4 << 20;
    let rig = Rig::new(3, "critical = \"2+1\"");
    let plans = rig.plans();
    let volume = rig.open_failing(&plans);
    let (file, handle) = create(&volume, "f");
    let bytes = noise(1, 1 << 20);
    volume.write(handle, HOLE, &bytes).expect("written");
    volume.fsync(handle).expect("committed");
    let reads = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    assert_eq!(volume.seek(reads, 0, true).expect("told"), HOLE);
    let slow = Fault::Delay(Duration::from_millis(500));
    plans[0].add(Rule::new(Operations::WRITES, When::Always, slow));
    volume.write(handle, 0, &bytes).expect("written");
    std::thread::scope(|scope| {
        let commit = scope.spawn(|| volume.fsync(handle).expect("committed"));
        let open = volume.use_file(file).expect("there");
        let mut asked = 0;
        while !commit.is_finished() {
            if open.committing.load(Ordering::Acquire) {
                let told = volume.try_seek(reads, 0, true);
                assert!(told.is_none_or(|told| told.expect("told") == 0));
                asked += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(asked > 0, "the commit was over at once");
    });
    assert_eq!(volume.seek(reads, 0, true).expect("told"), 0);
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
    let hang = Duration::from_millis(1500);
    let space = Operations::of(&[Operation::Space]);
    plans[1].add(Rule::new(space, When::Always, Fault::Delay(hang)));
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(volume.ask_for_room(1), "there is room"));
        std::thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        let written = volume.try_write(handle, 3, b"two");
        written.expect("at once").expect("written");
        volume.pipeline.room.forget();
        assert!(begun.elapsed() < hang / 3, "{:?}", begun.elapsed());
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

#[test]
fn a_run_of_zeros_is_one_however_the_writes_cut_it() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let mut bytes = Vec::new();
    let mut zeros = 0;
    for (number, lengths) in (0..).zip(noise(77, 2000).chunks(4)) {
        let mut data = noise(number, usize::from(lengths[0]) * 37 + 1);
        data.iter_mut().for_each(|byte| *byte |= 1);
        bytes.extend(data);
        let run = usize::from(lengths[2]) * 41;
        bytes.resize(bytes.len() + run, 0);
        zeros += if run >= 4096 { run as u64 } else { 0 };
    }
    // The end of the last run is data if none follows.
    bytes.push(1);
    for cuts in [
        &[1 << 20][..],
        &[131_000],
        &[4095],
        &[100, 9000, 2000, 1 << 20, 1, 4096],
    ] {
        let (file, handle) = create(&volume, &format!("{cuts:?}"));
        let (mut at, mut cuts) = (0, cuts.iter().cycle());
        while at < bytes.len() {
            let end = (at + cuts.next().expect("a length")).min(bytes.len());
            volume
                .write(handle, at as u64, &bytes[at..end])
                .expect("written");
            at = end;
        }
        close(&volume, handle);
        assert_eq!(volume.inspect(file).expect("inspected").hole_bytes, zeros);
    }
}
