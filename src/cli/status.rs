//! `parsfs status`: how a volume and its disks are. The daemon that has it mounted is asked; if there is none, the volume
//! is opened read-only for a look.

use std::path::PathBuf;

use serde::Serialize;

use super::failure::Failure;
use super::table::{Align, Table, bytes};
use super::umount::mount_at;
use super::{log, progress};
use crate::config::Config;
use crate::mount::control::client::Client;
use crate::mount::control::{Identity, Request, Response};
use crate::mount::{is_dead, mountinfo};
use crate::volume::{self, Mode, Volume};

/// Show how a volume, its disks and its files are
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  parsfs status /mnt/vms
  parsfs status /etc/parsfs/vms.toml          # mounted or not
  parsfs status --json /mnt/vms | jq '.disks[] | select(.state != \"online\")'

Exit codes: 0 shown (whatever it shows), 1 failed, 2 wrong usage.")]
pub(super) struct Status {
    /// The volume's config, or where it is mounted
    #[arg(value_name = "CONFIG|MOUNTPOINT")]
    volume: PathBuf,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> Result<(), Failure> {
        log::start("warn");
        let (status, identity) = self.ask()?;
        if self.json {
            println!(
                "{}",
                serde_json::to_string_pretty(&Told::of(&status, identity.as_ref()))
                    .map_err(|error| Failure::Other(error.to_string()))?
            );
        } else {
            print!("{}", describe(&status, identity.as_ref()));
        }
        Ok(())
    }

    fn ask(&self) -> Result<(volume::Status, Option<Identity>), Failure> {
        let path = mountinfo::absolute(&self.volume)
            .map_err(Failure::io(format!("find {}", self.volume.display())))?;
        // A config is a file; only a mount point, dead or alive, is in the table of mounts.
        let mounted = mountinfo::at(&path).map_err(Failure::io("read the table of mounts"))?;
        if mounted.is_none() && path.is_file() {
            let config = Config::load(&self.volume)?;
            let disks: Vec<PathBuf> = config.disks.iter().map(|disk| disk.path.clone()).collect();
            if let Some((mut daemon, identity)) = Client::of_disks(&disks) {
                return Ok((status_of(&mut daemon)?, Some(identity)));
            }
            let volume = Volume::open(&config, Mode::ReadOnly)?;
            let status = volume.status();
            volume.close()?;
            return Ok((status?, None));
        }
        let mount = mount_at(&path)?;
        if is_dead(&path) {
            return Err(Failure::Other(format!(
                "the daemon of volume {} at {} has died; mount the volume again: everything that was committed is there",
                mount.source,
                path.display()
            )));
        }
        let mut daemon = Client::of_mount(&mount)?;
        let identity = match daemon.ask(&Request::Pid {})? {
            Response::Pid(identity) => Some(identity),
            _ => None,
        };
        Ok((status_of(&mut daemon)?, identity))
    }
}

/// What programs are told.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    status: &'a volume::Status,
    /// None where nobody has it mounted.
    mounted: Option<Mounted>,
}

/// By whom and where it is mounted.
#[derive(Serialize)]
struct Mounted {
    mountpoint: String,
    pid: u32,
    read_only: bool,
}

impl<'a> Told<'a> {
    fn of(status: &'a volume::Status, identity: Option<&Identity>) -> Told<'a> {
        let mounted = identity.map(|identity| Mounted {
            mountpoint: identity.mountpoint.display().to_string(),
            pid: identity.pid,
            read_only: identity.read_only,
        });
        Told { status, mounted }
    }
}

/// How a daemon says that its volume is.
pub(super) fn status_of(daemon: &mut Client) -> Result<volume::Status, Failure> {
    match daemon.ask(&Request::Status {})? {
        Response::Status(status) => Ok(status),
        _ => Err(Failure::other_answer()),
    }
}

fn describe(status: &volume::Status, identity: Option<&Identity>) -> String {
    let mut text = format!(
        "volume {} ({}), {}\n",
        status.volume, status.id, status.mode
    );
    match identity {
        Some(identity) => text.push_str(&format!(
            "mounted at {} by process {}\n",
            identity.mountpoint.display(),
            identity.pid
        )),
        None => text.push_str("not mounted\n"),
    }
    text.push_str(&format!(
        "critical bytes {}, expendable bytes {}; room for {} more of {}\n",
        status.policy_critical,
        status.policy_expendable,
        bytes(status.capacity_free),
        bytes(status.capacity_total)
    ));

    let mut disks = Table::new(&[
        ("disk", Align::Left),
        ("state", Align::Left),
        ("used", Align::Right),
        ("free", Align::Right),
        ("size", Align::Right),
        ("path", Align::Left),
    ]);
    for disk in &status.disks {
        disks.row([
            disk.name.clone(),
            disk.state.clone(),
            bytes(disk.used),
            bytes(disk.free),
            bytes(disk.total),
            disk.path.clone(),
        ]);
    }
    text.push_str(&format!("\n{disks}"));
    for disk in &status.disks {
        if let Some(note) = &disk.note {
            text.push_str(&format!("  {}: {note}\n", disk.name));
        }
    }

    let files = &status.files;
    text.push_str(&format!(
        "\n{} files ({} protected, {} degraded, {} mended, {} damaged, {} open, {} committing), {} directories, {} others\n",
        files.files,
        files.protected,
        files.degraded,
        files.mended,
        files.damaged,
        files.open,
        files.committing,
        files.directories,
        files.other
    ));
    text.push_str(&format!(
        "on the disks: critical {} with parity, expendable {}\n",
        bytes(status.stored.critical),
        bytes(status.stored.expendable)
    ));
    let owed = &status.owed;
    if owed.bytes_not_committed == 0
        && owed.commits_running == 0
        && owed.compactions_waiting == 0
        && owed.bytes_to_compress == 0
    {
        text.push_str("nothing is owed\n");
    } else {
        text.push_str(&format!(
            "owed: {} not committed, {} commits running, {} files to compact, {} to compress\n",
            bytes(owed.bytes_not_committed),
            owed.commits_running,
            owed.compactions_waiting,
            bytes(owed.bytes_to_compress)
        ));
    }
    if let Some(task) = &status.task {
        text.push_str(&format!("\n{}", progress::describe(task)));
    }
    text
}
