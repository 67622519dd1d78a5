//! The rules of what files are made of: heads, deltas and manifests can be read, on every disk; extents lead to blocks
//! and pieces that are there; windows lie on disks of the volume, on none twice, and in sets that are known; no two
//! blocks lie on each other; and every object that is referred to is there, and long enough.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::Check;
use crate::disk::ObjectName;
use crate::ids::{DiskId, FileId, SetId};
use crate::meta::{FileKind, Key, Read, Records, Table};
use crate::store::manifest::{Manifest, ManifestCache, ManifestRef};
use crate::store::parity::PARITY_HEADER;
use crate::store::{BEYOND, Source, WindowRecord};
use crate::volume::error::Result;
use crate::volume::head::FileHead;

/// An object of a disk.
type Place = (DiskId, ObjectName);

/// Ranges of objects.
type Ranges = HashMap<Place, Vec<(u64, u64)>>;

/// Where a window's blocks and parity lie, and from where to where.
fn places(record: &WindowRecord) -> impl Iterator<Item = (Place, (u64, u64))> {
    let k = usize::from(record.code.k);
    let blocks = record
        .blocks
        .iter()
        .filter(|block| block.stored > 0 && !block.lost);
    let blocks = blocks.filter_map(|block| {
        let disk = record.disk(block.column.into())?;
        let end = block.offset + u64::from(block.stored);
        Some(((disk, ObjectName::Blocks(record.set)), (block.offset, end)))
    });
    let parity = record.disks.iter().skip(k).zip(&record.parity);
    let parity = parity.map(|(disk, shard)| {
        let start = shard.offset.saturating_sub(PARITY_HEADER as u64);
        let end = shard.offset + u64::from(record.parity_length);
        ((*disk, ObjectName::Parity(record.parity_set)), (start, end))
    });
    blocks.chain(parity)
}

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
                Err(error) => {
                    let what = format!("{called}: {error}");
                    self.unread(what.as_str());
                    self.report.broken(what);
                }
            }
            let new = self.report.problem_count - before;
            if new > 0 {
                tracing::debug!(file = called, new, "problems");
            }
        }
        self.settle()
    }

    /// One file. Its sets are counted as far as they can be read.
    fn file(&mut self, file: FileId, size: u64, members: &BTreeSet<DiskId>) -> Result<()> {
        let mut sets = BTreeSet::new();
        let read = self.content(file, size, members, &mut sets);
        for set in sets {
            *self.uses.entry(set).or_default() += 1;
        }
        read
    }

    fn content(
        &mut self,
        file: FileId,
        size: u64,
        members: &BTreeSet<DiskId>,
        sets: &mut BTreeSet<SetId>,
    ) -> Result<()> {
        let called = self.volume.called(file);
        let view = self.volume.meta.view();
        let head = match view.manifest(file)? {
            None => FileHead::default(),
            Some(bytes) => match FileHead::decode(&bytes) {
                Some(head) => head,
                None => {
                    let what = format!("{called}: its head has no meaning");
                    self.unread(what.as_str());
                    self.report.broken(what);
                    return Ok(());
                }
            },
        };
        sets.extend(&head.sets);
        let numbers: Vec<u64> = view
            .deltas(file)?
            .into_iter()
            .map(|(number, _)| number)
            .collect();
        if numbers != (head.first_delta..head.next_delta).collect::<Vec<u64>>() {
            let what = format!("{called}: its deltas are not all there");
            self.unread(what.as_str());
            self.report.broken(what);
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
        // Nobody has it in use, and one that has lost its last name is there until the next mount removes it.
        let open = match self.volume.load(file) {
            Ok(open) => open,
            Err(error) => {
                if let Some(base) = head.base.and_then(|base| self.volume.manifest(base).ok()) {
                    sets.extend(base.sets().flatten().map(|found| found.set));
                }
                return Err(error);
            }
        };
        // A base keeps its sets until the next one is written, also those that deltas have emptied.
        let known: BTreeSet<SetId> = open.state.lock().sets.iter().copied().collect();
        sets.extend(&known);
        let map = self.volume.frozen_view(&open);
        let mut windows: HashMap<u32, Arc<WindowRecord>> = HashMap::new();
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
                Source::Hole | Source::Dropped | Source::Zeros => None,
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
        self.overlaps(&called, &mut ranges, &windows);
        for set in sets.difference(&known) {
            self.report
                .broken(format!("{called}: it does not know of its set {set}"));
        }
        Ok(())
    }

    /// Every disk's copy of a manifest, page by page.
    fn copies(&mut self, called: &str, base: ManifestRef) {
        let here = self.volume.disks.list().into_iter();
        let here = here.filter(|disk| self.volume.disks.get(disk.id).is_some());
        let here: Vec<(DiskId, String)> = here.map(|disk| (disk.id, disk.name)).collect();
        let bad: Vec<String> = here
            .iter()
            .filter_map(|(disk, name)| {
                let error = self.read_manifest(base, &[*disk]).err()?;
                Some(format!("{called}: disk {name}: {error}"))
            })
            .collect();
        // What one disk lacks may be had from another.
        let all: Vec<DiskId> = here.iter().map(|(disk, _)| *disk).collect();
        let whole = bad.len() < here.len() || self.read_manifest(base, &all).is_ok();
        for what in bad {
            match whole {
                true => self.report.mendable(what),
                false => self.report.broken(what),
            }
        }
    }

    /// Reads all of a manifest as these disks have it.
    fn read_manifest(&self, base: ManifestRef, disks: &[DiskId]) -> Result<()> {
        // Nothing that another disk gave may stand in for it.
        let cache = Arc::new(ManifestCache::new(0));
        let all = Arc::clone(&self.volume.disks);
        let own = Manifest::open(self.volume.id, base, all, disks, cache)?;
        own.copy_to(&mut |_: &[u8]| -> Result<()> { Ok(()) })
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
        for (place, range) in places(record) {
            ranges.entry(place).or_default().push(range);
        }
    }

    /// No two lie on each other, and the objects are long enough.
    fn overlaps(
        &mut self,
        called: &str,
        ranges: &mut Ranges,
        windows: &HashMap<u32, Arc<WindowRecord>>,
    ) {
        // How long those are that are too short, and what to say of them; nothing of a disk that is missing.
        let mut short: HashMap<Place, (u64, Option<String>)> = HashMap::new();
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
            let found = match self.volume.disks.get(*disk) {
                None => (0, None),
                Some(medium) => match medium.length(*object) {
                    Ok(length) if length >= end => continue,
                    Ok(length) => {
                        let what = format!(
                            "{called}: disk {name}: {object:?} is {length} bytes long and should be {end}"
                        );
                        (length, Some(what))
                    }
                    Err(error) => (0, Some(format!("{called}: {error}"))),
                },
            };
            short.insert((*disk, *object), found);
        }
        // Of which of them a window lacks more than its parity gives back.
        let mut gone: HashSet<Place> = HashSet::new();
        for record in windows.values() {
            let lacking: HashSet<Place> = places(record)
                .filter(|(place, (_, end))| {
                    short.get(place).is_some_and(|(length, _)| end > length)
                })
                .map(|(place, _)| place)
                .collect();
            let blocks = lacking
                .iter()
                .any(|(_, object)| matches!(object, ObjectName::Blocks(_)));
            if blocks && lacking.len() > record.parity.len() {
                gone.extend(lacking);
            }
        }
        for (place, (_, what)) in short {
            let Some(what) = what else { continue };
            if gone.contains(&place) {
                self.report
                    .broken(format!("{what}; more is gone of it than parity gives back"));
            } else {
                self.report
                    .mendable(format!("{what}; a scrub writes what it lacks"));
            }
        }
    }

    /// Sets are counted right.
    pub(super) fn references(&mut self) -> Result<()> {
        let known = self.volume.meta.view().sets()?;
        for (set, record) in &known {
            let uses = self.uses.get(set).copied().unwrap_or_default();
            let what = || {
                format!(
                    "set {set} counts {} files and is needed by {uses}",
                    record.references
                )
            };
            if uses > record.references {
                self.report.mendable(what());
            } else if uses < record.references {
                self.superfluous(what());
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
        let mut understood = true;
        // Of files too of which nothing else is known.
        for found in view.scan(&Key::table_prefix(Table::Manifest)) {
            match found.ok().and_then(|(_, bytes)| FileHead::decode(&bytes)) {
                Some(head) => manifests.extend(head.base.map(|base| base.id)),
                None => understood = false,
            }
        }
        let mut sets: BTreeSet<SetId> = self.uses.keys().copied().collect();
        if self.unread.is_some() {
            // They are kept.
            sets.extend(view.sets()?.into_iter().map(|(set, _)| set));
        }
        for disk in self.volume.disks.list() {
            let Some(medium) = self.volume.disks.get(disk.id) else {
                continue;
            };
            let (mut left, mut bytes) = (0, 0);
            for (object, occupied) in medium.list()? {
                self.report.objects += 1;
                let needed = match object {
                    ObjectName::Blocks(set) | ObjectName::Parity(set) => sets.contains(&set),
                    ObjectName::Manifest(id) => !understood || manifests.contains(&id),
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
