//! The page map: which bytes of a file are which page of the guest. What this room gives to the others.
//! Knows no format: each of them fills a run log and this is the one way to ask it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::address::Gpa;
use super::error::SnapshotError;
use super::index::{AddressIndex, Window};
use super::layout::Layout;
use super::pieces::Pieces;
use super::runs::{Kind, Run, RunLog};
use super::source::ByteSource;
use super::supersede::{DELTAS_MAX, Delta};
use super::xbzrle;

/// A block of guest RAM as the file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The name that the file gives it, shortened and made printable; empty where it gives none.
    pub name: String,
    /// Where the block begins in RAM space, in bytes.
    pub ram: u64,
    /// The block's length in bytes.
    pub length: u64,
}

/// Where the content of a guest page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file, at this offset in bytes.
    Stored(u64),
    /// Nowhere: the format says that it is zero.
    Zero,
    /// In the file, as a page or a zero record and later deltas; [`PageMap::read`] puts it together. Every byte of it is critical.
    Patched,
    /// Not in the file at all.
    Absent,
}

/// A run of guest pages that are in the file in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRun {
    /// The guest-physical address of the first page.
    pub gpa: Gpa,
    /// How many pages.
    pub pages: u64,
    /// Where the first page is.
    pub place: Place,
    /// If the pages are stored: the distance from one page to the next in the file, in bytes.
    pub stride: u64,
}

/// What a page turned out to be when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The buffer holds the page.
    Bytes,
    /// The page is zero, and so is the buffer.
    Zero,
    /// The file does not hold the page; the buffer is zero.
    Absent,
}

/// How many pages of the file are what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pages with bytes in the file that are the guest's.
    pub stored: u64,
    /// Pages that the format itself says are zero.
    pub zero: u64,
    /// Pages that are a base and deltas.
    pub patched: u64,
    /// Stored pages that a later record replaced.
    pub dead: u64,
}

pub(super) struct Inner {
    pub(super) log: RunLog,
    index: AddressIndex,
    blocks: Vec<Block>,
    deltas: Vec<Delta>,
    pub(super) length: u64,
}

/// See the module's head. A clone costs nothing; a map with another layout shares everything with this one.
#[derive(Clone)]
pub struct PageMap {
    pub(super) inner: Arc<Inner>,
    pub(super) layout: Arc<Layout>,
    layouts: Arc<[Layout]>,
}

impl fmt::Debug for PageMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageMap")
            .field("length", &self.inner.length)
            .field("blocks", &self.inner.blocks)
            .field("layout", &self.layout)
            .field("memory", &self.memory())
            .finish_non_exhaustive()
    }
}

impl PageMap {
    /// A map of a file of `length` bytes. The log is settled; the first layout is the one in force. Nothing
    /// if no layout is given.
    pub(super) fn new(
        mut log: RunLog,
        blocks: Vec<Block>,
        layouts: Vec<Layout>,
        deltas: Vec<Delta>,
        length: u64,
    ) -> Option<Self> {
        log.close();
        let layout = Arc::new(layouts.first()?.clone());
        let index = AddressIndex::new(&log);
        let inner = Inner {
            log,
            index,
            blocks,
            deltas,
            length,
        };
        Some(Self {
            inner: Arc::new(inner),
            layout,
            layouts: layouts.into(),
        })
    }

    /// The bytes of a page, a power of two.
    pub fn page_size(&self) -> u64 {
        self.inner.log.geometry().page_size
    }

    /// The length of the file in bytes when it was indexed.
    pub fn file_length(&self) -> u64 {
        self.inner.length
    }

    /// The RAM blocks of the file, devices' included, in the order of RAM space.
    pub fn blocks(&self) -> &[Block] {
        &self.inner.blocks
    }

    /// The layouts that the guest may have, likely ones first; one alone where the file says it.
    pub fn layouts(&self) -> &[Layout] {
        &self.layouts
    }

    /// The layout in force: at first the first candidate.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The same map under another layout: one of the candidates, or one that a caller knows. What it puts
    /// where the file has no RAM is absent.
    pub fn with_layout(&self, layout: &Layout) -> Self {
        Self {
            layout: Arc::new(layout.clone()),
            ..self.clone()
        }
    }

    /// The same map with a layout that a file beside this one tells, as Cloud Hypervisor's does: put before the other
    /// candidates, and in force.
    pub fn with_likely_layout(&self, layout: Layout) -> Self {
        let others = self
            .layouts
            .iter()
            .filter(|known| known.ranges() != layout.ranges());
        let layouts = std::iter::once(&layout).chain(others).cloned().collect();
        Self {
            layouts,
            ..self.with_layout(&layout)
        }
    }

    /// The guest's RAM under the layout: address and length in bytes, by address.
    pub fn ram(&self) -> impl Iterator<Item = (Gpa, u64)> {
        self.layout
            .ranges()
            .iter()
            .map(|range| (range.gpa, range.length))
    }

    /// The bytes of memory that the map takes.
    pub fn memory(&self) -> u64 {
        let inner = &self.inner;
        let deltas = inner.deltas.capacity() * size_of::<Delta>();
        inner.log.memory() + inner.index.memory() + deltas as u64
    }

    /// Where the page at the address is. The address may be any within the page; that of `Stored` is of the
    /// page's first byte.
    pub fn lookup(&self, gpa: Gpa) -> Place {
        self.page_at(gpa)
            .map_or(Place::Absent, |page| self.place_of(page).0)
    }

    /// The page number in RAM space of an address.
    fn page_at(&self, gpa: Gpa) -> Option<u64> {
        let page_size = self.page_size();
        let (ram, left) = self.layout.ram_of(Gpa(gpa.0 & !(page_size - 1)))?;
        (ram % page_size == 0 && left >= page_size).then_some(ram / page_size)
    }

    fn place_of(&self, page: u64) -> (Place, Option<Run>) {
        let inner = &self.inner;
        let Some(run) = inner.index.find(&inner.log, page) else {
            return (Place::Absent, None);
        };
        if !self.deltas_of(page).is_empty() {
            return (Place::Patched, Some(run));
        }
        let geometry = inner.log.geometry();
        let place = match run.kind {
            Kind::Page => {
                let unit = geometry.unit(run.kind);
                Place::Stored(run.file + (page - run.page) * unit + geometry.lead)
            }
            Kind::Base => Place::Patched,
            _ => Place::Zero,
        };
        (place, Some(run))
    }

    pub(super) fn deltas(&self) -> &[Delta] {
        &self.inner.deltas
    }

    fn deltas_of(&self, page: u64) -> &[Delta] {
        let deltas = &self.inner.deltas;
        let from = deltas.partition_point(|delta| delta.page < page);
        let end = deltas.partition_point(|delta| delta.page <= page);
        deltas.get(from..end).unwrap_or_default()
    }

    /// The pages that are put together from deltas, by where they begin in RAM space, in bytes: each once, ascending, those of
    /// devices included. The same under every layout.
    pub fn patched(&self) -> impl Iterator<Item = u64> + '_ {
        let pages = self.inner.deltas.chunk_by(|a, b| a.page == b.page);
        pages.filter_map(|deltas| Some(deltas.first()?.page * self.page_size()))
    }

    /// Where the layout puts a page of RAM space.
    pub fn address(&self, ram: u64) -> Option<Gpa> {
        self.layout.gpa_of(ram).map(|(gpa, _)| gpa)
    }

    /// Reads the page at the address as the guest sees it, deltas applied. The buffer is of one page. A page with more deltas
    /// than a save makes cannot be read.
    pub fn read(
        &self,
        source: &dyn ByteSource,
        gpa: Gpa,
        buffer: &mut [u8],
    ) -> Result<Content, SnapshotError> {
        match self.page_at(gpa) {
            Some(page) => self.read_ram(source, page * self.page_size(), buffer),
            None => {
                buffer.fill(0);
                Ok(Content::Absent)
            }
        }
    }

    /// The same for a page of RAM space, whatever the layout.
    pub fn read_ram(
        &self,
        source: &dyn ByteSource,
        ram: u64,
        buffer: &mut [u8],
    ) -> Result<Content, SnapshotError> {
        let page_size = self.page_size();
        if buffer.len() as u64 != page_size {
            return Err(SnapshotError::Buffer { page_size });
        }
        let page = ram / page_size;
        let fill = |offset, buffer: &mut [u8]| {
            source
                .read_at(offset, buffer)
                .map_err(|source| SnapshotError::Read { offset, source })
        };
        let run = match self.place_of(page) {
            (Place::Stored(offset), _) => {
                fill(offset, buffer)?;
                return Ok(Content::Bytes);
            }
            (Place::Patched, Some(run)) => run,
            (Place::Zero, _) => {
                buffer.fill(0);
                return Ok(Content::Zero);
            }
            _ => {
                buffer.fill(0);
                return Ok(Content::Absent);
            }
        };
        let deltas = self.deltas_of(page);
        if let Some(first) = deltas.first().filter(|_| deltas.len() > DELTAS_MAX) {
            return Err(SnapshotError::TooManyDeltas {
                offset: first.file,
                deltas: deltas.len(),
                most: DELTAS_MAX,
            });
        }
        let geometry = self.inner.log.geometry();
        if run.kind == Kind::Base {
            let inside = (page - run.page) * geometry.unit(run.kind);
            fill(run.file + inside + geometry.lead, buffer)?;
        } else {
            buffer.fill(0);
        }
        let mut bytes = Vec::new();
        for delta in deltas {
            bytes.resize(usize::from(delta.length), 0);
            fill(delta.file, &mut bytes)?;
            if !xbzrle::apply(buffer, &bytes) {
                return Err(SnapshotError::Delta { offset: delta.file });
            }
        }
        Ok(Content::Bytes)
    }

    /// What the bytes of a range of the file are, without gaps, in file order.
    pub fn pieces(&self, range: Range<u64>) -> Pieces<'_> {
        let end = range.end.min(self.inner.length);
        Pieces::new(&self.inner.log, Some(&self.layout), range.start..end)
    }

    /// What the pages of a range of guest-physical addresses are, in that order. Pages that are not in the
    /// file are left out.
    pub fn addresses(&self, range: Range<Gpa>) -> Addresses<'_> {
        Addresses {
            map: self,
            at: range.start.0,
            end: range.end.0,
            window: Window::default(),
        }
    }

    /// Counts the pages of the whole file, those of devices included. Decodes the whole map.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for run in self.inner.log.runs_from(0) {
            match run.kind {
                Kind::Page => counts.stored += run.count,
                Kind::Zero | Kind::EmptySlot => counts.zero += run.count,
                Kind::DeadPage => counts.dead += run.count,
                Kind::Base | Kind::DeadZero | Kind::Framing => {}
            }
        }
        let mut last = None;
        for delta in &self.inner.deltas {
            counts.patched += u64::from(last != Some(delta.page));
            last = Some(delta.page);
        }
        // A zero page with deltas has a zero record.
        let bases: u64 = self
            .inner
            .log
            .runs_from(0)
            .filter(|run| run.kind == Kind::Base)
            .map(|run| run.count)
            .sum();
        counts.zero -= counts.patched.saturating_sub(bases).min(counts.zero);
        counts
    }
}

/// The pages of a range of addresses; see [`PageMap::addresses`].
#[derive(Clone, Debug)]
pub struct Addresses<'a> {
    map: &'a PageMap,
    at: u64,
    end: u64,
    window: Window,
}

impl Iterator for Addresses<'_> {
    type Item = AddressRun;

    fn next(&mut self) -> Option<AddressRun> {
        let inner = &self.map.inner;
        let geometry = inner.log.geometry();
        let size = geometry.page_size;
        loop {
            self.at = self.at.checked_next_multiple_of(size)?;
            let ranges = self.map.layout.ranges();
            let next =
                ranges.partition_point(|range| range.gpa.0.saturating_add(range.length) <= self.at);
            let range = ranges.get(next)?;
            self.at = self.at.max(range.gpa.0).checked_next_multiple_of(size)?;
            let end = self.end.min(range.gpa.0 + range.length);
            let ram = range.ram + self.at.saturating_sub(range.gpa.0);
            let pages = end.saturating_sub(self.at) / size;
            if self.at >= self.end {
                return None;
            }
            let found = (pages > 0 && ram % size == 0)
                .then(|| {
                    let page = ram / size;
                    let run = inner
                        .index
                        .next(&inner.log, page, page + pages, &mut self.window);
                    run.map(|run| (run, page))
                })
                .flatten();
            let Some((run, page)) = found else {
                // Nothing more in this range.
                self.at = end.max(self.at + 1);
                continue;
            };
            let gpa = Gpa(self.at + (run.page - page) * size);
            let (place, count) = self.place(&run);
            self.at = gpa.0 + count * size;
            let stride = geometry.unit(Kind::Page);
            return Some(AddressRun {
                gpa,
                pages: count,
                place,
                stride,
            });
        }
    }
}

impl Addresses<'_> {
    /// What the run's first pages are and how many are alike: deltas may change some pages of a run of zeros.
    fn place(&self, run: &Run) -> (Place, u64) {
        let deltas = &self.map.inner.deltas;
        let lead = self.map.inner.log.geometry().lead;
        let next = deltas
            .get(deltas.partition_point(|delta| delta.page < run.page))
            .map_or(u64::MAX, |delta| delta.page - run.page);
        match run.kind {
            Kind::Page => (Place::Stored(run.file + lead), run.count),
            Kind::Base => (Place::Patched, run.count),
            _ if next == 0 => (Place::Patched, 1),
            _ => (Place::Zero, run.count.min(next)),
        }
    }
}
