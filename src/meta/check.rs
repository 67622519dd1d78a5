//! Looking at the copies of the metadata of a volume that nobody has mounted, one disk after the other. Writes nothing.

use std::sync::Arc;

use super::error::{MetaError, Result};
use super::names::wrong_with;
use super::recovery::{Found, look, plan};
use crate::disk::Disk;
use crate::ids::{DiskId, VolumeId};

/// What is wrong with the copies of the metadata, disk by disk. An error when no way leads to the newest moment: then a
/// mount is refused too.
pub fn check(disks: &[(DiskId, Arc<dyn Disk>)], volume: VolumeId) -> Result<Vec<(DiskId, String)>> {
    let mut wrong = Vec::new();
    let mut found: Vec<Found> = Vec::new();
    for (id, disk) in disks {
        match look(*id, disk, volume, true) {
            Ok(seen) => found.push(seen),
            Err(error) => wrong.push((*id, format!("its metadata cannot be read: {error}"))),
        }
    }
    let plan = match plan(&found) {
        Err(MetaError::Nothing) if found.is_empty() => return Ok(wrong),
        plan => plan?,
    };
    for disk in &found {
        match &disk.state {
            None => wrong.push((disk.id, "its database is missing or damaged".to_owned())),
            Some(state) if plan.chain.get(&state.mark.epoch) != Some(&state.mark.fingerprint) => {
                wrong.push((disk.id, "its database is of another past".to_owned()));
            }
            Some(_) => {}
        }
        let sound = disk.scan.files.last().is_some_and(|file| file.is_sound());
        if !sound {
            wrong.push((disk.id, "its journal is missing or damaged".to_owned()));
        } else if disk.newest() != plan.target {
            wrong.push((
                disk.id,
                format!(
                    "it is behind: it knows of epoch {}, and others of {}",
                    disk.newest().epoch,
                    plan.target.epoch
                ),
            ));
        }
        if let Some(state) = &disk.state {
            let names = match disk.scan.names.last() {
                Some(number) => wrong_with(&*disk.disk, *number, state.mark, volume)
                    .unwrap_or_else(|error| Some(error.to_string())),
                None => Some("its manifest of the namespace is missing".to_owned()),
            };
            wrong.extend(names.map(|what| (disk.id, what)));
        }
    }
    Ok(wrong)
}
