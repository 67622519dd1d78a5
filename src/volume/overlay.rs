//! An ordered map from ranges of a file to where their bytes are: what has changed over something below
//! it. A range it does not cover says nothing. Knows ranges only.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::store::{Extent, Source};

/// Ranges of a file with their sources, without overlap.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    map: BTreeMap<u64, (u64, Source)>,
    /// The bytes of all runs that are no holes.
    data: u64,
}

impl Overlay {
    /// How many runs it holds.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// How many bytes it says to be data.
    pub fn data(&self) -> u64 {
        self.data
    }

    /// Whether it says nothing at all.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Puts a source over a range, in place of whatever was said of it.
    pub fn insert(&mut self, range: Range<u64>, source: Source) {
        if range.is_empty() {
            return;
        }
        self.cut(&range);
        self.data += data_in(&range, source);
        let (mut start, mut end, mut source) = (range.start, range.end, source);
        if let Some((&before, &(before_end, before_source))) = self.map.range(..start).next_back()
            && before_end == start
            && continues(before_source, start - before, source)
        {
            (start, source) = (before, before_source);
        }
        if let Some(&(after_end, after_source)) = self.map.get(&end)
            && continues(source, end - start, after_source)
        {
            self.map.remove(&end);
            end = after_end;
        }
        self.map.insert(start, (end, source));
    }

    /// Makes it say nothing of a range.
    fn cut(&mut self, range: &Range<u64>) {
        if let Some((&start, &(end, source))) = self.map.range(..range.start).next_back()
            && end > range.start
        {
            self.data -= data_in(&(range.start..end.min(range.end)), source);
            self.map.insert(start, (range.start, source));
            if end > range.end {
                self.map
                    .insert(range.end, (end, source.advanced(range.end - start)));
            }
        }
        let inside: Vec<u64> = self
            .map
            .range(range.clone())
            .map(|(&start, _)| start)
            .collect();
        for start in inside {
            let Some((end, source)) = self.map.remove(&start) else {
                continue;
            };
            self.data -= data_in(&(start..end.min(range.end)), source);
            if end > range.end {
                self.map
                    .insert(range.end, (end, source.advanced(range.end - start)));
            }
        }
    }

    /// Puts everything that `newer` says over this.
    pub fn apply(&mut self, newer: &Overlay) {
        for extent in newer.iter() {
            self.insert(extent.range, extent.source);
        }
    }

    /// Where the last run that begins before the limit ends, the limit at most; 0 without any.
    pub fn end_below(&self, limit: u64) -> u64 {
        let last = self.map.range(..limit).next_back();
        last.map_or(0, |(_, (end, _))| (*end).min(limit))
    }

    /// All runs in rising order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.map.iter().map(|(&start, &(end, source))| Extent {
            range: start..end,
            source,
        })
    }

    /// Walks a range in rising order: `said` gets the runs that lie in it, clipped, `unsaid` the gaps.
    pub fn walk(
        &self,
        range: Range<u64>,
        said: &mut dyn FnMut(Extent),
        unsaid: &mut dyn FnMut(Range<u64>),
    ) {
        let mut at = range.start;
        let first = self
            .map
            .range(..range.start)
            .next_back()
            .filter(|(_, (end, _))| *end > range.start);
        for (&start, &(end, source)) in first.into_iter().chain(self.map.range(range.clone())) {
            let from = start.max(range.start);
            let to = end.min(range.end);
            if at < from {
                unsaid(at..from);
            }
            said(Extent {
                range: from..to,
                source: source.advanced(from - start),
            });
            at = to;
        }
        if at < range.end {
            unsaid(at..range.end);
        }
    }

    /// Replaces the sources of all runs for which `change` gives another one.
    pub fn remap(&mut self, change: &dyn Fn(Source) -> Option<Source>) {
        for (&start, (end, source)) in &mut self.map {
            if let Some(other) = change(*source) {
                self.data -= data_in(&(start..*end), *source);
                self.data += data_in(&(start..*end), other);
                *source = other;
            }
        }
    }
}

fn data_in(range: &Range<u64>, source: Source) -> u64 {
    match source {
        Source::Hole | Source::Zeros => 0,
        _ => range.end - range.start,
    }
}

/// Whether `next` is what follows `length` bytes after `source`.
fn continues(source: Source, length: u64, next: Source) -> bool {
    match source {
        Source::Hole | Source::Dropped | Source::Zeros => next == source,
        // An offset must stay below the size of a block or a piece, which longer runs cannot.
        Source::Block { .. } | Source::Inline { .. } => {
            length <= u64::from(u32::MAX) && source.advanced(length) == next
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{BlockId, WindowNo};

    fn source(number: u8) -> Source {
        match number {
            0 => Source::Hole,
            n => Source::Block {
                block: BlockId {
                    window: WindowNo(n.into()),
                    index: 0,
                },
                offset: 0,
            },
        }
    }

    fn bytes_of(overlay: &Overlay, length: u64) -> Vec<Option<Source>> {
        let mut bytes = vec![None; length as usize];
        let covered = std::cell::Cell::new(0);
        overlay.walk(
            0..length,
            &mut |extent| {
                for at in extent.range.clone() {
                    bytes[at as usize] = Some(extent.source.advanced(at - extent.range.start));
                }
                covered.set(covered.get() + extent.range.end - extent.range.start);
            },
            &mut |gap| covered.set(covered.get() + gap.end - gap.start),
        );
        assert_eq!(covered.get(), length);
        bytes
    }

    proptest! {
        #[test]
        fn equals_a_byte_by_byte_model(
            edits in prop::collection::vec((0u64..200, 1u64..60, 0u8..4), 0..40),
            split in 0usize..40,
        ) {
            let mut model: Vec<Option<Source>> = vec![None; 300];
            let (mut older, mut newer) = (Overlay::default(), Overlay::default());
            for (i, &(start, length, number)) in edits.iter().enumerate() {
                let overlay = if i < split { &mut older } else { &mut newer };
                overlay.insert(start..start + length, source(number));
                for at in start..start + length {
                    model[at as usize] = Some(source(number).advanced(at - start));
                }
            }
            older.apply(&newer);
            let is_data = |at: &&Option<Source>| at.is_some_and(|source| source != Source::Hole);
            prop_assert_eq!(older.data(), model.iter().filter(is_data).count() as u64);
            prop_assert_eq!(bytes_of(&older, 300), model);
        }
    }

    #[test]
    fn what_follows_on_becomes_one_run() {
        let mut overlay = Overlay::default();
        let first = source(1);
        overlay.insert(100..200, first.advanced(100));
        overlay.insert(0..50, first);
        overlay.insert(50..100, first.advanced(50));
        assert_eq!(overlay.len(), 1);
        overlay.insert(10..20, Source::Hole);
        assert_eq!(overlay.len(), 3);
    }
}
