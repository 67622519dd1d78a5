//! What a commit's writer asks of the disks, and when.

use std::time::Instant;

use super::*;
use crate::disk::{Disk, MemoryDisk};
use crate::ids::VolumeId;
use crate::store::budget::Budget;
use crate::store::compression::CompressLater;
use crate::store::disks::Disks;
use crate::store::pipeline::WritePolicy;

/// Waits until it is so.
fn until(what: &str, so: impl Fn() -> bool) {
    let since = Instant::now();
    while !so() {
        assert!(since.elapsed().as_secs() < 60, "in vain: {what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn the_disks_are_asked_to_write_down_what_they_have_when_a_commit_begins() {
    let disks = Arc::new(Disks::new(false));
    let media: Vec<Arc<MemoryDisk>> = (0..3)
        .map(|number| Arc::new(MemoryDisk::new(&format!("disk{number}"))))
        .collect();
    for (number, disk) in (0..).zip(&media) {
        disks.insert(
            DiskId(number),
            disk.name().to_owned(),
            Some(Arc::clone(disk) as _),
        );
    }
    let policy = WritePolicy {
        critical: Code { k: 2, m: 1 },
        expendable: Code { k: 1, m: 0 },
        compression: Compression::None,
        compress_later: CompressLater::Never,
    };
    let budget = Budget::new(64 << 20);
    let pipeline = Pipeline::start(VolumeId(7), policy, disks, budget).expect("threads");
    let writer = SetWriter::new(Arc::clone(&pipeline), FileId(1), SetId(5));
    let next_window = AtomicU32::new(0);
    for number in 0..20u8 {
        let begun = writer.begin(Lane::Critical, &next_window).expect("disks");
        writer.seal(&begun, Arc::new(vec![number; 100_000].into()), None);
    }
    until("all is with the disks", || pipeline.unwritten() == 0);
    let blocks = ObjectName::Blocks(SetId(5));
    let asked = || {
        media
            .iter()
            .map(|disk| disk.asked_to_write(blocks))
            .sum::<u64>()
    };
    let there = || {
        media
            .iter()
            .map(|disk| disk.length(blocks).unwrap_or(0))
            .sum::<u64>()
    };
    assert!(there() > 20 * 100_000);
    assert_eq!(asked(), 0, "nobody waits yet");
    // It does not wait for that, but it makes nothing durable either.
    writer.finish();
    until("they are asked", || asked() == there());
}
