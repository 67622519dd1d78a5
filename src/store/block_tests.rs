//! Blocks come back as they were, and nothing else ever does.

use proptest::prelude::*;

use super::*;
use crate::ids::WindowNo;

fn ids() -> BlockIds {
    BlockIds {
        volume: VolumeId(7),
        file: FileId(8),
        set: SetId(9),
        block: BlockId {
            window: WindowNo(10),
            index: 11,
        },
    }
}

fn record(sealed: &Sealed, raw: usize) -> BlockRecord {
    BlockRecord {
        column: 0,
        encoding: sealed.encoding,
        protected: true,
        lost: false,
        hasty: false,
        offset: 0,
        column_offset: 0,
        stored: sealed.length() as u32,
        raw: raw as u32,
        checksum: sealed.checksum,
    }
}

fn shared(raw: &[u8]) -> Arc<Buffer> {
    Arc::new(raw.to_vec().into())
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(99);
            (state >> 56) as u8
        })
        .collect()
}

#[test]
fn every_encoding_comes_back() {
    let text = b"a page of a guest, or something like one. ".repeat(4000);
    for length in [1, 63, 4096, 100_001, BLOCK_MAX] {
        for (compression, encoding) in [
            (Compression::None, Encoding::Plain),
            (Compression::Lz4, Encoding::Lz4),
            (Compression::Zstd(1), Encoding::Zstd),
        ] {
            let raw = &text[..length];
            let sealed = seal(ids(), &shared(raw), compression);
            if length > 100 {
                assert_eq!(sealed.encoding, encoding);
            }
            assert_eq!(sealed.payload.capacity(), sealed.payload.len());
            let opened = open(ids(), &sealed.bytes(), &record(&sealed, length)).unwrap();
            assert_eq!(&opened[..], raw);
        }
    }
}

#[test]
fn what_does_not_shrink_is_stored_plain() {
    let raw = noise(BLOCK_MAX);
    for compression in [Compression::Lz4, Compression::Zstd(1)] {
        let sealed = seal(ids(), &shared(&raw), compression);
        assert_eq!(sealed.encoding, Encoding::Plain);
        assert_eq!(sealed.length(), HEADER + raw.len());
        let opened = open(ids(), &sealed.bytes(), &record(&sealed, raw.len())).unwrap();
        assert_eq!(&opened[..], raw);
    }
}

#[test]
fn a_block_of_another_place_is_refused() {
    let raw = noise(5000);
    let sealed = seal(ids(), &shared(&raw), Compression::None);
    let record = record(&sealed, raw.len());
    let others: [fn(&mut BlockIds); 5] = [
        |ids| ids.volume.0 += 1,
        |ids| ids.file.0 += 1,
        |ids| ids.set.0 += 1,
        |ids| ids.block.window.0 += 1,
        |ids| ids.block.index += 1,
    ];
    for change in others {
        let mut other = ids();
        change(&mut other);
        let error = open(other, &sealed.bytes(), &record).unwrap_err();
        assert!(matches!(error, BlockError::Foreign { .. }), "{error}");
    }
}

/// A record whose checksum is that of the bad bytes, as an attacker would write it: the lines behind the
/// checksum must hold by themselves.
fn forged(stored: &[u8], encoding: Encoding, raw: u32) -> BlockRecord {
    BlockRecord {
        column: 0,
        encoding,
        protected: false,
        lost: false,
        hasty: false,
        offset: 0,
        column_offset: 0,
        stored: stored.len() as u32,
        raw,
        checksum: xxh3_64(stored.get(..BLOCK_HEADER).unwrap_or(stored)),
    }
}

/// A record and header that agree on a wrong length: what comes out must be of that length, or nothing.
#[test]
fn a_wrong_length_is_no_block() {
    let text = b"again and again ".repeat(300);
    for compression in [Compression::Lz4, Compression::Zstd(1)] {
        let sealed = seal(ids(), &shared(&text), compression);
        for raw in [text.len() as u32 - 1, text.len() as u32 + 1] {
            let mut header = Header::decode(&sealed.bytes()).unwrap();
            header.raw = raw;
            let stored = [&header.encode()[..], &sealed.bytes()[HEADER..]].concat();
            let opened = open(ids(), &stored, &forged(&stored, sealed.encoding, raw));
            assert_eq!(opened, Err(BlockError::Decompress));
        }
    }
}

#[test]
fn a_bomb_needs_no_memory() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    for raw in [BLOCK_MAX as u32, 1, u32::MAX] {
        let header = Header {
            kind: Kind::Block,
            detail: Encoding::Zstd as u8,
            place: ids().block.index,
            volume: ids().volume,
            file: ids().file,
            set: ids().set,
            window: ids().block.window,
            raw,
            length: bomb.len() as u32,
            checksum: xxh3_64(&bomb),
        };
        let stored = [&header.encode()[..], &bomb].concat();
        let error = open(ids(), &stored, &forged(&stored, Encoding::Zstd, raw)).unwrap_err();
        assert!(matches!(
            error,
            BlockError::Decompress | BlockError::TooLarge(_)
        ));
    }
}

proptest! {
    #[test]
    fn a_damaged_block_is_never_given_out(
        length in 1usize..20_000,
        compress in any::<bool>(),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let raw: Vec<u8> = if compress { vec![5; length] } else { noise(length) };
        let sealed = seal(ids(), &shared(&raw), Compression::Lz4);
        let record = record(&sealed, length);
        let mut bad = sealed.bytes();
        let at = at.index(bad.len());
        bad[at] ^= 1 << bit;
        prop_assert_eq!(open(ids(), &bad, &record), Err(BlockError::Checksum));
        let short = open(ids(), &sealed.bytes()[..at], &record);
        let is_length = matches!(short, Err(BlockError::Length { .. }));
        prop_assert!(is_length);
    }

    #[test]
    fn hostile_bytes_do_not_panic(
        payload in prop::collection::vec(any::<u8>(), 0..300),
        header in any::<bool>(),
        encoding in prop::sample::select(vec![Encoding::Plain, Encoding::Zstd, Encoding::Lz4]),
        raw in prop_oneof![0u32..400, any::<u32>()],
    ) {
        let mut stored = payload.clone();
        if header {
            let header = Header {
                kind: Kind::Block,
                detail: encoding as u8,
                place: ids().block.index,
                volume: ids().volume,
                file: ids().file,
                set: ids().set,
                window: ids().block.window,
                raw,
                length: payload.len() as u32,
                checksum: 0,
            };
            stored = [&header.encode()[..], &payload].concat();
        }
        if let Ok(opened) = open(ids(), &stored, &forged(&stored, encoding, raw)) {
            prop_assert_eq!(opened.len(), raw as usize);
        }
    }
}
