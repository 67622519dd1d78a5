//! How commands talk to a running mount: a socket a mount in the runtime directory, one JSON value a line, one answer a
//! request. The socket is named after the volume and the mount's device, which stat(2) of any file in the mount tells.

pub mod client;
mod litter;
pub mod server;
pub mod tasks;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::volume::{Inspection, Status, TaskStatus};

/// The longest request that is listened to.
pub const REQUEST_MAX: u64 = 16 << 10;

/// What a command may ask: `{"status":{}}`, `{"inspect":{"file":7}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Who serves?
    Pid {},
    /// How are disks and files?
    Status {},
    /// What is a file made of?
    Inspect {
        /// Its number, as stat(2) gives it.
        file: u64,
    },
    /// Commit everything that is open, and answer when it is done.
    Commit {},
    /// How is the task that runs, or the last one?
    Task {
        /// The one with this number, though another has begun since.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        number: Option<u64>,
    },
    /// End the task that runs.
    CancelTask {},
    /// Have the task keep to so many bytes a second; without a rate it goes as fast as it can.
    TaskRate {
        /// Bytes a second.
        rate: Option<u64>,
    },
    /// Begin to verify and repair everything.
    Scrub {
        /// Bytes a second.
        rate: Option<u64>,
    },
    /// Begin to move blocks until all disks are about equally full.
    Rebalance {
        /// Bytes a second.
        rate: Option<u64>,
    },
    /// Have an empty directory become a disk.
    AddDisk {
        /// The directory.
        path: PathBuf,
        /// What it is to be called.
        name: Option<String>,
    },
    /// Begin to move what a disk holds to the others; then it leaves.
    RemoveDisk {
        /// Its name or path.
        disk: String,
        /// Bytes that only it had, and does not give, are given up.
        give_up: bool,
        /// Other disks that do not come back.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gone: Vec<String>,
        /// Bytes a second.
        rate: Option<u64>,
    },
    /// Begin to move what a disk holds to an empty directory that joins for it; then it leaves.
    ReplaceDisk {
        /// Its name or path.
        disk: String,
        /// The directory of the new one.
        path: PathBuf,
        /// What the new one is to be called.
        name: Option<String>,
        /// Bytes that only the old one had, and does not give, are given up.
        give_up: bool,
        /// Other disks that do not come back.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gone: Vec<String>,
        /// Bytes a second.
        rate: Option<u64>,
    },
    /// Have a disk that was suspect, faulty or missing take part again.
    DiskOnline {
        /// Its name or path.
        disk: String,
    },
    /// Answer when the mount has ended and everything is committed. Who closes its end of the connection is not told.
    AwaitEnd {},
}

/// The answers, in the order of the requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To `Pid`.
    Pid(Identity),
    /// To `Status`.
    Status(Status),
    /// To `Inspect`.
    Inspection(Inspection),
    /// To `Commit`.
    Committed {},
    /// To `AwaitEnd`, at once: the end will be told.
    Awaited {},
    /// To whatever has to do with a task; none if there never was one.
    Task(Box<Option<TaskStatus>>),
    /// To `AddDisk` and `DiskOnline`: what was done, in words.
    Said {
        /// The words.
        message: String,
    },
    /// To `AwaitEnd`: the process ends now.
    Ended {
        /// Why the last commit failed, if it did.
        error: Option<String>,
    },
    /// To anything: it could not be done, or not be understood.
    Error {
        /// Why.
        message: String,
    },
}

/// Which mount this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The daemon.
    pub pid: u32,
    /// The volume's id.
    pub volume: String,
    /// The volume's name.
    pub name: String,
    /// The config it was mounted with.
    pub config: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Its disks' directories.
    pub disks: Vec<PathBuf>,
    /// Whether this mount cannot write.
    pub read_only: bool,
}

/// Where a user's mounts have their sockets, and their logs where there is no better place.
pub fn runtime_directory(user: u32) -> PathBuf {
    match user {
        0 => PathBuf::from("/run/parsfs"),
        user => PathBuf::from(format!("/run/user/{user}/parsfs")),
    }
}

/// This process's user.
pub fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// This user's runtime directory, made if need be; for nobody else to enter.
pub fn make_runtime_directory() -> io::Result<PathBuf> {
    let path = runtime_directory(user());
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(&path)?;
    if !metadata.is_dir() || metadata.uid() != user() {
        return Err(io::Error::other(format!(
            "{} is not a directory of this user",
            path.display()
        )));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(path)
}

/// How the socket's name ends for a mount's device.
fn ending(device: &str) -> String {
    format!("-{}.sock", device.replace(':', "."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_written_as_told() {
        for (text, request) in [
            (r#"{"pid":{}}"#, Request::Pid {}),
            (r#"{"status":{}}"#, Request::Status {}),
            (r#"{"inspect":{"file":7}}"#, Request::Inspect { file: 7 }),
            (r#"{"commit":{}}"#, Request::Commit {}),
            (r#"{"await_end":{}}"#, Request::AwaitEnd {}),
            (r#"{"scrub":{"rate":null}}"#, Request::Scrub { rate: None }),
            (
                r#"{"remove_disk":{"disk":"a","give_up":false,"rate":5}}"#,
                Request::RemoveDisk {
                    disk: "a".to_string(),
                    give_up: false,
                    gone: Vec::new(),
                    rate: Some(5),
                },
            ),
            (
                r#"{"remove_disk":{"disk":"a","give_up":true,"gone":["b"],"rate":null}}"#,
                Request::RemoveDisk {
                    disk: "a".to_string(),
                    give_up: true,
                    gone: vec!["b".to_string()],
                    rate: None,
                },
            ),
        ] {
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in [
            "",
            "{}",
            "null",
            "[]",
            r#"{"inspect":{}}"#,
            r#"{"inspect":{"file":-1}}"#,
            r#"{"inspect":{"file":1,"path":"/"}}"#,
            r#"{"status":{},"pid":{}}"#,
            r#"{"reboot":{}}"#,
            "{\"status\":{}",
            "\u{0}\u{1}",
        ] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
        let deep = "[".repeat(10_000);
        assert!(serde_json::from_str::<Request>(&deep).is_err());
    }

    #[test]
    fn names_end_with_the_device() {
        assert_eq!(ending("0:52"), "-0.52.sock");
    }
}
