//! `parsfs init`: makes a volume.

use std::path::PathBuf;

use super::failure::Failure;
use super::{log, warn_of};
use crate::config::Config;
use crate::volume::Volume;

/// Make a new volume on the disks of a config
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  parsfs init /etc/parsfs/vms.toml

Every disk gets a label that names the volume. A disk that holds a volume already is refused and left as it is.
Exit codes: 0 made, 1 failed, 2 wrong usage.")]
pub(super) struct Init {
    /// The config; mount-configs/ has ready ones
    config: PathBuf,
}

impl Init {
    pub(super) fn run(self) -> Result<(), Failure> {
        log::start("warn");
        let config = Config::load(&self.config)?;
        warn_of(&config.warnings());
        Volume::create(&config)?;
        println!(
            "volume {} is made on {} disks:",
            config.name,
            config.disks.len()
        );
        for disk in &config.disks {
            println!("  {}  {}", disk.name, disk.path.display());
        }
        println!(
            "critical bytes {}: any {} of the disks may be lost; expendable bytes {}; {}",
            config.policy.critical,
            config.policy.critical.m,
            config.policy.expendable_word(),
            config.policy.compression
        );
        println!("next: parsfs mount {} MOUNTPOINT", self.config.display());
        Ok(())
    }
}
