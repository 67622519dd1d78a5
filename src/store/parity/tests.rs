//! Any `k` shards give back all others, for every code and every loss, in any aligned range.

use std::sync::Arc;

use proptest::prelude::*;
use reed_solomon_simd::ReedSolomonDecoder;
use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::store::records::BLOCK_MAX;

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .collect()
}

/// Columns of different lengths in slices of different lengths.
fn columns(k: usize, longest: usize) -> Vec<Vec<Vec<u8>>> {
    (0..k)
        .map(|column| {
            let length = longest - (column * 977) % longest.max(1);
            let bytes = noise(column as u64 + 1, length);
            bytes
                .chunks(1000 + column * 331)
                .map(<[u8]>::to_vec)
                .collect()
        })
        .collect()
}

fn padded(column: &[Vec<u8>], length: usize) -> Vec<u8> {
    let mut bytes = column.concat();
    bytes.resize(length, 0);
    bytes
}

/// All shards as equals: the padded columns, then the parity.
fn shards(code: Code, columns: &[Vec<Vec<u8>>]) -> Vec<Vec<u8>> {
    let parity = encode(code, columns).unwrap();
    let length = parity.first().map_or(0, Vec::len);
    let mut shards: Vec<_> = columns.iter().map(|c| padded(c, length)).collect();
    shards.extend(parity);
    shards
}

fn all_losses(code: Code, shards: &[Vec<u8>]) {
    let n = shards.len();
    for lost in 0u32..1 << n {
        if lost.count_ones() > u32::from(code.m) {
            continue;
        }
        let is_lost = |shard: usize| lost & (1 << shard) != 0;
        let present: Vec<(usize, &[u8])> = (0..n)
            .filter(|&shard| !is_lost(shard))
            .map(|shard| (shard, shards[shard].as_slice()))
            .collect();
        let wanted: Vec<usize> = (0..n).filter(|&shard| is_lost(shard)).collect();
        let rebuilt = reconstruct(code, &present, &wanted).unwrap();
        for (shard, bytes) in wanted.iter().zip(&rebuilt) {
            assert!(
                bytes == &shards[*shard],
                "{code} lost {wanted:?}: shard {shard}"
            );
        }
    }
}

#[test]
fn every_loss_of_every_code_up_to_eight_and_three() {
    for k in 1..=8 {
        for m in 0..=3 {
            let code = Code { k, m };
            all_losses(code, &shards(code, &columns(k.into(), 300)));
        }
    }
}

#[test]
fn more_parity_than_columns() {
    for (k, m) in [(2, 5), (3, 4), (1, 5), (5, 5)] {
        let code = Code { k, m };
        all_losses(code, &shards(code, &columns(k.into(), 130)));
    }
}

#[test]
fn the_widest_code() {
    let code = Code { k: 28, m: 4 };
    let shards = shards(code, &columns(28, 5000));
    for first in 0..29 {
        let present: Vec<(usize, &[u8])> = (0..32)
            .filter(|shard| !(first..first + 4).contains(shard))
            .map(|shard| (shard, shards[shard].as_slice()))
            .collect();
        let wanted: Vec<usize> = (first..(first + 4).min(32)).collect();
        let rebuilt = reconstruct(code, &present, &wanted).unwrap();
        assert!(rebuilt.iter().eq(&shards[first..(first + 4).min(32)]));
    }
}

#[test]
fn tiles_make_no_difference_to_the_parity() {
    let code = Code { k: 4, m: 2 };
    let columns = columns(4, 3 * TILE + 12_345);
    let tiled = encode(code, &columns).unwrap();
    let whole: Vec<Vec<u8>> = columns.iter().map(|c| padded(c, tiled[0].len())).collect();
    assert_eq!(tiled, reed_solomon_simd::encode(4, 2, &whole).unwrap());
}

/// What the whole store relies on: an aligned range of all shards is a codeword by itself.
#[test]
fn an_aligned_range_is_a_codeword() {
    let code = Code { k: 5, m: 3 };
    let shards = shards(code, &columns(5, 100_000));
    for range in [0..64, 64..192, 6_400..70_400, 99_968..100_032] {
        let cut: Vec<&[u8]> = shards.iter().map(|shard| &shard[range.clone()]).collect();
        let parity = reed_solomon_simd::encode(5, 3, &cut[..5]).unwrap();
        assert!(parity.iter().eq(&cut[5..]), "{range:?}");
    }
}

#[test]
fn copies_are_copies() {
    let copies = encode(Code { k: 1, m: 2 }, &[[&b"one"[..], b"two"]]).unwrap();
    assert_eq!(copies.len(), 2);
    for copy in copies {
        assert_eq!(copy.len(), 64);
        assert_eq!(&copy[..7], b"onetwo\0");
    }
    assert!(
        encode::<_, &[u8]>(Code { k: 3, m: 0 }, &[[], [], []])
            .unwrap()
            .is_empty()
    );
    let empty = encode::<_, &[u8]>(Code { k: 2, m: 2 }, &[[], []]).unwrap();
    assert_eq!(empty, [[0u8; 0]; 2]);
}

#[test]
fn what_cannot_be_coded_is_refused() {
    let code = Code { k: 2, m: 1 };
    let (a, b) = ([1; 64], [2; 128]);
    let error = |present: &[(usize, &[u8])], wanted: &[usize]| {
        reconstruct(code, present, wanted).unwrap_err()
    };
    assert!(matches!(
        error(&[(0, &a)], &[1]),
        ParityError::TooFew { .. }
    ));
    assert!(matches!(
        error(&[(0, &a), (0, &a)], &[1]),
        ParityError::Shard { .. }
    ));
    assert!(matches!(
        error(&[(0, &a), (3, &a)], &[1]),
        ParityError::Shard { .. }
    ));
    assert!(matches!(
        error(&[(0, &a), (2, &a)], &[3]),
        ParityError::Shard { .. }
    ));
    assert!(matches!(
        error(&[(0, &a), (2, &b)], &[1]),
        ParityError::Length { .. }
    ));
    assert!(matches!(
        error(&[(0, &a[..5]), (2, &a[..5])], &[1]),
        ParityError::Length { .. }
    ));
    for bad in [
        Code { k: 0, m: 1 },
        Code { k: 30, m: 3 },
        Code { k: 255, m: 255 },
    ] {
        assert_eq!(reconstruct(bad, &[], &[]), Err(ParityError::Code(bad)));
    }
    let one_column = [[&a[..]]];
    assert!(matches!(
        encode(code, &one_column),
        Err(ParityError::Columns { .. })
    ));
}

#[test]
fn a_shard_is_known_by_its_header() {
    let ids = ParityIds {
        volume: VolumeId(1),
        file: FileId(2),
        set: SetId(3),
        window: WindowNo(4),
        code: Code { k: 4, m: 2 },
        shard: 1,
    };
    let bytes = noise(9, 640);
    let checksum = xxh3_64(&bytes);
    let header = shard_header(ids, 640, checksum);
    assert_eq!(check_shard_header(ids, &header, 640, checksum), Ok(()));
    assert!(check_shard_header(ids, &header, 704, checksum).is_err());
    assert!(check_shard_header(ids, &header, 640, checksum + 1).is_err());
    let other = ParityIds { shard: 0, ..ids };
    assert_eq!(
        check_shard_header(other, &header, 640, checksum),
        Err(HeaderError::Foreign)
    );
}

#[test]
fn shards_in_pieces_are_the_same() {
    let lengths = [BLOCK_MAX + 5000, 70, BLOCK_MAX / 2];
    let columns: Vec<Vec<Vec<u8>>> = lengths
        .iter()
        .map(|&length| {
            noise(length as u64, length)
                .chunks(9000)
                .map(<[u8]>::to_vec)
                .collect()
        })
        .collect();
    for code in [Code { k: 3, m: 2 }, Code { k: 1, m: 2 }] {
        let columns = &columns[..usize::from(code.k)];
        let whole = encode(code, columns).unwrap();
        let pieces = encode_shards(code, columns, &Arc::default()).unwrap();
        assert_eq!(pieces.len(), whole.len());
        for (made, whole) in pieces.iter().zip(&whole) {
            let bytes: Vec<u8> = made
                .pieces
                .iter()
                .flat_map(|piece| piece.to_vec())
                .collect();
            assert_eq!(&bytes, whole);
            assert_eq!(made.length as usize, whole.len());
            assert_eq!(made.checksum, xxh3_64(whole));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn shards_made_stretch_by_stretch_are_the_same(
        k in 1usize..5,
        m in 1usize..4,
        cuts in prop::collection::vec(1usize..9, 0..4),
        ends in prop::collection::vec(0usize..60_000, 5),
        seed in any::<u64>(),
    ) {
        let code = Code { k: k as u8, m: m as u8 };
        let grown: usize = cuts.iter().map(|cut| cut * PARITY_STRETCH as usize).sum();
        // One column ended early, as one whose disk failed.
        let length = |column: usize| match column {
            1 => grown / 2 + 7,
            _ => grown + ends[column],
        };
        let columns: Vec<Vec<u8>> = (0..k).map(|c| noise(seed ^ c as u64, length(c))).collect();
        let whole = encode(code, &columns.iter().map(|column| [column]).collect::<Vec<_>>()).unwrap();
        let mut maker = ShardMaker::new(code, &Arc::default());
        let mut at = 0;
        for end in cuts.iter().map(|cut| Some(cut * PARITY_STRETCH as usize)).chain([None]) {
            let end = end.map_or(usize::MAX, |cut| at + cut);
            let part: Vec<[&[u8]; 1]> = columns
                .iter()
                .map(|column| [&column[at.min(column.len())..end.min(column.len())]])
                .collect();
            maker.add(&part);
            at = end;
        }
        let made = maker.finish().unwrap();
        prop_assert_eq!(made.len(), whole.len());
        for (made, whole) in made.iter().zip(&whole) {
            let bytes: Vec<u8> = made.pieces.iter().flat_map(|piece| piece.to_vec()).collect();
            prop_assert!(&bytes == whole);
            prop_assert_eq!(made.length as usize, whole.len());
            prop_assert_eq!(made.checksum, xxh3_64(whole));
        }
    }

    #[test]
    fn the_matrix_and_the_librarys_decoder_agree(
        k in 2usize..12,
        m in 1usize..6,
        units in 1usize..40,
        seed in any::<u64>(),
        losses in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
    ) {
        let code = Code { k: k as u8, m: m as u8 };
        let data: Vec<Vec<u8>> = (0..k).map(|i| noise(seed ^ i as u64, units * 64)).collect();
        let parity = reed_solomon_simd::encode(k, m, &data).unwrap();
        let mut lost: Vec<usize> = losses.iter().map(|index| index.index(k)).collect();
        lost.sort();
        lost.dedup();
        lost.truncate(m);
        let mut decoder = ReedSolomonDecoder::new(k, m, units * 64).unwrap();
        let mut present: Vec<(usize, &[u8])> = Vec::new();
        for (column, bytes) in data.iter().enumerate().filter(|(c, _)| !lost.contains(c)) {
            decoder.add_original_shard(column, bytes).unwrap();
            present.push((column, bytes));
        }
        for (shard, bytes) in parity.iter().enumerate() {
            decoder.add_recovery_shard(shard, bytes).unwrap();
            present.push((k + shard, bytes));
        }
        present.rotate_left(seed as usize % (k + m - lost.len()));
        let rebuilt = reconstruct(code, &present, &lost).unwrap();
        let theirs = decoder.decode().unwrap();
        for (column, bytes) in lost.iter().zip(&rebuilt) {
            prop_assert_eq!(Some(bytes.as_slice()), theirs.restored_original(*column));
            prop_assert_eq!(bytes, &data[*column]);
        }
    }
}
