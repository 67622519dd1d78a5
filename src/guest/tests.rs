//! The rules of the judgement, each tried alone on a guest made by hand.

mod bounds;
mod finding;
mod mend;
mod running;

use super::synthetic::{BASE, LISTS, MEMMAP, SECTIONS, Synthetic, VMCOREINFO, flag, word};
use super::*;

fn look<T>(guest: &Synthetic, ask: impl FnOnce(&Guest<'_>, &Classes) -> T) -> T {
    let layouts = Layout::candidates(guest.bytes.len() as u64);
    let memory = FlatMemory::new(&guest.bytes, &layouts[0]);
    let found = Guest::find(&memory, &Hints::default()).expect("a kernel");
    let classes = found.classify().expect("classes");
    ask(&found, &classes)
}

fn class(guest: &Synthetic, pfn: u64) -> (PageClass, Reason) {
    look(guest, |found, classes| {
        let told = found.explain(classes, pfn);
        assert_eq!(classes.get(pfn), Some(told.class));
        (told.class, told.reason)
    })
}

const PFN: u64 = 0x300;

/// A guest whose image has no types; there are some in frames behind it, and clean cache besides.
fn types_behind_the_image(hold: impl Fn(&mut Synthetic, u64)) -> Synthetic {
    let mut guest = Synthetic::new();
    let blob = super::synthetic::btf();
    let mut windows = guest.bytes.windows(blob.len());
    let own = windows.position(|bytes| bytes == blob).expect("its types");
    guest.bytes[own..own + blob.len()].fill(0);
    let at = (PFN << 12) as usize + 0x40;
    guest.bytes[at..at + blob.len()].copy_from_slice(&blob);
    for pfn in PFN..PFN + (0x40 + blob.len() as u64).div_ceil(4096) {
        hold(&mut guest, pfn);
    }
    let file = guest.file("ext4");
    for pfn in 0x280..0x290 {
        guest.cached(pfn, 0, &file);
    }
    guest
}

#[test]
fn types_are_read_from_nothing_that_may_be_lost() {
    let clean = |guest: &Synthetic| {
        look(guest, |found, classes| {
            let clean = classes
                .iter()
                .filter(|(_, class)| *class == PageClass::CacheClean);
            (found.has_btf(), clean.count())
        })
    };
    let kept = types_behind_the_image(|guest, pfn| guest.kernel_page(pfn));
    assert_eq!(clean(&kept), (true, 0x10));
    let reserved = types_behind_the_image(|guest, pfn| {
        guest.put(Synthetic::page(pfn), flag::RESERVED);
    });
    assert_eq!(clean(&reserved), (true, 0x10));
    // A file that somebody read: another kernel's, or this one's as it was before it was built anew.
    let file = Synthetic::new().file("ext4");
    let read = types_behind_the_image(|guest, pfn| {
        guest.cached(pfn, 0, &file);
    });
    assert_eq!(clean(&read), (false, 0));
    // One page of it is enough.
    let last = types_behind_the_image(|guest, pfn| {
        guest.kernel_page(pfn);
        if pfn == PFN + 1 {
            guest.buddy(pfn, 0);
        }
    });
    assert_eq!(clean(&last), (false, 0));
}

#[test]
fn types_and_flags_name_their_classes() {
    let mut guest = Synthetic::new();
    for (pfn, kind) in [
        (0x300, 0xF1),
        (0x301, 0xF2),
        (0x302, 0xF5),
        (0x303, 0xF4),
        (0x304, 0xF3),
        (0x305, 0xF8),
    ] {
        guest.typed_page(pfn, kind);
    }
    guest.put(Synthetic::page(0x306), flag::RESERVED);
    guest.put(
        Synthetic::page(0x307) + word::MAPPING,
        0xFFFF_8880_0000_0001,
    );
    guest.put(Synthetic::page(0x308), flag::HWPOISON);
    guest.idle_page(0x309);
    let expected = [
        (0x300, PageClass::Offline),
        (0x301, PageClass::PageTable),
        (0x302, PageClass::Slab),
        (0x303, PageClass::Hugetlb),
        (0x304, PageClass::Kernel),
        (0x305, PageClass::Slab),
        (0x306, PageClass::Reserved),
        (0x307, PageClass::Anon),
        (0x308, PageClass::Unknown),
        (0x309, PageClass::Unknown),
    ];
    for (pfn, wanted) in expected {
        assert_eq!(class(&guest, pfn).0, wanted, "{pfn:#x}");
    }
}

#[test]
fn blocks_of_the_buddy_allocator_are_free_unless_a_page_of_them_is_in_use() {
    let mut guest = Synthetic::new();
    guest.buddy(0x300, 4);
    look(&guest, |found, classes| {
        assert!((0x300..0x310).all(|pfn| classes.get(pfn) == Some(PageClass::Free)));
        assert_eq!(classes.get(0x310), Some(PageClass::Kernel));
        let told = found.explain(classes, 0x309);
        assert_eq!((told.head, told.span), (0x300, 16));
    });
    guest.put32(Synthetic::page(0x305) + word::REFCOUNT, 1);
    assert_eq!(
        class(&guest, 0x300),
        (PageClass::Unknown, Reason::BrokenBuddy)
    );
    assert_eq!(class(&guest, 0x305).0, PageClass::Kernel);
    let mut unaligned = Synthetic::new();
    unaligned.buddy(0x301, 1);
    assert_eq!(
        class(&unaligned, 0x301),
        (PageClass::Unknown, Reason::BrokenBuddy)
    );
}

#[test]
fn lists_of_free_pages_count_only_if_they_add_up() {
    let mut guest = Synthetic::new();
    guest.free_list(1, &[0x300, 0x305, 0x303]);
    // Order 1: two frames each.
    guest.idle_page(0x311);
    guest.free_list(4, &[0x310]);
    look(&guest, |_, classes| {
        for pfn in [0x300, 0x303, 0x305, 0x310, 0x311] {
            assert_eq!(classes.get(pfn), Some(PageClass::Free), "{pfn:#x}");
        }
        assert_eq!(classes.get(0x301), Some(PageClass::Kernel));
    });
    assert_eq!(class(&guest, 0x303).1, Reason::PerCpuList);

    let mut miscounted = guest.clone();
    miscounted.put32(LISTS, 4);
    assert_eq!(
        class(&miscounted, 0x300),
        (PageClass::Unknown, Reason::Idle)
    );

    let mut circle = guest.clone();
    let first = BASE + Synthetic::page(0x300) + word::LRU;
    circle.put(Synthetic::page(0x303) + word::LRU, first);
    assert_eq!(class(&circle, 0x300).0, PageClass::Unknown);

    // Any page of a run, and not only its first.
    for (pfn, at, value) in [
        (0x305, word::REFCOUNT, 1),
        (0x311, word::REFCOUNT, 1),
        (0x311, word::FLAGS, flag::HWPOISON as u32),
        (0x303, word::FLAGS, flag::LRU as u32),
    ] {
        let mut in_use = guest.clone();
        in_use.put32(Synthetic::page(pfn) + at, value);
        assert_eq!(class(&in_use, 0x300).0, PageClass::Unknown, "{pfn:#x}");
    }
}

#[test]
fn clean_cache_is_recoverable_and_every_doubt_keeps_it() {
    let mut guest = Synthetic::new();
    let file = guest.file("ext4");
    let page = guest.cached(PFN, 0, &file);
    assert_eq!(
        class(&guest, PFN),
        (PageClass::CacheClean, Reason::Recoverable)
    );

    let base = flag::LRU | flag::UPTODATE;
    type Change = (&'static str, u64, u64, PageClass);
    let doubts: Vec<Change> = vec![
        ("dirty", page, base | flag::DIRTY, PageClass::CacheDirty),
        (
            "writeback",
            page,
            base | flag::WRITEBACK,
            PageClass::CacheDirty,
        ),
        ("locked", page, base | flag::LOCKED, PageClass::CacheDirty),
        ("waiters", page, base | flag::WAITERS, PageClass::CacheKept),
        ("checked", page, base | flag::OWNER, PageClass::CacheKept),
        (
            "private_2",
            page,
            base | flag::PRIVATE_2,
            PageClass::CacheKept,
        ),
        (
            "unevictable",
            page,
            base | flag::UNEVICTABLE,
            PageClass::CacheKept,
        ),
        ("mlocked", page, base | flag::MLOCKED, PageClass::CacheKept),
        (
            "swapbacked",
            page,
            base | flag::SWAPBACKED,
            PageClass::Shmem,
        ),
        ("never read", page, flag::LRU, PageClass::CacheKept),
        ("not on the LRU", page, flag::UPTODATE, PageClass::Kernel),
        (
            "another's address space",
            file.inode + 8,
            BASE + file.mapping + 8,
            PageClass::CacheKept,
        ),
        ("a directory", file.inode, 0o040_755, PageClass::CacheKept),
        (
            "no way to read",
            file.operations + 8,
            0,
            PageClass::CacheKept,
        ),
        (
            "unevictable address space",
            file.mapping + 16,
            9 << 21 | 1 << 3,
            PageClass::CacheKept,
        ),
        (
            "a flag of its address space that nobody knows",
            file.mapping + 16,
            9 << 21 | 1 << 11,
            PageClass::CacheKept,
        ),
        (
            "a flag that means something else on arm64",
            page,
            base | 1 << 12,
            PageClass::CacheKept,
        ),
        (
            "a write that failed",
            file.mapping + 24,
            5,
            PageClass::CacheKept,
        ),
        (
            "an unknown file system",
            file.name,
            u64::from_le_bytes(*b"nfs4\0\0\0\0"),
            PageClass::CacheKept,
        ),
        (
            "an address that is nowhere",
            file.mapping,
            0x1234,
            PageClass::CacheKept,
        ),
        (
            "a mapped page",
            page + word::MAPCOUNT,
            1 << 32,
            PageClass::CacheMapped,
        ),
        (
            "a reference more",
            page + word::MAPCOUNT,
            2 << 32 | u64::from(u32::MAX),
            PageClass::CacheKept,
        ),
    ];
    for (name, at, value, wanted) in doubts {
        let mut changed = guest.clone();
        changed.put(at, value);
        assert_eq!(class(&changed, PFN).0, wanted, "{name}");
    }
}

#[test]
fn large_folios_are_judged_as_a_whole() {
    let mut guest = Synthetic::new();
    let file = guest.file("xfs");
    let page = guest.cached(0x300, 4, &file);
    look(&guest, |_, classes| {
        assert!((0x300..0x310).all(|pfn| classes.get(pfn) == Some(PageClass::CacheClean)))
    });
    let tail = Synthetic::page(0x307);
    for (name, at, value) in [
        (
            "a tail of another",
            tail + word::COMPOUND,
            (BASE + tail) | 1,
        ),
        (
            "a tail in use",
            tail + word::MAPCOUNT,
            1 << 32 | u64::from(u32::MAX),
        ),
        ("a mapping without large folios", file.mapping + 16, 3 << 21),
        (
            "one reference too few",
            page + word::MAPCOUNT,
            15 << 32 | u64::from(u32::MAX),
        ),
    ] {
        let mut changed = guest.clone();
        changed.put(at, value);
        look(&changed, |_, classes| {
            assert!(
                (0x300..0x310).all(|pfn| classes.get(pfn) != Some(PageClass::CacheClean)),
                "{name}"
            );
        });
    }
}

#[test]
fn an_image_full_of_beginnings_of_types_keeps_nobody() {
    let mut guest = Synthetic::new();
    let file = guest.file("ext4");
    guest.cached(PFN, 0, &file);
    // Each is a header and a structure whose two members are the next header, so each leads through all that follow. None
    // ends where it should.
    let (from, to) = (0x24_0000, guest.bytes.len());
    for at in (from..to - 36).step_by(36) {
        let length = (to - at - 36) as u32;
        let words = [0x1_EB9F, 24, 0, length | 1, 0, 0, 0, 4 << 24 | 2, 0];
        let bytes: Vec<u8> = words
            .iter()
            .flat_map(|word: &u32| word.to_le_bytes())
            .collect();
        guest.bytes[at..at + 36].copy_from_slice(&bytes);
    }
    // They come first.
    let entry = guest.get(0x3008);
    guest.put(0x3008, entry | 1 << 63);
    let begun = std::time::Instant::now();
    assert_eq!(class(&guest, PFN).1, Reason::NoBtf);
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(120),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn pages_of_files_that_take_turns_are_each_judged_by_their_own_file() {
    let mut guest = Synthetic::new();
    let files = ["ext4", "nfs", "xfs", "fuse"].map(|name| guest.file(name));
    let pages = (0..8).zip(files.iter().cycle());
    for (number, file) in pages {
        guest.cached(PFN + number, 0, file);
    }
    look(&guest, |_, classes| {
        for number in 0..8 {
            let wanted = match number % 2 {
                0 => PageClass::CacheClean,
                _ => PageClass::CacheKept,
            };
            assert_eq!(classes.get(PFN + number), Some(wanted), "page {number}");
        }
    });
}

#[test]
fn types_are_looked_for_behind_the_code_first() {
    let mut guest = Synthetic::new();
    let blob = super::synthetic::btf();
    let file = guest.file("ext4");
    guest.cached(PFN, 0, &file);
    guest.bytes[0x31_0000..][..blob.len()].copy_from_slice(&blob);
    assert_eq!(class(&guest, PFN).0, PageClass::CacheClean);
    // Something in the code looks like types and tells of another inode.
    let decoy = |guest: &mut Synthetic| {
        let name = guest.bytes[..0x20_0000]
            .windows(10)
            .position(|bytes| bytes == b"i_mapping\0");
        let name = name.expect("the types within the first two MiB");
        guest.bytes[name..name + 9].copy_from_slice(b"i_mappino");
    };
    decoy(&mut guest);
    assert_eq!(class(&guest, PFN).1, Reason::NoBtf, "all is code");
    // The upper half of the image cannot be executed.
    let entry = guest.get(0x3008);
    guest.put(0x3008, entry | 1 << 63);
    assert_eq!(class(&guest, PFN).0, PageClass::CacheClean);
}

#[test]
fn without_btf_free_pages_are_known_and_page_cache_is_kept() {
    let mut guest = Synthetic::new();
    let file = guest.file("ext4");
    guest.cached(PFN, 0, &file);
    guest.buddy(0x310, 4);
    guest.typed_page(0x320, 0xF1);
    guest.bytes[0x4_0000] = 0;
    assert_eq!(class(&guest, PFN), (PageClass::CacheKept, Reason::NoBtf));
    assert_eq!(class(&guest, 0x310).0, PageClass::Free);
    assert_eq!(class(&guest, 0x320).0, PageClass::Offline);
}

#[test]
fn a_memory_map_full_of_contradictions_is_not_believed() {
    let mut guest = Synthetic::new();
    for pfn in (0x300..0x380).step_by(2) {
        guest.buddy(pfn, 1);
        guest.put32(Synthetic::page(pfn + 1) + word::REFCOUNT, 1);
    }
    let layouts = Layout::candidates(guest.bytes.len() as u64);
    let memory = FlatMemory::new(&guest.bytes, &layouts[0]);
    let found = Guest::find(&memory, &Hints::default()).expect("a kernel");
    assert!(matches!(
        found.classify(),
        Err(GuestError::MemmapContradicts {
            contradictions: 64,
            ..
        })
    ));
}

#[test]
fn the_struct_pages_of_a_huge_page_that_are_mapped_again_do_not_contradict() {
    // Four sections behind a gap are one huge page, and all its struct pages are the first 64, mapped again and again.
    const HUGE: u64 = 0x1000;
    const MAP: u64 = 0x30_0000;
    let mut guest = Synthetic::new();
    for section in HUGE >> 10..(HUGE >> 10) + 4 {
        let map = BASE + MAP - HUGE * 64;
        guest.put(SECTIONS + 16 * section, map | 0b111);
    }
    let fill = |guest: &mut Synthetic, head: u64| {
        for at in (MAP..MAP + 4 * 1024 * 64).step_by(64) {
            let page = &mut guest.bytes[at as usize..][..64];
            page.fill(0);
            match at % 4096 {
                0 => {
                    guest.put(at, flag::HEAD);
                    guest.put32(at + word::MAPCOUNT, 0xF400_0000);
                    guest.put32(at + word::REFCOUNT, 1);
                }
                place => {
                    guest.put(at + word::COMPOUND, head | 1);
                    guest.put(at, if place == 64 { 12 } else { 0 });
                }
            }
        }
    };
    let layout = Layout {
        ranges: vec![0..4 << 20, HUGE << 12..(HUGE + 0x1000) << 12],
    };
    let classify = |guest: &Synthetic| {
        let mut bytes = guest.bytes.clone();
        bytes.resize(20 << 20, 1);
        let memory = FlatMemory::new(&bytes, &layout);
        let hints = Hints {
            vmcoreinfo: vec![VMCOREINFO],
            only_hinted: true,
            tables: None,
        };
        let found = Guest::find(&memory, &hints).expect("a kernel");
        let classes = found.classify()?;
        let huge = (HUGE..HUGE + 0x1000).map(|pfn| classes.get(pfn));
        assert!(
            huge.into_iter()
                .all(|class| class == Some(PageClass::Hugetlb))
        );
        let told = found.explain(&classes, HUGE + 0x800);
        assert_eq!(
            (told.class, told.reason),
            (PageClass::Hugetlb, Reason::Hugetlb)
        );
        Ok(())
    };
    fill(&mut guest, BASE + MAP);
    assert_eq!(classify(&guest), Ok(()));
    // Heads whose tails are of nothing before them.
    fill(&mut guest, u64::MAX - 1);
    assert!(matches!(
        classify(&guest),
        Err(GuestError::MemmapContradicts { .. })
    ));
}

#[test]
fn zeros_outrank_what_they_are_used_for() {
    let guest = Synthetic::new();
    look(&guest, |found, classes| {
        let mut classes = classes.clone();
        classes.mark_zero(|pfn| u64::from(pfn == PFN));
        assert_eq!(classes.get(PFN), Some(PageClass::Zero));
        assert_eq!(found.explain(&classes, PFN).reason, Reason::Zero);
        assert_eq!(classes.runs().count(), 3);
    });
}

#[test]
fn arm64_tables_are_walked_with_every_page_size() {
    for (page_shift, bits, levels) in [
        (12, 39, 3),
        (12, 48, 4),
        (14, 47, 3),
        (14, 48, 4),
        (16, 42, 2),
        (16, 48, 3),
        (16, 52, 3),
    ] {
        let mut bytes = vec![0u8; 1 << 20];
        let tables = paging::PageTables::arm64(1 << 16, page_shift, bits).expect("a shape");
        assert_eq!(tables.levels(), levels);
        let stride = page_shift - 3;
        // The last page of the address space, every table's last entry, a page at 0x80000.
        let mut table = 1u64 << 16;
        for step in 0..levels {
            let shift = page_shift + stride * (levels - 1 - step);
            let index = if step == 0 {
                (1u64 << (bits - shift)) - 1
            } else {
                (1 << stride) - 1
            };
            let next = if step + 1 == levels {
                0x8_0000
            } else {
                table + (1 << 16)
            };
            bytes[(table + 8 * index) as usize..][..8].copy_from_slice(&(next | 3).to_le_bytes());
            table = next;
        }
        let memory = FlatMemory::new(&bytes, &Layout::candidates(bytes.len() as u64)[0]);
        let va = u64::MAX - (1 << page_shift) + 1 + 0x18;
        let found = tables.translate(&memory, va).expect("mapped");
        assert_eq!(
            (found.gpa, found.left),
            (0x8_0018, (1 << page_shift) - 0x18),
            "{page_shift} {bits}"
        );
        assert_eq!(tables.translate(&memory, va & !(1 << (bits - 1))), None);
        assert_eq!(
            tables.translate(&memory, 0x1000),
            None,
            "an address of a process"
        );
    }
}
