//! Deltas come back as they were, and damaged ones never as anything else.

use proptest::prelude::*;

use super::*;
use crate::store::window_form::tests::window;

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![
        Just(Source::Hole),
        (any::<u32>(), 0u16..256, 0u32..1000).prop_map(|(window, index, offset)| Source::Block {
            block: BlockId {
                window: WindowNo(window),
                index
            },
            offset
        }),
        (any::<u32>(), 0u32..1000).prop_map(|(piece, offset)| Source::Inline { piece, offset }),
    ]
}

fn delta() -> impl Strategy<Value = Delta> {
    let windows = (0u32..4).prop_flat_map(|count| (0..count).map(window).collect::<Vec<_>>());
    let dropped = prop::collection::btree_set(any::<u32>(), 0..5);
    let extents = prop::collection::vec((0u64..1 << 40, 1u64..100_000, source()), 0..20);
    (windows, dropped, extents, any::<u32>(), any::<u32>()).prop_map(
        |(windows, dropped, extents, next_window, next_piece)| {
            let mut behind = 0;
            let extents = extents.into_iter().map(|(gap, length, source)| {
                let start = behind + gap;
                behind = start + length;
                Extent {
                    range: start..behind,
                    source,
                }
            });
            Delta {
                windows,
                dropped: dropped.into_iter().map(WindowNo).collect(),
                extents: extents.collect(),
                next_window,
                next_piece,
            }
        },
    )
}

fn with_checksum(mut content: Vec<u8>) -> Vec<u8> {
    let checksum = xxh3_64(&content);
    content.extend_from_slice(&checksum.to_le_bytes());
    content
}

#[test]
fn a_delta_without_order_cannot_be_written() {
    let hole = |range| Extent {
        range,
        source: Source::Hole,
    };
    for extents in [vec![hole(5..9), hole(8..10)], vec![hole(5..5)]] {
        let delta = Delta {
            extents,
            ..Delta::default()
        };
        assert!(encode(&delta).is_err());
    }
    let delta = Delta {
        dropped: vec![WindowNo(3), WindowNo(2)],
        ..Delta::default()
    };
    assert!(encode(&delta).is_err());
}

#[test]
fn a_small_commit_is_small() {
    let delta = Delta {
        extents: vec![Extent {
            range: 4096..8192,
            source: Source::Inline {
                piece: 7,
                offset: 0,
            },
        }],
        ..Delta::default()
    };
    assert!(encode(&delta).unwrap().len() < 24);
}

#[test]
fn counts_alone_allocate_nothing() {
    let mut content = vec![VERSION, 0, 0];
    put_varint(&mut content, u64::MAX);
    assert!(decode(&with_checksum(content)).is_err());
    assert_eq!(decode(&with_checksum(vec![2])), Err(DeltaError::Version(2)));
    assert_eq!(decode(&[]), Err(DeltaError::Checksum));
}

proptest! {
    #[test]
    fn deltas_come_back(delta in delta()) {
        prop_assert_eq!(decode(&encode(&delta).unwrap()), Ok(delta));
    }

    #[test]
    fn a_flipped_bit_is_seen(delta in delta(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = encode(&delta).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(decode(&bytes), Err(DeltaError::Checksum));
        prop_assert!(decode(&bytes[..at]).is_err());
    }

    /// Hostile: the checksum is good, the content is not. What is decoded can be encoded again.
    #[test]
    fn what_is_accepted_is_possible(
        delta in delta(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encode(&delta).unwrap();
        bytes.truncate(bytes.len() - 8);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(accepted) = decode(&with_checksum(bytes)) {
            prop_assert!(encode(&accepted).is_ok());
        }
    }

    #[test]
    fn noise_does_not_panic(content in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&with_checksum(content.clone()));
        let mut with_version = vec![VERSION];
        with_version.extend(content);
        let _ = decode(&with_checksum(with_version));
    }
}
