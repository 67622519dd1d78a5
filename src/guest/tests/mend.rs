//! What mends the loss of a guest's pages, and for which nothing does.

use super::*;

fn mended(guest: &Synthetic, lost: &[u64]) -> Synthetic {
    let mend = look(guest, |found, classes| found.mend(classes, lost)).expect("a mend");
    let mut after = guest.clone();
    for edit in &mend.edits {
        after.bytes[edit.gpa as usize] &= edit.and;
    }
    let mut applied = guest.bytes.clone();
    mend.apply(0, &mut applied);
    assert!(applied == after.bytes, "the two ways to apply a mend agree");
    after
}

#[test]
fn the_mend_marks_a_folio_unread_and_nothing_else() {
    let mut guest = Synthetic::new();
    let file = guest.file("ext4");
    let page = guest.cached(0x300, 2, &file);
    let after = mended(&guest, &[0x302]);
    assert_eq!(after.get(page), guest.get(page) & !flag::UPTODATE);
    let changed = guest
        .bytes
        .iter()
        .zip(&after.bytes)
        .filter(|(a, b)| a != b)
        .count();
    assert_eq!(changed, 1);
    assert_eq!(
        class(&after, 0x300),
        (PageClass::CacheKept, Reason::NotUptodate)
    );
}

#[test]
fn buffer_heads_are_told_and_busy_ones_keep_the_page() {
    let mut guest = Synthetic::new();
    let file = guest.file("ext4");
    let page = guest.cached(0x300, 2, &file);
    let ring = guest.buffers(page, 4);
    assert_eq!(
        class(&guest, 0x301),
        (PageClass::CacheClean, Reason::RecoverableBuffers)
    );
    let after = mended(&guest, &[0x300, 0x301]);
    assert!(ring.iter().all(|&buffer| after.get(buffer) == 1 << 4));

    for (name, at, value, reason) in [
        ("dirty", ring[2], 1 | 1 << 1 | 1 << 4, Reason::BufferBusy),
        ("not mapped", ring[2], 1, Reason::BufferBusy),
        (
            "of a journal",
            ring[2],
            1 | 1 << 4 | 1 << 17,
            Reason::BufferBusy,
        ),
        ("in use", ring[2] + 32, 1, Reason::BufferBusy),
        ("of another page", ring[1] + 16, BASE, Reason::BrokenBuffers),
        (
            "a short ring",
            ring[2] + 8,
            BASE + ring[0],
            Reason::BrokenBuffers,
        ),
        (
            "a ring that misses its beginning",
            ring[3] + 8,
            BASE + ring[1],
            Reason::BrokenBuffers,
        ),
        (
            "another block size",
            ring[0] + 24,
            1024,
            Reason::BrokenBuffers,
        ),
    ] {
        let mut changed = guest.clone();
        changed.put(at, value);
        assert_eq!(
            class(&changed, 0x300),
            (PageClass::CacheKept, reason),
            "{name}"
        );
    }
}

#[test]
fn iomap_state_is_told_and_dirty_blocks_keep_the_page() {
    let mut guest = Synthetic::new();
    let file = guest.file("xfs");
    let page = guest.cached(0x300, 3, &file);
    let state = guest.iomap(page, 8);
    assert_eq!(
        class(&guest, 0x300),
        (PageClass::CacheClean, Reason::RecoverableIomap)
    );
    assert_eq!(mended(&guest, &[0x307]).get(state + 16), 0);
    for (name, at, value) in [
        ("dirty", state + 16, 0x1FF),
        ("being read", state, 1 << 32),
        ("being written", state + 8, 1),
    ] {
        let mut changed = guest.clone();
        changed.put(at, value);
        assert_eq!(
            class(&changed, 0x300),
            (PageClass::CacheKept, Reason::IomapBusy),
            "{name}"
        );
    }
}

#[test]
fn of_btrfs_only_its_own_mark_is_understood() {
    let mut guest = Synthetic::new();
    let file = guest.file("btrfs");
    let page = guest.cached(PFN, 0, &file);
    assert_eq!(
        class(&guest, PFN),
        (PageClass::CacheKept, Reason::OtherPrivate)
    );
    guest.mark(page);
    assert_eq!(
        class(&guest, PFN),
        (PageClass::CacheClean, Reason::RecoverableBtrfs)
    );
    guest.put(page + word::PRIVATE, BASE);
    assert_eq!(
        class(&guest, PFN),
        (PageClass::CacheKept, Reason::OtherPrivate)
    );
}

#[test]
fn a_page_that_cannot_be_proved_is_refused() {
    let guest = Synthetic::new();
    let refused = look(&guest, |found, classes| found.mend(classes, &[PFN]));
    let expected = MendError::NotRecoverable {
        pfn: PFN,
        class: PageClass::Kernel,
        reason: Reason::KernelPage,
    };
    assert_eq!(refused, Err(expected));
    assert_eq!(
        look(&guest, |found, classes| found.mend(classes, &[4096])),
        Err(MendError::NotMemory { pfn: 4096 })
    );
}

#[test]
fn free_pages_are_filled_with_what_the_allocator_checks_for() {
    let mut guest = Synthetic::new();
    guest.buddy(0x300, 6);
    let fill = |guest: &Synthetic| {
        look(guest, |found, classes| found.mend(classes, &[0x300]))
            .expect("a mend")
            .fills
    };
    assert_eq!(
        fill(&guest),
        [Fill {
            pfn: 0x300,
            byte: 0
        }]
    );
    guest.bytes[0x301 << 12..0x340 << 12].fill(0xAA);
    assert_eq!(
        fill(&guest),
        [Fill {
            pfn: 0x300,
            byte: 0xAA
        }]
    );
}
