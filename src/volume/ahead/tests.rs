//! What is planned for a reader, and that answers made ahead are never others than the file has.

use std::time::{Duration, Instant};

use super::*;
use crate::disk::{Fault, FaultPlan, Operations, Rule, When};
use crate::volume::handles::Handle;
use crate::volume::tests::{Rig, close, noise, read_file, write_file};
use crate::volume::write::Allocate;
use crate::volume::{ROOT, Volume};

/// What is compressed later moves, and an answer from before is none.
const POLICY: &str = "critical = \"2+1\"\ncompression = \"none\"";

const MIB: usize = 1 << 20;
const MIB_64: u64 = 1 << 20;
const SIZE: u64 = 100 * MIB_64;

fn shelf(places: u64) -> Arc<Shelf> {
    Shelf::new(places * LARGEST as u64)
}

/// Where answers are planned, in MiB.
fn planned(ahead: &Ahead) -> Vec<u64> {
    let state = ahead.state.lock();
    state
        .planned()
        .map(|answer| answer.offset / MIB_64)
        .collect()
}

/// Requests of 1 MiB, at these.
fn ask(ahead: &Ahead, requests: impl IntoIterator<Item = u64>) -> usize {
    let one = |at| {
        let threads = ahead.plan(at * MIB_64, MIB, SIZE, 8);
        assert!(ahead.take(at * MIB_64, MIB).is_none());
        threads
    };
    requests.into_iter().map(one).sum()
}

#[test]
fn a_reader_who_goes_on_is_planned_for_as_far_as_the_file_goes() {
    let shelf = shelf(64);
    let ahead = Ahead::new(&shelf);
    assert_eq!(ask(&ahead, [0, 1, 2]), 0);
    assert_eq!(ask(&ahead, [3]), 8);
    assert_eq!(planned(&ahead), (4..20).collect::<Vec<_>>());
    // Who asks for what is only planned makes it himself. Requests overtake each other.
    assert_eq!(ask(&ahead, [5, 4, 7, 6]), 0);
    let turn = ahead.next().expect("something to make");
    assert_eq!((turn.offset, turn.length), (8 * MIB_64, MIB));
    drop(turn);
    assert_eq!(planned(&ahead), (9..23).collect::<Vec<_>>());
    assert_eq!(ask(&ahead, 8..95), 0);
    assert_eq!(planned(&ahead), (95..100).collect::<Vec<_>>());
    for _ in 0..5 {
        assert!(ahead.next().is_some());
    }
    for _ in 0..8 {
        assert!(ahead.next().is_none());
    }
    assert_eq!(ahead.state.lock().makers, 0);
    drop(ahead);
    assert_eq!(shelf.free.load(Ordering::Relaxed), 64);
}

#[test]
fn who_goes_elsewhere_or_nowhere_is_planned_for_no_more() {
    let shelf = shelf(64);
    let ahead = Ahead::new(&shelf);
    let taken = |number: usize| assert_eq!(shelf.free.load(Ordering::Relaxed), 64 - number);
    ask(&ahead, 0..4);
    let turn = ahead.next().expect("something to make");
    taken(16);
    ask(&ahead, [50]);
    // What a thread is at has its place until it is made.
    assert!(planned(&ahead).is_empty());
    taken(1);
    drop(turn);
    taken(0);
    ask(&ahead, 51..54);
    taken(16);
    // Another length, as at the beginning of a file.
    assert_eq!(ahead.plan(54 * MIB_64, MIB / 2, SIZE, 8), 0);
    taken(0);
    ask(&ahead, 55..59);
    taken(16);
    ahead.rest();
    taken(16);
    ahead.rest();
    taken(0);
    // One whose requests are never what was planned.
    ask(&ahead, 59..62);
    taken(16);
    for number in 62..71 {
        let at = number * MIB_64 + 4096;
        ahead.plan(at, MIB, SIZE, 8);
        assert!(ahead.take(at, MIB).is_none());
    }
    taken(0);
}

#[test]
fn an_answer_that_nobody_wanted_any_more_is_not_taken_for_another() {
    let answer = |length: usize| Answer {
        bytes: vec![0; length],
        extents: Vec::new(),
        view: None,
    };
    let ahead = Ahead::new(&shelf(64));
    ask(&ahead, 0..4);
    let mut first = ahead.next().expect("something to make");
    assert_eq!((first.offset, first.length), (4 * MIB_64, MIB));
    // The reader goes on with requests of half the length, and the same place is planned again.
    for half in 4..8 {
        ahead.plan(half * MIB_64 / 2, MIB / 2, SIZE, 8);
    }
    let mut second = ahead.next().expect("something to make");
    assert_eq!((second.offset, second.length), (4 * MIB_64, MIB / 2));
    second.answer = Some(answer(MIB / 2));
    drop(second);
    first.answer = Some(answer(MIB));
    drop(first);
    let taken = ahead.take(4 * MIB_64, MIB / 2).expect("it was made");
    assert_eq!(taken.bytes.len(), MIB / 2);
}

#[test]
fn all_readers_share_the_room() {
    let shelf = shelf(20);
    let (one, other) = (Ahead::new(&shelf), Ahead::new(&shelf));
    ask(&one, 0..4);
    ask(&other, 0..4);
    assert_eq!((planned(&one).len(), planned(&other).len()), (16, 4));
    drop(one);
    // Room is looked for before what is asked for is taken.
    ask(&other, 4..5);
    assert_eq!(planned(&other).len(), 15);
}

#[test]
fn who_waits_goes_on_when_nothing_comes_of_it() {
    let ahead = Arc::new(Ahead::new(&shelf(64)));
    ask(&ahead, 0..4);
    let turn = ahead.next().expect("something to make");
    let other = Arc::clone(&ahead);
    let waits = std::thread::spawn(move || other.take(4 * MIB_64, MIB).is_none());
    std::thread::sleep(Duration::from_millis(20));
    assert!(!waits.is_finished(), "it does not wait");
    // As when the thread panics.
    drop(turn);
    let since = Instant::now();
    while !waits.is_finished() {
        assert!(since.elapsed() < Duration::from_secs(10), "it waits on");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(waits.join().expect("it goes on"));
}

/// A volume with room for many answers, over disks that fail when they are told to.
fn volume(rig: &mut Rig) -> (Arc<Volume>, Arc<FaultPlan>) {
    rig.config.memory.cache = 64 << 20;
    let plan = FaultPlan::new(1);
    let plans = vec![Arc::clone(&plan); rig.config.disks.len()];
    (rig.open_failing(&plans), plan)
}

/// A reader of the file for whom the answers from 4 MiB on are ready.
fn reader(volume: &Volume, name: &str, bytes: &[u8]) -> Handle {
    let file = volume.lookup(ROOT, name.as_bytes()).expect("there").file;
    let handle = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    for number in 0..4 {
        let at = number * MIB;
        let read = volume.read(handle, at as u64, MIB).expect("read");
        assert!(read == bytes[at..at + MIB]);
    }
    let open = volume.handle(handle).expect("open");
    let since = Instant::now();
    loop {
        let mut state = open.ahead.state.lock();
        // On a busy machine it may take so long that he would be taken for gone.
        state.asked = true;
        let ready = |answer: &&Prepared| matches!(answer.stage, Stage::Ready(_));
        if state.answers.iter().filter(ready).count() == ANSWERS {
            assert_eq!(state.answers[0].offset, 4 * MIB_64);
            return handle;
        }
        drop(state);
        assert!(since.elapsed() < Duration::from_secs(60), "nothing is made");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_was_made_ahead_is_what_is_read() {
    let mut rig = Rig::new(3, POLICY);
    let (volume, plan) = volume(&mut rig);
    let bytes = noise(1, 24 * MIB);
    write_file(&volume, "f", &bytes);
    let handle = reader(&volume, "f", &bytes);
    // Nothing but memory has them now.
    plan.die();
    for number in 4..20 {
        let at = number * MIB;
        let read = volume.read(handle, at as u64, MIB).expect("read");
        assert!(read == bytes[at..at + MIB], "at {at}");
    }
    assert!(volume.read(handle, 20 * MIB_64, MIB).is_err());
}

#[test]
fn what_was_made_ahead_is_not_read_where_the_file_has_other_bytes_since() {
    let mut rig = Rig::new(3, POLICY);
    let (volume, _) = volume(&mut rig);
    let new = noise(2, MIB);
    type Change = fn(&Volume, Handle, &[u8], &mut Vec<u8>);
    let changes: [(&str, Change); 5] = [
        ("written", |volume, handle, new, bytes| {
            let at = 6 * MIB + 12345;
            volume.write(handle, at as u64, new).expect("written");
            bytes[at..at + MIB].copy_from_slice(new);
        }),
        ("committed", |volume, handle, new, bytes| {
            let at = 6 * MIB + 12345;
            volume.write(handle, at as u64, new).expect("written");
            bytes[at..at + MIB].copy_from_slice(new);
            volume.fsync(handle).expect("committed");
        }),
        ("a hole", |volume, handle, _, bytes| {
            let punched = volume.allocate(handle, 7 * MIB_64, MIB_64, Allocate::Punch);
            punched.expect("punched");
            bytes[7 * MIB..8 * MIB].fill(0);
            volume.fsync(handle).expect("committed");
        }),
        ("shorter", |volume, handle, _, bytes| {
            let file = volume.handle(handle).expect("open");
            volume.resize(&file.file, 7 * MIB_64 + 5).expect("cut");
            bytes.truncate(7 * MIB + 5);
            volume.fsync(handle).expect("committed");
        }),
        ("shorter and longer again", |volume, handle, _, bytes| {
            let file = volume.handle(handle).expect("open");
            volume.resize(&file.file, 7 * MIB_64 + 5).expect("cut");
            volume.resize(&file.file, bytes.len() as u64).expect("set");
            bytes[7 * MIB + 5..].fill(0);
            volume.fsync(handle).expect("committed");
        }),
    ];
    for (name, change) in changes {
        let mut bytes = noise(1, 24 * MIB);
        write_file(&volume, name, &bytes);
        let reads = reader(&volume, name, &bytes);
        let file = volume.lookup(ROOT, name.as_bytes()).expect("there").file;
        let writes = volume.open_file(file, libc::O_RDWR).expect("open").handle;
        change(&volume, writes, &new, &mut bytes);
        for number in 4..20 {
            let at = number * MIB;
            let read = volume.read(reads, at as u64, MIB).expect("read");
            let there = bytes.get(at..bytes.len().min(at + MIB));
            assert!(read == there.unwrap_or_default(), "{name}, at {at}");
        }
        volume.release(reads);
        close(&volume, writes);
        assert!(read_file(&volume, name).expect("readable") == bytes);
    }
}

#[test]
fn nothing_is_made_ahead_of_a_file_that_is_being_changed() {
    let mut rig = Rig::new(3, POLICY);
    let (volume, _) = volume(&mut rig);
    let mut bytes = noise(1, 24 * MIB);
    let file = write_file(&volume, "f", &bytes);
    let reads = || volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    let (first, writes) = (
        reads(),
        volume.open_file(file, libc::O_RDWR).expect("open").handle,
    );
    // Bytes that are gathered for a block change in their place.
    let at = 6 * MIB;
    for seed in 2..5 {
        let reads = reads();
        for number in 0..4 {
            volume.read(reads, number * MIB_64, MIB).expect("read");
        }
        let since = Instant::now();
        while volume
            .handle(reads)
            .expect("open")
            .ahead
            .state
            .lock()
            .makers
            > 0
        {
            assert!(since.elapsed() < Duration::from_secs(60), "no end of it");
            std::thread::sleep(Duration::from_millis(1));
        }
        let new = noise(seed, 5000);
        volume.write(writes, at as u64, &new).expect("written");
        bytes[at..at + 5000].copy_from_slice(&new);
        let read = volume.read(reads, at as u64, MIB).expect("read");
        assert!(read == bytes[at..at + MIB], "{seed}");
        volume.release(reads);
    }
    volume.release(first);
    close(&volume, writes);
}

#[test]
fn what_is_read_ahead_of_somebody_who_has_gone_is_not_looked_for_after_it_was_given_back() {
    // Answers that are made ahead of the kernel, and blocks that are fetched ahead of others.
    // Those of large requests are begun with the fourth request, the others with the second.
    for (length, begins) in [(MIB, 3), (MIB / 8, 1)] {
        let mut rig = Rig::new(3, POLICY);
        let (volume, plan) = volume(&mut rig);
        let bytes = noise(1, 24 * MIB);
        let file = write_file(&volume, "f", &bytes);
        let handle = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
        for number in 0..=begins {
            if number == begins {
                let delay = Fault::Delay(Duration::from_millis(200));
                plan.add(Rule::new(Operations::READS, When::Always, delay));
            }
            let at = number * length;
            let read = volume.read(handle, at as u64, length).expect("read");
            assert!(read == bytes[at..at + length]);
        }
        assert!(
            volume.reads_aside.load(Ordering::Relaxed) > 0,
            "nothing is read ahead"
        );
        volume.release(handle);
        volume.remove(ROOT, b"f").expect("removed");
        volume.sweeper.wait();
        let since = Instant::now();
        while volume.reads_aside.load(Ordering::Relaxed) > 0 {
            assert!(since.elapsed() < Duration::from_secs(60), "no end of it");
            std::thread::sleep(Duration::from_millis(5));
        }
        volume.sweeper.wait();
        assert!(volume.files_in_use().is_empty());
        for disk in volume.disks.list() {
            assert_eq!(disk.wrong_bytes, 0, "{disk:?}");
            assert!(volume.disks.is_online(disk.id), "{disk:?}");
        }
        assert_eq!(rig.occupied(), 0);
    }
}
