//! A parity shard on its way to a disk: coded and hashed tile by tile while the bytes are in the CPU's cache, into
//! memory that is used again.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::{ParityError, encode_each};
use crate::store::buffers::{Buffer, Buffers};
use crate::store::records::{BLOCK_MAX, Code};

/// The bytes of one shard, in pieces.
#[derive(Debug)]
pub struct Shard {
    /// The bytes, end to end.
    pub pieces: Vec<Buffer>,
    /// How many.
    pub length: u32,
    /// Their xxh3.
    pub checksum: u64,
}

/// The same shards as `encode` gives.
pub fn encode_shards<C, S>(
    code: Code,
    columns: &[C],
    buffers: &Arc<Buffers>,
) -> Result<Vec<Shard>, ParityError>
where
    C: AsRef<[S]>,
    S: AsRef<[u8]>,
{
    let mut making: Vec<(Vec<Buffer>, Xxh3)> = (0..code.m).map(|_| Default::default()).collect();
    encode_each(code, columns, &mut |shard, mut bytes| {
        let Some((pieces, hash)) = making.get_mut(shard) else {
            return;
        };
        hash.update(bytes);
        while !bytes.is_empty() {
            let room = pieces.last().map_or(0, |piece| BLOCK_MAX - piece.len());
            if room == 0 {
                pieces.push(buffers.take());
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(room));
            if let Some(piece) = pieces.last_mut() {
                piece.extend_from_slice(now);
            }
            bytes = later;
        }
    })?;
    let made = making.into_iter().map(|(pieces, hash)| Shard {
        length: pieces.iter().map(|piece| piece.len() as u32).sum(),
        checksum: hash.digest(),
        pieces,
    });
    Ok(made.collect())
}
