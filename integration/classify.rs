//! One saved guest in several formats: whatever it is wrapped in, its pages are the same, so their classes are; and the
//! command tells the same as the library.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::guests::image::{self, Kernel};
use crate::guests::machine::Machine;
use crate::guests::synthetic::Synthetic;
use crate::guests::{Format, Scene, Work};
use parsfs::guest::{ClassSet, GuestError, PageClass, Tier};
use parsfs::snapshot::{Gpa, TopTable};
use parsfs::volume::Tiers;
use parsfs::volume::look::{FileUse, Look, NoGuest, recognise};
use serde_json::Value;

/// Between the low memory of a PC and its first MiB lie video memory and ROMs, which a dump shows as the processor
/// sees them.
const SHADOWED: std::ops::Range<u64> = 0xA0..0x100;

fn look(path: &Path) -> Look {
    let file = File::open(path).expect("the snapshot");
    let snapshot = recognise(&file, None).expect("a readable file");
    let begun = std::time::Instant::now();
    let look = Look::into(snapshot, &file, &|_| ()).expect("a readable file");
    println!(
        "{}: {} in {:?}",
        path.display(),
        look.snapshot().format,
        begun.elapsed()
    );
    look
}

fn classes(look: &Look) -> BTreeMap<u64, PageClass> {
    look.guest().expect("a guest");
    look.classes().expect("classes").iter().collect()
}

fn command(arguments: &[&str], path: &Path) -> (bool, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_parsfs"))
        .arg("classify")
        .args(arguments)
        .arg(path)
        .output()
        .expect("parsfs");
    let text =
        String::from_utf8(done.stdout).expect("text") + &String::from_utf8_lossy(&done.stderr);
    (done.status.success(), text)
}

fn json(arguments: &[&str], path: &Path) -> Value {
    let (success, text) = command(arguments, path);
    assert!(success, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn one_guest_in_every_format_has_the_same_classes() {
    let scene = Scene::new(Kernel::V6_12, Work::Mixed, "").ready();
    are_the_same(&scene, 10_000, 5_000);
}

#[test]
fn one_arm64_guest_in_every_format_has_the_same_classes() {
    let scene = Scene::new(Kernel::Arm64, Work::Idle, "").ready();
    are_the_same(&scene, 4_000, 5);
}

/// QEMU's files have pages of 4 KiB whatever the guest has.
#[test]
fn one_arm64_guest_with_large_pages_in_every_format_has_the_same_classes() {
    let scene = Scene::new(Kernel::Arm64Pages16K, Work::Idle, "").ready();
    are_the_same(&scene, 1_000, 5);
}

/// The same classes in every format; at least so many pages of page cache and of programs.
fn are_the_same(scene: &Scene, cached: usize, anonymous: usize) {
    let raw = look(&scene.setup.memory);
    let wanted = classes(&raw);
    let count = |class| wanted.values().filter(|known| **known == class).count();
    assert!(count(PageClass::CacheClean) > cached && count(PageClass::Anon) > anonymous);
    for format in [Format::Stream, Format::MappedRam, Format::Elf] {
        let shadowed = format == Format::Elf && !scene.setup.kernel.is_arm();
        let other = look(&scene.saved(format));
        let found = classes(&other);
        let differ: Vec<String> = wanted
            .iter()
            .filter(|(frame, _)| !shadowed || !SHADOWED.contains(frame))
            .filter(|(frame, class)| found.get(frame) != Some(class))
            .map(|(frame, class)| format!("{frame:#x} {class} {:?}", found.get(frame)))
            .collect();
        assert!(
            differ.is_empty(),
            "{format:?}: {} differ: {:?}",
            differ.len(),
            &differ[..differ.len().min(20)]
        );
        assert_eq!(raw.guest().unwrap().release, other.guest().unwrap().release);
        assert_eq!(
            other.snapshot().hints.tables.is_some(),
            tells_registers(scene, format)
        );
        if tells_registers(scene, format) {
            without_registers_that_walk_its_tables_no_kernel_runs(&scene.saved(format));
        }
        let dump = format == Format::Elf;
        let worth = if dump {
            Tier::Critical
        } else {
            Tier::Expendable
        };
        assert_eq!(other.worth(PageClass::CacheClean), worth);
        assert_eq!(other.worth(PageClass::Free), Tier::Expendable);
        tiers_agree_with_uses(&other);
    }
}

/// A core of an arm64 guest holds none that tell.
fn tells_registers(scene: &Scene, format: Format) -> bool {
    format != Format::Elf || !scene.setup.kernel.is_arm()
}

/// The same file if its processors were in firmware, without translation or with tables of its own: 8 MiB further on.
fn without_registers_that_walk_its_tables_no_kernel_runs(path: &Path) {
    let file = File::open(path).expect("the snapshot");
    let found = recognise(&file, None).expect("a readable file");
    let tables = found.hints.tables.clone().expect("what they walk");
    assert!(!tables.is_empty(), "{}", path.display());
    let further = |table: &TopTable| TopTable {
        gpa: Gpa(table.gpa.0 + (8 << 20)),
        ..*table
    };
    for tables in [Vec::new(), tables.iter().map(further).collect()] {
        let mut snapshot = found.clone();
        snapshot.hints.tables = Some(tables);
        let look = Look::into(snapshot, &file, &|_| ()).expect("a readable file");
        let wanted = NoGuest::NotFound(GuestError::NotRunning);
        assert_eq!(look.guest().err(), Some(&wanted), "{}", path.display());
        assert_eq!(
            look.tiers(ClassSet::MENDABLE, false),
            Tiers::All(parsfs::store::Tier::Critical)
        );
    }
}

/// A guest that was reset and has not booted anew: its kernel is whole in memory, and no processor runs it. Whatever the
/// next system uses, nothing may be judged by the last one's word.
#[test]
fn a_guest_that_was_reset_has_no_kernel() {
    let scene = Scene::new(Kernel::V6_12, Work::Mixed, "").ready();
    let directory = tempfile::tempdir().expect("a directory");
    let raw = look(&scene.setup.memory);
    for format in [Format::Stream, Format::MappedRam, Format::Elf] {
        let path = directory.path().join("reset");
        let turn = image::exclusive("guest");
        // The reset writes firmware into memory: into a copy of its own.
        let setup = scene.setup_with(&scene.setup.memory, true);
        let mut machine = Machine::load(&setup, &scene.state());
        machine.reset();
        match format {
            Format::Stream => machine.save_all(&path, false),
            Format::MappedRam => machine.save_all(&path, true),
            Format::Elf => machine.dump(&path),
        }
        machine.quit();
        drop(turn);
        let reset = look(&path);
        let wanted = NoGuest::NotFound(GuestError::NotRunning);
        assert_eq!(reset.guest().err(), Some(&wanted), "{format:?}");
        assert_eq!(
            reset.tiers(ClassSet::MENDABLE, false),
            Tiers::All(parsfs::store::Tier::Critical)
        );
        // It is the registers that tell: by its memory alone it would be believed.
        let file = File::open(&path).expect("the snapshot");
        let mut snapshot = recognise(&file, None).expect("a readable file");
        snapshot.hints.tables = None;
        let believed = Look::into(snapshot, &file, &|_| ()).expect("a readable file");
        assert_eq!(
            believed.guest().expect("a guest").release,
            raw.guest().expect("a guest").release
        );
        fs::remove_file(&path).expect("the saved guest");
    }
}

/// What a commit would be told about a file and what its bytes are used for are one thing.
fn tiers_agree_with_uses(look: &Look) {
    let Tiers::Runs(runs) = look.tiers(ClassSet::MENDABLE, false) else {
        panic!("a guest was found, but the file is of one tier");
    };
    let expendable = |at: u64| {
        let run = runs.partition_point(|(run, _)| run.end <= at);
        runs.get(run).is_some_and(|(run, _)| run.contains(&at))
    };
    let mut end = 0;
    for (range, used) in look.uses() {
        assert_eq!(range.start, end, "a gap");
        end = range.end;
        match used {
            FileUse::Page(PageClass::Zero) => {}
            FileUse::Page(class) => {
                let wanted = look.worth(class) == Tier::Expendable;
                assert_eq!(
                    expendable(range.start),
                    wanted,
                    "{class} at {}",
                    range.start
                );
                assert_eq!(
                    expendable(range.end - 1),
                    wanted,
                    "{class} at {}",
                    range.start
                );
            }
            FileUse::Framing => assert!(!expendable(range.start) && !expendable(range.end - 1)),
            FileUse::Dead => assert!(expendable(range.start)),
        }
    }
    assert_eq!(end, look.map().unwrap().file_length());
}

#[test]
fn the_command_tells_what_the_library_finds() {
    let scene = Scene::new(Kernel::V6_12, Work::Mixed, "").ready();
    let path = scene.saved(Format::Stream);
    let look = look(&path);
    let directory = tempfile::tempdir().unwrap();
    let (pages, map) = (
        directory.path().join("pages"),
        directory.path().join("map.png"),
    );
    let options = [
        "--json",
        "--pages",
        pages.to_str().unwrap(),
        "--map",
        map.to_str().unwrap(),
    ];
    let told = json(&options, &path);
    assert_eq!(told["format"], "QEMU stream");
    assert_eq!(
        told["guest"]["release"],
        look.guest().unwrap().release.as_str()
    );
    let classes = look.classes().unwrap();
    for (class, pages) in classes.counts() {
        assert_eq!(told["classes"][class.name()]["pages"], pages, "{class}");
        assert_eq!(
            told["classes"][class.name()]["bytes"],
            pages * 4096,
            "{class}"
        );
    }
    let sum: u64 = ["critical", "expendable", "not stored"]
        .iter()
        .map(|tier| told["tiers"][tier]["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(sum, fs::metadata(&path).unwrap().len());

    let table = fs::read(&pages).unwrap();
    for (frame, class) in classes.iter() {
        assert_eq!(table[frame as usize], class as u8, "{frame:#x}");
    }
    let reader = png::Decoder::new(std::io::BufReader::new(File::open(&map).unwrap()))
        .read_info()
        .unwrap();
    assert!(reader.info().width > 1024);

    // One page of every class, with its reason.
    for &class in PageClass::ALL {
        let Some((frame, _)) = classes.iter().find(|(_, known)| *known == class) else {
            continue;
        };
        let page = json(
            &["--json", "--page", &format!("{:#x}", (frame << 12) + 17)],
            &path,
        );
        assert_eq!(page["class"], class.name());
        assert_eq!(page["frame"], frame);
        println!("{class}: {}", page["reason"]);
    }
    let (success, text) = command(&["--page", "0xfffffff000"], &path);
    assert!(
        !success && text.contains("no memory at 0xfffffff000"),
        "{text}"
    );
}

#[test]
fn what_is_no_guest_is_critical() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    // No format, a compressed one, memory without a kernel.
    for (bytes, no_pages) in [
        (vec![7; 5000], true),
        (b"\x1f\x8b\x08".repeat(100), true),
        (vec![7; 2 << 20], false),
    ] {
        fs::write(&path, &bytes).unwrap();
        let told = json(&["--json"], &path);
        assert_eq!(told["guest"], Value::Null);
        assert!(told["no_guest"].is_string());
        assert_eq!(told["opaque"].is_string(), no_pages);
        assert_eq!(told["tiers"]["critical"]["bytes"], bytes.len());
        assert_eq!(
            told["classes"]["unknown"]["pages"],
            bytes.len().div_ceil(4096)
        );
        assert_eq!(command(&["--page", "0"], &path).0, !no_pages);
    }
    assert!(!command(&[], directory.path()).0);
    assert!(!command(&[], &directory.path().join("absent")).0);
}

#[test]
fn a_guest_made_by_hand_is_seen_through_its_file() {
    let guest = Synthetic::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &guest.bytes).unwrap();
    let look = look(file.path());
    let classes = look.classes().unwrap();
    look.guest().unwrap();
    for (frame, class) in classes.iter() {
        let page = &guest.bytes[(frame << 12) as usize..][..4096];
        assert_eq!(
            class == PageClass::Zero,
            page.iter().all(|byte| *byte == 0),
            "{frame:#x}"
        );
    }
    let source = File::open(file.path()).unwrap();
    assert!(
        look.with_guest(&source, |guest, classes| guest.explain(classes, 1))
            .is_some()
    );
    assert_eq!(
        look.map().unwrap().lookup(Gpa(0x1000)),
        parsfs::snapshot::Place::Stored(0x1000)
    );
}
