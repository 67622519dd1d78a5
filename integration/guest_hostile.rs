//! A guest that lies: structures of a guest made by hand, and of real ones that are there, are changed at random, and the room is
//! asked for all that it can tell. It may answer what it likes, but it must answer: no panic, no endless walk.
//!
//! `PARSFS_FUZZ_SECONDS` sets how long each test goes on (3 by default), `PARSFS_FUZZ_SEED` where it begins (elsewhere every
//! time unless told; the test says where).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::guests::image::{self, Kernel};
use crate::guests::synthetic::{self, BASE, MEMMAP, Synthetic, flag, word};
use crate::guests::{Scene, Work};
use parsfs::guest::{
    Classes, FlatMemory, Guest, Hints, Layout, PageClass, Tier, Vmcoreinfo, is_candidate,
};

/// One case may take this long; an honest one takes a few milliseconds, or tens of them on a real guest.
const CASE_MAX: Duration = Duration::from_secs(120);

/// A generator that needs no crate and gives the same cases for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Where a test begins.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(1, |now| now.as_nanos() as u64);
    let seed = variable("PARSFS_FUZZ_SEED", now);
    println!("PARSFS_FUZZ_SEED={seed}");
    seed
}

/// Asks for everything.
fn ask(bytes: &[u8], random: &mut Random) {
    let begun = Instant::now();
    let layout = &Layout::candidates(bytes.len() as u64)[0];
    let memory = FlatMemory::new(bytes, layout);
    if let Ok(guest) = Guest::find(&memory, &Hints::default())
        && let Ok(classes) = guest.classify()
    {
        assert_eq!(
            classes
                .counts()
                .iter()
                .map(|&(_, pages)| pages)
                .sum::<u64>(),
            classes.len() as u64
        );
        mend(&guest, &classes);
        for _ in 0..3 {
            let pfn = random.below(classes.len() as u64 + 8);
            let _ = guest.explain(&classes, pfn).to_string();
        }
    }
    assert!(
        begun.elapsed() < CASE_MAX,
        "one case took {:?}",
        begun.elapsed()
    );
}

/// What is expendable must be mendable, whatever the guest says, and a mend stays within its memory.
fn mend(guest: &Guest<'_>, classes: &Classes) {
    let lost: Vec<u64> = classes
        .iter()
        .filter(|(_, class)| class.tier() == Tier::Expendable)
        .map(|(pfn, _)| pfn)
        .collect();
    let mend = guest
        .mend(classes, &lost)
        .expect("expendable pages can be mended");
    assert_eq!(mend.fills.len(), lost.len());
    assert!(mend.edits.iter().all(|edit| classes.at(edit.gpa).is_some()));
}

/// A value that may lead further than a random one: near what is there, or an address of something.
fn lie(random: &mut Random, old: u64, addresses: &[u64]) -> u64 {
    match random.below(7) {
        0 => random.next(),
        1 => old ^ (1 << random.below(64)),
        2 => old.wrapping_add(random.below(129)).wrapping_sub(64),
        3 => 0,
        4 => u64::MAX >> random.below(64),
        _ => {
            let place = random.below(addresses.len() as u64) as usize;
            addresses
                .get(place)
                .copied()
                .unwrap_or(old)
                .wrapping_add(8 * random.below(9))
        }
    }
}

fn busy_guest() -> Synthetic {
    let mut guest = Synthetic::new();
    let ext4 = guest.file("ext4");
    let xfs = guest.file("xfs");
    let btrfs = guest.file("btrfs");
    for pfn in 0x220..0x240 {
        guest.cached(pfn, 0, &ext4);
    }
    let page = guest.cached(0x240, 3, &ext4);
    guest.buffers(page, 8);
    let page = guest.cached(0x280, 6, &xfs);
    guest.iomap(page, 64);
    for pfn in 0x2C0..0x2D0 {
        let page = guest.cached(pfn, 0, &btrfs);
        guest.mark(page);
    }
    guest.buddy(0x300, 5);
    guest.buddy(0x340, 6);
    guest.free_list(0, &[0x380, 0x383, 0x382, 0x390]);
    guest.typed_page(0x3A0, 0xF1);
    guest.put(Synthetic::page(0x3A1), flag::RESERVED);
    guest.put32(Synthetic::page(0x3A2) + word::REFCOUNT, 0);
    guest
}

#[test]
fn lies_in_a_small_guest_are_answered() {
    let budget = Duration::from_secs(variable("PARSFS_FUZZ_SECONDS", 3));
    let seed = seed();
    let honest = busy_guest();
    let mut random = Random(seed);
    ask(&honest.bytes, &mut random);
    // Where the structures are: tables, sections, vmcoreinfo, types, files, lists, struct pages.
    let places = [
        (0x1000, 0x3000),
        (0x2_0000, 0x3000),
        (0x3_0000, 0x1000),
        (0x4_0000, 0x2000),
        (synthetic::FILES, 0x2000),
        (0x9_0000, 0x4000),
        (MEMMAP, 0x1_0000),
    ];
    let addresses: Vec<u64> = (0..0x400)
        .map(|page| BASE + (page << 12))
        .chain((0..64).map(|n| BASE + MEMMAP + 64 * n))
        .collect();
    let begun = Instant::now();
    let mut cases = 0u64;
    while begun.elapsed() < budget {
        let mut guest = honest.clone();
        for _ in 0..1 + random.below(12) {
            let (start, len) = places[random.below(places.len() as u64) as usize];
            let at = start + random.below(len) / 8 * 8;
            if random.below(3) == 0 {
                guest.bytes[at as usize + random.below(8) as usize] = random.next() as u8;
            } else {
                let value = lie(&mut random, guest.get(at), &addresses);
                guest.put(at, value);
            }
        }
        ask(&guest.bytes, &mut random);
        cases += 1;
    }
    println!("{cases} lies answered from seed {seed}");
}

#[test]
fn noise_is_no_guest() {
    let mut random = Random(seed());
    let mut bytes = vec![0u8; 1 << 20];
    for case in 0..20 {
        bytes
            .iter_mut()
            .for_each(|byte| *byte = random.next() as u8);
        // Pages that begin as vmcoreinfo does, and go on as noise.
        for page in bytes.chunks_mut(4096).step_by(3) {
            page[..10].copy_from_slice(b"OSRELEASE=");
            assert!(is_candidate(page));
        }
        let memory = FlatMemory::new(&bytes, &Layout::candidates(bytes.len() as u64)[0]);
        assert!(
            Guest::find(&memory, &Hints::default()).is_err(),
            "case {case}"
        );
        let _ = Vmcoreinfo::parse(&bytes).page_shift();
    }
}

#[test]
fn lies_in_a_real_guest_are_answered() {
    let budget = Duration::from_secs(variable("PARSFS_FUZZ_SECONDS", 3));
    let mut random = Random(seed());
    let mut kernels = vec![Kernel::V6_12];
    if std::env::var_os("PARSFS_GUESTS_ALL").is_some() {
        kernels.push(Kernel::Newest);
    }
    for kernel in kernels {
        let scene = Scene::new(kernel, Work::Mixed, "").ready();
        let mut bytes = std::fs::read(&scene.setup.memory).expect("the guest's memory");
        let _turn = image::exclusive("fuzz");
        // What the kernel itself holds is where its structures are.
        let mut places = Vec::new();
        {
            let memory = FlatMemory::new(&bytes, &Layout::candidates(bytes.len() as u64)[0]);
            let classes = Guest::find(&memory, &Hints::default())
                .expect("a kernel")
                .classify()
                .expect("classes");
            let structural = [
                PageClass::Slab,
                PageClass::Reserved,
                PageClass::Kernel,
                PageClass::PageTable,
            ];
            places.extend(
                classes
                    .iter()
                    .filter(|(_, class)| structural.contains(class))
                    .map(|(pfn, _)| pfn),
            );
        }
        let begun = Instant::now();
        let mut cases = 0u64;
        while begun.elapsed() < budget {
            let mut undo = Vec::new();
            for _ in 0..2000 {
                let page = places[random.below(places.len() as u64) as usize];
                let at = ((page << 12) + 8 * random.below(512)) as usize;
                let mut word = [0; 8];
                word.copy_from_slice(&bytes[at..at + 8]);
                let value = lie(&mut random, u64::from_le_bytes(word), &[]);
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                undo.push((at, word));
            }
            ask(&bytes, &mut random);
            for (at, word) in undo.into_iter().rev() {
                bytes[at..at + 8].copy_from_slice(&word);
            }
            cases += 1;
        }
        println!("{}: {cases} lies answered", scene.name);
    }
}
