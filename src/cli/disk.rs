//! `parsfs disk`: disks join a volume, leave it, take each other's place, and are trusted again.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::failure::Failure;
use super::log;
use super::task::{How, Target};
use crate::mount::control::{Request, Response};
use crate::mount::mountinfo;
use crate::volume::{DiskStatus, Mode};

/// Add, remove or replace disks of a volume, mounted or not
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  parsfs disk replace /mnt/vms disk3 /mnt/new     # disk3 is dying or dead; /mnt/new is empty
  parsfs disk add /mnt/vms /mnt/new
  parsfs disk remove /mnt/vms disk3               # what it holds goes to the others first
  parsfs disk online /mnt/vms disk3               # it was faulty, and works again

`parsfs status` has the names. The config is edited by these commands, and need not be touched.
Exit codes: 0 done; 1 failed or cancelled; 2 wrong usage; 4 done, and some bytes could not be had.")]
pub(super) struct Disk {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Have an empty directory, on a device of its own, become a disk of the volume
    #[command(after_help = "Example:
  parsfs disk add /mnt/vms /mnt/disk7

The directory is named in the config. New files use it at once; `parsfs rebalance` moves older data to it.")]
    Add {
        /// The volume's config, or where it is mounted
        #[arg(value_name = "CONFIG|MOUNTPOINT")]
        volume: PathBuf,
        /// An empty directory
        path: PathBuf,
        /// What the disk is to be called; normally the last part of its path
        #[arg(long)]
        name: Option<String>,
        /// For programs: how the disk is then, as `parsfs status --json` has it
        #[arg(long)]
        json: bool,
    },
    /// Move what a disk holds to the others; then it is a disk of the volume no more
    #[command(after_help = "Example:
  parsfs disk remove /mnt/vms disk3

The disk may be missing or dead: what it held is reconstructed from the others. Its directory is emptied, if it still
works, and it is taken out of the config.")]
    Remove {
        /// The volume's config, or where it is mounted
        #[arg(value_name = "CONFIG|MOUNTPOINT")]
        volume: PathBuf,
        /// The disk's name
        disk: String,
        /// Give up bytes that only this disk had and does not give any more: expendable ones, which are stored once.
        /// Files are marked as having lost them. What other disks may still give, when they are back, is not given up
        #[arg(long)]
        give_up: bool,
        /// With --give-up: another disk that is gone for good as well. Bytes that only the two had are given up too, critical
        /// ones among them. Once for each such disk
        #[arg(long, value_name = "DISK", requires = "give_up")]
        gone: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// Put an empty directory in the place of a disk, dying, dead or well
    #[command(after_help = "Example:
  parsfs disk replace /mnt/vms disk3 /mnt/new

What the old disk held is copied from it, or reconstructed from the others. Then it leaves the volume, and the config
names the new one.")]
    Replace {
        /// The volume's config, or where it is mounted
        #[arg(value_name = "CONFIG|MOUNTPOINT")]
        volume: PathBuf,
        /// The old disk's name
        disk: String,
        /// An empty directory: the new disk
        path: PathBuf,
        /// What the new disk is to be called; normally the last part of its path
        #[arg(long)]
        name: Option<String>,
        /// Give up bytes that only the old disk had and does not give any more: expendable ones, which are stored once.
        /// Files are marked as having lost them. What other disks may still give, when they are back, is not given up
        #[arg(long)]
        give_up: bool,
        /// With --give-up: another disk that is gone for good as well. Bytes that only the two had are given up too, critical
        /// ones among them. Once for each such disk
        #[arg(long, value_name = "DISK", requires = "give_up")]
        gone: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// Have a disk that was suspect, faulty or missing take part again; what it lacks is written to it
    #[command(after_help = "Example:
  parsfs disk online /mnt/vms disk3")]
    Online {
        /// The volume's config, or where it is mounted
        #[arg(value_name = "CONFIG|MOUNTPOINT")]
        volume: PathBuf,
        /// The disk's name
        disk: String,
        /// For programs: how the disk is then, as `parsfs status --json` has it
        #[arg(long)]
        json: bool,
    },
}

impl Disk {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.what {
            What::Add {
                volume,
                path,
                name,
                json,
            } => {
                let path = absolute(&path)?;
                let disk = path.clone();
                let request = Request::AddDisk { path, name };
                // The config may have had it under another path to the same place.
                say(&volume, &request, json, |found| {
                    let found = Path::new(&found.path);
                    found == disk || is_one_place(found, &disk)
                })
            }
            What::Online { volume, disk, json } => {
                let request = Request::DiskOnline { disk: disk.clone() };
                say(&volume, &request, json, |found| {
                    found.name == disk || found.path == disk
                })
            }
            What::Remove {
                volume,
                disk,
                give_up,
                gone,
                how,
            } => {
                let rate = how.rate();
                let request = Request::RemoveDisk {
                    disk,
                    give_up,
                    gone,
                    rate,
                };
                how.run(&volume, &request)
            }
            What::Replace {
                volume,
                disk,
                path,
                name,
                give_up,
                gone,
                how,
            } => {
                let rate = how.rate();
                let path = absolute(&path)?;
                let request = Request::ReplaceDisk {
                    disk,
                    path,
                    name,
                    give_up,
                    gone,
                    rate,
                };
                how.run(&volume, &request)
            }
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    mountinfo::absolute(path).map_err(Failure::io(format!("find {}", path.display())))
}

fn is_one_place(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Has something done to a disk, and tells in words what that was, or with `json` how the disk is now.
fn say(
    volume: &Path,
    request: &Request,
    json: bool,
    is_it: impl Fn(&DiskStatus) -> bool,
) -> Result<(), Failure> {
    log::start("warn");
    let mut target = Target::find(volume, Mode::ReadWrite)?;
    let said = target.ask(request).and_then(|response| match response {
        Response::Said { message } => Ok(message),
        _ => Err(Failure::other_answer()),
    });
    let status = match (&said, json) {
        (Ok(_), true) => Some(target.status()),
        _ => None,
    };
    target.close()?;
    let message = said?;
    let Some(status) = status else {
        println!("{message}");
        return Ok(());
    };
    for warning in message.lines().filter(|line| line.starts_with("warning: ")) {
        eprintln!("parsfs: {warning}");
    }
    let disk = status?.disks.into_iter().find(is_it);
    let disk = disk.ok_or_else(Failure::other_answer)?;
    println!(
        "{}",
        serde_json::to_string_pretty(&disk).map_err(|error| Failure::Other(error.to_string()))?
    );
    Ok(())
}
