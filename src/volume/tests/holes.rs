//! Where data and holes are told to be, and zeros that take no room.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::*;
use crate::disk::{Fault, Operations, Rule, When};
use crate::store::Source;

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
