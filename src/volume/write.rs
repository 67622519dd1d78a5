//! Writing into an open file: bytes are gathered and the map says where they went. Overwriting, truncating,
//! punching and copying are edits of the map. Nothing here waits for a disk; only for memory, and only where
//! the caller allows it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::error::{Result, VolumeError};
use super::file::{FileState, OpenFile, Times};
use super::filemap::Window;
use super::gather::Told;
use super::zeros;
use super::{Handle, Volume};
use crate::meta::Timestamp;
use crate::store::{BEYOND, Extent, Permit, Source};

/// The largest file.
pub const SIZE_MAX: u64 = BEYOND;

/// Runs in the newest layer, or windows in memory, at which an uncommitted base is written so that memory
/// does not grow with the file.
const SPILL_RUNS: usize = 100_000;
const SPILL_WINDOWS: usize = 512;

/// Bytes that may still be accepted, as of a moment: what the disks could take then, less what was on its way
/// to them, less what was accepted since.
#[derive(Debug, Default)]
pub(super) struct RoomLeft {
    left: u64,
    pub(super) until: Option<Instant>,
}

impl RoomLeft {
    fn new(room: u64, on_its_way: u64) -> RoomLeft {
        RoomLeft {
            left: room.saturating_sub(on_its_way),
            until: Some(Instant::now() + ROOM_FRESH),
        }
    }

    /// Takes bytes if they are there and the moment is not too long ago.
    fn take(&mut self, length: u64) -> bool {
        let fresh = self.until.is_some_and(|until| Instant::now() < until);
        let enough = fresh && self.left >= length;
        if enough {
            self.left -= length;
        }
        enough
    }
}

/// How long the disks are not asked again, as long as there is enough room.
const ROOM_FRESH: Duration = Duration::from_secs(2);

/// How space is allocated or given back, as fallocate(2) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Grow the file if the range ends behind it.
    Reserve,
    /// Only ask whether there is room.
    ReserveKeepSize,
    /// The range becomes a hole.
    Punch,
    /// The range reads as zeros; the file grows if it ends behind it.
    Zero,
    /// The range reads as zeros.
    ZeroKeepSize,
}

impl Volume {
    /// Gathers a write if there is memory for it at once; `None` when it would have to wait.
    pub fn try_write(&self, handle: Handle, offset: u64, data: &[u8]) -> Option<Result<()>> {
        let file = match self.writable(handle, offset, data.len() as u64) {
            Ok(file) => file,
            Err(error) => return Some(Err(error)),
        };
        if !self.room.lock().take(data.len() as u64) {
            return None;
        }
        let permit = self.pipeline.budget.try_acquire(data.len() as u64)?;
        Some(self.write_with(&file, offset, data, permit))
    }

    /// Gathers a write; waits for memory.
    pub fn write(&self, handle: Handle, offset: u64, data: &[u8]) -> Result<()> {
        let file = self.writable(handle, offset, data.len() as u64)?;
        // A hole needs no room.
        if !zeros::becomes_hole(data) {
            self.check_room(data.len() as u64)?;
        }
        let permit = self.memory(data.len() as u64);
        self.write_with(&file, offset, data, permit)
    }

    /// Waits for memory to write with; others are made to finish what they hold.
    pub(super) fn memory(&self, bytes: u64) -> Permit {
        if let Some(permit) = self.pipeline.budget.try_acquire(bytes) {
            return permit;
        }
        let _hurry = self.pipeline.hurry();
        self.pipeline.budget.acquire(bytes, &|| self.relieve())
    }

    /// Makes every file hand over its open blocks and windows, so that their memory comes back.
    pub(super) fn relieve(&self) {
        for file in self.files_in_use() {
            // A file that is busy is about to make progress anyway.
            if let Some(mut state) = file.state.try_lock() {
                state.gatherer.relieve();
            }
        }
    }

    fn writable(&self, handle: Handle, offset: u64, length: u64) -> Result<Arc<OpenFile>> {
        let handle = self.handle(handle)?;
        if !handle.may_write {
            return Err(VolumeError::new(
                libc::EBADF,
                "the file was opened for reading only",
            ));
        }
        self.check_writable()?;
        if offset.checked_add(length).is_none_or(|end| end > SIZE_MAX) {
            return Err(VolumeError::new(
                libc::EFBIG,
                "a file can have at most 2^60 bytes",
            ));
        }
        handle.changed.store(true, Ordering::Release);
        Ok(Arc::clone(&handle.file))
    }

    fn write_with(
        &self,
        file: &Arc<OpenFile>,
        offset: u64,
        data: &[u8],
        mut permit: Permit,
    ) -> Result<()> {
        let mut state = file.state.lock();
        self.put(file, &mut state, offset, data, &mut permit)?;
        self.touch(file, &mut state);
        let spill = state.map.top.len() > SPILL_RUNS || state.map.windows.len() > SPILL_WINDOWS;
        drop(state);
        if spill {
            self.begin_spill(file);
        }
        Ok(())
    }

    /// Notes that the bytes changed now.
    pub(super) fn touch(&self, _file: &OpenFile, state: &mut FileState) {
        let now = Timestamp::now();
        state.times = Times {
            mtime: Some(now),
            ctime: Some(now),
        };
    }

    /// Copies bytes into open blocks and points the map at them. After an error they may be there in part, and none of
    /// them behind the end.
    pub(super) fn put(
        &self,
        file: &OpenFile,
        state: &mut FileState,
        offset: u64,
        data: &[u8],
        permit: &mut Permit,
    ) -> Result<()> {
        let before = state.follow.zeros_before(offset);
        let result = self.put_parts(file, state, offset, data, permit);
        if result.is_err() {
            take_back(state, offset.max(state.size)..offset + data.len() as u64);
            return result;
        }
        state.follow.wrote(offset, data);
        let mut zeros = zeros::trailing(data);
        if zeros == data.len() {
            // Of a run there may be a few in each of many writes.
            zeros = (before + zeros).min(zeros::RUN - 1);
        }
        state.follow.ended_in_zeros(zeros);
        state.size = state.size.max(offset + data.len() as u64);
        Ok(())
    }

    fn put_parts(
        &self,
        file: &OpenFile,
        state: &mut FileState,
        offset: u64,
        data: &[u8],
        permit: &mut Permit,
    ) -> Result<()> {
        // A page may lie in two writes: zeros at the end of the one before and at the beginning of this one are one run.
        let before = state.follow.zeros_before(offset);
        let mut first = 0;
        if before > 0 {
            first = zeros::leading(data);
            if before + first >= zeros::RUN {
                let start = offset - before as u64;
                self.put_zeros(state, start..offset + first as u64)?;
            } else {
                first = 0;
            }
        }
        zeros::split(&data[first..], |piece, zero| {
            let piece = first + piece.start..first + piece.end;
            let range = offset + piece.start as u64..offset + piece.end as u64;
            if zero {
                self.put_zeros(state, range)
            } else {
                self.put_data(file, state, range, &data[piece], permit)
            }
        })
    }

    fn put_data(
        &self,
        file: &OpenFile,
        state: &mut FileState,
        range: Range<u64>,
        data: &[u8],
        permit: &mut Permit,
    ) -> Result<()> {
        if range.start < state.size {
            if self.patch_open(state, &range, data)? {
                state.change(range);
                return Ok(());
            }
            self.count_dead(state, range.clone())?;
        }
        state.change(range.clone());
        let lane = self.tiers.while_writing(file.id, &range, data);
        let FileState { gatherer, map, .. } = state;
        let (windows, top) = (&mut map.windows, &mut map.top);
        let result = gatherer.append(
            lane,
            range.start,
            data,
            permit,
            &mut Told {
                set: &|| self.next_set(),
                opened: &mut |window| {
                    windows
                        .entry(window.no)
                        .or_insert_with(|| Window::Making(Arc::clone(window)));
                },
                placed: &mut |extent| top.insert(extent.range, extent.source),
            },
        );
        result.map_err(|error| {
            tracing::error!(file = %file.id, %error, "a write was refused");
            VolumeError::from(error)
        })
    }

    /// A write into bytes that are all still in one open block goes there, and leaves nothing dead.
    fn patch_open(&self, state: &mut FileState, range: &Range<u64>, data: &[u8]) -> Result<bool> {
        let mut found = Vec::new();
        let mut gaps = 0;
        state
            .map
            .top
            .walk(range.clone(), &mut |extent| found.push(extent), &mut |_| {
                gaps += 1
            });
        let [
            Extent {
                source: Source::Block { block, offset },
                ..
            },
        ] = found[..]
        else {
            return Ok(false);
        };
        if gaps > 0 {
            return Ok(false);
        }
        let start = offset as usize;
        Ok(state.gatherer.patch(block, start..start + data.len(), data))
    }

    /// Zeros are written: nothing is stored of them.
    fn put_zeros(&self, state: &mut FileState, range: Range<u64>) -> Result<()> {
        if range.start < state.size {
            self.count_dead(state, range.clone())?;
        }
        state.change(range.clone());
        state.map.top.insert(range, Source::Zeros);
        Ok(())
    }

    /// Makes a range a hole; what lies behind the end needs no word.
    pub(super) fn put_hole(&self, state: &mut FileState, range: Range<u64>) -> Result<()> {
        let range = range.start..range.end.min(state.size.max(state.committed_size));
        if range.start < range.end {
            self.count_dead(state, range.clone())?;
            state.change(range.clone());
            state.map.top.insert(range, Source::Hole);
        }
        Ok(())
    }

    fn count_dead(&self, state: &mut FileState, range: Range<u64>) -> Result<()> {
        for extent in state.map.resolve(range)? {
            if let Source::Block { .. } = extent.source {
                state.dead += extent.range.end - extent.range.start;
            }
        }
        Ok(())
    }

    /// Sets the length. What is cut off is gone: a later growth reads zeros there.
    pub(super) fn resize(&self, file: &OpenFile, size: u64) -> Result<()> {
        if size > SIZE_MAX {
            return Err(VolumeError::new(
                libc::EFBIG,
                "a file can have at most 2^60 bytes",
            ));
        }
        let mut state = file.state.lock();
        let before = state.size;
        state.follow.resized(before, size);
        if size < state.size {
            let cut = size..state.size.max(state.committed_size);
            self.put_hole(&mut state, cut)?;
        }
        state.size = size;
        self.touch(file, &mut state);
        drop(state);
        Ok(())
    }

    /// fallocate(2). Room is not set aside, as what a block will take is not known before it is compressed;
    /// that there is enough now is checked.
    pub fn allocate(&self, handle: Handle, offset: u64, length: u64, how: Allocate) -> Result<()> {
        let file = self.writable(handle, offset, length)?;
        let end = offset + length;
        if matches!(how, Allocate::Reserve | Allocate::ReserveKeepSize) {
            self.check_room(length)?;
        }
        let mut state = file.state.lock();
        match how {
            Allocate::Reserve if end > state.size => {
                let before = state.size;
                state.follow.resized(before, end);
                state.size = end;
            }
            // The times change all the same, as on other filesystems.
            Allocate::Reserve | Allocate::ReserveKeepSize => {}
            Allocate::Punch | Allocate::ZeroKeepSize => {
                let end = end.min(state.size);
                if offset < end {
                    self.put_hole(&mut state, offset..end)?;
                    state.follow.emptied(offset..end);
                }
            }
            Allocate::Zero => {
                self.put_hole(&mut state, offset..end)?;
                state.follow.emptied(offset..end);
                state.size = state.size.max(end);
            }
        }
        self.touch(&file, &mut state);
        drop(state);
        Ok(())
    }

    /// Refuses what could not be protected: the bytes in hand may all turn out incompressible.
    fn check_room(&self, length: u64) -> Result<()> {
        if self.room.lock().take(length) || self.ask_for_room(length) {
            return Ok(());
        }
        // What was removed just now is given back aside; that is worth waiting for.
        self.sweeper.wait();
        if self.ask_for_room(length) {
            return Ok(());
        }
        // Too few disks may be the true reason.
        let why = self.pipeline.refuses().map_or_else(
            || {
                "no room to store this with the redundancy that the policy asks for; free space or add disks"
                    .to_owned()
            },
            |refusal| refusal.to_string(),
        );
        Err(VolumeError::new(libc::ENOSPC, why))
    }

    /// Asks the disks anew, and takes bytes if they are there. Not under the lock: a disk may hang, and writers for whom there
    /// is room do not wait for it.
    pub(super) fn ask_for_room(&self, length: u64) -> bool {
        self.pipeline.room.forget();
        let open = || -> u64 {
            let files = self.files_in_use();
            files.iter().map(|file| file.open_bytes()).sum()
        };
        let before = self.pipeline.unwritten() + open();
        let data_room = self.data_room();
        let open = open();
        let mut room = self.room.lock();
        // What came to the disks while they were asked may be in their answer or not, and what was gathered meanwhile is not.
        let on_its_way = before.max(self.pipeline.unwritten() + open);
        *room = RoomLeft::new(data_room, on_its_way);
        room.take(length)
    }
}

/// Makes a range behind the end a hole again, as it is when the file grows.
fn take_back(state: &mut FileState, range: Range<u64>) {
    if range.is_empty() {
        return;
    }
    let (mut placed, mut dead) = (false, 0);
    let mut said = |extent: Extent| {
        placed |= extent.source != Source::Hole;
        if !matches!(extent.source, Source::Hole | Source::Zeros) {
            dead += extent.range.end - extent.range.start;
        }
    };
    state.map.top.walk(range.clone(), &mut said, &mut |_| {});
    state.dead += dead;
    if placed {
        state.map.top.insert(range, Source::Hole);
    }
}
