//! Guests saved into the mount: what a guest does without is stored once, all else survives the loss of disks, and what is
//! read is what was written, byte for byte.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use parsfs::guest::ClassSet;
use parsfs::volume::Tiers;
use parsfs::volume::look::{Look, recognise};
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde_json::Value;

use crate::guests::image::Kernel;
use crate::guests::{Format, Scene, Work};
use crate::harness::process::shell;
use crate::harness::volume::Volume;
use crate::writers::view::{Reading, after_loss};

fn scene() -> Scene {
    Scene::new(Kernel::V6_12, Work::Mixed, "").ready()
}

/// What may be lost of a file, as a look at the finished file on an ordinary disk tells.
fn expendable(path: &Path) -> Vec<Range<u64>> {
    let file = File::open(path).expect("the snapshot");
    let snapshot = recognise(&file, None).expect("a readable file");
    let look = Look::into(snapshot, &file, &|_| ()).expect("a readable file");
    match look.tiers(ClassSet::MENDABLE, true) {
        Tiers::Runs(runs) => runs.into_iter().map(|(range, _)| range).collect(),
        Tiers::All(tier) => panic!("all of it is {tier:?}: {:?}", look.guest()),
    }
}

/// Copies in writes of odd lengths, so that pages lie in them at every phase.
pub fn copy(from: &Path, to: &Path, step: usize) {
    let from = File::open(from).expect("the snapshot");
    let length = from.metadata().expect("the snapshot").len();
    let to = File::create(to).expect("a file in the mount");
    let mut buffer = vec![0; step];
    let mut at = 0;
    while at < length {
        let part = &mut buffer[..(length - at).min(step as u64) as usize];
        from.read_exact_at(part, at).expect("the snapshot");
        to.write_all_at(part, at).expect("written");
        at += part.len() as u64;
    }
}

/// The bytes of a file that are to be stored: all but runs of zeros of 4 KiB and more, wherever they begin.
fn data(path: &Path) -> Vec<Range<u64>> {
    let bytes = fs::read(path).expect("the file");
    let mut ranges = Vec::new();
    let (mut begin, mut at) = (0, 0);
    while at < bytes.len() {
        let zeros = bytes[at..].iter().take_while(|&&byte| byte == 0).count();
        if zeros >= 4096 {
            if begin < at {
                ranges.push(begin as u64..at as u64);
            }
            begin = at + zeros;
        }
        at += zeros;
        at += bytes[at..].iter().take_while(|&&byte| byte != 0).count();
    }
    if begin < bytes.len() {
        ranges.push(begin as u64..bytes.len() as u64);
    }
    ranges
}

fn overlap(one: &[Range<u64>], other: &[Range<u64>]) -> u64 {
    let mut bytes = 0;
    for range in one {
        let first = other.partition_point(|other| other.end <= range.start);
        for other in &other[first..] {
            if other.start >= range.end {
                break;
            }
            bytes += range.end.min(other.end) - range.start.max(other.start);
        }
    }
    bytes
}

pub fn inspect(volume: &Volume, name: &str) -> Value {
    let path = volume.path(name);
    let outcome = volume.parsfs(["inspect".as_ref(), path.as_os_str(), "--json".as_ref()]);
    let outcome = outcome.expect_success("parsfs inspect --json");
    serde_json::from_str(&outcome.stdout).expect("JSON from parsfs inspect --json")
}

/// The file's bytes of a tier, holes left out.
fn logical(inspected: &Value, tier: &str) -> u64 {
    let tiers = inspected["tiers"].as_array().expect("tiers");
    let found = tiers.iter().find(|found| found["tier"] == tier);
    found.expect("the tier")["logical"].as_u64().expect("bytes")
}

/// Whether two files hold the same; where they first differ if not.
fn same(one: &Path, other: &Path) -> Result<(), String> {
    let (mut one, mut other) = (
        File::open(one).expect("one"),
        File::open(other).expect("other"),
    );
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let n = one
            .read(&mut a)
            .map_err(|error| format!("at {at}: {error}"))?;
        if n == 0 {
            let more = other.read(&mut b).expect("other");
            return if more == 0 {
                Ok(())
            } else {
                Err(format!("one ends at {at}"))
            };
        }
        other.read_exact(&mut b[..n]).expect("other");
        if a[..n] != b[..n] {
            let place = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(n);
            return Err(format!("they differ at {}", at + place));
        }
        at += n;
    }
}

/// With two disks gone every byte that may not be lost is there; tells how many of the others are not.
fn lost(path: &Path, original: &Path, expendable: &[Range<u64>]) -> u64 {
    let (file, original) = (
        File::open(path).expect("the file"),
        File::open(original).expect("it"),
    );
    let length = original.metadata().expect("it").len();
    let (mut found, mut wanted) = (vec![0; 4096], vec![0; 4096]);
    let (mut at, mut lost) = (0, 0);
    while at < length {
        let run = expendable.partition_point(|run| run.end <= at);
        let inside = expendable.get(run).is_some_and(|run| run.contains(&at));
        // Up to the next page, and not across the end of a run.
        let edge = expendable
            .get(run)
            .map_or(length, |run| if inside { run.end } else { run.start });
        let end = length.min(edge).min(at + 4096);
        let n = (end - at) as usize;
        original
            .read_exact_at(&mut wanted[..n], at)
            .expect("the original");
        match file.read_exact_at(&mut found[..n], at) {
            Ok(()) => assert!(found[..n] == wanted[..n], "wrong bytes at {at}"),
            Err(error) if inside => {
                assert_eq!(error.raw_os_error(), Some(5), "at {at}");
                lost += n as u64;
            }
            Err(error) => panic!("critical bytes at {at}: {error}"),
        }
        at = end;
    }
    lost
}

#[test]
fn a_saved_guest_has_its_expendable_pages_stored_once() {
    let scene = scene();
    let files = [
        ("raw", scene.setup.memory.clone(), 1 << 20),
        ("stream", scene.saved(Format::Stream), 131_000),
        ("mapped", scene.saved(Format::MappedRam), 1 << 20),
    ];
    let mut volume = Volume::mounted();
    volume.limit(900);
    let mut runs = Vec::new();
    for (name, original, step) in &files {
        copy(original, &volume.path(name), *step);
        let expendable = expendable(original);
        let data = data(original);
        let wanted = overlap(&expendable, &data);
        let inspected = inspect(&volume, name);
        assert!(wanted > 20 << 20, "{name}: only {wanted} bytes may be lost");
        let stored: u64 = data.iter().map(|range| range.end - range.start).sum();
        let size = original.metadata().expect("its size").len();
        assert_eq!(inspected["hole_bytes"], size - stored, "{name}");
        assert_eq!(
            logical(&inspected, "expendable"),
            wanted,
            "{name}: {inspected:#}"
        );
        same(&volume.path(name), original).unwrap_or_else(|why| panic!("{name}: {why}"));
        runs.push(expendable);
    }
    volume.remount();
    for (name, original, _) in &files {
        same(&volume.path(name), original).unwrap_or_else(|why| panic!("{name}: {why}"));
    }
    volume.umount();
    for disk in [1, 4] {
        volume.disks[disk].take_away();
    }
    // Without a view that mends: what is lost is an error, and nothing else differs.
    volume.mount_with(&["-o", "lost=error"]);
    for ((name, original, _), runs) in files.iter().zip(&runs) {
        let lost = lost(&volume.path(name), original, runs);
        println!("{name}: {lost} bytes are on no disk any more");
        assert!(lost > 0, "{name}: nothing was stored once");
    }
}

#[test]
fn what_is_no_resumable_guest_is_critical() {
    let scene = scene();
    let volume = Volume::mounted();
    volume.limit(600);
    let memory = fs::read(&scene.setup.memory).expect("memory");
    // A dump, a guest without its kernel's page tables, a guest cut short, and bytes of that length that are no guest.
    copy(&scene.saved(Format::Elf), &volume.path("dump"), 1 << 20);
    let half = &memory[..memory.len() / 2 + 512];
    fs::write(volume.path("half"), half).expect("written");
    let mut blind = memory;
    for page in blind.chunks_exact_mut(4096) {
        if page.starts_with(b"OSRELEASE=") || page[12..].starts_with(b"VMCOREINFO") {
            page.fill(1);
        }
    }
    fs::write(volume.path("blind"), &blind).expect("written");
    fs::write(volume.path("none"), vec![0x55; 64 << 20]).expect("written");
    for name in ["dump", "half", "blind", "none"] {
        let inspected = inspect(&volume, name);
        assert_eq!(logical(&inspected, "expendable"), 0, "{name}");
        assert!(logical(&inspected, "critical") > 1 << 20, "{name}");
    }
}

/// An attribute as text.
fn told(path: &Path, name: &str) -> String {
    let mut value = vec![0; 64 << 10];
    let name = format!("user.parsfs.{name}");
    let length = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..])
        .unwrap_or_else(|error| panic!("{name} of {}: {error}", path.display()));
    value.truncate(length);
    String::from_utf8(value).expect("text")
}

fn classes(path: &Path) -> BTreeMap<String, u64> {
    let text = told(path, "classes");
    let line = |line: &str| {
        let (class, pages) = line.split_once('=').expect("name=pages");
        (class.to_owned(), pages.parse().expect("pages"))
    };
    text.lines().map(line).collect()
}

#[test]
fn attributes_tell_of_the_guest_and_survive_copies() {
    let scene = scene();
    let volume = Volume::mounted();
    volume.limit(900);
    let (original, path) = (&scene.setup.memory, volume.path("guest"));
    copy(original, &path, 1 << 20);
    let file = File::open(original).expect("the snapshot");
    let snapshot = recognise(&file, None).expect("a readable file");
    let look = Look::into(snapshot, &file, &|_| ()).expect("a readable file");
    let counts = look.classes().expect("classes").counts();
    let wanted: BTreeMap<String, u64> = counts
        .into_iter()
        .filter(|(_, pages)| *pages > 0)
        .map(|(class, pages)| (class.name().to_owned(), pages))
        .collect();
    assert_eq!(classes(&path), wanted);
    assert_eq!(told(&path, "state"), "protected");
    assert_eq!(told(&path, "format"), "raw memory");
    assert!(
        told(&path, "guest").starts_with("Linux 6.12"),
        "{}",
        told(&path, "guest")
    );
    assert!(told(&path, "redundancy").starts_with("critical=4+2"));
    assert!(
        told(&path, "stored")
            .lines()
            .any(|line| line.starts_with("disk:"))
    );
    for (frame, class) in look.classes().expect("classes").iter().step_by(9_973) {
        let page = told(&path, &format!("page.{frame}"));
        assert!(
            page.starts_with(class.name()),
            "{frame}: {page} and not {class}"
        );
    }
    // Onto another file of the volume, onto another filesystem, and from there back.
    shell(
        volume.scratch.path(),
        "cp -a mnt/guest mnt/cp && rsync -aX mnt/guest mnt/rsync && cp -a mnt/guest plain && rsync -aX plain mnt/back",
    );
    for name in ["cp", "rsync", "back"] {
        assert_eq!(classes(&volume.path(name)), wanted, "{name}");
        assert_eq!(told(&volume.path(name), "state"), "protected", "{name}");
    }
    fs::write(volume.path("text"), "a text").expect("written");
    assert_eq!(told(&volume.path("text"), "guest"), "none");
    assert_eq!(told(&volume.path("text"), "classes"), "");
    // A file that is cut short is no guest any more.
    let cut = File::options().write(true).open(&path).expect("the file");
    cut.set_len(1 << 20).expect("cut");
    drop(cut);
    assert!(told(&path, "guest").starts_with("none: "));
    let left: Vec<String> = classes(&path).into_keys().collect();
    assert_eq!(left, ["unknown", "zero"], "pages that nothing is known of");
    assert_eq!(logical(&inspect(&volume, "guest"), "expendable"), 0);
}

#[test]
fn a_directory_gives_its_policy_to_what_is_made_in_it() {
    let scene = scene();
    let volume = Volume::mounted();
    volume.limit(900);
    let set = |name: &str, value: &str| {
        let path = volume.path(name);
        rustix::fs::setxattr(
            path,
            "user.parsfs.policy",
            value.as_bytes(),
            XattrFlags::empty(),
        )
    };
    for name in ["kept", "usual"] {
        fs::create_dir(volume.path(name)).expect("a directory");
    }
    for wrong in ["drop", "expendable=never", "expendable_classes=anon"] {
        assert_eq!(set("kept", wrong), Err(Errno::INVAL), "{wrong}");
    }
    // The log tells what the number does not.
    assert!(
        volume
            .said()
            .contains("a guest cannot go on without pages of class anon")
    );
    set("kept", "keep_cache=true").expect("a good policy");
    fs::create_dir(volume.path("kept/below")).expect("a directory");
    copy(
        &scene.setup.memory,
        &volume.path("kept/below/guest"),
        1 << 20,
    );
    copy(&scene.setup.memory, &volume.path("usual/guest"), 1 << 20);
    let expendable = |name: &str| logical(&inspect(&volume, name), "expendable");
    let (kept, usual) = (expendable("kept/below/guest"), expendable("usual/guest"));
    assert!(
        kept > 0 && kept < usual / 2,
        "{kept} and {usual} bytes are expendable"
    );
    assert_eq!(
        told(&volume.path("kept/below/guest"), "policy"),
        "keep_cache=true"
    );
}

/// A policy that is set on a file holds when the call returns, and when it is taken away again, what it said does not.
#[test]
fn a_file_gets_another_policy_and_its_pages_other_tiers() {
    let scene = scene();
    let mut volume = Volume::mounted();
    volume.limit(900);
    let path = volume.path("guest");
    copy(&scene.setup.memory, &path, 1 << 20);
    let expendable = |volume: &Volume| logical(&inspect(volume, "guest"), "expendable");
    let usual = expendable(&volume);
    let policy = "user.parsfs.policy";
    rustix::fs::setxattr(&path, policy, b"keep_cache=true", XattrFlags::empty()).expect("set");
    let kept = expendable(&volume);
    assert!(
        kept > 0 && kept < usual / 2,
        "{kept} of {usual} bytes are expendable with the cache kept"
    );
    volume.kill();
    volume.mount();
    assert_eq!(expendable(&volume), kept, "after a crash");
    rustix::fs::setxattr(&path, policy, b"expendable_classes=", XattrFlags::empty()).expect("set");
    assert_eq!(expendable(&volume), 0);
    // All of it is protected now.
    for disk in [2, 3] {
        volume.disks[disk].take_away();
    }
    same(&path, &scene.setup.memory).expect("every byte with two disks gone");
    volume.umount();
    for disk in [2, 3] {
        volume.disks[disk].bring_back();
    }
    volume.mount();
    rustix::fs::removexattr(&path, policy).expect("removed");
    assert_eq!(expendable(&volume), usual);
    same(&path, &scene.setup.memory).expect("every byte");
}

#[test]
fn what_is_dropped_is_not_stored_and_reads_as_a_guest_can_do_without_it() {
    let scene = scene();
    let volume = Volume::mounted();
    volume.limit(900);
    fs::create_dir(volume.path("small")).expect("a directory");
    let path = volume.path("small");
    rustix::fs::setxattr(
        path,
        "user.parsfs.policy",
        b"expendable=drop",
        XattrFlags::empty(),
    )
    .expect("a policy");
    let files = [
        ("raw", scene.setup.memory.clone()),
        ("stream", scene.saved(Format::Stream)),
    ];
    for (name, original) in files {
        let runs = expendable(&original);
        let (kept, small) = (format!("kept-{name}"), format!("small/{name}"));
        copy(&original, &volume.path(&kept), 1 << 20);
        copy(&original, &volume.path(&small), 1 << 20);
        // What was stored as it is, so that nobody waited, takes more until then.
        volume.until_compressed();
        let (kept, small) = (inspect(&volume, &kept), inspect(&volume, &small));
        assert_eq!(
            small["dropped_bytes"], kept["tiers"][1]["logical"],
            "{small:#}"
        );
        assert_eq!(logical(&small, "expendable"), 0);
        let stored = |found: &Value| found["tiers"][0]["stored"].as_u64().expect("bytes");
        assert!(stored(&small) < stored(&kept) * 11 / 10, "{small:#}");
        let path = volume.path(&format!("small/{name}"));
        assert_eq!(told(&path, "state"), "mended");
        // Nothing fails, and what is not lost differs only where pages are marked unread.
        let (found, wanted) = (
            fs::read(&path).expect("readable"),
            fs::read(&original).expect("it"),
        );
        assert_eq!(found.len(), wanted.len());
        let mut edited = 0;
        let mut at = 0;
        for run in runs
            .iter()
            .map(|run| run.start as usize..run.end as usize)
            .chain(std::iter::once(wanted.len()..wanted.len()))
        {
            for (a, b) in found[at..run.start].iter().zip(&wanted[at..run.start]) {
                assert_eq!(a & b, *a, "{name}: more than bits that are cleared");
                edited += usize::from(a != b);
            }
            at = run.end;
        }
        let cached = classes(&path)["cache-clean"] as usize;
        assert!(
            edited > 0 && edited <= 3 * cached,
            "{name}: {edited} bytes are edited"
        );
    }
}

/// A disk dies, and a new one takes its place without the bytes that only the dead one had. They are recorded as lost: with
/// every disk well, in this mount and in later ones, the file reads as its mended view and a scrub has nothing to say.
#[test]
fn bytes_that_were_given_up_with_a_disk_read_mended_ever_after() {
    let scene = scene();
    let mut volume = Volume::mounted();
    volume.limit(900);
    let original = scene.setup.memory.clone();
    let path = volume.path("guest");
    copy(&original, &path, 1 << 20);
    let new = volume.scratch.directory("new");
    volume.disks[2].delete();
    let long = |arguments: &[&std::ffi::OsStr]| {
        let mut command = std::process::Command::new(crate::harness::volume::binary());
        crate::harness::process::run(command.args(arguments), std::time::Duration::from_secs(300))
    };
    let (mountpoint, config) = (volume.mountpoint.clone(), volume.config.clone());
    let replace = |more: &[&str]| {
        let before = ["disk", "replace"]
            .iter()
            .chain(more)
            .map(std::ffi::OsStr::new);
        let after = [mountpoint.as_os_str(), "disk3".as_ref(), new.as_os_str()];
        long(&before.chain(after).collect::<Vec<_>>())
    };
    // Nothing is given up unasked.
    let kept = replace(&[]);
    assert!(
        !kept.success() && kept.stdout.contains("--give-up"),
        "{}{}",
        kept.stdout,
        kept.stderr
    );
    replace(&["--give-up"]).expect_success("disk replace --give-up");
    let mut bytes = None;
    for when in ["at once", "in the next mount"] {
        let status = volume.status();
        let disks = status["disks"].as_array().expect("disks");
        assert!(
            disks
                .iter()
                .all(|disk| disk["state"] == "online" && disk["name"] != "disk3"),
            "{status:#}"
        );
        assert_eq!(told(&path, "state"), "mended", "{when}");
        match after_loss(&path, &original).unwrap_or_else(|why| panic!("{when}: {why}")) {
            Reading::Mended { lost, .. } => assert!(lost > 100, "{when}: {lost} pages"),
            Reading::Written => panic!("{when}: nothing is lost"),
        }
        let found = fs::read(&path).expect("readable");
        assert!(
            *bytes.get_or_insert_with(|| found.clone()) == found,
            "{when}"
        );
        long(&["scrub".as_ref(), mountpoint.as_os_str()]).expect_success("a scrub");
        volume.remount();
    }
    // Written again it is whole again.
    copy(&original, &path, 1 << 20);
    same(&original, &path).expect("what was written");
    assert_ne!(told(&path, "state"), "mended");
    volume.umount();
    long(&["fsck".as_ref(), config.as_os_str()]).expect_success("fsck");
}

/// Opens a file in the mount, changes bytes of it, and closes it.
fn patch(path: &Path, patches: &[(u64, &[u8])]) {
    let file = File::options().write(true).open(path).expect("the file");
    for (offset, bytes) in patches {
        file.write_all_at(bytes, *offset).expect("written");
    }
    crate::harness::content::close(file).expect("closed");
}

#[test]
fn libvirts_header_is_written_anew_without_another_look() {
    let scene = scene();
    let volume = Volume::mounted();
    volume.limit(900);
    // Header, description with its padding, QEMU's stream.
    let mut image = vec![0; 92 + (64 << 10)];
    image[..16].copy_from_slice(b"LibvirtQemudPart");
    image[16..20].copy_from_slice(&2u32.to_le_bytes());
    image[20..24].copy_from_slice(&(64u32 << 10).to_le_bytes());
    image[92..99].copy_from_slice(b"<domain");
    image.extend(fs::read(scene.saved(Format::Stream)).expect("the stream"));
    let plain = volume.scratch.path().join("image");
    fs::write(&plain, &image).expect("written");
    let path = volume.path("image");
    copy(&plain, &path, 1 << 20);
    let (before, may_be_lost) = (
        classes(&path),
        logical(&inspect(&volume, "image"), "expendable"),
    );
    assert!(
        may_be_lost > 20 << 20,
        "only {may_be_lost} bytes may be lost"
    );
    let looks = || volume.said().matches("a guest was found").count();
    let looked = looks();
    patch(&path, &[(0, b"LibvirtQemudSave")]);
    image[..16].copy_from_slice(b"LibvirtQemudSave");
    fs::write(&plain, &image).expect("written");
    assert_eq!(looks(), looked, "it was looked into again");
    assert_eq!(classes(&path), before);
    assert_eq!(
        logical(&inspect(&volume, "image"), "expendable"),
        may_be_lost
    );
    same(&path, &plain).expect("the image");
}

#[test]
fn a_guest_that_is_patched_is_judged_as_it_is_then() {
    let scene = scene();
    let mut volume = Volume::mounted();
    volume.limit(900);
    let plain = volume.scratch.path().join("guest");
    fs::copy(&scene.setup.memory, &plain).expect("copied");
    let path = volume.path("guest");
    copy(&plain, &path, 1 << 20);
    let before = logical(&inspect(&volume, "guest"), "expendable");
    // A page that may be lost gets other bytes: it stays what it is. By another mount, which did not see the rest go by.
    volume.remount();
    let runs = expendable(&plain);
    let first = runs
        .iter()
        .find(|run| run.end - run.start >= 1 << 20)
        .expect("a long run");
    let place = first.start.next_multiple_of(4096);
    for file in [&plain, &path] {
        patch(file, &[(place, &[0x5A; 64 << 10])]);
    }
    // A patch that small lies in the metadata, and counts as critical.
    assert!(logical(&inspect(&volume, "guest"), "expendable") >= before - (64 << 10));
    same(&path, &plain).expect("the patched guest");
    // Without its vmcoreinfo nothing is known of it any more.
    let memory = fs::read(&plain).expect("the guest");
    for (number, page) in (0u64..).zip(memory.chunks_exact(4096)) {
        if page.starts_with(b"OSRELEASE=") || page[12..].starts_with(b"VMCOREINFO") {
            for file in [&plain, &path] {
                patch(file, &[(number * 4096, &[1; 4096])]);
            }
        }
    }
    assert_eq!(logical(&inspect(&volume, "guest"), "expendable"), 0);
    assert!(
        told(&path, "guest").starts_with("none"),
        "{}",
        told(&path, "guest")
    );
    same(&path, &plain).expect("the guest without vmcoreinfo");
}
