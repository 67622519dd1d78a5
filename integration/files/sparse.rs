//! Files with holes: what is told of them is true, and they take no space.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, fallocate};

use crate::harness::content;
use crate::harness::process::shell;
use crate::harness::tree;
use crate::harness::volume::Volume;

const GIB: u64 = 1 << 30;

/// Three islands of data in a large file, and what must be told of them, before and after a remount.
#[test]
fn holes_are_told_where_they_are() {
    let mut volume = Volume::mounted();
    let path = volume.path("islands");
    let file = File::create(&path).expect("a file");
    file.set_len(8 * GIB).expect("length");
    let islands = [
        (0, 200_000),
        (3 * GIB + 12_288, 400_000),
        (8 * GIB - 50_000, 50_000),
    ];
    for (at, length) in islands {
        content::write_range(&file, 1, at, length).expect("an island");
    }
    content::close(file).expect("close");
    for _ in 0..2 {
        let file = File::open(&path).expect("open");
        let holes = tree::holes(&file, 8 * GIB).expect("holes");
        for (at, length) in islands {
            let touched = holes
                .iter()
                .any(|&(from, to)| from < at + length && at < to);
            assert!(!touched, "data at {at} is told to be a hole: {holes:?}");
            content::check_range(&file, 1, at, length).expect("an island");
        }
        let told: u64 = holes.iter().map(|(from, to)| to - from).sum();
        assert!(
            told > 8 * GIB - (2 << 20),
            "only {told} bytes of holes are told of: {holes:?}"
        );
        assert!(
            fs::metadata(&path).expect("stat").blocks() * 512 < 4 << 20,
            "a sparse file is told to be full"
        );
        drop(file);
        volume.remount();
    }
    assert!(
        volume.used() < 32 << 20,
        "a sparse file takes {} bytes of the disks",
        volume.used()
    );
}

#[test]
fn punching_gives_space_back() {
    let mut volume = Volume::mounted();
    let path = volume.path("punched");
    content::write_file(&path, 2, 32 << 20).expect("a file");
    let full = volume.used();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("open");
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 1 << 20, 30 << 20).expect("punch");
    content::close(file).expect("close");
    volume.remount();
    let file = File::open(&path).expect("open");
    content::check_range(&file, 2, 0, 1 << 20).expect("before the hole");
    content::check_range(&file, 2, 31 << 20, 1 << 20).expect("behind the hole");
    let mut hole = vec![1; 30 << 20];
    file.read_exact_at(&mut hole, 1 << 20).expect("the hole");
    assert!(
        hole.iter().all(|&byte| byte == 0),
        "the hole holds something"
    );
    assert_eq!(file.metadata().expect("stat").len(), 32 << 20);
    drop(file);
    volume.umount();
    let left = volume.used();
    assert!(
        left < full / 2,
        "{left} of {full} bytes are left after 30 of 32 MiB were punched out"
    );
}

/// cp and tar find the holes by themselves; what they make is as sparse.
#[test]
fn programs_find_the_holes() {
    let volume = Volume::mounted();
    shell(
        &volume.mountpoint,
        "truncate -s 300M a
         head -c 1M /dev/urandom | dd of=a bs=1M seek=100 conv=notrunc status=none
         cp --sparse=auto a b && cmp a b
         tar -S -cf t.tar a && [ $(stat -c %s t.tar) -lt 4000000 ]
         mkdir out && tar -S -xf t.tar -C out && cmp a out/a
         [ $(du -k b | cut -f1) -lt 4096 ] && [ $(du -k out/a | cut -f1) -lt 4096 ]",
    );
}
