//! A task as it is kept and shown. Kept as JSON in the setting `task`, with its version.

use serde::{Deserialize, Serialize};

use crate::ids::DiskId;

const VERSION: u32 = 1;

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TaskKind {
    /// Everything is read and verified, and repaired.
    Scrub {},
    /// What disks lack that were away is written to them.
    Rebuild {},
    /// What a disk holds is moved to the others; then it leaves.
    Remove {
        /// The disk.
        disk: DiskId,
        /// Bytes that only it had, and does not give, are given up.
        give_up: bool,
        /// Other disks that do not come back: bytes that only it and they had are given up as well.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gone: Vec<DiskId>,
    },
    /// What a disk holds is moved to another one that has joined for it; then it leaves.
    Replace {
        /// The disk.
        disk: DiskId,
        /// The other one.
        by: DiskId,
        /// Bytes that only it had, and does not give, are given up.
        give_up: bool,
        /// Other disks that do not come back: bytes that only it and they had are given up as well.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gone: Vec<DiskId>,
    },
    /// A replacement was ended: what the new disk was given goes back to the old one, and the new one leaves.
    Return {
        /// The new disk.
        disk: DiskId,
        /// The old one.
        to: DiskId,
    },
    /// Blocks are moved until all disks are about equally full.
    Rebalance {},
}

/// How it is with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Under way; after a crash the next mount goes on.
    Running,
    /// It does not run, and the next mount for writing goes on. Never kept: what is kept is that it runs.
    Interrupted,
    /// Everything was looked at.
    Done,
    /// An administrator ended it.
    Cancelled,
    /// It could not do what it was for.
    Failed,
}

impl TaskState {
    /// The word that administrators see.
    pub fn word(self) -> &'static str {
        match self {
            TaskState::Running => "running",
            TaskState::Interrupted => "interrupted",
            TaskState::Done => "done",
            TaskState::Cancelled => "cancelled",
            TaskState::Failed => "failed",
        }
    }
}

/// A task as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskStatus {
    /// The version of this form.
    pub version: u32,
    /// Which task of this mount it is, from 1; 0 where it has not run in this mount. Never kept: a task that a mount goes on
    /// with has a number of that mount.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub number: u64,
    /// What is done.
    pub kind: TaskKind,
    /// The same in words: "the scrub".
    pub what: String,
    /// How it is with it.
    pub state: TaskState,
    /// When it began, in seconds since 1970 by the host's clock.
    pub begun: i64,
    /// When it ended.
    pub ended: Option<i64>,
    /// How long it has run, in seconds, all mounts together.
    pub seconds: f64,
    /// The most bytes a second.
    pub rate: Option<u64>,
    /// All files with numbers up to here are done.
    pub cursor: u64,
    /// Regular files.
    pub files_total: u64,
    /// Those walked over in this pass.
    pub files_done: u64,
    /// Bytes of files on all disks.
    pub bytes_total: u64,
    /// Those walked over in this pass.
    pub bytes_done: u64,
    /// Bytes walked over a second, in this mount.
    pub bytes_per_second: u64,
    /// How long it may still take.
    pub seconds_left: Option<u64>,
    /// Files that are being written and are waited for.
    pub waiting: u64,
    /// Bytes read and verified.
    pub verified: u64,
    /// Blocks, parity shards, manifests and copies of the metadata that were bad.
    pub bad: u64,
    /// Those of them that were written good again.
    pub repaired: u64,
    /// Blocks and shards that could not be looked at, since their disk is away or faulty.
    pub unseen: u64,
    /// Blocks that nothing can give any more.
    pub gone: u64,
    /// Bytes moved from one disk to another.
    pub moved: u64,
    /// Bytes of files that were given up, now or before.
    pub lost: u64,
    /// How many problems there were.
    pub problem_count: u64,
    /// The first of them.
    pub problems: Vec<String>,
    /// What is hardly meant about it, though it can be done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Zero stands for a number that is not there, which older versions do not know.
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl TaskStatus {
    pub(in crate::volume) fn new(
        kind: TaskKind,
        what: String,
        rate: Option<u64>,
        begun: i64,
    ) -> TaskStatus {
        TaskStatus {
            version: VERSION,
            number: 0,
            kind,
            what,
            state: TaskState::Running,
            begun,
            ended: None,
            seconds: 0.0,
            rate,
            cursor: 0,
            files_total: 0,
            files_done: 0,
            bytes_total: 0,
            bytes_done: 0,
            bytes_per_second: 0,
            seconds_left: None,
            waiting: 0,
            verified: 0,
            bad: 0,
            repaired: 0,
            unseen: 0,
            gone: 0,
            moved: 0,
            lost: 0,
            problem_count: 0,
            problems: Vec::new(),
            warnings: Vec::new(),
            error: None,
        }
    }

    pub(in crate::volume) fn encode(&self) -> Vec<u8> {
        let kept = TaskStatus {
            number: 0,
            ..self.clone()
        };
        // Plain fields of plain types: it cannot fail.
        serde_json::to_vec(&kept).unwrap_or_default()
    }

    /// A task from stored bytes; none if a newer version, or nobody, wrote them.
    pub(super) fn decode(bytes: &[u8]) -> Option<TaskStatus> {
        let status: TaskStatus = serde_json::from_slice(bytes).ok()?;
        (status.version == VERSION).then_some(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_comes_back_and_nothing_else_is_taken_for_one() {
        let kind = TaskKind::Replace {
            disk: DiskId(3),
            by: DiskId(9),
            give_up: false,
            gone: vec![DiskId(5)],
        };
        let mut status = TaskStatus::new(kind, "the replacement".into(), Some(5), 7);
        status.problems.push("one".into());
        let bytes = status.encode();
        assert_eq!(TaskStatus::decode(&bytes), Some(status.clone()));
        for length in 0..bytes.len() {
            assert_eq!(TaskStatus::decode(&bytes[..length]), None);
        }
        // A number is of one mount, and is not kept.
        status.number = 7;
        assert_eq!(status.encode(), bytes);
        status.version += 1;
        assert_eq!(TaskStatus::decode(&status.encode()), None);
    }
}
