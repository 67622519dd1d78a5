//! Waiting for a disk, but not for ever. A request to a disk that may hang is made on one of a few threads of that
//! disk's own, and whoever asked waits as long as he likes: the thread stays behind, the asker goes on. Threads are
//! started when they are needed, and a disk that hangs holds up no more of them than `THREADS`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use crate::disk::{Disk, Result};
use crate::store::queue::Queue;

/// The most threads of one disk: as many reads as may be under way there at once.
const THREADS: usize = 16;

type Request = Box<dyn FnOnce(&dyn Disk) + Send>;

/// The threads of one disk. They end, with what is queued done, after this is dropped.
#[derive(Clone)]
pub(super) struct Patience(Arc<Shared>);

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

impl Patience {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Patience {
        Patience(Arc::new(Shared {
            disk,
            work: Arc::default(),
        }))
    }

    /// Asks the disk, and waits so long for the answer. `None` when none has come.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        request: impl FnOnce(&dyn Disk) -> Result<T> + Send + 'static,
    ) -> Option<Result<T>> {
        let (answer, answers) = bounded(1);
        self.push(answer, request);
        answers.recv_timeout(limit).ok()
    }

    fn push<T: Send + 'static>(
        &self,
        answer: Sender<Result<T>>,
        request: impl FnOnce(&dyn Disk) -> Result<T> + Send + 'static,
    ) {
        let work = &self.0.work;
        let pending = work.pending.fetch_add(1, Ordering::AcqRel) + 1;
        let threads = work.threads.load(Ordering::Acquire);
        if pending > threads && threads < THREADS {
            self.start();
        }
        let request: Request = Box::new(move |disk| {
            // Whoever asked may have gone on without the answer.
            let _ = answer.send(request(disk));
        });
        if let Err(request) = work.queue.push(request) {
            request(&*self.0.disk);
        }
    }

    fn start(&self) {
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
            }
            Err(error) => tracing::warn!(%error, "no further thread to ask a disk with"),
        }
    }
}
