//! Ranges and edits of a file, in order, in a few bytes each: what a view keeps of a guest of a terabyte must fit beside
//! everything else. Knows numbers only.
//!
//! Both are rows of varints in chunks of 64, each of which says where it begins, so that a place is found by bisection.
//!
//! ```text
//! run    distance from the end of the one before, length << 2 | kind     varints: groups of 7 bits, lowest first,
//! edit   distance from the one before, then the byte of bits that stay              bit 7 set while more follow
//! ```

use std::ops::Range;

/// Entries of one chunk.
const CHUNK: usize = 64;

/// Where a chunk begins: the offset that its first distance counts from, and the place of its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    base: u64,
    at: usize,
}

/// Ranges in rising order, apart from each other, each of one of four kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    /// Runs in `bytes`.
    count: usize,
    /// Where the last of them ends.
    end: u64,
    /// The newest run, which may still grow.
    open: Option<(Range<u64>, u8)>,
    total: u64,
}

impl Runs {
    /// Adds a range behind all others; one that goes on where the last one ended, and is of its kind, makes it longer.
    /// `kind` is below 4.
    pub fn push(&mut self, range: Range<u64>, kind: u8) {
        debug_assert!(kind < 4);
        if range.is_empty() {
            return;
        }
        self.total += range.end - range.start;
        if let Some((open, of)) = &mut self.open {
            debug_assert!(open.end <= range.start);
            if open.end == range.start && *of == kind {
                open.end = range.end;
                return;
            }
        }
        if let Some((open, of)) = self.open.replace((range, kind)) {
            if self.count.is_multiple_of(CHUNK) {
                let (base, at) = (self.end, self.bytes.len());
                self.marks.push(Mark { base, at });
            }
            put(&mut self.bytes, open.start - self.end);
            put(
                &mut self.bytes,
                (open.end - open.start) << 2 | u64::from(of),
            );
            self.end = open.end;
            self.count += 1;
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.open.is_none()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count + usize::from(self.open.is_some())
    }

    /// Bytes in all of them.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.bytes.capacity() + self.marks.capacity() * size_of::<Mark>()
    }

    /// The parts of the runs that lie in a range, in order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, u8)> + '_ {
        let after = self.marks.partition_point(|mark| mark.base <= range.start);
        // Without a mark before it there is nothing coded that could reach into the range but what comes first.
        let mark = self.marks.get(after.saturating_sub(1)).copied();
        let mut at = mark.map_or(self.bytes.len(), |mark| mark.at);
        let mut end = mark.map_or(self.end, |mark| mark.base);
        let mut open = self.open.clone();
        std::iter::from_fn(move || {
            if at >= self.bytes.len() {
                return open.take();
            }
            let start = end + take(&self.bytes, &mut at);
            let word = take(&self.bytes, &mut at);
            end = start + (word >> 2);
            Some((start..end, (word & 3) as u8))
        })
        .skip_while({
            let start = range.start;
            move |(run, _)| run.end <= start
        })
        .take_while({
            let end = range.end;
            move |(run, _)| run.start < end
        })
        .map(move |(run, kind)| (run.start.max(range.start)..run.end.min(range.end), kind))
    }

    /// All runs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Range<u64>, u8)> + '_ {
        self.within(0..u64::MAX)
    }
}

/// Edits of single bytes, in layers that are each in rising order. A byte may have edits in several: they add up, in any order.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    layers: Vec<Layer>,
    /// Not yet a layer.
    open: Vec<(u64, u8)>,
}

#[derive(Clone, Debug, Default)]
struct Layer {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    count: usize,
}

/// Edits that are sorted at once: 16 bytes each.
const OPEN_MAX: usize = 1 << 20;

impl Edits {
    /// Adds an edit: of the byte at the offset, the bits in `and` stay.
    pub fn add(&mut self, offset: u64, and: u8) {
        self.open.push((offset, and));
        if self.open.len() >= OPEN_MAX {
            self.close();
        }
    }

    /// No more edits come for now: those that were added count from here on.
    pub fn close(&mut self) {
        self.open.sort_unstable();
        let mut layer = Layer::default();
        let mut before = 0;
        let mut edits = self.open.drain(..).peekable();
        while let Some((offset, mut and)) = edits.next() {
            while let Some((_, more)) = edits.next_if(|(next, _)| *next == offset) {
                and &= more;
            }
            if layer.count.is_multiple_of(CHUNK) {
                let (base, at) = (before, layer.bytes.len());
                layer.marks.push(Mark { base, at });
            }
            put(&mut layer.bytes, offset - before);
            layer.bytes.push(and);
            layer.count += 1;
            before = offset;
        }
        drop(edits);
        self.open = Vec::new();
        if layer.count > 0 {
            layer.bytes.shrink_to_fit();
            self.layers.push(layer);
        }
    }

    /// How many there are, those of one byte in several layers counted in each.
    pub fn len(&self) -> usize {
        self.layers.iter().map(|layer| layer.count).sum()
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        let layers = self.layers.iter();
        let coded = layers
            .map(|layer| layer.bytes.capacity() + layer.marks.capacity() * size_of::<Mark>())
            .sum::<usize>();
        coded + self.open.capacity() * size_of::<(u64, u8)>()
    }

    /// Tells the edits of a range, byte by byte, layer after layer.
    pub fn within(&self, range: Range<u64>, mut edit: impl FnMut(u64, u8)) {
        for layer in &self.layers {
            let after = layer.marks.partition_point(|mark| mark.base < range.start);
            let Some(mark) = layer.marks.get(after.saturating_sub(1)) else {
                continue;
            };
            let (mut at, mut offset) = (mark.at, mark.base);
            while at < layer.bytes.len() {
                offset += take(&layer.bytes, &mut at);
                let and = layer.bytes.get(at).copied().unwrap_or(u8::MAX);
                at += 1;
                if offset >= range.end {
                    break;
                }
                if offset >= range.start {
                    edit(offset, and);
                }
            }
        }
    }
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take(bytes: &[u8], at: &mut usize) -> u64 {
    let mut value = 0u64;
    let mut shift = 0;
    while let Some(&byte) = bytes.get(*at) {
        *at += 1;
        value |= u64::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 || shift > 63 {
            break;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_as_a_byte_by_byte_model(
            steps in prop::collection::vec((0u64..40, 1u64..50, 0u8..4), 0..400),
            (from, length) in (0u64..9000, 0u64..3000),
        ) {
            let mut runs = Runs::default();
            let mut model = BTreeMap::new();
            let mut at = 0;
            for (gap, length, kind) in steps {
                let range = at + gap..at + gap + length;
                at = range.end;
                for byte in range.clone() {
                    model.insert(byte, kind);
                }
                runs.push(range, kind);
            }
            prop_assert_eq!(runs.total(), model.len() as u64);
            prop_assert_eq!(runs.iter().count(), runs.len());
            let found: Vec<(u64, u8)> = runs
                .within(from..from + length)
                .flat_map(|(range, kind)| range.map(move |byte| (byte, kind)))
                .collect();
            let expected: Vec<(u64, u8)> = model.range(from..from + length).map(|(b, k)| (*b, *k)).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn edits_add_up_as_in_a_model(
            edits in prop::collection::vec((0u64..5000, any::<u8>()), 0..600),
            split in 0usize..600,
            (from, length) in (0u64..5000, 0u64..2000),
        ) {
            let mut coded = Edits::default();
            let mut model: BTreeMap<u64, u8> = BTreeMap::new();
            for (number, &(offset, and)) in edits.iter().enumerate() {
                if number == split {
                    coded.close();
                }
                coded.add(offset, and);
                *model.entry(offset).or_insert(u8::MAX) &= and;
            }
            coded.close();
            let mut found: BTreeMap<u64, u8> = BTreeMap::new();
            coded.within(from..from + length, |offset, and| {
                *found.entry(offset).or_insert(u8::MAX) &= and;
            });
            let expected: BTreeMap<u64, u8> = model.range(from..from + length).map(|(o, a)| (*o, *a)).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_terabyte_of_single_pages_takes_few_bytes_a_page() {
        let mut runs = Runs::default();
        let mut edits = Edits::default();
        // As bad as it gets: every second page, its struct page edited, at the distances of a whole large guest.
        let pages = 200_000u64;
        for page in 0..pages {
            runs.push(page * 8192..page * 8192 + 4096, 1);
            edits.add((1 << 40) + page * 128 + 1, 0xF7);
        }
        edits.close();
        assert_eq!((runs.len(), edits.len()), (pages as usize, pages as usize));
        assert!(runs.memory() as u64 <= 9 * pages, "{}", runs.memory());
        assert!(edits.memory() as u64 <= 4 * pages, "{}", edits.memory());
    }
}
