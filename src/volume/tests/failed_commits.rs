//! What a commit that failed leaves behind on the disks: nothing.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::commit::Purpose;
use super::super::filemap::Window;
use super::super::tiers::{Finished, Judged};
use super::tiers::MadeUp;
use super::*;
use crate::disk::{Fault, ObjectName, Operation, Operations, Rule, When};
use crate::store::Lane;

/// Tiers whose source panics once.
#[derive(Debug, Default)]
struct Panics {
    armed: AtomicBool,
    usual: MadeUp,
}

impl TierSource for Panics {
    fn while_writing(&self, file: FileId, range: &Range<u64>, bytes: &[u8]) -> Lane {
        self.usual.while_writing(file, range, bytes)
    }

    fn at_commit(&self, finished: &Finished<'_>) -> Judged {
        assert!(!self.armed.swap(false, Ordering::SeqCst), "for this test");
        self.usual.at_commit(finished)
    }
}

#[test]
fn a_commit_that_panics_has_failed_and_loses_nothing() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let tiers = Arc::new(Panics::default());
    let volume = rig.open_with(Arc::clone(&tiers) as _);
    let bytes = noise(1, 1 << 20);
    let (_, handle) = create(&volume, "f");
    write_all(&volume, handle, &bytes);
    tiers.armed.store(true, Ordering::SeqCst);
    let error = volume.flush(handle).expect_err("it failed");
    assert_eq!(error.errno(), libc::EIO, "{error}");
    assert!(volume.read(handle, 0, 1 << 20).expect("read") == bytes);
    volume.flush(handle).expect("committed");
    volume.release(handle);
    volume.close().expect("closed");
    drop(volume);
    assert!(read_file(&rig.open(), "f").expect("read") == bytes);
}

/// Not even the file that was to hold its bytes could be made.
#[test]
fn what_no_disk_of_a_set_took_anything_of_is_put_elsewhere() {
    let rig = Rig::new(3, "critical = \"1+0\"");
    let volume = rig.open();
    let (file, handle) = create(&volume, "f");
    let bytes = noise(1, 300_000);
    write_all(&volume, handle, &bytes);
    let open = volume.use_file(file).expect("in use");
    let disk = {
        let state = open.state.lock();
        let mut windows = state.map.windows.values();
        windows.find_map(|window| match window {
            Window::Making(window) => window.disks.first().copied(),
            Window::Made(_) => None,
        })
    };
    volume
        .disks
        .mark_missing(disk.expect("a window"), "for this test");
    volume.flush(handle).expect("committed");
    assert!(volume.read(handle, 0, 300_000).expect("read") == bytes);
    volume.release(handle);
}

/// This process may not have what one disk's copy needs, and the others' are there already.
#[test]
fn a_manifest_of_a_commit_that_failed_is_removed() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let plans = rig.plans();
    let volume = rig.open_failing(&plans);
    let rule = Rule::new(
        Operations::of(&[Operation::Create]),
        When::Always,
        Fault::Exhausted,
    );
    plans[2].add(rule.only(|object| matches!(object, ObjectName::Manifest(_))));
    let manifests = || {
        volume.sweeper.wait();
        let disks = volume.disks.list().into_iter();
        let media = disks.filter_map(|disk| volume.disks.get(disk.id));
        let objects = media.flat_map(|medium| medium.list().expect("a listing"));
        let names = objects.filter(|(object, _)| matches!(object, ObjectName::Manifest(_)));
        names.count()
    };
    let file = write_file(&volume, "f", &noise(1, 1 << 20));
    let open = volume.use_file(file).expect("in use");
    let before = manifests();
    for _ in 0..3 {
        let folded = volume.commit(&open, Purpose::Compact);
        folded.expect_err("one disk lacks it");
        assert_eq!(manifests(), before);
    }
    plans[2].clear();
    volume.commit(&open, Purpose::Compact).expect("folded");
    assert!(manifests() >= 3, "{} of {before}", manifests());
    assert!(read_file(&volume, "f").expect("readable") == noise(1, 1 << 20));
}
