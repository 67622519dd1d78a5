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
use crate::disk::{Disk, DiskError, ObjectName};
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
            let objects = match disk.list() {
                Ok(objects) => objects,
                // What is there is looked at when it is trusted again.
                Err(error) if !self.disks.is_online(status.id) => {
                    tracing::warn!(disk = status.name, %error, "what it holds is not looked at");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let mut removed = 0;
            for (object, _) in objects {
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

    /// Gives a disk the copy of a manifest that it missed. A file that is committed anew meanwhile has no use for it.
    fn copy_manifest(&self, reference: ManifestRef, to: DiskId) -> Result<()> {
        let Some(target) = self.disks.get(to) else {
            return Ok(());
        };
        if !self.is_base(reference.id)? {
            return Ok(());
        }
        let copied = self.copy_manifest_to(reference, &*target);
        if !self.is_base(reference.id)? {
            // Nobody else removes it: what the sweeper was given of the file, it has done.
            target.remove(ObjectName::Manifest(reference.id))?;
            return Ok(());
        }
        copied
    }

    fn copy_manifest_to(&self, reference: ManifestRef, target: &dyn Disk) -> Result<()> {
        let object = ObjectName::Manifest(reference.id);
        let manifest = self.manifest(reference)?;
        // It is not given back meanwhile: what one disk lacks already would be written to it anew. Of a file that cannot be
        // had in use nothing is committed either.
        let file = self.use_file(manifest.file()).ok();
        let _reading = file.as_ref().map(|file| file.reading.read_recursive());
        if !self.is_base(reference.id)? {
            return Ok(());
        }
        let mut appender = match target.create(object) {
            Ok(appender) => appender,
            // Whoever read it meanwhile has mended this copy.
            Err(DiskError::AlreadyExists { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let copied = manifest
            .copy_to(&mut |bytes| -> Result<()> { Ok(appender.append(&[bytes]).map(|_| ())?) });
        if let Err(error) = copied {
            target.remove(object)?;
            return Err(error);
        }
        appender.sync()?;
        target.sync_names()?;
        Ok(())
    }

    /// Whether a file is made of this manifest.
    fn is_base(&self, id: ManifestId) -> Result<bool> {
        let view = self.meta.view();
        for found in view.scan(&Key::table_prefix(Table::Manifest)) {
            let (_, bytes) = found?;
            let base = FileHead::decode(&bytes).and_then(|head| head.base);
            if base.is_some_and(|base| base.id == id) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DirectoryDisk;
    use crate::volume::tests::{Rig, close, noise, read_file, write_all, write_file};

    const SIZE: usize = 8 << 20;
    const POLICY: &str = "critical = \"2+1\"\nblock_size = \"4K\"";

    fn base_of(volume: &Volume) -> ManifestRef {
        let file = volume.lookup(crate::volume::ROOT, b"f").expect("there");
        let file = volume.use_file(file.file).expect("in use");
        let base = file.state.lock().head.base;
        base.expect("it is large enough for a manifest")
    }

    fn has(rig: &Rig, number: usize, id: ManifestId) -> bool {
        let disk = DirectoryDisk::open("a", &rig.disk(number)).expect("a disk");
        disk.length(ObjectName::Manifest(id)).is_ok()
    }

    /// As when a task lists one disk after the other, and a file is committed before it comes to the last.
    #[test]
    fn a_manifest_that_was_replaced_since_the_disks_were_listed_is_copied_nowhere() {
        let rig = Rig::new(3, POLICY);
        let volume = rig.open();
        let file = write_file(&volume, "f", &noise(1, SIZE));
        let old = base_of(&volume);
        let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
        write_all(&volume, handle, &noise(2, SIZE));
        close(&volume, handle);
        volume.sweeper.wait();
        assert_ne!(base_of(&volume).id, old.id);
        for disk in volume.disks.list() {
            volume.copy_manifest(old, disk.id).expect("passed over");
        }
        assert!((0..3).all(|number| !has(&rig, number, old.id)));
        assert!(read_file(&volume, "f").expect("readable") == noise(2, SIZE));
    }

    #[test]
    fn a_copy_that_came_to_be_since_the_disks_were_listed_stays_as_it_is() {
        let rig = Rig::new(3, POLICY);
        let volume = rig.open();
        write_file(&volume, "f", &noise(1, SIZE));
        let base = base_of(&volume);
        for disk in volume.disks.list() {
            volume.copy_manifest(base, disk.id).expect("it is there");
        }
        assert!((0..3).all(|number| has(&rig, number, base.id)));
        let object = ObjectName::Manifest(base.id);
        let missed = volume.disks.list()[0].id;
        let disk = volume.disks.get(missed).expect("there");
        disk.remove(object).expect("removed");
        volume.copy_manifest(base, missed).expect("copied");
        assert_eq!(disk.length(object).expect("there"), base.length);
    }
}
