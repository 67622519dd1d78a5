//! Making the metadata of a new volume, opening that of an old one, and saving what can be saved.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::Meta;
use super::commit::{Commit, MOUNTS, random_generation};
use super::database::{Database, READ_CACHE, Snapshot, State as Reached, Sums, WRITE_CACHE};
use super::error::{MetaError, Result};
use super::flusher::{self, Wake};
use super::history::Mark;
use super::inner::{Inner, State, Writer};
use super::names::{self, Names, Saved};
use super::rebuild::{
    advance, copy, database_in_memory, disk_records, first_database, open_journals, salvage,
    settings,
};
use super::records::{DiskHealth, DiskRecord};
use super::recovery::{self, Found, Plan, images, look, plan};
use super::replica::Replica;
use super::report::RescueReport;
use super::table::{Key, Value};
use super::update::Update;
use crate::disk::{Disk, DiskError, ObjectName};
use crate::ids::{DiskId, Epoch, VolumeId};
use crate::threads::side_by_side;

/// How much of an object is read at once. Bytes.
const READ: u64 = 1 << 20;

/// Called, once a disk, when a disk no longer takes metadata. It may be called from any thread and must not
/// call back into the metadata.
pub type OnDiskFailed = Box<dyn Fn(DiskId, &MetaError) + Send + Sync>;

/// How metadata is opened and kept.
pub struct Options {
    /// The volume that the disks belong to.
    pub volume: VolumeId,
    /// Write nothing to any disk.
    pub read_only: bool,
    /// Write with fewer than half of the volume's disks too. Those that are here may be stale.
    pub force: bool,
    /// Told of disks that fail.
    pub on_disk_failed: OnDiskFailed,
    /// Faulty disks take no part as long as there are so many others.
    pub least: usize,
    /// After this time a change is made durable though nobody asked.
    pub flush_after: Duration,
    /// At least this often the databases are brought up to the journal.
    pub checkpoint_after: Duration,
    /// The same when so many bytes have changed.
    pub checkpoint_bytes: u64,
    /// A journal is begun anew when it is longer than this and than twice its image. Bytes.
    pub journal_bytes: u64,
}

impl Options {
    /// The usual ones.
    pub fn new(volume: VolumeId) -> Options {
        Options {
            volume,
            read_only: false,
            force: false,
            on_disk_failed: Box::new(|_, _| {}),
            least: 1,
            flush_after: Duration::from_secs(1),
            checkpoint_after: Duration::from_secs(30),
            checkpoint_bytes: 4 << 20,
            journal_bytes: 32 << 20,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("volume", &self.volume)
            .field("read_only", &self.read_only)
            .field("force", &self.force)
            .finish_non_exhaustive()
    }
}

impl Update {
    /// Counts mounts as if there had been so many: for metadata that is made anew over what older metadata
    /// gave numbers to.
    pub fn count_mounts(&mut self, mounts: u32) {
        self.put(Key::setting(MOUNTS), &mounts.to_le_bytes());
    }
}

/// A volume's disks in the order of its table; none for one that is not here.
pub type Disks = Vec<(DiskId, Option<Arc<dyn Disk>>)>;

impl Meta {
    /// Makes the metadata of a new volume on its disks, which must all be well, and closes it again. `fill`
    /// puts in what is there from the beginning: the root, the disks.
    pub fn create(
        disks: Vec<(DiskId, Arc<dyn Disk>)>,
        options: Options,
        fill: impl FnOnce(&mut Update) -> Result<()>,
    ) -> Result<()> {
        let volume = options.volume;
        let mark = Mark {
            epoch: Epoch(0),
            generation: random_generation(),
            fingerprint: 0,
        };
        let name: Value = mark.generation.to_le_bytes().as_slice().into();
        let first = [(Key::generation(mark.epoch), Some(name))];
        let mut found = Vec::new();
        let mut databases = Vec::new();
        let mut all_sums = Vec::new();
        for (id, disk) in &disks {
            let holds = disk
                .list()?
                .into_iter()
                .any(|(object, _)| matches!(object, ObjectName::Journal(_) | ObjectName::Database));
            if holds {
                return Err(MetaError::NotEmpty {
                    disk: disk.name().to_owned(),
                });
            }
            let sums = Arc::default();
            let database = Database::create(&**disk, &sums, WRITE_CACHE)?;
            database.apply_changes(&first, Some(Reached { volume, mark }))?;
            databases.push(Arc::new(database));
            all_sums.push(sums);
            found.push(look(*id, disk, volume, true)?);
        }
        let base = databases.first().ok_or(MetaError::Nothing)?;
        let all: Vec<&Found> = found.iter().collect();
        let mut broken = None;
        let mut failed = |_, error| broken = Some(error);
        let commit = open_journals(&all, &found, None, mark, base, volume, &mut failed)?;
        if let Some(error) = broken {
            return Err(error);
        }
        drop(databases);
        let replicas = replicas(
            disks
                .into_iter()
                .zip(all_sums)
                .map(|((id, disk), sums)| (id, disk, sums)),
        );
        let snapshot = first_snapshot(&replicas, mark)?;
        let count = replicas.len();
        let opened = Opened {
            read_only: false,
            disks_of_volume: count,
            disks_needed: count,
            replicas,
            excluded: Vec::new(),
            was_away: Vec::new(),
        };
        let meta = start(options, opened, (commit, Names::default()), snapshot)?;
        meta.update(fill)?;
        meta.close()
    }

    /// Opens the metadata of a volume: finds the newest history, brings every disk up to it, and begins a
    /// generation. With fewer than half of the disks it is read-only unless forced.
    pub fn open(disks: Disks, options: Options) -> Result<Meta> {
        Self::open_or_rescue(disks, options, None)
    }

    /// Opens the metadata like `open`, and where that is not possible puts together what is still readable
    /// on any disk. Histories that went apart are refused here too, and fewer than half of the disks, since the others
    /// may hold more. Only `NothingOfUse` says that there is nothing to be lost on the disks that are here.
    pub fn rescue(disks: Disks, options: Options) -> Result<(Meta, RescueReport)> {
        let mut report = RescueReport::default();
        let meta = Self::open_or_rescue(disks, options, Some(&mut report))?;
        Ok((meta, report))
    }

    fn open_or_rescue(
        disks: Disks,
        options: Options,
        mut rescue: Option<&mut RescueReport>,
    ) -> Result<Meta> {
        let volume = options.volume;
        let count = disks.len();
        let here = disks.iter().filter(|(_, disk)| disk.is_some()).count();
        let too_few = |here: usize| 2 * here < count && !options.force;
        let read_only = options.read_only || too_few(here);
        let mut found = look_at_all(&disks, &options, read_only)?;
        // Some of them may not have answered.
        let read_only = read_only || too_few(found.len());
        if rescue.is_some() && too_few(found.len()) {
            return Err(MetaError::TooFewToRescue {
                here: found.len(),
                total: count,
            });
        }
        if let Some(report) = rescue.as_deref_mut() {
            let without = found.iter().filter(|disk| disk.state.is_none());
            report.rebuilt = without.map(|disk| disk.id).collect();
        }
        let planned = plan(&found);
        let planned = match (planned, rescue.as_deref_mut()) {
            (Err(MetaError::Unreadable { .. } | MetaError::Nothing), Some(report))
                if !read_only =>
            {
                let mark = save(&mut found, &disks, volume, report)?;
                Reachable::Salvaged(mark)
            }
            (planned, _) => Reachable::Planned(Box::new(planned?)),
        };
        if read_only {
            let Reachable::Planned(plan) = planned else {
                return Err(MetaError::ReadOnly);
            };
            // Closed before they are copied.
            found.iter_mut().for_each(|disk| disk.database = None);
            let database = database_in_memory(&plan, &found, volume)?;
            let snapshot = database.snapshot()?;
            let commit = idle(plan.target);
            let opened = Opened {
                read_only: true,
                disks_of_volume: count,
                disks_needed: 0,
                replicas: replicas(
                    found
                        .into_iter()
                        .map(|disk| (disk.id, disk.disk, disk.sums)),
                ),
                excluded: Vec::new(),
                was_away: Vec::new(),
            };
            return start(options, opened, (commit, Names::default()), snapshot);
        }
        let (mark, plan, first) = match planned {
            Reachable::Planned(plan) => match (first_database(&plan, &found, volume), rescue) {
                (Err(MetaError::Unreadable { .. }), Some(report)) => {
                    // A record that was there a moment ago cannot be read again. What was begun meanwhile is looked at
                    // anew, with no database open.
                    found.clear();
                    found = look_at_all(&disks, &options, read_only)?;
                    let mark = save(&mut found, &disks, volume, report)?;
                    (mark, None, salvaged(&found)?)
                }
                (first, _) => {
                    let first = first?;
                    (plan.target, Some(plan), first)
                }
            },
            Reachable::Salvaged(mark) => (mark, None, salvaged(&found)?),
        };
        let needed = if options.force { 1 } else { count.div_ceil(2) };
        let excluded = excluded(&first.1, &found, needed.max(options.least))?;
        let was_away = found
            .iter()
            .filter(|disk| disk.newest().generation != mark.generation && plan.is_some())
            .map(|disk| disk.id)
            .collect();
        let (commit, well) = bring_up(&found, plan.as_deref(), mark, &first, &excluded, &options)?;
        // All databases are closed before the one to be read from is opened again, with its larger cache.
        drop(first);
        let names = Names::resume(&found, &well, mark, volume);
        found.retain(|disk| well.contains(&disk.id));
        let replicas = replicas(
            found
                .into_iter()
                .map(|disk| (disk.id, disk.disk, disk.sums)),
        );
        let snapshot = first_snapshot(&replicas, mark)?;
        let opened = Opened {
            read_only: false,
            disks_of_volume: count,
            disks_needed: needed,
            replicas,
            excluded,
            was_away,
        };
        start(options, opened, (commit, names), snapshot)
    }
}

fn replicas(
    disks: impl IntoIterator<Item = (DiskId, Arc<dyn Disk>, Arc<Sums>)>,
) -> Vec<Arc<Replica>> {
    let disks = disks.into_iter();
    disks
        .map(|(id, disk, sums)| Arc::new(Replica::new(id, disk, sums)))
        .collect()
}

/// The disks that are left alone since they were faulty, unless fewer than `needed` others are here.
fn excluded(database: &Arc<Database>, found: &[Found], needed: usize) -> Result<Vec<DiskId>> {
    let records = disk_records(&database.snapshot()?)?;
    let mut faulty = Vec::new();
    for (key, value) in records {
        // One that is damaged is healed when it is next read, and says nothing now.
        let record = value.and_then(|value| DiskRecord::decode(&value));
        if let (Some(id), Some(record)) = (key.decoder().key_u16(), record)
            && record.health == DiskHealth::Faulty
            && found.iter().any(|disk| disk.id == DiskId(id))
        {
            faulty.push(DiskId(id));
        }
    }
    if found.len() < needed + faulty.len() {
        faulty.clear();
    }
    Ok(faulty)
}

/// The first database that opens, gives what is read of it at once, and is at the moment to which all were brought.
fn first_snapshot(replicas: &[Arc<Replica>], mark: Mark) -> Result<Snapshot> {
    let mut last = MetaError::Nothing;
    for replica in replicas {
        let opened = replica.database_with(READ_CACHE);
        let snapshot = opened.and_then(|database| {
            database.must_be_at(mark)?;
            let snapshot = database.snapshot()?;
            settings(&snapshot)?;
            Ok(snapshot)
        });
        match snapshot {
            Ok(snapshot) => return Ok(snapshot),
            // The disk is left out when it fails at what comes next.
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What there is to be opened.
enum Reachable {
    Planned(Box<Plan>),
    /// The first disk's database was made out of what was readable.
    Salvaged(Mark),
}

/// Looks at all disks side by side; tells of those that do not answer. What this process may not have is an error: no disk
/// is to be left out for it, for a faulty disk stays out of later mounts too.
fn look_at_all(disks: &Disks, options: &Options, read_only: bool) -> Result<Vec<Found>> {
    let here: Vec<(DiskId, &Arc<dyn Disk>)> = disks
        .iter()
        .filter_map(|(id, disk)| Some((*id, disk.as_ref()?)))
        .collect();
    let results: Vec<(DiskId, Result<Found>)> = if read_only {
        // One after the other: a copy of one database is in memory at a time.
        here.iter()
            .map(|(id, disk)| (*id, look(*id, disk, options.volume, true)))
            .collect()
    } else {
        let looks = side_by_side(here.clone(), |(id, disk)| {
            look(id, disk, options.volume, false)
        });
        std::iter::zip(here, looks)
            .map(|((id, disk), found)| {
                let damaged = |_| {
                    Err(MetaError::Database {
                        disk: disk.name().to_owned(),
                        what: "open",
                        why: "it is damaged".to_owned(),
                    })
                };
                (id, found.unwrap_or_else(damaged))
            })
            .collect()
    };
    let mut all = Vec::new();
    for (id, result) in results {
        match result {
            Ok(found) => all.push(found),
            Err(error) if error.is_own() => return Err(error),
            Err(error) => {
                tracing::error!(disk = %id, %error, "a disk's metadata cannot be read");
                (options.on_disk_failed)(id, &error);
            }
        }
    }
    Ok(all)
}

/// Brings the other disks' databases and all journals to the mark. Gives the disks that are well.
fn bring_up(
    found: &[Found],
    plan: Option<&Plan>,
    mark: Mark,
    first: &(usize, Arc<Database>),
    excluded: &[DiskId],
    options: &Options,
) -> Result<(Commit, Vec<DiskId>)> {
    let volume = options.volume;
    let failed = |id: DiskId, error: &MetaError| {
        tracing::error!(disk = %id, %error, "a disk cannot be brought up to the others");
        (options.on_disk_failed)(id, error);
    };
    let mut well: Vec<&Found> = Vec::new();
    for (place, disk) in found.iter().enumerate() {
        if excluded.contains(&disk.id) {
            continue;
        }
        if place == first.0 {
            well.push(disk);
            continue;
        }
        let usable = plan.and_then(|plan| {
            let (_, epoch) = plan.usable.iter().find(|(other, _)| *other == place)?;
            Some((plan, *epoch, disk.database.as_ref()?))
        });
        let state = Reached { volume, mark };
        let brought = match usable {
            Some((plan, epoch, database)) => advance(database, epoch, plan, found, volume),
            None => copy(&first.1, disk, state, plan, found),
        };
        match brought {
            Ok(()) => {
                if let Some(from) = disk.stale_at(mark) {
                    tracing::warn!(
                        disk = disk.disk.name(),
                        %from,
                        to = %mark.epoch,
                        "a disk that was away has its metadata brought up to the others'"
                    );
                }
                well.push(disk);
            }
            Err(error) if error.is_own() => return Err(error),
            Err(error) => failed(disk.id, &error),
        }
    }
    let mut broken = Vec::new();
    let (mut last, mut own) = (None, None);
    let mut note = |id: DiskId, error: MetaError| {
        if error.is_own() {
            own = Some(error);
            return;
        }
        failed(id, &error);
        broken.push(id);
        last = Some(error);
    };
    let commit = open_journals(&well, found, plan, mark, &first.1, volume, &mut note)?;
    if let Some(error) = own {
        return Err(error);
    }
    let well = well.into_iter().map(|disk| disk.id);
    let well: Vec<DiskId> = well.filter(|disk| !broken.contains(disk)).collect();
    match last {
        // There is metadata, and no disk takes any more.
        Some(error) if well.is_empty() => Err(error),
        _ => Ok((commit, well)),
    }
}

/// The database that `save` made.
fn salvaged(found: &[Found]) -> Result<(usize, Arc<Database>)> {
    let database = found.first().and_then(|disk| disk.database.clone());
    Ok((0, database.ok_or(MetaError::Nothing)?))
}

/// Makes a database out of what is readable, on the first disk that takes it; that disk is then the first
/// of `found`.
fn save(
    found: &mut [Found],
    disks: &Disks,
    volume: VolumeId,
    report: &mut RescueReport,
) -> Result<Mark> {
    match recovery::choose(found) {
        Ok(_) | Err(MetaError::Nothing) => {}
        Err(error) => return Err(error),
    }
    let image = images(found)
        .into_iter()
        .map(|(_, image)| Saved {
            epoch: image.epoch,
            image,
            ..Saved::default()
        })
        .find(|saved| !saved.image.parts.is_empty());
    let mut unread = BTreeSet::new();
    let names = names::saved(found, volume, &mut unread);
    // One without a hole is better than a newer one with.
    let base = image
        .into_iter()
        .chain(names)
        .max_by_key(|saved| (saved.image.missing() == 0, saved.epoch));
    let best = found
        .iter()
        .enumerate()
        .filter_map(|(place, disk)| Some((disk.state?.mark.epoch, place)))
        .max();
    if let Some((epoch, place)) = best
        && base.as_ref().is_none_or(|base| base.epoch <= epoch)
    {
        found.swap(0, place);
        let database = found.first().and_then(|disk| disk.database.clone());
        if let Some(database) = database {
            return salvage(&database, None, epoch, found, volume, report);
        }
    }
    let base = match base.or_else(|| without_image(found)) {
        Some(base) => base,
        None => {
            looked_at_all(found, disks, &unread)?;
            return Err(MetaError::NothingOfUse);
        }
    };
    report.from_names = base.by_names.then_some(base.epoch);
    let mut last = MetaError::Nothing;
    for place in 0..found.len() {
        let Some(disk) = found.get_mut(place) else {
            continue;
        };
        disk.database = None;
        let built = Database::create(&*disk.disk, &disk.sums, WRITE_CACHE).and_then(|database| {
            let mark = salvage(&database, Some(&base), base.epoch, found, volume, report)?;
            Ok((Arc::new(database), mark))
        });
        match built {
            Ok((database, mark)) => {
                found.swap(0, place);
                if let Some(disk) = found.first_mut() {
                    disk.database = Some(database);
                }
                return Ok(mark);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What the transactions that are readable change, where there is nothing that they could change.
fn without_image(found: &[Found]) -> Option<Saved> {
    let files = found.iter().flat_map(|disk| &disk.scan.files);
    let whole = files
        .flat_map(|file| &file.transactions)
        .filter(|transaction| transaction.place.is_some());
    let first = whole.map(|transaction| transaction.epoch).min()?;
    Some(Saved {
        epoch: Epoch(first.0.saturating_sub(1)),
        ..Saved::default()
    })
}

/// An error unless every disk that is here gave all it holds of metadata. What it failed to give may be of use.
fn looked_at_all(found: &[Found], disks: &Disks, unread: &BTreeSet<DiskId>) -> Result<()> {
    for (id, disk) in disks {
        let Some(disk) = disk else { continue };
        let not = |why: String| MetaError::NotLookedAt {
            disk: disk.name().to_owned(),
            why,
        };
        let Some(looked_at) = found.iter().find(|found| found.id == *id) else {
            return Err(not("it does not answer".to_owned()));
        };
        if looked_at.scan.unread || unread.contains(id) {
            return Err(not("it failed to give some of it".to_owned()));
        }
        // Why a database does not open it does not say: its bytes must be readable.
        for (object, _) in disk.list()? {
            if object == ObjectName::Database {
                read_through(&**disk, object).map_err(|error| not(error.to_string()))?;
            }
        }
    }
    Ok(())
}

fn read_through(disk: &dyn Disk, object: ObjectName) -> std::result::Result<(), DiskError> {
    let length = disk.length(object)?;
    let mut buffer = vec![0; length.min(READ) as usize];
    let mut at = 0;
    while at < length {
        let part = buffer.len().min((length - at) as usize);
        disk.read_at(object, at, buffer.get_mut(..part).unwrap_or_default())?;
        at += part as u64;
    }
    Ok(())
}

fn idle(mark: Mark) -> Commit {
    Commit {
        mark,
        generation: mark.generation,
        durable: 0,
        journals: Vec::new(),
        number: 0,
        length: 0,
        image_length: 0,
    }
}

/// What metadata is opened over.
struct Opened {
    read_only: bool,
    disks_of_volume: usize,
    disks_needed: usize,
    replicas: Vec<Arc<Replica>>,
    excluded: Vec<DiskId>,
    was_away: Vec<DiskId>,
}

/// Puts the parts together; begins a generation where anything may be written.
fn start(
    options: Options,
    opened: Opened,
    (commit, names): (Commit, Names),
    base: Snapshot,
) -> Result<Meta> {
    let read_only = opened.read_only;
    let mounts = match base.get(&Key::setting(MOUNTS))? {
        None => 0,
        Some(value) => value
            .as_ref()
            .try_into()
            .map(u32::from_le_bytes)
            .map_err(|_| MetaError::Malformed {
                key: Key::setting(MOUNTS),
            })?,
    };
    let mounts = if read_only {
        mounts
    } else {
        mounts.checked_add(1).ok_or(MetaError::NumbersUsedUp)?
    };
    let inner = Arc::new(Inner {
        options,
        read_only,
        disks_of_volume: AtomicUsize::new(opened.disks_of_volume),
        disks_needed: AtomicUsize::new(opened.disks_needed),
        excluded: opened.excluded,
        was_away: opened.was_away,
        mounts,
        next_number: AtomicU64::new(0),
        replicas: RwLock::new(opened.replicas),
        state: RwLock::new(State {
            version: 0,
            current: Arc::default(),
            frozen: None,
            base: Arc::new(base),
        }),
        writer: Mutex::new(Writer::default()),
        newest: Mutex::new(commit.mark),
        commit: Mutex::new(commit),
        names: Mutex::new(names),
        checkpointing: Mutex::new(Instant::now()),
        poisoned: Mutex::new(None),
        to_heal: Mutex::new(Vec::new()),
        wake: Arc::new(Wake::default()),
    });
    if read_only {
        return Ok(Meta {
            inner,
            flusher: Mutex::new(None),
        });
    }
    {
        let mut commit = inner.commit.lock();
        inner.drop_left_out(&mut commit);
        let value: Value = mounts.to_le_bytes().as_slice().into();
        inner.begin_generation(&mut commit, vec![(Key::setting(MOUNTS), Some(value))])?;
        commit.durable = inner.state.read().version;
    }
    for replica in inner.replicas.read().iter() {
        replica.close_if_idle();
    }
    let flusher = flusher::start(&inner).map_err(|source| DiskError::Io {
        disk: "all".to_owned(),
        what: "start the thread that makes metadata durable".to_owned(),
        source,
    })?;
    Ok(Meta {
        inner,
        flusher: Mutex::new(Some(flusher)),
    })
}
