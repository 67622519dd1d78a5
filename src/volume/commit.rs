//! A commit: everything written so far becomes whole. The steps, in the order that makes a crash harmless:
//!
//! 1. Freeze: open blocks are sealed and what is new is set apart; writes go on into a new layer.
//! 2. Wait until the frozen windows and their parity are with the disks.
//! 3. Settle: every block gets the tier that holds (`settle.rs`).
//! 4. Sync every touched segment, on all disks side by side. What a disk failed to take is put elsewhere, and
//!    the step is done again.
//! 5. One metadata transaction on every disk: the moment of truth.
//! 6. What no manifest refers to any more is handed to the sweeper.
//!
//! Before step 5 nothing that an earlier commit refers to is touched; after it the new state is whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Volume;
use super::error::{Result, VolumeError};
use super::file::{FileState, OpenFile, Times};
use super::filemap::Window;
use super::fold::{Folded, punches_of};
pub(super) use super::frozen::Frozen;
pub use super::frozen::Purpose;
use super::head::FileHead;
use super::overlay::Overlay;
use super::sweep::Sweep;
use super::tally::{Sums, Tally, sums};
use crate::ids::{DiskId, SetId, WindowNo};
use crate::meta::{Key, PunchKey, Records, WriteRecords};
use crate::store::manifest::encode_delta;
use crate::store::{Delta, Hurry, SetWriter, Source, WindowRecord};
use parking_lot::MutexGuard;

/// The most new bytes that a commit leaves in the metadata instead of in blocks.
const INLINE_COMMIT: usize = 64 << 10;

/// The most bytes of one file in the metadata.
const INLINE_FILE: usize = 128 << 10;

/// Deltas, or sets, after which a new base is written even when they are small.
const DELTAS_MAX: u64 = 256;
const SETS_MAX: usize = 256;

/// Bytes of one delta above which it becomes a base: about one full window, so that every file of some size can
/// be found by its manifest alone.
const DELTA_BYTES: usize = 4 << 10;

/// Runs of a file up to which a commit looks for windows that died.
const DROP_RUNS: usize = 4096;

/// How often what failing disks did not take is put elsewhere before a commit gives up.
const ROUNDS: usize = 6;

/// What the metadata transaction of a commit made true.
struct Done<'a> {
    head: FileHead,
    folded: Option<Folded>,
    dropped: &'a [WindowNo],
    new_sets: &'a [SetId],
    gone_sets: &'a [SetId],
}

/// A commit that panics has failed: what it was to make true is new again, and not lost behind what comes next.
pub(super) fn unless_it_panics<T>(commit: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(commit)).unwrap_or_else(|_| {
        let message =
            "a fault in this program ended a commit; please report it with what the log tells";
        Err(VolumeError::new(libc::EIO, message))
    })
}

impl Volume {
    /// Commits a file. Returns at once when nothing is new, and when a file that is to be compacted has something new.
    pub(super) fn commit(&self, file: &Arc<OpenFile>, purpose: Purpose) -> Result<()> {
        let (_hurry, _turn) = self.turn_of(file);
        if file.unlinked.load(Ordering::Acquire) && purpose != Purpose::Spill {
            return Ok(());
        }
        let Some(mut frozen) = self.freeze(file, purpose) else {
            if purpose.makes_true() {
                self.meta.sync()?;
            }
            return Ok(());
        };
        let result = unless_it_panics(|| self.make_true(file, &mut frozen));
        file.committing.store(false, Ordering::Release);
        self.rest.note_commit();
        if self.pipeline.unwritten() == 0 {
            self.pipeline.buffers.rest();
        }
        match result {
            Ok(()) => {
                self.sweeper.add(Arc::clone(file), frozen.sweep);
                Ok(())
            }
            Err(error) => {
                let mut state = file.state.lock();
                state.map.thaw();
                state.times = state
                    .times
                    .or(std::mem::take(&mut *file.frozen_times.lock()));
                state.new_pieces.extend(frozen.pieces);
                state.owes_tiers |= frozen.owed_tiers;
                if let Some(followed) = &frozen.followed {
                    state.follow.thaw(followed);
                }
                drop(state);
                // No lock is held that what the names are read with could wait for.
                let path = self.called(file.id);
                tracing::error!(file = %file.id, path, %error, "a commit failed");
                Err(error)
            }
        }
    }

    /// Waits for a file's turn, with whatever the commit before waits for done at once.
    pub(super) fn turn_of<'a>(&'a self, file: &'a OpenFile) -> (Hurry<'a>, MutexGuard<'a, ()>) {
        let hurry = self.pipeline.hurry();
        (hurry, file.turn.lock())
    }

    fn freeze(&self, file: &Arc<OpenFile>, purpose: Purpose) -> Option<Frozen> {
        let mut state = file.state.lock();
        let state = &mut *state;
        // Whoever opens it for writing does so under this lock, and what is written then is not of this commit.
        let writers = file.writers.load(Ordering::Acquire);
        let finished = writers <= u32::from(purpose == Purpose::Close);
        let owed_tiers = finished && state.owes_tiers && purpose != Purpose::Spill;
        match purpose {
            Purpose::MakeTrue | Purpose::Close if !state.is_dirty() && !owed_tiers => return None,
            // Whoever is in the middle of writing it says when that becomes true, and its close asks again.
            Purpose::Compact | Purpose::JudgeAgain if state.is_dirty() => return None,
            _ => {}
        }
        if owed_tiers {
            state.owes_tiers = false;
            state.follow.judge_again(state.size);
        }
        let open = state.gatherer.open_bytes();
        let inline_after = state.inline_bytes as usize + open;
        let mut unpack_pieces = false;
        if purpose.makes_true()
            && open <= INLINE_COMMIT
            && inline_after <= INLINE_FILE
            && !state.gatherer.has_sealed()
        {
            for (block, bytes) in state.gatherer.take_open() {
                let piece = state.next_piece;
                state.next_piece += 1;
                state.map.top.remap(&|source| match source {
                    Source::Block { block: of, offset } if of == block => {
                        Some(Source::Inline { piece, offset })
                    }
                    _ => None,
                });
                state.inline_bytes += bytes.len() as u32;
                state.pieces.insert(piece, bytes.into());
                state.new_pieces.push(piece);
            }
        } else {
            unpack_pieces =
                purpose != Purpose::Spill && state.inline_bytes > 0 && inline_after > INLINE_FILE;
            state.gatherer.seal_all();
        }
        let writer = state.gatherer.take_writer();
        let committed = state
            .map
            .windows
            .iter()
            .filter_map(|(no, window)| match window {
                Window::Made(record) if !state.uncommitted.contains(no) => {
                    Some((*no, Arc::clone(record)))
                }
                Window::Made(_) | Window::Making(_) => None,
            });
        let recorded = match state.map.base.is_some() {
            true => committed.collect(),
            // All are summed up anew.
            false => HashMap::new(),
        };
        // Under the lock: a file with bytes must look like one at no moment between being dirty and being committed.
        file.committing.store(true, Ordering::Release);
        state.map.frozen = Some(std::mem::take(&mut state.map.top));
        *file.frozen_times.lock() = std::mem::take(&mut state.times);
        Some(Frozen {
            size: state.size,
            pieces: std::mem::take(&mut state.new_pieces),
            writer,
            followed: (purpose != Purpose::Spill).then(|| state.follow.freeze()),
            finished,
            owed_tiers,
            dropped: None,
            dead: state.dead,
            unpack_pieces,
            must_fold: false,
            sweep: Sweep::default(),
            purpose,
            dead_pieces: BTreeMap::new(),
            besides: 0,
            recorded,
        })
    }

    fn make_true(&self, file: &Arc<OpenFile>, frozen: &mut Frozen) -> Result<()> {
        if let Some(writer) = frozen.writer.take() {
            self.finish_set(file, Arc::clone(&writer));
            if frozen.purpose == Purpose::Spill {
                writer.close_segments();
            }
        }
        if frozen.purpose != Purpose::Spill {
            if frozen.unpack_pieces {
                self.unpack_pieces(file, frozen)?;
            }
            self.settle(file, frozen)?;
            if frozen.purpose == Purpose::Compact {
                self.repack_sparse(file)?;
            }
            self.sync_sets(file)?;
        }
        self.write_metadata(file, frozen)
    }

    /// Waits for a set's windows and enters their records.
    pub(super) fn finish_set(&self, file: &OpenFile, writer: Arc<SetWriter>) {
        let records = writer.finish();
        let failed = writer.failed_disks();
        let mut state = file.state.lock();
        for record in records {
            if record.blocks.iter().all(|block| block.stored == 0) {
                state.map.windows.remove(&record.no);
                continue;
            }
            // A window that a failed disk is part of keeps its bytes in memory until it is put elsewhere.
            if !record.disks.iter().any(|disk| failed.contains(disk)) {
                state.uncommitted.insert(record.no);
                state.map.windows.insert(record.no, Window::Made(record));
            }
        }
        // One that no disk took anything of is put elsewhere as well.
        if !writer.is_empty() || !failed.is_empty() {
            state.pending.push(writer);
        }
    }

    /// Makes all pending sets durable, and puts elsewhere what failing disks did not take.
    pub(super) fn sync_sets(&self, file: &Arc<OpenFile>) -> Result<()> {
        let mut handled: BTreeSet<(SetId, DiskId)> = BTreeSet::new();
        for _ in 0..ROUNDS {
            let pending = file.state.lock().pending.clone();
            let mut failed = Vec::new();
            for writer in &pending {
                for disk in writer.sync() {
                    if handled.insert((writer.set(), disk)) {
                        failed.push((writer.set(), disk));
                    }
                }
            }
            if failed.is_empty() {
                return Ok(());
            }
            self.repack_failed(file, &failed)?;
        }
        Err(VolumeError::new(
            libc::EIO,
            "disks failed one after the other while the file was committed",
        ))
    }

    pub(super) fn write_metadata(&self, file: &Arc<OpenFile>, frozen: &mut Frozen) -> Result<()> {
        let spill = frozen.purpose == Purpose::Spill;
        let relocates = frozen.purpose == Purpose::Relocate;
        let (dropped, dead_besides) = if spill || relocates {
            (Vec::new(), 0)
        } else {
            self.drop_dead_windows(file)?
        };
        let (mut delta, first_delta, next_delta, old_base, recent) = {
            let state = file.state.lock();
            let overlay = state.map.frozen.clone().unwrap_or_default();
            let delta = self.delta(file, &overlay, &state)?;
            if !spill {
                check_windows(file, &overlay, &state)?;
            }
            let head = &state.head;
            (
                delta,
                head.first_delta,
                head.next_delta,
                head.base,
                head.sets.len() + state.pending.len(),
            )
        };
        delta.dropped = dropped;
        let encoded = encode_delta(&delta)?;
        let fold = spill
            || frozen.must_fold
            || frozen.purpose == Purpose::Compact
            || encoded.len() > DELTA_BYTES
            || next_delta - first_delta >= DELTAS_MAX
            || recent > SETS_MAX
            || file.state.lock().spilled;
        let folded = if fold {
            Some(self.fold(file, frozen)?)
        } else {
            None
        };
        if spill {
            return self.finish_spill(file, frozen, folded);
        }

        let recorded_before = match folded.is_some() || relocates {
            true => Vec::new(),
            false => recorded_before(file, frozen, &delta)?,
        };
        let state = file.state.lock();
        let hasty_before = state.head.hasty;
        let mut head = FileHead {
            next_window: state.next_window.load(Ordering::Relaxed),
            next_piece: state.next_piece,
            dead: frozen.dead,
            dropped: frozen.dropped.unwrap_or(state.head.dropped),
            ..state.head.clone()
        };
        let new_sets: Vec<SetId> = match &folded {
            Some(folded) => folded
                .sets
                .iter()
                .copied()
                .filter(|set| !state.sets.contains(set))
                .collect(),
            None => {
                let used: BTreeSet<SetId> = delta
                    .windows
                    .iter()
                    .flat_map(|window| [window.set, window.parity_set])
                    .collect();
                used.into_iter()
                    .filter(|set| !state.sets.contains(set))
                    .collect()
            }
        };
        let mut gone_sets = Vec::new();
        let mut gone_deltas = first_delta..first_delta;
        match &folded {
            Some(folded) => {
                gone_deltas = first_delta..next_delta;
                head.first_delta = next_delta;
                head.base = Some(folded.reference);
                head.sets.clear();
                head.stored = folded.sums.stored;
                head.unprotected = folded.sums.unprotected;
                head.hasty = folded.sums.hasty + frozen.besides;
                gone_sets = state
                    .sets
                    .iter()
                    .copied()
                    .filter(|set| !folded.sets.contains(set))
                    .collect();
                head.dead = folded.dead;
                head.base_dead = folded.dead;
                head.dropped = folded.given_up;
                // The other sets are removed as a whole.
                let kept = |(key, _): &&(PunchKey, u64)| folded.sets.contains(&key.set);
                let emptied = state.emptied.iter().filter(kept);
                frozen.sweep.punches.extend(emptied.copied());
                frozen.dead_pieces.extend(&folded.dead_pieces);
            }
            None => {
                if !delta.dropped.is_empty() {
                    let made = |(no, window): (&WindowNo, &Window)| match window {
                        Window::Made(record) => {
                            Some((delta.dropped.contains(no), Arc::clone(record)))
                        }
                        Window::Making(_) => None,
                    };
                    let made: Vec<(bool, Arc<WindowRecord>)> =
                        state.map.windows.iter().filter_map(made).collect();
                    let living = made.iter().filter(|(dropped, _)| !dropped);
                    let used: BTreeSet<SetId> = living
                        .flat_map(|(_, record)| [record.set, record.parity_set])
                        .collect();
                    for (_, record) in made.iter().filter(|(dropped, _)| *dropped) {
                        if used.contains(&record.set) || used.contains(&record.parity_set) {
                            punches_of(record, &mut frozen.sweep);
                        }
                    }
                    gone_sets = state
                        .sets
                        .iter()
                        .copied()
                        .filter(|set| !used.contains(set))
                        .collect();
                    head.sets.retain(|set| used.contains(set));
                    head.dead = dead_besides;
                    head.base_dead = dead_besides;
                }
                // The other sets are removed as a whole.
                let kept = |(key, _): &&(PunchKey, u64)| !gone_sets.contains(&key.set);
                let emptied = state.emptied.iter().filter(kept);
                frozen.sweep.punches.extend(emptied.copied());
                head.next_delta = next_delta + 1;
                head.sets.extend(&new_sets);
                // What was only moved is counted already.
                if !relocates {
                    let (added, gone) = match state.map.base.is_some() {
                        true => (
                            sums(&delta.windows),
                            sums(recorded_before.iter().map(AsRef::as_ref)),
                        ),
                        // All windows are in memory.
                        false => {
                            let made = state.map.windows.iter();
                            let living = made.filter_map(|(no, window)| match window {
                                Window::Made(record) if !delta.dropped.contains(no) => {
                                    Some(record.as_ref())
                                }
                                Window::Made(_) | Window::Making(_) => None,
                            });
                            (head.stored, head.unprotected, head.hasty) = (0, 0, 0);
                            (sums(living), Sums::default())
                        }
                    };
                    let change = |sum: u64, added: u64, gone| (sum + added).saturating_sub(gone);
                    head.stored = change(head.stored, added.stored, gone.stored);
                    head.unprotected =
                        change(head.unprotected, added.unprotected, gone.unprotected);
                    head.hasty = change(head.hasty, added.hasty, gone.hasty);
                }
            }
        }
        let dead_bytes: u32 = frozen.dead_pieces.values().sum();
        head.inline_bytes = state.inline_bytes.saturating_sub(dead_bytes);
        let pieces: Vec<(u32, Arc<[u8]>)> = frozen
            .pieces
            .iter()
            .filter(|piece| !frozen.dead_pieces.contains_key(*piece))
            .filter_map(|piece| Some((*piece, Arc::clone(state.pieces.get(piece)?))))
            .collect();
        let spilled = state
            .spilled
            .then(|| state.map.base.as_ref().map(|base| base.id()))
            .flatten();
        drop(state);

        let sweep = &mut frozen.sweep;
        sweep.sets.extend(&gone_sets);
        if old_base != head.base {
            sweep.manifests.extend(old_base.map(|base| base.id));
        }
        sweep.manifests.extend(spilled);
        sweep.join();
        if !frozen.dead_pieces.is_empty() {
            // Who looks for one of them from here on has to find out that nothing refers to it any more.
            file.state.lock().version += 1;
        }
        self.meta.update(|update| -> Result<()> {
            for (piece, bytes) in &pieces {
                update.put_inline(file.id, *piece, bytes);
            }
            for piece in frozen.dead_pieces.keys() {
                update.delete(Key::inline(file.id, *piece));
            }
            for sequence in gone_deltas.clone() {
                update.delete(Key::delta(file.id, sequence));
            }
            if folded.is_none() {
                update.put_delta(file.id, next_delta, &encoded);
            }
            for set in &new_sets {
                self.add_set_reference(update, *set)?;
            }
            for set in &gone_sets {
                self.drop_set_reference(update, *set)?;
            }
            for (key, length) in &sweep.punches {
                update.put_punch(key, *length);
            }
            update.put_manifest(file.id, &head.encode());
            if head.hasty != hasty_before {
                update.put_hasty(file.id, head.hasty);
            }
            if let Some(mut inode) = update.inode(file.id)? {
                inode.size = frozen.size;
                inode.stored = head.stored + u64::from(head.inline_bytes);
                let times = *file.frozen_times.lock();
                inode.mtime = times.mtime.unwrap_or(inode.mtime);
                inode.ctime = times.ctime.unwrap_or(inode.ctime);
                update.put_inode(file.id, &inode);
            }
            Ok(())
        })?;
        self.meta.sync()?;
        let done = Done {
            head,
            folded,
            dropped: &delta.dropped,
            new_sets: &new_sets,
            gone_sets: &gone_sets,
        };
        self.finish_commit(file, frozen, done);
        Ok(())
    }

    /// Takes windows in which nothing lives any more out of a file that has no base: a small file that was
    /// written anew gives its old bytes back at once. Gives what is dead in the others as well.
    fn drop_dead_windows(&self, file: &OpenFile) -> Result<(Vec<WindowNo>, u64)> {
        {
            let state = file.state.lock();
            let runs = state.map.settled.len() + state.map.frozen.as_ref().map_or(0, Overlay::len);
            if state.map.base.is_some() || state.dead == 0 || runs > DROP_RUNS {
                return Ok((Vec::new(), 0));
            }
        }
        let mut tally = Tally::default();
        self.frozen_view(file).each(|extent| {
            tally.extent(&extent);
            Ok(())
        })?;
        let mut state = file.state.lock();
        let state = &mut *state;
        let mut dead: Vec<WindowNo> = Vec::new();
        for (no, window) in &state.map.windows {
            if let Window::Made(record) = window
                && !tally.window(record)
            {
                dead.push(*no);
            }
        }
        dead.sort_unstable();
        for no in &dead {
            state.uncommitted.remove(no);
        }
        Ok((dead, tally.dead))
    }

    fn delta(&self, file: &OpenFile, overlay: &Overlay, state: &FileState) -> Result<Delta> {
        let mut windows = Vec::new();
        for no in &state.uncommitted {
            let record = state.map.record(*no)?;
            let record = record.ok_or_else(|| not_whole(file, *no))?;
            windows.push(WindowRecord::clone(&record));
        }
        Ok(Delta {
            windows,
            dropped: Vec::new(),
            extents: overlay.iter().collect(),
            next_window: state.next_window.load(Ordering::Relaxed),
            next_piece: state.next_piece,
        })
    }

    fn finish_spill(
        &self,
        file: &Arc<OpenFile>,
        frozen: &mut Frozen,
        folded: Option<Folded>,
    ) -> Result<()> {
        let Some(folded) = folded else { return Ok(()) };
        let mut state = file.state.lock();
        let before = state
            .spilled
            .then(|| state.map.base.as_ref().map(|base| base.id()))
            .flatten();
        state.map.rebase(folded.manifest);
        state.spilled = true;
        // A crash brings back what is committed, to the last byte.
        let mut emptied = Sweep {
            punches: std::mem::take(&mut state.emptied),
            ..Sweep::default()
        };
        emptied.punches.append(&mut frozen.sweep.punches);
        emptied.join();
        state.emptied = emptied.punches;
        state.uncommitted.clear();
        state.times = state
            .times
            .or(std::mem::take(&mut *file.frozen_times.lock()));
        state.new_pieces.append(&mut frozen.pieces);
        state.version += 1;
        drop(state);
        if let Some(before) = before {
            let sweep = Sweep {
                manifests: vec![before],
                ..Sweep::default()
            };
            self.sweeper.add(Arc::clone(file), sweep);
        }
        Ok(())
    }

    fn finish_commit(&self, file: &Arc<OpenFile>, frozen: &Frozen, done: Done<'_>) {
        let Done {
            head,
            folded,
            dropped,
            new_sets,
            gone_sets,
        } = done;
        let mut state = file.state.lock();
        match folded {
            Some(folded) => state.map.rebase(folded.manifest),
            None => {
                state.map.settle();
                state.map.windows.retain(|no, _| !dropped.contains(no));
            }
        }
        state.spilled = false;
        state.emptied.clear();
        *file.frozen_times.lock() = Times::default();
        state.uncommitted.clear();
        state.committed_size = frozen.size;
        state.inline_bytes = head.inline_bytes
            + state
                .new_pieces
                .iter()
                .filter_map(|piece| state.pieces.get(piece))
                .map(|bytes| bytes.len() as u32)
                .sum::<u32>();
        state.dead = state.dead.saturating_sub(frozen.dead) + head.dead;
        if head.hasty > 0 && frozen.purpose != Purpose::Relocate {
            self.squeezer.add(file.id);
        }
        state.gives_up &= head.dropped == 0;
        state.head = head;
        for piece in frozen.dead_pieces.keys() {
            state.pieces.remove(piece);
        }
        state.sets.retain(|set| !gone_sets.contains(set));
        state.sets.extend(new_sets);
        state.version += 1;
        // A set that nothing came to refer to is of no use.
        let pending = std::mem::take(&mut state.pending);
        let unused: Vec<SetId> = pending
            .iter()
            .map(|writer| writer.set())
            .filter(|set| !state.sets.contains(set))
            .collect();
        drop(state);
        if !unused.is_empty() {
            self.sweeper.add(
                Arc::clone(file),
                Sweep {
                    sets: unused,
                    ..Sweep::default()
                },
            );
        }
    }
}

/// The records that a commit replaces, as when a window got other parity: they are in the sums of the file already.
fn recorded_before(
    file: &OpenFile,
    frozen: &Frozen,
    delta: &Delta,
) -> Result<Vec<Arc<WindowRecord>>> {
    let base = file.state.lock().map.base.clone();
    let next = base.as_ref().map_or(0, |base| base.totals().next_window);
    let mut records = Vec::new();
    for window in &delta.windows {
        match (frozen.recorded.get(&window.no), &base) {
            (Some(record), _) => records.push(Arc::clone(record)),
            (None, Some(base)) if window.no.0 < next => records.extend(base.window(window.no)?),
            (None, _) => {}
        }
    }
    Ok(records)
}

/// Whether all that a commit refers to is recorded with it, or was before. Better it fails than that it makes true what
/// cannot be read.
fn check_windows(file: &OpenFile, overlay: &Overlay, state: &FileState) -> Result<()> {
    let base = state.map.base.as_ref();
    let next = base.map_or(0, |base| base.totals().next_window);
    for extent in overlay.iter() {
        if let Source::Block { block, .. } = extent.source {
            let no = block.window;
            match state.map.windows.get(&no) {
                Some(Window::Made(_)) => {}
                None if no.0 < next => {}
                None | Some(Window::Making(_)) => return Err(not_whole(file, no)),
            }
        }
    }
    Ok(())
}

pub(super) fn not_whole(file: &OpenFile, no: WindowNo) -> VolumeError {
    let message = format!(
        "window {no} of file {} could not be placed whole; sync the file again, or write it anew",
        file.id
    );
    VolumeError::new(libc::EIO, message)
}
