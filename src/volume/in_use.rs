//! Files in use, and how a file comes to be: what it is made of is read from the metadata and its manifest when it is first
//! needed, and kept as long as a handle, a commit or a task needs it. Whoever lets go of it last gives back what it has no use for,
//! and all of it if its last name is gone.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::Volume;
use super::error::{Result, VolumeError};
use super::file::{FileState, OpenFile, Times};
use super::filemap::{FileMap, Window};
use super::follow::Follow;
use super::gather::Gatherer;
use super::head::FileHead;
use super::names::gone;
use super::sweep::Sweep;
use crate::ids::{FileId, SetId};
use crate::meta::{FileKind, Inode, Records, Timestamp, WriteRecords};
use crate::store::manifest::{Manifest, decode_delta};

/// One at a time reads what a file is made of; of other files others may.
#[derive(Debug, Default)]
pub(super) struct Loads {
    turns: Mutex<HashMap<FileId, Arc<Mutex<()>>>>,
}

/// A turn at one file.
struct Turn<'a> {
    loads: &'a Loads,
    file: FileId,
    turn: Arc<Mutex<()>>,
}

impl Loads {
    fn turn(&self, file: FileId) -> Turn<'_> {
        Turn {
            loads: self,
            file,
            turn: Arc::clone(self.turns.lock().entry(file).or_default()),
        }
    }
}

impl std::ops::Deref for Turn<'_> {
    type Target = Mutex<()>;

    fn deref(&self) -> &Mutex<()> {
        &self.turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = self.loads.turns.lock();
        // The table has one, and this.
        if Arc::strong_count(&self.turn) == 2 {
            turns.remove(&self.file);
        }
    }
}

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

/// How long the closing of a volume waits for reads that nobody waits for. A disk that hangs may hold up one for longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps a file in use for a read that nobody waits for: what it reads is not given back meanwhile, and whoever opens the
/// file shares its lock.
#[derive(Debug)]
pub(super) struct Aside {
    volume: Weak<Volume>,
    file: Arc<OpenFile>,
}

impl Aside {
    /// The volume, as long as somebody wants the read.
    pub(super) fn volume(&self) -> Option<Arc<Volume>> {
        let volume = self.volume.upgrade()?;
        (!volume.closed.load(Ordering::Acquire)).then_some(volume)
    }

    /// The file.
    pub(super) fn file(&self) -> &Arc<OpenFile> {
        &self.file
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(volume) = self.volume.upgrade() {
            volume.let_go(&self.file);
            volume.reads_aside.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Volume {
    /// Has a file in use for a read that nobody waits for. `None` where the last who had it in use has let it go.
    pub(super) fn aside(&self, file: &Arc<OpenFile>) -> Option<Aside> {
        let one_more = |users: u64| (users > 0).then(|| users + 1);
        file.users
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .ok()?;
        self.reads_aside.fetch_add(1, Ordering::AcqRel);
        Some(Aside {
            volume: self.me.clone(),
            file: Arc::clone(file),
        })
    }

    /// Waits, not for ever, until no read is under way that nobody waits for.
    pub(super) fn wait_for_reads_aside(&self) {
        let since = Instant::now();
        while self.reads_aside.load(Ordering::Acquire) > 0 && since.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Has a file in use until the answer is dropped.
    pub(super) fn use_file(&self, file: FileId) -> Result<InUse<'_>> {
        Ok(InUse {
            volume: self,
            file: self.take(file)?,
        })
    }

    /// Has a file in use until `let_go`.
    pub(super) fn take(&self, file: FileId) -> Result<Arc<OpenFile>> {
        self.bring_in(file, false)
    }

    /// The same as `use_file` for one whose length is to be set.
    pub(super) fn use_to_resize(&self, file: FileId, size: u64) -> Result<InUse<'_>> {
        let file = match size {
            0 => self.take_to_empty(file)?,
            _ => self.take(file)?,
        };
        Ok(InUse { volume: self, file })
    }

    /// The same as `take` if it is in use.
    pub(super) fn hold(&self, file: FileId) -> Option<Arc<OpenFile>> {
        let files = self.files.lock();
        let open = files.get(&file)?;
        open.users.fetch_add(1, Ordering::AcqRel);
        Some(Arc::clone(open))
    }

    /// Has a file in use that has just lost its last name and that nobody has open: with the answer goes what it is made of.
    pub(super) fn use_removed(&self, file: FileId) -> Result<InUse<'_>> {
        Ok(InUse {
            volume: self,
            file: self.bring_in(file, true)?,
        })
    }

    /// Has a file in use that is to become empty. One that is not whole becomes so at once: nothing of its old bytes is
    /// needed, and everything it refers to is known all the same.
    pub(super) fn take_to_empty(&self, file: FileId) -> Result<Arc<OpenFile>> {
        match self.take(file) {
            Err(error) if error.errno() == libc::EIO && !self.read_only => {
                match self.empty_what_is_not_whole(file) {
                    Ok(()) => self.take(file),
                    Err(reason) => {
                        tracing::warn!(%file, %reason, "a file that is not whole cannot be emptied");
                        Err(error)
                    }
                }
            }
            taken => taken,
        }
    }

    /// Drops what is known of a file's bytes, in one change. Its head and its base name all sets that it refers to, also those
    /// of deltas that are lost; with either of them unreadable nothing is dropped, since nobody would find their room.
    /// What is numbered goes on where it was: a number that was in use means other bytes to caches.
    fn empty_what_is_not_whole(&self, file: FileId) -> Result<()> {
        let turn = self.loads.turn(file);
        let _turn = turn.lock();
        let Some(bytes) = self.meta.view().manifest(file)? else {
            return Err(self.not_whole(file));
        };
        let head = FileHead::decode(&bytes).ok_or_else(|| damaged(file))?;
        let mut sets: BTreeSet<SetId> = head.sets.iter().copied().collect();
        if let Some(base) = head.base {
            for found in self.manifest(base)?.sets() {
                sets.insert(found?.set);
            }
        }
        let empty = FileHead {
            first_delta: head.next_delta,
            next_delta: head.next_delta,
            next_window: head.next_window,
            next_piece: head.next_piece,
            ..FileHead::default()
        };
        {
            // A name is taken away under this lock.
            let files = self.files.lock();
            if files.contains_key(&file) {
                return Ok(());
            }
            self.meta.update(|update| -> Result<()> {
                let mut inode = update.inode(file)?.ok_or_else(|| gone(file))?;
                let same = update.manifest(file)?.as_deref() == Some(&*bytes);
                if inode.kind != FileKind::Regular || inode.links == 0 || !same {
                    return Err(gone(file));
                }
                for set in &sets {
                    self.drop_set_reference(update, *set)?;
                }
                update.drop_content(file)?;
                update.put_manifest(file, &empty.encode());
                let now = Timestamp::now();
                (inode.size, inode.stored) = (0, 0);
                (inode.mtime, inode.ctime) = (now, now);
                update.put_inode(file, &inode);
                Ok(())
            })?;
        }
        self.sweeper.add_closed(Sweep {
            sets: sets.into_iter().collect(),
            manifests: head.base.into_iter().map(|base| base.id).collect(),
            ..Sweep::default()
        });
        tracing::warn!(%file, "a file that was not whole is empty now, as a program asked");
        Ok(())
    }

    /// Whether to have it in use its manifest has to be read from disks, which may take however long.
    pub(super) fn is_on_disks(&self, file: FileId) -> Result<bool> {
        if self.files.lock().contains_key(&file) {
            return Ok(false);
        }
        let head = self.meta.view().manifest(file)?;
        let head = head.and_then(|bytes| FileHead::decode(&bytes));
        Ok(head.is_some_and(|head| head.base.is_some()))
    }

    /// Reads what a file is made of if nobody has it in use, under no lock that work on other files needs.
    fn bring_in(&self, file: FileId, removed: bool) -> Result<Arc<OpenFile>> {
        if let Some(open) = self.hold(file) {
            return Ok(open);
        }
        let turn = self.loads.turn(file);
        let _turn = turn.lock();
        loop {
            if let Some(open) = self.hold(file) {
                return Ok(open);
            }
            let loaded = self.load(file);
            // A name is taken away under this lock.
            let mut files = self.files.lock();
            let view = self.meta.view();
            let Some(inode) = view.inode(file)? else {
                return Err(gone(file));
            };
            let unlinked = inode.links == 0;
            if unlinked && !removed {
                // Whoever had it in use last is giving back what it is made of.
                return Err(gone(file));
            }
            let open = loaded?;
            let head = match view.manifest(file)? {
                Some(bytes) => FileHead::decode(&bytes).ok_or_else(|| damaged(file))?,
                None => FileHead::default(),
            };
            let same = {
                let state = open.state.lock();
                let hasty = state.head.hasty;
                state.head == FileHead { hasty, ..head }
            };
            if !same || unlinked != open.unlinked.load(Ordering::Acquire) {
                continue;
            }
            let open = Arc::new(open);
            files.insert(file, Arc::clone(&open));
            return Ok(open);
        }
    }

    pub(super) fn let_go(&self, file: &Arc<OpenFile>) {
        let mut files = self.files.lock();
        if file.users.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let mut state = file.state.lock();
        let dirty = state.is_dirty();
        if dirty {
            // Before somebody opens it again.
            self.known_losses.gave_up(file.id);
        }
        files.remove(&file.id);
        drop(files);
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
            let path = self.called(file.id);
            tracing::error!(file = %file.id, path, "what was not committed of this file is given up");
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

    /// The error of a file of which a part of what it is made of was lost.
    pub(super) fn not_whole(&self, file: FileId) -> VolumeError {
        VolumeError::new(
            libc::EIO,
            format!(
                "{} is not whole: a change to it was lost with metadata, and which of its bytes are old nobody knows; \
                 remove it and put a copy in its place",
                self.called(file)
            ),
        )
    }

    /// Reads what a file is made of.
    pub(super) fn load(&self, file: FileId) -> Result<OpenFile> {
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
        let head = view.manifest(file)?;
        let head = head.map(|bytes| FileHead::decode(&bytes).ok_or_else(|| damaged(file)));
        let head = head.transpose()?;
        let deltas = view.deltas(file)?;
        let numbers: Vec<u64> = deltas.iter().map(|(number, _)| *number).collect();
        if !has_all(head.as_ref(), &numbers, &inode) {
            return Err(self.not_whole(file));
        }
        let head = match head {
            Some(head) => FileHead {
                hasty: view.hasty(file)?,
                ..head
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
        for (number, bytes) in deltas {
            if number < head.first_delta {
                // The base has it; what took it away was lost with the metadata.
                continue;
            }
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
            emptied: Vec::new(),
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
            owes_tiers: false,
            gives_up: false,
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
            harmless: AtomicBool::new(false),
            mapped: AtomicBool::new(false),
            owes_drop: AtomicBool::new(false),
            frozen_times: Mutex::default(),
            state: Mutex::new(state),
        })
    }
}

/// Whether the metadata has all that it says a file is made of, by the numbers of its deltas. Only what a rescue could not
/// find is missing.
pub(super) fn has_all(head: Option<&FileHead>, deltas: &[u64], inode: &Inode) -> bool {
    match head {
        Some(head) => {
            let mut there = deltas.iter().filter(|&&number| number >= head.first_delta);
            (head.first_delta..head.next_delta).all(|number| there.next() == Some(&number))
                && there.next().is_none()
        }
        // A file without one has never been committed with bytes.
        None => deltas.is_empty() && inode.stored == 0,
    }
}

fn damaged(file: FileId) -> VolumeError {
    VolumeError::new(
        libc::EIO,
        format!("what file {file} is made of cannot be understood; try `parsfs rescue`"),
    )
}
