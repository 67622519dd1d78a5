//! Blocks read back: from their disk, and when that has nothing good, out of the window's other shards.
//! Every byte given out has been verified; what was found bad is written good again. Knows windows and
//! disks, not what a file is.
//!
//! Shards are fetched side by side by a few threads of the reader's own, which do nothing but read and
//! hash; the thread that asked decodes. Those threads never wait for one another or for the cache, so any
//! number of callers, in pools of their own too, may read at once.

mod check;
mod moved;
mod rebuild;
mod shards;
mod stored;

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

pub use check::{BadBlock, BadShard, WindowReport};

use super::block::{BLOCK_HEADER, BlockError, BlockIds, open, open_into};
use super::cache::{BlockCache, BlockKey};
use super::disks::{DiskState, Disks, ReadFailure};
use super::records::{BLOCK_MAX, BlockRecord, WindowRecord};
use crate::disk::ObjectName;
use crate::ids::{BlockId, DiskId, FileId, VolumeId};

/// Threads that fetch shards: enough for two wide windows at once.
const FETCHERS: usize = 16;

/// How much of a column is rebuilt at once when it is read from front to back. Decoding costs the same a
/// byte whatever the width; this is for the disks, which then see a few large reads.
pub const RUN: u32 = 1 << 20;

/// Why a block cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The extent map names a block that the window does not have.
    #[error(
        "file {file}: its map leads to block {block}, which there is none of; run `parsfs rescue` if this stays"
    )]
    NoBlock {
        /// The file.
        file: FileId,
        /// The block.
        block: BlockId,
    },
    /// A block that was stored once is gone.
    #[error("file {file}: block {block} was stored once, and is lost: {cause}")]
    Lost {
        /// The file.
        file: FileId,
        /// The block.
        block: BlockId,
        /// What its disk says, by name.
        cause: String,
    },
    /// The policy gave the bytes up.
    #[error("file {file}: these bytes were dropped by the policy when the file was committed")]
    Dropped {
        /// The file.
        file: FileId,
    },
    /// More of the window is gone than its code can stand.
    #[error(
        "file {file}: block {block} cannot be read ({cause}) nor reconstructed ({others}); bring back a disk that is missing"
    )]
    Unreadable {
        /// The file.
        file: FileId,
        /// The block.
        block: BlockId,
        /// What its own disk says, by name.
        cause: String,
        /// What the other disks of the window say, by name.
        others: String,
    },
}

/// Why a block's own disk did not give it.
#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Disk(#[from] ReadFailure),
    #[error("disk {disk}, {object} at {offset}: {error}")]
    Block {
        disk: String,
        object: ObjectName,
        offset: u64,
        error: BlockError,
    },
}

/// Reads the blocks of a volume.
pub struct Reader {
    volume: VolumeId,
    disks: Arc<Disks>,
    cache: Arc<BlockCache>,
    fetchers: ThreadPool,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("volume", &self.volume)
            .field("disks", &self.disks)
            .finish_non_exhaustive()
    }
}

/// A block, its window and what is recorded of it.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    file: FileId,
    window: &'a WindowRecord,
    index: u16,
    record: &'a BlockRecord,
    disk: DiskId,
}

impl Wanted<'_> {
    fn block(&self) -> BlockId {
        BlockId {
            window: self.window.no,
            index: self.index,
        }
    }

    fn key(&self) -> BlockKey {
        (self.file, self.window.set, self.block())
    }

    fn object(&self) -> ObjectName {
        ObjectName::Blocks(self.window.set)
    }

    fn is_protected(&self) -> bool {
        self.record.protected && !self.window.parity.is_empty()
    }
}

thread_local! {
    /// Room for one stored block, so that reading one allocates only what is given out.
    static STORED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Reader {
    /// A reader of the volume's blocks, whose decompressed bytes `cache` keeps.
    pub fn new(
        volume: VolumeId,
        disks: Arc<Disks>,
        cache: Arc<BlockCache>,
    ) -> Result<Reader, ThreadPoolBuildError> {
        let fetchers = ThreadPoolBuilder::new()
            .num_threads(FETCHERS)
            .thread_name(|number| format!("fetch-{number}"))
            .build()?;
        Ok(Reader {
            volume,
            disks,
            cache,
            fetchers,
        })
    }

    /// The cache of decompressed blocks.
    pub fn cache(&self) -> &Arc<BlockCache> {
        &self.cache
    }

    /// A block's bytes, out of the cache, off its disk or reconstructed.
    pub fn read_block(
        &self,
        file: FileId,
        window: &WindowRecord,
        index: u16,
    ) -> Result<Arc<[u8]>, ReadError> {
        let wanted = self.find(file, window, index)?;
        self.cache
            .get_or_load(wanted.key(), || self.load(wanted, false))
    }

    /// The same for a reader that goes on to the blocks behind: when the block has to be reconstructed
    /// because its disk is gone, so are those behind it in its column, up to `RUN` bytes, and they go into
    /// the cache.
    pub fn read_block_in_run(
        &self,
        file: FileId,
        window: &WindowRecord,
        index: u16,
    ) -> Result<Arc<[u8]>, ReadError> {
        let wanted = self.find(file, window, index)?;
        self.cache
            .get_or_load(wanted.key(), || self.load(wanted, true))
    }

    /// A block's bytes into `out`, which must be as long; what is not in the cache does not go there either. For a
    /// reader that takes the whole block and goes on.
    pub fn read_block_into(
        &self,
        file: FileId,
        window: &WindowRecord,
        index: u16,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let wanted = self.find(file, window, index)?;
        let cached = self.cache.get(wanted.key());
        let doubtful = wanted.is_protected() && self.disks.reads_fail(wanted.disk);
        let block = match cached {
            Some(block) => block,
            None if doubtful => self
                .cache
                .get_or_load(wanted.key(), || self.load(wanted, true))?,
            None => match self.direct_into(wanted, out) {
                Ok(()) => return Ok(()),
                Err(cause) => self.otherwise(wanted, cause)?,
            },
        };
        if block.len() != out.len() {
            return Err(ReadError::NoBlock {
                file,
                block: wanted.block(),
            });
        }
        out.copy_from_slice(&block);
        Ok(())
    }

    fn load(&self, wanted: Wanted<'_>, in_run: bool) -> Result<Arc<[u8]>, ReadError> {
        // Whoever waits for a dying disk to say no, block after block, waits for long.
        if wanted.is_protected() && self.disks.reads_fail(wanted.disk) {
            let block = if in_run {
                self.run(wanted)
            } else {
                let stored = self.rebuild_quickly(wanted);
                stored.and_then(|stored| open(self.ids(wanted), &stored, wanted.record).ok())
            };
            if let Some(block) = block {
                return Ok(block);
            }
        }
        self.direct(wanted)
            .or_else(|cause| self.otherwise(wanted, cause))
    }

    /// The block when its own disk did not give it: out of the others, or by waiting for a disk that hangs.
    fn otherwise(&self, wanted: Wanted<'_>, cause: Cause) -> Result<Arc<[u8]>, ReadError> {
        let slow = matches!(cause, Cause::Disk(ReadFailure::Slow { .. }));
        let error = match self.reconstructed(wanted, cause) {
            Ok(block) => return Ok(block),
            Err(error) => error,
        };
        // It may answer yet, and nobody else has the bytes.
        let waited = slow.then(|| self.waited_for(wanted).ok()).flatten();
        waited.ok_or(error)
    }

    /// The block, and into the cache those behind it in its column.
    fn run(&self, wanted: Wanted<'_>) -> Option<Arc<[u8]>> {
        let (file, window) = (wanted.file, wanted.window);
        let start = wanted.record.column_offset;
        let range = start..start.saturating_add(RUN);
        let mut own = None;
        for (index, bytes) in self.column_blocks(file, window, wanted.record.column, range) {
            if index == wanted.index {
                own = Some(bytes);
            } else {
                let block = BlockId {
                    window: window.no,
                    index,
                };
                self.cache.insert((file, window.set, block), bytes);
            }
        }
        own
    }

    /// Reconstructs a range of a column in one go and puts the blocks that lie in it whole into the cache;
    /// says which. Blocks that need more care than that are left out: `read_block` takes it.
    pub fn reconstruct_column(
        &self,
        file: FileId,
        window: &WindowRecord,
        column: u8,
        range: Range<u32>,
    ) -> Vec<u16> {
        let blocks = self.column_blocks(file, window, column, range);
        let insert = |(index, bytes)| {
            let block = BlockId {
                window: window.no,
                index,
            };
            self.cache.insert((file, window.set, block), bytes);
            index
        };
        blocks.into_iter().map(insert).collect()
    }

    fn find<'a>(
        &self,
        file: FileId,
        window: &'a WindowRecord,
        index: u16,
    ) -> Result<Wanted<'a>, ReadError> {
        let block = BlockId {
            window: window.no,
            index,
        };
        let found = window.block(index);
        if found.is_some_and(|record| record.lost) {
            return Err(ReadError::Lost {
                file,
                block,
                cause: "its disk was given up".to_owned(),
            });
        }
        let found = found.and_then(|record| {
            let possible =
                record.column < window.code.k && record.stored as usize <= BLOCK_MAX + BLOCK_HEADER;
            let disk = window.disk(usize::from(record.column))?;
            possible.then_some(Wanted {
                file,
                window,
                index,
                record,
                disk,
            })
        });
        found.ok_or(ReadError::NoBlock { file, block })
    }

    fn ids(&self, wanted: Wanted<'_>) -> BlockIds {
        BlockIds {
            volume: self.volume,
            file: wanted.file,
            set: wanted.window.set,
            block: wanted.block(),
        }
    }

    fn bad_block(&self, wanted: Wanted<'_>, error: BlockError) -> Cause {
        let object = wanted.object();
        self.disks
            .count_wrong_bytes(wanted.disk, format_args!("{object:?}: {error}"));
        Cause::Block {
            disk: self.disks.name(wanted.disk),
            object: wanted.object(),
            offset: wanted.record.offset,
            error,
        }
    }

    /// What a disk said to a read, counted against it if it lacks what it was given.
    fn failed(&self, wanted: Wanted<'_>, failure: ReadFailure) -> Cause {
        if let ReadFailure::Disk(error) = &failure
            && error.is_missing()
        {
            self.disks.count_wrong_bytes(wanted.disk, error);
        }
        failure.into()
    }

    /// The block off its own disk, for which nobody else can stand in.
    fn waited_for(&self, wanted: Wanted<'_>) -> Result<Arc<[u8]>, Cause> {
        let mut stored = vec![0; wanted.record.stored as usize];
        let offset = wanted.record.offset;
        self.disks
            .read_at_last(wanted.disk, wanted.object(), offset, &mut stored)?;
        open(self.ids(wanted), &stored, wanted.record)
            .map_err(|error| self.bad_block(wanted, error))
    }

    /// The block off its own disk, verified.
    fn direct(&self, wanted: Wanted<'_>) -> Result<Arc<[u8]>, Cause> {
        self.look_at(wanted, |stored| {
            open(self.ids(wanted), stored, wanted.record)
        })
    }

    fn direct_into(&self, wanted: Wanted<'_>, out: &mut [u8]) -> Result<(), Cause> {
        self.look_at(wanted, |stored| {
            open_into(self.ids(wanted), stored, wanted.record, out)
        })
    }

    /// What is stored for the block on its own disk, looked at by `look`.
    fn look_at<T>(
        &self,
        wanted: Wanted<'_>,
        look: impl FnOnce(&[u8]) -> Result<T, BlockError>,
    ) -> Result<T, Cause> {
        STORED.with_borrow_mut(|room| {
            let length = wanted.record.stored as usize;
            if room.len() < length {
                room.resize(length, 0);
            }
            let stored = room.get_mut(..length).unwrap_or_default();
            let offset = wanted.record.offset;
            self.disks
                .read(wanted.disk, wanted.object(), offset, stored)
                .map_err(|failure| self.failed(wanted, failure))?;
            look(stored).map_err(|error| self.bad_block(wanted, error))
        })
    }

    /// The block out of the other shards, and good again on its disk.
    fn reconstructed(&self, wanted: Wanted<'_>, cause: Cause) -> Result<Arc<[u8]>, ReadError> {
        let stored = self.rebuild(wanted, &cause)?;
        let opened = open(self.ids(wanted), &stored, wanted.record);
        let block = opened.map_err(|error| ReadError::Unreadable {
            file: wanted.file,
            block: wanted.block(),
            cause: cause.to_string(),
            others: format!("the reconstructed bytes are not it: {error}"),
        })?;
        self.mend(wanted, &stored, &cause);
        Ok(block)
    }

    /// Writes a block's good bytes over its bad ones for somebody who reads it.
    fn mend(&self, wanted: Wanted<'_>, stored: &[u8], cause: &Cause) {
        // A disk that hangs would hold up whoever repairs it. One that is being rebuilt is given what it lacks by the
        // rebuild, which tells by the lengths of its objects what that is.
        let rebuilding = self.disks.state(wanted.disk) == DiskState::Rebuilding;
        if !rebuilding && !self.disks.reads_fail(wanted.disk) {
            self.put_back(wanted, stored, cause);
        }
    }

    /// Writes a block's good bytes over its bad ones where its disk is online; says whether it did.
    fn put_back(&self, wanted: Wanted<'_>, stored: &[u8], cause: &Cause) -> bool {
        if !self.disks.is_online(wanted.disk) {
            return false;
        }
        tracing::warn!(
            file = %wanted.file,
            block = %wanted.block(),
            disk = self.disks.name(wanted.disk),
            object = %wanted.object(),
            offset = wanted.record.offset,
            %cause,
            "block was bad, reconstructed from the others"
        );
        let offset = wanted.record.offset;
        self.disks
            .repair(wanted.disk, wanted.object(), offset, stored)
    }
}

#[cfg(test)]
mod tests;
