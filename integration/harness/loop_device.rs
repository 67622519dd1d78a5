//! An ext4 filesystem of a given size in a sparse file: a disk that can be full, read-only or cut short.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use super::process::must;

/// Makes an ext4 of `mib` MiB in `image` and mounts it. The loop device goes away with the mount.
pub fn make(image: &Path, mib: u64, mountpoint: &Path) {
    let file = File::create(image).expect("an image");
    file.set_len(mib << 20).expect("the image's length");
    // No reserved blocks: they would make "full" depend on who writes.
    must(
        Command::new("mkfs.ext4")
            .args(["-q", "-m", "0", "-I", "256"])
            .arg(image),
    );
    mount(image, mountpoint);
}

/// Mounts an image that was made before.
pub fn mount(image: &Path, mountpoint: &Path) {
    must(
        Command::new("mount")
            .args(["-t", "ext4", "-o", "loop,discard"])
            .args([image, mountpoint]),
    );
}

/// Makes the disk read-only or writable again.
pub fn remount(mountpoint: &Path, writable: bool) {
    let option = if writable { "remount,rw" } else { "remount,ro" };
    must(Command::new("mount").args(["-o", option]).arg(mountpoint));
}
