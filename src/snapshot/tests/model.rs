//! Random streams and random ways to write them, against a model that remembers every page.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::examine::{assert_same, examine};
use super::writers::{self, Head, PAGE, StreamWriter, page_of};
use crate::snapshot::{Content, Gpa, Indexer, PieceKind, Place, index};

const PAGES: u64 = 3000;

/// What the guest's memory does to a stream.
#[derive(Clone, Debug)]
enum Step {
    /// Pages in a row; a set bit of the pattern is a page, a clear one a zero page.
    Row {
        first: u64,
        count: u64,
        pattern: u64,
    },
    /// One page again.
    Page(u64),
    Zero(u64),
    /// Bytes of a page that change, if it has been sent.
    Delta {
        page: u64,
        at: u8,
        bytes: Vec<u8>,
    },
    /// A page of a device.
    Device(u64),
    Section,
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..PAGES, 1..PAGES, any::<u64>())
            .prop_map(|(first, count, pattern)| Step::Row { first, count: count.min(PAGES - first), pattern }),
        1 => (0..PAGES, 1..600_u64, Just(u64::MAX))
            .prop_map(|(first, count, pattern)| Step::Row { first, count: count.min(PAGES - first), pattern }),
        8 => (0..PAGES).prop_map(Step::Page),
        4 => (0..PAGES).prop_map(Step::Zero),
        8 => (0..PAGES, 0..100_u8, prop::collection::vec(any::<u8>(), 1..90))
            .prop_map(|(page, at, bytes)| Step::Delta { page, at, bytes }),
        1 => (0..16_u64).prop_map(Step::Device),
        2 => Just(Step::Section),
        1 => Just(Step::Flush),
    ]
}

#[derive(Default)]
struct Model {
    /// What the guest sees.
    content: HashMap<u64, Vec<u8>>,
    /// The last whole record: its payload's offset, or none if zero; and whether deltas follow.
    last: HashMap<u64, (Option<usize>, bool)>,
    /// Payloads and whose they are.
    payloads: BTreeMap<usize, u64>,
}

fn build(steps: &[Step]) -> (Vec<u8>, Model) {
    let head = Head {
        machine: "pc-i440fx-9.2",
        ..Head::default()
    };
    let mut writer = StreamWriter::new(&[], head, &[("pc.ram", PAGES), ("vga.vram", 16)]);
    writer.next_section(false);
    let mut model = Model::default();
    let mut turn = 0_u8;
    let whole = |writer: &mut StreamWriter, model: &mut Model, page: u64, zero: bool, turn: u8| {
        if zero {
            writer.zero(0, page);
            model.content.insert(page, vec![0; PAGE]);
            model.last.insert(page, (None, false));
        } else {
            let content = page_of(page, turn);
            let at = writer.page(0, page, &content);
            model.content.insert(page, content);
            model.last.insert(page, (Some(at), false));
            model.payloads.insert(at, page);
        }
    };
    for step in steps {
        turn = turn.wrapping_add(1);
        match step {
            Step::Row {
                first,
                count,
                pattern,
            } => {
                for page in *first..first + count {
                    let zero = pattern >> (page % 64) & 1 == 0;
                    whole(&mut writer, &mut model, page, zero, turn);
                }
            }
            Step::Page(page) => whole(&mut writer, &mut model, *page, false, turn),
            Step::Zero(page) => whole(&mut writer, &mut model, *page, true, turn),
            Step::Delta { page, at, bytes } => {
                if let Some(content) = model.content.get_mut(page) {
                    writer.delta(0, *page, *at, bytes);
                    content[usize::from(*at)..][..bytes.len()].copy_from_slice(bytes);
                    model.last.get_mut(page).unwrap().1 = true;
                }
            }
            Step::Device(page) => {
                // Numbered behind the guest's; sent twice, the first is dead as any other's.
                let at = writer.page(1, *page, &page_of(*page, turn));
                model.last.insert(PAGES + page, (Some(at), false));
                model.payloads.insert(at, PAGES + page);
            }
            Step::Section => writer.next_section(false),
            Step::Flush => writer.flush(),
        }
    }
    writer.next_section(true);
    (writer.finish(), model)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_stream_is_what_the_model_remembers(steps in prop::collection::vec(step(), 0..60), part in 1..200_000_usize) {
        let (bytes, model) = build(&steps);
        let snapshot = examine(&bytes, part);
        let map = snapshot.map().unwrap();
        let mut buffer = vec![0; PAGE];
        for page in 0..PAGES {
            let gpa = Gpa(page * PAGE as u64);
            let content = map.read(&bytes, gpa, &mut buffer).unwrap();
            let wanted = match model.last.get(&page) {
                None => Place::Absent,
                Some((_, true)) => Place::Patched,
                Some((None, false)) => Place::Zero,
                Some((Some(at), false)) => Place::Stored(*at as u64),
            };
            prop_assert_eq!(map.lookup(gpa), wanted, "page {}", page);
            prop_assert_eq!(content == Content::Absent, wanted == Place::Absent);
            if let Some(wanted) = model.content.get(&page) {
                prop_assert!(&buffer == wanted, "page {}", page);
            }
        }
        // Heads that are lost are written again, whatever part of the file is asked for.
        let mut wiped = bytes.clone();
        let mut heads = map.heads(0);
        for piece in map.pieces(0..u64::MAX).filter(|piece| piece.kind == PieceKind::Framing) {
            if heads.has(&piece.range) {
                wiped[piece.range.start as usize..piece.range.end as usize].fill(0);
            }
        }
        for (at, part) in (0..).step_by(part).zip(wiped.chunks_mut(part)) {
            map.write_heads(at, part);
        }
        prop_assert!(wiped == bytes);
        // Each payload is a page, dead, or a base; all else is framing.
        let mut pages = BTreeMap::new();
        let mut dead = BTreeMap::new();
        for piece in map.pieces(0..u64::MAX) {
            let range = piece.range.start as usize..piece.range.end as usize;
            match piece.kind {
                PieceKind::Page(gpa) => drop(pages.insert(range.start, (gpa.0 / PAGE as u64, range.len()))),
                PieceKind::Dead => drop(dead.insert(range.start, range.len())),
                PieceKind::Framing => {}
            }
        }
        let mut wanted_pages = BTreeMap::new();
        let mut wanted_dead = BTreeMap::new();
        for (at, page) in &model.payloads {
            match model.last[page] {
                (Some(last), _) if last == *at && *page >= PAGES => {}
                (Some(last), false) if last == *at => drop(wanted_pages.insert(*at, (*page, PAGE))),
                (Some(last), true) if last == *at => {}
                _ => drop(wanted_dead.insert(*at, PAGE)),
            }
        }
        prop_assert_eq!(pages, wanted_pages);
        prop_assert_eq!(dead, wanted_dead);
    }

    #[test]
    fn parts_in_any_order_make_the_same_map(
        steps in prop::collection::vec(step(), 0..20),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        swaps in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..3),
        again in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let (bytes, _) = build(&steps);
        let wanted = index(&bytes).unwrap();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut parts: Vec<(usize, usize)> = cuts.windows(2).map(|cut| (cut[0], cut[1])).collect();
        for (a, b) in swaps {
            let (a, b) = (a.index(parts.len()), b.index(parts.len()));
            parts.swap(a, b);
        }
        for part in again {
            parts.push(parts[part.index(parts.len())]);
        }
        let mut indexer = Indexer::new();
        for (from, to) in parts {
            indexer.feed(from as u64, &bytes[from..to]);
        }
        assert_same(&indexer.finish(&bytes).unwrap(), &wanted);
    }

    #[test]
    fn a_bitmap_is_what_it_says(set in prop::collection::vec(any::<bool>(), 1..700), small in 1..5_u64) {
        let pages: Vec<Option<Vec<u8>>> =
            (0..).zip(&set).map(|(page, set)| set.then(|| page_of(page, 1))).collect();
        let other: Vec<Option<Vec<u8>>> = (0..small).map(|page| Some(page_of(page, 7))).collect();
        let (bytes, _) = writers::mapped_ram(&[], &[("pc.ram", pages), ("vga.vram", other)], Some(3));
        let snapshot = index(&bytes).unwrap();
        let map = snapshot.map().unwrap();
        let mut buffer = vec![0; PAGE];
        for (page, set) in (0..).zip(&set) {
            let gpa = Gpa(page * PAGE as u64);
            let content = map.read(&bytes, gpa, &mut buffer).unwrap();
            prop_assert_eq!(content, if *set { Content::Bytes } else { Content::Zero });
            let wanted = if *set { page_of(page, 1) } else { vec![0; PAGE] };
            prop_assert!(buffer == wanted, "page {}", page);
        }
    }
}
