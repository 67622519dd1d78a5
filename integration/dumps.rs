//! An ELF core beside the tool that others read it with: `makedumpfile` must count the same free pages.

use std::fs::File;
use std::path::Path;

use parsfs::guest::PageClass;
use parsfs::volume::look::{Look, recognise};

use crate::guests::core::Core;
use crate::guests::image::Kernel;
use crate::guests::{Format, Scene, Work};

/// The number behind a line of the report.
fn reported(report: &str, what: &str) -> u64 {
    let digits = report
        .lines()
        .find_map(|line| line.trim().strip_prefix(what)?.trim().strip_prefix(": 0x"))
        .unwrap_or_else(|| panic!("no {what:?} in {report}"));
    u64::from_str_radix(digits, 16).expect("a number")
}

/// The free pages of a core. Those that hold zeros have a class of their own, so the guest is asked again.
fn free_pages(core: &Path) -> u64 {
    let file = File::open(core).expect("the core");
    let snapshot = recognise(&file, None).expect("a core");
    let look = Look::into(snapshot, &file, &|_| ()).expect("a core");
    let counted = look.with_guest(&file, |guest, _| {
        let classes = guest.classify().expect("classes");
        let free = classes
            .iter()
            .filter(|(_, class)| *class == PageClass::Free);
        free.count() as u64
    });
    counted.expect("a guest")
}

#[test]
fn makedumpfile_counts_the_same_free_pages() {
    let scene = Scene::new(Kernel::V6_12, Work::Mixed, "").ready();
    let core = Core::of(&scene);
    let options = ["-d", "16", "--message-level", "16", "--dry-run"];
    let done = core
        .makedumpfile(&options, Path::new("unused"))
        .output()
        .expect("makedumpfile");
    let report = format!(
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(done.status.success(), "{report}");
    let theirs = reported(&report, "Free pages");
    // Those that processors keep for themselves are not free to makedumpfile. The guest told of them a moment before it was
    // stopped.
    let kept = scene.kept_by_processors();
    for path in [scene.saved(Format::Elf), core.path()] {
        let ours = free_pages(&path);
        println!("free: {ours}; makedumpfile counts {theirs}, and processors keep {kept}");
        assert!(
            ours.abs_diff(theirs + kept) <= 64,
            "{ours} and {theirs} + {kept}"
        );
    }
}
