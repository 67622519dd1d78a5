//! Which records of a live save still count. A page may be sent again while the guest runs; the last whole
//! record wins, and deltas after it change it. Knows the run log and nothing of where it came from.

use std::collections::HashMap;

use super::runs::{Kind, Run, RunLog};

/// A delta (XBZRLE) that changes a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Delta {
    /// The page number in RAM space.
    pub(super) page: u64,
    /// The file offset of the delta's first byte, behind its header.
    pub(super) file: u64,
    /// The delta's length in bytes.
    pub(super) length: u16,
}

/// Deltas of one page that are followed. A live save sends a page once a round at most, and a save to a file needs a dozen
/// rounds or two: the disk takes memory faster than a guest changes it, or the guest is slowed down until it does. 73 were
/// seen where neither was so. What bounds nothing lets a small file cost a day, for every read of such a page reads all of its
/// deltas.
pub(super) const DELTAS_MAX: usize = 128;

/// Pages a group of the set, and the words that they take.
const GROUP: u64 = 1024;
const WORDS: usize = GROUP as usize / 64;

/// A set of page numbers, which takes memory only where it has members.
#[derive(Debug, Default)]
struct PageSet {
    groups: HashMap<u64, Box<[u64; WORDS]>>,
}

impl PageSet {
    /// Adds the page; whether it is new.
    fn insert(&mut self, page: u64) -> bool {
        let group = self
            .groups
            .entry(page / GROUP)
            .or_insert_with(|| Box::new([0; WORDS]));
        let Some(word) = group.get_mut((page % GROUP / 64) as usize) else {
            return false;
        };
        let bit = 1 << (page % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn contains(&self, page: u64) -> bool {
        self.groups
            .get(&(page / GROUP))
            .and_then(|group| group.get((page % GROUP / 64) as usize))
            .is_some_and(|word| word & (1 << (page % 64)) != 0)
    }
}

/// Goes through the log from its end, finds what a later record replaces, and writes the log anew with that
/// marked. Deltas that a later record replaces are dropped from the list, which comes out sorted by page and
/// then by file offset. Nothing if a delta has no page to change.
pub(super) fn settle(log: &RunLog, deltas: &mut Vec<Delta>) -> Option<RunLog> {
    deltas.sort_unstable();
    let mut patched = PageSet::default();
    for delta in deltas.iter() {
        patched.insert(delta.page);
    }
    let records: u64 = all_runs(log).map(|run| records_of(&run)).sum();
    // A bit a record, in file order: not the last of its page.
    let mut dead = vec![0_u64; records.div_ceil(64) as usize];
    let mut bases: HashMap<u64, u64> = HashMap::new();
    let mut seen = PageSet::default();
    let mut ordinal = records;
    for chunk in (0..log.chunk_count()).rev() {
        let runs: Vec<Run> = log.chunk_runs(chunk).collect();
        for run in runs.iter().rev().filter(|run| run.kind != Kind::Framing) {
            let unit = log.geometry().unit(run.kind);
            for inside in (0..run.count).rev() {
                ordinal = ordinal.saturating_sub(1);
                let page = run.page + inside;
                if !seen.insert(page) {
                    if let Some(word) = dead.get_mut((ordinal / 64) as usize) {
                        *word |= 1 << (ordinal % 64);
                    }
                } else if patched.contains(page) {
                    bases.insert(page, run.file + inside * unit);
                }
            }
        }
    }
    if deltas.iter().any(|delta| !bases.contains_key(&delta.page)) {
        return None;
    }
    deltas.retain(|delta| {
        bases
            .get(&delta.page)
            .is_some_and(|base| *base < delta.file)
    });
    let patched = |page| {
        deltas
            .binary_search_by(|delta| delta.page.cmp(&page))
            .is_ok()
    };

    let start = all_runs(log).next().map_or(0, |run| run.file);
    let mut settled = RunLog::new(log.geometry(), start);
    let mut ordinal = 0_u64;
    for run in all_runs(log) {
        if run.kind == Kind::Framing {
            settled.framing(run.count);
            continue;
        }
        for page in (run.page..).take(run.count as usize) {
            let word = dead
                .get((ordinal / 64) as usize)
                .copied()
                .unwrap_or_default();
            let is_dead = word & (1 << (ordinal % 64)) != 0;
            ordinal += 1;
            let kind = match run.kind {
                Kind::Zero if is_dead => Kind::DeadZero,
                _ if is_dead => Kind::DeadPage,
                Kind::Page if patched(page) => Kind::Base,
                kind => kind,
            };
            settled.one(kind, page);
        }
    }
    settled.close();
    Some(settled)
}

fn all_runs(log: &RunLog) -> impl Iterator<Item = Run> {
    log.runs_from(0)
}

fn records_of(run: &Run) -> u64 {
    if run.kind == Kind::Framing {
        0
    } else {
        run.count
    }
}
