//! The page maps of files that a real QEMU has written, page by page against the memory that it wrote.
//!
//! QEMU comes from the distribution (`integration/guests/packages.sh`) or from `PARSFS_QEMU`. No guest OS is needed:
//! the memory is a pattern in a file, and where it has to change, a boot sector does it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::qemu::Machine;
use parsfs::snapshot::{
    ByteSource, Content, Format, Gpa, Indexer, Layout, NotePlace, Opaque, PageMap, PieceKind,
    Place, Snapshot, index, is_zero,
};
use serde_json::json;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// A file of RAM in which every third stretch of pages is zero and every other page tells its own number.
fn patterned(directory: &Path, size: u64) -> PathBuf {
    let path = directory.join("ram");
    let mut file = File::create(&path).unwrap();
    file.set_len(size).unwrap();
    // The first MiB is left to the firmware, and large guests are patterned at a few places only.
    let step = if size > 512 * MIB {
        (size / 512).next_multiple_of(MIB)
    } else {
        MIB
    };
    for start in (MIB..size).step_by(step as usize) {
        let mut bytes = Vec::with_capacity(MIB as usize);
        for page in start / PAGE..(start + MIB) / PAGE {
            let fill = (page * 0x9e37_79b9) as u32 | 1;
            let zero = (page / 7) % 3 == 0 || page % 31 == 0;
            let words = (0..PAGE / 4).map(|_| if zero { 0 } else { fill });
            bytes.extend(words.flat_map(u32::to_le_bytes));
        }
        file.write_all_at(&bytes, start).unwrap();
    }
    file.flush().unwrap();
    path
}

fn map_of(snapshot: &Snapshot) -> &PageMap {
    snapshot
        .map()
        .unwrap_or_else(|| panic!("{:?}", snapshot.opaque_reason()))
}

/// Every page reads as the memory is, and every piece that is called a page holds what the guest has there.
fn assert_is(map: &PageMap, file: &[u8], memory: &[u8]) {
    let layout = map.layout().clone();
    assert_eq!(
        map.ram().map(|(_, length)| length).sum::<u64>(),
        memory.len() as u64
    );
    // The test's memory file is RAM in the order of addresses.
    let mut before = 0;
    let mut buffer = vec![0; PAGE as usize];
    let mut stored = 0;
    for range in layout.ranges() {
        for at in (0..range.length).step_by(PAGE as usize) {
            let gpa = Gpa(range.gpa.0 + at);
            let truth = &memory[(before + at) as usize..][..PAGE as usize];
            let content = map.read(&file, gpa, &mut buffer).unwrap();
            assert!(buffer == truth, "{gpa}: {content:?}, {:?}", map.lookup(gpa));
            assert_ne!(content, Content::Absent, "{gpa}");
            stored += u64::from(matches!(map.lookup(gpa), Place::Stored(_)));
        }
        before += range.length;
    }
    let whole = Gpa(0)..Gpa(1 << 52);
    let mut by_address = 0;
    for run in map.addresses(whole) {
        for page in 0..run.pages {
            let place = map.lookup(Gpa(run.gpa.0 + page * PAGE));
            let wanted = match run.place {
                Place::Stored(first) => Place::Stored(first + page * run.stride),
                other => other,
            };
            assert_eq!(place, wanted, "page {page} of {run:?}");
        }
        by_address += if matches!(run.place, Place::Stored(_)) {
            run.pages
        } else {
            0
        };
    }
    assert_eq!(by_address, stored);

    let mut at = 0;
    let mut in_pieces = 0;
    for piece in map.pieces(0..file.len() as u64) {
        assert_eq!(piece.range.start, at);
        at = piece.range.end;
        if let PieceKind::Page(gpa) = piece.kind {
            let length = piece.range.end - piece.range.start;
            let ram = memory_offset(&layout, gpa);
            let truth = &memory[ram as usize..][..length as usize];
            assert!(
                &file[piece.range.start as usize..piece.range.end as usize] == truth,
                "{piece:?}"
            );
            in_pieces += length / PAGE;
        }
    }
    assert_eq!(at, file.len() as u64);
    assert_eq!(in_pieces, stored);
}

fn memory_offset(layout: &Layout, gpa: Gpa) -> u64 {
    let mut before = 0;
    for range in layout.ranges() {
        if gpa >= range.gpa && gpa.0 - range.gpa.0 < range.length {
            return before + (gpa.0 - range.gpa.0);
        }
        before += range.length;
    }
    panic!("{gpa} is not in {layout:?}");
}

/// Two answers are one: the same pieces and the same pages.
fn assert_same(a: &Snapshot, b: &Snapshot) {
    assert_eq!(a.format, b.format);
    assert_eq!(a.opaque_reason(), b.opaque_reason());
    assert_eq!(a.hints, b.hints);
    if let (Some(a), Some(b)) = (a.map(), b.map()) {
        assert!(a.pieces(0..u64::MAX).eq(b.pieces(0..u64::MAX)));
        let whole = || Gpa(0)..Gpa(1 << 52);
        assert!(a.addresses(whole()).eq(b.addresses(whole())));
        assert_eq!(a.layouts(), b.layouts());
    }
}

/// Following the file as it is written gives what looking through it gives.
fn assert_followed(file: &[u8], wanted: &Snapshot) {
    for size in [4093, 32 << 10, 1 << 20] {
        let mut indexer = Indexer::new();
        for (part, at) in file.chunks(size).zip((0..).step_by(size)) {
            indexer.feed(at, part);
        }
        assert_same(&indexer.finish(&file).unwrap(), wanted);
    }
    let mut backwards = Indexer::new();
    let parts: Vec<_> = file.chunks(1 << 20).zip((0..).step_by(1 << 20)).collect();
    for (part, at) in parts.into_iter().rev() {
        backwards.feed(at, part);
    }
    assert_same(&backwards.finish(&file).unwrap(), wanted);
}

fn indexed(path: &Path) -> (Vec<u8>, Snapshot) {
    let file = File::open(path).unwrap();
    let snapshot = index(&file).unwrap();
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, file.length().unwrap());
    if let Some(map) = snapshot.map() {
        let pages = map.ram().map(|(_, length)| length / PAGE).sum::<u64>();
        let counts = map.counts();
        println!(
            "{}: {:?}, {} pages, {:?}, {:.3} bytes a page",
            snapshot.format,
            map.layout().name(),
            pages,
            counts,
            map.memory() as f64 / pages as f64
        );
    }
    (bytes, snapshot)
}

#[test]
fn a_paused_save_of_each_machine() {
    for machine in ["q35", "pc", "microvm"] {
        let directory = tempfile::tempdir().unwrap();
        let memory = patterned(directory.path(), 64 * MIB);
        let saved = directory.path().join("saved");
        let mut vm = Machine::start(machine, &memory, &[]);
        vm.save(&format!("file:{}", saved.display()));
        let (bytes, snapshot) = indexed(&saved);
        assert_eq!(snapshot.format, Format::QemuStream);
        assert_is(map_of(&snapshot), &bytes, &vm.memory());
        assert_followed(&bytes, &snapshot);
        let machine_name = snapshot.hints.machine.clone().unwrap();
        assert!(machine_name.contains(machine), "{machine_name}");
        assert_eq!(map_of(&snapshot).counts().dead, 0);
    }
}

#[test]
fn a_paused_save_through_a_pipe_and_within_libvirts_image() {
    let directory = tempfile::tempdir().unwrap();
    let memory = patterned(directory.path(), 64 * MIB);
    let saved = directory.path().join("saved");
    let mut vm = Machine::start("q35", &memory, &["-device", "vmcoreinfo", "-device", "VGA"]);
    vm.begin_save_by_pipe(&saved);
    vm.wait_saved_by_pipe(&saved);
    let (bytes, snapshot) = indexed(&saved);
    assert_is(map_of(&snapshot), &bytes, &vm.memory());
    // No guest has told the device where its note is.
    assert_eq!(snapshot.hints.vmcoreinfo, None);

    let image = with_libvirt_header(&bytes, 0, true);
    let snapshot = index(&image).unwrap();
    assert_eq!(snapshot.format, Format::LibvirtStream);
    assert_is(map_of(&snapshot), &image, &vm.memory());

    // libvirt's own order: the unfinished header, the stream, and the finished header at last.
    let mut indexer = Indexer::new();
    let unfinished = with_libvirt_header(&bytes, 0, false);
    for (part, at) in unfinished.chunks(1 << 20).zip((0..).step_by(1 << 20)) {
        indexer.feed(at, part);
    }
    let early = indexer.finish(&unfinished).unwrap();
    assert!(
        matches!(early.opaque_reason(), Some(Opaque::Unfinished(_))),
        "{early:?}"
    );
    indexer.feed(0, &image[..92]);
    assert_same(&indexer.finish(&image).unwrap(), &snapshot);

    for (format, name) in [
        (1, "gzip"),
        (2, "bzip2"),
        (3, "xz"),
        (4, "lzop"),
        (5, "zstd"),
    ] {
        let image = with_libvirt_header(&bytes, format, true);
        let snapshot = index(&image).unwrap();
        assert_eq!(snapshot.opaque_reason(), Some(&Opaque::Compressed(name)));
    }
}

/// The header, XML and padding of libvirt's `src/qemu/qemu_saveimage.c` around a stream.
fn with_libvirt_header(stream: &[u8], format: u32, finished: bool) -> Vec<u8> {
    let mut image = libvirt_head(format, finished);
    image.extend_from_slice(stream);
    image
}

fn libvirt_head(format: u32, finished: bool) -> Vec<u8> {
    let mut image = if finished {
        *b"LibvirtQemudSave"
    } else {
        *b"LibvirtQemudPart"
    }
    .to_vec();
    let mut data = b"<domain type='kvm'/>\0".to_vec();
    data.resize(70_001, 0);
    for word in [2, data.len() as u32, 1, format, 0] {
        image.extend(u32::to_le_bytes(word));
    }
    image.resize(92, 0);
    image.extend(data);
    image
}

#[test]
fn a_mapped_save_with_and_without_multifd() {
    for multifd in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let memory = patterned(directory.path(), 64 * MIB);
        let saved = directory.path().join("saved");
        let mut vm = Machine::start("q35", &memory, &[]);
        vm.capabilities(if multifd {
            &["mapped-ram", "multifd"]
        } else {
            &["mapped-ram"]
        });
        if multifd {
            vm.command("migrate-set-parameters", json!({"multifd-channels": 4}));
        }
        vm.save(&format!("file:{}", saved.display()));
        let (bytes, snapshot) = indexed(&saved);
        assert_eq!(snapshot.format, Format::QemuMappedRam);
        assert_is(map_of(&snapshot), &bytes, &vm.memory());
        assert_followed(&bytes, &snapshot);
        // The bytes in the slots of zero pages mean nothing.
        let map = map_of(&snapshot);
        let dead = map
            .pieces(0..u64::MAX)
            .filter(|piece| piece.kind == PieceKind::Dead);
        let dead: u64 = dead.map(|piece| piece.range.end - piece.range.start).sum();
        assert_eq!(dead, map.counts().zero * PAGE);
    }
}

#[test]
fn a_mapped_save_behind_libvirts_header() {
    let directory = tempfile::tempdir().unwrap();
    let memory = patterned(directory.path(), 64 * MIB);
    let saved = directory.path().join("saved");
    let head = libvirt_head(6, true);
    fs::write(&saved, &head).unwrap();
    let mut vm = Machine::start("q35", &memory, &[]);
    vm.capabilities(&["mapped-ram"]);
    vm.save(&format!("file:{},offset={}", saved.display(), head.len()));
    let (bytes, snapshot) = indexed(&saved);
    assert_eq!(snapshot.format, Format::LibvirtMappedRam);
    assert_is(map_of(&snapshot), &bytes, &vm.memory());
    assert_followed(&bytes, &snapshot);
}

#[test]
fn a_core_a_dump_and_the_memory_itself() {
    let directory = tempfile::tempdir().unwrap();
    let memory = patterned(directory.path(), 64 * MIB);
    let mut vm = Machine::start("q35", &memory, &[]);
    let path = |name: &str| directory.path().join(name);
    let uri = |name: &str| format!("file:{}", path(name).display());

    vm.command(
        "dump-guest-memory",
        json!({"paging": false, "protocol": uri("elf")}),
    );
    let (bytes, snapshot) = indexed(&path("elf"));
    assert_eq!(snapshot.format, Format::ElfCore);
    // QEMU dumps what firmware and devices have below 4 GiB as well; the RAM is what it should be.
    let map = map_of(&snapshot);
    let ram = vm.memory();
    let mut buffer = vec![0; PAGE as usize];
    for at in (MIB..64 * MIB).step_by(PAGE as usize) {
        assert_eq!(
            map.read(&bytes, Gpa(at), &mut buffer).unwrap(),
            Content::Bytes
        );
        assert!(buffer == ram[at as usize..][..PAGE as usize], "{at:#x}");
    }
    assert_followed(&bytes, &snapshot);

    for (format, name) in [("kdump-zlib", "flat"), ("kdump-raw-zlib", "kdump")] {
        let arguments = json!({"paging": false, "protocol": uri(name), "format": format});
        vm.command("dump-guest-memory", arguments);
        let (_, snapshot) = indexed(&path(name));
        assert_eq!(snapshot.format, Format::Kdump);
        println!("{format}: {}", snapshot.opaque_reason().unwrap());
    }

    let raw = path("raw").display().to_string();
    vm.command(
        "pmemsave",
        json!({"val": 0, "size": 64 * MIB, "filename": raw}),
    );
    let (bytes, snapshot) = indexed(&path("raw"));
    assert_eq!(snapshot.format, Format::Raw);
    let map = map_of(&snapshot);
    for at in (MIB..64 * MIB).step_by(PAGE as usize) {
        assert_eq!(map.lookup(Gpa(at)), Place::Stored(at));
        assert!(bytes[at as usize..][..PAGE as usize] == ram[at as usize..][..PAGE as usize]);
    }
}

#[test]
fn the_gap_of_a_large_guest_is_where_the_machine_has_it() {
    // The machine's own rule, and a limit that the stream does not tell.
    for (machine, size) in [("q35", 3 << 30), ("pc,max-ram-below-4g=512M", 576 * MIB)] {
        let directory = tempfile::tempdir().unwrap();
        let memory = patterned(directory.path(), size);
        let saved = directory.path().join("saved");
        let high = directory.path().join("high");
        let mut vm = Machine::start(machine, &memory, &[]);
        vm.save(&format!("file:{}", saved.display()));
        let filename = high.display().to_string();
        vm.command(
            "pmemsave",
            json!({"val": 4_u64 << 30, "size": 16 * MIB, "filename": filename}),
        );
        let file = File::open(&saved).unwrap();
        let snapshot = index(&file).unwrap();
        let map = map_of(&snapshot);
        let truth = fs::read(&high).unwrap();
        assert!(!is_zero(&truth));
        let has_truth = |layout: &Layout| {
            let map = map.with_layout(layout);
            let mut buffer = vec![0; PAGE as usize];
            (0..16 * MIB).step_by(PAGE as usize).all(|at| {
                map.read(&file, Gpa((4 << 30) + at), &mut buffer).unwrap();
                buffer == truth[at as usize..][..PAGE as usize]
            })
        };
        let right = map.layouts().iter().position(has_truth);
        let first = machine == "q35";
        assert!(
            right.is_some_and(|index| (index == 0) == first),
            "{machine}: {right:?}"
        );
        println!("{machine}: number {right:?} of {}", map.layouts().len());
    }
}

#[test]
fn shared_memory_that_is_left_out_is_absent() {
    let directory = tempfile::tempdir().unwrap();
    let memory = patterned(directory.path(), 64 * MIB);
    let saved = directory.path().join("saved");
    let mut vm = Machine::start("q35", &memory, &[]);
    vm.capabilities(&["x-ignore-shared"]);
    vm.save(&format!("file:{}", saved.display()));
    let (bytes, snapshot) = indexed(&saved);
    let map = map_of(&snapshot);
    assert_eq!(map.lookup(Gpa(16 * MIB)), Place::Absent);
    assert!(
        map.pieces(0..u64::MAX)
            .all(|piece| piece.kind == PieceKind::Framing)
    );
    assert_followed(&bytes, &snapshot);
}

/// Writes to every third page from 2 to 16 MiB a counter, and to those 16 MiB above 0 or 1 in turn, for ever.
fn boot_sector() -> Vec<u8> {
    let mut sector = vec![
        0xfa, // cli
        0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
        0x66, 0x0f, 0x01, 0x16, 0x50, 0x7c, // lgdt [0x7c50]
        0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, // protected mode on
        0xea, 0x20, 0x7c, 0x08, 0x00, // jmp 8:0x7c20
    ];
    sector.resize(0x20, 0);
    sector.extend([
        0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, // mov ax, 0x10; mov ds, ax
        0x43, 0x89, 0xd9, 0x83, 0xe1, 0x01, // inc ebx; mov ecx, ebx; and ecx, 1
        0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 2 MiB
        0x89, 0x1f, // mov [edi], ebx
        0x89, 0x8f, 0x00, 0x00, 0x00, 0x01, // mov [edi + 16 MiB], ecx
        0x81, 0xc7, 0x00, 0x30, 0x00, 0x00, // add edi, 3 pages
        0x81, 0xff, 0x00, 0x00, 0x00, 0x01, // cmp edi, 16 MiB
        0x72, 0xea, 0xeb, 0xdd, // jb the first mov; jmp inc
    ]);
    sector.resize(0x50, 0);
    sector.extend([23, 0, 0x58, 0x7c, 0, 0, 0, 0]); // where the descriptors are
    sector.extend([0; 8]);
    sector.extend([0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0]); // code: all 4 GiB
    sector.extend([0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0]); // data: all 4 GiB
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    sector
}

/// Saves a guest that writes memory all the time; gives the file and the memory after it.
fn live(capabilities: &[&str], parameters: serde_json::Value) -> (Vec<u8>, Snapshot, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let memory = patterned(directory.path(), 64 * MIB);
    // Pages without a bit set where the program writes 0 and 1 in turn: zero pages that come and go.
    let file = File::options().write(true).open(&memory).unwrap();
    file.write_all_at(&vec![0; 14 << 20], 18 * MIB).unwrap();
    let disk = directory.path().join("disk");
    fs::write(&disk, boot_sector()).unwrap();
    let saved = directory.path().join("saved");
    let drive = format!(
        "file={},format=raw,if=none,id=d,snapshot=on",
        disk.display()
    );
    let arguments = ["-drive", &drive, "-device", "ide-hd,drive=d"];
    let mut vm = Machine::start("q35", &memory, &arguments);
    vm.capabilities(capabilities);
    vm.command("migrate-set-parameters", parameters);
    vm.command("cont", json!({}));
    let counter = |memory: &[u8]| u32::from_le_bytes(memory[2 << 20..][..4].try_into().unwrap());
    let before = counter(&vm.memory());
    let begun = Instant::now();
    while counter(&vm.memory()) == before {
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "the boot sector does not run"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    vm.begin_save_by_pipe(&saved);
    // The first passes go slowly, so that the guest dirties what has been sent. A guest that gets little done makes them
    // short: then there are many of them in that time. On a busy machine there are few, and only a page's third time is a delta.
    let begun = Instant::now();
    let long = |most: u64| begun.elapsed() >= Duration::from_millis(most);
    while !long(120_000) {
        let rounds = vm.rounds();
        if rounds >= 24 || rounds >= 5 && long(2500) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let fast = json!({"max-bandwidth": 8_u64 << 30, "downtime-limit": 10_000});
    vm.command("migrate-set-parameters", fast);
    println!("{}", vm.wait_saved_by_pipe(&saved)["ram"]);
    let (bytes, snapshot) = indexed(&saved);
    (bytes, snapshot, vm.memory())
}

#[test]
fn a_live_save_has_pages_that_were_sent_again() {
    let slow = json!({"max-bandwidth": 32 * MIB, "downtime-limit": 1});
    let (bytes, snapshot, memory) = live(&[], slow);
    let map = map_of(&snapshot);
    assert!(map.counts().dead > 100, "{:?}", map.counts());
    assert_is(map, &bytes, &memory);
    assert_followed(&bytes, &snapshot);
}

#[test]
fn a_live_save_with_deltas() {
    let slow = json!({
        "max-bandwidth": 32 * MIB, "downtime-limit": 1, "xbzrle-cache-size": 64 * MIB
    });
    let (bytes, snapshot, memory) = live(&["xbzrle"], slow);
    let map = map_of(&snapshot);
    assert!(map.counts().patched > 100, "{:?}", map.counts());
    assert_is(map, &bytes, &memory);
    assert_followed(&bytes, &snapshot);
}

#[test]
fn the_note_of_the_vmcoreinfo_device_is_found() {
    // No firmware interface is driven here; the device's section is put into the state by hand.
    let directory = tempfile::tempdir().unwrap();
    let memory = patterned(directory.path(), 16 * MIB);
    let saved = directory.path().join("saved");
    let mut vm = Machine::start("q35", &memory, &["-device", "vmcoreinfo"]);
    vm.save(&format!("file:{}", saved.display()));
    let mut bytes = fs::read(&saved).unwrap();
    let name = b"\x0avmcoreinfo";
    let at = bytes
        .windows(name.len())
        .position(|window| window == name)
        .unwrap();
    let body = at + name.len() + 8;
    assert_eq!(bytes[body], 0, "has no note");
    bytes[body] = 1;
    bytes[body + 3..body + 5].copy_from_slice(&1_u16.to_be_bytes());
    bytes[body + 5..body + 9].copy_from_slice(&1234_u32.to_be_bytes());
    bytes[body + 9..body + 17].copy_from_slice(&0x7f_f000_u64.to_be_bytes());
    let wanted = NotePlace::Guest {
        gpa: Gpa(0x7f_f000),
        size: 1234,
    };
    assert_eq!(index(&bytes).unwrap().hints.vmcoreinfo, Some(wanted));
}
