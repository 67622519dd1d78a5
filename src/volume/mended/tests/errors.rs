//! What is not mended: losses for which errors or zeros are wanted, that nobody vouches for, or that are found while somebody reads.

use super::*;

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
    assert!(volume.cache.get((file, record.set, block)).is_none());

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
