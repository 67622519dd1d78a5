//! A manifest against the plain lists that it was made of: whole, and with copies damaged in every way.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::disk::{Disk, MemoryDisk, ObjectName};
use crate::ids::{BlockId, DiskId, VolumeId, WindowNo};
use crate::store::disks::Disks;
use crate::store::records::{
    BlockRecord, Code, Encoding, Extent, ParityShard, Source, WindowRecord,
};

const VOLUME: VolumeId = VolumeId(42);
const FILE: FileId = FileId(5);

struct Model {
    extents: Vec<Extent>,
    windows: Vec<WindowRecord>,
    totals: Totals,
    description: Vec<u8>,
}

fn noise(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    *state >> 33
}

fn model(extents: usize, windows: u32, seed: u64) -> Model {
    let mut state = seed;
    let mut behind = 0;
    let extents: Vec<Extent> = (0..extents)
        .map(|_| {
            let start = behind + [0, 0, 4096, 70_000][noise(&mut state) as usize % 4];
            let length = 1 + noise(&mut state) % 65_536;
            behind = start + length;
            let (number, offset) = (noise(&mut state) as u32, noise(&mut state) as u32 % 65_536);
            let source = if noise(&mut state).is_multiple_of(10) {
                Source::Inline {
                    piece: number,
                    offset,
                }
            } else {
                let block = BlockId {
                    window: WindowNo(number),
                    index: (number % 256) as u16,
                };
                Source::Block { block, offset }
            };
            Extent {
                range: start..behind,
                source,
            }
        })
        .collect();
    let windows: Vec<WindowRecord> = (0..windows)
        .map(|number| window(number * 3 + 1, noise(&mut state)))
        .collect();
    let totals = Totals {
        file_size: behind + 10,
        logical: extents.iter().map(|e| e.range.end - e.range.start).sum(),
        stored: windows.iter().map(stored).sum(),
        next_window: 1 << 20,
        next_piece: 77,
    };
    let description = (0..seed % 9000).map(|byte| byte as u8).collect();
    Model {
        extents,
        windows,
        totals,
        description,
    }
}

fn window(no: u32, random: u64) -> WindowRecord {
    let blocks = [0, 1, 2, 30, 256][random as usize % 5];
    let block = |index: u32| BlockRecord {
        column: (index % 4) as u8,
        encoding: Encoding::Zstd,
        protected: index.is_multiple_of(3),
        lost: false,
        hasty: false,
        offset: u64::from(index) << 17,
        column_offset: 0,
        stored: 1000 + index,
        raw: 100_000,
        checksum: random ^ u64::from(index),
    };
    let shard = |offset| ParityShard {
        offset,
        checksum: random,
    };
    WindowRecord {
        no: WindowNo(no),
        set: SetId(1 + u64::from(no) / 50),
        code: Code { k: 4, m: 2 },
        disks: (0..6).map(DiskId).collect(),
        parity_set: SetId(2 + u64::from(no) / 50),
        parity_length: 1 << 20,
        parity: vec![shard(64), shard(1 << 20)],
        blocks: (0..blocks).map(block).collect(),
    }
}

fn stored(window: &WindowRecord) -> u64 {
    let blocks: u64 = window.blocks.iter().map(|b| u64::from(b.stored)).sum();
    blocks + 2 * ((1 << 20) + 64)
}

fn write(model: &Model, id: u64) -> (Vec<u8>, ManifestRef) {
    write_in(VOLUME, model, id)
}

fn write_in(volume: VolumeId, model: &Model, id: u64) -> (Vec<u8>, ManifestRef) {
    let mut bytes = Vec::new();
    let mut sink = |run: &[u8]| {
        assert!(run.len() <= 65 * PAGE, "memory is bounded");
        bytes.extend_from_slice(run);
        Ok(())
    };
    let mut writer = ManifestWriter::new(volume, FILE, ManifestId(id), &mut sink);
    for extent in &model.extents {
        writer.extent(extent).unwrap();
    }
    for window in &model.windows {
        writer.window(window).unwrap();
    }
    let totals = Totals {
        logical: 0,
        stored: 0,
        ..model.totals
    };
    let reference = writer.finish(totals, &model.description).unwrap();
    assert_eq!(reference.length, bytes.len() as u64);
    (bytes, reference)
}

struct Copies {
    disks: Arc<Disks>,
    ids: Vec<DiskId>,
}

fn on_disks(copies: &[&[u8]], id: u64) -> Copies {
    let disks = Arc::new(Disks::new(false));
    let ids: Vec<DiskId> = (0..copies.len() as u16).map(DiskId).collect();
    for (&disk_id, bytes) in ids.iter().zip(copies) {
        let disk = MemoryDisk::new(&format!("disk{disk_id}"));
        disk.put(ObjectName::Manifest(ManifestId(id)), bytes)
            .unwrap();
        disks.insert(disk_id, format!("disk{disk_id}"), Some(Arc::new(disk)));
    }
    Copies { disks, ids }
}

fn open(copies: &Copies, reference: ManifestRef) -> Result<Manifest, ManifestError> {
    let cache = Arc::new(ManifestCache::new(1 << 20));
    Manifest::open(VOLUME, reference, copies.disks.clone(), &copies.ids, cache)
}

/// Every question, its answer compared with the model's. `Err` for the first that was not answered.
fn compare(manifest: &Manifest, model: &Model, seed: u64) -> Result<(), ManifestError> {
    assert_eq!(manifest.file(), FILE);
    assert_eq!(manifest.totals(), model.totals);
    let all: Result<Vec<_>, _> = manifest.all_extents().collect();
    assert!(all? == model.extents);
    let windows: Result<Vec<_>, _> = manifest.windows().collect();
    assert!(windows? == model.windows);
    assert_eq!(manifest.description()?, model.description);
    let sets: Result<Vec<SetUse>, _> = manifest.sets().collect();
    let sum: u64 = sets?.iter().map(|used| used.blocks + used.parity).sum();
    assert_eq!(sum, model.totals.stored);
    let mut state = seed;
    for _ in 0..50 {
        let mut start = noise(&mut state) * 7919 % (model.totals.file_size + 1);
        // Half of them where an extent begins or ends.
        if !model.extents.is_empty() && noise(&mut state).is_multiple_of(2) {
            let range = &model.extents[noise(&mut state) as usize % model.extents.len()].range;
            start = [range.start, range.end][noise(&mut state) as usize % 2];
        }
        let range = start..start + noise(&mut state) % 500_000;
        let found: Result<Vec<_>, _> = manifest.extents(range.clone())?.collect();
        assert_eq!(found?, cut(&model.extents, range.clone()), "{range:?}");
        let covering = |at: u64| model.extents.iter().find(|e| e.range.end > at);
        let data = covering(start).map(|extent| extent.range.start.max(start));
        assert_eq!(manifest.next_data(start)?, data);
        let mut hole = start;
        while let Some(extent) = covering(hole).filter(|extent| extent.range.start <= hole) {
            hole = extent.range.end;
        }
        assert_eq!(manifest.next_hole(start)?, hole);
        let no = WindowNo(noise(&mut state) as u32 % (3 * model.windows.len() as u32 + 9));
        let expected = model.windows.iter().find(|window| window.no == no);
        assert_eq!(manifest.window(no)?.as_deref(), expected);
    }
    Ok(())
}

fn cut(extents: &[Extent], range: std::ops::Range<u64>) -> Vec<Extent> {
    let within =
        |extent: &&Extent| extent.range.end > range.start && extent.range.start < range.end;
    extents
        .iter()
        .filter(within)
        .map(|extent| {
            let start = extent.range.start.max(range.start);
            Extent {
                range: start..extent.range.end.min(range.end),
                source: extent.source.advanced(start - extent.range.start),
            }
        })
        .collect()
}

#[test]
fn everything_comes_back() {
    for (extents, windows) in [
        (0, 0),
        (1, 1),
        (170, 5),
        (171, 0),
        (340, 40),
        (200_000, 3000),
    ] {
        let model = model(extents, windows, 4321 + extents as u64);
        let (bytes, reference) = write(&model, 9);
        let manifest = open(&on_disks(&[&bytes], 9), reference).unwrap();
        compare(&manifest, &model, 1).unwrap();
        let sets: Vec<SetUse> = manifest.sets().map(Result::unwrap).collect();
        assert!(sets.is_sorted_by_key(|used| used.set));
        for window in &model.windows {
            assert!(sets.iter().any(|used| used.set == window.parity_set));
        }
    }
}

#[test]
fn more_may_be_given_up_in_a_row_than_an_entry_holds() {
    const MOST: u64 = u32::MAX as u64;
    let lengths = [MOST - 1, MOST, MOST + 1, 2 * MOST + 1, 1 << 40];
    let sources = [Source::Dropped, Source::Zeros];
    for (length, source) in lengths
        .into_iter()
        .flat_map(|length| sources.map(|source| (length, source)))
    {
        let dropped = Extent {
            range: 4096..4096 + length,
            source,
        };
        let mut model = model(0, 0, 1);
        model.extents.push(dropped.clone());
        model.totals.file_size = dropped.range.end;
        let (bytes, reference) = write(&model, 9);
        let manifest = open(&on_disks(&[&bytes], 9), reference).unwrap();
        let mut at = dropped.range.start;
        for extent in manifest.extents(0..u64::MAX).unwrap() {
            let extent = extent.unwrap();
            assert_eq!((extent.range.start, extent.source), (at, source));
            at = extent.range.end;
        }
        assert_eq!(at, dropped.range.end);
        let logical = if source == Source::Dropped { length } else { 0 };
        assert_eq!(manifest.totals().logical, logical);
    }
}

#[test]
fn opening_and_looking_up_read_few_pages() {
    let model = model(200_000, 3000, 11);
    let (bytes, reference) = write(&model, 9);
    let copies = on_disks(&[&bytes], 9);
    let cache = Arc::new(ManifestCache::new(4 << 20));
    let manifest = Manifest::open(
        VOLUME,
        reference,
        copies.disks.clone(),
        &copies.ids,
        cache.clone(),
    )
    .unwrap();
    assert_eq!(cache.weight(), 0);
    let middle = model.totals.file_size / 2;
    manifest
        .extents_from(middle)
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    assert!(cache.weight() < 5 * 4200, "{}", cache.weight());
    // A lookup walks over a page of records at most, and reads those that the record itself lies in.
    let small = model
        .windows
        .iter()
        .filter(|window| window.blocks.len() < 3);
    let picked: Vec<WindowNo> = small.map(|window| window.no).step_by(61).collect();
    let before = cache.weight();
    for &no in &picked {
        manifest.window(no).unwrap().unwrap();
    }
    let each = (cache.weight() - before) / picked.len() as u64;
    assert!(each < 3 * 4200, "{each} bytes a lookup");
    let before = cache.weight();
    manifest.windows().for_each(drop);
    manifest.all_extents().for_each(drop);
    assert_eq!(
        cache.weight(),
        before,
        "going through all leaves the cache alone"
    );
}

#[test]
fn a_small_cache_stays_small() {
    let model = model(100_000, 1000, 12);
    let (bytes, reference) = write(&model, 9);
    let copies = on_disks(&[&bytes], 9);
    let cache = Arc::new(ManifestCache::new(256 << 10));
    let manifest = Manifest::open(
        VOLUME,
        reference,
        copies.disks.clone(),
        &copies.ids,
        cache.clone(),
    )
    .unwrap();
    for extent in manifest.extents_from(0).unwrap() {
        extent.unwrap();
    }
    for window in &model.windows {
        manifest.window(window.no).unwrap().unwrap();
    }
    assert!(cache.weight() <= 256 << 10);
}

#[test]
fn bad_pages_are_read_elsewhere_and_repaired() {
    let model = model(3000, 300, 13);
    let (bytes, reference) = write(&model, 9);
    let pages = bytes.len() / PAGE;
    // Every page is bad on all copies but one, the last page on the first two.
    let mut bad = [bytes.clone(), bytes.clone(), bytes.clone()];
    for page in 0..pages {
        for (copy, bytes) in bad.iter_mut().enumerate() {
            if page % 3 != copy && !(page == pages - 1 && copy == 2) {
                bytes[page * PAGE + page % PAGE] ^= 1;
            }
        }
    }
    bad[2][(pages - 1) * PAGE..].copy_from_slice(&bytes[(pages - 1) * PAGE..]);
    let copies = on_disks(&[&bad[0], &bad[1], &bad[2]], 9);
    let manifest = open(&copies, reference).unwrap();
    compare(&manifest, &model, 2).unwrap();
    // Once more with nothing in memory, so that every page asks the disk that is first in turn.
    compare(&open(&copies, reference).unwrap(), &model, 2).unwrap();
    let first = copies.disks.get(DiskId(9 % 3)).unwrap();
    let mut repaired = vec![0; bytes.len()];
    first
        .read_at(ObjectName::Manifest(ManifestId(9)), 0, &mut repaired)
        .unwrap();
    assert!(repaired == bytes);
}

/// A disk that was away may have nothing of a manifest that its rebuild is to give it: one page of it would count as all.
#[test]
fn a_disk_that_is_rebuilt_is_not_given_single_pages() {
    let model = model(3000, 300, 13);
    let (bytes, reference) = write(&model, 9);
    for rebuilt in [true, false] {
        let copies = on_disks(&[&[], &bytes, &bytes], 9);
        // The one that is asked first.
        let (first, object) = (
            copies.disks.get(DiskId(0)).unwrap(),
            ObjectName::Manifest(ManifestId(9)),
        );
        first.remove(object).unwrap();
        if rebuilt {
            copies.disks.mark_rebuilding(DiskId(0), "it was away");
        }
        open(&copies, reference).unwrap();
        assert_eq!(first.length(object).is_ok(), !rebuilt);
    }
}

#[test]
fn pages_that_strayed_are_bad_pages() {
    let (this, other) = (model(2000, 20, 14), model(2000, 20, 15));
    let (bytes, reference) = write(&this, 9);
    let (foreign, foreign_reference) = write(&other, 8);
    assert_ne!(reference.root, foreign_reference.root);
    // Another manifest whole, under this one's name.
    assert!(open(&on_disks(&[&foreign], 9), reference).is_err());
    // One page of another manifest at its own place.
    let mut mixed = bytes.clone();
    mixed[PAGE..2 * PAGE].copy_from_slice(&foreign[PAGE..2 * PAGE]);
    let manifest = open(&on_disks(&[&mixed], 9), reference).unwrap();
    assert!(compare(&manifest, &this, 3).is_err());
    // Two pages that changed places.
    let mut swapped = bytes.clone();
    swapped[..PAGE].copy_from_slice(&bytes[PAGE..2 * PAGE]);
    swapped[PAGE..2 * PAGE].copy_from_slice(&bytes[..PAGE]);
    let manifest = open(&on_disks(&[&swapped], 9), reference).unwrap();
    assert!(compare(&manifest, &this, 3).is_err());
    // Another writing of the same number and length, whole: only the reference tells.
    let mut later = model(2000, 20, 14);
    later.totals.next_piece += 1;
    let (rewritten, _) = write(&later, 9);
    assert_eq!(rewritten.len(), bytes.len());
    assert!(open(&on_disks(&[&rewritten], 9), reference).is_err());
    // One page of the same manifest of another volume.
    let (elsewhere, _) = write_in(VolumeId(43), &other, 9);
    let mut mixed = bytes.clone();
    mixed[PAGE..2 * PAGE].copy_from_slice(&elsewhere[PAGE..2 * PAGE]);
    let manifest = open(&on_disks(&[&mixed], 9), reference).unwrap();
    assert!(compare(&manifest, &this, 3).is_err());
    // Both volumes' manifest 9.
    let copies = on_disks(&[&bytes], 9);
    let cache = Arc::new(ManifestCache::new(1 << 20));
    let elsewhere = Manifest::open(VolumeId(43), reference, copies.disks, &copies.ids, cache);
    assert!(elsewhere.is_err());
}

#[test]
fn a_rescue_finds_the_reference() {
    let model = model(500, 10, 16);
    let (bytes, reference) = write(&model, 9);
    let copies = on_disks(&[&bytes, &bytes[..bytes.len() - PAGE]], 9);
    let found = Manifest::discover(VOLUME, ManifestId(9), &copies.disks, DiskId(0));
    assert_eq!(found, Ok(reference));
    assert!(Manifest::discover(VOLUME, ManifestId(9), &copies.disks, DiskId(1)).is_err());
    assert!(Manifest::discover(VOLUME, ManifestId(8), &copies.disks, DiskId(0)).is_err());
    assert_eq!(ManifestRef::decode(&reference.encode()), Some(reference));
    assert_eq!(ManifestRef::decode(&reference.encode()[..23]), None);
    assert_eq!(ManifestRef::decode(&[0; 24]), None);
}

#[test]
fn what_is_out_of_order_is_not_written() {
    let model = model(10, 3, 17);
    let mut sink = |_: &[u8]| Ok(());
    let mut writer = ManifestWriter::new(VOLUME, FILE, ManifestId(1), &mut sink);
    writer.extent(&model.extents[1]).unwrap();
    assert!(writer.extent(&model.extents[0]).is_err());
    writer.window(&model.windows[1]).unwrap();
    assert!(writer.window(&model.windows[0]).is_err());
    assert!(writer.window(&model.windows[1]).is_err());
    assert!(writer.extent(&model.extents[2]).is_err());
    assert!(
        writer.finish(Totals::default(), b"").is_err(),
        "an extent beyond the end"
    );
}

#[test]
fn what_a_later_version_adds_is_passed_over() {
    use super::page::{PAYLOAD, PageKey};
    let model = model(500, 10, 18);
    let (mut bytes, mut reference) = write(&model, 9);
    let number = bytes.len() / PAGE - 1;
    let mut payload = bytes[number * PAGE + 8..].to_vec();
    // A section of kind 99 behind the known ones, and a greater minor version.
    let count = payload[12] as usize;
    payload[10] = 1;
    payload[12] += 1;
    payload[88 + 32 * count] = 99;
    let key = PageKey {
        volume: VOLUME,
        manifest: ManifestId(9),
    };
    let reseal = |bytes: &mut Vec<u8>, payload: &[u8]| {
        assert_eq!(payload.len(), PAYLOAD);
        bytes.truncate(number * PAGE);
        key.put(bytes, number as u64, payload);
        xxhash_rust::xxh3::xxh3_64(&bytes[number * PAGE..])
    };
    reference.root = reseal(&mut bytes, &payload);
    let manifest = open(&on_disks(&[&bytes], 9), reference).unwrap();
    compare(&manifest, &model, 1).unwrap();
    // A greater major version is refused.
    payload[8] = 2;
    reference.root = reseal(&mut bytes, &payload);
    let error = open(&on_disks(&[&bytes], 9), reference).unwrap_err();
    assert!(error.to_string().contains("newer format"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Three copies, each damaged in its own way: every answer is right, or is an error.
    #[test]
    fn damaged_copies_never_give_a_wrong_answer(
        seed in any::<u64>(),
        flips in prop::collection::vec((0usize..3, any::<prop::sample::Index>(), 0u8..8), 0..30),
        cuts in prop::collection::vec((0usize..3, any::<prop::sample::Index>()), 0..2),
        swaps in prop::collection::vec(
            (0usize..3, any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..4),
    ) {
        let model = model(2000, 200, seed % 100_000);
        let (bytes, reference) = write(&model, 9);
        let pages = bytes.len() / PAGE;
        let mut copies = [bytes.clone(), bytes.clone(), bytes.clone()];
        for (copy, at, bit) in flips {
            let at = at.index(bytes.len());
            copies[copy][at] ^= 1 << bit;
        }
        for (copy, a, b) in swaps {
            let (a, b) = (a.index(pages) * PAGE, b.index(pages) * PAGE);
            let (from_a, from_b) = (copies[copy][a..a + PAGE].to_vec(), copies[copy][b..b + PAGE].to_vec());
            copies[copy][a..a + PAGE].copy_from_slice(&from_b);
            copies[copy][b..b + PAGE].copy_from_slice(&from_a);
        }
        for (copy, at) in cuts {
            let at = at.index(copies[copy].len().max(1));
            copies[copy].truncate(at);
        }
        let readable = (0..pages).all(|page| {
            let range = page * PAGE..(page + 1) * PAGE;
            copies.iter().any(|copy| copy.get(range.clone()) == Some(&bytes[range.clone()]))
        });
        let disks = on_disks(&[&copies[0], &copies[1], &copies[2]], 9);
        let result = open(&disks, reference).and_then(|manifest| compare(&manifest, &model, seed));
        prop_assert!(result.is_ok() || !readable, "{:?}", result);
    }

    /// Hostile: pages whose checksums are good and whose content is not.
    #[test]
    fn forged_pages_do_not_panic(
        seed in 0u64..1000,
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..40),
        in_root in prop::collection::vec((0usize..300, any::<u8>()), 0..3),
    ) {
        use super::page::{PAYLOAD, PageKey};
        let model = model(1000, 60, seed);
        let (mut bytes, mut reference) = write(&model, 9);
        let pages = bytes.len() / PAGE;
        for (page, at, value) in damage {
            // Small numbers are the likely ones.
            let (page, at) = (page.index(pages - 1), at.index(PAYLOAD));
            bytes[page * PAGE + 8 + at] = value;
        }
        for (at, value) in in_root {
            bytes[(pages - 1) * PAGE + 8 + at] = value;
        }
        let key = PageKey { volume: VOLUME, manifest: ManifestId(9) };
        let mut forged = Vec::new();
        for (number, page) in bytes.chunks(PAGE).enumerate() {
            key.put(&mut forged, number as u64, &page[8..]);
        }
        reference.root = xxhash_rust::xxh3::xxh3_64(&forged[(pages - 1) * PAGE..]);
        let Ok(manifest) = open(&on_disks(&[&forged], 9), reference) else { return Ok(()) };
        manifest.all_extents().for_each(drop);
        manifest.windows().for_each(drop);
        manifest.sets().take(100_000).for_each(drop);
        let _ = manifest.description();
        for step in 0..40 {
            if let Ok(extents) = manifest.extents(step * 1_000_000..(step + 2) * 1_000_000) {
                extents.for_each(drop);
            }
            let _ = manifest.next_hole(step * 1_000_000);
            let _ = manifest.window(WindowNo(step as u32 * 5 + 1));
        }
    }
}
