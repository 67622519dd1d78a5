//! The open blocks of a file: bytes are copied in as they come, one block a lane, and handed to the set's
//! writer when they are full. Knows no extents beyond those it gives out.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::ids::{BlockId, FileId, SetId};
use crate::store::{
    Begun, Buffer, Extent, Lane, NoWindow, OpenWindow, Permit, Pipeline, SetWriter, Source,
};

/// A block that still takes bytes.
#[derive(Debug)]
struct OpenBlock {
    lane: Lane,
    begun: Begun,
    bytes: Buffer,
    permit: Permit,
}

/// Who is asked, and told, while bytes are gathered.
pub struct Told<'a> {
    /// Numbers a segment set when one is needed.
    pub set: &'a dyn Fn() -> Result<SetId, NoWindow>,
    /// Hears of windows that were not there before.
    pub opened: &'a mut dyn FnMut(&Arc<OpenWindow>),
    /// Gets the extents.
    pub placed: &'a mut dyn FnMut(Extent),
}

/// Gathers the bytes of one file into blocks of one segment set.
#[derive(Debug)]
pub struct Gatherer {
    pipeline: Arc<Pipeline>,
    file: FileId,
    block_size: usize,
    next_window: Arc<AtomicU32>,
    open: Vec<OpenBlock>,
    writer: Option<Arc<SetWriter>>,
    sealed: bool,
    /// Every block is compressed, however long that takes.
    thorough: bool,
}

impl Gatherer {
    /// A gatherer without a set; `next_window` counts the file's windows.
    pub fn new(
        pipeline: Arc<Pipeline>,
        file: FileId,
        block_size: usize,
        next_window: Arc<AtomicU32>,
    ) -> Gatherer {
        Gatherer {
            pipeline,
            file,
            block_size,
            next_window,
            open: Vec::new(),
            writer: None,
            sealed: false,
            thorough: false,
        }
    }

    /// The same for what is written again, aside: every block is compressed, however long that takes.
    pub fn thorough(self) -> Gatherer {
        Gatherer {
            thorough: true,
            ..self
        }
    }

    /// Copies bytes that lie at `start` of the file into the lane's block, and on into new ones. The permit
    /// pays for them.
    pub fn append(
        &mut self,
        lane: Lane,
        start: u64,
        mut bytes: &[u8],
        permit: &mut Permit,
        told: &mut Told<'_>,
    ) -> Result<(), NoWindow> {
        let mut start = start;
        while !bytes.is_empty() {
            let slot = match self.open.iter().position(|block| block.lane == lane) {
                Some(slot) => slot,
                None => self.begin(lane, bytes.len(), permit, told)?,
            };
            let block = &mut self.open[slot];
            let room = self.block_size - block.bytes.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            let source = Source::Block {
                block: block.begun.id(),
                offset: block.bytes.len() as u32,
            };
            block.bytes.extend_from_slice(now);
            block.permit.merge(permit.split(now.len() as u64));
            (told.placed)(Extent {
                range: start..start + now.len() as u64,
                source,
            });
            start += now.len() as u64;
            bytes = later;
            if block.bytes.len() == self.block_size {
                self.seal(slot);
            }
        }
        Ok(())
    }

    fn begin(
        &mut self,
        lane: Lane,
        expected: usize,
        permit: &mut Permit,
        told: &mut Told<'_>,
    ) -> Result<usize, NoWindow> {
        let writer = match &self.writer {
            Some(writer) => writer,
            None => {
                let (pipeline, set) = (Arc::clone(&self.pipeline), (told.set)()?);
                self.writer.insert(match self.thorough {
                    true => SetWriter::thorough(pipeline, self.file, set),
                    false => SetWriter::new(pipeline, self.file, set),
                })
            }
        };
        let begun = writer.begin(lane, &self.next_window)?;
        (told.opened)(&begun.window);
        let expected = expected.clamp(4096, self.block_size);
        let bytes = self.pipeline.buffers.take_small(expected);
        self.open.push(OpenBlock {
            lane,
            begun,
            bytes,
            permit: permit.split(0),
        });
        Ok(self.open.len() - 1)
    }

    fn seal(&mut self, slot: usize) {
        let block = self.open.swap_remove(slot);
        let Some(writer) = &self.writer else { return };
        if block.bytes.is_empty() {
            writer.give_up(&block.begun);
        } else {
            self.sealed = true;
            writer.seal(&block.begun, Arc::new(block.bytes), Some(block.permit));
        }
    }

    /// Hands over all open blocks as they are.
    pub fn seal_all(&mut self) {
        while !self.open.is_empty() {
            self.seal(0);
        }
    }

    /// Seals all and closes the windows, so that their memory comes back soon.
    pub fn relieve(&mut self) {
        self.seal_all();
        if let Some(writer) = &self.writer {
            writer.close_windows();
        }
    }

    /// Takes the bytes of the open blocks back, and gives their places up.
    pub fn take_open(&mut self) -> Vec<(BlockId, Vec<u8>)> {
        let Some(writer) = &self.writer else {
            return Vec::new();
        };
        let open = self.open.drain(..);
        open.map(|block| {
            writer.give_up(&block.begun);
            (block.begun.id(), block.bytes.into_bytes())
        })
        .collect()
    }

    /// The bytes of a block that is still open.
    pub fn bytes(&self, block: BlockId) -> Option<&[u8]> {
        let open = self.open.iter().find(|open| open.begun.id() == block)?;
        Some(open.bytes.as_slice())
    }

    /// Overwrites bytes of a block that is still open and holds them all. Says whether it did.
    pub fn patch(&mut self, block: BlockId, range: Range<usize>, bytes: &[u8]) -> bool {
        let open = self.open.iter_mut().find(|open| open.begun.id() == block);
        match open.and_then(|open| open.bytes.get_mut(range)) {
            Some(place) => {
                place.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    /// Bytes in open blocks.
    pub fn open_bytes(&self) -> usize {
        self.open.iter().map(|block| block.bytes.len()).sum()
    }

    /// Whether a block was handed over since the set was begun.
    pub fn has_sealed(&self) -> bool {
        self.sealed
    }

    /// The writer of the current set; the next bytes begin another. All blocks must be sealed.
    pub fn take_writer(&mut self) -> Option<Arc<SetWriter>> {
        debug_assert!(self.open.is_empty());
        self.sealed = false;
        self.writer.take()
    }
}
