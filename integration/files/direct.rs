//! O_DIRECT: a database or a hypervisor past the page cache, beside readers that use it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::harness::content;
use crate::harness::process::shell;
use crate::harness::volume::Volume;

const LENGTH: u64 = 3 << 20;

/// Page-aligned memory: a mapping always is.
fn read_direct(file: &File, at: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length + 4096];
    let begin = buffer.as_ptr().align_offset(4096);
    file.read_exact_at(&mut buffer[begin..begin + length], at)
        .expect("a direct read");
    buffer[begin..begin + length].to_vec()
}

#[test]
fn direct_and_cached_readers_see_the_same() {
    let mut volume = Volume::mounted();
    let path = volume.path("file");
    content::write_file(&path, 1, LENGTH).expect("a file");
    volume.remount();
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .expect("O_DIRECT");
    let cached = File::open(&path).expect("open");
    for at in [0, 4096, 128 << 10, (1 << 20) + 8192] {
        assert_eq!(
            content::first_wrong(1, at, &read_direct(&direct, at, 64 << 10)),
            None
        );
    }
    content::check_range(&cached, 1, 0, LENGTH).expect("through the page cache");

    // Written past the cache, it must be seen through the cache by a file opened before.
    let mut buffer = vec![0; 8192 + 4096];
    let begin = buffer.as_ptr().align_offset(4096);
    content::fill(2, 1 << 20, &mut buffer[begin..begin + 8192]);
    direct
        .write_all_at(&buffer[begin..begin + 8192], 1 << 20)
        .expect("a direct write");
    content::check_range(&cached, 2, 1 << 20, 8192).expect("what was written past the cache");
    content::check_range(&cached, 1, 0, 1 << 20).expect("what lies before");
    direct.sync_all().expect("fsync");
}

#[test]
fn dd_writes_and_reads_past_the_cache() {
    let mut volume = Volume::mounted();
    let source = volume.scratch.path().join("source");
    content::write_file(&source, 3, LENGTH).expect("a source");
    shell(
        volume.scratch.path(),
        "dd if=source of=mnt/a bs=64K oflag=direct conv=fsync status=none
         dd if=source of=mnt/b bs=1M oflag=dsync status=none
         dd if=mnt/a of=back bs=4K iflag=direct status=none
         cmp source back && cmp source mnt/b",
    );
    volume.remount();
    shell(
        volume.scratch.path(),
        "cmp source mnt/a && cmp source mnt/b",
    );
}
