//! Where the members of the kernel's structures lie: what vmcoreinfo tells of struct page, and what BTF tells of the
//! page cache and the lists of free pages. All offsets in bytes.

use super::btf::{Btf, Groups};
use super::error::GuestError;
use super::kernel::Kernel;

/// The structures and enums that BTF is asked for. A kernel that lacks one is passed through to its last type.
pub(super) const WANTED: Groups = &[
    &["pageflags"],
    &["pagetype"],
    &["mapping_flags"],
    &["bh_state_bits"],
    &["folio"],
    &["address_space"],
    &["address_space_operations"],
    &["inode"],
    &["super_block"],
    &["file_system_type"],
    &["buffer_head"],
    &["iomap_folio_state", "iomap_page"],
    &["per_cpu_pages"],
];

/// Where a compound page's order is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderAt {
    /// One byte, this far into the second struct page.
    SecondPage(usize),
    /// The low byte of the second struct page's flags, from 6.6.
    SecondFlags,
}

/// `struct page` (`include/linux/mm_types.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    /// Bytes of one.
    pub size: usize,
    /// Eight bytes.
    pub flags: usize,
    /// Four bytes.
    pub refcount: usize,
    /// Four bytes: mappings less one, or a type.
    pub mapcount: usize,
    /// Eight bytes: the address space, its low two bits a tag.
    pub mapping: usize,
    /// Two pointers.
    pub lru: usize,
    /// Eight bytes.
    pub private: usize,
    /// Eight bytes; bit 0 marks a tail.
    pub compound: usize,
    /// The compound order.
    pub order: OrderAt,
    /// Four bytes into the second struct page: mappings of the whole folio less one.
    pub large_mapcount: Option<usize>,
}

impl PageShape {
    pub(super) fn of(kernel: &Kernel, btf: Option<&Btf<'_>>) -> Result<PageShape, GuestError> {
        let info = &kernel.info;
        let size = info
            .size("page")
            .ok_or(GuestError::MissingKey("SIZE(page)"))?;
        if !(32..=256).contains(&size) || size % 8 != 0 {
            return Err(GuestError::ImpossibleValue("SIZE(page)"));
        }
        let field = |name: &'static str, len: usize| {
            let at = info.offset(name).ok_or(GuestError::MissingKey(name))?;
            if at % 4 == 0 && at <= size - len {
                Ok(at)
            } else {
                Err(GuestError::ImpossibleValue(name))
            }
        };
        let order = match (
            info.offset("page.compound_order"),
            info.offset("folio._folio_order"),
        ) {
            (Some(at), _) if at < size => OrderAt::SecondPage(at),
            (None, Some(at)) if at >= size && at < 2 * size => OrderAt::SecondPage(at - size),
            (None, None) if kernel.since(6, 6) => OrderAt::SecondFlags,
            _ => return Err(GuestError::MissingKey("the order of compound pages")),
        };
        let large_mapcount = btf
            .and_then(|btf| {
                btf.offset("folio", "_large_mapcount")
                    .or_else(|| btf.offset("folio", "_entire_mapcount"))
            })
            .and_then(|at| at.checked_sub(size))
            .filter(|&at| at <= size - 4);
        Ok(PageShape {
            size,
            flags: field("page.flags", 8)?,
            refcount: field("page._refcount", 4)?,
            mapcount: field("page._mapcount", 4)?,
            mapping: field("page.mapping", 8)?,
            lru: field("page.lru", 16)?,
            private: field("page.private", 8)?,
            compound: field("page.compound_head", 8).or_else(|_| field("page.compound_info", 8))?,
            order,
            large_mapcount,
        })
    }
}

/// What the page cache is understood by (`include/linux/fs.h`, `include/linux/pagemap.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// `address_space`: its inode.
    pub host: usize,
    /// `address_space`: its operations.
    pub a_ops: usize,
    /// `address_space`: its flags.
    pub mapping_flags: usize,
    /// `address_space`: four bytes that are not zero after a write that failed.
    pub write_error: Option<usize>,
    /// `address_space_operations`: how a page is read.
    pub read: usize,
    /// `inode`: 16 bits of type and permissions.
    pub i_mode: usize,
    /// `inode`: one byte, log2 of the block size.
    pub i_blkbits: usize,
    /// `inode`: its address space.
    pub i_mapping: usize,
    /// `inode`: its super block.
    pub i_sb: usize,
    /// `super_block`: its type.
    pub s_type: usize,
    /// `file_system_type`: a pointer to its name.
    pub name: usize,
    /// All flags that an address space may have: one that a future kernel invents keeps its pages.
    pub harmless: u64,
    /// How a mapping says which folios it knows.
    pub large: LargeFolios,
    /// Buffer heads, if they are understood.
    pub buffers: Option<BufferShape>,
    /// iomap's state of a folio, if it is understood.
    pub iomap: Option<IomapShape>,
}

/// How an address space says that it knows large folios.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LargeFolios {
    /// This kernel has none in files.
    Never,
    /// One flag, from 5.11.
    Flag(u64),
    /// A field of five bits with the largest order, from 6.12.
    MaxOrder(u32),
}

/// `struct buffer_head` (`include/linux/buffer_head.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferShape {
    /// Eight bytes of state bits.
    pub state: usize,
    /// The next one of the page's ring.
    pub next: usize,
    /// The page that it is of.
    pub page: usize,
    /// Eight bytes: the size of the block.
    pub size: usize,
    /// Four bytes: users.
    pub count: usize,
    /// The bit that says that the block holds what the disk holds.
    pub uptodate: u64,
    /// The block has a place on the disk.
    pub mapped: u64,
    /// All bits that may be set.
    pub harmless: u64,
}

/// `struct iomap_folio_state`, before 6.6 `struct iomap_page` (`fs/iomap/buffered-io.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IomapShape {
    /// Four bytes: bytes being read.
    pub reading: usize,
    /// Four bytes: bytes being written.
    pub writing: usize,
    /// One bit a block: it holds what the disk holds.
    pub bits: usize,
    /// One bit a block behind those: it is dirty.
    pub has_dirty: bool,
}

/// Flags of address spaces that say nothing against fetching a page again: how they are written back, and which folios
/// they know.
const HARMLESS_MAPPING: [&str; 5] = [
    "AS_NO_WRITEBACK_TAGS",
    "AS_STABLE_WRITES",
    "AS_RELEASE_ALWAYS",
    "AS_LARGE_FOLIO_SUPPORT",
    "AS_THP_SUPPORT",
];

impl CacheShape {
    pub(super) fn of(btf: &Btf<'_>) -> Option<CacheShape> {
        // Such kernels read page cache without holding a reference, if only a little is read. A processor that was stopped
        // in the middle of that would go on with bytes that are lost, and nothing would tell.
        if btf
            .member("address_space", "i_pages_delete_seqcnt")
            .is_some()
        {
            return None;
        }
        let flags = btf.values("mapping_flags");
        let mask = |name: &str| {
            flags
                .get(name)
                .filter(|&&n| n < 64)
                .map_or(0, |&n| 1u64 << n)
        };
        let large = match flags.get("AS_FOLIO_ORDER_MAX") {
            Some(&at) if at < 59 => LargeFolios::MaxOrder(at as u32),
            _ => match mask("AS_LARGE_FOLIO_SUPPORT") | mask("AS_THP_SUPPORT") {
                0 => LargeFolios::Never,
                flag => LargeFolios::Flag(flag),
            },
        };
        if mask("AS_UNEVICTABLE") == 0 {
            return None;
        }
        let named = HARMLESS_MAPPING
            .iter()
            .fold(0, |all, name| all | mask(name));
        // Two fields of five bits, the smallest order and the largest.
        let orders = match large {
            LargeFolios::MaxOrder(at) => {
                let first = flags
                    .get("AS_FOLIO_ORDER_MIN")
                    .map_or(at, |&min| min as u32);
                31 << at | 31u64.checked_shl(first).unwrap_or(0)
            }
            _ => 0,
        };
        Some(CacheShape {
            host: btf.offset("address_space", "host")?,
            a_ops: btf.offset("address_space", "a_ops")?,
            mapping_flags: btf.offset("address_space", "flags")?,
            write_error: btf.offset("address_space", "wb_err"),
            read: btf
                .offset("address_space_operations", "read_folio")
                .or_else(|| btf.offset("address_space_operations", "readpage"))?,
            i_mode: btf.offset("inode", "i_mode")?,
            i_blkbits: btf.offset("inode", "i_blkbits")?,
            i_mapping: btf.offset("inode", "i_mapping")?,
            i_sb: btf.offset("inode", "i_sb")?,
            s_type: btf.offset("super_block", "s_type")?,
            name: btf.offset("file_system_type", "name")?,
            harmless: named | orders,
            large,
            buffers: BufferShape::of(btf),
            iomap: IomapShape::of(btf),
        })
    }
}

impl BufferShape {
    fn of(btf: &Btf<'_>) -> Option<BufferShape> {
        let bits = btf.values("bh_state_bits");
        let bit = |name: &str| bits.get(name).filter(|&&n| n < 64).map(|&n| 1u64 << n);
        let at = |name: &str| btf.offset("buffer_head", name);
        let (uptodate, mapped) = (bit("BH_Uptodate")?, bit("BH_Mapped")?);
        let harmless = uptodate | mapped | bit("BH_Req")? | bit("BH_Boundary")? | bit("BH_Quiet")?;
        Some(BufferShape {
            state: at("b_state")?,
            next: at("b_this_page")?,
            page: at("b_page").or_else(|| at("b_folio"))?,
            size: at("b_size")?,
            count: at("b_count")?,
            uptodate,
            mapped,
            harmless,
        })
    }
}

impl IomapShape {
    fn of(btf: &Btf<'_>) -> Option<IomapShape> {
        let (name, bits) = if btf.named("iomap_folio_state").is_some() {
            ("iomap_folio_state", "state")
        } else {
            ("iomap_page", "uptodate")
        };
        Some(IomapShape {
            reading: btf.offset(name, "read_bytes_pending")?,
            writing: btf.offset(name, "write_bytes_pending")?,
            bits: btf.offset(name, bits)?,
            has_dirty: bits == "state",
        })
    }
}

/// The free pages that a processor keeps of one zone: `struct per_cpu_pages` (`include/linux/mmzone.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListsShape {
    /// Four bytes: how many pages are on all lists.
    pub count: usize,
    /// The list heads, two pointers each.
    pub lists: usize,
    /// How many there are.
    pub count_of_lists: usize,
    /// The lists hold several orders, from 5.14: three migration types an order. Before, there were three in all.
    pub orders: bool,
    /// The order of huge pages, which the last lists hold.
    pub huge_order: u32,
}

impl ListsShape {
    pub(super) fn of(kernel: &Kernel, btf: &Btf<'_>) -> Option<ListsShape> {
        let lists = btf.member("per_cpu_pages", "lists")?;
        let count_of_lists = btf
            .array_len(lists.type_id)
            .filter(|n| (1..=64).contains(n))?;
        Some(ListsShape {
            count: btf.offset("per_cpu_pages", "count")?,
            lists: lists.offset,
            count_of_lists,
            orders: count_of_lists > 3,
            huge_order: kernel.page_shift - 3,
        })
    }
}
