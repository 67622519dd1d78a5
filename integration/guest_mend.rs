//! The mend, by resuming: every expendable page of a saved guest is overwritten with garbage, the mend is applied, and the
//! guest goes on. It then reads all its files against what they must hold, touches files in every way for the first
//! time, takes all the memory that it can get and finishes its programs. Without the mend it must fail.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::guests::image::{self, Kernel};
use crate::guests::{Scene, Work, health};
use parsfs::guest::{FlatMemory, Guest, Hints, Layout, PageClass, Tier};

/// How a guest's memory is treated before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    /// Nothing is lost.
    Whole,
    /// All expendable pages are lost and mended.
    Mended,
    /// All expendable pages are lost; free pages are mended, page cache is not.
    Unmended,
    /// All expendable pages are lost and mended, but free pages hold what they must not.
    WrongFill,
}

/// How long a mended guest may take for one order. A guest that checks its free pages, emulated on a busy machine, is slow.
const PATIENCE: Duration = Duration::from_secs(1200);

/// What lost pages hold where nothing mends them, and what a mended page of page cache holds before it is fetched.
const GARBAGE: u8 = 0xA5;

/// Writes a treated copy of a scene's memory. Gives its path and how many pages of which class were lost.
fn treat(scene: &Scene, treatment: Treatment) -> (PathBuf, String) {
    let mut bytes = fs::read(&scene.setup.memory).expect("the guest's memory");
    let layouts = Layout::candidates(bytes.len() as u64);
    let original = bytes.clone();
    let views: Vec<FlatMemory<'_>> = layouts
        .iter()
        .map(|layout| FlatMemory::new(&original, layout))
        .collect();
    let (place, guest) =
        Guest::find_among(views.iter().map(|view| view as _), &Hints::default()).expect("a kernel");
    let view = &views[place];
    let classes = guest.classify().expect("classes");
    let lost: Vec<u64> = classes
        .iter()
        .filter(|(_, class)| class.tier() == Tier::Expendable)
        .map(|(pfn, _)| pfn)
        .collect();
    let mut told = String::from("nothing lost");
    if treatment != Treatment::Whole {
        let mend = guest
            .mend(&classes, &lost)
            .expect("expendable pages can be mended");
        let size = 1usize << guest.page_shift();
        for fill in &mend.fills {
            let at = view.offset(fill.pfn << guest.page_shift()).expect("memory");
            let cached = classes.get(fill.pfn) == Some(PageClass::CacheClean);
            // Harder than what a reader would get: whatever the guest looks at without fetching it is wrong.
            let filled = if treatment == Treatment::WrongFill {
                GARBAGE
            } else {
                fill.byte
            };
            bytes[at..at + size].fill(if cached { GARBAGE } else { filled });
        }
        if treatment != Treatment::Unmended {
            for edit in &mend.edits {
                bytes[view.offset(edit.gpa).expect("memory")] &= edit.and;
            }
        }
        let count = |class| {
            lost.iter()
                .filter(|&&pfn| classes.get(pfn) == Some(class))
                .count()
        };
        told = format!(
            "lost {} free, {} clean cache, fill {:x?}, {} edits",
            count(PageClass::Free),
            count(PageClass::CacheClean),
            guest.fill_of_free_pages(&classes),
            mend.edits.len()
        );
    }
    let path = image::home().join(format!("resumed-{}", scene.name));
    fs::write(&path, &bytes).expect("the treated memory");
    (path, told)
}

/// Has a treated guest go on; gives what went wrong.
fn go_on(scene: &Scene, treatment: Treatment, patience: Duration) -> Vec<String> {
    let _turn = image::exclusive("guest");
    let (memory, told) = treat(scene, treatment);
    let begun = std::time::Instant::now();
    let wrong = work(scene, &memory, patience);
    println!(
        "{} {treatment:?}: {told}; {} wrong in {:?}",
        scene.name,
        wrong.len(),
        begun.elapsed()
    );
    let _ = fs::remove_file(memory);
    wrong
}

fn work(scene: &Scene, memory: &std::path::Path, patience: Duration) -> Vec<String> {
    match scene.resume(memory) {
        Ok(mut machine) if scene.setup.kernel.is_arm() => {
            health::complaints_without_agent(&mut machine.serial, patience)
        }
        Ok(mut machine) => health::complaints(&mut machine.serial, patience),
        Err(text) => vec![format!("the guest did not go on: {text}")],
    }
}

fn proof(kernel: Kernel, work: Work, arguments: &str) {
    let scene = Scene::new(kernel, work, arguments).ready();
    let wrong = go_on(&scene, Treatment::Mended, PATIENCE);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_5_10_guest_goes_on() {
    proof(Kernel::V5_10, Work::Mixed, "");
}

#[test]
fn a_6_1_guest_goes_on() {
    proof(Kernel::V6_1, Work::Mixed, "");
}

#[test]
fn a_6_12_guest_goes_on() {
    proof(Kernel::V6_12, Work::Mixed, "");
}

#[test]
fn a_guest_of_the_newest_kernel_goes_on() {
    proof(Kernel::Newest, Work::Mixed, "");
}

#[test]
fn guests_of_kernels_in_between_go_on() {
    for kernel in Kernel::between() {
        proof(kernel, Work::Mixed, "");
    }
}

#[test]
fn an_arm64_guest_goes_on() {
    proof(Kernel::Arm64, Work::Idle, "");
}

#[test]
fn an_arm64_guest_with_pages_of_16_kib_goes_on() {
    proof(Kernel::Arm64Pages16K, Work::Idle, "");
}

#[test]
fn without_the_mend_an_arm64_guest_fails() {
    let scene = Scene::new(Kernel::Arm64, Work::Idle, "").ready();
    let wrong = go_on(&scene, Treatment::Unmended, PATIENCE);
    assert!(!wrong.is_empty(), "lost page cache went unnoticed");
}

#[test]
fn an_untouched_guest_goes_on() {
    let scene = Scene::new(Kernel::V6_12, Work::Mixed, "").ready();
    let wrong = go_on(&scene, Treatment::Whole, Duration::from_secs(300));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn without_the_mend_a_guest_fails() {
    let scene = Scene::new(Kernel::V6_12, Work::Mixed, "").ready();
    let wrong = go_on(&scene, Treatment::Unmended, Duration::from_secs(30));
    assert!(!wrong.is_empty(), "lost page cache went unnoticed");
}

#[test]
fn a_guest_that_clears_free_pages_goes_on() {
    proof(Kernel::V6_12, Work::Mixed, "init_on_free=1");
}

#[test]
fn a_guest_that_clears_free_pages_notices_others() {
    let scene = Scene::new(Kernel::V6_12, Work::Mixed, "init_on_free=1").ready();
    let wrong = go_on(&scene, Treatment::WrongFill, Duration::from_secs(60));
    assert!(
        !wrong.is_empty(),
        "free pages full of garbage went unnoticed"
    );
}

#[test]
fn a_guest_that_poisons_free_pages_goes_on() {
    proof(Kernel::V6_1, Work::Mixed, "page_poison=1");
}

#[test]
fn a_guest_that_poisons_free_pages_notices_others() {
    let scene = Scene::new(Kernel::V6_1, Work::Mixed, "page_poison=1").ready();
    let wrong = go_on(&scene, Treatment::WrongFill, Duration::from_secs(60));
    assert!(
        !wrong.is_empty(),
        "free pages without their poison went unnoticed"
    );
}
