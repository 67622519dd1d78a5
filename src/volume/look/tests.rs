//! What a look may cost: it is told by the file and not by what the file claims.

use super::*;
use crate::guest::synthetic::{Synthetic, VMCOREINFO};
use crate::snapshot::index;
use crate::snapshot::tests::counting::Counting;
use crate::snapshot::tests::writers::{Head, PAGE, StreamWriter};

const HEAD: Head<'_> = Head {
    machine: "pc-q35-10.0",
    capabilities: &[],
    page_size: None,
};

/// The guest as a live save. The page with vmcoreinfo is a page of other bytes, and a delta that gives it its head.
fn live(guest: &Synthetic, head: &[u8]) -> Vec<u8> {
    let mut writer = StreamWriter::new(&[], HEAD, &[("pc.ram", guest.pages())]);
    writer.next_section(true);
    for (number, page) in (0..).zip(guest.bytes.chunks(PAGE)) {
        let mut page = page.to_vec();
        if number == VMCOREINFO >> 12 {
            page[..10].fill(0);
        }
        writer.page(0, number, &page);
    }
    writer.delta(0, VMCOREINFO >> 12, 0, head);
    let mut bytes = writer.finish();
    // No device tells where it is.
    let name = b"\x0avmcoreinfo";
    let device = bytes.windows(name.len()).rposition(|at| at == name);
    bytes[device.expect("the device")..][1..5].fill(b'x');
    bytes
}

fn known() -> Known<'static> {
    Known {
        places: &[],
        holes: &|_| Ok(()),
    }
}

#[test]
fn vmcoreinfo_in_a_page_with_deltas_is_found() {
    let bytes = live(&Synthetic::new(), b"OSRELEASE=");
    let look = Look::knowing(index(&bytes).unwrap(), &bytes, &known()).unwrap();
    let found = look.guest().expect("a guest");
    assert_eq!(found.release, "6.12.0-synthetic");
    let look = Look::into(index(&bytes).unwrap(), &bytes, &|_| ()).unwrap();
    assert!(look.guest().is_ok());
}

#[test]
fn a_page_with_deltas_does_not_have_all_memory_searched_in_every_layout() {
    let guest = Synthetic::new();
    let bytes = live(&guest, b"RELEASE=OS");
    let snapshot = index(&bytes).unwrap();
    let source = Counting::new(&bytes);
    let look = Look::knowing(snapshot, &source, &known()).unwrap();
    let none = Err(&NoGuest::NotFound(GuestError::NoVmcoreinfo));
    assert_eq!(look.guest().map(|_| ()), none);
    let reads = source.reads();
    assert!(reads < 100, "{reads} reads of a guest of {}", guest.pages());
}

#[test]
fn memory_that_can_be_nowhere_in_the_file_gets_no_classes() {
    let claim = |bytes: u64| {
        let mut writer = StreamWriter::new(&[], HEAD, &[("pc.ram", bytes >> 12)]);
        writer.next_section(true);
        writer.zero(0, 0);
        let bytes = writer.finish();
        let look = Look::knowing(index(&bytes).unwrap(), &bytes, &known()).unwrap();
        let classes = look.classes().map(Classes::len);
        (look.guest().err().cloned(), classes, bytes.len() as u64)
    };
    let much = 64 << 30;
    let (reason, classes, length) = claim(much);
    let wanted = NoGuest::NotInFile {
        bytes: much,
        length,
    };
    assert_eq!((reason, classes), (Some(wanted), None));
    let (reason, classes, _) = claim(MEMORY_ANYWAY);
    let wanted = NoGuest::NotFound(GuestError::NoVmcoreinfo);
    assert_eq!(
        (reason, classes),
        (Some(wanted), Some((MEMORY_ANYWAY >> 12) as usize))
    );
}
