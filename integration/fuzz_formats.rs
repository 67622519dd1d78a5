//! Bytes that mean harm: small files of every format, changed at random, for as long as asked. No input may make
//! the parsers panic, take long, take much memory, or contradict themselves.
//!
//! `PARSFS_FUZZ_SECONDS` (3 unless told) and `PARSFS_FUZZ_SEED` (new every time unless told) steer it; a
//! failing input is left in the build's temporary directory under the name that the failure tells.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parsfs::snapshot;

#[path = "../src/snapshot/tests/examine.rs"]
mod examine;
#[path = "../src/snapshot/tests/writers.rs"]
mod writers;

/// What one input may take at most, beyond its own bytes. The map's own bound in `examine` is 1 MiB; a QEMU stream's
/// tail is searched in up to 16 MiB.
const MEMORY: usize = 24 << 20;
/// How much of a processor's time one input may take.
const TIME: Duration = Duration::from_secs(2);
/// No input is longer.
const LONGEST: usize = 8 << 20;

/// Counts what is allocated on this thread.
struct Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn took(bytes: usize) {
    // A thread that ends may have no cells any more; what it takes then is not counted.
    let _ = NOW.try_with(|now| {
        now.set(now.get().saturating_add(bytes));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now.get())));
    });
}

fn gave(bytes: usize) {
    let _ = NOW.try_with(|now| now.set(now.get().saturating_sub(bytes)));
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        gave(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// xorshift64*: good enough to choose bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// A place where a change is likely to matter: most are near the front, and all are possible.
    fn place(&mut self, length: usize) -> usize {
        match self.below(3) {
            0 => self.below(length),
            1 => self.below(length.min(600)),
            _ => length - 1 - self.below(length.min(200)),
        }
    }
}

const WORDS: [u64; 14] = [
    0,
    1,
    7,
    0x10,
    0x20,
    0x7f,
    0xff,
    0xffff,
    0x1000,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 46,
    i64::MAX as u64,
    u64::MAX,
];

fn mutate(random: &mut Random, bytes: &mut Vec<u8>, seeds: &[(&'static str, Vec<u8>)]) {
    for _ in 0..1 + random.below(6) {
        if bytes.is_empty() {
            return;
        }
        let at = random.place(bytes.len());
        match random.below(9) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 | 3 => {
                let word = WORDS[random.below(WORDS.len())].wrapping_add(random.next() % 3);
                let width = [1, 2, 4, 8][random.below(4)];
                let big = random.below(2) == 0;
                let word = if big {
                    (word << (64 - 8 * width)).to_be_bytes()
                } else {
                    word.to_le_bytes()
                };
                let end = bytes.len().min(at + width);
                bytes[at..end].copy_from_slice(&word[..end - at]);
            }
            4 => bytes.truncate(at),
            5 => {
                let end = (at + 1 + random.below(9000)).min(bytes.len());
                bytes.drain(at..end);
            }
            6 => {
                let end = (at + 1 + random.below(9000)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                let to = random.place(bytes.len());
                bytes.splice(to..to, part);
            }
            7 => {
                let (_, other) = &seeds[random.below(seeds.len())];
                let from = random.place(other.len());
                let end = (from + 1 + random.below(9000)).min(other.len());
                bytes.splice(at..at, other[from..end].iter().copied());
            }
            _ => bytes.resize((bytes.len() + random.below(3 << 20)).min(LONGEST), 0),
        }
        bytes.truncate(LONGEST);
    }
}

/// The processor time of this thread: other programs on the machine do not make an input slow.
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

#[test]
fn nothing_in_a_file_does_harm() {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seconds = number("PARSFS_FUZZ_SECONDS").unwrap_or(3);
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("PARSFS_FUZZ_SEED").unwrap_or(since_epoch.as_nanos() as u64) | 1;
    println!("PARSFS_FUZZ_SEED={seed}");
    let seeds = writers::seeds();
    let mut random = Random(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut inputs, mut mapped, mut slowest, mut largest) = (0_u64, 0_u64, Duration::ZERO, 0);
    while Instant::now() < end {
        let (name, bytes) = &seeds[random.below(seeds.len())];
        let mut bytes = bytes.clone();
        mutate(&mut random, &mut bytes, &seeds);
        // Small parts of a small file, and as many of a large one.
        let part = [1 + random.below(100), 4096, 1 << 20][random.below(3)];
        let part = part.max(bytes.len() / 20_000);
        let before = NOW.get();
        PEAK.set(before);
        let start = processor_time();
        let result = panic::catch_unwind(AssertUnwindSafe(|| examine::examine(&bytes, part)));
        let mut took = processor_time() - start;
        let memory = PEAK.get() - before;
        // Where a host stops a virtual machine, whoever ran is charged with that: what is slow is slow each time.
        for _ in 0..2 {
            if result.is_ok() && took >= TIME {
                let start = processor_time();
                let _ = examine::examine(&bytes, part);
                took = took.min(processor_time() - start);
            }
        }
        let sound = result.is_ok() && took < TIME && memory < MEMORY;
        if !sound {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{seed}-{inputs}"));
            std::fs::write(&path, &bytes).unwrap();
            panic!(
                "from {name}, parts of {part}: {took:?}, {memory} bytes: {}",
                path.display()
            );
        }
        inputs += 1;
        mapped += u64::from(result.is_ok_and(|snapshot| snapshot.map().is_some()));
        slowest = slowest.max(took);
        largest = largest.max(memory);
    }
    println!(
        "{inputs} inputs, {mapped} of them mapped; the slowest took {slowest:?}, the largest {largest} bytes"
    );
    assert!(
        mapped > 0 && mapped < inputs,
        "the changes are too weak or too strong"
    );
}
