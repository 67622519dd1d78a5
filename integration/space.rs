//! Space: a volume that fills up tells it before it takes what it cannot keep, keeps all that it took, and gives back what
//! is deleted.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::statvfs;

use crate::harness::content;
use crate::harness::disks::{Backing, TestDisk};
use crate::harness::volume::{Shape, Volume};

const SMALL: u64 = 96;

fn small() -> Volume {
    Volume::mounted_as(&Shape {
        backing: Backing::Ext4(SMALL),
        compression: "none",
        ..Shape::default()
    })
}

fn free(volume: &Volume) -> u64 {
    let space = statvfs(&volume.mountpoint).expect("statfs");
    space.f_bavail * space.f_frsize
}

/// Writes files of `length` bytes until one is refused; returns how many were taken.
fn fill(volume: &Volume, length: u64) -> u64 {
    for number in 0..10_000 {
        let path = volume.path(&format!("file{number:05}"));
        if let Err(error) = content::write_file(&path, number, length) {
            assert_eq!(
                error.raw_os_error(),
                Some(libc::ENOSPC),
                "file {number}: {error}"
            );
            fs::remove_file(&path).expect("removing the file that did not fit");
            return number;
        }
    }
    panic!("the volume never fills up");
}

fn check(volume: &Volume, count: u64, length: u64) {
    for number in 0..count {
        content::check_file(&volume.path(&format!("file{number:05}")), number, length)
            .expect("what was taken");
    }
}

#[test]
fn a_full_volume_keeps_what_it_took() {
    let mut volume = small();
    let before = free(&volume);
    assert!(
        before > (SMALL << 20) * 2 && before < (SMALL << 20) * 6,
        "{before} bytes are told to be free"
    );
    let length = 8 << 20;
    let count = fill(&volume, length);
    // Four sixths of the disks hold data. Some room may be kept back, and not much.
    let taken = count * length;
    assert!(
        taken * 10 > before * 7,
        "only {taken} of {before} bytes that were told to be free were taken"
    );
    check(&volume, count, length);
    volume.remount();
    check(&volume, count, length);
    // As protected as on the first day.
    volume.umount();
    volume.disks[0].take_away();
    volume.disks[5].take_away();
    volume.mount();
    check(&volume, count, length);
}

#[test]
fn deleting_makes_room_for_as_much_again() {
    let mut volume = small();
    let length = 8 << 20;
    let before = free(&volume);
    let mut counts = Vec::new();
    for _ in 0..3 {
        let count = fill(&volume, length);
        for number in 0..count {
            fs::remove_file(volume.path(&format!("file{number:05}")))
                .expect("deleting from a full volume");
        }
        counts.push(count);
        volume.remount();
        let after = free(&volume);
        assert!(
            after * 100 > before * 95,
            "{after} of {before} bytes are free after all was deleted"
        );
    }
    assert!(counts[2] + 1 >= counts[0], "less and less fits: {counts:?}");
}

/// One file that is too large: what did not fit is refused, what was synced before stays.
#[test]
fn a_file_that_does_not_fit_is_refused_and_harms_nothing() {
    let volume = small();
    content::write_file(&volume.path("first"), 1, 10 << 20).expect("a file that fits");
    let path = volume.path("large");
    let file = File::create(&path).expect("a file");
    let refused = (|| -> io::Result<()> {
        for piece in 0..2000 {
            file.write_all_at(&content::bytes(2, piece << 20, 1 << 20), piece << 20)?;
        }
        file.sync_all()
    })();
    let error = refused.expect_err("2 GB on disks of 96 MiB");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    let _ = content::close(file);
    fs::remove_file(&path).expect("removing the file that did not fit");
    content::check_file(&volume.path("first"), 1, 10 << 20).expect("the file from before");
    content::write_file(&volume.path("second"), 3, 10 << 20).expect("there is room again");
    content::check_file(&volume.path("second"), 3, 10 << 20).expect("the file after");
}

/// Rewriting, truncating and renaming over leave nothing behind.
#[test]
fn nothing_is_left_of_what_was_replaced() {
    let mut volume = Volume::mounted();
    volume.remount();
    volume.umount();
    let empty = volume.used();
    volume.mount();
    for round in 0..12 {
        content::write_file(&volume.path("rewritten"), round, 12 << 20).expect("rewriting");
        content::write_file(&volume.path("new"), round, 6 << 20).expect("a new file");
        fs::rename(volume.path("new"), volume.path("renamed over")).expect("rename");
        let file = File::options()
            .write(true)
            .open(volume.path("rewritten"))
            .expect("open");
        content::write_range(&file, round + 100, 3 << 20, 5 << 20).expect("overwriting");
        content::close(file).expect("close");
    }
    volume.umount();
    let live = 18_u64 << 20;
    let used = volume.used();
    assert!(
        used < empty + live * 2 * 3 / 2,
        "{used} bytes for {live} live ones"
    );
    volume.mount();
    let file = File::open(volume.path("rewritten")).expect("open");
    content::check_range(&file, 11, 0, 3 << 20).expect("not overwritten");
    content::check_range(&file, 111, 3 << 20, 5 << 20).expect("overwritten");
    drop(file);
    for name in ["rewritten", "renamed over"] {
        fs::remove_file(volume.path(name)).expect("unlink");
    }
    volume.remount();
    volume.umount();
    let left = volume.used();
    assert!(
        left < empty + (8 << 20),
        "{left} bytes are left of an empty volume that began with {empty}"
    );
    assert!(volume.disks.iter().map(TestDisk::used).sum::<u64>() == left);
}
