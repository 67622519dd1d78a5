//! A manifest that is open for reading. Opening reads its root page; everything else is read when asked
//! for, through the cache of the volume.

use std::ops::Range;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::extents::Extents;
use super::page::{PAGE, PageKey};
use super::pages::{ManifestCache, PageCursor, Pages, partition};
use super::root::{Root, Section, SectionKind, Totals};
use super::{ManifestError, ManifestName, ManifestRef, SetUse};
use crate::disk::ObjectName;
use crate::ids::{DiskId, FileId, ManifestId, SetId, VolumeId, WindowNo};
use crate::store::disks::Disks;
use crate::store::records::{Extent, WindowRecord};
use crate::store::window_form::{WINDOW_FORM_MAX, WINDOW_HEAD, take_window, window_head};
use crate::store::wire::Wire;

/// The most bytes of a description.
pub(super) const DESCRIPTION_MAX: u64 = 1 << 20;

/// An open manifest. Cheap to keep: it holds no pages itself.
#[derive(Clone, Debug)]
pub struct Manifest {
    pages: Pages,
    root: Root,
}

impl Manifest {
    /// Opens what `reference` tells of, from any of `copies`, the disks that should have it.
    pub fn open(
        volume: VolumeId,
        reference: ManifestRef,
        disks: Arc<Disks>,
        copies: &[DiskId],
        cache: Arc<ManifestCache>,
    ) -> Result<Manifest, ManifestError> {
        let key = PageKey {
            volume,
            manifest: reference.id,
        };
        let count = reference.length / PAGE as u64;
        let mut pages = Pages::new(key, count, disks, copies, cache);
        // The reference names the root by its hash: a good page of another writing is not it.
        let root = pages.load(count.saturating_sub(1), |page| {
            (xxh3_64(page.bytes()) == reference.root).then(|| Root::parse(key, count, page))
        })?;
        let root = root.map_err(|what| pages.format(what))?;
        pages.name.file = Some(root.file);
        Ok(Manifest { pages, root })
    }

    /// The reference to a manifest that nothing refers to any more, as a rescue finds it on a disk: by its
    /// length and its last page. An error when that disk has no good root.
    pub fn discover(
        volume: VolumeId,
        id: ManifestId,
        disks: &Arc<Disks>,
        disk: DiskId,
    ) -> Result<ManifestRef, ManifestError> {
        let name = ManifestName { id, file: None };
        let unreadable = |tried: String| ManifestError::Page {
            page: 0,
            manifest: name,
            tried,
        };
        let gone = || unreadable(format!("disk {} is missing", disks.name(disk)));
        let length = disks
            .get(disk)
            .ok_or_else(gone)?
            .length(ObjectName::Manifest(id));
        let length = length.map_err(|error| unreadable(error.to_string()))?;
        let count = length / PAGE as u64;
        let key = PageKey {
            volume,
            manifest: id,
        };
        let cache = Arc::new(ManifestCache::new(0));
        let pages = Pages::new(key, count, disks.clone(), &[disk], cache);
        let (hash, root) = pages.load(count.saturating_sub(1), |page| {
            Some((xxh3_64(page.bytes()), Root::parse(key, count, page)))
        })?;
        root.map_err(|what| pages.format(what))?;
        Ok(ManifestRef {
            id,
            length: count * PAGE as u64,
            root: hash,
        })
    }

    /// The file.
    pub fn file(&self) -> FileId {
        self.root.file
    }

    /// The manifest's number.
    pub fn id(&self) -> ManifestId {
        self.pages.key.manifest
    }

    /// Of the file as a whole.
    pub fn totals(&self) -> Totals {
        self.root.totals
    }

    /// Bytes of the manifest on each disk.
    pub fn length(&self) -> u64 {
        self.root.pages.saturating_mul(PAGE as u64)
    }

    /// How many extents there are.
    pub fn extent_count(&self) -> u64 {
        self.root.section(SectionKind::Extents).entries
    }

    /// The extents that lie in `range`, cut to it, in rising order. What none covers is a hole.
    pub fn extents(&self, range: Range<u64>) -> Result<Extents<'_>, ManifestError> {
        let section = self.root.section(SectionKind::Extents);
        let fences = self.root.section(SectionKind::ExtentFences);
        Extents::seek(&self.pages, section, fences, range)
    }

    /// The extents from `offset` on, the first cut to begin there.
    pub fn extents_from(&self, offset: u64) -> Result<Extents<'_>, ManifestError> {
        self.extents(offset..u64::MAX)
    }

    /// All extents, read in large pieces and beside the cache: for folding and scrubbing.
    pub fn all_extents(&self) -> Extents<'_> {
        Extents::all(&self.pages, self.root.section(SectionKind::Extents))
    }

    /// The first byte from `offset` on that an extent covers.
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>, ManifestError> {
        let first = self.extents_from(offset)?.next().transpose()?;
        Ok(first.map(|extent: Extent| extent.range.start))
    }

    /// The first byte from `offset` on that no extent covers; it may lie at or beyond the end of the file.
    pub fn next_hole(&self, offset: u64) -> Result<u64, ManifestError> {
        let mut end = offset;
        for extent in self.extents_from(offset)? {
            let range = extent?.range;
            if range.start > end {
                break;
            }
            end = range.end;
        }
        Ok(end)
    }

    /// A window, or `None` when the file has none of that number.
    pub fn window(&self, no: WindowNo) -> Result<Option<Arc<WindowRecord>>, ManifestError> {
        let key = (self.id(), no);
        if let Some(window) = self.pages.cache.windows.get(&key) {
            return Ok(Some(window));
        }
        let window = self.find_window(no)?.map(Arc::new);
        if let Some(window) = &window {
            self.pages.cache.windows.insert(key, window.clone());
        }
        Ok(window)
    }

    fn find_window(&self, no: WindowNo) -> Result<Option<WindowRecord>, ManifestError> {
        let fences = self.root.section(SectionKind::WindowFences);
        let mut cursor = PageCursor::seeking(&self.pages);
        let mut start = 0;
        let before = partition(fences.entries, |number| {
            let fence = cursor.entry(fences, SectionKind::WindowFences, number)?;
            let mut wire = Wire::new(fence);
            let (first, at) = (wire.u32(), wire.array::<4>().and_then(|_| wire.u64()));
            let is_before = first.is_some_and(|first| first <= no.0);
            // Only ever moves up: halving visits the last fence that is before.
            if let (true, Some(at)) = (is_before, at) {
                start = at;
            }
            Ok(is_before)
        })?;
        if before == 0 {
            return Ok(None);
        }
        let mut walk = Windows {
            cursor,
            section: self.root.section(SectionKind::Windows),
            at: start,
            before: None,
        };
        // Between two fences lies no more than a page of records, so the walk is short; a record that
        // is passed over is not parsed.
        while let Some((at, length)) = walk.head()? {
            if at >= no {
                return if at == no {
                    walk.record(length).map(Some)
                } else {
                    Ok(None)
                };
            }
            walk.at += length as u64;
        }
        Ok(None)
    }

    /// All windows by rising number, read in large pieces and beside the cache.
    pub fn windows(&self) -> Windows<'_> {
        Windows {
            cursor: PageCursor::streaming(&self.pages),
            section: self.root.section(SectionKind::Windows),
            at: 0,
            before: None,
        }
    }

    /// The segment sets that the file's blocks and parity are in, by rising number.
    pub fn sets(&self) -> impl Iterator<Item = Result<SetUse, ManifestError>> + '_ {
        let section = self.root.section(SectionKind::Sets);
        let mut cursor = PageCursor::streaming(&self.pages);
        (0..section.entries).map(move |number| {
            let pages = cursor.pages();
            let entry = cursor.entry(section, SectionKind::Sets, number)?;
            parse_set(entry).ok_or_else(|| pages.format("a segment set is cut off"))
        })
    }

    /// Hands all pages on as they are stored, in order and verified: a copy for another disk.
    pub fn copy_to<E: From<ManifestError>>(
        &self,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut cursor = PageCursor::streaming(&self.pages);
        (0..self.root.pages).try_for_each(|number| sink(cursor.page(number)?.bytes()))
    }

    /// What the volume put there.
    pub fn description(&self) -> Result<Vec<u8>, ManifestError> {
        let section = self.root.section(SectionKind::Description);
        if section.entries > DESCRIPTION_MAX {
            return Err(self.pages.format("its description is too long"));
        }
        let mut bytes = vec![0; section.entries as usize];
        PageCursor::streaming(&self.pages).bytes(section, 0, &mut bytes)?;
        Ok(bytes)
    }
}

fn parse_set(entry: &[u8]) -> Option<SetUse> {
    let mut wire = Wire::new(entry);
    Some(SetUse {
        set: SetId(wire.u64()?),
        blocks: wire.u64()?,
        parity: wire.u64()?,
    })
}

/// Windows by rising number. Ends after the first error.
#[derive(Debug)]
pub struct Windows<'a> {
    cursor: PageCursor<'a>,
    section: Section,
    /// Where the next record begins in the section's bytes.
    at: u64,
    before: Option<WindowNo>,
}

impl Windows<'_> {
    /// The number and length of the record that comes next.
    fn head(&mut self) -> Result<Option<(WindowNo, usize)>, ManifestError> {
        if self.at >= self.section.entries {
            return Ok(None);
        }
        let mut head = [0; WINDOW_HEAD];
        self.cursor.bytes(self.section, self.at, &mut head)?;
        let pages = self.cursor.pages();
        window_head(head)
            .map(Some)
            .map_err(|bad| pages.format(bad.0))
    }

    fn record(&mut self, length: usize) -> Result<WindowRecord, ManifestError> {
        let mut room = [0; WINDOW_FORM_MAX];
        let bytes = room.get_mut(..length).unwrap_or_default();
        self.cursor.bytes(self.section, self.at, bytes)?;
        let pages = self.cursor.pages();
        take_window(&mut Wire::new(bytes)).map_err(|bad| pages.format(bad.0))
    }

    fn step(&mut self) -> Result<Option<WindowRecord>, ManifestError> {
        let Some((no, length)) = self.head()? else {
            return Ok(None);
        };
        if self.before.is_some_and(|before| before >= no) {
            return Err(self.cursor.pages().format("windows are out of order"));
        }
        let window = self.record(length)?;
        self.at += length as u64;
        self.before = Some(no);
        Ok(Some(window))
    }
}

impl Iterator for Windows<'_> {
    type Item = Result<WindowRecord, ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.at = self.section.entries;
        }
        step.transpose()
    }
}
