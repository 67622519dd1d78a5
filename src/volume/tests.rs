//! The volume without a kernel: files are written, committed, read, lost and found again through its own calls,
//! on directories or behind disks that fail.

mod commits;
mod failed_commits;
mod files;
mod fsck;
mod holes;
mod losses;
mod members;
mod rescues;
mod squeeze;
pub(super) mod tiers;

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::config::Config;
use crate::disk::{DirectoryDisk, Disk, FaultPlan, FaultyDisk};
use crate::ids::FileId;

/// A volume on directories of its own.
pub(super) struct Rig {
    pub place: tempfile::TempDir,
    pub config: Config,
}

impl Rig {
    pub fn new(disks: usize, policy: &str) -> Rig {
        let place = tempfile::tempdir().expect("a directory");
        let mut text = String::from("[volume]\nname = \"test\"\n");
        for number in 0..disks {
            let path = place.path().join(format!("d{number}"));
            std::fs::create_dir(&path).expect("a directory");
            text += &format!("[[disk]]\npath = {path:?}\n");
        }
        // Where nothing is said of that, no file is written anew a second after its commit.
        let later = match policy.contains("compress_later") {
            true => "",
            false => "compress_later = \"never\"\n",
        };
        text += &format!("[policy]\n{later}{policy}\n[memory]\nwrite = \"32M\"\ncache = \"8M\"\n");
        let file = place.path().join("test.toml");
        std::fs::write(&file, &text).expect("a config");
        let config = Config::parse(&text, &file).expect("a good config");
        Volume::create(&config).expect("a new volume");
        Rig { place, config }
    }

    pub fn open(&self) -> Arc<Volume> {
        self.open_as(VolumeOptions::default)
    }

    pub fn open_with(&self, tiers: Arc<dyn TierSource>) -> Arc<Volume> {
        self.open_as(|| VolumeOptions {
            tiers: Arc::clone(&tiers),
            ..VolumeOptions::default()
        })
    }

    pub fn open_as(&self, options: impl Fn() -> VolumeOptions) -> Arc<Volume> {
        // Threads of a volume that was dropped may hold on to it for a moment.
        for _ in 0..500 {
            match Volume::open_with(&self.config, Mode::ReadWrite, options()) {
                Err(error) if error.errno() == libc::EBUSY => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                opened => return opened.expect("the volume opens"),
            }
        }
        panic!("somebody holds on to the volume");
    }

    /// A plan for every disk, by which nothing fails yet.
    pub fn plans(&self) -> Vec<Arc<FaultPlan>> {
        let disks = self.config.disks.iter().zip(0..);
        disks.map(|(_, seed)| FaultPlan::new(seed)).collect()
    }

    /// A volume whose disks fail by these plans, one each.
    pub fn open_failing(&self, plans: &[Arc<FaultPlan>]) -> Arc<Volume> {
        self.open_failing_with(plans, VolumeOptions::default())
    }

    /// The same with other options than the usual ones.
    pub fn open_failing_with(
        &self,
        plans: &[Arc<FaultPlan>],
        options: VolumeOptions,
    ) -> Arc<Volume> {
        let disks = self.config.disks.iter().zip(plans).map(|(disk, plan)| {
            let medium = DirectoryDisk::open(&disk.name, &disk.path).expect("a disk");
            Some(Arc::new(FaultyDisk::new(Arc::new(medium), Arc::clone(plan))) as Arc<dyn Disk>)
        });
        let volume = Volume::open_on(&self.config, disks.collect(), Mode::ReadWrite, options);
        volume.expect("the volume opens")
    }

    pub fn disk(&self, number: usize) -> std::path::PathBuf {
        self.place.path().join(format!("d{number}"))
    }

    /// Takes from every disk all that knows names: databases, journals and images.
    pub fn forget_names(&self) {
        for disk in &self.config.disks {
            std::fs::remove_file(disk.path.join("meta.redb")).expect("removed");
            std::fs::remove_dir_all(disk.path.join("journal")).expect("removed");
            std::fs::remove_dir_all(disk.path.join("names")).expect("removed");
        }
    }

    pub fn take_away(&self, number: usize) {
        std::fs::rename(
            self.disk(number),
            self.place.path().join(format!("away{number}")),
        )
        .expect("renamed");
    }

    pub fn bring_back(&self, number: usize) {
        std::fs::rename(
            self.place.path().join(format!("away{number}")),
            self.disk(number),
        )
        .expect("renamed");
    }

    /// The files below a directory of a disk.
    pub fn objects(&self, number: usize, directory: &str) -> Vec<std::path::PathBuf> {
        let mut places = vec![self.disk(number).join(directory)];
        let mut files = Vec::new();
        while let Some(place) = places.pop() {
            match std::fs::read_dir(&place) {
                Ok(entries) => places.extend(entries.flatten().map(|entry| entry.path())),
                Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                    files.push(place)
                }
                // Removed meanwhile.
                Err(_) => {}
            }
        }
        files
    }

    /// Bytes in segments and manifests on all disks.
    pub fn occupied(&self) -> u64 {
        let all = (0..self.config.disks.len()).flat_map(|number| {
            let mut all = self.objects(number, "segments");
            all.extend(self.objects(number, "manifests"));
            all
        });
        all.filter_map(|place| std::fs::metadata(place).ok())
            .map(|meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
            .sum()
    }
}

pub(super) const CALLER: Caller = Caller { uid: 0, gid: 0 };

pub(super) fn create(volume: &Volume, name: &str) -> (FileId, Handle) {
    let (attributes, opened) = volume
        .create_file(ROOT, name.as_bytes(), 0o644, libc::O_RDWR, CALLER)
        .expect("a new file");
    (attributes.file, opened.handle)
}

pub(super) fn close(volume: &Volume, handle: Handle) {
    volume.flush(handle).expect("committed");
    volume.release(handle);
}

pub(super) fn write_file(volume: &Volume, name: &str, bytes: &[u8]) -> FileId {
    let (file, handle) = create(volume, name);
    write_all(volume, handle, bytes);
    close(volume, handle);
    file
}

pub(super) fn write_all(volume: &Volume, handle: Handle, bytes: &[u8]) {
    for (number, chunk) in bytes.chunks(1 << 20).enumerate() {
        volume
            .write(handle, (number << 20) as u64, chunk)
            .expect("written");
    }
}

/// Waits until no more than so many bytes of what was written are held in memory: the others are on the disks.
pub(super) fn wait_until_held(volume: &Volume, bytes: u64) {
    let since = std::time::Instant::now();
    while volume.pipeline.budget.held() > bytes {
        let waited = since.elapsed();
        assert!(waited < std::time::Duration::from_secs(60), "all is kept");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

pub(super) fn read_file(volume: &Volume, name: &str) -> Result<Vec<u8>> {
    let attributes = volume.lookup(ROOT, name.as_bytes())?;
    let handle = volume.open_file(attributes.file, libc::O_RDONLY)?.handle;
    let mut bytes = Vec::new();
    let result = loop {
        match volume.read(handle, bytes.len() as u64, 1 << 20) {
            Ok(more) if more.is_empty() => break Ok(bytes),
            Ok(more) => bytes.extend(more),
            Err(error) => break Err(error),
        }
    };
    volume.release(handle);
    result
}

/// Bytes that compress by about a half, without runs of zeros.
pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..length)
        .map(|at| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if at % 2 == 0 { (state >> 32) as u8 } else { 1 }
        })
        .collect()
}
