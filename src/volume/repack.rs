//! Repacking: live bytes are copied into new blocks, and the frozen map is pointed at them. What is settled goes so into pure
//! blocks, and so do bytes off disks that failed, out of sparse windows, and out of the metadata. Knows lanes, and not why a byte is
//! in one.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::Volume;
use super::commit::Frozen;
use super::error::{Result, VolumeError};
use super::file::OpenFile;
use super::filemap::Window;
use super::gather::{Gatherer, Told};
use super::settle::given_up;
use crate::ids::{BlockId, DiskId, SetId, WindowNo};
use crate::store::{Extent, Lane, OpenWindow, Source, WindowRecord};

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Somebody waits: in whatever memory it takes, and stored as they are if that is sooner done.
    Now,
    /// Aside: every block is compressed, however long that takes, and no more memory taken than there is.
    Aside,
    /// The same in half of the memory, and what is left stays where it is as soon as somebody waits for anything.
    MakingWay,
}

/// Cuts an extent where its lane changes.
pub(super) type LanesOf<'a> = dyn Fn(&Extent, &mut dyn FnMut(Range<u64>, Lane)) + 'a;

/// Extents that are moved before their new places are entered into the map.
const BATCH: usize = 50_000;

/// The most bytes that are moved in one piece.
const PIECE: u64 = 1 << 20;

/// How often who makes way has waited for memory, for a twentieth of a second each time, when he closes his own windows.
const WAITS: u32 = 20;

impl Volume {
    /// Puts elsewhere what lies in windows that a failed disk is part of.
    pub(super) fn repack_failed(
        &self,
        file: &Arc<OpenFile>,
        failed: &[(SetId, DiskId)],
    ) -> Result<()> {
        let touched = |set: SetId, disks: &[DiskId]| {
            failed
                .iter()
                .any(|(bad, disk)| *bad == set && disks.contains(disk))
        };
        let mut windows: HashMap<WindowNo, bool> = HashMap::new();
        let mut making: HashMap<WindowNo, Arc<OpenWindow>> = HashMap::new();
        self.frozen_view(file).each_window(|record| {
            if touched(record.set, &record.disks) || touched(record.parity_set, &record.disks) {
                let protected = record.blocks.iter().any(|block| block.protected);
                windows.insert(record.no, protected || record.code.m > 0);
            }
            Ok(())
        })?;
        {
            let state = file.state.lock();
            let pending: BTreeSet<SetId> =
                state.pending.iter().map(|writer| writer.set()).collect();
            for (no, window) in &state.map.windows {
                if let Window::Making(window) = window
                    && pending.contains(&window.set)
                    && touched(window.set, &window.disks)
                {
                    windows.insert(*no, window.lane != Lane::Expendable);
                    making.insert(*no, Arc::clone(window));
                }
            }
        }
        if windows.is_empty() {
            return Ok(());
        }
        tracing::warn!(file = %file.id, windows = windows.len(), "what a failed disk did not take is put elsewhere");
        let selected = |source: &Source| matches!(source, Source::Block { block, .. } if windows.contains_key(&block.window));
        self.repack(file, &selected, &|extent, piece| {
            let lane = lane_kept(extent, |block| windows.get(&block.window).copied());
            piece(extent.range.clone(), lane);
        })?;
        let mut left: HashMap<WindowNo, BTreeSet<u16>> = HashMap::new();
        self.frozen_view(file).each(|extent| {
            if let Source::Block { block, .. } = extent.source
                && windows.contains_key(&block.window)
            {
                left.entry(block.window).or_default().insert(block.index);
            }
            Ok(())
        })?;
        // What was pending is complete, whatever its disks took of it.
        making.retain(|no, _| left.contains_key(no));
        let made: HashMap<WindowNo, Arc<WindowRecord>> = making
            .into_iter()
            .map(|(no, window)| (no, window.wait().0))
            .collect();
        let mut state = file.state.lock();
        for no in windows.keys() {
            let Some(alive) = left.get(no) else {
                state.map.windows.remove(no);
                state.uncommitted.remove(no);
                continue;
            };
            let new = made.get(no);
            let known = match new {
                Some(record) => Some(Arc::clone(record)),
                None => state.map.record(*no)?,
            };
            if let Some(record) = known {
                // Only what was stored once, and is lost, was not moved. No parity holds it.
                let mut bare = WindowRecord::clone(&record);
                bare.parity.clear();
                bare.parity_length = 0;
                bare.parity_set = bare.set;
                for (index, block) in (0u16..).zip(&mut bare.blocks) {
                    block.protected = false;
                    let disk = record.disk(block.column.into());
                    let refused = disk.is_some_and(|disk| touched(record.set, &[disk]));
                    if new.is_some() && refused && !alive.contains(&index) {
                        // It was moved, and may have no place here.
                        *block = given_up();
                    }
                }
                state.uncommitted.insert(*no);
                let bare = Window::Made(Arc::new(bare));
                state.map.windows.insert(*no, bare);
            }
        }
        Ok(())
    }

    /// Moves what lives out of windows that are more dead than alive.
    pub(super) fn repack_sparse(&self, file: &Arc<OpenFile>) -> Result<()> {
        let view = self.frozen_view(file);
        let mut live: HashMap<WindowNo, u64> = HashMap::new();
        view.each(|extent| {
            if let Source::Block { block, .. } = extent.source {
                *live.entry(block.window).or_default() += extent.range.end - extent.range.start;
            }
            Ok(())
        })?;
        let mut sparse: HashMap<BlockId, bool> = HashMap::new();
        view.each_window(|record| {
            let raw: u64 = record.blocks.iter().map(|block| u64::from(block.raw)).sum();
            if live.get(&record.no).is_some_and(|&alive| alive * 2 < raw) {
                for (index, block) in record.blocks.iter().enumerate() {
                    sparse.insert(
                        BlockId {
                            window: record.no,
                            index: index as u16,
                        },
                        block.protected,
                    );
                }
            }
            Ok(())
        })?;
        if sparse.is_empty() {
            return Ok(());
        }
        let selected = |source: &Source| matches!(source, Source::Block { block, .. } if sparse.contains_key(block));
        self.repack_with(
            file,
            &selected,
            &|extent, piece| {
                let lane = lane_kept(extent, |block| sparse.get(&block).copied());
                piece(extent.range.clone(), lane);
            },
            Pace::Aside,
        )
    }

    /// Moves all inline pieces into blocks.
    pub(super) fn unpack_pieces(&self, file: &Arc<OpenFile>, frozen: &mut Frozen) -> Result<()> {
        self.repack(
            file,
            &|source| matches!(source, Source::Inline { .. }),
            &|extent, piece| {
                piece(extent.range.clone(), Lane::Critical);
            },
        )?;
        let all = self.dead_pieces(file, &BTreeSet::new());
        frozen.dead_pieces.extend(all);
        Ok(())
    }

    /// Copies the bytes of the selected extents into new blocks, in the lanes that `lanes` tells, and points
    /// the frozen map at them.
    pub(super) fn repack(
        &self,
        file: &Arc<OpenFile>,
        selected: &dyn Fn(&Source) -> bool,
        lanes: &LanesOf<'_>,
    ) -> Result<()> {
        self.repack_with(file, selected, lanes, Pace::Now)
    }

    /// The same at a pace.
    pub(super) fn repack_with(
        &self,
        file: &Arc<OpenFile>,
        selected: &dyn Fn(&Source) -> bool,
        lanes: &LanesOf<'_>,
        pace: Pace,
    ) -> Result<()> {
        let next_window = Arc::clone(&file.state.lock().next_window);
        let gatherer = Gatherer::new(
            Arc::clone(&self.pipeline),
            file.id,
            self.block_size,
            next_window,
        );
        let gatherer = RefCell::new(match pace {
            Pace::Now => gatherer,
            Pace::Aside | Pace::MakingWay => gatherer.thorough(),
        });
        let memory = |bytes: u64| match pace {
            Pace::Now => Some(self.pipeline.budget.force(bytes)),
            Pace::Aside => Some(self.pipeline.budget.acquire(bytes, &|| {
                gatherer.borrow_mut().relieve();
                self.relieve();
            })),
            Pace::MakingWay => {
                let waits = Cell::new(0u32);
                let goes_on = || {
                    waits.set(waits.get() + 1);
                    if waits.get().is_multiple_of(WAITS) {
                        // What it holds itself may be all that there is.
                        gatherer.borrow_mut().relieve();
                    }
                    !self.pipeline.is_waited_for() && !self.bell.is_stopped()
                };
                goes_on()
                    .then(|| self.pipeline.budget.acquire_of_half(bytes, &goes_on))
                    .flatten()
            }
        };
        let view = self.frozen_view(file);
        let mut ended = false;
        let mut moved: Vec<Extent> = Vec::new();
        let result = view.each(|extent| {
            if ended || !selected(&extent.source) {
                return Ok(());
            }
            let mut pieces = Vec::new();
            lanes(&extent, &mut |range, lane| pieces.push((range, lane)));
            for (range, lane) in pieces {
                let mut at = range.start;
                while at < range.end {
                    let end = (at + PIECE).min(range.end);
                    let Some(mut permit) = memory(end - at) else {
                        ended = true;
                        return Ok(());
                    };
                    let bytes = match self.read_frozen(file, at..end) {
                        Ok(bytes) => bytes,
                        // It was stored once and is lost: it stays where it is, in case its disk comes back.
                        Err(error) if error.is_lost_copy() => {
                            at = end;
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    gatherer
                        .borrow_mut()
                        .append(
                            lane,
                            at,
                            &bytes,
                            &mut permit,
                            &mut Told {
                                set: &|| self.next_set(),
                                opened: &mut |window| {
                                    let mut state = file.state.lock();
                                    let windows = &mut state.map.windows;
                                    windows
                                        .entry(window.no)
                                        .or_insert_with(|| Window::Making(Arc::clone(window)));
                                },
                                placed: &mut |extent| moved.push(extent),
                            },
                        )
                        .map_err(VolumeError::from)?;
                    at = end;
                }
            }
            if moved.len() > BATCH {
                enter(file, &mut gatherer.borrow_mut(), &mut moved);
            }
            Ok(())
        });
        // After an error too: the map leads to what was moved before it, and the next commit needs its windows.
        let mut gatherer = gatherer.into_inner();
        enter(file, &mut gatherer, &mut moved);
        if let Some(writer) = gatherer.take_writer() {
            self.finish_set(file, writer);
        }
        result
    }
}

/// Points the frozen map at blocks whose bytes can be had.
pub(super) fn enter(file: &OpenFile, gatherer: &mut Gatherer, moved: &mut Vec<Extent>) {
    gatherer.seal_all();
    let mut state = file.state.lock();
    let frozen = state.map.frozen.get_or_insert_default();
    for extent in moved.drain(..) {
        frozen.insert(extent.range, extent.source);
    }
    state.version += 1;
}

/// The lane of bytes that are moved and stay what they are: that of their block, of which `protected` may know. In doubt, and
/// for what is in no block, they are critical.
pub(super) fn lane_kept(extent: &Extent, protected: impl Fn(BlockId) -> Option<bool>) -> Lane {
    let known = match extent.source {
        Source::Block { block, .. } => protected(block),
        Source::Hole | Source::Dropped | Source::Zeros | Source::Inline { .. } => None,
    };
    match known {
        Some(false) => Lane::Expendable,
        Some(true) | None => Lane::Critical,
    }
}
