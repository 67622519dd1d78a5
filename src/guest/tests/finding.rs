//! How a kernel is found, by which copy of its vmcoreinfo, and which of several layouts is right.

use super::*;

#[test]
fn a_kernel_is_found_and_named() {
    look(&Synthetic::new(), |found, classes| {
        assert_eq!(
            (found.release(), found.arch(), found.page_shift()),
            ("6.12.0-synthetic", Arch::X86_64, 12)
        );
        assert!(found.has_btf());
        assert_eq!(found.memory_bytes(), 4 << 20);
        assert_eq!(classes.len(), 1024);
        assert_eq!(classes.runs().count(), 1, "all pages are the kernel's");
    });
}

#[test]
fn the_wrong_layout_is_refused() {
    let guest = Synthetic::new();
    let wrong = Layout {
        ranges: std::iter::once(0x1000..LEN + 0x1000).collect(),
    };
    let memory = FlatMemory::new(&guest.bytes, &wrong);
    assert_eq!(
        Guest::find(&memory, &Hints::default()).err(),
        Some(GuestError::PagingContradicts)
    );
    const LEN: u64 = 4 << 20;
}

#[test]
fn of_two_layouts_that_have_a_kernel_the_one_that_it_knows_is_right() {
    let guest = Synthetic::new();
    let mut longer = guest.bytes.clone();
    longer.resize(8 << 20, 0);
    let whole = |bytes: &[u8]| Layout::candidates(bytes.len() as u64)[0].clone();
    let wrong = FlatMemory::new(&longer, &whole(&longer));
    let right = FlatMemory::new(&guest.bytes, &whole(&guest.bytes));
    assert!(Guest::find(&wrong, &Hints::default()).is_ok());
    let views: [&dyn GuestMemory; 2] = [&wrong, &right];
    let (place, _) = Guest::find_among(views, &Hints::default()).expect("a kernel");
    assert_eq!(place, 1);
}

#[test]
fn a_layout_without_memory_that_the_kernel_has_is_not_right() {
    let find = |guest: &Synthetic, layouts: &[Layout]| {
        let view = |layout| FlatMemory::new(&guest.bytes, layout);
        let views: Vec<FlatMemory<'_>> = layouts.iter().map(view).collect();
        let views = views.iter().map(|view| view as &dyn GuestMemory);
        Guest::find_among(views, &Hints::default()).err()
    };
    let mut guest = Synthetic::new();
    let layouts = Layout::candidates(guest.bytes.len() as u64);
    // The kernel has a section behind all that the file holds.
    guest.put(SECTIONS + 16 * 3, (BASE + MEMMAP) | 0b111);
    assert_eq!(find(&guest, &layouts), Some(GuestError::LayoutUnsure));
    // A file that says itself where its memory lies may be a part of it.
    assert_eq!(find(&guest, &layouts[..1]), None);
    // An offline section is no memory.
    guest.put(SECTIONS + 16 * 3, (BASE + MEMMAP) | 0b011);
    assert_eq!(find(&guest, &layouts), None);
}

#[test]
fn of_two_layouts_that_fit_alike_none_is_right() {
    let mut guest = Synthetic::new();
    guest.bytes.resize(12 << 20, 0);
    // Section 2 is the kernel's; the file holds three, and which is the second and which the third is not known.
    guest.put(SECTIONS + 16 * 2, (BASE + MEMMAP) | 0b111);
    guest.put(8 << 20, 1);
    let section = |from: u64, to: u64| from << 22..to << 22;
    let gap = Layout {
        ranges: vec![section(0, 1), section(2, 4)],
    };
    let whole = Layout {
        ranges: vec![section(0, 3)],
    };
    let (one, other) = (
        FlatMemory::new(&guest.bytes, &gap),
        FlatMemory::new(&guest.bytes, &whole),
    );
    for views in [[&one as &dyn GuestMemory, &other], [&other, &one]] {
        assert_eq!(
            Guest::find_among(views, &Hints::default()).err(),
            Some(GuestError::LayoutUnsure)
        );
    }
}

#[test]
fn a_kernel_that_an_earlier_boot_left_whole_makes_both_doubtful() {
    let mut guest = Synthetic::new();
    let text = guest.bytes[VMCOREINFO as usize..][..4096].to_vec();
    let copy = (VMCOREINFO + 0x1000) as usize;
    guest.bytes[copy..copy + 4096].copy_from_slice(&text);
    let find = |guest: &Synthetic| {
        let layouts = Layout::candidates(guest.bytes.len() as u64);
        let memory = FlatMemory::new(&guest.bytes, &layouts[0]);
        let views: [&dyn GuestMemory; 1] = [&memory];
        let hints = Hints::default();
        (
            Guest::find(&memory, &hints).err(),
            Guest::find_among(views, &hints).err(),
        )
    };
    // A second copy of the same is what every guest has.
    assert_eq!(find(&guest), (None, None));
    // Another table of sections: another boot.
    let other = String::from_utf8_lossy(&text).replace(
        &format!("SYMBOL(mem_section)={:x}", BASE + 0x2_1000),
        &format!("SYMBOL(mem_section)={:x}", BASE + 0x2_1008),
    );
    guest.bytes[copy..copy + 4096].copy_from_slice(other.as_bytes());
    let twice = Some(GuestError::TwoKernels);
    assert_eq!(find(&guest), (twice.clone(), twice));
}

#[test]
fn a_release_that_does_not_run_is_refused() {
    let mut guest = Synthetic::new();
    guest.bytes[0x2_0000 + 130] = b'5';
    let layouts = Layout::candidates(guest.bytes.len() as u64);
    let memory = FlatMemory::new(&guest.bytes, &layouts[0]);
    assert_eq!(
        Guest::find(&memory, &Hints::default()).err(),
        Some(GuestError::ReleaseContradicts)
    );
}

/// Puts vmcoreinfo as an ELF note of that many bytes before the guest's own copy, so that it is found first.
fn note(guest: &mut Synthetic, pfn: u64, length: usize) {
    let own = guest.bytes[VMCOREINFO as usize..][..4096].to_vec();
    let text = own.split(|&byte| byte == 0).next().expect("its text");
    let mut bytes: Vec<u8> = [11, length as u32 - 24, 0].map(u32::to_le_bytes).concat();
    bytes.extend(b"VMCOREINFO\0\0");
    bytes.extend(b"OSRELEASE=6.12.0-synthetic\nLONG=");
    bytes.resize(length - text.len() - 1, b'x');
    bytes.push(b'\n');
    bytes.extend(text);
    guest.bytes[(pfn << 12) as usize..][..length].copy_from_slice(&bytes);
}

#[test]
fn the_copy_that_the_guest_is_found_by_is_never_expendable() {
    const COPY: u64 = 0x28;
    // Text alone, as it lies in a file.
    let mut guest = Synthetic::new();
    let from = VMCOREINFO as usize;
    guest
        .bytes
        .copy_within(from..from + 4096, (COPY << 12) as usize);
    let file = guest.file("ext4");
    let doubtful = (PageClass::Unknown, Reason::Vmcoreinfo);
    let mut offline = guest.clone();
    offline.typed_page(COPY, 0xF1);
    assert_eq!(class(&offline, COPY), doubtful);
    let mut listed = guest.clone();
    listed.free_list(1, &[COPY, 0x300]);
    assert_eq!(class(&listed, COPY).0, PageClass::Unknown);
    assert_eq!(class(&listed, 0x300).0, PageClass::Free);
    // The rest of the folio is judged as ever, and mended.
    guest.cached(COPY, 2, &file);
    assert_eq!(class(&guest, COPY), doubtful);
    look(&guest, |found, classes| {
        assert_eq!(found.kernel().note, COPY << 12);
        for pfn in COPY + 1..COPY + 4 {
            assert_eq!(classes.get(pfn), Some(PageClass::CacheClean), "{pfn:#x}");
        }
        assert!(found.mend(classes, &[COPY + 1]).is_ok());
        let (class, reason) = doubtful;
        let refused = MendError::NotRecoverable {
            pfn: COPY,
            class,
            reason,
        };
        assert_eq!(found.mend(classes, &[COPY]), Err(refused));
    });
    // What the kernel holds keeps its class.
    let own = class(&Synthetic::new(), VMCOREINFO >> 12);
    assert_eq!(own, (PageClass::Kernel, Reason::KernelPage));

    // A note's text may go on in the next page.
    for (length, pages) in [(4000, 1), (4096, 1), (4097, 2), (4120, 2)] {
        let mut guest = Synthetic::new();
        guest.buddy(COPY, 3);
        note(&mut guest, COPY, length);
        look(&guest, |found, classes| {
            assert_eq!(found.kernel().note, COPY << 12);
            for pfn in COPY..COPY + 8 {
                let wanted = match pfn - COPY < pages {
                    true => PageClass::Unknown,
                    false => PageClass::Free,
                };
                assert_eq!(classes.get(pfn), Some(wanted), "{pfn:#x} of {length}");
            }
        });
    }
}
