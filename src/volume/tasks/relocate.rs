//! Moving what a disk holds of a window to another disk, and making it true. The bytes stay what they are, so a window's
//! parity stays right: a column or a shard is read, or reconstructed, and put behind what the other disk has of the
//! same set; then the window's record is changed in a commit of its own, which takes along nothing that a program has
//! not committed itself. Where no disk has a place for it, the window is written anew with what disks there are.
//!
//! Before that commit only bytes are added that nothing refers to; after it the old ones are given back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::scrub::ends;
use super::shards::{is_given_up, leaves_apart, left_places, newly_lost, object_of, places};
use super::{Running, Walked};
use crate::disk::ObjectName;
use crate::ids::{BlockId, DiskId, FileId, WindowNo};
use crate::store::parity::PARITY_HEADER;
use crate::store::{BlockRecord, Code, Source, Takes, WindowRecord};
use crate::volume::Volume;
use crate::volume::commit::{Frozen, Purpose, unless_it_panics};
use crate::volume::error::{Result, VolumeError};
use crate::volume::file::{FileState, OpenFile};
use crate::volume::filemap::Window;
use crate::volume::fold::punches_of;
use crate::volume::overlay::Overlay;
use crate::volume::repack::{Pace, lane_kept};
use crate::volume::sweep::Sweep;

/// Bytes that are moved before they are made true.
const BATCH: u64 = 256 << 20;

/// The same for windows that are written anew, whose commit holds up others of the file.
const BATCH_ANEW: u64 = 64 << 20;

/// A file is made true at most about so often, since each time its manifest is written.
const COMMITS: u64 = 64;

/// What is to become of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Nothing.
    Stay,
    /// These shards go to these disks.
    Move(Vec<(usize, DiskId)>),
    /// It is written anew.
    Anew,
    /// It stays where it is, and none of its blocks is to be compressed later.
    Compressed,
}

/// How windows are moved.
pub(super) struct Plan<'a> {
    /// What is to become of a window.
    pub choose: &'a mut dyn FnMut(&Volume, &WindowRecord) -> Wanted,
    /// Disks that do not come back: what only they had, and do not give, is given up. A window of which other bytes cannot
    /// be had stays as it is.
    pub give_up: &'a [DiskId],
    /// Whether the places that are left are given back one by one.
    pub punch: bool,
    /// Whether it may take however long: threads that make way do it, and it ends early when somebody waits for anything.
    pub patient: bool,
    /// Bytes that are to be written anew after this, and that no mark tells of.
    pub besides: u64,
}

/// A window that was copied.
struct Moved {
    old: Arc<WindowRecord>,
    new: WindowRecord,
    moves: Vec<(usize, DiskId)>,
}

/// Windows that were exchanged for others in memory, and are not made true yet.
#[derive(Default)]
struct Exchanged {
    /// As they were before: none where a window was in the base only. Where it is not made true, it is so again.
    before: Vec<(WindowNo, Option<Window>)>,
    /// Bytes that are given up with them.
    given_up: u64,
}

/// Puts a record in a window's place, to be committed.
fn exchange(state: &mut FileState, record: WindowRecord, given_up: u64, all: &mut Exchanged) {
    let no = record.no;
    let window = Window::Made(Arc::new(record));
    all.before.push((no, state.map.windows.insert(no, window)));
    all.given_up += given_up;
    state.uncommitted.insert(no);
}

/// What a window cannot be moved for.
enum Stuck {
    /// Bytes that nothing gives.
    Unreadable(String),
    /// The other disk does not take it.
    Refused(VolumeError),
}

/// Ends of what is referred to, by disk and object.
pub(super) type Ends = HashMap<(DiskId, ObjectName), u64>;

impl Volume {
    /// Whether something of the file that is not committed lies on a disk, or keeps moves from being made true.
    pub(super) fn is_unsettled(&self, file: &OpenFile, disk: Option<DiskId>) -> bool {
        let state = file.state.lock();
        let on_it = |disks: &[DiskId]| disk.is_some_and(|disk| disks.contains(&disk));
        state.spilled
            || !state.uncommitted.is_empty()
            || !state.pending.is_empty()
            || !state.new_pieces.is_empty()
            || state.map.windows.values().any(|window| match window {
                Window::Making(window) => on_it(&window.disks),
                Window::Made(_) => false,
            })
    }

    /// Moves the windows of a file as the plan wants it.
    pub(super) fn relocate(
        &self,
        file: FileId,
        running: &Running,
        plan: &mut Plan<'_>,
        disk: Option<DiskId>,
    ) -> Result<Walked> {
        // One that is deleted and still open, too: it may be for as long as a guest runs in it.
        let open = self.use_file(file)?;
        if self.is_unsettled(&open, disk) {
            return Ok(Walked::Later);
        }
        let mut numbers = VecDeque::new();
        let mut behind: Ends = HashMap::new();
        let reading = open.reading.read_recursive();
        self.frozen_view(&open).each_window(|record| {
            for (disk, object, end) in ends(&record) {
                let known = behind.entry((disk, object)).or_default();
                *known = end.max(*known);
            }
            if (plan.choose)(self, &record) != Wanted::Stay {
                numbers.push_back(record.no);
            }
            Ok(())
        })?;
        drop(reading);
        if numbers.is_empty() {
            return Ok(Walked::Done);
        }
        let share = open.state.lock().head.stored / COMMITS;
        // Who makes way holds nobody up.
        let anew_in_one = if plan.patient { u64::MAX } else { BATCH_ANEW };
        let (batch, batch_anew) = (BATCH.max(share), anew_in_one.max(share));
        let (mut moved, mut anew) = (Vec::new(), BTreeSet::new());
        let (mut moved_bytes, mut anew_bytes) = (0, 0);
        let mut refusals = 0;
        while let Some(no) = numbers.pop_front() {
            if running.ends() {
                break;
            }
            let begun = Instant::now();
            let reading = open.reading.read_recursive();
            let Some(record) = self.committed_window(&open, no)? else {
                continue;
            };
            let bytes = match (plan.choose)(self, &record) {
                Wanted::Stay => continue,
                Wanted::Compressed => {
                    let mut new = WindowRecord::clone(&record);
                    for block in &mut new.blocks {
                        block.hasty = false;
                    }
                    moved.push(Moved {
                        old: record,
                        new,
                        moves: Vec::new(),
                    });
                    0
                }
                Wanted::Anew => {
                    anew.insert(no);
                    let bytes = record
                        .blocks
                        .iter()
                        .map(|block| u64::from(block.stored))
                        .sum();
                    anew_bytes += bytes;
                    bytes
                }
                // Its parity was written anew since that was chosen, and lies where something was to go: two shards on one
                // disk would be lost together.
                Wanted::Move(moves) if !leaves_apart(&record, &moves) => continue,
                Wanted::Move(moves) => {
                    match self.copy_shards(file, &record, &moves, plan, &mut behind) {
                        Ok((new, bytes)) => {
                            moved.push(Moved {
                                old: record,
                                new,
                                moves,
                            });
                            moved_bytes += bytes;
                            bytes
                        }
                        Err(Stuck::Unreadable(_)) if !plan.give_up.is_empty() => {
                            // What is still there is written anew without what is given up, if that is all that lacks.
                            anew.insert(no);
                            0
                        }
                        Err(Stuck::Unreadable(what)) => {
                            running.problem(format!("{}: {what}", self.called(file)));
                            0
                        }
                        Err(Stuck::Refused(error)) => {
                            drop(reading);
                            // A disk that fails or is full meanwhile is no place any more, and others may be.
                            let candidates = self.pipeline.room.candidates();
                            let ended = |(_, to): &(usize, DiskId)| {
                                self.disks.takes_data(*to) == Takes::Nothing
                                    || candidates.iter().all(|candidate| candidate.disk != *to)
                            };
                            // Each of them once: one that is full for another reason than its room would be again.
                            refusals += 1;
                            if moves.iter().any(ended)
                                && refusals < self.disks.list().len()
                                && (plan.choose)(self, &record) != Wanted::Move(moves)
                            {
                                tracing::warn!(%error, "another place is looked for");
                                numbers.push_front(no);
                                continue;
                            }
                            let entered = self.enter(&open, moved, &anew, plan, running)?;
                            tracing::warn!(%error, "a disk does not take what is moved to it");
                            running.problem(format!("{}: {error}", self.called(file)));
                            return Ok(entered);
                        }
                    }
                }
            };
            drop(reading);
            refusals = 0;
            running.note(|status| {
                status.moved += bytes;
                status.bytes_done += bytes;
            });
            running.pace(self, bytes, begun.elapsed());
            if moved_bytes >= batch || anew_bytes >= batch_anew {
                let entered = self.enter(
                    &open,
                    std::mem::take(&mut moved),
                    &std::mem::take(&mut anew),
                    plan,
                    running,
                )?;
                if entered == Walked::Later {
                    return Ok(entered);
                }
                (moved_bytes, anew_bytes) = (0, 0);
            }
        }
        self.enter(&open, moved, &anew, plan, running)
    }

    /// Copies shards of a window to other disks, durably. Gives its new record and the bytes that were written.
    fn copy_shards(
        &self,
        file: FileId,
        record: &WindowRecord,
        moves: &[(usize, DiskId)],
        plan: &Plan<'_>,
        behind: &mut Ends,
    ) -> std::result::Result<(WindowRecord, u64), Stuck> {
        let k = usize::from(record.code.k);
        let mut new = record.clone();
        let mut written = 0;
        for &(shard, to) in moves {
            let object = object_of(record, shard);
            let mut bytes: Vec<u8> = Vec::new();
            let mut places: Vec<(u16, u64)> = Vec::new();
            if let Some(parity) = shard.checked_sub(k) {
                if !record.parity.is_empty() {
                    let stored = self.reader.shard_around(file, record, parity);
                    bytes = stored.ok_or_else(|| {
                        Stuck::Unreadable(format!(
                            "parity of window {} cannot be computed",
                            record.no
                        ))
                    })?;
                }
            } else {
                let mut order: Vec<u16> = (0..record.blocks.len() as u16)
                    .filter(|index| {
                        record
                            .block(*index)
                            .is_some_and(|block| usize::from(block.column) == shard && !block.lost)
                    })
                    .collect();
                order.sort_by_key(|index| record.block(*index).map(|block| block.offset));
                for index in order {
                    match self.reader.stored_around(file, record, index) {
                        Ok(stored) => {
                            places.push((index, bytes.len() as u64));
                            bytes.extend_from_slice(&stored);
                        }
                        Err(error) => {
                            let block = new.blocks.get_mut(usize::from(index));
                            let lost = |block: &&mut BlockRecord| {
                                !block.protected && is_given_up(plan.give_up, record, block)
                            };
                            match block.filter(lost) {
                                Some(block) => block.lost = true,
                                None => return Err(Stuck::Unreadable(error.to_string())),
                            }
                        }
                    }
                }
            }
            let start = self
                .append_to(to, object, &bytes, behind)
                .map_err(Stuck::Refused)?;
            written += bytes.len() as u64;
            for (index, at) in places {
                if let Some(block) = new.blocks.get_mut(usize::from(index)) {
                    block.offset = start + at;
                }
            }
            if let Some(parity) = shard
                .checked_sub(k)
                .and_then(|parity| new.parity.get_mut(parity))
            {
                parity.offset = start + PARITY_HEADER as u64;
            }
            if let Some(disk) = new.disks.get_mut(shard) {
                *disk = to;
            }
        }
        Ok((new, written))
    }

    /// Puts bytes behind everything that a disk has, or should have, of an object, durably; tells where they begin.
    pub(super) fn append_to(
        &self,
        disk: DiskId,
        object: ObjectName,
        bytes: &[u8],
        behind: &mut Ends,
    ) -> Result<u64> {
        let end = behind.entry((disk, object)).or_default();
        if bytes.is_empty() {
            return Ok(*end);
        }
        let medium = self.disks.get(disk).ok_or_else(|| {
            VolumeError::new(
                libc::EIO,
                format!("disk {} is missing", self.disks.name(disk)),
            )
        })?;
        let there = match medium.length(object) {
            Ok(length) => length,
            Err(error) if error.is_missing() => 0,
            Err(error) => return Err(error.into()),
        };
        let start = there.max(*end).max(self.end_of_punches(disk, object)?);
        if !self.pipeline.room.has_room(disk, bytes.len() as u64) {
            return Err(VolumeError::new(
                libc::ENOSPC,
                format!(
                    "disk {} has no room but what is kept free on every disk",
                    self.disks.name(disk)
                ),
            ));
        }
        self.note_hollow(&[disk])?;
        if let Err(error) = medium.restore(object, start, bytes) {
            if error.is_full() {
                self.pipeline.room.mark_full(disk);
            } else {
                self.disks.hold_against(disk, &error);
            }
            return Err(error.into());
        }
        *end = start + bytes.len() as u64;
        self.pipeline.room.forget();
        Ok(start)
    }

    /// Makes moves true in one commit. `Later` when the file is being written in a way that does not allow it now: then
    /// what was copied is given back.
    fn enter(
        &self,
        file: &Arc<OpenFile>,
        moved: Vec<Moved>,
        anew: &BTreeSet<WindowNo>,
        plan: &Plan<'_>,
        running: &Running,
    ) -> Result<Walked> {
        if moved.is_empty() && anew.is_empty() {
            return Ok(Walked::Done);
        }
        let _hurry = (!plan.patient).then(|| self.pipeline.hurry());
        // A commit of the file that is under way is soon over.
        let turn = file.turn.try_lock_for(Duration::from_secs(30));
        let Some(_turn) = turn else {
            self.give_back(&moved);
            return Ok(Walked::Later);
        };
        if self.is_unsettled(file, None) {
            self.give_back(&moved);
            return Ok(Walked::Later);
        }
        let mut sweep = Sweep::default();
        let mut exchanged = Exchanged::default();
        let mut stale = Vec::new();
        let (size, dead) = {
            let mut state = file.state.lock();
            // All of it is looked at before anything is changed.
            let is_same = |moved: &Moved| -> Result<bool> {
                let record = state.map.record(moved.old.no)?;
                Ok(record.as_deref() == Some(&*moved.old))
            };
            let same: Result<Vec<bool>> = moved.iter().map(is_same).collect();
            let same = match same {
                Ok(same) => same,
                Err(error) => {
                    drop(state);
                    self.give_back(&moved);
                    return Err(error);
                }
            };
            for (moved, same) in moved.into_iter().zip(same) {
                if !same {
                    stale.push(moved);
                    continue;
                }
                if plan.punch {
                    left_places(&moved.old, &moved.moves, &mut sweep);
                }
                let given_up = newly_lost(&moved.old, &moved.new);
                exchange(&mut state, moved.new, given_up, &mut exchanged);
            }
            state.map.frozen = Some(Overlay::default());
            state.version += 1;
            (state.committed_size, state.head.dead)
        };
        self.give_back(&stale);
        let mut frozen = Frozen {
            size,
            pieces: Vec::new(),
            writer: None,
            dropped: None,
            dead,
            unpack_pieces: false,
            must_fold: !anew.is_empty(),
            sweep,
            purpose: Purpose::Relocate,
            dead_pieces: BTreeMap::new(),
            followed: None,
            finished: false,
            owed_tiers: false,
            besides: plan.besides,
            recorded: HashMap::new(),
        };
        // To whoever asks it is what it was: all of it is committed.
        let result = unless_it_panics(|| {
            self.make_moves_true(file, anew, plan, running, &mut frozen, &mut exchanged)
        });
        match result {
            Ok(lost) => {
                running.note(|status| status.lost += lost);
                self.sweeper.add(Arc::clone(file), frozen.sweep);
                Ok(Walked::Done)
            }
            Err(error) => {
                let mut state = file.state.lock();
                state.map.thaw();
                for (no, window) in exchanged.before.into_iter().rev() {
                    state.uncommitted.remove(&no);
                    match window {
                        Some(window) => state.map.windows.insert(no, window),
                        None => state.map.windows.remove(&no),
                    };
                }
                state.version += 1;
                Err(error)
            }
        }
    }

    fn make_moves_true(
        &self,
        file: &Arc<OpenFile>,
        anew: &BTreeSet<WindowNo>,
        plan: &Plan<'_>,
        running: &Running,
        frozen: &mut Frozen,
        exchanged: &mut Exchanged,
    ) -> Result<u64> {
        if !anew.is_empty() {
            self.write_anew(file, anew, plan, running, exchanged, &mut frozen.sweep)?;
        }
        let given_up = exchanged.given_up;
        if given_up > 0 {
            // Whoever opens it from now on has a view of what is left.
            let before = file.state.lock().head.dropped;
            frozen.dropped = Some(before.saturating_add(given_up));
        }
        self.sync_sets(file)?;
        self.write_metadata(file, frozen)?;
        Ok(given_up)
    }

    /// Writes what lives in these windows into new ones. What cannot be had is recorded as lost where it is given up. A
    /// window of which other bytes cannot be had stays as it is: their disk may come back.
    fn write_anew(
        &self,
        file: &Arc<OpenFile>,
        windows: &BTreeSet<WindowNo>,
        plan: &Plan<'_>,
        running: &Running,
        exchanged: &mut Exchanged,
        sweep: &mut Sweep,
    ) -> Result<()> {
        let mut taken: BTreeSet<WindowNo> = BTreeSet::new();
        let mut protected: HashMap<BlockId, bool> = HashMap::new();
        let mut lost: HashSet<BlockId> = HashSet::new();
        let mut remains: Vec<(Arc<WindowRecord>, WindowRecord, u64)> = Vec::new();
        for no in windows {
            let Some(record) = file.state.lock().map.record(*no)? else {
                continue;
            };
            let mut lost_here: HashSet<BlockId> = HashSet::new();
            let (mut given_up, mut needed) = (0, None);
            for index in 0..record.blocks.len() as u16 {
                let Some(block) = record.block(index) else {
                    continue;
                };
                let id = BlockId { window: *no, index };
                protected.insert(id, block.protected);
                if block.lost {
                    lost_here.insert(id);
                    continue;
                }
                if plan.give_up.is_empty() {
                    continue;
                }
                match self.reader.stored_around(file.id, &record, index) {
                    Ok(_) => {}
                    Err(_) if is_given_up(plan.give_up, &record, block) => {
                        lost_here.insert(id);
                        given_up += u64::from(block.raw);
                    }
                    Err(error) => {
                        needed = Some(error);
                        break;
                    }
                }
            }
            if let Some(error) = needed {
                let what = self.what_first(&record, plan.give_up);
                running.problem(format!("{}: {error}; {what}", self.called(file.id)));
                continue;
            }
            taken.insert(*no);
            if !lost_here.is_empty() {
                let left = self.remains(&record, &lost_here)?;
                remains.push((record, left, given_up));
                lost.extend(lost_here);
            }
        }
        let selected = |source: &Source| {
            matches!(source, Source::Block { block, .. }
                if taken.contains(&block.window) && !lost.contains(block))
        };
        let pace = match plan.patient {
            true => Pace::MakingWay,
            false => Pace::Aside,
        };
        self.repack_with(
            file,
            &selected,
            &|extent, piece| {
                let lane = lane_kept(extent, |block| protected.get(&block).copied());
                piece(extent.range.clone(), lane);
            },
            pace,
        )?;
        // What could not be had after all, or was left for somebody in a hurry, needs its window.
        let mut needed: HashSet<WindowNo> = HashSet::new();
        if !remains.is_empty() {
            self.frozen_view(file).each(|extent| {
                if selected(&extent.source)
                    && let Source::Block { block, .. } = extent.source
                {
                    needed.insert(block.window);
                }
                Ok(())
            })?;
        }
        let mut state = file.state.lock();
        for (old, record, lost) in remains {
            if !needed.contains(&record.no) {
                // It lives on for the sake of what is lost, and what it had is elsewhere now.
                punches_of(&old, sweep);
                exchange(&mut state, record, lost, exchanged);
            }
        }
        Ok(())
    }

    /// What an administrator has to do before a window can be written anew of which bytes cannot be had.
    fn what_first(&self, record: &WindowRecord, give_up: &[DiskId]) -> String {
        let away: Vec<String> = record
            .disks
            .iter()
            .filter(|disk| !give_up.contains(disk) && !self.disks.is_online(**disk))
            .map(|disk| self.disks.name(*disk))
            .collect();
        if away.is_empty() {
            return "no disk that is away has these bytes: copy what can be read of the file, and remove it".to_owned();
        }
        format!(
            "disk {} is missing or faulty: bring it back first",
            away.join(", disk ")
        )
    }

    /// What is left of a window of which only lost blocks are still referred to.
    fn remains(&self, record: &WindowRecord, lost: &HashSet<BlockId>) -> Result<WindowRecord> {
        let usable = self.pipeline.room.candidates();
        let disk = usable
            .first()
            .map(|candidate| candidate.disk)
            .ok_or_else(|| VolumeError::new(libc::EIO, "no disk takes data any more"))?;
        let blocks = (0u16..).zip(&record.blocks).map(|(index, block)| {
            let id = BlockId {
                window: record.no,
                index,
            };
            if lost.contains(&id) {
                BlockRecord {
                    column: 0,
                    protected: false,
                    lost: true,
                    hasty: false,
                    column_offset: 0,
                    ..*block
                }
            } else {
                crate::volume::settle::given_up()
            }
        });
        Ok(WindowRecord {
            no: record.no,
            set: record.set,
            code: Code { k: 1, m: 0 },
            disks: vec![disk],
            parity_set: record.set,
            parity_length: 0,
            parity: Vec::new(),
            blocks: blocks.collect(),
        })
    }

    /// Gives back the places of copies that came to nothing.
    fn give_back(&self, moved: &[Moved]) {
        for moved in moved {
            let mut sweep = Sweep::default();
            for &(shard, to) in &moved.moves {
                places(&moved.new, shard, to, &mut sweep);
            }
            for (key, length) in &sweep.punches {
                let object = if key.parity {
                    ObjectName::Parity(key.set)
                } else {
                    ObjectName::Blocks(key.set)
                };
                if let Some(medium) = self.disks.get(key.disk) {
                    // What stays is only room.
                    let _ = medium.punch(object, key.offset..key.offset + length);
                }
            }
        }
    }
}
