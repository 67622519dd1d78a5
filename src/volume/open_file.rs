//! Opening, flushing and letting go of files. A file is in use as long as a handle or a commit needs it; what
//! it is made of is read from the metadata when it is first needed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::Volume;
use super::attributes::{Attributes, Caller};
use super::commit::Purpose;
use super::error::{Result, VolumeError};
use super::file::{FileState, OpenFile, Times};
use super::filemap::{FileMap, Window};
use super::follow::Follow;
use super::gather::Gatherer;
use super::handles::{Handle, OpenHandle, Opened};
use super::head::FileHead;
use super::names::gone;
use super::sweep::Sweep;
use super::xattrs::inherit;
use crate::ids::{FileId, SetId};
use crate::meta::{FileKind, NamespaceError, New, Records, Timestamp, WriteRecords};
use crate::store::manifest::{Manifest, decode_delta};

/// Keeps a file in use.
#[derive(Debug)]
pub(super) struct InUse<'a> {
    volume: &'a Volume,
    file: Arc<OpenFile>,
}

impl std::ops::Deref for InUse<'_> {
    type Target = Arc<OpenFile>;

    fn deref(&self) -> &Arc<OpenFile> {
        &self.file
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.volume.let_go(&self.file);
    }
}

/// An open that was begun.
#[derive(Debug)]
pub enum Opening {
    /// It is done.
    Opened(Opened),
    /// It may take long: `Volume::finish_open` ends it, and must be called.
    Waiting(Waiting),
}

/// A file that is being opened.
#[derive(Debug)]
pub struct Waiting {
    file: Arc<OpenFile>,
    access: i32,
    commits: bool,
}

impl Volume {
    /// Has a file in use until the answer is dropped.
    pub(super) fn use_file(&self, file: FileId) -> Result<InUse<'_>> {
        Ok(InUse {
            volume: self,
            file: self.take(file)?,
        })
    }

    /// Has a file in use until `let_go`.
    fn take(&self, file: FileId) -> Result<Arc<OpenFile>> {
        let mut files = self.files.lock();
        if let Some(open) = files.get(&file) {
            open.users.fetch_add(1, Ordering::AcqRel);
            return Ok(Arc::clone(open));
        }
        let open = self.load(file)?;
        if open.unlinked.load(Ordering::Acquire) {
            // Whoever had it in use last is giving back what it is made of.
            return Err(gone(file));
        }
        let open = Arc::new(open);
        files.insert(file, Arc::clone(&open));
        Ok(open)
    }

    /// Has a file in use that has just lost its last name and that nobody has open: with the answer goes what it is made of.
    pub(super) fn use_removed(&self, file: FileId) -> Result<InUse<'_>> {
        let mut files = self.files.lock();
        let open = match files.get(&file) {
            Some(open) => {
                open.users.fetch_add(1, Ordering::AcqRel);
                Arc::clone(open)
            }
            None => {
                let open = Arc::new(self.load(file)?);
                files.insert(file, Arc::clone(&open));
                open
            }
        };
        Ok(InUse {
            volume: self,
            file: open,
        })
    }

    fn let_go(&self, file: &Arc<OpenFile>) {
        let mut files = self.files.lock();
        if file.users.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        files.remove(&file.id);
        drop(files);
        let mut state = file.state.lock();
        let dirty = state.is_dirty();
        // What was begun and never committed is of no use any more.
        state.gatherer.seal_all();
        let mut writers = std::mem::take(&mut state.pending);
        writers.extend(state.gatherer.take_writer());
        let spilled = state
            .spilled
            .then(|| state.map.base.as_ref().map(|base| base.id()))
            .flatten();
        drop(state);
        let unlinked = file.unlinked.load(Ordering::Acquire);
        if dirty && !unlinked && !self.read_only {
            tracing::error!(file = %file.id, "what was not committed of this file is given up");
        }
        for writer in &writers {
            writer.finish();
        }
        let sets: Vec<SetId> = writers.iter().map(|writer| writer.set()).collect();
        let manifests = spilled.into_iter().collect();
        self.sweeper.add(
            Arc::clone(file),
            Sweep {
                sets,
                manifests,
                ..Sweep::default()
            },
        );
        if unlinked {
            self.inodes.fetch_sub(1, Ordering::Relaxed);
            if let Err(error) = self.drop_content(file.id) {
                tracing::error!(file = %file.id, %error, "a removed file is left to the next mount");
            }
        }
    }

    /// Removes an orphan and what it was made of, in one change: a crash leaves all of it or nothing.
    pub(super) fn drop_content(&self, file: FileId) -> Result<()> {
        let view = self.meta.view();
        let Some(bytes) = view.manifest(file)? else {
            self.meta.update(|update| -> Result<()> {
                update.remove_orphan(file)?;
                Ok(update.drop_content(file)?)
            })?;
            return Ok(());
        };
        let head = FileHead::decode(&bytes).ok_or_else(|| damaged(file))?;
        let mut sweep = Sweep {
            sets: head.sets.clone(),
            ..Sweep::default()
        };
        if let Some(base) = head.base {
            sweep.manifests.push(base.id);
            // A manifest that cannot be read leaves its sets to a later scrub, and the file goes all the same.
            match self.manifest(base).and_then(|base| {
                base.sets()
                    .map(|found| Ok(found?.set))
                    .collect::<Result<Vec<SetId>>>()
            }) {
                Ok(sets) => sweep.sets.extend(sets),
                Err(error) => {
                    tracing::warn!(%file, %error, "not all of a removed file can be given back")
                }
            }
        }
        self.meta.update(|update| -> Result<()> {
            for set in &sweep.sets {
                self.drop_set_reference(update, *set)?;
            }
            update.remove_orphan(file)?;
            update.drop_content(file)?;
            Ok(())
        })?;
        self.sweeper.add_closed(sweep);
        Ok(())
    }

    pub(super) fn manifest(
        &self,
        reference: crate::store::manifest::ManifestRef,
    ) -> Result<Manifest> {
        let disks: Vec<_> = self
            .disks
            .list()
            .into_iter()
            .map(|status| status.id)
            .collect();
        Ok(Manifest::open(
            self.id,
            reference,
            Arc::clone(&self.disks),
            &disks,
            Arc::clone(&self.manifests),
        )?)
    }

    /// Reads what a file is made of.
    fn load(&self, file: FileId) -> Result<OpenFile> {
        let view = self.meta.view();
        let inode = view.inode(file)?.ok_or_else(|| gone(file))?;
        if inode.kind != FileKind::Regular {
            return Err(VolumeError::new(
                if inode.kind == FileKind::Directory {
                    libc::EISDIR
                } else {
                    libc::EINVAL
                },
                "only regular files have bytes",
            ));
        }
        let head = match view.manifest(file)? {
            Some(bytes) => FileHead {
                hasty: view.hasty(file)?,
                ..FileHead::decode(&bytes).ok_or_else(|| damaged(file))?
            },
            None => FileHead::default(),
        };
        let mut map = FileMap::default();
        let mut sets: BTreeSet<SetId> = head.sets.iter().copied().collect();
        if let Some(base) = head.base {
            let base = self.manifest(base)?;
            for found in base.sets() {
                sets.insert(found?.set);
            }
            map.base = Some(Arc::new(base));
        }
        for (number, bytes) in view.deltas(file)? {
            let delta = decode_delta(&bytes).map_err(|error| {
                VolumeError::new(
                    libc::EIO,
                    format!("delta {number} of file {file} is damaged: {error}"),
                )
            })?;
            for no in delta.dropped {
                map.windows.remove(&no);
            }
            for window in delta.windows {
                map.windows
                    .insert(window.no, Window::Made(Arc::new(window)));
            }
            for extent in delta.extents {
                map.settled.insert(extent.range, extent.source);
            }
        }
        let next_window = Arc::new(AtomicU32::new(head.next_window));
        let gatherer = Gatherer::new(
            Arc::clone(&self.pipeline),
            file,
            self.block_size,
            Arc::clone(&next_window),
        );
        let state = FileState {
            map,
            gatherer,
            follow: if inode.size == 0 {
                Follow::new()
            } else {
                Follow::committed()
            },
            size: inode.size,
            committed_size: inode.size,
            spilled: false,
            pending: Vec::new(),
            uncommitted: BTreeSet::new(),
            sets: sets.into_iter().collect(),
            next_window,
            next_piece: head.next_piece,
            pieces: HashMap::new(),
            new_pieces: Vec::new(),
            inline_bytes: head.inline_bytes,
            dead: head.dead,
            times: Times::default(),
            mended: None,
            version: 0,
            head,
        };
        Ok(OpenFile {
            id: file,
            turn: Mutex::new(()),
            reading: RwLock::new(()),
            writers: AtomicU32::new(0),
            cached: AtomicU32::new(0),
            readers: Mutex::new(0),
            users: AtomicU64::new(1),
            unlinked: AtomicBool::new(inode.links == 0),
            committing: AtomicBool::new(false),
            spilling: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            frozen_times: Mutex::default(),
            state: Mutex::new(state),
        })
    }

    /// Opens a file. `flags` are those of open(2): access mode and `O_TRUNC` count. Waits until it is known what is lost
    /// of it.
    pub fn open_file(&self, file: FileId, flags: i32) -> Result<Opened> {
        match self.begin_open(file, flags)? {
            Opening::Opened(opened) => Ok(opened),
            Opening::Waiting(waiting) => self.finish_open(waiting),
        }
    }

    /// The same for who must not wait, unless `O_TRUNC` is among the flags.
    pub fn begin_open(&self, file: FileId, flags: i32) -> Result<Opening> {
        self.begin(file, flags, false)
    }

    fn begin(&self, file: FileId, flags: i32, new: bool) -> Result<Opening> {
        let access = flags & libc::O_ACCMODE;
        let may_write = access != libc::O_RDONLY;
        if may_write || flags & libc::O_TRUNC != 0 {
            self.check_writable()?;
        }
        let open = self.take(file)?;
        if flags & libc::O_TRUNC != 0
            && let Err(error) = self.truncate_open(&open)
        {
            self.let_go(&open);
            return Err(error);
        }
        // What was made by an open for reading is there after its close too.
        let commits = may_write || new || flags & libc::O_TRUNC != 0;
        if access == libc::O_WRONLY || self.try_begin_reading(&open) {
            return Ok(Opening::Opened(self.opened(open, access, commits)));
        }
        Ok(Opening::Waiting(Waiting {
            file: open,
            access,
            commits,
        }))
    }

    /// Ends an open that may take long: the bytes of the file that are stored once are looked for.
    pub fn finish_open(&self, waiting: Waiting) -> Result<Opened> {
        let Waiting {
            file,
            access,
            commits,
        } = waiting;
        match self.begin_reading(&file) {
            Ok(()) => Ok(self.opened(file, access, commits)),
            Err(error) => {
                self.let_go(&file);
                Err(error)
            }
        }
    }

    fn truncate_open(&self, file: &OpenFile) -> Result<()> {
        let empty = {
            let state = file.state.lock();
            state.size == 0 && state.committed_size == 0
        };
        if empty { Ok(()) } else { self.resize(file, 0) }
    }

    fn opened(&self, file: Arc<OpenFile>, access: i32, commits: bool) -> Opened {
        // Written files are served around the page cache: it would copy every byte once more. A file that nobody
        // writes keeps it, and as long as somebody has it open so, all who come, writers too, go through the cache:
        // what is written there is in the cache at once, and the kernel never has to be told to forget anything.
        let direct_io = {
            // Two that come at once see each other.
            let state = file.state.lock();
            if commits {
                file.writers.fetch_add(1, Ordering::AcqRel);
            }
            let written = file.writers.load(Ordering::Acquire) > 0
                || file.committing.load(Ordering::Acquire)
                || state.is_dirty();
            // The cache reads whole pages: a byte beside one that is gone would be gone with it.
            let view = state.mended.as_ref();
            let has_gaps = view.is_some_and(|mended| mended.view.losses().errors() > 0);
            let direct_io = (written || has_gaps) && file.cached.load(Ordering::Acquire) == 0;
            if !direct_io {
                file.cached.fetch_add(1, Ordering::AcqRel);
            }
            direct_io
        };
        let keep_cache = !direct_io && !self.known_losses.was_served(file.id);
        let handle = self.handles.add(OpenHandle {
            file,
            may_read: access != libc::O_WRONLY,
            may_write: access != libc::O_RDONLY,
            commits,
            direct_io,
            next_read: AtomicU64::new(0),
            streak: AtomicU32::new(0),
            fetched: AtomicU64::new(0),
        });
        Opened {
            handle,
            direct_io,
            keep_cache,
        }
    }

    /// Makes a regular file and opens it.
    pub fn create_file(
        &self,
        parent: FileId,
        name: &[u8],
        mode: u16,
        flags: i32,
        caller: Caller,
    ) -> Result<(Attributes, Opened)> {
        self.check_writable()?;
        let Caller { uid, gid } = caller;
        let new = New {
            kind: FileKind::Regular,
            mode,
            uid,
            gid,
            rdev: 0,
            target: b"",
        };
        let (file, inode) = self.meta.update(|update| {
            let (file, inode) = update.create(parent, name, new, Timestamp::now())?;
            inherit(update, parent, &new, file)?;
            Ok::<_, NamespaceError>((file, inode))
        })?;
        self.inodes.fetch_add(1, Ordering::Relaxed);
        let opened = match self.begin(file, flags & !libc::O_TRUNC, true)? {
            Opening::Opened(opened) => opened,
            Opening::Waiting(waiting) => self.finish_open(waiting)?,
        };
        Ok((Attributes::of(file, &inode), opened))
    }

    /// Whether a flush or the release of this handle has something to commit.
    pub fn owes_commit(&self, handle: Handle) -> bool {
        self.handle(handle).is_ok_and(|handle| handle.commits)
    }

    /// close(2) of one descriptor: commits what is new, or has it committed aside when the config says so.
    pub fn flush(&self, handle: Handle) -> Result<()> {
        let handle = self.handle(handle)?;
        if !handle.commits {
            return Ok(());
        }
        if self.background {
            self.commit_aside(&handle.file, Purpose::MakeTrue);
            return Ok(());
        }
        self.commit(&handle.file, Purpose::MakeTrue)?;
        self.consider_compaction(&handle.file);
        Ok(())
    }

    /// Commits what is new, and returns when it is durable.
    pub fn fsync(&self, handle: Handle) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let handle = self.handle(handle)?;
        self.commit(&handle.file, Purpose::MakeTrue)
    }

    /// The last descriptor of a handle is gone. Commits what mapped memory wrote after the flush.
    pub fn release(&self, handle: Handle) {
        let Some(handle) = self.handles.remove(handle) else {
            return;
        };
        let file = &handle.file;
        // Another handle that may write commits at its own close. It may be in the middle of writing the file anew,
        // and half of that must not become true because this one goes.
        if handle.commits {
            let owed = {
                // Nobody opens it for writing between the two questions.
                let state = file.state.lock();
                let last = file.writers.fetch_sub(1, Ordering::AcqRel) == 1;
                last && state.is_dirty() && !file.unlinked.load(Ordering::Acquire)
            };
            if owed && let Err(error) = self.commit(file, Purpose::MakeTrue) {
                tracing::error!(file = %file.id, %error, "the last commit of a file failed");
            }
        }
        if handle.may_read {
            self.end_reading(file);
        }
        if !handle.direct_io {
            file.cached.fetch_sub(1, Ordering::AcqRel);
        }
        self.let_go(file);
    }

    /// Has a commit made on a thread of its own.
    pub(super) fn commit_aside(&self, file: &Arc<OpenFile>, purpose: Purpose) {
        let Some(volume) = self.me.upgrade() else {
            return;
        };
        file.users.fetch_add(1, Ordering::AcqRel);
        let work = {
            let file = Arc::clone(file);
            move || {
                // What failed was logged, and the file's state shows that it is still owed.
                let _ = volume.commit(&file, purpose);
                file.spilling.store(false, Ordering::Release);
                if purpose == Purpose::MakeTrue {
                    volume.consider_compaction(&file);
                }
                volume.let_go(&file);
            }
        };
        match std::thread::Builder::new()
            .name("commit".into())
            .spawn(work)
        {
            Ok(thread) => {
                let mut aside = self.aside.lock();
                aside.retain(|thread| !thread.is_finished());
                aside.push(thread);
            }
            Err(error) => {
                tracing::error!(%error, "no thread for a commit; the next close makes it");
                file.spilling.store(false, Ordering::Release);
                file.users.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    /// Writes an uncommitted base, aside, so that memory does not grow with the file.
    pub(super) fn begin_spill(&self, file: &Arc<OpenFile>) {
        if !file.spilling.swap(true, Ordering::AcqRel) {
            self.commit_aside(file, Purpose::Spill);
        }
    }

    /// Commits everything that is open, and waits.
    pub fn commit_all(&self) -> Result<()> {
        let mut result = Ok(());
        for file in self.files_in_use() {
            let Ok(file) = self.use_file(file.id) else {
                continue;
            };
            if let Err(error) = self.commit(&file, Purpose::MakeTrue) {
                result = Err(error);
            }
        }
        let aside: Vec<_> = std::mem::take(&mut *self.aside.lock());
        for thread in aside {
            // A commit that panicked has logged it; its file is still owed.
            let _ = thread.join();
        }
        if !self.read_only {
            self.meta.sync()?;
        }
        result
    }
}

fn damaged(file: FileId) -> VolumeError {
    VolumeError::new(
        libc::EIO,
        format!("what file {file} is made of cannot be understood; try `parsfs rescue`"),
    )
}
