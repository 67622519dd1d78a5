//! Rescue: the namespace out of what is left when every database is lost. The journals rebuild all of it; files
//! that no journal knows any more are found by their manifests, which carry paths and attributes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Volume;
use super::error::{Result, VolumeError};
use super::fold::FrozenMap;
use super::head::FileHead;
use super::in_use::has_all;
use super::tally::Tally;
use crate::config::Config;
use crate::disk::{Disk, ObjectName};
use crate::ids::{DiskId, FileId, ManifestId, SetId};
use crate::meta::{
    self, DiskRecord, FileKind, Key, Meta, MetaError, New, ROOT, Records, SetRecord, Timestamp,
    Update, WriteRecords,
};
use crate::store::manifest::{Manifest, ManifestRef};

/// The directory that takes files whose own cannot be made again.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// The setting that keeps objects with numbers below it from being removed for want of a reference.
pub(super) const KEEP_BELOW: &[u8] = b"keep below";

/// The highest number is nobody's: a version before this one used it where it had none, for what no file could refer to.
pub(super) const NOBODYS: u64 = u64::MAX;

/// What a manifest says of its file besides where its bytes are, for a rescue without any metadata.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    paths: Vec<Vec<u8>>,
    mode: u16,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: (i64, u32),
    stored: u64,
}

/// Opens metadata that has to be put together. When none is left that is of use, new metadata is begun, for the
/// manifests to fill.
pub(super) fn metadata(
    disks: &[(DiskId, Option<Arc<dyn Disk>>)],
    options: impl Fn() -> meta::Options,
    lines: &mut Vec<String>,
) -> Result<Meta> {
    match Meta::rescue(disks.to_vec(), options()) {
        Ok((meta, report)) => {
            let rebuilt = report.rebuilt.len();
            lines.push(format!(
                "{rebuilt} databases were of no use and are made anew"
            ));
            for epochs in &report.lost_transactions {
                let (first, last) = (epochs.start(), epochs.end());
                lines.push(if first == last {
                    format!("transaction {first} is readable on no disk: what it changed is lost")
                } else {
                    format!(
                        "transactions {first} to {last} are readable on no disk: what they changed is lost"
                    )
                });
            }
            if report.lost_image_parts > 0 {
                let parts = report.lost_image_parts;
                lines.push(format!(
                    "{parts} parts of the metadata's image are readable on no disk"
                ));
            }
            if let Some(epoch) = report.from_names {
                lines.push(format!(
                    "no database and no whole journal is left; names and files are as the manifests of the namespace \
                     have them, of epoch {epoch}: what was changed in the last half a minute before a crash may be missing"
                ));
            }
            if report.is_complete() && report.from_names.is_none() {
                return Ok(meta);
            }
            // Mounts after that moment may have given out numbers, and what was lost may have referred to anything.
            let mounts = mounts_before(disks)?.max(meta.mounts());
            let now = Timestamp::now();
            meta.update(|update| -> meta::Result<()> {
                if update.inode(ROOT)?.is_none() {
                    update.make_root(0o755, 0, 0, now);
                }
                update.count_mounts(mounts);
                let keep = u64::from(mounts) << 32;
                update.put_setting(KEEP_BELOW, &keep.to_le_bytes());
                Ok(())
            })?;
            meta.close()?;
            drop(meta);
            return Ok(Meta::open(disks.to_vec(), options())?);
        }
        // Anything else than this leaves what may be of use where it is.
        Err(MetaError::NothingOfUse) => {}
        Err(error) => return Err(error.into()),
    }
    lines.push(
        "no disk holds any metadata that is of use; it is begun anew, and files are named by their manifests"
            .to_owned(),
    );
    let mut present: Vec<(DiskId, Arc<dyn Disk>)> = Vec::new();
    for (id, disk) in disks {
        let Some(disk) = disk else { continue };
        for (object, _) in disk.list()? {
            match object {
                ObjectName::Journal(_) | ObjectName::Database | ObjectName::Names(_) => {
                    disk.remove(object)?
                }
                ObjectName::Manifest(_)
                | ObjectName::Blocks(_)
                | ObjectName::Parity(_)
                | ObjectName::Label => {}
            }
        }
        present.push((*id, Arc::clone(disk)));
    }
    let mounts = mounts_before(disks)?;
    let now = Timestamp::now();
    Meta::create(present, options(), |update| {
        update.make_root(0o755, 0, 0, now);
        for (id, disk) in disks {
            if let Some(disk) = disk {
                update.put_disk(*id, &DiskRecord::new(disk.name(), now));
            }
        }
        update.count_mounts(mounts);
        // What has an older number may be all that is left of a file: it is never taken for rubbish.
        update.put_setting(KEEP_BELOW, &(u64::from(mounts) << 32).to_le_bytes());
        Ok(())
    })?;
    Ok(Meta::open(disks.to_vec(), options())?)
}

/// A number of mounts above that of every mount that gave a number to what lies on the disks.
fn mounts_before(disks: &[(DiskId, Option<Arc<dyn Disk>>)]) -> Result<u32> {
    let mut highest = 0;
    for (_, disk) in disks {
        let Some(disk) = disk else { continue };
        for (object, _) in disk.list()? {
            if let ObjectName::Manifest(ManifestId(number))
            | ObjectName::Blocks(SetId(number))
            | ObjectName::Parity(SetId(number)) = object
                && number != NOBODYS
            {
                highest = highest.max(number);
            }
        }
    }
    Ok(u32::try_from(highest >> 32)
        .unwrap_or(u32::MAX)
        .saturating_add(1))
}

impl Volume {
    /// The description for a manifest that is being written.
    pub(super) fn describe(&self, file: FileId, size: u64) -> Result<Vec<u8>> {
        let inode = self.meta.view().inode(file)?;
        let Some(inode) = inode else {
            return Ok(Vec::new());
        };
        let mut paths = self.paths(file)?;
        paths.truncate(8);
        let description = Description {
            paths,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            size,
            mtime: (inode.mtime.seconds, inode.mtime.nanos),
            stored: inode.stored,
        };
        Ok(serde_json::to_vec(&description).unwrap_or_default())
    }

    /// Rebuilds the metadata of a volume whose databases are lost, from the journals, and what those do not
    /// know from the manifests. Says in lines what was done and what could not be.
    pub fn rescue(config: &Config) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let volume = Volume::open_for_rescue(config, &mut lines)?;
        volume.adopt(&mut lines)?;
        volume.count_sets(&mut lines)?;
        volume.tell_of_holes(&mut lines)?;
        let nameless = volume.nameless()?;
        volume.close()?;
        if nameless > 0 {
            lines.push(format!(
                "{nameless} segment sets belong to no file that is known; they are kept"
            ));
            return Err(VolumeError::new(
                libc::EIO,
                format!(
                    "the rescue is not complete:\n{}\nWhat is found is kept, and the volume can be mounted. Copy the disks \
                     first if you can: see docs/operating.md, Rescue",
                    lines.join("\n")
                ),
            ));
        }
        Ok(lines)
    }

    /// Counts the sets again that files need and that the metadata does not know of any more, or counts too low: what
    /// counted them may have been lost where a later commit that needs them was not.
    fn count_sets(&self, lines: &mut Vec<String>) -> Result<()> {
        let view = self.meta.view();
        let mut uses: BTreeMap<SetId, u32> = BTreeMap::new();
        for found in view.files() {
            let (file, _) = found?;
            let Some(head) = view.manifest(file)? else {
                continue;
            };
            let Some(head) = FileHead::decode(&head) else {
                continue;
            };
            let mut sets: BTreeSet<SetId> = head.sets.iter().copied().collect();
            let based = head.base.map_or(Ok(()), |base| -> Result<()> {
                for found in self.manifest(base)?.sets() {
                    sets.insert(found?.set);
                }
                Ok(())
            });
            if let Err(error) = based {
                let called = self.called(file);
                lines.push(format!("{called}: its manifest cannot be read: {error}"));
            }
            for set in sets {
                *uses.entry(set).or_default() += 1;
            }
        }
        let known: BTreeMap<SetId, SetRecord> = view.sets()?.into_iter().collect();
        let counted = |set: &SetId| known.get(set).map_or(0, |record| record.references);
        self.meta.update(|update| -> Result<()> {
            for (set, references) in uses {
                if references > counted(&set) {
                    update.put_set(set, SetRecord { references });
                }
            }
            Ok(())
        })
    }

    /// Tells of the files that are not whole any more.
    fn tell_of_holes(&self, lines: &mut Vec<String>) -> Result<()> {
        let view = self.meta.view();
        for found in view.files() {
            let (file, inode) = found?;
            if inode.kind != FileKind::Regular {
                continue;
            }
            let head = match view.manifest(file)? {
                None => None,
                Some(bytes) => match FileHead::decode(&bytes) {
                    Some(head) => Some(head),
                    // Its open tells.
                    None => continue,
                },
            };
            let deltas = view.deltas(file)?.into_iter();
            let deltas: Vec<u64> = deltas.map(|(number, _)| number).collect();
            if !has_all(head.as_ref(), &deltas, &inode) {
                lines.push(self.not_whole(file).to_string());
            }
        }
        Ok(())
    }

    /// How many segment sets no file refers to, where that means that the file is not known any more.
    fn nameless(&self) -> Result<usize> {
        let view = self.meta.view();
        if view.setting(KEEP_BELOW)?.is_none() {
            // The metadata is whole: what it does not know a crash has left.
            return Ok(0);
        }
        let known: BTreeSet<SetId> = view.sets()?.into_iter().map(|(set, _)| set).collect();
        let mut nameless = BTreeSet::new();
        for status in self.disks.list() {
            let Some(disk) = self.disks.get(status.id) else {
                continue;
            };
            for (object, _) in disk.list()? {
                if let ObjectName::Blocks(set) | ObjectName::Parity(set) = object
                    && set.0 != NOBODYS
                    && !known.contains(&set)
                {
                    nameless.insert(set);
                }
            }
        }
        Ok(nameless.len())
    }

    /// Gives names to files that only their manifests know.
    fn adopt(&self, lines: &mut Vec<String>) -> Result<()> {
        let mut newest: BTreeMap<FileId, (ManifestRef, Arc<Manifest>)> = BTreeMap::new();
        for status in self.disks.list() {
            let Some(disk) = self.disks.get(status.id) else {
                continue;
            };
            for (object, _) in disk.list()? {
                let ObjectName::Manifest(id) = object else {
                    continue;
                };
                if id.0 == NOBODYS {
                    continue;
                }
                let Ok(reference) = Manifest::discover(self.id, id, &self.disks, status.id) else {
                    lines.push(format!(
                        "manifest {id} on disk {} cannot be read",
                        status.name
                    ));
                    continue;
                };
                let Ok(manifest) = self.manifest(reference) else {
                    continue;
                };
                let later = |(known, _): &(ManifestRef, _)| known.id < id;
                if newest.get(&manifest.file()).is_none_or(later) {
                    newest.insert(manifest.file(), (reference, Arc::new(manifest)));
                }
            }
        }
        let there = self.objects()?;
        let view = self.meta.view();
        for (file, (reference, manifest)) in newest {
            let adopted = if view.inode(file)?.is_none() {
                self.adopt_one(file, reference, &manifest)
                    .map(|path| format!("file {file} was found by its manifest: {path}"))
            } else if self.is_older(file, reference.id, &there)? {
                self.renew(file, reference, &manifest)
                    .map(|()| format!("file {file} is as a manifest newer than its name has it"))
            } else {
                continue;
            };
            lines.push(adopted.unwrap_or_else(|error| {
                format!("file {file} was found and cannot be named: {error}")
            }));
        }
        Ok(())
    }

    /// All that lies on any disk.
    fn objects(&self) -> Result<BTreeSet<ObjectName>> {
        let mut there = BTreeSet::new();
        for status in self.disks.list() {
            if let Some(disk) = self.disks.get(status.id) {
                there.extend(disk.list()?.into_iter().map(|(object, _)| object));
            }
        }
        Ok(there)
    }

    /// Whether what the metadata knows of a file was given up for a later form, of which this manifest is.
    fn is_older(
        &self,
        file: FileId,
        found: ManifestId,
        there: &BTreeSet<ObjectName>,
    ) -> Result<bool> {
        let head = self.meta.view().manifest(file)?;
        let Some(head) = head.and_then(|bytes| FileHead::decode(&bytes)) else {
            return Ok(true);
        };
        let base = head.base.map(|base| base.id);
        let gone = base.is_some_and(|base| !there.contains(&ObjectName::Manifest(base)))
            || head.sets.iter().any(|set| {
                !there.contains(&ObjectName::Blocks(*set))
                    && !there.contains(&ObjectName::Parity(*set))
            });
        Ok(gone && base.is_none_or(|base| base < found))
    }

    /// The head of a file that a manifest says all of.
    fn head_of(&self, file: FileId, reference: ManifestRef, manifest: &Arc<Manifest>) -> FileHead {
        let totals = manifest.totals();
        let view = FrozenMap::of_base(Arc::clone(manifest));
        let mut tally = Tally::default();
        let counted = view
            .each(|extent| {
                tally.extent(&extent);
                Ok(())
            })
            .and_then(|()| {
                view.each_window(|record| {
                    tally.window(&record);
                    Ok(())
                })
            });
        if let Err(error) = counted {
            tracing::warn!(%file, %error, "its manifest is readable in parts; any of its bytes may be stored once");
            tally.sums.stored = totals.stored;
            tally.sums.unprotected = totals.stored;
            tally.given_up = totals.file_size;
        }
        FileHead {
            base: Some(reference),
            next_window: totals.next_window,
            next_piece: totals.next_piece,
            dead: tally.dead,
            base_dead: tally.dead,
            stored: tally.sums.stored,
            unprotected: tally.sums.unprotected,
            dropped: tally.given_up,
            hasty: tally.sums.hasty,
            ..FileHead::default()
        }
    }

    /// Gives a file that the metadata knows the form that a manifest has.
    fn renew(&self, file: FileId, reference: ManifestRef, manifest: &Arc<Manifest>) -> Result<()> {
        let totals = manifest.totals();
        let mut sets = BTreeSet::new();
        for found in manifest.sets() {
            sets.insert(found?.set);
        }
        let view = self.meta.view();
        let old = view
            .manifest(file)?
            .and_then(|bytes| FileHead::decode(&bytes))
            .unwrap_or_default();
        let deltas: Vec<u64> = view.deltas(file)?.into_iter().map(|(no, _)| no).collect();
        let head = FileHead {
            first_delta: old.next_delta,
            next_delta: old.next_delta,
            next_piece: totals.next_piece.max(old.next_piece),
            inline_bytes: old.inline_bytes,
            ..self.head_of(file, reference, manifest)
        };
        self.meta.update(|update| -> Result<()> {
            for delta in deltas {
                update.delete(Key::delta(file, delta));
            }
            if let Some(mut inode) = update.inode(file)? {
                inode.size = totals.file_size;
                inode.stored = head.stored;
                update.put_inode(file, &inode);
            }
            update.put_manifest(file, &head.encode());
            update.put_hasty(file, head.hasty);
            for set in sets {
                if update.set(set)?.is_none() {
                    self.add_set_reference(update, set)?;
                }
            }
            Ok(())
        })
    }

    fn adopt_one(
        &self,
        file: FileId,
        reference: ManifestRef,
        manifest: &Arc<Manifest>,
    ) -> Result<String> {
        let totals = manifest.totals();
        let described: Option<Description> = serde_json::from_slice(&manifest.description()?).ok();
        let path = described
            .as_ref()
            .and_then(|described| described.paths.first().cloned());
        let path = path.unwrap_or_default();
        let mut parts: Vec<&[u8]> = path
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty())
            .collect();
        let own = format!("file-{file}");
        let name = parts.pop().map_or(own.as_bytes().to_vec(), <[u8]>::to_vec);
        let now = Timestamp::now();
        let mut sets = Vec::new();
        for found in manifest.sets() {
            sets.push(found?.set);
        }
        let head = self.head_of(file, reference, manifest);
        self.meta.update(|update| -> Result<()> {
            let mut directory = ROOT;
            let in_lost = path.is_empty();
            let lost = [LOST_AND_FOUND];
            for part in if in_lost { &lost[..] } else { &parts[..] } {
                directory = self.directory(update, directory, part)?;
            }
            let taken = update.entry(directory, &name)?.is_some();
            let name = if taken { own.as_bytes() } else { &name };
            let new = New {
                kind: FileKind::Regular,
                mode: described.as_ref().map_or(0o600, |described| described.mode),
                uid: described.as_ref().map_or(0, |described| described.uid),
                gid: described.as_ref().map_or(0, |described| described.gid),
                rdev: 0,
                target: b"",
            };
            let mut inode = update.create_as(file, directory, name, new, now)?;
            inode.size = totals.file_size;
            inode.stored = head.stored;
            if let Some(described) = &described {
                inode.mtime = Timestamp {
                    seconds: described.mtime.0,
                    nanos: described.mtime.1,
                };
            }
            update.put_inode(file, &inode);
            update.put_manifest(file, &head.encode());
            update.put_hasty(file, head.hasty);
            for set in &sets {
                self.add_set_reference(update, *set)?;
            }
            Ok(())
        })?;
        Ok(String::from_utf8_lossy(&path).into_owned())
    }

    fn directory(&self, update: &mut Update, parent: FileId, name: &[u8]) -> Result<FileId> {
        if let Some(entry) = update.entry(parent, name)? {
            return Ok(entry.file);
        }
        let new = New {
            kind: FileKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: b"",
        };
        Ok(update.create(parent, name, new, Timestamp::now())?.0)
    }
}
