//! Compressing later: what is stored as it is, so that nobody had to wait, is safe from the close on, and takes less room later,
//! whatever happens meanwhile.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::random::Random;
use crate::harness::volume::{Shape, Volume};

const CRASHES: u64 = 6;

/// Text of so many bytes, which compresses to a third or so.
fn text(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut text = Vec::with_capacity(length + 64);
    while text.len() < length {
        let (a, b) = (random.below(1 << 16), random.below(1 << 12));
        text.extend_from_slice(
            format!("page {a:x} is used by task {b}, and mapped there; ").as_bytes(),
        );
    }
    text.truncate(length);
    text
}

fn same(path: &Path, bytes: &[u8], when: &str) {
    assert!(
        fs::read(path).expect("read") == bytes,
        "{when}, {} is another file",
        path.display()
    );
}

#[test]
fn a_kill_at_any_moment_of_it_harms_nothing() {
    const SIZE: usize = 24 << 20;
    let mut volume = Volume::mounted_as(&Shape {
        more: "compress_later = \"always\"".to_owned(),
        ..Shape::default()
    });
    let mut random = Random::new(3);
    let mut whole = Vec::new();
    let mut was_owed = false;
    for crash in 0..CRASHES {
        volume.limit(120);
        let path = volume.path(&format!("file{crash}"));
        let bytes = text(crash, SIZE);
        fs::write(&path, &bytes).expect("written and closed");
        whole.push((path, bytes));
        // On a busy machine some of it may be done before one comes to ask.
        was_owed |= volume.to_compress() > 0;
        // It begins a second after the close.
        std::thread::sleep(Duration::from_millis(900 + random.below(700)));
        volume.kill();
        volume.mount();
        for (path, bytes) in &whole {
            same(path, bytes, &format!("after crash {crash}"));
        }
    }
    assert!(was_owed, "nothing was ever left for later");
    volume.until_compressed();
    let (used, stored) = (volume.used(), CRASHES * SIZE as u64);
    assert!(used < stored, "{used} bytes hold {stored} of text");
    for disk in [1, 4] {
        volume.disks[disk].take_away();
    }
    volume.remount();
    for (path, bytes) in &whole {
        same(path, bytes, "without two disks");
    }
}

#[test]
fn a_writer_does_not_wait_for_what_takes_long_to_compress() {
    const SIZE: usize = 64 << 20;
    let shape = |later: &str| Shape {
        compression: "zstd:15",
        more: format!("compress_later = \"{later}\"\n[memory]\nwrite = \"16M\""),
        ..Shape::default()
    };
    let bytes = text(1, SIZE);
    let mut volume = Volume::mounted_as(&shape("behind"));
    // Where disks are slower than what compresses, nothing has to be left for later.
    let saves = (0..8).map(|number| volume.path(&format!("save{number}")));
    let path = saves.into_iter().find(|path| {
        fs::write(path, &bytes).expect("written and closed");
        volume.to_compress() > SIZE as u64 / 4
    });
    let path = path.expect("a save that was stored as it is");
    // While it is written anew it is what it was to whoever asks.
    let end = Instant::now() + Duration::from_secs(3);
    let mut meanwhile = 0;
    while Instant::now() < end && volume.to_compress() > 0 {
        meanwhile += 1;
        let mut state = [0; 64];
        let length = rustix::fs::getxattr(&path, "user.parsfs.state", &mut state[..]);
        let state = &state[..length.expect("the attribute")];
        assert_eq!(String::from_utf8_lossy(state), "protected");
    }
    assert!(meanwhile > 0, "nothing was to be done meanwhile");
    // Whoever unmounts does not wait for all of it, where it would take long.
    let left = volume.to_compress();
    volume.remount();
    assert!(
        left < SIZE as u64 / 4 || volume.to_compress() > 0,
        "the unmount has compressed all of {left} bytes"
    );
    // Two disks may die at once.
    for disk in [0, 3] {
        volume.disks[disk].take_away();
    }
    fs::write("/proc/sys/vm/drop_caches", "1").expect("root drops caches");
    same(&path, &bytes, "right after the close, without two disks");
    drop(volume);

    let mut volume = Volume::mounted_as(&shape("never"));
    let path = volume.path("save");
    fs::write(&path, &bytes).expect("written and closed");
    assert_eq!(volume.to_compress(), 0);
    assert!(volume.used() < SIZE as u64);
    volume.remount();
    same(&path, &bytes, "compressed at once");
}
