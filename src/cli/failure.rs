//! Why a command failed, in the words of the room that failed, and with the program's exit code.

use std::io;

use crate::config::ConfigError;
use crate::mount::MountError;
use crate::mount::control::client::ControlError;
use crate::mount::options::OptionError;
use crate::snapshot::SnapshotError;
use crate::volume::VolumeError;

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The config cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The volume cannot do it.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The mount cannot be made, served or ended.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The daemon cannot be asked, or refused.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A mount option that cannot be used.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A snapshot that cannot be read.
    #[error("{what}: {source}{}", cause(source))]
    Snapshot {
        /// The file.
        what: String,
        /// Why.
        #[source]
        source: SnapshotError,
    },
    /// Options that do not go together.
    #[error("{0}")]
    Usage(String),
    /// Something that the system refused.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// What a daemon has told already, in its log and to who started it.
    #[error("the daemon failed; its log says why")]
    Told,
    /// A task failed or was cancelled, which is told already.
    #[error("the task is not done")]
    TaskNotDone,
    /// It was done, and something is not well: 3, told already.
    #[error("something is not well")]
    NotWell,
    /// It was done, and something is not well that cannot be mended: 4, told already.
    #[error("something cannot be mended")]
    BeyondRepair,
    /// In words.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// The exit code: 2 for what only the user can put right on the command line, 3 and 4 for what was found not to
    /// be well, 1 for everything else.
    pub(super) fn code(&self) -> u8 {
        match self {
            Failure::Option(_) | Failure::Usage(_) => 2,
            Failure::NotWell => 3,
            Failure::BeyondRepair => 4,
            _ => 1,
        }
    }

    /// A daemon that does not do as it was asked: one of another version, perhaps.
    pub(super) fn other_answer() -> Failure {
        Failure::Other("the daemon answers something else than was asked".to_string())
    }

    /// An error of the system, and what was tried.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
        let what = what.into();
        move |source| Failure::Io { what, source }
    }
}

/// What the system said, which the snapshot room's own words leave out.
fn cause(error: &SnapshotError) -> String {
    std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"))
}
