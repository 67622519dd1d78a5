//! Guests made by hand, saved into volumes of which disks go away: what is read must be, byte for byte, the saved file with the
//! guest's own mend applied, and an error only where that cannot be.

mod changes;
mod errors;
mod reading;
mod stale;

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

fn pages_of(lost: &[Range<u64>]) -> Vec<u64> {
    let mut pages: Vec<u64> = lost
        .iter()
        .flat_map(|range| range.start / PAGE..range.end.div_ceil(PAGE))
        .collect();
    pages.dedup();
    pages
}
