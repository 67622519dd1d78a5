//! `parsfs umount`: unmounts, and is back only when everything is committed.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::log;
use crate::mount::control::client::{Client, ControlError};
use crate::mount::control::{Request, Response};
use crate::mount::{MountError, clear_dead_mount, mountinfo, unmount};

/// How long a mount that is in use is tried again.
const PATIENCE: Duration = Duration::from_secs(1);

/// Unmount a volume; returns when everything is committed
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  parsfs umount /mnt/vms
  parsfs umount --lazy /mnt/vms      # although it is in use; waits for who uses it

Exit codes: 0 unmounted and everything committed, 1 failed (in use, a commit failed,
or no daemon told that everything is committed), 2 wrong usage.")]
pub(super) struct Umount {
    /// Where the volume is mounted
    mountpoint: PathBuf,
    /// Detach it although it is in use; it ends when its files are closed
    #[arg(short, long)]
    lazy: bool,
}

impl Umount {
    pub(super) fn run(self) -> Result<(), Failure> {
        log::start("warn");
        let path = mountinfo::absolute(&self.mountpoint)
            .map_err(Failure::io(format!("find {}", self.mountpoint.display())))?;
        if clear_dead_mount(&path)? {
            return Err(Failure::Other(format!(
                "{} was dead and is cleared away. Its daemon ended without an unmount, and what was open then is as it was \
                 committed last: mount the volume again, and look at what was written last",
                path.display()
            )));
        }
        let mount = mount_at(&path)?;
        // Before unmounting: afterwards the socket may be gone before it is found.
        let mut daemon = match Client::of_mount(&mount) {
            Ok(daemon) => daemon,
            // A mount that nobody answers for can be taken away all the same.
            Err(error) => {
                unmount_soon(&path, self.lazy)?;
                return Err(unknown_end(&path, &error));
            }
        };
        let besides = match elsewhere(&mount)? {
            Some(_) => Some(Client::of_mount(&mount)?),
            None => None,
        };
        // Only when the daemon has promised to tell of its end may it be brought about.
        match daemon.ask(&Request::AwaitEnd {})? {
            Response::Awaited {} => {}
            _ => return Err(Failure::other_answer()),
        }
        unmount_soon(&path, self.lazy)?;
        // A copy in a place that shares its mounts with this one is gone with it.
        if let Some(mut besides) = besides
            && let Some(left) = elsewhere(&mount)?
        {
            return commit_only(&mut besides, &left.mountpoint);
        }
        await_end(&mut daemon)
    }
}

/// Another mount of the same volume's.
fn elsewhere(mount: &mountinfo::Mount) -> Result<Option<mountinfo::Mount>, Failure> {
    let all = mountinfo::all().map_err(Failure::io("read the table of mounts"))?;
    let is_other = |other: &mountinfo::Mount| other.device == mount.device && other.id != mount.id;
    Ok(all.into_iter().find(is_other))
}

/// A bind mount of it is left, or it was one: the daemon goes on.
fn commit_only(daemon: &mut Client, left: &Path) -> Result<(), Failure> {
    match daemon.ask_patiently(&Request::Commit {})? {
        Response::Committed {} => {
            eprintln!(
                "parsfs: everything is committed; the volume is still mounted at {}",
                left.display()
            );
            Ok(())
        }
        _ => Err(Failure::other_answer()),
    }
}

/// The mount is gone, and whether its daemon has committed what was open nobody has told.
fn unknown_end(path: &Path, error: &ControlError) -> Failure {
    Failure::Other(format!(
        "{} is unmounted, but whether everything is committed is not known: {error}. A daemon that still runs \
         commits what is left, and its log says how that went; the next `parsfs mount` waits for it. Mount the volume \
         again, and look at what was written last",
        path.display()
    ))
}

/// Unmounts. A program that ends, or is only just started, holds a mount for a moment longer than its files:
/// that is waited for.
fn unmount_soon(path: &Path, lazy: bool) -> Result<(), MountError> {
    let begun = Instant::now();
    loop {
        match unmount(path, lazy) {
            Err(MountError::Busy { .. }) if begun.elapsed() < PATIENCE => {
                thread::sleep(PATIENCE / 20)
            }
            result => return result,
        }
    }
}

fn await_end(daemon: &mut Client) -> Result<(), Failure> {
    match daemon.receive(None) {
        Ok(Response::Ended { error: None }) => {
            daemon.await_close();
            Ok(())
        }
        Ok(Response::Ended { error: Some(error) }) => {
            daemon.await_close();
            Err(Failure::Other(format!("unmounted, but the last commit failed: {error}")))
        }
        Ok(_) => Err(Failure::other_answer()),
        Err(ControlError::Broken { .. }) => Err(Failure::Other(
            "unmounted, but the daemon ended without telling that everything is committed; its log says why"
                .to_string(),
        )),
        Err(error) => Err(error.into()),
    }
}

/// The mount of ours at a path.
pub(super) fn mount_at(path: &Path) -> Result<mountinfo::Mount, Failure> {
    mountinfo::at(path)
        .map_err(Failure::io("read the table of mounts"))?
        .filter(mountinfo::Mount::is_parsfs)
        .ok_or_else(|| {
            MountError::NotMounted {
                path: path.to_owned(),
            }
            .into()
        })
}
