//! The last page of a manifest: whose it is, its totals, and where its sections lie. It is the last since
//! the writer streams and knows all this only at the end; a reader knows the length from the reference, or
//! from the disk.
//!
//! ```text
//!  0  8  checksum (as in every page)
//!  8  8  magic "PARSFSMF"
//! 16  2  major version: 1. A reader refuses a greater one
//! 18  2  minor version: 0. A greater one adds what can be passed over
//! 20  4  sections
//! 24 16  volume
//! 40  8  file
//! 48  8  manifest
//! 56  8  pages, this one included
//! 64  8  length of the file
//! 72  8  logical bytes: those that extents cover
//! 80  8  stored bytes: blocks and parity, headers included
//! 88  4  first window number not yet used
//! 92  4  first inline piece number not yet used
//! 96     a section, 32 bytes each: kind 4 · entry size 4 · first page 8 · entries 8 · 0 8
//! ```
//!
//! All numbers are little-endian.

use super::page::{PAYLOAD, Page, PageKey};
use crate::ids::FileId;
use crate::store::wire::Wire;

const MAGIC: [u8; 8] = *b"PARSFSMF";
const MAJOR: u16 = 1;
const MINOR: u16 = 0;

/// The most sections that fit.
const SECTIONS_MAX: u32 = ((PAYLOAD - 88) / 32) as u32;

/// What a section holds. Numbers are stored; those not known here are passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SectionKind {
    /// Extents by rising offset.
    Extents = 1,
    /// The offset of the first extent of each page of extents.
    ExtentFences = 2,
    /// Window records end to end, by rising number.
    Windows = 3,
    /// Some windows' numbers and where their records begin, about one a page.
    WindowFences = 4,
    /// Segment sets by rising number, and what this file has in each.
    Sets = 5,
    /// Bytes that the volume put there.
    Description = 6,
}

impl SectionKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [SectionKind; 6] = [
        SectionKind::Extents,
        SectionKind::ExtentFences,
        SectionKind::Windows,
        SectionKind::WindowFences,
        SectionKind::Sets,
        SectionKind::Description,
    ];

    /// Bytes of an entry; entries never cross pages. Of 1 byte where the section is a run of bytes.
    pub fn entry_size(self) -> usize {
        match self {
            SectionKind::Extents => 24,
            SectionKind::ExtentFences => 8,
            SectionKind::Windows | SectionKind::Description => 1,
            SectionKind::WindowFences => 16,
            SectionKind::Sets => 24,
        }
    }

    /// Entries of a full page.
    pub fn per_page(self) -> u64 {
        (PAYLOAD / self.entry_size()) as u64
    }
}

/// Where a section lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// Its first page.
    pub first_page: u64,
    /// Its entries.
    pub entries: u64,
}

/// What a manifest tells of its file as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Length of the file in bytes.
    pub file_size: u64,
    /// Bytes that extents cover.
    pub logical: u64,
    /// Bytes on all disks: blocks and parity, headers included.
    pub stored: u64,
    /// The first window number that no window has had.
    pub next_window: u32,
    /// The first inline piece number that no piece has had.
    pub next_piece: u32,
}

/// The root page as a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The file.
    pub file: FileId,
    /// Pages of the manifest, the root included.
    pub pages: u64,
    /// Of the file as a whole.
    pub totals: Totals,
    /// The sections that are known here, by kind.
    pub sections: [Section; SectionKind::ALL.len()],
}

impl Root {
    /// Where a section lies; an empty one when the manifest has none of the kind.
    pub fn section(&self, kind: SectionKind) -> Section {
        let place = SectionKind::ALL.iter().position(|&other| other == kind);
        place
            .and_then(|place| self.sections.get(place))
            .copied()
            .unwrap_or_default()
    }

    /// Appends the root page.
    pub fn put(&self, key: PageKey, out: &mut Vec<u8>) {
        let mut page = Vec::with_capacity(PAYLOAD);
        page.extend_from_slice(&MAGIC);
        page.extend_from_slice(&MAJOR.to_le_bytes());
        page.extend_from_slice(&MINOR.to_le_bytes());
        page.extend_from_slice(&(self.sections.len() as u32).to_le_bytes());
        page.extend_from_slice(&key.volume.0.to_le_bytes());
        page.extend_from_slice(&self.file.0.to_le_bytes());
        page.extend_from_slice(&key.manifest.0.to_le_bytes());
        page.extend_from_slice(&self.pages.to_le_bytes());
        page.extend_from_slice(&self.totals.file_size.to_le_bytes());
        page.extend_from_slice(&self.totals.logical.to_le_bytes());
        page.extend_from_slice(&self.totals.stored.to_le_bytes());
        page.extend_from_slice(&self.totals.next_window.to_le_bytes());
        page.extend_from_slice(&self.totals.next_piece.to_le_bytes());
        for (kind, section) in SectionKind::ALL.iter().zip(&self.sections) {
            page.extend_from_slice(&(*kind as u32).to_le_bytes());
            page.extend_from_slice(&(kind.entry_size() as u32).to_le_bytes());
            page.extend_from_slice(&section.first_page.to_le_bytes());
            page.extend_from_slice(&section.entries.to_le_bytes());
            page.extend_from_slice(&[0; 8]);
        }
        key.put(out, self.pages.saturating_sub(1), &page);
    }

    /// Reads the root out of its page, which is page `pages - 1`.
    pub fn parse(key: PageKey, pages: u64, page: &Page) -> Result<Root, &'static str> {
        let root = Self::fields(key, page).unwrap_or(Err("its root page is cut off"))?;
        if root.pages != pages {
            return Err("its root page tells of another length");
        }
        Ok(root)
    }

    fn fields(key: PageKey, page: &Page) -> Option<Result<Root, &'static str>> {
        let mut wire = Wire::new(page.payload());
        if wire.array()? != MAGIC {
            return Some(Err("its root page is none"));
        }
        if wire.u16()? > MAJOR {
            return Some(Err("it is of a newer format; use the parsfs that wrote it"));
        }
        wire.u16()?;
        let count = wire.u32()?;
        if wire.u128()? != key.volume.0 {
            return Some(Err("it belongs to another volume"));
        }
        let file = FileId(wire.u64()?);
        if wire.u64()? != key.manifest.0 {
            return Some(Err("it is another manifest"));
        }
        let pages = wire.u64()?;
        let totals = Totals {
            file_size: wire.u64()?,
            logical: wire.u64()?,
            stored: wire.u64()?,
            next_window: wire.u32()?,
            next_piece: wire.u32()?,
        };
        let mut sections = [Section::default(); SectionKind::ALL.len()];
        if count > SECTIONS_MAX {
            return Some(Err("it has too many sections"));
        }
        for _ in 0..count {
            let (number, size) = (wire.u32()?, wire.u32()?);
            let section = Section {
                first_page: wire.u64()?,
                entries: wire.u64()?,
            };
            wire.u64()?;
            let known = SectionKind::ALL
                .iter()
                .position(|&kind| kind as u32 == number);
            let Some((kind, place)) = known
                .and_then(|place| Some((SectionKind::ALL.get(place)?, sections.get_mut(place)?)))
            else {
                continue;
            };
            let used = section.entries.div_ceil(kind.per_page());
            let end = section.first_page.checked_add(used);
            if size as usize != kind.entry_size() || end.is_none_or(|end| end >= pages.max(1)) {
                return Some(Err("a section lies outside of it"));
            }
            *place = section;
        }
        Some(Ok(Root {
            file,
            pages,
            totals,
            sections,
        }))
    }
}
