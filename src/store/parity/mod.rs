//! Parity over the columns of a window: what is computed from them, how it is stored, and how any `k`
//! shards give back the others. Knows bytes in memory, no disk and no window record.
//!
//! The code works byte by byte along the shards in units of 64 bytes (`PARITY_ALIGN`): the same aligned
//! range of all shards is a codeword by itself. So a lost block is rebuilt from its own range of the
//! others, and parity is computed tile by tile while the tiles are in the CPU's cache.

mod reconstruct;
mod shard;

use std::cell::RefCell;

pub use reconstruct::reconstruct;
use reed_solomon_simd::ReedSolomonEncoder;
pub use shard::{Shard, ShardMaker, encode_shards};

use super::header::{HEADER, Header, HeaderError, Kind};
use super::records::{Code, PARITY_ALIGN, SHARDS_MAX};
use crate::ids::{FileId, SetId, VolumeId, WindowNo};

/// Bytes that a parity shard's header adds to it on the disk.
pub const PARITY_HEADER: usize = HEADER;

/// Bytes of each shard that are coded at once. Small enough for the working set of a usual code to stay near the
/// first-level cache, and of a wide one in the second-level cache, large enough for calls to cost nothing.
const TILE: usize = 16 << 10;

const ALIGN: usize = PARITY_ALIGN as usize;

/// What a stretch of columns that are still to grow is a multiple of, so that it is coded in whole tiles. Bytes.
pub const PARITY_STRETCH: u32 = TILE as u32;

/// A code or shards that cannot be coded with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ParityError {
    /// No such code.
    #[error("code {0} cannot be used: it needs 1 column or more and at most {SHARDS_MAX} shards")]
    Code(Code),
    /// A code of `k` columns was given another number.
    #[error("code {code} was given {found} columns")]
    Columns {
        /// The code.
        code: Code,
        /// Columns given.
        found: usize,
    },
    /// A shard number that the code does not have, or one given twice.
    #[error("code {code} has no shard {shard}, or it was given twice")]
    Shard {
        /// The code.
        code: Code,
        /// The number.
        shard: usize,
    },
    /// Shards of different lengths, or not in units of 64 bytes.
    #[error("a shard of {found} bytes cannot be coded with others of {expected}")]
    Length {
        /// Bytes of the first one, rounded up to a unit.
        expected: usize,
        /// Bytes of this one.
        found: usize,
    },
    /// Fewer than `k` shards.
    #[error("{found} shards are too few to reconstruct anything of code {code}")]
    TooFew {
        /// The code.
        code: Code,
        /// Shards given.
        found: usize,
    },
    /// The library refused.
    #[error("code {code}: {source}")]
    Library {
        /// The code.
        code: Code,
        /// Its reason.
        source: reed_solomon_simd::Error,
    },
}

pub(super) fn check_code(code: Code) -> Result<(usize, usize), ParityError> {
    let (k, m) = (usize::from(code.k), usize::from(code.m));
    if k == 0 || k + m > SHARDS_MAX {
        return Err(ParityError::Code(code));
    }
    Ok((k, m))
}

/// The `m` parity shards over the columns, each column a list of slices that lie end to end. A shard is as
/// long as the longest column, rounded up to `PARITY_ALIGN`; shorter columns count as padded with zeros.
/// Empty when `m` is 0.
pub fn encode<C, S>(code: Code, columns: &[C]) -> Result<Vec<Vec<u8>>, ParityError>
where
    C: AsRef<[S]>,
    S: AsRef<[u8]>,
{
    let mut parity = vec![Vec::new(); usize::from(code.m)];
    encode_each(code, columns, &mut |shard, bytes| {
        if let Some(shard) = parity.get_mut(shard) {
            shard.extend_from_slice(bytes);
        }
    })?;
    Ok(parity)
}

/// Hands out the parity shards piece by piece, each with the number of its shard and in order.
fn encode_each<C, S>(
    code: Code,
    columns: &[C],
    made: &mut dyn FnMut(usize, &[u8]),
) -> Result<(), ParityError>
where
    C: AsRef<[S]>,
    S: AsRef<[u8]>,
{
    let (k, m) = check_code(code)?;
    if columns.len() != k {
        return Err(ParityError::Columns {
            code,
            found: columns.len(),
        });
    }
    if m == 0 {
        return Ok(());
    }
    let length = columns
        .iter()
        .map(|column| column.as_ref().iter().map(|s| s.as_ref().len()).sum())
        .max()
        .unwrap_or(0usize)
        .next_multiple_of(ALIGN);
    let mut columns: Vec<Column<S>> = columns.iter().map(|c| Column::new(c.as_ref())).collect();
    let mut done = 0;
    while done < length {
        let tile = TILE.min(length - done);
        encode_tile(code, &mut columns, tile, made)?;
        done += tile;
    }
    Ok(())
}

/// Working memory of a thread.
#[derive(Default)]
struct Desk {
    encoder: Option<(Code, usize, ReedSolomonEncoder)>,
    gathered: Vec<u8>,
}

thread_local! {
    static DESK: RefCell<Desk> = RefCell::default();
}

fn encode_tile<S: AsRef<[u8]>>(
    code: Code,
    columns: &mut [Column<S>],
    tile: usize,
    made: &mut dyn FnMut(usize, &[u8]),
) -> Result<(), ParityError> {
    let refused = |source| ParityError::Library { code, source };
    DESK.with_borrow_mut(|desk| {
        let Desk { encoder, gathered } = desk;
        if code.k == 1 {
            for column in columns {
                let bytes = column.take(tile, gathered);
                (0..usize::from(code.m)).for_each(|copy| made(copy, bytes));
            }
            return Ok(());
        }
        let (k, m) = (usize::from(code.k), usize::from(code.m));
        // Taken out, so that an encoder which failed half-way is not used again.
        let mut ready = match encoder.take() {
            Some((made_for, length, ready)) if made_for == code && length == tile => ready,
            Some((_, _, mut ready)) => {
                ready.reset(k, m, tile).map_err(refused)?;
                ready
            }
            None => ReedSolomonEncoder::new(k, m, tile).map_err(refused)?,
        };
        for column in columns {
            ready
                .add_original_shard(column.take(tile, gathered))
                .map_err(refused)?;
        }
        let result = ready.encode().map_err(refused)?;
        for (shard, bytes) in result.recovery_iter().enumerate() {
            made(shard, bytes);
        }
        drop(result);
        *encoder = Some((code, tile, ready));
        Ok(())
    })
}

/// A column as it is walked through from its start.
struct Column<'a, S> {
    rest: std::slice::Iter<'a, S>,
    current: &'a [u8],
}

impl<'a, S: AsRef<[u8]>> Column<'a, S> {
    fn new(slices: &'a [S]) -> Self {
        Column {
            rest: slices.iter(),
            current: &[],
        }
    }

    /// The next `length` bytes, zeros behind the end: out of the slice they lie in, or else gathered in
    /// `room`.
    fn take<'b>(&mut self, length: usize, room: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        if self.current.is_empty() {
            self.advance();
        }
        if let Some((head, tail)) = self.current.split_at_checked(length) {
            self.current = tail;
            return head;
        }
        room.clear();
        while room.len() < length && !self.current.is_empty() {
            let (head, tail) = self
                .current
                .split_at(self.current.len().min(length - room.len()));
            room.extend_from_slice(head);
            self.current = tail;
            if tail.is_empty() {
                self.advance();
            }
        }
        room.resize(length, 0);
        room
    }

    fn advance(&mut self) {
        self.current = self
            .rest
            .by_ref()
            .map(S::as_ref)
            .find(|slice| !slice.is_empty())
            .unwrap_or_default();
    }
}

/// Whose parity it is: everything that a shard's header says besides the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParityIds {
    /// The volume.
    pub volume: VolumeId,
    /// The file.
    pub file: FileId,
    /// The segment set that the parity is written to.
    pub set: SetId,
    /// The window.
    pub window: WindowNo,
    /// The code of the window.
    pub code: Code,
    /// Which of the `m` shards, from 0.
    pub shard: u8,
}

impl ParityIds {
    fn place(&self) -> u16 {
        u16::from_le_bytes([self.code.k, self.code.m])
    }
}

/// The header that is stored before a shard's bytes, of which there are `length` with this xxh3.
pub fn shard_header(ids: ParityIds, length: u32, checksum: u64) -> [u8; PARITY_HEADER] {
    Header {
        kind: Kind::Parity,
        detail: ids.shard,
        place: ids.place(),
        volume: ids.volume,
        file: ids.file,
        set: ids.set,
        window: ids.window,
        raw: 0,
        length,
        checksum,
    }
    .encode()
}

/// Whether a stored header is that of this shard with these bytes' length and checksum.
pub fn check_shard_header(
    ids: ParityIds,
    stored: &[u8],
    length: u32,
    checksum: u64,
) -> Result<(), HeaderError> {
    let header = Header::decode(stored)?;
    let same = header.kind == Kind::Parity
        && header.detail == ids.shard
        && header.place == ids.place()
        && header.volume == ids.volume
        && header.file == ids.file
        && header.set == ids.set
        && header.window == ids.window
        && header.length == length
        && header.checksum == checksum;
    if same {
        Ok(())
    } else {
        Err(HeaderError::Foreign)
    }
}

#[cfg(test)]
mod tests;
