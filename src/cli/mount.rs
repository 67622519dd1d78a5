//! `parsfs mount`: in the foreground, or by a daemon, and then back only when the mount serves.

use std::path::PathBuf;

use super::daemon;
use super::failure::Failure;
use super::{helper, log, warn_of};
use crate::config::Config;
use crate::mount::options::MountOptions;
use crate::mount::serve::serve;

/// Mount a volume; returns when programs can use it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  parsfs mount /etc/parsfs/vms.toml /mnt/vms
  parsfs mount --read-only vms.toml /mnt/look
  parsfs mount --foreground vms.toml /mnt/vms      # Ctrl-C unmounts
  mount -t fuse.parsfs /etc/parsfs/vms.toml /mnt/vms

A volume mounts with as many disks gone as its code allows. A mount point whose daemon was killed is cleared by itself.
The daemon writes its log to log.file of the config, normally /var/log/parsfs/VOLUME.log.
Exit codes: 0 mounted (with --foreground: unmounted and committed), 1 failed, 2 wrong usage.")]
pub(super) struct Mount {
    /// The volume's config
    config: PathBuf,
    /// An existing directory
    mountpoint: PathBuf,
    /// Stay in the foreground, with the log on stderr
    #[arg(short, long)]
    foreground: bool,
    /// Change nothing, on the mount or on the disks
    #[arg(short, long)]
    read_only: bool,
    /// Write although fewer than half of the disks are there. If the others were written to meanwhile, the two can
    /// never be one volume again
    #[arg(long)]
    force: bool,
    /// Write the daemon's log there instead
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Options as in fstab: ro, rw, force, allow_other, noallow_other, dev, nodev, suid, nosuid, exec, noexec, noatime, sync,
    /// async, dirsync, log=FILE, lost=mend|zero|error, ...
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Pass over unknown options in -o
    #[arg(long, hide = true)]
    sloppy: bool,
    /// Serve as a daemon: tell on stdout when the mount is ready
    #[arg(long, hide = true)]
    serve: bool,
}

impl Mount {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.serve {
            return daemon::serve_as_daemon(|ready| {
                let (config, options) = self.read()?;
                Ok(serve(&config, &self.mountpoint, &options, ready)?)
            });
        }
        let (config, options) = self.read()?;
        warn_of(&config.warnings());
        if self.foreground {
            log::start("info");
            return Ok(serve(&config, &self.mountpoint, &options, |warnings| {
                warn_of(&warnings)
            })?);
        }
        daemon::start(
            &config,
            &self.mountpoint,
            &options,
            &self.daemon_arguments(),
        )
    }

    fn read(&self) -> Result<(Config, MountOptions), Failure> {
        let mut options = helper::options(&self.options, self.sloppy)?;
        options.read_only |= self.read_only;
        options.force |= self.force;
        if let Some(log) = &self.log {
            options.log = Some(log.clone());
        }
        Ok((Config::load(&self.config)?, options))
    }

    /// What the daemon needs to know beyond config and mount point.
    fn daemon_arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        for (set, flag) in [
            (self.read_only, "--read-only"),
            (self.force, "--force"),
            (self.sloppy, "--sloppy"),
        ] {
            if set {
                arguments.push(flag.to_string());
            }
        }
        for list in &self.options {
            arguments.extend(["-o".to_string(), list.clone()]);
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[derive(clap::Parser)]
    struct Alone {
        #[command(flatten)]
        _mount: Mount,
    }

    #[test]
    fn the_help_lists_the_options_that_there_are() {
        let command = Alone::command();
        let list = command
            .get_arguments()
            .find(|argument| argument.get_id() == "options")
            .and_then(|argument| argument.get_help())
            .unwrap()
            .to_string();
        let (_, list) = list.split_once(": ").unwrap();
        let listed: Vec<&str> = list.trim_end_matches(", ...").split(", ").collect();
        for option in &listed {
            let option = option.replace("mend|zero|error", "mend");
            MountOptions::default().parse(&option, false).unwrap();
        }
        for option in ["force", "noallow_other", "async", "dirsync", "log=FILE"] {
            assert!(listed.contains(&option), "{option} is not in {listed:?}");
        }
    }
}
