//! Scrub: everything is read and verified, off the media and not out of memory, and what is bad is written good again:
//! the copies of the metadata, the manifests on every disk, all blocks and parity. A rebuild is the same for what
//! certain disks lack, and reads only what it has to.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::{Running, Walked, Work};
use crate::disk::ObjectName;
use crate::ids::{DiskId, FileId, SetId, WindowNo};
use crate::store::disks::DiskStatus;
use crate::store::manifest::{Manifest, ManifestCache, ManifestRef};
use crate::store::parity::PARITY_HEADER;
use crate::store::reader::{BadBlock, WindowReport};
use crate::store::{DiskState, WindowRecord};
use crate::volume::Volume;
use crate::volume::error::Result;
use crate::volume::file::OpenFile;
use crate::volume::filemap::Window;

/// Bytes of a manifest that are written again at once.
const RUN: usize = 1 << 20;

/// How often a rebuild comes back to windows that were changing whenever it came. A file whose commits fail stays so.
const ROUNDS: u32 = 10;

/// The work of a scrub, or of a rebuild.
pub(super) struct Scrub {
    /// The disks that lack something; all disks are looked over without.
    only: Option<Vec<DiskId>>,
    /// How each disk fared when it began.
    before: BTreeMap<DiskId, DiskStatus>,
    /// Whether there is something that it did not look at, so that it tells of no disk that it is whole.
    partial: bool,
    /// Disks that lack something still: it could not be written to them, or not be had.
    lacking: BTreeSet<DiskId>,
    /// Windows that were changing when a rebuild came to their files.
    passed: HashMap<FileId, Passed>,
}

/// Windows of a file that a rebuild passed over, and how often.
struct Passed {
    windows: Vec<WindowNo>,
    times: u32,
}

/// What a task is to make of a window.
enum Standing {
    /// It is committed as it is.
    Committed(Arc<WindowRecord>),
    /// It is committed, and the next commit changes its record.
    Changing(Arc<WindowRecord>),
    /// It is not committed, or is gone.
    Nothing,
}

impl Scrub {
    /// Of all disks; one that goes on where an earlier mount ended it is `partial`.
    pub(super) fn whole(volume: &Volume, partial: bool) -> Scrub {
        Scrub {
            only: None,
            before: fares(volume),
            partial,
            lacking: BTreeSet::new(),
            passed: HashMap::new(),
        }
    }

    pub(super) fn of_rebuilding(volume: &Volume) -> Scrub {
        let before = fares(volume);
        let rebuilding = before
            .values()
            .filter(|disk| disk.state == DiskState::Rebuilding);
        Scrub {
            only: Some(rebuilding.map(|disk| disk.id).collect()),
            before,
            partial: false,
            lacking: BTreeSet::new(),
            passed: HashMap::new(),
        }
    }

    fn is_of(&self, disk: DiskId) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&disk))
    }
}

fn fares(volume: &Volume) -> BTreeMap<DiskId, DiskStatus> {
    let list = volume.disks.list().into_iter();
    list.map(|disk| (disk.id, disk)).collect()
}

/// Names the disks that a scrub could not look at: what it says of the others is no word on them.
fn tell_of_unseen(volume: &Volume, running: &Running) {
    let unseen = running.status.lock().unseen;
    if unseen == 0 {
        return;
    }
    let list = volume.disks.list().into_iter();
    let away = list.filter(|disk| !disk.state.takes_writes());
    let away: Vec<String> = away
        .map(|disk| format!("{} ({})", disk.name, disk.state))
        .collect();
    let which = match away.is_empty() {
        true => "that were away, and are back".to_owned(),
        false => away.join(", "),
    };
    running.problem(format!(
        "{unseen} blocks and shards were not looked at, as they lie on disks {which}; bring these back, or replace them, and \
         scrub again"
    ));
}

/// Whether nothing has counted against a disk since.
fn unblemished(before: &DiskStatus, after: &DiskStatus) -> bool {
    let counted = |disk: &DiskStatus| (disk.read_errors, disk.wrong_bytes, disk.waits);
    counted(before) == counted(after)
}

impl Work for Scrub {
    fn begin(&mut self, volume: &Volume, running: &Running) -> Result<()> {
        if self.only.is_some() {
            return Ok(());
        }
        let report = volume.meta.check_copies(true)?;
        for (disk, what) in &report.bad {
            tracing::warn!(
                disk = volume.disks.name(*disk),
                what,
                "a copy of the metadata is bad"
            );
        }
        running.note(|status| {
            status.verified += report.bytes;
            status.bad += report.bad.len() as u64;
            status.repaired += report.repaired.len() as u64;
        });
        for (disk, what) in &report.bad {
            if !report.repaired.contains(disk) {
                running.problem(format!("disk {}: {what}", volume.disks.name(*disk)));
            }
        }
        Ok(())
    }

    fn file(&mut self, volume: &Volume, running: &Running, file: FileId) -> Result<Walked> {
        let walked = self.look_over(volume, running, file);
        // One that is gone needs nothing any more.
        self.partial |= matches!(&walked, Err(error) if error.errno() != libc::ENOENT);
        walked
    }

    fn finish(&mut self, volume: &Volume, running: &Running) -> Result<bool> {
        if self.only.is_none() {
            volume.tidy()?;
            tell_of_unseen(volume, running);
        }
        let mut online = Vec::new();
        for status in volume.disks.list() {
            // One that failed and came back meanwhile may lack what was looked at before.
            let before = self.before.get(&status.id);
            let Some(before) = before.filter(|before| before.since == status.since) else {
                continue;
            };
            let whole = !self.partial && !self.lacking.contains(&status.id);
            let why = match status.state {
                DiskState::Rebuilding if whole => "it has all that it should have",
                DiskState::Suspect
                    if whole && self.only.is_none() && unblemished(before, &status) =>
                {
                    "a scrub found nothing bad on it"
                }
                DiskState::Rebuilding if self.lacking.contains(&status.id) => {
                    running.problem(format!(
                        "disk {} still lacks something, or may, and stays rebuilding; it is tried again by itself, later and when \
                         another disk comes back",
                        status.name
                    ));
                    continue;
                }
                _ => continue,
            };
            volume.disks.mark_online(status.id, why);
            online.push(status.id);
        }
        volume.forget_hollow(&online)?;
        Ok(true)
    }
}

impl Scrub {
    fn look_over(&mut self, volume: &Volume, running: &Running, file: FileId) -> Result<Walked> {
        let open = volume.use_file(file)?;
        let before = self.passed.remove(&file);
        let (numbers, times) = match before {
            Some(passed) => (passed.windows, passed.times),
            None => {
                let base = open.state.lock().head.base;
                if let Some(base) = base {
                    for disk in volume.disks.usable_for_writing() {
                        if self.is_of(disk) {
                            volume.scrub_manifest(&open, base, disk, running)?;
                        }
                    }
                }
                (volume.windows_of(&open)?, 0)
            }
        };
        let mut passed = Passed {
            windows: Vec::new(),
            times: times + 1,
        };
        let mut asked: HashSet<(DiskId, ObjectName)> = HashSet::new();
        let mut lengths: HashMap<(DiskId, ObjectName), u64> = HashMap::new();
        for no in numbers {
            if running.ends() {
                return Ok(Walked::Done);
            }
            let begun = Instant::now();
            // What is looked at here is not given back meanwhile.
            let _reading = open.reading.read_recursive();
            let record = match volume.standing(&open, no)? {
                Standing::Committed(record) => record,
                // What a disk lacks of it is known once that commit is over. A rebuild waits for it; whoever does not
                // tells of no disk of it that it has all.
                Standing::Changing(record) => {
                    if self.only.is_some() && passed.times <= ROUNDS {
                        passed.windows.push(no);
                    } else {
                        self.lacking.extend(&record.disks);
                    }
                    continue;
                }
                Standing::Nothing => continue,
            };
            let whole = match &self.only {
                Some(only) => volume.holds_all(file, &record, only, &mut lengths, running)?,
                None => false,
            };
            if whole {
                continue;
            }
            for (disk, object) in objects(&record) {
                if asked.insert((disk, object))
                    && let Some(medium) = volume.disks.get(disk)
                {
                    medium.forget(object);
                }
            }
            volume.note_hollow(&record.disks)?;
            let report = volume.reader.repair_window(file, &record);
            let bytes = report.bytes;
            self.lacking.extend(lacking(&record, &report));
            volume.tell_of_window(file, &record, report, running);
            running.note(|status| status.bytes_done += bytes);
            drop(_reading);
            running.pace(volume, bytes, begun.elapsed());
        }
        if passed.windows.is_empty() {
            return Ok(Walked::Done);
        }
        self.passed.insert(file, passed);
        Ok(Walked::Later)
    }
}

/// The disks that lack something of a window after its repair. A block that was stored once is not among it: whoever lacks
/// it will not get it from anybody.
fn lacking(record: &WindowRecord, report: &WindowReport) -> BTreeSet<DiskId> {
    let protected = |bad: &&BadBlock| bad.protected && !record.parity.is_empty();
    let blocks = report
        .bad_blocks
        .iter()
        .filter(protected)
        .map(|bad| bad.disk);
    blocks
        .chain(report.bad_shards.iter().map(|bad| bad.disk))
        .collect()
}

/// Where a window lies.
fn objects(record: &WindowRecord) -> impl Iterator<Item = (DiskId, ObjectName)> + '_ {
    let k = usize::from(record.code.k);
    let disks = record.disks.iter().enumerate();
    disks.filter_map(move |(shard, disk)| {
        if shard < k {
            Some((*disk, ObjectName::Blocks(record.set)))
        } else if record.parity.is_empty() {
            None
        } else {
            Some((*disk, ObjectName::Parity(record.parity_set)))
        }
    })
}

/// Where each shard of a window ends in its object: disk, object, end.
pub(super) fn ends(record: &WindowRecord) -> Vec<(DiskId, ObjectName, u64)> {
    let k = usize::from(record.code.k);
    let mut found = Vec::new();
    for (column, disk) in record.disks.iter().take(k).enumerate() {
        let own = record
            .blocks
            .iter()
            .filter(|block| block.stored > 0 && !block.lost && usize::from(block.column) == column);
        let end = own
            .map(|block| block.offset + u64::from(block.stored))
            .max();
        if let Some(end) = end {
            found.push((*disk, ObjectName::Blocks(record.set), end));
        }
    }
    for (disk, shard) in record.disks.iter().skip(k).zip(&record.parity) {
        let end = shard.offset + u64::from(record.parity_length);
        found.push((*disk, ObjectName::Parity(record.parity_set), end));
    }
    found
}

impl Volume {
    /// The windows of a file that are whole, by their numbers. Some may be yet to be committed.
    pub(super) fn windows_of(&self, file: &OpenFile) -> Result<Vec<WindowNo>> {
        let mut numbers = Vec::new();
        // A commit that is made meanwhile does not take away the manifest that is read.
        let _reading = file.reading.read_recursive();
        self.frozen_view(file).each_window(|record| {
            numbers.push(record.no);
            Ok(())
        })?;
        Ok(numbers)
    }

    /// A window's record, if it is committed.
    pub(super) fn committed_window(
        &self,
        file: &OpenFile,
        no: WindowNo,
    ) -> Result<Option<Arc<WindowRecord>>> {
        Ok(match self.standing(file, no)? {
            Standing::Committed(record) => Some(record),
            Standing::Changing(_) | Standing::Nothing => None,
        })
    }

    /// How a window stands to what is committed.
    fn standing(&self, file: &OpenFile, no: WindowNo) -> Result<Standing> {
        let state = file.state.lock();
        if matches!(state.map.windows.get(&no), Some(Window::Making(_))) {
            return Ok(Standing::Nothing);
        }
        let Some(record) = state.map.record(no)? else {
            return Ok(Standing::Nothing);
        };
        let pending = |set: SetId| state.pending.iter().any(|writer| writer.set() == set);
        let new =
            state.uncommitted.contains(&no) || pending(record.set) || pending(record.parity_set);
        Ok(match new {
            false => Standing::Committed(record),
            // Its blocks are there since an earlier commit.
            true if state.sets.contains(&record.set) => Standing::Changing(record),
            true => Standing::Nothing,
        })
    }

    /// Whether these disks have all of the window that they should have: by the lengths of their objects, and where those
    /// do not tell, by reading it.
    fn holds_all(
        &self,
        file: FileId,
        record: &WindowRecord,
        disks: &[DiskId],
        lengths: &mut HashMap<(DiskId, ObjectName), u64>,
        running: &Running,
    ) -> Result<bool> {
        let hollow = self.hollow()?;
        let (hollow, others): (Vec<DiskId>, Vec<DiskId>) = disks
            .iter()
            .copied()
            .partition(|disk| hollow.contains(disk));
        let long = ends(record).into_iter().all(|(disk, object, end)| {
            if !others.contains(&disk) {
                return true;
            }
            let length = lengths.entry((disk, object)).or_insert_with(|| {
                let medium = self.disks.get(disk);
                medium.map_or(0, |medium| medium.length(object).unwrap_or(0))
            });
            *length >= end
        });
        if !long || hollow.is_empty() {
            return Ok(long);
        }
        let begun = Instant::now();
        let report = self.reader.verify_disks(file, record, &hollow);
        running.note(|status| {
            status.verified += report.bytes;
            status.bytes_done += report.bytes;
        });
        running.pace(self, report.bytes, begun.elapsed());
        Ok(report.is_good())
    }

    /// Notes what was found in a window.
    fn tell_of_window(
        &self,
        file: FileId,
        record: &WindowRecord,
        report: WindowReport,
        running: &Running,
    ) {
        let seen = |disk: DiskId| self.disks.is_online(disk);
        let protected = |index: u16| record.block(index).is_some_and(|block| block.protected);
        let unseen = report
            .bad_blocks
            .iter()
            .filter(|bad| !seen(bad.disk))
            .count()
            + report
                .bad_shards
                .iter()
                .filter(|bad| !seen(bad.disk))
                .count();
        // A block that is stored once, on a disk that is away, may come back with it.
        let gone: Vec<_> = report
            .bad_blocks
            .iter()
            .filter(|bad| report.gone.contains(&bad.index))
            .filter(|bad| seen(bad.disk) || protected(bad.index))
            .collect();
        let bad = report.bad_blocks.len() + report.bad_shards.len() - unseen;
        let lost: u64 = record
            .blocks
            .iter()
            .filter(|block| block.lost)
            .map(|block| u64::from(block.raw))
            .sum();
        if record.blocks.iter().any(|block| block.hasty) {
            // Where metadata was put together anew, no head tells of it.
            self.squeezer.add(file);
        }
        running.note(|status| {
            status.verified += report.bytes;
            status.bad += bad as u64 + u64::from(report.repaired);
            status.repaired += u64::from(report.repaired);
            status.unseen += unseen as u64;
            status.gone += gone.len() as u64;
            status.lost += lost;
        });
        if let Some(first) = gone.first() {
            let bytes: u64 = gone
                .iter()
                .filter_map(|bad| record.block(bad.index))
                .map(|block| u64::from(block.raw))
                .sum();
            running.problem(format!(
                "{}: {bytes} bytes cannot be had any more ({})",
                self.called(file),
                first.cause
            ));
        }
        let unrepaired = report
            .bad_blocks
            .iter()
            .filter(|bad| seen(bad.disk) && !report.gone.contains(&bad.index));
        let shards = report.bad_shards.iter().filter(|bad| seen(bad.disk));
        let what = unrepaired
            .map(|bad| &bad.cause)
            .chain(shards.map(|bad| &bad.cause))
            .next();
        if let Some(what) = what {
            running.problem(format!("{}: not repaired: {what}", self.called(file)));
        }
    }

    /// Reads a disk's copy of a manifest, and writes it again where it is bad.
    fn scrub_manifest(
        &self,
        file: &Arc<OpenFile>,
        reference: ManifestRef,
        disk: DiskId,
        running: &Running,
    ) -> Result<()> {
        let begun = Instant::now();
        let bad = self.mend_manifest(file, reference, disk)?;
        running.note(|status| {
            status.verified += reference.length;
            status.bad += u64::from(bad);
            status.repaired += u64::from(bad);
        });
        running.pace(self, reference.length, begun.elapsed());
        Ok(())
    }

    /// Reads a disk's copy of a manifest off the disk, and writes it again where it is bad; says whether it was.
    pub(in crate::volume) fn mend_manifest(
        &self,
        file: &Arc<OpenFile>,
        reference: ManifestRef,
        disk: DiskId,
    ) -> Result<bool> {
        // It is not given back meanwhile.
        let _reading = file.reading.read_recursive();
        if file.state.lock().head.base != Some(reference) {
            return Ok(false);
        }
        let Some(medium) = self.disks.get(disk) else {
            return Ok(false);
        };
        let object = ObjectName::Manifest(reference.id);
        medium.forget(object);
        let own = Manifest::open(
            self.id,
            reference,
            Arc::clone(&self.disks),
            &[disk],
            // Nothing that another disk gave may stand in for it.
            Arc::new(ManifestCache::new(0)),
        );
        let verified = own.and_then(|own| own.copy_to(&mut |_: &[u8]| Ok(())));
        let Err(error) = verified else {
            return Ok(false);
        };
        let mut offset = 0;
        let mut run: Vec<u8> = Vec::new();
        let mut write = |run: &mut Vec<u8>| -> Result<()> {
            medium.restore(object, offset, run)?;
            offset += run.len() as u64;
            run.clear();
            Ok(())
        };
        self.manifest(reference)?.copy_to(&mut |page| {
            run.extend_from_slice(page);
            if run.len() >= RUN {
                write(&mut run)
            } else {
                Ok(())
            }
        })?;
        if !run.is_empty() {
            write(&mut run)?;
        }
        tracing::warn!(disk = medium.name(), %error, "a copy of a manifest was bad, and is written again");
        Ok(true)
    }
}

/// Bytes of a parity shard with its header.
pub(super) fn shard_bytes(record: &WindowRecord) -> u64 {
    u64::from(record.parity_length) + PARITY_HEADER as u64
}
