//! The bits of a struct page's flags and the values of its type, as this kernel has them
//! (`include/linux/page-flags.h`). From BTF where there is one, else from what vmcoreinfo tells and the order that the
//! flags have had in every kernel since 5.4.

use super::btf::Btf;
use super::error::GuestError;
use super::kernel::Kernel;
use super::paging::Arch;

/// Masks of single flags; zero where the kernel does not have one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// A page of an I/O in flight, or being changed.
    pub locked: u64,
    /// Differs from the disk.
    pub dirty: u64,
    /// Being written to the disk.
    pub writeback: u64,
    /// Holds what the disk holds.
    pub uptodate: u64,
    /// On a list of the page reclaim.
    pub lru: u64,
    /// Of the slab allocator, before 6.10.
    pub slab: u64,
    /// Not the allocator's.
    pub reserved: u64,
    /// The `private` word means something.
    pub private: u64,
    /// The first page of a compound one.
    pub head: u64,
    /// Backed by swap.
    pub swapbacked: u64,
    /// In the swap cache, if backed by swap.
    pub swapcache: u64,
    /// Out of use after a memory error.
    pub hwpoison: u64,
    /// In the flags of the second page: some page of the folio is out of use.
    pub has_hwpoisoned: u64,
    /// What clean page cache may have set, `private` apart.
    pub harmless: u64,
    /// arm64's note that the instruction cache is in step with the page. Harmless, but not true any more once other bytes
    /// are read into it.
    pub in_step: u64,
    /// All flags of the kernel. The bits above hold zone, node and section.
    pub known: u64,
}

/// Flags that say nothing against fetching a page again: they guide reclaim and readahead.
const HARMLESS: [&str; 10] = [
    "PG_referenced",
    "PG_uptodate",
    "PG_lru",
    "PG_head",
    "PG_active",
    "PG_workingset",
    "PG_reclaim",
    "PG_mappedtodisk",
    "PG_young",
    "PG_idle",
];

impl Flags {
    pub(super) fn of(kernel: &Kernel, btf: Option<&Btf<'_>>) -> Result<Flags, GuestError> {
        let number = |name: &'static str| kernel.info.number(name).filter(|&n| n < 64);
        let lru = number("PG_lru")
            .filter(|&n| n >= 2)
            .ok_or(GuestError::MissingKey("NUMBER(PG_lru)"))?;
        let private = number("PG_private").ok_or(GuestError::MissingKey("NUMBER(PG_private)"))?;
        let swapbacked =
            number("PG_swapbacked").ok_or(GuestError::MissingKey("NUMBER(PG_swapbacked)"))?;
        let head = kernel
            .info
            .number("PG_head_mask")
            .filter(|mask| mask.is_power_of_two());
        let head = head.ok_or(GuestError::MissingKey("NUMBER(PG_head_mask)"))?;
        let bit = |name| number(name).map_or(0, |n| 1 << n);
        // Since 6.10 writeback is bit 1 and head bit 6; before, writeback came right before head.
        let writeback = if head == 1 << 6 { 2 } else { head >> 1 };
        let mut flags = Flags {
            locked: 1,
            dirty: 1 << (lru - 1),
            writeback,
            uptodate: 1 << (lru - 2),
            lru: 1 << lru,
            slab: bit("PG_slab"),
            reserved: (1 << private) >> 1,
            private: 1 << private,
            head,
            swapbacked: 1 << swapbacked,
            swapcache: bit("PG_swapcache"),
            hwpoison: bit("PG_hwpoison"),
            has_hwpoisoned: 0,
            harmless: 0,
            in_step: 0,
            known: (1 << (swapbacked + 2).min(40)) - 1,
        };
        if let Some(btf) = btf {
            flags.take(btf, kernel.arch());
        }
        Ok(flags)
    }

    fn take(&mut self, btf: &Btf<'_>, arch: Arch) {
        let values = btf.values("pageflags");
        let bit = |name: &str| {
            values
                .get(name)
                .filter(|&&n| n < 64)
                .map_or(0, |&n| 1u64 << n)
        };
        let count = values.get("__NR_PAGEFLAGS").copied().unwrap_or(0);
        // vmcoreinfo and BTF come from one build. Where they differ, one of them lies, and nothing is harmless.
        let agree = bit("PG_lru") == self.lru
            && bit("PG_private") == self.private
            && bit("PG_head") == self.head;
        if !agree || !(16..=40).contains(&count) {
            return;
        }
        self.locked = bit("PG_locked");
        self.dirty = bit("PG_dirty");
        self.writeback = bit("PG_writeback");
        self.uptodate = bit("PG_uptodate");
        self.reserved = bit("PG_reserved");
        self.slab = bit("PG_slab");
        self.hwpoison = bit("PG_hwpoison");
        self.swapcache = bit("PG_swapcache");
        self.has_hwpoisoned = bit("PG_has_hwpoisoned");
        self.known = (1 << count) - 1;
        self.harmless = HARMLESS
            .iter()
            .map(|name| bit(name))
            .fold(0, |all, one| all | one);
        // Since 6.12 the bit of mappedtodisk is named after its owner.
        self.harmless |= bit("PG_owner_2");
        // Elsewhere the bit has other meanings.
        if arch == Arch::Arm64 {
            self.in_step = bit("PG_arch_1");
            self.harmless |= self.in_step;
        }
    }

    /// What no free page has set: the allocator takes none that does.
    pub fn never_free(&self) -> u64 {
        self.lru | self.reserved | self.hwpoison | self.slab | self.head | self.private
    }

    /// Whether a page of the file cache could be proved recoverable at all.
    pub fn can_prove(&self) -> bool {
        let needed = [
            self.locked,
            self.dirty,
            self.writeback,
            self.uptodate,
            self.lru,
            self.private,
        ];
        self.harmless != 0 && needed.iter().all(|&mask| mask != 0)
    }
}

/// What a page's type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In the buddy allocator.
    Buddy,
    /// Given back to the hypervisor.
    Offline,
    /// A page table.
    Table,
    /// Of the slab allocator, from 6.10, and large kmalloc.
    Slab,
    /// Of hugetlbfs, from 6.9.
    Hugetlb,
    /// Any other type.
    Other,
}

/// The values that the mapcount word has for pages with a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Types {
    values: Vec<(u32, Kind)>,
    /// From 6.12 the type is the top byte and the rest may be the owner's.
    top_byte: bool,
}

impl Types {
    pub(super) fn of(kernel: &Kernel, btf: Option<&Btf<'_>>) -> Types {
        let keys = [
            ("PAGE_BUDDY_MAPCOUNT_VALUE", Kind::Buddy),
            ("PAGE_OFFLINE_MAPCOUNT_VALUE", Kind::Offline),
            ("PAGE_SLAB_MAPCOUNT_VALUE", Kind::Slab),
            ("PAGE_HUGETLB_MAPCOUNT_VALUE", Kind::Hugetlb),
        ];
        let mut values: Vec<(u32, Kind)> = keys
            .iter()
            .filter_map(|&(key, kind)| Some((kernel.info.number(key)? as u32, kind)))
            .collect();
        let buddy = values.first().map_or(0, |&(value, _)| value);
        let top_byte = buddy & 0xFF_FFFF == 0 && buddy >> 28 == 0xF;
        if top_byte {
            let names = btf.map(|btf| btf.values("pagetype")).unwrap_or_default();
            let value = |name: &str| names.get(name).map(|&value| (value as u32) << 24);
            values.extend(value("PGTY_table").map(|value| (value, Kind::Table)));
            values.extend(value("PGTY_large_kmalloc").map(|value| (value, Kind::Slab)));
        } else if !kernel.since(6, 11) {
            // A type is then one bit that is clear. Page tables moved down by one when 5.11 dropped kmemcg's.
            let table: u32 = if kernel.since(5, 11) { 0x200 } else { 0x400 };
            values.push((!table, Kind::Table));
        }
        Types { values, top_byte }
    }

    /// The type of a page by its mapcount word, or none if the word counts mappings.
    #[inline]
    pub fn kind(&self, mapcount: u32) -> Option<Kind> {
        // Counts lie above -128, types below.
        if mapcount as i32 >= -128 {
            return None;
        }
        let same = |value: u32| {
            if self.top_byte {
                value >> 24 == mapcount >> 24
            } else {
                value == mapcount
            }
        };
        Some(
            self.values
                .iter()
                .find(|&&(value, _)| same(value))
                .map_or(Kind::Other, |&(_, kind)| kind),
        )
    }
}
