//! What the scenarios share. Each file is one idea; nothing here knows what is being tested.

pub mod content;
pub mod disks;
pub mod faulty_disk;
pub mod loop_device;
pub mod mounts;
pub mod process;
pub mod random;
pub mod scratch;
pub mod tree;
pub mod volume;
pub mod watchdog;

use std::time::{Duration, Instant};

/// Polls until `done` says so; what it waited for is named when it never comes.
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(
            begin.elapsed() < limit,
            "waited {limit:?} in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
