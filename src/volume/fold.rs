//! Folding: the committed layers of a file and what the running commit adds are written as one new base
//! manifest on every disk. Windows in which nothing lives are left out, and their room is given back.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Volume;
use super::annex::ANNEX;
use super::commit::{Frozen, Purpose, not_whole};
use super::error::{Result, VolumeError};
use super::file::OpenFile;
use super::filemap::{FileMap, Window};
use super::sweep::Sweep;
use super::tally::{Sums, Tally};
use crate::disk::{Appender, ObjectName};
use crate::ids::{DiskId, ManifestId, SetId, WindowNo};
use crate::meta::{PunchKey, Records};
use crate::store::manifest::{Manifest, ManifestRef, ManifestWriter, Totals};
use crate::store::parity::PARITY_HEADER;
use crate::store::{BEYOND, BlockRecord, Extent, Source, WindowRecord};
use crate::threads::side_by_side;

/// Bytes of a file whose extents are looked at together.
pub(super) const STEP: u64 = 256 << 20;

/// A new base.
pub(super) struct Folded {
    pub reference: ManifestRef,
    pub manifest: Arc<Manifest>,
    pub sets: Vec<SetId>,
    pub sums: Sums,
    pub dead: u64,
    /// Bytes that were given up, at most.
    pub given_up: u64,
    /// The inline pieces that nothing refers to any more, with their lengths.
    pub dead_pieces: BTreeMap<u32, u32>,
}

impl Volume {
    /// Writes a new base out of everything the running commit sees.
    pub(super) fn fold(&self, file: &Arc<OpenFile>, frozen: &mut Frozen) -> Result<Folded> {
        let description = self.describe(file.id, frozen.size)?;
        let id = self.next_manifest()?;
        let folded = self.fold_into(file, frozen, id, &description);
        if folded.is_err() {
            // Nothing will refer to what was written of it.
            self.sweeper.add_closed(Sweep {
                manifests: vec![id],
                ..Sweep::default()
            });
        }
        folded
    }

    fn fold_into(
        &self,
        file: &Arc<OpenFile>,
        frozen: &mut Frozen,
        id: ManifestId,
        description: &[u8],
    ) -> Result<Folded> {
        let spill = frozen.purpose == Purpose::Spill;
        let view = self.frozen_view(file);
        let mut copies: Vec<(DiskId, Box<dyn Appender>)> = Vec::new();
        for disk in self.disks.usable_for_writing() {
            let Some(medium) = self.disks.get(disk) else {
                continue;
            };
            match medium.create(ObjectName::Manifest(id)) {
                Ok(appender) => copies.push((disk, appender)),
                // A disk that is well is not to lack it.
                Err(error) if !self.disks.hold_against(disk, &error) => return Err(error.into()),
                Err(_) => {}
            }
        }
        let disks = &self.disks;
        let mut own = None;
        let mut sink = |bytes: &[u8]| {
            copies.retain_mut(|(disk, appender)| match appender.append(&[bytes]) {
                Ok(_) => true,
                Err(error) => {
                    if !disks.hold_against(*disk, &error) {
                        own = Some(error);
                    }
                    false
                }
            });
            Ok(())
        };
        let mut writer = ManifestWriter::new(self.id, file.id, id, &mut sink);

        let mut tally = Tally::default();
        let mut pieces: BTreeSet<u32> = BTreeSet::new();
        let mut pending: Option<Extent> = None;
        view.each(|extent| {
            tally.extent(&extent);
            match extent.source {
                Source::Hole => return Ok(()),
                Source::Inline { piece, .. } => {
                    pieces.insert(piece);
                }
                Source::Dropped | Source::Zeros | Source::Block { .. } => {}
            }
            match &mut pending {
                Some(before) if follows(before, &extent) => before.range.end = extent.range.end,
                _ => {
                    if let Some(before) = pending.replace(extent) {
                        writer.extent(&before)?;
                    }
                }
            }
            Ok(())
        })?;
        if let Some(last) = pending {
            writer.extent(&last)?;
        }

        let mut folded_sets = BTreeSet::new();
        let mut empty: Vec<Arc<WindowRecord>> = Vec::new();
        view.each_window(|record| {
            if !tally.window(&record) {
                empty.push(record);
                return Ok(());
            }
            writer.window(&record)?;
            folded_sets.insert(record.set);
            if !record.parity.is_empty() {
                folded_sets.insert(record.parity_set);
            }
            Ok(())
        })?;
        let totals = {
            let state = file.state.lock();
            // In a spilled base a window may still wait to be put elsewhere. One that was lost from a committed base stays lost.
            let next = state.head.next_window;
            let is_new = |no: &WindowNo| is_newer(&state.map, *no) || no.0 >= next;
            if !spill && let Some(no) = tally.uncounted().find(is_new) {
                return Err(not_whole(file, no));
            }
            Totals {
                file_size: frozen.size,
                next_window: state.next_window.load(Ordering::Relaxed),
                next_piece: state.next_piece,
                ..Totals::default()
            }
        };
        let reference = writer.finish(totals, description)?;
        if let Some(error) = own {
            return Err(error.into());
        }
        self.sync_copies(file, copies)?;

        // Which sets a commit will keep, a spill cannot know.
        for record in &empty {
            let kept =
                folded_sets.contains(&record.set) || folded_sets.contains(&record.parity_set);
            if spill || kept {
                punches_of(record, &mut frozen.sweep);
            }
        }
        let all = self
            .disks
            .list()
            .into_iter()
            .map(|status| status.id)
            .collect::<Vec<_>>();
        let manifest = Manifest::open(
            self.id,
            reference,
            Arc::clone(&self.disks),
            &all,
            Arc::clone(&self.manifests),
        )?;
        let dead_pieces = match spill {
            // The committed file may refer to them.
            true => BTreeMap::new(),
            false => self.dead_pieces(file, &pieces),
        };
        let sets = folded_sets.into_iter().collect();
        Ok(Folded {
            reference,
            manifest: Arc::new(manifest),
            sets,
            sums: tally.sums,
            dead: tally.dead,
            given_up: tally.given_up,
            dead_pieces,
        })
    }

    /// The inline pieces of a file that are not among those that are used, with their lengths, whether or not anybody has read
    /// them since the file was opened.
    pub(super) fn dead_pieces(&self, file: &OpenFile, used: &BTreeSet<u32>) -> BTreeMap<u32, u32> {
        let kept = self.meta.view().inlines(file.id).unwrap_or_else(|error| {
            // They go with the next base, then.
            tracing::warn!(file = %file.id, %error, "inline pieces that are of no use may stay");
            Vec::new()
        });
        let state = file.state.lock();
        let kept = kept.iter().map(|(piece, bytes)| (*piece, bytes.len()));
        let in_memory = state.pieces.iter();
        let in_memory = in_memory.map(|(piece, bytes)| (*piece, bytes.len()));
        // A piece that is newer than what was frozen is not dead because that does not know it.
        kept.chain(in_memory)
            .filter(|(piece, _)| !used.contains(piece) && !state.new_pieces.contains(piece))
            .map(|(piece, length)| (piece, length as u32))
            .collect()
    }

    /// Makes the copies of a manifest durable; enough of them must succeed for the policy's losses.
    fn sync_copies(&self, file: &OpenFile, copies: Vec<(DiskId, Box<dyn Appender>)>) -> Result<()> {
        let synced = side_by_side(copies, |(disk, mut appender)| {
            let medium = self.disks.get(disk);
            let result = appender
                .sync()
                .and_then(|()| medium.map_or(Ok(()), |medium| medium.sync_names()));
            match result {
                Err(error) if !self.disks.hold_against(disk, &error) => Err(error),
                result => Ok(result.is_ok()),
            }
        });
        let synced = synced.into_iter().map(|done| done.unwrap_or(Ok(false)));
        let synced: Vec<bool> = synced.collect::<crate::disk::Result<_>>()?;
        let good = synced.into_iter().filter(|&good| good).count();
        if good > usize::from(self.pipeline.policy.critical.m) {
            return Ok(());
        }
        Err(VolumeError::new(
            libc::EIO,
            format!(
                "the manifest of file {} was taken by {good} disks only, too few to survive {} losses",
                file.id, self.pipeline.policy.critical.m
            ),
        ))
    }

    /// What the running commit sees, set apart from the file's lock.
    pub(super) fn frozen_view(&self, file: &OpenFile) -> FrozenMap {
        let state = file.state.lock();
        let made = state
            .map
            .windows
            .iter()
            .filter(|(no, _)| !is_newer(&state.map, **no));
        // A truncate meanwhile says nothing of what was frozen, and a spilled base has more than what is committed.
        let base = state.map.base.as_ref();
        let frozen = state.map.frozen.as_ref();
        let end = state
            .committed_size
            .max(base.map_or(0, |base| base.totals().file_size))
            .max(state.map.settled.end_below(BEYOND))
            .max(frozen.map_or(0, |frozen| frozen.end_below(BEYOND)));
        FrozenMap {
            end,
            map: FileMap {
                base: state.map.base.clone(),
                settled: state.map.settled.clone(),
                frozen: state.map.frozen.clone(),
                top: Default::default(),
                windows: made.map(|(no, window)| (*no, window.clone())).collect(),
            },
        }
    }
}

/// Whether a window is still being made: it belongs to the next commit.
fn is_newer(map: &FileMap, no: WindowNo) -> bool {
    matches!(map.windows.get(&no), Some(Window::Making(_)))
}

/// A file's map as the running commit sees it.
#[derive(Debug)]
pub(super) struct FrozenMap {
    map: FileMap,
    end: u64,
}

impl FrozenMap {
    /// The map of a file of which there is nothing but a base.
    pub fn of_base(base: Arc<Manifest>) -> FrozenMap {
        FrozenMap {
            end: base.totals().file_size,
            map: FileMap {
                base: Some(base),
                ..FileMap::default()
            },
        }
    }

    /// Every extent in rising order, holes included; then those of the annex.
    pub fn each(&self, mut extent: impl FnMut(Extent) -> Result<()>) -> Result<()> {
        let mut at = 0;
        while at < self.end {
            let step = (at + STEP).min(self.end);
            for found in self.map.resolve_frozen(at..step)? {
                extent(found)?;
            }
            at = step;
        }
        // What lies behind the end, against the rules, is not lost by that.
        for found in self.map.resolve_frozen(self.end..ANNEX.end)? {
            if found.source != Source::Hole {
                extent(found)?;
            }
        }
        Ok(())
    }

    /// Every window that is placed, by rising number, those that changed in their new form.
    pub fn each_window(
        &self,
        mut window: impl FnMut(Arc<WindowRecord>) -> Result<()>,
    ) -> Result<()> {
        let mut changed: BTreeMap<WindowNo, Arc<WindowRecord>> = BTreeMap::new();
        for (no, known) in &self.map.windows {
            if let Window::Made(record) = known {
                changed.insert(*no, Arc::clone(record));
            }
        }
        if let Some(base) = &self.map.base {
            for record in base.windows() {
                let record = record?;
                let from_here: Vec<WindowNo> =
                    changed.range(..=record.no).map(|(no, _)| *no).collect();
                let mut replaced = false;
                for no in from_here {
                    replaced |= no == record.no;
                    if let Some(record) = changed.remove(&no) {
                        window(record)?;
                    }
                }
                if !replaced {
                    window(Arc::new(record))?;
                }
            }
        }
        changed.into_values().try_for_each(window)
    }
}

/// Whether an extent goes on where another one ends.
fn follows(before: &Extent, next: &Extent) -> bool {
    let length = before.range.end - before.range.start;
    // A manifest's entry holds no more.
    let together = next.range.end - before.range.start;
    before.range.end == next.range.start
        && together <= u64::from(u32::MAX)
        && before.source.advanced(length) == next.source
}

/// Gives back the room of a window in which nothing lives. A lost block has no place: what its record tells was one on a disk
/// that has left, and is another block's on the disk that is in its place now.
pub(super) fn punches_of(record: &WindowRecord, sweep: &mut Sweep) {
    let mut ranges: BTreeMap<u8, Vec<Range<u64>>> = BTreeMap::new();
    let stored = |block: &&BlockRecord| block.stored > 0 && !block.lost;
    for block in record.blocks.iter().filter(stored) {
        ranges
            .entry(block.column)
            .or_default()
            .push(block.offset..block.offset + u64::from(block.stored));
    }
    for (column, ranges) in ranges {
        if let Some(disk) = record.disk(column.into()) {
            punch_ranges(record.set, disk, false, ranges, sweep);
        }
    }
    parity_punches(record, sweep);
}

/// Gives back the room of a window's parity.
pub(super) fn parity_punches(record: &WindowRecord, sweep: &mut Sweep) {
    let header = PARITY_HEADER as u64;
    for (shard, parity) in record.parity.iter().enumerate() {
        if let (Some(disk), Some(start)) = (
            record.disk(usize::from(record.code.k) + shard),
            parity.offset.checked_sub(header),
        ) {
            let range = start..parity.offset + u64::from(record.parity_length);
            punch_ranges(record.parity_set, disk, true, vec![range], sweep);
        }
    }
}

/// Gives back ranges of one object, those that touch as one.
pub(super) fn punch_ranges(
    set: SetId,
    disk: DiskId,
    parity: bool,
    mut ranges: Vec<Range<u64>>,
    sweep: &mut Sweep,
) {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(before) if before.end == range.start => before.end = range.end,
            _ => joined.push(range),
        }
    }
    for range in joined {
        let key = PunchKey {
            set,
            disk,
            offset: range.start,
            parity,
        };
        sweep.punches.push((key, range.end - range.start));
    }
}
