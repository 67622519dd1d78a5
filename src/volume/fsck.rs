//! Checking a volume that nobody has mounted: every rule of `docs/format.md` that can be seen without reading the blocks
//! themselves, which is a scrub's business. First the disks and their copies of the metadata, then names, then what each
//! file is made of, then what lies on the disks. Repairing is opening it for writing, which makes the copies whole, and
//! setting right what follows from something else: counts, ways back, what nothing refers to. Where something could not be read
//! that may refer to others, nothing is removed or counted down: what it refers to is not known.

mod files;
mod names;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::Volume;
use super::error::{Result, VolumeError};
use super::head::FileHead;
use super::open::{Mode, VolumeOptions};
use super::roster::{self, Roster, busy};
use crate::config::Config;
use crate::disk::{Disk, DiskLock, LockError};
use crate::ids::{DiskId, FileId, SetId};
use crate::meta::{self, Inode, Key, Read, Records, Table, WriteRecords};

/// Problems that are told one by one.
const PROBLEMS: usize = 1000;

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What, in words.
    pub what: String,
    /// Whether a repair, or the next writable mount, sets it right.
    pub mendable: bool,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FsckReport {
    /// Disks that are here.
    pub disks: u64,
    /// Keys of the metadata.
    pub keys: u64,
    /// Files of all kinds.
    pub files: u64,
    /// Windows of all files.
    pub windows: u64,
    /// Objects on all disks.
    pub objects: u64,
    /// How many problems there were.
    pub problem_count: u64,
    /// How many of them cannot be set right.
    pub beyond_repair: u64,
    /// The first of them.
    pub problems: Vec<Problem>,
}

impl FsckReport {
    fn problem(&mut self, mendable: bool, what: String) {
        self.problem_count += 1;
        self.beyond_repair += u64::from(!mendable);
        if self.problems.len() < PROBLEMS {
            self.problems.push(Problem { what, mendable });
        }
    }

    /// Something that follows from something else, and can be set right.
    fn mendable(&mut self, what: impl Into<String>) {
        self.problem(true, what.into());
    }

    /// Something that cannot.
    fn broken(&mut self, what: impl Into<String>) {
        self.problem(false, what.into());
    }
}

/// What the check has gathered so far.
struct Check<'a> {
    volume: &'a Volume,
    report: FsckReport,
    inodes: BTreeMap<FileId, Inode>,
    /// How many files were seen to need each set.
    uses: BTreeMap<SetId, u32>,
    /// The first that could not be read of what may refer to others.
    unread: Option<String>,
    /// Link counts that are to be set right.
    links: BTreeMap<FileId, u32>,
    missing_links: Vec<Key>,
    /// Keys that nothing has to do with, and what to say of them; they are to be removed if all could be read.
    stray: Vec<(Key, String)>,
    /// Keys that are to be removed because of what they say.
    unfounded: Vec<Key>,
}

impl Volume {
    /// Checks a volume that is not mounted. With `repair` sets right what is safe, and tells what was found before it.
    pub fn fsck(config: &Config, repair: bool) -> Result<(FsckReport, Option<FsckReport>)> {
        let before = Self::check_unmounted(config)?;
        if !repair || before.problem_count == 0 {
            return Ok((before, None));
        }
        Self::repair_unmounted(config)?;
        let after = Self::check_unmounted(config)?;
        Ok((before, Some(after)))
    }

    fn check_unmounted(config: &Config) -> Result<FsckReport> {
        // Nobody may write meanwhile; a disk that cannot be locked can be looked at all the same.
        let mut locks = Vec::new();
        for disk in &config.disks {
            // An empty mount point is left alone.
            if !disk.path.join("label").exists() {
                continue;
            }
            match DiskLock::take(&disk.path) {
                Ok(lock) => locks.push(lock),
                Err(error @ LockError::Held { .. }) => return Err(busy(error)),
                Err(LockError::Io { .. }) => {}
            }
        }
        let found = roster::find(config, Mode::ReadOnly)?;
        let mut report = FsckReport::default();
        let roster = Roster::of(config, &found)?;
        for disk in &found {
            match (&disk.disk, &disk.label) {
                // A mount passes it over, or takes it out of the config if it has left.
                (None, _) if !roster.has(&disk.name) => report.mendable(format!(
                    "disk {} is in the config and no disk of the volume",
                    disk.name
                )),
                (None, _) => report.broken(format!("disk {} is missing", disk.name)),
                (Some(_), None) => {
                    report.mendable(format!("disk {}: its label is damaged", disk.name));
                }
                (Some(_), Some(label)) if label.roster != roster.number => {
                    report.mendable(format!(
                        "disk {}: its label tells of an older set of disks",
                        disk.name
                    ));
                }
                (Some(_), Some(_)) => {}
            }
        }
        let assigned = roster.assign(config, found)?;
        let here: Vec<(DiskId, Arc<dyn Disk>)> = assigned
            .iter()
            .filter_map(|(id, found)| Some((*id, found.disk.clone()?)))
            .collect();
        report.disks = here.len() as u64;
        let called = |id: DiskId| {
            let disk = assigned.iter().find(|(other, _)| *other == id);
            disk.map_or_else(String::new, |(_, found)| found.name.clone())
        };
        for (id, what) in meta::check(&here, roster.volume)? {
            report.mendable(format!("disk {}: {what}", called(id)));
        }
        let volume = Volume::open_with(config, Mode::ReadOnly, VolumeOptions::default())?;
        let mut check = Check {
            volume: &volume,
            report,
            inodes: BTreeMap::new(),
            uses: BTreeMap::new(),
            unread: None,
            links: BTreeMap::new(),
            missing_links: Vec::new(),
            stray: Vec::new(),
            unfounded: Vec::new(),
        };
        check.keys()?;
        check.names()?;
        check.files()?;
        check.objects()?;
        let report = check.report;
        volume.close()?;
        drop(locks);
        Ok(report)
    }

    /// Opens for writing, which makes labels and copies of the metadata whole, and sets right what follows from
    /// something else.
    fn repair_unmounted(config: &Config) -> Result<()> {
        let volume = Volume::open_for_repair(config)?;
        if volume.is_read_only() {
            return Err(VolumeError::new(
                libc::EROFS,
                "too few disks are here to repair anything",
            ));
        }
        let result = volume.set_right();
        let closed = volume.close();
        result.and(closed)
    }

    fn set_right(&self) -> Result<()> {
        let mut check = Check {
            volume: self,
            report: FsckReport::default(),
            inodes: BTreeMap::new(),
            uses: BTreeMap::new(),
            unread: None,
            links: BTreeMap::new(),
            missing_links: Vec::new(),
            stray: Vec::new(),
            unfounded: Vec::new(),
        };
        check.keys()?;
        check.names()?;
        check.files()?;
        let known = self.meta.view().sets()?;
        let Check {
            inodes,
            uses,
            unread,
            links,
            missing_links,
            stray,
            unfounded,
            ..
        } = check;
        self.meta.update(|update| -> Result<()> {
            for (file, links) in &links {
                if let Some(inode) = inodes.get(file) {
                    let inode = Inode {
                        links: *links,
                        ..*inode
                    };
                    update.put_inode(*file, &inode);
                }
            }
            for key in stray.iter().map(|(key, _)| key).chain(&unfounded) {
                update.delete(key.clone());
            }
            for key in &missing_links {
                update.put(key.clone(), &[]);
            }
            for (set, record) in &known {
                let references = uses.get(set).copied().unwrap_or_default();
                // What could not be read may be what the others count.
                if unread.is_some() && references <= record.references {
                    continue;
                }
                if references == 0 {
                    update.delete(Key::set(*set));
                } else if references != record.references {
                    update.put_set(*set, meta::SetRecord { references });
                }
            }
            for (set, references) in &uses {
                if !known.iter().any(|(other, _)| other == set) {
                    let record = meta::SetRecord {
                        references: *references,
                    };
                    update.put_set(*set, record);
                }
            }
            Ok(())
        })?;
        self.meta.sync()?;
        // A mount takes over what lies behind the end of a journal or a manifest as it is found.
        self.meta.check_copies(true)?;
        let bases = inodes.keys().filter_map(|file| {
            let head = self.meta.view().manifest(*file).ok()??;
            let base = FileHead::decode(&head)?.base?;
            Some((*file, base))
        });
        for (file, base) in bases {
            // Files too that have lost their last name, which the next mount removes.
            let open = self.load(file).map(Arc::new);
            let mended = open.and_then(|open| {
                let mut disks = self.disks.usable_for_writing().into_iter();
                disks.try_for_each(|disk| self.mend_manifest(&open, base, disk).map(|_| ()))
            });
            // The check that follows tells of what is bad still; others are mended all the same.
            if let Err(error) = mended {
                tracing::warn!(%file, %error, "the copies of its manifest are not all mended");
            }
        }
        if unread.is_none() {
            self.tidy()?;
        }
        self.sweeper.wait();
        Ok(())
    }
}

impl Check<'_> {
    /// Something that may refer to others could not be read: `what`.
    fn unread(&mut self, what: impl Into<String>) {
        self.unread.get_or_insert_with(|| what.into());
    }

    /// Tells of something that is not as it must be and would be set right by removing it, or counting it down.
    fn superfluous(&mut self, what: String) {
        match &self.unread {
            None => self.report.mendable(what),
            Some(unread) => {
                let kept = format!(
                    "{what}; it is kept as it is, as what could not be read may refer to it: {unread}"
                );
                self.report.broken(kept);
            }
        }
    }

    /// Tells of what has to be removed and counted anew, once all has been read; what may be needed by what could not be
    /// read stays.
    fn settle(&mut self) -> Result<()> {
        let stray = std::mem::take(&mut self.stray);
        for (_, what) in &stray {
            self.superfluous(what.clone());
        }
        let links = std::mem::take(&mut self.links);
        let mut kept = BTreeMap::new();
        for (file, right) in links {
            let Some(counted) = self.inodes.get(&file).map(|inode| inode.links) else {
                continue;
            };
            let what = format!("file {file} counts {counted} links and has {right}");
            if right > counted {
                self.report.mendable(what);
                kept.insert(file, right);
            } else {
                self.superfluous(what);
                if self.unread.is_none() {
                    kept.insert(file, right);
                }
            }
        }
        self.links = kept;
        if self.unread.is_none() {
            self.stray = stray;
        }
        self.references()
    }

    /// Every key and value has a meaning.
    fn keys(&mut self) -> Result<()> {
        let view = self.volume.meta.view();
        for table in TABLES {
            for found in view.scan(&Key::table_prefix(table)) {
                let (key, value) = match found {
                    Ok(found) => found,
                    Err(error) => {
                        self.report.broken(error.to_string());
                        break;
                    }
                };
                self.report.keys += 1;
                let length = key.in_table().len();
                let good = match table {
                    Table::Inode => length == 8 && Inode::decode(&value).is_some(),
                    Table::Entry => length > 8 && meta::Entry::decode(&value).is_some(),
                    Table::Link => length > 16 && value.is_empty(),
                    Table::Target | Table::Manifest => length == 8 && !value.is_empty(),
                    Table::Xattr => length > 8,
                    Table::Delta => length == 16,
                    Table::Inline => length == 12 && !value.is_empty(),
                    Table::Set => length == 8 && meta::SetRecord::decode(&value).is_some(),
                    Table::Punch => length == 19 && value.len() == 8,
                    Table::Orphan => length == 8 && value.is_empty(),
                    Table::Disk => length == 2 && meta::DiskRecord::decode(&value).is_some(),
                    Table::Setting => length > 0,
                    Table::Generation => length == 8 && value.len() == 8,
                };
                if !good {
                    self.report.broken(format!("{key:?} has no meaning"));
                }
            }
        }
        Ok(())
    }
}

const TABLES: [Table; 14] = [
    Table::Inode,
    Table::Entry,
    Table::Link,
    Table::Target,
    Table::Xattr,
    Table::Manifest,
    Table::Delta,
    Table::Inline,
    Table::Set,
    Table::Punch,
    Table::Orphan,
    Table::Disk,
    Table::Setting,
    Table::Generation,
];
