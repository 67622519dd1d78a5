//! Reading straight into the answer: where several requests are under way, each thread takes its own blocks one after
//! the other, and a block that the answer holds whole is decompressed into it and not kept. So a sequential read copies
//! every byte once less, wakes no other thread, and leaves the cache to those that read again. The disks are told
//! before of all that will be asked, so that they work side by side all the same.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::Volume;
use super::error::{Result, VolumeError};
use super::file::OpenFile;
use super::read::{Found, From, Part};
use crate::disk::ObjectName;
use crate::ids::{BlockId, DiskId};
use crate::store::{BLOCK_MAX, WindowRecord};

/// Bytes of answers whose memory is used again: of the kernel's large requests.
const KEPT: RangeInclusive<usize> = 512 << 10..=1 << 20;

/// The most answers whose memory is kept.
const ANSWERS: usize = 16;

/// The memory of answers that were given, for the next ones.
static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

thread_local! {
    /// Room for one block.
    static BLOCK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Takes an answer's memory for another one: fresh memory would cost a page fault for every 4 KiB.
pub fn reuse(answer: Vec<u8>) {
    if KEPT.contains(&answer.capacity()) {
        let mut free = FREE.lock();
        if free.len() < ANSWERS {
            free.push(answer);
        }
    }
}

/// Lets go the memory that is kept for answers.
pub(super) fn rest() {
    let free = std::mem::take(&mut *FREE.lock());
    drop(free);
}

/// Counts a read for as long as it lives.
pub(super) struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    /// One more, and how many there are with it.
    pub fn begin(count: &'a AtomicUsize) -> (UnderWay<'a>, usize) {
        let with_it = count.fetch_add(1, Ordering::Relaxed) + 1;
        (UnderWay(count), with_it)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A block that the answer wants, and how.
struct Wanted {
    record: Arc<WindowRecord>,
    /// Bytes of it that the answer holds, in any number of parts.
    used: usize,
    parts: usize,
}

impl Volume {
    /// The answer of `length` bytes, put together by this thread. The parts come in order.
    pub(super) fn fetch_here(
        &self,
        file: &Arc<OpenFile>,
        length: usize,
        parts: Vec<Part>,
    ) -> Result<Vec<u8>> {
        let wanted = self.wanted(file, &parts)?;
        self.tell_disks(&wanted);
        let kept = KEPT.contains(&length).then(|| FREE.lock().pop()).flatten();
        let mut answer = match kept {
            Some(kept) if kept.capacity() >= length => kept,
            _ => Vec::with_capacity(length),
        };
        answer.resize(length, 0);
        let mut in_room = None;
        let mut end = 0;
        for part in parts {
            let place = part.place.clone();
            let room = answer.get_mut(place.clone()).unwrap_or_default();
            if place.start != end || room.len() != place.len() {
                return Err(behind(file));
            }
            end = place.end;
            match (
                &part.from,
                block_of(&part).and_then(|block| wanted.get(&block)),
            ) {
                (From::Block { at, offset }, Some(wanted)) if wanted.is_whole(at.block) => {
                    if wanted.parts == 1 && *offset == 0 {
                        self.reader.read_block_into(
                            file.id,
                            &wanted.record,
                            at.block.index,
                            room,
                        )?;
                    } else {
                        let copied = BLOCK.with_borrow_mut(|block| -> Result<bool> {
                            block.resize(BLOCK_MAX, 0);
                            if in_room != Some(at.block) {
                                in_room = None;
                                let block = block.get_mut(..wanted.used).unwrap_or_default();
                                self.reader.read_block_into(
                                    file.id,
                                    &wanted.record,
                                    at.block.index,
                                    block,
                                )?;
                                in_room = Some(at.block);
                            }
                            Ok(copy(block.get(*offset..*offset + room.len()), room))
                        })?;
                        if !copied {
                            return Err(behind(file));
                        }
                    }
                }
                _ => match self.fetch_part(file, part)?.1 {
                    None => room.fill(0),
                    Some(found) => {
                        if !put(&found, room) {
                            return Err(behind(file));
                        }
                    }
                },
            }
        }
        if end == length {
            Ok(answer)
        } else {
            Err(behind(file))
        }
    }

    /// The blocks on disks that the parts lie in.
    fn wanted(&self, file: &OpenFile, parts: &[Part]) -> Result<BTreeMap<BlockId, Wanted>> {
        let mut wanted: BTreeMap<BlockId, Wanted> = BTreeMap::new();
        let mut last: Option<Arc<WindowRecord>> = None;
        for part in parts {
            let From::Block { at, .. } = &part.from else {
                continue;
            };
            if at.held.is_some() || at.making.is_some() {
                continue;
            }
            if let Some(found) = wanted.get_mut(&at.block) {
                found.used += part.place.len();
                found.parts += 1;
                continue;
            }
            let record = match (&at.record, last) {
                (Some(record), _) => Arc::clone(record),
                (None, Some(last)) if last.no == at.block.window => last,
                (None, _) => self.record(file, at.block)?,
            };
            last = Some(Arc::clone(&record));
            let (used, parts) = (part.place.len(), 1);
            wanted.insert(
                at.block,
                Wanted {
                    record,
                    used,
                    parts,
                },
            );
        }
        Ok(wanted)
    }

    /// Tells the disks what will be read. Of several blocks in a row they hear once.
    fn tell_disks(&self, wanted: &BTreeMap<BlockId, Wanted>) {
        let mut ranges: BTreeMap<(DiskId, ObjectName), Range<u64>> = BTreeMap::new();
        for (id, wanted) in wanted {
            let Some(block) = wanted.record.block(id.index) else {
                continue;
            };
            let Some(disk) = wanted.record.disk(block.column.into()) else {
                continue;
            };
            let own = block.offset..block.offset.saturating_add(block.stored.into());
            let object = ObjectName::Blocks(wanted.record.set);
            match ranges.get_mut(&(disk, object)) {
                Some(range) if range.end == own.start => range.end = own.end,
                Some(range) => {
                    let before = std::mem::replace(range, own);
                    self.disks.will_read(disk, object, before);
                }
                None => {
                    ranges.insert((disk, object), own);
                }
            }
        }
        for ((disk, object), range) in ranges {
            self.disks.will_read(disk, object, range);
        }
    }
}

impl Wanted {
    fn is_whole(&self, block: BlockId) -> bool {
        let raw = self
            .record
            .block(block.index)
            .map(|block| block.raw as usize);
        raw == Some(self.used) && self.used <= BLOCK_MAX
    }
}

fn block_of(part: &Part) -> Option<BlockId> {
    match &part.from {
        From::Block { at, .. } => Some(at.block),
        _ => None,
    }
}

/// Copies what was found for a part; says whether it is all there.
fn put(found: &Found, room: &mut [u8]) -> bool {
    let length = room.len();
    let all = |offset: usize| offset..offset + length;
    let bytes = match found {
        Found::Fill(byte) => {
            room.fill(*byte);
            return true;
        }
        Found::Owned(bytes) => bytes.get(all(0)),
        Found::Raw(raw, offset) => raw.get(all(*offset)),
        Found::Shared(bytes, offset) => bytes.get(all(*offset)),
    };
    copy(bytes, room)
}

fn copy(bytes: Option<&[u8]>, room: &mut [u8]) -> bool {
    match bytes {
        Some(bytes) => {
            room.copy_from_slice(bytes);
            true
        }
        None => false,
    }
}

fn behind(file: &OpenFile) -> VolumeError {
    VolumeError::new(
        libc::EIO,
        format!(
            "the map of file {} points behind the end of a block",
            file.id
        ),
    )
}
