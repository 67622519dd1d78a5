//! SEEK_DATA and SEEK_HOLE. What was written is data, zeros too, though nothing is stored of them: a diff snapshot is laid over
//! another by what is data in it. Holes may begin and end at any byte here, since a guest's page of zeros lies anywhere in a
//! stream; programs are told of those only that fill whole pages of the file. QEMU ends itself over a hole that begins in
//! the middle of a sector of a file it opened with O_DIRECT. Knows extents only.

use std::ops::Range;
use std::sync::Arc;

use super::error::{Result, VolumeError};
use super::file::{FileState, OpenFile};
use super::{Handle, Volume};
use crate::store::{Extent, Source};

/// Holes begin and end at multiples of so many bytes, or at the end of the file: no sector and no page is larger.
const UNIT: u64 = 4096;

/// Bytes of a file that are looked through first.
const FIRST: u64 = 256 << 10;

/// The most bytes of a file that are looked through at once.
const MOST: u64 = 1 << 30;

/// Bytes of a file that are looked through for whoever comes next, from where somebody asks on.
const AHEAD: u64 = 16 << 20;

/// Where a part of a file has data, as it was when somebody looked. A program that copies a file with holes asks twice for
/// each of them, and most answers are near the one before.
#[derive(Debug)]
pub(super) struct Seen {
    version: u64,
    size: u64,
    range: Range<u64>,
    /// In order, without gaps; whether it is data.
    runs: Vec<(Range<u64>, bool)>,
}

/// Nobody has looked there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unseen;

impl Seen {
    /// What the file has in the range. None while a program changes it, or a commit makes true what one has changed.
    fn look(state: &FileState, range: Range<u64>) -> Result<Option<Seen>> {
        if !is_at_rest(state) {
            return Ok(None);
        }
        let range = range.start..range.end.min(state.size);
        let extents = state.map.resolve(range.clone())?;
        Ok(Some(Seen::of(state.version, state.size, range, extents)))
    }

    fn of(version: u64, size: u64, range: Range<u64>, extents: Vec<Extent>) -> Seen {
        let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
        for extent in extents {
            let data = extent.source != Source::Hole;
            match runs.last_mut() {
                Some((last, kind)) if *kind == data => last.end = extent.range.end,
                _ => runs.push((extent.range, data)),
            }
        }
        Seen {
            version,
            size,
            range,
            runs,
        }
    }

    /// Whether it is so still: what is written makes a file dirty until a commit begins, which counts up its version when it
    /// ends.
    fn is_so(&self, state: &FileState) -> bool {
        is_at_rest(state) && (self.version, self.size) == (state.version, state.size)
    }

    fn within(&self, range: Range<u64>) -> std::result::Result<Vec<Extent>, Unseen> {
        if range.start < self.range.start || range.end > self.range.end {
            return Err(Unseen);
        }
        let first = self.runs.partition_point(|(run, _)| run.end <= range.start);
        let runs = self.runs.iter().skip(first);
        let runs = runs.take_while(|(run, _)| run.start < range.end);
        let extent = |(run, data): &(Range<u64>, bool)| Extent {
            range: run.start.max(range.start)..run.end.min(range.end),
            source: match data {
                true => Source::Dropped,
                false => Source::Hole,
            },
        };
        Ok(runs.map(extent).collect())
    }
}

fn is_at_rest(state: &FileState) -> bool {
    !state.is_dirty() && state.map.frozen.is_none()
}

impl Volume {
    /// SEEK_DATA and SEEK_HOLE: the first byte from `offset` on that is data, or none. ENXIO as lseek(2) says.
    pub fn seek(&self, handle: Handle, offset: u64, data: bool) -> Result<u64> {
        let handle = self.handle(handle)?;
        let state = handle.file.state.lock();
        let start = offset - offset % UNIT;
        if start < state.size {
            let seen = Seen::look(&state, start..start.saturating_add(AHEAD))?;
            *handle.seen.lock() = seen.map(Arc::new);
        }
        let found = find(state.size, offset, data, |range| state.map.resolve(range))?;
        found.ok_or_else(nothing_there)
    }

    /// Whether a byte is data, and how many from there on are the same: `length` at most, and of data no more than `most`;
    /// none at the end of the file. Nothing behind that is looked at.
    pub(super) fn run_at(
        &self,
        file: &OpenFile,
        offset: u64,
        length: u64,
        most: u64,
    ) -> Result<(bool, u64)> {
        let state = file.state.lock();
        let end = offset.saturating_add(length).min(state.size);
        let near = offset.saturating_add(most).min(end);
        let next = |data, end| find(end, offset, data, |range| state.map.resolve(range));
        let data = next(true, near)? == Some(offset);
        let end = if data {
            next(false, near)?.unwrap_or(near)
        } else {
            next(true, end)?.unwrap_or(end)
        };
        Ok((data, end.saturating_sub(offset)))
    }

    /// The same where somebody has looked before; `None` when it may have to wait. For the threads that serve the kernel.
    pub fn try_seek(&self, handle: Handle, offset: u64, data: bool) -> Option<Result<u64>> {
        let handle = match self.handle(handle) {
            Ok(handle) => handle,
            Err(error) => return Some(Err(error)),
        };
        let seen = handle.seen.try_lock()?.clone()?;
        let state = handle.file.state.try_lock()?;
        if !seen.is_so(&state) {
            return None;
        }
        drop(state);
        let found = find(seen.size, offset, data, |range| seen.within(range)).ok()?;
        Some(found.ok_or_else(nothing_there))
    }
}

fn nothing_there() -> VolumeError {
    VolumeError::new(libc::ENXIO, "there is no data at or behind that offset")
}

/// The first byte from `offset` on that is data, or none, in a file of `size` bytes.
fn find<E>(
    size: u64,
    offset: u64,
    data: bool,
    resolve: impl FnMut(Range<u64>) -> std::result::Result<Vec<Extent>, E>,
) -> std::result::Result<Option<u64>, E> {
    if offset >= size {
        return Ok(None);
    }
    match data {
        true => first_data(size, offset, resolve),
        false => Ok(first_hole(size, offset, resolve)?.or(Some(size))),
    }
}

/// Calls `look` for the extents from the unit of `offset` on until it gives something. Step by step: a range may hold any
/// number of extents, and most often the answer is near.
fn walk<T, E>(
    size: u64,
    offset: u64,
    mut resolve: impl FnMut(Range<u64>) -> std::result::Result<Vec<Extent>, E>,
    mut look: impl FnMut(&Extent) -> Option<T>,
) -> std::result::Result<Option<T>, E> {
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

fn first_data<E>(
    size: u64,
    offset: u64,
    resolve: impl FnMut(Range<u64>) -> std::result::Result<Vec<Extent>, E>,
) -> std::result::Result<Option<u64>, E> {
    walk(size, offset, resolve, |extent| {
        let start = extent.range.start;
        (extent.source != Source::Hole).then(|| offset.max(start - start % UNIT))
    })
}

fn first_hole<E>(
    size: u64,
    offset: u64,
    resolve: impl FnMut(Range<u64>) -> std::result::Result<Vec<Extent>, E>,
) -> std::result::Result<Option<u64>, E> {
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
            seen in prop_oneof![Just((0, 50_000)), (0u64..50_000, 0u64..50_000)],
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

            // What somebody saw of it gives the same, or nothing.
            let range = seen.0.min(size)..(seen.0 + seen.1).min(size);
            let extents = resolve(&overlay, range.clone()).expect("resolves");
            let seen = Seen::of(0, size, range.clone(), extents);
            let found = find(size, offset, true, |range| seen.within(range));
            prop_assert!(found == Ok(data) || found == Err(Unseen), "{:?}", found);
            let found = find(size, offset, false, |range| seen.within(range));
            prop_assert!(found == Ok(Some(hole)) || found == Err(Unseen), "{:?}", found);
            if range == (0..size) {
                prop_assert!(found.is_ok());
            }
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
