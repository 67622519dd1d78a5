//! A parity shard on its way to a disk: coded and hashed tile by tile while the bytes are in the CPU's cache, into
//! memory that is used again.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::{ParityError, encode_each};
use crate::store::budget::{Budget, Permit};
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

/// The shards of one window while its columns grow: whatever stretch of them is complete is coded and hashed while the
/// blocks that it came from are in the CPU's cache, and these blocks are needed no more for it.
#[derive(Debug)]
pub struct ShardMaker {
    code: Code,
    buffers: Arc<Buffers>,
    making: Vec<Making>,
    /// What of the memory for writing they take.
    paid: Option<Permit>,
    /// Why nothing more can come of it.
    failed: Option<ParityError>,
}

#[derive(Debug, Default)]
struct Making {
    pieces: Vec<Buffer>,
    hash: Box<Hash>,
}

#[derive(Default)]
struct Hash(Xxh3);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

impl ShardMaker {
    /// Nothing coded yet.
    pub fn new(code: Code, buffers: &Arc<Buffers>) -> ShardMaker {
        ShardMaker {
            code,
            buffers: Arc::clone(buffers),
            making: (0..code.m).map(|_| Making::default()).collect(),
            paid: None,
            failed: None,
        }
    }

    /// Codes the next stretch of the columns. It is as long as the longest of them, which is a multiple of
    /// [`super::PARITY_STRETCH`] for every stretch but the last one; shorter ones count as padded with zeros. After a failure
    /// nothing is done, and `finish` tells of it.
    pub fn add<C, S>(&mut self, columns: &[C])
    where
        C: AsRef<[S]>,
        S: AsRef<[u8]>,
    {
        if self.failed.is_some() {
            return;
        }
        let (making, buffers) = (&mut self.making, &self.buffers);
        let coded = encode_each(self.code, columns, &mut |shard, bytes| {
            if let Some(making) = making.get_mut(shard) {
                making.put(bytes, buffers);
            }
        });
        self.failed = coded.err();
    }

    /// Has the budget know of the memory that the shards take by now. It is given back when they are finished.
    pub fn pay(&mut self, budget: &Arc<Budget>) {
        let pieces = self.making.iter().flat_map(|making| &making.pieces);
        let bytes: u64 = pieces.map(|piece| piece.len() as u64).sum();
        self.paid = Some(budget.force(bytes));
    }

    /// The shards.
    pub fn finish(self) -> Result<Vec<Shard>, ParityError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let made = self
            .making
            .into_iter()
            .map(|Making { pieces, hash }| Shard {
                length: pieces.iter().map(|piece| piece.len() as u32).sum(),
                checksum: hash.0.digest(),
                pieces,
            });
        Ok(made.collect())
    }
}

impl Making {
    fn put(&mut self, mut bytes: &[u8], buffers: &Arc<Buffers>) {
        self.hash.0.update(bytes);
        while !bytes.is_empty() {
            let room = self
                .pieces
                .last()
                .map_or(0, |piece| BLOCK_MAX - piece.len());
            if room == 0 {
                self.pieces.push(buffers.take());
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(room));
            if let Some(piece) = self.pieces.last_mut() {
                piece.extend_from_slice(now);
            }
            bytes = later;
        }
    }
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
    let mut maker = ShardMaker::new(code, buffers);
    maker.add(columns);
    maker.finish()
}
