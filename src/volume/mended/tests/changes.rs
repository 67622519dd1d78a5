//! Files that are written to although pages of them are lost or were dropped, and what a later commit makes of them.

use super::*;

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
    // From then on what is lost is an error; none of those pages is written as a whole.
    let gone = pages_of(&lost);
    let check = |mended: &[u8], what: &str| {
        for (page, expected) in (0u64..).zip(mended.chunks(PAGE as usize)) {
            match volume.read(handle, page * PAGE, PAGE as usize) {
                Ok(found) => assert_same(&found, expected, &format!("{what}, page {page:#x}")),
                Err(error) => assert_eq!(error.errno(), libc::EIO, "{what}, page {page:#x}"),
            }
            let failed = volume.read(handle, page * PAGE, PAGE as usize).is_err();
            assert_eq!(failed, gone.contains(&page), "{what}, page {page:#x}");
        }
    };
    check(&mended, "before the commit");
    volume
        .fsync(handle)
        .expect("the commit copes with what is lost");
    check(&mended, "after the commit");
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
    check(&mended, "after all became critical");
    close(&volume, handle);
    let open = volume.use_file(file).expect("in use");
    volume
        .commit(&open, commit::Purpose::Compact)
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
