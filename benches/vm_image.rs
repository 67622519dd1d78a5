//! Writes a file that is like the memory of a running guest, the same for the same seed: `vm_image FILE BYTES [SEED]`.
//!
//! Pages come in runs, as a guest's do. Of 100 pages about 15 are zero, 25 noise (compressed and encrypted data, media),
//! 25 words (text, logs, JSON), 20 pointers (slabs, page tables, heaps: eight-byte values near each other among zeros) and
//! 15 code (short byte strings that recur, with operands that do not). zstd at level 1 makes about 2.7 times less of it in
//! pieces of 128 KiB, which is what dumps of Linux guests give; `zstd -1 -B128K` on the file shows it.

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;

const PAGE: usize = 4096;
const PIECE: usize = 1 << 20;

struct Random(u64);

impl Random {
    /// xorshift64*: fast enough that the disk is what is waited for.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 32) % bound
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Zero,
    Noise,
    Words,
    Pointers,
    Code,
}

/// Out of a hundred pages.
const SHARES: [(Kind, u64); 5] = [
    (Kind::Zero, 15),
    (Kind::Noise, 25),
    (Kind::Words, 25),
    (Kind::Pointers, 20),
    (Kind::Code, 15),
];

struct Guest {
    random: Random,
    words: Vec<Vec<u8>>,
    instructions: Vec<Vec<u8>>,
    kind: Kind,
    left: u64,
}

impl Guest {
    fn new(seed: u64) -> Guest {
        let mut random = Random(seed | 1);
        let mut strings =
            |count: usize, shortest: u64, spread: u64, alphabet: &[u8]| -> Vec<Vec<u8>> {
                (0..count)
                    .map(|_| {
                        let length = shortest + random.below(spread);
                        (0..length)
                            .map(|_| alphabet[random.below(alphabet.len() as u64) as usize])
                            .collect()
                    })
                    .collect()
            };
        let words = strings(3000, 2, 9, b"eeetttaaoinshrdlucmfwypvbgk");
        let all: Vec<u8> = (0..=255).collect();
        let instructions = strings(1500, 2, 6, &all);
        Guest {
            random,
            words,
            instructions,
            kind: Kind::Zero,
            left: 0,
        }
    }

    fn page(&mut self, page: &mut [u8]) {
        if self.left == 0 {
            let mut share = self.random.below(100);
            for (kind, of) in SHARES {
                if share < of {
                    self.kind = kind;
                    break;
                }
                share -= of;
            }
            // Runs of 16 pages on average.
            self.left = 1 + self.random.below(31);
        }
        self.left -= 1;
        match self.kind {
            Kind::Zero => page.fill(0),
            Kind::Noise => {
                for word in page.chunks_exact_mut(8) {
                    word.copy_from_slice(&self.random.next().to_le_bytes());
                }
            }
            Kind::Words => self.strings(page, |random, words| {
                // A few words are most of any text.
                let bound = 1 << (2 + random.below(10));
                words[(random.below(bound) as usize) % words.len()].as_slice()
            }),
            Kind::Pointers => {
                let base = 0xffff_8880_0000_0000 | (self.random.below(1 << 20) << 14);
                for word in page.chunks_exact_mut(8) {
                    let value = match self.random.below(8) {
                        0..3 => 0,
                        3..6 => base + self.random.below(512) * 64,
                        6 => self.random.below(256),
                        _ => self.random.next() >> 16,
                    };
                    word.copy_from_slice(&value.to_le_bytes());
                }
            }
            Kind::Code => self.strings(page, |random, instructions| {
                let bound = 1 << (3 + random.below(8));
                instructions[(random.below(bound) as usize) % instructions.len()].as_slice()
            }),
        }
    }

    /// Fills a page with strings out of a list, words with a space between, code with an operand.
    fn strings(
        &mut self,
        page: &mut [u8],
        choose: impl for<'l> Fn(&mut Random, &'l [Vec<u8>]) -> &'l [u8],
    ) {
        let code = matches!(self.kind, Kind::Code);
        let mut at = 0;
        while at < page.len() {
            let list = if code {
                &self.instructions
            } else {
                &self.words
            };
            let string = choose(&mut self.random, list);
            let take = string.len().min(page.len() - at);
            page[at..at + take].copy_from_slice(&string[..take]);
            at += take;
            if at < page.len() {
                page[at] = if code { self.random.next() as u8 } else { b' ' };
                at += 1;
            }
        }
    }
}

fn write(path: &str, bytes: u64, seed: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut guest = Guest::new(seed);
    let mut piece = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        piece
            .chunks_exact_mut(PAGE)
            .for_each(|page| guest.page(page));
        let now = left.min(PIECE as u64) as usize;
        file.write_all(&piece[..now])?;
        left -= now as u64;
    }
    file.sync_all()
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize| words.get(place).and_then(|word| word.parse().ok());
    let (Some(path), Some(bytes)) = (words.first(), number(1)) else {
        eprintln!("usage: vm_image FILE BYTES [SEED]");
        return ExitCode::from(2);
    };
    match write(path, bytes, number(2).unwrap_or(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm_image: {path}: {error}");
            ExitCode::FAILURE
        }
    }
}
