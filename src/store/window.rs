//! A window in the making: places are given out, and sealed blocks are put on its shortest column. Its parity is coded
//! along the columns as they grow, from the bytes still in memory, which are let go when they are coded and on their
//! disk. It ends as a `WindowRecord`.

mod stretch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

pub use self::stretch::Stretch;
use super::block::Sealed;
use super::budget::Permit;
use super::buffers::{Buffer, Buffers};
use super::parity::{PARITY_STRETCH, ShardMaker};
use super::pipeline::Growing;
use super::records::{BlockRecord, Code, Encoding, ParityShard, Tier, WINDOW_BLOCKS, WindowRecord};
use super::segment::Payload;
use crate::ids::{DiskId, FileId, SetId, WindowNo};

/// The most blocks of a column, on average: with few columns a window is smaller, so that its parity is not
/// larger than a wide one's.
pub(super) const COLUMN_BLOCKS: usize = 64;

/// Bytes that every column must have grown by before more parity is coded, unless nothing more will come: few enough
/// that they are still in the processor's cache, and enough that a job for them costs nothing.
const STEP: u32 = 256 << 10;

const _: () = assert!(STEP.is_multiple_of(PARITY_STRETCH));

/// Which open block of a file bytes are gathered in, by what is known of their tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Known to be critical.
    Critical,
    /// Known to be expendable.
    Expendable,
    /// Not known before the commit; under parity until then.
    Undecided,
}

impl Lane {
    /// The tier that a block of this lane is stored as before it is settled.
    pub fn tier(self) -> Tier {
        match self {
            Lane::Critical | Lane::Undecided => Tier::Critical,
            Lane::Expendable => Tier::Expendable,
        }
    }
}

/// A sealed block that waits for its disk, and for the parity of its window.
#[derive(Debug)]
pub struct SealedBlock {
    /// The stored bytes with what is known of them.
    pub sealed: Sealed,
    /// Bytes of the file that it holds.
    pub raw: u32,
    permit: Mutex<Option<Permit>>,
}

impl SealedBlock {
    /// Takes over the permit of the bytes' memory.
    pub fn new(sealed: Sealed, raw: u32, mut permit: Option<Permit>) -> SealedBlock {
        if let Some(permit) = &mut permit {
            permit.shrink(sealed.length() as u64);
        }
        SealedBlock {
            sealed,
            raw,
            permit: Mutex::new(permit),
        }
    }

    /// Gives the budget back although the bytes stay: they wait for a commit that may be far away.
    fn release_permit(&self) {
        self.permit.lock().take();
    }
}

impl Payload for SealedBlock {
    fn parts<'a>(&'a self, parts: &mut Vec<&'a [u8]>) {
        parts.extend([&self.sealed.header[..], &self.sealed.payload[..]]);
    }
}

#[derive(Debug, Clone)]
enum Slot {
    /// Given out; its bytes are still gathered by the file.
    Begun,
    /// Full, being compressed.
    Raw(Arc<Buffer>),
    /// On its way to its disk, or there and its bytes are kept for the parity. `offset` is set once it is there.
    Sealed {
        block: Arc<SealedBlock>,
        column: u8,
        column_offset: u32,
        offset: Option<u64>,
    },
    /// On its disk; nothing kept.
    Placed(BlockRecord),
    /// Nothing came of it.
    GivenUp,
}

/// Where a block's bytes can be had while its window is in the making.
#[derive(Debug)]
pub enum Held {
    /// Decompressed.
    Raw(Arc<Buffer>),
    /// As it is stored, with its record (whose offset may not be known yet).
    Sealed(Arc<SealedBlock>, BlockRecord),
    /// On its disk, and nothing kept. Until the window is complete not all that stands for it is on a disk, and whoever finds
    /// this one failed has to wait for that.
    OnDisk {
        /// By what it is read.
        record: Arc<WindowRecord>,
        /// Whether the window is, and the record all of it.
        complete: bool,
    },
}

/// What a window needs next.
#[derive(Debug)]
pub enum Next {
    /// Nothing now.
    Wait,
    /// More parity.
    Encode(Stretch),
    /// Nothing any more: the record is complete.
    Complete,
}

/// A block on a column, for as long as parity is to be coded over it.
#[derive(Debug)]
struct Uncoded {
    index: u16,
    column_offset: u32,
    block: Arc<SealedBlock>,
}

impl Uncoded {
    fn end(&self) -> u32 {
        self.column_offset + self.block.sealed.length() as u32
    }
}

#[derive(Debug)]
struct State {
    slots: Vec<Slot>,
    closed: bool,
    columns: Vec<u32>,
    /// By column, in order.
    uncoded: Vec<VecDeque<Uncoded>>,
    /// Slots that are begun or being compressed.
    unsealed: usize,
    /// Blocks that are on their way to a disk.
    unplaced: usize,
    stored: u64,
    parity: ParityState,
    /// As far as parity is coded once no block will be added.
    ended: u32,
    /// Shards whose disk did not take everything.
    failed: Vec<bool>,
    record: Option<Arc<WindowRecord>>,
    /// Until there is a record.
    growing: Option<Growing>,
}

#[derive(Debug)]
enum ParityState {
    /// This window gets none.
    None,
    /// Coded as far as `coded`, and about to be as far as `promised`, in each column. `None` while somebody codes.
    Growing {
        maker: Option<ShardMaker>,
        coded: u32,
        promised: u32,
    },
    /// Coded.
    Written {
        length: u32,
        shards: Vec<Option<ParityShard>>,
        missing: usize,
    },
}

/// One window from its first block to its record.
#[derive(Debug)]
pub struct OpenWindow {
    /// Its number in the file.
    pub no: WindowNo,
    /// The file.
    pub file: FileId,
    /// The set that holds its blocks and parity.
    pub set: SetId,
    /// What was known of its blocks' tier.
    pub lane: Lane,
    /// Columns and parity shards.
    pub code: Code,
    /// The disks of the columns, then of the parity.
    pub disks: Vec<DiskId>,
    /// Its blocks are stored as they are, to be compressed later.
    pub hasty: bool,
    state: Mutex<State>,
    changed: Condvar,
}

impl OpenWindow {
    /// A window without blocks.
    pub fn new(
        no: WindowNo,
        file: FileId,
        set: SetId,
        lane: Lane,
        (code, disks): (Code, Vec<DiskId>),
        hasty: bool,
        buffers: &Arc<Buffers>,
    ) -> Arc<Self> {
        let parity = match code.m {
            0 => ParityState::None,
            _ => ParityState::Growing {
                maker: Some(ShardMaker::new(code, buffers)),
                coded: 0,
                promised: 0,
            },
        };
        let columns = usize::from(code.k);
        let state = State {
            slots: Vec::new(),
            closed: false,
            columns: vec![0; columns],
            uncoded: (0..columns).map(|_| VecDeque::new()).collect(),
            unsealed: 0,
            unplaced: 0,
            stored: 0,
            parity,
            ended: 0,
            failed: vec![false; disks.len()],
            record: None,
            growing: None,
        };
        Arc::new(OpenWindow {
            no,
            file,
            set,
            lane,
            code,
            disks,
            hasty,
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    /// Keeps what counts it among those in the making.
    pub fn count(&self, growing: Growing) {
        self.state.lock().growing = Some(growing);
    }

    /// Gives out the next place, unless the window is closed or full: with `column` blocks a column on average, or more.
    pub fn begin(&self, column: usize) -> Option<u16> {
        let mut state = self.state.lock();
        let most = WINDOW_BLOCKS.min(column * usize::from(self.code.k));
        if state.closed || state.slots.len() >= most {
            return None;
        }
        state.slots.push(Slot::Begun);
        state.unsealed += 1;
        let index = state.slots.len() - 1;
        if state.slots.len() == most {
            state.closed = true;
        }
        Some(index as u16)
    }

    /// Gives out no more places.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// The bytes of a place are complete.
    pub fn fill(&self, index: u16, raw: Arc<Buffer>) {
        if let Some(slot) = self.state.lock().slots.get_mut(usize::from(index)) {
            *slot = Slot::Raw(raw);
        }
    }

    /// Nothing will come for a place.
    pub fn give_up(&self, index: u16) {
        let mut state = self.state.lock();
        if let Some(slot) = state.slots.get_mut(usize::from(index)) {
            *slot = Slot::GivenUp;
            state.unsealed -= 1;
        }
    }

    /// Puts a sealed block on the shortest column that still works. `queue` is called with the column's
    /// disk under the window's lock, so that a column's order is its disk's order.
    pub fn place(
        &self,
        index: u16,
        block: SealedBlock,
        queue: impl FnOnce(DiskId, Arc<SealedBlock>),
    ) {
        let block = Arc::new(block);
        let stored = block.sealed.length() as u32;
        let mut state = self.state.lock();
        let state = &mut *state;
        let (promised, protected) = match state.parity {
            ParityState::Growing { promised, .. } => (promised, true),
            ParityState::None | ParityState::Written { .. } => (0, false),
        };
        // One that stopped growing before what is coded by now counts as ended there.
        let column = (0..state.columns.len())
            .filter(|&column| state.columns[column] >= promised)
            .min_by_key(|&column| (state.failed[column], state.columns[column]))
            .unwrap_or(0);
        let column_offset = state.columns[column];
        state.columns[column] += stored;
        state.stored += u64::from(stored);
        state.unsealed -= 1;
        state.unplaced += 1;
        if protected {
            state.uncoded[column].push_back(Uncoded {
                index,
                column_offset,
                block: Arc::clone(&block),
            });
        }
        state.slots[usize::from(index)] = Slot::Sealed {
            block: Arc::clone(&block),
            column: column as u8,
            column_offset,
            offset: None,
        };
        queue(self.disks[column], block);
    }

    /// The disk's answer for a block.
    pub fn placed(&self, index: u16, result: Result<u64, ()>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.unplaced -= 1;
        let coded = state.coded();
        if let Some(slot) = state.slots.get_mut(usize::from(index))
            && let Slot::Sealed {
                block,
                column,
                column_offset,
                offset,
            } = slot
        {
            match result {
                Ok(at) => {
                    *offset = Some(at);
                    let end = *column_offset + block.sealed.length() as u32;
                    if coded.is_none_or(|coded| end <= coded) {
                        slot.let_go(coded.is_some());
                    }
                }
                Err(()) => {
                    state.failed[usize::from(*column)] = true;
                    block.release_permit();
                }
            }
        }
    }

    /// What is to be done now. Parity is coded by one at a time, who calls `coded` then.
    pub fn next(&self) -> Next {
        let mut state = self.state.lock();
        let state = &mut *state;
        let whole = state.closed && state.unsealed == 0;
        if let Some(stretch) = state.stretch(whole) {
            return Next::Encode(stretch);
        }
        let owed = match &state.parity {
            ParityState::Written { missing, .. } => *missing,
            ParityState::Growing { .. } => return Next::Wait,
            ParityState::None => 0,
        };
        if !whole || owed > 0 || state.unplaced > 0 {
            return Next::Wait;
        }
        if state.record.is_none() {
            state.record = Some(Arc::new(self.finished(state)));
            state.growing = None;
            self.changed.notify_all();
        }
        Next::Complete
    }

    /// A stretch is coded that was not the last one.
    pub fn coded(&self, maker: ShardMaker, upto: u32) {
        let mut state = self.state.lock();
        if let ParityState::Growing {
            maker: place,
            coded,
            ..
        } = &mut state.parity
        {
            *place = Some(maker);
            *coded = upto;
        }
        state.forget_coded(upto);
    }

    /// The last stretch is coded; the disks answer for each shard of the parity.
    pub fn all_coded(&self) {
        self.state.lock().forget_coded(u32::MAX);
    }

    /// The disk's answer for a parity shard of `length` bytes.
    pub fn parity_placed(&self, shard: usize, length: u32, result: Result<ParityShard, ()>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        if let ParityState::Written {
            length: all,
            shards,
            missing,
        } = &mut state.parity
        {
            *missing -= 1;
            *all = length;
            match result {
                Ok(placed) => shards[shard] = Some(placed),
                Err(()) => state.failed[usize::from(self.code.k) + shard] = true,
            }
        }
    }

    fn finished(&self, state: &State) -> WindowRecord {
        let (parity_length, parity) = match &state.parity {
            ParityState::Written { length, shards, .. } if *length > 0 => {
                let shards = shards.iter().map(|shard| {
                    // A shard that its disk did not take: a place where nothing can ever be read.
                    shard.unwrap_or(ParityShard {
                        offset: u64::MAX / 2,
                        checksum: 0,
                    })
                });
                (*length, shards.collect())
            }
            _ => (0, Vec::new()),
        };
        WindowRecord {
            no: self.no,
            set: self.set,
            code: self.code,
            disks: self.disks.clone(),
            parity_set: self.set,
            parity_length,
            parity,
            blocks: state
                .slots
                .iter()
                .map(|slot| self.slot_record(slot))
                .collect(),
        }
    }

    fn slot_record(&self, slot: &Slot) -> BlockRecord {
        let protected = self.code.m > 0;
        match slot {
            Slot::Sealed {
                block,
                column,
                column_offset,
                offset,
            } => record(
                block,
                *column,
                *column_offset,
                offset.unwrap_or(u64::MAX / 2),
                protected,
            ),
            Slot::Placed(record) => *record,
            Slot::Begun | Slot::Raw(_) | Slot::GivenUp => BlockRecord {
                column: 0,
                encoding: Encoding::Plain,
                protected: false,
                lost: false,
                hasty: false,
                offset: 0,
                column_offset: 0,
                stored: 0,
                raw: 0,
                checksum: 0,
            },
        }
    }

    /// Where the bytes of a place can be had now; `None` while the file still gathers them.
    pub fn held(&self, index: u16) -> Option<Held> {
        let state = self.state.lock();
        match state.slots.get(usize::from(index))? {
            Slot::Begun | Slot::GivenUp => None,
            Slot::Raw(raw) => Some(Held::Raw(Arc::clone(raw))),
            slot @ Slot::Sealed { block, .. } => {
                Some(Held::Sealed(Arc::clone(block), self.slot_record(slot)))
            }
            Slot::Placed(_) => Some(match &state.record {
                Some(record) => Held::OnDisk {
                    record: Arc::clone(record),
                    complete: true,
                },
                None => Held::OnDisk {
                    record: Arc::new(self.finished(&state)),
                    complete: false,
                },
            }),
        }
    }

    /// Waits until the window is complete. Returns its record and the shards (columns, then parity) whose
    /// disk failed.
    pub fn wait(&self) -> (Arc<WindowRecord>, Vec<usize>) {
        let mut state = self.state.lock();
        loop {
            if let Some(record) = &state.record {
                let failed = (0..state.failed.len())
                    .filter(|&shard| state.failed[shard])
                    .collect();
                return (Arc::clone(record), failed);
            }
            self.changed.wait(&mut state);
        }
    }

    /// Its record, if the window is complete before the limit.
    pub fn wait_for(&self, limit: Duration) -> Option<Arc<WindowRecord>> {
        let mut state = self.state.lock();
        let incomplete = |state: &mut State| state.record.is_none();
        self.changed.wait_while_for(&mut state, incomplete, limit);
        state.record.clone()
    }

    /// Whether nothing will change any more.
    pub fn is_complete(&self) -> bool {
        self.state.lock().record.is_some()
    }

    /// Bytes placed so far.
    pub fn stored(&self) -> u64 {
        self.state.lock().stored
    }
}

impl State {
    /// As far as parity is coded in each column, if there is parity.
    fn coded(&self) -> Option<u32> {
        match self.parity {
            ParityState::None => None,
            ParityState::Growing { coded, .. } => Some(coded),
            // What is left of the last stretch is let go by `forget_coded`.
            ParityState::Written { .. } => Some(self.ended),
        }
    }

    /// The next stretch, if there is enough of it and nobody codes. `whole`: no block will be added.
    fn stretch(&mut self, whole: bool) -> Option<Stretch> {
        let (columns, failed) = (&self.columns, &self.failed);
        let ParityState::Growing {
            maker,
            coded,
            promised,
        } = &mut self.parity
        else {
            return None;
        };
        let from = *coded;
        let upto = match whole {
            true => columns.iter().copied().max().unwrap_or(0),
            false => {
                // A column whose disk fails grows no more.
                let grows = std::iter::zip(columns, failed).filter(|(_, failed)| !**failed);
                let least = grows.map(|(length, _)| *length).min()?;
                let upto = least - least % PARITY_STRETCH;
                if upto < from.saturating_add(STEP) {
                    return None;
                }
                upto
            }
        };
        let maker = maker.take()?;
        *promised = upto;
        if whole {
            self.ended = from;
            let m = self.failed.len() - columns.len();
            self.parity = ParityState::Written {
                length: 0,
                shards: vec![None; m],
                missing: if upto > 0 { m } else { 0 },
            };
            if upto == 0 {
                return None;
            }
        }
        let columns = self.uncoded.iter().map(|column| {
            let blocks = column.iter().take_while(|block| block.column_offset < upto);
            blocks
                .map(|block| (block.column_offset, Arc::clone(&block.block)))
                .collect()
        });
        Some(Stretch {
            maker,
            range: from..upto,
            last: whole,
            columns: columns.collect(),
        })
    }

    /// Lets go of what was kept for the parity: of blocks that no disk holds the bytes stay.
    fn forget_coded(&mut self, upto: u32) {
        if let ParityState::Written { .. } = self.parity {
            self.ended = upto;
        }
        for column in &mut self.uncoded {
            while column.front().is_some_and(|block| block.end() <= upto)
                && let Some(block) = column.pop_front()
            {
                if let Some(slot) = self.slots.get_mut(usize::from(block.index)) {
                    slot.let_go(true);
                }
            }
        }
    }
}

impl Slot {
    /// Keeps no bytes of a block that is on its disk.
    fn let_go(&mut self, protected: bool) {
        if let Slot::Sealed {
            block,
            column,
            column_offset,
            offset: Some(at),
        } = self
        {
            *self = Slot::Placed(record(block, *column, *column_offset, *at, protected));
        }
    }
}

fn record(
    block: &SealedBlock,
    column: u8,
    column_offset: u32,
    offset: u64,
    protected: bool,
) -> BlockRecord {
    BlockRecord {
        column,
        encoding: block.sealed.encoding,
        protected,
        lost: false,
        hasty: block.sealed.hasty,
        offset,
        column_offset,
        stored: block.sealed.length() as u32,
        raw: block.raw,
        checksum: block.sealed.checksum,
    }
}

#[cfg(test)]
mod tests;
