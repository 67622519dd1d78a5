//! Which bytes of a file are on no disk any more. What was given up is recorded with its blocks. Every other live block that
//! is stored once is looked for where there is a reason to, those of a disk that is missing as a whole excepted: several
//! disks at a time, and in the order in which the blocks lie.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::super::Volume;
use super::super::error::Result;
use super::super::file::OpenFile;
use super::super::filemap::Window;
use super::coded::Runs;
use crate::ids::{BlockId, DiskId, WindowNo};
use crate::store::{BEYOND, Source, WindowRecord};

/// Blocks that are looked for before the next are gathered.
const BATCH: usize = 1024;

/// Blocks that one thread looks for at once: little enough that a reader of another file is not kept waiting.
const SPELL: usize = 16;

/// The kind of lost bytes that are as a commit judged them, as far as their place tells.
const JUDGED: u8 = 0;

/// The kind of lost bytes that were under all the parity that critical bytes have. What a file is known to hold may be
/// older than they are, and then says nothing of them.
pub(super) const PROMISED: u8 = 1;

/// The lost bytes of a file.
#[derive(Debug, Default)]
pub(super) struct LostBytes {
    /// Where they are, and of which kind.
    pub runs: Runs,
    /// Whether a commit found all of them to be expendable.
    pub expendable: bool,
}

/// Blocks of a file, a bit each.
#[derive(Debug, Default)]
struct BlockSet(HashMap<WindowNo, [u64; 4]>);

impl BlockSet {
    fn insert(&mut self, block: BlockId) {
        let bits = self.0.entry(block.window).or_default();
        if let Some(word) = bits.get_mut(usize::from(block.index / 64)) {
            *word |= 1 << (block.index % 64);
        }
    }

    fn contains(&self, block: BlockId) -> bool {
        let bits = self.0.get(&block.window);
        bits.and_then(|bits| bits.get(usize::from(block.index / 64)))
            .is_some_and(|word| word >> (block.index % 64) & 1 != 0)
    }
}

impl Volume {
    /// Whether blocks of a file may be in less safety than what is critical.
    pub(super) fn has_expendable(&self, file: &OpenFile) -> bool {
        let state = file.state.lock();
        if state.head.unprotected > 0 || state.gave_up() {
            return true;
        }
        if self.pipeline.policy.expendable.m > 0 && state.head.stored > 0 {
            return true;
        }
        state.map.windows.values().any(|window| match window {
            Window::Made(record) => record
                .blocks
                .iter()
                .any(|block| block.stored > 0 && !block.protected),
            Window::Making(_) => false,
        })
    }

    /// Whether more bytes of a file may be lost than those that were given up.
    pub(super) fn may_have_lost(&self, file: &OpenFile) -> bool {
        !self.disks.absent().is_empty()
            || !self.disks.all_online()
            || self.known_losses.is_bad(file.id)
    }

    /// Whether bytes of a file are lost or were given up; so they are if that cannot be told. To be called with the file's
    /// turn.
    pub(in crate::volume) fn has_losses(&self, file: &Arc<OpenFile>) -> bool {
        let look = self.may_have_lost(file);
        if !look && !file.state.lock().gave_up() {
            return false;
        }
        let lost = self.lost_bytes(file, look);
        lost.map_or(true, |lost| !lost.runs.is_empty())
    }

    /// The lost bytes of a file. With `look` every block that is stored once is looked for; without, only what is recorded
    /// as lost is told. To be called with the file's turn.
    pub(super) fn lost_bytes(&self, file: &Arc<OpenFile>, look: bool) -> Result<LostBytes> {
        let critical = self.pipeline.policy.critical;
        let view = self.frozen_view(file);
        let mut live = BlockSet::default();
        view.each(|extent| {
            if let Source::Block { block, .. } = extent.source {
                live.insert(block);
            }
            Ok(())
        })?;
        let absent: HashSet<DiskId> = self.disks.absent().into_iter().collect();
        let mut lost = BlockSet::default();
        let mut promised = BlockSet::default();
        let mut expendable = critical.m > 0;
        let mut add = |id: BlockId, record: &WindowRecord| {
            lost.insert(id);
            expendable &= !is_protected(record, id.index);
            if self.is_promised(record, id.index) {
                promised.insert(id);
            }
        };
        let mut wanted: Vec<(Arc<WindowRecord>, u16)> = Vec::new();
        view.each_window(|record| {
            for (index, block) in (0u16..).zip(&record.blocks) {
                let id = BlockId {
                    window: record.no,
                    index,
                };
                if block.lost && live.contains(id) {
                    add(id, &record);
                    continue;
                }
                if !look {
                    continue;
                }
                let once = !block.protected || record.parity.is_empty();
                // What has a copy or parity, but less than critical bytes have, may be gone as well.
                let weak = record.code.m < critical.m;
                if block.stored == 0 || !live.contains(id) || !once && !weak {
                    continue;
                }
                let disk = record.disk(usize::from(block.column));
                if once
                    && disk.is_none_or(|disk| absent.contains(&disk) || self.disks.reads_fail(disk))
                {
                    add(id, &record);
                } else {
                    wanted.push((Arc::clone(&record), index));
                }
            }
            if wanted.len() >= BATCH {
                for (id, record) in self.look_for(file, std::mem::take(&mut wanted)) {
                    add(id, &record);
                }
            }
            Ok(())
        })?;
        for (id, record) in self.look_for(file, wanted) {
            add(id, &record);
        }
        let mut runs = Runs::default();
        let dropped = file.state.lock().gave_up();
        if !lost.0.is_empty() || dropped {
            view.each(|extent| {
                let gone = match extent.source {
                    Source::Block { block, .. } => lost.contains(block),
                    Source::Dropped => true,
                    Source::Hole | Source::Zeros | Source::Inline { .. } => false,
                };
                let kind = match extent.source {
                    Source::Block { block, .. } if promised.contains(block) => PROMISED,
                    _ => JUDGED,
                };
                if gone && extent.range.start < BEYOND {
                    runs.push(extent.range, kind);
                }
                Ok(())
            })?;
        }
        Ok(LostBytes { runs, expendable })
    }

    /// Whether a block is under the parity of critical bytes. Less of it, as expendable bytes may have by policy, promises
    /// nothing; what critical bytes had by an earlier policy does.
    fn is_promised(&self, record: &WindowRecord, index: u16) -> bool {
        let policy = &self.pipeline.policy;
        let expendable = record.code.m < policy.critical.m && record.code.m <= policy.expendable.m;
        is_protected(record, index) && !expendable
    }

    /// Reads blocks and tells which are lost, each with its window.
    fn look_for(
        &self,
        file: &Arc<OpenFile>,
        blocks: Vec<(Arc<WindowRecord>, u16)>,
    ) -> Vec<(BlockId, Arc<WindowRecord>)> {
        let Some(volume) = self.me.upgrade() else {
            return Vec::new();
        };
        let mut by_disk: BTreeMap<Option<DiskId>, Vec<(Arc<WindowRecord>, u16)>> = BTreeMap::new();
        for (record, index) in blocks {
            let block = record.block(index);
            let disk = block.and_then(|block| record.disk(usize::from(block.column)));
            by_disk.entry(disk).or_default().push((record, index));
        }
        let mut work = Vec::new();
        for (_, mut blocks) in by_disk {
            blocks.sort_by_key(|(record, index)| {
                (record.set, record.block(*index).map(|block| block.offset))
            });
            for spell in blocks.chunks(SPELL) {
                let (volume, file, spell) = (Arc::clone(&volume), file.id, spell.to_vec());
                work.push(move || {
                    let mut lost = Vec::new();
                    for (record, index) in spell {
                        if volume.reader.read_stored(file, &record, index).is_err() {
                            let window = record.no;
                            lost.push((BlockId { window, index }, record));
                        }
                    }
                    lost
                });
            }
        }
        let mut lost = Vec::new();
        for found in self.readers.all(work) {
            match found {
                Some(found) => lost.extend(found),
                // What was not looked at is not lost for that; reading it tells.
                None => tracing::error!(file = %file.id, "blocks could not be looked for"),
            }
        }
        lost
    }
}

fn is_protected(record: &WindowRecord, index: u16) -> bool {
    record.block(index).is_some_and(|block| block.protected)
}
