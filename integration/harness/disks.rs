//! One disk of a volume under test, and what can happen to it: taken away, returned, damaged, full, failing.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};

use super::faulty_disk::FaultyDisk;
use super::loop_device;
use super::random::Random;
use super::scratch::Scratch;
use super::wait_until;

/// What a disk rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A plain directory: fast.
    Directory,
    /// An ext4 of so many MiB on a loop device: has an end, and a device of its own.
    Ext4(u64),
    /// A directory seen through a filesystem that fails when told to.
    Faulty,
}

/// One disk.
#[derive(Debug)]
pub struct TestDisk {
    pub path: PathBuf,
    away: PathBuf,
    backing: Backing,
    image: PathBuf,
    pub faults: Option<FaultyDisk>,
}

/// The kinds of object on a disk, by the path that holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Database,
    Journal,
    Names,
    Manifest,
    Segment,
    /// Any of them. The label is none: it says which disk this is, and a disk without it is simply missing.
    Any,
}

/// Deletes the directory of a disk in service, into which a daemon may put something meanwhile.
pub fn delete(path: &Path) {
    wait_until(
        "a disk to be deleted",
        Duration::from_secs(60),
        || match fs::remove_dir_all(path) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => false,
            done => {
                done.expect("deleting a disk");
                true
            }
        },
    );
}

impl TestDisk {
    pub fn new(scratch: &Scratch, number: usize, backing: Backing) -> TestDisk {
        let path = scratch.directory(&format!("disk{number}"));
        let away = scratch.path().join(format!("disk{number}.away"));
        let image = scratch.path().join(format!("disk{number}.img"));
        let mut faults = None;
        match backing {
            Backing::Directory => {}
            Backing::Ext4(mib) => {
                loop_device::make(&image, mib, &path);
                let _ = fs::remove_dir(path.join("lost+found"));
            }
            Backing::Faulty => {
                faults = Some(FaultyDisk::mount(
                    &scratch.directory(&format!("disk{number}.below")),
                    &path,
                ));
            }
        }
        TestDisk {
            path,
            away,
            backing,
            image,
            faults,
        }
    }

    /// The directory is deleted while the volume is mounted.
    pub fn delete(&self) {
        delete(&self.path);
    }

    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The disk is gone, and its empty mount point is what is left. It works on a mounted volume too: what the daemon has
    /// open stays open, every other access fails.
    pub fn take_away(&self) {
        match self.backing {
            Backing::Directory => {
                fs::rename(&self.path, &self.away).expect("taking a disk away");
                fs::create_dir(&self.path).expect("the empty mount point");
            }
            Backing::Ext4(_) => {
                unmount(&self.path, UnmountFlags::DETACH).expect("unmounting a disk")
            }
            Backing::Faulty => self.faults().set(|faults| faults.dead = true),
        }
    }

    /// The disk is back as it was when it was taken.
    pub fn bring_back(&self) {
        match self.backing {
            Backing::Directory => {
                fs::remove_dir_all(&self.path).expect("the empty mount point");
                fs::rename(&self.away, &self.path).expect("bringing a disk back");
            }
            Backing::Ext4(_) => loop_device::mount(&self.image, &self.path),
            Backing::Faulty => self.faults().set(|faults| faults.dead = false),
        }
    }

    /// The knobs of a disk that was made to fail.
    #[track_caller]
    pub fn faults(&self) -> &FaultyDisk {
        self.faults.as_ref().expect("a disk with a faulty backing")
    }

    /// The files of a kind, in a fixed order.
    pub fn files(&self, kind: Kind) -> Vec<PathBuf> {
        let mut files = Vec::new();
        walk(&self.path, &mut files);
        files.retain(|file| kind.has(file.strip_prefix(&self.path).unwrap_or(file)));
        files.sort();
        files
    }

    /// Flips a bit in each of `count` random bytes of the files of a kind; returns what it did, for the test's log.
    pub fn flip_bits(&self, kind: Kind, count: u64, random: &mut Random) -> Vec<String> {
        let mut files: Vec<PathBuf> = self.files(kind);
        files.retain(|file| fs::metadata(file).is_ok_and(|metadata| metadata.len() > 0));
        if files.is_empty() {
            return Vec::new();
        }
        let mut done = Vec::new();
        for _ in 0..count {
            let path = random.pick(&files).clone();
            let length = fs::metadata(&path).map_or(0, |metadata| metadata.len());
            let place = random.below(length.max(1));
            let mut byte = [0];
            let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else {
                continue;
            };
            if file.read_exact_at(&mut byte, place).is_ok() {
                byte[0] ^= 1 << random.below(8);
                file.write_all_at(&byte, place).expect("flipping a bit");
                done.push(format!("{} byte {place} of {length}", path.display()));
            }
        }
        done
    }

    /// The bytes that the disk's files occupy.
    pub fn used(&self) -> u64 {
        let mut files = Vec::new();
        walk(&self.path, &mut files);
        files
            .iter()
            .filter_map(|file| fs::metadata(file).ok())
            .map(|metadata| metadata.blocks() * 512)
            .sum()
    }
}

impl Kind {
    fn has(self, relative: &Path) -> bool {
        let text = relative.to_string_lossy();
        match self {
            Kind::Database => text == "meta.redb",
            Kind::Journal => text.starts_with("journal/"),
            Kind::Names => text.starts_with("names/"),
            Kind::Manifest => text.starts_with("manifests/"),
            Kind::Segment => text.starts_with("segments/"),
            Kind::Any => !text.starts_with("label"),
        }
    }
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path(), files),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
}
