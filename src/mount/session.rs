//! One mount: from the kernel's mount(2) to its end. fuser's own unmounting is not used: after somebody else unmounted,
//! fuser 0.18 takes the mount for still being there and unmounts whatever lies at that place by then, and on a busy one
//! it gives up without a second try. Here a mount is unmounted only while the kernel's table shows it to be this one.

use std::fs;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use fuser::{BackgroundSession, Session, SessionACL};
use rustix::mount::UnmountFlags;
use tracing::{debug, info, warn};

use super::error::MountError;
use super::filesystem::{Adapter, AtWork};
use super::kernel::Kernel;
use super::mountinfo::{self, Mount};
use super::options::MountOptions;
use crate::config::Config;
use crate::volume::Volume;

/// A volume that is mounted. Dropping it unmounts, lazily if need be.
pub(super) struct Mounted {
    mount: Mount,
    session: Option<BackgroundSession>,
    ended: Receiver<()>,
    at_work: AtWork,
}

impl Mounted {
    /// Mounts the volume; from then on it serves.
    pub(super) fn mount(
        volume: Arc<Volume>,
        config: &Config,
        mountpoint: &Path,
        options: &MountOptions,
    ) -> Result<Mounted, MountError> {
        let failed = |source| MountError::Fuse {
            path: mountpoint.to_owned(),
            source,
        };
        let kernel = Kernel::default();
        let (alive, ended) = bounded(0);
        let adapter = Adapter::new(volume.clone(), kernel.clone(), options.syncs_names(), alive);
        let at_work = adapter.at_work();

        let mut session = fuser::Config::default();
        session.mount_options =
            options.for_kernel(&config.name, config.mount.dev, config.mount.suid);
        session.acl = if options.allow_other.unwrap_or(config.mount.allow_other) {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        session.n_threads = Some(threads(config.mount.threads));
        session.clone_fd = true;

        let session = Session::new(adapter, mountpoint, &session).map_err(failed)?;
        kernel.connect(session.notifier());
        let session = session.spawn().map_err(failed)?;
        let found = mountinfo::at(mountpoint)
            .map_err(failed)?
            .filter(Mount::is_parsfs);
        let Some(mount) = found else {
            // Unmounted by somebody before we looked.
            mem::forget(session);
            return Err(failed(io::Error::from(io::ErrorKind::NotConnected)));
        };
        raise_read_ahead(&mount.device, config.mount.read_ahead);
        info!(
            "volume {} is mounted at {}",
            config.name,
            mountpoint.display()
        );
        Ok(Mounted {
            mount,
            session: Some(session),
            ended,
            at_work,
        })
    }

    /// The mount as the kernel's table shows it.
    pub(super) fn entry(&self) -> &Mount {
        &self.mount
    }

    /// Is disconnected when the session has ended, for whatever reason.
    pub(super) fn ended(&self) -> &Receiver<()> {
        &self.ended
    }

    /// Whether the kernel's table still has this very mount on top at its place.
    fn is_there(&self) -> bool {
        matches!(
            mountinfo::at(&self.mount.mountpoint),
            Ok(Some(found)) if found.id == self.mount.id && found.device == self.mount.device
        )
    }

    /// Unmounts, if it is still this mount that is there.
    pub(super) fn unmount(&self, lazy: bool) -> Result<(), MountError> {
        if self.is_there() {
            unmount(&self.mount.mountpoint, lazy)
        } else {
            Ok(())
        }
    }

    /// After the end of the session: waits for the answers that are still being worked on, and clears away the mount
    /// point if the connection was cut and left it dead.
    pub(super) fn finish(&self) {
        self.at_work.finish();
        if let Err(error) = self.unmount(true) {
            warn!("{error}");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.unmount(true) {
            warn!("{error}");
        }
        if let Some(session) = self.session.take() {
            // Its own drop unmounts by path; the process ends soon and closes what it holds.
            mem::forget(session);
        }
    }
}

/// Unmounts whatever is on top at the path. For others than root fusermount3 does it.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), MountError> {
    let flags = if lazy {
        UnmountFlags::DETACH | UnmountFlags::NOFOLLOW
    } else {
        UnmountFlags::NOFOLLOW
    };
    match rustix::mount::unmount(path, flags) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(MountError::Busy {
            path: path.to_owned(),
        }),
        Err(rustix::io::Errno::INVAL) => Err(MountError::NotMounted {
            path: path.to_owned(),
        }),
        Err(rustix::io::Errno::PERM) => fusermount(path, lazy),
        Err(error) => Err(MountError::Unmount {
            path: path.to_owned(),
            source: error.into(),
        }),
    }
}

fn fusermount(path: &Path, lazy: bool) -> Result<(), MountError> {
    let failed = |source| MountError::Unmount {
        path: path.to_owned(),
        source,
    };
    let output = Command::new("fusermount3")
        .arg(if lazy { "-uz" } else { "-u" })
        .arg("--")
        .arg(path)
        .output()
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    if said.contains("busy") {
        return Err(MountError::Busy {
            path: path.to_owned(),
        });
    }
    Err(failed(io::Error::other(said)))
}

/// Takes away a mount of ours at the path whose daemon died: everything in it is ENOTCONN, and a new mount would lie
/// over it and come off to show it again. Gives whether there was one.
pub fn clear_dead_mount(path: &Path) -> Result<bool, MountError> {
    let mut cleared = false;
    while let Some(mount) = find(path)?.filter(Mount::is_parsfs)
        && is_dead(path)
    {
        warn!(
            "the daemon of volume {} at {} had died; clearing its mount away",
            mount.source,
            path.display()
        );
        unmount(path, true)?;
        cleared = true;
    }
    Ok(cleared)
}

/// Whether the daemon of a FUSE mount is gone. statfs(2) asks it every time, where stat(2) would go by the attributes
/// that the kernel remembers for an hour.
pub fn is_dead(path: &Path) -> bool {
    matches!(rustix::fs::statfs(path), Err(rustix::io::Errno::NOTCONN))
}

fn find(path: &Path) -> Result<Option<Mount>, MountError> {
    mountinfo::at(path).map_err(|source| MountError::Io {
        what: "read the table of mounts".to_string(),
        source,
    })
}

/// Threads that take requests. They wait for nothing, so a few are enough on any machine.
fn threads(configured: u32) -> usize {
    match configured {
        0 => thread::available_parallelism()
            .map_or(2, usize::from)
            .clamp(2, 8),
        number => number as usize,
    }
}

/// The kernel reads 128 KiB ahead by default, in which a dozen disks sleep. Only root may change it.
fn raise_read_ahead(device: &str, bytes: u64) {
    if bytes == 0 {
        return;
    }
    let file = PathBuf::from(format!("/sys/class/bdi/{device}/read_ahead_kb"));
    if let Err(error) = fs::write(&file, (bytes >> 10).to_string()) {
        debug!(
            "cannot set {}: {error}; reads of large files are slower",
            file.display()
        );
    }
}
