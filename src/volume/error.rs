//! What a program, and an administrator, are told when a call on a volume fails: the errors of the rooms below
//! with the number that stands for each.

use std::error::Error;

use crate::disk::{DiskError, LabelError};
use crate::meta::{MetaError, NamespaceError};
use crate::store::manifest::{DeltaError, ManifestError, ManifestWriteError};
use crate::store::{NoWindow, ReadError, WriteError};

/// A failed call on a volume: what went wrong in words, and the number for the program.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct VolumeError {
    errno: i32,
    message: String,
    /// The log has it already.
    told: bool,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// The result of a call on a volume.
pub type Result<T> = std::result::Result<T, VolumeError>;

impl VolumeError {
    /// An error of the given number (`libc::E…`).
    pub fn new(errno: i32, message: impl Into<String>) -> Self {
        VolumeError {
            errno,
            message: message.into(),
            told: false,
            source: None,
        }
    }

    /// The number a program sees (`libc::E…`).
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// Whether bytes that were stored once are lost, and nothing else is wrong.
    pub(super) fn is_lost_copy(&self) -> bool {
        let source = self.source.as_ref();
        let read = source.and_then(|source| source.downcast_ref::<ReadError>());
        matches!(read, Some(ReadError::Lost { .. }))
    }

    /// Whether disks did not take what was to be written, or are too few.
    pub(super) fn is_of_writing(&self) -> bool {
        let source = self.source.as_ref();
        source.is_some_and(|source| source.is::<WriteError>() || source.is::<NoWindow>())
    }

    /// The same error, of which the log has told and need not tell again.
    pub(super) fn told(mut self) -> Self {
        self.told = true;
        self
    }

    /// Whether the log has told of it.
    pub fn was_told(&self) -> bool {
        self.told
    }

    /// Whether bytes of the file are gone: no disk that is here gives them, nor do the others together.
    pub fn is_loss(&self) -> bool {
        let source = self.source.as_ref();
        source
            .and_then(|error| error.downcast_ref::<ReadError>())
            .is_some_and(|error| match error {
                ReadError::Lost { .. }
                | ReadError::Dropped { .. }
                | ReadError::Unreadable { .. } => true,
                ReadError::NoBlock { .. } => false,
            })
    }

    fn wrap(errno: i32, error: impl Error + Send + Sync + 'static) -> Self {
        VolumeError {
            errno,
            message: error.to_string(),
            told: false,
            source: Some(Box::new(error)),
        }
    }
}

impl From<DiskError> for VolumeError {
    fn from(error: DiskError) -> Self {
        Self::wrap(
            if error.is_full() {
                libc::ENOSPC
            } else {
                libc::EIO
            },
            error,
        )
    }
}

impl From<LabelError> for VolumeError {
    fn from(error: LabelError) -> Self {
        Self::wrap(libc::EIO, error)
    }
}

impl From<MetaError> for VolumeError {
    fn from(error: MetaError) -> Self {
        let errno = match &error {
            MetaError::ReadOnly => libc::EROFS,
            MetaError::Disk(disk) if disk.is_full() => libc::ENOSPC,
            _ => libc::EIO,
        };
        Self::wrap(errno, error)
    }
}

impl From<NamespaceError> for VolumeError {
    fn from(error: NamespaceError) -> Self {
        let errno = match error {
            NamespaceError::Meta(error) => return error.into(),
            NamespaceError::NotFound { .. } => libc::ENOENT,
            NamespaceError::Gone { .. } => libc::ENOENT,
            NamespaceError::Exists { .. } | NamespaceError::AttributeExists { .. } => libc::EEXIST,
            NamespaceError::NotEmpty { .. } => libc::ENOTEMPTY,
            NamespaceError::NotDirectory { .. } => libc::ENOTDIR,
            NamespaceError::IsDirectory { .. } => libc::EISDIR,
            NamespaceError::DirectoryLink { .. } => libc::EPERM,
            NamespaceError::NameTooLong { .. } => libc::ENAMETOOLONG,
            NamespaceError::BadName { .. } | NamespaceError::BelowItself { .. } => libc::EINVAL,
            NamespaceError::TooManyLinks { .. } => libc::EMLINK,
            NamespaceError::NoAttribute { .. } => libc::ENODATA,
            NamespaceError::AttributeTooLong { .. } => libc::E2BIG,
            NamespaceError::TooManyAttributes { .. } => libc::ENOSPC,
        };
        Self::wrap(errno, error)
    }
}

impl From<NoWindow> for VolumeError {
    fn from(error: NoWindow) -> Self {
        let errno = match error {
            NoWindow::TooFewDisks { .. } | NoWindow::NoNumber => libc::EIO,
            NoWindow::Exhausted { .. } => libc::EIO,
            NoWindow::NoRoom { .. } => libc::ENOSPC,
        };
        Self::wrap(errno, error)
    }
}

impl From<WriteError> for VolumeError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NoWindow(error) => error.into(),
            WriteError::Append(ref append) if append.full => Self::wrap(libc::ENOSPC, error),
            WriteError::Parity(_) | WriteError::Append(_) => Self::wrap(libc::EIO, error),
        }
    }
}

impl From<ReadError> for VolumeError {
    fn from(error: ReadError) -> Self {
        Self::wrap(libc::EIO, error)
    }
}

impl From<DeltaError> for VolumeError {
    fn from(error: DeltaError) -> Self {
        Self::wrap(libc::EIO, error)
    }
}

impl From<ManifestError> for VolumeError {
    fn from(error: ManifestError) -> Self {
        Self::wrap(libc::EIO, error)
    }
}

impl From<ManifestWriteError> for VolumeError {
    fn from(error: ManifestWriteError) -> Self {
        match error {
            ManifestWriteError::Disk(disk) => disk.into(),
            error @ ManifestWriteError::Content { .. } => Self::wrap(libc::EIO, error),
        }
    }
}
