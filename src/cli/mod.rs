//! One file a command. It may know every room; none knows it.

mod classify;
mod daemon;
mod disk;
mod failure;
mod fsck;
mod helper;
mod init;
mod inspect;
mod log;
mod mount;
mod plan;
mod progress;
mod rescue;
mod scrub;
mod status;
mod table;
mod task;
mod umount;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A filesystem for VM snapshots over several disks, each of which may die
#[derive(Debug, Parser)]
#[command(
    name = "parsfs",
    version,
    after_help = "A first volume, on six directories instead of six disks:
  mkdir -p /tmp/parsfs-demo/{1,2,3,4,5,6} /tmp/parsfs-demo/mnt
  parsfs init mount-configs/demo.toml
  parsfs mount mount-configs/demo.toml /tmp/parsfs-demo/mnt
  cp some-file /tmp/parsfs-demo/mnt/
  parsfs status /tmp/parsfs-demo/mnt
  parsfs umount /tmp/parsfs-demo/mnt

In /etc/fstab:
  /etc/parsfs/vms.toml  /mnt/vms  fuse.parsfs  defaults,nofail,nodev,nosuid,x-systemd.after=/mnt/disk1,x-systemd.after=/mnt/disk2  0  0
with an x-systemd.after= for every disk, or it may be mounted before them.

Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage. Some commands have more: their --help tells.
PARSFS_LOG=debug (or parsfs::mount=trace, ...) tells more."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    Mount(mount::Mount),
    Umount(umount::Umount),
    Status(status::Status),
    Inspect(inspect::Inspect),
    Rescue(rescue::Rescue),
    Plan(plan::Plan),
    Classify(classify::Classify),
    Scrub(scrub::Scrub),
    Rebalance(scrub::Rebalance),
    Disk(disk::Disk),
    Task(task::Task),
    Fsck(fsck::Fsck),
}

/// Runs the program with its arguments, the program's own name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match helper::translate(arguments.into_iter().collect()) {
        Ok(Some(arguments)) => arguments,
        // mount -f: everything but the mount itself.
        Ok(None) => return ExitCode::SUCCESS,
        Err(usage) => {
            eprintln!("parsfs: {usage}");
            return ExitCode::from(2);
        }
    };
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // To stdout or stderr, as the kind of error is; nobody is left to tell if that fails.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // Before a disk is opened, and in the daemon too.
    crate::disk::allow_open_files();
    let result = match arguments.command {
        Command::Init(command) => command.run(),
        Command::Mount(command) => command.run(),
        Command::Umount(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Rescue(command) => command.run(),
        Command::Plan(command) => command.run(),
        Command::Classify(command) => command.run(),
        Command::Scrub(command) => command.run(),
        Command::Rebalance(command) => command.run(),
        Command::Disk(command) => command.run(),
        Command::Task(command) => command.run(),
        Command::Fsck(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            use failure::Failure::{BeyondRepair, NotWell, TaskNotDone, Told};
            if !matches!(failure, Told | TaskNotDone | NotWell | BeyondRepair) {
                eprintln!("parsfs: {failure}");
            }
            ExitCode::from(failure.code())
        }
    }
}

/// Tells what is possible but hardly meant.
fn warn_of(warnings: &[String]) {
    for warning in warnings {
        eprintln!("parsfs: warning: {warning}");
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    /// Without the disks' mount points the volume may be mounted before them.
    #[test]
    fn the_line_for_fstab_is_that_of_the_readme() {
        let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(readme).unwrap();
        let help = Arguments::command().get_after_help().unwrap().to_string();
        let line = help.lines().find(|line| line.contains("fuse.parsfs"));
        let line = line.unwrap().trim();
        assert!(line.contains("x-systemd.after=") && readme.contains(line));
    }

    #[test]
    fn no_command_is_taken_for_a_call_of_mount() {
        for command in Arguments::command().get_subcommands() {
            assert!(
                helper::COMMANDS.contains(&command.get_name()),
                "{}",
                command.get_name()
            );
        }
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Arguments::command().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains("parsfs "), "{}", command.get_name());
        }
    }
}
