//! Making a volume, opening it, closing it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Volume;
use super::ahead::Shelf;
use super::error::{Result, VolumeError};
use super::guests::Guests;
use super::handles::Handles;
use super::mended::KnownLosses;
use super::names;
use super::recover;
use super::rescue;
use super::rest::Rest;
use super::roster::{self, Found, Roster, busy};
use super::sweep::Sweeper;
use super::tasks::{Squeezer, Tasks};
use super::tiers::TierSource;
use crate::config::{CommitMode, Config};
use crate::disk::{
    DirectoryDisk, Disk, DiskError, DiskLock, FORMAT, Label, LabelError, PatientDisk,
};
use crate::ids::{DiskId, VolumeId};
use crate::meta::{self, DiskRecord, DiskState, Meta, MetaError, Records, Timestamp, WriteRecords};
use crate::store::manifest::ManifestCache;
use crate::store::{BlockCache, Budget, Disks, Pipeline, Reader, Workers, WritePolicy};

/// How a volume is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For reading and writing; read-only when fewer than half of the disks are here.
    ReadWrite,
    /// For writing with fewer than half of the disks too, which may turn out to be stale.
    Forced,
    /// Nothing is changed on any disk.
    ReadOnly,
}

/// What tests and later rooms choose besides the config.
#[derive(Debug)]
pub struct VolumeOptions {
    /// Where tiers come from.
    pub tiers: Arc<dyn TierSource>,
    /// A journal is begun anew when it is longer than this and than twice its image. Bytes.
    pub journal_bytes: u64,
    /// So many bytes of changes, and the databases are brought up to the journal.
    pub checkpoint_bytes: u64,
    /// How long after a commit what was stored as it is is compressed at the earliest.
    pub quiet: Duration,
}

/// Who saves a guest often writes the file's header again.
const QUIET: Duration = Duration::from_secs(1);

impl Default for VolumeOptions {
    fn default() -> Self {
        let usual = meta::Options::new(VolumeId(0));
        VolumeOptions {
            tiers: Arc::new(Guests::default()),
            journal_bytes: usual.journal_bytes,
            checkpoint_bytes: usual.checkpoint_bytes,
            quiet: QUIET,
        }
    }
}

/// Bytes of manifest pages and windows that are kept.
const MANIFEST_CACHE: u64 = 16 << 20;

/// Threads that read and decompress.
const READERS: usize = 8;

impl Volume {
    /// Makes a new volume on the config's disks.
    pub fn create(config: &Config) -> Result<()> {
        let mut disks: Vec<Arc<dyn Disk>> = Vec::new();
        let mut locks = Vec::new();
        for disk in &config.disks {
            disks.push(Arc::new(DirectoryDisk::create(&disk.name, &disk.path)?));
            locks.push(DiskLock::take(&disk.path).map_err(busy)?);
        }
        Self::create_on(config, disks)
    }

    /// Makes a new volume on disks that are in hand, in the order of the config. Nobody locks them.
    pub fn create_on(config: &Config, media: Vec<Arc<dyn Disk>>) -> Result<()> {
        let volume = VolumeId(random());
        let now = Timestamp::now();
        let mut disks: Vec<(DiskId, Arc<dyn Disk>)> = Vec::new();
        for ((number, disk), medium) in config.disks.iter().enumerate().zip(media) {
            match Label::read(medium.as_ref()) {
                Ok(label) => {
                    return Err(VolumeError::new(
                        libc::EEXIST,
                        format!(
                            "disk {} ({}) belongs to volume {} ({}) already; empty the directory first if that \
                             volume is to be given up",
                            disk.name,
                            disk.path.display(),
                            label.volume_name,
                            label.volume
                        ),
                    ));
                }
                Err(LabelError::Disk(DiskError::Missing { .. })) => {}
                Err(error) => return Err(error.into()),
            }
            disks.push((DiskId(number as u16), medium));
        }
        let records: Vec<(DiskId, DiskRecord)> = disks
            .iter()
            .map(|(id, disk)| (*id, DiskRecord::new(disk.name(), now)))
            .collect();
        // The owner of the root is whoever makes the volume.
        let (uid, gid) = (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        );
        Meta::create(disks.clone(), meta::Options::new(volume), |update| {
            update.make_root(0o755, uid, gid, now);
            for (id, record) in &records {
                update.put_disk(*id, record);
            }
            Ok(())
        })?;
        let members: Vec<(DiskId, String)> = disks
            .iter()
            .map(|(id, disk)| (*id, disk.name().to_owned()))
            .collect();
        // The labels come last: without all of them the disks are not yet a volume.
        for (id, disk) in &disks {
            Label {
                format: FORMAT,
                volume,
                volume_name: config.name.clone(),
                disk: *id,
                disk_name: disk.name().to_owned(),
                created: now.seconds,
                roster: 1,
                members: members.clone(),
            }
            .write(disk.as_ref())?;
        }
        Ok(())
    }

    /// Opens a volume: elects the newest metadata, brings stale disks up to date, and removes, aside, what
    /// crashes left.
    pub fn open(config: &Config, mode: Mode) -> Result<Arc<Volume>> {
        Self::open_with(config, mode, VolumeOptions::default())
    }

    /// The same with other options.
    pub fn open_with(config: &Config, mode: Mode, options: VolumeOptions) -> Result<Arc<Volume>> {
        Self::open_found(config, roster::find(config, mode)?, mode, options)
    }

    /// Opens a volume on disks that are in hand, in the order of the config; `None` for one that is missing.
    /// Nobody locks them.
    pub fn open_on(
        config: &Config,
        media: Vec<Option<Arc<dyn Disk>>>,
        mode: Mode,
        options: VolumeOptions,
    ) -> Result<Arc<Volume>> {
        let disks = config.disks.iter().zip(media);
        let found = disks.map(|(disk, medium)| roster::look(disk, medium));
        Self::open_found(config, found.collect::<Result<_>>()?, mode, options)
    }

    fn open_found(
        config: &Config,
        found: Vec<Found>,
        mode: Mode,
        options: VolumeOptions,
    ) -> Result<Arc<Volume>> {
        let opened = Self::open_or_rescue(config, found, mode, options, None)?;
        if !opened.read_only {
            recover::orphans(&opened)?;
            opened.keep_health()?;
            opened.forget_disks_that_left(config)?;
            recover::begin(&opened);
            opened.resume_task()?;
            Volume::begin_to_squeeze(&opened);
            Volume::begin_to_look_after(&opened);
        }
        Ok(opened)
    }

    /// Opens a volume whose metadata has to be put together, and tells in `lines` what was found.
    pub(super) fn open_for_rescue(config: &Config, lines: &mut Vec<String>) -> Result<Arc<Volume>> {
        Self::open_or_rescue(
            config,
            roster::find(config, Mode::ReadWrite)?,
            Mode::ReadWrite,
            VolumeOptions::default(),
            Some(lines),
        )
    }

    /// Opens a volume for writing that is to be repaired: nothing works beside the repair. A mount removes what has no
    /// reference, and its squeezer and its task commit, while a repair is still counting what refers to what.
    pub(super) fn open_for_repair(config: &Config) -> Result<Arc<Volume>> {
        let opened = Self::open_or_rescue(
            config,
            roster::find(config, Mode::ReadWrite)?,
            Mode::ReadWrite,
            VolumeOptions::default(),
            None,
        )?;
        if !opened.read_only {
            opened.keep_health()?;
            opened.forget_disks_that_left(config)?;
        }
        Ok(opened)
    }

    fn open_or_rescue(
        config: &Config,
        found: Vec<Found>,
        mode: Mode,
        options: VolumeOptions,
        report: Option<&mut Vec<String>>,
    ) -> Result<Arc<Volume>> {
        let roster = Roster::of(config, &found)?;
        let mut found = roster.assign(config, found)?;
        let media: Vec<(DiskId, Option<Arc<dyn Disk>>)> = found
            .iter()
            .map(|(id, found)| (*id, found.disk.clone().map(PatientDisk::over)))
            .collect();
        let registry = Arc::new(Disks::new(mode == Mode::ReadOnly));
        for ((id, disk), (_, found)) in media.iter().zip(&found) {
            registry.insert(*id, found.name.clone(), disk.clone());
        }
        let (journal_bytes, checkpoint_bytes) = (options.journal_bytes, options.checkpoint_bytes);
        let meta = {
            let options = || {
                let registry = Arc::clone(&registry);
                meta::Options {
                    read_only: mode == Mode::ReadOnly,
                    force: mode == Mode::Forced,
                    least: usize::from(config.policy.critical.m) + 1,
                    journal_bytes,
                    checkpoint_bytes,
                    on_disk_failed: Box::new(move |disk, error| registry.mark_faulty(disk, error)),
                    ..meta::Options::new(roster.volume)
                }
            };
            match report {
                None => Meta::open(media.clone(), options())?,
                Some(lines) => rescue::metadata(&media, options, lines)?,
            }
        };
        let opened = Self::assemble(
            config,
            &roster,
            meta,
            registry,
            &found,
            options.tiers,
            options.quiet,
        )?;
        opened.locks.lock().extend(
            found
                .iter_mut()
                .filter_map(|(id, found)| Some((*id, found.lock.take()?))),
        );
        if !opened.read_only {
            opened.settle_members(&found)?;
        }
        opened.take_up_health(&found)?;
        Ok(opened)
    }

    fn assemble(
        config: &Config,
        roster: &Roster,
        meta: Meta,
        disks: Arc<Disks>,
        found: &[(DiskId, Found)],
        tiers: Arc<dyn TierSource>,
        quiet: Duration,
    ) -> Result<Arc<Volume>> {
        let io = |error: std::io::Error| {
            VolumeError::new(libc::EAGAIN, format!("cannot start threads: {error}"))
        };
        let id = roster.volume;
        let policy = WritePolicy {
            critical: config.policy.critical,
            expendable: config.policy.expendable,
            compression: config.policy.compression,
            compress_later: config.policy.compress_later,
        };
        let budget = Budget::new(config.memory.write);
        let pipeline = Pipeline::start(id, policy, Arc::clone(&disks), budget).map_err(io)?;
        let readers = Workers::start("read", READERS, false).map_err(io)?;
        let cache = Arc::new(BlockCache::new(config.memory.cache));
        let reader = Reader::new(id, Arc::clone(&disks), Arc::clone(&cache))
            .map_err(|error| io(std::io::Error::other(error)))?;
        let read_only = meta.is_read_only();
        let inodes = AtomicU64::new(meta.view().files().count() as u64);
        let mut failed = None;
        let volume = Arc::new_cyclic(|me| {
            let sweeper = Sweeper::start(me.clone());
            let sweeper = sweeper.unwrap_or_else(|error| {
                failed = Some(error);
                Sweeper::none()
            });
            Volume {
                me: me.clone(),
                id,
                name: config.name.clone(),
                read_only,
                closed: AtomicBool::new(false),
                background: config.commit == CommitMode::Background,
                block_size: config.policy.block_size as usize,
                cache_bytes: config.memory.cache,
                meta,
                reader,
                disks,
                locks: Mutex::default(),
                paths: Mutex::new(
                    found
                        .iter()
                        .map(|(id, found)| (*id, found.path.display().to_string()))
                        .collect(),
                ),
                config: config.file.clone(),
                roster: Mutex::new(roster.clone()),
                bell: Arc::default(),
                rest: Rest::default(),
                tasks: Tasks::default(),
                squeezer: Squeezer::new(quiet),
                pipeline,
                cache,
                manifests: Arc::new(ManifestCache::new(MANIFEST_CACHE)),
                readers,
                shelf: Shelf::new(config.memory.cache / 2),
                reads: AtomicUsize::new(0),
                reads_aside: AtomicUsize::new(0),
                spread_below: std::thread::available_parallelism().map_or(2, usize::from),
                tiers,
                tiering: config.policy.tiering,
                files: Mutex::new(names::Table::default()),
                loads: super::in_use::Loads::default(),
                handles: Handles::default(),
                inodes,
                room: Mutex::default(),
                sweeper,
                lost: config.mount.lost,
                known_losses: KnownLosses::default(),
                aside: Mutex::new(Vec::new()),
            }
        });
        // A disk that fails in one room fails in all.
        let weak = Arc::downgrade(&volume);
        volume.disks.on_faulty(Box::new(move |disk, why| {
            if let Some(volume) = weak.upgrade() {
                let why = MetaError::Elsewhere {
                    why: why.to_owned(),
                };
                volume.meta.leave_out(disk, &why);
            }
        }));
        match failed {
            Some(error) => Err(io(error)),
            None => Ok(volume),
        }
    }

    /// Makes the metadata and the labels agree on which disks there are, and what they are called.
    fn settle_members(&self, found: &[(DiskId, Found)]) -> Result<()> {
        let now = Timestamp::now();
        let records: BTreeMap<DiskId, DiskRecord> = self.meta.view().disks()?.into_iter().collect();
        let mut members = Vec::new();
        for (id, found) in found {
            let known = records.get(id);
            let record = match known {
                // It left, and a crash kept its label from saying so.
                Some(record) if record.state == DiskState::Left => continue,
                Some(record) => DiskRecord {
                    name: found.name.clone(),
                    ..record.clone()
                },
                None => DiskRecord::new(&found.name, now),
            };
            if known != Some(&record) {
                self.meta.update(|update| -> Result<()> {
                    update.put_disk(*id, &record);
                    Ok(())
                })?;
            }
            members.push((*id, found.name.clone()));
        }
        let labels: BTreeMap<DiskId, Label> = found
            .iter()
            .filter_map(|(id, found)| Some((*id, found.label.clone()?)))
            .collect();
        self.relabel(members, &labels)
    }

    /// Writes the labels of all disks that take writes and do not tell of these members.
    pub(super) fn relabel(
        &self,
        members: Vec<(DiskId, String)>,
        known: &BTreeMap<DiskId, Label>,
    ) -> Result<()> {
        let mut roster = self.roster.lock();
        if roster.members != members {
            roster.number += 1;
            roster.members = members;
        }
        let online = self.meta.online();
        let view = self.meta.view();
        for (id, name) in &roster.members {
            let Some(disk) = self.disks.get(*id).filter(|_| online.contains(id)) else {
                continue;
            };
            let label = Label {
                format: FORMAT,
                volume: self.id,
                volume_name: self.name.clone(),
                disk: *id,
                disk_name: name.clone(),
                created: view.disk(*id)?.map_or(0, |record| record.joined.seconds),
                roster: roster.number,
                members: roster.members.clone(),
            };
            if known.get(id) != Some(&label)
                && let Err(error) = label.write(disk.as_ref())
            {
                tracing::warn!(disk = name, %error, "its label cannot be written");
                if !matches!(&error, LabelError::Disk(error) if error.is_own()) {
                    self.disks.mark_faulty(*id, error);
                }
            }
        }
        Ok(())
    }

    /// Commits what is open and ends all writing in good order. Later calls fail. A task that does not stop, since a disk hangs, is
    /// left behind, and the locks of the disks with it until it has ended.
    pub fn close(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.bell.stop();
        // First of all: what comes next may have to wait for a disk that hangs. What of this fails is tried again below.
        if !self.read_only
            && let Err(error) = self.commit_all()
        {
            tracing::warn!(%error, "not all could be committed at once");
        }
        let stopped = self.stop_task();
        {
            // What it is at is done at once, and the rest left to the next mount.
            let _hurry = self.pipeline.hurry();
            self.squeezer.stop();
        }
        let committed = if self.read_only {
            Ok(())
        } else {
            self.commit_all()
        };
        self.closed.store(true, Ordering::Release);
        // The disks are another's to write to from here on, and what these keep in use is given back before.
        self.wait_for_reads_aside();
        self.sweeper.wait();
        let closed = self.meta.close();
        if stopped {
            self.locks.lock().clear();
        }
        committed?;
        Ok(closed?)
    }
}

fn random() -> u128 {
    let mut bytes = [0; 16];
    // The kernel's random numbers cannot fail once it has started; a clash would need 2^64 volumes.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u128::from_le_bytes(bytes)
}
