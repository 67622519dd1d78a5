//! Brings a file's format and its guest together: from bytes to one class for every page, and from there to the tier of
//! every byte of the file. The only place where the two rooms meet. Knows neither FUSE nor disks: the bytes may be those
//! of a file of the volume or of any file.
//!
//! The way is: the format's page map; one pass over the pages that it names (which are zero, which may hold vmcoreinfo);
//! the guest, looked for in each layout that memory may have; its classes. In doubt a byte is critical: without a
//! page map, without a guest, or with one that contradicts itself, nothing but zeros is worth less.

mod insight;
mod layouts;
mod scan;
#[cfg(test)]
mod tests;
mod uses;
mod view;

use std::{fmt, io};

pub(super) use self::insight::INSIGHT_MAX;
pub use self::insight::{Circumstances, Insight, ReadKept};
use self::scan::{Scan, ZeroWalk};
pub use self::uses::{FileUse, Uses};
use self::view::View;
use super::tiers::Tiers;
use crate::guest::{
    Arch, ClassSet, Classes, Guest, GuestError, GuestMemory, Hints, PageClass, Tier as Worth,
    TopTable,
};
use crate::snapshot::{
    self, ByteSource, Format, NotePlace, Opaque, PageMap, Snapshot, SnapshotError, cloud_hypervisor,
};
use crate::store::Tier;

/// The most guest memory that is looked at: its table of classes takes a byte a page, so this bounds memory to 4 GiB
/// and a bit a page beside.
const MEMORY_MAX: u64 = 16 << 40;

/// Guest memory that is looked at however small the file is, and how much more for each byte of the file: a page. The shortest
/// record of a page has nine bytes, and a guest that tells which pages are free has most of them left out.
const MEMORY_ANYWAY: u64 = 16 << 30;
const MEMORY_A_BYTE: u64 = 4096;

/// Told how many bytes of guest memory have been looked at since the last call.
pub type Progress<'p> = &'p (dyn Fn(u64) + Sync);

/// Why a file's pages have no classes, or only the one that doubt gives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoGuest {
    /// There is no page map.
    #[error(transparent)]
    Opaque(#[from] Opaque),
    /// There is more guest memory than a table of classes may be made for.
    #[error("{bytes} bytes of guest memory are more than can be classified")]
    TooLarge {
        /// The guest's memory in bytes.
        bytes: u64,
    },
    /// The file names so much guest memory that most of it can be nowhere in it.
    #[error("{bytes} bytes of guest memory are more than a file of {length} bytes can be about")]
    NotInFile {
        /// The guest's memory in bytes.
        bytes: u64,
        /// The file's length in bytes.
        length: u64,
    },
    /// No kernel was found that passes the checks.
    #[error(transparent)]
    NotFound(#[from] GuestError),
    /// An earlier look found none, and this was why.
    #[error("{0}")]
    Kept(String),
}

/// What is known of a guest that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// `uname -r`, made printable: the guest wrote it.
    pub release: String,
    /// The processor.
    pub arch: Arch,
    /// Log2 of the guest's page size in bytes.
    pub page_shift: u32,
    /// Bytes of guest memory.
    pub memory: u64,
    /// Whether the kernel carries BTF; without, page cache is never expendable.
    pub has_btf: bool,
    /// What the guest's allocator fills free pages with, where one could be read: zeros, or what it checks for. It is kept
    /// with the file, for it cannot be seen any more when no free page is left.
    pub fill: Option<u8>,
    /// Where vmcoreinfo is, so that the guest is found again at once.
    note: u64,
}

/// A file that was looked into.
#[derive(Debug)]
pub struct Look {
    snapshot: Snapshot,
    guest: Result<Found, NoGuest>,
    /// None without a page map, or where the guest is too large.
    classes: Option<Classes>,
    /// Bytes that are dead and zero.
    empty: u64,
}

/// What a file is, with the layout that Cloud Hypervisor's `state.json` tells, if that is at hand: the file that lies beside
/// one with the name `memory-ranges`.
pub fn recognise(source: &dyn ByteSource, state: Option<&[u8]>) -> Result<Snapshot, SnapshotError> {
    let mut snapshot = snapshot::index(source)?;
    place(&mut snapshot, state);
    Ok(snapshot)
}

/// Puts memory where Cloud Hypervisor's `state.json` says that it is.
pub(super) fn place(snapshot: &mut Snapshot, state: Option<&[u8]>) {
    if let (Format::Raw, snapshot::Contents::Mapped(map), Some(state)) =
        (snapshot.format, &mut snapshot.contents, state)
        && let Some(layout) = cloud_hypervisor::layout(state, map.file_length())
    {
        *map = map.with_likely_layout(layout);
    }
}

/// Tells the holes of a file, one call a hole.
pub type Holes<'k> = dyn Fn(&mut dyn FnMut(std::ops::Range<u64>)) -> io::Result<()> + 'k;

/// What is known of a file's pages without reading them.
pub struct Known<'k> {
    /// File offsets where a page with vmcoreinfo may begin.
    pub places: &'k [u64],
    /// Calls the function for every range of the file that is a hole, in rising order and apart from each other.
    pub holes: &'k Holes<'k>,
}

impl Look {
    /// Looks into a file whose format is known. An error only if the bytes cannot be read.
    pub fn into(
        snapshot: Snapshot,
        source: &(dyn ByteSource + Sync),
        progress: Progress<'_>,
    ) -> Result<Look, SnapshotError> {
        Look::with(snapshot, source, |map| Scan::of(map, source, progress))
    }

    /// The same for a file whose pages went by when they were written: none is read but those that describe the others.
    pub fn knowing(
        snapshot: Snapshot,
        source: &(dyn ByteSource + Sync),
        known: &Known<'_>,
    ) -> Result<Look, SnapshotError> {
        Look::with(snapshot, source, |map| Scan::knowing(map, source, known))
    }

    fn with(
        snapshot: Snapshot,
        source: &(dyn ByteSource + Sync),
        scan: impl FnOnce(&PageMap) -> Result<Scan, SnapshotError>,
    ) -> Result<Look, SnapshotError> {
        let map = match &snapshot.contents {
            snapshot::Contents::Opaque(reason) => {
                let guest = Err(NoGuest::Opaque(reason.clone()));
                return Ok(Look {
                    guest,
                    snapshot,
                    classes: None,
                    empty: 0,
                });
            }
            snapshot::Contents::Mapped(map) => map.clone(),
        };
        if let Err(reason) = fits(&map) {
            return Ok(Look {
                guest: Err(reason),
                snapshot,
                classes: None,
                empty: 0,
            });
        }
        let scan = scan(&map)?;
        let (map, guest, mut classes) = match find(&map, &scan, source, &snapshot) {
            Ok((map, found, classes)) => (map, Ok(found), classes),
            Err(error) => {
                let view = View::new(map.clone(), source);
                let shift = map.page_size().trailing_zeros();
                let classes = Classes::unknown(view.ranges(), shift);
                (map, Err(NoGuest::NotFound(error)), classes)
            }
        };
        let shift = classes.page_shift();
        let mut zeros = ZeroWalk::new(&map, &scan);
        classes.mark_zero(|pfn| zeros.zeros_from(pfn << shift, 1 << shift));
        Ok(Look {
            snapshot: Snapshot {
                contents: snapshot::Contents::Mapped(map),
                ..snapshot
            },
            guest,
            classes: Some(classes),
            empty: scan.empty,
        })
    }

    /// The format, and the page map under the layout that was found.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The page map under the layout that was found.
    pub fn map(&self) -> Option<&PageMap> {
        self.snapshot.map()
    }

    /// The guest, or why there is none.
    pub fn guest(&self) -> Result<&Found, &NoGuest> {
        self.guest.as_ref()
    }

    /// One class for each page frame, if there is a page map.
    pub fn classes(&self) -> Option<&Classes> {
        self.classes.as_ref()
    }

    /// Whether a guest can be resumed from the file. A dump is only read by people and tools, which can fetch nothing again.
    pub fn resumes(&self) -> bool {
        !matches!(
            self.snapshot.format,
            Format::ElfCore | Format::Lime | Format::Avml | Format::Kdump
        )
    }

    /// What a class is worth in this file.
    pub fn worth(&self, class: PageClass) -> Worth {
        match class.tier() {
            Worth::Expendable if class == PageClass::CacheClean && !self.resumes() => {
                Worth::Critical
            }
            tier => tier,
        }
    }

    /// What the bytes of the file are used for, in their order and without gaps. Nothing of it is held in memory.
    pub fn uses(&self) -> Uses<'_> {
        Uses::new(self.map(), self.classes.as_ref())
    }

    /// How many of the dead bytes are zeros, and so are holes and not stored: the slots of zero pages in mapped-ram.
    pub fn empty(&self) -> u64 {
        self.empty
    }

    /// The tier of a range of one use; nothing where it holds only zeros.
    pub fn tier(&self, used: FileUse) -> Option<Tier> {
        match used {
            FileUse::Framing => Some(Tier::Critical),
            FileUse::Dead => Some(Tier::Expendable),
            FileUse::Page(class) => match self.worth(class) {
                Worth::Critical => Some(Tier::Critical),
                Worth::Expendable => Some(Tier::Expendable),
                Worth::NotStored => None,
            },
        }
    }

    /// The tiers of the file as a commit wants them. Zeros are stored as holes whatever their tier; here they go with what
    /// stands before them, so that there are fewer runs.
    ///
    /// `heads`: whether the page map is kept with the file, so that heads of records can be lost with the pages behind them.
    pub fn tiers(&self, expendable: ClassSet, heads: bool) -> Tiers {
        if self.guest.is_err() {
            return Tiers::All(Tier::Critical);
        }
        let tier = |used| match used {
            FileUse::Page(class) if self.tier(used) == Some(Tier::Expendable) => {
                let listed = expendable.contains(class);
                Some(if listed {
                    Tier::Expendable
                } else {
                    Tier::Critical
                })
            }
            _ => self.tier(used),
        };
        let mut runs: Vec<(std::ops::Range<u64>, Tier)> = Vec::new();
        let mut heads = self.map().filter(|_| heads).map(|map| map.heads(0));
        for (range, used) in self.uses() {
            let head =
                used == FileUse::Framing && heads.as_mut().is_some_and(|heads| heads.has(&range));
            let open = runs.last_mut().filter(|(run, _)| run.end == range.start);
            let tier = if head { None } else { tier(used) };
            match (tier, open) {
                (Some(Tier::Expendable) | None, Some((run, _))) => run.end = range.end,
                (Some(Tier::Expendable), None) => runs.push((range, Tier::Expendable)),
                (Some(Tier::Critical), _) | (None, None) => {}
            }
        }
        Tiers::Runs(runs)
    }

    /// Takes over what an earlier look at the same guest saw and this one could not, since the pages are lost by now.
    pub fn remember(&mut self, before: &Insight) {
        if let (Ok(found), Ok(earlier)) = (&mut self.guest, &before.guest)
            && (found.note, &found.release) == (earlier.note, &earlier.release)
        {
            found.fill = found.fill.or(earlier.fill);
        }
    }

    /// Finds the guest again, at once, to ask it for more: why a page has its class, or a mend. None if there is none.
    pub fn with_guest<R>(
        &self,
        source: &(dyn ByteSource + Sync),
        ask: impl FnOnce(&Guest<'_>, &Classes) -> R,
    ) -> Option<R> {
        let (Ok(found), Some(map), Some(classes)) = (&self.guest, self.map(), &self.classes) else {
            return None;
        };
        let view = View::new(map.clone(), source);
        let hints = Hints {
            vmcoreinfo: vec![found.note],
            only_hinted: true,
            // It was found to run, or believed to, when the file was looked at.
            tables: None,
        };
        let guest = Guest::find(&view, &hints).ok()?;
        Some(ask(&guest, classes))
    }
}

/// Whether so much guest memory may be looked at, in whatever layout.
fn fits(map: &PageMap) -> Result<(), NoGuest> {
    let of = |layout: &snapshot::Layout| layout.ranges().iter().map(|range| range.length).sum();
    let layouts = map.layouts().iter().chain([map.layout()]);
    let bytes: u64 = layouts.map(of).max().unwrap_or_default();
    let length = map.file_length();
    if bytes > MEMORY_MAX || length > 2 * MEMORY_MAX {
        return Err(NoGuest::TooLarge { bytes });
    }
    if bytes > MEMORY_ANYWAY + length * MEMORY_A_BYTE {
        return Err(NoGuest::NotInFile { bytes, length });
    }
    Ok(())
}

/// Looks for the guest in every layout.
fn find(
    map: &PageMap,
    scan: &Scan,
    source: &(dyn ByteSource + Sync),
    snapshot: &Snapshot,
) -> Result<(PageMap, Found, Classes), GuestError> {
    if scan.cut {
        return Err(GuestError::TooManyPlaces(scan::NOTES_MAX));
    }
    let maps = layouts::all(map);
    let mut notes: Vec<u64> = maps.iter().flat_map(|map| scan.notes(map)).collect();
    // What is put together from deltas was not scanned. It is looked at once for all layouts, if the note is not elsewhere.
    if notes.is_empty() {
        let places = scan::patched_notes(map, source);
        if places.len() > scan::NOTES_MAX {
            return Err(GuestError::TooManyPlaces(scan::NOTES_MAX));
        }
        for map in &maps {
            let addresses = places.iter().filter_map(|&ram| map.address(ram));
            notes.extend(addresses.map(|gpa| gpa.0));
        }
        notes.sort_unstable();
        notes.dedup();
    }
    if let Some(NotePlace::Guest { gpa, .. }) = snapshot.hints.vmcoreinfo {
        notes.insert(0, gpa.0);
    }
    let hints = Hints {
        vmcoreinfo: notes,
        only_hinted: true,
        tables: snapshot.hints.tables.as_ref().map(|tables| {
            let known = |table: &snapshot::TopTable| TopTable {
                gpa: table.gpa.0,
                five_levels: table.five_levels,
            };
            tables.iter().map(known).collect()
        }),
    };
    let views: Vec<View<'_>> = maps.into_iter().map(|map| View::new(map, source)).collect();
    let candidates = views.iter().map(|view| view as &dyn GuestMemory);
    let (place, guest) = Guest::find_among(candidates, &hints)?;
    let classes = guest.classify()?;
    let found = Found {
        release: printable(guest.release()),
        arch: guest.arch(),
        page_shift: guest.page_shift(),
        memory: guest.memory_bytes(),
        has_btf: guest.has_btf(),
        fill: guest.fill_of_free_pages(&classes),
        note: guest.kernel().note,
    };
    let map = views
        .get(place)
        .map_or_else(|| map.clone(), |view| view.map().clone());
    Ok((map, found, classes))
}

/// What a guest says, without anything that a terminal would obey.
fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    text.chars().take(64).map(plain).collect()
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}, {}", self.release, self.arch)
    }
}
