//! Segments being written, and the one ordered writer of each disk. Whoever has bytes for a disk hands
//! them to its queue; they are appended in that order by the disk's own thread, and the giver is told
//! where they lie, or why not, through a callback on that thread.

mod watch;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use self::watch::{Waiting, Watch};
use super::disks::{Disks, SOON};
use super::room::Room;
use crate::disk::{AT_LAST, Appender, Disk, DiskError, ObjectName};
use crate::ids::DiskId;
use crate::queue::Queue;

/// Bytes appended before the medium is asked to begin writing them down.
const WRITE_BACK: u64 = 4 << 20;

/// The last bytes that it is not yet asked for while more are to come and nobody waits for the commit: a writer whose
/// guest stands still needs the processors that writing them down takes. With more behind it the disk has to keep up,
/// so that not much is left to do at the commit, and no more of the system's memory is taken.
const HELD_BACK: u64 = 64 << 20;

/// Bytes that are made durable at once when their disk has nothing else to do: a commit, and the cache of the device,
/// then have the less left. A disk that is behind is not held up so.
const EARLY_SYNC: u64 = 8 << 20;

/// The most blocks that are appended with one write.
const TOGETHER: usize = 16;

/// Why bytes did not reach a segment.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct AppendError {
    /// The disk's own words.
    pub reason: Arc<str>,
    /// Whether the disk has no room, as against being broken.
    pub full: bool,
    /// Whether this process or its machine failed, and the disk is well.
    pub own: bool,
}

impl AppendError {
    /// Something is wrong with the disk.
    pub fn new(reason: impl Into<Arc<str>>) -> AppendError {
        AppendError {
            reason: reason.into(),
            full: false,
            own: false,
        }
    }
}

impl From<&DiskError> for AppendError {
    fn from(error: &DiskError) -> Self {
        AppendError {
            reason: error.to_string().into(),
            full: error.is_full(),
            own: error.is_own(),
        }
    }
}

/// One append-only object of one disk while it grows.
#[derive(Debug)]
pub struct Segment {
    disk: Arc<dyn Disk>,
    id: DiskId,
    object: ObjectName,
    /// Nothing is held back.
    eager: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Nothing appended yet: the object does not exist.
    Unborn,
    Growing {
        appender: Box<dyn Appender>,
        end: u64,
        begun: u64,
        synced: u64,
    },
    /// All that there will be is durable, and no file is open for it any more.
    Closed,
    Failed(AppendError),
}

impl Segment {
    /// A segment that is created by its first append. `eager`: it is written down as it comes.
    pub fn new(id: DiskId, disk: Arc<dyn Disk>, object: ObjectName, eager: bool) -> Arc<Segment> {
        Arc::new(Segment {
            disk,
            id,
            object,
            eager: AtomicBool::new(eager),
            state: Mutex::new(State::Unborn),
        })
    }

    /// The disk it lies on.
    pub fn disk(&self) -> DiskId {
        self.id
    }

    /// Whether it lies on this medium: a disk that was brought back may be another one, and does not have what the old one took.
    pub fn is_on(&self, medium: &Arc<dyn Disk>) -> bool {
        Arc::ptr_eq(&self.disk, medium)
    }

    fn append(&self, parts: &[&[u8]]) -> Result<u64, AppendError> {
        let mut state = self.state.lock();
        if let State::Unborn = *state {
            *state = match self.disk.create(self.object) {
                Ok(appender) => State::Growing {
                    appender,
                    end: 0,
                    begun: 0,
                    synced: 0,
                },
                // Nothing was made, and the next append may have more luck.
                Err(error) if error.is_own() => return Err((&error).into()),
                Err(error) => State::Failed((&error).into()),
            };
        }
        let result = match &mut *state {
            State::Growing {
                appender,
                end,
                begun,
                ..
            } => match appender.append(parts) {
                Ok(offset) => {
                    *end = offset + parts.iter().map(|part| part.len() as u64).sum::<u64>();
                    let but = self.held_back();
                    if *end - *begun >= WRITE_BACK + but {
                        appender.start_sync(but);
                        *begun = *end - but;
                    }
                    Ok(offset)
                }
                Err(error) => Err(AppendError::from(&error)),
            },
            State::Failed(error) => return Err(error.clone()),
            State::Unborn => Err(AppendError::new("the segment was not created")),
            State::Closed => {
                // Its end may be elsewhere by now: a task may have put something behind it.
                return Err(AppendError {
                    own: true,
                    ..AppendError::new("the segment takes nothing more")
                });
            }
        };
        if let Err(error) = &result {
            // How much arrived is not known, so nothing may follow.
            *state = State::Failed(error.clone());
        }
        result
    }

    /// Bytes at the end that the medium is not asked for yet.
    fn held_back(&self) -> u64 {
        match (self.eager.load(Ordering::Relaxed), self.object) {
            (true, _) => 0,
            // There is less of it, and none of it before a window is full.
            (false, ObjectName::Parity(_)) => HELD_BACK / 4,
            (false, _) => HELD_BACK,
        }
    }

    /// Has all of it written down from now on, and does not wait.
    fn write_down(&self) {
        self.eager.store(true, Ordering::Relaxed);
        if let State::Growing {
            appender,
            end,
            begun,
            ..
        } = &mut *self.state.lock()
            && *end > *begun
        {
            appender.start_sync(0);
            *begun = *end;
        }
    }

    fn sync(&self) -> Result<(), AppendError> {
        self.sync_from(0)
    }

    /// Makes durable what was appended, and lets go of the file: nothing more is to come.
    fn close(&self) -> Result<(), AppendError> {
        self.sync()?;
        let mut state = self.state.lock();
        if let State::Growing { .. } = *state {
            *state = State::Closed;
        }
        Ok(())
    }

    /// Whether its file was let go of.
    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        matches!(*self.state.lock(), State::Closed)
    }

    /// Makes durable what was appended, if it is `least` bytes or more.
    fn sync_from(&self, least: u64) -> Result<(), AppendError> {
        let mut state = self.state.lock();
        let result = match &mut *state {
            State::Unborn | State::Closed => Ok(()),
            State::Growing { end, synced, .. } if *end - *synced < least => Ok(()),
            State::Growing {
                appender,
                end,
                synced,
                ..
            } => {
                *synced = *end;
                appender.sync().map_err(|error| AppendError::from(&error))
            }
            State::Failed(error) => Err(error.clone()),
        };
        if let Err(error) = &result {
            // A sync that failed may have dropped what it could not write: never ask again.
            *state = State::Failed(error.clone());
        }
        result
    }
}

/// What is to be appended: shared with whoever still needs it in memory.
pub trait Payload: Send + Sync {
    /// Adds the slices, one after the other.
    fn parts<'a>(&'a self, parts: &mut Vec<&'a [u8]>);
}

type Appended = Box<dyn FnOnce(Result<u64, AppendError>) + Send>;
type Synced = Box<dyn FnOnce(Result<(), AppendError>) + Send>;

enum Job {
    Append {
        segment: Arc<Segment>,
        payload: Arc<dyn Payload>,
        done: Appended,
    },
    WriteDown(Vec<Arc<Segment>>),
    Close(Vec<Arc<Segment>>),
    Sync {
        segments: Vec<Arc<Segment>>,
        done: Synced,
    },
}

impl Job {
    /// Whether all its segments lie on this medium.
    fn is_on(&self, medium: &Arc<dyn Disk>) -> bool {
        match self {
            Job::Append { segment, .. } => segment.is_on(medium),
            Job::WriteDown(segments) | Job::Close(segments) | Job::Sync { segments, .. } => {
                segments.iter().all(|segment| segment.is_on(medium))
            }
        }
    }

    /// Who waits for it.
    fn wait(self) -> Waiting {
        match self {
            Job::Append { done, .. } => Waiting::Append(done),
            Job::WriteDown(_) | Job::Close(_) => Waiting::Nobody,
            Job::Sync { done, .. } => Waiting::Sync(done),
        }
    }
}

/// What a disk takes no more.
#[must_use]
pub struct Refused {
    id: DiskId,
    job: Job,
}

impl Refused {
    /// Tells whoever waits for it.
    pub fn tell(self) {
        let gone = AppendError::new(format!("disk {} has no writer", self.id));
        self.job.wait().fail(&gone);
    }
}

/// The ordered writers of all disks. A disk's writer is started when it is first needed.
pub struct DiskWriters {
    disks: Arc<Disks>,
    room: Arc<Room>,
    writers: Mutex<Writers>,
}

#[derive(Default)]
struct Writers {
    open: HashMap<DiskId, Arc<Writer>>,
    threads: Vec<(JoinHandle<()>, Arc<Writer>)>,
    stopped: bool,
}

/// One disk's writer.
struct Writer {
    medium: Arc<dyn Disk>,
    queue: Queue<Job>,
    watch: Watch,
}

impl Writer {
    /// The disk hangs in a call: everybody who waits for it, and all that comes, is told so, and the thread is left behind.
    fn give_up(&self, why: &AppendError) {
        self.queue.close();
        let mut waiting = self.watch.give_up();
        loop {
            let jobs = self.queue.pop_some(TOGETHER);
            if jobs.is_empty() {
                break;
            }
            waiting.extend(jobs.into_iter().map(Job::wait));
        }
        for waiting in waiting {
            waiting.fail(why);
        }
    }
}

impl std::fmt::Debug for DiskWriters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskWriters")
            .field("disks", &self.writers.lock().open.len())
            .finish()
    }
}

impl DiskWriters {
    /// No writer yet.
    pub fn new(disks: &Arc<Disks>, room: &Arc<Room>) -> DiskWriters {
        DiskWriters {
            disks: Arc::clone(disks),
            room: Arc::clone(room),
            writers: Mutex::default(),
        }
    }

    /// A disk's writer, with a thread behind it.
    fn writer(&self, id: DiskId) -> Option<Arc<Writer>> {
        let mut writers = self.writers.lock();
        let medium = self.disks.get(id);
        if let Some(writer) = writers.open.get(&id) {
            let same = |medium: &Arc<dyn Disk>| Arc::ptr_eq(medium, &writer.medium);
            if medium.as_ref().is_none_or(same) {
                return Some(Arc::clone(writer));
            }
            // It was begun while the disk was being brought back.
            writer.queue.close();
            writers.open.remove(&id);
        }
        let medium = medium.filter(|_| !writers.stopped)?;
        let writer = Arc::new(Writer {
            medium,
            queue: Queue::default(),
            watch: Watch::default(),
        });
        let own = Arc::clone(&writer);
        let (disks, room) = (Arc::clone(&self.disks), Arc::clone(&self.room));
        let thread = std::thread::Builder::new()
            .name(format!("disk {id}"))
            .spawn(move || serve(&disks, &room, id, &own));
        match thread {
            Ok(thread) => {
                writers.open.insert(id, Arc::clone(&writer));
                writers.threads.push((thread, Arc::clone(&writer)));
                Some(writer)
            }
            Err(error) => {
                tracing::error!(%error, "no thread to write to a disk");
                None
            }
        }
    }

    /// Gives up on writers whose disk has not ended a call for too long: it is faulty then, and whoever waits goes on
    /// without it. To be called every few seconds.
    pub fn look_after(&self) {
        let open: Vec<(DiskId, Arc<Writer>)> = {
            let writers = self.writers.lock();
            let open = writers.open.iter();
            open.map(|(id, writer)| (*id, Arc::clone(writer))).collect()
        };
        for (id, writer) in open {
            // One that is faulty for something else has had its time.
            let limit = match self.disks.is_online(id) {
                true => AT_LAST,
                false => SOON,
            };
            if writer.watch.hangs_for(limit) {
                self.give_up(id, &writer, limit);
            }
        }
    }

    fn give_up(&self, id: DiskId, writer: &Writer, limit: Duration) {
        let name = self.disks.name(id);
        let why = AppendError::new(format!(
            "disk {name}: a write has not ended in {} s",
            limit.as_secs()
        ));
        // Before anybody is told: whoever writes it again must not choose this disk.
        self.disks.mark_faulty(id, &why.reason);
        writer.give_up(&why);
    }

    /// A disk is another one now, or gone: what is queued for it is finished, and its writer ends.
    pub fn end(&self, id: DiskId) {
        if let Some(writer) = self.writers.lock().open.remove(&id) {
            writer.queue.close();
        }
    }

    /// Queues bytes behind everything queued for that disk before. Where nothing is taken for that disk any more, `done` is not
    /// called from here: the caller may hold what it needs.
    pub fn append(
        &self,
        segment: Arc<Segment>,
        payload: Arc<dyn Payload>,
        done: Appended,
    ) -> Result<(), Refused> {
        let id = segment.disk();
        let job = Job::Append {
            segment,
            payload,
            done,
        };
        self.queue(id, job).map_err(|job| Refused { id, job })
    }

    /// Has the disk begin to write down what was queued for these segments before, and all that will be as it comes. All
    /// lie on the disk `id`.
    pub fn write_down(&self, id: DiskId, segments: Vec<Arc<Segment>>) {
        self.send(id, Job::WriteDown(segments));
    }

    /// Has the disk make durable what was queued for these segments before, and close their files. Nothing more may be appended
    /// to them; what goes wrong the next sync tells. All lie on the disk `id`.
    pub fn close(&self, id: DiskId, segments: Vec<Arc<Segment>>) {
        self.send(id, Job::Close(segments));
    }

    /// Makes durable, names included, what was queued for these segments before. All lie on the disk `id`.
    pub fn sync(&self, id: DiskId, segments: Vec<Arc<Segment>>, done: Synced) {
        self.send(id, Job::Sync { segments, done });
    }

    fn send(&self, id: DiskId, job: Job) {
        if let Err(job) = self.queue(id, job) {
            Refused { id, job }.tell();
        }
    }

    fn queue(&self, id: DiskId, job: Job) -> Result<(), Job> {
        match self.writer(id) {
            Some(writer) => writer.queue.push(job),
            None => Err(job),
        }
    }

    /// Finishes what is queued and ends the writers, but for one whose disk hangs.
    pub fn stop(&mut self) {
        let threads = {
            let mut writers = self.writers.lock();
            writers.stopped = true;
            for writer in writers.open.values() {
                writer.queue.close();
            }
            std::mem::take(&mut writers.threads)
        };
        let own = std::thread::current().id();
        for (thread, writer) in threads {
            // The last to let go may be a writer itself, telling how its last append went.
            if thread.thread().id() == own {
                continue;
            }
            let hangs = || writer.watch.is_given_up() || writer.watch.hangs_for(AT_LAST);
            while !thread.is_finished() && !hangs() {
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                // A writer that panicked has dropped its callbacks; whoever waits for them sees that.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for DiskWriters {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(disks: &Disks, room: &Room, id: DiskId, writer: &Writer) {
    let failed = |error: &AppendError| {
        if error.full {
            room.mark_full(id);
        } else if error.own {
            tracing::error!(disk = %id, error = %error.reason, "cannot be written to at this moment");
            room.let_rest(id);
        } else {
            disks.mark_faulty(id, &error.reason);
        }
    };
    let (watch, medium) = (&writer.watch, &writer.medium);
    // Segments that were appended to since nothing was left to do.
    let mut touched: Vec<Arc<Segment>> = Vec::new();
    loop {
        let mut taken = writer.queue.pop_some(TOGETHER);
        if taken.is_empty() {
            return;
        }
        while let Some(job) = taken.pop_front() {
            match job {
                // Nothing is asked of the old medium, which may hang, and the new one has done nothing wrong.
                job if !job.is_on(medium) => job.wait().fail(&another()),
                Job::Append {
                    segment,
                    payload,
                    done,
                } => {
                    let mut together = vec![(payload, done)];
                    take_those_of(&segment, &mut taken, &mut together);
                    append_together(&segment, together, watch, &failed);
                    if !touched.iter().any(|other| Arc::ptr_eq(other, &segment)) {
                        touched.push(segment);
                    }
                }
                Job::WriteDown(segments) => {
                    watch.begin(Vec::new());
                    segments.iter().for_each(|segment| segment.write_down());
                    watch.end();
                }
                Job::Close(segments) => {
                    watch.begin(Vec::new());
                    let closed = segments.iter().try_for_each(|segment| segment.close());
                    watch.end();
                    if let Err(error) = &closed {
                        failed(error);
                    }
                }
                Job::Sync { segments, done } => {
                    watch.begin(vec![Waiting::Sync(done)]);
                    let result = segments
                        .iter()
                        .try_for_each(|segment| segment.sync())
                        .and_then(|()| {
                            medium
                                .sync_names()
                                .map_err(|error| AppendError::from(&error))
                        });
                    let waiting = watch.end();
                    if let Err(error) = &result {
                        failed(error);
                    }
                    for waiting in waiting {
                        waiting.answer(result.clone().map(|()| 0));
                    }
                }
            }
            if watch.is_given_up() {
                // What was taken with the job that hung was not in the queue any more.
                taken
                    .drain(..)
                    .for_each(|job| job.wait().fail(&watch::hung()));
                return;
            }
        }
        if writer.queue.is_empty() {
            for segment in touched.drain(..).filter(|segment| segment.held_back() == 0) {
                watch.begin(Vec::new());
                let synced = segment.sync_from(EARLY_SYNC);
                watch.end();
                if let Err(error) = synced {
                    failed(&error);
                }
            }
        }
    }
}

/// What those hear whose segment lies on the medium that a disk had before.
fn another() -> AppendError {
    AppendError::new("the disk was brought back, and is not counted on to have what it took before")
}

/// Takes the next jobs as long as they append to this segment.
fn take_those_of(
    segment: &Arc<Segment>,
    jobs: &mut VecDeque<Job>,
    together: &mut Vec<(Arc<dyn Payload>, Appended)>,
) {
    while let Some(job) = jobs.pop_front() {
        match job {
            Job::Append {
                segment: of,
                payload,
                done,
            } if Arc::ptr_eq(&of, segment) => together.push((payload, done)),
            other => {
                jobs.push_front(other);
                return;
            }
        }
    }
}

/// Appends with one write, and tells each giver where its bytes lie. When it fails it failed for all, since how much
/// arrived is not known.
fn append_together(
    segment: &Segment,
    together: Vec<(Arc<dyn Payload>, Appended)>,
    watch: &Watch,
    failed: &dyn Fn(&AppendError),
) {
    let (payloads, waiting): (Vec<_>, Vec<_>) = together
        .into_iter()
        .map(|(payload, done)| (payload, Waiting::Append(done)))
        .unzip();
    let mut parts = Vec::new();
    let mut lengths = Vec::with_capacity(payloads.len());
    for payload in &payloads {
        let before = parts.len();
        payload.parts(&mut parts);
        let own = parts.get(before..).unwrap_or_default();
        lengths.push(own.iter().map(|part| part.len() as u64).sum::<u64>());
    }
    watch.begin(waiting);
    let result = segment.append(&parts);
    let waiting = watch.end();
    drop(parts);
    // Its memory is free before the givers go on.
    drop(payloads);
    if let Err(error) = &result {
        // Before anybody is told: whoever writes it again must not choose this disk.
        failed(error);
    }
    let mut at = result;
    for (waiting, length) in waiting.into_iter().zip(lengths) {
        waiting.answer(at.clone());
        at = at.map(|offset| offset + length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::ids::SetId;

    #[test]
    fn what_is_written_down_stays_behind_until_a_commit_begins() {
        const OBJECT: ObjectName = ObjectName::Blocks(SetId(1));
        let part = vec![7; 1 << 20];
        let disk = Arc::new(MemoryDisk::new("a"));
        let segment = Segment::new(DiskId(0), Arc::clone(&disk) as _, OBJECT, false);
        let mut end = 0;
        for _ in 0..80 {
            segment.append(&[&part]).expect("appended");
            end += part.len() as u64;
            let behind = end - disk.asked_to_write(OBJECT);
            assert!(
                (end.min(HELD_BACK)..HELD_BACK + WRITE_BACK).contains(&behind),
                "{behind} of {end}"
            );
        }
        segment.write_down();
        assert_eq!(disk.asked_to_write(OBJECT), end);
        for _ in 0..10 {
            segment.append(&[&part]).expect("appended");
            end += part.len() as u64;
            assert!(end - disk.asked_to_write(OBJECT) < WRITE_BACK);
        }
        let eager = Segment::new(
            DiskId(0),
            Arc::new(MemoryDisk::new("b")),
            ObjectName::Parity(SetId(1)),
            true,
        );
        assert_eq!((segment.held_back(), eager.held_back()), (0, 0));
    }
}
