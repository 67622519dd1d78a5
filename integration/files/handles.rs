//! Several descriptors on one file, and files that live on without a name.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::harness::content;
use crate::harness::process::shell;
use crate::harness::volume::Volume;

#[test]
fn descriptors_with_different_flags_see_one_file() {
    let volume = Volume::mounted();
    let path = volume.path("log");
    let writer = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .expect("a writer");
    let mut reader = File::open(&path).expect("a reader");
    let mut appender = OpenOptions::new()
        .append(true)
        .open(&path)
        .expect("an appender");
    writer.write_all_at(b"0123456789", 0).expect("write");
    appender.write_all(b"abc").expect("append");
    writer.write_all_at(b"XY", 4).expect("overwrite");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read");
    assert_eq!(text, "0123XY6789abc");
    writer.set_len(5).expect("truncate");
    appender
        .write_all(b"!")
        .expect("append after the truncation");
    assert_eq!(fs::read(&path).expect("read"), b"0123X!");
    let again = OpenOptions::new().write(true).create_new(true).open(&path);
    assert_eq!(
        again
            .expect_err("O_EXCL on a file that is there")
            .raw_os_error(),
        Some(libc::EEXIST)
    );
    drop(
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .expect("O_TRUNC"),
    );
    assert_eq!(reader.metadata().expect("stat").len(), 0);
    reader.seek(SeekFrom::Start(0)).expect("seek");
    assert_eq!(
        reader.read(&mut [0; 10]).expect("read"),
        0,
        "a reader from before sees the truncation"
    );
}

/// A program that runs cannot be written to, and a try to cut it does not: with O_RDONLY and O_TRUNC the kernel finds out
/// only after it has opened the file.
#[test]
fn a_running_program_stays_as_it_is() {
    let volume = Volume::mounted();
    let path = volume.path("program");
    fs::copy("/bin/sleep", &path).expect("a copy of sleep");
    let mut running = loop {
        match Command::new(&path).arg("60").spawn() {
            // A child of another test that is just being started has what was open here, too.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            started => break started.expect("the program"),
        }
    };
    let flags = [
        OFlags::WRONLY,
        OFlags::RDWR,
        OFlags::RDONLY | OFlags::TRUNC,
        OFlags::WRONLY | OFlags::TRUNC,
    ];
    for flags in flags {
        let opened = rustix::fs::open(&path, flags, Mode::empty());
        assert_eq!(
            opened.expect_err("a program that runs"),
            Errno::TXTBSY,
            "{flags:?}"
        );
        assert_eq!(running.try_wait().expect("the program"), None, "{flags:?}");
    }
    running.kill().expect("kill");
    running.wait().expect("wait");
    let (expected, found) = (fs::read("/bin/sleep"), fs::read(&path));
    assert!(expected.expect("sleep") == found.expect("read"));
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::TRUNC, Mode::empty()).expect("it has ended");
    assert_eq!(fs::metadata(&path).expect("stat").len(), 0);
}

/// Appenders in several processes never write over each other.
#[test]
fn appends_of_many_processes_all_arrive() {
    let volume = Volume::mounted();
    shell(
        &volume.mountpoint,
        "for i in 1 2 3 4; do (for n in $(seq 50); do echo \"$i $n\" >> all; done) & done; wait
         [ $(wc -l < all) = 200 ] && [ $(sort -u all | wc -l) = 200 ]",
    );
}

#[test]
fn a_file_without_a_name_lives_until_it_is_closed() {
    let mut volume = Volume::mounted();
    let path = volume.path("gone");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .expect("a file");
    content::write_range(&file, 1, 0, 2 << 20).expect("write");
    file.sync_all().expect("fsync");
    fs::remove_file(&path).expect("unlink");
    content::write_range(&file, 1, 2 << 20, 2 << 20).expect("writing on");
    file.sync_all().expect("fsync of a file without a name");
    content::check_range(&file, 1, 0, 4 << 20).expect("the file without a name");
    assert_eq!(file.metadata().expect("stat").nlink(), 0);
    // A new file of that name is another one.
    content::write_file(&path, 2, 10_000).expect("a new file");
    content::check_range(&file, 1, 0, 4 << 20).expect("the file without a name");
    content::close(file).expect("close");
    volume.remount();
    content::check_file(&path, 2, 10_000).expect("the new file");
    assert_eq!(fs::read_dir(&volume.mountpoint).expect("list").count(), 1);
}

#[test]
fn a_temporary_file_gets_its_name_later_or_never() {
    let volume = Volume::mounted();
    let tried = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(&volume.mountpoint);
    // Not promised; programs that ask for it fall back on EOPNOTSUPP, and on nothing else.
    match tried {
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
        Ok(file) => {
            content::write_range(&file, 1, 0, 100_000).expect("write");
            content::check_range(&file, 1, 0, 100_000).expect("read");
        }
    }
}
