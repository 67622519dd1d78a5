//! Guests made by hand, saved into volumes of which disks go away: what is read must be, byte for byte, the saved file with the
//! guest's own mend applied, and an error only where that cannot be.

use std::ops::Range;
use std::sync::Arc;

use super::super::look::{self, Look};
use super::super::tests::tiers::MadeUp;
use super::super::tests::{Rig, close, create, noise, read_file, write_all, write_file};
use super::super::*;
use crate::guest::synthetic::{Synthetic, word};
use crate::guest::{ClassSet, FlatMemory, Guest, Hints, Layout};
use crate::snapshot::tests::writers::{Head, StreamWriter};
use crate::snapshot::{ByteSource, Gpa, PieceKind, Place, index};
use crate::store::Tier;

const PAGE: u64 = 4096;
const POLICY: &str = "critical = \"4+2\"\nblock_size = \"8K\"";

/// A guest with pages of every kind that matters here, all full of noise.
fn guest() -> Synthetic {
    let mut guest = Synthetic::new();
    let (ext4, xfs) = (guest.file("ext4"), guest.file("xfs"));
    guest.buddy(0x240, 6);
    for pfn in 0x280..0x2A0 {
        guest.cached(pfn, 0, &ext4);
    }
    for pfn in 0x2A0..0x2C0 {
        let page = guest.cached(pfn, 0, &ext4);
        guest.buffers(page, 1);
    }
    for pfn in (0x2C0..0x300).step_by(8) {
        let page = guest.cached(pfn, 3, &xfs);
        guest.iomap(page, 8);
    }
    for pfn in 0x300..0x310 {
        guest.typed_page(pfn, 0xF1);
    }
    for pfn in 0x310..0x320 {
        guest.put(Synthetic::page(pfn) + word::MAPPING, 0xFFFF_8880_0000_0001);
    }
    fill(&mut guest, 0x240..0x340, 1);
    guest
}

fn fill(guest: &mut Synthetic, frames: Range<u64>, seed: u64) {
    let length = ((frames.end - frames.start) * PAGE) as usize;
    let from = (frames.start * PAGE) as usize;
    guest.bytes[from..from + length].copy_from_slice(&noise(seed, length));
}

/// What QEMU writes of it: each page behind a header, some of them sent before with other bytes.
fn stream(guest: &Synthetic) -> Vec<u8> {
    let head = Head {
        machine: "pc-q35-10.0",
        ..Head::default()
    };
    let mut writer = StreamWriter::new(b"", head, &[("pc.ram", guest.pages())]);
    writer.next_section(false);
    for page in 0x290..0x2A0 {
        writer.page(0, page, &noise(page, PAGE as usize));
    }
    writer.next_section(true);
    for (page, bytes) in guest.bytes.chunks(PAGE as usize).enumerate() {
        if bytes.iter().all(|&byte| byte == 0) {
            writer.zero(0, page as u64);
        } else {
            writer.page(0, page as u64, bytes);
        }
    }
    writer.flush();
    writer.finish()
}

/// The tiers that a look gives.
fn tiers_of(bytes: &(impl ByteSource + Sync)) -> Vec<(Range<u64>, Tier)> {
    let snapshot = look::recognise(bytes, None).expect("recognised");
    let look = Look::into(snapshot, bytes, &|_| ()).expect("looked into");
    assert!(look.guest().is_ok(), "{:?}", look.guest());
    match look.tiers(ClassSet::MENDABLE, false) {
        Tiers::Runs(runs) => runs,
        Tiers::All(_) => panic!("no tiers"),
    }
}

/// A volume with the file in it, closed again.
fn saved(bytes: &[u8], tiers: &Arc<MadeUp>) -> Rig {
    let rig = Rig::new(6, POLICY);
    let volume = rig.open_with(tiers.clone());
    write_file(&volume, "f", bytes);
    volume.close().expect("closed");
    rig
}

fn saved_guest(bytes: &Vec<u8>) -> Rig {
    let tiers = Arc::new(MadeUp::default());
    *tiers.runs.lock() = tiers_of(bytes);
    saved(bytes, &tiers)
}

fn lose(rig: &Rig, disks: [usize; 2], mode: LostReads) -> Arc<Volume> {
    disks.iter().for_each(|&disk| rig.take_away(disk));
    open(rig, mode)
}

fn open(rig: &Rig, mode: LostReads) -> Arc<Volume> {
    let mut config = rig.config.clone();
    config.mount.lost = mode;
    Volume::open(&config, Mode::ReadOnly).expect("opens")
}

/// What is lost of the file, found without any view.
fn lost_ranges(volume: &Volume) -> Vec<Range<u64>> {
    let file = volume.lookup(ROOT, b"f").expect("there").file;
    let file = volume.use_file(file).expect("in use");
    let lost = volume.lost_bytes(&file, true).expect("looked for");
    lost.runs.iter().map(|(range, _)| range).collect()
}

/// The file as it must be read: the guest's mend of the lost pages, put where the pages lie in the file.
fn expected(bytes: &[u8], guest: &Synthetic, lost: &[Range<u64>]) -> (Vec<u8>, usize) {
    let mut expected = bytes.to_vec();
    let snapshot = index(&expected).expect("recognised");
    let map = snapshot.map().expect("a page map");
    let layouts = Layout::candidates(guest.bytes.len() as u64);
    let memory = FlatMemory::new(&guest.bytes, &layouts[0]);
    let found = Guest::find(&memory, &Hints::default()).expect("a kernel");
    let classes = found.classify().expect("classes");
    let place = |gpa: u64| match map.lookup(Gpa(gpa)) {
        Place::Stored(at) => Some(at + gpa % PAGE),
        _ => None,
    };
    let touches = |range: Range<u64>| {
        lost.iter()
            .any(|lost| lost.start < range.end && range.start < lost.end)
    };
    let pfns: Vec<u64> = (0..guest.pages())
        .filter(|pfn| place(pfn * PAGE).is_some_and(|at| touches(at..at + PAGE)))
        .collect();
    let mend = found
        .mend(&classes, &pfns)
        .expect("only expendable pages are lost");
    // Dead bytes and what is filled with zeros, then what is filled with something else.
    for range in lost {
        expected[range.start as usize..range.end as usize].fill(0);
    }
    for fill in &mend.fills {
        let at = place(fill.pfn * PAGE).expect("stored");
        for lost in lost {
            let (from, to) = (lost.start.max(at), lost.end.min(at + PAGE));
            if from < to {
                expected[from as usize..to as usize].fill(fill.byte);
            }
        }
    }
    for edit in &mend.edits {
        expected[place(edit.gpa).expect("stored") as usize] &= edit.and;
    }
    (expected, mend.edits.len())
}

fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    let first = found.iter().zip(expected).position(|(a, b)| a != b);
    assert!(found == expected, "{what}: differs first at {first:?}");
}

fn pairs() -> impl Iterator<Item = [usize; 2]> {
    (0..6).flat_map(|first| (first + 1..6).map(move |second| [first, second]))
}

fn is_mended(bytes: &Vec<u8>, guest: &Synthetic) {
    let rig = saved_guest(bytes);
    let volume = open(&rig, LostReads::Mend);
    assert_same(
        &read_file(&volume, "f").expect("readable"),
        bytes,
        "nothing lost",
    );
    assert!(lost_ranges(&volume).is_empty());
    drop(volume);
    let mut edits = 0;
    for pair in pairs() {
        let volume = lose(&rig, pair, LostReads::Mend);
        let lost = lost_ranges(&volume);
        let (expected, needed) = expected(bytes, guest, &lost);
        edits += needed;
        assert_same(
            &read_file(&volume, "f").expect("readable"),
            &expected,
            &format!("{pair:?}"),
        );
        let file = volume.lookup(ROOT, b"f").expect("there").file;
        let told = volume.inspect(file).expect("inspected");
        let state = if lost.is_empty() {
            "degraded"
        } else {
            "mended"
        };
        assert_eq!(told.state, state, "{pair:?}: {:?}", told.lost);
        let bytes: u64 = told.lost.iter().map(|line| line.bytes).sum();
        assert_eq!(
            bytes,
            lost.iter()
                .map(|range| range.end - range.start)
                .sum::<u64>()
        );
        drop(volume);
        pair.iter().for_each(|&disk| rig.bring_back(disk));
    }
    assert!(edits > 40, "{edits} edits");
    // With the disks the view goes.
    let volume = open(&rig, LostReads::Mend);
    assert_same(
        &read_file(&volume, "f").expect("readable"),
        bytes,
        "all back",
    );
    let file = volume.lookup(ROOT, b"f").expect("there").file;
    assert_eq!(volume.inspect(file).expect("inspected").state, "protected");
}

#[test]
fn a_raw_guest_is_read_mended() {
    let guest = guest();
    is_mended(&guest.bytes, &guest);
}

#[test]
fn a_stream_is_read_mended_at_any_alignment() {
    let guest = guest();
    is_mended(&stream(&guest), &guest);
}

#[test]
fn a_guest_that_poisons_free_pages_finds_the_poison() {
    let mut guest = guest();
    for pfn in 0x240..0x280u64 {
        guest.bytes[(pfn * PAGE) as usize..][..PAGE as usize].fill(0xAA);
    }
    // Alike pages compress to nothing; these are stored apart all the same.
    let bytes = guest.bytes.clone();
    let rig = saved_guest(&bytes);
    let volume = lose(&rig, [1, 4], LostReads::Mend);
    let lost = lost_ranges(&volume);
    let (expected, _) = expected(&bytes, &guest, &lost);
    let poisoned = lost
        .iter()
        .any(|lost| (0x240 * PAGE..0x280 * PAGE).contains(&lost.start));
    assert!(poisoned, "no free page was lost: {lost:?}");
    assert_same(
        &read_file(&volume, "f").expect("readable"),
        &expected,
        "poisoned",
    );
}

#[test]
fn what_free_pages_are_filled_with_outlives_them() {
    let mut guest = guest();
    let free = (0x240 * PAGE) as usize..(0x280 * PAGE) as usize;
    guest.bytes[free.clone()].fill(0xAA);
    // Not what the guest left there: so a byte that is read here was made up by the view.
    let odd = free.start + 0x3F * PAGE as usize;
    guest.bytes[odd..odd + 8].fill(7);
    let rig = Rig::new(6, &format!("{POLICY}\nexpendable = \"drop\""));
    let volume = rig.open();
    write_file(&volume, "f", &guest.bytes);
    let dropped = lost_ranges(&volume);
    assert!(
        dropped
            .iter()
            .any(|range| range.start <= free.start as u64 && free.end as u64 <= range.end),
        "free pages are not dropped: {dropped:?}"
    );
    let read = |volume: &Volume, what: &str| {
        let found = read_file(volume, "f").expect("readable");
        assert!(
            found[free.clone()].iter().all(|&byte| byte == 0xAA),
            "{what}"
        );
        let (expected, edits) = expected(&guest.bytes, &guest, &dropped);
        assert!(edits > 0);
        found == expected
    };
    assert!(read(&volume, "after the commit"));
    volume.close().expect("closed");
    drop(volume);
    // A later commit looks again, and there is no free page left to be seen.
    let volume = rig.open();
    let file = volume.lookup(ROOT, b"f").expect("there").file;
    let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
    volume
        .write(handle, 0x330 * PAGE, b"newer")
        .expect("written");
    close(&volume, handle);
    assert!(!read(&volume, "after a later commit"), "nothing is written");
    volume.close().expect("closed");
}

/// What was stored once, or given up, is still known where only the manifest knows of the file.
#[test]
fn a_guest_that_was_rescued_by_its_manifest_is_read_mended() {
    let guest = guest();
    let rig = saved_guest(&guest.bytes);
    rig.forget_names();
    Volume::rescue(&rig.config).expect("rescued");
    let volume = lose(&rig, [0, 3], LostReads::Mend);
    let lost = lost_ranges(&volume);
    let (mended, edits) = expected(&guest.bytes, &guest, &lost);
    assert!(edits > 0, "nothing to mend: {lost:?}");
    let found = read_file(&volume, "f").expect("readable");
    assert_same(&found, &mended, "rescued");
}

#[test]
fn what_was_dropped_is_read_mended_after_a_rescue_by_the_manifest() {
    let guest = guest();
    let rig = Rig::new(6, &format!("{POLICY}\nexpendable = \"drop\""));
    let volume = rig.open();
    write_file(&volume, "f", &guest.bytes);
    let dropped = lost_ranges(&volume);
    volume.close().expect("closed");
    drop(volume);
    rig.forget_names();
    Volume::rescue(&rig.config).expect("rescued");
    let volume = open(&rig, LostReads::Mend);
    assert_eq!(lost_ranges(&volume), dropped);
    let (mended, edits) = expected(&guest.bytes, &guest, &dropped);
    assert!(edits > 0, "nothing to mend: {dropped:?}");
    let found = read_file(&volume, "f").expect("readable");
    assert_same(&found, &mended, "rescued");
}

/// Reads page by page; gives those that failed, and asserts that the others are as expected.
fn failed_pages(volume: &Volume, expected: &[u8]) -> Vec<u64> {
    let file = volume.lookup(ROOT, b"f").expect("there").file;
    let handle = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    let mut failed = Vec::new();
    for (page, expected) in (0u64..).zip(expected.chunks(PAGE as usize)) {
        match volume.read(handle, page * PAGE, PAGE as usize) {
            Ok(found) => assert!(found == expected, "page {page:#x} is wrong"),
            Err(error) => {
                assert_eq!(error.errno(), libc::EIO);
                failed.push(page);
            }
        }
    }
    volume.release(handle);
    failed
}

fn pages_of(lost: &[Range<u64>]) -> Vec<u64> {
    let mut pages: Vec<u64> = lost
        .iter()
        .flat_map(|range| range.start / PAGE..range.end.div_ceil(PAGE))
        .collect();
    pages.dedup();
    pages
}

#[test]
fn lost_pages_are_errors_where_that_is_wanted() {
    let bytes = guest().bytes;
    let rig = saved_guest(&bytes);
    let volume = lose(&rig, [0, 3], LostReads::Error);
    let lost = lost_ranges(&volume);
    assert_eq!(failed_pages(&volume, &bytes), pages_of(&lost));
    let file = volume.lookup(ROOT, b"f").expect("there").file;
    assert_eq!(volume.inspect(file).expect("inspected").state, "damaged");
}

#[test]
fn lost_pages_are_zeros_and_nothing_is_edited_where_that_is_wanted() {
    let bytes = guest().bytes;
    let rig = saved_guest(&bytes);
    let volume = lose(&rig, [0, 3], LostReads::Zero);
    let mut expected = bytes.clone();
    for range in lost_ranges(&volume) {
        expected[range.start as usize..range.end as usize].fill(0);
    }
    assert_ne!(expected, bytes);
    assert_same(
        &read_file(&volume, "f").expect("readable"),
        &expected,
        "zeros",
    );
    let file = volume.lookup(ROOT, b"f").expect("there").file;
    assert_eq!(volume.inspect(file).expect("inspected").state, "damaged");
}

#[test]
fn what_no_guest_vouches_for_is_an_error_and_zeros_only_if_asked_for() {
    let bytes = noise(5, 2 << 20);
    let tiers = Arc::new(MadeUp::default());
    *tiers.runs.lock() = vec![(256 << 10..1 << 20, Tier::Expendable)];
    let rig = saved(&bytes, &tiers);
    let volume = lose(&rig, [0, 3], LostReads::Mend);
    let lost = lost_ranges(&volume);
    assert!(!lost.is_empty());
    assert_eq!(failed_pages(&volume, &bytes), pages_of(&lost));
    drop(volume);
    let volume = open(&rig, LostReads::Zero);
    let mut zeros = bytes.clone();
    for range in &lost {
        zeros[range.start as usize..range.end as usize].fill(0);
    }
    assert_same(&read_file(&volume, "f").expect("readable"), &zeros, "zeros");
}

#[test]
fn a_page_that_was_wrongly_called_expendable_is_an_error_and_the_others_are_mended() {
    let guest = guest();
    let bytes = guest.bytes.clone();
    let mut runs = tiers_of(&bytes);
    // Anonymous pages, as an older or a lying judgement may have had them.
    runs.push((0x310 * PAGE..0x320 * PAGE, Tier::Expendable));
    let tiers = Arc::new(MadeUp::default());
    *tiers.runs.lock() = runs;
    let rig = saved(&bytes, &tiers);
    let mut errors = 0;
    for pair in [[0, 1], [2, 3], [4, 5]] {
        let volume = lose(&rig, pair, LostReads::Mend);
        let anonymous = |range: &Range<u64>| range.start >= 0x310 * PAGE;
        let lost = lost_ranges(&volume);
        // A block may hold the last page of one kind and the first of the other.
        let (gone, rest): (Vec<Range<u64>>, Vec<Range<u64>>) = lost
            .into_iter()
            .flat_map(|range| {
                let cut = (0x310 * PAGE).clamp(range.start, range.end);
                [range.start..cut, cut..range.end]
            })
            .filter(|range| !range.is_empty())
            .partition(anonymous);
        let (expected, _) = expected(&bytes, &guest, &rest);
        assert_eq!(
            failed_pages(&volume, &expected),
            pages_of(&gone),
            "{pair:?}"
        );
        errors += gone.len();
        drop(volume);
        pair.iter().for_each(|&disk| rig.bring_back(disk));
    }
    assert!(errors > 0);
}

#[test]
fn a_loss_that_is_found_late_is_an_error_until_nobody_reads_any_more() {
    let guest = guest();
    let bytes = guest.bytes.clone();
    let rig = saved_guest(&bytes);
    let volume = rig.open();
    let file = volume.lookup(ROOT, b"f").expect("there").file;
    let first = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    // The bytes of one page of page cache go bad on their disk.
    let page = 0x285 * PAGE;
    let (block, record) = {
        let open = volume.use_file(file).expect("in use");
        let state = open.state.lock();
        let extents = state.map.resolve(page..page + PAGE).expect("resolved");
        let crate::store::Source::Block { block, .. } = extents[0].source else {
            panic!("{extents:?}");
        };
        (
            block,
            state
                .map
                .record(block.window)
                .expect("read")
                .expect("placed"),
        )
    };
    let stored = record.blocks[usize::from(block.index)];
    assert!(!stored.protected);
    let disk = record.disk(stored.column.into()).expect("a disk");
    let object = crate::disk::ObjectName::Blocks(record.set);
    let medium = volume.disks.get(disk).expect("there");
    medium
        .restore(object, stored.offset + 40, &[0xEE; 9])
        .expect("damaged");
    // A block that is in memory is none the worse.
    assert!(volume.cache.get((file, block)).is_none());

    let late = volume.read(first, page, PAGE as usize).expect_err("lost");
    assert_eq!(late.errno(), libc::EIO);
    // Who comes while the first is there shares its view, which does not know of it.
    let second = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    volume.read(second, page, PAGE as usize).expect_err("lost");
    volume.release(first);
    volume.read(second, page, PAGE as usize).expect_err("lost");
    volume.release(second);

    let opened = volume.open_file(file, libc::O_RDONLY).expect("open");
    assert!(
        !opened.keep_cache,
        "the kernel may hold pages without the edits"
    );
    let lost: Vec<Range<u64>> = lost_ranges(&volume);
    assert!(lost.iter().any(|lost| lost.contains(&page)));
    let (expected, edits) = expected(&bytes, &guest, &lost);
    assert!(edits > 0);
    let found = volume
        .read(opened.handle, 0, bytes.len())
        .expect("readable");
    assert_same(&found, &expected, "mended");
    volume.release(opened.handle);
}

#[test]
fn a_disk_that_dies_under_a_reader_is_mended_for_the_next() {
    let guest = guest();
    let bytes = guest.bytes.clone();
    let rig = saved_guest(&bytes);
    let volume = rig.open();
    let file = volume.lookup(ROOT, b"f").expect("there").file;
    let first = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    // Gone under the program, label and all.
    std::fs::remove_dir_all(rig.disk(2)).expect("removed");
    let failed = (0..bytes.len() as u64 / PAGE)
        .filter(
            |page| match volume.read(first, page * PAGE, PAGE as usize) {
                Ok(found) => {
                    let at = (page * PAGE) as usize;
                    assert!(
                        found == bytes[at..at + PAGE as usize],
                        "page {page:#x} is wrong"
                    );
                    false
                }
                Err(_) => true,
            },
        )
        .count();
    assert!(failed > 0);
    volume.release(first);
    let found = read_file(&volume, "f").expect("readable");
    let (expected, edits) = expected(&bytes, &guest, &lost_ranges(&volume));
    assert!(edits > 0);
    assert_same(&found, &expected, "mended");
    assert_eq!(volume.status().expect("told").disks[2].state, "missing");
}

#[test]
fn writing_into_a_mended_file_changes_what_is_written_and_nothing_else() {
    let guest = guest();
    let bytes = guest.bytes.clone();
    let tiers = Arc::new(MadeUp::default());
    *tiers.runs.lock() = tiers_of(&bytes);
    let rig = saved(&bytes, &tiers);
    rig.take_away(0);
    rig.take_away(3);
    let volume = rig.open_with(tiers.clone());
    let file = volume.lookup(ROOT, b"f").expect("there").file;
    let handle = volume.open_file(file, libc::O_RDWR).expect("open").handle;
    let lost = lost_ranges(&volume);
    let (mut mended, _) = expected(&bytes, &guest, &lost);
    let mut pristine = bytes.clone();
    // Over a lost page, over a struct page that is edited, and over a page that is there.
    let lost_page = lost[lost.len() / 2].start / PAGE * PAGE;
    let edited = (0..bytes.len())
        .find(|&at| mended[at] != bytes[at] && (0x20_0000..0x21_0000).contains(&at))
        .expect("an edited struct page") as u64;
    for (at, length) in [(lost_page, 100), (edited, 8), (0x330 * PAGE, 5000)] {
        let new = noise(at, length);
        volume.write(handle, at, &new).expect("written");
        for image in [&mut mended, &mut pristine] {
            image[at as usize..at as usize + length].copy_from_slice(&new);
        }
    }
    let check = |what: &str| {
        let found = volume.read(handle, 0, bytes.len()).expect("readable");
        assert_same(&found, &mended, what);
    };
    check("before the commit");
    volume
        .fsync(handle)
        .expect("the commit copes with what is lost");
    check("after the commit");
    // All at once critical: what is left moves under parity, what is lost stays lost, and nothing is made up for it.
    tiers.runs.lock().clear();
    volume
        .write(handle, 0x331 * PAGE, b"again")
        .expect("written");
    mended[(0x331 * PAGE) as usize..][..5].copy_from_slice(b"again");
    pristine[(0x331 * PAGE) as usize..][..5].copy_from_slice(b"again");
    volume
        .fsync(handle)
        .expect("the commit copes with what is lost");
    let found = volume.read(handle, 0, bytes.len()).expect("readable");
    assert_same(&found, &mended, "after all became critical");
    close(&volume, handle);
    let open = volume.use_file(file).expect("in use");
    volume
        .commit(&open, super::super::commit::Purpose::Compact)
        .expect("compaction copes with what is lost");
    drop(open);
    volume.close().expect("closed");
    drop(volume);
    rig.bring_back(0);
    rig.bring_back(3);
    // With the disks every old byte is back, too.
    let volume = rig.open_with(tiers);
    assert_same(
        &read_file(&volume, "f").expect("readable"),
        &pristine,
        "all back",
    );
}

#[test]
fn one_view_serves_all_who_read_at_a_time() {
    let bytes = guest().bytes;
    let rig = saved_guest(&bytes);
    let volume = lose(&rig, [1, 2], LostReads::Mend);
    let file = volume.lookup(ROOT, b"f").expect("there").file;
    let first = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    let open = volume.use_file(file).expect("in use");
    let view = |open: &super::super::file::OpenFile| {
        let state = open.state.lock();
        state.mended.as_ref().map(|mended| Arc::clone(&mended.view))
    };
    let one = view(&open).expect("a view");
    let Opening::Opened(second) = volume.begin_open(file, libc::O_RDONLY).expect("open") else {
        panic!("a second reader has nothing to wait for");
    };
    volume.release(first);
    assert!(Arc::ptr_eq(&one, &view(&open).expect("a view")));
    volume.release(second.handle);
    assert!(view(&open).is_none(), "nobody reads any more");
    // Whoever only writes needs none.
    let Opening::Waiting(third) = volume.begin_open(file, libc::O_RDONLY).expect("open") else {
        panic!("the first reader has to wait");
    };
    let third = volume.finish_open(third).expect("open");
    assert!(view(&open).is_some());
    volume.release(third.handle);
}

/// A volume that drops what is expendable, with a stream in it that was read once.
fn dropped_stream(bytes: &[u8]) -> (Rig, FileId, Vec<u8>) {
    let rig = Rig::new(6, &format!("{POLICY}\nexpendable = \"drop\""));
    let volume = rig.open();
    let file = write_file(&volume, "f", bytes);
    let mended = read_file(&volume, "f").expect("readable");
    assert!(mended != bytes, "nothing is dropped");
    volume.close().expect("closed");
    (rig, file, mended)
}

#[test]
fn a_stream_without_its_heads_is_judged_again_and_read_as_before() {
    let (rig, file, mended) = dropped_stream(&stream(&guest()));
    let volume = rig.open();
    volume
        .set_xattr(file, b"user.parsfs.policy", b"expendable=drop", 0)
        .expect("set");
    let found = read_file(&volume, "f").expect("readable");
    assert_same(&found, &mended, "judged again");
    volume.close().expect("closed");
    drop(volume);
    let volume = rig.open();
    let found = read_file(&volume, "f").expect("readable");
    assert_same(&found, &mended, "opened again");
    let told = volume.inspect(file).expect("inspected");
    assert_eq!(told.state, "mended");
}

#[test]
fn a_stream_that_cannot_be_parsed_any_more_keeps_what_mends_it() {
    let bytes = stream(&guest());
    let (rig, file, mut mended) = dropped_stream(&bytes);
    let snapshot = index(&bytes).expect("recognised");
    let map = snapshot.map().expect("a page map");
    let mut pieces = map.pieces(0..bytes.len() as u64);
    let first = pieces
        .find(|piece| matches!(piece.kind, PieceKind::Page(_)))
        .expect("a page");
    // The word of the first head, before the name of its block.
    let at = first.range.start - 15;
    let volume = rig.open();
    let handle = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    volume.write(handle, at, &[0xEE; 8]).expect("written");
    close(&volume, handle);
    mended[at as usize..at as usize + 8].fill(0xEE);
    let found = read_file(&volume, "f").expect("readable");
    assert_same(&found, &mended, "written");
    volume.close().expect("closed");
}

#[test]
fn a_stream_that_lost_its_heads_is_written_and_read_as_before() {
    let bytes = stream(&guest());
    let rig = Rig::new(6, POLICY);
    let volume = rig.open();
    let file = write_file(&volume, "f", &bytes);
    volume.close().expect("closed");
    drop(volume);
    rig.take_away(0);
    rig.take_away(3);
    let volume = rig.open();
    let mut mended = read_file(&volume, "f").expect("readable");
    assert!(mended != bytes, "nothing is lost");
    // In the state of devices, which tells nothing of pages.
    let last = bytes.len() as u64 - 1;
    let handle = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    volume.write(handle, last, b"x").expect("written");
    close(&volume, handle);
    mended[last as usize] = b'x';
    let found = read_file(&volume, "f").expect("readable");
    assert_same(&found, &mended, "written");
    volume.close().expect("closed");
    drop(volume);
    let volume = rig.open();
    let found = read_file(&volume, "f").expect("readable");
    assert_same(&found, &mended, "opened again");
}

#[test]
fn nothing_is_given_up_while_somebody_reads_it() {
    let guest = guest();
    let bytes = guest.bytes.clone();
    let rig = Rig::new(6, POLICY);
    let volume = rig.open();
    let file = write_file(&volume, "f", &bytes);
    let open = || volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    let first = open();
    volume
        .set_xattr(file, b"user.parsfs.policy", b"expendable=drop", 0)
        .expect("set");
    let second = open();
    for handle in [first, second] {
        let found = volume.read(handle, 0, bytes.len()).expect("readable");
        assert_same(&found, &bytes, "while it is open");
    }
    volume.release(first);
    assert!(lost_ranges(&volume).is_empty());
    volume.release(second);
    // Nobody reads any more.
    let dropped = lost_ranges(&volume);
    let (mended, edits) = expected(&bytes, &guest, &dropped);
    assert!(edits > 0, "nothing is dropped: {dropped:?}");
    let found = read_file(&volume, "f").expect("readable");
    assert_same(&found, &mended, "given up");
}

#[test]
fn a_program_reads_what_it_wrote_until_it_closes_it() {
    let bytes = guest().bytes;
    let rig = Rig::new(6, &format!("{POLICY}\nexpendable = \"drop\""));
    let volume = rig.open();
    let (_, handle) = create(&volume, "f");
    write_all(&volume, handle, &bytes);
    volume.fsync(handle).expect("committed");
    let found = volume.read(handle, 0, bytes.len()).expect("readable");
    assert_same(&found, &bytes, "while it is open");
    close(&volume, handle);
    assert!(!lost_ranges(&volume).is_empty());
}
