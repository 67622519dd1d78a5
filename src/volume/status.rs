//! What an administrator is shown of a volume and of a file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::Volume;
use super::annex::ANNEX;
use super::error::Result;
use super::file::{FileCondition, OpenFile};
use super::head::FileHead;
use super::mended::{Losses, Lost};
use super::tasks::TaskStatus;
use crate::ids::{DiskId, FileId};
use crate::meta::{FileKind, Key, Read, Records, Table};
use crate::store::parity::PARITY_HEADER;
use crate::store::{DiskState, Source, WindowRecord};

/// Windows that an inspection lists one by one.
const WINDOWS_LISTED: usize = 64;

/// A volume at a glance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The name in the config.
    pub volume: String,
    /// The volume's identity.
    pub id: String,
    /// `read-write` or `read-only`.
    pub mode: String,
    /// Durable metadata transactions so far.
    pub epoch: u64,
    /// The code of critical bytes.
    pub policy_critical: String,
    /// The code of expendable bytes.
    pub policy_expendable: String,
    /// The disks.
    pub disks: Vec<DiskStatus>,
    /// What there is.
    pub files: FileCounts,
    /// Bytes of committed files on the disks, without metadata.
    pub stored: StoredBytes,
    /// What is not done yet.
    pub owed: Owed,
    /// The task that runs, or the last one.
    pub task: Option<Box<TaskStatus>>,
    /// Bytes of file data that the volume holds in all under its policy.
    pub capacity_total: u64,
    /// Bytes of incompressible critical data that it can still take.
    pub capacity_free: u64,
}

/// A disk at a glance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub path: String,
    /// `online`, `suspect`, `faulty`, `missing` or `rebuilding`.
    pub state: String,
    /// All its bytes.
    pub total: u64,
    /// Bytes that can still be written.
    pub free: u64,
    /// Bytes of this volume on it.
    pub used: u64,
    /// Why it is not online.
    pub note: Option<String>,
    /// Reads that failed in this mount.
    pub read_errors: u32,
    /// Times that it gave other bytes than were written, or lacked them, in this mount.
    pub wrong_bytes: u32,
    /// Times that it did not answer in time, in this mount.
    pub waits: u32,
}

/// What there is in a volume.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FileCounts {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Links, fifos, devices, sockets.
    pub other: u64,
    /// Files with bytes that are not committed.
    pub open: u64,
    /// Files that are being committed.
    pub committing: u64,
    /// Files with all the redundancy that was asked for.
    pub protected: u64,
    /// Files of which parts are read by reconstruction only, or have less redundancy than asked for.
    pub degraded: u64,
    /// Files that are read through a view from which a guest can go on although bytes are gone.
    pub mended: u64,
    /// Files of which bytes are known to be gone.
    pub damaged: u64,
}

/// Bytes of committed files on the disks.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct StoredBytes {
    /// Protected blocks and their parity.
    pub critical: u64,
    /// Blocks under no parity.
    pub expendable: u64,
}

/// What is not done yet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Owed {
    /// Bytes in memory for writing.
    pub bytes_not_committed: u64,
    /// Commits under way.
    pub commits_running: u64,
    /// Files that wait to be compacted.
    pub compactions_waiting: u64,
    /// Bytes on the disks that are yet to be compressed, about.
    #[serde(default)]
    pub bytes_to_compress: u64,
}

/// A file, looked into.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Inspection {
    /// Its number.
    pub file: u64,
    /// Every path of it in the mount.
    pub paths: Vec<String>,
    /// `open`, `committing`, `protected`, `degraded`, `mended` or `damaged`.
    pub state: String,
    /// What is lost of it, by class.
    pub lost: Vec<LostLine>,
    /// Bytes.
    pub size: u64,
    /// Runs of bytes that lie somewhere.
    pub extents: u64,
    /// Blocks.
    pub blocks: u64,
    /// Windows.
    pub windows: u64,
    /// Bytes in the metadata.
    pub inline_bytes: u64,
    /// Bytes of the file that are holes, or zeros that were written: stored nowhere.
    pub hole_bytes: u64,
    /// The format, if it is a snapshot's.
    pub format: Option<String>,
    /// The guest, if one was found.
    pub guest: Option<String>,
    /// Why all of a snapshot is critical.
    pub no_guest: Option<String>,
    /// Pages by class, if it is a snapshot.
    pub classes: BTreeMap<String, u64>,
    /// Bytes of what is known of the file's guest, kept with it.
    pub insight_bytes: u64,
    /// Bytes of the file that the policy gave up.
    pub dropped_bytes: u64,
    /// Bytes by tier.
    pub tiers: Vec<TierBytes>,
    /// Bytes of parity on the disks.
    pub parity_bytes: u64,
    /// Bytes of manifests and inline pieces, on all disks.
    pub metadata_bytes: u64,
    /// What each disk holds of it.
    pub disks: Vec<DiskShare>,
    /// The codes of its windows.
    pub codes: Vec<String>,
    /// Segment sets.
    pub sets: u64,
    /// The first windows, one by one.
    pub window_list: Vec<WindowLine>,
}

/// What is lost of one class of pages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LostLine {
    /// The class, or `framing`, `dead`, `unknown`.
    pub class: String,
    /// Pages of which bytes are lost.
    pub pages: u64,
    /// Lost bytes.
    pub bytes: u64,
    /// What is read of them: `mended`, `zeros` or `error`.
    pub reads: String,
}

/// Bytes of one tier.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TierBytes {
    /// `critical` or `expendable`.
    pub tier: String,
    /// Bytes of the file.
    pub logical: u64,
    /// Bytes in blocks on the disks, without parity.
    pub stored: u64,
}

/// What one disk holds of a file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DiskShare {
    /// The disk.
    pub disk: String,
    /// Blocks.
    pub blocks: u64,
    /// Bytes of blocks.
    pub data_bytes: u64,
    /// Bytes of parity.
    pub parity_bytes: u64,
}

/// One window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WindowLine {
    /// Its number.
    pub no: u32,
    /// Its code.
    pub code: String,
    /// Its blocks.
    pub blocks: u64,
    /// The disks of its columns.
    pub columns: Vec<String>,
    /// The disks of its parity; none when nothing in it is protected.
    pub parity: Vec<String>,
    /// Bytes on the disks, parity included.
    pub stored: u64,
    /// Bytes of the file that its blocks hold, dead ones included.
    pub raw: u64,
}

impl LostLine {
    fn of((class, reads, lost): (&'static str, &'static str, Lost)) -> LostLine {
        LostLine {
            class: class.to_owned(),
            pages: lost.pages,
            bytes: lost.bytes,
            reads: reads.to_owned(),
        }
    }
}

impl Volume {
    /// The volume at a glance.
    pub fn status(&self) -> Result<Status> {
        // Who asks wants to know of now.
        self.pipeline.room.forget();
        let capacity = self.capacity()?;
        let policy = &self.pipeline.policy;
        let (files, waiting) = self.count_files()?;
        let (stored, bytes_to_compress) = self.stored_bytes()?;
        Ok(Status {
            volume: self.name.clone(),
            id: self.id.to_string(),
            mode: if self.read_only {
                "read-only"
            } else {
                "read-write"
            }
            .to_owned(),
            epoch: self.meta.mark().epoch.0,
            policy_critical: policy.critical.to_string(),
            policy_expendable: match self.tiering.drop {
                true => "drop".to_owned(),
                false => policy.expendable.to_string(),
            },
            disks: self.disk_statuses(),
            owed: Owed {
                bytes_not_committed: self.pipeline.budget.held(),
                commits_running: files.committing,
                compactions_waiting: waiting,
                bytes_to_compress,
            },
            files,
            stored,
            task: self.task()?.map(Box::new),
            capacity_total: capacity.total,
            capacity_free: capacity.free,
        })
    }

    /// The sums that the heads of all files tell, and the bytes of them that are yet to be compressed.
    fn stored_bytes(&self) -> Result<(StoredBytes, u64)> {
        let view = self.meta.view();
        let mut stored = StoredBytes::default();
        for found in view.scan(&Key::table_prefix(Table::Manifest)) {
            let (_, value) = found?;
            if let Some(head) = FileHead::decode(&value) {
                stored.critical += head.stored.saturating_sub(head.unprotected);
                stored.expendable += head.unprotected;
            }
        }
        let hasty = view.all_hasty()?.into_iter().map(|(_, bytes)| bytes).sum();
        Ok((stored, hasty))
    }

    fn disk_statuses(&self) -> Vec<DiskStatus> {
        let space = self.pipeline.room.space();
        let list = self.disks.list().into_iter();
        list.map(|status| {
            let note = match (status.leaving, status.note.is_empty()) {
                (true, _) => Some("what it holds is being moved to other disks".to_owned()),
                (false, true) => None,
                (false, false) => Some(status.note.clone()),
            };
            let used = match self.disks.ask(status.id, |disk| disk.list()) {
                Some(Ok(objects)) => objects.iter().map(|(_, bytes)| bytes).sum(),
                Some(Err(_)) | None => 0,
            };
            let space = space.get(&status.id).copied().unwrap_or_default();
            let path = self
                .paths
                .lock()
                .iter()
                .find(|(id, _)| *id == status.id)
                .map(|(_, path)| path.clone());
            DiskStatus {
                name: status.name,
                path: path.unwrap_or_default(),
                state: status.state.to_string(),
                total: space.total,
                free: space.free,
                used,
                note,
                read_errors: status.read_errors,
                wrong_bytes: status.wrong_bytes,
                waits: status.waits,
            }
        })
        .collect()
    }

    fn count_files(&self) -> Result<(FileCounts, u64)> {
        let mut counts = FileCounts::default();
        let view = self.meta.view();
        for found in view.files() {
            let (_, inode) = found?;
            match inode.kind {
                FileKind::Regular => counts.files += 1,
                FileKind::Directory => counts.directories += 1,
                _ => counts.other += 1,
            }
        }
        for file in self.files_in_use() {
            // Whoever lets go of it meanwhile takes nothing away.
            let Ok(file) = self.use_file(file.id) else {
                continue;
            };
            match self.condition(&file)? {
                FileCondition::Open => counts.open += 1,
                FileCondition::Committing => counts.committing += 1,
                FileCondition::Mended => counts.mended += 1,
                FileCondition::Damaged => counts.damaged += 1,
                FileCondition::Protected | FileCondition::Degraded => {}
            }
        }
        let rest = counts
            .files
            .saturating_sub(counts.open + counts.committing + counts.mended + counts.damaged);
        if self.disks.all_online() {
            counts.protected = rest;
        } else {
            // Which of them has bytes on the disks that are gone, only an inspection of each tells.
            let gone = self
                .disks
                .list()
                .iter()
                .filter(|status| status.state == DiskState::Missing)
                .count();
            if gone > usize::from(self.pipeline.policy.critical.m) {
                counts.damaged += rest;
            } else {
                counts.degraded = rest;
            }
        }
        let waiting = self
            .files_in_use()
            .iter()
            .filter(|file| self.wants_compaction(file))
            .count();
        Ok((counts, waiting as u64))
    }

    /// What a file's bytes are worth now, as far as it is known: what is lost of a file that nobody reads is not looked for.
    pub(super) fn condition(&self, file: &OpenFile) -> Result<FileCondition> {
        let losses = {
            let state = file.state.lock();
            let mended = state.mended.as_ref();
            mended.map(|mended| mended.view.losses().clone())
        };
        self.condition_with(file, losses.as_ref())
    }

    /// The same for a file of which so much is lost.
    pub(super) fn condition_with(
        &self,
        file: &OpenFile,
        losses: Option<&Losses>,
    ) -> Result<FileCondition> {
        if file.damaged.load(Ordering::Acquire) {
            return Ok(FileCondition::Damaged);
        }
        if file.committing.load(Ordering::Acquire) {
            return Ok(FileCondition::Committing);
        }
        if file.state.lock().is_dirty() {
            return Ok(FileCondition::Open);
        }
        match losses {
            Some(losses) if losses.is_mended() => return Ok(FileCondition::Mended),
            Some(losses) if losses.iter().next().is_some() => return Ok(FileCondition::Damaged),
            Some(_) | None => {}
        }
        let mut condition = FileCondition::Protected;
        let critical = self.pipeline.policy.critical;
        // A commit that is made meanwhile does not take away the manifest that is read.
        let _reading = file.reading.read_recursive();
        self.frozen_view(file).each_window(|window| {
            let protected = window.blocks.iter().any(|block| block.protected);
            let missing = |disk: &&DiskId| self.disks.state(**disk) == DiskState::Missing;
            let gone = window.disks.iter().filter(missing).count();
            let offline = window
                .disks
                .iter()
                .any(|disk| !self.disks.state(*disk).is_whole());
            if protected && gone > usize::from(window.code.m) {
                condition = FileCondition::Damaged;
            } else if condition == FileCondition::Protected
                && (offline || protected && window.code.m < critical.m)
            {
                condition = FileCondition::Degraded;
            }
            Ok(())
        })?;
        Ok(condition)
    }

    /// The word for what a file is worth now, and what is lost of it. Looks for what may be lost, which takes long.
    pub fn worth(&self, file: FileId) -> Result<(&'static str, Losses)> {
        let open = self.use_file(file)?;
        let now = self.condition(&open)?;
        if matches!(now, FileCondition::Open | FileCondition::Committing) {
            return Ok((now.word(), Losses::default()));
        }
        let losses = self.losses(&open);
        let condition = self.condition_with(&open, losses.as_ref())?;
        Ok((condition.word(), losses.unwrap_or_default()))
    }

    /// Looks into a file.
    pub fn inspect(&self, file: FileId) -> Result<Inspection> {
        let open = self.use_file(file)?;
        let losses = self.losses(&open);
        let (_hurry, _turn) = self.turn_of(&open);
        let mut found = Inspection {
            file: file.0,
            paths: self
                .paths(file)?
                .iter()
                .map(|path| String::from_utf8_lossy(path).into_owned())
                .collect(),
            state: self
                .condition_with(&open, losses.as_ref())?
                .word()
                .to_owned(),
            lost: losses
                .iter()
                .flat_map(Losses::iter)
                .map(LostLine::of)
                .collect(),
            ..Inspection::default()
        };
        let (size, base, stored_inline) = {
            let state = open.state.lock();
            (
                state.size,
                state.map.base.as_ref().map_or(0, |base| base.length()),
                state.inline_bytes,
            )
        };
        found.size = size;
        if let Some(insight) = self.insight(&open)? {
            found.format = Some(insight.format.to_string());
            match &insight.guest {
                Ok(guest) => found.guest = Some(guest.to_string()),
                Err(why) => found.no_guest = Some(why.clone()),
            }
            let counts = insight.counts.iter().filter(|(_, pages)| *pages > 0);
            found.classes = counts
                .map(|(class, pages)| (class.name().to_owned(), *pages))
                .collect();
        }
        // A commit that is made meanwhile does not take away the manifest that is read.
        let _reading = open.reading.read_recursive();
        let view = self.frozen_view(&open);
        let mut live: BTreeMap<(u32, u16), u64> = BTreeMap::new();
        view.each(|extent| {
            let length = extent.range.end - extent.range.start;
            if extent.range.start >= ANNEX.start {
                found.insight_bytes += length;
                return Ok(());
            }
            match extent.source {
                Source::Hole | Source::Zeros => found.hole_bytes += length,
                Source::Dropped => found.dropped_bytes += length,
                Source::Inline { .. } => {
                    found.extents += 1;
                    found.inline_bytes += length;
                }
                Source::Block { block, .. } => {
                    found.extents += 1;
                    *live.entry((block.window.0, block.index)).or_default() += length;
                }
            }
            Ok(())
        })?;
        let (mut critical, mut expendable) = ((found.inline_bytes, 0), (0, 0));
        let mut shares: BTreeMap<DiskId, DiskShare> = BTreeMap::new();
        let mut codes: BTreeSet<String> = BTreeSet::new();
        let mut sets = BTreeSet::new();
        view.each_window(|window| {
            codes.insert(window.code.to_string());
            sets.insert(window.set);
            let mut line = self.window_line(&window);
            for (index, block) in window
                .blocks
                .iter()
                .enumerate()
                .filter(|(_, block)| block.stored > 0)
            {
                found.blocks += 1;
                let alive = live.get(&(window.no.0, index as u16)).copied().unwrap_or(0);
                let tier = if block.protected || self.pipeline.policy.critical.m == 0 {
                    &mut critical
                } else {
                    &mut expendable
                };
                tier.0 += alive;
                tier.1 += u64::from(block.stored);
                line.blocks += 1;
                line.stored += u64::from(block.stored);
                line.raw += u64::from(block.raw);
                if let Some(disk) = window.disk(block.column.into()) {
                    let share = shares.entry(disk).or_default();
                    share.blocks += 1;
                    share.data_bytes += u64::from(block.stored);
                }
            }
            for shard in 0..window.parity.len() {
                sets.insert(window.parity_set);
                let bytes = u64::from(window.parity_length) + PARITY_HEADER as u64;
                found.parity_bytes += bytes;
                line.stored += bytes;
                if let Some(disk) = window.disk(usize::from(window.code.k) + shard) {
                    shares.entry(disk).or_default().parity_bytes += bytes;
                }
            }
            found.windows += 1;
            if found.window_list.len() < WINDOWS_LISTED {
                found.window_list.push(line);
            }
            Ok(())
        })?;
        found.codes = codes.into_iter().collect();
        found.sets = sets.len() as u64;
        found.disks = shares
            .into_iter()
            .map(|(disk, share)| DiskShare {
                disk: self.disks.name(disk),
                ..share
            })
            .collect();
        let copies = self.meta.online().len() as u64;
        found.metadata_bytes = (base + u64::from(stored_inline)) * copies;
        found.tiers = vec![
            TierBytes {
                tier: "critical".into(),
                logical: critical.0,
                stored: critical.1,
            },
            TierBytes {
                tier: "expendable".into(),
                logical: expendable.0,
                stored: expendable.1,
            },
        ];
        Ok(found)
    }

    fn window_line(&self, window: &WindowRecord) -> WindowLine {
        let name = |disk: &DiskId| self.disks.name(*disk);
        let k = usize::from(window.code.k);
        let (columns, parity) = window.disks.split_at(k.min(window.disks.len()));
        WindowLine {
            no: window.no.0,
            code: window.code.to_string(),
            blocks: 0,
            columns: columns.iter().map(name).collect(),
            parity: if window.parity.is_empty() {
                Vec::new()
            } else {
                parity.iter().map(name).collect()
            },
            stored: 0,
            raw: 0,
        }
    }
}
