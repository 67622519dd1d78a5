//! A disk that is a directory, normally the root of a filesystem on a device of its own. Objects are files;
//! a file is named before it holds anything, except where `put` promises old or new. Knows nothing of what
//! the objects hold.

mod open_files;
mod path;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{Advice, FallocateFlags};
use rustix::io::ReadWriteFlags;

use self::open_files::{OpenFiles, is_exhausted};
use super::{Appender, Disk, DiskError, ObjectName, RandomAccess, Result, Space};
use crate::sys;

/// Linux takes at most this many slices in one write.
const SLICES_MAX: usize = 1024;

/// A disk that is a directory.
#[derive(Debug)]
pub struct DirectoryDisk {
    name: String,
    root: PathBuf,
    device: u64,
    /// The number of the directory on its device.
    inode: u64,
    open: OpenFiles,
    names: Arc<Names>,
    temporaries: AtomicU64,
}

/// The directories in which names changed since they were last synced.
#[derive(Debug, Default)]
struct Names {
    dirty: Mutex<BTreeSet<PathBuf>>,
    /// Held during a sync, so that a second caller does not return before the first one's sync is done.
    syncing: Mutex<()>,
}

impl DirectoryDisk {
    /// Opens the directory of a disk and writes nothing to it: another process may be writing.
    pub fn open(name: &str, path: &Path) -> Result<DirectoryDisk> {
        let failed = |source| {
            io_error(
                name,
                format!("open the directory {}", path.display()),
                source,
            )
        };
        let directory = File::open(path).map_err(failed)?;
        let metadata = directory.metadata().map_err(failed)?;
        if !metadata.is_dir() {
            return Err(failed(io::Error::from(io::ErrorKind::NotADirectory)));
        }
        Ok(DirectoryDisk {
            name: name.to_owned(),
            root: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            open: OpenFiles::default(),
            names: Arc::default(),
            temporaries: AtomicU64::new(0),
        })
    }

    /// Opens a disk, after making its directory (mode 0700) where there is none. The parent must be there:
    /// a mount point that was forgotten is no disk.
    pub fn create(name: &str, path: &Path) -> Result<DirectoryDisk> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error(
                name,
                format!("make the directory {}", path.display()),
                error,
            )),
            _ => Self::open(name, path),
        }
    }

    /// The same, with no more than so many files kept open for reading (`kept_open`).
    pub fn keeping_open(mut self, files: usize) -> DirectoryDisk {
        self.open = OpenFiles::at_most(files);
        self
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Removes what an interrupted `put` left. Only for who has the disk's lock (`DiskLock`): it may be what another process
    /// is just writing.
    pub fn sweep(&self) -> Result<()> {
        let mut left = Vec::new();
        self.walk(&mut |path, _| {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(path::TEMPORARY)) {
                left.push(self.root.join(path));
            }
        })?;
        for path in left {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.io("remove what an interrupted write left", error));
                }
                _ => self.changed(&path),
            }
        }
        Ok(())
    }

    /// Shows every file that may be an object with its path relative to the root.
    fn walk(&self, seen: &mut dyn FnMut(&Path, &fs::Metadata)) -> Result<()> {
        // Only where objects lie: a foreign tree beside them may be large.
        self.walk_directory(Path::new(""), 0, seen)?;
        self.walk_directory(Path::new("journal"), 0, seen)?;
        self.walk_directory(Path::new("names"), 0, seen)?;
        self.walk_directory(Path::new("manifests"), 1, seen)?;
        self.walk_directory(Path::new("segments"), 1, seen)
    }

    fn walk_directory(
        &self,
        relative: &Path,
        deeper: u32,
        seen: &mut dyn FnMut(&Path, &fs::Metadata),
    ) -> Result<()> {
        let failed = |error| self.io(&format!("list {}", relative.display()), error);
        let path = self.root.join(relative);
        let entries = match self.open.with_room(|| fs::read_dir(&path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let metadata = match entry.metadata() {
                // Removed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata.map_err(failed)?,
            };
            let path = relative.join(entry.file_name());
            if metadata.is_file() {
                seen(&path, &metadata);
            } else if metadata.is_dir() && deeper > 0 {
                self.walk_directory(&path, deeper - 1, seen)?;
            }
        }
        Ok(())
    }

    fn path_of(&self, object: ObjectName) -> PathBuf {
        self.root.join(path::of(object))
    }

    fn reader(&self, object: ObjectName) -> io::Result<Arc<File>> {
        self.open.get(object, || File::open(self.path_of(object)))
    }

    /// Opens a file that is or may be new, with the directories above it.
    fn open_new(&self, path: &Path, options: &OpenOptions) -> io::Result<File> {
        // What was mounted here may be gone, and nothing is to be put into the empty directory below it.
        self.check().map_err(io::Error::other)?;
        let open = || self.open.with_room(|| options.open(path));
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_directories(path)?;
                open()?
            }
            file => file?,
        };
        self.changed(path);
        Ok(file)
    }

    /// Opens a file that is there, for writing.
    fn open_old(&self, path: &Path, options: &OpenOptions) -> io::Result<File> {
        self.open.with_room(|| options.open(path))
    }

    fn make_directories(&self, path: &Path) -> io::Result<()> {
        let Some(parent) = path.parent() else {
            return Ok(());
        };
        // The root itself is never made here: it may be a mount point whose device is gone.
        let Ok(below) = parent.strip_prefix(&self.root) else {
            return Ok(());
        };
        let mut made = self.root.clone();
        for part in below {
            made.push(part);
            match DirBuilder::new().mode(0o700).create(&made) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => self.changed(&made),
            }
        }
        Ok(())
    }

    /// Remembers that a name changed, until the next `sync_names`.
    fn changed(&self, path: &Path) {
        if let Some(parent) = path.parent() {
            self.names.dirty.lock().insert(parent.to_owned());
        }
    }

    fn write_temporary(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.open_new(path, writing().create_new(true))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn io(&self, what: &str, source: io::Error) -> DiskError {
        io_error(&self.name, what.to_owned(), source)
    }

    fn failed(&self, what: &str, object: ObjectName, source: io::Error) -> DiskError {
        object_error(&self.name, what, object, source)
    }
}

fn writing() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn io_error(disk: &str, what: String, source: io::Error) -> DiskError {
    let disk = disk.to_owned();
    if is_exhausted(&source) {
        return DiskError::Exhausted { disk, what, source };
    }
    DiskError::Io { disk, what, source }
}

fn object_error(disk: &str, what: &str, object: ObjectName, source: io::Error) -> DiskError {
    match source.kind() {
        io::ErrorKind::NotFound => DiskError::Missing {
            disk: disk.to_owned(),
            object,
        },
        io::ErrorKind::AlreadyExists => DiskError::AlreadyExists {
            disk: disk.to_owned(),
            object,
        },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::Full {
            disk: disk.to_owned(),
            object,
        },
        _ => io_error(disk, format!("{what} {object}"), source),
    }
}

fn read_error(
    disk: &str,
    object: ObjectName,
    offset: u64,
    length: usize,
    source: io::Error,
) -> DiskError {
    if source.kind() == io::ErrorKind::UnexpectedEof {
        DiskError::Short {
            disk: disk.to_owned(),
            object,
            offset,
            length: length as u64,
        }
    } else {
        object_error(disk, "read", object, source)
    }
}

impl Disk for DirectoryDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn device(&self) -> Option<u64> {
        Some(self.device)
    }

    fn check(&self) -> Result<()> {
        let there = fs::metadata(&self.root);
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (self.device, self.inode)) {
            return Ok(());
        }
        Err(DiskError::Gone {
            disk: self.name.clone(),
            path: self.root.clone(),
        })
    }

    fn create(&self, object: ObjectName) -> Result<Box<dyn Appender>> {
        let file = self
            .open_new(&self.path_of(object), writing().create_new(true))
            .map_err(|error| self.failed("create", object, error))?;
        Ok(Box::new(DirectoryAppender {
            disk: self.name.clone(),
            object,
            file,
            end: 0,
            started: 0,
            broken: false,
        }))
    }

    fn resume(&self, object: ObjectName, length: u64) -> Result<Box<dyn Appender>> {
        let failed = |error| self.failed("resume", object, error);
        let file = self
            .open_old(&self.path_of(object), &writing())
            .map_err(failed)?;
        let there = file.metadata().map_err(failed)?.len();
        if there < length {
            return Err(DiskError::Short {
                disk: self.name.clone(),
                object,
                offset: 0,
                length,
            });
        }
        file.set_len(length).map_err(failed)?;
        Ok(Box::new(DirectoryAppender {
            disk: self.name.clone(),
            object,
            file,
            end: length,
            started: length,
            broken: false,
        }))
    }

    fn read_at(&self, object: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.reader(object)
            .map_err(|error| self.failed("open", object, error))?
            .read_exact_at(buffer, offset)
            .map_err(|error| read_error(&self.name, object, offset, buffer.len(), error))
    }

    fn read_at_once(&self, object: ObjectName, offset: u64, buffer: &mut [u8]) -> bool {
        // Opening a file may have to wait too.
        let Some(file) = self.open.peek(object) else {
            return false;
        };
        let length = buffer.len();
        let mut slices = [IoSliceMut::new(buffer)];
        let read = rustix::io::preadv2(&*file, &mut slices, offset, ReadWriteFlags::NOWAIT);
        read == Ok(length)
    }

    fn forget(&self, object: ObjectName) {
        if let Ok(file) = self.reader(object) {
            // A hint: bytes that stay in memory are only looked at there.
            let _ = rustix::fs::fadvise(&*file, 0, None, Advice::DontNeed);
        }
    }

    fn let_go(&self) {
        self.open.clear();
    }

    fn will_read(&self, object: ObjectName, range: Range<u64>) {
        let length = std::num::NonZeroU64::new(range.end.saturating_sub(range.start));
        if let (Ok(file), Some(length)) = (self.reader(object), length) {
            // A hint: what comes of it is told by the read.
            let _ = rustix::fs::fadvise(&*file, range.start, Some(length), Advice::WillNeed);
        }
    }

    fn length(&self, object: ObjectName) -> Result<u64> {
        // By its name: a file that is open goes on living when its directory is taken away.
        std::fs::metadata(self.path_of(object))
            .map(|metadata| metadata.len())
            .map_err(|error| self.failed("measure", object, error))
    }

    fn put(&self, object: ObjectName, bytes: &[u8]) -> Result<()> {
        let failed = |error| self.failed("put", object, error);
        let path = self.path_of(object);
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{}-{number}", path::TEMPORARY, std::process::id());
        let temporary = path.with_file_name(name);
        // 1. The bytes are durable under another name,
        // 2. take the place of the old ones at once,
        // 3. and the name is durable.
        let placed = self
            .write_temporary(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, &path));
        if let Err(error) = placed {
            // Best effort: what stays is swept at the next open.
            let _ = fs::remove_file(&temporary);
            return Err(failed(error));
        }
        self.open.forget(object);
        self.changed(&path);
        self.sync_names()
    }

    fn restore(&self, object: ObjectName, offset: u64, bytes: &[u8]) -> Result<()> {
        let failed = |error| self.failed("restore", object, error);
        let path = self.path_of(object);
        let there = path.try_exists().map_err(failed)?;
        let file = if there {
            self.open_old(&path, &writing())
        } else {
            self.open_new(&path, writing().create(true))
        }
        .map_err(failed)?;
        file.write_all_at(bytes, offset)
            .and_then(|()| file.sync_data())
            .map_err(failed)?;
        if there { Ok(()) } else { self.sync_names() }
    }

    fn punch(&self, object: ObjectName, range: Range<u64>) -> Result<()> {
        let length = range.end.saturating_sub(range.start);
        if length == 0 {
            return Ok(());
        }
        let file = self
            .open_old(&self.path_of(object), &writing())
            .map_err(|error| self.failed("punch", object, error))?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&file, flags, range.start, length) {
            Err(rustix::io::Errno::OPNOTSUPP) => Err(DiskError::Unsupported {
                disk: self.name.clone(),
                what: "punch holes",
            }),
            result => result.map_err(|error| self.failed("punch", object, error.into())),
        }
    }

    fn remove(&self, object: ObjectName) -> Result<()> {
        let path = self.path_of(object);
        let removed = fs::remove_file(&path);
        self.open.forget(object);
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.failed("remove", object, error)),
            Ok(()) => {
                self.changed(&path);
                Ok(())
            }
        }
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>> {
        let mut objects = Vec::new();
        self.walk(&mut |path, metadata| {
            if let Some(object) = path::parse(path) {
                objects.push((object, metadata.blocks() * 512));
            }
        })?;
        Ok(objects)
    }

    fn sync_names(&self) -> Result<()> {
        let _one_at_a_time = self.names.syncing.lock();
        let dirty = std::mem::take(&mut *self.names.dirty.lock());
        for path in &dirty {
            let directory = self.open.with_room(|| File::open(path));
            if let Err(error) = directory.and_then(|directory| directory.sync_all()) {
                self.names.dirty.lock().extend(dirty.iter().cloned());
                return Err(self.io(&format!("sync {}", path.display()), error));
            }
        }
        Ok(())
    }

    fn space(&self) -> Result<Space> {
        // By its path: a disk that was let go, so that it can be unmounted, is not opened by this.
        self.check()?;
        let space = rustix::fs::statvfs(&self.root)
            .map_err(|error| self.io("ask for its space", error.into()))?;
        Ok(Space {
            total: space.f_blocks.saturating_mul(space.f_frsize),
            free: space.f_bavail.saturating_mul(space.f_frsize),
        })
    }

    fn random_access(&self, object: ObjectName) -> Result<Box<dyn RandomAccess>> {
        let path = self.path_of(object);
        let file = match self.open_old(&path, writing().read(true)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.open_new(&path, writing().read(true).create(true))
            }
            file => file,
        }
        .map_err(|error| self.failed("open", object, error))?;
        Ok(Box::new(RandomFile {
            disk: self.name.clone(),
            object,
            file,
        }))
    }
}

#[derive(Debug)]
struct DirectoryAppender {
    disk: String,
    object: ObjectName,
    file: File,
    /// The bytes appended.
    end: u64,
    /// The bytes whose writing down was begun.
    started: u64,
    /// After an error it is not known what arrived.
    broken: bool,
}

impl Appender for DirectoryAppender {
    fn append(&mut self, slices: &[&[u8]]) -> Result<u64> {
        if self.broken {
            let source = io::Error::other("an earlier append failed");
            return Err(object_error(&self.disk, "append to", self.object, source));
        }
        let first = self.end;
        let mut vector: Vec<IoSlice<'_>> = slices
            .iter()
            .filter(|slice| !slice.is_empty())
            .map(|slice| IoSlice::new(slice))
            .collect();
        let mut rest = vector.as_mut_slice();
        while !rest.is_empty() {
            let now = rest.get(..SLICES_MAX).unwrap_or(rest);
            match rustix::io::pwritev(&self.file, now, self.end) {
                Ok(written) if written > 0 => {
                    self.end += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                result => {
                    self.broken = true;
                    let source = match result {
                        Err(error) => error.into(),
                        Ok(_) => io::Error::from(io::ErrorKind::WriteZero),
                    };
                    return Err(object_error(&self.disk, "append to", self.object, source));
                }
            }
        }
        Ok(first)
    }

    fn start_sync(&mut self, but: u64) {
        let end = self.end.saturating_sub(but);
        if end > self.started {
            sys::start_write_back(&self.file, self.started, end - self.started);
            self.started = end;
        }
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|error| {
            // The kernel forgets a failed write: a second sync would claim success.
            self.broken = true;
            object_error(&self.disk, "sync", self.object, error)
        })
    }
}

#[derive(Debug)]
struct RandomFile {
    disk: String,
    object: ObjectName,
    file: File,
}

impl RandomFile {
    fn failed(&self, what: &str, source: io::Error) -> DiskError {
        object_error(&self.disk, what, self.object, source)
    }
}

impl RandomAccess for RandomFile {
    fn length(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        Ok(metadata
            .map_err(|error| self.failed("measure", error))?
            .len())
    }

    fn set_length(&self, length: u64) -> Result<()> {
        self.file
            .set_len(length)
            .map_err(|error| self.failed("set the length of", error))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| read_error(&self.disk, self.object, offset, buffer.len(), error))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| self.failed("write to", error))
    }

    fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|error| self.failed("sync", error))
    }
}

#[cfg(test)]
mod tests;
