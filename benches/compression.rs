//! What compressing costs and brings, by setting, on blocks of 128 KiB of a file of your own, zero pages left out. One thread;
//! the settings come in turns, and the table shows medians, since the machine's speed drifts.
//! `cargo bench --bench compression -- FILE`, with a guest's memory, a stream of QEMU's, or what `benches/vm_image.rs` makes.

use std::time::Instant;

use lz4::block::CompressionMode;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

const BLOCK: usize = 128 << 10;
const PAGE: usize = 4 << 10;
const TURNS: usize = 5;

enum Setting {
    Lz4,
    Zstd(i32, &'static [CParameter]),
}

/// What is tried. The third is what `zstd:1` means (`src/store/compression.rs`).
const SETTINGS: [(&str, Setting); 10] = [
    ("lz4", Setting::Lz4),
    ("zstd 1, its own", Setting::Zstd(1, &[])),
    (
        "zstd 1, 2^14, of 5",
        Setting::Zstd(1, &[CParameter::HashLog(14), CParameter::MinMatch(5)]),
    ),
    (
        "zstd 1, 2^13, of 5",
        Setting::Zstd(1, &[CParameter::HashLog(13), CParameter::MinMatch(5)]),
    ),
    (
        "zstd 1, 2^15, of 5",
        Setting::Zstd(1, &[CParameter::HashLog(15), CParameter::MinMatch(5)]),
    ),
    (
        "zstd 1, 2^14, of 7",
        Setting::Zstd(1, &[CParameter::HashLog(14), CParameter::MinMatch(7)]),
    ),
    ("zstd 2", Setting::Zstd(2, &[])),
    ("zstd -1", Setting::Zstd(-1, &[])),
    ("zstd -3", Setting::Zstd(-3, &[])),
    ("zstd -5", Setting::Zstd(-5, &[])),
];

struct Figures {
    stored: usize,
    compress: Vec<f64>,
    decompress: Vec<f64>,
}

fn main() {
    let Some(path) = std::env::args()
        .skip(1)
        .find(|word| !word.starts_with("--"))
    else {
        println!("compression: name a file to measure with");
        return;
    };
    let bytes = std::fs::read(&path).expect("a file that can be read");
    let pages = bytes
        .chunks(PAGE)
        .filter(|page| page.iter().any(|&byte| byte != 0));
    let bytes: Vec<u8> = pages.flatten().copied().collect();
    let blocks: Vec<&[u8]> = bytes.chunks(BLOCK).collect();
    let mut figures: Vec<Figures> = SETTINGS
        .iter()
        .map(|_| Figures {
            stored: 0,
            compress: Vec::new(),
            decompress: Vec::new(),
        })
        .collect();
    for _ in 0..TURNS {
        for ((_, setting), figures) in SETTINGS.iter().zip(&mut figures) {
            turn(setting, &blocks, figures);
        }
    }
    println!(
        "{:20} {:>6} {:>16} {:>18}",
        "", "ratio", "compresses, GB/s", "decompresses, GB/s"
    );
    for ((name, _), mut figures) in SETTINGS.iter().zip(figures) {
        let speed = |seconds: &mut Vec<f64>| {
            seconds.sort_by(f64::total_cmp);
            bytes.len() as f64 / 1e9 / seconds[seconds.len() / 2]
        };
        println!(
            "{name:20} {:>6.2} {:>16.2} {:>18.2}",
            bytes.len() as f64 / figures.stored as f64,
            speed(&mut figures.compress),
            speed(&mut figures.decompress),
        );
    }
}

fn turn(setting: &Setting, blocks: &[&[u8]], figures: &mut Figures) {
    let mut room = vec![0; 2 * BLOCK];
    let mut stored: Vec<Vec<u8>> = Vec::with_capacity(blocks.len());
    let mut spent = 0.0;
    let mut compress = |work: &mut dyn FnMut(&[u8], &mut [u8]) -> usize| {
        for block in blocks {
            let begin = Instant::now();
            let length = work(block, &mut room);
            spent += begin.elapsed().as_secs_f64();
            stored.push(room[..length].to_vec());
        }
    };
    match setting {
        Setting::Lz4 => compress(&mut |block, room| {
            let mode = Some(CompressionMode::DEFAULT);
            lz4::block::compress_to_buffer(block, mode, false, room).expect("room enough")
        }),
        Setting::Zstd(level, parameters) => {
            let mut compressor = Compressor::new(*level).expect("a level");
            for parameter in *parameters {
                compressor.set_parameter(*parameter).expect("a parameter");
            }
            compress(&mut |block, room| {
                compressor
                    .compress_to_buffer(block, room)
                    .expect("room enough")
            });
        }
    }
    figures.compress.push(spent);
    figures.stored = stored.iter().map(Vec::len).sum();
    let mut decompressor = Decompressor::new().expect("memory");
    let mut room = vec![0; BLOCK];
    let begin = Instant::now();
    for bytes in &stored {
        let length = match setting {
            Setting::Lz4 => lz4::block::decompress_to_buffer(bytes, Some(BLOCK as i32), &mut room),
            Setting::Zstd(..) => decompressor.decompress_to_buffer(bytes, &mut room),
        };
        assert!(length.is_ok_and(|length| length > 0));
    }
    figures.decompress.push(begin.elapsed().as_secs_f64());
}
