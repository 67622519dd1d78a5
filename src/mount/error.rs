//! What can go wrong with a mount as a whole. Single requests have their own errors (`errno`).

use std::io;
use std::path::PathBuf;

use crate::volume::VolumeError;

/// A volume that cannot be mounted, served or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The volume could not be opened, or its last commit failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The mount point is not there, or is no directory.
    #[error("cannot mount at {}: {source}; give an existing directory", path.display())]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A disk of the volume lies there.
    #[error(
        "cannot mount at {}: it would cover disk {disk} of the volume, at {}; give a directory that no disk lies in",
        path.display(), at.display()
    )]
    OverDisk {
        /// The mount point.
        path: PathBuf,
        /// The disk's name.
        disk: String,
        /// Where it is.
        at: PathBuf,
    },
    /// FUSE refused.
    #[error("cannot mount at {}: {source}{}", path.display(), hint(source))]
    Fuse {
        /// The mount point.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nothing of ours is mounted there.
    #[error("{} is not the mount point of a parsfs volume", path.display())]
    NotMounted {
        /// What was given.
        path: PathBuf,
    },
    /// Somebody uses it.
    #[error(
        "{} is in use; close the files in it and leave its directories (`fuser -vm {}` lists who uses it), \
         or detach it with --lazy", path.display(), path.display()
    )]
    Busy {
        /// The mount point.
        path: PathBuf,
    },
    /// It cannot be unmounted for another reason.
    #[error("cannot unmount {}: {source}", path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file, socket or signal that the daemon needs.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "; is the kernel's fuse module loaded (modprobe fuse), and for others than root, fuse3 installed?"
        }
        io::ErrorKind::PermissionDenied => {
            "; for others than root, /etc/fuse.conf must have user_allow_other, or the config allow_other = false"
        }
        _ => "",
    }
}
