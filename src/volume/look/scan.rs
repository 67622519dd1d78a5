//! One pass over the pages of a file, in its own order and on all cores: which hold only zeros, and which may hold
//! vmcoreinfo. What it remembers is by file offset, so it holds under every layout; a bit a page.

use std::io;

use rayon::prelude::*;

use super::Progress;
use crate::guest::is_candidate;
use crate::snapshot::{
    AddressRun, Addresses, ByteSource, Gpa, PageMap, PieceKind, Place, SnapshotError, is_zero,
};

/// Pages' worth of the file that are read at once: one word of bits, and little enough to stay in a core's cache.
const CHUNK: u64 = 64;

/// Chunks that a thread looks at with one buffer, and that are handed over at once.
const SPELL: usize = 64;
const BATCH: u64 = 16 << 10;

/// How many places of vmcoreinfo are remembered. A guest has two or three, and stale ones from before a reboot.
const NOTES_MAX: usize = 64;

/// See the module's head.
pub(super) struct Scan {
    page_size: u64,
    /// A bit for each page-sized part of the file, of the page that begins there: no two pages can begin in one.
    zeros: Vec<u64>,
    /// File offsets of pages that may hold vmcoreinfo.
    notes: Vec<u64>,
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
            empty: 0,
        };
        // In batches, so that what the threads hand over stays small beside what is kept.
        let mut first = 0;
        while first < chunks {
            let end = chunks.min(first + BATCH);
            let parts: Vec<Part> = (0..(end - first) as usize)
                .into_par_iter()
                .with_min_len(SPELL)
                .map_init(Vec::new, |buffer, chunk| {
                    let start = (first + chunk as u64) * chunk_size;
                    let part = scan_chunk(map, source, start, buffer);
                    progress(chunk_size.min(map.file_length() - start));
                    part
                })
                .collect::<Result<_, _>>()?;
            for part in parts {
                scan.zeros.push(part.zeros);
                scan.empty += part.empty;
                let room = NOTES_MAX.saturating_sub(scan.notes.len());
                scan.notes.extend(part.notes.into_iter().take(room));
            }
            first = end;
        }
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
            source
                .read_at(start, buffer)
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
