//! What a repair must not do: work beside what it sets right, or take what could not be read for what is not there.

use super::*;
use crate::ids::SetId;
use crate::meta::{Key, Read, Records, Table, Timestamp, WriteRecords};
use crate::store::manifest::PAGE;
use crate::volume::head::FileHead;
use crate::volume::tasks::{TaskKind, TaskState, TaskStatus};

const POLICY: &str = "critical = \"2+1\"\ncompress_later = \"never\"\nblock_size = \"16K\"\n";

/// Closes it and repairs; what was found before and after.
fn repaired(rig: &Rig, volume: Arc<Volume>) -> (FsckReport, FsckReport) {
    volume.close().expect("closed");
    drop(volume);
    let (before, after) = Volume::fsck(&rig.config, true).expect("checked");
    (before, after.expect("there was something to repair"))
}

/// Opens it, and waits until what a mount removes is removed.
fn opened_and_tidied(rig: &Rig) -> Arc<Volume> {
    let volume = rig.open();
    volume.tidy().expect("tidied");
    volume.sweeper.wait();
    volume
}

fn change(volume: &Volume, change: impl FnOnce(&mut crate::meta::Update)) {
    let made = volume.meta.update(|update| -> Result<()> {
        change(update);
        Ok(())
    });
    made.expect("changed");
}

fn sets(volume: &Volume, file: FileId) -> Vec<SetId> {
    let file = volume.use_file(file).expect("there");
    let state = file.state.lock();
    state.sets.clone()
}

#[test]
fn a_repair_sets_right_before_anything_is_removed() {
    let rig = Rig::new(4, POLICY);
    let volume = rig.open();
    let bytes = noise(1, 2 << 20);
    let uncounted = write_file(&volume, "uncounted", &bytes);
    let orphan = write_file(&volume, "orphan", &bytes);
    let known = sets(&volume, uncounted);
    assert!(!known.is_empty());
    change(&volume, |update| {
        for set in known {
            update.delete(Key::set(set));
        }
        update.put_orphan(orphan);
    });
    let (before, after) = repaired(&rig, volume);
    assert_eq!(before.beyond_repair, 0, "{before:?}");
    assert_eq!(after.problem_count, 0, "{after:?}");
    let volume = opened_and_tidied(&rig);
    assert!(read_file(&volume, "uncounted").expect("read") == bytes);
    assert!(read_file(&volume, "orphan").expect("read") == bytes);
}

#[test]
fn no_task_goes_on_beside_a_repair() {
    let rig = Rig::new(4, POLICY);
    let volume = rig.open();
    let file = write_file(&volume, "f", &noise(1, 2 << 20));
    let task = TaskStatus::new(
        TaskKind::Scrub {},
        "a scrub".to_owned(),
        None,
        Timestamp::now().seconds,
    );
    let set = sets(&volume, file)[0];
    change(&volume, |update| {
        update.put_set(set, crate::meta::SetRecord { references: 7 });
        update.put_setting(b"task", &task.encode());
    });
    let (_, after) = repaired(&rig, volume);
    assert_eq!(after.problem_count, 0, "{after:?}");
    let volume = Volume::open(&rig.config, Mode::ReadOnly).expect("opens");
    let kept = volume.task().expect("read").expect("a task");
    // It goes on at the next mount.
    assert_eq!(kept.state, TaskState::Interrupted);
    let view = volume.meta.view();
    let bytes = view.setting(b"task").expect("read").expect("kept");
    assert_eq!(*bytes, *task.encode());
}

#[test]
fn a_removed_file_that_was_open_in_a_crash_is_no_problem() {
    let rig = Rig::new(4, POLICY);
    let volume = rig.open();
    let file = write_file(&volume, "f", &noise(1, 2 << 20));
    let view = volume.meta.view();
    let inode = view.inode(file).expect("read").expect("there");
    change(&volume, |update| {
        let entry = Key::entry(ROOT, b"f");
        update.delete(entry);
        update.delete(Key::link(file, ROOT, b"f"));
        update.put_inode(file, &crate::meta::Inode { links: 0, ..inode });
        update.put_orphan(file);
    });
    drop(view);
    volume.close().expect("closed");
    drop(volume);
    let (report, _) = Volume::fsck(&rig.config, false).expect("checked");
    assert_eq!(report.problem_count, 0, "{report:?}");
    let volume = opened_and_tidied(&rig);
    assert!(rig.objects(0, "segments").is_empty());
    drop(volume);
}

/// Files before and behind the one that something happens to, which has a base, deltas and inline bytes.
fn three_files(rig: &Rig) -> (Arc<Volume>, FileId, Vec<Vec<u8>>) {
    let volume = rig.open();
    let mut all: Vec<Vec<u8>> = (1..4).map(|seed| noise(seed, 2 << 20)).collect();
    write_file(&volume, "0", &all[0]);
    let file = write_file(&volume, "1", &all[1]);
    write_file(&volume, "2", &all[2]);
    volume
        .meta
        .view()
        .manifest(file)
        .expect("read")
        .and_then(|head| FileHead::decode(&head)?.base)
        .expect("a base");
    let other = noise(9, 128 << 10);
    let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
    volume.write(handle, 0, &other).expect("written");
    close(&volume, handle);
    all[1][..other.len()].copy_from_slice(&other);
    (volume, file, all)
}

fn all_read(volume: &Volume, all: &[Vec<u8>]) {
    for (number, bytes) in all.iter().enumerate() {
        let found = read_file(volume, &number.to_string()).expect("read");
        assert!(found == *bytes, "file {number} differs");
    }
}

#[test]
fn what_has_no_meaning_is_not_taken_for_what_is_not_there() {
    type Damaged = fn(&Volume, FileId) -> Key;
    let all: [Damaged; 4] = [
        |_, file| Key::file(Table::Inode, file),
        |_, file| Key::file(Table::Manifest, file),
        |volume, file| {
            let deltas = volume.meta.view().deltas(file).expect("read");
            Key::delta(file, deltas.first().expect("a delta").0)
        },
        |_, _| Key::entry(ROOT, b"1"),
    ];
    for damaged in all {
        let rig = Rig::new(4, POLICY);
        let (volume, file, bytes) = three_files(&rig);
        let key = damaged(&volume, file);
        let good = volume.meta.view().get(&key).expect("read").expect("there");
        change(&volume, |update| update.put(key.clone(), b"\xffnonsense"));
        let (_, after) = repaired(&rig, volume);
        assert!(after.beyond_repair > 0, "{key:?}: {after:?}");
        // As it would have been mended by whoever can.
        let volume = opened_and_tidied(&rig);
        change(&volume, |update| update.put(key.clone(), &good));
        volume.close().expect("closed");
        drop(volume);
        let (report, _) = Volume::fsck(&rig.config, false).expect("checked");
        assert_eq!(report.problem_count, 0, "{key:?}: {report:?}");
        all_read(&opened_and_tidied(&rig), &bytes);
    }
}

#[test]
fn what_a_bad_page_refers_to_is_kept() {
    let rig = Rig::new(4, POLICY);
    let (volume, _, bytes) = three_files(&rig);
    let manifests: Vec<_> = (0..4)
        .flat_map(|number| rig.objects(number, "manifests"))
        .collect();
    assert!(!manifests.is_empty());
    let good: Vec<Vec<u8>> = manifests
        .iter()
        .map(|place| std::fs::read(place).expect("read"))
        .collect();
    let pages = good.iter().map(|good| good.len() / PAGE).max();
    let mut volume = Some(volume);
    // One page after the other is bad on every disk: of extents, windows and sets, and the root.
    for page in 0..pages.expect("manifests") {
        for (place, good) in manifests.iter().zip(&good) {
            let mut bad = good.clone();
            if let Some(byte) = bad.get_mut(page * PAGE + 100) {
                *byte ^= 1;
            }
            std::fs::write(place, bad).expect("written");
        }
        let (_, after) = repaired(&rig, volume.take().unwrap_or_else(|| rig.open()));
        assert!(after.beyond_repair > 0, "page {page}: {after:?}");
        opened_and_tidied(&rig).close().expect("closed");
        for (place, good) in manifests.iter().zip(&good) {
            std::fs::write(place, good).expect("written");
        }
        let (report, _) = Volume::fsck(&rig.config, false).expect("checked");
        assert_eq!(report.problem_count, 0, "page {page}: {report:?}");
        all_read(&opened_and_tidied(&rig), &bytes);
    }
}

#[test]
fn more_than_parity_gives_back_is_beyond_repair() {
    let rig = Rig::new(3, POLICY);
    let volume = rig.open();
    write_file(&volume, "f", &noise(1, 2 << 20));
    volume.close().expect("closed");
    drop(volume);
    for (number, beyond) in [(0, false), (1, true)] {
        for object in rig.objects(number, "segments") {
            std::fs::remove_file(object).expect("removed");
        }
        let (report, _) = Volume::fsck(&rig.config, false).expect("checked");
        assert!(report.problem_count > 0);
        assert_eq!(report.beyond_repair > 0, beyond, "{report:?}");
    }
}
