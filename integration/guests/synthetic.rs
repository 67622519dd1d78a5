//! A guest of 4 MiB that no kernel ever ran in: just the structures that the judgement of pages reads, laid out by hand, so
//! that every rule can be tried alone and every byte can be made a lie.

/// Bytes of memory, from guest-physical 0.
pub const LEN: usize = 4 << 20;
/// Where the guest maps all its memory.
pub const BASE: u64 = 0xFFFF_FFFF_8000_0000;
/// Where its struct pages lie.
pub const MEMMAP: u64 = 0x20_0000;
/// Where vmcoreinfo lies.
pub const VMCOREINFO: u64 = 0x3_0000;
/// Where its files' structures begin.
pub const FILES: u64 = 0x8_0000;

const STRUCT_PAGE: u64 = 64;
const TABLES: u64 = 0x1000;
const TEXT: u64 = 0x1_0000;
const UTS: u64 = 0x2_0000;
const ROOTS: u64 = 0x2_1000;
/// Where its sections lie, 16 bytes each, one for every 4 MiB.
pub const SECTIONS: u64 = 0x2_2000;
const BTF: u64 = 0x4_0000;
/// The lists of free pages of its one processor.
pub const LISTS: u64 = 0x9_3000;
const LISTS_COUNT: u64 = 13;

/// Bits of a page's flags, in the order of 6.12.
pub mod flag {
    pub const LOCKED: u64 = 1;
    pub const WRITEBACK: u64 = 1 << 1;
    pub const UPTODATE: u64 = 1 << 3;
    pub const DIRTY: u64 = 1 << 4;
    pub const LRU: u64 = 1 << 5;
    pub const HEAD: u64 = 1 << 6;
    pub const WAITERS: u64 = 1 << 7;
    pub const OWNER: u64 = 1 << 10;
    pub const RESERVED: u64 = 1 << 13;
    pub const PRIVATE: u64 = 1 << 14;
    pub const PRIVATE_2: u64 = 1 << 15;
    pub const SWAPBACKED: u64 = 1 << 17;
    pub const UNEVICTABLE: u64 = 1 << 18;
    pub const MLOCKED: u64 = 1 << 19;
    pub const HWPOISON: u64 = 1 << 20;
}

const FLAG_NAMES: [&str; 21] = [
    "PG_locked",
    "PG_writeback",
    "PG_referenced",
    "PG_uptodate",
    "PG_dirty",
    "PG_lru",
    "PG_head",
    "PG_waiters",
    "PG_active",
    "PG_workingset",
    "PG_owner_priv_1",
    "PG_owner_2",
    "PG_arch_1",
    "PG_reserved",
    "PG_private",
    "PG_private_2",
    "PG_reclaim",
    "PG_swapbacked",
    "PG_unevictable",
    "PG_mlocked",
    "PG_hwpoison",
];

/// Where a struct page's words lie.
pub mod word {
    pub const FLAGS: u64 = 0;
    pub const LRU: u64 = 8;
    pub const COMPOUND: u64 = 8;
    pub const MAPPING: u64 = 24;
    pub const PRIVATE: u64 = 40;
    pub const MAPCOUNT: u64 = 48;
    pub const REFCOUNT: u64 = 52;
}

/// A file's structures, one behind the other from an address of their own.
#[derive(Clone, Copy, Debug)]
pub struct File {
    pub mapping: u64,
    pub inode: u64,
    pub operations: u64,
    pub super_block: u64,
    pub kind: u64,
    pub name: u64,
}

/// The guest.
#[derive(Clone)]
pub struct Synthetic {
    pub bytes: Vec<u8>,
    next: u64,
}

impl Synthetic {
    /// A guest all of whose page frames are held by the kernel for some purpose of its own.
    pub fn new() -> Synthetic {
        let mut guest = Synthetic {
            bytes: vec![0; LEN],
            next: FILES,
        };
        guest.put(TABLES + 8 * 511, 0x2067);
        guest.put(0x2000 + 8 * 510, 0x3067);
        for page in 0..2 {
            guest.put(0x3000 + 8 * page, (page << 21) | 0xE3);
        }
        guest.bytes[UTS as usize + 130..][..16].copy_from_slice(b"6.12.0-synthetic");
        guest.put(ROOTS, BASE + SECTIONS);
        guest.put(SECTIONS, (BASE + MEMMAP) | 0b111);
        let text = vmcoreinfo();
        guest.bytes[VMCOREINFO as usize..][..text.len()].copy_from_slice(text.as_bytes());
        let btf = btf();
        assert!(btf.len() < (FILES - BTF) as usize);
        guest.bytes[BTF as usize..][..btf.len()].copy_from_slice(&btf);
        for list in 0..LISTS_COUNT {
            let head = BASE + LISTS + 16 + 16 * list;
            guest.put(head - BASE, head);
            guest.put(head - BASE + 8, head);
        }
        for pfn in 0..guest.pages() {
            guest.kernel_page(pfn);
        }
        guest
    }

    pub fn pages(&self) -> u64 {
        (LEN >> 12) as u64
    }

    /// Writes a word at a guest-physical address.
    pub fn put(&mut self, gpa: u64, value: u64) {
        self.bytes[gpa as usize..][..8].copy_from_slice(&value.to_le_bytes());
    }

    pub fn put32(&mut self, gpa: u64, value: u32) {
        self.bytes[gpa as usize..][..4].copy_from_slice(&value.to_le_bytes());
    }

    pub fn get(&self, gpa: u64) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[gpa as usize..][..8]);
        u64::from_le_bytes(word)
    }

    /// Guest-physical address of a struct page.
    pub fn page(pfn: u64) -> u64 {
        MEMMAP + STRUCT_PAGE * pfn
    }

    fn clear(&mut self, pfn: u64) -> u64 {
        let at = Self::page(pfn);
        self.bytes[at as usize..][..STRUCT_PAGE as usize].fill(0);
        self.put32(at + word::MAPCOUNT, u32::MAX);
        at
    }

    pub fn kernel_page(&mut self, pfn: u64) {
        let at = self.clear(pfn);
        self.put32(at + word::REFCOUNT, 1);
    }

    /// A page that nothing refers to and that is on no list.
    pub fn idle_page(&mut self, pfn: u64) {
        self.clear(pfn);
    }

    /// A page with a type, which is the top byte of its mapcount.
    pub fn typed_page(&mut self, pfn: u64, kind: u8) {
        let at = self.clear(pfn);
        self.put32(at + word::MAPCOUNT, u32::from(kind) << 24);
    }

    /// A block of the buddy allocator.
    pub fn buddy(&mut self, pfn: u64, order: u32) {
        for tail in 0..1 << order {
            self.clear(pfn + tail);
        }
        let at = Self::page(pfn);
        self.put32(at + word::MAPCOUNT, 0xF000_0000);
        self.put(at + word::PRIVATE, u64::from(order));
    }

    /// Puts idle pages on one of the processor's lists and counts them.
    pub fn free_list(&mut self, list: u64, pfns: &[u64]) {
        let head = BASE + LISTS + 16 + 16 * list;
        let mut before = head;
        for &pfn in pfns {
            self.idle_page(pfn);
            let own = BASE + Self::page(pfn) + word::LRU;
            self.put(before - BASE, own);
            self.put(own - BASE + 8, before);
            before = own;
        }
        self.put(before - BASE, head);
        self.put(head - BASE + 8, before);
        let count = self.get(LISTS) as u32 + ((pfns.len() as u32) << (list / 3));
        self.put32(LISTS, count);
    }

    /// The structures of a regular file with blocks of 4 KiB.
    pub fn file(&mut self, file_system: &str) -> File {
        let at = self.next;
        self.next += 0x200;
        let file = File {
            mapping: at,
            inode: at + 0x40,
            operations: at + 0x80,
            super_block: at + 0xC0,
            kind: at + 0x100,
            name: at + 0x140,
        };
        self.put(file.mapping, BASE + file.inode);
        self.put(file.mapping + 8, BASE + file.operations);
        // Folios of up to order 9.
        self.put(file.mapping + 16, 9 << 21);
        self.put(file.inode, 0o100_644);
        self.put(file.inode + 8, BASE + file.mapping);
        self.put(file.inode + 16, BASE + file.super_block);
        self.put(file.inode + 24, 12);
        self.put(file.operations + 8, BASE + TEXT);
        self.put(file.super_block, BASE + file.kind);
        self.put(file.kind, BASE + file.name);
        self.bytes[file.name as usize..][..file_system.len()]
            .copy_from_slice(file_system.as_bytes());
        file
    }

    /// A clean folio of a file, unmapped, with no reference but the cache's.
    pub fn cached(&mut self, pfn: u64, order: u32, file: &File) -> u64 {
        let head = BASE + Self::page(pfn);
        for tail in 1..1u64 << order {
            let at = self.clear(pfn + tail);
            self.put(at + word::COMPOUND, head | 1);
        }
        let at = self.clear(pfn);
        self.put(
            at + word::FLAGS,
            flag::LRU | flag::UPTODATE | if order > 0 { flag::HEAD } else { 0 },
        );
        self.put(at + word::MAPPING, BASE + file.mapping);
        self.put32(at + word::REFCOUNT, 1 << order);
        if order > 0 {
            self.put(at + STRUCT_PAGE, u64::from(order));
            self.put32(at + STRUCT_PAGE + 16, u32::MAX);
        }
        at
    }

    fn private(&mut self, page: u64, value: u64) {
        self.put(page + word::FLAGS, self.get(page) | flag::PRIVATE);
        self.put(page + word::PRIVATE, value);
        let count = self.get(page + word::REFCOUNT) as u32;
        self.put32(page + word::REFCOUNT, count + 1);
    }

    /// Gives a folio a ring of buffer heads; returns where each lies.
    pub fn buffers(&mut self, page: u64, blocks: u64) -> Vec<u64> {
        let ring: Vec<u64> = (0..blocks).map(|block| self.next + 0x40 * block).collect();
        self.next += 0x40 * blocks;
        for (place, &at) in ring.iter().enumerate() {
            self.put(at, 1 | 1 << 4);
            self.put(at + 8, BASE + ring[(place + 1) % ring.len()]);
            self.put(at + 16, BASE + page);
            self.put(at + 24, 4096);
            self.put32(at + 32, 0);
        }
        self.private(page, BASE + ring[0]);
        ring
    }

    /// Gives a folio iomap's state, all blocks up to date.
    pub fn iomap(&mut self, page: u64, blocks: u64) -> u64 {
        let at = self.next;
        self.next += 0x100;
        for block in 0..blocks {
            let word = at + 16 + 8 * (block / 64);
            self.put(word, self.get(word) | 1 << (block % 64));
        }
        self.private(page, BASE + at);
        at
    }

    /// Gives a page btrfs's mark.
    pub fn mark(&mut self, page: u64) {
        self.private(page, 1);
    }
}

fn vmcoreinfo() -> String {
    let symbol = |name: &str, gpa: u64| format!("SYMBOL({name})={:x}\n", BASE + gpa);
    let offsets = [
        ("uts_namespace.name", 0),
        ("mem_section.section_mem_map", 0),
        ("page.flags", word::FLAGS),
        ("page._refcount", word::REFCOUNT),
        ("page._mapcount", word::MAPCOUNT),
        ("page.mapping", word::MAPPING),
        ("page.lru", word::LRU),
        ("page.private", word::PRIVATE),
        ("page.compound_head", word::COMPOUND),
    ];
    let numbers = [
        ("phys_base", 0i64),
        ("pgtable_l5_enabled", 0),
        ("SECTION_SIZE_BITS", 22),
        ("MAX_PHYSMEM_BITS", 32),
        ("PG_lru", 5),
        ("PG_private", 14),
        ("PG_swapbacked", 17),
        ("PG_swapcache", 10),
        ("PG_hwpoison", 20),
        ("PG_head_mask", 64),
        ("PAGE_BUDDY_MAPCOUNT_VALUE", 0xF000_0000),
        ("PAGE_OFFLINE_MAPCOUNT_VALUE", 0xF100_0000),
        ("PAGE_SLAB_MAPCOUNT_VALUE", 0xF500_0000),
        ("PAGE_HUGETLB_MAPCOUNT_VALUE", 0xF400_0000),
    ];
    let mut text = String::from("OSRELEASE=6.12.0-synthetic\nPAGESIZE=4096\n");
    text += &symbol("_stext", TEXT);
    text += &symbol("swapper_pg_dir", TABLES);
    text += &symbol("init_uts_ns", UTS);
    text += &symbol("mem_section", ROOTS);
    text += "LENGTH(mem_section)=4\nLENGTH(zone.free_area)=11\n";
    text += "SIZE(mem_section)=16\nSIZE(page)=64\n";
    for (name, offset) in offsets {
        text += &format!("OFFSET({name})={offset}\n");
    }
    for (name, number) in numbers {
        text += &format!("NUMBER({name})={number}\n");
    }
    text
}

/// Writes BTF, type by type.
struct Types {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Types {
    fn words(&mut self, words: &[u32]) {
        for word in words {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
    }

    fn name(&mut self, name: &str) -> u32 {
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn begin(&mut self, name: &str, kind: u32, count: usize, rest: u32) -> u32 {
        let name = self.name(name);
        self.words(&[name, kind << 24 | count as u32, rest]);
        self.count += 1;
        self.count
    }

    fn structure(&mut self, name: &str, members: &[(&str, u32, u32)]) -> u32 {
        let id = self.begin(name, 4, members.len(), 64);
        for &(name, bytes, kind) in members {
            let name = self.name(name);
            self.words(&[name, kind, 8 * bytes]);
        }
        id
    }

    fn values(&mut self, name: &str, values: &[(&str, u32)]) {
        self.begin(name, 6, values.len(), 4);
        for &(name, value) in values {
            let name = self.name(name);
            self.words(&[name, value]);
        }
    }
}

/// A blob like a kernel's, as far as it is read.
pub fn btf() -> Vec<u8> {
    let mut types = Types {
        types: Vec::new(),
        strings: vec![0],
        count: 0,
    };
    let int = types.begin("int", 1, 0, 4);
    types.words(&[0]);
    let array = types.begin("", 3, 0, 0);
    types.words(&[int, int, LISTS_COUNT as u32]);
    let mut flags: Vec<(&str, u32)> = FLAG_NAMES
        .iter()
        .zip(0..)
        .map(|(&name, bit)| (name, bit))
        .collect();
    flags.push(("__NR_PAGEFLAGS", 21));
    flags.push(("PG_swapcache", 10));
    types.values("pageflags", &flags);
    types.values(
        "pagetype",
        &[("PGTY_table", 0xF2), ("PGTY_large_kmalloc", 0xF8)],
    );
    types.values(
        "mapping_flags",
        &[
            ("AS_EIO", 0),
            ("AS_ENOSPC", 1),
            ("AS_UNEVICTABLE", 3),
            ("AS_EXITING", 4),
            ("AS_FOLIO_ORDER_MAX", 21),
        ],
    );
    types.values(
        "bh_state_bits",
        &[
            ("BH_Uptodate", 0),
            ("BH_Dirty", 1),
            ("BH_Req", 3),
            ("BH_Mapped", 4),
            ("BH_Boundary", 9),
            ("BH_Quiet", 12),
        ],
    );
    // A folio's count of mappings lies in its second struct page.
    types.structure("folio", &[("_large_mapcount", 64 + 16, int)]);
    let anonymous = types.structure("", &[("wb_err", 8, int)]);
    types.structure(
        "address_space",
        &[
            ("host", 0, int),
            ("a_ops", 8, int),
            ("flags", 16, int),
            ("", 16, anonymous),
        ],
    );
    types.structure("address_space_operations", &[("read_folio", 8, int)]);
    types.structure(
        "inode",
        &[
            ("i_mode", 0, int),
            ("i_mapping", 8, int),
            ("i_sb", 16, int),
            ("i_blkbits", 24, int),
        ],
    );
    types.structure("super_block", &[("s_type", 0, int)]);
    types.structure("file_system_type", &[("name", 0, int)]);
    types.structure(
        "buffer_head",
        &[
            ("b_state", 0, int),
            ("b_this_page", 8, int),
            ("b_folio", 16, int),
            ("b_size", 24, int),
            ("b_count", 32, int),
        ],
    );
    types.structure(
        "iomap_folio_state",
        &[
            ("read_bytes_pending", 4, int),
            ("write_bytes_pending", 8, int),
            ("state", 16, int),
        ],
    );
    types.structure("per_cpu_pages", &[("count", 0, int), ("lists", 16, array)]);
    // A kernel's blob is told from a module's by how many types it has.
    while types.count < 5_001 {
        types.words(&[0, 2 << 24, int]);
        types.count += 1;
    }
    let mut blob = vec![0x9F, 0xEB, 1, 0];
    let (type_len, string_len) = (types.types.len() as u32, types.strings.len() as u32);
    for word in [24, 0, type_len, type_len, string_len] {
        blob.extend_from_slice(&word.to_le_bytes());
    }
    blob.extend(types.types);
    blob.extend(types.strings);
    blob
}
