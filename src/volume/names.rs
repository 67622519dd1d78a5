//! The namespace as programs see it: what the metadata says, and for files in use what is not committed yet.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::attributes::{Attributes, Caller, Changes, Entry};
use super::commit::Purpose;
use super::error::{Result, VolumeError};
use super::file::{OpenFile, Times};
use super::handles::{Handle, OpenDirectory};
use super::xattrs::inherit;
use super::{Volume, VolumeState};
use crate::ids::FileId;
use crate::meta::{
    self, FileKind, Inode, Names, NamespaceError, New, Records, Removed, Rename, Timestamp,
};

/// What is known of a file in use and not committed. It is looked at before the metadata: what a commit makes true in
/// between is then seen there.
struct Uncommitted {
    size: u64,
    times: Times,
    is_dirty: bool,
    /// Bytes of it that are no holes.
    data: u64,
}

impl Uncommitted {
    fn of(file: &OpenFile) -> Uncommitted {
        let state = file.state.lock();
        let committing = file.committing.load(Ordering::Acquire);
        Uncommitted {
            size: state.size,
            times: state.times.or(*file.frozen_times.lock()),
            is_dirty: state.is_dirty() || committing,
            // What was spilled or is just being committed may be in a base, and is not counted there.
            data: if state.spilled || committing {
                state.size
            } else {
                state.map.uncommitted_data()
            },
        }
    }

    fn put_over(&self, attributes: &mut Attributes) {
        attributes.size = self.size;
        attributes.mtime = self.times.mtime.unwrap_or(attributes.mtime);
        attributes.ctime = self.times.ctime.unwrap_or(attributes.ctime);
        if self.is_dirty {
            // What the new bytes will take is not known; a file with bytes must not look like a hole.
            attributes.allocated = attributes.allocated.max(self.data.min(self.size));
            attributes.commit_is_due = true;
        }
    }
}

impl Volume {
    /// The file that a name stands for. Its attributes are taken after the name, by `attributes`: an inode that was seen with
    /// the name is old when a commit ends, and the file is let go of, before anybody asks whether it is in use.
    pub fn lookup(&self, parent: FileId, name: &[u8]) -> Result<Attributes> {
        let mut seen = None;
        loop {
            let (file, _) = self.meta.view().lookup(parent, name)?;
            match self.attributes(file) {
                // Another file was given its name, and it went: the name was there all the while.
                Err(error) if error.errno() == libc::ENOENT && seen != Some(file) => {
                    seen = Some(file);
                }
                result => return result,
            }
        }
    }

    /// A file's attributes.
    pub fn attributes(&self, file: FileId) -> Result<Attributes> {
        self.attributes_with(file, || {
            self.meta.view().inode(file)?.ok_or_else(|| gone(file))
        })
    }

    /// The attributes of a file whose inode is had by `inode`: only after what is not committed was looked at.
    fn attributes_with(
        &self,
        file: FileId,
        inode: impl FnOnce() -> Result<Inode>,
    ) -> Result<Attributes> {
        let uncommitted = self.in_use(file).map(|open| Uncommitted::of(&open));
        let inode = inode()?;
        let mut attributes = Attributes::of(file, &inode);
        if let Some(uncommitted) = uncommitted
            && inode.kind == FileKind::Regular
        {
            uncommitted.put_over(&mut attributes);
        }
        Ok(attributes)
    }

    /// Changes attributes. A new size is committed at once unless the file is open for writing.
    pub fn set_attributes(
        &self,
        file: FileId,
        handle: Option<Handle>,
        changes: &Changes,
    ) -> Result<Attributes> {
        self.check_writable()?;
        let now = Timestamp::now();
        let set = meta::Attributes {
            mode: changes.mode,
            uid: changes.uid,
            gid: changes.gid,
            size: None,
            stored: None,
            atime: changes.atime.map(|time| time.time(now)),
            mtime: changes.mtime.map(|time| time.time(now)),
            ctime: changes.ctime,
        };
        if let Some(size) = changes.size {
            self.truncate(file, handle, size)?;
        }
        let plain = set.mode.is_some()
            || set.uid.is_some()
            || set.gid.is_some()
            || set.atime.is_some()
            || set.mtime.is_some()
            || set.ctime.is_some();
        if plain {
            // What is set by hand is not overwritten by what a commit still owes.
            let by_hand = set.mtime.is_some();
            let open = self.in_use(file);
            let owed = open
                .as_ref()
                .map(|open| open.state.lock().times.take_set(by_hand));
            let result = self.meta.update(|update| {
                update.set_attributes(file, &set, now)?;
                if let Some(open) = &open {
                    open.frozen_times.lock().take_set(by_hand);
                }
                Ok::<_, NamespaceError>(())
            });
            if result.is_err()
                && let (Some(open), Some(owed)) = (&open, owed)
            {
                let mut state = open.state.lock();
                state.times = state.times.or(owed);
            }
            result?;
        }
        self.attributes(file)
    }

    fn truncate(&self, file: FileId, handle: Option<Handle>, size: u64) -> Result<()> {
        let inode = self.meta.view().inode(file)?.ok_or_else(|| gone(file))?;
        match inode.kind {
            FileKind::Regular => {}
            FileKind::Directory => {
                return Err(VolumeError::new(
                    libc::EISDIR,
                    "a directory has no length to set",
                ));
            }
            _ => {
                return Err(VolumeError::new(
                    libc::EINVAL,
                    "only regular files have a length to set",
                ));
            }
        }
        if let Some(handle) = handle {
            let handle = self.handle(handle)?;
            handle.changed.store(true, Ordering::Release);
            return self.resize(&handle.file, size);
        }
        let used = self.use_to_resize(file, size)?;
        self.resize(&used, size)?;
        if used.writers.load(Ordering::Acquire) == 0 {
            self.commit(&used, Purpose::MakeTrue)
        } else {
            Ok(())
        }
    }

    fn make(&self, parent: FileId, name: &[u8], new: New<'_>) -> Result<Attributes> {
        self.check_writable()?;
        let now = Timestamp::now();
        let (file, inode) = self.meta.update(|update| {
            let (file, inode) = update.create(parent, name, new, now)?;
            inherit(update, parent, &new, file)?;
            Ok::<_, meta::NamespaceError>((file, inode))
        })?;
        self.inodes.fetch_add(1, Ordering::Relaxed);
        Ok(Attributes::of(file, &inode))
    }

    /// Makes a file of any kind but directory and symbolic link.
    pub fn make_node(
        &self,
        parent: FileId,
        name: &[u8],
        kind: FileKind,
        mode: u16,
        rdev: u32,
        caller: Caller,
    ) -> Result<Attributes> {
        let Caller { uid, gid } = caller;
        self.make(
            parent,
            name,
            New {
                kind,
                mode,
                uid,
                gid,
                rdev,
                target: b"",
            },
        )
    }

    /// Makes a directory.
    pub fn make_directory(
        &self,
        parent: FileId,
        name: &[u8],
        mode: u16,
        caller: Caller,
    ) -> Result<Attributes> {
        self.make_node(parent, name, FileKind::Directory, mode, 0, caller)
    }

    /// Makes a symbolic link.
    pub fn make_symlink(
        &self,
        parent: FileId,
        name: &[u8],
        target: &[u8],
        caller: Caller,
    ) -> Result<Attributes> {
        let Caller { uid, gid } = caller;
        self.make(
            parent,
            name,
            New {
                kind: FileKind::Symlink,
                mode: 0o777,
                uid,
                gid,
                rdev: 0,
                target,
            },
        )
    }

    /// Gives a file another name.
    pub fn make_link(&self, file: FileId, parent: FileId, name: &[u8]) -> Result<Attributes> {
        self.check_writable()?;
        self.attributes_with(file, || {
            let link = self
                .meta
                .update(|update| update.link(file, parent, name, Timestamp::now()));
            Ok(link?)
        })
    }

    /// Where a symbolic link points.
    pub fn read_link(&self, file: FileId) -> Result<Vec<u8>> {
        let target = self.meta.view().target(file)?;
        let target =
            target.ok_or_else(|| VolumeError::new(libc::EINVAL, "the file is no symbolic link"))?;
        Ok(target.to_vec())
    }

    /// Whether, when this name is taken away, a file goes whose manifest has to be read from disks to know what it was made
    /// of, which may take however long.
    pub fn removal_may_wait(&self, parent: FileId, name: &[u8]) -> bool {
        match self.meta.view().lookup(parent, name) {
            Ok((file, inode)) => {
                inode.kind == FileKind::Regular
                    && inode.links <= 1
                    && self.is_on_disks(file).unwrap_or(true)
            }
            Err(_) => false,
        }
    }

    /// Takes a name from a file that is no directory.
    pub fn remove(&self, parent: FileId, name: &[u8]) -> Result<()> {
        self.check_writable()?;
        // Under the lock of the files in use, so that none is opened between the question and the answer.
        let files = self.files.lock();
        let removed = self.meta.update(|update| {
            update.unlink(parent, name, Timestamp::now(), &|file| {
                files.contains_key(&file) || self.has_content(file)
            })
        })?;
        self.removed(files, &removed);
        Ok(())
    }

    /// Removes an empty directory.
    pub fn remove_directory(&self, parent: FileId, name: &[u8]) -> Result<()> {
        self.check_writable()?;
        let now = Timestamp::now();
        let removed = self
            .meta
            .update(|update| update.rmdir(parent, name, now, &|_| false))?;
        self.removed(self.files.lock(), &removed);
        Ok(())
    }

    /// Moves a name. `flags`: `libc::RENAME_NOREPLACE` or `libc::RENAME_EXCHANGE`.
    pub fn rename(
        &self,
        parent: FileId,
        name: &[u8],
        to_parent: FileId,
        to_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        self.check_writable()?;
        let how = match flags {
            0 => Rename::Replace,
            libc::RENAME_NOREPLACE => Rename::NoReplace,
            libc::RENAME_EXCHANGE => Rename::Exchange,
            _ => {
                return Err(VolumeError::new(
                    libc::EINVAL,
                    "this kind of rename is not known",
                ));
            }
        };
        let files = self.files.lock();
        let replaced = self.meta.update(|update| {
            let now = Timestamp::now();
            update.rename((parent, name), (to_parent, to_name), how, now, &|file| {
                files.contains_key(&file) || self.has_content(file)
            })
        })?;
        if let Some(removed) = &replaced {
            self.removed(files, removed);
        }
        Ok(())
    }

    /// Whether a file has something that is to be given back when it goes. Such a file is an orphan until that is done,
    /// so that a crash in between leaves it to the next mount.
    fn has_content(&self, file: FileId) -> bool {
        // What cannot be read is left to the next mount too.
        !matches!(self.meta.view().manifest(file), Ok(None))
    }

    /// A name is gone; with the last one the file goes, unless somebody has it open.
    fn removed(&self, files: MutexGuard<'_, Table>, removed: &Removed) {
        if removed.gone {
            self.inodes.fetch_sub(1, Ordering::Relaxed);
        } else if removed.inode.links == 0 {
            match files.get(&removed.file) {
                Some(open) => open.unlinked.store(true, Ordering::Release),
                None => {
                    drop(files);
                    // Whoever is the last to let go of it gives back what it is made of.
                    if let Err(error) = self.use_removed(removed.file) {
                        let file = removed.file;
                        tracing::error!(%file, %error, "a removed file is left to the next mount");
                    }
                }
            }
        }
    }

    /// Begins a listing.
    pub fn open_directory(&self, directory: FileId) -> Result<Handle> {
        let listing = self.meta.view().list(directory, None, usize::MAX)?;
        Ok(self.handles.add_directory(OpenDirectory {
            directory,
            listing: listing.into(),
        }))
    }

    /// Names behind `offset`, `.` and `..` first; 0 begins anew.
    pub fn read_directory(&self, handle: Handle, offset: i64, most: usize) -> Result<Vec<Entry>> {
        let open = self.handles.directory(handle)?;
        let view = self.meta.view();
        let inode = view
            .inode(open.directory)?
            .ok_or_else(|| gone(open.directory))?;
        if offset == 0 {
            // A directory that was removed has no names left.
            *open.listing.write() = view.list(open.directory, None, usize::MAX)?;
        }
        let own = [
            (b".".to_vec(), open.directory),
            (b"..".to_vec(), inode.parent),
        ];
        let own = own
            .each_ref()
            .map(|(name, file)| (name, *file, FileKind::Directory));
        let listing = open.listing.read();
        let rest = listing
            .iter()
            .map(|listed| (&listed.name, listed.file, listed.kind));
        // Only what is told is copied: a directory may be large.
        let entries = own
            .into_iter()
            .chain(rest)
            .enumerate()
            .skip(offset.max(0) as usize)
            .take(most);
        Ok(entries
            .map(|(place, (name, file, kind))| Entry {
                name: name.clone(),
                file,
                kind,
                next: place as i64 + 1,
            })
            .collect())
    }

    /// The attributes of a listed file, if its name still leads to it: a listing is older than what was renamed, removed or
    /// replaced while it was read.
    pub fn listed(&self, directory: FileId, entry: &Entry) -> Result<Option<Attributes>> {
        let (file, _) = self.meta.view().lookup(directory, &entry.name)?;
        if file == entry.file {
            self.attributes(file).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Ends a listing.
    pub fn close_directory(&self, handle: Handle) {
        self.handles.remove_directory(handle);
    }

    /// Makes the namespace durable as it is.
    pub fn sync_names(&self) -> Result<()> {
        if self.state() == VolumeState::ReadOnly {
            Ok(())
        } else {
            Ok(self.meta.sync()?)
        }
    }

    /// Every path of a file from the root of the mount, `/` first.
    pub fn paths(&self, file: FileId) -> Result<Vec<Vec<u8>>> {
        let view = self.meta.view();
        let mut paths = Vec::new();
        for (directory, name) in view.names(file)? {
            let mut parts = vec![name];
            let mut at = directory;
            // Deeper than any path; a loop would be damage.
            for _ in 0..4096 {
                if at == meta::ROOT {
                    break;
                }
                let Some((parent, name)) = view.names(at)?.into_iter().next() else {
                    break;
                };
                parts.push(name);
                at = parent;
            }
            let mut path = Vec::new();
            for part in parts.iter().rev() {
                path.push(b'/');
                path.extend_from_slice(part);
            }
            paths.push(path);
        }
        Ok(paths)
    }
}

pub(super) fn gone(file: FileId) -> VolumeError {
    VolumeError::new(libc::ENOENT, format!("file {file} is no longer there"))
}

/// Kept beside the names it is about: who holds a file open decides what an unlink leaves.
pub(super) type Table = std::collections::HashMap<FileId, Arc<super::file::OpenFile>>;
