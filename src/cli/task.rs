//! `parsfs task`: the work on a volume as a whole that goes on, or was the last; and what scrub, rebalance and the disk
//! commands share: they ask the daemon that has the volume mounted, or open the volume and do the work themselves.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::failure::Failure;
use super::progress::{self, Progress, describe};
use super::status::status_of;
use super::umount::mount_at;
use super::{log, warn_of};
use crate::config::{Config, parse_size};
use crate::mount::control::client::Client;
use crate::mount::control::{Request, Response, tasks};
use crate::mount::{is_dead, mountinfo};
use crate::volume::{Mode, Status, TaskKind, TaskState, TaskStatus, Volume};

/// How often a task is asked how it goes on.
const ASK: Duration = Duration::from_millis(200);

/// Show, end or slow down the work on a volume that goes on beside its service
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  parsfs task /mnt/vms                    # the task that runs, or the last one
  parsfs task --wait /mnt/vms             # with its progress, until it has ended
  parsfs task --rate 50M /mnt/vms         # at most 50 MiB a second from now on; 0 for no limit
  parsfs task --cancel /mnt/vms           # what it has done stays; a replacement is taken back

A task that was interrupted by an unmount or a crash goes on at the next mount for writing. Until then it is only shown:
--wait does not wait for it, and --cancel and --rate are refused; mount the volume first.
Exit codes: 0 shown, or ended well; 1 failed, cancelled or interrupted; 2 wrong usage; 4 ended, and something cannot be
mended.")]
pub(super) struct Task {
    /// The volume's config, or where it is mounted
    #[arg(value_name = "CONFIG|MOUNTPOINT")]
    volume: PathBuf,
    /// End it
    #[arg(long, conflicts_with_all = ["wait", "rate"])]
    cancel: bool,
    /// The most bytes a second; 0 for no limit
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    rate: Option<u64>,
    /// Wait for its end, and show how it goes on
    #[arg(long)]
    wait: bool,
    /// For programs: a line of JSON, null when there was no task; with --wait one a second, the last when it has ended
    #[arg(long)]
    json: bool,
}

impl Task {
    pub(super) fn run(self) -> Result<(), Failure> {
        log::start("warn");
        let mut target = Target::find(&self.volume, Mode::ReadOnly)?;
        let request = match self.rate {
            _ if self.cancel => Request::CancelTask {},
            Some(rate) => Request::TaskRate {
                rate: Some(rate).filter(|rate| *rate > 0),
            },
            None => Request::Task { number: None },
        };
        let Some(status) = target.task(&request)? else {
            let none = match self.json {
                true => "null",
                false => "the volume has had no task",
            };
            println!("{none}");
            return Ok(());
        };
        if self.wait && status.state == TaskState::Running {
            return target.follow(&status, self.json);
        }
        if self.json {
            progress::json(&status);
        } else {
            print!("{}", describe(&status));
        }
        if self.wait {
            return outcome(&status);
        }
        Ok(())
    }
}

/// Options of all that begins a task.
#[derive(Debug, clap::Args)]
pub(super) struct How {
    /// The most bytes a second, such as 100M; without it as fast as it goes
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub(super) rate: Option<u64>,
    /// Return once it has begun; it goes on in the daemon
    #[arg(long)]
    pub(super) detach: bool,
    /// For programs: a line of JSON a second, the last when it has ended; with --detach one, of its beginning
    #[arg(long)]
    pub(super) json: bool,
}

impl How {
    pub(super) fn rate(&self) -> Option<u64> {
        self.rate.filter(|rate| *rate > 0)
    }

    /// Has a task done, and shows how it goes on.
    pub(super) fn run(&self, volume: &Path, request: &Request) -> Result<(), Failure> {
        log::start("warn");
        let mut target = Target::find(volume, Mode::ReadWrite)?;
        if self.detach && matches!(target, Target::Own(_)) {
            return Err(Failure::Usage(
                "--detach needs a mounted volume: nobody else would go on with it".to_string(),
            ));
        }
        let status = target.task(request)?.ok_or_else(Failure::other_answer)?;
        if self.detach && self.json {
            progress::json(&status);
            return Ok(());
        }
        if self.detach {
            println!(
                "{} has begun; `parsfs task` shows how it goes on",
                status.what
            );
            warn_of(&status.warnings);
            return Ok(());
        }
        target.follow(&status, self.json)
    }
}

/// Who does the work.
pub(super) enum Target {
    /// The daemon that has the volume mounted.
    Daemon(Box<Client>),
    /// This process, for a volume that is not mounted.
    Own(Arc<Volume>),
}

impl Target {
    /// Who has the volume of a config or a mount point.
    pub(super) fn find(volume: &Path, mode: Mode) -> Result<Target, Failure> {
        let path = mountinfo::absolute(volume)
            .map_err(Failure::io(format!("find {}", volume.display())))?;
        let mounted = mountinfo::at(&path).map_err(Failure::io("read the table of mounts"))?;
        if mounted.is_none() && path.is_file() {
            let config = Config::load(volume)?;
            let disks: Vec<PathBuf> = config.disks.iter().map(|disk| disk.path.clone()).collect();
            if let Some((daemon, _)) = Client::of_disks(&disks) {
                return Ok(Target::Daemon(Box::new(daemon)));
            }
            warn_of(&config.warnings());
            return Ok(Target::Own(Volume::open(&config, mode)?));
        }
        let mount = mount_at(&path)?;
        if is_dead(&path) {
            return Err(Failure::Other(format!(
                "the daemon of volume {} at {} has died; mount the volume again",
                mount.source,
                path.display()
            )));
        }
        Ok(Target::Daemon(Box::new(Client::of_mount(&mount)?)))
    }

    pub(super) fn ask(&mut self, request: &Request) -> Result<Response, Failure> {
        let response = match self {
            Target::Daemon(client) => client.ask_patiently(request)?,
            Target::Own(volume) => {
                tasks::answer(volume, request).ok_or_else(Failure::other_answer)?
            }
        };
        match response {
            Response::Error { message } => Err(Failure::Other(message)),
            response => Ok(response),
        }
    }

    /// How the volume and its disks are.
    pub(super) fn status(&mut self) -> Result<Status, Failure> {
        match self {
            Target::Daemon(client) => status_of(client),
            Target::Own(volume) => Ok(volume.status()?),
        }
    }

    fn task(&mut self, request: &Request) -> Result<Option<TaskStatus>, Failure> {
        match self.ask(request)? {
            Response::Task(status) => Ok(*status),
            _ => Err(Failure::other_answer()),
        }
    }

    /// Shows how a task goes on until it has ended, by its number: the next one may begin the moment it has.
    fn follow(mut self, begun: &TaskStatus, json: bool) -> Result<(), Failure> {
        let mut progress = Progress::new(json);
        // A daemon of an older version gives none.
        let number = Some(begun.number).filter(|number| *number > 0);
        let status = loop {
            let status = self
                .task(&Request::Task { number })?
                .ok_or_else(Failure::other_answer)?;
            if status.kind != begun.kind {
                self.close()?;
                progress.end(&status);
                return Err(Failure::Other(format!(
                    "{} has begun meanwhile, and how {} ended is not known; the daemon's log tells",
                    status.what, begun.what
                )));
            }
            if status.state != TaskState::Running {
                break status;
            }
            progress.show(&status);
            thread::sleep(ASK);
        };
        self.close()?;
        progress.end(&status);
        outcome(&status)
    }

    /// Ends what this process had open.
    pub(super) fn close(self) -> Result<(), Failure> {
        match self {
            Target::Own(volume) => Ok(volume.close()?),
            Target::Daemon(_) => Ok(()),
        }
    }
}

/// What became of a task that has been waited for.
fn outcome(status: &TaskStatus) -> Result<(), Failure> {
    match status.state {
        TaskState::Failed | TaskState::Cancelled | TaskState::Interrupted => {
            Err(Failure::TaskNotDone)
        }
        // A scrub that could not look at everything has not found that all is well.
        _ if status.kind == (TaskKind::Scrub {}) && status.unseen > 0 => Err(Failure::BeyondRepair),
        _ if status.gone > 0 || status.problem_count > 0 => Err(Failure::BeyondRepair),
        _ => Ok(()),
    }
}
