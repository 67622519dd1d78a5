//! The run log: what a file is made of, in file order, at most about a byte a page. Knows pages by their
//! number in RAM space and nothing of guests or formats.
//!
//! A log is a row of *runs*: so many pages, so many zero records, so many bytes of framing. A run of up to
//! 31 pages that goes on where the last one stopped takes one byte, so the worst that a paused guest can do,
//! a zero page after every page, costs a byte a page; a bitmap per page would be smaller there and larger
//! everywhere else. Runs are gathered into chunks of up to 256 bytes, each of which says where it begins, so
//! that a place in the file is found by bisection.
//!
//! ```text
//! byte   bits 0-2: kind   bits 3-7: count - 1 if that is below 31, else 31 and count - 32 follows, in
//!                         groups of 7 bits, lowest first, bit 7 set while more follow
//! jump   kind 6, the same for the distance to the next page number, zigzag (n << 1) ^ (n >> 63), plus 1
//! ```

use std::sync::Arc;

/// What a run consists of. The numbers are those of the encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Pages of the guest: framing before each, then the page.
    Page,
    /// Records that say "this page is zero".
    Zero,
    /// Pages that a later record replaces.
    DeadPage,
    /// Zero records that a later record replaces.
    DeadZero,
    /// Room for pages that are zero: the bytes mean nothing, nobody reads them.
    EmptySlot,
    /// Bytes that belong to no page. The count is in bytes.
    Framing,
    /// Pages that later deltas change: needed, but not what the guest sees.
    Base,
}

/// The kind bits that mean "the page number changes".
const JUMP: u8 = 6;

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Page => 0,
            Self::Zero => 1,
            Self::DeadPage => 2,
            Self::DeadZero => 3,
            Self::EmptySlot => 4,
            Self::Framing => 5,
            Self::Base => 7,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Page,
            1 => Self::Zero,
            2 => Self::DeadPage,
            3 => Self::DeadZero,
            4 => Self::EmptySlot,
            5 => Self::Framing,
            7 => Self::Base,
            _ => return None,
        })
    }

    /// Whether the run tells what its pages are in the end.
    pub(super) fn is_live(self) -> bool {
        matches!(self, Self::Page | Self::Zero | Self::EmptySlot | Self::Base)
    }
}

/// What the units of a format measure, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// A page; a power of two.
    pub(super) page_size: u64,
    /// The framing before each page.
    pub(super) lead: u64,
    /// A record of a zero page.
    pub(super) zero_record: u64,
}

impl Geometry {
    /// Pages of 4 KiB one after the other.
    pub(super) const PLAIN: Self = Self {
        page_size: 4096,
        lead: 0,
        zero_record: 0,
    };

    /// The file bytes of one unit of a run, framing included.
    pub(super) fn unit(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Page | Kind::DeadPage | Kind::Base => self.lead + self.page_size,
            Kind::Zero | Kind::DeadZero => self.zero_record,
            Kind::EmptySlot => self.page_size,
            Kind::Framing => 1,
        }
    }
}

/// One run, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) kind: Kind,
    /// The file offset of the first byte, framing included.
    pub(super) file: u64,
    /// The number of the first page in RAM space; for framing that of the next page.
    pub(super) page: u64,
    /// Pages; bytes for framing.
    pub(super) count: u64,
}

impl Run {
    /// The page numbers after this run.
    fn next_page(&self) -> u64 {
        if self.kind == Kind::Framing {
            self.page
        } else {
            self.page.saturating_add(self.count)
        }
    }
}

/// Where a chunk begins, in the file and in RAM space, and where its bytes are.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    file: u64,
    page: u64,
    segment: u32,
    start: u16,
    length: u16,
}

/// The bytes of a chunk at most.
const CHUNK: usize = 256;

/// The bytes kept together. Small enough that a copy of a log, which shares all segments but the last, is cheap.
const SEGMENT: usize = 32 << 10;

/// The bytes of one encoded run and the jump before it at most.
const LONGEST: usize = 2 * (1 + 10);

/// See the module's head.
#[derive(Clone, Debug)]
pub(super) struct RunLog {
    geometry: Geometry,
    chunks: Vec<Chunk>,
    segments: Vec<Arc<Vec<u8>>>,
    /// The run that is still growing.
    open: Run,
    /// The page number that the decoder has after the last encoded run.
    encoded_page: u64,
    /// Above every page number so far.
    highest: u64,
    ordered: bool,
}

impl RunLog {
    /// An empty log of a file that begins at `file`.
    pub(super) fn new(geometry: Geometry, file: u64) -> Self {
        Self {
            geometry,
            chunks: Vec::new(),
            segments: Vec::new(),
            open: Run {
                kind: Kind::Framing,
                file,
                page: 0,
                count: 0,
            },
            encoded_page: 0,
            highest: 0,
            ordered: true,
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The file offset up to which the log tells what the bytes are.
    pub(super) fn end(&self) -> u64 {
        let bytes = self
            .geometry
            .unit(self.open.kind)
            .saturating_mul(self.open.count);
        self.open.file.saturating_add(bytes)
    }

    /// Whether every page came after all others of a lower number, so that none can have come twice.
    pub(super) fn is_ordered(&self) -> bool {
        self.ordered
    }

    /// The bytes of memory that the log takes.
    pub(super) fn memory(&self) -> u64 {
        let segments: usize = self
            .segments
            .iter()
            .map(|segment| segment.capacity() + 48)
            .sum();
        (segments + self.chunks.capacity() * size_of::<Chunk>()) as u64
    }

    /// A cheap stand-in for [`RunLog::memory`], for a look at every write.
    pub(super) fn roughly(&self) -> u64 {
        (self.segments.len() * SEGMENT + self.chunks.len() * size_of::<Chunk>()) as u64
    }

    /// The next bytes are framing.
    pub(super) fn framing(&mut self, bytes: u64) {
        if bytes > 0 {
            let page = self.open.next_page();
            self.push(Kind::Framing, page, bytes);
        }
    }

    /// The next bytes are framing up to the file offset, if it lies ahead.
    pub(super) fn framing_to(&mut self, offset: u64) {
        self.framing(offset.saturating_sub(self.end()));
    }

    /// The next bytes are so many pages or records of pages from `page` on.
    pub(super) fn pages(&mut self, kind: Kind, page: u64, count: u64) {
        if count > 0 {
            self.ordered &= page >= self.highest;
            self.highest = self.highest.max(page.saturating_add(count));
            self.push(kind, page, count);
        }
    }

    /// One more page, as [`RunLog::pages`]; worth its own path because it runs once a page.
    #[inline]
    pub(super) fn one(&mut self, kind: Kind, page: u64) {
        if self.open.kind == kind
            && page == self.open.page + self.open.count
            && page >= self.highest
        {
            self.open.count += 1;
            self.highest = page + 1;
        } else {
            self.pages(kind, page, 1);
        }
    }

    fn push(&mut self, kind: Kind, page: u64, count: u64) {
        if self.open.kind == kind && page == self.open.next_page() {
            self.open.count = self.open.count.saturating_add(count);
            return;
        }
        let file = self.end();
        self.seal();
        self.open = Run {
            kind,
            file,
            page,
            count,
        };
    }

    /// Encodes the open run.
    fn seal(&mut self) {
        let run = self.open;
        if run.count == 0 {
            return;
        }
        let page_matters = run.kind != Kind::Framing;
        let room = |chunk: &Chunk| usize::from(chunk.length) + LONGEST <= CHUNK;
        if !self.chunks.last().is_some_and(room) {
            let full = self
                .segments
                .last()
                .is_none_or(|bytes| bytes.len() + CHUNK > SEGMENT);
            if full {
                self.segments.push(Arc::new(Vec::with_capacity(SEGMENT)));
            }
            let start = self.segments.last().map_or(0, |bytes| bytes.len());
            self.chunks.push(Chunk {
                file: run.file,
                page: run.page,
                segment: self.segments.len().saturating_sub(1) as u32,
                start: start as u16,
                length: 0,
            });
            self.encoded_page = run.page;
        }
        let (Some(segment), Some(chunk)) = (self.segments.last_mut(), self.chunks.last_mut())
        else {
            return;
        };
        let bytes = Arc::make_mut(segment);
        let before = bytes.len();
        if page_matters && self.encoded_page != run.page {
            let distance = run.page.wrapping_sub(self.encoded_page) as i64;
            let zigzag = (distance << 1) ^ (distance >> 63);
            encode(bytes, JUMP, zigzag as u64);
            self.encoded_page = run.page;
        }
        encode(bytes, run.kind.code(), run.count - 1);
        if page_matters {
            self.encoded_page = run.page.saturating_add(run.count);
        }
        chunk.length += (bytes.len() - before) as u16;
    }

    /// No more runs will come: gives back what was taken in advance.
    pub(super) fn close(&mut self) {
        let end = self.end();
        let page = self.open.next_page();
        self.seal();
        self.open = Run {
            kind: Kind::Framing,
            file: end,
            page,
            count: 0,
        };
        self.chunks.shrink_to_fit();
        if let Some(last) = self.segments.last_mut() {
            Arc::make_mut(last).shrink_to_fit();
        }
    }

    /// How many chunks there are.
    pub(super) fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// The runs of one chunk.
    pub(super) fn chunk_runs(&self, chunk: usize) -> ChunkRuns<'_> {
        let (bytes, file, page) = self.chunks.get(chunk).map_or((&[][..], 0, 0), |chunk| {
            let start = usize::from(chunk.start);
            let bytes = self
                .segments
                .get(chunk.segment as usize)
                .and_then(|segment| segment.get(start..start + usize::from(chunk.length)))
                .unwrap_or_default();
            (bytes, chunk.file, chunk.page)
        });
        ChunkRuns {
            bytes,
            geometry: self.geometry,
            file,
            page,
        }
    }

    /// All runs, from the chunk that holds the file offset on.
    pub(super) fn runs_from(&self, offset: u64) -> Runs<'_> {
        let after = self.chunks.partition_point(|chunk| chunk.file <= offset);
        let chunk = after.saturating_sub(1);
        Runs {
            log: self,
            chunk,
            inside: self.chunk_runs(chunk),
            open: (self.open.count > 0).then_some(self.open),
        }
    }
}

/// One step of an encoded row of runs.
pub(super) enum Token {
    /// So many units of a kind.
    Run(Kind, u64),
    /// The page number changes by so many.
    Jump(i64),
}

/// Adds a run to a row of runs that lie one behind the other; `page` is the decoder's page number.
pub(super) fn encode_run(bytes: &mut Vec<u8>, run: &Run, page: &mut u64) {
    if run.kind != Kind::Framing && *page != run.page {
        let distance = run.page.wrapping_sub(*page) as i64;
        let zigzag = (distance << 1) ^ (distance >> 63);
        encode(bytes, JUMP, zigzag as u64);
    }
    encode(bytes, run.kind.code(), run.count.saturating_sub(1));
    if run.kind != Kind::Framing {
        *page = run.page.saturating_add(run.count);
    }
}

/// The next step of a row of runs; nothing if it is none.
pub(super) fn decode_token(rest: &mut &[u8]) -> Option<Token> {
    let (&first, mut after) = rest.split_first()?;
    let mut value = u64::from(first >> 3);
    if value == 31 {
        let mut shift = 0;
        loop {
            let (&byte, next) = after.split_first()?;
            after = next;
            let part = u64::from(byte & 0x7f);
            if shift > 63 || part.leading_zeros() < shift {
                return None;
            }
            value = value.checked_add(part << shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = after;
    Some(match Kind::from_code(first & 7) {
        Some(kind) => Token::Run(kind, value.checked_add(1)?),
        None => Token::Jump((value >> 1) as i64 ^ -((value & 1) as i64)),
    })
}

fn encode(bytes: &mut Vec<u8>, kind: u8, value: u64) {
    if value < 31 {
        bytes.push(kind | (value as u8) << 3);
        return;
    }
    bytes.push(kind | 31 << 3);
    let mut rest = value - 31;
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

/// The runs of one chunk, in file order.
#[derive(Clone, Debug)]
pub(super) struct ChunkRuns<'a> {
    bytes: &'a [u8],
    geometry: Geometry,
    file: u64,
    page: u64,
}

impl ChunkRuns<'_> {
    #[inline]
    fn token(&mut self) -> Option<(u8, u64)> {
        let (first, mut rest) = self.bytes.split_first()?;
        let mut value = u64::from(first >> 3);
        if value == 31 {
            let mut shift = 0;
            loop {
                let (byte, after) = rest.split_first()?;
                rest = after;
                value = value.wrapping_add(u64::from(byte & 0x7f).wrapping_shl(shift));
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
        }
        self.bytes = rest;
        Some((first & 7, value))
    }
}

impl Iterator for ChunkRuns<'_> {
    type Item = Run;

    #[inline]
    fn next(&mut self) -> Option<Run> {
        loop {
            let (code, value) = self.token()?;
            let Some(kind) = Kind::from_code(code) else {
                let distance = (value >> 1) as i64 ^ -((value & 1) as i64);
                self.page = self.page.wrapping_add(distance as u64);
                continue;
            };
            let run = Run {
                kind,
                file: self.file,
                page: self.page,
                count: value.saturating_add(1),
            };
            self.file = self
                .file
                .saturating_add(self.geometry.unit(kind).saturating_mul(run.count));
            self.page = run.next_page();
            return Some(run);
        }
    }
}

/// The runs of a log, in file order.
#[derive(Clone, Debug)]
pub(super) struct Runs<'a> {
    log: &'a RunLog,
    chunk: usize,
    inside: ChunkRuns<'a>,
    open: Option<Run>,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        loop {
            if let Some(run) = self.inside.next() {
                return Some(run);
            }
            if self.chunk + 1 < self.log.chunk_count() {
                self.chunk += 1;
                self.inside = self.log.chunk_runs(self.chunk);
            } else {
                return self.open.take();
            }
        }
    }
}
