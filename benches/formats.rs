//! How fast snapshots are looked through, on one core: `cargo bench --bench formats`.
//!
//! The bar is 4 GB/s on a stream of pages with the search for zero pages included. Each figure stands beside a
//! peer in the same run: copying the same bytes, which is what any reader of memory does at least.
//! `PARSFS_BENCH_MIB` sets the size of the memory (1024 unless told).

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::time::Duration;

use parsfs::snapshot::{Indexer, MAP_LIMIT, Snapshot, index, is_zero};

const PAGE: usize = 4096;

/// A stream of pages: `zeros` of every 64 are zero records, `stored_zeros` of every 64 are sent as pages of zeros,
/// which is what QEMU does when it is told not to look.
fn stream(pages: u64, zeros: u64, stored_zeros: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((pages * 4104) as usize + 4096);
    let mut page = vec![0_u8; PAGE];
    bytes.extend(b"QEVM\0\0\0\x03\x07\0\0\0\x0bpc-q35-10.0");
    bytes.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    bytes.extend(((pages * PAGE as u64) | 4).to_be_bytes());
    bytes.extend(b"\x06pc.ram");
    bytes.extend((pages * PAGE as u64).to_be_bytes());
    bytes.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\x03\0\0\0\x02");
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..pages {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let kind = random % 64;
        let offset = number * PAGE as u64;
        let continues = if number == 0 { 0 } else { 0x20 };
        let flag = if kind < zeros { 2 } else { 8 };
        bytes.extend((offset | flag | continues).to_be_bytes());
        if number == 0 {
            bytes.extend(b"\x06pc.ram");
        }
        if kind < zeros {
            bytes.push(0);
        } else {
            let fill = if kind < zeros + stored_zeros {
                0
            } else {
                random as u8 | 1
            };
            page.fill(fill);
            bytes.extend(&page);
        }
    }
    bytes.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\0\x06\0\0\0\x02{}");
    bytes
}

/// The processor time of this thread: the measure of "a core" on a machine that others use as well.
fn processor_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills the one structure it is given.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The best of five runs.
fn best<T>(mut run: impl FnMut() -> T) -> (Duration, T) {
    let mut best: Option<(Duration, T)> = None;
    for _ in 0..5 {
        let start = processor_time();
        let value = run();
        let took = processor_time() - start;
        if best.as_ref().is_none_or(|(least, _)| took < *least) {
            best = Some((took, value));
        }
    }
    best.unwrap()
}

fn report(what: &str, bytes: usize, took: Duration) {
    println!(
        "{what:<58} {:>7.2} GB/s",
        bytes as f64 / took.as_secs_f64() / 1e9
    );
}

/// Follows the bytes as they would be written and looks for zero pages in them, write by write.
fn follow(bytes: &[u8], zeros: bool) -> (Snapshot, u64) {
    let mut indexer = Indexer::new();
    let mut found = 0;
    for (at, part) in (0_u64..).step_by(128 << 10).zip(bytes.chunks(128 << 10)) {
        indexer.feed(at, part);
        if zeros {
            let end = at + part.len() as u64;
            for (range, is_page) in indexer.boundaries(at..end).into_iter().flatten() {
                let piece = &part[(range.start - at) as usize..(range.end - at) as usize];
                found += u64::from(is_page && is_zero(piece));
            }
        }
    }
    (indexer.finish(&bytes).unwrap(), found)
}

fn main() {
    let mib = std::env::var("PARSFS_BENCH_MIB")
        .ok()
        .and_then(|text| text.parse().ok());
    let pages = mib.unwrap_or(1024_u64) << 8;
    for (name, zeros, stored_zeros) in [
        ("full of pages", 0, 0),
        ("zero pages among them", 0, 32),
        ("zero records among them", 32, 0),
    ] {
        let bytes = stream(pages, zeros, stored_zeros);
        println!("stream {name}, {} MiB in the file", bytes.len() >> 20);
        let mut copy = vec![0; 128 << 10];
        let (took, ()) = best(|| {
            for part in bytes.chunks(copy.len()) {
                copy[..part.len()].copy_from_slice(part);
                black_box(&mut copy);
            }
        });
        report("  peer: copying it in parts of 128 KiB", bytes.len(), took);
        let (took, _) = best(|| follow(&bytes, false));
        report("  followed as it is written", bytes.len(), took);
        let (took, (snapshot, found)) = best(|| follow(&bytes, true));
        report(
            "  followed, and its pages looked through for zeros",
            bytes.len(),
            took,
        );
        let map = snapshot.map().unwrap();
        let memory = map.memory() as f64 / pages as f64;
        println!("  {found} stored pages are zero; the map takes {memory:.3} bytes a page");
        let (took, runs) = best(|| map.pieces(0..u64::MAX).count());
        println!("  {runs} pieces in {took:?}");

        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let (took, looked) = best(|| index(&file).unwrap());
        assert_eq!(looked.map().unwrap().counts(), map.counts());
        report(
            "  looked through in a file in the page cache",
            bytes.len(),
            took,
        );
        drop::<File>(file);
    }
    let page = vec![0_u8; PAGE];
    let (took, ()) = best(|| {
        for _ in 0..1 << 18 {
            black_box(is_zero(black_box(&page)));
        }
    });
    report("is_zero, a zero page in the cache", PAGE << 18, took);
    println!("the bound on a map unless told otherwise: {MAP_LIMIT} bytes");
}
