//! LiME, the memory that a Linux module writes from inside, and AVML, which takes over its header. From LiME's
//! `doc/README.md` and AVML's `src/image.rs`. Knows the chain of headers.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::error::{Opaque, SnapshotError};
use super::map::PageMap;
use super::physical::{self, Stored};
use super::source::Reader;

/// The header before each range of memory.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: U32,
    /// The guest-physical address of the first byte.
    first: U64,
    /// That of the last byte.
    last: U64,
    reserved: U64,
}

const HEADER: usize = size_of::<Header>();
const LIME: [u8; 4] = *b"EMiL";
const AVML: [u8; 4] = *b"AVML";
/// A machine has tens of ranges.
const MOST: usize = 1 << 16;

/// Whether the file begins as LiME's do.
pub(super) fn is_lime(head: &[u8]) -> bool {
    head.starts_with(&LIME)
}

/// Whether the file begins as AVML's own version does, whose pages are compressed with Snappy.
pub(super) fn is_avml(head: &[u8]) -> bool {
    head.starts_with(&AVML) && head.get(4..8) == Some(&[2, 0, 0, 0])
}

/// Maps the ranges.
pub(super) fn read(reader: &Reader<'_>) -> Result<Result<PageMap, Opaque>, SnapshotError> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < reader.length() {
        let malformed = |what| Ok(Err(Opaque::Malformed { offset: at, what }));
        let Some(bytes) = reader.array::<HEADER>(at)? else {
            return Ok(Err(Opaque::Unfinished("the file ends within a header")));
        };
        let Ok(header) = Header::read_from_bytes(&bytes) else {
            return malformed("no LiME header");
        };
        if header.magic != LIME || header.version.get() != 1 {
            return malformed("no LiME header");
        }
        if ranges.len() == MOST {
            return malformed("too many ranges");
        }
        let gpa = header.first.get();
        let length = header
            .last
            .get()
            .checked_sub(gpa)
            .and_then(|length| length.checked_add(1));
        let Some(length) = length else {
            return malformed("a range that ends before it begins");
        };
        let file = at + HEADER as u64;
        ranges.push(Stored { gpa, file, length });
        let Some(next) = file.checked_add(length) else {
            return malformed("a range beyond any file");
        };
        at = next;
    }
    Ok(physical::map(ranges, reader.length()))
}
