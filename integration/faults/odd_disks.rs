//! What administrators do to disks: they swap cables, clone with dd, copy a whole volume with rsync, and find a disk in a
//! drawer that was away for a week of mounts.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use parsfs::config::Config;
use parsfs::disk::Disk;
use parsfs::volume::{Mode, ROOT, Volume, VolumeOptions};

use crate::operation::{CALLER, noise};
use crate::rig::{Media, Shape, all, new_volume, open, read};

const SHAPE: Shape = Shape {
    disks: 4,
    k: 2,
    m: 2,
};

fn write(volume: &Volume, name: &str, seed: u64, length: usize) {
    let _ = volume.remove(ROOT, name.as_bytes());
    let made = volume.create_file(ROOT, name.as_bytes(), 0o644, libc::O_RDWR, CALLER);
    let handle = made.expect("a file").1.handle;
    volume
        .write(handle, 0, &noise(seed, length))
        .expect("written");
    volume.flush(handle).expect("committed");
    volume.release(handle);
}

fn check(volume: &Volume, name: &str, seed: u64, length: usize) {
    let file = volume.lookup(ROOT, name.as_bytes()).expect(name).file;
    let found = read(volume, file).expect(name);
    let pages = found.pages.into_iter().map(|page| page.expect("readable"));
    assert!(
        pages.flatten().eq(noise(seed, length)),
        "{name} is not what it was"
    );
}

fn without(media: &Media, gone: &[usize]) -> Vec<Option<Arc<dyn Disk>>> {
    let disks = all(media).into_iter().enumerate();
    disks
        .map(|(number, disk)| (!gone.contains(&number)).then_some(disk))
        .collect()
}

#[test]
fn disks_that_were_swapped_are_known_by_their_labels() {
    let config = SHAPE.config();
    let mut media = new_volume(&config);
    let volume = open(&config, all(&media), None).expect("opens");
    write(&volume, "a", 1, 300_000);
    volume.close().expect("closed");
    drop(volume);
    media.swap(0, 3);
    media.swap(1, 2);
    let volume = open(&config, all(&media), None).expect("opens with its disks in other places");
    check(&volume, "a", 1, 300_000);
    write(&volume, "b", 2, 300_000);
    volume.close().expect("closed");
    drop(volume);
    media.swap(0, 1);
    let options = VolumeOptions::default();
    let volume = Volume::open_on(&config, without(&media, &[1, 3]), Mode::ReadOnly, options);
    let volume = volume.expect("opens without two");
    check(&volume, "a", 1, 300_000);
    check(&volume, "b", 2, 300_000);
}

#[test]
fn a_clone_of_a_disk_is_refused_by_both_names() {
    let config = SHAPE.config();
    let mut media = new_volume(&config);
    media[2] = Arc::new(media[0].after_kill());
    for mode in [Mode::ReadOnly, Mode::ReadWrite] {
        let options = VolumeOptions::default();
        let refused = Volume::open_on(&config, without(&media, &[]), mode, options);
        let message = refused.expect_err("two disks of one number").to_string();
        assert!(
            message.contains("disk0") && message.contains("disk2"),
            "{message}"
        );
    }
}

#[test]
fn a_disk_that_was_away_for_a_week_is_brought_up() {
    let config = SHAPE.config();
    let mut media = new_volume(&config);
    let volume = open(&config, all(&media), None).expect("opens");
    for number in 0..4 {
        write(&volume, &format!("f{number}"), number, 120_000);
    }
    volume.close().expect("closed");
    drop(volume);
    let old = Arc::new(media[1].after_kill());
    for day in 0..7 {
        let options = VolumeOptions {
            journal_bytes: 20_000,
            ..VolumeOptions::default()
        };
        let volume = Volume::open_on(&config, without(&media, &[1]), Mode::ReadWrite, options);
        let volume = volume.expect("opens without it");
        for number in 0..4 {
            write(
                &volume,
                &format!("f{number}"),
                day * 10 + number,
                90_000 + day as usize,
            );
        }
        volume.close().expect("closed");
    }
    media[1] = old;
    let volume = open(&config, all(&media), None).expect("opens with it");
    for number in 0..4 {
        check(&volume, &format!("f{number}"), 60 + number, 90_006);
    }
    write(&volume, "new", 99, 200_000);
    volume.close().expect("closed");
    drop(volume);
    // What it knows must be the truth by now: two others go.
    let options = VolumeOptions::default();
    let volume = Volume::open_on(&config, without(&media, &[0, 2]), Mode::ReadOnly, options);
    let volume = volume.expect("opens");
    for number in 0..4 {
        check(&volume, &format!("f{number}"), 60 + number, 90_006);
    }
    check(&volume, "new", 99, 200_000);
}

#[test]
fn a_volume_is_copied_with_rsync() {
    let place = tempfile::tempdir().expect("a directory");
    let config = |name: &str| {
        let mut text = String::from("[volume]\nname = \"copied\"\n");
        for number in 0..4 {
            let path = place.path().join(name).join(format!("disk{number}"));
            fs::create_dir_all(&path).expect("a directory");
            text += &format!("[[disk]]\npath = {path:?}\n");
        }
        text += "[policy]\ncritical = \"2+2\"\n";
        Config::parse(&text, Path::new("/copied.toml")).expect("a good config")
    };
    let from = config("from");
    Volume::create(&from).expect("a new volume");
    let volume = Volume::open(&from, Mode::ReadWrite).expect("opens");
    write(&volume, "a", 1, 900_000);
    volume.close().expect("closed");
    let status = Command::new("rsync")
        .arg("-a")
        .arg(place.path().join("from/"))
        .arg(place.path().join("to"))
        .status();
    assert!(status.expect("rsync").success());
    let volume = Volume::open(&config("to"), Mode::ReadWrite).expect("opens on new disks");
    check(&volume, "a", 1, 900_000);
    write(&volume, "b", 2, 900_000);
    volume.close().expect("closed");
}
