//! Maps a file that says itself which guest-physical range lies where: ELF cores, LiME. Such a map's RAM
//! space is the guest-physical address space. Knows ranges, not the formats that name them.

use super::address::Gpa;
use super::error::Opaque;
use super::layout::{self, Layout, RamRange};
use super::map::{Block, PageMap};
use super::runs::{Geometry, Kind, RunLog};

/// A range of guest memory and where its bytes lie; all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) gpa: u64,
    pub(super) file: u64,
    pub(super) length: u64,
}

/// Maps the ranges. A page that a range holds only in part is framing, and absent to a reader.
pub(super) fn map(mut ranges: Vec<Stored>, file_length: u64) -> Result<PageMap, Opaque> {
    let page_size = Geometry::PLAIN.page_size;
    let malformed = |offset, what| Opaque::Malformed { offset, what };
    ranges.retain(|range| range.length > 0);
    ranges.sort_unstable_by_key(|range| range.file);
    let mut log = RunLog::new(Geometry::PLAIN, 0);
    let mut ram: Vec<RamRange> = Vec::new();
    for range in &ranges {
        if !layout::fits(range.gpa, range.length) {
            return Err(malformed(range.file, "memory beyond 52 bits of address"));
        }
        if range
            .file
            .checked_add(range.length)
            .is_none_or(|end| end > file_length)
        {
            return Err(Opaque::Unfinished(
                "the file ends before the guest's memory does",
            ));
        }
        if range.file < log.end() {
            return Err(malformed(
                range.file,
                "two ranges of memory in the same bytes",
            ));
        }
        let first = range.gpa.next_multiple_of(page_size);
        let end = (range.gpa + range.length) / page_size * page_size;
        if first < end {
            log.framing_to(range.file + (first - range.gpa));
            log.pages(Kind::Page, first / page_size, (end - first) / page_size);
            ram.push(RamRange {
                gpa: Gpa(first),
                ram: first,
                length: end - first,
            });
        }
        log.framing_to(range.file + range.length);
    }
    ram.sort_unstable_by_key(|range| range.gpa);
    // Neighbours are one range to the guest.
    ram.dedup_by(|later, earlier| {
        let joins = earlier.gpa.0 + earlier.length == later.gpa.0;
        if joins {
            earlier.length += later.length;
        }
        joins
    });
    let block = |range: &RamRange| Block {
        name: String::new(),
        ram: range.ram,
        length: range.length,
    };
    let blocks = ram.iter().map(block).collect();
    let layout = Layout::new("as the file says", ram)
        .ok_or(malformed(0, "two ranges of memory at the same address"))?;
    PageMap::new(log, blocks, vec![layout], Vec::new(), file_length)
        .ok_or(malformed(0, "no memory"))
}
