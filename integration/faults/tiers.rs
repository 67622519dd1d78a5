//! Tiers that a test makes up: every fourth page is critical for good, the others are of one tier or the other, and
//! change when they are told to.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use parsfs::ids::FileId;
use parsfs::store::{Lane, Tier};
use parsfs::volume::{Finished, Judged, Kept, TierSource, Tiers};

use crate::random::mix;

/// What tiers are told by.
pub const PAGE: u64 = 4096;

/// The source of made-up tiers.
#[derive(Debug, Default)]
pub struct MadeUp {
    salt: AtomicU64,
}

impl MadeUp {
    /// From now on other pages are expendable.
    pub fn change(&self) {
        self.salt.fetch_add(1, Ordering::Relaxed);
    }

    fn tier(&self, page: u64) -> Tier {
        let salt = self.salt.load(Ordering::Relaxed);
        if always_critical(page) || mix(page / 3 + salt * 1000).is_multiple_of(2) {
            Tier::Critical
        } else {
            Tier::Expendable
        }
    }
}

/// Whether a page of any file is critical whatever the source says of the others.
pub fn always_critical(page: u64) -> bool {
    mix(page).is_multiple_of(4)
}

impl TierSource for MadeUp {
    fn while_writing(&self, _: FileId, range: &Range<u64>, _: &[u8]) -> Lane {
        // Right as long as nothing changes, or no guess.
        let pages = range.start / PAGE..range.end.div_ceil(PAGE);
        let expendable = pages
            .clone()
            .all(|page| self.tier(page) == Tier::Expendable);
        match mix(range.start) % 3 {
            0 => Lane::Critical,
            1 if expendable => Lane::Expendable,
            _ => Lane::Undecided,
        }
    }

    fn at_commit(&self, finished: &Finished<'_>) -> Judged {
        let size = finished.bytes.size();
        let runs = (0..size.div_ceil(PAGE)).map(|page| {
            let end = ((page + 1) * PAGE).min(size);
            (page * PAGE..end, self.tier(page))
        });
        Judged {
            tiers: Some(Tiers::Runs(runs.collect())),
            kept: Kept::Nothing,
        }
    }
}
