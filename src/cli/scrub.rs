//! `parsfs scrub` and `parsfs rebalance`: work on the whole of a volume, mounted or not.

use std::path::PathBuf;

use super::failure::Failure;
use super::task::How;
use crate::mount::control::Request;

/// Read and verify everything on all disks, and repair what is bad
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  parsfs scrub /mnt/vms
  parsfs scrub --rate 100M --detach /mnt/vms
  parsfs scrub /etc/parsfs/vms.toml           # mounted or not

Blocks, parity, manifests and the copies of the metadata are read off the disks. What is bad is written again from the
others. A disk that was suspect, and on which nothing bad was found, is online again. Ctrl-C ends the watching, not the
scrub of a mounted volume: `parsfs task --cancel` does that.
Exit codes: 0 all is well, perhaps after repairs; 1 failed or cancelled; 2 wrong usage; 4 something cannot be mended, or
could not be looked at, as its disk is missing or faulty.")]
pub(super) struct Scrub {
    /// The volume's config, or where it is mounted
    #[arg(value_name = "CONFIG|MOUNTPOINT")]
    volume: PathBuf,
    #[command(flatten)]
    how: How,
}

impl Scrub {
    pub(super) fn run(self) -> Result<(), Failure> {
        let request = Request::Scrub {
            rate: self.how.rate(),
        };
        self.how.run(&self.volume, &request)
    }
}

/// Move data from full disks to empty ones, until all are about equally full
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  parsfs rebalance /mnt/vms                   # after `parsfs disk add`
  parsfs rebalance --rate 50M --detach /mnt/vms

Files that survive fewer lost disks than the policy has it are written anew on the way.
Exit codes: 0 done; 1 failed or cancelled; 2 wrong usage; 4 something could not be moved.")]
pub(super) struct Rebalance {
    /// The volume's config, or where it is mounted
    #[arg(value_name = "CONFIG|MOUNTPOINT")]
    volume: PathBuf,
    #[command(flatten)]
    how: How,
}

impl Rebalance {
    pub(super) fn run(self) -> Result<(), Failure> {
        let request = Request::Rebalance {
            rate: self.how.rate(),
        };
        self.how.run(&self.volume, &request)
    }
}
