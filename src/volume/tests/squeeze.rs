//! Compressing later: what was stored as it is takes its room until nobody writes, and less from then on. The bytes, and what
//! they survive, are the same before and after.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::tiers::{MadeUp, copy_of, lost_pages, moved_config, runs};
use super::*;
use crate::ids::SetId;
use crate::meta::{Records, WriteRecords};
use crate::volume::head::FileHead;

/// What every volume here begins with.
const POLICY: &str = "critical = \"4+2\"\ncompress_later = \"always\"\n";

/// Bytes that get no smaller.
fn random(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(next).collect()
}

fn sets(volume: &Volume, file: FileId) -> Vec<SetId> {
    let file = volume.use_file(file).expect("there");
    let state = file.state.lock();
    state.sets.clone()
}

fn owed(volume: &Volume) -> u64 {
    volume.status().expect("a status").owed.bytes_to_compress
}

/// No more than this for what threads do that make way for all others.
const PATIENCE: Duration = Duration::from_secs(600);

fn wait_until_nothing_is_owed(volume: &Volume) {
    let end = Instant::now() + PATIENCE;
    while owed(volume) > 0 {
        assert!(
            Instant::now() < end,
            "{} bytes are still to be compressed",
            owed(volume)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    // It is no more owed a moment before the old segments are given to the sweeper.
    for file in volume.files_in_use() {
        drop(file.turn.lock());
    }
    volume.sweeper.wait();
}

/// A volume that does not come to compress anything.
fn open_and_leave(rig: &Rig, tiers: Arc<MadeUp>) -> Arc<Volume> {
    rig.open_as(|| VolumeOptions {
        tiers: Arc::clone(&tiers) as _,
        quiet: Duration::from_secs(3600),
        ..VolumeOptions::default()
    })
}

#[test]
fn what_is_stored_as_it_is_survives_the_same_and_takes_less_later() {
    const SIZE: usize = 8 << 20;
    let rig = Rig::new(6, POLICY);
    let tiers = Arc::new(MadeUp::default());
    let bytes = noise(1, SIZE);
    let expendable = runs(SIZE as u64, 64, 32);
    *tiers.runs.lock() = expendable.clone();
    let volume = open_and_leave(&rig, Arc::clone(&tiers));
    write_file(&volume, "f", &bytes);
    let before = owed(&volume);
    assert!(before > SIZE as u64 / 2, "{before} bytes are owed");
    assert!(rig.occupied() as usize > SIZE);
    // The next mount goes on.
    volume.close().expect("closed");
    drop(volume);
    let lost = |gone| lost_pages(&rig, &bytes, &expendable, gone);
    assert!(
        [[0, 1], [2, 3], [4, 5]]
            .map(lost)
            .iter()
            .any(|&lost| lost > 0)
    );
    let volume = rig.open_with(Arc::clone(&tiers) as _);
    wait_until_nothing_is_owed(&volume);
    assert!((rig.occupied() as usize) < SIZE);
    assert!(read_file(&volume, "f").expect("read") == bytes);
    volume.close().expect("closed");
    drop(volume);
    assert!(
        [[0, 1], [2, 3], [4, 5]]
            .map(lost)
            .iter()
            .any(|&lost| lost > 0)
    );
}

#[test]
fn what_does_not_get_smaller_is_not_written_again() {
    let rig = Rig::new(6, POLICY);
    let volume = rig.open();
    let bytes = random(4 << 20);
    // It makes way until that is looked at.
    let hurry = volume.pipeline.hurry();
    let file = write_file(&volume, "f", &bytes);
    let before = sets(&volume, file);
    drop(hurry);
    assert!(owed(&volume) > 4 << 20);
    wait_until_nothing_is_owed(&volume);
    assert_eq!(sets(&volume, file), before);
    assert!(read_file(&volume, "f").expect("read") == bytes);
}

/// A file of text in three windows and something that gets no smaller in a fourth one of the same set.
fn torn_set() -> (Rig, Arc<Volume>, FileId, Vec<u8>) {
    const WINDOW: usize = 4 << 20;
    let rig = Rig::new(6, &format!("{POLICY}block_size = \"16K\"\n"));
    let volume = rig.open();
    let mut bytes = noise(6, 3 * WINDOW);
    bytes.extend(random(WINDOW));
    let file = write_file(&volume, "f", &bytes);
    (rig, volume, file, bytes)
}

#[test]
fn nothing_is_left_in_a_set_that_is_mostly_gone_and_all_of_it_is_owed() {
    let (_rig, volume, file, bytes) = torn_set();
    let before = sets(&volume, file);
    let looks = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Whatever ends it, a crash or an unmount: what is not done yet is owed to the next mount.
            while looks.load(Ordering::Acquire) {
                let view = volume.meta.view();
                let head = view.manifest(file).expect("read").expect("there");
                let head = FileHead::decode(&head).expect("understood");
                let stays = before.iter().any(|set| head.sets.contains(set));
                let owed = view.hasty(file).expect("read");
                assert!(!stays || owed > 0, "nothing tells of the set that is left");
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let end = Instant::now() + PATIENCE;
        while owed(&volume) > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        looks.store(false, Ordering::Release);
    });
    assert_eq!(owed(&volume), 0);
    let after = sets(&volume, file);
    assert!(before.iter().all(|set| !after.contains(set)), "{after:?}");
    assert!(read_file(&volume, "f").expect("read") == bytes);
}

#[test]
fn the_next_mount_goes_on_with_a_set_that_is_mostly_gone() {
    let (rig, volume, file, bytes) = torn_set();
    let before = sets(&volume, file);
    // As if the mount before had come as far as that.
    let told = |volume: &Volume| volume.meta.view().hasty(file).expect("read");
    let all = told(&volume);
    while all > 0 && told(&volume) == all {
        std::thread::sleep(Duration::from_millis(1));
    }
    volume.close().expect("closed");
    drop(volume);
    let volume = rig.open();
    wait_until_nothing_is_owed(&volume);
    let after = sets(&volume, file);
    assert!(before.iter().all(|set| !after.contains(set)), "{after:?}");
    assert!(read_file(&volume, "f").expect("read") == bytes);
}

#[test]
fn nothing_becomes_true_by_it_that_nobody_committed() {
    let rig = Rig::new(6, POLICY);
    let volume = rig.open();
    let mut bytes = noise(2, 4 << 20);
    let file = write_file(&volume, "f", &bytes);
    let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
    volume.write(handle, 4096, &[7; 4096]).expect("written");
    wait_until_nothing_is_owed(&volume);
    volume.meta.checkpoint().expect("checkpointed");
    let crashed = moved_config(&Rig {
        place: copy_of(&rig),
        config: rig.config.clone(),
    });
    assert!(read_file(&crashed.open(), "f").expect("read") == bytes);
    close(&volume, handle);
    bytes[4096..8192].fill(7);
    assert!(read_file(&volume, "f").expect("read") == bytes);
}

#[test]
fn nothing_is_owed_of_what_is_gone() {
    let rig = Rig::new(6, POLICY);
    let volume = rig.open();
    let gone = write_file(&volume, "gone", &noise(3, 1 << 20));
    volume.remove(ROOT, b"gone").expect("removed");
    let file = write_file(&volume, "f", &noise(3, 1 << 20));
    let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
    volume.write(handle, 0, &[0; 1 << 20]).expect("emptied");
    close(&volume, handle);
    wait_until_nothing_is_owed(&volume);
    assert_ne!(gone, file);
}

#[test]
fn it_makes_way_for_whoever_waits() {
    let rig = Rig::new(6, POLICY);
    let volume = rig.open();
    let bytes = noise(4, 4 << 20);
    let hurry = volume.pipeline.hurry();
    write_file(&volume, "f", &bytes);
    let before = owed(&volume);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(owed(&volume), before, "it went on although somebody waits");
    drop(hurry);
    wait_until_nothing_is_owed(&volume);
    assert!(read_file(&volume, "f").expect("read") == bytes);
}

#[test]
fn a_scrub_finds_what_nothing_tells_of_any_more() {
    const SIZE: usize = 4 << 20;
    let rig = Rig::new(6, POLICY);
    // As a rescue by an earlier version left it.
    let volume = open_and_leave(&rig, Arc::default());
    let bytes = noise(5, SIZE);
    let file = write_file(&volume, "f", &bytes);
    let forget = |update: &mut crate::meta::Update| -> Result<()> {
        update.put_hasty(file, 0);
        Ok(())
    };
    volume.meta.update(forget).expect("forgotten");
    volume.close().expect("closed");
    drop(volume);
    let volume = rig.open();
    std::thread::sleep(Duration::from_secs(3));
    assert!(rig.occupied() as usize > SIZE, "something told of it");
    let what = "a scrub".to_owned();
    volume
        .begin_task(TaskKind::Scrub {}, what, None)
        .expect("begun");
    let end = Instant::now() + PATIENCE;
    while rig.occupied() as usize > SIZE {
        assert!(Instant::now() < end, "it stays as it is");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(read_file(&volume, "f").expect("read") == bytes);
}

#[test]
fn a_rescue_by_the_manifest_knows_what_is_yet_to_be_compressed_and_what_is_stored_once() {
    const SIZE: usize = 8 << 20;
    let rig = Rig::new(6, &format!("{POLICY}block_size = \"8K\""));
    let tiers = Arc::new(MadeUp::default());
    *tiers.runs.lock() = runs(SIZE as u64, 64, 32);
    let head = |volume: &Volume, file: FileId| {
        let file = volume.use_file(file).expect("there");
        let head = file.state.lock().head.clone();
        (head.stored, head.unprotected, head.hasty, head.dead)
    };
    let volume = open_and_leave(&rig, Arc::clone(&tiers));
    let bytes = noise(6, SIZE);
    let file = write_file(&volume, "f", &bytes);
    let before = head(&volume, file);
    assert!(before.1 > 0 && before.2 > 0, "{before:?}");
    volume.close().expect("closed");
    drop(volume);
    rig.forget_names();
    Volume::rescue(&rig.config).expect("rescued");
    let volume = rig.open_with(tiers);
    assert_eq!(head(&volume, file), before);
    wait_until_nothing_is_owed(&volume);
    assert!((rig.occupied() as usize) < SIZE);
    assert!(read_file(&volume, "f").expect("read") == bytes);
}
