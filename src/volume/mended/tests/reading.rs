//! The view of a guest of which disks went away, and who shares it.

use super::*;

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
    let mut poisoned = 0;
    for pair in pairs() {
        let volume = lose(&rig, pair, LostReads::Mend);
        let lost = lost_ranges(&volume);
        let (expected, _) = expected(&bytes, &guest, &lost);
        let is_free = |lost: &&Range<u64>| (0x240 * PAGE..0x280 * PAGE).contains(&lost.start);
        poisoned += lost.iter().filter(is_free).count();
        assert_same(
            &read_file(&volume, "f").expect("readable"),
            &expected,
            &format!("{pair:?}"),
        );
        drop(volume);
        pair.iter().for_each(|&disk| rig.bring_back(disk));
    }
    assert!(poisoned > 0, "no free page was ever lost");
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
fn one_view_serves_all_who_read_at_a_time() {
    let bytes = guest().bytes;
    let rig = saved_guest(&bytes);
    let volume = lose(&rig, [1, 2], LostReads::Mend);
    let file = volume.lookup(ROOT, b"f").expect("there").file;
    let first = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
    let open = volume.use_file(file).expect("in use");
    let view = |open: &file::OpenFile| {
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
