//! Starts the daemon of a mount: this program again, in a session of its own, with its log for stderr and a pipe for
//! stdout, on which it tells one line: that the mount serves, or why it does not. A fork would do the same, but must
//! come before any thread, and has no safe wrapper.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::{log, warn_of};
use crate::config::Config;
use crate::mount::control;
use crate::mount::mountinfo;
use crate::mount::options::MountOptions;
use crate::sys;

/// The most that is read of a daemon's line.
const LINE_MAX: u64 = 1 << 20;

/// The line that a daemon tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    Ready { warnings: Vec<String> },
    Failed { message: String },
}

/// Starts the daemon and waits until its mount serves.
pub(super) fn start(
    config: &Config,
    mountpoint: &Path,
    options: &MountOptions,
    arguments: &[String],
) -> Result<(), Failure> {
    let (log_path, log) = open_log(config, options)?;
    let program = std::env::current_exe().map_err(Failure::io("find this program"))?;
    // The daemon's directory is the root, so that it keeps none busy.
    let mountpoint = mountinfo::absolute(mountpoint)
        .map_err(Failure::io(format!("find {}", mountpoint.display())))?;
    let mut child = Command::new(program)
        .arg("mount")
        .arg(&config.file)
        .arg(mountpoint)
        .arg("--serve")
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(Failure::io("start the daemon"))?;

    let mut line = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout)
            .take(LINE_MAX)
            .read_until(b'\n', &mut line)
            .map_err(Failure::io("hear from the daemon"))?;
    }
    match serde_json::from_slice(&line) {
        Ok(Told::Ready { warnings }) => {
            warn_of(&warnings);
            Ok(())
        }
        Ok(Told::Failed { message }) => {
            // Its end is waited for, so that the disks are free for the next try.
            let _ = child.wait();
            Err(Failure::Other(message))
        }
        Err(_) => {
            let status = child.wait().map_err(Failure::io("hear from the daemon"))?;
            Err(Failure::Other(format!(
                "the daemon ended before the mount was ready ({status}); its log is {}",
                log_path.display()
            )))
        }
    }
}

/// Runs `serve` as a daemon that `start` has started; `serve` is given what to call when the mount is ready.
pub(super) fn serve_as_daemon(
    serve: impl FnOnce(&mut dyn FnMut(Vec<String>)) -> Result<(), Failure>,
) -> Result<(), Failure> {
    // It fails only for the leader of a process group, and then there is a session of its own already.
    let _ = rustix::process::setsid();
    sys::ignore_hangup();
    log::start("info");
    let mut told = false;
    let result = serve(&mut |warnings| {
        told = true;
        tell(&Told::Ready { warnings });
    });
    result.map_err(|failure| {
        tracing::error!("{failure}");
        if !told {
            tell(&Told::Failed {
                message: failure.to_string(),
            });
        }
        Failure::Told
    })
}

fn tell(told: &Told) {
    let line = serde_json::to_string(told).unwrap_or_default();
    let mut stdout = io::stdout().lock();
    // Whoever started us may be gone, and the mount serves all the same.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Opens the log that options or config name; or the usual one, or one in the runtime directory if that cannot be
/// written.
fn open_log(config: &Config, options: &MountOptions) -> Result<(PathBuf, File), Failure> {
    if let Some(path) = options.log.as_ref().or(config.log.as_ref()) {
        let path = std::path::absolute(path).map_err(Failure::io("find the log"))?;
        let log = append(&path).map_err(Failure::io(format!(
            "write the log {} (log.file of the config, or --log)",
            path.display()
        )))?;
        return Ok((path, log));
    }
    let name = format!("{}.log", config.name);
    if control::user() == 0 {
        let path = Path::new("/var/log/parsfs").join(&name);
        if let Ok(log) = append(&path) {
            return Ok((path, log));
        }
    }
    let path = control::make_runtime_directory()
        .map_err(Failure::io("make a place for the log; give one with --log"))?
        .join(name);
    let log = append(&path).map_err(Failure::io(format!("write the log {}", path.display())))?;
    Ok((path, log))
}

fn append(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}
