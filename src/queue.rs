//! A queue between threads that sleeps while it is empty. With as few processors as a host spares for storage, a
//! waiting thread that spins takes them from the threads that work.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};

/// Things in the order they were put in.
#[derive(Debug)]
pub struct Queue<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
}

#[derive(Debug)]
struct State<T> {
    things: VecDeque<T>,
    closed: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let state = State {
            things: VecDeque::new(),
            closed: false,
        };
        Queue {
            state: Mutex::new(state),
            ready: Condvar::new(),
        }
    }
}

impl<T> Queue<T> {
    /// Puts a thing at the end; gives it back when the queue is closed.
    pub fn push(&self, thing: T) -> Result<(), T> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(thing);
        }
        state.things.push_back(thing);
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// Takes the first thing, and waits for one; `None` once the queue is closed and empty.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            if let Some(thing) = state.things.pop_front() {
                return Some(thing);
            }
            if state.closed {
                return None;
            }
            self.ready.wait(&mut state);
        }
    }

    /// Takes up to `most` of the first things, and waits for one; none once the queue is closed and empty.
    pub fn pop_some(&self, most: usize) -> VecDeque<T> {
        let mut state = self.state.lock();
        loop {
            if !state.things.is_empty() {
                let count = most.min(state.things.len());
                return state.things.drain(..count).collect();
            }
            if state.closed {
                return VecDeque::new();
            }
            self.ready.wait(&mut state);
        }
    }

    /// Whether nothing waits in it now.
    pub fn is_empty(&self) -> bool {
        self.state.lock().things.is_empty()
    }

    /// Takes no more things; those in it are still given out.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.ready.notify_all();
    }
}
