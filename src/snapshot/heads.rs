//! Heads of records that a page map can write again. In QEMU's stream eight bytes stand before every page: its offset in its RAM block,
//! and what the record is. For a page that follows another in one run both are known from the map, so these bytes can be lost
//! with the page. Without that, every page of a stream would have bytes of both tiers. Knows the run log.
//!
//! The first page of a run is left out: the name of a block may stand in its head.

use std::ops::Range;

use super::map::PageMap;
use super::runs::{Geometry, Kind, Run, Runs};

/// `RAM_SAVE_FLAG_PAGE | RAM_SAVE_FLAG_CONTINUE` (QEMU's `migration/ram.c`).
const FLAGS: u64 = 0x28;

/// The bytes of a head.
const HEAD: u64 = 8;

/// Tells, for ranges in rising order, whether they are such heads.
#[derive(Clone, Debug)]
pub struct Heads<'a> {
    map: &'a PageMap,
    geometry: Geometry,
    runs: Runs<'a>,
    run: Option<Run>,
}

impl PageMap {
    /// The heads from a file offset on.
    pub fn heads(&self, offset: u64) -> Heads<'_> {
        let mut runs = self.inner.log.runs_from(offset);
        let run = runs.next();
        Heads {
            map: self,
            geometry: self.inner.log.geometry(),
            runs,
            run,
        }
    }

    /// Writes the heads that lie in the bytes from `offset` of the file, as far as they lie there.
    pub fn write_heads(&self, offset: u64, bytes: &mut [u8]) {
        let end = offset.saturating_add(bytes.len() as u64);
        let mut heads = self.heads(offset);
        let mut at = offset;
        while let Some((range, head)) = heads.next_head(at, end) {
            for (place, byte) in range.clone().zip(head) {
                let inside = place
                    .checked_sub(offset)
                    .and_then(|at| usize::try_from(at).ok());
                if let Some(to) = inside.and_then(|at| bytes.get_mut(at)) {
                    *to = byte;
                }
            }
            at = range.end;
        }
    }
}

impl Heads<'_> {
    /// Whether a range lies in one head.
    pub fn has(&mut self, range: &Range<u64>) -> bool {
        let found = self.next_head(range.start, range.end);
        found.is_some_and(|(head, _)| head.start <= range.start && range.end <= head.end)
    }

    /// The first head that reaches into a range, and its bytes. Ranges must come in rising order.
    fn next_head(&mut self, from: u64, end: u64) -> Option<(Range<u64>, [u8; 8])> {
        loop {
            let run = self.run?;
            let unit = self.geometry.unit(run.kind);
            let run_end = run.file.saturating_add(unit.saturating_mul(run.count));
            let second = run.file.saturating_add(unit);
            if run.kind != Kind::Page || self.geometry.lead != HEAD || run_end <= from.max(second) {
                if run.file >= end {
                    return None;
                }
                self.run = self.runs.next();
                continue;
            }
            // The unit that holds the first byte, or the one behind it if that byte is in its page.
            let at = from.max(second);
            let mut number = (at - run.file) / unit;
            if (at - run.file) % unit >= HEAD {
                number += 1;
            }
            if number >= run.count {
                self.run = self.runs.next();
                continue;
            }
            let start = run.file + number * unit;
            if start >= end {
                return None;
            }
            let ram = (run.page + number).checked_mul(self.geometry.page_size)?;
            let blocks = self.map.blocks();
            let after = blocks.partition_point(|block| block.ram <= ram);
            let block = blocks.get(after.checked_sub(1)?)?;
            let word = (ram - block.ram) | FLAGS;
            return Some((start..start + HEAD, word.to_be_bytes()));
        }
    }
}
