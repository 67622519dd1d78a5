//! Disks whose bytes are not what was written: flipped bits, files cut short, exchanged, emptied or gone. A read is right or
//! EIO, never wrong; within what the code survives it is right; and what could be repaired is repaired.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use crate::harness::content;
use crate::harness::disks::{Kind, TestDisk};
use crate::harness::random::Random;
use crate::harness::volume::{Shape, Volume};

/// More than one window, so that it has a base manifest.
const LARGE: u64 = 40 << 20;
const FILES: [(&str, u64, u64); 4] = [
    ("large", 1, LARGE),
    ("patched", 2, 5_000_000),
    ("small", 3, 3000),
    ("directory/deep", 4, 200_000),
];

/// A volume with large, patched and small files, unmounted.
fn volume(shape: &Shape) -> Volume {
    let mut volume = Volume::mounted_as(shape);
    fs::create_dir(volume.path("directory")).expect("mkdir");
    for (name, seed, length) in FILES {
        content::write_file(&volume.path(name), seed, length).expect("a file");
    }
    // Of several commits, so that it has more than one segment set and a delta.
    let file = OpenOptions::new()
        .write(true)
        .open(volume.path("patched"))
        .expect("open");
    for place in [0, 1_000_000, 4_000_000] {
        content::write_range(&file, 2, place, 150_000).expect("patching");
        file.sync_all().expect("fsync");
    }
    content::close(file).expect("close");
    // What is written anew in the background later would take damaged bytes out of the way.
    volume.until_compressed();
    volume.umount();
    volume
}

#[track_caller]
fn check(volume: &Volume, when: &str) {
    for (name, seed, length) in FILES {
        if let Err(why) = content::check_file(&volume.path(name), seed, length) {
            panic!("{when}: {why}");
        }
    }
}

/// Damages two disks of 4+2, and demands everything; then damages two others, which only works if the first two were made
/// whole by the reads.
fn two_then_two_others(what: &str, damage: impl Fn(&TestDisk, &mut Random)) {
    let mut volume = volume(&Shape::default());
    let mut random = Random::new(7);
    for disk in [0, 3] {
        damage(&volume.disks[disk], &mut random);
    }
    volume.mount();
    check(&volume, what);
    content::write_file(&volume.path("new"), 9, 1_000_000).expect("writing on");
    volume.remount();
    check(&volume, what);
    content::check_file(&volume.path("new"), 9, 1_000_000)
        .expect("what was written on damaged disks");
}

#[test]
fn flipped_bits_in_segments() {
    two_then_two_others("bits flipped in segments", |disk, random| {
        assert!(!disk.flip_bits(Kind::Segment, 40, random).is_empty());
    });
}

#[test]
fn flipped_bits_in_journals() {
    two_then_two_others("bits flipped in journals", |disk, random| {
        assert!(!disk.flip_bits(Kind::Journal, 40, random).is_empty());
    });
}

#[test]
fn flipped_bits_in_databases() {
    two_then_two_others("bits flipped in databases", |disk, random| {
        assert!(!disk.flip_bits(Kind::Database, 200, random).is_empty());
    });
}

#[test]
fn flipped_bits_in_manifests() {
    two_then_two_others("bits flipped in manifests", |disk, random| {
        assert!(!disk.flip_bits(Kind::Manifest, 40, random).is_empty());
    });
}

#[test]
fn flipped_bits_anywhere() {
    two_then_two_others("bits flipped anywhere", |disk, random| {
        assert!(!disk.flip_bits(Kind::Any, 300, random).is_empty());
    });
}

#[test]
fn files_cut_short() {
    two_then_two_others("files cut short", |disk, random| {
        for path in disk.files(Kind::Any) {
            let length = fs::metadata(&path).expect("stat").len();
            let file = OpenOptions::new().write(true).open(&path).expect("open");
            file.set_len(random.below(length + 1))
                .expect("cutting short");
        }
    });
}

#[test]
fn files_emptied() {
    two_then_two_others("files emptied", |disk, _| {
        for path in disk.files(Kind::Any) {
            File::create(&path).expect("emptying");
        }
    });
}

#[test]
fn files_gone() {
    two_then_two_others("files gone", |disk, random| {
        for path in disk.files(Kind::Any) {
            if random.once_in(2) {
                fs::remove_file(&path).expect("unlink");
            }
        }
    });
}

/// Every object has another one's bytes: all checksums are right, and all are in the wrong place.
#[test]
fn files_exchanged() {
    two_then_two_others("files exchanged", |disk, _| {
        for kind in [Kind::Segment, Kind::Manifest] {
            for pair in disk.files(kind).chunks_exact(2) {
                exchange(&pair[0], &pair[1]);
            }
        }
    });
}

/// The same, between two disks: right object, wrong disk.
#[test]
fn files_exchanged_between_disks() {
    let mut volume = volume(&Shape::default());
    for kind in [Kind::Segment, Kind::Journal, Kind::Database] {
        for path in volume.disks[1].files(kind) {
            let relative = path
                .strip_prefix(&volume.disks[1].path)
                .expect("below its disk");
            let other = volume.disks[4].path.join(relative);
            if other.exists() {
                exchange(&path, &other);
            }
        }
    }
    volume.mount();
    check(&volume, "files exchanged between two disks");
}

fn exchange(first: &Path, second: &Path) {
    let between = first.with_extension("between");
    fs::rename(first, &between).expect("rename");
    fs::rename(second, first).expect("rename");
    fs::rename(&between, second).expect("rename");
}

/// What a read found damaged is made whole: afterwards two other disks may go.
#[test]
fn what_is_read_is_repaired() {
    let mut volume = volume(&Shape {
        disks: 6,
        ..Shape::default()
    });
    let mut random = Random::new(3);
    for disk in [0, 3] {
        assert!(
            !volume.disks[disk]
                .flip_bits(Kind::Segment, 25, &mut random)
                .is_empty()
        );
    }
    volume.mount();
    check(&volume, "before the repair");
    volume.umount();
    for disk in [1, 4] {
        volume.disks[disk].take_away();
    }
    volume.mount();
    // Data blocks were read and so repaired; parity that nobody read may still be damaged, and then it is EIO.
    for (name, seed, length) in FILES {
        if let Err(why) = content::check_file(&volume.path(name), seed, length) {
            assert!(why.contains("os error 5"), "{why}");
        }
    }
    volume.umount();
    for disk in [1, 4] {
        volume.disks[disk].bring_back();
    }
    volume.mount();
    check(&volume, "all disks back");
    let said = volume.said();
    assert!(
        said.contains("disk1") || said.contains("disk4"),
        "the log names no disk whose damage was found: {said}"
    );
}

/// More is damaged than the code survives: what is read is right or EIO, for each page by itself.
#[test]
fn beyond_repair_is_an_error_and_never_wrong() {
    use std::os::unix::fs::FileExt;
    let mut volume = volume(&Shape::default());
    let mut random = Random::new(11);
    for disk in 0..4 {
        assert!(
            !volume.disks[disk]
                .flip_bits(Kind::Segment, 60, &mut random)
                .is_empty()
        );
    }
    volume.mount();
    let mut right = 0;
    let mut lost = 0;
    for (name, seed, length) in FILES {
        let file = File::open(volume.path(name)).expect("open");
        for at in (0..length).step_by(4096) {
            let mut page = vec![0; 4096.min(length - at) as usize];
            match file.read_exact_at(&mut page, at) {
                Ok(()) => {
                    assert_eq!(
                        content::first_wrong(seed, at, &page),
                        None,
                        "{name}: a wrong byte was read"
                    );
                    right += 1;
                }
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}: {error}");
                    lost += 1;
                }
            }
        }
    }
    assert!(
        right > 100,
        "hardly anything can be read: {right} pages of {}",
        right + lost
    );
    // The rest goes on.
    content::write_file(&volume.path("new"), 9, 1_000_000).expect("writing on");
    content::check_file(&volume.path("new"), 9, 1_000_000).expect("what was written");
}

/// Every database is lost: the names and files are found again by what else lies on the disks.
#[test]
fn rescue_without_databases() {
    let mut volume = volume(&Shape::default());
    for disk in &volume.disks {
        for path in disk.files(Kind::Database) {
            fs::remove_file(path).expect("unlink");
        }
    }
    volume
        .parsfs(["rescue".as_ref(), volume.config.as_os_str()])
        .expect_success("rescue");
    volume.mount();
    check(&volume, "rescued");
    volume.remount();
    check(&volume, "rescued and mounted again");
}

/// Every database and every journal is lost, of disks of which some are lost altogether: all names, attributes and small
/// files too are found by the manifests.
#[test]
fn rescue_without_databases_and_journals() {
    let mut volume = volume(&Shape::default());
    for disk in &volume.disks {
        for kind in [Kind::Database, Kind::Journal] {
            for path in disk.files(kind) {
                fs::remove_file(path).expect("unlink");
            }
        }
    }
    for disk in [1, 4] {
        volume.disks[disk].take_away();
    }
    let refused = volume.try_mount(&[]).expect_err("nothing to mount by");
    assert!(refused.contains("parsfs rescue"), "{refused}");
    volume
        .parsfs(["rescue".as_ref(), volume.config.as_os_str()])
        .expect_success("rescue");
    volume.mount();
    check(&volume, "rescued");
    fs::write(volume.path("after"), "the rescue").expect("writing on");
    volume.remount();
    check(&volume, "rescued and mounted again");
    // What was there before has its numbers, and nothing new got one of them.
    assert_eq!(fs::read(volume.path("after")).expect("read"), b"the rescue");
}

/// The same after a crash, with the manifests of the namespace damaged on two disks: what was there half a minute before
/// is there.
#[test]
fn rescue_of_a_crashed_volume_from_damaged_manifests() {
    let mut volume = volume(&Shape::default());
    volume.mount();
    fs::write(volume.path("just before"), "the crash").expect("writing");
    volume.kill();
    let mut random = Random::new(6);
    for (n, disk) in volume.disks.iter().enumerate() {
        for kind in [Kind::Database, Kind::Journal] {
            for path in disk.files(kind) {
                fs::remove_file(path).expect("unlink");
            }
        }
        if n < 2 {
            let flipped = disk.flip_bits(Kind::Names, 50, &mut random);
            assert_eq!(flipped.len(), 50);
        }
    }
    volume
        .parsfs(["rescue".as_ref(), volume.config.as_os_str()])
        .expect_success("rescue");
    volume.mount();
    check(&volume, "rescued");
}

/// Databases and journals are damaged on all disks, each at other places.
#[test]
fn rescue_from_scattered_damage() {
    let mut volume = volume(&Shape::default());
    let mut random = Random::new(5);
    for disk in &volume.disks {
        for path in disk.files(Kind::Database) {
            File::create(path).expect("emptying");
        }
    }
    for disk in &volume.disks[..2] {
        disk.flip_bits(Kind::Journal, 50, &mut random);
    }
    volume
        .parsfs(["rescue".as_ref(), volume.config.as_os_str()])
        .expect_success("rescue");
    volume.mount();
    check(&volume, "rescued");
}
