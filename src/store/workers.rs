//! A fixed number of threads that do jobs in the order they come. A job may wait for a disk, or for another thread
//! that does the same work, but never for a job behind it: whoever wants several done waits outside. That is why
//! this is no work-stealing pool, in which a thread that waits takes up another job on top.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam_channel::bounded;

use crate::queue::Queue;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. They end, with what is queued done, after this is dropped.
pub struct Workers {
    jobs: Arc<Queue<Job>>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Workers")
    }
}

impl Workers {
    /// Starts so many threads. A job that panics ends the process when the jobs are `vital`.
    pub fn start(name: &str, threads: usize, vital: bool) -> std::io::Result<Workers> {
        let jobs: Arc<Queue<Job>> = Arc::default();
        let workers = Workers {
            jobs: Arc::clone(&jobs),
        };
        for number in 0..threads {
            let jobs = Arc::clone(&jobs);
            std::thread::Builder::new()
                .name(format!("{name} {number}"))
                .spawn(move || {
                    while let Some(job) = jobs.pop() {
                        if catch_unwind(AssertUnwindSafe(job)).is_err() {
                            tracing::error!("a job failed, which is a fault of this program");
                            if vital {
                                // Somebody waits for it who must not go on without: a daemon that ends leaves
                                // everything that was committed whole.
                                std::process::abort();
                            }
                        }
                    }
                })?;
        }
        Ok(workers)
    }

    /// Has something done aside.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        // The queue is closed by nobody but the drop below.
        let _ = self.jobs.push(Box::new(job));
    }

    /// Does several things side by side, one of them here, and waits for all; the answers in order. `None`
    /// for one that panicked. Not to be called from a job.
    pub fn all<T: Send + 'static>(
        &self,
        mut work: Vec<impl FnOnce() -> T + Send + 'static>,
    ) -> Vec<Option<T>> {
        let own = work.pop();
        let count = work.len();
        let (sender, answers) = bounded(count.max(1));
        for (place, job) in work.into_iter().enumerate() {
            let sender = sender.clone();
            self.spawn(move || {
                // Whoever waits takes every answer.
                let _ = sender.send((place, job()));
            });
        }
        drop(sender);
        let mut all: Vec<Option<T>> = (0..count).map(|_| None).collect();
        let own = own.map(|job| job());
        for (place, answer) in answers {
            if let Some(slot) = all.get_mut(place) {
                *slot = Some(answer);
            }
        }
        all.extend(own.map(Some));
        all
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.jobs.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_order() {
        let workers = Workers::start("test", 3, false).expect("threads");
        let work: Vec<_> = (0..50).map(|number| move || number * 2).collect();
        let expected: Vec<Option<i32>> = (0..50).map(|number| Some(number * 2)).collect();
        assert_eq!(workers.all(work), expected);
        assert_eq!(workers.all(Vec::<fn() -> i32>::new()), []);
    }

    #[test]
    fn what_is_queued_is_done_although_the_pool_is_dropped() {
        let workers = Workers::start("test", 1, false).expect("threads");
        let (sender, answers) = bounded(100);
        for number in 0..100 {
            let sender = sender.clone();
            workers.spawn(move || sender.send(number).expect("somebody waits"));
        }
        drop((workers, sender));
        assert_eq!(answers.iter().count(), 100);
    }
}
