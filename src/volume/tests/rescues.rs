//! Volumes whose databases are gone: what a rescue finds, what it leaves alone, and what it removes.

use super::losses::{check, flip};
use super::*;
use crate::disk::{
    DirectoryDisk, Disk, Fault, FaultPlan, ObjectName, Operation, Operations, Rule, When,
};
use crate::ids::{DiskId, ManifestId, SetId};
use crate::meta::{Records, WriteRecords};
use crate::volume::head::FileHead;

/// What a version before this one left where the metadata took no more changes: objects under the highest number of all.
const UNDER_NO_NUMBER: [ObjectName; 3] = [
    ObjectName::Blocks(SetId(u64::MAX)),
    ObjectName::Parity(SetId(u64::MAX)),
    ObjectName::Manifest(ManifestId(u64::MAX)),
];

#[test]
fn a_volume_without_databases_is_rescued() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    write_file(&volume, "f0", &noise(0, 3 << 20));
    write_file(&volume, "small", b"small");
    volume
        .make_directory(ROOT, b"dir", 0o750, CALLER)
        .expect("made");
    volume.close().expect("closed");
    drop(volume);
    for number in 0..3 {
        std::fs::remove_file(rig.disk(number).join("meta.redb")).expect("removed");
    }
    Volume::rescue(&rig.config).expect("rescued");
    let volume = rig.open();
    check(&volume, 1);
    assert_eq!(read_file(&volume, "small").expect("readable"), b"small");
    assert_eq!(volume.lookup(ROOT, b"dir").expect("there").mode, 0o750);
}

#[test]
fn files_are_found_by_their_manifests_alone() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let directory = volume
        .make_directory(ROOT, b"dir", 0o755, CALLER)
        .expect("made")
        .file;
    let (attributes, opened) = volume
        .create_file(directory, b"big", 0o640, libc::O_RDWR, CALLER)
        .expect("made");
    let bytes = noise(7, 80 << 20);
    for (number, chunk) in bytes.chunks(1 << 20).enumerate() {
        volume
            .write(opened.handle, (number << 20) as u64, chunk)
            .expect("written");
    }
    close(&volume, opened.handle);
    let open = volume.use_file(attributes.file).expect("in use");
    volume
        .commit(&open, commit::Purpose::Compact)
        .expect("folded");
    drop(open);
    volume.close().expect("closed");
    drop(volume);
    rig.forget_names();
    let lines = Volume::rescue(&rig.config).expect("rescued");
    let volume = rig.open();
    let directory = volume
        .lookup(ROOT, b"dir")
        .unwrap_or_else(|error| panic!("{error}: {lines:?}"))
        .file;
    let file = volume.lookup(directory, b"big").expect("there");
    assert_eq!((file.size, file.mode), (bytes.len() as u64, 0o640));
    let handle = volume
        .open_file(file.file, libc::O_RDONLY)
        .expect("open")
        .handle;
    for (number, chunk) in bytes.chunks(1 << 20).enumerate() {
        assert!(
            volume
                .read(handle, (number << 20) as u64, 1 << 20)
                .expect("readable")
                == chunk
        );
    }
}

/// Whoever is told that something is missing is told what to do next, and that holds.
#[test]
fn a_rescue_that_misses_something_says_what_is_next() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    write_file(&volume, "f0", &noise(0, 3 << 20));
    volume.close().expect("closed");
    drop(volume);
    rig.forget_names();
    let error = Volume::rescue(&rig.config).expect_err("a file without a manifest is not found");
    let told = error.to_string();
    assert!(told.contains("belong to no file"), "{told}");
    assert!(told.contains("Copy the disks first"), "{told}");
    rig.open();
}

/// Where it cannot be read what a file is made of, all of it may be stored once, or given up.
#[test]
fn a_rescue_takes_a_file_for_expendable_where_its_manifest_is_damaged_on_all_disks() {
    let rig = Rig::new(3, "critical = \"2+1\"\nblock_size = \"8K\"");
    let volume = rig.open();
    let bytes = noise(3, 8 << 20);
    let file = write_file(&volume, "f", &bytes);
    volume.close().expect("closed");
    drop(volume);
    rig.forget_names();
    // The first page of a manifest has extents.
    let copies = (0..3).flat_map(|number| rig.objects(number, "manifests"));
    assert_eq!(
        copies
            .map(|copy| flip(&copy, 100, usize::MAX))
            .sum::<usize>(),
        3
    );
    Volume::rescue(&rig.config).expect("rescued");
    let volume = rig.open();
    let open = volume.use_file(file).expect("there");
    let head = open.state.lock().head.clone();
    // How much that is hangs on what there was time to compress.
    assert!(head.stored > 0, "{head:?}");
    assert_eq!(head.unprotected, head.stored);
    assert_eq!(head.dropped, bytes.len() as u64);
    let handle = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    let last = bytes.len() - (1 << 20);
    let found = volume.read(handle, last as u64, 1 << 20).expect("readable");
    assert!(found == bytes[last..]);
    let lost = volume.read(handle, 0, 4096).map_err(|error| error.errno());
    assert_eq!(lost.err(), Some(libc::EIO));
}

fn medium(rig: &Rig, number: usize) -> DirectoryDisk {
    DirectoryDisk::open("d", &rig.disk(number)).expect("a disk")
}

fn leave_what_has_no_number(rig: &Rig) {
    for number in 0..rig.config.disks.len() {
        for object in UNDER_NO_NUMBER {
            medium(rig, number)
                .put(object, b"left by an earlier version")
                .expect("written");
        }
    }
}

/// How many objects without a number all disks have.
fn without_a_number(rig: &Rig) -> usize {
    (0..rig.config.disks.len())
        .flat_map(|number| medium(rig, number).list().expect("listed"))
        .filter(|(object, _)| UNDER_NO_NUMBER.contains(object))
        .count()
}

#[test]
fn a_mount_removes_what_was_written_under_no_number() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    write_file(&volume, "f0", &noise(0, 3 << 20));
    volume.close().expect("closed");
    drop(volume);
    leave_what_has_no_number(&rig);
    assert_eq!(without_a_number(&rig), 9);
    let volume = rig.open();
    volume.commit_all().expect("tidy is done");
    assert_eq!(without_a_number(&rig), 0);
    check(&volume, 1);
}

/// Counted, it would have a rescued volume use up its mounts; taken for a file's, the rescue would not be complete.
#[test]
fn a_rescue_does_not_count_what_was_written_under_no_number() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    leave_what_has_no_number(&rig);
    rig.forget_names();
    let lines = Volume::rescue(&rig.config).expect("rescued");
    assert!(
        !lines.iter().any(|line| line.contains("cannot be read")),
        "{lines:?}"
    );
    let volume = rig.open();
    let mounts = volume.meta.mounts();
    assert!(mounts < 10, "{mounts} mounts are counted");
    write_file(&volume, "f0", &noise(0, 3 << 20));
    volume.commit_all().expect("tidy is done");
    assert_eq!(without_a_number(&rig), 0);
    check(&volume, 1);
}

#[test]
fn a_head_of_a_later_version_keeps_every_manifest() {
    let rig = Rig::new(4, "critical = \"2+1\"\nblock_size = \"4K\"");
    let volume = rig.open();
    let bytes = noise(9, 2 << 20);
    let file = write_file(&volume, "f", &bytes);
    let head = volume.meta.view().manifest(file).expect("read");
    let head = head.expect("a head").to_vec();
    assert!(FileHead::decode(&head).expect("a head").base.is_some());
    let set = |volume: &Volume, head: &[u8]| {
        let update = |update: &mut crate::meta::Update| -> Result<()> {
            update.put_manifest(file, head);
            Ok(())
        };
        volume.meta.update(update).expect("changed");
    };
    let mut later = head.clone();
    later[0] = 200;
    set(&volume, &later);
    volume.close().expect("closed");
    drop(volume);
    // What a mount tidies up is done before it is closed.
    rig.open().close().expect("closed");
    let volume = rig.open();
    set(&volume, &head);
    assert!(read_file(&volume, "f").expect("its manifest is there") == bytes);
}

/// What is left on it is not all there is.
#[test]
fn a_rescue_with_fewer_than_half_of_the_disks_changes_nothing() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    write_file(&volume, "f0", &noise(0, 3 << 20));
    write_file(&volume, "small", b"small");
    volume.close().expect("closed");
    drop(volume);
    rig.take_away(0);
    rig.take_away(1);
    std::fs::remove_file(rig.disk(2).join("meta.redb")).expect("removed");
    std::fs::remove_dir_all(rig.disk(2).join("journal")).expect("removed");
    let names = rig.objects(2, "names");
    assert!(!names.is_empty());
    let refused = Volume::rescue(&rig.config).expect_err("refused");
    assert!(refused.to_string().contains("1 of 3 disks"), "{refused}");
    assert_eq!(rig.objects(2, "names"), names);
    rig.bring_back(0);
    rig.bring_back(1);
    let volume = rig.open();
    check(&volume, 1);
    assert_eq!(read_file(&volume, "small").expect("readable"), b"small");
}

#[test]
fn a_rescue_that_no_disk_has_room_for_removes_nothing() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    write_file(&volume, "small", b"small");
    volume.close().expect("closed");
    let id = volume.id;
    drop(volume);
    let metadata = |number: usize| -> Vec<ObjectName> {
        let objects = medium(&rig, number).list().expect("listed").into_iter();
        let objects = objects.map(|(object, _)| object);
        let mut found: Vec<ObjectName> = objects
            .filter(|object| {
                matches!(
                    object,
                    ObjectName::Database | ObjectName::Journal(_) | ObjectName::Names(_)
                )
            })
            .collect();
        found.sort();
        found
    };
    let before: Vec<_> = (0..3).map(metadata).collect();
    let full = || {
        let plan = FaultPlan::new(0);
        let operations = [Operation::Create, Operation::Resume, Operation::Append];
        let operations = Operations::of(&operations);
        plan.add(Rule::new(operations, When::Always, Fault::Full));
        plan
    };
    let disks: Vec<(DiskId, Option<Arc<dyn Disk>>)> = (0..3)
        .map(|number| {
            let disk: Arc<dyn Disk> =
                Arc::new(FaultyDisk::new(Arc::new(medium(&rig, number)), full()));
            (DiskId(number as u16), Some(disk))
        })
        .collect();
    let options = || crate::meta::Options::new(id);
    let refused = rescue::metadata(&disks, options, &mut Vec::new()).expect_err("refused");
    assert_eq!(refused.errno(), libc::ENOSPC, "{refused}");
    drop(disks);
    assert_eq!((0..3).map(metadata).collect::<Vec<_>>(), before);
    let volume = rig.open();
    assert_eq!(read_file(&volume, "small").expect("readable"), b"small");
}
