//! The memory map: which sections of memory the kernel knows, and the struct pages of each, read in runs as long as the
//! page tables map them (`include/linux/mmzone.h`, `mm/sparse.c`). Knows where struct pages are and not what they say.
//!
//! A section counts only as far as the guest has memory in it. A guest may claim a section of a GiB, with as many struct pages,
//! wherever it has a page, and let all of them lie in one place: what is read is bounded by the memory that there is.

use std::ops::Range;

use super::error::GuestError;
use super::kernel::Kernel;
use super::memory::GuestMemory;
use super::paging::{PageTables, Translations};

/// Flags in the low bits of a section's map: present, has a map, online.
const USABLE: u64 = 0b111;
/// Bits of a section's map that are no address.
const MAP_FLAGS: u64 = 0x3F;

/// Sections that are looked up at most: more than 64 TiB of guest have.
const SECTIONS_MAX: usize = 1 << 19;

/// One section that is online, or the part of it that is memory of this guest without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its first page frame.
    pub first: u64,
    /// How many frames it has.
    pub pages: usize,
    /// Virtual address of its first struct page.
    pub map: u64,
}

/// Roots behind which sections are looked for, and sections looked at, when all that the kernel knows are wanted: more
/// than 64 TiB of guest have.
const ROOTS_MAX: usize = 1 << 19;
const ENTRIES_MAX: u64 = 1 << 22;

/// Roots that may have sections behind them without any memory there: of memory that was taken away.
const ROOTS_BESIDE: u64 = 64;

/// All sections that are online and hold memory of this guest, ascending.
#[derive(Clone, Debug)]
pub struct Memmap {
    sections: Vec<Section>,
    /// The same by the address of their maps.
    by_address: Vec<Section>,
    page_size: usize,
}

impl Memmap {
    /// Reads the table of sections. `page_size` is the size of a struct page.
    pub(super) fn find(
        kernel: &Kernel,
        memory: &dyn GuestMemory,
        page_size: usize,
    ) -> Result<Memmap, GuestError> {
        let table = Table::of(kernel)?;
        let bits = table.bits;
        let pages = 1usize << (bits - kernel.page_shift.min(bits));
        let mut translations = Translations::new(memory, kernel.tables);
        let mut sections = Vec::new();
        // The section that was looked up last, and its map if it is online.
        let mut last: Option<(u64, Option<u64>)> = None;
        let mut looked_up = 0;
        for range in memory.ranges() {
            // A frame that is memory in part has no class.
            let frames =
                range.start.div_ceil(1 << kernel.page_shift)..range.end >> kernel.page_shift;
            if frames.is_empty() {
                continue;
            }
            for number in range.start >> bits..=(range.end - 1) >> bits {
                if number / table.per_root >= table.roots {
                    break;
                }
                let first = number << (bits - kernel.page_shift);
                let map = match last {
                    Some((before, map)) if before == number => map,
                    _ => {
                        looked_up += 1;
                        if looked_up > SECTIONS_MAX {
                            return Err(GuestError::TooManySections(SECTIONS_MAX));
                        }
                        let encoded = table.section(&mut translations, number);
                        // The kernel keeps the map as if it began with page frame 0.
                        let map = encoded.map(|encoded| {
                            (encoded & !MAP_FLAGS)
                                .wrapping_add(first.wrapping_mul(page_size as u64))
                        });
                        map.filter(|map| map.checked_add((pages * page_size) as u64).is_some())
                    }
                };
                last = Some((number, map));
                let part = frames.start.max(first)..frames.end.min(first + pages as u64);
                if let Some(map) = map
                    && !part.is_empty()
                {
                    sections.push(Section {
                        first: part.start,
                        pages: (part.end - part.start) as usize,
                        map: map + (part.start - first) * page_size as u64,
                    });
                }
            }
        }
        if sections.is_empty() {
            return Err(GuestError::NoMemmap);
        }
        let mut by_address = sections.clone();
        by_address.sort_by_key(|section| section.map);
        Ok(Memmap {
            sections,
            by_address,
            page_size,
        })
    }

    /// The sections, ascending.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// How many bytes of these ranges lie in sections.
    pub(super) fn bytes_within(&self, ranges: &[Range<u64>], page_shift: u32) -> u64 {
        let mut bytes = 0u64;
        for section in &self.sections {
            let (start, end) = (
                section.first << page_shift,
                (section.first + section.pages as u64) << page_shift,
            );
            for range in touching(ranges, start, end) {
                bytes =
                    bytes.saturating_add(range.end.min(end).saturating_sub(range.start.max(start)));
            }
        }
        bytes
    }

    /// The first page frame behind all sections.
    pub(super) fn end(&self) -> u64 {
        self.sections
            .last()
            .map_or(0, |section| section.first + section.pages as u64)
    }

    /// The section of a page frame.
    pub fn section(&self, pfn: u64) -> Option<Section> {
        let after = self
            .sections
            .partition_point(|section| section.first <= pfn);
        let section = self.sections.get(after.checked_sub(1)?)?;
        (pfn - section.first < section.pages as u64).then_some(*section)
    }

    /// The frame whose struct page is at a virtual address.
    pub fn frame(&self, va: u64) -> Option<u64> {
        let after = self.by_address.partition_point(|section| section.map <= va);
        let section = self.by_address.get(after.checked_sub(1)?)?;
        let inside = va - section.map;
        let index = inside / self.page_size as u64;
        (inside.is_multiple_of(self.page_size as u64) && index < section.pages as u64)
            .then(|| section.first + index)
    }

    /// Whether an address lies among struct pages, or between them.
    pub fn spans(&self, va: u64) -> bool {
        let first = self
            .by_address
            .first()
            .map_or(u64::MAX, |section| section.map);
        let last = self.by_address.last().map_or(0, |section| {
            section.map + (section.pages * self.page_size) as u64
        });
        (first..last).contains(&va)
    }

    /// A section's struct pages, where they lie in this process or else in `buffer`; and the ranges of bytes that are not
    /// mapped, zeros there.
    pub(super) fn load<'b>(
        &self,
        memory: &'b dyn GuestMemory,
        tables: &PageTables,
        section: &Section,
        buffer: &'b mut Vec<u8>,
    ) -> (&'b [u8], Vec<Range<usize>>) {
        let len = section.pages * self.page_size;
        let first = tables.translate(memory, section.map);
        if let Some(found) = first.filter(|found| found.left >= len as u64)
            && let Some(slice) = memory.slice(found.gpa, len)
        {
            return (slice, Vec::new());
        }
        buffer.resize(len, 0);
        let mut absent: Vec<Range<usize>> = Vec::new();
        let mut at = 0usize;
        while at < len {
            let va = section.map.wrapping_add(at as u64);
            let to_next_page = (0x1000 - (va & 0xFFF)) as usize;
            let found = tables.translate(memory, va);
            let step = found
                .map_or(to_next_page, |found| {
                    usize::try_from(found.left).unwrap_or(usize::MAX)
                })
                .min(len - at);
            let Some(part) = buffer.get_mut(at..at + step) else {
                break;
            };
            if !found.is_some_and(|found| memory.read(found.gpa, part)) {
                part.fill(0);
                match absent.last_mut() {
                    Some(last) if last.end == at => last.end = at + step,
                    _ => absent.push(at..at + step),
                }
            }
            at += step;
        }
        (buffer, absent)
    }
}

/// The ranges, of those that are given ascending and apart, of which a byte lies between two addresses.
fn touching(ranges: &[Range<u64>], start: u64, end: u64) -> &[Range<u64>] {
    let from = ranges.partition_point(|range| range.end <= start);
    let to = ranges.partition_point(|range| range.start < end).max(from);
    ranges.get(from..to).unwrap_or_default()
}

/// The kernel's table of sections.
struct Table {
    /// Virtual address of the roots.
    roots_at: u64,
    roots: u64,
    /// SPARSEMEM_EXTREME has a page of sections behind each root; otherwise the roots are the sections.
    extreme: bool,
    /// Sections behind a root.
    per_root: u64,
    /// Bytes of a section's entry, and where in it the map is.
    entry: u64,
    map_at: u64,
    /// Log2 of the bytes of memory that a section has.
    bits: u32,
}

impl Table {
    fn of(kernel: &Kernel) -> Result<Table, GuestError> {
        let info = &kernel.info;
        let roots_at = info
            .symbol("mem_section")
            .ok_or(GuestError::MissingKey("SYMBOL(mem_section)"))?;
        let roots = info
            .length("mem_section")
            .ok_or(GuestError::MissingKey("LENGTH(mem_section)"))? as u64;
        let entry = info.size("mem_section").filter(|n| (8..=4096).contains(n));
        let entry = entry.ok_or(GuestError::MissingKey("SIZE(mem_section)"))? as u64;
        let map_at = info
            .offset("mem_section.section_mem_map")
            .filter(|&n| n < 4096)
            .unwrap_or(0) as u64;
        // 27 on x86_64, 27 to 30 on arm64. A section's struct pages are read at once, so a lie must not make it large.
        let bits = info
            .number("SECTION_SIZE_BITS")
            .filter(|bits| (20..=30).contains(bits));
        let bits = bits.ok_or(GuestError::MissingKey("NUMBER(SECTION_SIZE_BITS)"))? as u32;
        let physical = info
            .number("MAX_PHYSMEM_BITS")
            .filter(|n| (u64::from(bits)..=56).contains(n))
            .unwrap_or(52);
        let extreme = roots < 1 << (physical - u64::from(bits));
        let per_root = if extreme {
            (1u64 << kernel.page_shift) / entry
        } else {
            1
        };
        Ok(Table {
            roots_at,
            roots,
            extreme,
            per_root,
            entry,
            map_at,
            bits,
        })
    }

    /// Virtual address of the sections behind a root; none if there are none.
    fn array(&self, guest: &mut Translations<'_>, root: u64) -> Option<u64> {
        if self.extreme {
            let array = guest.u64(self.roots_at.checked_add(root.checked_mul(8)?)?)?;
            (array != 0).then_some(array)
        } else {
            self.roots_at.checked_add(root.checked_mul(self.entry)?)
        }
    }

    /// All roots that have sections, with the address of those. Most have none, so they are read many at a time.
    /// None if the roots cannot be read.
    fn arrays(&self, guest: &mut Translations<'_>) -> Option<Vec<(u64, u64)>> {
        if !self.extreme {
            let array = |root| Some((root, self.array(guest, root)?));
            return (0..self.roots).map(array).collect();
        }
        let mut found = Vec::new();
        let mut bytes = [0; 4096];
        for first in (0..self.roots).step_by(bytes.len() / 8) {
            let len = bytes.len().min(8 * (self.roots - first) as usize);
            let part = bytes.get_mut(..len)?;
            if !guest.read(self.roots_at.wrapping_add(8 * first), part) {
                return None;
            }
            let arrays = part
                .as_chunks::<8>()
                .0
                .iter()
                .map(|word| u64::from_le_bytes(*word));
            found.extend((first..).zip(arrays).filter(|&(_, array)| array != 0));
        }
        Some(found)
    }

    /// How many roots have memory of these ranges, ascending, behind them.
    fn roots_touched(&self, ranges: &[Range<u64>]) -> u64 {
        let mut roots = 0u64;
        let mut next = 0;
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let root = |gpa: u64| (gpa >> self.bits) / self.per_root;
            let (first, end) = (root(range.start).max(next), root(range.end - 1) + 1);
            roots = roots.saturating_add(end.saturating_sub(first));
            next = next.max(end);
        }
        roots
    }

    /// A section's word, if the section is online.
    fn section(&self, guest: &mut Translations<'_>, number: u64) -> Option<u64> {
        let (root, index) = (number / self.per_root, number % self.per_root);
        let array = self.array(guest, root)?;
        self.entry_of(guest, array, index)
    }

    fn entry_of(&self, guest: &mut Translations<'_>, array: u64, index: u64) -> Option<u64> {
        let at = array
            .wrapping_add(index * self.entry)
            .wrapping_add(self.map_at);
        guest.u64(at).filter(|encoded| encoded & USABLE == USABLE)
    }
}

/// Whether the kernel has a section online in which the guest, laid out like this, has no memory at all: then this is not
/// how it is laid out, or part of it is elsewhere. So is a table that cannot be looked through.
pub(super) fn knows_more(kernel: &Kernel, memory: &dyn GuestMemory) -> bool {
    let Ok(table) = Table::of(kernel) else {
        return true;
    };
    if table.roots > ROOTS_MAX as u64 {
        return true;
    }
    let mut guest = Translations::new(memory, kernel.tables);
    let mut looked_at = 0;
    // A kernel has a root where it has memory, and every root is a page of sections to look at.
    let most = if table.extreme {
        let roots = table.roots_touched(memory.ranges()) + ROOTS_BESIDE;
        roots.saturating_mul(table.per_root).min(ENTRIES_MAX)
    } else {
        ENTRIES_MAX
    };
    let Some(arrays) = table.arrays(&mut guest) else {
        return true;
    };
    for (root, array) in arrays {
        looked_at += table.per_root;
        if looked_at > most {
            return true;
        }
        for index in 0..table.per_root {
            if table.entry_of(&mut guest, array, index).is_none() {
                continue;
            }
            let number = root * table.per_root + index;
            let (Some(start), Some(end)) = (
                number.checked_mul(1 << table.bits),
                (number + 1).checked_mul(1 << table.bits),
            ) else {
                return true;
            };
            if touching(memory.ranges(), start, end).is_empty() {
                return true;
            }
        }
    }
    false
}
