//! Records come back as they were; impossible ones are refused both ways. The generator of records is used
//! by the tests of manifests and deltas too.

use proptest::prelude::*;

use super::*;

fn block(k: u8) -> impl Strategy<Value = BlockRecord> {
    let encoding = prop::sample::select(vec![Encoding::Plain, Encoding::Zstd, Encoding::Lz4]);
    let stored = (1u32..=BLOCK_MAX as u32).prop_flat_map(|raw| {
        (
            Just(raw),
            BLOCK_HEADER as u32 + 1..=raw + BLOCK_HEADER as u32,
        )
    });
    let place = (0..1u64 << 40, 0u32..1 << 24, any::<u64>());
    (0..k, encoding, any::<bool>(), stored, place, 0u8..8).prop_map(
        |(
            column,
            encoding,
            protected,
            (raw, stored),
            (offset, column_offset, checksum),
            given_up,
        )| {
            let alive = given_up > 0;
            BlockRecord {
                column,
                encoding,
                protected: protected && alive,
                lost: !protected && given_up == 7,
                hasty: alive && encoding == Encoding::Plain && given_up % 2 == 0,
                offset,
                column_offset,
                stored: if alive { stored } else { 0 },
                raw: if alive { raw } else { 0 },
                checksum,
            }
        },
    )
}

pub(in crate::store) fn window(no: u32) -> impl Strategy<Value = WindowRecord> {
    (1u8..=8, 0u8..=3)
        .prop_flat_map(move |(k, m)| {
            let blocks = prop::collection::vec(block(k), 0..40);
            let parity = prop::collection::vec((64u64..1 << 40, any::<u64>()), usize::from(m));
            (
                Just((k, m)),
                blocks,
                parity,
                1u64..9,
                1u64..9,
                0u16..100,
                any::<bool>(),
            )
        })
        .prop_map(
            move |((k, m), blocks, parity, set, parity_set, disk, owed)| {
                let shard = |&(offset, checksum): &(u64, u64)| ParityShard { offset, checksum };
                WindowRecord {
                    no: WindowNo(no),
                    set: SetId(set),
                    code: Code { k, m },
                    disks: (disk..disk + u16::from(k + m)).map(DiskId).collect(),
                    parity_set: SetId(parity_set),
                    parity_length: if owed { 0 } else { 32 << 20 },
                    parity: if owed {
                        Vec::new()
                    } else {
                        parity.iter().map(shard).collect()
                    },
                    blocks,
                }
            },
        )
}

fn full() -> WindowRecord {
    let block = |index: u32| BlockRecord {
        column: (index % 28) as u8,
        encoding: Encoding::Zstd,
        protected: true,
        lost: false,
        hasty: false,
        offset: u64::from(index) << 17,
        column_offset: (index / 28) << 17,
        stored: 100_000,
        raw: BLOCK_MAX as u32,
        checksum: index.into(),
    };
    WindowRecord {
        no: WindowNo(3),
        set: SetId(4),
        code: Code { k: 28, m: 4 },
        disks: (0..32).map(DiskId).collect(),
        parity_set: SetId(5),
        parity_length: 2 << 20,
        parity: vec![
            ParityShard {
                offset: 64,
                checksum: 1
            };
            4
        ],
        blocks: (0..256).map(block).collect(),
    }
}

#[test]
fn the_largest_record_fits_its_bound() {
    let mut window = full();
    window.code = Code { k: 1, m: 31 };
    window.parity = vec![window.parity[0]; 31];
    window.parity_length = 32 << 20;
    window.blocks.iter_mut().for_each(|block| block.column = 0);
    let mut bytes = Vec::new();
    put_window(&mut bytes, &window).unwrap();
    // A code without columns would be the only longer one.
    assert_eq!(bytes.len(), WINDOW_FORM_MAX - 16);
    assert_eq!(take_window(&mut Wire::new(&bytes)), Ok(window));
}

#[test]
fn impossible_records_are_refused() {
    let changes: [fn(&mut WindowRecord); 17] = [
        |w| w.code.k = 0,
        |w| w.code.m = 5,
        |w| w.disks[3] = w.disks[2],
        |w| w.disks.truncate(31),
        |w| w.parity.truncate(3),
        |w| w.parity[1].offset = 63,
        |w| w.parity[1].offset = u64::MAX - 5,
        |w| w.parity_length += 1,
        |w| w.parity_length = 1 << 30,
        |w| w.parity_length = 64,
        |w| w.blocks.push(w.blocks[0]),
        |w| w.blocks[9].column = 28,
        |w| w.blocks[9].raw = BLOCK_MAX as u32 + 1,
        |w| w.blocks[9].stored = 64,
        |w| w.blocks[9].stored = 1 << 18,
        |w| w.blocks[9].offset = u64::MAX - 5,
        |w| w.blocks[9].stored = 0,
    ];
    for (case, change) in changes.into_iter().enumerate() {
        let mut window = full();
        change(&mut window);
        assert!(put_window(&mut Vec::new(), &window).is_err(), "case {case}");
    }
}

proptest! {
    #[test]
    fn records_come_back(window in window(77)) {
        let mut bytes = vec![1, 2, 3];
        put_window(&mut bytes, &window).unwrap();
        bytes.push(4);
        let mut wire = Wire::new(&bytes[3..]);
        prop_assert_eq!(take_window(&mut wire), Ok(window));
        prop_assert_eq!(wire.left(), 1);
    }

    #[test]
    fn damaged_records_are_possible_or_refused(
        window in window(77),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let mut bytes = Vec::new();
        put_window(&mut bytes, &window).unwrap();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(window) = take_window(&mut Wire::new(&bytes)) {
            prop_assert_eq!(validate(&window), Ok(()));
        }
    }

    #[test]
    fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = take_window(&mut Wire::new(&bytes));
    }
}
