//! The model test: random operations on the mount and on a plain ext4, with crashes, remounts, lost disks and flipped bits
//! in between. Every answer must be the same, and after each round so must the trees.
//!
//! `PARSFS_MODEL_SECONDS` is how long to go on with further seeds (60 if not set); `PARSFS_MODEL_SEED` repeats one.

mod generate;
mod history;
mod operation;
mod pair;
mod side;

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use generate::Generator;
use history::History;
use operation::Operation;
use pair::Pair;

/// Seeds that found something once.
const FOUND: [u64; 8] = [52, 53, 58, 102, 147, 161, 365, 477];

#[test]
fn the_mount_and_a_plain_directory_stay_equal() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().expect(name))
    };
    if let Some(seed) = number("PARSFS_MODEL_SEED") {
        return check(seed);
    }
    let end = Instant::now() + Duration::from_secs(number("PARSFS_MODEL_SECONDS").unwrap_or(60));
    FOUND.into_iter().for_each(check);
    let seed = AtomicU64::new(1);
    let work = || {
        // Each worker does at least one seed.
        loop {
            check(seed.fetch_add(1, Ordering::Relaxed));
            if Instant::now() >= end {
                break;
            }
        }
    };
    // A history waits for disks most of the time.
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    say(&format!(
        "model: {} seeds",
        seed.load(Ordering::Relaxed) - 1
    ));
}

fn check(seed: u64) {
    // It is still there when this panics, so that it tells what its daemon said.
    let mut history = History::new(seed);
    if let Err(why) = history.run() {
        say(&format!(
            "model: seed {seed} failed; PARSFS_MODEL_SEED={seed} repeats it"
        ));
        panic!("PARSFS_MODEL_SEED={seed} repeats it: {why}");
    }
}

/// Past the test runner's capture: a fault in a mapping ends the process, and then this is all that is left.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Two plain directories, which must stay equal; returns the pair for further looks.
fn plain_twins(scratch: &std::path::Path) -> Pair {
    let directory = |name| {
        let path = scratch.join(name);
        std::fs::create_dir(&path).expect("a directory");
        path.canonicalize().expect("a directory")
    };
    Pair::new(&directory("tested"), &directory("right"))
}

/// No false alarms, and no kind of operation that never succeeds and so tests nothing.
#[test]
fn two_plain_directories_stay_equal() {
    let mut succeeded = std::collections::BTreeMap::<String, u64>::new();
    for seed in 0..10 {
        let scratch = tempfile::tempdir().expect("a directory");
        let mut pair = plain_twins(scratch.path());
        let mut operations = Generator::new(seed);
        for _ in 0..1500 {
            pair.apply(&operations.next()).expect("the same answers");
        }
        pair.compare().expect("equal trees");
        for (name, count) in &pair.succeeded {
            *succeeded.entry(name.clone()).or_default() += count;
        }
    }
    let kinds = [
        "Open",
        "Close",
        "Read",
        "Write",
        "MapRead",
        "MapWrite",
        "Resize",
        "Allocate",
        "Copy",
        "Sync",
        "ResizePath",
        "Rename",
        "Link",
        "Symlink",
        "Unlink",
        "MakeDirectory",
        "RemoveDirectory",
        "MakeNode",
        "ChangeMode",
        "ChangeOwner",
        "SetTimes",
        "SetXattr",
        "RemoveXattr",
        "Look",
        "List",
    ];
    for kind in kinds {
        assert!(
            succeeded.get(kind).is_some_and(|&count| count >= 10),
            "{kind} hardly ever succeeds: {succeeded:?}"
        );
    }
}

/// A side that forgets one operation is found out, whichever kind it was: by a later answer or by the trees.
#[test]
fn an_operation_that_is_not_done_is_found_out() {
    let changes = |operation: &Operation| {
        use Operation::*;
        matches!(
            operation,
            Write { .. }
                | Resize { .. }
                | Rename { .. }
                | Link { .. }
                | Symlink { .. }
                | Unlink { .. }
                | MakeDirectory { .. }
                | MakeNode { .. }
                | ChangeMode { .. }
                | SetTimes { .. }
                | SetXattr { .. }
        )
    };
    let mut found = 0;
    let mut cases = 0;
    for seed in 0..40 {
        let scratch = tempfile::tempdir().expect("a directory");
        let mut pair = plain_twins(scratch.path());
        let mut operations = Generator::new(seed);
        let mut differ = false;
        let mut forgotten = None;
        for step in 0..400 {
            let operation = operations.next();
            if step >= 370 && forgotten.is_none() && changes(&operation) {
                // Only an operation that does something can be missed.
                if pair.right.apply(&operation).success() {
                    forgotten = Some(operation);
                } else {
                    let _ = pair.tested.apply(&operation);
                }
            } else if pair.apply(&operation).is_err() {
                differ = true;
                break;
            }
        }
        cases += 1;
        differ |= pair.compare().is_err();
        // An overwrite, a removal or a write of what was there can hide it, and only seldom does.
        found += u32::from(differ || forgotten.is_none());
    }
    assert!(
        found * 10 >= cases * 8,
        "only {found} of {cases} forgotten operations were found out"
    );
}
