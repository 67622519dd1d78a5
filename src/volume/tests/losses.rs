//! Disks that are gone, that fail in the middle, and that come back.

use std::time::{Duration, Instant};

use super::*;
use crate::disk::{DirectoryDisk, Disk, Fault, ObjectName, Operations, Rule, When};
use crate::meta::{Key, Records, WriteRecords};
use crate::volume::head::FileHead;

pub(super) fn check(volume: &Volume, files: usize) {
    for number in 0..files {
        let expected = noise(number as u64, 3 << 20);
        let found = read_file(volume, &format!("f{number}")).expect("readable");
        assert!(found == expected, "file {number} differs");
    }
}

/// Flips a bit of every so many bytes of a file; says of how many.
pub(super) fn flip(place: &Path, first: usize, every: usize) -> usize {
    let mut bytes = std::fs::read(place).unwrap_or_else(|error| panic!("{place:?}: {error}"));
    let flipped = bytes.iter_mut().skip(first).step_by(every);
    let count = flipped.map(|byte| *byte ^= 4).count();
    std::fs::write(place, bytes).expect("written");
    count
}

/// Its parity is on a disk already, and blocks of the others are still on their way to one that is slow.
#[test]
fn a_file_that_is_being_written_is_read_although_a_disk_fails_while_another_is_behind() {
    const SIZE: usize = 17 << 20;
    let bytes = noise(1, SIZE);
    let mut tried = 0;
    for slow in 0..3 {
        let rig = Rig::new(3, "critical = \"2+1\"\ncompression = \"none\"");
        let plans = rig.plans();
        let delay = Fault::Delay(Duration::from_millis(600));
        let rule = Rule::new(Operations::WRITES, When::Always, delay);
        plans[slow].add(rule.only(|object| matches!(object, ObjectName::Blocks(_))));
        let volume = rig.open_failing(&plans);
        let (_, handle) = create(&volume, "f");
        write_all(&volume, handle, &bytes);
        let has_parity = |number: &usize| {
            let disk = DirectoryDisk::open("a", &rig.disk(*number)).expect("a disk");
            let objects = disk.list().expect("listed");
            let mut parity = objects
                .iter()
                .filter(|(object, _)| matches!(object, ObjectName::Parity(_)));
            parity.any(|(object, _)| disk.length(*object).is_ok_and(|length| length > 8 << 20))
        };
        let since = Instant::now();
        let parity = loop {
            if let Some(number) = (0..3).find(has_parity) {
                break number;
            }
            assert!(since.elapsed() < Duration::from_secs(60), "no parity");
            std::thread::sleep(Duration::from_millis(1));
        };
        if parity != slow {
            tried += 1;
            // Its writer hears of it a moment later, and of the slow disk's blocks in seconds.
            std::thread::sleep(Duration::from_millis(100));
            plans[3 - parity - slow].die();
            let read = volume.read(handle, 0, 16 << 20).expect("read");
            assert!(read == bytes[..16 << 20]);
        }
    }
    assert!(tried > 0);
}

#[test]
fn every_pair_of_disks_may_be_gone() {
    let rig = Rig::new(6, "critical = \"4+2\"");
    let volume = rig.open();
    for number in 0..3 {
        write_file(&volume, &format!("f{number}"), &noise(number, 3 << 20));
    }
    write_file(&volume, "small", b"small");
    volume.close().expect("closed");
    drop(volume);
    for first in 0..6 {
        for second in first + 1..6 {
            rig.take_away(first);
            rig.take_away(second);
            let volume = Volume::open(&rig.config, Mode::ReadOnly).expect("opens");
            check(&volume, 3);
            assert_eq!(read_file(&volume, "small").expect("readable"), b"small");
            drop(volume);
            rig.bring_back(first);
            rig.bring_back(second);
        }
    }
}

/// What is on the disks of a file that is being written is not in memory any more, and the parity that gives it back is on no
/// disk yet.
#[test]
fn a_file_that_is_being_written_is_read_although_a_disk_has_failed_since() {
    const SIZE: usize = 12 << 20;
    let bytes = noise(1, SIZE);
    for dies in 0..3 {
        let rig = Rig::new(3, "critical = \"2+1\"\ncompression = \"none\"");
        let plans = rig.plans();
        let volume = rig.open_failing(&plans);
        let (_, handle) = create(&volume, "f");
        write_all(&volume, handle, &bytes);
        wait_until_held(&volume, SIZE as u64 * 3 / 4);
        plans[dies].die();
        assert!(volume.read(handle, 0, SIZE).expect("read") == bytes);
        close(&volume, handle);
        assert!(read_file(&volume, "f").expect("readable") == bytes);
    }
}

#[test]
fn a_disk_that_was_away_is_brought_up_to_date() {
    let rig = Rig::new(4, "critical = \"2+2\"");
    let volume = rig.open();
    write_file(&volume, "f0", &noise(0, 3 << 20));
    volume.close().expect("closed");
    drop(volume);
    rig.take_away(1);
    let volume = rig.open();
    write_file(&volume, "f1", &noise(1, 3 << 20));
    volume.remove(ROOT, b"f0").expect("removed");
    write_file(&volume, "f0", &noise(0, 3 << 20));
    volume.close().expect("closed");
    drop(volume);
    rig.bring_back(1);
    // It is here again, and two others go: what it knows has to be the truth.
    rig.open().close().expect("closed");
    rig.take_away(0);
    rig.take_away(2);
    let volume = Volume::open(&rig.config, Mode::ReadOnly).expect("opens");
    check(&volume, 2);
}

#[test]
fn a_disk_that_dies_while_a_file_is_written_costs_nothing() {
    for victims in [vec![1], vec![0, 3]] {
        let rig = Rig::new(6, "critical = \"4+2\"");
        let volume = rig.open();
        let bytes = noise(9, 24 << 20);
        let (_, handle) = create(&volume, "f");
        volume
            .write(handle, 0, &bytes[..10 << 20])
            .expect("written");
        for &victim in &victims {
            // A directory in the place of the segments: nothing can be created or appended there any more.
            rig.take_away(victim);
            std::fs::write(rig.disk(victim), b"no directory").expect("written");
        }
        for (number, chunk) in bytes.chunks(1 << 20).enumerate().skip(10) {
            volume
                .write(handle, (number << 20) as u64, chunk)
                .expect("written");
        }
        close(&volume, handle);
        assert!(read_file(&volume, "f").expect("readable") == bytes);
        drop(volume);
        for &victim in &victims {
            std::fs::remove_file(rig.disk(victim)).expect("removed");
        }
        let volume = Volume::open(&rig.config, Mode::ReadOnly).expect("opens");
        assert!(
            read_file(&volume, "f").expect("readable") == bytes,
            "after losing {victims:?}"
        );
    }
}

#[test]
fn with_too_few_disks_nothing_is_accepted() {
    let rig = Rig::new(4, "critical = \"2+2\"");
    let volume = rig.open();
    write_file(&volume, "f0", &noise(0, 3 << 20));
    let pipeline = &volume.pipeline;
    for id in pipeline.disks.usable_for_writing().into_iter().take(2) {
        pipeline.disks.mark_faulty(id, "for this test");
    }
    let (_, handle) = create(&volume, "g");
    let refused = volume
        .write(handle, 0, &noise(1, 1 << 20))
        .expect_err("refused");
    assert!(
        [libc::EIO, libc::ENOSPC].contains(&refused.errno()),
        "{refused}"
    );
    volume.release(handle);
    check(&volume, 1);
}

#[test]
fn flipped_bits_are_found_and_mended() {
    let rig = Rig::new(4, "critical = \"2+2\"");
    let volume = rig.open();
    write_file(&volume, "f0", &noise(0, 3 << 20));
    volume.close().expect("closed");
    drop(volume);
    let mut flipped = 0;
    for number in 0..2 {
        for place in rig.objects(number, "segments") {
            flipped += flip(&place, 0, 50_000);
        }
    }
    assert!(flipped > 10);
    let volume = rig.open();
    check(&volume, 1);
    drop(volume);
    // Mended: now the other two may go.
    rig.take_away(2);
    rig.take_away(3);
    let volume = Volume::open(&rig.config, Mode::ReadOnly).expect("opens");
    let found = read_file(&volume, "f0").expect("readable");
    assert!(found == noise(0, 3 << 20));
}

/// Commits one part of a file after the other, each with a delta.
fn write_in_deltas(volume: &Volume, name: &str, parts: &[(u64, &[u8])]) -> FileId {
    let (file, handle) = create(volume, name);
    close(volume, handle);
    for (offset, bytes) in parts {
        let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
        volume.write(handle, *offset, bytes).expect("written");
        close(volume, handle);
    }
    file
}

fn deltas(volume: &Volume, file: FileId) -> Vec<(u64, crate::meta::Value)> {
    volume.meta.view().deltas(file).expect("read")
}

fn change(volume: &Volume, change: impl Fn(&mut crate::meta::Update)) {
    let update = |update: &mut crate::meta::Update| -> Result<()> {
        change(update);
        Ok(())
    };
    volume.meta.update(update).expect("changed");
}

/// Bytes a MiB at a time, each with its offset.
fn in_parts(bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let parts = bytes.chunks(1 << 20).enumerate();
    parts
        .map(|(number, part)| ((number << 20) as u64, part))
        .collect()
}

#[test]
fn a_file_of_which_a_change_is_lost_is_not_read_and_nothing_of_it_is_removed() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    write_file(&volume, "f0", &noise(0, 3 << 20));
    let bytes = noise(5, 3 << 20);
    let parts = in_parts(&bytes);
    volume.sweeper.wait();
    let without = rig.occupied();
    let file = write_in_deltas(&volume, "holey", &parts);
    let all = deltas(&volume, file);
    assert!(all.len() >= 3, "{} deltas", all.len());
    let (lost, delta) = all[all.len() - 2].clone();
    change(&volume, |update| update.delete(Key::delta(file, lost)));
    volume.close().expect("closed");
    drop(volume);
    let occupied = rig.occupied();

    let lines = Volume::rescue(&rig.config).expect("rescued");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("/holey is not whole")),
        "{lines:?}"
    );
    let volume = rig.open();
    let error = read_file(&volume, "holey").expect_err("not whole");
    assert_eq!(error.errno(), libc::EIO);
    assert!(error.to_string().contains("/holey is not whole"), "{error}");
    volume.close().expect("closed");
    drop(volume);
    let (before, _) = Volume::fsck(&rig.config, true).expect("checked");
    assert!(before.problem_count > 0);
    assert_eq!(rig.occupied(), occupied);

    // What was lost is found again: all of the file is there.
    let volume = rig.open();
    change(&volume, |update| update.put_delta(file, lost, &delta));
    assert!(read_file(&volume, "holey").expect("whole") == bytes);
    change(&volume, |update| update.delete(Key::delta(file, lost)));
    // It can be removed as it is, and the next mount gives all of it back.
    volume.remove(ROOT, b"holey").expect("removed");
    volume.close().expect("closed");
    drop(volume);
    let volume = rig.open();
    volume.sweeper.wait();
    assert!(volume.meta.view().inode(file).expect("read").is_none());
    check(&volume, 1);
    volume.close().expect("closed");
    drop(volume);
    assert_eq!(rig.occupied(), without);
}

/// The commit that folded it and took it away was lost, one behind it was not.
#[test]
fn a_delta_that_is_in_the_base_already_is_not_applied_again() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let (old, new) = (noise(1, 1 << 20), noise(2, 1 << 20));
    let file = write_in_deltas(&volume, "f", &[(0, &old), (0, &new)]);
    let folded = deltas(&volume, file);
    let open = volume.use_file(file).expect("in use");
    let compact = commit::Purpose::Compact;
    volume.commit(&open, compact).expect("folded");
    drop(open);
    assert_eq!(deltas(&volume, file).len(), 0);
    change(&volume, |update| {
        let (number, delta) = &folded[0];
        update.put_delta(file, *number, delta);
    });
    volume.close().expect("closed");
    drop(volume);
    let volume = rig.open();
    assert!(read_file(&volume, "f").expect("readable") == new);
}

/// The set is noted by one commit and needed by a later one, and only the first is lost.
#[test]
fn a_set_that_was_noted_in_a_lost_transaction_is_not_removed() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    write_file(&volume, "f0", &noise(0, 3 << 20));
    let (file, handle) = create(&volume, "f");
    volume.sync_names().expect("synced");
    let mut bytes = noise(4, 3 << 20);
    write_all(&volume, handle, &bytes);
    close(&volume, handle);
    let head = volume.meta.view().manifest(file).expect("read");
    let head = FileHead::decode(&head.expect("a head")).expect("a head");
    let set = head.sets[0];
    let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
    let more = noise(6, 1 << 20);
    volume.write(handle, 1 << 20, &more).expect("written");
    bytes[1 << 20..2 << 20].copy_from_slice(&more);
    close(&volume, handle);
    let open = volume.use_file(file).expect("in use");
    let compact = commit::Purpose::Compact;
    volume.commit(&open, compact).expect("folded");
    drop(open);
    volume.close().expect("closed");
    drop(volume);
    for number in 0..3 {
        std::fs::remove_file(rig.disk(number).join("meta.redb")).expect("removed");
        std::fs::remove_dir_all(rig.disk(number).join("names")).expect("removed");
        let journals = rig.objects(number, "journal");
        let [journal] = &journals[..] else {
            panic!("{journals:?}");
        };
        let mut record = std::fs::read(journal).expect("read");
        let key = Key::set(set);
        let key = key.in_table();
        let found = record.windows(key.len()).position(|at| at == key);
        record[found.expect("noted")] ^= 1;
        std::fs::write(journal, record).expect("written");
    }
    let lines = Volume::rescue(&rig.config).expect("rescued");
    assert!(
        lines.iter().any(|line| line.starts_with("transaction")),
        "{lines:?}"
    );
    for _ in 0..2 {
        let volume = rig.open();
        volume.commit_all().expect("tidy is done");
        assert!(volume.meta.view().set(set).expect("read").is_some());
        assert!(
            volume
                .meta
                .view()
                .setting(rescue::KEEP_BELOW)
                .expect("read")
                .is_some()
        );
        assert!(read_file(&volume, "f").expect("readable") == bytes);
        check(&volume, 1);
        volume.close().expect("closed");
    }
}

fn next_window(volume: &Volume, file: FileId) -> u32 {
    let open = volume.use_file(file).expect("in use");
    open.state.lock().head.next_window
}

/// A file of which a change is lost can be written anew: nothing of its old bytes is needed for that.
#[test]
fn a_file_of_which_a_change_is_lost_can_be_emptied() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let kept = noise(0, 3 << 20);
    write_file(&volume, "f0", &kept);
    let bytes = noise(5, 3 << 20);
    let parts = in_parts(&bytes);
    volume.sweeper.wait();
    let without = rig.occupied();
    let cut = Changes {
        size: Some(0),
        ..Changes::default()
    };
    for by_open in [false, true] {
        let file = write_in_deltas(&volume, "holey", &parts);
        let all = deltas(&volume, file);
        let (lost, _) = all[all.len() - 2];
        let windows = next_window(&volume, file);
        change(&volume, |update| update.delete(Key::delta(file, lost)));
        assert!(read_file(&volume, "holey").is_err());
        let longer = Changes {
            size: Some(1),
            ..Changes::default()
        };
        let refused = volume.set_attributes(file, None, &longer);
        assert_eq!(refused.expect_err("not whole").errno(), libc::EIO);
        if by_open {
            let flags = libc::O_RDWR | libc::O_TRUNC;
            let handle = volume.open_file(file, flags).expect("emptied").handle;
            close(&volume, handle);
        } else {
            let emptied = volume.set_attributes(file, None, &cut).expect("emptied");
            assert_eq!(emptied.size, 0);
        }
        volume.sweeper.wait();
        assert_eq!(rig.occupied(), without, "all of it is given back");
        // What is written now is no old window.
        let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
        let anew = noise(9, 2 << 20);
        write_all(&volume, handle, &anew);
        close(&volume, handle);
        assert!(read_file(&volume, "holey").expect("whole") == anew);
        assert!(next_window(&volume, file) > windows);
        volume.remove(ROOT, b"holey").expect("removed");
        volume.sweeper.wait();
    }
    assert!(read_file(&volume, "f0").expect("whole") == kept);
    volume.close().expect("closed");
    drop(volume);
    let (report, _) = Volume::fsck(&rig.config, false).expect("checked");
    assert_eq!(report.problem_count, 0, "{:?}", report.problems);
}
