//! A task under way: what is known of it, whether it is to end, and the pace that it keeps to. Knows the volume by its
//! readers, for whom it makes way.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::record::{TaskKind, TaskState, TaskStatus};
use super::throttle::Throttle;
use crate::meta::Timestamp;
use crate::volume::Volume;

/// Problems that are told one by one.
const PROBLEMS: usize = 100;

/// A task under way.
#[derive(Debug)]
pub(in crate::volume) struct Running {
    pub(super) status: Mutex<TaskStatus>,
    pub(super) ended: Condvar,
    /// An administrator wants it to end.
    pub(super) cancelled: AtomicBool,
    /// The volume is closed; the next mount goes on.
    pub(super) stopped: AtomicBool,
    pub(super) throttle: Throttle,
    pub(super) begun: Instant,
    /// Seconds that it ran in earlier mounts.
    before: f64,
    /// Bytes walked over in earlier mounts.
    done_before: u64,
    pub(super) kept: Mutex<Instant>,
    reads: AtomicU64,
}

/// What came of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::volume) enum Walked {
    /// All that there was to do.
    Done,
    /// It is being written: what is left is for later.
    Later,
}

impl Running {
    pub(super) fn new(status: TaskStatus) -> Running {
        Running {
            throttle: Throttle::new(status.rate),
            before: status.seconds,
            done_before: status.bytes_done,
            status: Mutex::new(status),
            ended: Condvar::new(),
            cancelled: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            begun: Instant::now(),
            kept: Mutex::new(Instant::now()),
            reads: AtomicU64::new(0),
        }
    }

    /// Of work like a task's that nobody began, and that is not kept.
    pub(super) fn of_no_task(what: &str) -> Running {
        let status = TaskStatus::new(
            TaskKind::Rebalance {},
            what.to_owned(),
            None,
            Timestamp::now().seconds,
        );
        Running::new(status)
    }

    pub(super) fn is_over(&self) -> bool {
        self.status.lock().state != TaskState::Running
    }

    /// Whether it is to end now.
    pub(in crate::volume) fn ends(&self) -> bool {
        self.cancelled.load(Ordering::Acquire) || self.stopped.load(Ordering::Acquire)
    }

    /// Notes what was done.
    pub(in crate::volume) fn note(&self, note: impl FnOnce(&mut TaskStatus)) {
        note(&mut self.status.lock());
    }

    /// Notes what could not be done.
    pub(in crate::volume) fn problem(&self, what: String) {
        tracing::warn!(what, "a task met with a problem");
        let mut status = self.status.lock();
        status.problem_count += 1;
        if status.problems.len() < PROBLEMS {
            status.problems.push(what);
        }
    }

    /// Waits as the rate wants it after so many bytes, and makes way for programs that read.
    pub(in crate::volume) fn pace(&self, volume: &Volume, bytes: u64, took: Duration) {
        let reads = volume.disks.reads();
        if self.reads.swap(reads, Ordering::Relaxed) != reads {
            std::thread::sleep(took.min(Duration::from_millis(100)));
        }
        self.throttle.spend(bytes, &|| self.ends());
    }

    /// The status as of now.
    pub(super) fn status(&self) -> TaskStatus {
        let mut status = self.status.lock().clone();
        if status.state == TaskState::Running {
            let here = self.begun.elapsed().as_secs_f64();
            status.seconds = self.before + here;
            let done = status.bytes_done.saturating_sub(self.done_before) as f64;
            status.bytes_per_second = if here > 0.0 { (done / here) as u64 } else { 0 };
            let left = status.bytes_total.saturating_sub(status.bytes_done);
            status.seconds_left = left.checked_div(status.bytes_per_second);
        }
        status
    }
}
