//! What is remembered of a block, a window and a piece of a file: the plain records that the writer fills
//! in, the manifest keeps and the reader follows. No behaviour that touches a disk.

use std::fmt;
use std::ops::Range;

use crate::ids::{BlockId, DiskId, SetId, WindowNo};

/// Offsets from here on belong to no byte that a file can have. What is kept with a file beside its bytes lies there, in extents like
/// all others.
pub const BEYOND: u64 = 1 << 60;

/// The most bytes of a file that one block gathers.
pub const BLOCK_MAX: usize = 128 << 10;

/// The most blocks of one window.
pub const WINDOW_BLOCKS: usize = 256;

/// The most columns and parity shards of one window together.
pub const SHARDS_MAX: usize = 32;

/// A Reed-Solomon code: `k` columns of data with `m` shards of parity; `k = 1` is `m` further copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code {
    /// Columns of data, at least 1.
    pub k: u8,
    /// Shards of parity: how many disks may die.
    pub m: u8,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.k, self.m)
    }
}

/// What policy makes of the use of a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Loss would hurt: under parity.
    Critical,
    /// The guest does without: stored once.
    Expendable,
}

/// How a block's bytes were made smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encoding {
    /// Stored as they are.
    Plain = 0,
    /// One zstd frame.
    Zstd = 1,
    /// One lz4 block.
    Lz4 = 2,
}

/// Where one block lies and what it must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRecord {
    /// The column, hence the disk: an index into `WindowRecord::disks`, below `k`.
    pub column: u8,
    /// How the bytes were made smaller.
    pub encoding: Encoding,
    /// Whether the block's stored bytes are part of its column, that is, under parity.
    pub protected: bool,
    /// Whether the block is known to be gone: its disk was given up and nothing else holds it.
    pub lost: bool,
    /// Whether the block is stored as it is because there was no time to compress it: that is still to be done.
    pub hasty: bool,
    /// Where the block's header begins in the window set's blocks object on that disk.
    pub offset: u64,
    /// Where the block begins in its column; without meaning unless protected. Bytes.
    pub column_offset: u32,
    /// Bytes on the disk, header included.
    pub stored: u32,
    /// Bytes of the file that it holds.
    pub raw: u32,
    /// xxh3 of the block's header, which holds that of the payload.
    pub checksum: u64,
}

/// One shard of a window's parity. It lies on `WindowRecord::disks[k + i]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParityShard {
    /// Where the shard's bytes begin (its header lies before them) in the parity object of
    /// `WindowRecord::parity_set`.
    pub offset: u64,
    /// xxh3 of the shard's bytes.
    pub checksum: u64,
}

/// A window with all its blocks, placed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowRecord {
    /// Its number in the file.
    pub no: WindowNo,
    /// The segment set that holds its blocks.
    pub set: SetId,
    /// Columns of data and shards of parity.
    pub code: Code,
    /// `k` disks of the columns, then `m` disks of the parity; no disk twice.
    pub disks: Vec<DiskId>,
    /// The segment set that holds its parity (a later one once parity was rewritten).
    pub parity_set: SetId,
    /// Length of every parity shard: the longest column rounded up to `PARITY_ALIGN`; 0 when no block is
    /// protected.
    pub parity_length: u32,
    /// `m` shards; empty when no block is protected or `m` is 0.
    pub parity: Vec<ParityShard>,
    /// The blocks, by their place in the window. A place that was given up has `raw` and `stored` 0.
    pub blocks: Vec<BlockRecord>,
}

impl WindowRecord {
    /// The block at a place, unless there is none or it was given up.
    pub fn block(&self, index: u16) -> Option<&BlockRecord> {
        self.blocks
            .get(usize::from(index))
            .filter(|block| block.stored > 0)
    }

    /// The disk of a column or, from `k` on, of a parity shard.
    pub fn disk(&self, shard: usize) -> Option<DiskId> {
        self.disks.get(shard).copied()
    }
}

/// Column ranges are coded in units of this many bytes: a range to be reconstructed is widened to them.
pub const PARITY_ALIGN: u32 = 64;

/// What a range of a file is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nothing was ever written there, or it was punched or cut off; it reads as zeros.
    Hole,
    /// Zeros that were written. Nothing is stored, and it reads as a hole does, but it is data to whoever asks: what is laid over
    /// another file by its data, as diff snapshots are, brings its zeros along.
    Zeros,
    /// Nothing is stored any more: the policy gave the bytes up. Reading them is like reading bytes that are lost.
    Dropped,
    /// A block's decompressed bytes, from an offset in them on.
    Block {
        /// The block.
        block: BlockId,
        /// The first byte in the decompressed block.
        offset: u32,
    },
    /// Bytes that lie in the metadata, from an offset in them on.
    Inline {
        /// Which piece of the file's inline bytes.
        piece: u32,
        /// The first byte in the piece.
        offset: u32,
    },
}

impl Source {
    /// The source of the bytes that lie `by` bytes further on.
    pub fn advanced(self, by: u64) -> Source {
        let by = by as u32;
        match self {
            Source::Hole => Source::Hole,
            Source::Zeros => Source::Zeros,
            Source::Dropped => Source::Dropped,
            Source::Block { block, offset } => Source::Block {
                block,
                offset: offset + by,
            },
            Source::Inline { piece, offset } => Source::Inline {
                piece,
                offset: offset + by,
            },
        }
    }
}

/// A run of a file's bytes and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The bytes of the file.
    pub range: Range<u64>,
    /// Where they are.
    pub source: Source,
}

/// One step from a file's committed form to the next: what a commit adds to the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Windows that are new, or whose record changed (parity rewritten, blocks moved).
    pub windows: Vec<WindowRecord>,
    /// Windows that hold nothing alive any more.
    pub dropped: Vec<WindowNo>,
    /// Ranges with their new source, in rising order and without overlap; holes included.
    pub extents: Vec<Extent>,
    /// The first window number that no window has had.
    pub next_window: u32,
    /// The first inline piece number that no piece has had.
    pub next_piece: u32,
}
