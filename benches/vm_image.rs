//! Writes a file that is like the memory of a running guest, the same for the same seed:
//! `vm_image FILE BYTES [SEED [hard]]`.
//!
//! Pages come in runs, as a guest's do. Of 100 pages about 15 are zero, 10 noise (compressed and encrypted data, media),
//! 25 words (text, logs, JSON: phrases that recur), 30 objects (slabs, page tables, heaps: records alike among zeros) and
//! 20 code (byte strings that recur, with operands). Made to be to a compressor about what real guests are: zstd at level 1
//! makes 3.1 times less of its pages that are not zero, in pieces of 128 KiB; of those of a Debian guest of 2 GiB with
//! Python, Perl and SQLite at work it makes 3.7 times less, a quarter faster.
//!
//! `hard` is a guest full of noise and of text and numbers that hardly recur: 1.6 times less, a quarter slower.

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
    Phrases,
    Pointers,
    Objects,
    Code,
    Functions,
}

/// Out of a hundred pages.
const GUEST: [(Kind, u64); 5] = [
    (Kind::Zero, 15),
    (Kind::Noise, 10),
    (Kind::Phrases, 25),
    (Kind::Objects, 30),
    (Kind::Functions, 20),
];
const HARD: [(Kind, u64); 5] = [
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
    phrases: Vec<Vec<u8>>,
    functions: Vec<Vec<u8>>,
    /// One record for each kind of object.
    objects: Vec<Vec<u8>>,
    shares: [(Kind, u64); 5],
    kind: Kind,
    left: u64,
}

impl Guest {
    fn new(seed: u64, shares: [(Kind, u64); 5]) -> Guest {
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
        // Several strings end to end.
        let join =
            |random: &mut Random, list: &[Vec<u8>], count: usize, most: u64, between: &[u8]| {
                let mut joined: Vec<Vec<u8>> = Vec::new();
                for _ in 0..count {
                    let mut one = Vec::new();
                    for _ in 0..2 + random.below(most) {
                        one.extend_from_slice(&list[random.below(list.len() as u64) as usize]);
                        one.extend_from_slice(between);
                    }
                    joined.push(one);
                }
                joined
            };
        let phrases = join(&mut random, &words, 1200, 6, b" ");
        let functions = join(&mut random, &instructions, 3000, 5, b"");
        let objects = (0..300)
            .map(|_| {
                let words = 8 + random.below(40);
                let field = |random: &mut Random| match random.below(8) {
                    0..4 => 0,
                    4..6 => 0xffff_8880_0000_0000 | (random.below(1 << 24) << 6),
                    6 => random.below(64),
                    _ => random.next() >> 32,
                };
                (0..words)
                    .flat_map(|_| field(&mut random).to_le_bytes())
                    .collect()
            })
            .collect();
        Guest {
            random,
            words,
            instructions,
            phrases,
            functions,
            objects,
            shares,
            kind: Kind::Zero,
            left: 0,
        }
    }

    fn page(&mut self, page: &mut [u8]) {
        if self.left == 0 {
            let mut share = self.random.below(100);
            for (kind, of) in self.shares {
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
            Kind::Words => self.strings(page, |guest| (&guest.words, 2, 10, Operand::Space)),
            Kind::Phrases => self.strings(page, |guest| (&guest.phrases, 3, 8, Operand::Number)),
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
            Kind::Objects => {
                let object = &self.objects[self.random.below(self.objects.len() as u64) as usize];
                let mut at = 0;
                while at < page.len() {
                    let take = object.len().min(page.len() - at);
                    page[at..at + take].copy_from_slice(&object[..take]);
                    // A few fields differ from one to the next.
                    for _ in 0..2 {
                        let field = at + self.random.below(take as u64) as usize / 8 * 8;
                        if let Some(field) = page.get_mut(field..field + 3) {
                            field.copy_from_slice(&self.random.next().to_le_bytes()[..3]);
                        }
                    }
                    at += object.len();
                }
            }
            Kind::Code => self.strings(page, |guest| (&guest.instructions, 3, 8, Operand::Byte)),
            Kind::Functions => self.strings(page, |guest| (&guest.functions, 4, 8, Operand::Byte)),
        }
    }

    /// Fills a page with strings out of a list, of which a few are most of any page, and with something behind each.
    fn strings(&mut self, page: &mut [u8], of: fn(&Guest) -> Strings<'_>) {
        let mut random = Random(self.random.next() | 1);
        let (list, least, spread, operand) = of(self);
        let mut at = 0;
        while at < page.len() {
            let bound = 1 << (least + random.below(spread));
            let string = &list[(random.below(bound) as usize) % list.len()];
            let take = string.len().min(page.len() - at);
            page[at..at + take].copy_from_slice(&string[..take]);
            at += take;
            let behind = match operand {
                Operand::Space => b' ',
                Operand::Byte => random.next() as u8,
                Operand::Number => b'0' + random.below(10) as u8,
            };
            if let Some(last) = page.get_mut(at) {
                *last = behind;
            }
            at += 1;
        }
    }
}

/// A list of strings, two bounds of how many of them a page uses, and what comes behind each.
type Strings<'g> = (&'g Vec<Vec<u8>>, u64, u64, Operand);

/// What comes behind each string.
enum Operand {
    Space,
    Byte,
    Number,
}

fn write(path: &str, bytes: u64, seed: u64, shares: [(Kind, u64); 5]) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut guest = Guest::new(seed, shares);
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
        eprintln!("usage: vm_image FILE BYTES [SEED [hard]]");
        return ExitCode::from(2);
    };
    let shares = match words.get(3).map(String::as_str) {
        Some("hard") => HARD,
        _ => GUEST,
    };
    match write(path, bytes, number(2).unwrap_or(1), shares) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm_image: {path}: {error}");
            ExitCode::FAILURE
        }
    }
}
