//! What the extents and windows of a file add up to: the sums that its head has of them, without which a commit would have to
//! walk through the file. Knows records, and neither maps nor manifests.

use std::collections::HashMap;

use crate::ids::WindowNo;
use crate::store::{Extent, Source, WindowRecord};

/// Bytes of windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// On the disks, parity included.
    pub stored: u64,
    /// Of these, in blocks under no parity.
    pub unprotected: u64,
    /// Of these, in blocks that are yet to be compressed.
    pub hasty: u64,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Sums) {
        self.stored += other.stored;
        self.unprotected += other.unprotected;
        self.hasty += other.hasty;
    }
}

/// What these windows take.
pub(super) fn sums<'a>(windows: impl IntoIterator<Item = &'a WindowRecord>) -> Sums {
    let mut sums = Sums::default();
    for window in windows {
        for block in &window.blocks {
            let stored = u64::from(block.stored);
            sums.stored += stored;
            if !block.protected {
                sums.unprotected += stored;
            }
            if block.hasty && !block.lost {
                sums.hasty += stored;
            }
        }
        sums.stored += u64::from(window.parity_length) * window.parity.len() as u64;
    }
    sums
}

/// The sums of a whole file. All its extents are counted first, then its windows.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// What lives in the windows that are yet to be counted.
    live: HashMap<WindowNo, u64>,
    /// Of the windows in which something lives.
    pub sums: Sums,
    /// Bytes in their blocks that nothing refers to any more.
    pub dead: u64,
    /// Bytes of the file that were given up, at most.
    pub given_up: u64,
}

impl Tally {
    /// Counts an extent.
    pub fn extent(&mut self, extent: &Extent) {
        let length = extent.range.end - extent.range.start;
        match extent.source {
            Source::Hole | Source::Zeros | Source::Inline { .. } => {}
            Source::Dropped => self.given_up += length,
            Source::Block { block, .. } => *self.live.entry(block.window).or_default() += length,
        }
    }

    /// The windows that extents lead to and that were not counted.
    pub fn uncounted(&self) -> impl Iterator<Item = WindowNo> + '_ {
        self.live.keys().copied()
    }

    /// Counts a window; says whether anything in it lives. One in which nothing does counts for nothing.
    pub fn window(&mut self, record: &WindowRecord) -> bool {
        let Some(alive) = self.live.remove(&record.no) else {
            return false;
        };
        self.sums += sums([record]);
        let raw: u64 = record.blocks.iter().map(|block| u64::from(block.raw)).sum();
        self.dead += raw.saturating_sub(alive);
        let lost = record.blocks.iter().filter(|block| block.lost);
        self.given_up += lost.map(|block| u64::from(block.raw)).sum::<u64>();
        true
    }
}
