//! Where the tiers of a file's ranges come from. While a file is written a tier source is asked for a guess;
//! at a commit it gives the tiers that hold. The rest of the volume obeys and knows no reasons.

use std::fmt;
use std::ops::Range;

use super::error::Result;
use super::follow::Followed;
use super::look::{Insight, Look};
use crate::config::Tiering;
use crate::ids::FileId;
use crate::store::{Lane, Tier};

/// The bytes of a file as they stood when its commit began.
pub trait FrozenBytes: Sync {
    /// The file's length in bytes.
    fn size(&self) -> u64;
    /// Fills the buffer from the offset; what lies behind the end is zeros.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
    /// Calls the function for every hole of the file, in rising order and apart from each other.
    fn holes(&self, hole: &mut dyn FnMut(Range<u64>)) -> Result<()>;
    /// The same for who only has to find a way past bytes that are lost: those are filled with something that is neither
    /// zeros nor the beginning of anything. `read_at` fails there (`VolumeError::is_loss`). `lost` is told of each such range
    /// that no write has changed since the last commit, so that what was kept then holds for it.
    fn read_past_losses(
        &self,
        offset: u64,
        buffer: &mut [u8],
        lost: &mut dyn FnMut(Range<u64>),
    ) -> Result<()>;
    /// Whether bytes are lost or were given up. It may have to read all that is stored once.
    fn has_losses(&self) -> bool;
}

/// The tiers of a whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tiers {
    /// One for all of it.
    All(Tier),
    /// By range, in rising order and without overlap; what no range covers is critical.
    Runs(Vec<(Range<u64>, Tier)>),
}

impl Tiers {
    /// Cuts a range where its tier changes.
    pub fn split(&self, range: Range<u64>, mut piece: impl FnMut(Range<u64>, Tier)) {
        let runs = match self {
            Tiers::All(tier) => return piece(range, *tier),
            Tiers::Runs(runs) => runs,
        };
        let mut at = range.start;
        let first = runs.partition_point(|(run, _)| run.end <= range.start);
        for (run, tier) in runs.get(first..).unwrap_or_default() {
            if run.start >= range.end {
                break;
            }
            if at < run.start {
                piece(at..run.start, Tier::Critical);
                at = run.start;
            }
            let to = run.end.min(range.end);
            piece(at..to, *tier);
            at = to;
        }
        if at < range.end {
            piece(at..range.end, Tier::Critical);
        }
    }
}

/// A file whose commit has begun.
pub struct Finished<'a> {
    /// Which one.
    pub file: FileId,
    /// Its bytes.
    pub bytes: &'a dyn FrozenBytes,
    /// What went by while they were written.
    pub followed: &'a Followed,
    /// What is expendable in it.
    pub tiering: Tiering,
    /// What was seen when it was committed before, if that was kept.
    pub before: &'a dyn Fn() -> Result<Option<Insight>>,
    /// The whole look of then, if all of it was kept.
    pub kept: &'a dyn Fn() -> Result<Option<Look>>,
    /// Reads another file of the same directory, if there is one of that name and it is not too large.
    pub beside: &'a dyn Fn(&str) -> Option<Vec<u8>>,
}

/// What a commit is to do.
#[derive(Debug)]
pub struct Judged {
    /// The tiers of the file; none where they are what they were.
    pub tiers: Option<Tiers>,
    /// What is kept with the file.
    pub kept: Kept,
}

/// What is kept with a file of what was seen in it.
#[derive(Debug)]
pub enum Kept {
    /// What was kept before still holds.
    Same,
    /// Nothing.
    Nothing,
    /// These bytes: [`super::look::Look::keep`].
    Bytes(Vec<u8>),
}

impl Judged {
    /// All of it critical, and nothing known.
    pub fn critical() -> Judged {
        Judged {
            tiers: Some(Tiers::All(Tier::Critical)),
            kept: Kept::Nothing,
        }
    }
}

/// Says which tier the ranges of a file are of.
pub trait TierSource: Send + Sync + fmt::Debug {
    /// A guess while the range is written: only what is certain is more than `Undecided`.
    fn while_writing(&self, file: FileId, range: &Range<u64>, bytes: &[u8]) -> Lane;

    /// The tiers of the finished file. Not asked when no byte has changed since it was asked before.
    fn at_commit(&self, finished: &Finished<'_>) -> Judged;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_run_covers_is_critical() {
        let tiers = Tiers::Runs(vec![(10..20, Tier::Expendable), (30..40, Tier::Expendable)]);
        let mut pieces = Vec::new();
        tiers.split(5..35, |range, tier| pieces.push((range, tier)));
        assert_eq!(
            pieces,
            [
                (5..10, Tier::Critical),
                (10..20, Tier::Expendable),
                (20..30, Tier::Critical),
                (30..35, Tier::Expendable)
            ]
        );
    }
}
