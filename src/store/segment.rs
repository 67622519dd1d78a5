//! Segments being written, and the one ordered writer of each disk. Whoever has bytes for a disk hands
//! them to its queue; they are appended in that order by the disk's own thread, and the giver is told
//! where they lie, or why not, through a callback on that thread.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::disks::Disks;
use super::queue::Queue;
use super::room::Room;
use crate::disk::{Appender, Disk, DiskError, ObjectName};
use crate::ids::DiskId;

/// Bytes appended before the medium is asked to begin writing them down, so that little is left to do at
/// the commit.
const WRITE_BACK: u64 = 4 << 20;

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
}

impl From<&DiskError> for AppendError {
    fn from(error: &DiskError) -> Self {
        AppendError {
            reason: error.to_string().into(),
            full: error.is_full(),
        }
    }
}

/// One append-only object of one disk while it grows.
#[derive(Debug)]
pub struct Segment {
    disk: Arc<dyn Disk>,
    id: DiskId,
    object: ObjectName,
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
    Failed(AppendError),
}

impl Segment {
    /// A segment that is created by its first append.
    pub fn new(id: DiskId, disk: Arc<dyn Disk>, object: ObjectName) -> Arc<Segment> {
        Arc::new(Segment {
            disk,
            id,
            object,
            state: Mutex::new(State::Unborn),
        })
    }

    /// The disk it lies on.
    pub fn disk(&self) -> DiskId {
        self.id
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
                    if *end - *begun >= WRITE_BACK {
                        appender.start_sync();
                        *begun = *end;
                    }
                    Ok(offset)
                }
                Err(error) => Err(AppendError::from(&error)),
            },
            State::Failed(error) => return Err(error.clone()),
            State::Unborn => Err(AppendError {
                reason: "the segment was not created".into(),
                full: false,
            }),
        };
        if let Err(error) = &result {
            // How much arrived is not known, so nothing may follow.
            *state = State::Failed(error.clone());
        }
        result
    }

    fn sync(&self) -> Result<(), AppendError> {
        self.sync_from(0)
    }

    /// Makes durable what was appended, if it is `least` bytes or more.
    fn sync_from(&self, least: u64) -> Result<(), AppendError> {
        let mut state = self.state.lock();
        let result = match &mut *state {
            State::Unborn => Ok(()),
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
    Sync {
        segments: Vec<Arc<Segment>>,
        done: Synced,
    },
}

/// The ordered writers of all disks. A disk's writer is started when it is first needed.
pub struct DiskWriters {
    disks: Arc<Disks>,
    room: Arc<Room>,
    writers: Mutex<Writers>,
}

#[derive(Default)]
struct Writers {
    queues: HashMap<DiskId, Arc<Queue<Job>>>,
    threads: Vec<JoinHandle<()>>,
    stopped: bool,
}

impl std::fmt::Debug for DiskWriters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskWriters")
            .field("disks", &self.writers.lock().queues.len())
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

    /// A disk's queue, with a writer behind it.
    fn queue(&self, id: DiskId) -> Option<Arc<Queue<Job>>> {
        let mut writers = self.writers.lock();
        if let Some(queue) = writers.queues.get(&id) {
            return Some(Arc::clone(queue));
        }
        let disk = self.disks.get(id).filter(|_| !writers.stopped)?;
        let queue: Arc<Queue<Job>> = Arc::default();
        let jobs = Arc::clone(&queue);
        let (disks, room) = (Arc::clone(&self.disks), Arc::clone(&self.room));
        let thread = std::thread::Builder::new()
            .name(format!("disk {id}"))
            .spawn(move || serve(&disks, &room, id, disk.as_ref(), &jobs));
        match thread {
            Ok(thread) => {
                writers.queues.insert(id, Arc::clone(&queue));
                writers.threads.push(thread);
                Some(queue)
            }
            Err(error) => {
                tracing::error!(%error, "no thread to write to a disk");
                None
            }
        }
    }

    /// A disk is another one now, or gone: what is queued for it is finished, and its writer ends.
    pub fn end(&self, id: DiskId) {
        if let Some(queue) = self.writers.lock().queues.remove(&id) {
            queue.close();
        }
    }

    /// Queues bytes behind everything queued for that disk before.
    pub fn append(&self, segment: Arc<Segment>, payload: Arc<dyn Payload>, done: Appended) {
        let id = segment.disk();
        self.send(
            id,
            Job::Append {
                segment,
                payload,
                done,
            },
        );
    }

    /// Makes durable, names included, what was queued for these segments before. All lie on the disk `id`.
    pub fn sync(&self, id: DiskId, segments: Vec<Arc<Segment>>, done: Synced) {
        self.send(id, Job::Sync { segments, done });
    }

    fn send(&self, id: DiskId, job: Job) {
        let refused = match self.queue(id) {
            Some(queue) => queue.push(job).err(),
            None => Some(job),
        };
        let gone = || AppendError {
            reason: format!("disk {id} has no writer").into(),
            full: false,
        };
        match refused {
            Some(Job::Append { done, .. }) => done(Err(gone())),
            Some(Job::Sync { done, .. }) => done(Err(gone())),
            None => {}
        }
    }

    /// Finishes what is queued and ends the writers.
    pub fn stop(&mut self) {
        let threads = {
            let mut writers = self.writers.lock();
            writers.stopped = true;
            for queue in writers.queues.values() {
                queue.close();
            }
            std::mem::take(&mut writers.threads)
        };
        let own = std::thread::current().id();
        for thread in threads {
            // The last to let go may be a writer itself, telling how its last append went.
            if thread.thread().id() != own {
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

fn serve(disks: &Disks, room: &Room, id: DiskId, disk: &dyn Disk, jobs: &Queue<Job>) {
    let failed = |error: &AppendError| {
        if error.full {
            room.mark_full(id);
        } else {
            disks.mark_faulty(id, &error.reason);
        }
    };
    // Segments that were appended to since nothing was left to do.
    let mut touched: Vec<Arc<Segment>> = Vec::new();
    loop {
        let mut taken = jobs.pop_some(TOGETHER);
        if taken.is_empty() {
            return;
        }
        while let Some(job) = taken.pop_front() {
            match job {
                Job::Append {
                    segment,
                    payload,
                    done,
                } => {
                    let mut together = vec![(payload, done)];
                    take_those_of(&segment, &mut taken, &mut together);
                    append_together(&segment, together, &failed);
                    if !touched.iter().any(|other| Arc::ptr_eq(other, &segment)) {
                        touched.push(segment);
                    }
                }
                Job::Sync { segments, done } => {
                    let result = segments
                        .iter()
                        .try_for_each(|segment| segment.sync())
                        .and_then(|()| {
                            disk.sync_names().map_err(|error| AppendError::from(&error))
                        });
                    if let Err(error) = &result {
                        failed(error);
                    }
                    done(result);
                }
            }
        }
        if jobs.is_empty() {
            for segment in touched.drain(..) {
                if let Err(error) = segment.sync_from(EARLY_SYNC) {
                    failed(&error);
                }
            }
        }
    }
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
    failed: &dyn Fn(&AppendError),
) {
    let mut parts = Vec::new();
    let mut lengths = Vec::with_capacity(together.len());
    for (payload, _) in &together {
        let before = parts.len();
        payload.parts(&mut parts);
        let own = parts.get(before..).unwrap_or_default();
        lengths.push(own.iter().map(|part| part.len() as u64).sum::<u64>());
    }
    let result = segment.append(&parts);
    drop(parts);
    if let Err(error) = &result {
        // Before anybody is told: whoever writes it again must not choose this disk.
        failed(error);
    }
    let mut at = result;
    for ((payload, done), length) in together.into_iter().zip(lengths) {
        // Its memory is free before the giver goes on.
        drop(payload);
        done(at.clone());
        at = at.map(|offset| offset + length);
    }
}
