//! The annex of a file: bytes that the volume keeps with it and no program sees. They are extents like all others, at offsets
//! that no byte of a file can have. So they are compressed, protected as critical bytes, committed in the same
//! transaction, moved off failing disks, folded into manifests and given back with the file, without a line for it anywhere.
//! What stands in it is for `look`.

use std::ops::Range;
use std::sync::Arc;

use super::Volume;
use super::commit::Frozen;
use super::error::{Result, VolumeError};
use super::file::OpenFile;
use super::filemap::Window;
use super::gather::{Gatherer, Told};
use super::look::{INSIGHT_MAX, Insight, Look};
use super::repack::enter;
use crate::ids::FileId;
use crate::store::{BEYOND, Lane, Source};

/// Where the annex lies in the file's map: behind every byte that a file can have.
pub(super) const ANNEX: Range<u64> = BEYOND..BEYOND + INSIGHT_MAX;

/// Bytes that are handed over at once.
const STEP: usize = 1 << 20;

impl Volume {
    /// Gives the file that is being committed another annex, or none.
    pub(super) fn write_annex(
        &self,
        file: &Arc<OpenFile>,
        frozen: &mut Frozen,
        bytes: Option<&[u8]>,
    ) -> Result<()> {
        {
            let mut state = file.state.lock();
            let before = state.map.resolve_frozen(ANNEX)?;
            let before = before
                .iter()
                .filter(|extent| extent.source != Source::Hole)
                .map(|extent| extent.range.end - extent.range.start)
                .sum::<u64>();
            if before > 0 {
                let map = state.map.frozen.get_or_insert_default();
                map.insert(ANNEX, Source::Hole);
                state.dead += before;
                frozen.dead += before;
            }
        }
        let Some(bytes) = bytes else { return Ok(()) };
        let next_window = Arc::clone(&file.state.lock().next_window);
        let mut gatherer = Gatherer::new(
            Arc::clone(&self.pipeline),
            file.id,
            self.block_size,
            next_window,
        );
        let mut placed = Vec::new();
        let mut at = ANNEX.start;
        for part in bytes.chunks(STEP) {
            let mut permit = self.pipeline.budget.force(part.len() as u64);
            let mut told = Told {
                set: &|| self.next_set(),
                opened: &mut |window| {
                    let mut state = file.state.lock();
                    let windows = &mut state.map.windows;
                    windows
                        .entry(window.no)
                        .or_insert_with(|| Window::Making(Arc::clone(window)));
                },
                placed: &mut |extent| placed.push(extent),
            };
            let result = gatherer.append(Lane::Critical, at, part, &mut permit, &mut told);
            result.map_err(VolumeError::from)?;
            at += part.len() as u64;
        }
        enter(file, &mut gatherer, &mut placed);
        if let Some(writer) = gatherer.take_writer() {
            self.finish_set(file, writer);
        }
        Ok(())
    }

    /// The look that a file's last commit had; see `look_of`. None for a file that is no snapshot.
    pub fn look(&self, file: FileId) -> Result<Option<Look>> {
        let file = self.use_file(file)?;
        self.look_of(&file)
    }

    /// What was seen in a file when it was last committed. None for a file that cannot be a snapshot, and for one whose bytes are
    /// to be looked into anew.
    pub(super) fn insight(&self, file: &Arc<OpenFile>) -> Result<Option<Insight>> {
        Insight::read(&|range| self.read_annex(file, range))
    }

    /// The look that the last commit had, without reading the guest: neither what is lost nor what is found by a
    /// pass over all of the file is needed. None where [`Volume::insight`] gives none, and where no look can be made.
    pub(super) fn look_of(&self, file: &Arc<OpenFile>) -> Result<Option<Look>> {
        match self.insight(file)? {
            Some(insight) => insight.look(&|range| self.read_annex(file, range)),
            None => Ok(None),
        }
    }

    pub(super) fn read_annex(&self, file: &Arc<OpenFile>, range: Range<u64>) -> Result<Vec<u8>> {
        self.read_frozen(file, ANNEX.start + range.start..ANNEX.start + range.end)
    }
}
