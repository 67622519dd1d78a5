//! `parsfs rescue`: rebuilds what is known of files when every database is lost.

use std::path::PathBuf;

use super::failure::Failure;
use super::{log, warn_of};
use crate::config::Config;
use crate::volume::Volume;

/// Rebuild a volume's names and files from its disks, when every database is lost
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  parsfs rescue /etc/parsfs/vms.toml

For a volume that does not mount because its metadata is damaged on every disk. Files are found again by what lies beside
their bytes. Nothing that was stored is changed. It tells what it found; mount the volume afterwards.
Exit codes: 0 rebuilt, 1 failed, 2 wrong usage.")]
pub(super) struct Rescue {
    /// The volume's config
    config: PathBuf,
}

impl Rescue {
    pub(super) fn run(self) -> Result<(), Failure> {
        log::start("warn");
        let config = Config::load(&self.config)?;
        warn_of(&config.warnings());
        for line in Volume::rescue(&config)? {
            println!("{line}");
        }
        Ok(())
    }
}
