//! What parity costs: coding, reconstruction by matrix, and the library's decoder beside it, by the length
//! of a shard. One thread. `cargo bench --bench coding`.

use std::hint::black_box;
use std::time::Instant;

use parsfs::store::Code;
use parsfs::store::parity::{encode, reconstruct};
use reed_solomon_simd::ReedSolomonDecoder;

fn main() {
    println!(
        "code   shard KiB  encode GB/s  rebuild 1: us, GB/s   rebuild m: us   library's decoder 1: us"
    );
    for (k, m) in [(2, 1), (4, 2), (8, 3), (16, 4)] {
        for kib in [4, 16, 64, 128, 256, 1024, 8192] {
            one(Code { k, m }, kib << 10);
        }
    }
}

/// The median of some rounds, in seconds.
fn time(mut work: impl FnMut()) -> f64 {
    work();
    let mut rounds: Vec<f64> = (0..15)
        .map(|_| {
            let begin = Instant::now();
            work();
            begin.elapsed().as_secs_f64()
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

fn one(code: Code, length: usize) {
    let (k, m) = (usize::from(code.k), usize::from(code.m));
    let mut state = 1u64;
    let columns: Vec<Vec<u8>> = (0..k)
        .map(|_| {
            (0..length)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(99);
                    (state >> 56) as u8
                })
                .collect()
        })
        .collect();
    let slices: Vec<Vec<&[u8]>> = columns.iter().map(|c| c.chunks(50_000).collect()).collect();
    let encoding = time(|| {
        black_box(encode(code, &slices).expect("a good code"));
    });
    let parity = encode(code, &slices).expect("a good code");
    let mut present: Vec<(usize, &[u8])> = columns
        .iter()
        .chain(&parity)
        .enumerate()
        .map(|(shard, bytes)| (shard, bytes.as_slice()))
        .collect();
    let all = present.clone();
    present.remove(0);
    let single = time(|| {
        black_box(reconstruct(code, &present, &[0]).expect("enough shards"));
    });
    let lost: Vec<usize> = (0..m.min(k)).collect();
    let several = time(|| {
        black_box(reconstruct(code, &all[lost.len()..], &lost).expect("enough shards"));
    });
    let mut decoder = ReedSolomonDecoder::new(k, m, length).expect("a good code");
    let theirs = time(|| {
        for (column, bytes) in columns.iter().enumerate().skip(1) {
            decoder.add_original_shard(column, bytes).expect("fits");
        }
        decoder.add_recovery_shard(0, &parity[0]).expect("fits");
        let result = decoder.decode().expect("enough shards");
        black_box(result.restored_original(0).map(<[u8]>::to_vec));
    });
    println!(
        "{:<6} {:>9} {:>12.2} {:>12.1} {:>6.2} {:>15.1} {:>25.1}",
        code.to_string(),
        length >> 10,
        (k * length) as f64 / encoding / 1e9,
        single * 1e6,
        (k * length) as f64 / single / 1e9,
        several * 1e6,
        theirs * 1e6,
    );
}
