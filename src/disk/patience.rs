//! Waiting for a disk, but not for ever. A request to a disk that may hang is made on one of a few threads of that
//! disk's own, and whoever asked waits as long as he likes: the thread stays behind, the asker goes on. Threads are
//! started when they are needed, and a disk that hangs holds up no more of them than `THREADS`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::bounded;

use super::Disk;
use crate::queue::Queue;

/// The most threads of one disk: as many requests as may be under way there at once.
const THREADS: usize = 16;

type Request = Box<dyn FnOnce(&dyn Disk) + Send>;

/// The threads of one disk. They end, with what is queued done, after this is dropped.
#[derive(Clone)]
pub(crate) struct Patience(Arc<Shared>);

struct Shared {
    disk: Arc<dyn Disk>,
    work: Arc<Work>,
}

#[derive(Default)]
struct Work {
    queue: Queue<Request>,
    /// Requests queued or under way.
    pending: AtomicUsize,
    threads: AtomicUsize,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.work.queue.close();
    }
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Patience with {:?}", self.0.disk)
    }
}

impl Patience {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Patience {
        Patience(Arc::new(Shared {
            disk,
            work: Arc::default(),
        }))
    }

    /// The disk that is asked.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.0.disk
    }

    /// Whether no request is queued or under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.0.work.pending.load(Ordering::Acquire) == 0
    }

    /// Asks the disk, and waits so long for the answer. `None` when none has come.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        request: impl FnOnce(&dyn Disk) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answers) = bounded(1);
        self.push(Box::new(move |disk| {
            // Whoever asked may have gone on without the answer.
            let _ = answer.send(request(disk));
        }));
        answers.recv_timeout(limit).ok()
    }

    /// Tells the disk something that nobody waits for. Where all its threads are busy it is left out.
    pub(crate) fn tell(&self, hint: impl FnOnce(&dyn Disk) + Send + 'static) {
        if self.0.work.pending.load(Ordering::Acquire) < THREADS {
            self.push(Box::new(hint));
        }
    }

    fn push(&self, request: Request) {
        let work = &self.0.work;
        let pending = work.pending.fetch_add(1, Ordering::AcqRel) + 1;
        let threads = work.threads.load(Ordering::Acquire);
        let mut some = threads > 0;
        if pending > threads && threads < THREADS {
            some |= self.start();
        }
        // Where not one thread can be had, whoever asks does it, however long that takes.
        let left = match some {
            true => work.queue.push(request).err(),
            false => Some(request),
        };
        if let Some(request) = left {
            request(&*self.0.disk);
            if !some {
                work.pending.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    /// Begins one more thread; says whether there is one.
    fn start(&self) -> bool {
        let (disk, work) = (Arc::clone(&self.0.disk), Arc::clone(&self.0.work));
        let started = std::thread::Builder::new()
            .name(format!("ask {}", disk.name()))
            .spawn(move || {
                while let Some(request) = work.queue.pop() {
                    request(&*disk);
                    work.pending.fetch_sub(1, Ordering::AcqRel);
                }
            });
        match started {
            Ok(_) => {
                self.0.work.threads.fetch_add(1, Ordering::AcqRel);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "no further thread to ask a disk with");
                false
            }
        }
    }
}
