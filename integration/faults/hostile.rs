//! A guest controls what is in its memory, and so what is found there. The worst that may come of it are tiers that are
//! nonsense: everything expendable, ranges that overlap, lie the wrong way round or far behind the end. They may cost
//! their own file's redundancy. No byte may be wrong for it, nothing may panic, and no other file may lose anything.

use std::ops::Range;
use std::sync::Arc;

use parsfs::disk::Disk;
use parsfs::ids::FileId;
use parsfs::store::{Lane, Tier};
use parsfs::volume::{
    Finished, Handle, Judged, Kept, Mode, ROOT, TierSource, Tiers, Volume, VolumeOptions,
};

use crate::operation::{CALLER, noise};
use crate::random::Random;
use crate::rig::{Shape, all, new_volume, read};

/// Tiers that a guest made up for one file; every other one is critical.
#[derive(Debug)]
struct Hostile {
    file: std::sync::OnceLock<FileId>,
    runs: Vec<(Range<u64>, Tier)>,
}

impl TierSource for Hostile {
    fn while_writing(&self, file: FileId, _: &Range<u64>, _: &[u8]) -> Lane {
        if self.file.get() == Some(&file) {
            Lane::Expendable
        } else {
            Lane::Critical
        }
    }

    fn at_commit(&self, finished: &Finished<'_>) -> Judged {
        if self.file.get() == Some(&finished.file) {
            Judged {
                tiers: Some(Tiers::Runs(self.runs.clone())),
                kept: Kept::Nothing,
            }
        } else {
            Judged::critical()
        }
    }
}

fn nonsense(random: &mut Random, size: u64) -> Vec<(Range<u64>, Tier)> {
    let mut runs = Vec::new();
    for _ in 0..random.below(40) {
        let start = match random.below(4) {
            0 => u64::MAX - random.below(9000),
            1 => random.below(size * 3),
            _ => random.below(size),
        };
        let end = match random.below(4) {
            0 => start.saturating_sub(random.below(9000)),
            1 => u64::MAX,
            _ => start.saturating_add(random.below(60_000)),
        };
        let tier = if random.once_in(3) {
            Tier::Critical
        } else {
            Tier::Expendable
        };
        runs.push((start..end, tier));
    }
    runs
}

fn write(volume: &Volume, handle: Handle, bytes: &[u8]) {
    volume.write(handle, 0, bytes).expect("written");
    volume.flush(handle).expect("committed");
    volume.release(handle);
}

fn make(volume: &Volume, name: &str) -> (FileId, Handle) {
    let made = volume.create_file(ROOT, name.as_bytes(), 0o644, libc::O_RDWR, CALLER);
    let (attributes, opened) = made.expect("a new file");
    (attributes.file, opened.handle)
}

#[test]
fn a_hostile_guest_harms_its_own_file_at_most() {
    const SIZE: usize = 400_000;
    let shape = Shape {
        disks: 6,
        k: 4,
        m: 2,
    };
    let config = shape.config();
    let mut lost = 0;
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let runs = match seed {
            0 => vec![(0..u64::MAX, Tier::Expendable)],
            _ => nonsense(&mut random, SIZE as u64),
        };
        let media = new_volume(&config);
        let open = |gone: &[usize], mode| {
            let hostile = Arc::new(Hostile {
                file: Default::default(),
                runs: runs.clone(),
            });
            let options = VolumeOptions {
                tiers: hostile.clone(),
                ..VolumeOptions::default()
            };
            let disks = all(&media).into_iter().enumerate();
            let disks: Vec<Option<Arc<dyn Disk>>> = disks
                .map(|(number, disk)| (!gone.contains(&number)).then_some(disk))
                .collect();
            let volume = Volume::open_on(&config, disks, mode, options);
            (volume.expect("the volume opens"), hostile)
        };
        let (volume, hostile) = open(&[], Mode::ReadWrite);
        let (before, handle) = make(&volume, "before");
        write(&volume, handle, &noise(1, SIZE));
        let (guest, handle) = make(&volume, "guest");
        hostile.file.set(guest).expect("the first");
        write(&volume, handle, &noise(2, SIZE));
        // Once more, over parts of it, so that tiers change places.
        let handle = volume.open_file(guest, libc::O_RDWR).expect("open").handle;
        volume
            .write(handle, 70_001, &noise(4, 90_000))
            .expect("written");
        volume.flush(handle).expect("committed");
        volume.release(handle);
        let (after, handle) = make(&volume, "after");
        write(&volume, handle, &noise(3, SIZE));
        volume.close().expect("closed");
        drop(volume);
        let mut own = noise(2, SIZE);
        own[70_001..160_001].copy_from_slice(&noise(4, 90_000));
        let gone = [
            seed as usize % 6,
            (seed as usize + 1 + seed as usize / 6 % 5) % 6,
        ];
        for gone in [&[][..], &gone[..]] {
            let (volume, _) = open(gone, Mode::ReadOnly);
            for (file, bytes) in [(before, noise(1, SIZE)), (after, noise(3, SIZE))] {
                let found = read(&volume, file).expect("open");
                let pages: Vec<u8> = found
                    .pages
                    .into_iter()
                    .flat_map(|page| page.expect("readable"))
                    .collect();
                assert!(pages == bytes, "seed {seed}, without {gone:?}");
            }
            let found = read(&volume, guest).expect("open");
            for (page, expected) in found.pages.iter().zip(own.chunks(4096)) {
                match page {
                    Some(page) => assert!(page == expected, "seed {seed}: wrong bytes"),
                    None => lost += 1,
                }
            }
            assert!(gone.len() == 2 || found.pages.iter().all(Option::is_some));
        }
    }
    assert!(
        lost > 0,
        "the hostile file lost nothing: nothing was tested"
    );
}
