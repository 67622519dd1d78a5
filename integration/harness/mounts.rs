//! What is mounted where, as the kernel tells it. Asking the kernel and not the mount point cannot hang on a dead mount.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

/// One line of `/proc/self/mountinfo`.
#[derive(Debug)]
pub struct Mount {
    pub at: PathBuf,
    pub kind: String,
    pub source: String,
}

/// All mounts, the latest last.
pub fn all() -> Vec<Mount> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    text.lines().filter_map(parse).collect()
}

/// What is mounted on a path, if anything.
pub fn on(path: &Path) -> Option<Mount> {
    all().into_iter().rev().find(|mount| mount.at == path)
}

/// Which processes have something open below a path, in words.
pub fn users(below: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    for process in list(Path::new("/proc")) {
        let path = process.path();
        let links = ["cwd", "root", "exe"].map(|name| path.join(name));
        let open = list(&path.join("fd")).map(|entry| entry.path());
        for link in links.into_iter().chain(open) {
            let Ok(to) = fs::read_link(&link) else {
                continue;
            };
            if to.starts_with(below) {
                let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
                let wait = fs::read_to_string(path.join("wchan")).unwrap_or_default();
                found.push(format!(
                    "{} ({}, waits in {wait:?}) has {}",
                    link.display(),
                    name.trim(),
                    to.display()
                ));
            }
        }
    }
    found
}

/// Takes away every mount at or below a path, whether or not it is in use or its server is dead.
pub fn clear(root: &Path) {
    for mount in all()
        .iter()
        .rev()
        .filter(|mount| mount.at.starts_with(root))
    {
        let _ = unmount(&mount.at, UnmountFlags::DETACH);
    }
}

fn parse(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ');
    let at = fields.nth(4)?;
    let mut behind = fields.skip_while(|field| *field != "-").skip(1);
    Some(Mount {
        at: unescape(at),
        kind: behind.next()?.to_owned(),
        source: behind.next()?.to_owned(),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[test]
fn a_mount_point_with_a_space_is_read_back() {
    let line = r"36 35 98:0 / /mnt/a\040b rw,noatime shared:1 - fuse.parsfs vms rw,user_id=0";
    let mount = parse(line).expect("a mount");
    assert_eq!(mount.at, Path::new("/mnt/a b"));
    assert_eq!(
        (mount.kind.as_str(), mount.source.as_str()),
        ("fuse.parsfs", "vms")
    );
}
