//! Names: special files, odd names, large directories, what is kept over a remount.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode};

use crate::harness::process::shell;
use crate::harness::tree::{Times, Tree};
use crate::harness::volume::Volume;

#[test]
fn special_files_are_kept() {
    let mut volume = Volume::mounted();
    shell(
        &volume.mountpoint,
        "mkfifo -m 640 fifo
         mknod null c 1 3
         mknod loop b 7 0
         python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'
         (echo through > fifo &) ; [ \"$(cat fifo)\" = through ]
         mkdir -m 1777 sticky; mkdir -m 2775 setgid; chgrp 5 setgid; mkdir setgid/below; touch setgid/file
         [ \"$(stat -c %g setgid/below) $(stat -c %a setgid/below)\" = '5 2755' ]
         [ $(stat -c %g setgid/file) = 5 ]
         chown 1000:1000 sticky setgid/file; ln -s nowhere dangling; ln fifo fifo2",
    );
    let before = Tree::capture(&volume.mountpoint).expect("the tree");
    volume.remount();
    let after = Tree::capture(&volume.mountpoint).expect("the tree after a remount");
    assert_eq!(
        before.differences(&after, Times::Exact),
        Vec::<String>::new()
    );
}

#[test]
fn any_bytes_may_be_a_name() {
    let mut volume = Volume::mounted();
    let mut names: Vec<Vec<u8>> = (1..=255)
        .filter(|&byte| byte != b'/' && byte != b'.')
        .map(|byte| vec![byte])
        .collect();
    names.push(vec![b'x'; 255]);
    names.push("Größe 日本 \u{1f980}".as_bytes().to_vec());
    names.push(b"\xff\xfe not UTF-8 \n".to_vec());
    for name in &names {
        fs::write(volume.mountpoint.join(OsStr::from_bytes(name)), name)
            .expect("a file of an odd name");
    }
    volume.remount();
    let expected: BTreeSet<Vec<u8>> = names.into_iter().collect();
    let listed = fs::read_dir(&volume.mountpoint).expect("list");
    let found: BTreeSet<Vec<u8>> = listed
        .map(|entry| entry.expect("an entry").file_name().as_bytes().to_vec())
        .collect();
    assert_eq!(found, expected);
    for name in &found {
        assert_eq!(
            &fs::read(volume.mountpoint.join(OsStr::from_bytes(name))).expect("read"),
            name
        );
    }
}

/// A directory longer than any one answer of the kernel's, listed while it changes: what was there all the time is listed
/// once.
#[test]
fn a_large_directory_is_listed_whole_while_it_changes() {
    let volume = Volume::mounted();
    let directory = volume.path("many");
    fs::create_dir(&directory).expect("mkdir");
    for number in 0..1500 {
        // Not by an open, whose close would be a commit each.
        let path = directory.join(format!("stays-{number:05}"));
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::RegularFile, mode, 0)
            .expect("a file");
    }
    let mut seen = Vec::new();
    for (place, entry) in fs::read_dir(&directory).expect("list").enumerate() {
        let name = entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("a name");
        if place % 50 == 0 {
            fs::write(directory.join(format!("comes-{place}")), b"").expect("a new file");
            let _ = fs::remove_file(directory.join(format!("comes-{}", place.saturating_sub(200))));
        }
        seen.push(name);
    }
    let mut stays: Vec<&String> = seen
        .iter()
        .filter(|name| name.starts_with("stays-"))
        .collect();
    stays.sort();
    let listed = stays.len();
    stays.dedup();
    assert_eq!((listed, stays.len()), (1500, 1500));
}

#[test]
fn a_symlink_leads_where_it_led() {
    let mut volume = Volume::mounted();
    let long = "x/".repeat(2000) + "end";
    std::os::unix::fs::symlink(&long, volume.path("long")).expect("a long symlink");
    volume.remount();
    assert_eq!(
        fs::read_link(volume.path("long"))
            .expect("readlink")
            .as_os_str(),
        OsStr::new(&long)
    );
}
