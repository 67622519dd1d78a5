//! Making a volume, opening it, closing it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use super::Volume;
use super::error::{Result, VolumeError};
use super::guests::Guests;
use super::handles::Handles;
use super::names;
use super::recover;
use super::rescue;
use super::sweep::Sweeper;
use super::tiers::TierSource;
use crate::config::{CommitMode, Config, DiskConfig};
use crate::disk::{DirectoryDisk, Disk, DiskError, DiskLock, FORMAT, Label, LabelError, LockError};
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
}

impl Default for VolumeOptions {
    fn default() -> Self {
        let usual = meta::Options::new(VolumeId(0));
        VolumeOptions {
            tiers: Arc::new(Guests),
            journal_bytes: usual.journal_bytes,
            checkpoint_bytes: usual.checkpoint_bytes,
        }
    }
}

/// Bytes of manifest pages and windows that are kept.
const MANIFEST_CACHE: u64 = 16 << 20;

/// Threads that read and decompress.
const READERS: usize = 8;

/// A disk of the config, as it was found.
struct Found {
    name: String,
    path: PathBuf,
    disk: Option<Arc<dyn Disk>>,
    label: Option<Label>,
    /// The label is there and cannot be read.
    damaged: bool,
    lock: Option<DiskLock>,
}

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
            .map(|(id, disk)| {
                (
                    *id,
                    DiskRecord {
                        state: DiskState::Member,
                        name: disk.name().to_owned(),
                        joined: now,
                    },
                )
            })
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
        // The labels come last: without all of them the disks are not yet a volume.
        for (id, disk) in &disks {
            Label {
                format: FORMAT,
                volume,
                volume_name: config.name.clone(),
                disk: *id,
                disk_name: disk.name().to_owned(),
                created: now.seconds,
                disks: config.disks.len() as u16,
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
        Self::open_found(config, find(config, mode)?, mode, options)
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
        let found = disks.map(|(disk, medium)| look(disk, medium));
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
            recover::begin(&opened);
        }
        Ok(opened)
    }

    /// Opens a volume whose metadata has to be put together, and tells in `lines` what was found.
    pub(super) fn open_for_rescue(config: &Config, lines: &mut Vec<String>) -> Result<Arc<Volume>> {
        Self::open_or_rescue(
            config,
            find(config, Mode::ReadWrite)?,
            Mode::ReadWrite,
            VolumeOptions::default(),
            Some(lines),
        )
    }

    fn open_or_rescue(
        config: &Config,
        mut found: Vec<Found>,
        mode: Mode,
        options: VolumeOptions,
        report: Option<&mut Vec<String>>,
    ) -> Result<Arc<Volume>> {
        let volume = identify(config, &found)?;
        let ids = number(&found)?;
        let media: Vec<(DiskId, Option<Arc<dyn Disk>>)> = found
            .iter()
            .zip(&ids)
            .map(|(found, id)| (*id, found.disk.clone()))
            .collect();
        let registry = Arc::new(Disks::new(mode == Mode::ReadOnly));
        for ((id, disk), found) in media.iter().zip(&found) {
            registry.insert(*id, found.name.clone(), disk.clone());
        }
        let (journal_bytes, checkpoint_bytes) = (options.journal_bytes, options.checkpoint_bytes);
        let meta = {
            let options = || {
                let registry = Arc::clone(&registry);
                meta::Options {
                    read_only: mode == Mode::ReadOnly,
                    force: mode == Mode::Forced,
                    journal_bytes,
                    checkpoint_bytes,
                    on_disk_failed: Box::new(move |disk, error| registry.mark_faulty(disk, error)),
                    ..meta::Options::new(volume)
                }
            };
            match report {
                None => Meta::open(media.clone(), options())?,
                Some(lines) => rescue::metadata(config, &media, options, lines)?,
            }
        };
        let opened = Self::assemble(config, volume, meta, registry, &found, &ids, options.tiers)?;
        opened
            .locks
            .lock()
            .extend(found.iter_mut().filter_map(|found| found.lock.take()));
        if !opened.read_only {
            opened.relabel(&found, &ids)?;
        }
        Ok(opened)
    }

    fn assemble(
        config: &Config,
        id: VolumeId,
        meta: Meta,
        disks: Arc<Disks>,
        found: &[Found],
        ids: &[DiskId],
        tiers: Arc<dyn TierSource>,
    ) -> Result<Arc<Volume>> {
        let io = |error: std::io::Error| {
            VolumeError::new(libc::EAGAIN, format!("cannot start threads: {error}"))
        };
        let policy = WritePolicy {
            critical: config.policy.critical,
            expendable: config.policy.expendable,
            compression: config.policy.compression,
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
                locks: Mutex::new(Vec::new()),
                paths: found
                    .iter()
                    .zip(ids)
                    .map(|(found, id)| (*id, found.path.display().to_string()))
                    .collect(),
                pipeline,
                cache,
                manifests: Arc::new(ManifestCache::new(MANIFEST_CACHE)),
                readers,
                reads: AtomicUsize::new(0),
                spread_below: std::thread::available_parallelism().map_or(2, usize::from),
                tiers,
                tiering: config.policy.tiering,
                files: Mutex::new(names::Table::default()),
                handles: Handles::default(),
                inodes,
                room: Mutex::default(),
                sweeper,
                invalidate: RwLock::new(None),
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

    /// Writes the label of a disk anew whose label was damaged: what else is on it has proved it a member.
    fn relabel(&self, found: &[Found], ids: &[DiskId]) -> Result<()> {
        let online = self.meta.online();
        for (found, id) in found.iter().zip(ids) {
            let Some(disk) = found
                .disk
                .as_ref()
                .filter(|_| found.damaged && online.contains(id))
            else {
                continue;
            };
            let record = self.meta.view().disk(*id)?;
            let label = Label {
                format: FORMAT,
                volume: self.id,
                volume_name: self.name.clone(),
                disk: *id,
                disk_name: found.name.clone(),
                created: record.map_or(0, |record| record.joined.seconds),
                disks: ids.len() as u16,
            };
            label.write(disk.as_ref())?;
            tracing::warn!(
                disk = found.name,
                "its label was damaged and is written anew"
            );
        }
        Ok(())
    }

    /// Commits what is open and ends all writing in good order. Later calls fail.
    pub fn close(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let committed = if self.read_only {
            Ok(())
        } else {
            self.commit_all()
        };
        self.closed.store(true, Ordering::Release);
        self.sweeper.wait();
        let closed = self.meta.close();
        self.locks.lock().clear();
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

fn busy(error: LockError) -> VolumeError {
    VolumeError::new(libc::EBUSY, error.to_string())
}

/// Finds every disk of the config. One that is not there is not an error here.
fn find(config: &Config, mode: Mode) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    for disk in &config.disks {
        let opened = if mode == Mode::ReadOnly {
            DirectoryDisk::open_untouched(&disk.name, &disk.path)
        } else {
            DirectoryDisk::open(&disk.name, &disk.path)
        };
        let medium: Option<Arc<dyn Disk>> = match opened {
            Ok(directory) => Some(Arc::new(directory)),
            Err(error) => {
                tracing::warn!(disk = disk.name, %error, "missing");
                None
            }
        };
        let mut found = look(disk, medium)?;
        if mode != Mode::ReadOnly && found.disk.is_some() {
            match DiskLock::take(&disk.path) {
                Ok(lock) => found.lock = Some(lock),
                Err(error) => {
                    if matches!(error, LockError::Held { .. }) {
                        return Err(busy(error));
                    }
                    // A disk that cannot be written to is not lost for reading.
                    tracing::warn!(disk = disk.name, %error, "cannot be locked");
                }
            }
        }
        all.push(found);
    }
    Ok(all)
}

/// Looks at the label of a disk of the config.
fn look(disk: &DiskConfig, medium: Option<Arc<dyn Disk>>) -> Result<Found> {
    let mut found = Found {
        name: disk.name.clone(),
        path: disk.path.clone(),
        disk: None,
        label: None,
        damaged: false,
        lock: None,
    };
    let Some(medium) = medium else {
        return Ok(found);
    };
    match Label::read(medium.as_ref()) {
        Ok(label) => found.label = Some(label),
        Err(LabelError::Damaged { .. }) => found.damaged = true,
        Err(error @ LabelError::TooNew { .. }) => return Err(error.into()),
        Err(LabelError::Disk(error)) => {
            tracing::warn!(disk = disk.name, %error, "no disk of a volume; it counts as missing");
            return Ok(found);
        }
    }
    found.disk = Some(medium);
    Ok(found)
}

/// The volume that the disks belong to.
fn identify(config: &Config, found: &[Found]) -> Result<VolumeId> {
    let mut volume: Option<&Label> = None;
    for label in found.iter().filter_map(|found| found.label.as_ref()) {
        match volume {
            Some(other) if other.volume != label.volume => {
                return Err(VolumeError::new(
                    libc::EINVAL,
                    format!(
                        "disk {} belongs to volume {} ({}), and disk {} to volume {} ({}); name the disks of one \
                         volume in {}",
                        other.disk_name,
                        other.volume_name,
                        other.volume,
                        label.disk_name,
                        label.volume_name,
                        label.volume,
                        config.file.display()
                    ),
                ));
            }
            Some(_) => {}
            None => volume = Some(label),
        }
    }
    // Whether enough disks are here to write is a question of all of them, not of those that the config names.
    if let Some(label) = volume
        && usize::from(label.disks) > found.len()
    {
        return Err(VolumeError::new(
            libc::EINVAL,
            format!(
                "volume {} has {} disks, and {} names only {}; name all of them, those too that are gone",
                label.volume_name,
                label.disks,
                config.file.display(),
                found.len()
            ),
        ));
    }
    volume.map(|label| label.volume).ok_or_else(|| {
        VolumeError::new(
            libc::ENODEV,
            format!(
                "none of the disks in {} holds a volume: are they mounted? `parsfs init` makes a new volume",
                config.file.display()
            ),
        )
    })
}

/// The numbers of the disks: what their labels say, and for those without one the numbers that are left.
fn number(found: &[Found]) -> Result<Vec<DiskId>> {
    let mut taken: Vec<(DiskId, &str)> = Vec::new();
    for disk in found {
        let Some(label) = &disk.label else { continue };
        if let Some((_, other)) = taken.iter().find(|(id, _)| *id == label.disk) {
            return Err(VolumeError::new(
                libc::EINVAL,
                format!(
                    "disks {other} and {} are both disk {} of the volume: one is a copy of the other; take one away",
                    disk.name, label.disk
                ),
            ));
        }
        taken.push((label.disk, &disk.name));
    }
    let mut left = (0..)
        .map(DiskId)
        .filter(|id| taken.iter().all(|(taken, _)| taken != id));
    let mut ids = Vec::new();
    for disk in found {
        let id = match &disk.label {
            Some(label) => label.disk,
            None => left.next().unwrap_or_default(),
        };
        ids.push(id);
    }
    Ok(ids)
}
