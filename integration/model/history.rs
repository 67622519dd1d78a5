//! One seed's history of a volume: rounds of operations, and between them what befalls its daemon and its disks. No more
//! disks are ever in trouble than the code survives, so the tree must always be whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::generate::Generator;
use super::operation::{Operation, Renaming};
use super::pair::Pair;
use crate::harness::disks::Kind;
use crate::harness::loop_device;
use crate::harness::process::shell;
use crate::harness::random::Random;
use crate::harness::tree::{Entry, Times, Tree};
use crate::harness::volume::{Shape, Volume};

const ROUNDS: usize = 10;
const OPERATIONS: usize = 150;

/// A volume and what befalls it.
pub struct History {
    volume: Volume,
    pair: Pair,
    operations: Generator,
    random: Random,
    /// The disks that get into trouble: as many as the code survives, and no others.
    unlucky: Vec<usize>,
    away: BTreeSet<usize>,
    /// What was closed and not touched since: it must outlive any crash.
    promised: BTreeMap<PathBuf, Entry>,
}

/// What befalls the volume between two rounds.
#[derive(Clone, Copy, Debug)]
enum Event {
    Nothing,
    Remount,
    KillAfterSync,
    Kill,
    LoseDisk,
    LoseDiskMounted,
    ReturnDisks,
    FlipBits,
    FlipBitsMounted,
}

const EVENTS: [Event; 12] = [
    Event::Nothing,
    Event::Remount,
    Event::KillAfterSync,
    Event::Kill,
    Event::Kill,
    Event::LoseDisk,
    Event::LoseDisk,
    Event::LoseDiskMounted,
    Event::ReturnDisks,
    Event::ReturnDisks,
    Event::FlipBits,
    Event::FlipBitsMounted,
];

impl History {
    pub fn new(seed: u64) -> History {
        let mut random = Random::new(seed ^ 0x5eed);
        let (disks, critical, survives) = *random.pick(&[
            (6, "4+2", 2),
            (6, "4+2", 2),
            (5, "3+2", 2),
            (4, "2+1", 1),
            (5, "1+2", 2),
            (3, "2+1", 1),
        ]);
        let compression = *random.pick(&["zstd:1", "zstd:1", "lz4", "none"]);
        let block = *random.pick(&["128K", "128K", "16K", "4K"]);
        let later = if seed.is_multiple_of(3) {
            "behind"
        } else {
            "always"
        };
        let shape = Shape {
            disks,
            critical,
            compression,
            more: format!("block_size = \"{block}\"\ncompress_later = \"{later}\""),
            ..Shape::default()
        };
        let volume = Volume::mounted_as(&shape);
        let right = volume.scratch.directory("right");
        loop_device::make(&volume.scratch.path().join("right.img"), 2048, &right);
        fs::remove_dir(right.join("lost+found")).expect("an empty ext4");
        let mut unlucky: Vec<usize> = (0..disks).collect();
        while unlucky.len() > survives {
            unlucky.remove(random.index(unlucky.len()));
        }
        let mut pair = Pair::new(&volume.mountpoint, &right);
        pair.note(format!("seed {seed}: {critical} on {disks} disks, {compression} {later}, blocks of {block}, unlucky {unlucky:?}"));
        History {
            volume,
            pair,
            operations: Generator::new(seed),
            random,
            unlucky,
            away: BTreeSet::new(),
            promised: BTreeMap::new(),
        }
    }

    /// Runs it to its end; why the trees are not equal if they are not.
    pub fn run(&mut self) -> Result<(), String> {
        for round in 0..ROUNDS {
            self.volume.limit(120);
            for _ in 0..OPERATIONS {
                let operation = self.operations.next();
                self.step(&operation)?;
            }
            self.pair.compare()?;
            let event = *self.random.pick(&EVENTS);
            self.pair.note(format!("--- round {round}: {event:?}"));
            self.befall(event)?;
            self.pair.compare()?;
        }
        self.umount()
    }

    fn step(&mut self, operation: &Operation) -> Result<(), String> {
        let closing = match operation {
            Operation::Close { slot } | Operation::Open { slot, .. } => {
                // As it is now: an open that closes what the slot had may empty that same file.
                let path = self.pair.right.made_true_by_closing(*slot);
                path.and_then(|path| Some((look(&self.pair.right.root, &path)?, path)))
            }
            _ => None,
        };
        let moves_directory = match operation {
            Operation::Rename { from, to, how } => {
                let directory = |path| {
                    fs::symlink_metadata(self.pair.right.root.join(path))
                        .is_ok_and(|seen| seen.is_dir())
                };
                directory(from) || (*how == Renaming::Exchange && directory(to))
            }
            _ => false,
        };
        let succeeded = self.pair.apply(operation)?;
        if moves_directory && succeeded {
            // A file keeps its times when a directory above it moves: whether it was moved and back cannot be seen.
            self.promised.clear();
        }
        if let Some((entry, path)) = closing {
            self.promised.insert(path, entry);
        }
        Ok(())
    }

    fn befall(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Nothing => Ok(()),
            Event::Remount => {
                self.umount()?;
                self.mount()
            }
            Event::KillAfterSync => {
                self.close()?;
                sync_all(&self.volume.mountpoint).map_err(|why| self.pair.failure(&why))?;
                self.volume.kill();
                self.mount()
            }
            Event::Kill => self.crash(),
            Event::LoseDisk | Event::LoseDiskMounted => {
                let Some(disk) = self
                    .unlucky
                    .iter()
                    .copied()
                    .find(|disk| !self.away.contains(disk))
                else {
                    return Ok(());
                };
                self.away.insert(disk);
                self.pair.note(format!("disk {disk} goes away"));
                if matches!(event, Event::LoseDiskMounted) {
                    self.volume.disks[disk].take_away();
                    return Ok(());
                }
                self.umount()?;
                self.volume.disks[disk].take_away();
                self.mount()
            }
            Event::ReturnDisks => {
                self.umount()?;
                for disk in std::mem::take(&mut self.away) {
                    self.pair.note(format!("disk {disk} comes back"));
                    self.volume.disks[disk].bring_back();
                }
                self.mount()
            }
            Event::FlipBits => {
                self.umount()?;
                self.flip();
                self.mount()
            }
            Event::FlipBitsMounted => {
                self.flip();
                // What the page cache has read before would hide what was done to the disks.
                let _ = fs::write("/proc/sys/vm/drop_caches", "1");
                Ok(())
            }
        }
    }

    fn flip(&mut self) {
        for &disk in self.unlucky.iter().filter(|disk| !self.away.contains(disk)) {
            let kind = *self.random.pick(&[
                Kind::Any,
                Kind::Segment,
                Kind::Segment,
                Kind::Journal,
                Kind::Manifest,
                Kind::Database,
            ]);
            let count = 1 + self.random.below(30);
            for flipped in self.volume.disks[disk].flip_bits(kind, count, &mut self.random) {
                self.pair.note(format!("flipped {flipped}"));
            }
        }
    }

    /// Kills the daemon with files open. What was closed before and not touched since must be there; the rest may be old
    /// or new, and becomes the new start of both sides.
    fn crash(&mut self) -> Result<(), String> {
        self.volume.kill();
        self.pair.tested.abandon_all();
        self.pair.right.abandon_all();
        self.mount()?;
        let tested =
            Tree::capture(&self.volume.mountpoint).map_err(|why| self.pair.failure(&why))?;
        let mut kept = 0;
        for (path, promised) in std::mem::take(&mut self.promised) {
            let untouched = look(&self.pair.right.root, &path).is_some_and(|now| {
                now.number == promised.number
                    && now.changed == promised.changed
                    && now.digest == promised.digest
            });
            if !untouched {
                continue;
            }
            kept += 1;
            let differences = match tested.0.get(&path) {
                None => vec!["gone".to_owned()],
                Some(found) => nameless(found).differences(&promised, Times::SetOnesExact),
            };
            if !differences.is_empty() {
                let why = format!(
                    "{} was closed before the crash: {}",
                    path.display(),
                    differences.join(", ")
                );
                return Err(self.pair.failure(&why));
            }
        }
        self.pair
            .note(format!("{kept} files were promised and are there"));
        let script = "find right -mindepth 1 -delete && cp -a mnt/. right/";
        shell(self.volume.scratch.path(), script);
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        let closed = self.pair.tested.close_all();
        self.pair
            .right
            .close_all()
            .expect("closing files of an ext4");
        closed.map_err(|error| self.pair.failure(&format!("closing all files: {error}")))
    }

    fn umount(&mut self) -> Result<(), String> {
        self.close()?;
        let unmounted = self.volume.try_umount();
        unmounted.map_err(|why| self.pair.failure(&format!("it does not unmount: {why}")))
    }

    fn mount(&mut self) -> Result<(), String> {
        self.volume
            .try_mount(&[])
            .map_err(|why| self.pair.failure(&format!("it does not mount: {why}")))
    }
}

/// What one name looks like, without regard to other names of the same file.
fn look(root: &Path, path: &Path) -> Option<Entry> {
    crate::harness::tree::look(&root.join(path))
        .ok()
        .map(|entry| nameless(&entry))
}

fn nameless(entry: &Entry) -> Entry {
    Entry {
        same_as: PathBuf::new(),
        ..entry.clone()
    }
}

/// Syncs every file and directory: what POSIX asks of a program that wants everything to survive.
fn sync_all(directory: &Path) -> Result<(), String> {
    let failed =
        |path: &Path, error: std::io::Error| format!("syncing {}: {error}", path.display());
    for entry in fs::read_dir(directory).map_err(|error| failed(directory, error))? {
        let entry = entry.map_err(|error| failed(directory, error))?;
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => sync_all(&path)?,
            Ok(kind) if kind.is_file() => {
                File::open(&path)
                    .and_then(|file| file.sync_all())
                    .map_err(|error| failed(&path, error))?;
            }
            _ => {}
        }
    }
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(|error| failed(directory, error))
}
