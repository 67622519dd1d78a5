use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::ids::{ManifestId, SetId};

fn disk() -> (tempfile::TempDir, DirectoryDisk) {
    let directory = tempfile::tempdir().unwrap();
    let disk = DirectoryDisk::create("a", &directory.path().join("disk")).unwrap();
    (directory, disk)
}

const BLOCKS: ObjectName = ObjectName::Blocks(SetId(0x1234));

fn bytes(disk: &DirectoryDisk, object: ObjectName) -> Vec<u8> {
    let mut buffer = vec![0; disk.length(object).unwrap() as usize];
    disk.read_at(object, 0, &mut buffer).unwrap();
    buffer
}

#[test]
fn slices_are_appended_one_after_the_other() {
    let (_directory, disk) = disk();
    let mut appender = disk.create(BLOCKS).unwrap();
    assert_eq!(appender.append(&[b"one", b"", b"two"]).unwrap(), 0);
    assert_eq!(appender.append(&[b"three"]).unwrap(), 6);
    appender.start_sync(4);
    appender.start_sync(100);
    appender.start_sync(0);
    appender.sync().unwrap();
    disk.sync_names().unwrap();
    assert_eq!(bytes(&disk, BLOCKS), b"onetwothree");
    let path = disk.path().join("segments/34/0000000000001234.blocks");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
}

#[test]
fn more_slices_than_one_write_takes() {
    let (_directory, disk) = disk();
    let mut appender = disk.create(BLOCKS).unwrap();
    let slices: Vec<Vec<u8>> = (0..5000u32).map(|n| n.to_le_bytes().to_vec()).collect();
    let borrowed: Vec<&[u8]> = slices.iter().map(Vec::as_slice).collect();
    appender.append(&borrowed).unwrap();
    assert_eq!(bytes(&disk, BLOCKS), slices.concat());
}

#[test]
fn an_object_is_created_once() {
    let (_directory, disk) = disk();
    disk.create(BLOCKS).unwrap();
    assert!(matches!(
        disk.create(BLOCKS),
        Err(DiskError::AlreadyExists { object: BLOCKS, .. })
    ));
}

#[test]
fn resuming_cuts_off_what_is_behind() {
    let (_directory, disk) = disk();
    disk.create(BLOCKS).unwrap().append(&[b"abcdef"]).unwrap();
    let mut appender = disk.resume(BLOCKS, 3).unwrap();
    assert_eq!(appender.append(&[b"xy"]).unwrap(), 3);
    assert_eq!(bytes(&disk, BLOCKS), b"abcxy");
    assert!(matches!(
        disk.resume(BLOCKS, 6),
        Err(DiskError::Short { .. })
    ));
    assert!(matches!(
        disk.resume(ObjectName::Journal(1), 0),
        Err(DiskError::Missing { .. })
    ));
}

#[test]
fn reading_what_is_not_there() {
    let (_directory, disk) = disk();
    let mut buffer = [0; 4];
    assert!(matches!(
        disk.read_at(BLOCKS, 0, &mut buffer),
        Err(DiskError::Missing { object: BLOCKS, .. })
    ));
    disk.create(BLOCKS).unwrap().append(&[b"abc"]).unwrap();
    assert!(matches!(
        disk.read_at(BLOCKS, 0, &mut buffer),
        Err(DiskError::Short { .. })
    ));
    assert!(matches!(
        disk.length(ObjectName::Label),
        Err(DiskError::Missing { .. })
    ));
}

#[test]
fn put_replaces_the_whole_and_leaves_nothing_behind() {
    let (_directory, disk) = disk();
    let manifest = ObjectName::Manifest(ManifestId(7));
    disk.put(manifest, b"a long old one").unwrap();
    assert_eq!(bytes(&disk, manifest), b"a long old one");
    disk.put(manifest, b"new").unwrap();
    assert_eq!(bytes(&disk, manifest), b"new");
    assert_eq!(
        fs::read_dir(disk.path().join("manifests/07"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn what_an_interrupted_put_left_is_swept_and_not_by_who_only_opens() {
    let (_directory, disk) = disk();
    disk.put(ObjectName::Manifest(ManifestId(7)), b"x").unwrap();
    let left = disk.path().join("manifests/07/.new-1-0");
    fs::write(&left, b"half").unwrap();
    let second = DirectoryDisk::open("a", disk.path()).unwrap();
    assert!(left.exists());
    second.sweep().unwrap();
    assert!(!left.exists());
    assert!(disk.length(ObjectName::Manifest(ManifestId(7))).is_ok());
}

#[test]
fn restoring_writes_again_and_creates() {
    let (_directory, disk) = disk();
    disk.create(BLOCKS).unwrap().append(&[b"abcdef"]).unwrap();
    disk.restore(BLOCKS, 2, b"XY").unwrap();
    assert_eq!(bytes(&disk, BLOCKS), b"abXYef");
    let parity = ObjectName::Parity(SetId(1));
    disk.restore(parity, 2, b"z").unwrap();
    assert_eq!(bytes(&disk, parity), b"\0\0z");
}

#[test]
fn punching_gives_room_back_and_keeps_the_length() {
    let (_directory, disk) = disk();
    let data = vec![7; 1 << 20];
    disk.create(BLOCKS).unwrap().append(&[&data]).unwrap();
    let occupied = |disk: &DirectoryDisk| disk.list().unwrap()[0].1;
    let before = occupied(&disk);
    match disk.punch(BLOCKS, 0..512 << 10) {
        Err(DiskError::Unsupported { .. }) => return,
        result => result.unwrap(),
    }
    assert_eq!(disk.length(BLOCKS).unwrap(), 1 << 20);
    assert!(occupied(&disk) <= before - (512 << 10));
    disk.punch(BLOCKS, 5..5).unwrap();
}

#[test]
fn listing_passes_over_what_is_not_ours() {
    let (_directory, disk) = disk();
    disk.put(ObjectName::Label, b"label").unwrap();
    disk.create(ObjectName::Journal(3)).unwrap();
    disk.create(BLOCKS).unwrap();
    fs::write(disk.path().join("README"), b"foreign").unwrap();
    fs::create_dir(disk.path().join("lost+found")).unwrap();
    fs::write(disk.path().join("journal/.new-1-1"), b"foreign").unwrap();
    let mut objects: Vec<ObjectName> = disk.list().unwrap().into_iter().map(|o| o.0).collect();
    objects.sort();
    assert_eq!(objects, [ObjectName::Label, ObjectName::Journal(3), BLOCKS]);
    disk.remove(BLOCKS).unwrap();
    disk.remove(BLOCKS).unwrap();
    disk.sync_names().unwrap();
    assert_eq!(disk.list().unwrap().len(), 2);
}

#[test]
fn a_removed_object_is_not_read_from_a_file_still_open() {
    let (_directory, disk) = disk();
    disk.create(BLOCKS).unwrap().append(&[b"abc"]).unwrap();
    bytes(&disk, BLOCKS);
    disk.remove(BLOCKS).unwrap();
    assert!(matches!(
        disk.length(BLOCKS),
        Err(DiskError::Missing { .. })
    ));
}

#[test]
fn names_are_dirty_until_they_are_synced() {
    let (_directory, disk) = disk();
    disk.create(BLOCKS).unwrap();
    let dirty: Vec<PathBuf> = disk.names.dirty.lock().iter().cloned().collect();
    assert_eq!(
        dirty,
        [
            disk.path().to_owned(),
            disk.path().join("segments"),
            disk.path().join("segments/34"),
        ]
    );
    disk.sync_names().unwrap();
    assert!(disk.names.dirty.lock().is_empty());
}

#[test]
fn random_access_reads_what_it_wrote() {
    let (_directory, disk) = disk();
    let database = disk.random_access(ObjectName::Database).unwrap();
    assert_eq!(database.length().unwrap(), 0);
    database.set_length(10).unwrap();
    database.write_at(4, b"abc").unwrap();
    database.sync().unwrap();
    let mut buffer = [9; 10];
    database.read_at(0, &mut buffer).unwrap();
    assert_eq!(&buffer, b"\0\0\0\0abc\0\0\0");
    assert!(matches!(
        database.read_at(5, &mut buffer),
        Err(DiskError::Short { .. })
    ));
    let again = disk.random_access(ObjectName::Database).unwrap();
    assert_eq!(again.length().unwrap(), 10);
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let (directory, disk) = disk();
    let error = DirectoryDisk::open("cellar", &directory.path().join("gone")).unwrap_err();
    assert!(error.to_string().contains("cellar"), "{error}");
    assert!(error.to_string().contains("gone"), "{error}");
    assert!(disk.space().unwrap().total > 0);
    assert!(disk.device().is_some());
}

#[test]
fn a_full_device_is_told_from_a_broken_one() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut appender = DirectoryAppender {
        disk: "a".into(),
        object: BLOCKS,
        file: full,
        end: 0,
        started: 0,
        broken: false,
    };
    assert!(appender.append(&[b"x"]).unwrap_err().is_full());
    assert!(!appender.append(&[b"x"]).unwrap_err().is_full());
}
