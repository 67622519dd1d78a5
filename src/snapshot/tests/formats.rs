//! One file of each format, by hand.

use super::examine::{assert_same, examine};
use super::writers::{self, Head, PAGE, StreamWriter, page_of};
use crate::snapshot::{
    Format, Gpa, Indexer, NotePlace, Opaque, Piece, PieceKind, Place, Snapshot, index,
};

fn kinds(snapshot: &Snapshot) -> Vec<Piece> {
    snapshot.map().unwrap().pieces(0..u64::MAX).collect()
}

fn piece(from: usize, to: usize, kind: PieceKind) -> Piece {
    Piece {
        range: from as u64..to as u64,
        kind,
    }
}

#[test]
fn every_seed_is_what_it_says() {
    let formats: Vec<(&str, Format, bool)> = vec![
        ("stream", Format::QemuStream, true),
        ("old stream", Format::QemuStream, true),
        ("postcopy", Format::QemuStream, true),
        ("ignore-shared", Format::QemuStream, true),
        ("libvirt stream", Format::LibvirtStream, true),
        ("libvirt gzip", Format::Libvirt, false),
        ("libvirt unfinished", Format::LibvirtStream, false),
        ("mapped-ram", Format::QemuMappedRam, true),
        ("libvirt mapped-ram", Format::LibvirtMappedRam, true),
        ("ELF 64", Format::ElfCore, true),
        ("ELF 32", Format::ElfCore, true),
        ("LiME", Format::Lime, true),
        ("AVML", Format::Avml, false),
        ("kdump", Format::Kdump, false),
        ("raw", Format::Raw, true),
    ];
    for ((name, bytes), (wanted_name, format, mapped)) in writers::seeds().iter().zip(formats) {
        assert_eq!(*name, wanted_name);
        let snapshot = examine(bytes, 1000);
        assert_eq!(
            (snapshot.format, snapshot.map().is_some()),
            (format, mapped),
            "{name}: {snapshot:?}"
        );
        for part in [1, 7, 4096] {
            examine(bytes, part);
        }
        for length in (0..bytes.len()).step_by(bytes.len() / 50) {
            examine(&bytes[..length], 4096);
        }
    }
}

#[test]
fn a_page_that_is_sent_again_is_dead_and_its_head_is_not() {
    let head = Head {
        machine: "pc-q35-10.0",
        ..Head::default()
    };
    let mut writer = StreamWriter::new(&[], head, &[("pc.ram", 4), ("vga.vram", 1)]);
    writer.next_section(true);
    let a = writer.page(0, 0, &page_of(0, 1));
    let b = writer.page(0, 1, &page_of(1, 1));
    writer.zero(0, 2);
    writer.page(1, 0, &page_of(0, 1));
    let c = writer.page(0, 1, &page_of(1, 3));
    let bytes = writer.finish();
    let snapshot = index(&bytes).unwrap();
    assert_eq!(
        kinds(&snapshot),
        [
            piece(0, a, PieceKind::Framing),
            piece(a, a + PAGE, PieceKind::Page(Gpa(0))),
            piece(a + PAGE, b, PieceKind::Framing),
            piece(b, b + PAGE, PieceKind::Dead),
            piece(b + PAGE, c, PieceKind::Framing),
            piece(c, c + PAGE, PieceKind::Page(Gpa(0x1000))),
            piece(c + PAGE, bytes.len(), PieceKind::Framing),
        ]
    );
    let map = snapshot.map().unwrap();
    assert_eq!(map.lookup(Gpa(0x2fff)), Place::Zero);
    assert_eq!(map.lookup(Gpa(0x3000)), Place::Absent);
    assert_eq!(
        map.lookup(Gpa(0x4000)),
        Place::Absent,
        "a device's memory is not the guest's"
    );
    let note = NotePlace::Guest {
        gpa: Gpa(0x5000),
        size: 0x400,
    };
    assert_eq!(snapshot.hints.vmcoreinfo, Some(note));
}

#[test]
fn a_delta_without_a_page_and_a_device_before_the_memory_are_refused() {
    let mut writer = StreamWriter::new(&[], Head::default(), &[("pc.ram", 4)]);
    writer.next_section(true);
    writer.page(0, 0, &page_of(0, 1));
    writer.delta(0, 1, 0, b"x");
    let snapshot = index(&writer.finish()).unwrap();
    assert!(
        matches!(snapshot.opaque_reason(), Some(Opaque::Malformed { .. })),
        "{snapshot:?}"
    );

    let mut writer = StreamWriter::new(&[], Head::default(), &[("pc.ram", 4)]);
    let early = b"\x04\0\0\0\x05\x10virtio-mem-early";
    writer.bytes.extend(early);
    writer.bytes.extend([0; 64]);
    let reason = index(&writer.bytes).unwrap().opaque_reason().cloned();
    let named = "unsupported: QEMU section virtio-mem-early before the end of the guest's memory";
    assert_eq!(
        reason.map(|reason| reason.to_string()).as_deref(),
        Some(named)
    );
}

#[test]
fn commands_that_change_what_the_stream_means_are_refused() {
    let with = |command: u16, data: &[u8]| {
        let mut writer = StreamWriter::new(&[], Head::default(), &[("pc.ram", 4)]);
        let between = writer.bytes.len();
        writer.next_section(true);
        writer.page(0, 0, &page_of(0, 1));
        let mut bytes = writer.finish();
        let length = (data.len() as u16).to_be_bytes();
        let sent = [&[8], &command.to_be_bytes()[..], &length, data].concat();
        bytes.splice(between..between, sent);
        index(&bytes).unwrap()
    };
    // A return path, a ping, that postcopy may follow, and that the memory is complete but for what changed.
    for (command, data) in [(1, &[][..]), (2, &[0; 4]), (3, &[0; 16]), (11, &[])] {
        let snapshot = with(command, data);
        assert!(snapshot.map().is_some(), "{command}: {snapshot:?}");
    }
    for command in 4..=10 {
        let reason = with(command, &[0; 4]).opaque_reason().cloned();
        let named = match command {
            8 => "unsupported: a COLO stream",
            _ => "unsupported: a postcopy stream",
        };
        assert_eq!(
            reason.map(|reason| reason.to_string()).as_deref(),
            Some(named),
            "{command}"
        );
    }
}

#[test]
fn a_map_that_grows_beyond_its_bound_is_given_up() {
    let mut writer = StreamWriter::new(&[], Head::default(), &[("pc.ram", 1 << 20)]);
    writer.next_section(true);
    for index in 0..400_000_u64 {
        writer.zero(0, index * 7919 % (1 << 20));
    }
    let bytes = writer.finish();
    let limit = 256 << 10;
    let snapshot = crate::snapshot::index_within(&bytes, limit).unwrap();
    assert_eq!(
        snapshot.opaque_reason(),
        Some(&Opaque::MapTooLarge { limit })
    );
    assert!(index(&bytes).unwrap().map().is_some());
}

#[test]
fn mapped_ram_follows_its_writer_and_its_bitmap() {
    let pages: Vec<Option<Vec<u8>>> = (0..200)
        .map(|page| (page % 5 != 1).then(|| page_of(page, 1)))
        .collect();
    for prefix in [vec![], writers::libvirt_head(6, true)] {
        let blocks = [("pc.ram", pages.clone())];
        let (bytes, writes) = writers::mapped_ram(&prefix, &blocks, Some(9));
        let snapshot = examine(&bytes, 1 << 20);
        let mut indexer = Indexer::new();
        for (offset, part) in &writes {
            indexer.feed(*offset as u64, part);
        }
        assert_same(&indexer.finish(&bytes).unwrap(), &snapshot);
        let map = snapshot.map().unwrap();
        for (page, content) in (0..).zip(&pages) {
            let mut buffer = vec![0; PAGE];
            map.read(&bytes, Gpa(page * PAGE as u64), &mut buffer)
                .unwrap();
            assert!(
                &buffer == content.as_ref().unwrap_or(&vec![0; PAGE]),
                "{page}"
            );
        }
        assert_eq!(map.counts().zero, 40);
        let dead = kinds(&snapshot)
            .into_iter()
            .filter(|piece| piece.kind == PieceKind::Dead);
        assert_eq!(dead.count(), 40);
    }
}

#[test]
fn libvirts_header_is_rewritten_at_the_end() {
    let head = Head {
        machine: "pc-q35-10.0",
        ..Head::default()
    };
    let write = |finished| {
        let prefix = writers::libvirt_head(0, finished);
        let mut writer = StreamWriter::new(&prefix, head, &[("pc.ram", 4)]);
        writer.next_section(true);
        writer.page(0, 3, &page_of(3, 1));
        writer.finish()
    };
    let (partial, whole) = (write(false), write(true));
    let mut indexer = Indexer::new();
    indexer.feed(0, &partial);
    let early = indexer.finish(&partial).unwrap();
    assert!(matches!(early.opaque_reason(), Some(Opaque::Unfinished(_))));
    indexer.feed(0, &whole[..92]);
    let late = indexer.finish(&whole).unwrap();
    assert!(late.map().is_some());
    assert_same(&late, &index(&whole).unwrap());

    // A header that moves the payload is another file.
    let mut moved = whole.clone();
    moved[20] += 1;
    indexer.feed(0, &moved[..92]);
    assert_same(&indexer.finish(&moved).unwrap(), &index(&moved).unwrap());
}

#[test]
fn what_is_overwritten_later_counts() {
    let mut writer = StreamWriter::new(&[], Head::default(), &[("pc.ram", 16)]);
    writer.next_section(true);
    for page in 0..16 {
        writer.page(0, page, &page_of(page, 1));
    }
    let at = writer.bytes.len() - PAGE;
    let mut bytes = writer.finish();
    let mut indexer = Indexer::new();
    indexer.feed(0, &bytes);
    // The content of a page: nothing changes.
    bytes[at + 9..at + 50].fill(1);
    indexer.feed(at as u64 + 9, &bytes[at + 9..at + 50]);
    assert_same(&indexer.finish(&bytes).unwrap(), &index(&bytes).unwrap());
    // A head: page 15 becomes page 3 again.
    bytes[at - 8..at].copy_from_slice(&0x3028_u64.to_be_bytes());
    indexer.feed(at as u64 - 8, &bytes[at - 8..at]);
    let snapshot = indexer.finish(&bytes).unwrap();
    assert_same(&snapshot, &index(&bytes).unwrap());
    assert_eq!(snapshot.map().unwrap().lookup(Gpa(0xf000)), Place::Absent);
    // A cut, and a new beginning.
    indexer.truncate(100);
    let cut = bytes[..100].to_vec();
    assert!(indexer.finish(&cut).unwrap().map().is_none());
    indexer.truncate(0);
    indexer.feed(0, &bytes);
    assert_same(&indexer.finish(&bytes).unwrap(), &snapshot);
}

#[test]
fn a_core_names_its_ranges_at_any_alignment() {
    let ranges = [(0x1000, page_of(1, 1)), (0x10_0800, vec![7; 3 * PAGE])];
    let bytes = writers::elf64(&ranges, "OSRELEASE=6.12\n");
    let snapshot = index(&bytes).unwrap();
    let map = snapshot.map().unwrap();
    let Some(NotePlace::File { offset, length }) = snapshot.hints.vmcoreinfo else {
        panic!()
    };
    assert_eq!(
        &bytes[offset as usize..][..length as usize],
        b"OSRELEASE=6.12\n"
    );
    let Place::Stored(first) = map.lookup(Gpa(0x1000)) else {
        panic!()
    };
    assert_eq!(&bytes[first as usize..][..PAGE], &page_of(1, 1));
    assert_ne!(first % PAGE as u64, 0, "notes are before it");
    // The second range begins and ends in the middle of a page: two whole ones are left.
    assert_eq!(map.lookup(Gpa(0x10_0000)), Place::Absent);
    assert_eq!(
        map.lookup(Gpa(0x10_1000)),
        Place::Stored(first + PAGE as u64 + 0x800)
    );
    assert_eq!(map.lookup(Gpa(0x10_3000)), Place::Absent);
    let overlap = writers::elf64(&[(0x1000, page_of(1, 1)), (0x1000, page_of(1, 2))], "");
    assert!(index(&overlap).unwrap().map().is_none());
    let lime = index(&writers::lime(b"EMiL", 1, &ranges)).unwrap();
    assert_eq!(lime.map().unwrap().lookup(Gpa(0x1abc)), Place::Stored(32));
}

#[test]
fn what_is_opaque_says_why() {
    let with = |magic: &[u8]| {
        let mut bytes = magic.to_vec();
        bytes.resize(1 << 20, 0);
        let snapshot = index(&bytes).unwrap();
        (
            snapshot.format,
            snapshot.opaque_reason().unwrap().to_string(),
        )
    };
    for (magic, format, word) in [
        (&b"\x1f\x8b"[..], Format::Compressed, "gzip"),
        (b"\x28\xb5\x2f\xfd", Format::Compressed, "zstd"),
        (b"LUKS\xba\xbe", Format::Encrypted, "LUKS"),
        (b"\x7fVirtualBox SavedState V2.0", Format::VirtualBox, "LZF"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xffXENF", Format::Xen, "Xen"),
        (b"LibxlFmt", Format::Xen, "libxl"),
        (b"\xd2\xbe\xd2\xbe", Format::Vmware, "VMware"),
        (b"makedumpfile\0", Format::Kdump, "flattened"),
        (b"QFI\xfb", Format::DiskImage, "qcow2"),
        (&writers::kdump(2), Format::Kdump, "LZO"),
        (&writers::kdump(0x20), Format::Kdump, "zstd"),
        (
            &writers::lime(b"AVML", 2, &[(0, vec![0; 8])]),
            Format::Avml,
            "Snappy",
        ),
    ] {
        let (found, reason) = with(magic);
        assert_eq!(found, format);
        assert!(reason.contains(word), "{reason}");
    }
    assert_eq!(
        index(&vec![0; 4097]).unwrap().opaque_reason(),
        Some(&Opaque::Unknown)
    );
    assert_eq!(
        index(&Vec::new()).unwrap().opaque_reason(),
        Some(&Opaque::Unknown)
    );
}

#[test]
fn a_long_run_and_a_short_one_in_the_same_group_come_in_order() {
    let mut writer = StreamWriter::new(&[], Head::default(), &[("pc.ram", 1000)]);
    writer.next_section(true);
    for page in 1..516 {
        writer.page(0, page, &page_of(page, 1));
    }
    for page in 516..771 {
        writer.zero(0, page);
    }
    let snapshot = examine(&writer.finish(), 1 << 20);
    let runs = snapshot.map().unwrap().addresses(Gpa(0x2345)..Gpa(1 << 40));
    let runs: Vec<(u64, u64)> = runs.map(|run| (run.gpa.0 >> 12, run.pages)).collect();
    assert_eq!(runs, [(3, 513), (516, 255)]);
}
