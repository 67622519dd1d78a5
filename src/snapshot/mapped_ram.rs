//! QEMU's mapped-ram (since 9.0): every page has its fixed place in the file, and a bitmap for each RAM block
//! tells which pages are there. From QEMU's `docs/devel/migration/mapped-ram.rst` and `mapped_ram_setup_ramblock`.
//! The bitmaps are written last, so they are read when the file is finished.
//!
//! A bit that is clear means a zero page, whatever the bytes of its slot are: they may be left from an
//! earlier pass.

use super::error::{Opaque, SnapshotError};
use super::ram_blocks::RamBlocks;
use super::runs::{Geometry, Kind, RunLog};
use super::source::Reader;
use super::stream::bitmap_bytes;

/// How much of a bitmap is read at a time, in bytes.
const PART: u64 = 64 << 10;

/// Reads the bitmaps. The blocks lie in the file in their order.
pub(super) fn read(
    reader: &Reader<'_>,
    blocks: &RamBlocks,
    page_size: u64,
    limit: u64,
) -> Result<Result<RunLog, Opaque>, SnapshotError> {
    let mut log = RunLog::new(
        Geometry {
            page_size,
            lead: 0,
            zero_record: 0,
        },
        0,
    );
    let mut part = Vec::new();
    for block in blocks.iter() {
        let Some(mapped) = block.mapped else {
            return Ok(Err(Opaque::Malformed {
                offset: 0,
                what: "a block without a place",
            }));
        };
        log.framing_to(mapped.pages);
        let end = mapped.pages + block.pages * page_size;
        if end > reader.length() && block.pages > 0 {
            return Ok(Err(Opaque::Unfinished("the file ends before its pages do")));
        }
        let mut page = 0;
        let bytes = bitmap_bytes(block.pages);
        let mut done = 0;
        while done < bytes {
            part.resize((bytes - done).min(PART) as usize, 0);
            if !reader.fill(mapped.bitmap + done, &mut part)? {
                return Ok(Err(Opaque::Unfinished(
                    "the file ends before a bitmap does",
                )));
            }
            for word in part.as_chunks::<8>().0 {
                let pages = (block.pages - page).min(64);
                word_of_pages(
                    &mut log,
                    u64::from_le_bytes(*word),
                    block.first_page + page,
                    pages,
                );
                page += pages;
            }
            done += part.len() as u64;
            if log.roughly() > limit {
                return Ok(Err(Opaque::MapTooLarge { limit }));
            }
        }
    }
    Ok(Ok(log))
}

/// The pages of one word of a bitmap, the lowest bit first.
fn word_of_pages(log: &mut RunLog, word: u64, first: u64, pages: u64) {
    let mut at = 0;
    while at < pages {
        let rest = word >> at;
        let (kind, like) = if rest & 1 == 1 {
            (Kind::Page, rest.trailing_ones())
        } else {
            (Kind::EmptySlot, rest.trailing_zeros())
        };
        let count = u64::from(like).min(pages - at);
        log.pages(kind, first + at, count);
        at += count;
    }
}
