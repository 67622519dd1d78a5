//! What is known of lost pages is older than what was written since: then it says nothing of them, and they are errors.

use super::*;
use crate::guest::synthetic::{BASE, VMCOREINFO, flag};
use crate::snapshot::tests::writers::libvirt_head;
use crate::store::Code;

/// A volume of which disks are gone and so pages of a guest, which can be written.
fn with_losses(bytes: &Vec<u8>) -> (Rig, Arc<Volume>, FileId) {
    let tiers = Arc::new(MadeUp::default());
    *tiers.runs.lock() = tiers_of(bytes);
    let rig = saved(bytes, &tiers);
    rig.take_away(0);
    rig.take_away(3);
    let volume = rig.open_with(tiers);
    let file = volume.lookup(ROOT, b"f").expect("there").file;
    (rig, volume, file)
}

/// A frame of page cache that is lost as a whole.
fn lost_cache(lost: &[Range<u64>]) -> u64 {
    let is_lost = |pfn: &u64| {
        let page = pfn * PAGE..(pfn + 1) * PAGE;
        lost.iter()
            .any(|lost| lost.start <= page.start && page.end <= lost.end)
    };
    (0x280..0x2A0).find(is_lost).expect("a lost page of cache")
}

fn read_open(volume: &Volume, file: FileId) -> Handle {
    let opened = volume.open_file(file, libc::O_RDONLY);
    opened.expect("open").handle
}

/// Whether a guest that reads now takes the page for up to date.
fn is_uptodate(volume: &Volume, handle: Handle, pfn: u64) -> bool {
    let word = volume.read(handle, Synthetic::page(pfn), 8).expect("there");
    u64::from_le_bytes(word.try_into().expect("a word")) & flag::UPTODATE != 0
}

/// What one write of a diff brings: the page in which the frame's struct page lies.
fn write_struct_page(volume: &Volume, handle: Handle, guest: &Synthetic, pfn: u64) {
    let at = Synthetic::page(pfn) / PAGE * PAGE;
    let page = &guest.bytes[at as usize..][..PAGE as usize];
    volume.write(handle, at, page).expect("written");
}

fn assert_never_made_up(volume: &Volume, handle: Handle, pfn: u64) {
    assert!(is_uptodate(volume, handle, pfn), "as it was written");
    let error = volume.read(handle, pfn * PAGE, PAGE as usize);
    let error = error.expect_err("a lost page that the guest takes for up to date");
    assert_eq!(error.errno(), libc::EIO);
    volume
        .read(handle, 0x330 * PAGE, PAGE as usize)
        .expect("what is there is read");
}

#[test]
fn what_is_written_under_a_view_makes_lost_pages_errors_until_the_next_view() {
    let guest = guest();
    let (_rig, volume, file) = with_losses(&guest.bytes);
    let pfn = lost_cache(&lost_ranges(&volume));
    let first = read_open(&volume, file);
    assert!(!is_uptodate(&volume, first, pfn));
    let zeros = volume.read(first, pfn * PAGE, PAGE as usize);
    assert!(zeros.expect("mended").iter().all(|&byte| byte == 0));

    let writer = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    // A lost page's own bytes take nothing away from the others.
    volume
        .write(writer, pfn * PAGE, &noise(1, 100))
        .expect("written");
    volume
        .read(first, 0, guest.bytes.len())
        .expect("all of it is mended");
    write_struct_page(&volume, writer, &guest, pfn);
    let before = read_open(&volume, file);
    assert_never_made_up(&volume, before, pfn);
    close(&volume, writer);
    let after = read_open(&volume, file);
    for handle in [first, before, after] {
        assert_never_made_up(&volume, handle, pfn);
    }
    let told = volume.inspect(file).expect("inspected");
    assert_eq!(told.state, "damaged");
    for handle in [first, before, after] {
        volume.release(handle);
    }

    let next = read_open(&volume, file);
    assert!(!is_uptodate(&volume, next, pfn));
    volume
        .read(next, 0, guest.bytes.len())
        .expect("mended as the file is now");
    volume.release(next);
}

#[test]
fn a_view_that_is_made_while_something_is_written_makes_nothing_up() {
    let guest = guest();
    let (_rig, volume, file) = with_losses(&guest.bytes);
    let pfn = lost_cache(&lost_ranges(&volume));
    let writer = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    write_struct_page(&volume, writer, &guest, pfn);
    let reader = read_open(&volume, file);
    assert_never_made_up(&volume, reader, pfn);
    volume.release(reader);
    close(&volume, writer);
    let reader = read_open(&volume, file);
    assert!(!is_uptodate(&volume, reader, pfn));
    volume.read(reader, 0, guest.bytes.len()).expect("mended");
    volume.release(reader);
}

#[test]
fn a_header_of_libvirt_that_is_written_anew_says_nothing_of_pages() {
    let guest = guest();
    let mut bytes = libvirt_head(0, true);
    bytes.extend(stream(&guest));
    let (_rig, volume, file) = with_losses(&bytes);
    let first = read_open(&volume, file);
    let (mut mended, edits) = expected(&bytes, &guest, &lost_ranges(&volume));
    assert!(edits > 0);
    let writer = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    let text = b"<domain id='2'/>";
    volume.write(writer, 92, text).expect("written");
    mended[92..92 + text.len()].copy_from_slice(text);
    let second = read_open(&volume, file);
    close(&volume, writer);
    for handle in [first, second] {
        let found = volume.read(handle, 0, bytes.len()).expect("readable");
        assert_same(&found, &mended, "mended");
        volume.release(handle);
    }
}

#[test]
fn what_was_written_after_the_last_guest_was_seen_has_no_class_of_its_time() {
    let guest = guest();
    let mut rig = Rig::new(
        6,
        "critical = \"4+1\"\nblock_size = \"8K\"\nexpendable = \"drop\"",
    );
    let volume = rig.open();
    let file = write_file(&volume, "f", &guest.bytes);
    assert!(!lost_ranges(&volume).is_empty(), "nothing is dropped");
    // A free page of then. What it is now nobody says: what tells of a second kernel makes both doubtful.
    let (page, new) = (0x250 * PAGE, noise(9, PAGE as usize));
    let text = &guest.bytes[VMCOREINFO as usize..][..PAGE as usize];
    let other = String::from_utf8_lossy(text).replace(
        &format!("SYMBOL(mem_section)={:x}", BASE + 0x2_1000),
        &format!("SYMBOL(mem_section)={:x}", BASE + 0x2_1008),
    );
    assert_ne!(other.as_bytes(), text);
    let writer = volume.open_file(file, libc::O_WRONLY).expect("open").handle;
    volume.write(writer, page, &new).expect("written");
    volume
        .write(writer, VMCOREINFO + PAGE, other.as_bytes())
        .expect("written");
    close(&volume, writer);
    let found = volume.inspect(file).expect("inspected");
    assert_eq!(found.state, "mended", "what was seen before is kept");
    volume.close().expect("closed");
    drop(volume);

    // By now critical bytes are to have more parity than these were given.
    rig.config.policy.critical = Code { k: 4, m: 2 };
    let mut errors = 0;
    for pair in pairs() {
        let volume = lose(&rig, pair, LostReads::Mend);
        let handle = read_open(&volume, file);
        match volume.read(handle, page, PAGE as usize) {
            Ok(found) => assert_same(&found, &new, &format!("{pair:?}")),
            Err(error) => {
                assert_eq!(error.errno(), libc::EIO);
                errors += 1;
            }
        }
        volume.release(handle);
        drop(volume);
        pair.iter().for_each(|&disk| rig.bring_back(disk));
    }
    assert!(errors > 0, "it was never lost");
}
