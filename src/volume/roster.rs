//! Which disks a volume has, and which of them is where: told by the labels of the disks that are here. Of two labels
//! the one with the higher roster number knows better; the metadata, once it is open, knows best.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::{Result, VolumeError};
use super::open::Mode;
use crate::config::{Config, DiskConfig};
use crate::disk::{
    DirectoryDisk, Disk, DiskLock, Label, LabelError, LockError, kept_open, warn_of_small_limit,
};
use crate::ids::{DiskId, VolumeId};

/// A disk of the config, as it was found.
pub(super) struct Found {
    pub name: String,
    pub path: PathBuf,
    pub disk: Option<Arc<dyn Disk>>,
    pub label: Option<Label>,
    pub lock: Option<DiskLock>,
}

/// All disks of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Roster {
    pub volume: VolumeId,
    /// Counts changes.
    pub number: u32,
    pub members: Vec<(DiskId, String)>,
}

pub(super) fn busy(error: LockError) -> VolumeError {
    VolumeError::new(libc::EBUSY, error.to_string())
}

/// Finds every disk of the config. One that is not there is not an error here.
pub(super) fn find(config: &Config, mode: Mode) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    warn_of_small_limit();
    let kept = kept_open(config.disks.len());
    for disk in &config.disks {
        let directory = match DirectoryDisk::open(&disk.name, &disk.path) {
            Ok(directory) => Some(Arc::new(directory.keeping_open(kept))),
            Err(error) => {
                tracing::warn!(disk = disk.name, %error, "missing");
                None
            }
        };
        let medium = directory
            .clone()
            .map(|directory| directory as Arc<dyn Disk>);
        let mut found = look(disk, medium)?;
        if mode != Mode::ReadOnly && found.disk.is_some() {
            match DiskLock::take(&disk.path) {
                Ok(lock) => {
                    // Before that it might be what the daemon that has it is just writing.
                    if let Some(Err(error)) = directory.map(|directory| directory.sweep()) {
                        tracing::warn!(disk = disk.name, %error, "what an interrupted write left takes room");
                    }
                    found.lock = Some(lock);
                }
                Err(error) => {
                    if matches!(error, LockError::Held { .. }) {
                        return Err(busy(error));
                    }
                    // A disk that cannot be written to is not lost for reading.
                    tracing::warn!(disk = disk.name, %error, "cannot be locked");
                }
            }
        }
        all.push(found);
    }
    Ok(all)
}

/// Looks at the label of a disk of the config.
pub(super) fn look(disk: &DiskConfig, medium: Option<Arc<dyn Disk>>) -> Result<Found> {
    let mut found = Found {
        name: disk.name.clone(),
        path: disk.path.clone(),
        disk: None,
        label: None,
        lock: None,
    };
    let Some(medium) = medium else {
        return Ok(found);
    };
    match Label::read(medium.as_ref()) {
        Ok(label) => found.label = Some(label),
        // What else is on it may prove it a member.
        Err(LabelError::Damaged { .. }) => {}
        Err(error @ LabelError::TooNew { .. }) => return Err(error.into()),
        Err(LabelError::Disk(error)) => {
            tracing::warn!(disk = disk.name, %error, "no disk of a volume; it counts as missing");
            return Ok(found);
        }
    }
    found.disk = Some(medium);
    Ok(found)
}

impl Roster {
    /// Whether a disk of this name belongs to the volume.
    pub(super) fn has(&self, name: &str) -> bool {
        self.members.iter().any(|(_, member)| member == name)
    }

    /// The volume that the disks belong to, and its disks.
    pub fn of(config: &Config, found: &[Found]) -> Result<Roster> {
        let mut newest: Option<&Label> = None;
        for label in found.iter().filter_map(|found| found.label.as_ref()) {
            match newest {
                Some(other) if other.volume != label.volume => {
                    return Err(VolumeError::new(
                        libc::EINVAL,
                        format!(
                            "disk {} belongs to volume {} ({}), and disk {} to volume {} ({}); name the disks of one \
                             volume in {}",
                            other.disk_name,
                            other.volume_name,
                            other.volume,
                            label.disk_name,
                            label.volume_name,
                            label.volume,
                            config.file.display()
                        ),
                    ));
                }
                Some(other) if other.roster >= label.roster => {}
                _ => newest = Some(label),
            }
        }
        let Some(label) = newest else {
            return Err(VolumeError::new(
                libc::ENODEV,
                format!(
                    "none of the disks in {} holds a volume: mount their filesystems first; only if there never was a \
                     volume: parsfs init",
                    config.file.display()
                ),
            ));
        };
        Ok(Roster {
            volume: label.volume,
            number: label.roster,
            members: label.members.clone(),
        })
    }

    /// The disks of the config with their numbers in the volume: what their labels say; those without a label are the
    /// members that are left, by their names where these are known. What is no member is left out.
    pub fn assign(&self, config: &Config, found: Vec<Found>) -> Result<Vec<(DiskId, Found)>> {
        let mut assigned: Vec<(DiskId, Found)> = Vec::new();
        let mut without: Vec<Found> = Vec::new();
        for disk in found {
            let Some(label) = &disk.label else {
                without.push(disk);
                continue;
            };
            let id = label.disk;
            if !self.members.iter().any(|(member, _)| *member == id) {
                tracing::warn!(
                    disk = disk.name,
                    path = %disk.path.display(),
                    "has left the volume, and is not used; take it out of the config"
                );
                continue;
            }
            if let Some((_, other)) = assigned.iter().find(|(other, _)| *other == id) {
                return Err(VolumeError::new(
                    libc::EINVAL,
                    format!(
                        "disks {} and {} are both disk {id} of the volume: one is a copy of the other; take one away",
                        other.name, disk.name
                    ),
                ));
            }
            assigned.push((id, disk));
        }
        let mut left: Vec<&(DiskId, String)> = self
            .members
            .iter()
            .filter(|(id, _)| assigned.iter().all(|(taken, _)| taken != id))
            .collect();
        // By name first, so that two that are missing are not taken for each other.
        without.sort_by_key(|disk| !left.iter().any(|(_, name)| *name == disk.name));
        for disk in without {
            let place = left.iter().position(|(_, name)| *name == disk.name);
            // A disk without a label may hold anything; only where the label is damaged something speaks for it.
            let place = place.or((!left.is_empty()).then_some(0));
            match place {
                Some(place) => assigned.push((left.remove(place).0, disk)),
                None => tracing::warn!(
                    disk = disk.name,
                    path = %disk.path.display(),
                    "is in the config and no disk of the volume; `parsfs disk add` makes it one"
                ),
            }
        }
        // Whether enough disks are here to write is a question of all of them, not of those that the config names.
        if !left.is_empty() {
            let names: Vec<&str> = left.iter().map(|(_, name)| name.as_str()).collect();
            return Err(VolumeError::new(
                libc::EINVAL,
                format!(
                    "volume {} has {} disks, and {} names only {}; name all of them, those too that are gone (it lacks {})",
                    config.name,
                    self.members.len(),
                    config.file.display(),
                    assigned.len(),
                    names.join(", ")
                ),
            ));
        }
        assigned.sort_by_key(|(id, _)| *id);
        Ok(assigned)
    }
}
