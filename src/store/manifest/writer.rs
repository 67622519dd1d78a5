//! A manifest as it is written: extents, then windows, then the end. Memory does not grow with the file,
//! but for 8 bytes a page of extents, 16 a page of windows and 24 a segment set, all of which go into
//! sections behind those they are about (under 2 MiB for 1 TiB written in one go).

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::extents::put_extent;
use super::page::{PAGE, PAYLOAD, PageKey};
use super::reader::DESCRIPTION_MAX;
use super::root::{Root, Section, SectionKind, Totals};
use super::{ManifestRef, SetUse};
use crate::disk::DiskError;
use crate::ids::{FileId, ManifestId, SetId, VolumeId, WindowNo};
use crate::store::parity::PARITY_HEADER;
use crate::store::records::{BEYOND, Extent, Source, WindowRecord};
use crate::store::window_form::{BadWindow, put_window};

/// Pages that are gathered before they are handed on.
const RUN: usize = 64;

/// Into such parts bytes of which nothing is stored are divided where they are more than one entry holds.
const LONG_PART: u64 = 1 << 31;

/// Why a manifest cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestWriteError {
    /// Where the pages go to.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What was given cannot be in a manifest: a fault of this program.
    #[error("a manifest of file {file} cannot be written: {what}")]
    Content {
        /// The file.
        file: FileId,
        /// What does not fit.
        what: &'static str,
    },
}

/// Where pages go: all disks at once, as the caller has it.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), DiskError>;

/// Writes one manifest, front to back.
pub struct ManifestWriter<'a> {
    key: PageKey,
    file: FileId,
    sink: Sink<'a>,
    /// Whole pages on their way.
    out: Vec<u8>,
    /// The payload of the page that is being filled.
    page: Vec<u8>,
    /// Pages begun before it.
    number: u64,
    section: SectionKind,
    sections: [Section; SectionKind::ALL.len()],
    totals: Totals,
    behind: u64,
    /// Where the last extent of the file's own bytes ends.
    end: u64,
    extent_fences: Vec<u64>,
    last_window: Option<WindowNo>,
    window_fences: Vec<(WindowNo, u64)>,
    record: Vec<u8>,
    sets: BTreeMap<SetId, SetUse>,
}

impl<'a> ManifestWriter<'a> {
    /// Begins a manifest, whose pages go to `sink` in order.
    pub fn new(volume: VolumeId, file: FileId, id: ManifestId, sink: Sink<'a>) -> Self {
        ManifestWriter {
            key: PageKey {
                volume,
                manifest: id,
            },
            file,
            sink,
            out: Vec::new(),
            page: Vec::with_capacity(PAYLOAD),
            number: 0,
            section: SectionKind::Extents,
            sections: Default::default(),
            totals: Totals::default(),
            behind: 0,
            end: 0,
            extent_fences: Vec::new(),
            last_window: None,
            window_fences: Vec::new(),
            record: Vec::new(),
            sets: BTreeMap::new(),
        }
    }

    fn content(&self, what: &'static str) -> ManifestWriteError {
        ManifestWriteError::Content {
            file: self.file,
            what,
        }
    }

    /// Adds an extent. They come by rising offset and before all windows; holes are passed over. What was given up and zeros
    /// may be longer than an entry holds, and become several.
    pub fn extent(&mut self, extent: &Extent) -> Result<(), ManifestWriteError> {
        if !matches!(extent.source, Source::Dropped | Source::Zeros) {
            return self.entry_of(extent);
        }
        let mut rest = extent.range.clone();
        while rest.end.saturating_sub(rest.start) > u64::from(u32::MAX) {
            let part = Extent {
                range: rest.start..rest.start + LONG_PART,
                source: extent.source,
            };
            self.entry_of(&part)?;
            rest.start = part.range.end;
        }
        self.entry_of(&Extent {
            range: rest,
            source: extent.source,
        })
    }

    fn entry_of(&mut self, extent: &Extent) -> Result<(), ManifestWriteError> {
        if extent.source == Source::Hole {
            return Ok(());
        }
        if self.section != SectionKind::Extents || extent.range.start < self.behind {
            return Err(self.content("extents out of order"));
        }
        self.record.clear();
        put_extent(&mut self.record, extent).ok_or_else(|| self.content("an impossible extent"))?;
        self.behind = extent.range.end;
        if extent.range.start < BEYOND {
            self.end = extent.range.end;
        }
        if extent.source != Source::Zeros {
            self.totals.logical += extent.range.end - extent.range.start;
        }
        if self.entry()? {
            self.extent_fences.push(extent.range.start);
        }
        Ok(())
    }

    /// Adds a window. They come by rising number.
    pub fn window(&mut self, window: &WindowRecord) -> Result<(), ManifestWriteError> {
        if self.section == SectionKind::Extents {
            self.begin(SectionKind::Windows)?;
        }
        if self.last_window.is_some_and(|last| last >= window.no) {
            return Err(self.content("windows out of order"));
        }
        self.last_window = Some(window.no);
        let at = self.place().entries;
        let fence = self.window_fences.last();
        if fence.is_none_or(|&(_, last)| at >= last + PAYLOAD as u64) {
            self.window_fences.push((window.no, at));
        }
        self.record.clear();
        put_window(&mut self.record, window).map_err(|BadWindow(what)| self.content(what))?;
        self.bytes()?;
        let blocks = window
            .blocks
            .iter()
            .map(|block| u64::from(block.stored))
            .sum::<u64>();
        let shard = u64::from(window.parity_length) + PARITY_HEADER as u64;
        let parity = shard * window.parity.len() as u64;
        self.totals.stored += blocks + parity;
        if blocks > 0 {
            self.set_use(window.set).blocks += blocks;
        }
        if parity > 0 {
            self.set_use(window.parity_set).parity += parity;
        }
        Ok(())
    }

    fn set_use(&mut self, set: SetId) -> &mut SetUse {
        self.sets.entry(set).or_insert(SetUse {
            set,
            ..SetUse::default()
        })
    }

    /// Ends the manifest. `totals` tells the file's length and the next free numbers; its counts of bytes
    /// are overwritten by what was added.
    pub fn finish(
        mut self,
        totals: Totals,
        description: &[u8],
    ) -> Result<ManifestRef, ManifestWriteError> {
        if self.end > totals.file_size {
            return Err(self.content("an extent beyond the end of the file"));
        }
        if description.len() as u64 > DESCRIPTION_MAX {
            return Err(self.content("a description of more than 1 MiB"));
        }
        self.begin(SectionKind::ExtentFences)?;
        for fence in std::mem::take(&mut self.extent_fences) {
            self.record = fence.to_le_bytes().to_vec();
            self.entry()?;
        }
        self.begin(SectionKind::WindowFences)?;
        for (no, at) in std::mem::take(&mut self.window_fences) {
            self.record.clear();
            self.record.extend_from_slice(&no.0.to_le_bytes());
            self.record.extend_from_slice(&[0; 4]);
            self.record.extend_from_slice(&at.to_le_bytes());
            self.entry()?;
        }
        self.begin(SectionKind::Sets)?;
        for used in std::mem::take(&mut self.sets).into_values() {
            self.record.clear();
            for number in [used.set.0, used.blocks, used.parity] {
                self.record.extend_from_slice(&number.to_le_bytes());
            }
            self.entry()?;
        }
        self.begin(SectionKind::Description)?;
        self.record = description.to_vec();
        self.bytes()?;
        self.end_page()?;
        let root = Root {
            file: self.file,
            pages: self.number + 1,
            totals: Totals {
                logical: self.totals.logical,
                stored: self.totals.stored,
                ..totals
            },
            sections: self.sections,
        };
        root.put(self.key, &mut self.out);
        let start = self.out.len() - PAGE;
        let root = xxh3_64(self.out.get(start..).unwrap_or_default());
        (self.sink)(&self.out)?;
        Ok(ManifestRef {
            id: self.key.manifest,
            length: (self.number + 1) * PAGE as u64,
            root,
        })
    }

    fn begin(&mut self, section: SectionKind) -> Result<(), ManifestWriteError> {
        self.end_page()?;
        self.section = section;
        self.place().first_page = self.number;
        Ok(())
    }

    fn place(&mut self) -> &mut Section {
        // One section a kind, in the order of the kinds' numbers, which count from 1.
        &mut self.sections[self.section as usize - 1]
    }

    /// Adds the record as an entry; says whether it is the first of a page.
    fn entry(&mut self) -> Result<bool, ManifestWriteError> {
        if self.page.len() + self.record.len() > PAYLOAD {
            self.end_page()?;
        }
        let first = self.page.is_empty();
        self.page.extend_from_slice(&self.record);
        self.place().entries += 1;
        Ok(first)
    }

    /// Adds the record to a section that is a run of bytes.
    fn bytes(&mut self) -> Result<(), ManifestWriteError> {
        let record = std::mem::take(&mut self.record);
        self.place().entries += record.len() as u64;
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            if self.page.len() == PAYLOAD {
                self.end_page()?;
            }
            let (now, later) = rest.split_at(rest.len().min(PAYLOAD - self.page.len()));
            self.page.extend_from_slice(now);
            rest = later;
        }
        self.record = record;
        Ok(())
    }

    fn end_page(&mut self) -> Result<(), ManifestWriteError> {
        if self.page.is_empty() {
            return Ok(());
        }
        self.key.put(&mut self.out, self.number, &self.page);
        self.page.clear();
        self.number += 1;
        if self.out.len() >= RUN * PAGE {
            (self.sink)(&self.out)?;
            self.out.clear();
        }
        Ok(())
    }
}
