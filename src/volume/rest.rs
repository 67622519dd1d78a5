//! Memory when nobody wants anything: what a burst of writing or reading took goes back to the system. The allocator
//! would keep it for the next one, for ever, on a host whose memory is its guests'.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Volume, straight};
use crate::sys;

/// What was going on at the last looks.
#[derive(Debug, Default)]
pub(super) struct Rest {
    commits: AtomicU64,
    looked: Mutex<Looked>,
}

#[derive(Debug, Default)]
struct Looked {
    /// How much had been done at the last look.
    done: u64,
    /// How much had been done when memory was given back last.
    given_at: u64,
}

impl Rest {
    /// A file is committed.
    pub(super) fn note_commit(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }
}

impl Volume {
    /// Gives memory back if there was work, and none since the last look.
    pub(super) fn rest_if_quiet(&self) {
        for handle in self.handles.all() {
            handle.ahead.rest();
        }
        let done = self
            .disks
            .reads()
            .wrapping_add(self.rest.commits.load(Ordering::Relaxed));
        let mut looked = self.rest.looked.lock();
        let quiet = looked.done == done && self.pipeline.unwritten() == 0;
        looked.done = done;
        if quiet && looked.given_at != done {
            looked.given_at = done;
            self.pipeline.buffers.rest();
            straight::rest();
            sys::give_back_memory();
        }
    }
}
