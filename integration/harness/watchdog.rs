//! Ends a test that hangs. A process that waits inside a request to a filesystem cannot be killed, but the filesystem's
//! server can, and then the request ends with an error.

use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Kills the server it watches when the test has taken too long.
#[derive(Debug)]
pub struct Watchdog(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug)]
struct State {
    deadline: Instant,
    server: Option<Pid>,
    fired: bool,
    done: bool,
}

impl Watchdog {
    pub fn new(limit: Duration) -> Watchdog {
        let state = State {
            deadline: Instant::now() + limit,
            server: None,
            fired: false,
            done: false,
        };
        let shared = Arc::new((Mutex::new(state), Condvar::new()));
        let watched = Arc::clone(&shared);
        thread::spawn(move || watch(&watched));
        Watchdog(shared)
    }

    /// Tells which process to kill; none while nothing is served.
    pub fn server(&self, server: Option<Pid>) {
        self.0.0.lock().expect("watchdog").server = server;
    }

    /// Gives the test this long from now.
    pub fn limit(&self, limit: Duration) {
        self.0.0.lock().expect("watchdog").deadline = Instant::now() + limit;
        self.0.1.notify_all();
    }

    pub fn fired(&self) -> bool {
        self.0.0.lock().expect("watchdog").fired
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.0.lock().expect("watchdog").done = true;
        self.0.1.notify_all();
    }
}

fn watch((state, changed): &(Mutex<State>, Condvar)) {
    let mut state = state.lock().expect("watchdog");
    while !state.done && !state.fired {
        let now = Instant::now();
        if let Some(left) = state
            .deadline
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
        {
            state = changed.wait_timeout(state, left).expect("watchdog").0;
        } else {
            state.fired = true;
            eprintln!(
                "the test has run out of its time: the filesystem is killed, and what follows are errors from that"
            );
            if let Some(server) = state.server {
                let _ = kill_process(server, Signal::KILL);
            }
        }
    }
}
