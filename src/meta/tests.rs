//! The metadata as a whole, on disks that fail, lose power and go separate ways.

mod crashes;
mod damage;
mod failing_disks;
mod histories;
mod names;
mod names_model;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::disk::{Disk, FaultPlan, FaultyDisk, MemoryDisk};
use crate::ids::VolumeId;

const VOLUME: VolumeId = VolumeId(0xabcd_0000_1234);

/// Nothing happens by itself, so that each run is the same.
fn options() -> Options {
    Options {
        flush_after: Duration::from_secs(3600),
        checkpoint_after: Duration::from_secs(3600),
        ..Options::new(VOLUME)
    }
}

type Media = Vec<Arc<MemoryDisk>>;

/// The disks of a new volume.
fn volume(count: u16) -> Media {
    let media: Media = (0..count)
        .map(|n| Arc::new(MemoryDisk::new(&format!("disk{n}"))))
        .collect();
    let disks = media
        .iter()
        .enumerate()
        .map(|(n, disk)| (DiskId(n as u16), Arc::clone(disk) as Arc<dyn Disk>))
        .collect();
    Meta::create(disks, options(), |update| {
        update.make_root(0o755, 0, 0, Timestamp::default());
        Ok(())
    })
    .unwrap();
    media
}

fn disks(media: &Media) -> Disks {
    some(media, &(0..media.len()).collect::<Vec<_>>())
}

/// Only some of the disks are there.
fn some(media: &Media, here: &[usize]) -> Disks {
    media
        .iter()
        .enumerate()
        .map(|(n, disk)| {
            let disk = Arc::clone(disk) as Arc<dyn Disk>;
            (DiskId(n as u16), here.contains(&n).then_some(disk))
        })
        .collect()
}

/// The disks behind faults, one plan each.
fn faulty(media: &Media) -> (Disks, Vec<Arc<FaultPlan>>) {
    let plans: Vec<_> = (0..media.len() as u64).map(FaultPlan::new).collect();
    let disks = std::iter::zip(media, &plans)
        .enumerate()
        .map(|(n, (disk, plan))| {
            let inner = Arc::clone(disk) as Arc<dyn Disk>;
            let disk: Arc<dyn Disk> = Arc::new(FaultyDisk::new(inner, Arc::clone(plan)));
            (DiskId(n as u16), Some(disk))
        })
        .collect();
    (disks, plans)
}

/// What the next process finds when this one is killed now.
fn killed(media: &Media) -> Media {
    MemoryDisk::together(media, |_, disk| disk.after_kill())
}

/// What is found when power fails now.
fn without_power(media: &Media, seed: u64) -> Media {
    MemoryDisk::together(media, |number, disk| {
        disk.after_power_loss(seed * 31 + number as u64)
    })
}

fn open(media: &Media) -> Meta {
    Meta::open(disks(media), options()).unwrap()
}

fn set(meta: &Meta, name: &str, value: &str) {
    meta.update(|update| {
        update.put_setting(name.as_bytes(), value.as_bytes());
        Ok::<_, MetaError>(())
    })
    .unwrap();
}

fn get(meta: &Meta, name: &str) -> Option<String> {
    let value = meta.view().setting(name.as_bytes()).unwrap()?;
    Some(String::from_utf8(value.to_vec()).unwrap())
}

/// Everything but what `meta` keeps for itself.
fn everything(meta: &Meta) -> Vec<(Key, Value)> {
    let view = meta.view();
    let tables = (1..14).filter_map(Table::from_byte);
    let all = tables.flat_map(|table| {
        let found: Result<Vec<_>> = view.scan(&Key::table_prefix(table)).collect();
        found.unwrap()
    });
    all.filter(|(key, _)| *key != Key::setting(commit::MOUNTS))
        .collect()
}
