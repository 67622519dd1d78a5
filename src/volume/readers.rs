//! The threads that fetch blocks side by side. A job may wait for a disk, and for another thread that fetches
//! the same block, but never for a job behind it: whoever wants several blocks waits outside.

use crossbeam_channel::{Sender, bounded, unbounded};

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads.
#[derive(Debug)]
pub struct Readers {
    jobs: Sender<Job>,
}

impl Readers {
    /// Starts the threads; they end when this is dropped.
    pub fn start(threads: usize) -> std::io::Result<Readers> {
        let (jobs, queue) = unbounded::<Job>();
        for number in 0..threads {
            let queue = queue.clone();
            std::thread::Builder::new()
                .name(format!("read {number}"))
                .spawn(move || {
                    for job in queue {
                        job();
                    }
                })?;
        }
        Ok(Readers { jobs })
    }

    /// Has something done aside.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        // The threads live as long as this.
        let _ = self.jobs.send(Box::new(job));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_order() {
        let readers = Readers::start(3).expect("threads");
        let work: Vec<_> = (0..50).map(|number| move || number * 2).collect();
        let expected: Vec<Option<i32>> = (0..50).map(|number| Some(number * 2)).collect();
        assert_eq!(readers.all(work), expected);
        assert_eq!(readers.all(Vec::<fn() -> i32>::new()), []);
    }
}
