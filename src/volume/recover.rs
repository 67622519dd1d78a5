//! What a mount finds undone: files that lost their last name while they were open, room that was to be
//! given back, objects that no commit came to refer to, manifests that a disk missed while it was away. The
//! first is done before the volume serves, the rest aside.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Volume;
use super::error::Result;
use super::head::FileHead;
use super::rescue::{KEEP_BELOW, NOBODYS};
use super::sweep::Sweep;
use crate::disk::ObjectName;
use crate::ids::{DiskId, ManifestId, SetId};
use crate::meta::{Key, Read, Records, Table};
use crate::store::manifest::ManifestRef;

/// Removes the files that were unlinked while they were open.
pub(super) fn orphans(volume: &Volume) -> Result<()> {
    for file in volume.meta.view().orphans()? {
        match volume.drop_content(file) {
            Ok(()) => {
                volume.inodes.fetch_sub(1, Ordering::Relaxed);
            }
            Err(error) => tracing::warn!(%file, %error, "a removed file is not given back"),
        }
    }
    Ok(())
}

/// Begins what can be done while the volume serves.
pub(super) fn begin(volume: &Arc<Volume>) {
    let weak = Arc::downgrade(volume);
    let work = move || {
        let Some(volume) = weak.upgrade() else { return };
        if let Err(error) = volume.tidy() {
            tracing::warn!(%error, "what earlier mounts left is not all given back; the next mount tries again");
        }
    };
    match std::thread::Builder::new().name("tidy".into()).spawn(work) {
        Ok(thread) => volume.aside.lock().push(thread),
        Err(error) => tracing::warn!(%error, "no thread to tidy up"),
    }
}

impl Volume {
    /// Gives back what nothing refers to, and makes manifests whole again.
    pub(super) fn tidy(&self) -> Result<()> {
        let view = self.meta.view();
        let punches = view.punches()?;
        let sets: HashSet<SetId> = view.sets()?.into_iter().map(|(set, _)| set).collect();
        let mut bases: BTreeMap<ManifestId, ManifestRef> = BTreeMap::new();
        let mut understood = true;
        // Of files too that have lost their last name: their base is read once more to know what they let go of.
        for found in view.scan(&Key::table_prefix(Table::Manifest)) {
            let (_, bytes) = found?;
            match FileHead::decode(&bytes) {
                Some(head) => bases.extend(head.base.map(|base| (base.id, base))),
                // Whatever wrote it, its manifest may be any.
                None => understood = false,
            }
        }
        for (file, bytes) in view.all_hasty()? {
            if self.squeezer.add(file) {
                self.pipeline.defer(bytes);
            }
        }
        drop(view);
        self.sweeper.add_closed(Sweep {
            punches,
            ..Sweep::default()
        });
        let now = u64::from(self.meta.mounts()) << 32;
        let keep = self.meta.view().setting(KEEP_BELOW)?;
        let keep = keep
            .and_then(|bytes| bytes.as_ref().try_into().ok())
            .map_or(0, u64::from_le_bytes);
        let old = |number: u64| (keep..now).contains(&number) || number == NOBODYS;
        let mut held: BTreeMap<ManifestId, HashSet<DiskId>> = BTreeMap::new();
        for status in self.disks.list() {
            let Some(disk) = self.disks.get(status.id) else {
                continue;
            };
            let mut removed = 0;
            for (object, _) in disk.list()? {
                // Objects of this mount have higher numbers, and are looked after as they come.
                let left_over = match object {
                    ObjectName::Blocks(set) | ObjectName::Parity(set) => {
                        old(set.0) && !sets.contains(&set)
                    }
                    // Those of this mount count as held too: a task tidies while files are committed.
                    ObjectName::Manifest(id) => {
                        held.entry(id).or_default().insert(status.id);
                        understood && old(id.0) && !bases.contains_key(&id)
                    }
                    _ => false,
                };
                if left_over && self.disks.is_online(status.id) {
                    disk.remove(object)?;
                    removed += 1;
                }
            }
            if removed > 0 {
                disk.sync_names()?;
                tracing::info!(
                    disk = status.name,
                    removed,
                    "removed what no file refers to"
                );
            }
        }
        for reference in bases.values() {
            for disk in self.disks.usable_for_writing() {
                if held
                    .get(&reference.id)
                    .is_none_or(|held| !held.contains(&disk))
                {
                    self.copy_manifest(*reference, disk)?;
                }
            }
        }
        Ok(())
    }

    /// Gives a disk the copy of a manifest that it missed.
    fn copy_manifest(&self, reference: ManifestRef, to: DiskId) -> Result<()> {
        let Some(target) = self.disks.get(to) else {
            return Ok(());
        };
        let current = |id: ManifestId| -> Result<bool> {
            // A file that was committed anew meanwhile has no use for the copy.
            let view = self.meta.view();
            for found in view.scan(&Key::table_prefix(Table::Manifest)) {
                let (_, bytes) = found?;
                if FileHead::decode(&bytes)
                    .and_then(|head| head.base)
                    .is_some_and(|base| base.id == id)
                {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let manifest = self.manifest(reference)?;
        let mut appender = target.create(ObjectName::Manifest(reference.id))?;
        let copied = manifest
            .copy_to(&mut |bytes| -> Result<()> { Ok(appender.append(&[bytes]).map(|_| ())?) });
        if let Err(error) = copied {
            target.remove(ObjectName::Manifest(reference.id))?;
            return Err(error);
        }
        appender.sync()?;
        target.sync_names()?;
        if !current(reference.id)? {
            target.remove(ObjectName::Manifest(reference.id))?;
        }
        Ok(())
    }
}
