//! Volumes as released versions of the program wrote them, one archive a format in `integration/fixtures/`: whatever is
//! changed later, they mount, and every byte is there. And the versions on labels: a greater minor number mounts, an
//! unknown major one is refused by name.
//!
//! `PARSFS_MAKE_FIXTURE=1 cargo test --release --test faults -- fixtures` writes the archive of the format that this
//! program writes, if there is none yet. It is done once, when a version is released.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use parsfs::config::Config;
use parsfs::disk::FORMAT;
use parsfs::volume::{Changes, Mode, ROOT, Volume};
use xxhash_rust::xxh3::xxh3_64;

use crate::operation::{CALLER, noise};
use crate::rig::read;

const DISKS: usize = 3;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/fixtures")
}

fn config(place: &Path) -> Config {
    let mut text = String::from("[volume]\nname = \"fixture\"\n");
    for number in 0..DISKS {
        let path = place.join(format!("disk{number}"));
        text += &format!("[[disk]]\nname = \"disk{number}\"\npath = {path:?}\n");
    }
    text += "[policy]\ncritical = \"2+1\"\nblock_size = \"8K\"\n";
    Config::parse(&text, Path::new("/fixture.toml")).expect("a good config")
}

/// The files of a fixture.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let mut sparse = vec![0; 700_000];
    sparse[300_000..420_000].copy_from_slice(&noise(3, 120_000));
    let mut patched = noise(4, 260_000);
    patched[100_000..100_100].copy_from_slice(&noise(5, 100));
    vec![
        ("empty", Vec::new()),
        ("small", noise(1, 1234)),
        ("blocks", noise(2, 250_000)),
        ("sparse", sparse),
        ("patched", patched),
    ]
}

/// Makes the volume in a directory. The last changes are only in the journal, as after a crash.
fn make(place: &Path) {
    for number in 0..DISKS {
        fs::create_dir(place.join(format!("disk{number}"))).expect("a directory");
    }
    let config = config(place);
    Volume::create(&config).expect("a new volume");
    let mut volume = open(&config, Mode::ReadWrite);
    let directory = volume
        .make_directory(ROOT, b"directory", 0o750, CALLER)
        .expect("made")
        .file;
    for (number, (name, bytes)) in files().into_iter().enumerate() {
        if number == 3 {
            volume.close().expect("closed");
            drop(volume);
            volume = open(&config, Mode::ReadWrite);
        }
        let parent = if name == "small" { directory } else { ROOT };
        let made = volume.create_file(parent, name.as_bytes(), 0o640, libc::O_RDWR, CALLER);
        let handle = made.expect("a file").1.handle;
        if name == "patched" {
            volume
                .write(handle, 0, &noise(4, 260_000))
                .expect("written");
            volume.fsync(handle).expect("synced");
            volume
                .write(handle, 100_000, &noise(5, 100))
                .expect("written");
        } else {
            volume.write(handle, 0, &bytes).expect("written");
        }
        volume.flush(handle).expect("committed");
        volume.release(handle);
    }
    volume
        .make_symlink(ROOT, b"link", b"directory/small", CALLER)
        .expect("a link");
    let file = volume.lookup(ROOT, b"blocks").expect("there").file;
    volume
        .make_link(file, ROOT, b"second name")
        .expect("a name");
    volume
        .set_xattr(file, b"user.origin", b"fixture", 0)
        .expect("an attribute");
    let mode = Changes {
        mode: Some(0o600),
        ..Changes::default()
    };
    volume.set_attributes(file, None, &mode).expect("changed");
    volume.sync_names().expect("synced");
}

/// Opens a volume; threads of an earlier one may hold its locks for a moment.
fn open(config: &Config, mode: Mode) -> Arc<Volume> {
    for _ in 0..500 {
        match Volume::open(config, mode) {
            Err(error) if error.errno() == libc::EBUSY => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            opened => return opened.expect("the volume opens"),
        }
    }
    panic!("somebody holds on to the volume");
}

fn check(volume: &Volume) {
    let directory = volume.lookup(ROOT, b"directory").expect("there");
    assert_eq!(directory.mode, 0o750);
    for (name, bytes) in files() {
        let parent = if name == "small" {
            directory.file
        } else {
            ROOT
        };
        let file = volume.lookup(parent, name.as_bytes()).expect(name).file;
        let found = read(volume, file).expect(name);
        let pages = found.pages.into_iter().map(|page| page.expect("readable"));
        assert!(pages.flatten().eq(bytes), "{name} is not what it was");
    }
    let file = volume.lookup(ROOT, b"blocks").expect("there");
    assert_eq!((file.mode, file.links), (0o600, 2));
    assert_eq!(
        volume.lookup(ROOT, b"second name").expect("there").file,
        file.file
    );
    assert_eq!(
        volume.get_xattr(file.file, b"user.origin").expect("there"),
        b"fixture"
    );
    let link = volume.lookup(ROOT, b"link").expect("there").file;
    assert_eq!(volume.read_link(link).expect("a link"), b"directory/small");
}

/// Everything that a volume of this version has to stand: looking, losing a disk, and being written to.
fn use_it(place: &Path) {
    let config = config(place);
    let volume = open(&config, Mode::ReadOnly);
    check(&volume);
    drop(volume);
    fs::rename(place.join("disk1"), place.join("away")).expect("renamed");
    let volume = open(&config, Mode::ReadOnly);
    check(&volume);
    drop(volume);
    fs::rename(place.join("away"), place.join("disk1")).expect("renamed");
    let volume = open(&config, Mode::ReadWrite);
    check(&volume);
    let made = volume.create_file(ROOT, b"new", 0o644, libc::O_RDWR, CALLER);
    let handle = made.expect("a file").1.handle;
    volume
        .write(handle, 0, &noise(9, 100_000))
        .expect("written");
    volume.flush(handle).expect("committed");
    volume.release(handle);
    volume.close().expect("closed");
    drop(volume);
    let volume = open(&config, Mode::ReadOnly);
    check(&volume);
    let new = volume.lookup(ROOT, b"new").expect("there").file;
    let found = read(&volume, new).expect("open");
    let pages = found.pages.into_iter().map(|page| page.expect("readable"));
    assert!(pages.flatten().eq(noise(9, 100_000)));
}

fn tar(arguments: &[&std::ffi::OsStr]) {
    let status = Command::new("tar").args(arguments).status().expect("tar");
    assert!(status.success(), "tar {arguments:?}");
}

#[test]
fn volumes_of_released_formats_are_read() {
    let own = format!("{}.{}.tar.zst", FORMAT.major, FORMAT.minor);
    let archive = fixtures().join(&own);
    if std::env::var_os("PARSFS_MAKE_FIXTURE").is_some() && !archive.exists() {
        let place = tempfile::tempdir().expect("a directory");
        make(place.path());
        fs::create_dir_all(fixtures()).expect("a directory");
        let (archive, place) = (archive.as_os_str(), place.path().as_os_str());
        let options = ["--zstd", "--sparse", "--owner=0", "--group=0", "-cf"];
        let mut arguments: Vec<&std::ffi::OsStr> =
            options.iter().map(|option| (*option).as_ref()).collect();
        arguments.extend([archive, "-C".as_ref(), place, ".".as_ref()]);
        tar(&arguments);
    }
    let mut found = 0;
    for entry in fs::read_dir(fixtures()).expect("integration/fixtures") {
        let archive = entry.expect("an entry").path();
        if archive
            .extension()
            .is_some_and(|extension| extension == "zst")
        {
            let place = tempfile::tempdir().expect("a directory");
            let options = ["--zstd".as_ref(), "-xf".as_ref()];
            tar(&[
                &options[..],
                &[archive.as_os_str(), "-C".as_ref(), place.path().as_os_str()],
            ]
            .concat());
            println!("{}", archive.display());
            use_it(place.path());
            found += 1;
        }
    }
    assert!(
        found > 0 && archive.exists(),
        "no fixture of the format {own}"
    );
}

#[test]
fn a_volume_of_today_stands_what_the_released_ones_do() {
    let place = tempfile::tempdir().expect("a directory");
    make(place.path());
    use_it(place.path());
}

/// Gives the labels of all disks another version.
fn relabel(place: &Path, version: &str) {
    for number in 0..DISKS {
        let path = place.join(format!("disk{number}/label"));
        let text = fs::read_to_string(&path).expect("a label");
        let own = format!("format {}.{}", FORMAT.major, FORMAT.minor);
        assert!(text.contains(&own), "{text}");
        let end = text.find("# checksum").expect("a checksum");
        let body = text[..end].replacen(&own, &format!("format {version}"), 1);
        // What a later version may have added.
        let body = body + "another_key = \"whatever\"\n";
        let sum = xxh3_64(body.as_bytes());
        fs::write(&path, format!("{body}# checksum {sum:016x}\n")).expect("written");
    }
}

#[test]
fn a_newer_minor_version_mounts_and_an_unknown_major_one_is_refused() {
    let place = tempfile::tempdir().expect("a directory");
    make(place.path());
    relabel(
        place.path(),
        &format!("{}.{}", FORMAT.major, FORMAT.minor + 7),
    );
    let config = config(place.path());
    let volume = open(&config, Mode::ReadOnly);
    check(&volume);
    drop(volume);
    let place = tempfile::tempdir().expect("a directory");
    make(place.path());
    let next = FORMAT.major + 1;
    relabel(place.path(), &format!("{next}.0"));
    let config = self::config(place.path());
    for mode in [Mode::ReadOnly, Mode::ReadWrite] {
        let refused = Volume::open(&config, mode).expect_err("an unknown format");
        let message = refused.to_string();
        assert!(
            message.contains("disk0") && message.contains(&format!("format {next}")),
            "{message}"
        );
    }
}
