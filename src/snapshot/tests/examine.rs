//! What must be true of any answer about any bytes.

use super::snapshot::{Gpa, Indexer, PageMap, PieceKind, Place, Snapshot, index_within};

/// The map may take this many bytes.
const LIMIT: u64 = 1 << 20;

/// Looks through the bytes, and follows them in parts of the given length; panics if an answer contradicts
/// itself or the other.
pub fn examine(bytes: &[u8], part: usize) -> Snapshot {
    let snapshot = index_within(&bytes, LIMIT).unwrap();
    check(&snapshot, bytes.len() as u64);
    let mut indexer = Indexer::within(LIMIT);
    for (at, part) in (0..).step_by(part.max(1)).zip(bytes.chunks(part.max(1))) {
        indexer.feed(at, part);
    }
    assert!(indexer.memory() <= 2 * LIMIT);
    let followed = indexer.finish(&bytes).unwrap();
    assert_same(&followed, &snapshot);
    snapshot
}

/// Two answers are one.
pub fn assert_same(a: &Snapshot, b: &Snapshot) {
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

fn check(snapshot: &Snapshot, length: u64) {
    let Some(map) = snapshot.map() else { return };
    assert!(map.memory() <= 2 * LIMIT + (64 << 10), "{map:?}");
    for layout in map.layouts() {
        let map = map.with_layout(layout);
        let mut at = 0;
        let mut in_pieces = 0;
        for piece in map.pieces(0..u64::MAX) {
            assert_eq!(piece.range.start, at, "a gap");
            assert!(piece.range.end > at);
            at = piece.range.end;
            if let PieceKind::Page(gpa) = piece.kind {
                assert_eq!(
                    map.lookup(gpa),
                    Place::Stored(piece.range.start),
                    "{piece:?}"
                );
                in_pieces += piece.range.end - piece.range.start;
            }
        }
        assert_eq!(at, length);
        let mut by_address = 0;
        let mut after = 0;
        for run in map.addresses(Gpa(0)..Gpa(1 << 52)) {
            assert!(run.gpa.0 >= after && run.pages > 0, "{run:?}");
            after = run.gpa.0 + run.pages * map.page_size();
            let last = run.pages - 1;
            let last_place = map.lookup(Gpa(run.gpa.0 + last * map.page_size()));
            match run.place {
                Place::Stored(first) => {
                    assert_eq!(last_place, Place::Stored(first + last * run.stride));
                    by_address += run.pages * map.page_size();
                }
                other => assert_eq!(last_place, other),
            }
        }
        assert_eq!(by_address, in_pieces, "pages by address and by offset");
        let kept = PageMap::decode(&map.encode()).expect("a map that was encoded");
        assert!(kept.pieces(0..u64::MAX).eq(map.pieces(0..u64::MAX)));
        let whole = || Gpa(0)..Gpa(1 << 52);
        assert!(kept.addresses(whole()).eq(map.addresses(whole())));
        assert_eq!(kept.blocks(), map.blocks());
        assert_eq!(kept.layout(), map.layout());
        assert_eq!(kept.counts(), map.counts());
    }
    let bytes = map.encode();
    for length in (0..bytes.len()).step_by(1 + bytes.len() / 40) {
        // Whatever is cut off, what is left is a map or none.
        if let Some(map) = PageMap::decode(&bytes[..length]) {
            assert!(map.pieces(0..u64::MAX).count() > 0 || map.file_length() == 0);
        }
    }
}
