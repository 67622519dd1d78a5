//! One pass over the pages of a file, in its own order and on all cores: which hold only zeros, and which may hold
//! vmcoreinfo. Holes of the file are not read. What it remembers is by file offset, so it holds under every layout; a bit a
//! page.

use std::io;
use std::ops::Range;

use rayon::prelude::*;

use super::{Known, Progress};
use crate::guest::is_candidate;
use crate::snapshot::{
    AddressRun, Addresses, ByteSource, Content, Gpa, PageMap, PieceKind, Place, SnapshotError,
    is_zero,
};

/// Pages' worth of the file that are read at once: one word of bits, and little enough to stay in a core's cache.
const CHUNK: u64 = 64;

/// Chunks that a thread looks at with one buffer, and that are handed over at once.
const SPELL: usize = 64;
const BATCH: u64 = 16 << 10;

/// How many places of vmcoreinfo are remembered. A guest has two or three, and stale ones from before a reboot.
pub(super) const NOTES_MAX: usize = 64;

/// See the module's head.
pub(super) struct Scan {
    page_size: u64,
    /// A bit for each page-sized part of the file, of the page that begins there: no two pages can begin in one.
    zeros: Vec<u64>,
    /// File offsets of pages that may hold vmcoreinfo.
    notes: Vec<u64>,
    /// There were more of them than are remembered, so none proves anything.
    pub(super) cut: bool,
    /// Bytes of the file that are dead and zero: mostly holes.
    pub(super) empty: u64,
}

/// What one chunk of the file has.
struct Part {
    zeros: u64,
    empty: u64,
    notes: Vec<u64>,
}

impl Scan {
    pub(super) fn of(
        map: &PageMap,
        source: &(dyn ByteSource + Sync),
        progress: Progress<'_>,
    ) -> Result<Scan, SnapshotError> {
        let page_size = map.page_size();
        let chunk_size = CHUNK * page_size;
        let chunks = map.file_length().div_ceil(chunk_size);
        let mut scan = Scan {
            page_size,
            zeros: Vec::new(),
            notes: Vec::new(),
            cut: false,
            empty: 0,
        };
        let mut holes = Holes::new(source);
        // In batches, so that what the threads hand over stays small beside what is kept.
        let mut first = 0;
        while first < chunks {
            let end = chunks.min(first + BATCH);
            let stored = holes.stored(first..end, chunk_size, page_size)?;
            let parts: Vec<Part> = (0..(end - first) as usize)
                .into_par_iter()
                .with_min_len(SPELL)
                .map_init(Vec::new, |buffer, chunk| {
                    let start = (first + chunk as u64) * chunk_size;
                    let part = match stored.get(chunk) {
                        Some(false) => Ok(scan_hole(map, start)),
                        _ => scan_chunk(map, source, start, buffer),
                    };
                    progress(chunk_size.min(map.file_length() - start));
                    part
                })
                .collect::<Result<_, _>>()?;
            for part in parts {
                scan.zeros.push(part.zeros);
                scan.empty += part.empty;
                let room = NOTES_MAX.saturating_sub(scan.notes.len());
                scan.cut |= part.notes.len() > room;
                scan.notes.extend(part.notes.into_iter().take(room));
            }
            first = end;
        }
        Ok(scan)
    }

    /// What the pass would find, from what is known already: pages within holes are zero.
    pub(super) fn knowing(
        map: &PageMap,
        source: &dyn ByteSource,
        known: &Known<'_>,
    ) -> Result<Scan, SnapshotError> {
        let size = map.page_size();
        let words = map.file_length().div_ceil(CHUNK * size) as usize;
        let mut scan = Scan {
            page_size: size,
            zeros: vec![0; words],
            empty: 0,
            cut: false,
            notes: known.places.to_vec(),
        };
        let aligned = |&offset: &u64| match map
            .pieces(offset..offset + 1)
            .next()
            .map(|piece| piece.kind)
        {
            Some(PieceKind::Page(gpa)) => gpa.0.is_multiple_of(size),
            Some(PieceKind::Framing | PieceKind::Dead) | None => false,
        };
        scan.notes.retain(aligned);
        scan.notes.sort_unstable();
        if scan.notes.len() > NOTES_MAX {
            // Some are of bytes that were written over since. What cannot be read may be one.
            let mut head = [0; 24];
            let is_there =
                |&offset: &u64| source.read_at(offset, &mut head).is_err() || is_candidate(&head);
            scan.notes.retain(is_there);
            scan.cut = scan.notes.len() > NOTES_MAX;
            scan.notes.truncate(NOTES_MAX);
        }
        let mut hole = |hole: Range<u64>| {
            for piece in map.pieces(hole) {
                let PieceKind::Page(gpa) = piece.kind else {
                    if piece.kind == PieceKind::Dead {
                        scan.empty += piece.range.end - piece.range.start;
                    }
                    continue;
                };
                let mut at = piece.range.start + (gpa.0.next_multiple_of(size) - gpa.0);
                while at + size <= piece.range.end {
                    let bit = at / size;
                    if let Some(word) = scan.zeros.get_mut((bit / 64) as usize) {
                        *word |= 1 << (bit % 64);
                    }
                    at += size;
                }
            }
        };
        (known.holes)(&mut hole).map_err(|source| SnapshotError::Read { offset: 0, source })?;
        Ok(scan)
    }

    /// Whether the page that begins at the file offset holds only zeros.
    fn is_zero_at(&self, offset: u64) -> bool {
        let bit = offset / self.page_size;
        self.zeros
            .get((bit / 64) as usize)
            .is_some_and(|word| word >> (bit % 64) & 1 != 0)
    }

    /// The addresses of pages that may hold vmcoreinfo, as this layout has them.
    pub(super) fn notes(&self, map: &PageMap) -> Vec<u64> {
        let address = |&offset: &u64| match map.pieces(offset..offset + 1).next()?.kind {
            PieceKind::Page(gpa) => Some(gpa.0),
            PieceKind::Framing | PieceKind::Dead => None,
        };
        self.notes.iter().filter_map(address).collect()
    }
}

/// The pages put together from deltas that may hold vmcoreinfo, by where they begin in RAM space; no more than are
/// remembered and one. What cannot be read is none.
pub(super) fn patched_notes(map: &PageMap, source: &dyn ByteSource) -> Vec<u64> {
    let mut page = vec![0; map.page_size() as usize];
    map.patched()
        .filter(|&ram| {
            let read = map.read_ram(source, ram, &mut page);
            matches!(read, Ok(Content::Bytes)) && is_candidate(&page)
        })
        .take(NOTES_MAX + 1)
        .collect()
}

/// Where the source has holes, in rising order.
struct Holes<'s> {
    source: &'s (dyn ByteSource + Sync),
    /// The next range of data, if one is left.
    data: Option<Range<u64>>,
    /// Up to where the source was asked.
    asked: Option<u64>,
}

impl<'s> Holes<'s> {
    fn new(source: &'s (dyn ByteSource + Sync)) -> Self {
        Self {
            source,
            data: None,
            asked: Some(0),
        }
    }

    /// Whether there is anything to be read for each of these chunks: in itself or in the page after it, for its last
    /// page may end there.
    fn stored(
        &mut self,
        chunks: Range<u64>,
        chunk_size: u64,
        page_size: u64,
    ) -> Result<Vec<bool>, SnapshotError> {
        let mut stored = vec![false; (chunks.end - chunks.start) as usize];
        let end = chunks
            .end
            .saturating_mul(chunk_size)
            .saturating_add(page_size);
        loop {
            if self.data.is_none()
                && let Some(offset) = self.asked
            {
                self.data = self
                    .source
                    .next_data(offset)
                    .map_err(|source| SnapshotError::Read { offset, source })?
                    // Where a source contradicts itself, nothing is a hole.
                    .map(|data| match data.end > offset {
                        true => data.start.max(offset)..data.end,
                        false => offset..u64::MAX,
                    });
                self.asked = self.data.as_ref().map(|data| data.end);
            }
            let Some(data) = self.data.as_ref().filter(|data| data.start < end) else {
                return Ok(stored);
            };
            // The page before the data may reach into it.
            let from = (data.start.saturating_sub(page_size) / chunk_size).max(chunks.start);
            let to = data.end.div_ceil(chunk_size).min(chunks.end);
            let touched = stored
                .get_mut((from - chunks.start) as usize..(to.max(from) - chunks.start) as usize);
            touched.unwrap_or_default().fill(true);
            // What goes on in the next chunk is asked for again with it.
            if data.end > chunks.end.saturating_mul(chunk_size) {
                return Ok(stored);
            }
            self.data = None;
        }
    }
}

/// The pages that begin in one chunk of a hole.
fn scan_hole(map: &PageMap, start: u64) -> Part {
    let size = map.page_size();
    let mut part = Part {
        zeros: 0,
        empty: 0,
        notes: Vec::new(),
    };
    for piece in map.pieces(start..map.file_length().min(start + CHUNK * size)) {
        let range = piece.range;
        match piece.kind {
            PieceKind::Framing => {}
            PieceKind::Dead => part.empty += range.end - range.start,
            PieceKind::Page(gpa) => {
                let first = range.start + gpa.0.next_multiple_of(size).saturating_sub(gpa.0);
                for at in (first..range.end).step_by(size as usize) {
                    part.zeros |= 1 << ((at - start) / size);
                }
            }
        }
    }
    part
}

/// Looks at the pages that begin in one chunk.
fn scan_chunk(
    map: &PageMap,
    source: &(dyn ByteSource + Sync),
    start: u64,
    buffer: &mut Vec<u8>,
) -> Result<Part, SnapshotError> {
    let size = map.page_size();
    let mut part = Part {
        zeros: 0,
        empty: 0,
        notes: Vec::new(),
    };
    // The last page of the chunk may end in the next.
    let end = map.file_length().min(start + CHUNK * size);
    let length = (map.file_length().min(end + size) - start) as usize;
    let mut filled = false;
    for piece in map.pieces(start..end) {
        if piece.kind == PieceKind::Framing {
            continue;
        }
        if !filled {
            buffer.resize(length, 0);
            // A page that is lost is not zero: its class is what its struct page says.
            source
                .read_past_losses(start, buffer)
                .map_err(|source| SnapshotError::Read {
                    offset: start,
                    source,
                })?;
            filled = true;
        }
        let PieceKind::Page(gpa) = piece.kind else {
            let (from, to) = (piece.range.start - start, piece.range.end - start);
            let dead = buffer.get(from as usize..to as usize).unwrap_or_default();
            let zero = dead.chunks(size as usize).filter(|part| is_zero(part));
            part.empty += zero.map(|part| part.len() as u64).sum::<u64>();
            continue;
        };
        // A page that began in the chunk before was looked at there.
        let mut at = piece.range.start + gpa.0.next_multiple_of(size).saturating_sub(gpa.0);
        while at < piece.range.end {
            let from = (at - start) as usize;
            let Some(page) = buffer.get(from..from + size as usize) else {
                let source = io::ErrorKind::UnexpectedEof.into();
                return Err(SnapshotError::Read { offset: at, source });
            };
            if is_zero(page) {
                part.zeros |= 1 << ((at - start) / size);
            } else if is_candidate(page) && part.notes.len() < NOTES_MAX {
                part.notes.push(at);
            }
            at += size;
        }
    }
    Ok(part)
}

/// Tells, for addresses in rising order, whether the guest sees only zeros there.
pub(super) struct ZeroWalk<'a> {
    scan: &'a Scan,
    runs: Addresses<'a>,
    run: Option<AddressRun>,
}

impl<'a> ZeroWalk<'a> {
    pub(super) fn new(map: &'a PageMap, scan: &'a Scan) -> Self {
        let mut runs = map.addresses(Gpa(0)..Gpa(u64::MAX));
        let run = runs.next();
        Self { scan, runs, run }
    }

    /// How many pages of the guest, of `length` bytes each, hold only zeros from this one on; not always all of them.
    pub(super) fn zeros_from(&mut self, gpa: u64, length: u64) -> u64 {
        if !self.is_zero(gpa, length) {
            return 0;
        }
        // Where pages lie side by side in the file, a word of bits tells of many.
        let size = self.scan.page_size;
        let Some(run) = self.run.filter(|run| length == size && run.gpa.0 <= gpa) else {
            return 1;
        };
        let at = (gpa - run.gpa.0) / size;
        let left = run.pages.saturating_sub(at);
        match run.place {
            Place::Zero => left,
            Place::Stored(file) if run.stride == size => {
                let first = file / size + at;
                let words = self
                    .scan
                    .zeros
                    .get((first / 64) as usize..)
                    .unwrap_or_default();
                let full = words.iter().take_while(|&&word| word == u64::MAX).count() as u64;
                (full * 64).saturating_sub(first % 64).min(left)
            }
            _ => 1,
        }
        .max(1)
    }

    /// Whether `length` bytes from the address are in the file as zeros and nothing else.
    pub(super) fn is_zero(&mut self, gpa: u64, length: u64) -> bool {
        let size = self.scan.page_size;
        let mut page = gpa / size * size;
        let end = gpa.saturating_add(length);
        while page < end {
            while self
                .run
                .is_some_and(|run| run.gpa.0 + run.pages * size <= page)
            {
                self.run = self.runs.next();
            }
            let Some(run) = self.run.filter(|run| run.gpa.0 <= page) else {
                return false;
            };
            let zero = match run.place {
                Place::Zero => true,
                Place::Stored(file) => self
                    .scan
                    .is_zero_at(file + (page - run.gpa.0) / size * run.stride),
                Place::Patched | Place::Absent => false,
            };
            if !zero {
                return false;
            }
            page += size;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::Look;
    use super::*;
    use crate::guest::synthetic::{Synthetic, VMCOREINFO};
    use crate::snapshot::index;

    /// Bytes, and which parts of them are told to be data. What lies in a hole cannot be read.
    struct Holey {
        bytes: Vec<u8>,
        data: Vec<Range<u64>>,
        told: bool,
    }

    impl ByteSource for Holey {
        fn length(&self) -> io::Result<u64> {
            self.bytes.length()
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            self.bytes.read_at(offset, buffer)
        }

        fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
            let whole = 0..self.length()?;
            let data = if self.told {
                &self.data[..]
            } else {
                std::slice::from_ref(&whole)
            };
            let next = data.iter().find(|data| data.end > offset);
            Ok(next.map(|data| data.start.max(offset)..data.end))
        }
    }

    /// A LiME file of 40 MiB, so that no page is aligned, with data here and there.
    fn holey(seed: u64) -> Holey {
        let length = 32 + (40 << 20);
        let mut bytes = vec![0; length];
        bytes[..4].copy_from_slice(b"EMiL");
        bytes[4] = 1;
        bytes[16..24].copy_from_slice(&((40u64 << 20) - 1).to_le_bytes());
        let mut data: Vec<Range<u64>> = Vec::new();
        data.push(0..4096);
        let (mut at, mut random) = (4096, seed);
        loop {
            random = random
                .wrapping_mul(0x5851_F42D_4C95_7F2D)
                .wrapping_add(seed);
            let start = at + (1 + (random >> 33) % 300) * 4096;
            let end = start + (1 + (random >> 45) % 70) * 4096;
            if end > length as u64 {
                break;
            }
            // Some of the data is zeros all the same.
            if random >> 20 & 3 != 0 {
                bytes[start as usize] = 1;
                bytes[end as usize - 1] = 1;
            }
            data.push(start..end);
            at = end;
        }
        Holey {
            bytes,
            data,
            told: true,
        }
    }

    #[test]
    fn holes_are_the_zeros_that_they_read_as() {
        for seed in 1..40 {
            let mut source = holey(seed);
            let snapshot = index(&source).unwrap();
            let map = snapshot.map().unwrap();
            let told = Scan::of(map, &source, &|_| ()).unwrap();
            source.told = false;
            let read = Scan::of(map, &source, &|_| ()).unwrap();
            assert_eq!(told.zeros, read.zeros, "seed {seed}");
            assert_eq!((told.notes, told.empty), (read.notes, read.empty));
            assert!(
                told.zeros.iter().any(|&word| word != 0)
                    && told.zeros.iter().any(|&word| word != u64::MAX)
            );
        }
    }

    #[test]
    fn batches_hand_their_ranges_on() {
        let source = holey(7);
        let chunk = 64 << 10;
        let chunks = source.length().unwrap().div_ceil(chunk);
        let whole = Holes::new(&source).stored(0..chunks, chunk, 4096).unwrap();
        for step in [1, 2, 3, 17] {
            let mut holes = Holes::new(&source);
            let mut parts = Vec::new();
            for first in (0..chunks).step_by(step) {
                let end = chunks.min(first + step as u64);
                parts.extend(holes.stored(first..end, chunk, 4096).unwrap());
            }
            assert_eq!(parts, whole, "batches of {step}");
        }
    }

    #[test]
    fn a_guest_with_more_places_than_are_looked_at_is_not_found() {
        let text = (VMCOREINFO as usize, 4096);
        for (copies, wanted) in [(NOTES_MAX - 1, true), (NOTES_MAX, false)] {
            let mut guest = Synthetic::new();
            let page = guest.bytes[text.0..text.0 + text.1].to_vec();
            for copy in 0..copies {
                guest.bytes[(0x300 + copy) << 12..][..4096].copy_from_slice(&page);
            }
            let bytes = &guest.bytes;
            let mut places: Vec<u64> = (0..copies as u64).map(|at| (0x300 + at) << 12).collect();
            places.push(VMCOREINFO);
            // Of no page any more.
            places.extend((0..40).map(|at| (0x280 + at) << 12));
            let known = Known {
                places: &places,
                holes: &|_| Ok(()),
            };
            let snapshot = || super::super::recognise(bytes, None).expect("recognised");
            for look in [
                Look::into(snapshot(), bytes, &|_| ()),
                Look::knowing(snapshot(), bytes, &known),
            ] {
                let look = look.expect("looked into");
                assert_eq!(look.guest().is_ok(), wanted, "{:?}", look.guest());
                if let Err(reason) = look.guest() {
                    assert!(reason.to_string().contains("places"), "{reason}");
                }
            }
        }
    }

    #[test]
    fn a_source_that_stands_still_keeps_nobody() {
        struct Still;
        impl ByteSource for Still {
            fn length(&self) -> io::Result<u64> {
                Ok(1 << 20)
            }
            fn read_at(&self, _: u64, buffer: &mut [u8]) -> io::Result<()> {
                buffer.fill(0);
                Ok(())
            }
            fn next_data(&self, _: u64) -> io::Result<Option<Range<u64>>> {
                Ok(Some(0..4096))
            }
        }
        let snapshot = index(&Still).unwrap();
        Scan::of(snapshot.map().unwrap(), &Still, &|_| ()).unwrap();
    }
}
