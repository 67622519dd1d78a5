//! A window in the making: places are given out, sealed blocks are put on its shortest column, and once it
//! is closed and complete its parity is coded from the bytes still in memory. It ends as a `WindowRecord`.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::block::Sealed;
use super::budget::Permit;
use super::buffers::Buffer;
use super::records::{BlockRecord, Code, Encoding, ParityShard, Tier, WINDOW_BLOCKS, WindowRecord};
use super::segment::Payload;
use crate::ids::{DiskId, FileId, SetId, WindowNo};

/// The most blocks of a column, on average: with few columns a window is smaller, so that its parity is not
/// larger than a wide one's.
const COLUMN_BLOCKS: usize = 64;

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
    /// On its way to a column, or there; its bytes are kept for the parity. `offset` is set once it is there.
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
    /// On its disk, and nothing kept: read it by this record.
    OnDisk(Arc<WindowRecord>),
}

/// What a window needs next.
#[derive(Debug)]
pub enum Next {
    /// Nothing now.
    Wait,
    /// Parity: every block is sealed and no more will come. By column, end to end.
    Encode(Vec<Vec<Arc<SealedBlock>>>),
    /// Nothing any more: the record is complete.
    Complete,
}

#[derive(Debug)]
struct State {
    slots: Vec<Slot>,
    closed: bool,
    columns: Vec<u64>,
    /// Slots that are begun or being compressed.
    unsealed: usize,
    /// Blocks that are on their way to a disk.
    unplaced: usize,
    stored: u64,
    parity: ParityState,
    /// Shards whose disk did not take everything.
    failed: Vec<bool>,
    record: Option<Arc<WindowRecord>>,
}

#[derive(Debug)]
enum ParityState {
    /// This window gets none.
    None,
    NotYet,
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
    ) -> Arc<Self> {
        let parity = if code.m == 0 {
            ParityState::None
        } else {
            ParityState::NotYet
        };
        let state = State {
            slots: Vec::new(),
            closed: false,
            columns: vec![0; usize::from(code.k)],
            unsealed: 0,
            unplaced: 0,
            stored: 0,
            parity,
            failed: vec![false; disks.len()],
            record: None,
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

    /// Gives out the next place, unless the window is closed or full.
    pub fn begin(&self) -> Option<u16> {
        let mut state = self.state.lock();
        let most = WINDOW_BLOCKS.min(COLUMN_BLOCKS * usize::from(self.code.k));
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
        let stored = block.sealed.length() as u64;
        let mut state = self.state.lock();
        let column = (0..state.columns.len())
            .min_by_key(|&column| (state.failed[column], state.columns[column]))
            .unwrap_or(0);
        let column_offset = state.columns[column] as u32;
        state.columns[column] += stored;
        state.stored += stored;
        state.unsealed -= 1;
        state.unplaced += 1;
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
        let keep = !matches!(state.parity, ParityState::None);
        if let Some(slot) = state.slots.get_mut(usize::from(index))
            && let Slot::Sealed {
                block,
                column,
                column_offset,
                offset,
            } = slot
        {
            match result {
                Ok(at) if keep => *offset = Some(at),
                Ok(at) => *slot = Slot::Placed(record(block, *column, *column_offset, at, false)),
                Err(()) => {
                    state.failed[usize::from(*column)] = true;
                    block.release_permit();
                }
            }
        }
    }

    /// What is to be done now. `Encode` is answered once.
    pub fn next(&self) -> Next {
        let mut state = self.state.lock();
        let state = &mut *state;
        if !state.closed || state.unsealed > 0 {
            return Next::Wait;
        }
        if matches!(state.parity, ParityState::NotYet) {
            let mut columns = vec![Vec::new(); usize::from(self.code.k)];
            let mut order: Vec<(u8, u32, &Arc<SealedBlock>)> = Vec::new();
            for slot in &state.slots {
                if let Slot::Sealed {
                    block,
                    column,
                    column_offset,
                    ..
                } = slot
                {
                    order.push((*column, *column_offset, block));
                }
            }
            order.sort_by_key(|&(column, column_offset, _)| (column, column_offset));
            let any = !order.is_empty();
            for (column, _, block) in order {
                columns[usize::from(column)].push(Arc::clone(block));
            }
            let shards = vec![None; usize::from(self.code.m)];
            let missing = if any { usize::from(self.code.m) } else { 0 };
            state.parity = ParityState::Written {
                length: 0,
                shards,
                missing,
            };
            if any {
                return Next::Encode(columns);
            }
        }
        let owed = match &state.parity {
            ParityState::Written { missing, .. } => *missing,
            ParityState::None | ParityState::NotYet => 0,
        };
        if owed > 0 || state.unplaced > 0 {
            return Next::Wait;
        }
        if state.record.is_none() {
            state.record = Some(Arc::new(self.finished(state)));
            // What was kept for the parity is needed no more, but for blocks that no disk holds.
            for slot in &mut state.slots {
                if let Slot::Sealed {
                    block,
                    column,
                    column_offset,
                    offset: Some(at),
                } = slot
                {
                    *slot = Slot::Placed(record(block, *column, *column_offset, *at, true));
                }
            }
            self.changed.notify_all();
        }
        Next::Complete
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
            Slot::Placed(_) => Some(Held::OnDisk(match &state.record {
                Some(record) => Arc::clone(record),
                None => Arc::new(self.finished(&state)),
            })),
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

    /// Whether nothing will change any more.
    pub fn is_complete(&self) -> bool {
        self.state.lock().record.is_some()
    }

    /// Bytes placed so far.
    pub fn stored(&self) -> u64 {
        self.state.lock().stored
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
