//! The bytes of a window's record, as manifests and deltas hold them, and what must be true of one. Knows
//! no file and no page: whoever holds the bytes has checked their checksum.
//!
//! ```text
//!  0  4  window number
//!  4  4  bytes that follow
//!  8  8  segment set of the blocks
//! 16  8  segment set of the parity
//! 24  4  length of each parity shard
//! 28  1  k
//! 29  1  m
//! 30  1  parity shards that follow: 0 or m
//! 31  1  0
//! 32  2  blocks
//! 34  2  a disk, k + m times
//!        then a parity shard, 16 bytes each: offset 8, xxh3 8
//!        then a block, 32 bytes each:
//!              column 1 · encoding in the low 6 bits, lost in the next, protected in the highest 1 · 1 if it is yet to be
//!              compressed 1 · 0 1 · column offset 4 ·
//!              stored bytes 4 · bytes of the file 4 · offset 8 · xxh3 8
//! ```
//!
//! All numbers are little-endian.

use super::block::BLOCK_HEADER;
use super::records::{
    BLOCK_MAX, BlockRecord, Code, Encoding, PARITY_ALIGN, ParityShard, SHARDS_MAX, WINDOW_BLOCKS,
    WindowRecord,
};
use super::wire::Wire;
use crate::ids::{DiskId, SetId, WindowNo};

/// Bytes before what the second field counts.
pub const WINDOW_HEAD: usize = 8;

/// The most bytes of one record, its head included.
pub const WINDOW_FORM_MAX: usize = WINDOW_HEAD + 26 + SHARDS_MAX * (2 + 16) + WINDOW_BLOCKS * 32;

const PROTECTED: u8 = 0x80;
const LOST: u8 = 0x40;

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a window's record is not possible: {0}")]
pub struct BadWindow(pub &'static str);

/// Appends a record's bytes.
pub fn put_window(out: &mut Vec<u8>, window: &WindowRecord) -> Result<(), BadWindow> {
    validate(window)?;
    let start = out.len();
    out.extend_from_slice(&window.no.0.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&window.set.0.to_le_bytes());
    out.extend_from_slice(&window.parity_set.0.to_le_bytes());
    out.extend_from_slice(&window.parity_length.to_le_bytes());
    // Lengths that `validate` has bounded.
    out.extend_from_slice(&[window.code.k, window.code.m, window.parity.len() as u8, 0]);
    out.extend_from_slice(&(window.blocks.len() as u16).to_le_bytes());
    for disk in &window.disks {
        out.extend_from_slice(&disk.0.to_le_bytes());
    }
    for shard in &window.parity {
        out.extend_from_slice(&shard.offset.to_le_bytes());
        out.extend_from_slice(&shard.checksum.to_le_bytes());
    }
    for block in &window.blocks {
        let protected = if block.protected { PROTECTED } else { 0 };
        let lost = if block.lost { LOST } else { 0 };
        let flags = block.encoding as u8 | protected | lost;
        out.extend_from_slice(&[block.column, flags, block.hasty.into(), 0]);
        out.extend_from_slice(&block.column_offset.to_le_bytes());
        out.extend_from_slice(&block.stored.to_le_bytes());
        out.extend_from_slice(&block.raw.to_le_bytes());
        out.extend_from_slice(&block.offset.to_le_bytes());
        out.extend_from_slice(&block.checksum.to_le_bytes());
    }
    let follow = (out.len() - start - WINDOW_HEAD) as u32;
    if let Some(place) = out.get_mut(start + 4..start + WINDOW_HEAD) {
        place.copy_from_slice(&follow.to_le_bytes());
    }
    Ok(())
}

/// A record's number and its whole length in bytes, from its first `WINDOW_HEAD` bytes.
pub fn window_head(head: [u8; WINDOW_HEAD]) -> Result<(WindowNo, usize), BadWindow> {
    let mut wire = Wire::new(&head);
    let cut = BadWindow("cut off");
    let no = WindowNo(wire.u32().ok_or(cut)?);
    let length = (wire.u32().ok_or(cut)? as usize).saturating_add(WINDOW_HEAD);
    if length > WINDOW_FORM_MAX {
        return Err(BadWindow("longer than a window can be"));
    }
    Ok((no, length))
}

/// Reads one record and leaves `wire` behind it.
pub fn take_window(wire: &mut Wire<'_>) -> Result<WindowRecord, BadWindow> {
    let cut = BadWindow("cut off");
    let (no, length) = window_head(wire.array().ok_or(cut)?)?;
    let mut body = Wire::new(wire.bytes(length - WINDOW_HEAD).ok_or(cut)?);
    let window = parse(no, &mut body).ok_or(cut)??;
    if body.left() != 0 {
        return Err(BadWindow("bytes are left over"));
    }
    validate(&window)?;
    Ok(window)
}

fn parse(no: WindowNo, wire: &mut Wire<'_>) -> Option<Result<WindowRecord, BadWindow>> {
    let set = SetId(wire.u64()?);
    let parity_set = SetId(wire.u64()?);
    let parity_length = wire.u32()?;
    let code = Code {
        k: wire.u8()?,
        m: wire.u8()?,
    };
    let shards = wire.u8()?;
    wire.u8()?;
    let count = wire.u16()?;
    // Every element has been read before the next is pushed: nothing is allocated by a count alone.
    let mut disks = Vec::new();
    for _ in 0..usize::from(code.k) + usize::from(code.m) {
        disks.push(DiskId(wire.u16()?));
    }
    let mut parity = Vec::new();
    for _ in 0..shards {
        parity.push(ParityShard {
            offset: wire.u64()?,
            checksum: wire.u64()?,
        });
    }
    let mut blocks = Vec::with_capacity(usize::from(count).min(wire.left() / 32));
    for _ in 0..count {
        let column = wire.u8()?;
        let flags = wire.u8()?;
        let hasty = wire.u8()? & 1 != 0;
        wire.u8()?;
        let encoding = match flags & !(PROTECTED | LOST) {
            0 => Encoding::Plain,
            1 => Encoding::Zstd,
            2 => Encoding::Lz4,
            _ => return Some(Err(BadWindow("a block's encoding is unknown"))),
        };
        blocks.push(BlockRecord {
            column,
            encoding,
            protected: flags & PROTECTED != 0,
            lost: flags & LOST != 0,
            hasty,
            column_offset: wire.u32()?,
            stored: wire.u32()?,
            raw: wire.u32()?,
            offset: wire.u64()?,
            checksum: wire.u64()?,
        });
    }
    Some(Ok(WindowRecord {
        no,
        set,
        code,
        disks,
        parity_set,
        parity_length,
        parity,
        blocks,
    }))
}

/// Whether the record can be: every number in its bounds, so that what follows it need not ask again.
pub fn validate(window: &WindowRecord) -> Result<(), BadWindow> {
    let (k, m) = (usize::from(window.code.k), usize::from(window.code.m));
    let must = |holds: bool, what: &'static str| if holds { Ok(()) } else { Err(BadWindow(what)) };
    must(k >= 1 && k + m <= SHARDS_MAX, "its code")?;
    must(window.disks.len() == k + m, "its number of disks")?;
    let twice = |(place, disk)| window.disks.iter().take(place).any(|other| other == disk);
    must(
        !window.disks.iter().enumerate().any(twice),
        "a disk is in it twice",
    )?;
    must(window.blocks.len() <= WINDOW_BLOCKS, "too many blocks")?;
    must(
        window.parity.is_empty() || window.parity.len() == m,
        "its number of parity shards",
    )?;
    let longest = WINDOW_BLOCKS * (BLOCK_MAX + BLOCK_HEADER);
    must(
        window.parity_length.is_multiple_of(PARITY_ALIGN)
            && window.parity_length as usize <= longest,
        "its parity's length",
    )?;
    for shard in &window.parity {
        // The shard's header lies before its offset.
        let bounded = shard
            .offset
            .checked_add(window.parity_length.into())
            .is_some();
        must(
            bounded && shard.offset >= BLOCK_HEADER as u64,
            "a parity shard's offset",
        )?;
    }
    for block in &window.blocks {
        if block.stored == 0 {
            must(
                block.raw == 0 && !block.protected && !block.lost && !block.hasty,
                "a place given up holds bytes",
            )?;
            continue;
        }
        must(
            !block.hasty || block.encoding == Encoding::Plain,
            "a block that is compressed is yet to be compressed",
        )?;
        must(
            !(block.lost && block.protected),
            "a block that is gone is under parity",
        )?;
        let (stored, raw) = (block.stored as usize, block.raw as usize);
        must(usize::from(block.column) < k, "a block's column")?;
        must((1..=BLOCK_MAX).contains(&raw), "a block's length")?;
        must(
            stored > BLOCK_HEADER && stored <= raw + BLOCK_HEADER,
            "a block's stored length",
        )?;
        must(
            block.offset.checked_add(block.stored.into()).is_some(),
            "a block's offset",
        )?;
        let end = block.column_offset.checked_add(block.stored);
        let within = end.is_some_and(|end| end <= window.parity_length);
        must(
            !block.protected || window.parity.is_empty() || within,
            "a protected block lies beyond its column",
        )?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "window_form_tests.rs"]
pub(super) mod tests;
