//! The memory that writing may take: bytes gathered, compressed, and waiting for a disk or for their
//! window's parity. Whoever wants more than is left waits, which is how a slow disk pushes back on a fast
//! writer. Knows nothing of what the bytes are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How long a request waits at least, when no memory comes back, before it is let through all the same: more
/// memory than allowed is better than a standstill.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long nothing may come back before a waiting request asks for relief.
const NUDGE: Duration = Duration::from_millis(50);

/// A number of bytes that is given out and taken back.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    held: Mutex<u64>,
    freed: Condvar,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Arc<Budget> {
        Arc::new(Budget {
            limit,
            held: Mutex::new(0),
            freed: Condvar::new(),
        })
    }

    /// The bytes that may be held at once.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The bytes that are held now.
    pub fn held(&self) -> u64 {
        *self.held.lock()
    }

    /// Takes bytes if they are there. A request is also granted when nothing at all is held, so that none
    /// is too large for ever.
    pub fn try_acquire(self: &Arc<Self>, bytes: u64) -> Option<Permit> {
        self.take(bytes, self.limit)
    }

    fn take(self: &Arc<Self>, bytes: u64, limit: u64) -> Option<Permit> {
        let mut held = self.held.lock();
        if *held > 0 && held.saturating_add(bytes) > limit {
            return None;
        }
        *held += bytes;
        Some(Permit {
            budget: Arc::clone(self),
            bytes,
        })
    }

    /// Waits for bytes. `relieve` is called, without any lock, each time the wait goes on: it should make
    /// others finish with what they hold.
    pub fn acquire(self: &Arc<Self>, bytes: u64, relieve: &dyn Fn()) -> Permit {
        let begun = Instant::now();
        let mut last = u64::MAX;
        loop {
            if let Some(permit) = self.try_acquire(bytes) {
                return permit;
            }
            let mut held = self.held.lock();
            let waited = self.freed.wait_for(&mut held, NUDGE);
            // As long as memory comes back the writers are at work, and closing windows early would only make
            // them small.
            let stuck = waited.timed_out() && *held >= last;
            last = *held;
            drop(held);
            if stuck {
                relieve();
                if begun.elapsed() > PATIENCE {
                    return self.force(bytes);
                }
            }
        }
    }

    /// Waits for bytes of the half that is not left to others, as long as `goes_on` says so, which is asked every now and then
    /// without any lock.
    pub fn acquire_of_half(
        self: &Arc<Self>,
        bytes: u64,
        goes_on: &dyn Fn() -> bool,
    ) -> Option<Permit> {
        let mut asked = Instant::now();
        loop {
            if let Some(permit) = self.take(bytes, self.limit / 2) {
                return Some(permit);
            }
            let mut held = self.held.lock();
            let left = NUDGE.saturating_sub(asked.elapsed());
            self.freed.wait_for(&mut held, left);
            drop(held);
            // By the clock: where others give back and take all the time, every wait ends before its time.
            if asked.elapsed() >= NUDGE {
                if !goes_on() {
                    return None;
                }
                asked = Instant::now();
            }
        }
    }

    /// Takes bytes whether they are there or not: for work that gives memory back once it is done.
    pub fn force(self: &Arc<Self>, bytes: u64) -> Permit {
        *self.held.lock() += bytes;
        Permit {
            budget: Arc::clone(self),
            bytes,
        }
    }
}

/// Bytes taken from a budget; they go back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Permit {
    /// Gives back what is more than `bytes`.
    pub fn shrink(&mut self, bytes: u64) {
        if bytes < self.bytes {
            self.give_back(self.bytes - bytes);
            self.bytes = bytes;
        }
    }

    /// Splits off a permit for `bytes` of this one's, or all of it.
    pub fn split(&mut self, bytes: u64) -> Permit {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Permit {
            budget: Arc::clone(&self.budget),
            bytes,
        }
    }

    /// Takes a further permit of the same budget into this one.
    pub fn merge(&mut self, mut other: Permit) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    fn give_back(&self, bytes: u64) {
        let mut held = self.budget.held.lock();
        *held = held.saturating_sub(bytes);
        drop(held);
        self.budget.freed.notify_all();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.give_back(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_no_more_than_its_limit_and_takes_back() {
        let budget = Budget::new(100);
        let mut first = budget.try_acquire(70).expect("room");
        assert!(budget.try_acquire(40).is_none());
        first.shrink(50);
        let second = budget.try_acquire(40).expect("room after shrinking");
        assert_eq!(budget.held(), 90);
        drop((first, second));
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn an_oversized_request_is_granted_alone() {
        let budget = Budget::new(10);
        let all = budget.try_acquire(50).expect("nothing else is held");
        assert!(budget.try_acquire(1).is_none());
        drop(all);
        assert!(budget.try_acquire(1).is_some());
    }

    #[test]
    fn who_takes_of_half_leaves_the_other_half() {
        let budget = Budget::new(100);
        let held = Mutex::new(Some(budget.try_acquire(40).expect("room")));
        let asked = std::cell::Cell::new(false);
        let permit = budget.acquire_of_half(20, &|| {
            asked.set(true);
            drop(held.lock().take());
            true
        });
        assert!(asked.get(), "more than half was given");
        assert!(permit.is_some() && budget.try_acquire(80).is_some());
        assert!(budget.acquire_of_half(40, &|| false).is_none());
    }

    #[test]
    fn who_takes_of_half_asks_whether_to_go_on_although_memory_comes_and_goes() {
        let budget = Budget::new(100);
        let _held = budget.try_acquire(60).expect("room");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let since = Instant::now();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) && since.elapsed() < PATIENCE
                {
                    let permit = budget.try_acquire(10);
                    std::thread::sleep(Duration::from_millis(5));
                    drop(permit);
                }
            });
            let begun = Instant::now();
            let permit = budget.acquire_of_half(20, &|| false);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(permit.is_none());
            assert!(begun.elapsed() < PATIENCE / 2);
        });
    }

    #[test]
    fn a_waiter_asks_for_relief_and_gets_what_comes_back() {
        let budget = Budget::new(10);
        let held = Mutex::new(Some(budget.try_acquire(10).expect("room")));
        let permit = budget.acquire(5, &|| drop(held.lock().take()));
        assert_eq!(budget.held(), 5);
        drop(permit);
    }
}
