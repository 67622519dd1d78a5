//! From a page number to its place in the file. Knows the run log, and that in a settled log a page number
//! has one live run at most.
//!
//! Long runs are in a sorted table. Short ones are found through pairs (group of 1,024 page numbers, chunk
//! of the log), sorted: a chunk is decoded in less than a microsecond, and a group is in few chunks.

use std::ops::Range;

use super::runs::{Kind, Run, RunLog};

/// Pages that a run must have to be in the table of long ones. An entry takes 32 bytes.
const LONG: u64 = 256;

/// Page numbers a group.
pub(super) const GROUP: u64 = 1024;

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub(super) struct AddressIndex {
    long: Vec<Run>,
    /// The group in the upper half, the chunk in the lower.
    short: Vec<u64>,
}

impl AddressIndex {
    /// Indexes the live runs of a closed log.
    pub(super) fn new(log: &RunLog) -> Self {
        let mut index = Self::default();
        for chunk in 0..log.chunk_count() {
            for run in log.chunk_runs(chunk).filter(|run| run.kind.is_live()) {
                if run.count >= LONG {
                    index.long.push(run);
                    continue;
                }
                // A short run lies in two groups at most.
                for page in [run.page, run.page + (run.count - 1)] {
                    let pair = (page / GROUP) << 32 | chunk as u64;
                    if index.short.last() != Some(&pair) {
                        index.short.push(pair);
                    }
                }
            }
        }
        index.long.sort_unstable_by_key(|run| run.page);
        index.long.shrink_to_fit();
        index.short.sort_unstable();
        index.short.dedup();
        index.short.shrink_to_fit();
        index
    }

    /// The bytes of memory that the index takes.
    pub(super) fn memory(&self) -> u64 {
        (self.long.capacity() * size_of::<Run>() + self.short.capacity() * 8) as u64
    }

    /// The live run that holds the page.
    pub(super) fn find(&self, log: &RunLog, page: u64) -> Option<Run> {
        if let Some(run) = self
            .long_before(page)
            .filter(|run| page - run.page < run.count)
        {
            return Some(run);
        }
        let holds =
            |run: &Run| run.kind.is_live() && run.page <= page && page - run.page < run.count;
        self.chunks(page / GROUP)
            .find_map(|chunk| log.chunk_runs(chunk).find(holds))
    }

    /// The last long run that begins at the page or before.
    fn long_before(&self, page: u64) -> Option<Run> {
        let after = self.long.partition_point(|run| run.page <= page);
        self.long.get(after.checked_sub(1)?).copied()
    }

    fn chunks(&self, group: u64) -> impl Iterator<Item = usize> {
        let at = |group: u64| self.short.partition_point(|pair| pair >> 32 < group);
        let chunks: Range<usize> = at(group)..at(group + 1);
        self.short
            .get(chunks)
            .unwrap_or_default()
            .iter()
            .map(|pair| (pair & u64::from(u32::MAX)) as usize)
    }

    /// The first live run by page number of those that reach into `[page, end)`, cut to that range. What is
    /// passed over has no run. `window` is scratch that a caller keeps between calls.
    pub(super) fn next(
        &self,
        log: &RunLog,
        page: u64,
        end: u64,
        window: &mut Window,
    ) -> Option<Run> {
        let mut at = page;
        while at < end {
            let after = self.long.partition_point(|run| run.page <= at);
            let long = after
                .checked_sub(1)
                .and_then(|before| self.long.get(before));
            if let Some(run) = long.filter(|run| at - run.page < run.count) {
                return Some(cut(*run, log, at, end));
            }
            if window.group != Some(at / GROUP) {
                window.load(self, log, at / GROUP);
            }
            let next_long = self.long.get(after).map_or(u64::MAX, |run| run.page);
            let short = window.runs.iter().find(|run| run.page + run.count > at);
            // A long run may begin in this group as well, and before the short one.
            if let Some(run) = short.filter(|run| run.page < next_long) {
                if run.page >= end {
                    return None;
                }
                return Some(cut(*run, log, run.page.max(at), end));
            }
            // No short run comes next in this group: on to what does, a long run or a group that has
            // short ones.
            let group = at / GROUP + 1;
            let next_short = self
                .short
                .get(self.short.partition_point(|pair| pair >> 32 < group))
                .map_or(u64::MAX, |pair| (pair >> 32) * GROUP);
            at = next_short.min(next_long);
        }
        None
    }
}

/// The part of a run from one page to another.
fn cut(run: Run, log: &RunLog, from: u64, end: u64) -> Run {
    let skipped = from - run.page;
    Run {
        kind: run.kind,
        file: run.file + skipped * log.geometry().unit(run.kind),
        page: from,
        count: (run.count - skipped).min(end - from),
    }
}

/// The short runs of one group, by page number, for a walk in that order.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    group: Option<u64>,
    runs: Vec<Run>,
}

impl Window {
    fn load(&mut self, index: &AddressIndex, log: &RunLog, group: u64) {
        self.group = Some(group);
        self.runs.clear();
        let first = group * GROUP;
        for chunk in index.chunks(group) {
            self.runs.extend(log.chunk_runs(chunk).filter_map(|run| {
                let short = run.kind.is_live() && run.count < LONG;
                let from = run.page.max(first);
                let end = (run.page + if short { run.count } else { 0 }).min(first + GROUP);
                (short && from < end).then(|| cut(run, log, from, end))
            }));
        }
        self.runs.sort_unstable_by_key(|run| run.page);
        debug_assert!(self.runs.iter().all(|run| run.kind != Kind::Framing));
    }
}
