//! Compaction: when half of what a file stores is dead, what lives is moved together and the rest is
//! given back. It is a commit like any other, made aside.

use std::sync::Arc;

use super::Volume;
use super::commit::Purpose;
use super::file::OpenFile;
use crate::store::Source;

/// Less dead than this is not worth the work. Bytes.
const LEAST: u64 = 256 << 10;

impl Volume {
    /// Begins a compaction if the file is worth one.
    pub(super) fn consider_compaction(&self, file: &Arc<OpenFile>) {
        if self.wants_compaction(file) {
            self.commit_aside(file, Purpose::Compact);
        }
    }

    /// Whether more than half of the file's bytes in blocks is dead.
    pub(super) fn wants_compaction(&self, file: &OpenFile) -> bool {
        let state = file.state.lock();
        if state.dead < LEAST {
            return false;
        }
        let below = state
            .map
            .base
            .as_ref()
            .map_or(0, |base| base.totals().logical);
        let over: u64 = state
            .map
            .settled
            .iter()
            .filter(|extent| !matches!(extent.source, Source::Hole | Source::Zeros))
            .map(|extent| extent.range.end - extent.range.start)
            .sum();
        // What is dead of the base's bytes since it was written is no longer alive.
        let since = state.dead.saturating_sub(state.head.base_dead);
        state.dead >= (below + over).saturating_sub(since)
    }
}
