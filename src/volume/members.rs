//! Disks that join the volume and leave it, and that come back, while it is in use. The metadata says which disks there
//! are, the labels repeat it, and the config names where they are. In each step every other one may be the older one:
//! a crash between two of them leaves a volume that mounts.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Volume;
use super::error::{Result, VolumeError};
use super::roster::busy;
use super::tasks::{TaskKind, TaskStatus};
use crate::config::{Config, on_one_device};
use crate::disk::{
    DirectoryDisk, Disk, DiskError, DiskLock, FORMAT, Label, LabelError, ObjectName, PatientDisk,
    kept_open,
};
use crate::ids::DiskId;
use crate::meta::{DiskRecord, DiskState as Membership, Records, Timestamp, WriteRecords};
use crate::store::DiskState;
use crate::store::disks::DiskStatus;

/// The setting that keeps which disks have joined to replace which: pairs of numbers as JSON, the new disk's first.
const REPLACEMENTS: &[u8] = b"replacements";

fn refused(message: String) -> VolumeError {
    VolumeError::new(libc::EINVAL, message)
}

impl Volume {
    /// Opens the directory of a disk that comes to the others.
    fn open_disk(&self, name: &str, path: &Path) -> Result<DirectoryDisk> {
        let kept = kept_open(self.disks.list().len() + 1);
        Ok(DirectoryDisk::open(name, path)?.keeping_open(kept))
    }

    /// The disk of a name, or of a path.
    pub(super) fn disk_called(&self, name: &str) -> Result<DiskId> {
        let list = self.disks.list();
        let by_path = || {
            let paths = self.paths.lock();
            paths
                .iter()
                .find(|(_, path)| path.as_str() == name)
                .map(|(id, _)| *id)
        };
        let by_name = list
            .iter()
            .find(|disk| disk.name == name)
            .map(|disk| disk.id);
        by_name.or_else(by_path).ok_or_else(|| {
            let names: Vec<&str> = list.iter().map(|disk| disk.name.as_str()).collect();
            refused(format!(
                "the volume has no disk {name}; it has {}",
                names.join(", ")
            ))
        })
    }

    /// Has an empty directory become a disk of the volume, and names it in the config. Gives its name, and what is hardly
    /// meant about it.
    pub fn add_disk(&self, path: &Path, name: Option<&str>) -> Result<(String, Vec<String>)> {
        self.check_writable()?;
        self.check_no_task()?;
        let (id, name) = self.join_disk(path, name, None)?;
        tracing::info!(disk = name, %id, "a disk has joined the volume");
        Ok((name, self.shares_a_device(id)))
    }

    /// What is hardly meant about where a new disk lies, in sentences for the administrator.
    fn shares_a_device(&self, new: DiskId) -> Vec<String> {
        let device = |disk: DiskId| self.disks.get(disk).and_then(|medium| medium.device());
        let Some(own) = device(new) else {
            return Vec::new();
        };
        let name = self.disks.name(new);
        let list = self.disks.list();
        let others: Vec<&DiskStatus> = list.iter().filter(|other| other.id != new).collect();
        let mut warnings = Vec::new();
        let beside = others.iter().filter(|other| device(other.id) == Some(own));
        let beside: Vec<&str> = beside.map(|other| other.name.as_str()).collect();
        if !beside.is_empty() {
            warnings.push(on_one_device(&beside, &name));
        }
        let paths: BTreeMap<DiskId, String> = self.paths.lock().iter().cloned().collect();
        let is_mounted = |disk: DiskId, device: u64| {
            let path = paths.get(&disk).map(Path::new);
            let above = path.and_then(Path::parent).map(std::fs::metadata);
            above.is_some_and(|above| above.is_ok_and(|above| above.dev() != device))
        };
        let all_mounted = others
            .iter()
            .all(|other| device(other.id).is_none_or(|device| is_mounted(other.id, device)));
        if all_mounted && !is_mounted(new, own) {
            warnings.push(format!(
                "the disk {name} lies on the device of the directory above it, and every other disk is a mount point: is its \
                 filesystem not mounted?"
            ));
        }
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        warnings
    }

    fn check_no_task(&self) -> Result<()> {
        self.end_rebuild();
        match self.task()? {
            Some(task) if task.state == super::TaskState::Running => Err(VolumeError::new(
                libc::EBUSY,
                format!(
                    "{} is under way; wait for it, or end it with `parsfs task --cancel`",
                    task.what
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Has an empty directory join, to replace a disk perhaps.
    fn join_disk(
        &self,
        path: &Path,
        name: Option<&str>,
        replaces: Option<DiskId>,
    ) -> Result<(DiskId, String)> {
        let path = path.canonicalize().map_err(|error| {
            refused(format!(
                "{}: {error}; give an existing, empty directory on a device of its own",
                path.display()
            ))
        })?;
        let config = Config::load(&self.config).map_err(|error| refused(error.to_string()))?;
        // It may be there already, put there by hand or by a try that did not come to its end.
        let named = config
            .disks
            .iter()
            .find(|disk| same_directory(&disk.path, &path));
        let edited = match named {
            Some(_) => None,
            None => Some(
                config
                    .with_disk(&path, name)
                    .map_err(|error| refused(error.to_string()))?,
            ),
        };
        let after = match &edited {
            Some(text) => {
                Config::parse(text, &self.config).map_err(|error| refused(error.to_string()))?
            }
            None => config.clone(),
        };
        let entry = after
            .disks
            .iter()
            .find(|disk| same_directory(&disk.path, &path))
            .ok_or_else(|| refused(format!("{} cannot be named in the config", path.display())))?;
        let name = entry.name.clone();
        if self.disks.list().iter().any(|disk| disk.name == name) {
            return Err(refused(format!(
                "the volume has a disk {name} already; give another --name"
            )));
        }
        let directory = self.open_disk(&name, &path)?;
        match Label::read(&directory) {
            Err(LabelError::Disk(DiskError::Missing { .. })) => {}
            Ok(label) if label.volume == self.id => {
                return Err(refused(format!(
                    "{} is or was disk {} of this volume; a disk that was away comes back with `parsfs disk online`; \
                     one that has left can be added once its directory is emptied",
                    path.display(),
                    label.disk_name
                )));
            }
            Ok(label) => {
                return Err(refused(format!(
                    "{} belongs to volume {} ({}); empty the directory first if that volume is to be given up",
                    path.display(),
                    label.volume_name,
                    label.volume
                )));
            }
            Err(error) => return Err(error.into()),
        }
        if !directory.list()?.is_empty() {
            return Err(refused(format!(
                "{} is not empty: it holds files of a volume",
                path.display()
            )));
        }
        let lock = DiskLock::take(&path).map_err(busy)?;
        // 1. The config names it: one that is no disk of the volume does no harm there.
        if let Some(text) = edited {
            Config::replace(&self.config, &text).map_err(|error| {
                refused(format!(
                    "the config {} cannot be written ({error}); add these lines yourself and try again:\n[[disk]]\npath = \
                     {:?}\nname = {name:?}",
                    self.config.display(),
                    path.display().to_string()
                ))
            })?;
        }
        // 2. Its label says that it belongs here: now a mount would take it up, and give it the metadata.
        let id = self.next_disk()?;
        self.keep_replacement(id, replaces)?;
        let now = Timestamp::now();
        let medium = PatientDisk::over(Arc::new(directory));
        {
            let roster = self.roster.lock();
            let mut members = roster.members.clone();
            members.push((id, name.clone()));
            let label = Label {
                format: FORMAT,
                volume: self.id,
                volume_name: self.name.clone(),
                disk: id,
                disk_name: name.clone(),
                created: now.seconds,
                roster: roster.number + 1,
                members,
            };
            label.write(medium.as_ref())?;
        }
        // 3. It has all the metadata, and the metadata knows it.
        let joined = self
            .meta
            .join(id, &medium)
            .map_err(VolumeError::from)
            .and_then(|()| {
                self.meta.update(|update| -> Result<()> {
                    update.put_disk(id, &DiskRecord::new(&name, now));
                    Ok(())
                })?;
                Ok(self.meta.sync()?)
            });
        if let Err(error) = joined {
            let _ = medium.remove(ObjectName::Label);
            return Err(error);
        }
        self.locks.lock().insert(id, lock);
        self.paths.lock().push((id, path.display().to_string()));
        self.disks.insert(id, &name, Some(medium));
        // 4. All labels name it.
        let mut members = self.roster.lock().members.clone();
        members.push((id, name.clone()));
        self.meta.set_members(members.len());
        self.relabel(members, &BTreeMap::new())?;
        self.pipeline.room.forget();
        Ok((id, name))
    }

    fn replacements(&self) -> Result<Vec<(DiskId, DiskId)>> {
        let kept = self.meta.view().setting(REPLACEMENTS)?;
        // What a later version has written is none of ours.
        Ok(kept
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default())
    }

    /// Keeps, durably, whether the disk that is about to join replaces one: a try that is interrupted goes on with it.
    fn keep_replacement(&self, by: DiskId, replaces: Option<DiskId>) -> Result<()> {
        let kept = self.replacements()?;
        let list = self.disks.list();
        let is_here = |disk: &DiskId| list.iter().any(|of| of.id == *disk);
        let pairs: Vec<(DiskId, DiskId)> = kept
            .iter()
            .copied()
            // A try that came to nothing has left the number to this one.
            .filter(|(new, old)| *new != by && is_here(new) && is_here(old))
            .chain(replaces.map(|old| (by, old)))
            .collect();
        if pairs == kept {
            return Ok(());
        }
        // Plain numbers: it cannot fail.
        let bytes = serde_json::to_vec(&pairs).unwrap_or_default();
        self.meta.update(|update| -> Result<()> {
            update.put_setting(REPLACEMENTS, &bytes);
            Ok(())
        })?;
        Ok(self.meta.sync()?)
    }

    /// Whether a disk of the volume has joined to replace another one, in a try that did not come to its end.
    fn has_joined_for(&self, by: DiskId, disk: DiskId) -> Result<bool> {
        if self.replacements()?.contains(&(by, disk)) {
            return Ok(true);
        }
        // A version before this one kept the task only.
        let last = self.task()?.map(|task| task.kind);
        Ok(match last {
            Some(TaskKind::Replace {
                disk: old, by: new, ..
            })
            | Some(TaskKind::Return { disk: new, to: old }) => (new, old) == (by, disk),
            _ => false,
        })
    }

    /// A number that no disk of the volume ever had.
    fn next_disk(&self) -> Result<DiskId> {
        let known = self.meta.view().disks()?.into_iter().map(|(id, _)| id);
        let here = self.disks.list().into_iter().map(|disk| disk.id);
        let last = known.chain(here).max().unwrap_or_default();
        last.0
            .checked_add(1)
            .map(DiskId)
            .ok_or_else(|| refused("the volume has had too many disks".to_owned()))
    }

    /// The disks that are gone for good besides one that leaves. One that is here is none of them.
    fn disks_gone(&self, names: &[String], give_up: bool) -> Result<Vec<DiskId>> {
        if !give_up && !names.is_empty() {
            return Err(refused("--gone goes with --give-up only".to_owned()));
        }
        let mut gone = Vec::new();
        for name in names {
            let disk = self.disk_called(name)?;
            if self.disks.is_online(disk) {
                return Err(refused(format!(
                    "disk {} is {}, so it is not gone",
                    self.disks.name(disk),
                    self.disks.state(disk)
                )));
            }
            gone.push(disk);
        }
        Ok(gone)
    }

    /// Begins to move what a disk holds to the others; then it leaves. Bytes that only it, and others that are `gone`,
    /// had and do not give can be given up.
    pub fn remove_disk(
        &self,
        name: &str,
        give_up: bool,
        gone: &[String],
        rate: Option<u64>,
    ) -> Result<TaskStatus> {
        self.check_writable()?;
        let disk = self.disk_called(name)?;
        let gone = self.disks_gone(gone, give_up)?;
        self.check_no_task()?;
        let name = self.disks.name(disk);
        self.check_may_leave(disk, &name)?;
        let kind = TaskKind::Remove {
            disk,
            give_up,
            gone,
        };
        self.begin_task(kind, format!("the removal of disk {name}"), rate)
    }

    /// Refuses where the disks that are left would be too few.
    fn check_may_leave(&self, disk: DiskId, name: &str) -> Result<()> {
        let config = Config::load(&self.config).map_err(|error| refused(error.to_string()))?;
        if let Some(text) = config.without_disk(name) {
            Config::parse(&text, &self.config).map_err(|error| {
                refused(format!(
                    "without disk {name} the config would not hold: {error}"
                ))
            })?;
        }
        let others = self
            .disks
            .list()
            .iter()
            .filter(|other| other.id != disk && other.state.takes_writes())
            .count();
        let needed = usize::from(self.pipeline.policy.critical.m) + 1;
        if others < needed {
            return Err(refused(format!(
                "{others} disks would be left that can be written to, and the policy needs {needed}; add a disk first"
            )));
        }
        Ok(())
    }

    /// Has an empty directory join, and begins to move to it what a disk holds; then that one leaves.
    pub fn replace_disk(
        &self,
        name: &str,
        path: &Path,
        new_name: Option<&str>,
        give_up: bool,
        gone: &[String],
        rate: Option<u64>,
    ) -> Result<TaskStatus> {
        self.check_writable()?;
        let disk = self.disk_called(name)?;
        let gone = self.disks_gone(gone, give_up)?;
        self.check_no_task()?;
        let name = self.disks.name(disk);
        // A try that did not come to its end has joined it already.
        let known = {
            let paths = self.paths.lock();
            let known = paths
                .iter()
                .find(|(_, known)| same_directory(Path::new(known), path));
            known.map(|(id, _)| *id)
        };
        let by = match known {
            Some(by) if by == disk => {
                return Err(refused(format!(
                    "{} is where disk {name} is; give the new disk another path",
                    path.display()
                )));
            }
            Some(by) => {
                self.check_goes_on(disk, by, path)?;
                by
            }
            None => self.join_disk(path, new_name, Some(disk))?.0,
        };
        let what = format!("the replacement of disk {name} by {}", self.disks.name(by));
        let kind = TaskKind::Replace {
            disk,
            by,
            give_up,
            gone,
        };
        self.begin_task_with(kind, what, rate, self.shares_a_device(by))
    }

    /// Refuses to go on with a replacement by a disk that is none, or where too few disks would be left: what has a path
    /// in the volume may be any of its disks.
    fn check_goes_on(&self, disk: DiskId, by: DiskId, path: &Path) -> Result<()> {
        let (name, new) = (self.disks.name(disk), self.disks.name(by));
        if !self.has_joined_for(by, disk)? {
            return Err(refused(format!(
                "{} is where disk {new} of this volume is, which has not joined to replace disk {name}; give an empty \
                 directory, or have disk {name} leave with `parsfs disk remove`",
                path.display()
            )));
        }
        if !self.disks.is_online(by) {
            return Err(refused(format!(
                "disk {new}, which has joined to replace disk {name}, is {}; bring it back first with `parsfs disk online`",
                self.disks.state(by)
            )));
        }
        self.check_may_leave(disk, &name)
    }

    /// Begins to read and verify everything.
    pub fn scrub(&self, rate: Option<u64>) -> Result<TaskStatus> {
        self.begin_task(TaskKind::Scrub {}, "the scrub".to_owned(), rate)
    }

    /// Begins to move blocks until all disks are about equally full.
    pub fn rebalance(&self, rate: Option<u64>) -> Result<TaskStatus> {
        self.begin_task(TaskKind::Rebalance {}, "the rebalance".to_owned(), rate)
    }

    /// Nothing refers to a disk any more: it is no disk of the volume from now on.
    pub(super) fn strike_off(&self, disk: DiskId) -> Result<()> {
        let name = self.disks.name(disk);
        let members: Vec<(DiskId, String)> = {
            let roster = self.roster.lock();
            let members = roster.members.iter().filter(|(id, _)| *id != disk);
            members.cloned().collect()
        };
        // 1. The others go on without it, in a generation of their own, and their metadata says so.
        self.meta.part_with(disk)?;
        self.meta.set_members(members.len());
        let record = self.meta.view().disk(disk)?;
        self.meta.update(|update| -> Result<()> {
            if let Some(record) = record {
                let left = DiskRecord {
                    state: Membership::Left,
                    since: Timestamp::now(),
                    ..record
                };
                update.put_disk(disk, &left);
            }
            Ok(())
        })?;
        self.meta.sync()?;
        // 2. Their labels no longer name it.
        self.relabel(members, &BTreeMap::new())?;
        // 3. What it still holds is of no use to anybody; the label goes last.
        let was = self.disks.state(disk);
        let medium = self.disks.get(disk);
        self.disks.remove(disk);
        self.pipeline.end_writer(disk);
        self.pipeline.room.forget();
        if let Some(medium) = medium.filter(|_| was != DiskState::Faulty) {
            let emptied = medium.list().and_then(|objects| {
                let label = |(object, _): &(ObjectName, u64)| *object == ObjectName::Label;
                for (object, _) in objects.iter().filter(|object| !label(object)) {
                    medium.remove(*object)?;
                }
                medium.remove(ObjectName::Label)?;
                medium.sync_names()
            });
            if let Err(error) = emptied {
                tracing::warn!(disk = name, %error, "it has left, and is not emptied");
            }
        }
        self.locks.lock().remove(&disk);
        let path = {
            let mut paths = self.paths.lock();
            let path = paths
                .iter()
                .find(|(id, _)| *id == disk)
                .map(|(_, path)| path.clone());
            paths.retain(|(id, _)| *id != disk);
            path
        };
        // 4. The config need not name it any more.
        self.take_out_of_config(&name, &path.unwrap_or_default());
        tracing::info!(disk = name, "a disk has left the volume");
        Ok(())
    }

    fn take_out_of_config(&self, name: &str, path: &str) {
        let edited = Config::load(&self.config)
            .map_err(|error| error.to_string())
            .and_then(|config| {
                config
                    .without_disk(name)
                    .ok_or_else(|| "its lines are not found".to_owned())
            })
            .and_then(|text| {
                Config::replace(&self.config, &text).map_err(|error| error.to_string())
            });
        if let Err(error) = edited {
            tracing::warn!(
                disk = name,
                path,
                error,
                "it has left; take it out of the config yourself"
            );
        }
    }

    /// Takes disks out of the config that have left the volume, where a crash came before that.
    pub(super) fn forget_disks_that_left(&self, config: &Config) -> Result<()> {
        let here: Vec<String> = self
            .disks
            .list()
            .into_iter()
            .map(|disk| disk.name)
            .collect();
        let left: Vec<String> = self
            .meta
            .view()
            .disks()?
            .into_iter()
            .filter(|(_, record)| record.state == Membership::Left)
            .map(|(_, record)| record.name)
            .collect();
        for disk in &config.disks {
            if !here.contains(&disk.name) && left.contains(&disk.name) {
                self.take_out_of_config(&disk.name, &disk.path.display().to_string());
            }
        }
        Ok(())
    }

    /// Has a disk that was suspect, faulty or missing take part again. What it lacks is written to it.
    pub fn bring_disk_online(&self, name: &str) -> Result<String> {
        self.check_writable()?;
        let disk = self.disk_called(name)?;
        let name = self.disks.name(disk);
        match self.disks.state(disk) {
            DiskState::Online => Ok(format!("disk {name} is online")),
            DiskState::Rebuilding => Ok(format!("disk {name} is being rebuilt already")),
            DiskState::Suspect => {
                self.disks.mark_online(disk, "an administrator trusts it");
                Ok(format!("disk {name} is online"))
            }
            DiskState::Faulty | DiskState::Missing => {
                let path = {
                    let paths = self.paths.lock();
                    let path = paths
                        .iter()
                        .find(|(id, _)| *id == disk)
                        .map(|(_, path)| path.clone());
                    PathBuf::from(path.unwrap_or_default())
                };
                let directory = self.open_disk(&name, &path)?;
                self.check_is(disk, &directory, path.display())?;
                // The one it had may be on what was there before.
                self.locks.lock().remove(&disk);
                let lock = DiskLock::take(&path).map_err(busy)?;
                directory.sweep()?;
                self.take_back(disk, Arc::new(directory))?;
                // Only now: those of disks that are out of service are given back every few seconds.
                self.locks.lock().insert(disk, lock);
                Ok(format!(
                    "disk {name} takes part again, and what it lacks is written to it"
                ))
            }
        }
    }

    /// The same for a faulty or missing disk whose medium is in hand. Nobody locks it.
    pub fn bring_disk_online_on(&self, name: &str, medium: Arc<dyn Disk>) -> Result<()> {
        self.check_writable()?;
        let disk = self.disk_called(name)?;
        match self.disks.state(disk) {
            DiskState::Faulty | DiskState::Missing => {
                self.check_is(disk, medium.as_ref(), medium.name())?;
                self.take_back(disk, medium)
            }
            _ => Ok(()),
        }
    }

    fn check_is(&self, disk: DiskId, medium: &dyn Disk, place: impl fmt::Display) -> Result<()> {
        let label = Label::read(medium)?;
        if label.volume == self.id && label.disk == disk {
            return Ok(());
        }
        Err(refused(format!(
            "{place} holds disk {} of volume {}, not disk {} of this volume",
            label.disk_name,
            label.volume_name,
            self.disks.name(disk)
        )))
    }

    fn take_back(&self, disk: DiskId, medium: Arc<dyn Disk>) -> Result<()> {
        let medium = PatientDisk::over(medium);
        self.meta.join(disk, &medium)?;
        self.pipeline.end_writer(disk);
        self.disks
            .insert_rebuilding(disk, medium, "an administrator brought it back");
        let members = self.roster.lock().members.clone();
        self.relabel(members, &BTreeMap::new())?;
        self.punch_again(disk)?;
        self.pipeline.room.forget();
        self.bell.ring();
        Ok(())
    }
}

fn same_directory(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
