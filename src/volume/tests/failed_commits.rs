//! What a commit that failed leaves behind on the disks: nothing.

use super::super::commit::Purpose;
use super::*;
use crate::disk::{Fault, ObjectName, Operation, Operations, Rule, When};

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
