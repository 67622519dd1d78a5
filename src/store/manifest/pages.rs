//! Pages of manifests off the disks: from the first disk that has a good copy, which then mends the bad
//! ones that were met on the way; and the cache of pages and window records that all manifests of a volume
//! share.

use std::fmt;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::page::{PAGE, PAYLOAD, Page, PageKey};
use super::root::{Section, SectionKind};
use super::{ManifestError, ManifestName};
use crate::disk::ObjectName;
use crate::ids::{DiskId, ManifestId, WindowNo};
use crate::store::disks::{DiskState, Disks};
use crate::store::records::WindowRecord;

/// Pages that one read takes when a manifest is gone through from end to end.
const RUN: u64 = 64;

/// What an entry of the cache occupies beyond its bytes, about.
const OVERHEAD: u64 = 100;

#[derive(Clone)]
pub(super) struct Weigh;

impl Weighter<(ManifestId, u64), Page> for Weigh {
    fn weight(&self, _: &(ManifestId, u64), _: &Page) -> u64 {
        PAGE as u64 + OVERHEAD
    }
}

impl Weighter<(ManifestId, WindowNo), Arc<WindowRecord>> for Weigh {
    fn weight(&self, _: &(ManifestId, WindowNo), window: &Arc<WindowRecord>) -> u64 {
        (window.blocks.len() * 40) as u64 + 2 * OVERHEAD
    }
}

/// The pages and window records that are kept in memory, for all manifests of one volume.
pub struct ManifestCache {
    pages: Cache<(ManifestId, u64), Page, Weigh>,
    pub(super) windows: Cache<(ManifestId, WindowNo), Arc<WindowRecord>, Weigh>,
}

impl fmt::Debug for ManifestCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ManifestCache {{ {} bytes }}", self.weight())
    }
}

impl ManifestCache {
    /// A cache of at most `bytes`, half of them for window records.
    pub fn new(bytes: u64) -> Self {
        let half = bytes / 2;
        ManifestCache {
            pages: Cache::with_weighter((half / PAGE as u64) as usize, half, Weigh),
            windows: Cache::with_weighter((half / 8192) as usize, half, Weigh),
        }
    }

    /// Bytes that it holds now.
    pub fn weight(&self) -> u64 {
        self.pages.weight() + self.windows.weight()
    }
}

/// Where a manifest's pages come from.
#[derive(Clone, Debug)]
pub struct Pages {
    pub(super) key: PageKey,
    pub(super) name: ManifestName,
    /// Pages there are.
    pub(super) count: u64,
    disks: Arc<Disks>,
    /// The disks that should have a copy, in the order in which they are asked.
    copies: Vec<DiskId>,
    pub(super) cache: Arc<ManifestCache>,
}

impl Pages {
    pub(super) fn new(
        key: PageKey,
        count: u64,
        disks: Arc<Disks>,
        copies: &[DiskId],
        cache: Arc<ManifestCache>,
    ) -> Self {
        let mut copies = copies.to_vec();
        // Different manifests ask different disks first, so that all disks share the work.
        if !copies.is_empty() {
            let turn = key.manifest.0 % copies.len() as u64;
            copies.rotate_left(turn as usize);
        }
        let name = ManifestName {
            id: key.manifest,
            file: None,
        };
        Pages {
            key,
            name,
            count,
            disks,
            copies,
            cache,
        }
    }

    fn object(&self) -> ObjectName {
        ObjectName::Manifest(self.key.manifest)
    }

    /// The disks in turn, those that fare well first.
    fn in_turn(&self) -> Vec<DiskId> {
        let mut copies = self.copies.clone();
        copies.sort_by_key(|&id| (self.disks.reads_fail(id), !self.disks.is_online(id)));
        copies
    }

    /// A page out of the cache or off a disk.
    pub(super) fn page(&self, number: u64) -> Result<Page, ManifestError> {
        let key = (self.key.manifest, number);
        self.cache
            .pages
            .get_or_insert_with(&key, || self.load(number, |page| Some(page.clone())))
    }

    /// A page off the first disk whose copy is good and `accepted`, which then overwrites the bad copies met
    /// before it.
    pub(super) fn load<T>(
        &self,
        number: u64,
        accepted: impl Fn(&Page) -> Option<T>,
    ) -> Result<T, ManifestError> {
        let offset = number.saturating_mul(PAGE as u64);
        let mut bad = Vec::new();
        let mut tried = Vec::new();
        if number < self.count {
            for id in self.in_turn() {
                let mut bytes = [0; PAGE];
                match self.disks.read(id, self.object(), offset, &mut bytes) {
                    Ok(()) => {
                        let page = self.key.check(number, &bytes);
                        if let Some((page, value)) = page.and_then(|page| {
                            let value = accepted(&page)?;
                            Some((page, value))
                        }) {
                            self.mend(&bad, number, &page);
                            return Ok(value);
                        }
                        tried.push(format!("disk {}: damaged", self.disks.name(id)));
                    }
                    Err(error) => tried.push(error.to_string()),
                }
                bad.push(id);
            }
        }
        Err(ManifestError::Page {
            page: number,
            manifest: self.name,
            tried: tried.join("; "),
        })
    }

    fn mend(&self, bad: &[DiskId], number: u64, page: &Page) {
        let offset = number.saturating_mul(PAGE as u64);
        // One that is being rebuilt may have none of it yet, and one page would make it look as if it had it all: the rebuild
        // gives it what it lacks.
        let rebuilding = |id: DiskId| self.disks.state(id) == DiskState::Rebuilding;
        let worth =
            |id: DiskId| self.disks.is_online(id) && !rebuilding(id) && !self.disks.reads_fail(id);
        for &id in bad.iter().filter(|&&id| worth(id)) {
            let disk = self.disks.name(id);
            tracing::warn!(manifest = %self.name, page = number, disk, "bad copy of a page");
            self.disks.repair(id, self.object(), offset, page.bytes());
        }
    }

    /// Many pages in one read off the disk that is asked first, unchecked; none when it does not answer.
    fn run(&self, first: u64, bytes: &mut Vec<u8>) {
        let count = RUN.min(self.count.saturating_sub(first));
        bytes.resize(count as usize * PAGE, 0);
        let good = self.in_turn().first().is_some_and(|&id| {
            let offset = first.saturating_mul(PAGE as u64);
            self.disks.read(id, self.object(), offset, bytes).is_ok()
        });
        if !good {
            bytes.clear();
        }
    }

    pub(super) fn format(&self, what: &'static str) -> ManifestError {
        ManifestError::Format {
            manifest: self.name,
            what,
        }
    }
}

/// A place in a manifest's pages that is moved along. Holds the page it is at, so that the next entry costs
/// no lookup.
#[derive(Debug)]
pub struct PageCursor<'a> {
    pages: &'a Pages,
    current: Option<(u64, Page)>,
    /// Present when pages are read ahead: the first page's number and the bytes.
    run: Option<(u64, Vec<u8>)>,
}

impl<'a> PageCursor<'a> {
    /// For lookups: page by page through the cache.
    pub(super) fn seeking(pages: &'a Pages) -> Self {
        PageCursor {
            pages,
            current: None,
            run: None,
        }
    }

    /// For going through much: many pages a read, beside the cache.
    pub(super) fn streaming(pages: &'a Pages) -> Self {
        PageCursor {
            run: Some((0, Vec::new())),
            ..Self::seeking(pages)
        }
    }

    pub(super) fn pages(&self) -> &'a Pages {
        self.pages
    }

    pub(super) fn page(&mut self, number: u64) -> Result<&Page, ManifestError> {
        let page = match self.current.take() {
            Some((at, page)) if at == number => page,
            _ => self.find(number)?,
        };
        Ok(&self.current.insert((number, page)).1)
    }

    /// An entry of a section.
    pub(super) fn entry(
        &mut self,
        section: Section,
        kind: SectionKind,
        number: u64,
    ) -> Result<&[u8], ManifestError> {
        let pages = self.pages;
        let place = (number % kind.per_page()) as usize;
        let page = self.page(section.first_page.saturating_add(number / kind.per_page()))?;
        page.entry(place, kind.entry_size())
            .ok_or_else(|| pages.format("an entry lies beyond its page"))
    }

    /// Fills `buffer` from a section that is a run of bytes.
    pub(super) fn bytes(
        &mut self,
        section: Section,
        mut at: u64,
        mut buffer: &mut [u8],
    ) -> Result<(), ManifestError> {
        let pages = self.pages;
        let beyond = || pages.format("a record lies beyond its section");
        let left = section.entries.checked_sub(at).ok_or_else(beyond)?;
        if (buffer.len() as u64) > left {
            return Err(beyond());
        }
        while !buffer.is_empty() {
            let page = self.page(section.first_page.saturating_add(at / PAYLOAD as u64))?;
            let there = page.payload().get((at % PAYLOAD as u64) as usize..);
            let there = there.unwrap_or_default();
            let count = there.len().min(buffer.len());
            let (now, later) = std::mem::take(&mut buffer).split_at_mut(count);
            now.copy_from_slice(there.get(..count).unwrap_or_default());
            buffer = later;
            at += count as u64;
        }
        Ok(())
    }

    fn find(&mut self, number: u64) -> Result<Page, ManifestError> {
        if let Some((first, bytes)) = &mut self.run {
            let held = |first: u64, bytes: &[u8]| {
                let start = usize::try_from(number.checked_sub(first)?).ok()?;
                let start = start.checked_mul(PAGE)?;
                Some(bytes.get(start..start.checked_add(PAGE)?)?.to_owned())
            };
            let mut found = held(*first, bytes);
            if found.is_none() {
                self.pages.run(number, bytes);
                *first = number;
                found = held(*first, bytes);
            }
            if let Some(page) = found.and_then(|bytes| self.pages.key.check(number, &bytes)) {
                return Ok(page);
            }
        }
        // Also when a page of a run is bad: this asks the other disks, and repairs.
        self.pages.page(number)
    }
}

/// How many of `count` sorted things come first, by halving: `first` holds for those, and for none behind.
pub(super) fn partition(
    count: u64,
    mut first: impl FnMut(u64) -> Result<bool, ManifestError>,
) -> Result<u64, ManifestError> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if first(middle)? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}
