//! Bringing every disk to the volume's newest moment: its database by the transactions it lacks or as a
//! copy of another, its journal by the records it lacks or with an image of its own.

use std::sync::Arc;

use super::change::{self, Change};
use super::checkpoint::{Batch, Image};
use super::commit::{Commit, MOUNTS};
use super::database::{Database, Snapshot, State, WRITE_CACHE};
use super::error::{MetaError, Result};
use super::history::{EPOCH_MAX, Mark};
use super::journal::{Journal, Kind, Record, Series, append_all};
use super::names::Saved;
use super::recovery::{Found, Plan, WholeImage, changes_at, remains};
use super::table::{Key, Table, Value};
use crate::ids::{DiskId, Epoch, VolumeId};

/// Changes are applied when about this many have gathered, so that memory stays bounded.
const CHANGES: usize = 20_000;

/// Keys copied at once.
const BATCH: usize = 2_000;

/// Brings a database that lies on the chain forward to the target.
pub(super) fn advance(
    database: &Database,
    from: Epoch,
    plan: &Plan,
    found: &[Found],
    volume: VolumeId,
) -> Result<()> {
    let mut gathered: Vec<Change> = Vec::new();
    for (epoch, places) in plan.places.range(Epoch(from.0 + 1)..) {
        let unreadable = MetaError::Unreadable { epoch: *epoch };
        let (generation, _, changes) = changes_at(found, places, volume).ok_or(unreadable)?;
        gathered.extend(changes);
        if gathered.len() >= CHANGES || *epoch == plan.target.epoch {
            let fingerprint = plan.chain.get(epoch).copied().unwrap_or_default();
            let mark = Mark {
                epoch: *epoch,
                generation,
                fingerprint,
            };
            // Later changes of a key win, as they are applied in order.
            database.apply_changes(&gathered, Some(State { volume, mark }))?;
            gathered.clear();
        }
    }
    Ok(())
}

/// Fills an empty database from the parts of an image that there are; `lost` is called for every one that cannot be read
/// again.
pub(super) fn fill_from_image(
    database: &Database,
    image: &WholeImage,
    found: &[Found],
    volume: VolumeId,
    lost: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    // How many there must be is only a number that a disk holds.
    for (_, places) in image.parts.range(..image.wanted.unwrap_or(u32::MAX)) {
        match changes_at(found, places, volume) {
            Some((_, _, changes)) => database.apply_changes(&changes, None)?,
            None => lost()?,
        }
    }
    Ok(())
}

/// A new database from an image and the transactions after it.
fn from_image(database: &Database, plan: &Plan, found: &[Found], volume: VolumeId) -> Result<()> {
    let lowest = plan.chain.keys().next().copied().unwrap_or_default();
    let unreadable = |epoch| MetaError::Unreadable { epoch };
    let image = plan.image.as_ref().ok_or(unreadable(lowest))?;
    if image.missing() > 0 {
        return Err(unreadable(image.epoch));
    }
    fill_from_image(database, image, found, volume, &mut || {
        Err(unreadable(image.epoch))
    })?;
    advance(database, image.epoch, plan, found, volume)?;
    let mark = plan.target;
    database.apply_changes(&[], Some(State { volume, mark }))
}

/// A new database on a disk with all that another one holds. Where that one fails, what the journals hold is taken.
pub(super) fn copy(
    from: &Arc<Database>,
    to: &Found,
    state: State,
    plan: Option<&Plan>,
    found: &[Found],
) -> Result<()> {
    let new = || Database::create(&*to.disk, &to.sums, WRITE_CACHE);
    let copied = new().and_then(|database| copy_all(&from.snapshot()?, &database, state));
    match (copied, plan) {
        (Err(error), Some(plan)) => new()
            .and_then(|database| from_image(&database, plan, found, state.volume))
            .map_err(|_| error),
        (copied, _) => copied,
    }
}

/// Fills an empty database with all that another one holds.
pub(super) fn copy_all(from: &Snapshot, to: &Database, state: State) -> Result<()> {
    fill(to, state, &|after| whole_batch(from, after))
}

/// Fills an empty database with all that `next` gives, which is asked for what comes after a key until there is nothing.
pub(super) fn fill(
    to: &Database,
    state: State,
    next: &dyn Fn(Option<&Key>) -> Result<Batch>,
) -> Result<()> {
    let mut after = None;
    loop {
        let batch = next(after.as_ref())?;
        match batch.last() {
            Some((key, _)) => after = Some(key.clone()),
            None => break,
        }
        let batch = batch.into_iter();
        let changes: Vec<Change> = batch.map(|(key, value)| (key, Some(value))).collect();
        to.apply_changes(&changes, None)?;
    }
    to.apply_changes(&[], Some(state))
}

/// The next keys of a database; an error where a value is damaged.
fn whole_batch(of: &Snapshot, after: Option<&Key>) -> Result<Batch> {
    let batch = of.after(after, BATCH)?.into_iter();
    batch
        .map(|(key, value)| match value {
            Some(value) => Ok((key, value)),
            None => Err(MetaError::Damaged { key }),
        })
        .collect()
}

/// What a mount reads of a database before another one can stand in for it: the count of mounts, the states of disks.
pub(super) fn settings(snapshot: &Snapshot) -> Result<()> {
    snapshot.get(&Key::setting(MOUNTS))?;
    disk_records(snapshot)?;
    Ok(())
}

/// The records of the disks; none for one that is damaged.
pub(super) fn disk_records(snapshot: &Snapshot) -> Result<Vec<(Key, Option<Value>)>> {
    let prefix = Key::table_prefix(Table::Disk);
    let bound = std::ops::Bound::Included(prefix.as_bytes());
    snapshot.range(prefix.as_bytes(), bound, usize::MAX)
}

/// One disk's database at the target, made from what can be had; tried on one disk after the other.
/// Gives the disk's place and the database.
pub(super) fn first_database(
    plan: &Plan,
    found: &[Found],
    volume: VolumeId,
) -> Result<(usize, Arc<Database>)> {
    let mut usable = plan.usable.clone();
    usable.sort_by_key(|(_, epoch)| std::cmp::Reverse(*epoch));
    let mut last = MetaError::Nothing;
    for (place, epoch) in usable {
        let database = found.get(place).and_then(|disk| disk.database.clone());
        let Some(database) = database else { continue };
        let brought = advance(&database, epoch, plan, found, volume)
            .and_then(|()| settings(&database.snapshot()?));
        match brought {
            Ok(()) => return Ok((place, database)),
            Err(error @ MetaError::Unreadable { .. }) => return Err(error),
            // The disk gets another chance when all are brought up, and is told of there.
            Err(error) => last = error,
        }
    }
    for (place, disk) in found.iter().enumerate() {
        // A disk whose own database is well, but of no use here, is as good as any.
        let built = Database::create(&*disk.disk, &disk.sums, WRITE_CACHE).and_then(|database| {
            from_image(&database, plan, found, volume)?;
            Ok(Arc::new(database))
        });
        match built {
            Ok(database) => return Ok((place, database)),
            Err(error @ MetaError::Unreadable { .. }) => return Err(error),
            // The disk gets another chance when all are brought up, and is told of there.
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A database in memory at the target, for a mount that writes nothing.
pub(super) fn database_in_memory(
    plan: &Plan,
    found: &[Found],
    volume: VolumeId,
) -> Result<Arc<Database>> {
    let mut usable = plan.usable.clone();
    usable.sort_by_key(|(_, epoch)| std::cmp::Reverse(*epoch));
    for (place, _) in usable {
        let Some(disk) = found.get(place) else {
            continue;
        };
        // A writer that is alive may have brought the disk's database forward since it was looked at.
        let copied = Database::open_copy(&*disk.disk).and_then(|database| {
            let state = match &database {
                Some(database) => database.state()?,
                None => None,
            };
            Ok(database.zip(state))
        });
        match copied {
            Ok(Some((database, state)))
                if plan.chain.get(&state.mark.epoch) == Some(&state.mark.fingerprint) =>
            {
                advance(&database, state.mark.epoch, plan, found, volume)?;
                return Ok(Arc::new(database));
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "trying another disk's database"),
        }
    }
    let database = Database::in_memory("in memory")?;
    from_image(&database, plan, found, volume)?;
    Ok(Arc::new(database))
}

/// Opens every disk's journal for appending, all at the target. Disks that fail are told of.
pub(super) fn open_journals(
    found: &[&Found],
    all: &[Found],
    plan: Option<&Plan>,
    mark: Mark,
    database: &Arc<Database>,
    volume: VolumeId,
    failed: &mut dyn FnMut(DiskId, MetaError),
) -> Result<Commit> {
    let files = all.iter().flat_map(|disk| &disk.scan.files);
    let highest = files.map(|file| file.number).max().unwrap_or_default();
    let mut commit = Commit {
        mark,
        generation: mark.generation,
        durable: 0,
        journals: Vec::new(),
        number: highest,
        length: 0,
        image_length: 0,
    };
    let mut anew: Vec<Journal> = Vec::new();
    for disk in found {
        let resumed = plan.and_then(|plan| Some((plan, plan.resume(disk)?)));
        let opened = match resumed {
            Some((plan, (file, length, epoch))) => {
                resume(disk, file.number, length, epoch, plan, all, volume).map(
                    |(journal, length)| {
                        if journal.is_some() {
                            commit.length = commit.length.max(length);
                            commit.image_length = commit.image_length.max(file.image_length());
                        }
                        journal
                    },
                )
            }
            None => Ok(None),
        };
        match opened {
            Ok(Some(journal)) => commit.journals.push(journal),
            Ok(None) => {
                match Journal::start(disk.id, Arc::clone(&disk.disk), Series::Journal, None) {
                    Ok(journal) => anew.push(journal),
                    Err(error) => failed(disk.id, error.into()),
                }
            }
            Err(error) => failed(disk.id, error),
        }
    }
    if !anew.is_empty() {
        commit.number += 1;
        let image = Image {
            volume,
            mark,
            number: commit.number,
        };
        let journals: Vec<&Journal> = anew.iter().collect();
        let snapshot = database.snapshot()?;
        let (length, broken) = image.write(&journals, &|after| whole_batch(&snapshot, after))?;
        commit.length = commit.length.max(length);
        commit.image_length = commit.image_length.max(length);
        anew.retain(|journal| broken.iter().all(|(disk, _)| *disk != journal.disk));
        for (disk, error) in broken {
            failed(disk, error.into());
        }
        commit.journals.extend(anew);
    }
    Ok(commit)
}

/// Goes on with a journal after its first `length` bytes, and appends what it lacks. No journal if a
/// record that it lacks can no longer be read.
fn resume(
    disk: &Found,
    number: u64,
    length: u64,
    reached: Epoch,
    plan: &Plan,
    all: &[Found],
    volume: VolumeId,
) -> Result<(Option<Journal>, u64)> {
    let lacking: Vec<_> = plan.places.range(Epoch(reached.0 + 1)..).collect();
    let first = lacking
        .first()
        .map_or(plan.target.epoch.0 + 1, |(epoch, _)| epoch.0);
    if first != reached.0 + 1 {
        return Ok((None, 0));
    }
    let from = Some((number, length));
    let journal = Journal::start(disk.id, Arc::clone(&disk.disk), Series::Journal, from)?;
    let mut length = length;
    for (epoch, places) in lacking {
        let Some((generation, payload, _)) = changes_at(all, places, volume) else {
            return Ok((None, 0));
        };
        let before = Epoch(epoch.0 - 1);
        let record = Record {
            kind: Kind::Transaction,
            sequence: 0,
            epoch: *epoch,
            generation,
            previous: plan.chain.get(&before).copied().unwrap_or_default(),
            volume,
        };
        let last = *epoch == plan.target.epoch;
        let (_, appended, failed) = append_all(&[&journal], record, &payload, last);
        if let Some((_, error)) = failed.into_iter().next() {
            return Err(error.into());
        }
        length += appended;
    }
    Ok((Some(journal), length))
}

/// Everything that is readable, put together as well as it goes, where no whole way to the newest moment
/// is left. Tells what is lost.
pub(super) fn salvage(
    database: &Database,
    base: Option<&Saved>,
    from: Epoch,
    found: &[Found],
    volume: VolumeId,
    report: &mut super::report::RescueReport,
) -> Result<Mark> {
    // It may have been tried on another disk.
    report.lost_transactions.clear();
    report.lost_image_parts = 0;
    if let Some(base) = base {
        report.lost_image_parts = base.image.missing();
        fill_from_image(database, &base.image, found, volume, &mut || {
            // It was readable a moment ago.
            report.lost_image_parts += 1;
            Ok(())
        })?;
        for part in base.steps.iter().flatten() {
            match changes_at(found, part, volume) {
                Some((_, _, changes)) => database.apply_changes(&changes, None)?,
                // It was readable a moment ago.
                None => report.lost_image_parts += 1,
            }
        }
    }
    let mut mark = Mark {
        epoch: from,
        ..Mark::default()
    };
    for (epoch, (t, places)) in remains(found, from) {
        report.lose(mark.epoch.0 + 1..epoch.0);
        match changes_at(found, &places, volume) {
            Some((_, _, changes)) => database.apply_changes(&changes, None)?,
            None => report.lose(epoch.0..epoch.0 + 1),
        }
        mark = t.mark();
    }
    // A moment of its own, behind all that any disk knows of: what went before was not all of it.
    let files = found.iter().flat_map(|disk| &disk.scan.files);
    let known = files.flat_map(|file| file.transactions.iter().map(|t| t.epoch));
    let newest = known.max().unwrap_or_default().max(mark.epoch);
    if newest >= EPOCH_MAX {
        return Err(MetaError::EpochsUsedUp);
    }
    let generation = super::commit::random_generation();
    mark = Mark {
        epoch: Epoch(newest.0 + 1),
        generation,
        fingerprint: generation,
    };
    let mut payload = Vec::new();
    let key = super::table::Key::generation(mark.epoch);
    change::encode(
        key.as_bytes(),
        Some(&generation.to_le_bytes()),
        &mut payload,
    );
    let declared = change::decode_all(&payload).unwrap_or_default();
    database.apply_changes(&declared, Some(State { volume, mark }))?;
    Ok(mark)
}
