//! The bytes of a delta: what one commit added to a file, as the metadata keeps it.
//!
//! ```text
//! version 1 byte: 1
//! next window · next piece                                       numbers in LEB128, here and below
//! count of windows, then their records (store/window_form.rs)
//! count of dropped windows, then each one's number less the one's before
//! count of extents, then each: bytes between it and the one before · length · kind 1 byte
//!     kind 0, a hole, 3, dropped, and 4, zeros that were written: nothing · 1, a block: window · place · first byte · 2, inline:
//!     piece · first byte
//! xxh3 of all of this, 8 bytes little-endian
//! ```

use xxhash_rust::xxh3::xxh3_64;

use super::extents::possible;
use crate::ids::{BlockId, WindowNo};
use crate::store::records::{Delta, Extent, Source};
use crate::store::window_form::{BadWindow, put_window, take_window};
use crate::store::wire::{Wire, put_varint};

const VERSION: u8 = 1;
const HOLE: u8 = 0;
const BLOCK: u8 = 1;
const INLINE: u8 = 2;
const DROPPED: u8 = 3;
const ZEROS: u8 = 4;

/// Why bytes are no delta, or a delta cannot be bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// Not the bytes that were written.
    #[error("a delta of the file is damaged (checksum)")]
    Checksum,
    /// A later format.
    #[error(
        "a delta of the file is of format {0}, newer than this program; use the parsfs that wrote it"
    )]
    Version(u8),
    /// As it was written, and makes no sense.
    #[error("a delta of the file cannot be understood: {0}")]
    Format(&'static str),
    /// A window in it is impossible.
    #[error(transparent)]
    Window(#[from] BadWindow),
}

/// The delta's bytes. Windows and dropped windows come by rising number, extents by rising offset.
pub fn encode(delta: &Delta) -> Result<Vec<u8>, DeltaError> {
    let mut out = vec![VERSION];
    put_varint(&mut out, delta.next_window.into());
    put_varint(&mut out, delta.next_piece.into());
    put_varint(&mut out, delta.windows.len() as u64);
    for window in &delta.windows {
        put_window(&mut out, window)?;
    }
    put_varint(&mut out, delta.dropped.len() as u64);
    let mut before = 0;
    for no in &delta.dropped {
        let step = no.0.checked_sub(before);
        put_varint(
            &mut out,
            step.ok_or(DeltaError::Format("dropped windows are out of order"))?
                .into(),
        );
        before = no.0;
    }
    put_varint(&mut out, delta.extents.len() as u64);
    let mut behind = 0;
    for extent in &delta.extents {
        let disorder = DeltaError::Format("extents are out of order");
        let gap = extent.range.start.checked_sub(behind).ok_or(disorder)?;
        let length = extent
            .range
            .end
            .checked_sub(extent.range.start)
            .ok_or(disorder)?;
        put_varint(&mut out, gap);
        put_varint(&mut out, length);
        put_source(&mut out, extent.source, length)?;
        behind = extent.range.end;
    }
    let checksum = xxh3_64(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    Ok(out)
}

fn put_source(out: &mut Vec<u8>, source: Source, length: u64) -> Result<(), DeltaError> {
    let (kind, place, first) = match source {
        Source::Hole => (HOLE, 0, 0),
        Source::Dropped => (DROPPED, 0, 0),
        Source::Zeros => (ZEROS, 0, 0),
        Source::Block { block, offset } => (BLOCK, block.index, offset),
        Source::Inline { offset, .. } => (INLINE, 0, offset),
    };
    check(kind, place, first, length)?;
    out.push(kind);
    match source {
        Source::Hole | Source::Dropped | Source::Zeros => {}
        Source::Block { block, offset } => {
            put_varint(out, block.window.0.into());
            put_varint(out, block.index.into());
            put_varint(out, offset.into());
        }
        Source::Inline { piece, offset } => {
            put_varint(out, piece.into());
            put_varint(out, offset.into());
        }
    }
    Ok(())
}

fn check(kind: u8, place: u16, first: u32, length: u64) -> Result<(), DeltaError> {
    let fits = match u32::try_from(length) {
        _ if length == 0 => false,
        _ if matches!(kind, HOLE | DROPPED | ZEROS) => true,
        Ok(length) => possible(kind, place, first, length),
        Err(_) => false,
    };
    if fits {
        Ok(())
    } else {
        Err(DeltaError::Format("an extent is impossible"))
    }
}

/// The delta that the bytes are. Never allocates by a count that the bytes do not bear out.
pub fn decode(bytes: &[u8]) -> Result<Delta, DeltaError> {
    let (content, checksum) = bytes.split_last_chunk::<8>().ok_or(DeltaError::Checksum)?;
    if xxh3_64(content) != u64::from_le_bytes(*checksum) {
        return Err(DeltaError::Checksum);
    }
    parse(content)
}

fn parse(content: &[u8]) -> Result<Delta, DeltaError> {
    let cut = DeltaError::Format("it is cut off");
    let mut wire = Wire::new(content);
    match wire.u8().ok_or(cut)? {
        VERSION => {}
        version => return Err(DeltaError::Version(version)),
    }
    let mut delta = Delta {
        next_window: wire.varint_u32().ok_or(cut)?,
        next_piece: wire.varint_u32().ok_or(cut)?,
        ..Delta::default()
    };
    for _ in 0..wire.varint().ok_or(cut)? {
        delta.windows.push(take_window(&mut wire)?);
    }
    let mut before = 0u32;
    for _ in 0..wire.varint().ok_or(cut)? {
        let step = wire.varint_u32().ok_or(cut)?;
        before = before
            .checked_add(step)
            .ok_or(DeltaError::Format("a window's number is too large"))?;
        delta.dropped.push(WindowNo(before));
    }
    let mut behind = 0;
    for _ in 0..wire.varint().ok_or(cut)? {
        let extent = take_extent(&mut wire, behind)?;
        behind = extent.range.end;
        delta.extents.push(extent);
    }
    if wire.left() != 0 {
        return Err(DeltaError::Format("bytes are left over"));
    }
    Ok(delta)
}

fn take_extent(wire: &mut Wire<'_>, behind: u64) -> Result<Extent, DeltaError> {
    let cut = DeltaError::Format("it is cut off");
    let far = DeltaError::Format("an extent lies too far out");
    let start = wire
        .varint()
        .and_then(|gap| behind.checked_add(gap))
        .ok_or(far)?;
    let length = wire.varint().ok_or(cut)?;
    let end = start.checked_add(length).ok_or(far)?;
    let kind = wire.u8().ok_or(cut)?;
    let source = match kind {
        HOLE => Source::Hole,
        DROPPED => Source::Dropped,
        ZEROS => Source::Zeros,
        BLOCK => Source::Block {
            block: BlockId {
                window: WindowNo(wire.varint_u32().ok_or(cut)?),
                index: wire
                    .varint()
                    .and_then(|index| u16::try_from(index).ok())
                    .ok_or(cut)?,
            },
            offset: wire.varint_u32().ok_or(cut)?,
        },
        INLINE => Source::Inline {
            piece: wire.varint_u32().ok_or(cut)?,
            offset: wire.varint_u32().ok_or(cut)?,
        },
        _ => return Err(DeltaError::Format("an extent's kind is unknown")),
    };
    let (place, first) = match source {
        Source::Hole | Source::Dropped | Source::Zeros => (0, 0),
        Source::Block { block, offset } => (block.index, offset),
        Source::Inline { offset, .. } => (0, offset),
    };
    check(kind, place, first, length)?;
    Ok(Extent {
        range: start..end,
        source,
    })
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
