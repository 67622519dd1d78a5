//! Work on a volume as a whole, beside its service: scrub, rebuild, evacuation of a disk, rebalance. One *task* at a time
//! walks over all files by their numbers. How far it has come is kept in the metadata, so that the next mount goes on
//! where a crash ended it. It makes way for programs that read, and keeps to a rate.

mod evacuate;
mod hollow;
mod rebalance;
mod record;
mod relocate;
mod running;
mod scrub;
mod shards;
mod squeeze;
#[cfg(test)]
mod tests;
mod throttle;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use record::{TaskKind, TaskState, TaskStatus};
pub(super) use running::{Running, Walked};
pub(super) use squeeze::Squeezer;

use super::Volume;
use super::error::{Result, VolumeError};
use crate::ids::{DiskId, FileId};
use crate::meta::{FileKind, Inode, Key, Read, Records, Table, Timestamp, WriteRecords};
use crate::store::DiskState;

/// The setting that keeps the task.
const SETTING: &[u8] = b"task";

/// How often the task is written down.
const KEEP: Duration = Duration::from_secs(2);

/// Files looked up at once.
const BATCH: usize = 256;

/// How long files that are being written are left alone before the next try.
const PAUSE: Duration = Duration::from_secs(2);

/// How long a task that is to stop is waited for.
const STOPS: Duration = Duration::from_secs(10);

/// How long a disk that a rebuild left without something is left alone before the next one, unless the last one took longer.
const AGAIN: Duration = Duration::from_secs(600);

/// Tasks that have ended and can still be asked for by their numbers: whoever waits for one asks several times a second.
const PAST: usize = 16;

/// The task that runs, and the last one.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    now: Mutex<Option<Arc<Running>>>,
    /// Those of this mount before it, the last one last.
    past: Mutex<VecDeque<Arc<Running>>>,
    /// The number that the last one was given.
    number: AtomicU64,
    /// An administrator ended a rebuild: it is not begun again in this mount.
    no_rebuild: AtomicBool,
    /// The last rebuild that came to its end.
    tried: Mutex<Option<Tried>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A rebuild that came to its end, of use only where it left a disk without something.
#[derive(Debug)]
struct Tried {
    /// Since when each disk was in its state when it began.
    disks: Vec<(DiskId, u64)>,
    /// While no disk has changed since, none is begun before.
    until: Instant,
}

impl Volume {
    /// Begins a task. One runs at a time; a rebuild that the volume began by itself makes way.
    pub(super) fn begin_task(
        &self,
        kind: TaskKind,
        what: String,
        rate: Option<u64>,
    ) -> Result<TaskStatus> {
        self.begin_task_with(kind, what, rate, Vec::new())
    }

    /// The same with what is to be told of it.
    pub(super) fn begin_task_with(
        &self,
        kind: TaskKind,
        what: String,
        rate: Option<u64>,
        warnings: Vec<String>,
    ) -> Result<TaskStatus> {
        self.check_writable()?;
        let begins_by_itself = kind == (TaskKind::Rebuild {});
        let status = TaskStatus {
            warnings,
            ..TaskStatus::new(kind, what, rate, Timestamp::now().seconds)
        };
        loop {
            if !begins_by_itself {
                self.end_rebuild();
            }
            match self.launch(status.clone()) {
                // The volume was quicker, and has begun another rebuild.
                Err(error) if error.errno() == libc::EBUSY && !begins_by_itself => {
                    if self.runs_what_was_asked_for() {
                        return Err(error);
                    }
                }
                launched => return launched,
            }
        }
    }

    /// Whether a task is under way that an administrator began.
    fn runs_what_was_asked_for(&self) -> bool {
        let now = self.tasks.now.lock();
        let running = now.as_ref().filter(|running| !running.is_over());
        running.is_some_and(|running| running.status.lock().kind != (TaskKind::Rebuild {}))
    }

    fn launch(&self, mut status: TaskStatus) -> Result<TaskStatus> {
        let mut now = self.tasks.now.lock();
        if self.bell.is_stopped() {
            return Err(VolumeError::new(libc::EIO, "the volume is being closed"));
        }
        if let Some(running) = now.as_ref().filter(|running| !running.is_over()) {
            return Err(VolumeError::new(
                libc::EBUSY,
                format!(
                    "{} is under way; wait for it, or end it with `parsfs task --cancel`",
                    running.status.lock().what
                ),
            ));
        }
        let me = self
            .me
            .upgrade()
            .ok_or_else(|| VolumeError::new(libc::EIO, "the volume is closed"))?;
        status.number = self.tasks.number.fetch_add(1, Ordering::Relaxed) + 1;
        let running = Arc::new(Running::new(status.clone()));
        self.keep_task(&running)?;
        // Whoever began it may rely on it from now on, over a crash too.
        self.meta.sync()?;
        let thread = {
            let running = Arc::clone(&running);
            std::thread::Builder::new()
                .name("task".into())
                .spawn(move || me.run_task(&running))
                .map_err(|error| {
                    VolumeError::new(libc::EAGAIN, format!("no thread for a task: {error}"))
                })?
        };
        if let Some(before) = now.replace(running) {
            let mut past = self.tasks.past.lock();
            past.push_back(before);
            if past.len() > PAST {
                past.pop_front();
            }
        }
        // The one before has ended.
        if let Some(before) = self.tasks.thread.lock().replace(thread)
            && before.is_finished()
        {
            let _ = before.join();
        }
        tracing::info!(what = status.what, "a task begins");
        Ok(status)
    }

    /// Goes on with the task that the last mount did not end.
    pub(super) fn resume_task(&self) -> Result<()> {
        let Some(status) = self.kept_task()? else {
            return Ok(());
        };
        if status.state != TaskState::Running {
            return Ok(());
        }
        match &status.kind {
            // Begun anew for the disks that are away or back now.
            TaskKind::Rebuild {} => return Ok(()),
            TaskKind::Remove { disk, .. }
            | TaskKind::Replace { disk, .. }
            | TaskKind::Return { disk, .. } => {
                self.disks.set_leaving(*disk, true);
            }
            TaskKind::Scrub {} | TaskKind::Rebalance {} => {}
        }
        self.launch(status)?;
        Ok(())
    }

    /// Whether a task is under way.
    fn task_runs(&self) -> bool {
        let now = self.tasks.now.lock();
        now.as_ref().is_some_and(|running| !running.is_over())
    }

    /// Begins to write what disks lack that were away, unless something else is under way.
    pub(super) fn begin_rebuild(&self) {
        if self.task_runs()
            || self.bell.is_stopped()
            || self.tasks.no_rebuild.load(Ordering::Acquire)
            || self.check_writable().is_err()
            || self.was_tried()
        {
            return;
        }
        let names: Vec<String> = self
            .disks
            .list()
            .into_iter()
            .filter(|disk| disk.state == DiskState::Rebuilding)
            .map(|disk| disk.name)
            .collect();
        let what = format!("the rebuild of {}", names.join(", "));
        if let Err(error) = self.begin_task(TaskKind::Rebuild {}, what, None) {
            tracing::debug!(%error, "no rebuild is begun");
        }
    }

    fn disks_since(&self) -> Vec<(DiskId, u64)> {
        let list = self.disks.list().into_iter();
        list.map(|disk| (disk.id, disk.since)).collect()
    }

    /// Whether another rebuild would do no better than the last one yet.
    fn was_tried(&self) -> bool {
        let tried = self.tasks.tried.lock();
        let again = tried.as_ref().filter(|tried| Instant::now() < tried.until);
        again.is_some_and(|tried| tried.disks == self.disks_since())
    }

    /// Ends a rebuild for something more urgent; it is begun anew afterwards.
    pub(super) fn end_rebuild(&self) {
        let running = self.tasks.now.lock().clone();
        let Some(running) = running.filter(|running| !running.is_over()) else {
            return;
        };
        if running.status.lock().kind == (TaskKind::Rebuild {}) {
            running.cancelled.store(true, Ordering::Release);
            self.await_task(&running);
        }
    }

    fn await_task(&self, running: &Running) {
        let mut status = running.status.lock();
        while status.state == TaskState::Running && !running.stopped.load(Ordering::Acquire) {
            running
                .ended
                .wait_for(&mut status, Duration::from_millis(200));
        }
    }

    /// The task that runs, or the last one. One that was under way at the end of the last mount, and was not gone on with,
    /// is interrupted.
    pub fn task(&self) -> Result<Option<TaskStatus>> {
        let running = self.tasks.now.lock().clone();
        if let Some(running) = running {
            return Ok(Some(running.status()));
        }
        let mut kept = self.kept_task()?;
        if let Some(status) = &mut kept
            && status.state == TaskState::Running
        {
            // A rebuild is begun anew where one is needed.
            let goes_on = self.read_only || status.kind != (TaskKind::Rebuild {});
            status.state = match goes_on {
                true => TaskState::Interrupted,
                false => TaskState::Cancelled,
            };
        }
        Ok(kept)
    }

    /// The task with a number, as long as it is known: the one that runs, or one that ended not long before it. Whoever waits
    /// for a task asks so, since another may begin the moment that one is done.
    pub fn task_of(&self, number: u64) -> Result<TaskStatus> {
        let now = self.tasks.now.lock();
        let past = self.tasks.past.lock();
        now.iter()
            .chain(past.iter().rev())
            .map(|running| running.status())
            .find(|status| status.number == number)
            .ok_or_else(|| {
                VolumeError::new(
                    libc::ENOENT,
                    format!(
                        "how task {number} ended is not known any more; the log tells, and `parsfs status` how the disks are"
                    ),
                )
            })
    }

    /// Refuses to change a task that does not run, and that the next mount goes on with: it would not hear of it.
    fn check_not_interrupted(&self) -> Result<()> {
        match self.task()? {
            Some(status) if status.state == TaskState::Interrupted => Err(VolumeError::new(
                libc::EAGAIN,
                format!(
                    "{} does not run now, and goes on at the next mount for writing; mount the volume, and try again",
                    status.what
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Ends the task that runs. What it has done stays, but for a replacement: where the old disk works, what has moved
    /// goes back to it and the new one leaves, which is a task of its own.
    pub fn cancel_task(&self) -> Result<Option<TaskStatus>> {
        self.check_not_interrupted()?;
        let running = self.tasks.now.lock().clone();
        if let Some(running) = running.filter(|running| !running.is_over()) {
            let kind = running.status.lock().kind.clone();
            if kind == (TaskKind::Rebuild {}) {
                self.tasks.no_rebuild.store(true, Ordering::Release);
            }
            running.cancelled.store(true, Ordering::Release);
            self.await_task(&running);
            let state = running.status.lock().state;
            if let (TaskKind::Replace { disk, by, .. }, TaskState::Cancelled) = (kind, state)
                && self.disks.state(disk).takes_writes()
            {
                let what = format!(
                    "the return to disk {} of what disk {} was given",
                    self.disks.name(disk),
                    self.disks.name(by)
                );
                let rate = running.status.lock().rate;
                self.begin_task(TaskKind::Return { disk: by, to: disk }, what, rate)?;
            }
        }
        self.task()
    }

    /// Has the task keep to a rate, in bytes a second; without one it goes as fast as it can.
    pub fn set_task_rate(&self, rate: Option<u64>) -> Result<Option<TaskStatus>> {
        self.check_not_interrupted()?;
        let running = self.tasks.now.lock().clone();
        if let Some(running) = running {
            running.throttle.set(rate);
            running.note(|status| status.rate = rate);
        }
        self.task()
    }

    /// Ends the task's thread for a close; the next mount goes on with the task. Waits no longer than `STOPS`, since a disk
    /// may hang; tells whether the thread has ended.
    pub(super) fn stop_task(&self) -> bool {
        let running = self.tasks.now.lock().clone();
        if let Some(running) = running {
            running.stopped.store(true, Ordering::Release);
        }
        let thread = self.tasks.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            let since = Instant::now();
            while !thread.is_finished() {
                if since.elapsed() > STOPS {
                    tracing::warn!(
                        "a task waits for a disk, and is left behind; the next mount goes on with it"
                    );
                    return false;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            // A task that panicked has logged it.
            let _ = thread.join();
        }
        true
    }

    fn kept_task(&self) -> Result<Option<TaskStatus>> {
        let Some(bytes) = self.meta.view().setting(SETTING)? else {
            return Ok(None);
        };
        Ok(TaskStatus::decode(&bytes))
    }

    fn keep_task(&self, running: &Running) -> Result<()> {
        let status = running.status();
        self.meta.update(|update| -> Result<()> {
            update.put_setting(SETTING, &status.encode());
            Ok(())
        })?;
        *running.kept.lock() = Instant::now();
        Ok(())
    }

    fn run_task(self: Arc<Self>, running: &Arc<Running>) {
        let disks = self.disks_since();
        let result = self.do_task(running);
        let ended_early = !matches!(result, Ok(true));
        let cancelled = running.cancelled.load(Ordering::Acquire);
        if ended_early && running.stopped.load(Ordering::Acquire) && !cancelled {
            // The next mount goes on from what was kept.
            if let Err(error) = self.keep_task(running) {
                tracing::debug!(%error, "how far a task came is not kept");
            }
            running.ended.notify_all();
            return;
        }
        let is_rebuild = running.status.lock().kind == (TaskKind::Rebuild {});
        if is_rebuild && !cancelled {
            // Known before anybody finds that it is over.
            let until = Instant::now() + AGAIN.max(running.begun.elapsed());
            *self.tasks.tried.lock() = Some(Tried { disks, until });
        }
        let seconds = running.status().seconds;
        running.note(|status| {
            status.seconds = seconds;
            status.seconds_left = None;
            status.ended = Some(Timestamp::now().seconds);
            status.waiting = 0;
            match &result {
                Ok(false) => status.state = TaskState::Cancelled,
                Err(_) if cancelled => status.state = TaskState::Cancelled,
                Ok(true) => {
                    status.state = TaskState::Done;
                    status.bytes_done = status.bytes_total;
                }
                Err(error) => {
                    status.state = TaskState::Failed;
                    status.error = Some(error.to_string());
                }
            }
        });
        let status = running.status();
        match &status.error {
            Some(error) => tracing::error!(what = status.what, error, "a task failed"),
            None => tracing::info!(
                what = status.what,
                state = status.state.word(),
                repaired = status.repaired,
                moved = status.moved,
                problems = status.problem_count,
                "a task ended"
            ),
        }
        if let Err(error) = self.keep_task(running) {
            tracing::warn!(%error, "how a task ended is not kept");
        }
        running.ended.notify_all();
        self.bell.ring();
    }

    /// Says whether it came to its end.
    fn do_task(&self, running: &Arc<Running>) -> Result<bool> {
        let kind = running.status.lock().kind.clone();
        let mut work: Box<dyn Work> = match &kind {
            TaskKind::Scrub {} => {
                let partial = running.status.lock().cursor > 0;
                Box::new(scrub::Scrub::whole(self, partial))
            }
            TaskKind::Rebuild {} => Box::new(scrub::Scrub::of_rebuilding(self)),
            TaskKind::Remove {
                disk,
                give_up,
                gone,
            } => {
                let give_up = given_up(*disk, *give_up, gone);
                Box::new(evacuate::Evacuate::new(self, *disk, None, give_up))
            }
            TaskKind::Replace {
                disk,
                by,
                give_up,
                gone,
            } => {
                let give_up = given_up(*disk, *give_up, gone);
                Box::new(evacuate::Evacuate::new(self, *disk, Some(*by), give_up))
            }
            TaskKind::Return { disk, to } => {
                Box::new(evacuate::Evacuate::new(self, *disk, Some(*to), Vec::new()))
            }
            TaskKind::Rebalance {} => Box::new(rebalance::Rebalance::new(self)?),
        };
        let (files, bytes) = self.task_size()?;
        running.note(|status| {
            status.files_total = files;
            status.bytes_total = bytes;
        });
        let result = self.walk(running, work.as_mut());
        if running.ends() {
            if running.cancelled.load(Ordering::Acquire) {
                work.cancelled(self, running);
            }
            return Ok(false);
        }
        result?;
        let finished = work.finish(self, running)?;
        if !finished && running.cancelled.load(Ordering::Acquire) {
            work.cancelled(self, running);
        }
        Ok(finished)
    }

    fn walk(&self, running: &Running, work: &mut dyn Work) -> Result<()> {
        work.begin(self, running)?;
        let mut cursor = FileId(running.status.lock().cursor);
        let mut later: Vec<FileId> = Vec::new();
        loop {
            let batch = self.files_after(cursor)?;
            if batch.is_empty() {
                break;
            }
            for (file, stored) in batch {
                let before = running.status.lock().bytes_done;
                let walked = self.walk_file(running, work, file);
                if running.ends() {
                    return Ok(());
                }
                if walked == Walked::Later {
                    later.push(file);
                }
                cursor = file;
                // After a crash what is still to be done later is done again.
                let done = later.first().map_or(file.0, |first| first.0 - 1);
                running.note(|status| {
                    status.cursor = done;
                    status.files_done += 1;
                    status.bytes_done = before + stored;
                });
                if running.kept.lock().elapsed() > KEEP {
                    self.keep_task(running)?;
                }
            }
        }
        while !later.is_empty() {
            running.note(|status| status.waiting = later.len() as u64);
            let until = Instant::now() + PAUSE;
            while Instant::now() < until && !running.ends() {
                std::thread::sleep(Duration::from_millis(50));
            }
            if running.ends() {
                return Ok(());
            }
            later.retain(|file| self.walk_file(running, work, *file) == Walked::Later);
        }
        running.note(|status| status.waiting = 0);
        Ok(())
    }

    fn walk_file(&self, running: &Running, work: &mut dyn Work, file: FileId) -> Walked {
        match work.file(self, running, file) {
            Ok(walked) => walked,
            // It is gone, and so is what there was to do.
            Err(error) if error.errno() == libc::ENOENT => Walked::Done,
            Err(error) => {
                running.problem(format!("{}: {error}", self.called(file)));
                Walked::Done
            }
        }
    }

    /// Files and their bytes on all disks.
    fn task_size(&self) -> Result<(u64, u64)> {
        let view = self.meta.view();
        let (mut files, mut bytes) = (0, 0);
        for found in view.files() {
            let (_, inode) = found?;
            if inode.kind == FileKind::Regular {
                files += 1;
                bytes += inode.stored;
            }
        }
        Ok((files, bytes))
    }

    /// The next regular files with their bytes on the disks.
    fn files_after(&self, cursor: FileId) -> Result<Vec<(FileId, u64)>> {
        let view = self.meta.view();
        let prefix = Key::table_prefix(Table::Inode);
        let mut from = Key::file(Table::Inode, cursor);
        let mut found = Vec::new();
        while found.len() < BATCH {
            let keys = view.range(&prefix, std::ops::Bound::Excluded(&from), BATCH)?;
            let Some((last, _)) = keys.last() else { break };
            from = last.clone();
            for (key, value) in &keys {
                let number = key.in_table().try_into().map(u64::from_be_bytes);
                let inode = Inode::decode(value);
                if let (Ok(number), Some(inode)) = (number, inode)
                    && inode.kind == FileKind::Regular
                {
                    found.push((FileId(number), inode.stored));
                }
            }
        }
        Ok(found)
    }

    /// What a file is called, for an administrator.
    pub(super) fn called(&self, file: FileId) -> String {
        let paths = self.paths(file).unwrap_or_default();
        match paths.first() {
            Some(path) => String::from_utf8_lossy(path).into_owned(),
            None => format!("file {file}"),
        }
    }
}

/// The disks whose bytes are given up where they cannot be had.
fn given_up(disk: DiskId, give_up: bool, gone: &[DiskId]) -> Vec<DiskId> {
    match give_up {
        true => std::iter::once(disk).chain(gone.iter().copied()).collect(),
        false => Vec::new(),
    }
}

/// What a kind of task does.
trait Work {
    /// Before the files.
    fn begin(&mut self, volume: &Volume, running: &Running) -> Result<()>;

    /// One file.
    fn file(&mut self, volume: &Volume, running: &Running, file: FileId) -> Result<Walked>;

    /// After the files. False when it was ended meanwhile.
    fn finish(&mut self, volume: &Volume, running: &Running) -> Result<bool>;

    /// An administrator ended it.
    fn cancelled(&mut self, _volume: &Volume, _running: &Running) {}
}
