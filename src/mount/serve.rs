//! A volume in service: opened, mounted, answering commands, until somebody unmounts it or a signal asks it to end;
//! then everything is committed and closed. Runs in the foreground; whoever wants a daemon starts a process for it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, select, unbounded};
use tracing::{error, info, warn};

use super::control::Identity;
use super::control::client::Client;
use super::control::server::Server;
use super::error::MountError;
use super::options::MountOptions;
use super::session::{Mounted, clear_dead_mount};
use super::{confine, mountinfo};
use crate::config::Config;
use crate::sys;
use crate::volume::{Mode, Volume};

/// Signals so close together are one wish: some programs signal a process and then its group.
const SAME_WISH: Duration = Duration::from_secs(1);

/// How long after its mount has gone a session may go on that is mounted nowhere else.
const GONE: Duration = Duration::from_secs(1);

/// How long a daemon is waited for that has the volume open and no mount any more.
const CLOSING: Duration = Duration::from_secs(60);

/// How long one that has ended its work may take to be gone.
const ENDING: Duration = Duration::from_secs(2);

/// How often it is looked whether that has ended.
const AGAIN: Duration = Duration::from_millis(50);

/// Serves until the end. `ready` is called once programs can use the mount, with what the administrator should know
/// of the volume's state. The error is of the mount or of the last commit.
pub fn serve(
    config: &Config,
    mountpoint: &Path,
    options: &MountOptions,
    ready: impl FnOnce(Vec<String>),
) -> Result<(), MountError> {
    sys::share_memory_among_threads();
    // Before any thread: they inherit both.
    sys::hold_back_signals().map_err(|source| io_error("hold back signals", source))?;
    // The kernel must not wait for us to write while it finds memory for us. It needs a capability; without it the
    // daemon works, as most FUSE daemons do.
    let _ = rustix::process::configure_io_flusher_behavior(true);
    confine::give_up_privileges().map_err(|error| io_error("give up privileges", error.into()))?;

    let mountpoint = check_mountpoint(mountpoint)?;
    check_not_over_disks(config, &mountpoint)?;
    let mode = match (options.read_only, options.force) {
        (true, _) => Mode::ReadOnly,
        (false, true) => Mode::Forced,
        (false, false) => Mode::ReadWrite,
    };
    let mut config = config.clone();
    config.mount.lost = options.lost.unwrap_or(config.mount.lost);
    let config = &config;
    let volume = open(config, mode)?;
    let served = serve_volume(config, &volume, &mountpoint, options, ready);
    let closed = volume.close();
    if closed.is_ok() {
        info!("volume {} is committed and closed", config.name);
    }
    match served {
        Ok(server) => {
            if let Some(server) = server {
                server.finish(closed.as_ref().err().map(ToString::to_string));
            }
            Ok(closed?)
        }
        Err(error) => {
            // The first error is the one to tell.
            if let Err(error) = closed {
                error!("{error}");
            }
            Err(error)
        }
    }
}

/// Opens a volume, and waits for a daemon that still commits after its mount has gone: umount(8) does not.
fn open(config: &Config, mode: Mode) -> Result<Arc<Volume>, MountError> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let error = match Volume::open(config, mode) {
            Err(error) if error.errno() == libc::EBUSY => error,
            result => return Ok(result?),
        };
        let limit = match holder(config)? {
            Holder::Serves => return Err(error.into()),
            Holder::Closes => CLOSING,
            Holder::Unknown => ENDING,
        };
        if begun.elapsed() > limit {
            return Err(error.into());
        }
        if !told {
            info!("waiting, for nothing is mounted: {error}");
            told = true;
        }
        std::thread::sleep(AGAIN);
    }
}

/// Who has the disks of a config.
enum Holder {
    /// A daemon whose mount is there.
    Serves,
    /// A daemon whose mount is gone.
    Closes,
    /// None that answers: a daemon that is about to end, or another command.
    Unknown,
}

fn holder(config: &Config) -> Result<Holder, MountError> {
    let disks: Vec<_> = config.disks.iter().map(|disk| disk.path.clone()).collect();
    let Some((_, identity)) = Client::of_disks(&disks).filter(|(_, found)| !found.read_only) else {
        return Ok(Holder::Unknown);
    };
    let mount = mountinfo::at(&identity.mountpoint)
        .map_err(|source| io_error("read the table of mounts", source))?;
    let is_its_own = mount.is_some_and(|mount| mount.is_parsfs() && mount.source == identity.name);
    Ok(if is_its_own {
        Holder::Serves
    } else {
        Holder::Closes
    })
}

/// Serves an open volume until the mount has ended; gives the control socket, through which the end is still awaited.
fn serve_volume(
    config: &Config,
    volume: &Arc<Volume>,
    mountpoint: &Path,
    options: &MountOptions,
    ready: impl FnOnce(Vec<String>),
) -> Result<Option<Server>, MountError> {
    let mut options = options.clone();
    let wanted_to_write = !options.read_only;
    options.read_only |= volume.is_read_only();
    let mounted = Mounted::mount(volume.clone(), config, mountpoint, &options)?;
    let identity = Identity {
        pid: std::process::id(),
        volume: volume.id().to_string(),
        name: config.name.clone(),
        config: config.file.clone(),
        mountpoint: mountpoint.to_owned(),
        disks: config.disks.iter().map(|disk| disk.path.clone()).collect(),
        read_only: volume.is_read_only(),
    };
    // A mount without its socket still serves files; only commands cannot reach it.
    let server = match Server::start(volume.clone(), identity, &mounted.entry().device) {
        Ok(server) => Some(server),
        Err(error) => {
            warn!("{error}; status, inspect and umount cannot ask this mount");
            None
        }
    };
    ready(warnings(volume, wanted_to_write));
    wait_for_end(&mounted, volume)?;
    mounted.finish();
    Ok(server)
}

/// Waits until the session has ended. The first signal unmounts; if the mount is in use it is detached, everything
/// so far is committed, and who uses it may go on. The second signal does not wait for them.
fn wait_for_end(mounted: &Mounted, volume: &Volume) -> Result<(), MountError> {
    let signals = signals()?;
    let mut first: Option<Instant> = None;
    loop {
        select! {
            recv(mounted.ended()) -> _ => return Ok(()),
            recv(signals) -> signal => {
                let Ok(signal) = signal else {
                    // No signals will come any more; the session's end still will.
                    let _ = mounted.ended().recv();
                    return Ok(());
                };
                match first {
                    Some(at) if at.elapsed() < SAME_WISH => continue,
                    Some(_) => {
                        warn!("signal {signal} again: ending although files are open");
                        return mounted.unmount(true);
                    }
                    None => {
                        info!("signal {signal}: unmounting");
                        first = Some(Instant::now());
                    }
                }
                match mounted.unmount(false) {
                    Ok(()) => match mounted.ended().recv_timeout(GONE) {
                        Err(RecvTimeoutError::Timeout) => {
                            warn!(
                                "it is still mounted elsewhere, by a bind mount or in a container: the daemon stays until that \
                                 is unmounted, or a second signal"
                            );
                            if let Err(error) = volume.commit_all() {
                                error!("{error}");
                            }
                        }
                        _ => return Ok(()),
                    },
                    Err(MountError::Busy { path }) => {
                        warn!(
                            "{} is in use: detached; the daemon stays until its files are closed, or a second signal",
                            path.display()
                        );
                        mounted.unmount(true)?;
                        if let Err(error) = volume.commit_all() {
                            error!("{error}");
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

fn signals() -> Result<Receiver<i32>, MountError> {
    let (sender, receiver) = unbounded();
    thread::Builder::new()
        .name("signals".to_string())
        .spawn(move || {
            while let Ok(signal) = sys::wait_for_signal() {
                if sender.send(signal).is_err() {
                    return;
                }
            }
        })
        .map_err(|source| io_error("start a thread for signals", source))?;
    Ok(receiver)
}

/// The mount point as the kernel's table will show it: a directory, and not a dead mount of ours.
fn check_mountpoint(path: &Path) -> Result<std::path::PathBuf, MountError> {
    let failed = |source| MountError::MountPoint {
        path: path.to_owned(),
        source,
    };
    clear_dead_mount(&mountinfo::absolute(path).map_err(failed)?)?;
    let path = path.canonicalize().map_err(failed)?;
    if !path.metadata().map_err(failed)?.is_dir() {
        return Err(failed(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    Ok(path)
}

/// Refuses a mount that would cover what it rests on: every path of a disk below it would lead into the mount itself.
fn check_not_over_disks(config: &Config, mountpoint: &Path) -> Result<(), MountError> {
    for disk in &config.disks {
        // One that is not there may come back to its path.
        let path = disk.path.canonicalize().unwrap_or(disk.path.clone());
        if path.starts_with(mountpoint) {
            return Err(MountError::OverDisk {
                path: mountpoint.to_owned(),
                disk: disk.name.clone(),
                at: path,
            });
        }
    }
    Ok(())
}

fn warnings(volume: &Volume, wanted_to_write: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    if wanted_to_write && volume.is_read_only() {
        warnings.push(
            "mounted read-only: fewer than half of the disks are there. Bring disks back and mount anew; --force only if \
             the others never come back, as the two can then never be one volume again"
                .to_string(),
        );
    }
    if let Some(why) = volume.refuses_data() {
        warnings.push(format!(
            "names and attributes can be changed, and no data can be written: {why}"
        ));
    }
    match volume.status() {
        Ok(status) => {
            for disk in status.disks.iter().filter(|disk| disk.state != "online") {
                let note = disk
                    .note
                    .as_deref()
                    .map(|note| format!(" ({note})"))
                    .unwrap_or_default();
                warnings.push(format!("disk {} is {}{note}", disk.name, disk.state));
            }
        }
        Err(error) => warnings.push(error.to_string()),
    }
    warnings
}

fn io_error(what: &str, source: io::Error) -> MountError {
    MountError::Io {
        what: what.to_string(),
        source,
    }
}
