//! SEEK_DATA and SEEK_HOLE. Holes may begin and end at any byte here, since a guest's page of zeros lies anywhere in a
//! stream; programs are told of those only that fill whole pages of the file. QEMU ends itself over a hole that begins in
//! the middle of a sector of a file it opened with O_DIRECT. Knows extents only.

use std::ops::Range;

use super::error::{Result, VolumeError};
use super::{Handle, Volume};
use crate::store::{Extent, Source};

/// Holes begin and end at multiples of so many bytes, or at the end of the file: no sector and no page is larger.
const UNIT: u64 = 4096;

/// Bytes of a file that are looked through first.
const FIRST: u64 = 256 << 10;

/// The most bytes of a file that are looked through at once.
const MOST: u64 = 1 << 30;

impl Volume {
    /// SEEK_DATA and SEEK_HOLE: the first byte from `offset` on that is data, or none. ENXIO as lseek(2) says.
    pub fn seek(&self, handle: Handle, offset: u64, data: bool) -> Result<u64> {
        let handle = self.handle(handle)?;
        let state = handle.file.state.lock();
        let size = state.size;
        let found = if offset >= size {
            None
        } else if data {
            first_data(size, offset, |range| state.map.resolve(range))?
        } else {
            let hole = first_hole(size, offset, |range| state.map.resolve(range))?;
            Some(hole.unwrap_or(size))
        };
        found.ok_or_else(|| {
            VolumeError::new(libc::ENXIO, "there is no data at or behind that offset")
        })
    }
}

/// Calls `look` for the extents from the unit of `offset` on until it gives something. Step by step: a range may hold any
/// number of extents, and most often the answer is near.
fn walk<T>(
    size: u64,
    offset: u64,
    mut resolve: impl FnMut(Range<u64>) -> Result<Vec<Extent>>,
    mut look: impl FnMut(&Extent) -> Option<T>,
) -> Result<Option<T>> {
    let (mut at, mut step) = (offset - offset % UNIT, FIRST);
    while at < size {
        let end = at.saturating_add(step).min(size);
        if let Some(found) = resolve(at..end)?.iter().find_map(&mut look) {
            return Ok(Some(found));
        }
        at = end;
        step = (step * 2).min(MOST);
    }
    Ok(None)
}

fn first_data(
    size: u64,
    offset: u64,
    resolve: impl FnMut(Range<u64>) -> Result<Vec<Extent>>,
) -> Result<Option<u64>> {
    walk(size, offset, resolve, |extent| {
        let start = extent.range.start;
        (extent.source != Source::Hole).then(|| offset.max(start - start % UNIT))
    })
}

fn first_hole(
    size: u64,
    offset: u64,
    resolve: impl FnMut(Range<u64>) -> Result<Vec<Extent>>,
) -> Result<Option<u64>> {
    // The first unit behind the data seen so far.
    let mut begin = offset - offset % UNIT;
    walk(size, offset, resolve, |extent| {
        let end = extent.range.end;
        if extent.source != Source::Hole {
            begin = end.saturating_add(UNIT - 1) / UNIT * UNIT;
            return None;
        }
        let holds_unit = begin < end && (end - begin >= UNIT || end == size);
        holds_unit.then(|| offset.max(begin))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::volume::overlay::Overlay;

    const DATA: Source = Source::Dropped;

    /// What a range of the file holds, and how often that was asked.
    fn resolve(overlay: &Overlay, range: Range<u64>) -> Result<Vec<Extent>> {
        let found = std::cell::RefCell::new(Vec::new());
        overlay.walk(
            range,
            &mut |extent| found.borrow_mut().push(extent),
            &mut |range| {
                let source = Source::Hole;
                found.borrow_mut().push(Extent { range, source });
            },
        );
        Ok(found.into_inner())
    }

    fn both(overlay: &Overlay, size: u64, offset: u64) -> (Option<u64>, u64) {
        let data = first_data(size, offset, |range| resolve(overlay, range)).expect("resolves");
        let hole = first_hole(size, offset, |range| resolve(overlay, range)).expect("resolves");
        (data, hole.unwrap_or(size))
    }

    proptest! {
        #[test]
        fn equals_what_whole_units_hold(
            writes in prop::collection::vec((0u64..40_000, 1u64..9_000, any::<bool>()), 0..12),
            size in 1u64..50_000,
            offset in 0u64..50_000,
        ) {
            prop_assume!(offset < size);
            let mut overlay = Overlay::default();
            let mut is_data = vec![false; 60_000];
            for (start, length, data) in writes {
                overlay.insert(start..start + length, if data { DATA } else { Source::Hole });
                is_data[start as usize..(start + length) as usize].fill(data);
            }
            let unit_is_data = |at: u64| {
                let start = at - at % UNIT;
                is_data[start as usize..(start + UNIT).min(size) as usize].contains(&true)
            };
            let data = (offset..size).find(|&at| unit_is_data(at));
            let hole = (offset..size).find(|&at| !unit_is_data(at)).unwrap_or(size);
            prop_assert_eq!(both(&overlay, size, offset), (data, hole));
        }
    }

    #[test]
    fn a_hole_of_a_tebibyte_is_walked_in_large_steps() {
        let (mut overlay, size) = (Overlay::default(), 1 << 40);
        overlay.insert(size - 5..size, DATA);
        let mut asked = 0;
        let data = first_data(size, 0, |range| {
            asked += 1;
            resolve(&overlay, range)
        });
        assert_eq!(data.expect("resolves"), Some(size - UNIT));
        assert!(asked < 1100, "{asked}");
    }

    #[test]
    fn what_is_near_is_found_without_looking_far() {
        let mut overlay = Overlay::default();
        overlay.insert(10_000..20_000, DATA);
        let mut furthest = 0;
        let mut near = |range: Range<u64>| {
            furthest = furthest.max(range.end);
            resolve(&overlay, range)
        };
        assert_eq!(
            first_data(1 << 40, 0, &mut near).expect("resolves"),
            Some(8192)
        );
        assert_eq!(
            first_hole(1 << 40, 8192, &mut near).expect("resolves"),
            Some(20_480)
        );
        assert!(furthest <= 2 * FIRST, "{furthest}");
    }
}
