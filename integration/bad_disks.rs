//! Disks that fail in each way a disk can: missing, failing reads, writes or syncs, full, read-only, slow, cut short; before,
//! during and after a write; one, as many as the code survives, and more.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::content;
use crate::harness::disks::{Backing, TestDisk};
use crate::harness::faulty_disk::Faults;
use crate::harness::loop_device;
use crate::harness::process::run;
use crate::harness::volume::{Shape, Volume};
use crate::harness::wait_until;
use crate::operate::{PATIENCE, becomes, done};

const LENGTH: u64 = 12 << 20;

fn over(backing: Backing) -> Volume {
    Volume::mounted_as(&Shape {
        backing,
        ..Shape::default()
    })
}

/// What the page cache holds would hide a disk that cannot be read.
fn forget_cached() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches");
}

/// Two disks begin to fail in the middle of a file; the writer goes on, and so does every reader.
fn fails_in_the_middle(what: &str, break_disk: impl Fn(&TestDisk)) {
    let mut volume = over(Backing::Faulty);
    content::write_file(&volume.path("before"), 1, LENGTH).expect("a file from before");
    let path = volume.path("during");
    let file = File::create(&path).expect("a file");
    content::write_range(&file, 2, 0, LENGTH / 3).expect("the first third");
    break_disk(&volume.disks[1]);
    content::write_range(&file, 2, LENGTH / 3, LENGTH / 3)
        .unwrap_or_else(|error| panic!("one disk {what}: {error}"));
    file.sync_all()
        .unwrap_or_else(|error| panic!("fsync with one disk that {what}: {error}"));
    break_disk(&volume.disks[4]);
    content::write_range(&file, 2, 2 * LENGTH / 3, LENGTH / 3)
        .unwrap_or_else(|error| panic!("two disks {what}: {error}"));
    content::close(file)
        .unwrap_or_else(|error| panic!("close with two disks that {what}: {error}"));
    content::write_file(&volume.path("after"), 3, LENGTH)
        .unwrap_or_else(|error| panic!("a new file, two disks {what}: {error}"));
    fs::create_dir(volume.path("directory")).expect("mkdir");
    let check = |volume: &Volume, when: &str| {
        for (name, seed) in [("before", 1), ("during", 2), ("after", 3)] {
            content::check_file(&volume.path(name), seed, LENGTH)
                .unwrap_or_else(|why| panic!("{when}: {why}"));
        }
    };
    forget_cached();
    check(&volume, "while they fail");
    volume.umount();
    volume.mount();
    check(&volume, "mounted while they fail");
    volume.umount();
    for disk in [1, 4] {
        volume.disks[disk].faults().heal();
    }
    volume.mount();
    check(&volume, "healed");
    // What was written without them is still as protected as promised: any two may go now.
    volume.umount();
    for disk in [0, 2] {
        volume.disks[disk].take_away();
    }
    volume.mount();
    for (name, seed) in [("during", 2), ("after", 3)] {
        content::check_file(&volume.path(name), seed, LENGTH)
            .unwrap_or_else(|why| panic!("two others gone: {why}"));
    }
}

#[test]
fn writes_fail() {
    fails_in_the_middle("fails to write", |disk| {
        disk.faults().set(|faults| faults.failing_writes = true)
    });
}

#[test]
fn writes_fail_in_the_middle_of_a_block() {
    fails_in_the_middle("fails after a while", |disk| {
        disk.faults()
            .set(|faults| faults.writes_fail_after = Some(100_000))
    });
}

#[test]
fn syncs_fail() {
    fails_in_the_middle("fails to sync", |disk| {
        disk.faults().set(|faults| faults.failing_syncs = true)
    });
}

#[test]
fn reads_fail() {
    fails_in_the_middle("fails to read", |disk| {
        disk.faults().set(|faults| faults.failing_reads = true)
    });
}

#[test]
fn disks_are_full() {
    fails_in_the_middle("is full", |disk| {
        disk.faults().set(|faults| faults.full = true)
    });
}

#[test]
fn disks_are_gone() {
    fails_in_the_middle("is gone", |disk| {
        disk.faults().set(|faults| faults.dead = true)
    });
}

/// The directory of one disk is deleted, and another disk's filesystem is gone and leaves its empty mount point: both are
/// seen without anything being made on them, nothing is put there, and nobody who reads or writes sees anything.
#[test]
fn a_disk_whose_directory_is_gone_is_seen() {
    let mut volume = over(Backing::Directory);
    content::write_file(&volume.path("before"), 1, LENGTH).expect("a file from before");
    let state = |volume: &Volume, disk: usize| {
        volume.status()["disks"][disk]["state"]
            .as_str()
            .expect("a state")
            .to_owned()
    };
    volume.disks[1].delete();
    // Somebody who asks is told, and nothing else was done.
    assert_eq!(state(&volume, 1), "missing");
    volume.disks[4].take_away();
    content::check_file(&volume.path("before"), 1, LENGTH).expect("reading without two disks");
    content::write_file(&volume.path("after"), 2, LENGTH).expect("writing without two disks");
    assert_eq!(state(&volume, 4), "missing");
    assert_eq!(state(&volume, 0), "online");
    let made = |disk: usize| fs::read_dir(&volume.disks[disk].path).map_or(0, Iterator::count);
    assert_eq!((made(1), made(4)), (0, 0), "in the place of a disk");
    let said = volume.said();
    for disk in ["disk2", "disk5"] {
        let lines = said
            .lines()
            .filter(|line| line.contains(disk) && line.contains("disk is missing"));
        assert_eq!(lines.count(), 1, "{disk}:\n{said}");
    }
    volume.umount();
    volume.disks[4].bring_back();
    volume.mount();
    assert!(
        volume
            .said()
            .contains("has its metadata brought up to the others'"),
        "{}",
        volume.said()
    );
    // It is rebuilding for a moment.
    let online = || state(&volume, 4) == "online";
    crate::harness::wait_until("the disk to be online", Duration::from_secs(60), online);
    content::check_file(&volume.path("before"), 1, LENGTH).expect("the file from before");
    content::check_file(&volume.path("after"), 2, LENGTH).expect("the file from after");
}

/// A disk that takes its time holds nobody up for longer than it takes itself, and nothing is wrong.
#[test]
fn a_disk_is_slow() {
    let mut volume = over(Backing::Faulty);
    volume.disks[2]
        .faults()
        .set(|faults| faults.delay = Duration::from_millis(50));
    let begin = Instant::now();
    content::write_file(&volume.path("file"), 1, LENGTH).expect("a file");
    assert!(
        begin.elapsed() < Duration::from_secs(60),
        "one slow disk: {:?} for {LENGTH} bytes",
        begin.elapsed()
    );
    volume.remount();
    content::check_file(&volume.path("file"), 1, LENGTH).expect("the file");
}

/// More disks fail than the code survives: a clear error, in time, and nothing that was stored is harmed.
#[test]
fn too_many_disks_fail() {
    let mut volume = over(Backing::Faulty);
    content::write_file(&volume.path("before"), 1, LENGTH).expect("a file from before");
    content::write_file(&volume.path("small"), 4, 1000).expect("a small file from before");
    content::write_file(&volume.path("unread"), 5, LENGTH).expect("another file from before");
    // So that nothing of it is remembered.
    volume.remount();
    let break_all = |volume: &Volume, how: &dyn Fn(&mut Faults)| {
        for disk in &volume.disks[1..] {
            disk.faults().set(how);
        }
    };
    break_all(&volume, &|faults| faults.failing_writes = true);
    let file = File::create(volume.path("during"));
    let error = file
        .and_then(|file| {
            content::write_range(&file, 2, 0, LENGTH).and_then(|()| content::close(file))
        })
        .expect_err("a file on one disk of six");
    let code = error.raw_os_error();
    assert!(
        [libc::EIO, libc::EROFS, libc::ENOSPC]
            .map(Some)
            .contains(&code),
        "{error}"
    );
    // The last of it is told when the kernel lets go of the file, which nobody waits for.
    let names_it = |what: &str| {
        let said = volume.said();
        let mut lines = said.lines().filter(|line| line.contains(what));
        lines.any(|line| line.contains("path=\"/during\""))
    };
    for what in ["a commit failed", "is given up"] {
        wait_until(what, PATIENCE, || names_it(what));
    }
    content::check_file(&volume.path("before"), 1, LENGTH)
        .expect("what was stored, while nothing can be written");

    break_all(&volume, &|faults| faults.dead = true);
    forget_cached();
    let begin = Instant::now();
    let error = fs::read(volume.path("unread"))
        .map(drop)
        .expect_err("a file of which too much is gone");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "the error took {:?}",
        begin.elapsed()
    );

    volume.kill();
    for disk in &volume.disks {
        disk.faults().heal();
    }
    volume.mount();
    content::check_file(&volume.path("before"), 1, LENGTH).expect("the disks are back");
    content::check_file(&volume.path("small"), 4, 1000).expect("the disks are back");
    content::write_file(&volume.path("after"), 3, LENGTH).expect("writing again");
    volume.remount();
    content::check_file(&volume.path("after"), 3, LENGTH).expect("what was written again");
}

/// Disks that are not there at mount: as many as the code survives, then one more, then half.
#[test]
fn missing_disks() {
    let mut volume = over(Backing::Directory);
    content::write_file(&volume.path("file"), 1, LENGTH).expect("a file");
    content::write_file(&volume.path("small"), 2, 5000).expect("a small file");
    volume.umount();
    for gone in [0, 3] {
        volume.disks[gone].take_away();
        volume.mount();
        content::check_file(&volume.path("file"), 1, LENGTH).expect("the file");
        content::check_file(&volume.path("small"), 2, 5000).expect("the small file");
        volume.umount();
    }
    // A third: what is known of the files is still there, their bytes are not; nothing may hang or be made up.
    volume.disks[5].take_away();
    match volume.try_mount(&[]) {
        Err(why) => assert!(why.contains("disk"), "no clear error: {why}"),
        Ok(()) => {
            let error = content::check_file(&volume.path("file"), 1, LENGTH)
                .expect_err("a file with too little left");
            assert!(error.contains("os error 5"), "{error}");
            volume.umount();
        }
    }
    for back in [0, 3, 5] {
        volume.disks[back].bring_back();
    }
    volume.mount();
    content::check_file(&volume.path("file"), 1, LENGTH).expect("the disks are back");
    content::check_file(&volume.path("small"), 2, 5000).expect("the disks are back");
}

/// With fewer than half of its disks a volume cannot know that it is not the stale one.
#[test]
fn fewer_than_half_of_the_disks_are_read_only() {
    let mut volume = Volume::mounted_as(&Shape {
        disks: 3,
        critical: "1+2",
        ..Shape::default()
    });
    content::write_file(&volume.path("file"), 1, LENGTH).expect("a file");
    volume.umount();
    volume.disks[0].take_away();
    volume.disks[2].take_away();
    volume.mount();
    content::check_file(&volume.path("file"), 1, LENGTH).expect("the file on one disk of three");
    let error =
        fs::write(volume.path("new"), b"x").expect_err("writing to a volume that may be stale");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
    volume.umount();
    volume.mount_with(&["--force"]);
    content::check_file(&volume.path("file"), 1, LENGTH)
        .expect("the file on one disk of three, by force");
}

/// A disk that was away while others were written to, and one after the other so that each was away once.
#[test]
fn stale_disks_are_brought_up_to_date() {
    let mut volume = over(Backing::Directory);
    content::write_file(&volume.path("kept"), 100, LENGTH).expect("a file");
    volume.umount();
    for away in 0..6 {
        volume.disks[away].take_away();
        volume.mount();
        content::write_file(
            &volume.path(&format!("without{away}")),
            away as u64,
            LENGTH / 4,
        )
        .expect("writing without a disk");
        fs::write(volume.path("changing"), format!("without {away}")).expect("a small file");
        if away > 0 {
            fs::remove_file(volume.path(&format!("without{}", away - 1))).expect("unlink");
        }
        volume.umount();
        volume.disks[away].bring_back();
        volume.mount();
        assert_eq!(
            fs::read(volume.path("changing")).expect("the small file"),
            format!("without {away}").as_bytes()
        );
        content::check_file(
            &volume.path(&format!("without{away}")),
            away as u64,
            LENGTH / 4,
        )
        .expect("the last file");
        content::check_file(&volume.path("kept"), 100, LENGTH).expect("the first file");
        assert_eq!(fs::read_dir(&volume.mountpoint).expect("list").count(), 3);
        volume.umount();
    }
    // All have come back; now any two may go.
    for gone in [1, 2] {
        volume.disks[gone].take_away();
    }
    volume.mount();
    content::check_file(&volume.path("without5"), 5, LENGTH / 4).expect("the last file");
    content::check_file(&volume.path("kept"), 100, LENGTH).expect("the first file");
}

/// Two halves of a volume that were each written to alone are two volumes now; which is right is not for us to say.
#[test]
fn two_histories_are_refused_by_name() {
    let mut volume = over(Backing::Directory);
    content::write_file(&volume.path("file"), 1, LENGTH).expect("a file");
    volume.umount();
    let halves = [[0, 1, 2], [3, 4, 5]];
    for half in halves {
        for disk in half {
            volume.disks[disk].take_away();
        }
        volume.mount_with(&["--force"]);
        fs::write(volume.path("small"), format!("without {half:?}")).expect("writing to a half");
        volume.umount();
        for disk in half {
            volume.disks[disk].bring_back();
        }
    }
    let why = volume
        .try_mount(&[])
        .expect_err("two histories in one volume");
    assert!(
        why.contains("disk1, disk2 and disk3") && why.contains("disk4, disk5 and disk6"),
        "the disks are not named: {why}"
    );
    // The administrator decides; nothing of the half that was kept is lost.
    for disk in halves[1] {
        volume.disks[disk].take_away();
    }
    volume.mount_with(&["--force"]);
    assert_eq!(
        fs::read(volume.path("small")).expect("the small file"),
        b"without [3, 4, 5]"
    );
}

/// Another disk is mounted in the place of one: empty, as a new one is.
#[test]
fn an_empty_disk_in_the_place_of_one_is_not_taken_for_it() {
    let mut volume = over(Backing::Directory);
    content::write_file(&volume.path("file"), 1, LENGTH).expect("a file");
    volume.umount();
    volume.disks[4].take_away();
    volume.mount();
    content::check_file(&volume.path("file"), 1, LENGTH).expect("the file");
    content::write_file(&volume.path("second"), 2, LENGTH).expect("a second file");
    volume.umount();
    assert_eq!(
        volume.disks[4]
            .files(crate::harness::disks::Kind::Any)
            .len(),
        0,
        "an empty mount point was written to"
    );
}

/// A real device that runs out, one that turns read-only, and one whose end is gone.
#[test]
fn real_devices_fail() {
    let mut volume = Volume::mounted_as(&Shape {
        backing: Backing::Ext4(128),
        compression: "none",
        ..Shape::default()
    });
    content::write_file(&volume.path("before"), 1, LENGTH).expect("a file from before");

    // Somebody else fills a disk.
    let ballast = volume.disks[0].path.join("ballast");
    let file = File::create(&ballast).expect("ballast");
    let mut piece = 0;
    while file.write_all_at(&vec![7; 1 << 20], piece << 20).is_ok() {
        piece += 1;
    }
    content::write_file(&volume.path("with a full disk"), 2, LENGTH)
        .expect("a file with one disk full");
    drop(file);
    fs::remove_file(&ballast).expect("unlink");

    // The kernel turns a disk read-only, as it does after an error. The daemon's open files hold it; so it is mounted anew.
    volume.umount();
    loop_device::remount(&volume.disks[1].path, false);
    volume.mount();
    content::write_file(&volume.path("with a read-only disk"), 3, LENGTH)
        .expect("a file with one disk read-only");
    let check = |volume: &Volume| {
        for (name, seed) in [
            ("before", 1),
            ("with a full disk", 2),
            ("with a read-only disk", 3),
        ] {
            content::check_file(&volume.path(name), seed, LENGTH).expect("a file");
        }
    };
    check(&volume);
    volume.umount();
    loop_device::remount(&volume.disks[1].path, true);

    // What lies behind the end of the image can no longer be read.
    volume.mount();
    forget_cached();
    let image = File::options()
        .write(true)
        .open(volume.disks[2].image())
        .expect("the image");
    image.set_len(4 << 20).expect("cutting the image short");
    check(&volume);
    // What is left of that filesystem may answer with any error, or not let go; its data must come from elsewhere.
    content::write_file(&volume.path("last"), 4, LENGTH).expect("a file with one disk cut short");
    check(&volume);
    content::check_file(&volume.path("last"), 4, LENGTH).expect("the last file");
}

/// What the daemon has open on a filesystem.
fn open_on(volume: &Volume, device: u64) -> Vec<PathBuf> {
    let files = format!("/proc/{}/fd", volume.daemon().as_raw_nonzero());
    let files = fs::read_dir(files).expect("the daemon's files").flatten();
    let on = files.filter(|file| fs::metadata(file.path()).is_ok_and(|of| of.dev() == device));
    on.map(|file| fs::read_link(file.path()).unwrap_or_default())
        .collect()
}

/// Nothing holds a disk that is out of service: it can be unmounted, looked over and mounted again, and comes back.
fn is_let_go(backing: Backing, state: &str, break_disk: fn(&TestDisk), mend: fn(&TestDisk)) {
    let volume = Volume::mounted_as(&Shape {
        disks: 4,
        critical: "2+1",
        backing,
        ..Shape::default()
    });
    // The first disk's database is the one that is read from.
    let disk = &volume.disks[0];
    let device = fs::metadata(&disk.path).expect("the disk").dev();
    content::write_file(&volume.path("before"), 1, LENGTH).expect("a file from before");
    forget_cached();
    content::check_file(&volume.path("before"), 1, LENGTH).expect("the file from before");
    assert!(!open_on(&volume, device).is_empty());
    break_disk(disk);
    content::write_file(&volume.path("during"), 2, LENGTH).expect("a file without the disk");
    becomes(&volume, "disk1", state);
    let begun = Instant::now();
    while !open_on(&volume, device).is_empty() {
        let open = open_on(&volume, device);
        assert!(begun.elapsed() < PATIENCE, "still open: {open:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    mend(disk);
    done(&volume, &["disk", "online"], &["disk1"]);
    becomes(&volume, "disk1", "online");
    let device = fs::metadata(&disk.path).expect("the disk").dev();
    wait_until("the disk to be in use", PATIENCE, || {
        !open_on(&volume, device).is_empty()
    });
    for (name, seed) in [("before", 1), ("during", 2)] {
        content::check_file(&volume.path(name), seed, LENGTH).expect("a file");
    }
}

#[test]
fn a_missing_disk_is_let_go() {
    let mend = |disk: &TestDisk| {
        // What is open is closed, and then the filesystem is unmounted, which takes a while.
        wait_until("the old mount to be gone", PATIENCE, || {
            let mut losetup = Command::new("losetup");
            let users = run(losetup.arg("-j").arg(disk.image()), PATIENCE);
            users.status.success() && users.stdout.is_empty()
        });
        // 1 is for what it set right: the tests take lost+found away.
        let checked = run(
            Command::new("e2fsck").args(["-f", "-p"]).arg(disk.image()),
            PATIENCE,
        );
        assert!(
            checked.status.code().is_some_and(|code| code <= 1),
            "{checked:?}"
        );
        disk.bring_back();
    };
    is_let_go(Backing::Ext4(128), "missing", TestDisk::take_away, mend);
}

#[test]
fn a_faulty_disk_is_let_go() {
    is_let_go(
        Backing::Faulty,
        "faulty",
        |disk| disk.faults().set(|faults| faults.failing_writes = true),
        |disk| disk.faults().heal(),
    );
}
