//! Pages with many deltas: every read of one reads all of them, so there is an end to how many are followed.

use super::counting::Counting;
use super::examine::examine;
use super::writers::{Head, PAGE, StreamWriter, page_of};
use crate::snapshot::supersede::DELTAS_MAX;
use crate::snapshot::{Content, Gpa, PageMap, PieceKind, Place, SnapshotError};

const PATCHED: Gpa = Gpa(PAGE as u64);

/// A page that many deltas change, among others; `again` has it sent as a whole behind all of them but one.
fn live(deltas: usize, again: bool) -> Vec<u8> {
    let head = Head {
        machine: "pc-q35-10.0",
        ..Head::default()
    };
    let mut writer = StreamWriter::new(&[], head, &[("pc.ram", 4)]);
    writer.next_section(true);
    for page in 0..4 {
        writer.page(0, page, &page_of(page, 1));
    }
    for turn in 0..deltas {
        writer.delta(0, 1, 9, &[turn as u8 ^ 0x55]);
    }
    if again {
        writer.page(0, 1, &page_of(1, 7));
        writer.delta(0, 1, 9, b"last");
    }
    writer.finish()
}

/// The map, and the same as it is kept beside the file.
fn maps(bytes: &[u8]) -> [PageMap; 2] {
    let map = examine(bytes, 4096).map().cloned().unwrap();
    let kept = PageMap::decode(&map.encode()).unwrap();
    [map, kept]
}

#[test]
fn as_many_deltas_as_a_save_makes_are_followed() {
    let bytes = live(DELTAS_MAX, false);
    let mut wanted = page_of(1, 1);
    wanted[9] = (DELTAS_MAX - 1) as u8 ^ 0x55;
    for map in maps(&bytes) {
        let source = Counting::new(&bytes);
        let mut page = vec![0; PAGE];
        let read = map.read(&source, PATCHED, &mut page).unwrap();
        assert_eq!(read, Content::Bytes);
        assert!(page == wanted);
        assert_eq!(source.reads(), 1 + DELTAS_MAX as u64);
        assert_eq!(map.patched().collect::<Vec<_>>(), [PATCHED.0]);
    }
}

#[test]
fn a_page_with_more_deltas_is_not_read_and_all_of_it_is_critical() {
    for deltas in [DELTAS_MAX + 1, 5000] {
        let bytes = live(deltas, false);
        for map in maps(&bytes) {
            let source = Counting::new(&bytes);
            let mut page = vec![0; PAGE];
            let read = map.read(&source, PATCHED, &mut page);
            assert!(
                matches!(
                    read,
                    Err(SnapshotError::TooManyDeltas { deltas: many, most: DELTAS_MAX, .. })
                        if many == deltas
                ),
                "{read:?}"
            );
            assert_eq!(source.reads(), 0);
            assert_eq!(map.lookup(PATCHED), Place::Patched);
            // The page's bytes are of no page, and the others are what they were.
            let pages = map
                .pieces(0..u64::MAX)
                .filter_map(|piece| match piece.kind {
                    PieceKind::Page(gpa) => Some((gpa.0, piece.range.end - piece.range.start)),
                    PieceKind::Framing | PieceKind::Dead => None,
                });
            let size = PAGE as u64;
            assert_eq!(
                pages.collect::<Vec<_>>(),
                [(0, size), (2 * size, size), (3 * size, size)]
            );
            for other in [0, 2, 3] {
                let gpa = Gpa(other * size);
                assert_eq!(map.read(&source, gpa, &mut page).unwrap(), Content::Bytes);
                assert!(page == page_of(other, 1));
            }
        }
    }
}

#[test]
fn deltas_before_the_page_is_sent_again_do_not_count() {
    let bytes = live(3 * DELTAS_MAX, true);
    let mut wanted = page_of(1, 7);
    wanted[9..13].copy_from_slice(b"last");
    for map in maps(&bytes) {
        let source = Counting::new(&bytes);
        let mut page = vec![0; PAGE];
        map.read(&source, PATCHED, &mut page).unwrap();
        assert!(page == wanted);
        assert_eq!(source.reads(), 2);
    }
}
