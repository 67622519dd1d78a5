//! A fixed number of threads that do jobs in the order they come. A job may wait for a disk, or for another thread
//! that does the same work, but never for a job behind it: whoever wants several done waits outside. That is why
//! this is no work-stealing pool, in which a thread that waits takes up another job on top.
//!
//! Jobs that nobody waits for yet can be left to threads that take a processor only when no other program wants it. A program
//! that writes gets on faster then, and a guest that is saved stands still for less long; as soon as somebody waits, threads of
//! ordinary priority take over. Two sets of threads, since one that has made way comes back only where the system lets it
//! (RLIMIT_NICE); there it does so for the job it is at when somebody comes to wait. What a job has to do under a lock that others
//! want goes to the others ([`Workers::at_once`]): a thread that makes way may be stopped anywhere, for long.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::sys::Competitor;

/// How long after somebody has waited jobs are still done as if he did: a writer that waits for memory waits again at once.
const LINGER: Duration = Duration::from_millis(100);

/// So many short things are done in one go, unless somebody waits: to wake a thread for each costs more than they do.
const TOGETHER: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. They end, with what is queued done, after this is dropped.
pub struct Workers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Where threads of ordinary priority wait for jobs, and those that make way.
    prompt: Condvar,
    patient: Condvar,
}

thread_local! {
    /// How this thread competed before it made way, if it makes way.
    static BEFORE: Cell<Option<Competitor>> = const { Cell::new(None) };
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// What threads of ordinary priority do before all else.
    short: VecDeque<Job>,
    closed: bool,
    /// There are no threads but those of ordinary priority.
    always_prompt: bool,
    /// Who waits for jobs now.
    waiting: usize,
    /// Somebody waited until shortly before this.
    until: Option<Instant>,
    /// Threads that make way and are at a job now.
    behind: Vec<Behind>,
}

/// A thread that makes way.
#[derive(Debug)]
struct Behind {
    competitor: Competitor,
    /// Somebody came to wait for its job, so it was made to compete.
    hastened: bool,
}

impl State {
    /// Whether jobs are for the threads of ordinary priority.
    fn is_urgent(&self) -> bool {
        self.always_prompt
            || self.waiting > 0
            || self.until.is_some_and(|until| Instant::now() < until)
    }
}

/// Somebody waits for jobs, for as long as this is there.
pub struct Hurry<'a>(&'a Shared);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.waiting -= 1;
        if state.waiting == 0 {
            state.until = Some(Instant::now() + LINGER);
        }
    }
}

impl Shared {
    fn work(&self, prompt: bool, vital: bool) {
        while let Some(job) = self.pop(prompt) {
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a job failed, which is a fault of this program");
                if vital {
                    // Somebody waits for it who must not go on without: a daemon that ends leaves
                    // everything that was committed whole.
                    std::process::abort();
                }
            }
        }
    }

    /// The next job for a thread; `None` when there will be no more.
    fn pop(&self, prompt: bool) -> Option<Job> {
        let mut state = self.state.lock();
        if let Some(this) = BEFORE.get() {
            let found = state
                .behind
                .iter()
                .position(|other| other.competitor == this);
            if found.is_some_and(|found| state.behind.swap_remove(found).hastened) {
                MutexGuard::unlocked(&mut state, || this.make_way());
            }
        }
        loop {
            if prompt && let Some(job) = state.short.pop_front() {
                return Some(job);
            }
            if !state.jobs.is_empty() {
                if state.closed || state.is_urgent() == prompt {
                    if let Some(competitor) = BEFORE.get() {
                        state.behind.push(Behind {
                            competitor,
                            hastened: false,
                        });
                    }
                    return state.jobs.pop_front();
                }
                // They are for the others, who may have gone to sleep when it was the other way round.
                self.wake(!prompt);
            } else if state.closed {
                return None;
            }
            if !prompt && !state.short.is_empty() {
                self.wake(true);
            }
            match prompt {
                true => self.prompt.wait(&mut state),
                false => self.patient.wait(&mut state),
            }
        }
    }

    /// Wakes a thread of ordinary priority, or one that makes way.
    fn wake(&self, prompt: bool) {
        match prompt {
            true => self.prompt.notify_one(),
            false => self.patient.notify_one(),
        };
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Workers")
    }
}

impl Workers {
    /// Starts so many threads. A job that panics ends the process when the jobs are `vital`.
    pub fn start(name: &str, threads: usize, vital: bool) -> std::io::Result<Workers> {
        let workers = Workers {
            shared: Arc::default(),
        };
        workers.shared.state.lock().always_prompt = true;
        workers.start_threads(name, threads, vital, true)?;
        Ok(workers)
    }

    /// The same with as many threads more, which do what nobody waits for ([`Workers::hurry`]) and make way for all other
    /// programs.
    pub fn start_behind(name: &str, threads: usize, vital: bool) -> std::io::Result<Workers> {
        let workers = Workers {
            shared: Arc::default(),
        };
        workers.start_threads(name, threads, vital, true)?;
        workers.start_threads(&format!("{name} behind"), threads, vital, false)?;
        Ok(workers)
    }

    fn start_threads(
        &self,
        name: &str,
        threads: usize,
        vital: bool,
        prompt: bool,
    ) -> std::io::Result<()> {
        for number in 0..threads {
            let shared = Arc::clone(&self.shared);
            std::thread::Builder::new()
                .name(format!("{name} {number}"))
                .spawn(move || {
                    if !prompt && let Some(this) = Competitor::this() {
                        BEFORE.set(Some(this));
                        this.make_way();
                    }
                    shared.work(prompt, vital);
                })?;
        }
        Ok(())
    }

    /// Has jobs done at once, for as long as the answer is kept: somebody waits for them.
    pub fn hurry(&self) -> Hurry<'_> {
        let mut state = self.shared.state.lock();
        state.waiting += 1;
        let begins = state.waiting == 1 && !(state.jobs.is_empty() && state.short.is_empty());
        if state.waiting == 1 {
            for thread in &mut state.behind {
                thread.hastened = true;
                thread.competitor.compete();
            }
        }
        drop(state);
        if begins {
            self.shared.prompt.notify_all();
        }
        Hurry(&self.shared)
    }

    /// Has something done aside.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        state.jobs.push_back(Box::new(job));
        let urgent = state.is_urgent();
        drop(state);
        self.shared.wake(urgent);
    }

    /// Does something short, on this thread unless it makes way. For what a job does under a lock.
    pub fn at_once(&self, work: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        if BEFORE.get().is_none() || state.closed {
            drop(state);
            return work();
        }
        state.short.push_back(Box::new(work));
        let enough = state.short.len() >= TOGETHER || state.waiting > 0;
        drop(state);
        if enough {
            self.shared.wake(true);
        }
    }

    /// Has something done by a thread of ordinary priority, before what was spawned: it does not take long, and others wait
    /// for what comes of it.
    pub fn soon(&self, job: impl FnOnce() + Send + 'static) {
        self.shared.state.lock().short.push_back(Box::new(job));
        self.shared.wake(true);
    }

    /// Whether somebody waits for jobs.
    pub fn is_waited_for(&self) -> bool {
        self.shared.state.lock().waiting > 0
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
        self.shared.state.lock().closed = true;
        self.shared.prompt.notify_all();
        self.shared.patient.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;

    #[test]
    fn answers_come_in_order() {
        let workers = Workers::start("test", 3, false).expect("threads");
        let work: Vec<_> = (0..50).map(|number| move || number * 2).collect();
        let expected: Vec<Option<i32>> = (0..50).map(|number| Some(number * 2)).collect();
        assert_eq!(workers.all(work), expected);
        assert_eq!(workers.all(Vec::<fn() -> i32>::new()), []);
    }

    /// The name of the thread that does a job.
    fn thread_of_a_job(workers: &Workers) -> String {
        let (sender, answer) = bounded(1);
        workers.spawn(move || {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            sender.send(name).expect("somebody waits");
        });
        answer
            .recv_timeout(Duration::from_secs(60))
            .expect("the job is done")
    }

    #[test]
    fn what_nobody_waits_for_makes_way_and_what_somebody_does_is_done_at_once() {
        let workers = Workers::start_behind("test", 2, false).expect("threads");
        for _ in 0..5 {
            assert!(thread_of_a_job(&workers).contains("behind"));
        }
        let hurry = workers.hurry();
        for _ in 0..5 {
            assert!(!thread_of_a_job(&workers).contains("behind"));
        }
        // For a moment what comes is still done at once, and not for longer.
        let before = Instant::now();
        drop(hurry);
        let until = workers.shared.state.lock().until;
        assert!(
            until.is_some_and(|until| until >= before + LINGER),
            "too soon"
        );
        std::thread::sleep(2 * LINGER);
        assert!(thread_of_a_job(&workers).contains("behind"));
    }

    /// Whether the system lets a thread come back that made way.
    fn can_come_back() -> bool {
        let tried = std::thread::spawn(|| {
            let this = Competitor::this()?;
            this.make_way();
            this.compete().then_some(())
        });
        tried.join().expect("it ends").is_some()
    }

    #[test]
    fn a_job_that_made_way_competes_when_somebody_comes_to_wait_for_it() {
        let able = can_come_back();
        let workers = Workers::start_behind("test", 2, false).expect("threads");
        for round in 0..10 {
            let (begun, begins) = bounded(2);
            let (goes_on, wait) = bounded::<()>(0);
            let (sender, answers) = bounded(2);
            for _ in 0..2 {
                let (begun, wait, sender) = (begun.clone(), wait.clone(), sender.clone());
                workers.spawn(move || {
                    begun.send(sys::makes_way()).expect("somebody waits");
                    let _ = wait.recv();
                    sender.send(sys::makes_way()).expect("somebody waits");
                });
            }
            for _ in 0..2 {
                assert_eq!(begins.recv(), Ok(true), "round {round}");
            }
            let hurry = workers.hurry();
            drop(goes_on);
            for _ in 0..2 {
                assert_eq!(answers.recv(), Ok(!able));
            }
            drop(hurry);
            workers.shared.state.lock().until = None;
        }
    }

    #[test]
    fn what_is_short_is_not_done_by_a_thread_that_makes_way() {
        let workers = Arc::new(Workers::start_behind("test", 2, false).expect("threads"));
        let name = || std::thread::current().name().unwrap_or_default().to_owned();
        for hurry in [false, true] {
            let _hurry = hurry.then(|| workers.hurry());
            let (sender, answer) = bounded(1);
            let inner = Arc::clone(&workers);
            workers.spawn(move || {
                let job = name();
                inner.at_once(move || sender.send((job, name())).expect("somebody waits"));
            });
            let (job, short) = answer
                .recv_timeout(Duration::from_secs(60))
                .expect("it is done");
            assert_eq!(job.contains("behind"), !hurry);
            assert!(!short.contains("behind"));
        }
    }

    #[test]
    fn jobs_that_were_left_for_later_are_done_when_somebody_comes_to_wait() {
        for _ in 0..10 {
            let workers = Workers::start_behind("test", 2, false).expect("threads");
            let (held, holds) = bounded::<()>(0);
            let (sender, answers) = bounded(100);
            // Both threads that make way are busy with what does not end before something else is done.
            let (begun, begins) = bounded(2);
            for _ in 0..2 {
                let (begun, holds) = (begun.clone(), holds.clone());
                workers.spawn(move || {
                    begun.send(()).expect("somebody waits");
                    let _ = holds.recv();
                });
            }
            for _ in 0..2 {
                begins.recv().expect("it begins");
            }
            for number in 0..100 {
                let sender = sender.clone();
                workers.spawn(move || sender.send(number).expect("somebody waits"));
            }
            let _hurry = workers.hurry();
            for _ in 0..100 {
                let answer = answers.recv_timeout(Duration::from_secs(60));
                answer.expect("the others take over");
            }
            drop(held);
        }
    }

    #[test]
    fn no_job_is_forgotten_when_haste_comes_and_goes() {
        let workers = Workers::start_behind("test", 2, false).expect("threads");
        let (sender, answers) = bounded(1);
        for round in 0..60u64 {
            let hurry = (round % 3 == 0).then(|| workers.hurry());
            for _ in 0..10 {
                let sender = sender.clone();
                workers.spawn(move || sender.send(()).expect("somebody waits"));
            }
            drop(hurry);
            for _ in 0..10 {
                let answer = answers.recv_timeout(Duration::from_secs(60));
                answer.expect("every job is done");
            }
            std::thread::sleep(LINGER / 2 * (round % 4) as u32);
        }
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
