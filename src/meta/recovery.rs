//! Finding out what the disks hold: which history is the volume's, from where it can be rebuilt, and what
//! each disk lacks of it. Reads only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::change::{self, Change};
use super::database::{Database, State, Sums, WRITE_CACHE};
use super::error::{MetaError, Result};
use super::history::{History, Mark, Relation, winner};
use super::journal::{FileScan, Place, Scan, Transaction, read_payload, scan};
use super::table::{Key, Table};
use crate::disk::Disk;
use crate::ids::{DiskId, Epoch, VolumeId};

/// A disk and what was found on it.
pub(super) struct Found {
    pub(super) id: DiskId,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) scan: Scan,
    /// How far its database has come; none if there is none to be believed.
    pub(super) state: Option<State>,
    /// The database, unless only a copy was looked at.
    pub(super) database: Option<Arc<Database>>,
    /// What is known of the database's file.
    pub(super) sums: Arc<Sums>,
    history: History,
}

impl Found {
    /// The epoch at which it stopped to take part, where that is not the newest one or another history's.
    pub(super) fn stale_at(&self, newest: Mark) -> Option<Epoch> {
        if self.history.known.is_empty() {
            // It is new, or nothing of it is left.
            return None;
        }
        let head = self.history.head;
        (head.epoch != newest.epoch || head.fingerprint != newest.fingerprint).then_some(head.epoch)
    }

    /// The newest moment that the disk knows of.
    pub(super) fn newest(&self) -> Mark {
        self.history.head
    }
}

/// Looks at one disk. An error means that the disk does not answer at all.
pub(super) fn look(
    id: DiskId,
    disk: &Arc<dyn Disk>,
    volume: VolumeId,
    read_only: bool,
) -> Result<Found> {
    // The database first: a writer that is alive brings it forward only after the journal.
    let sums = Arc::default();
    let opened = if read_only {
        Database::open_copy(&**disk)
    } else {
        Database::open(&**disk, &sums, WRITE_CACHE, true)
    };
    let mut known = (None, BTreeMap::new(), None);
    match opened.and_then(|database| believed(database, volume)) {
        Ok(found) => known = found.unwrap_or(known),
        Err(error) => {
            tracing::warn!(%error, "a metadata database is damaged; it will be rebuilt");
        }
    }
    let (state, mut generations, database) = known;
    let scan = scan(&**disk, volume)?;
    generations.extend(&scan.generations);
    let mut history = History {
        generations,
        ..History::default()
    };
    let transactions = scan.files.iter().flat_map(|file| {
        let whole = file.transactions.iter().filter(|t| t.place.is_some());
        whole.map(Transaction::mark)
    });
    let images = scan.files.iter().filter_map(|file| {
        let image = file.image.as_ref().filter(|image| image.is_whole())?;
        Some(Mark {
            epoch: image.epoch,
            generation: image.generation,
            fingerprint: image.fingerprint,
        })
    });
    let marks = transactions
        .chain(images)
        .chain(state.map(|state| state.mark));
    for mark in marks {
        history.known.insert(mark.epoch, mark.fingerprint);
        if mark.epoch >= history.head.epoch {
            history.head = mark;
        }
    }
    Ok(Found {
        id,
        disk: Arc::clone(disk),
        scan,
        state,
        database: database.filter(|_| !read_only),
        sums,
        history,
    })
}

type Believed = (Option<State>, BTreeMap<Epoch, u64>, Option<Arc<Database>>);

/// What a database tells, if it was finished and is of this volume.
fn believed(database: Option<Database>, volume: VolumeId) -> Result<Option<Believed>> {
    let Some(database) = database else {
        return Ok(None);
    };
    let Some(state) = database.state()?.filter(|state| state.volume == volume) else {
        return Ok(None);
    };
    let database = Arc::new(database);
    let snapshot = database.snapshot()?;
    let mut generations = BTreeMap::new();
    let mut prefix = Some(Key::table_prefix(Table::Generation));
    while let Some(from) = prefix.take() {
        let bound = std::ops::Bound::Excluded(from.as_bytes());
        let table = Key::table_prefix(Table::Generation);
        for (key, value) in snapshot.range(table.as_bytes(), bound, 1000)? {
            let value = value.ok_or_else(|| MetaError::Damaged { key: key.clone() })?;
            if let (Some(epoch), Ok(name)) = (key.decoder().key_u64(), value.as_ref().try_into()) {
                generations.insert(Epoch(epoch), u64::from_le_bytes(name));
            }
            prefix = Some(key);
        }
    }
    Ok(Some((Some(state), generations, Some(database))))
}

/// Where a record can be read: on which disks, by their places in the list of what was found, and there.
pub(super) type Places = Vec<(usize, Place)>;

/// What has to be done to have the volume's metadata, by the disks' places in the list of what was found.
pub(super) struct Plan {
    /// The moment to be reached.
    pub(super) target: Mark,
    /// The volume's history backwards from there, as far as its transactions are readable without a gap.
    pub(super) chain: BTreeMap<Epoch, u64>,
    /// Where each transaction of the chain but the first is readable.
    pub(super) places: BTreeMap<Epoch, Places>,
    /// The disks whose databases lie on the chain, and where.
    pub(super) usable: Vec<(usize, Epoch)>,
    /// The newest image that can be read whole from all disks together, and lies on the chain.
    pub(super) image: Option<WholeImage>,
}

/// The parts of an image, each where it is readable.
#[derive(Clone, Debug, Default)]
pub(super) struct WholeImage {
    pub(super) epoch: Epoch,
    pub(super) parts: BTreeMap<u32, Places>,
    /// How many there must be; none if no disk has its end.
    pub(super) wanted: Option<u32>,
}

impl WholeImage {
    /// The parts that no disk has.
    pub(super) fn missing(&self) -> u32 {
        match self.wanted {
            Some(wanted) => wanted.saturating_sub(self.parts.range(..wanted).count() as u32),
            None => 1,
        }
    }
}

/// Every image of every disk, the parts of equal ones put together, the newest first.
pub(super) fn images(found: &[Found]) -> Vec<(u64, WholeImage)> {
    let mut images: BTreeMap<(Epoch, u64), WholeImage> = BTreeMap::new();
    for (place, disk) in found.iter().enumerate() {
        for file in &disk.scan.files {
            let Some(image) = &file.image else { continue };
            let whole = images.entry((image.epoch, image.fingerprint)).or_default();
            whole.epoch = image.epoch;
            whole.wanted = whole.wanted.or(image.wanted);
            for (sequence, part) in &image.parts {
                whole
                    .parts
                    .entry(*sequence)
                    .or_default()
                    .push((place, *part));
            }
        }
    }
    images
        .into_iter()
        .rev()
        .map(|((_, fingerprint), image)| (fingerprint, image))
        .collect()
}

/// Which of the disks' histories is the volume's.
pub(super) fn choose(found: &[Found]) -> Result<usize> {
    // A disk without any history is new, or was replaced.
    let with: Vec<(usize, &Found)> = found
        .iter()
        .enumerate()
        .filter(|(_, disk)| !disk.history.known.is_empty())
        .collect();
    let histories: Vec<History> = with.iter().map(|(_, disk)| disk.history.clone()).collect();
    let at = |place: usize| with.get(place).map(|(place, _)| *place);
    match winner(&histories) {
        None => Err(MetaError::Nothing),
        Some(Ok(place)) => at(place).ok_or(MetaError::Nothing),
        Some(Err((a, b))) => {
            // A disk that was away before the two went apart is on neither side.
            let side = |of: usize, not: usize| -> Vec<String> {
                let (mine, theirs) = (histories.get(of), histories.get(not));
                let joins = |to: Option<&History>, history: &History| {
                    to.is_some_and(|to| {
                        !matches!(to.relation(history), Relation::Diverged | Relation::Ahead)
                    })
                };
                std::iter::zip(&with, &histories)
                    .filter(|(_, history)| joins(mine, history) && !joins(theirs, history))
                    .map(|((_, found), _)| found.disk.name().to_owned())
                    .collect()
            };
            Err(MetaError::Diverged {
                newer: side(a, b),
                older: side(b, a),
            })
        }
    }
}

/// What is left of the volume's transactions behind `from`, each with the places where it is readable, where there is no
/// way without a gap. Looks at what there is, whatever the numbers say.
///
/// Where the record behind one is lost, it may be part of a tail that nobody was answered for, and the record that ended
/// its generation may be lost too. It belongs here only if the volume's history goes on in its generation later, or on the
/// disk that has it: a tail is cut off before a disk goes on. What is left in doubt is left out, and told of as lost.
pub(super) fn remains(found: &[Found], from: Epoch) -> BTreeMap<Epoch, (Transaction, Places)> {
    let mut all: BTreeMap<(Epoch, u64), Remaining> = BTreeMap::new();
    for (place, disk) in found.iter().enumerate() {
        for file in &disk.scan.files {
            for t in file.transactions.iter().filter(|t| t.epoch > from) {
                let key = (t.epoch, t.fingerprint);
                let of = all.entry(key).or_insert_with(|| Remaining {
                    transaction: *t,
                    places: Vec::new(),
                    journals: Vec::new(),
                });
                of.places.extend(t.place.map(|at| (place, at)));
                of.journals.push((place, file.number));
            }
        }
    }
    let chosen = choose(found).ok().and_then(|chosen| found.get(chosen));
    let Some(mut mark) = chosen.map(|disk| disk.history.head) else {
        // No disk has anything whole: all of it is lost.
        let all = all.into_iter();
        return all
            .map(|((epoch, _), of)| (epoch, (of.transaction, of.places)))
            .collect();
    };
    let of = |epoch: Epoch| {
        let of = all.range((epoch, 0)..=(epoch, u64::MAX));
        of.map(|(_, of)| of)
    };
    // Behind the newest that is whole there may be such as are readable on no disk any more.
    let unreadable = |mark: Mark| {
        of(Epoch(mark.epoch.0 + 1))
            .find(|of| of.transaction.previous == mark.fingerprint && of.places.is_empty())
    };
    while let Some(next) = unreadable(mark) {
        mark = next.transaction.mark();
    }
    // What comes before the one behind, as that one says, and the generation in which that one was written.
    let mut wanted = Some((mark.epoch, mark.fingerprint));
    let mut generation = mark.generation;
    let mut going_on: BTreeSet<(usize, u64)> = BTreeSet::new();
    let mut epochs: Vec<Epoch> = all.keys().map(|(epoch, _)| *epoch).collect();
    epochs.dedup();
    let mut remains = BTreeMap::new();
    for epoch in epochs.into_iter().rev().filter(|at| *at <= mark.epoch) {
        let belongs = |of: &&Remaining| match wanted {
            Some((at, fingerprint)) if at == epoch => of.transaction.fingerprint == fingerprint,
            _ => {
                of.transaction.generation == generation
                    || of.journals.iter().any(|journal| going_on.contains(journal))
            }
        };
        let next = of(epoch).find(belongs);
        wanted = None;
        if let Some(of) = next {
            let before = epoch.0.checked_sub(1).map(Epoch);
            wanted = before.map(|before| (before, of.transaction.previous));
            generation = of.transaction.generation;
            going_on.extend(&of.journals);
            remains.insert(epoch, (of.transaction, of.places.clone()));
        }
    }
    remains
}

/// A transaction that some disk has, or has the header of.
struct Remaining {
    transaction: Transaction,
    places: Places,
    /// The journals that have it, by the disk's place and the journal's number.
    journals: Vec<(usize, u64)>,
}

/// Finds the way to the volume's newest moment.
pub(super) fn plan(found: &[Found]) -> Result<Plan> {
    let chosen = match choose(found) {
        // Not nothing, but no history: an image with a hole and no more.
        Err(MetaError::Nothing) => match images(found).first() {
            Some((_, image)) => {
                return Err(MetaError::Unreadable { epoch: image.epoch });
            }
            None => return Err(MetaError::Nothing),
        },
        chosen => chosen?,
    };
    let target = found
        .get(chosen)
        .map(|disk| disk.history.head)
        .ok_or(MetaError::Nothing)?;
    // By epoch and fingerprint: the fingerprint before it, and where it lies.
    let mut all: BTreeMap<(Epoch, u64), (u64, Places)> = BTreeMap::new();
    for (place, disk) in found.iter().enumerate() {
        for t in disk.scan.files.iter().flat_map(|file| &file.transactions) {
            if let Some(at) = t.place {
                let entry = all.entry((t.epoch, t.fingerprint)).or_default();
                entry.0 = t.previous;
                entry.1.push((place, at));
            }
        }
    }
    let (mut epoch, mut fingerprint) = (target.epoch, target.fingerprint);
    let mut chain = BTreeMap::from([(epoch, fingerprint)]);
    let mut places = BTreeMap::new();
    while let Some((previous, at)) = all.remove(&(epoch, fingerprint)) {
        places.insert(epoch, at);
        let Some(before) = epoch.0.checked_sub(1) else {
            break;
        };
        (epoch, fingerprint) = (Epoch(before), previous);
        chain.insert(epoch, fingerprint);
    }
    let on_chain = |epoch, fingerprint| chain.get(&epoch) == Some(&fingerprint);
    let usable: Vec<(usize, Epoch)> = found
        .iter()
        .enumerate()
        .filter_map(|(place, disk)| Some((place, disk.state?.mark)))
        .filter(|(_, mark)| on_chain(mark.epoch, mark.fingerprint))
        .map(|(place, mark)| (place, mark.epoch))
        .collect();
    let image = images(found)
        .into_iter()
        .find(|(fingerprint, image)| image.missing() == 0 && on_chain(image.epoch, *fingerprint));
    if usable.is_empty() && image.is_none() {
        return Err(MetaError::Unreadable { epoch });
    }
    Ok(Plan {
        target,
        chain,
        places,
        usable,
        image: image.map(|(_, image)| image),
    })
}

impl Plan {
    /// How a disk's journal can be gone on with: its number, the bytes of it that are kept, and the epoch
    /// that they reach. None if it needs a new one.
    pub(super) fn resume<'a>(&self, disk: &'a Found) -> Option<(&'a FileScan, u64, Epoch)> {
        let [file] = disk.scan.files.as_slice() else {
            return None;
        };
        if !file.is_sound() {
            return None;
        }
        let image = file.image.as_ref()?;
        let header = super::journal::HEADER as u64;
        let on_chain = |epoch, fingerprint: u64| self.chain.get(&epoch) == Some(&fingerprint);
        let mut reached =
            on_chain(image.epoch, image.fingerprint).then(|| (file.image_length(), image.epoch));
        for t in &file.transactions {
            if let (Some(place), true) = (t.place, on_chain(t.epoch, t.fingerprint)) {
                let end = place.offset + header + u64::from(place.length);
                let gap = reached.is_some_and(|(_, epoch)| epoch.0 + 1 != t.epoch.0);
                if gap {
                    return None;
                }
                reached = Some((end, t.epoch));
            }
        }
        let (length, epoch) = reached?;
        Some((file, length, epoch))
    }
}

/// The changes of a payload that lies in one or another place.
pub(super) fn changes_at(
    found: &[Found],
    places: &[(usize, Place)],
    volume: VolumeId,
) -> Option<(u64, Vec<u8>, Vec<Change>)> {
    places.iter().find_map(|(disk, place)| {
        let disk = &found.get(*disk)?.disk;
        let (header, payload) = read_payload(&**disk, *place, volume).ok().flatten()?;
        let changes = change::decode_all(&payload)?;
        Some((header.generation, payload, changes))
    })
}
