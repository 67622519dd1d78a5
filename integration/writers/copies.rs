//! A guest's memory file brought into the mount by the programs that people copy with.

use super::{Stand, assert_readable, assert_sorted, assert_written};
use crate::harness::process::shell;

/// What is run in a directory where `$memory` is the memory file and the mount is `mnt`; each makes `mnt/NAME`.
const PROGRAMS: [(&str, &str); 7] = [
    ("cp", "cp \"$memory\" mnt/cp"),
    ("sparse", "cp --sparse=always \"$memory\" mnt/sparse"),
    ("dense", "cp --sparse=never \"$memory\" mnt/dense"),
    (
        "dd",
        "dd if=\"$memory\" of=mnt/dd bs=1M conv=fsync status=none",
    ),
    ("rsync", "rsync \"$memory\" mnt/rsync"),
    (
        "rsync-sparse",
        "rsync --sparse --inplace --partial \"$memory\" mnt/rsync-sparse",
    ),
    (
        "tar",
        "mkdir mnt/tarred && tar -C \"$(dirname \"$memory\")\" -cSf - memory | tar -C mnt/tarred -xSf - && mv mnt/tarred/memory mnt/tar",
    ),
];

/// Copies the guest's memory with every program, loses two disks, and lets the guest go on in some of the copies.
fn copied_and_lost(pair: [usize; 2], goes_on_in: impl Fn(&str) -> bool) {
    let mut stand = Stand::new();
    let memory = stand.memory().to_owned();
    for (name, script) in PROGRAMS {
        let script = format!("memory={}\n{script}", memory.display());
        shell(stand.volume.scratch.path(), &script);
        assert_written(&stand.volume.path(name), &memory);
        assert_sorted(&stand.volume.path(name));
    }
    // The temporary names are gone.
    shell(
        &stand.volume.mountpoint,
        "[ \"$(ls -A | wc -l)\" = 8 ] && [ -z \"$(ls -A tarred)\" ]",
    );
    stand.lose(pair);
    for (name, _) in PROGRAMS {
        assert_readable(&stand.volume.path(name), &memory);
    }
    for (name, _) in PROGRAMS {
        if goes_on_in(name) {
            stand.goes_on_in(&stand.volume.path(name));
        }
    }
}

#[test]
fn copies_read_back_with_two_disks_lost_and_a_guest_goes_on_in_one() {
    copied_and_lost([0, 4], |name| name == "sparse");
}

#[test]
fn a_guest_goes_on_in_every_copy_in_full() {
    copied_and_lost([1, 2], |_| true);
}
