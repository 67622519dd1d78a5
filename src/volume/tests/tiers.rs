//! Settling, with tiers made up: whatever the tier source says, the bytes stay, and exactly what it calls
//! critical survives the loss of disks.

use std::ops::Range;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::*;
use crate::disk::{Fault, Operations, Rule, When};
use crate::store::{Lane, Source, Tier};

/// Bytes of a page.
const PAGE: usize = 4096;

/// All of six disks.
const PAIRS: [[usize; 2]; 3] = [[0, 1], [2, 3], [4, 5]];

/// Tiers as the test wants them.
#[derive(Debug, Default)]
pub struct MadeUp {
    pub runs: Mutex<Vec<(Range<u64>, Tier)>>,
    pub guess: Mutex<Option<Lane>>,
}

impl TierSource for MadeUp {
    fn while_writing(&self, _: FileId, _: &Range<u64>, _: &[u8]) -> Lane {
        self.guess.lock().unwrap_or(Lane::Undecided)
    }

    fn at_commit(&self, finished: &Finished<'_>) -> Judged {
        let mut first = vec![0; 16.min(finished.bytes.size() as usize)];
        finished
            .bytes
            .read_at(0, &mut first)
            .expect("the frozen bytes can be read");
        Judged {
            tiers: Some(Tiers::Runs(self.runs.lock().clone())),
            kept: Kept::Nothing,
        }
    }
}

/// Every `stride` pages, `length` of them are expendable.
pub(super) fn runs(size: u64, stride: u64, length: u64) -> Vec<(Range<u64>, Tier)> {
    let pages = size / 4096;
    (0..pages)
        .step_by(stride as usize)
        .map(|page| {
            (
                page * 4096..((page + length) * 4096).min(size),
                Tier::Expendable,
            )
        })
        .collect()
}

fn tier_bytes(volume: &Volume, file: FileId) -> (u64, u64) {
    let found = volume.inspect(file).expect("inspected");
    (found.tiers[0].logical, found.tiers[1].logical)
}

/// With two disks gone every critical byte must be readable; says how many expendable pages were not.
pub(super) fn lost_pages(
    rig: &Rig,
    bytes: &[u8],
    runs: &[(Range<u64>, Tier)],
    gone: [usize; 2],
) -> usize {
    gone.iter().for_each(|&disk| rig.take_away(disk));
    let volume = Volume::open(&rig.config, Mode::ReadOnly).expect("opens");
    let file = volume.lookup(ROOT, b"f").expect("there").file;
    let handle = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    let mut lost = 0;
    for (page, expected) in bytes.chunks(4096).enumerate() {
        let at = (page * 4096) as u64;
        match volume.read(handle, at, 4096) {
            Ok(found) => assert!(found == expected, "page {page} is wrong"),
            Err(error) => {
                assert!(
                    runs.iter().any(|(run, _)| run.contains(&at)),
                    "critical page {page}: {error}"
                );
                lost += 1;
            }
        }
    }
    drop(volume);
    gone.iter().for_each(|&disk| rig.bring_back(disk));
    lost
}

#[test]
fn exactly_the_critical_pages_survive_whatever_was_guessed() {
    for guess in [Lane::Undecided, Lane::Critical, Lane::Expendable] {
        let rig = Rig::new(6, "critical = \"4+2\"");
        let tiers = Arc::new(MadeUp::default());
        *tiers.guess.lock() = Some(guess);
        let size = 12u64 << 20;
        *tiers.runs.lock() = runs(size, 50, 35);
        let volume = rig.open_with(tiers.clone());
        let bytes = noise(11, size as usize);
        let file = write_file(&volume, "f", &bytes);
        assert!(
            read_file(&volume, "f").expect("readable") == bytes,
            "{guess:?}"
        );
        let expendable: u64 = tiers
            .runs
            .lock()
            .iter()
            .map(|(run, _)| run.end - run.start)
            .sum();
        assert_eq!(
            tier_bytes(&volume, file),
            (size - expendable, expendable),
            "{guess:?}"
        );
        volume.close().expect("closed");
        drop(volume);
        assert!(read_file(&rig.open_with(tiers.clone()), "f").expect("readable") == bytes);
        // Whichever disks it went to.
        let lost = PAIRS.map(|gone| lost_pages(&rig, &bytes, &tiers.runs.lock(), gone));
        assert!(
            lost.iter().any(|&lost| lost > 0),
            "{guess:?}: nothing expendable was on any disk"
        );
    }
}

#[test]
fn tiers_that_change_move_between_commits() {
    let rig = Rig::new(6, "critical = \"4+2\"");
    let tiers = Arc::new(MadeUp::default());
    let size = 8u64 << 20;
    let mut bytes = noise(12, size as usize);
    let volume = rig.open_with(tiers.clone());
    let file = write_file(&volume, "f", &bytes);
    assert_eq!(tier_bytes(&volume, file), (size, 0));
    for (round, (stride, length)) in [(64, 64), (64, 32), (16, 3), (2048, 1), (64, 0)]
        .into_iter()
        .enumerate()
    {
        *tiers.runs.lock() = runs(size, stride, length);
        let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
        let page = noise(round as u64, 4096);
        volume.write(handle, 4096, &page).expect("written");
        bytes[4096..8192].copy_from_slice(&page);
        assert!(volume.read(handle, 0, size as usize).expect("readable") == bytes);
        close(&volume, handle);
        assert!(read_file(&volume, "f").expect("readable") == bytes);
        let expendable: u64 = tiers
            .runs
            .lock()
            .iter()
            .map(|(run, _)| run.end - run.start)
            .sum();
        let (critical, _) = tier_bytes(&volume, file);
        assert!(
            critical >= size - expendable,
            "round {round}: only {critical} bytes are critical"
        );
        volume.sweeper.wait();
        volume.meta.checkpoint().expect("checkpointed");
        let snapshot = Rig {
            place: copy_of(&rig),
            config: rig.config.clone(),
        };
        let moved = moved_config(&snapshot);
        let lost = PAIRS.map(|gone| lost_pages(&moved, &bytes, &tiers.runs.lock(), gone));
        let all: usize = lost.iter().sum();
        assert!(all as u64 * 4096 <= expendable, "round {round}");
        assert!(
            all > 0 || expendable < size / 8,
            "round {round}: nothing was stored once"
        );
    }
}

#[test]
fn a_sync_in_the_middle_of_writing_takes_no_protection_away() {
    const SIZE: u64 = 4 << 20;
    let rig = Rig::new(6, "critical = \"4+2\"");
    let tiers = Arc::new(MadeUp::default());
    *tiers.guess.lock() = Some(Lane::Critical);
    *tiers.runs.lock() = runs(SIZE, 2, 1);
    let volume = rig.open_with(tiers.clone());
    let (file, handle) = create(&volume, "f");
    write_all(&volume, handle, &noise(1, SIZE as usize));
    volume.fsync(handle).expect("synced");
    assert_eq!(tier_bytes(&volume, file), (SIZE, 0), "a sync");
    // Nothing is new by now: the close has the tiers to give all the same.
    volume.flush(handle).expect("committed");
    assert_eq!(tier_bytes(&volume, file), (SIZE / 2, SIZE / 2), "a close");
    // As if half of a new guest had been written over: what it needs is not known before it is whole.
    *tiers.runs.lock() = runs(SIZE, 2, 2);
    volume.write(handle, 0, &noise(2, PAGE)).expect("written");
    volume.fsync(handle).expect("synced");
    let (critical, _) = tier_bytes(&volume, file);
    assert!(critical >= SIZE / 2, "only {critical} bytes are protected");
    // Another writer is not done when this one is.
    let other = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    volume.write(handle, 0, &noise(3, PAGE)).expect("written");
    close(&volume, handle);
    assert!(
        tier_bytes(&volume, file).0 >= SIZE / 2,
        "one of two writers"
    );
    close(&volume, other);
    // The page lies in the metadata, under the critical code.
    let page = PAGE as u64;
    assert_eq!(
        tier_bytes(&volume, file),
        (page, SIZE - page),
        "the last writer"
    );
}

#[test]
fn what_is_critical_of_half_a_file_is_protected_by_a_sync() {
    const SIZE: u64 = 4 << 20;
    let rig = Rig::new(6, "critical = \"4+2\"");
    let tiers = Arc::new(MadeUp::default());
    *tiers.runs.lock() = vec![(0..SIZE, Tier::Expendable)];
    let volume = rig.open_with(tiers.clone());
    let file = write_file(&volume, "f", &noise(1, SIZE as usize));
    assert_eq!(tier_bytes(&volume, file), (0, SIZE));
    tiers.runs.lock().clear();
    let handle = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    volume.write(handle, 0, &noise(2, PAGE)).expect("written");
    volume.fsync(handle).expect("synced");
    assert_eq!(tier_bytes(&volume, file), (SIZE, 0));
    close(&volume, handle);
}

#[test]
fn the_last_close_drops_what_a_sync_left() {
    const SIZE: u64 = 2 << 20;
    let rig = Rig::new(6, "critical = \"4+2\"\nexpendable = \"drop\"");
    let tiers = Arc::new(MadeUp::default());
    *tiers.runs.lock() = runs(SIZE, 2, 1);
    let volume = rig.open_with(tiers);
    let bytes = noise(1, SIZE as usize);
    let (file, handle) = create(&volume, "f");
    write_all(&volume, handle, &bytes);
    let dropped = || {
        volume
            .use_file(file)
            .expect("in use")
            .state
            .lock()
            .head
            .dropped
    };
    volume.fsync(handle).expect("synced");
    assert_eq!(dropped(), 0, "a sync");
    let other = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    let again = volume.write(handle, PAGE as u64, &bytes[PAGE..2 * PAGE]);
    again.expect("written");
    close(&volume, handle);
    assert_eq!(dropped(), 0, "one of two writers");
    close(&volume, other);
    assert_eq!(dropped(), SIZE / 2, "the last writer");
}

/// Where what is expendable has parity too, less of it.
#[test]
fn what_becomes_critical_gets_the_parity_of_critical_bytes() {
    const SIZE: u64 = 4 << 20;
    let rig = Rig::new(4, "critical = \"1+2\"\nexpendable = \"1+1\"");
    let tiers = Arc::new(MadeUp::default());
    *tiers.runs.lock() = vec![(0..SIZE, Tier::Expendable)];
    let volume = rig.open_with(tiers.clone());
    let file = write_file(&volume, "f", &noise(1, SIZE as usize));
    // The least that any byte in a range has.
    let least = |range: Range<u64>| {
        let open = volume.use_file(file).expect("in use");
        let mut windows = Vec::new();
        let view = volume.frozen_view(&open);
        let walked = view.each(|extent| {
            let inside = extent.range.start < range.end && range.start < extent.range.end;
            if let (Source::Block { block, .. }, true) = (extent.source, inside) {
                windows.push(block.window);
            }
            Ok(())
        });
        walked.expect("walked");
        let state = open.state.lock();
        let record = |no| state.map.record(no).expect("read");
        let records = windows.into_iter().filter_map(record);
        records.map(|record| record.code.m).min()
    };
    let page = PAGE as u64;
    assert_eq!(least(0..SIZE), Some(1));
    // In the middle of writing, in blocks of which a part stays what it was,
    *tiers.runs.lock() = vec![(SIZE / 2 + page..SIZE, Tier::Expendable)];
    let handle = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    volume.write(handle, 0, &noise(2, PAGE)).expect("written");
    volume.fsync(handle).expect("synced");
    assert_eq!(least(page..SIZE / 2 + page), Some(2), "a sync");
    close(&volume, handle);
    assert_eq!(least(page..SIZE / 2 + page), Some(2), "a close");
    assert_eq!(least(SIZE / 2 + page..SIZE), Some(1), "expendable");
    // and when all of it is, by a change of mind alone.
    tiers.runs.lock().clear();
    let handle = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    volume.write(handle, 0, &noise(3, PAGE)).expect("written");
    close(&volume, handle);
    assert_eq!(least(page..SIZE), Some(2), "all of it");
}

/// A volume whose closes are committed aside, and which drops what is expendable.
fn background() -> Rig {
    let policy = "critical = \"4+2\"\nexpendable = \"drop\"\n[commit]\nmode = \"background\"";
    Rig::new(6, policy)
}

/// Waits until what closes left to be committed is.
fn await_aside(volume: &Volume) {
    for thread in std::mem::take(&mut *volume.aside.lock()) {
        thread.join().expect("committed");
    }
}

/// A close that is committed aside may be late: whoever writes by then is not done.
#[test]
fn a_close_that_is_committed_aside_finishes_no_other_writers_file() {
    const SIZE: u64 = 2 << 20;
    let rig = background();
    let tiers = Arc::new(MadeUp::default());
    *tiers.runs.lock() = vec![(0..SIZE, Tier::Expendable)];
    let volume = rig.open_with(tiers);
    let file = write_file(&volume, "f", &[]);
    // Nobody reads it, so that nothing keeps it from being dropped.
    let first = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    write_all(&volume, first, &noise(1, SIZE as usize));
    let open = volume.in_use(file).expect("in use");
    let turn = open.turn.lock();
    volume.flush(first).expect("begun");
    let releases = std::thread::spawn({
        let volume = Arc::clone(&volume);
        move || volume.release(first)
    });
    while open.writers.load(Ordering::Acquire) > 0 {
        std::thread::yield_now();
    }
    let second = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    volume.write(second, 0, &noise(2, PAGE)).expect("written");
    drop(turn);
    releases.join().expect("released");
    await_aside(&volume);
    assert_eq!(open.state.lock().head.dropped, 0, "in the middle of it");
    close(&volume, second);
    await_aside(&volume);
    assert!(open.state.lock().head.dropped > 0, "it is never dropped");
}

/// What it comes to owe while the last handle goes is given all the same: nobody else closes the file.
#[test]
fn what_a_close_that_is_committed_aside_comes_to_owe_is_given() {
    const SIZE: u64 = 2 << 20;
    let rig = background();
    let tiers = Arc::new(MadeUp::default());
    let plans = rig.plans();
    let options = VolumeOptions {
        tiers: Arc::clone(&tiers) as _,
        ..VolumeOptions::default()
    };
    let volume = rig.open_failing_with(&plans, options);
    let file = write_file(&volume, "f", &noise(2, SIZE as usize));
    await_aside(&volume);
    *tiers.runs.lock() = vec![(0..SIZE, Tier::Expendable)];
    let handle = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    write_all(&volume, handle, &noise(1, SIZE as usize));
    let open = volume.in_use(file).expect("in use");
    // The commit is at it when the handle goes.
    for plan in &plans {
        let delay = Fault::Delay(std::time::Duration::from_millis(300));
        plan.add(Rule::new(Operations::WRITES, When::Always, delay));
    }
    let dropped = || open.state.lock().head.dropped;
    volume.flush(handle).expect("begun");
    while !open.committing.load(Ordering::Acquire) && dropped() == 0 {
        std::thread::yield_now();
    }
    volume.release(handle);
    await_aside(&volume);
    assert!(dropped() > 0, "it is never dropped");
}

#[test]
fn a_close_by_which_nothing_was_written_leaves_another_writer_alone() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let old = noise(1, 1 << 20);
    let file = write_file(&volume, "f", &old);
    let writer = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    volume.write(writer, 0, &noise(2, PAGE)).expect("written");
    let toucher = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    close(&volume, toucher);
    let dirty = || {
        volume
            .use_file(file)
            .expect("in use")
            .state
            .lock()
            .is_dirty()
    };
    assert!(dirty(), "half of what is written was made true");
    // By a mapping it may have been anybody.
    let mapper = volume.open_file(file, libc::O_RDWR).expect("open").handle;
    volume.wrote_by_mapping(writer);
    volume.flush(mapper).expect("committed");
    assert!(!dirty(), "what was written by a mapping is not true");
    volume.release(mapper);
    volume.write(writer, 0, &noise(3, PAGE)).expect("written");
    close(&volume, writer);
    assert!(!dirty());
}

pub fn copy_of(rig: &Rig) -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("a directory");
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg(format!("{}/.", rig.place.path().display()))
        .arg(place.path())
        .status()
        .expect("cp runs");
    assert!(status.success());
    place
}

pub fn moved_config(rig: &Rig) -> Rig {
    let place = copy_of(rig);
    let mut config = rig.config.clone();
    for (number, disk) in config.disks.iter_mut().enumerate() {
        disk.path = place.path().join(format!("d{number}"));
    }
    Rig { place, config }
}
