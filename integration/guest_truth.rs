//! The classes against the guest's own word: `/proc/kpageflags` and `/proc/kpagecount` of a quiet guest, taken just before it
//! was stopped.

use std::fs;

use crate::guests::image::Kernel;
use crate::guests::{Scene, Work};
use parsfs::guest::{Classes, FlatMemory, Guest, GuestError, Hints, Layout, PageClass, Tier};

/// `include/uapi/linux/kernel-page-flags.h` and `include/linux/kernel-page-flags.h`.
const FLAGS: [(u32, &str); 12] = [
    (0, "locked"),
    (4, "dirty"),
    (7, "slab"),
    (8, "writeback"),
    (11, "mapped"),
    (12, "anonymous"),
    (13, "swap cache"),
    (17, "huge"),
    (19, "hwpoison"),
    (21, "ksm"),
    (26, "page table"),
    (32, "reserved"),
];

const BUDDY: u32 = 10;

/// Looks at one saved guest; `explained` bounds the pages that changed between the guest's word and its stop.
fn compare(scene: &Scene, explained: usize) -> (Classes, String) {
    let bytes = fs::read(&scene.setup.memory).expect("the guest's memory");
    let layouts = Layout::candidates(bytes.len() as u64);
    let views: Vec<FlatMemory<'_>> = layouts
        .iter()
        .map(|layout| FlatMemory::new(&bytes, layout))
        .collect();
    let at = std::time::Instant::now();
    let (_, guest) =
        Guest::find_among(views.iter().map(|view| view as _), &Hints::default()).expect("a kernel");
    let found = at.elapsed();
    let at = std::time::Instant::now();
    let classes = guest.classify().expect("classes");
    println!(
        "{}: {} {}, found in {found:?}, classified in {:?}",
        scene.name,
        guest.release(),
        guest.arch(),
        at.elapsed()
    );
    let release = fs::read_to_string(scene.setup.dir.join("release")).expect("the release");
    assert_eq!(
        guest.release(),
        release,
        "the kernel found is not the kernel that ran"
    );

    let (flags, counts) = (scene.words("kpageflags"), scene.words("kpagecount"));
    let mut wrong = Vec::new();
    let mut missed_free = 0u64;
    for (pfn, class) in classes.iter() {
        let said = flags.get(pfn as usize).copied().unwrap_or(0);
        let count = counts.get(pfn as usize).copied().unwrap_or(0);
        if class.tier() == Tier::Expendable {
            let against: Vec<&str> = FLAGS
                .iter()
                .filter(|(bit, _)| said >> bit & 1 != 0)
                .map(|&(_, name)| name)
                .collect();
            if !against.is_empty() || count != 0 {
                wrong.push(format!(
                    "{}; the guest: {} {said:#x}, {count} mappings",
                    guest.explain(&classes, pfn),
                    against.join(" ")
                ));
            }
        }
        missed_free += u64::from(said >> BUDDY & 1 != 0 && class != PageClass::Free);
    }
    for (class, pages) in classes.counts().into_iter().filter(|&(_, pages)| pages > 0) {
        println!(
            "    {:<14}{pages:>8}  {:5.1}%",
            class.name(),
            100.0 * pages as f64 / classes.len() as f64
        );
    }
    let mut reasons = std::collections::BTreeMap::<String, u64>::new();
    if std::env::var_os("PARSFS_REASONS").is_some() {
        for (pfn, _) in classes
            .iter()
            .filter(|(_, class)| {
                matches!(
                    class,
                    PageClass::CacheKept | PageClass::CacheClean | PageClass::Unknown
                )
            })
            .step_by(16)
        {
            let told = guest.explain(&classes, pfn);
            *reasons
                .entry(format!("{} {}", told.class, told.reason))
                .or_default() += 16;
        }
        println!("{reasons:#?}");
    }
    // What the allocator itself counts: free pages of all zones, and those that processors keep for themselves. It tells
    // this first, and to tell the rest takes a few pages more; the counters of processors lag a little, too.
    let counted: u64 = scene.zoneinfo().iter().sum();
    let free = classes
        .iter()
        .filter(|&(_, class)| class == PageClass::Free)
        .count() as u64;
    println!("    free: {free}, the guest counts {counted}");
    assert!(
        free.abs_diff(counted) <= 200,
        "{free} free pages found, {counted} counted"
    );
    println!(
        "    differences: {}, heads of free blocks not free any more: {missed_free}",
        wrong.len()
    );
    for line in &wrong {
        println!("    {line}");
    }
    assert!(wrong.len() <= explained, "{} pages differ", wrong.len());
    (classes, guest.release().to_string())
}

#[test]
fn classes_of_the_mixed_guests_agree_with_their_own_word() {
    for kernel in Kernel::X86 {
        let (classes, _) = compare(&Scene::new(kernel, Work::Mixed, "").ready(), 20);
        let pages = |class| {
            classes
                .counts()
                .into_iter()
                .find(|&(c, _)| c == class)
                .map_or(0, |(_, pages)| pages)
        };
        assert!(
            pages(PageClass::CacheClean) > 10_000,
            "hardly any page cache was proved recoverable"
        );
    }
}

#[test]
fn classes_of_a_guest_full_of_cache_agree_with_its_own_word() {
    compare(&Scene::new(Kernel::V6_12, Work::Cache, "").ready(), 20);
}

#[test]
fn classes_of_a_guest_full_of_programs_agree_with_its_own_word() {
    compare(&Scene::new(Kernel::V6_12, Work::Anonymous, "").ready(), 20);
}

#[test]
fn classes_of_kernels_in_between_agree_with_their_own_word() {
    for kernel in Kernel::between() {
        compare(&Scene::new(kernel, Work::Mixed, "").ready(), 20);
    }
}

#[test]
fn a_rebooted_guest_is_not_taken_for_its_earlier_self() {
    let scene = Scene::new(Kernel::V6_12, Work::Rebooted, "").ready();
    let bytes = fs::read(&scene.setup.memory).expect("the guest's memory");
    let layouts = Layout::candidates(bytes.len() as u64);
    let views: Vec<FlatMemory<'_>> = layouts
        .iter()
        .map(|layout| FlatMemory::new(&bytes, layout))
        .collect();
    let views = views.iter().map(|view| view as _);
    match Guest::find_among(views, &Hints::default()) {
        // What the first boot left is whole: all is critical.
        Err(error) => assert_eq!(error, GuestError::TwoKernels),
        Ok(_) => {
            compare(&scene, 20);
        }
    }
}

/// The program that copies what the guest says is gone when the guest is stopped: its own pages differ.
const AGENTLESS: usize = 400;

#[test]
fn classes_of_an_arm64_guest_agree_with_its_own_word() {
    compare(
        &Scene::new(Kernel::Arm64, Work::Idle, "").ready(),
        AGENTLESS,
    );
}

#[test]
fn classes_of_an_arm64_guest_with_pages_of_16_kib_agree_with_its_own_word() {
    let scene = Scene::new(Kernel::Arm64Pages16K, Work::Idle, "").ready();
    let (classes, _) = compare(&scene, AGENTLESS);
    assert_eq!(classes.page_shift(), 14);
}

#[test]
fn the_layout_of_a_split_memory_is_found() {
    let (classes, _) = compare(&Scene::new(Kernel::Newest, Work::Idle, "").ready(), 20);
    let frames: Vec<_> = classes.frames().collect();
    assert_eq!(frames, [0..0x8_0000, 0x10_0000..0x14_0000]);
}
