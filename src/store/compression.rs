//! How a block's bytes are made smaller: the choice as the configuration writes it, and the two ways.
//! Working memory is one set a thread, used again for every block.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

use lz4::block::CompressionMode;
use zstd::zstd_safe::CParameter;

use super::records::{BLOCK_MAX, Encoding};

/// What to try on a block's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Nothing.
    None,
    /// lz4: half as fast again as zstd at its first level, more than twice as fast to read, and a quarter larger.
    Lz4,
    /// zstd with a level.
    Zstd(i32),
}

impl Default for Compression {
    fn default() -> Self {
        Compression::Zstd(1)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => write!(f, "none"),
            Compression::Lz4 => write!(f, "lz4"),
            Compression::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// When blocks are stored as they are, and compressed once nobody writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompressLater {
    /// Never: a writer waits until his blocks are compressed.
    Never,
    /// When compressing does not keep up with a writer, and the disks do.
    #[default]
    Behind,
    /// Always.
    Always,
}

impl FromStr for CompressLater {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(CompressLater::Never),
            "behind" => Ok(CompressLater::Behind),
            "always" => Ok(CompressLater::Always),
            _ => Err("write \"behind\", \"always\" or \"never\"".to_owned()),
        }
    }
}

/// A compression that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no compression is called {0:?}; write \"none\", \"lz4\", \"zstd\" or \"zstd:LEVEL\" with a level of -7 to 19"
)]
pub struct BadCompression(String);

impl FromStr for Compression {
    type Err = BadCompression;

    fn from_str(text: &str) -> Result<Self, BadCompression> {
        let bad = || BadCompression(text.to_owned());
        match text {
            "none" => Ok(Compression::None),
            "lz4" => Ok(Compression::Lz4),
            "zstd" => Ok(Compression::default()),
            _ => {
                let level = text.strip_prefix("zstd:").ok_or_else(bad)?;
                let level: i32 = level.parse().map_err(|_| bad())?;
                // 0 is zstd's word for its default, which is not ours.
                if level == 0 || !(-7..=19).contains(&level) {
                    return Err(bad());
                }
                Ok(Compression::Zstd(level))
            }
        }
    }
}

struct Workshop {
    zstd: Option<(i32, zstd::bulk::Compressor<'static>)>,
    unzstd: Option<zstd::bulk::Decompressor<'static>>,
    /// Initialised once, so that no block pays for zeroing; its bytes are still in the CPU's cache when
    /// they are copied to where they stay.
    scratch: Vec<u8>,
}

impl Workshop {
    fn scratch(&mut self, length: usize) {
        if self.scratch.len() < length {
            self.scratch.resize(length, 0);
        }
    }
}

thread_local! {
    static WORKSHOP: RefCell<Workshop> =
        const { RefCell::new(Workshop { zstd: None, unzstd: None, scratch: Vec::new() }) };
}

/// Compresses `raw` and hands the shorter form to `take`; with `Encoding::Plain` and `raw` itself when
/// less than 3% is gained, since then a read is better off without decompressing.
pub(super) fn compress<T>(
    raw: &[u8],
    compression: Compression,
    take: impl FnOnce(Encoding, &[u8]) -> T,
) -> T {
    WORKSHOP.with_borrow_mut(|shop| {
        let made = match compression {
            Compression::None => None,
            Compression::Lz4 => {
                let bound = lz4::block::compress_bound(raw.len()).unwrap_or(0);
                shop.scratch(bound);
                let mode = Some(CompressionMode::DEFAULT);
                lz4::block::compress_to_buffer(raw, mode, false, &mut shop.scratch)
                    .ok()
                    .map(|length| (Encoding::Lz4, length))
            }
            Compression::Zstd(level) => {
                shop.scratch(zstd::zstd_safe::compress_bound(raw.len()));
                zstd(shop, level, raw).map(|length| (Encoding::Zstd, length))
            }
        };
        let worth = raw.len() - raw.len() / 32;
        match made.and_then(|(encoding, length)| Some((encoding, shop.scratch.get(..length)?))) {
            Some((encoding, bytes)) if bytes.len() < worth => take(encoding, bytes),
            _ => take(Encoding::Plain, raw),
        }
    })
}

/// Bytes that `raw` would be stored in.
pub fn compressed_length(raw: &[u8], compression: Compression) -> usize {
    compress(raw, compression, |_, bytes| bytes.len())
}

/// The compressed length, in the workshop's scratch. An error of zstd's is no error of ours: the block is
/// then stored plain.
fn zstd(shop: &mut Workshop, level: i32, raw: &[u8]) -> Option<usize> {
    let compressor = match &mut shop.zstd {
        Some((made_for, compressor)) if *made_for == level => compressor,
        other => &mut other.insert((level, compressor(level).ok()?)).1,
    };
    compressor
        .compress_to_buffer(raw, shop.scratch.as_mut_slice())
        .ok()
}

fn compressor(level: i32) -> std::io::Result<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(level)?;
    if level == 1 {
        // For so short inputs zstd's own choice is a table of 2^13 places and matches of at least 6 bytes. These take a
        // fiftieth less room for a twentieth more time (docs/performance.md).
        compressor.set_parameter(CParameter::HashLog(14))?;
        compressor.set_parameter(CParameter::MinMatch(5))?;
    }
    Ok(compressor)
}

/// Decompresses to exactly as many bytes as `out` has, into it; says whether that is what came out.
pub(super) fn decompress_into(encoding: Encoding, bytes: &[u8], out: &mut [u8]) -> bool {
    if out.len() > BLOCK_MAX {
        return false;
    }
    if encoding == Encoding::Plain {
        let same = bytes.len() == out.len();
        if same {
            out.copy_from_slice(bytes);
        }
        return same;
    }
    let length = WORKSHOP.with_borrow_mut(|shop| unpack(&mut shop.unzstd, encoding, bytes, out));
    length == Some(out.len())
}

fn unpack(
    unzstd: &mut Option<zstd::bulk::Decompressor<'static>>,
    encoding: Encoding,
    bytes: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    match encoding {
        Encoding::Plain => None,
        Encoding::Lz4 => {
            let length = i32::try_from(out.len()).ok()?;
            lz4::block::decompress_to_buffer(bytes, Some(length), out).ok()
        }
        Encoding::Zstd => {
            let decompressor = match unzstd {
                Some(decompressor) => decompressor,
                none => none.insert(zstd::bulk::Decompressor::new().ok()?),
            };
            decompressor.decompress_to_buffer(bytes, out).ok()
        }
    }
}

/// Decompresses to exactly `raw` bytes and hands them to `take`; `None` when that is not what comes out.
/// Never needs more memory than `BLOCK_MAX`, whatever the bytes say.
pub(super) fn decompress<T>(
    encoding: Encoding,
    bytes: &[u8],
    raw: usize,
    take: impl FnOnce(&[u8]) -> T,
) -> Option<T> {
    if raw > BLOCK_MAX {
        return None;
    }
    if encoding == Encoding::Plain {
        return (bytes.len() == raw).then(|| take(bytes));
    }
    WORKSHOP.with_borrow_mut(|shop| {
        shop.scratch(raw);
        let Workshop {
            unzstd, scratch, ..
        } = shop;
        let room = scratch.get_mut(..raw)?;
        let length = unpack(unzstd, encoding, bytes, room)?;
        (length == raw).then(|| take(room))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (text, compression) in [
            ("none", Compression::None),
            ("lz4", Compression::Lz4),
            ("zstd:1", Compression::Zstd(1)),
            ("zstd:-1", Compression::Zstd(-1)),
            ("zstd:19", Compression::Zstd(19)),
        ] {
            assert_eq!(text.parse(), Ok(compression));
            assert_eq!(compression.to_string(), text);
        }
        assert_eq!("zstd".parse(), Ok(Compression::Zstd(1)));
        for bad in ["", "gzip", "zstd:", "zstd:x", "zstd:0", "zstd:99", "lz4:1"] {
            assert!(bad.parse::<Compression>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_thread_may_change_levels() {
        let raw = b"the same again and again ".repeat(400);
        for level in [1, -3, 9, 1] {
            let (encoding, bytes) = compress(&raw, Compression::Zstd(level), |encoding, bytes| {
                (encoding, bytes.to_vec())
            });
            assert_eq!(encoding, Encoding::Zstd);
            let back = decompress(encoding, &bytes, raw.len(), <[u8]>::to_vec);
            assert_eq!(back, Some(raw.clone()));
        }
    }
}
