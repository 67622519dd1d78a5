//! What can go wrong on a disk.

use std::io;
use std::path::PathBuf;

use super::ObjectName;

/// A failed request to a disk. Names the disk and the object.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The object is not there.
    #[error("disk {disk}: {object} is missing")]
    Missing {
        /// The disk's name.
        disk: String,
        /// The object asked for.
        object: ObjectName,
    },
    /// An object of that name is there already.
    #[error("disk {disk}: {object} exists already")]
    AlreadyExists {
        /// The disk's name.
        disk: String,
        /// The object to be created.
        object: ObjectName,
    },
    /// The object ends before the range that was asked for.
    #[error("disk {disk}: {object} ends before {length} bytes at offset {offset}")]
    Short {
        /// The disk's name.
        disk: String,
        /// The object read.
        object: ObjectName,
        /// The first byte asked for.
        offset: u64,
        /// The bytes asked for.
        length: u64,
    },
    /// The medium was taken away, or another is in its place.
    #[error("disk {disk}: {} is gone, or is another directory than it was", path.display())]
    Gone {
        /// The disk's name.
        disk: String,
        /// Where it was.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("disk {disk}: no space left for {object}; free some, or add a disk")]
    Full {
        /// The disk's name.
        disk: String,
        /// The object written.
        object: ObjectName,
    },
    /// This kind of disk cannot do that.
    #[error("disk {disk}: cannot {what}")]
    Unsupported {
        /// The disk's name.
        disk: String,
        /// What was asked.
        what: &'static str,
    },
    /// This process may open no further file or have no further thread, or the machine has no memory left for it. The disk is
    /// well.
    #[error(
        "disk {disk}: {what}: {source}; the disk is not to blame, the limits of this process or machine are: allow more \
         open files (ulimit -Hn, LimitNOFILE=) or threads (TasksMax=), or free memory"
    )]
    Exhausted {
        /// The disk's name.
        disk: String,
        /// What was tried, and on which object.
        what: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Anything else that the medium says.
    #[error("disk {disk}: {what}: {source}")]
    Io {
        /// The disk's name.
        disk: String,
        /// What was tried, and on which object.
        what: String,
        /// The medium's own error.
        #[source]
        source: io::Error,
    },
}

impl DiskError {
    /// Whether the disk has no room, as against being broken.
    pub fn is_full(&self) -> bool {
        matches!(self, DiskError::Full { .. })
    }

    /// Whether what failed is this process or its machine, and nothing is to be held against the disk.
    pub fn is_own(&self) -> bool {
        matches!(self, DiskError::Exhausted { .. })
    }

    /// Whether the object is not there, or not wholly.
    pub fn is_missing(&self) -> bool {
        matches!(self, DiskError::Missing { .. } | DiskError::Short { .. })
    }
}
