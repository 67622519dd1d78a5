//! How far a disk is trusted: every failure counts, and what it counts is halved with each hour. Arithmetic only.

use std::time::{Duration, Instant};

/// In this time a failure comes to count half.
const HALF_LIFE: Duration = Duration::from_secs(3600);

/// From here on a disk is suspect: four failures, of which little has been forgotten.
pub(super) const SUSPECT: f64 = 3.5;

/// From here on it is faulty.
pub(super) const FAULTY: f64 = 32.0;

/// Below this a suspect disk is trusted again.
const CALM: f64 = 1.0;

/// What wrong bytes alone can come to: they make a disk suspect and never faulty, since each read is verified and
/// each repair is.
const WRONG_BYTES: f64 = 16.0;

/// What a disk did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A read failed.
    Read,
    /// It gave other bytes than were written, or lacks them.
    WrongBytes,
    /// It let somebody wait too long.
    Slow,
}

/// What counts against a disk.
#[derive(Debug)]
pub(super) struct Score {
    points: f64,
    at: Instant,
}

impl Score {
    pub(super) fn new(now: Instant) -> Score {
        Score {
            points: 0.0,
            at: now,
        }
    }

    /// A disk that was suspect in an earlier mount.
    pub(super) fn suspect(now: Instant) -> Score {
        Score {
            points: SUSPECT,
            at: now,
        }
    }

    /// What counts now.
    pub(super) fn points(&mut self, now: Instant) -> f64 {
        let gone = now.saturating_duration_since(self.at).as_secs_f64();
        self.points *= 0.5_f64.powf(gone / HALF_LIFE.as_secs_f64());
        self.at = now;
        self.points
    }

    /// Counts a fault; tells what counts then.
    pub(super) fn add(&mut self, fault: Fault, now: Instant) -> f64 {
        let points = self.points(now);
        self.points = match fault {
            Fault::Read => points + 1.0,
            Fault::WrongBytes => (points + 1.0).min(points.max(WRONG_BYTES)),
            // Once is enough to go around it.
            Fault::Slow => (points + 1.0).max(SUSPECT),
        };
        self.points
    }

    /// Whether a suspect disk has done well for so long that it is trusted again.
    pub(super) fn is_calm(&mut self, now: Instant) -> bool {
        self.points(now) < CALM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_forgotten_in_hours_and_not_at_once() {
        let begun = Instant::now();
        let mut score = Score::new(begun);
        for _ in 0..3 {
            assert!(score.add(Fault::Read, begun) < SUSPECT);
        }
        assert!(score.add(Fault::Read, begun) >= SUSPECT);
        assert!(!score.is_calm(begun + HALF_LIFE));
        assert!(!score.is_calm(begun + 2 * HALF_LIFE));
        assert!(score.is_calm(begun + 2 * HALF_LIFE + Duration::from_secs(60)));
    }

    #[test]
    fn one_long_wait_is_enough_to_be_suspect() {
        let now = Instant::now();
        assert!(Score::new(now).add(Fault::Slow, now) >= SUSPECT);
    }

    #[test]
    fn wrong_bytes_alone_never_make_a_disk_faulty() {
        let now = Instant::now();
        let mut score = Score::new(now);
        for _ in 0..10_000 {
            score.add(Fault::WrongBytes, now);
        }
        assert!(score.points(now) < FAULTY);
        for _ in 0..32 {
            score.add(Fault::Read, now);
        }
        assert!(score.points(now) >= FAULTY);
        assert!(
            score.add(Fault::WrongBytes, now) >= FAULTY,
            "nothing is forgiven"
        );
    }
}
