//! Keeps work to a rate. Arithmetic and sleep only.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How far the work may run ahead of its rate, and how long it sleeps at a time.
const STEP: Duration = Duration::from_millis(50);

/// Bytes a second that may be spent.
#[derive(Debug)]
pub(super) struct Throttle {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rate: Option<u64>,
    since: Instant,
    spent: u64,
}

impl Throttle {
    pub(super) fn new(rate: Option<u64>) -> Throttle {
        Throttle {
            state: Mutex::new(State {
                rate,
                since: Instant::now(),
                spent: 0,
            }),
        }
    }

    /// Another rate from now on.
    pub(super) fn set(&self, rate: Option<u64>) {
        *self.state.lock() = State {
            rate,
            since: Instant::now(),
            spent: 0,
        };
    }

    /// How long to wait after so many bytes more.
    fn due(&self, bytes: u64) -> Duration {
        let mut state = self.state.lock();
        let Some(rate) = state.rate.filter(|rate| *rate > 0) else {
            return Duration::ZERO;
        };
        state.spent += bytes;
        let due = Duration::from_secs_f64(state.spent as f64 / rate as f64);
        due.saturating_sub(state.since.elapsed())
    }

    /// Waits after so many bytes, unless `ended` says that there is nothing to wait for any more.
    pub(super) fn spend(&self, bytes: u64, ended: &dyn Fn() -> bool) {
        let mut due = self.due(bytes);
        while due > STEP && !ended() {
            std::thread::sleep(due.min(STEP));
            // The rate may have been changed meanwhile.
            due = self.due(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_has_to_be_waited_for() {
        let throttle = Throttle::new(Some(1000));
        assert!(throttle.due(10_000) > Duration::from_secs(9));
        throttle.set(Some(1_000_000));
        assert!(throttle.due(10_000) < Duration::from_secs(1));
        throttle.set(None);
        assert_eq!(throttle.due(u64::MAX), Duration::ZERO);
    }

    #[test]
    fn nobody_waits_for_what_has_ended() {
        let throttle = Throttle::new(Some(1));
        throttle.spend(1 << 40, &|| true);
    }
}
