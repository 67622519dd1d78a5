//! The stored form of a block: a header (`header.rs` has its layout) and the bytes, compressed where that
//! gains anything. Knows one block at a time and no disk.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::buffers::Buffer;
use super::compression::{Compression, compress, decompress, decompress_into};
use super::header::{HEADER, Header, HeaderError, Kind};
use super::records::{BLOCK_MAX, BlockRecord, Encoding};
use crate::ids::{BlockId, FileId, SetId, VolumeId};

/// Bytes that a block's header adds to it on the disk.
pub const BLOCK_HEADER: usize = HEADER;

/// Whose block it is: everything that its header says besides the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockIds {
    /// The volume.
    pub volume: VolumeId,
    /// The file.
    pub file: FileId,
    /// The segment set that it is written to.
    pub set: SetId,
    /// Window and place.
    pub block: BlockId,
}

/// A block as it is appended to a segment: the header, and behind it the payload.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// What says whose block it is.
    pub header: [u8; HEADER],
    /// The bytes behind the header: those that were gathered, in the very memory they were gathered in, where nothing
    /// is gained by compressing them. Little room is held beyond them.
    pub payload: Arc<Buffer>,
    /// How the payload was made smaller.
    pub encoding: Encoding,
    /// Whether nobody had time to make it smaller.
    pub hasty: bool,
    /// xxh3 of the header, which holds that of the payload: so every byte is hashed once.
    pub checksum: u64,
}

impl Sealed {
    /// Bytes of header and payload.
    pub fn length(&self) -> usize {
        HEADER + self.payload.len()
    }

    /// Header and payload end to end.
    #[cfg(test)]
    pub fn bytes(&self) -> Vec<u8> {
        [&self.header[..], &self.payload[..]].concat()
    }
}

/// What is wrong with a block's stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Not the number of bytes that the record tells.
    #[error("{found} bytes are stored where the manifest tells of {expected}")]
    Length {
        /// Bytes by the record.
        expected: u32,
        /// Bytes at hand.
        found: usize,
    },
    /// Not the bytes that were written.
    #[error("the stored bytes are not those that were written (checksum)")]
    Checksum,
    /// The header is none.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A whole block, but another one.
    #[error("the bytes are a block of another place ({field})")]
    Foreign {
        /// Which field of the header differs.
        field: &'static str,
    },
    /// The record asks for more than a block can hold.
    #[error("the manifest tells of {0} bytes in one block, more than a block holds")]
    TooLarge(u32),
    /// The payload does not decompress to its length.
    #[error("the stored bytes do not decompress")]
    Decompress,
}

/// Makes the stored form of `raw`, which is 1 to `BLOCK_MAX` bytes.
pub fn seal(ids: BlockIds, raw: &Arc<Buffer>, compression: Compression) -> Sealed {
    debug_assert!(!raw.is_empty() && raw.len() <= BLOCK_MAX);
    compress(raw, compression, |encoding, payload| {
        let payload = if encoding == Encoding::Plain && raw.capacity() - raw.len() <= raw.len() / 8
        {
            Arc::clone(raw)
        } else {
            Arc::new(payload.to_vec().into())
        };
        let header = Header {
            kind: Kind::Block,
            detail: encoding as u8,
            place: ids.block.index,
            volume: ids.volume,
            file: ids.file,
            set: ids.set,
            window: ids.block.window,
            raw: raw.len() as u32,
            length: payload.len() as u32,
            checksum: xxh3_64(&payload),
        };
        let header = header.encode();
        Sealed {
            encoding,
            hasty: false,
            checksum: xxh3_64(&header),
            header,
            payload,
        }
    })
}

/// The same as it is, for a later time to compress.
pub fn seal_in_haste(ids: BlockIds, raw: &Arc<Buffer>) -> Sealed {
    let sealed = seal(ids, raw, Compression::None);
    Sealed {
        hasty: true,
        ..sealed
    }
}

/// Whether `stored` is, to the byte, what was written for `record`.
pub fn check(stored: &[u8], record: &BlockRecord) -> Result<(), BlockError> {
    if stored.len() != record.stored as usize {
        return Err(BlockError::Length {
            expected: record.stored,
            found: stored.len(),
        });
    }
    let (header, payload) = stored
        .split_at_checked(HEADER)
        .ok_or(BlockError::Checksum)?;
    check_parts(header, payload, record)
}

fn check_parts(header: &[u8], payload: &[u8], record: &BlockRecord) -> Result<(), BlockError> {
    if xxh3_64(header) != record.checksum {
        return Err(BlockError::Checksum);
    }
    let header = Header::decode(header)?;
    if header.length as usize != payload.len() || xxh3_64(payload) != header.checksum {
        return Err(BlockError::Checksum);
    }
    Ok(())
}

/// Checks `stored` against its record and its header against `ids`, and gives the block's bytes. The
/// checksum comes first, so that hostile bytes are seldom looked at any further; they can at worst make
/// this an error, and never need more memory than `BLOCK_MAX`.
pub fn open(ids: BlockIds, stored: &[u8], record: &BlockRecord) -> Result<Arc<[u8]>, BlockError> {
    check(stored, record)?;
    let (header, payload) = stored
        .split_at_checked(HEADER)
        .ok_or(BlockError::Checksum)?;
    open_parts(ids, header, payload, record)
}

/// The same into `out`, which must be as long as the block's bytes.
pub fn open_into(
    ids: BlockIds,
    stored: &[u8],
    record: &BlockRecord,
    out: &mut [u8],
) -> Result<(), BlockError> {
    check(stored, record)?;
    let (header, payload) = stored
        .split_at_checked(HEADER)
        .ok_or(BlockError::Checksum)?;
    check_place(ids, header, payload, record)?;
    if out.len() == record.raw as usize && decompress_into(record.encoding, payload, out) {
        Ok(())
    } else {
        Err(BlockError::Decompress)
    }
}

/// The same for a block that is still in memory.
pub fn open_sealed(
    ids: BlockIds,
    sealed: &Sealed,
    record: &BlockRecord,
) -> Result<Arc<[u8]>, BlockError> {
    check_parts(&sealed.header, &sealed.payload, record)?;
    open_parts(ids, &sealed.header, &sealed.payload, record)
}

fn open_parts(
    ids: BlockIds,
    header: &[u8],
    payload: &[u8],
    record: &BlockRecord,
) -> Result<Arc<[u8]>, BlockError> {
    check_place(ids, header, payload, record)?;
    decompress(record.encoding, payload, record.raw as usize, |raw| {
        Arc::from(raw)
    })
    .ok_or(BlockError::Decompress)
}

fn check_place(
    ids: BlockIds,
    header: &[u8],
    payload: &[u8],
    record: &BlockRecord,
) -> Result<(), BlockError> {
    if record.raw as usize > BLOCK_MAX {
        return Err(BlockError::TooLarge(record.raw));
    }
    let header = Header::decode(header)?;
    let same = [
        ("kind", header.kind == Kind::Block),
        ("volume", header.volume == ids.volume),
        ("file", header.file == ids.file),
        ("segment set", header.set == ids.set),
        ("window", header.window == ids.block.window),
        ("place in the window", header.place == ids.block.index),
        ("encoding", header.detail == record.encoding as u8),
        ("length", header.raw == record.raw),
        ("stored length", header.length as usize == payload.len()),
    ];
    if let Some((field, _)) = same.into_iter().find(|(_, same)| !same) {
        return Err(BlockError::Foreign { field });
    }
    Ok(())
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
