//! The layouts in which a guest is looked for: those that the file suggests, then those that the guest room knows. Maps
//! the one room's word for a layout to the other's, and knows no machine.

use crate::guest;
use crate::snapshot::{Gpa, Layout, PageMap, RamRange};

/// The map under each layout that may hold, likely ones first. Where the file says it, there is one.
pub(super) fn all(map: &PageMap) -> Vec<PageMap> {
    let mut layouts: Vec<Layout> = map.layouts().to_vec();
    if layouts.len() > 1 {
        for layout in guessed(map) {
            if !layouts
                .iter()
                .any(|known| known.ranges() == layout.ranges())
            {
                layouts.push(layout);
            }
        }
    }
    // The one in force goes first: a file beside the snapshot may have told it.
    layouts.sort_by_key(|layout| layout != map.layout());
    layouts
        .iter()
        .map(|layout| map.with_layout(layout))
        .collect()
}

/// The guest room's layouts for the largest block of RAM.
fn guessed(map: &PageMap) -> Vec<Layout> {
    let Some(block) = map.blocks().iter().max_by_key(|block| block.length) else {
        return Vec::new();
    };
    let translate = |candidate: guest::Layout| {
        let mut ram = block.ram;
        let mut ranges = Vec::new();
        for range in &candidate.ranges {
            let length = range.end.checked_sub(range.start)?;
            ranges.push(RamRange {
                gpa: Gpa(range.start),
                ram,
                length,
            });
            ram = ram.checked_add(length)?;
        }
        Layout::new("found by trial", ranges)
    };
    guest::Layout::candidates(block.length)
        .into_iter()
        .filter_map(translate)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::super::{Look, recognise};
    use super::*;
    use crate::guest::ClassSet;
    use crate::guest::synthetic::{BASE, SECTIONS, Synthetic, VMCOREINFO, word};
    use crate::snapshot::tests::writers::{Head, PAGE, StreamWriter};
    use crate::snapshot::{ByteSource, index};
    use crate::store::Tier;
    use crate::volume::tests::noise;
    use crate::volume::tiers::Tiers;

    /// Frames of a section of the guest made by hand, and of each block of its modules.
    const SECTION: u64 = 1024;

    /// A guest that has sections of modules from 4 GiB on, in each either free or anonymous frames.
    fn plugged(free: &[bool]) -> Synthetic {
        let mut guest = Synthetic::new();
        let text = String::from_utf8_lossy(&guest.bytes[VMCOREINFO as usize..][..4096]);
        let text = text.replace("LENGTH(mem_section)=4", "LENGTH(mem_section)=5");
        guest.bytes[VMCOREINFO as usize..][..4096].copy_from_slice(text.as_bytes());
        // The root of the sections from 4 GiB on, and their struct pages, 64 bytes each.
        let (roots, sections, memmap) = (SECTIONS - 0x1000, SECTIONS + 0x1000, 0x30_0000);
        guest.put(roots + 8 * 4, BASE + sections);
        for (at, free) in (0..).zip(free) {
            let (number, map) = (1024 + at, memmap + 64 * SECTION * at);
            let encoded = (BASE + map).wrapping_sub(64 * SECTION * number);
            guest.put(sections + 16 * at, encoded | 0b111);
            for frame in 0..SECTION {
                let page = map + 64 * frame;
                guest.put32(page + word::MAPCOUNT, u32::MAX);
                if *free {
                    if frame == 0 {
                        guest.put32(page + word::MAPCOUNT, 0xF000_0000);
                        guest.put(page + word::PRIVATE, 10);
                    }
                } else {
                    guest.put32(page + word::REFCOUNT, 1);
                    guest.put(page + word::MAPPING, 0xFFFF_8880_0000_0001);
                }
            }
        }
        guest
    }

    /// The guest as a stream, with blocks beside its main memory that have no zero page; and where those lie in it.
    fn stream(guest: &Synthetic, blocks: &[(&str, u64)]) -> (Vec<u8>, Vec<Vec<Range<u64>>>) {
        let head = Head {
            machine: "pc-q35-10.0",
            ..Head::default()
        };
        let mut list = vec![("pc.ram", guest.pages())];
        list.extend(blocks);
        // As QEMU lists them.
        list.sort_by_key(|(_, pages)| u64::MAX - pages);
        let mut writer = StreamWriter::new(b"", head, &list);
        let mut places = vec![Vec::new(); blocks.len()];
        writer.next_section(true);
        for (number, (name, pages)) in list.iter().enumerate() {
            let module = blocks.iter().position(|(module, _)| module == name);
            for page in 0..*pages {
                let content = match module {
                    Some(_) => noise(page, PAGE),
                    None => guest.bytes[page as usize * PAGE..][..PAGE].to_vec(),
                };
                let at = writer.page(number, page, &content) as u64;
                if let Some(module) = module {
                    places[module].push(at..at + PAGE as u64);
                }
            }
        }
        (writer.finish(), places)
    }

    /// How many of the pages are expendable.
    fn expendable(bytes: &(impl ByteSource + Sync), pages: &[Range<u64>]) -> usize {
        let snapshot = recognise(bytes, None).expect("recognised");
        assert!(snapshot.map().is_some(), "{snapshot:?}");
        let look = Look::into(snapshot, bytes, &|_| ()).expect("looked into");
        let Tiers::Runs(runs) = look.tiers(ClassSet::MENDABLE, false) else {
            return 0;
        };
        let lost = |page: &&Range<u64>| {
            runs.iter().any(|(run, tier)| {
                *tier == Tier::Expendable && run.start < page.end && page.start < run.end
            })
        };
        pages.iter().filter(lost).count()
    }

    #[test]
    fn one_module_has_one_place() {
        let (bytes, places) = stream(&plugged(&[true, false]), &[("/objects/m0", 2 * SECTION)]);
        let (free, anonymous) = places[0].split_at(SECTION as usize);
        assert_eq!(expendable(&bytes, free), SECTION as usize);
        assert_eq!(expendable(&bytes, anonymous), 0);
    }

    #[test]
    fn where_several_modules_lie_is_not_believed() {
        // The smaller one was plugged first. A stream has the larger one first.
        let guest = plugged(&[true, false, false]);
        let blocks = [("/objects/m0", SECTION), ("/objects/m1", 2 * SECTION)];
        let (bytes, places) = stream(&guest, &blocks);
        assert_eq!(expendable(&bytes, &places[1]), 0);
        // Of the same size, the first one made and the last one plugged.
        let guest = plugged(&[true, false]);
        let blocks = [("/objects/m1", SECTION), ("/objects/m0", SECTION)];
        let (bytes, places) = stream(&guest, &blocks);
        assert_eq!(expendable(&bytes, &places[0]), 0);
        // Made first and no memory that the guest counts, as of an NVDIMM.
        let guest = plugged(&[true]);
        let blocks = [("/objects/nv", SECTION), ("/objects/m0", SECTION)];
        let (bytes, places) = stream(&guest, &blocks);
        assert_eq!(expendable(&bytes, &places[0]), 0);
    }

    #[test]
    fn every_layout_stands_once_and_the_guest_rooms_are_among_them() {
        let bytes = vec![0; 2 << 20];
        let snapshot = index(&bytes).unwrap();
        let maps = all(snapshot.map().unwrap());
        for (at, map) in maps.iter().enumerate() {
            let same = maps
                .iter()
                .skip(at + 1)
                .any(|other| other.layout().ranges() == map.layout().ranges());
            assert!(!same, "{} twice", map.layout());
        }
        for wanted in guest::Layout::candidates(2 << 20) {
            let there = maps.iter().any(|map| {
                map.ram()
                    .map(|(gpa, length)| gpa.0..gpa.0 + length)
                    .collect::<Vec<_>>()
                    == wanted.ranges
            });
            assert!(there, "{wanted:?}");
        }
    }
}
