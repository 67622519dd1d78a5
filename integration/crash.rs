//! The daemon is killed at any moment of a write, again and again on one volume. After each crash the volume mounts by
//! itself; what was closed or synced is there whole; no file is half old and half new; and in the end nothing has leaked.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::harness::content;
use crate::harness::disks::{Backing, Kind};
use crate::harness::random::Random;
use crate::harness::volume::{Shape, Volume};

const CRASHES: u64 = 12;

/// Keeps the other tests of this room from starting programs. A program inherits the open files of the whole process and closes
/// them on its way to exec: a close makes true what was written until then, and a file that a thread of ours is in the middle of
/// would be neither old nor new after a crash, as if it had been closed there.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills the daemon while `write` runs, and then lets `check` judge what is there. `write` goes on until an operation fails,
/// which the crash makes it do. Until `enough` says that something was tested it takes more crashes, as disks may be slow.
fn again_and_again(
    shape: &Shape,
    write: impl Fn(&Path, u64) -> io::Result<()> + Sync,
    check: impl Fn(&Path, u64),
    enough: impl Fn() -> bool,
) {
    let _alone = alone();
    let mut volume = Volume::new(shape);
    volume.mount();
    volume.umount();
    let empty = volume.used();
    volume.mount();
    let mut random = Random::new(1);
    for crash in 1..=10 * CRASHES {
        if crash > CRASHES && enough() {
            break;
        }
        volume.limit(120);
        let root = volume.mountpoint.clone();
        // From before the first commit is through to well into the writing.
        let moment =
            Duration::from_micros(random.below(1 << (10 + crash % 10)) + 100 * (crash % 3) * 1000);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| write(&root, crash));
            std::thread::sleep(moment);
            volume.kill_daemon();
            writer
                .join()
                .expect("the writer")
                .expect_err("writing to a dead mount");
        });
        volume.kill();
        if let Err(why) = volume.try_mount(&[]) {
            panic!("crash {crash}, after {moment:?}: it does not mount: {why}");
        }
        check(&root, crash);
    }
    for entry in fs::read_dir(&volume.mountpoint).expect("list") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        }
        .expect("removing");
    }
    volume.remount();
    volume.umount();
    for disk in &volume.disks {
        for kind in [Kind::Segment, Kind::Manifest] {
            assert_eq!(
                disk.files(kind),
                Vec::<PathBuf>::new(),
                "of an empty volume"
            );
        }
    }
    let left = volume.used();
    assert!(
        left < empty + (16 << 20),
        "{left} bytes are left of an empty volume that began with {empty}"
    );
}

/// A file is read through the page cache and written at once, and the daemon is killed. A thread of it that waits for a
/// page whose bytes it owes itself would keep it, and its mount, for ever.
#[test]
fn a_daemon_that_is_killed_is_gone_whatever_is_read_and_written() {
    let _alone = alone();
    const LENGTH: u64 = 24 << 20;
    let mut volume = Volume::new(&Shape::default());
    volume.mount();
    content::write_file(&volume.path("file"), 1, LENGTH).expect("a file");
    volume.remount();
    for crash in 0..10u64 {
        let reader = File::open(volume.path("file")).expect("a reader");
        let writer = OpenOptions::new()
            .write(true)
            .open(volume.path("file"))
            .expect("a writer");
        let daemon = volume.daemon();
        let gone = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut buffer = vec![0; 1 << 20];
                    while (0..LENGTH >> 20)
                        .all(|piece| reader.read_exact_at(&mut buffer, piece << 20).is_ok())
                    {
                        let advice = rustix::fs::Advice::DontNeed;
                        let _ = rustix::fs::fadvise(&reader, 0, None, advice);
                    }
                });
            }
            for from in 0..2 {
                let writer = &writer;
                scope.spawn(move || {
                    let mut random = Random::new(crash * 2 + from);
                    loop {
                        let place = random.below(LENGTH / 65536) * 65536;
                        let bytes = content::bytes(1, place, 65536);
                        if writer.write_all_at(&bytes, place).is_err() {
                            break;
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(300 + 50 * crash));
            rustix::process::kill_process(daemon, rustix::process::Signal::KILL).expect("kill");
            let end = std::time::Instant::now() + Duration::from_secs(30);
            while volume.serves() && std::time::Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
            let gone = !volume.serves();
            // Ends the connection whatever the daemon does, so that this test ends.
            let _ = rustix::mount::unmount(&volume.mountpoint, rustix::mount::UnmountFlags::FORCE);
            gone
        });
        assert!(gone, "crash {crash}: the daemon was killed and lives on");
        drop((reader, writer));
        volume.kill();
        volume.mount();
        content::check_file(&volume.path("file"), 1, LENGTH).expect("the file");
    }
}

/// open(2) makes a file also for who only reads it, and its name is there after the close like any other.
#[test]
fn a_file_made_by_a_reader_outlives_its_close() {
    let _alone = alone();
    let mut volume = Volume::mounted();
    for crash in 0..5 {
        let path = volume.path(&format!("made{crash}"));
        let flags = OFlags::CREATE | OFlags::RDONLY;
        drop(rustix::fs::open(&path, flags, Mode::RUSR).expect("a new file"));
        volume.kill();
        volume.mount();
        assert_eq!(fs::metadata(&path).expect("the file").len(), 0);
    }
}

/// Many small files; those whose close returned are promised.
#[test]
fn small_files_that_were_closed_are_whole() {
    let promised = Mutex::new(Vec::<(u64, u64)>::new());
    let next = AtomicU64::new(0);
    let name = |root: &Path, number: u64| root.join(format!("small{number}"));
    let length = |number: u64| 1 + number * 7919 % 70_000;
    again_and_again(
        &Shape::default(),
        |root, crash| loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            content::write_file(&name(root, number), number, length(number))?;
            promised.lock().expect("promises").push((crash, number));
        },
        |root, crash| {
            for (promised_at, number) in promised.lock().expect("promises").iter() {
                if let Err(why) =
                    content::check_file(&name(root, *number), *number, length(*number))
                {
                    panic!("crash {crash}; closed before crash {promised_at}: {why}");
                }
            }
        },
        || promised.lock().expect("promises").len() > 20,
    );
    let promised = promised.into_inner().expect("promises");
    assert!(
        promised.len() > 20,
        "only {} files were closed: nothing was tested",
        promised.len()
    );
}

/// One large file, synced as it grows: what was synced is there, and nothing that was not written.
#[test]
fn a_growing_file_has_what_was_synced() {
    const PIECE: u64 = 700_000;
    let synced = Mutex::new(Vec::new());
    let name = |root: &Path, crash: u64| root.join(format!("large{crash}"));
    again_and_again(
        &Shape {
            backing: Backing::Directory,
            ..Shape::default()
        },
        |root, crash| {
            let file = File::create(name(root, crash))?;
            for piece in 0.. {
                content::write_range(&file, crash, piece * PIECE, PIECE)?;
                if piece % 3 == 2 {
                    file.sync_all()?;
                    synced
                        .lock()
                        .expect("synced")
                        .push((crash, (piece + 1) * PIECE));
                }
            }
            Ok(())
        },
        |root, crash| {
            let synced = synced.lock().expect("synced");
            for of in 1..=crash {
                let least = synced
                    .iter()
                    .filter(|(at, _)| *at == of)
                    .map(|(_, length)| *length)
                    .max()
                    .unwrap_or(0);
                let Ok(file) = File::open(name(root, of)) else {
                    assert_eq!(least, 0, "crash {crash}: a synced file is gone");
                    continue;
                };
                let length = file.metadata().expect("stat").len();
                assert!(
                    length >= least,
                    "crash {crash}: {length} bytes, and {least} were synced"
                );
                if let Err(why) = content::check_range(&file, of, 0, length) {
                    panic!(
                        "crash {crash}: {why}, in a file of {length} of which {least} were synced"
                    );
                }
            }
        },
        || !synced.lock().expect("synced").is_empty(),
    );
    assert!(
        !synced.into_inner().expect("synced").is_empty(),
        "nothing was ever synced: nothing was tested"
    );
}

/// A file that is written anew, as `>` does: after a crash it is one version from first to last byte.
#[test]
fn a_rewritten_file_is_old_or_new() {
    versions(|root, version| content::write_file(&root.join("file"), version, length_of(version)));
}

/// The same by a file beside it and a rename over it, as careful programs do.
#[test]
fn a_renamed_over_file_is_old_or_new() {
    versions(|root, version| {
        let beside = root.join("beside");
        let file = File::create(&beside)?;
        content::write_range(&file, version, 0, length_of(version))?;
        file.sync_all()?;
        content::close(file)?;
        fs::rename(&beside, root.join("file"))?;
        File::open(root)?.sync_all()
    });
}

fn length_of(version: u64) -> u64 {
    [3_000_000, 200_000, 50_000, 1_500_000][(version % 4) as usize] + version
}

/// Writes one version after the other. After a crash the file is the last one that was finished, or the one that was being
/// written.
fn versions(write: impl Fn(&Path, u64) -> io::Result<()> + Sync) {
    let begun = AtomicU64::new(0);
    let finished = AtomicU64::new(0);
    again_and_again(
        &Shape::default(),
        |root, _| loop {
            let version = begun.fetch_add(1, Ordering::SeqCst) + 1;
            write(root, version)?;
            finished.store(version, Ordering::SeqCst);
        },
        |root, crash| {
            let (begun, least) = (
                begun.load(Ordering::SeqCst),
                finished.load(Ordering::SeqCst),
            );
            let path: PathBuf = root.join("file");
            if !path.exists() {
                assert_eq!(least, 0, "crash {crash}: the file is gone");
                return;
            }
            let versions: Vec<u64> = (least.max(1)..=begun).collect();
            let found = versions
                .iter()
                .any(|version| content::check_file(&path, *version, length_of(*version)).is_ok());
            let length = fs::metadata(&path).expect("stat").len();
            // A file that never was finished may be there and empty.
            let unfinished = least == 0 && length == 0;
            assert!(
                found || unfinished,
                "crash {crash}: the file of {length} bytes is none of versions {versions:?}"
            );
        },
        || finished.load(Ordering::SeqCst) > 5,
    );
    assert!(
        finished.load(Ordering::SeqCst) > 5,
        "hardly anything was written: nothing was tested"
    );
}

/// A database that is patched in place, synced batch by batch: after a crash it is as one of its syncs left it, the last
/// that returned or the one that was running, and no mixture.
#[test]
fn a_patched_file_is_as_one_sync_left_it() {
    const PAGES: u64 = 512;
    const BATCH: u64 = 8;
    let pages_of = |batch: u64| {
        let mut random = Random::new(batch);
        (0..BATCH)
            .map(move |_| random.below(PAGES))
            .collect::<Vec<u64>>()
    };
    let begun = AtomicU64::new(0);
    let synced = AtomicU64::new(0);
    let last = Mutex::new(vec![0; PAGES as usize]);
    again_and_again(
        &Shape::default(),
        |root, _| {
            let path = root.join("database");
            if !path.exists() || fs::metadata(&path)?.len() < PAGES * 4096 {
                let file = File::create(&path)?;
                content::write_range(&file, 0, 0, PAGES * 4096)?;
                content::close(file)?;
            }
            let file = OpenOptions::new().write(true).open(&path)?;
            loop {
                let batch = begun.fetch_add(1, Ordering::SeqCst) + 1;
                for page in pages_of(batch) {
                    file.write_all_at(&content::bytes(batch, page * 4096, 4096), page * 4096)?;
                }
                file.sync_data()?;
                synced.store(batch, Ordering::SeqCst);
                let mut last = last.lock().expect("pages");
                pages_of(batch)
                    .into_iter()
                    .for_each(|page| last[page as usize] = batch);
            }
        },
        |root, crash| {
            let Ok(file) = File::open(root.join("database")) else {
                assert_eq!(
                    synced.load(Ordering::SeqCst),
                    0,
                    "crash {crash}: the file is gone"
                );
                return;
            };
            if synced.load(Ordering::SeqCst) == 0
                && file.metadata().expect("stat").len() < PAGES * 4096
            {
                return;
            }
            let mut state = last.lock().expect("pages");
            let differs = |state: &[u64]| {
                let mut pages = state.iter().enumerate();
                pages.find_map(|(page, seed)| {
                    content::check_range(&file, *seed, page as u64 * 4096, 4096).err()
                })
            };
            let Some(why) = differs(&state) else { return };
            // The batch whose sync was running may be there, and then as a whole.
            let batch = begun.load(Ordering::SeqCst);
            pages_of(batch)
                .into_iter()
                .for_each(|page| state[page as usize] = batch);
            if let Some(and) = differs(&state) {
                panic!(
                    "crash {crash}: neither as sync {} left it ({why}) nor as {batch} would have ({and})",
                    batch - 1
                );
            }
        },
        || synced.load(Ordering::SeqCst) > 5,
    );
    assert!(
        synced.load(Ordering::SeqCst) > 5,
        "hardly anything was synced: nothing was tested"
    );
}
