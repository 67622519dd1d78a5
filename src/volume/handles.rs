//! Open files and directories as programs hold them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::ahead::Ahead;
use super::error::{Result, VolumeError};
use super::file::OpenFile;
use super::holes::Seen;
use crate::ids::FileId;
use crate::meta::Listed;

/// An open file or directory, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// How an opened file is to be served by the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The handle.
    pub handle: Handle,
    /// Reads and writes come here, around the kernel's page cache.
    pub direct_io: bool,
    /// What the kernel cached before still holds.
    pub keep_cache: bool,
}

/// A program's way to a file.
#[derive(Debug)]
pub struct OpenHandle {
    /// The file.
    pub file: Arc<OpenFile>,
    /// Opened for reading.
    pub may_read: bool,
    /// Opened for writing.
    pub may_write: bool,
    /// Its closing commits: opened for writing, or the file was made or cut to nothing when it was opened for reading.
    pub commits: bool,
    /// Something was changed by way of it that its closing has to commit.
    pub changed: AtomicBool,
    /// Served around the kernel's cache.
    pub direct_io: bool,
    /// Where the last read ended.
    pub next_read: AtomicU64,
    /// Reads in a row that went on where the one before ended.
    pub streak: AtomicU32,
    /// How far blocks were fetched ahead.
    pub fetched: AtomicU64,
    /// What is made ahead of the kernel, which reads ahead.
    pub(super) ahead: Ahead,
    /// Where holes were seen last.
    pub(super) seen: Mutex<Option<Arc<Seen>>>,
}

/// A listing that is being read, taken when it was begun.
#[derive(Debug)]
pub struct OpenDirectory {
    /// The directory.
    pub directory: FileId,
    /// Its names then; read anew from the start when a reader goes back there.
    pub listing: RwLock<Vec<Listed>>,
}

/// All handles.
#[derive(Debug, Default)]
pub struct Handles {
    next: AtomicU64,
    files: RwLock<HashMap<u64, Arc<OpenHandle>>>,
    directories: RwLock<HashMap<u64, Arc<OpenDirectory>>>,
}

impl Handles {
    /// Numbers an open file.
    pub fn add(&self, handle: OpenHandle) -> Handle {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.files.write().insert(number, Arc::new(handle));
        Handle(number)
    }

    /// Numbers an open directory.
    pub fn add_directory(&self, directory: OpenDirectory) -> Handle {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.directories.write().insert(number, Arc::new(directory));
        Handle(number)
    }

    /// An open file.
    pub fn get(&self, handle: Handle) -> Result<Arc<OpenHandle>> {
        self.files
            .read()
            .get(&handle.0)
            .cloned()
            .ok_or_else(unknown)
    }

    /// All open files.
    pub fn all(&self) -> Vec<Arc<OpenHandle>> {
        self.files.read().values().cloned().collect()
    }

    /// An open directory.
    pub fn directory(&self, handle: Handle) -> Result<Arc<OpenDirectory>> {
        self.directories
            .read()
            .get(&handle.0)
            .cloned()
            .ok_or_else(unknown)
    }

    /// Forgets an open file.
    pub fn remove(&self, handle: Handle) -> Option<Arc<OpenHandle>> {
        self.files.write().remove(&handle.0)
    }

    /// Forgets an open directory.
    pub fn remove_directory(&self, handle: Handle) {
        self.directories.write().remove(&handle.0);
    }
}

fn unknown() -> VolumeError {
    VolumeError::new(libc::EBADF, "no open file has this handle")
}
