//! The thread that makes durable what nobody asks for: a second after it was changed, and into the
//! databases when enough has gathered or half a minute has gone by.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::inner::Inner;

/// Rung when there is something to do.
#[derive(Debug, Default)]
pub(super) struct Wake {
    state: Mutex<Bell>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct Bell {
    rung: bool,
    stop: bool,
}

impl Wake {
    pub(super) fn ring(&self) {
        self.state.lock().rung = true;
        self.rung.notify_one();
    }

    pub(super) fn stop(&self) {
        self.state.lock().stop = true;
        self.rung.notify_one();
    }

    /// Waits until it is rung or the time has come; false when it is time to end.
    fn wait(&self, until: Option<Instant>) -> bool {
        let mut bell = self.state.lock();
        while !bell.rung && !bell.stop {
            match until {
                None => self.rung.wait(&mut bell),
                Some(until) => {
                    if self.rung.wait_until(&mut bell, until).timed_out() {
                        break;
                    }
                }
            }
        }
        bell.rung = false;
        !bell.stop
    }
}

/// Starts the thread. It does not keep `inner` alive.
pub(super) fn start(inner: &Arc<Inner>) -> std::io::Result<thread::JoinHandle<()>> {
    let wake = Arc::clone(&inner.wake);
    let inner = Arc::downgrade(inner);
    thread::Builder::new()
        .name("meta-flush".to_owned())
        .spawn(move || run(&wake, &inner))
}

fn run(wake: &Wake, inner: &Weak<Inner>) {
    let mut dirty_since: Option<Instant> = None;
    let mut next: Option<Instant> = None;
    while wake.wait(next) {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        next = tend(&inner, &mut dirty_since);
    }
}

/// Does what is due; gives when to come again.
fn tend(inner: &Arc<Inner>, dirty_since: &mut Option<Instant>) -> Option<Instant> {
    if inner.check_writable().is_err() {
        return None;
    }
    let now = Instant::now();
    let options = &inner.options;
    let report = |what, result: super::Result<()>| {
        if let Err(error) = result {
            tracing::error!(%error, "cannot {what}");
        }
    };
    report("heal damaged metadata", inner.heal());
    let (pending, pending_bytes) = {
        let writer = inner.writer.lock();
        (!writer.pending.is_empty(), writer.bytes)
    };
    if pending {
        let since = *dirty_since.get_or_insert(now);
        if now >= since + options.flush_after || pending_bytes > options.checkpoint_bytes {
            report("make metadata durable", inner.sync());
            *dirty_since = None;
        }
    } else {
        *dirty_since = None;
    }
    let in_memory = inner.state.read().current.bytes();
    let last = *inner.checkpointing.lock();
    if in_memory > options.checkpoint_bytes
        || in_memory > 0 && now >= last + options.checkpoint_after
    {
        report("bring the metadata databases up", inner.checkpoint());
        *dirty_since = None;
    }
    let flush = dirty_since.map(|since| since + options.flush_after);
    let in_memory = inner.state.read().current.bytes() > 0;
    let checkpoint = in_memory.then(|| {
        let last = *inner.checkpointing.lock();
        // Not at once again after one that failed.
        (last + options.checkpoint_after).max(now + Duration::from_secs(1))
    });
    flush.into_iter().chain(checkpoint).min()
}
