//! What a disk's writer is at, so that others can tell that the disk hangs and go on without it: since when a call to the
//! disk has been under way, and who waits for its end.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{AppendError, Appended, Synced};

/// Somebody who waits for what comes of a call.
pub(super) enum Waiting {
    Append(Appended),
    Sync(Synced),
    Nobody,
}

impl Waiting {
    /// Tells him; a sync has no place to tell of.
    pub(super) fn answer(self, result: Result<u64, AppendError>) {
        match self {
            Waiting::Append(done) => done(result),
            Waiting::Sync(done) => done(result.map(|_| ())),
            Waiting::Nobody => {}
        }
    }

    pub(super) fn fail(self, why: &AppendError) {
        self.answer(Err(why.clone()));
    }
}

/// What those hear whose turn did not come any more.
pub(super) fn hung() -> AppendError {
    AppendError::new("the disk hung")
}

/// The call of one writer.
#[derive(Default)]
pub(super) struct Watch(Mutex<Call>);

#[derive(Default)]
enum Call {
    /// None is under way.
    #[default]
    None,
    Under {
        since: Instant,
        waiting: Vec<Waiting>,
    },
    /// Nobody waits for it any more, nor for any later one.
    GivenUp,
}

impl Watch {
    /// A call begins.
    pub(super) fn begin(&self, waiting: Vec<Waiting>) {
        let mut call = self.0.lock();
        if matches!(*call, Call::GivenUp) {
            drop(call);
            waiting
                .into_iter()
                .for_each(|waiting| waiting.fail(&hung()));
            return;
        }
        *call = Call::Under {
            since: Instant::now(),
            waiting,
        };
    }

    /// It has ended; these wait for what came of it.
    pub(super) fn end(&self) -> Vec<Waiting> {
        let mut call = self.0.lock();
        match std::mem::take(&mut *call) {
            Call::Under { waiting, .. } => waiting,
            Call::None => Vec::new(),
            Call::GivenUp => {
                *call = Call::GivenUp;
                Vec::new()
            }
        }
    }

    /// Whether a call has been under way for so long, and is waited for.
    pub(super) fn hangs_for(&self, limit: Duration) -> bool {
        matches!(&*self.0.lock(), Call::Under { since, .. } if since.elapsed() >= limit)
    }

    /// Gives up on the call; these waited for it.
    pub(super) fn give_up(&self) -> Vec<Waiting> {
        match std::mem::replace(&mut *self.0.lock(), Call::GivenUp) {
            Call::Under { waiting, .. } => waiting,
            Call::None | Call::GivenUp => Vec::new(),
        }
    }

    pub(super) fn is_given_up(&self) -> bool {
        matches!(*self.0.lock(), Call::GivenUp)
    }
}
