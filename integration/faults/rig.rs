//! Volumes on disks in memory, and what is found on them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parsfs::config::Config;
use parsfs::disk::{Disk, MemoryDisk, ObjectName};
use parsfs::ids::FileId;
use parsfs::volume::{FileKind, Mode, ROOT, Result, Volume, VolumeOptions};

use crate::model::Found;
use crate::operation::CALLER;
use crate::random::Random;
use crate::tiers::{MadeUp, PAGE};

/// How many disks, and what they keep.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub disks: usize,
    pub k: usize,
    pub m: usize,
}

impl Shape {
    /// Some shape.
    pub fn pick(random: &mut Random) -> Shape {
        let (disks, k, m) = *random.pick(&[
            (3, 1, 1),
            (3, 2, 1),
            (4, 2, 1),
            (4, 2, 2),
            (5, 3, 2),
            (5, 1, 2),
            (6, 4, 2),
        ]);
        Shape { disks, k, m }
    }

    /// Whether everything goes on when so many disks fail.
    pub fn can_write_without(self, failing: usize) -> bool {
        let left = self.disks - failing;
        left > self.m && 2 * left >= self.disks
    }

    /// A config of this shape; the paths are of no use.
    pub fn config(self) -> Config {
        let mut text = String::from("[volume]\nname = \"test\"\n");
        for number in 0..self.disks {
            text += &format!("[[disk]]\nname = \"disk{number}\"\npath = \"/nowhere/{number}\"\n");
        }
        text += &format!(
            "[policy]\ncritical = \"{}+{}\"\nexpendable = \"1+0\"\n",
            self.k, self.m
        );
        text += "block_size = \"4K\"\ncompression = \"lz4\"\n";
        if self.disks == 4 {
            text += "compress_later = \"always\"\n";
        }
        text += "[memory]\nwrite = \"16M\"\ncache = \"1M\"\n";
        Config::parse(&text, Path::new("/test.toml")).expect("a good config")
    }
}

/// The disks below all faults.
pub type Media = Vec<Arc<MemoryDisk>>;

/// Disks as a volume takes them.
pub type Disks = Vec<Arc<dyn Disk>>;

/// A new volume with a directory in it.
pub fn new_volume(config: &Config) -> Media {
    let media: Media = config
        .disks
        .iter()
        .map(|disk| Arc::new(MemoryDisk::new(&disk.name)))
        .collect();
    Volume::create_on(config, all(&media)).expect("a new volume");
    let volume = open(config, all(&media), None).expect("the volume opens");
    volume
        .make_directory(ROOT, b"sub", 0o755, CALLER)
        .expect("a directory");
    volume.close().expect("closed");
    after_kill(&media)
}

/// The disks as a program finds them that is started after this one is killed now. A volume's threads go on until it is
/// dropped, so all are copied at one moment.
pub fn after_kill(media: &Media) -> Media {
    MemoryDisk::together(media, |_, disk| disk.after_kill())
}

/// The disks without faults.
pub fn all(media: &Media) -> Disks {
    let disks = media.iter();
    disks
        .map(|disk| Arc::clone(disk) as Arc<dyn Disk>)
        .collect()
}

/// Opens a volume whose journals and databases are turned over often.
pub fn open(config: &Config, disks: Disks, tiers: Option<&Arc<MadeUp>>) -> Result<Arc<Volume>> {
    let mut options = VolumeOptions {
        journal_bytes: 30_000,
        checkpoint_bytes: 20_000,
        quiet: Duration::ZERO,
        ..VolumeOptions::default()
    };
    if let Some(tiers) = tiers {
        options.tiers = Arc::clone(tiers) as _;
    }
    let disks = disks.into_iter().map(Some).collect();
    Volume::open_on(config, disks, Mode::ReadWrite, options)
}

/// Every file of a volume, read whole.
pub fn observe(volume: &Volume) -> Result<BTreeMap<String, (FileId, Option<Found>)>> {
    let mut found = BTreeMap::new();
    list(volume, ROOT, "", &mut found)?;
    Ok(found)
}

fn list(
    volume: &Volume,
    directory: FileId,
    prefix: &str,
    found: &mut BTreeMap<String, (FileId, Option<Found>)>,
) -> Result<()> {
    let handle = volume.open_directory(directory)?;
    let entries = volume.read_directory(handle, 0, usize::MAX);
    volume.close_directory(handle);
    for entry in entries? {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        if name == "." || name == ".." {
            continue;
        }
        let path = format!("{prefix}{name}");
        if entry.kind == FileKind::Directory {
            list(volume, entry.file, &format!("{path}/"), found)?;
        } else {
            found.insert(path, (entry.file, read(volume, entry.file).ok()));
        }
    }
    Ok(())
}

/// All of a file: in one piece, and page by page where that fails.
pub fn read(volume: &Volume, file: FileId) -> Result<Found> {
    let size = volume.attributes(file)?.size;
    let handle = volume.open_file(file, libc::O_RDONLY)?.handle;
    let pages = match volume.read(handle, 0, size as usize) {
        Ok(bytes) => bytes
            .chunks(PAGE as usize)
            .map(|page| Some(page.to_vec()))
            .collect(),
        Err(_) => (0..size.div_ceil(PAGE))
            .map(|page| volume.read(handle, page * PAGE, PAGE as usize).ok())
            .collect(),
    };
    volume.release(handle);
    Ok(Found { size, pages })
}

/// Removes every file, closes the volume, and tells what is left on the disks besides metadata.
pub fn left_over(volume: &Arc<Volume>, media: &Media) -> Result<Vec<(usize, ObjectName)>> {
    for path in observe(volume)?.keys() {
        match path.split_once('/') {
            None => volume.remove(ROOT, path.as_bytes())?,
            Some((directory, name)) => {
                let directory = volume.lookup(ROOT, directory.as_bytes())?.file;
                volume.remove(directory, name.as_bytes())?;
            }
        }
    }
    // Nothing is removed from a disk that is left alone until an administrator trusts it again.
    let alone: Vec<bool> = volume
        .status()?
        .disks
        .iter()
        .map(|disk| disk.state == "faulty" || disk.state == "missing")
        .collect();
    volume.close()?;
    let mut left = Vec::new();
    for (number, disk) in media.iter().enumerate() {
        if alone.get(number).copied().unwrap_or(false) {
            continue;
        }
        for (object, _) in disk.list()? {
            let of_a_file = matches!(
                object,
                ObjectName::Blocks(_) | ObjectName::Parity(_) | ObjectName::Manifest(_)
            );
            if of_a_file {
                left.push((number, object));
            }
        }
    }
    Ok(left)
}
