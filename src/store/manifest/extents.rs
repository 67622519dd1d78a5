//! Extents as a manifest stores them, and the walk along them.

use std::ops::Range;

use super::ManifestError;
use super::pages::{PageCursor, Pages, partition};
use super::root::{Section, SectionKind};
use crate::ids::{BlockId, WindowNo};
use crate::store::records::{BLOCK_MAX, Extent, Source, WINDOW_BLOCKS};
use crate::store::wire::Wire;

const BLOCK: u8 = 1;
const INLINE: u8 = 2;
const DROPPED: u8 = 3;
const ZEROS: u8 = 4;

/// Appends an extent's entry. `None` for a hole, for an empty one, and for one that no entry can hold.
pub(super) fn put_extent(out: &mut Vec<u8>, extent: &Extent) -> Option<()> {
    let length = extent.range.end.checked_sub(extent.range.start)?;
    let length = u32::try_from(length).ok().filter(|&length| length > 0)?;
    let (number, first, place, kind) = match extent.source {
        Source::Hole => return None,
        Source::Dropped => (0, 0, 0, DROPPED),
        Source::Zeros => (0, 0, 0, ZEROS),
        Source::Block { block, offset } => (block.window.0, offset, block.index, BLOCK),
        Source::Inline { piece, offset } => (piece, offset, 0, INLINE),
    };
    possible(kind, place, first, length).then_some(())?;
    out.extend_from_slice(&extent.range.start.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&first.to_le_bytes());
    out.extend_from_slice(&place.to_le_bytes());
    out.extend_from_slice(&[kind, 0]);
    Some(())
}

/// Whether an extent of `length` bytes can lie there.
pub(super) fn possible(kind: u8, place: u16, first: u32, length: u32) -> bool {
    let end = first.checked_add(length);
    match kind {
        BLOCK => {
            usize::from(place) < WINDOW_BLOCKS && end.is_some_and(|end| end as usize <= BLOCK_MAX)
        }
        INLINE => end.is_some(),
        DROPPED | ZEROS => place == 0 && first == 0,
        _ => false,
    }
}

fn parse(entry: &[u8]) -> Option<Extent> {
    let mut wire = Wire::new(entry);
    let start = wire.u64()?;
    let length = wire.u32().filter(|&length| length > 0)?;
    let (number, first) = (wire.u32()?, wire.u32()?);
    let place = wire.u16()?;
    let kind = wire.u8()?;
    if !possible(kind, place, first, length) {
        return None;
    }
    let source = match kind {
        BLOCK => Source::Block {
            block: BlockId {
                window: WindowNo(number),
                index: place,
            },
            offset: first,
        },
        DROPPED if number == 0 => Source::Dropped,
        ZEROS if number == 0 => Source::Zeros,
        DROPPED | ZEROS => return None,
        _ => Source::Inline {
            piece: number,
            offset: first,
        },
    };
    Some(Extent {
        range: start..start.checked_add(length.into())?,
        source,
    })
}

/// Extents in rising order, cut to the range that was asked for; what lies between them is holes. Ends
/// after the first error.
#[derive(Debug)]
pub struct Extents<'a> {
    cursor: PageCursor<'a>,
    section: Section,
    next: u64,
    range: Range<u64>,
    /// Where the extent before ended.
    behind: Option<u64>,
}

impl<'a> Extents<'a> {
    pub(super) fn seek(
        pages: &'a Pages,
        section: Section,
        fences: Section,
        range: Range<u64>,
    ) -> Result<Self, ManifestError> {
        let mut extents = Extents {
            cursor: PageCursor::seeking(pages),
            section,
            next: 0,
            range,
            behind: None,
        };
        extents.next = extents.first_behind(fences, extents.range.start)?;
        Ok(extents)
    }

    pub(super) fn all(pages: &'a Pages, section: Section) -> Self {
        Extents {
            cursor: PageCursor::streaming(pages),
            section,
            next: 0,
            range: 0..u64::MAX,
            behind: None,
        }
    }

    /// The first extent that ends behind `offset`.
    fn first_behind(&mut self, fences: Section, offset: u64) -> Result<u64, ManifestError> {
        let per_page = SectionKind::Extents.per_page();
        let pages = self.section.entries.div_ceil(per_page);
        if fences.entries != pages {
            let pages = self.cursor.pages();
            return Err(pages.format("there is not one fence a page of extents"));
        }
        let mut cursor = PageCursor::seeking(self.cursor.pages());
        let begun = partition(pages, |page| {
            let fence = cursor.entry(fences, SectionKind::ExtentFences, page)?;
            Ok(Wire::new(fence).u64().is_some_and(|start| start <= offset))
        })?;
        let first = begun.saturating_sub(1) * per_page;
        let count = per_page.min(self.section.entries.saturating_sub(first));
        let before = partition(count, |place| {
            Ok(self.entry(first + place)?.range.end <= offset)
        })?;
        Ok(first + before)
    }

    fn entry(&mut self, number: u64) -> Result<Extent, ManifestError> {
        let pages = self.cursor.pages();
        let entry = self
            .cursor
            .entry(self.section, SectionKind::Extents, number)?;
        parse(entry).ok_or_else(|| pages.format("an extent is impossible"))
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent, ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.section.entries {
            return None;
        }
        let number = self.next;
        // Until the extent has been found good, it is the last.
        self.next = self.section.entries;
        let extent = match self.entry(number) {
            Ok(extent) => extent,
            Err(error) => return Some(Err(error)),
        };
        let Range { start, end } = extent.range;
        let disorder = match self.behind {
            Some(behind) => start < behind,
            None => end <= self.range.start,
        };
        if disorder {
            let pages = self.cursor.pages();
            return Some(Err(pages.format("extents are out of order")));
        }
        if start >= self.range.end {
            return None;
        }
        self.behind = Some(end);
        self.next = number + 1;
        let cut = start.max(self.range.start);
        Some(Ok(Extent {
            range: cut..end.min(self.range.end),
            source: extent.source.advanced(cut - start),
        }))
    }
}
