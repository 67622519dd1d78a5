//! Threads for requests that may wait, so that none waits on a session thread. One kind of worker for two uses:
//! reads, with a fixed number of threads, and what waits for something another request may have to bring about
//! (memory, a commit), with as many as there are such requests: a limit there could hold back the very request that
//! the others wait for. The kernel bounds how many requests there are.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing::error;

/// How long a thread stays without work.
const IDLE: Duration = Duration::from_secs(20);

type Task = (&'static str, Box<dyn FnOnce() + Send>);

/// Threads that run tasks in the order they come, several at a time.
#[derive(Clone)]
pub(super) struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    most: usize,
    state: Mutex<State>,
    work: Condvar,
    quiet: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Task>,
    threads: usize,
    /// Threads that wait for work; each will take one task.
    idle: usize,
}

impl Workers {
    /// At most `most` threads, made as they are needed.
    pub(super) fn new(name: &'static str, most: usize) -> Workers {
        Workers {
            shared: Arc::new(Shared {
                name,
                most,
                state: Mutex::default(),
                work: Condvar::new(),
                quiet: Condvar::new(),
            }),
        }
    }

    /// Runs the task on another thread, soon.
    pub(super) fn run(&self, operation: &'static str, task: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        state.queue.push_back((operation, Box::new(task)));
        if state.queue.len() <= state.idle || state.threads >= self.shared.most {
            self.shared.work.notify_one();
            return;
        }
        state.threads += 1;
        let shared = self.shared.clone();
        let spawned = thread::Builder::new()
            .name(self.shared.name.to_string())
            .spawn(move || shared.work());
        if let Err(error) = spawned {
            state.threads -= 1;
            error!("cannot start a thread for {operation}: {error}");
            if state.threads == 0 {
                // Nobody would ever come for it. Dropped, its reply answers EIO.
                let lost = state.queue.pop_back();
                drop(state);
                drop(lost);
            }
        }
    }

    /// Waits until nothing runs and nothing is queued.
    pub(super) fn drain(&self) {
        let mut state = self.shared.state.lock();
        while !state.queue.is_empty() || state.threads > state.idle {
            self.shared.quiet.wait(&mut state);
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            while let Some((operation, task)) = state.queue.pop_front() {
                drop(state);
                guarded(operation, task);
                state = self.state.lock();
            }
            state.idle += 1;
            if state.idle == state.threads {
                self.quiet.notify_all();
            }
            let timeout = self.work.wait_for(&mut state, IDLE);
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                self.quiet.notify_all();
                return;
            }
        }
    }
}

/// Runs a handler so that a panic in it ends neither the thread nor the session. The reply that the handler owned is
/// dropped, which answers EIO.
pub(super) fn guarded(operation: &'static str, handler: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(handler)) {
        error!(
            "a bug: {operation} panicked: {}; answered EIO",
            message(&*panic)
        );
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn tasks_that_wait_for_each_other_all_run() {
        let workers = Workers::new("test", usize::MAX);
        let barrier = Arc::new(std::sync::Barrier::new(50));
        for _ in 0..50 {
            let barrier = barrier.clone();
            workers.run("wait", move || {
                barrier.wait();
            });
        }
        workers.drain();
    }

    #[test]
    fn a_fixed_number_of_threads_is_kept_and_everything_runs() {
        let workers = Workers::new("test", 3);
        let running = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..200 {
            let (running, most, done) = (running.clone(), most.clone(), done.clone());
            workers.run("count", move || {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                thread::sleep(Duration::from_micros(200));
                running.fetch_sub(1, Ordering::SeqCst);
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        workers.drain();
        assert_eq!(done.load(Ordering::SeqCst), 200);
        assert!(most.load(Ordering::SeqCst) <= 3);
    }

    #[test]
    fn a_panic_is_survived() {
        let workers = Workers::new("test", 1);
        let (sender, receiver) = channel();
        workers.run("panic", || panic!("on purpose"));
        workers.run("after", move || sender.send(1).unwrap());
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(1));
        workers.drain();
    }
}
