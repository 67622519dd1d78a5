//! Opening files for programs, and what their flushes and closes commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Volume;
use super::ahead::Ahead;
use super::attributes::{Attributes, Caller};
use super::commit::Purpose;
use super::error::Result;
use super::file::OpenFile;
use super::handles::{Handle, OpenHandle, Opened};
use super::xattrs::inherit;
use crate::ids::FileId;
use crate::meta::{FileKind, NamespaceError, New, Timestamp};

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
pub struct Waiting(Stage);

#[derive(Debug)]
enum Stage {
    /// What it is made of lies on disks, and is to be read.
    Load { file: FileId, flags: i32 },
    /// It is to be known what is lost of it.
    Look { file: Arc<OpenFile>, way: Way },
}

/// What a handle is for.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// The access mode of open(2).
    access: i32,
    /// The file was made or cut to nothing by the open.
    changed: bool,
}

impl Way {
    fn may_read(self) -> bool {
        self.access != libc::O_WRONLY
    }

    fn may_write(self) -> bool {
        self.access != libc::O_RDONLY
    }

    /// What was made by an open for reading is there after its close too.
    fn commits(self) -> bool {
        self.may_write() || self.changed
    }
}

impl Volume {
    /// Opens a file. `flags` are those of open(2): access mode and `O_TRUNC` count. Waits until it is known what is lost
    /// of it.
    pub fn open_file(&self, file: FileId, flags: i32) -> Result<Opened> {
        self.finish(self.begin(file, flags, false)?)
    }

    /// The same for who must not wait, unless `O_TRUNC` is among the flags.
    pub fn begin_open(&self, file: FileId, flags: i32) -> Result<Opening> {
        if flags & libc::O_TRUNC == 0 && self.is_on_disks(file)? {
            return Ok(Opening::Waiting(Waiting(Stage::Load { file, flags })));
        }
        self.begin(file, flags, false)
    }

    fn begin(&self, file: FileId, flags: i32, new: bool) -> Result<Opening> {
        let way = Way {
            access: flags & libc::O_ACCMODE,
            changed: new || flags & libc::O_TRUNC != 0,
        };
        if way.may_write() || flags & libc::O_TRUNC != 0 {
            self.check_writable()?;
        }
        let open = match flags & libc::O_TRUNC {
            0 => self.take(file)?,
            _ => self.take_to_empty(file)?,
        };
        if flags & libc::O_TRUNC != 0
            && let Err(error) = self.truncate_open(&open)
        {
            self.let_go(&open);
            return Err(error);
        }
        if !way.may_read() || self.try_begin_reading(&open) {
            return Ok(Opening::Opened(self.opened(open, way)));
        }
        Ok(Opening::Waiting(Waiting(Stage::Look { file: open, way })))
    }

    /// Ends an open that may take long: what the file is made of is read, and the bytes of it that are stored once are looked for.
    pub fn finish_open(&self, waiting: Waiting) -> Result<Opened> {
        match waiting.0 {
            Stage::Load { file, flags } => self.finish(self.begin(file, flags, false)?),
            Stage::Look { file, way } => {
                self.begin_reading(&file);
                Ok(self.opened(file, way))
            }
        }
    }

    fn finish(&self, opening: Opening) -> Result<Opened> {
        match opening {
            Opening::Opened(opened) => Ok(opened),
            Opening::Waiting(waiting) => self.finish_open(waiting),
        }
    }

    fn truncate_open(&self, file: &OpenFile) -> Result<()> {
        let empty = {
            let state = file.state.lock();
            state.size == 0 && state.committed_size == 0
        };
        if empty { Ok(()) } else { self.resize(file, 0) }
    }

    fn opened(&self, file: Arc<OpenFile>, way: Way) -> Opened {
        // Written files are served around the page cache: it would copy every byte once more. A file that nobody
        // writes keeps it, and as long as somebody has it open so, all who come, writers too, go through the cache:
        // what is written there is in the cache at once, and the kernel never has to be told to forget anything.
        let direct_io = {
            // Two that come at once see each other.
            let state = file.state.lock();
            if way.commits() {
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
            may_read: way.may_read(),
            may_write: way.may_write(),
            commits: way.commits(),
            changed: AtomicBool::new(way.changed),
            direct_io,
            next_read: AtomicU64::new(0),
            streak: AtomicU32::new(0),
            fetched: AtomicU64::new(0),
            ahead: Ahead::new(&self.shelf),
            seen: Mutex::default(),
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
        let opened = self.finish(self.begin(file, flags & !libc::O_TRUNC, true)?)?;
        Ok((Attributes::of(file, &inode), opened))
    }

    /// Whether a flush or the release of this handle has something to commit.
    pub fn owes_commit(&self, handle: Handle) -> bool {
        self.handle(handle).is_ok_and(|handle| handle.commits)
    }

    /// Whether the release of this handle may have to wait for disks: it commits, or with it goes a file without a name, whose
    /// manifest is read to know what it was made of.
    pub fn release_may_wait(&self, handle: Handle) -> bool {
        self.handle(handle).is_ok_and(|handle| {
            let file = &handle.file;
            handle.commits
                || file.unlinked.load(Ordering::Acquire)
                || file.owes_drop.load(Ordering::SeqCst)
        })
    }

    /// close(2) of one descriptor: commits what is new, or has it committed aside when the config says so. A handle by which
    /// nothing was changed leaves it to the others: whoever has the file open beside it may be in the middle of writing it anew.
    pub fn flush(&self, handle: Handle) -> Result<()> {
        let handle = self.handle(handle)?;
        let file = &handle.file;
        if !handle.commits {
            return Ok(());
        }
        let alone = file.writers.load(Ordering::Acquire) == 1;
        let changed = handle.changed.load(Ordering::Acquire) || file.mapped.load(Ordering::Acquire);
        if !alone && !changed {
            return Ok(());
        }
        if self.background {
            // By then this handle may be gone, and another one's writer not to be counted as this one: who closes last gives
            // what is owed after that.
            self.commit_aside(file, Purpose::MakeTrue);
            return Ok(());
        }
        self.commit(file, Purpose::Close)?;
        self.consider_compaction(file);
        Ok(())
    }

    /// A write came out of the kernel's cache of a mapped file: by which handle it was made is not known.
    pub fn wrote_by_mapping(&self, handle: Handle) {
        if let Ok(handle) = self.handle(handle) {
            handle.file.mapped.store(true, Ordering::Release);
        }
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
        // Nobody asks for what was made ahead.
        handle.ahead.end();
        // Another handle that may write commits at its own close. It may be in the middle of writing the file anew,
        // and half of that must not become true because this one goes.
        if handle.commits {
            let owed = {
                // Nobody opens it for writing between the two questions.
                let state = file.state.lock();
                let last = file.writers.fetch_sub(1, Ordering::AcqRel) == 1;
                // A commit that runs may come to owe something, or fail.
                let owes =
                    state.is_dirty() || state.owes_tiers || file.committing.load(Ordering::Acquire);
                last && owes && !file.unlinked.load(Ordering::Acquire)
            };
            if owed && let Err(error) = self.commit(file, Purpose::MakeTrue) {
                tracing::error!(file = %file.id, %error, "the last commit of a file failed");
            }
        }
        if handle.may_read && self.end_reading(file) {
            // What fails is logged, and owed to the next commit.
            let _ = self.commit(file, Purpose::JudgeAgain);
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
                if purpose.makes_true() {
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
