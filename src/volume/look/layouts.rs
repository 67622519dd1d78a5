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
    use super::*;
    use crate::snapshot::index;

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
