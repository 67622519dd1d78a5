//! Settling: at a commit every block gets the tier that holds. A block whose live bytes are of both tiers
//! is repacked into pure ones; a window in which blocks changed sides gets new parity.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Volume;
use super::commit::Frozen;
use super::error::{Result, VolumeError};
use super::file::OpenFile;
use super::filemap::Window;
use super::fold::{parity_punches, punch_ranges};
use super::sweep::Sweep;
use super::tiers::{Finished, FrozenBytes, Kept, Tiers};
use crate::ids::{BlockId, FileId, WindowNo};
use crate::meta::{FileKind, Names, Records};
use crate::store::{BEYOND, Extent, Lane, ReadError, SetWriter, Source, Tier, WindowRecord};

/// What a block's live bytes are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Use {
    critical: bool,
    expendable: bool,
    /// Live bytes.
    live: u64,
}

/// Bytes that are read at once, by several threads, for new parity.
const AT_ONCE: u64 = 48 << 20;

/// The largest file that is read because it lies beside another, in bytes.
const BESIDE_MAX: usize = 16 << 20;

/// The frozen bytes of a file, for the tier source.
struct View<'a> {
    volume: &'a Volume,
    file: &'a Arc<OpenFile>,
    size: u64,
}

impl FrozenBytes for View<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let bytes = self
            .volume
            .read_frozen(self.file, offset..offset + buffer.len() as u64)?;
        buffer.copy_from_slice(&bytes);
        Ok(())
    }

    fn holes(&self, hole: &mut dyn FnMut(Range<u64>)) -> Result<()> {
        let mut open: Option<Range<u64>> = None;
        let mut add = |range: Range<u64>| match &mut open {
            Some(before) if before.end == range.start => before.end = range.end,
            _ => {
                if let Some(before) = open.replace(range) {
                    hole(before);
                }
            }
        };
        let mut end = 0;
        self.volume.frozen_view(self.file).each(|extent| {
            let range = extent.range.start.min(self.size)..extent.range.end.min(self.size);
            if range.is_empty() {
                return Ok(());
            }
            end = range.end;
            if matches!(extent.source, Source::Hole | Source::Zeros) {
                add(range);
            }
            Ok(())
        })?;
        // The map need not say anything of what the file grew by without a write.
        if end < self.size {
            add(end..self.size);
        }
        if let Some(last) = open {
            hole(last);
        }
        Ok(())
    }

    fn read_past_losses(
        &self,
        offset: u64,
        buffer: &mut [u8],
        lost: &mut dyn FnMut(Range<u64>),
    ) -> Result<()> {
        let range = offset..offset + buffer.len() as u64;
        let mut all = Vec::new();
        let mut each = |range| all.push(range);
        let bytes = self.volume.read_past_losses(self.file, range, &mut each)?;
        buffer.copy_from_slice(&bytes);
        let state = self.file.state.lock();
        for range in all {
            match &state.map.frozen {
                // What a commit that failed gave up was there before it, too.
                Some(new) => {
                    let mut old = Vec::new();
                    let mut given_up = Vec::new();
                    let mut said = |extent: Extent| {
                        if extent.source == Source::Dropped {
                            given_up.push(extent.range);
                        }
                    };
                    new.walk(range, &mut said, &mut |gap| old.push(gap));
                    old.into_iter().chain(given_up).for_each(&mut *lost);
                }
                None => lost(range),
            }
        }
        Ok(())
    }

    fn has_losses(&self) -> bool {
        self.volume.has_losses(self.file)
    }
}

impl Volume {
    /// Gives every block of the file the tier that the tier source tells.
    pub(super) fn settle(&self, file: &Arc<OpenFile>, frozen: &mut Frozen) -> Result<()> {
        let Some(followed) = frozen.followed.take().filter(|seen| seen.changed.is_some()) else {
            return Ok(());
        };
        let bytes = View {
            volume: self,
            file,
            size: frozen.size,
        };
        let tiering = self.tiering_of(file.id);
        let judged = self.tiers.at_commit(&Finished {
            file: file.id,
            bytes: &bytes,
            followed: &followed,
            tiering,
            before: &|| self.insight(file),
            kept: &|| self.look_of(file),
            beside: &|name| self.read_beside(file.id, name),
        });
        frozen.followed = Some(followed);
        match &judged.kept {
            Kept::Same => {}
            Kept::Nothing => self.write_annex(file, frozen, None)?,
            Kept::Bytes(bytes) => self.write_annex(file, frozen, Some(bytes))?,
        }
        match judged.tiers {
            Some(tiers) => {
                let drops = tiering.drop && self.drop_expendable(file, frozen, &tiers)?;
                self.give_tiers(file, frozen.finished, &tiers, drops)
            }
            None => Ok(()),
        }
    }

    /// Gives up the bytes that a guest does without: from here on they read as if they were lost. Not while somebody reads
    /// the file, whose view knows nothing of it: false then, and it is done when the last reader goes.
    fn drop_expendable(
        &self,
        file: &Arc<OpenFile>,
        frozen: &mut Frozen,
        tiers: &Tiers,
    ) -> Result<bool> {
        let mut gone: Vec<Range<u64>> = Vec::new();
        let mut dropped = 0;
        // What an administrator gave up stays given up.
        let mut lost: HashSet<BlockId> = HashSet::new();
        let view = self.frozen_view(file);
        if file.state.lock().head.dropped > 0 {
            view.each_window(|record| {
                let window = record.no;
                let blocks = (0u16..).zip(&record.blocks).filter(|(_, block)| block.lost);
                lost.extend(blocks.map(|(index, _)| BlockId { window, index }));
                Ok(())
            })?;
        }
        view.each(|extent| {
            if let Source::Block { block, .. } = extent.source
                && lost.contains(&block)
            {
                dropped += extent.range.end - extent.range.start;
            }
            match extent.source {
                Source::Block { .. } if extent.range.start < BEYOND => {
                    tiers.split(extent.range, |range, tier| match (tier, gone.last_mut()) {
                        (Tier::Critical, _) => {}
                        (Tier::Expendable, Some(last)) if last.end == range.start => {
                            last.end = range.end
                        }
                        (Tier::Expendable, _) => gone.push(range),
                    });
                }
                Source::Dropped => dropped += extent.range.end - extent.range.start,
                Source::Block { .. } | Source::Hole | Source::Zeros | Source::Inline { .. } => {}
            }
            Ok(())
        })?;
        frozen.dropped = Some(dropped);
        if gone.is_empty() {
            return Ok(true);
        }
        if !frozen.finished {
            file.state.lock().owes_tiers = true;
            return Ok(false);
        }
        // Told before the readers are asked for, so that one who goes meanwhile knows. Who begins to read waits for this
        // commit with the lock in hand, so nobody waits for that here.
        file.owes_drop.store(true, Ordering::SeqCst);
        let readers = file.readers.try_lock();
        let Some(_nobody) = readers.filter(|readers| **readers == 0) else {
            return Ok(false);
        };
        file.owes_drop.store(false, Ordering::SeqCst);
        let mut state = file.state.lock();
        state.gives_up = true;
        for range in gone {
            let length = range.end - range.start;
            dropped += length;
            frozen.dead += length;
            state.dead += length;
            let map = state.map.frozen.get_or_insert_default();
            map.insert(range, Source::Dropped);
        }
        state.version += 1;
        frozen.dropped = Some(dropped);
        Ok(true)
    }

    /// Protects exactly what is critical, and in the middle of writing no less than was protected before: half of a guest's
    /// new memory beside half of the old says little about what the guest needs in the end. `tight`: what is dead gives its
    /// room back at once.
    fn give_tiers(
        &self,
        file: &Arc<OpenFile>,
        finished: bool,
        tiers: &Tiers,
        tight: bool,
    ) -> Result<()> {
        if *tiers == Tiers::All(Tier::Critical) && !self.has_unprotected(file)? {
            return Ok(());
        }
        let view = self.frozen_view(file);
        let mut uses: HashMap<WindowNo, BTreeMap<u16, Use>> = HashMap::new();
        view.each(|extent| {
            if let Source::Block { block, .. } = extent.source {
                let found = uses
                    .entry(block.window)
                    .or_default()
                    .entry(block.index)
                    .or_default();
                found.live += extent.range.end - extent.range.start;
                tiers.split(extent.range, |_, tier| match tier {
                    Tier::Critical => found.critical = true,
                    Tier::Expendable => found.expendable = true,
                });
            }
            Ok(())
        })?;
        let mut moving: HashSet<BlockId> = HashSet::new();
        let mut changing: Vec<Change> = Vec::new();
        let mut withheld = false;
        view.each_window(|record| {
            let Some(uses) = uses.get(&record.no) else {
                return Ok(());
            };
            let mut differs = false;
            let mut protect = Vec::with_capacity(record.blocks.len());
            for (index, block) in record.blocks.iter().enumerate() {
                let mut now = uses.get(&(index as u16)).copied().unwrap_or_default();
                let withholds = !self.is_of_expendable(&record);
                if !finished && block.protected && now.expendable && withholds {
                    (now.critical, now.expendable) = (true, false);
                    withheld = true;
                }
                let mut place = self.place_of(now, block.protected, &record);
                if tight && now.live > 0 && now.live * 4 < u64::from(block.raw) * 3 {
                    place = Place::Move;
                }
                if place == Place::Move {
                    moving.insert(BlockId {
                        window: record.no,
                        index: index as u16,
                    });
                }
                // What is moved away or dead stays in the parity unless that is written anew anyway.
                let keep = match place {
                    Place::Protected => true,
                    Place::Unprotected | Place::Move | Place::Dead => false,
                };
                differs |= match place {
                    Place::Dead => tight && block.stored > 0,
                    Place::Move => block.protected || tight,
                    Place::Protected | Place::Unprotected => keep != block.protected,
                };
                protect.push(keep);
            }
            if differs {
                changing.push(Change {
                    record,
                    protect,
                    alive: HashSet::new(),
                });
            }
            Ok(())
        })?;
        if withheld {
            file.state.lock().owes_tiers = true;
        }
        if !moving.is_empty() {
            self.repack(
                file,
                &|source| matches!(source, Source::Block { block, .. } if moving.contains(block)),
                &|extent, piece| {
                    tiers.split(extent.range.clone(), |range, tier| piece(range, lane(tier)))
                },
            )?;
        }
        if changing.is_empty() {
            return Ok(());
        }
        self.find_alive(file, &mut changing)?;
        let set = self.next_set().map_err(VolumeError::from)?;
        let writer = SetWriter::new(Arc::clone(&self.pipeline), file.id, set);
        let mut refused: HashSet<WindowNo> = HashSet::new();
        let mut result = Ok(());
        let mut changing = changing.into_iter().peekable();
        while result.is_ok() && changing.peek().is_some() {
            let mut bytes = 0;
            let at_once = std::iter::from_fn(|| {
                let next =
                    changing.next_if(|change| bytes == 0 || bytes + change.bytes() <= AT_ONCE);
                bytes += next.as_ref().map_or(0, Change::bytes);
                next
            });
            for (no, protected) in self.protect_all(file.id, &writer, at_once.collect()) {
                match protected {
                    Ok(protected) => protected.enter(file),
                    Err(error) if error.is_of_writing() => {
                        // Too few disks are left for the window as it is: its bytes go into narrower ones.
                        tracing::warn!(file = %file.id, window = %no, %error, "no new parity here; its bytes are moved");
                        refused.insert(no);
                    }
                    Err(error) => result = Err(error),
                }
            }
        }
        // After an error too: the windows that got new parity need it in the next commit.
        self.finish_set(file, writer);
        result?;
        if !refused.is_empty() {
            self.repack(
                file,
                &|source| matches!(source, Source::Block { block, .. } if refused.contains(&block.window)),
                &|extent, piece| {
                    if finished {
                        tiers.split(extent.range.clone(), |range, tier| piece(range, lane(tier)));
                    } else {
                        piece(extent.range.clone(), Lane::Critical);
                    }
                },
            )?;
        }
        Ok(())
    }

    /// The bytes of another file in a directory of this one.
    fn read_beside(&self, file: FileId, name: &str) -> Option<Vec<u8>> {
        let view = self.meta.view();
        let (directory, _) = view.names(file).ok()?.into_iter().next()?;
        let (other, inode) = view.lookup(directory, name.as_bytes()).ok()?;
        if other == file || inode.kind != FileKind::Regular {
            return None;
        }
        let other = self.use_file(other).ok()?;
        let size = other.state.lock().size;
        let length = usize::try_from(size)
            .ok()
            .filter(|&size| size <= BESIDE_MAX)?;
        self.read_file(&other, 0, length).ok()
    }

    fn has_unprotected(&self, file: &OpenFile) -> Result<bool> {
        let state = file.state.lock();
        // What is expendable may have parity of its own, of which critical bytes want more.
        let may_want_more = self.pipeline.policy.expendable.m > 0 && state.head.stored > 0;
        if state.head.unprotected > 0 || may_want_more {
            return Ok(true);
        }
        let plain = |window: &Window| match window {
            Window::Made(record) => record
                .blocks
                .iter()
                .any(|block| block.stored > 0 && !block.protected),
            Window::Making(_) => false,
        };
        Ok(self.pipeline.policy.critical.m > 0 && state.map.windows.values().any(plain))
    }

    /// Whether a window has the parity of what is expendable, and critical bytes are to have more.
    fn is_of_expendable(&self, record: &WindowRecord) -> bool {
        let policy = &self.pipeline.policy;
        record.code.m <= policy.expendable.m && record.code.m < policy.critical.m
    }

    fn place_of(&self, now: Use, protected: bool, record: &WindowRecord) -> Place {
        let policy = &self.pipeline.policy;
        match (now.critical, now.expendable) {
            (false, false) => Place::Dead,
            (true, true) => Place::Move,
            (true, false) if protected && self.is_of_expendable(record) => Place::Move,
            (true, false) if protected || policy.critical.m == 0 => Place::Protected,
            (true, false) if record.code.m < policy.critical.m => Place::Move,
            (true, false) => Place::Protected,
            (false, true) if policy.expendable.m == 0 => Place::Unprotected,
            (false, true) if record.code.m == policy.expendable.m && protected => Place::Protected,
            (false, true) => Place::Move,
        }
    }

    /// Gives windows new parity, side by side. What comes of each, in order.
    fn protect_all(
        &self,
        file: FileId,
        writer: &Arc<SetWriter>,
        changes: Vec<Change>,
    ) -> Vec<(WindowNo, Result<Protected>)> {
        let numbers: Vec<WindowNo> = changes.iter().map(|change| change.record.no).collect();
        let protected: Vec<Result<Protected>> = match self.me.upgrade() {
            Some(volume) => {
                let jobs = changes.into_iter().map(|change| {
                    let (volume, writer) = (Arc::clone(&volume), Arc::clone(writer));
                    move || volume.protect(file, &writer, &change)
                });
                let failed = || {
                    let message = "a thread that protects a file failed; the log tells why";
                    Err(VolumeError::new(libc::EIO, message))
                };
                let answers = self.readers.all(jobs.collect()).into_iter();
                answers
                    .map(|answer| answer.unwrap_or_else(failed))
                    .collect()
            }
            None => {
                let changes = changes.iter();
                changes
                    .map(|change| self.protect(file, writer, change))
                    .collect()
            }
        };
        std::iter::zip(numbers, protected).collect()
    }

    /// Writes the parity of exactly the blocks of a window that are to be protected.
    fn protect(&self, file: FileId, writer: &Arc<SetWriter>, change: &Change) -> Result<Protected> {
        let record = &change.record;
        let mut sweep = Sweep::default();
        let mut new = WindowRecord::clone(record);
        let mut order: Vec<usize> = (0..new.blocks.len())
            .filter(|&index| new.blocks[index].stored > 0)
            .collect();
        order.sort_by_key(|&index| (new.blocks[index].column, new.blocks[index].offset));
        let mut lengths = vec![0u32; usize::from(new.code.k)];
        let mut columns: Vec<Vec<Vec<u8>>> = vec![Vec::new(); usize::from(new.code.k)];
        let mut given_back: BTreeMap<u8, Vec<Range<u64>>> = BTreeMap::new();
        for index in order {
            let block = &mut new.blocks[index];
            block.protected = change.protects(index);
            if block.protected {
                let stored = match self.reader.read_stored(file, record, index as u16) {
                    Ok(stored) => stored,
                    Err(ReadError::Lost { .. }) => {
                        // It was stored once, and its disk does not give it: nothing can protect it now. It stays
                        // where it is, in case the disk comes back.
                        block.protected = false;
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                };
                let column = usize::from(block.column);
                block.column_offset = lengths[column];
                lengths[column] += block.stored;
                columns[column].push(stored);
            } else if !change.alive.contains(&(index as u16)) {
                // A lost one has no place there.
                if !block.lost {
                    let range = block.offset..block.offset + u64::from(block.stored);
                    given_back.entry(block.column).or_default().push(range);
                }
                *block = given_up();
            }
        }
        for (column, ranges) in given_back {
            if let Some(disk) = record.disk(column.into()) {
                punch_ranges(record.set, disk, false, ranges, &mut sweep);
            }
        }
        parity_punches(record, &mut sweep);
        if lengths.iter().all(|&length| length == 0) || new.code.m == 0 {
            new.parity.clear();
            new.parity_length = 0;
            new.parity_set = new.set;
        } else {
            new = writer
                .write_parity(new, &columns)
                .map_err(VolumeError::from)?;
        }
        Ok(Protected { new, sweep })
    }

    /// Finds which blocks of these windows extents of the running commit refer to.
    fn find_alive(&self, file: &OpenFile, changing: &mut [Change]) -> Result<()> {
        let numbers = changing.iter().map(|change| change.record.no);
        let places: HashMap<WindowNo, usize> = numbers.zip(0..).collect();
        self.frozen_view(file).each(|extent| {
            if let Source::Block { block, .. } = extent.source
                && let Some(&place) = places.get(&block.window)
                && let Some(change) = changing.get_mut(place)
            {
                change.alive.insert(block.index);
            }
            Ok(())
        })
    }
}

/// A window in which blocks change sides.
struct Change {
    record: Arc<WindowRecord>,
    /// Which of its blocks are to be protected.
    protect: Vec<bool>,
    /// Those that are referred to.
    alive: HashSet<u16>,
}

impl Change {
    fn protects(&self, index: usize) -> bool {
        self.protect.get(index).copied().unwrap_or(true)
    }

    /// Bytes that are read for its parity.
    fn bytes(&self) -> u64 {
        let blocks = self.record.blocks.iter().enumerate();
        let protected = blocks.filter(|(index, _)| self.protects(*index));
        protected.map(|(_, block)| u64::from(block.stored)).sum()
    }
}

/// A window under new parity.
struct Protected {
    new: WindowRecord,
    /// What the old parity and dead blocks leave.
    sweep: Sweep,
}

impl Protected {
    /// The running commit has it, and if that fails the next one.
    fn enter(self, file: &OpenFile) {
        let Protected { new, sweep } = self;
        let mut state = file.state.lock();
        state.emptied.extend(sweep.punches);
        let no = new.no;
        state.uncommitted.insert(no);
        state.map.windows.insert(no, Window::Made(Arc::new(new)));
        state.version += 1;
    }
}

/// Where a block belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing of it lives.
    Dead,
    /// Where it is, under its window's parity.
    Protected,
    /// Where it is, stored once.
    Unprotected,
    /// In another window.
    Move,
}

fn lane(tier: Tier) -> Lane {
    match tier {
        Tier::Critical => Lane::Critical,
        Tier::Expendable => Lane::Expendable,
    }
}

pub(super) fn given_up() -> crate::store::BlockRecord {
    crate::store::BlockRecord {
        column: 0,
        encoding: crate::store::Encoding::Plain,
        protected: false,
        lost: false,
        hasty: false,
        offset: 0,
        column_offset: 0,
        stored: 0,
        raw: 0,
        checksum: 0,
    }
}
