//! The rules of what files are made of: heads, deltas and manifests can be read, on every disk; extents lead to blocks
//! and pieces that are there; windows lie on disks of the volume, on none twice, and in sets that are known; no two
//! blocks lie on each other; and every object that is referred to is there, and long enough.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Check;
use crate::disk::ObjectName;
use crate::ids::{DiskId, FileId, SetId};
use crate::meta::{FileKind, Records};
use crate::store::manifest::{Manifest, ManifestCache, ManifestRef};
use crate::store::parity::PARITY_HEADER;
use crate::store::{BEYOND, Source, WindowRecord};
use crate::volume::error::Result;
use crate::volume::head::FileHead;

/// Ranges of objects by disk and object.
type Ranges = HashMap<(DiskId, ObjectName), Vec<(u64, u64)>>;

impl Check<'_> {
    pub(super) fn files(&mut self) -> Result<()> {
        let regular: Vec<(FileId, u64)> = self
            .inodes
            .iter()
            .filter(|(_, inode)| inode.kind == FileKind::Regular)
            .map(|(file, inode)| (*file, inode.size))
            .collect();
        let members: BTreeSet<DiskId> = self
            .volume
            .disks
            .list()
            .iter()
            .map(|disk| disk.id)
            .collect();
        for (file, size) in regular {
            let called = self.volume.called(file);
            let before = self.report.problem_count;
            match self.file(file, size, &members) {
                Ok(()) => {}
                Err(error) => self.report.broken(format!("{called}: {error}")),
            }
            let new = self.report.problem_count - before;
            if new > 0 {
                tracing::debug!(file = called, new, "problems");
            }
        }
        self.references()
    }

    fn file(&mut self, file: FileId, size: u64, members: &BTreeSet<DiskId>) -> Result<()> {
        let called = self.volume.called(file);
        let view = self.volume.meta.view();
        let head = match view.manifest(file)? {
            None => FileHead::default(),
            Some(bytes) => match FileHead::decode(&bytes) {
                Some(head) => head,
                None => {
                    self.report
                        .broken(format!("{called}: its head has no meaning"));
                    return Ok(());
                }
            },
        };
        let numbers: Vec<u64> = view
            .deltas(file)?
            .into_iter()
            .map(|(number, _)| number)
            .collect();
        if numbers != (head.first_delta..head.next_delta).collect::<Vec<u64>>() {
            self.report
                .broken(format!("{called}: its deltas are not all there"));
        }
        let pieces: BTreeMap<u32, u64> = view
            .inlines(file)?
            .into_iter()
            .map(|(piece, bytes)| (piece, bytes.len() as u64))
            .collect();
        if pieces.values().sum::<u64>() != u64::from(head.inline_bytes) {
            self.report.broken(format!(
                "{called}: its bytes in the metadata are not all there"
            ));
        }
        if pieces
            .keys()
            .next_back()
            .is_some_and(|last| *last >= head.next_piece)
        {
            self.report.broken(format!(
                "{called}: a piece has a number that was not given out"
            ));
        }
        if let Some(base) = head.base {
            self.copies(&called, base);
        }
        let open = self.volume.use_file(file)?;
        let map = self.volume.frozen_view(&open);
        let mut windows: HashMap<u32, Arc<WindowRecord>> = HashMap::new();
        let mut sets: BTreeSet<SetId> = BTreeSet::new();
        let mut ranges: Ranges = HashMap::new();
        map.each_window(|record| {
            self.window(&called, &head, &record, members, &mut ranges);
            sets.insert(record.set);
            if !record.parity.is_empty() {
                sets.insert(record.parity_set);
            }
            windows.insert(record.no.0, record);
            Ok(())
        })?;
        map.each(|extent| {
            let length = extent.range.end - extent.range.start;
            let wrong = match extent.source {
                Source::Hole | Source::Dropped => None,
                _ if extent.range.start < BEYOND && extent.range.end > size => {
                    Some("lies behind the end of the file")
                }
                Source::Inline { piece, offset } => match pieces.get(&piece) {
                    None => Some("leads to a piece that is not there"),
                    Some(bytes) if u64::from(offset) + length > *bytes => {
                        Some("is longer than its piece")
                    }
                    Some(_) => None,
                },
                Source::Block { block, offset } => {
                    let window = windows.get(&block.window.0);
                    match window.map(|window| window.block(block.index)) {
                        None => Some("leads to a window that is not there"),
                        Some(None) => Some("leads to a block that is not there"),
                        Some(Some(record))
                            if u64::from(offset) + length > u64::from(record.raw) =>
                        {
                            Some("is longer than its block")
                        }
                        Some(Some(_)) => None,
                    }
                }
            };
            if let Some(wrong) = wrong {
                let at = extent.range.start;
                self.report
                    .broken(format!("{called}: the extent at {at} {wrong}"));
            }
            Ok(())
        })?;
        self.overlaps(&called, &mut ranges);
        // A base keeps its sets until the next one is written, also those that deltas have emptied.
        let known = open.state.lock().sets.clone();
        for set in &sets {
            if !known.contains(set) {
                self.report
                    .broken(format!("{called}: it does not know of its set {set}"));
            }
        }
        for set in known {
            *self.uses.entry(set).or_default() += 1;
        }
        Ok(())
    }

    /// Every disk's copy of a manifest, page by page.
    fn copies(&mut self, called: &str, base: ManifestRef) {
        for disk in self.volume.disks.list() {
            if self.volume.disks.get(disk.id).is_none() {
                continue;
            }
            let own = Manifest::open(
                self.volume.id,
                base,
                Arc::clone(&self.volume.disks),
                &[disk.id],
                // Nothing that another disk gave may stand in for it.
                Arc::new(ManifestCache::new(0)),
            );
            let read = own.and_then(|own| own.copy_to(&mut |_: &[u8]| Ok(())));
            if let Err(error) = read {
                self.report
                    .mendable(format!("{called}: disk {}: {error}", disk.name));
            }
        }
    }

    fn window(
        &mut self,
        called: &str,
        head: &FileHead,
        record: &WindowRecord,
        members: &BTreeSet<DiskId>,
        ranges: &mut Ranges,
    ) {
        self.report.windows += 1;
        let no = record.no;
        if no.0 >= head.next_window {
            self.report.broken(format!(
                "{called}: window {no} has a number that was not given out"
            ));
        }
        for disk in record.disks.iter().filter(|disk| !members.contains(disk)) {
            self.report.broken(format!(
                "{called}: window {no} lies on disk {disk}, which is none of the volume"
            ));
        }
        let k = usize::from(record.code.k);
        for block in record
            .blocks
            .iter()
            .filter(|block| block.stored > 0 && !block.lost)
        {
            if let Some(disk) = record.disk(block.column.into()) {
                let place = ranges
                    .entry((disk, ObjectName::Blocks(record.set)))
                    .or_default();
                place.push((block.offset, block.offset + u64::from(block.stored)));
            }
        }
        for (disk, shard) in record.disks.iter().skip(k).zip(&record.parity) {
            let place = ranges
                .entry((*disk, ObjectName::Parity(record.parity_set)))
                .or_default();
            let start = shard.offset.saturating_sub(PARITY_HEADER as u64);
            place.push((start, shard.offset + u64::from(record.parity_length)));
        }
    }

    /// No two lie on each other, and the objects are long enough.
    fn overlaps(&mut self, called: &str, ranges: &mut Ranges) {
        for ((disk, object), places) in ranges.iter_mut() {
            places.sort_unstable();
            let name = self.volume.disks.name(*disk);
            if places
                .windows(2)
                .any(|two| matches!(two, [a, b] if a.1 > b.0))
            {
                self.report.broken(format!(
                    "{called}: disk {name}: two things lie on each other in {object:?}"
                ));
            }
            let end = places.iter().map(|(_, end)| *end).max().unwrap_or_default();
            let Some(medium) = self.volume.disks.get(*disk) else {
                continue;
            };
            match medium.length(*object) {
                Ok(length) if length >= end => {}
                Ok(length) => self.report.mendable(format!(
                    "{called}: disk {name}: {object:?} is {length} bytes long and should be {end}; a scrub writes what it lacks"
                )),
                Err(error) => self.report.mendable(format!("{called}: {error}; a scrub writes it anew")),
            }
        }
    }

    /// Sets are counted right.
    fn references(&mut self) -> Result<()> {
        let known = self.volume.meta.view().sets()?;
        for (set, record) in &known {
            let uses = self.uses.get(set).copied().unwrap_or_default();
            if uses != record.references {
                self.report.mendable(format!(
                    "set {set} counts {} files and is needed by {uses}",
                    record.references
                ));
            }
        }
        let counted: BTreeSet<SetId> = known.into_iter().map(|(set, _)| set).collect();
        let uncounted: Vec<SetId> = self
            .uses
            .keys()
            .filter(|set| !counted.contains(set))
            .copied()
            .collect();
        for set in uncounted {
            self.report
                .mendable(format!("set {set} is needed and not known of"));
        }
        Ok(())
    }

    /// What lies on the disks is what is referred to.
    pub(super) fn objects(&mut self) -> Result<()> {
        let view = self.volume.meta.view();
        let mut manifests = BTreeSet::new();
        for file in self.inodes.keys() {
            let head = view
                .manifest(*file)?
                .and_then(|bytes| FileHead::decode(&bytes));
            manifests.extend(head.and_then(|head| head.base).map(|base| base.id));
        }
        for disk in self.volume.disks.list() {
            let Some(medium) = self.volume.disks.get(disk.id) else {
                continue;
            };
            let (mut left, mut bytes) = (0, 0);
            for (object, occupied) in medium.list()? {
                self.report.objects += 1;
                let needed = match object {
                    ObjectName::Blocks(set) | ObjectName::Parity(set) => {
                        self.uses.contains_key(&set)
                    }
                    ObjectName::Manifest(id) => manifests.contains(&id),
                    ObjectName::Label
                    | ObjectName::Database
                    | ObjectName::Journal(_)
                    | ObjectName::Names(_) => true,
                };
                if !needed {
                    left += 1;
                    bytes += occupied;
                }
            }
            if left > 0 {
                self.report.mendable(format!(
                    "disk {}: {left} objects of {bytes} bytes that nothing refers to",
                    disk.name
                ));
            }
        }
        Ok(())
    }
}
