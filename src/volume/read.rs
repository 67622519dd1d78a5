//! Reading an open file: the map says where bytes are; they come from open blocks, windows in the making,
//! inline pieces, the cache of decompressed blocks, or the disks. Blocks of one request are fetched side by
//! side, and a reader that goes forward finds the next ones in the cache.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::RwLockReadGuard;

use super::ahead::LARGEST;
use super::error::{Result, VolumeError};
use super::file::{FileState, OpenFile};
use super::filemap::Window;
use super::in_use::Aside;
use super::mended::Over;
use super::straight::UnderWay;
use super::{Handle, Volume};
use crate::ids::{BlockId, SetId};
use crate::meta::Records;
use crate::store::block::{BlockIds, open_sealed};
use crate::store::{Buffer, Extent, Held, OpenWindow, ReadError, Source, WindowRecord};

/// How long a read waits for the parity that is to give it a block of a file being written. A disk that hangs meanwhile is
/// given up sooner.
const PATIENCE: Duration = Duration::from_secs(90);

/// How far ahead of a sequential reader blocks are fetched, in bytes.
const AHEAD: u64 = 8 << 20;

/// The least that the kernel asks for at once where it reads ahead far enough by itself.
const KERNEL_AHEAD: usize = 512 << 10;

/// Reads in a row, each beginning where the one before ended, that make a reader sequential.
const SEQUENTIAL: u32 = 2;

/// How often a read that failed is tried again after the map has changed under it.
const RETRIES: usize = 8;

/// What stands for bytes that are lost where somebody looks for the way past them.
const LOST: u8 = 0xFF;

/// A part of an answer, and where its bytes are to be had.
#[derive(Debug)]
pub(super) struct Part {
    /// Where it lies in the answer.
    pub place: Range<usize>,
    pub from: From,
}

#[derive(Debug)]
pub(super) enum From {
    Zeros,
    /// Lost bytes, which read as this.
    Fill(u8),
    /// The policy gave them up.
    Dropped,
    Bytes(Vec<u8>),
    Raw {
        raw: Arc<Buffer>,
        offset: usize,
    },
    Piece {
        piece: u32,
        offset: usize,
    },
    Block {
        at: Located,
        offset: usize,
    },
}

/// A block and the record to read it by; `None` when the base has it.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub block: BlockId,
    pub held: Option<Arc<Held>>,
    /// The set it was sealed for, while it is held.
    set: SetId,
    pub record: Option<Arc<WindowRecord>>,
    /// Its window, while that has no parity on a disk yet.
    pub making: Option<Arc<OpenWindow>>,
}

impl Volume {
    /// A read that needs no disk; `None` when it would have to wait. For the threads that serve the kernel.
    pub fn try_read(&self, handle: Handle, offset: u64, length: usize) -> Option<Result<Vec<u8>>> {
        let handle = match self.handle(handle) {
            Ok(handle) => handle,
            Err(error) => return Some(Err(error)),
        };
        let state = handle.file.state.try_lock()?;
        // Only what is certain to be short work: an empty answer.
        (offset >= state.size || length == 0).then(|| Ok(Vec::new()))
    }

    /// Reads; short only at the end of the file.
    pub fn read(&self, handle: Handle, offset: u64, length: usize) -> Result<Vec<u8>> {
        let handle = self.handle(handle)?;
        if !handle.may_read {
            return Err(VolumeError::new(
                libc::EBADF,
                "the file was opened for writing only",
            ));
        }
        self.disks.note_read();
        // Large requests of one that is served through the kernel's cache are the kernel's own reading ahead.
        if !handle.direct_io && (KERNEL_AHEAD..=LARGEST).contains(&length) {
            return self.read_with_plans(&handle, offset, length);
        }
        let bytes = self.read_file(&handle.file, offset, length)?;
        let end = offset + bytes.len() as u64;
        let streak = if handle.next_read.swap(end, Ordering::Relaxed) == offset {
            handle.streak.fetch_add(1, Ordering::Relaxed) + 1
        } else {
            handle.streak.store(0, Ordering::Relaxed);
            0
        };
        if streak >= SEQUENTIAL {
            self.fetch_ahead(&handle.file, end, &handle.fetched);
        }
        Ok(bytes)
    }

    /// Reads an open file as programs see it now.
    pub(super) fn read_file(
        &self,
        file: &Arc<OpenFile>,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>> {
        let mut tries = 0;
        loop {
            let _reading = file.reading.read_recursive();
            let mut state = file.state.lock();
            let length = (length as u64).min(state.size.saturating_sub(offset)) as usize;
            let range = offset..offset + length as u64;
            let extents = state.map.resolve(range.clone())?;
            let over = state.mended.as_ref().map(|mended| mended.over(range));
            if let Some(lost) = over.as_ref().and_then(Over::error) {
                let message = format!("bytes {lost:?} of file {} are lost", file.id);
                return Err(VolumeError::new(libc::EIO, message).told());
            }
            let parts = self.locate_over(&mut state, offset, extents, over.as_ref())?;
            let version = state.version;
            drop(state);
            match self.fetch(file, length, parts) {
                Ok(mut bytes) => {
                    if let Some(over) = over {
                        over.edit(offset, &mut bytes);
                    }
                    return Ok(bytes);
                }
                // Bytes that were moved away meanwhile are found at their new place.
                Err(_) if file.state.lock().version != version && tries < RETRIES => tries += 1,
                Err(error) => {
                    // The next that opens the file while nobody reads it is served with what is lost in view.
                    self.known_losses.found_bad(file.id);
                    if !file.damaged.swap(true, Ordering::AcqRel) {
                        tracing::error!(
                            file = %file.id, offset, length, %error,
                            "a read failed; the log is silent about others of this file"
                        );
                    }
                    return Err(error.told());
                }
            }
        }
    }

    /// Reads an open file as the running commit sees it, without regard to its length.
    pub(super) fn read_frozen(&self, file: &Arc<OpenFile>, range: Range<u64>) -> Result<Vec<u8>> {
        let mut tries = 0;
        loop {
            let (_reading, version, parts) = self.frozen_parts(file, &range)?;
            match self.fetch(file, (range.end - range.start) as usize, parts) {
                Err(_) if file.state.lock().version != version && tries < RETRIES => tries += 1,
                result => return result,
            }
        }
    }

    /// The same with the bytes that are lost filled with `LOST`, and `lost` told where they are.
    pub(super) fn read_past_losses(
        &self,
        file: &Arc<OpenFile>,
        range: Range<u64>,
        lost: &mut dyn FnMut(Range<u64>),
    ) -> Result<Vec<u8>> {
        match self.read_frozen(file, range.clone()) {
            Err(error) if error.is_loss() => {}
            result => return result,
        }
        let (_reading, _, parts) = self.frozen_parts(file, &range)?;
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        for part in parts {
            let place = part.place.clone();
            let part = Part {
                place: 0..place.len(),
                ..part
            };
            match self.fetch(file, place.len(), vec![part]) {
                Ok(found) => bytes.extend(found),
                Err(error) if error.is_loss() => {
                    lost(range.start + place.start as u64..range.start + place.end as u64);
                    bytes.resize(place.end, LOST);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    /// Where the running commit's bytes are, as of a version of the map. They are not given back while the guard is held.
    fn frozen_parts<'f>(
        &self,
        file: &'f Arc<OpenFile>,
        range: &Range<u64>,
    ) -> Result<(RwLockReadGuard<'f, ()>, u64, Vec<Part>)> {
        let reading = file.reading.read_recursive();
        let mut state = file.state.lock();
        let extents = state.map.resolve_frozen(range.clone())?;
        let parts = self.locate(&mut state, range.start, &extents)?;
        Ok((reading, state.version, parts))
    }

    /// As `locate`, with lost bytes read as the view says.
    pub(super) fn locate_over(
        &self,
        state: &mut FileState,
        offset: u64,
        extents: Vec<Extent>,
        over: Option<&Over>,
    ) -> Result<Vec<Part>> {
        let mut filled = over.into_iter().flat_map(Over::filled).peekable();
        if filled.peek().is_none() {
            return self.locate(state, offset, &extents);
        }
        let (mut parts, mut there) = (Vec::new(), Vec::with_capacity(extents.len()));
        let place =
            |range: &Range<u64>| (range.start - offset) as usize..(range.end - offset) as usize;
        for extent in extents {
            let mut at = extent.range.start;
            while let Some((lost, byte)) = filled.peek().cloned() {
                if lost.start >= extent.range.end {
                    break;
                }
                let lost_here = lost.start.max(at)..lost.end.min(extent.range.end);
                if at < lost_here.start {
                    there.push(Extent {
                        range: at..lost_here.start,
                        source: extent.source.advanced(at - extent.range.start),
                    });
                }
                parts.push(Part {
                    place: place(&lost_here),
                    from: From::Fill(byte),
                });
                at = lost_here.end;
                if lost.end > extent.range.end {
                    break;
                }
                filled.next();
            }
            if at < extent.range.end {
                there.push(Extent {
                    range: at..extent.range.end,
                    source: extent.source.advanced(at - extent.range.start),
                });
            }
        }
        parts.extend(self.locate(state, offset, &there)?);
        parts.sort_unstable_by_key(|part| part.place.start);
        Ok(parts)
    }

    fn locate(&self, state: &mut FileState, offset: u64, extents: &[Extent]) -> Result<Vec<Part>> {
        let mut parts = Vec::with_capacity(extents.len());
        for extent in extents {
            let start = (extent.range.start - offset) as usize;
            let length = (extent.range.end - extent.range.start) as usize;
            let from = match extent.source {
                Source::Hole | Source::Zeros => From::Zeros,
                Source::Dropped => From::Dropped,
                Source::Inline { piece, offset } => From::Piece {
                    piece,
                    offset: offset as usize,
                },
                Source::Block { block, offset } => {
                    let offset = offset as usize;
                    if let Some(bytes) = state.gatherer.bytes(block) {
                        let bytes = bytes.get(offset..offset + length).unwrap_or_default();
                        From::Bytes(bytes.to_vec())
                    } else {
                        match state.map.windows.get(&block.window) {
                            Some(Window::Making(window)) => match window.held(block.index) {
                                Some(Held::Raw(raw)) => From::Raw { raw, offset },
                                Some(Held::OnDisk { record, complete }) => {
                                    let waits = window.code.m > 0 && !complete;
                                    From::Block {
                                        at: Located {
                                            block,
                                            held: None,
                                            set: window.set,
                                            record: Some(record),
                                            making: waits.then(|| Arc::clone(window)),
                                        },
                                        offset,
                                    }
                                }
                                Some(held) => From::Block {
                                    at: Located {
                                        block,
                                        held: Some(Arc::new(held)),
                                        set: window.set,
                                        record: None,
                                        making: None,
                                    },
                                    offset,
                                },
                                None => {
                                    return Err(VolumeError::new(
                                        libc::EIO,
                                        format!("block {block} was begun and has no bytes"),
                                    ));
                                }
                            },
                            Some(Window::Made(record)) => {
                                let (set, record) = (record.set, Some(Arc::clone(record)));
                                From::Block {
                                    at: Located {
                                        block,
                                        held: None,
                                        set,
                                        record,
                                        making: None,
                                    },
                                    offset,
                                }
                            }
                            None => From::Block {
                                at: Located {
                                    block,
                                    held: None,
                                    set: SetId(0),
                                    record: None,
                                    making: None,
                                },
                                offset,
                            },
                        }
                    }
                }
            };
            parts.push(Part {
                place: start..start + length,
                from,
            });
        }
        Ok(parts)
    }

    fn fetch(&self, file: &Arc<OpenFile>, length: usize, parts: Vec<Part>) -> Result<Vec<u8>> {
        let blocks = parts
            .iter()
            .filter(|part| matches!(part.from, From::Block { .. }))
            .count();
        let (_under_way, with_it) = UnderWay::begin(&self.reads);
        if blocks > 1 && with_it >= self.spread_below {
            // The others keep the processors busy.
            return self.fetch_here(file, length, parts);
        }
        let found: Vec<(Range<usize>, Option<Found>)> =
            match self.me.upgrade().filter(|_| blocks > 1) {
                Some(volume) => {
                    let work = parts.into_iter().map(|part| {
                        let (volume, file) = (Arc::clone(&volume), Arc::clone(file));
                        move || volume.fetch_part(&file, part)
                    });
                    let answers = self.readers.all(work.collect());
                    let panicked = || {
                        VolumeError::new(libc::EIO, "a reading thread failed; the log tells why")
                    };
                    answers
                        .into_iter()
                        .map(|answer| answer.unwrap_or_else(|| Err(panicked())))
                        .collect::<Result<_>>()?
                }
                None => parts
                    .into_iter()
                    .map(|part| self.fetch_part(file, part))
                    .collect::<Result<_>>()?,
            };
        let mut answer = Vec::with_capacity(length);
        for (place, bytes) in found {
            let bytes = match &bytes {
                None => {
                    answer.resize(place.end, 0);
                    continue;
                }
                Some(Found::Fill(byte)) => {
                    answer.resize(place.end, *byte);
                    continue;
                }
                Some(Found::Owned(bytes)) => bytes.get(..place.len()),
                Some(Found::Raw(raw, offset)) => raw.get(*offset..*offset + place.len()),
                Some(Found::Shared(bytes, offset)) => bytes.get(*offset..*offset + place.len()),
            };
            let bytes = bytes.ok_or_else(|| {
                VolumeError::new(
                    libc::EIO,
                    format!(
                        "the map of file {} points behind the end of a block",
                        file.id
                    ),
                )
            })?;
            answer.extend_from_slice(bytes);
        }
        Ok(answer)
    }

    pub(super) fn fetch_part(
        &self,
        file: &Arc<OpenFile>,
        part: Part,
    ) -> Result<(Range<usize>, Option<Found>)> {
        let bytes = match part.from {
            From::Zeros => None,
            From::Fill(byte) => Some(Found::Fill(byte)),
            From::Dropped => return Err(ReadError::Dropped { file: file.id }.into()),
            From::Bytes(bytes) => Some(Found::Owned(bytes)),
            From::Raw { raw, offset } => Some(Found::Raw(raw, offset)),
            From::Piece { piece, offset } => Some(Found::Shared(self.piece(file, piece)?, offset)),
            From::Block { at, offset } => {
                Some(Found::Shared(self.block(file, &at, false)?, offset))
            }
        };
        Ok((part.place, bytes))
    }

    /// An inline piece, from memory or the metadata.
    pub(super) fn piece(&self, file: &OpenFile, piece: u32) -> Result<Arc<[u8]>> {
        if let Some(bytes) = file.state.lock().pieces.get(&piece) {
            return Ok(Arc::clone(bytes));
        }
        let bytes = self.meta.view().inline(file.id, piece)?.ok_or_else(|| {
            VolumeError::new(
                libc::EIO,
                format!("inline piece {piece} of file {} is missing", file.id),
            )
        })?;
        file.state.lock().pieces.insert(piece, Arc::clone(&bytes));
        Ok(bytes)
    }

    fn block(&self, file: &Arc<OpenFile>, at: &Located, in_run: bool) -> Result<Arc<[u8]>> {
        if let Some(Held::Sealed(block, record)) = at.held.as_deref() {
            let ids = BlockIds {
                volume: self.id,
                file: file.id,
                set: at.set,
                block: at.block,
            };
            return self.cache.get_or_load((file.id, at.set, at.block), || {
                open_sealed(ids, &block.sealed, record).map_err(|error| {
                    VolumeError::new(libc::EIO, format!("a block in memory is bad: {error}"))
                })
            });
        }
        let record = match &at.record {
            Some(record) => Arc::clone(record),
            None => self.record(file, at.block)?,
        };
        let read = if in_run {
            self.reader
                .read_block_in_run(file.id, &record, at.block.index)
        } else {
            self.reader.read_block(file.id, &record, at.block.index)
        };
        let error = match read {
            Ok(block) => return Ok(block),
            Err(error) => error,
        };
        let whole = match &at.making {
            Some(window) if !in_run => self.completed(file, window),
            _ => None,
        };
        let record = whole.ok_or(error)?;
        Ok(self.reader.read_block(file.id, &record, at.block.index)?)
    }

    /// A window that is still being made once its parity is written: its disk has failed since it took a block, and what
    /// gives that back is on its way.
    fn completed(&self, file: &OpenFile, window: &OpenWindow) -> Option<Arc<WindowRecord>> {
        {
            let mut state = file.state.lock();
            state.gatherer.relieve();
            let pending = state.pending.iter();
            pending.for_each(|writer| writer.close_windows());
        }
        window.wait_for(PATIENCE)
    }

    /// The record of a window that is placed.
    pub(super) fn record(&self, file: &OpenFile, block: BlockId) -> Result<Arc<WindowRecord>> {
        file.state.lock().map.record(block.window)?.ok_or_else(|| {
            VolumeError::new(
                libc::EIO,
                format!("window {} of file {} is unknown", block.window, file.id),
            )
        })
    }

    /// Has the blocks of the next bytes decompressed into the cache, aside. `fetched` remembers how far.
    fn fetch_ahead(&self, file: &Arc<OpenFile>, from: u64, fetched: &std::sync::atomic::AtomicU64) {
        let ahead = AHEAD.min(self.cache_bytes / 4);
        let done = fetched.load(Ordering::Relaxed);
        let start = if done >= from && done <= from + ahead {
            done
        } else {
            from
        };
        let end = from + ahead;
        // Small steps cost more than they bring.
        if end < start + ahead / 4 || fetched.swap(end, Ordering::Relaxed) == end {
            return;
        }
        let Some(aside) = self.aside(file) else {
            return;
        };
        self.readers.spawn(move || {
            let Some(volume) = aside.volume() else {
                return;
            };
            let file = aside.file();
            let _reading = file.reading.read_recursive();
            let mut state = file.state.lock();
            let end = end.min(state.size);
            if start >= end {
                return;
            }
            // What cannot be had is the reader's to report when it comes there.
            let Ok(extents) = state.map.resolve(start..end) else {
                return;
            };
            let over = state.mended.as_ref().map(|mended| mended.over(start..end));
            let Ok(parts) = volume.locate_over(&mut state, start, extents, over.as_ref()) else {
                return;
            };
            let version = state.version;
            drop(state);
            for part in parts {
                if let From::Block { at, .. } = part.from
                    && let Some(aside) = volume.aside(file)
                {
                    volume.readers.spawn(move || aside.fetch(&at, version));
                }
            }
        });
    }
}

impl Aside {
    /// Has a block decompressed into the cache that lay there as of a version of the map.
    fn fetch(&self, at: &Located, version: u64) {
        let Some(volume) = self.volume() else {
            return;
        };
        let file = self.file();
        let _reading = file.reading.read_recursive();
        // What was moved since may be given back already.
        if file.state.lock().version == version {
            let _ = volume.block(file, at, true);
        }
    }
}

/// Bytes found for a part of an answer.
pub(super) enum Found {
    Fill(u8),
    Owned(Vec<u8>),
    Raw(Arc<Buffer>, usize),
    Shared(Arc<[u8]>, usize),
}
