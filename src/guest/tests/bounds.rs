//! What a guest can make us do: its memory bounds it, whatever its sections claim. Counted, and not timed.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::freelist::STEPS_MAX;
use super::super::synthetic::{BASE, LISTS, MEMMAP, SECTIONS, Synthetic, VMCOREINFO};
use super::*;

/// Where the pointers to pages of sections lie, and a page of which every section is offline.
const ROOTS: u64 = 0x2_1000;
const OFFLINE: u64 = 0x2_3000;

/// A guest's memory that says itself where it lies, and counts what is read of it.
struct Counting<'g> {
    bytes: &'g [u8],
    ranges: Vec<Range<u64>>,
    reads: AtomicU64,
    read: AtomicU64,
}

impl<'g> Counting<'g> {
    fn new(guest: &'g Synthetic, ranges: Vec<Range<u64>>) -> Self {
        Counting {
            bytes: &guest.bytes,
            ranges,
            reads: AtomicU64::new(0),
            read: AtomicU64::new(0),
        }
    }

    /// Reads and bytes since the last call.
    fn counts(&self) -> (u64, u64) {
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        (take(&self.reads), take(&self.read))
    }
}

impl GuestMemory for Counting<'_> {
    fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let part = usize::try_from(gpa)
            .ok()
            .and_then(|from| self.bytes.get(from..)?.get(..bytes.len()));
        part.map(|part| bytes.copy_from_slice(part)).is_some()
    }
}

fn hinted() -> Hints {
    Hints {
        vmcoreinfo: vec![VMCOREINFO],
        only_hinted: true,
        tables: None,
    }
}

/// Changes what vmcoreinfo says.
fn claim(guest: &mut Synthetic, from: &str, to: &str) {
    let page = &mut guest.bytes[VMCOREINFO as usize..][..4096];
    let text = String::from_utf8_lossy(page).replace(from, to);
    page.copy_from_slice(&text.as_bytes()[..4096]);
}

#[test]
fn of_a_section_only_the_pages_that_are_memory_are_judged() {
    let mut guest = Synthetic::new();
    guest.buddy(2, 0);
    // One page of memory in each of 255 further sections of 1,024, whose struct pages all lie in the same place.
    let mut ranges: Vec<Range<u64>> = std::iter::once(0..4 << 20).collect();
    for number in 1..256u64 {
        let map = (BASE + MEMMAP) - number * 1024 * 64;
        guest.put(SECTIONS + 16 * number, map | 0b111);
        let gpa = (number << 22) + 0x2000;
        // Half a page on either side is no page.
        ranges.push(gpa - 0x800..gpa + 0x1800);
    }
    let memory = Counting::new(&guest, ranges);
    let found = Guest::find(&memory, &hinted()).expect("a kernel");
    assert_eq!(
        found.memmap.bytes_within(&memory.ranges, 12),
        (4 << 20) + 255 * 4096
    );
    memory.counts();
    let classes = found.classify().expect("classes");
    let (_, read) = memory.counts();
    assert!(read < 1 << 20, "{read} bytes for 1279 pages");
    assert_eq!(classes.len(), 1024 + 255);
    for number in 0..256 {
        assert_eq!(classes.get((number << 10) + 2), Some(PageClass::Free));
    }
    assert_eq!(classes.get(3), Some(PageClass::Kernel));
}

#[test]
fn pages_of_sections_without_memory_make_a_layout_doubtful_and_are_not_all_read() {
    let mut guest = Synthetic::new();
    claim(
        &mut guest,
        "LENGTH(mem_section)=4\n",
        "LENGTH(mem_section)=512\n",
    );
    let find = |guest: &Synthetic| {
        let memory = || Counting::new(guest, std::iter::once(0..4 << 20).collect());
        let (one, two) = (memory(), memory());
        let views: [&dyn GuestMemory; 2] = [&one, &two];
        let found = Guest::find_among(views, &hinted()).map(|(place, _)| place);
        (found, one.counts().0 + two.counts().0)
    };
    // Memory that was taken away leaves its sections behind.
    for root in 1..40 {
        guest.put(ROOTS + 8 * root, BASE + OFFLINE);
    }
    assert_eq!(find(&guest).0, Ok(0));
    for root in 40..512 {
        guest.put(ROOTS + 8 * root, BASE + OFFLINE);
    }
    let (found, reads) = find(&guest);
    assert_eq!(found, Err(GuestError::LayoutUnsure));
    assert!(reads < 40_000, "{reads} reads for a guest of one section");
}

#[test]
fn memory_in_more_sections_than_any_guest_has_is_no_guest() {
    let mut guest = Synthetic::new();
    claim(
        &mut guest,
        "LENGTH(mem_section)=4\n",
        "LENGTH(mem_section)=16777216\n",
    );
    claim(&mut guest, "MAX_PHYSMEM_BITS)=32", "MAX_PHYSMEM_BITS)=52");
    let memory = Counting::new(&guest, std::iter::once(0..8 << 40).collect());
    let found = Guest::find(&memory, &hinted()).map(|_| ());
    assert!(
        matches!(found, Err(GuestError::TooManySections(_))),
        "{found:?}"
    );
}

#[test]
fn classes_of_few_pages_touch_few_ranges() {
    let ranges: Vec<Range<u64>> = (0..1000).map(|n| (n << 14)..(n << 14) + 0x2000).collect();
    let mut classes = Classes::unmanaged(&ranges, 12);
    assert_eq!(classes.touching(&(8..9)), 2..3);
    assert!(classes.touching(&(10..12)).is_empty());
    assert_eq!(classes.touching(&(9..13)), 2..4);
    classes.fill(9..13, PageClass::Free);
    classes.copy(16, &[PageClass::Slab, PageClass::Anon, PageClass::Shmem]);
    let changed: Vec<(u64, PageClass)> = classes
        .iter()
        .filter(|&(_, class)| class != PageClass::Unmanaged)
        .collect();
    assert_eq!(
        changed,
        [
            (9, PageClass::Free),
            (12, PageClass::Free),
            (16, PageClass::Slab),
            (17, PageClass::Anon)
        ]
    );
}

#[test]
fn lists_that_hold_nothing_are_tried_no_more_often_than_pages_are_walked() {
    let mut guest = Synthetic::new();
    guest.free_list(1, &[0x280]);
    // All memory is mapped once more, where the lower halves of addresses could be counts. Each pair of words is the head of
    // an empty list, and the count of the set before it.
    const AGAIN: u64 = 0xFFFF_FF80_0000_0000;
    guest.put(0x2000, 0x3067);
    let (from, to) = (0x30_0000, 0x34_0000);
    for at in (from..to).step_by(16) {
        guest.put(at, AGAIN + at);
        guest.put(at + 8, AGAIN + at);
    }
    let memory = Counting::new(&guest, std::iter::once(0..4 << 20).collect());
    let found = Guest::find(&memory, &hinted()).expect("a kernel");
    let honest = found.lists.expect("lists of free pages");
    let many = ListsShape {
        count_of_lists: 64,
        ..honest
    };
    let heads: Vec<u64> = (from + 0x1000..to - 0x1000)
        .step_by(16)
        .map(|at| AGAIN + at)
        .collect();
    let run = |shape: &ListsShape, heads: &[u64], left: u64| {
        let guest = Translations::new(&memory, found.kernel.tables);
        let never = found.flags.never_free();
        let mut lists = Lists::new(&found.memmap, &found.shape, shape, guest, never);
        lists.steps = STEPS_MAX - left;
        memory.counts();
        (lists.free(heads), memory.counts().0)
    };
    let (free, reads) = run(&many, &heads, 10_000);
    assert!(free.is_empty() && reads > 10_000);
    assert!(reads < 60_000, "{reads} reads");
    // What was found before is not lost.
    let own = BASE + LISTS + honest.lists as u64 + 16;
    let all: Vec<u64> = std::iter::once(own).chain(heads).collect();
    let (free, reads) = run(&honest, &all, 10_000);
    assert_eq!(free, [(0x280, 0)]);
    assert!(reads < 60_000, "{reads} reads");
}
