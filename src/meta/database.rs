//! One disk's database: redb over the `Disk` trait. It holds the metadata as of one epoch, never a half
//! one, and is only ever brought forward by a checkpoint.
//!
//! redb trusts what it reads between two checks, and may panic on what it does not expect. So the whole file is checked
//! when a mount opens it, every page is held against that when it is read again (`sums`), every value carries its own
//! checksum, and no panic gets out of here.

mod backend;
mod sums;

use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use redb::{
    Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
};
use xxhash_rust::xxh3::xxh3_64;

use self::backend::{Backend, Copied};
pub(super) use self::sums::Sums;
use super::change::Change;
use super::codec::Decoder;
use super::error::{MetaError, Result};
use super::history::{EPOCH_MAX, Mark};
use super::table::{Key, Value};
use crate::disk::{Disk, ObjectName};
use crate::ids::{Epoch, VolumeId};

const DATA: TableDefinition<&[u8], &[u8]> = TableDefinition::new("data");
const STATE: TableDefinition<&str, &[u8]> = TableDefinition::new("state");
const STATE_KEY: &str = "state";

/// Memory that the database that is read from may use for its pages. Bytes.
pub(super) const READ_CACHE: usize = 16 << 20;
/// The same for one that is open only to be brought forward.
pub(super) const WRITE_CACHE: usize = 2 << 20;

/// Of which volume a database is, and how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) volume: VolumeId,
    pub(super) mark: Mark,
}

impl State {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(48);
        bytes.extend(self.volume.0.to_le_bytes());
        bytes.extend(self.mark.epoch.0.to_le_bytes());
        bytes.extend(self.mark.generation.to_le_bytes());
        bytes.extend(self.mark.fingerprint.to_le_bytes());
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<State> {
        let (body, checksum) = bytes.split_last_chunk::<8>()?;
        if u64::from_le_bytes(*checksum) != xxh3_64(body) {
            return None;
        }
        let mut decoder = Decoder(body);
        let state = State {
            volume: VolumeId(decoder.u128()?),
            mark: Mark {
                epoch: Epoch(decoder.u64()?),
                generation: decoder.u64()?,
                fingerprint: decoder.u64()?,
            },
        };
        decoder
            .end(state)
            .filter(|state| state.mark.epoch <= EPOCH_MAX)
    }
}

/// A database larger than this is made smaller at a mount when most of it is empty. Bytes.
const SHRINK_FROM: u64 = 4 << 20;

pub(super) struct Database {
    disk: String,
    /// There until it is dropped.
    redb: Option<redb::Database>,
}

impl Database {
    fn redb(&self) -> std::result::Result<&redb::Database, redb::Error> {
        self.redb.as_ref().ok_or(redb::Error::DatabaseClosed)
    }
}

impl Drop for Database {
    /// A database that was found damaged while it was written panics once more when it is closed.
    fn drop(&mut self) {
        let redb = self.redb.take();
        if catch_unwind(AssertUnwindSafe(move || drop(redb))).is_err() {
            tracing::warn!(
                disk = self.disk,
                "a damaged database was not closed in good order"
            );
        }
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database on {}", self.disk)
    }
}

/// Runs what calls redb: an error and a panic both become a `MetaError` that names the disk.
fn guarded<T, E: std::fmt::Display>(
    disk: &str,
    what: &'static str,
    call: impl FnOnce() -> std::result::Result<T, E>,
) -> Result<T> {
    let why = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => match panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
        {
            Some(text) => format!("it is damaged ({text})"),
            None => "it is damaged".to_owned(),
        },
    };
    Err(MetaError::Database {
        disk: disk.to_owned(),
        what,
        why,
    })
}

fn sealed(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + 8);
    bytes.extend_from_slice(value);
    bytes.extend(checksum(key, value).to_le_bytes());
    bytes
}

/// Over key and value together, so that a value under another's key is seen.
fn checksum(key: &[u8], value: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(value, xxh3_64(key))
}

fn unsealed(key: &[u8], bytes: &[u8]) -> Option<Value> {
    let (value, sum) = bytes.split_last_chunk::<8>()?;
    (u64::from_le_bytes(*sum) == checksum(key, value)).then(|| value.into())
}

impl Database {
    /// Opens the database of a disk; none if there is none. With `check` the whole of it is read and
    /// verified first. `sums` are what is known of it, and learn more.
    pub(super) fn open(
        disk: &dyn Disk,
        sums: &Arc<Sums>,
        cache: usize,
        check: bool,
    ) -> Result<Option<Database>> {
        match disk.length(ObjectName::Database) {
            Ok(0) => Ok(None),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
            Ok(length) => {
                let file = disk.random_access(ObjectName::Database)?;
                let sums = Arc::clone(sums);
                let mut database = Self::over(disk.name(), Backend { file, sums }, cache, check)?;
                // Only at a mount, when nobody reads it yet.
                if check && length > SHRINK_FROM && database.live_bytes()? * 4 < length {
                    guarded(disk.name(), "shrink", || {
                        database
                            .redb
                            .as_mut()
                            .map_or(Ok(false), redb::Database::compact)
                    })?;
                }
                Ok(Some(database))
            }
        }
    }

    /// Opens a copy in memory of a disk's database; none if there is none. Nothing is written to the disk,
    /// and what another process writes there does no harm: a copy torn by it does not pass the check.
    pub(super) fn open_copy(disk: &dyn Disk) -> Result<Option<Database>> {
        match Copied::of(disk, ObjectName::Database)? {
            None => Ok(None),
            Some(copy) => Self::over(disk.name(), copy, READ_CACHE, true).map(Some),
        }
    }

    /// A new, empty database in memory.
    pub(super) fn in_memory(name: &str) -> Result<Database> {
        Self::over(name, Copied::empty(), READ_CACHE, false)
    }

    /// A new, empty database in place of what the disk had. It has no state until it is first advanced,
    /// and is not believed before.
    pub(super) fn create(disk: &dyn Disk, sums: &Arc<Sums>, cache: usize) -> Result<Database> {
        disk.remove(ObjectName::Database)?;
        sums.forget();
        let file = disk.random_access(ObjectName::Database)?;
        disk.sync_names()?;
        let sums = Arc::clone(sums);
        Self::over(disk.name(), Backend { file, sums }, cache, false)
    }

    fn over(
        disk: &str,
        backend: impl redb::StorageBackend,
        cache: usize,
        check: bool,
    ) -> Result<Database> {
        let redb = guarded(disk, "open", || {
            redb::Builder::new()
                .set_cache_size(cache)
                .set_check_integrity_on_open(check)
                .create_with_backend(backend)
        })?;
        Ok(Database {
            disk: disk.to_owned(),
            redb: Some(redb),
        })
    }

    /// Bytes of keys and values, about.
    pub(super) fn live_bytes(&self) -> Result<u64> {
        guarded(&self.disk, "tell its size", || {
            let stats = self.redb()?.begin_write()?.stats()?;
            Ok::<_, redb::Error>(stats.stored_bytes() + stats.metadata_bytes())
        })
    }

    /// How far it has come; none if it was never finished.
    pub(super) fn state(&self) -> Result<Option<State>> {
        guarded(&self.disk, "tell its epoch", || {
            let transaction = self.redb()?.begin_read()?;
            let table = match transaction.open_table(STATE) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                table => table?,
            };
            let state = ReadableTable::get(&table, STATE_KEY)?;
            Ok::<_, redb::Error>(state.and_then(|bytes| State::decode(bytes.value())))
        })
    }

    /// Applies changes; with a state durably and finally, without one as a step on the way to it.
    pub(super) fn apply<'a>(
        &self,
        changes: impl IntoIterator<Item = (&'a [u8], Option<&'a [u8]>)>,
        state: Option<State>,
    ) -> Result<()> {
        guarded(&self.disk, "take changes", || {
            let mut transaction = self.redb()?.begin_write()?;
            if state.is_none() {
                transaction.set_durability(Durability::None)?;
            }
            {
                let mut table = transaction.open_table(DATA)?;
                for (key, value) in changes {
                    match value {
                        Some(value) => table.insert(key, sealed(key, value).as_slice())?,
                        None => table.remove(key)?,
                    };
                }
            }
            if let Some(state) = state {
                let mut table = transaction.open_table(STATE)?;
                table.insert(STATE_KEY, state.encode().as_slice())?;
            }
            transaction.commit()?;
            Ok::<_, redb::Error>(())
        })
    }

    /// `apply` for changes as the journal has them.
    pub(super) fn apply_changes(&self, changes: &[Change], state: Option<State>) -> Result<()> {
        let borrowed = changes
            .iter()
            .map(|(key, value)| (key.as_bytes(), value.as_deref()));
        self.apply(borrowed, state)
    }

    /// Says whether it is at a moment; an error names what it is at instead. Its disk may have dropped what was written
    /// last: opened again, such a database is whole and older, and changes since another moment would leave a gap in it.
    pub(super) fn must_be_at(&self, mark: Mark) -> Result<()> {
        let at = self.state()?.map(|state| state.mark).unwrap_or_default();
        if at.is_same_as(mark) {
            return Ok(());
        }
        Err(MetaError::Database {
            disk: self.disk.clone(),
            what: "keep what was written to it",
            why: format!("it is at epoch {} and not at {}", at.epoch, mark.epoch),
        })
    }

    /// A view of the database as it is now, that later changes do not reach.
    pub(super) fn snapshot(self: &Arc<Self>) -> Result<Snapshot> {
        let (transaction, table, state) = guarded(&self.disk, "begin to read", || {
            let transaction = self.redb()?.begin_read()?;
            let table = match transaction.open_table(DATA) {
                Err(redb::TableError::TableDoesNotExist(_)) => None,
                table => Some(table?),
            };
            let state = match transaction.open_table(STATE) {
                Err(redb::TableError::TableDoesNotExist(_)) => None,
                state => ReadableTable::get(&state?, STATE_KEY)?
                    .and_then(|bytes| State::decode(bytes.value())),
            };
            Ok::<_, redb::Error>((transaction, table, state))
        })?;
        Ok(Snapshot {
            mark: state.map(|state| state.mark).unwrap_or_default(),
            table,
            _transaction: transaction,
            database: Arc::clone(self),
        })
    }
}

/// A database at one moment. Cheap to read from any thread.
pub(super) struct Snapshot {
    pub(super) mark: Mark,
    table: Option<ReadOnlyTable<&'static [u8], &'static [u8]>>,
    _transaction: ReadTransaction,
    pub(super) database: Arc<Database>,
}

/// A key with what the database says of it: its value, or none where the value is damaged.
pub(super) type Found = (Key, Option<Value>);

impl Snapshot {
    /// The value of a key. `Damaged` where it is not what was written.
    pub(super) fn get(&self, key: &Key) -> Result<Option<Value>> {
        let Some(table) = &self.table else {
            return Ok(None);
        };
        let found = guarded(&self.database.disk, "read", || {
            let found = ReadableTable::get(table, key.as_bytes())?;
            Ok::<_, redb::StorageError>(found.map(|bytes| unsealed(key.as_bytes(), bytes.value())))
        })?;
        match found {
            None => Ok(None),
            Some(Some(value)) => Ok(Some(value)),
            Some(None) => Err(MetaError::Damaged { key: key.clone() }),
        }
    }

    /// Up to `limit` keys of all tables in order, after a key or from the first one on.
    pub(super) fn after(&self, key: Option<&Key>, limit: usize) -> Result<Vec<Found>> {
        let from = key.map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_bytes()));
        self.range(&[], from, limit)
    }

    /// Up to `limit` keys in order, from a bound on, that begin with a prefix.
    pub(super) fn range(
        &self,
        prefix: &[u8],
        from: Bound<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Found>> {
        let Some(table) = &self.table else {
            return Ok(Vec::new());
        };
        guarded(&self.database.disk, "read", || {
            let mut found = Vec::new();
            for entry in ReadableTable::range::<&[u8]>(table, (from, Bound::Unbounded))?.take(limit)
            {
                let (key, value) = entry?;
                let key = key.value();
                if !key.starts_with(prefix) {
                    break;
                }
                // A table that is not known belongs to a later minor version.
                if let Some(parsed) = Key::from_bytes(key) {
                    found.push((parsed, unsealed(key, value.value())));
                }
            }
            Ok::<_, redb::StorageError>(found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    fn state(epoch: u64) -> State {
        State {
            volume: VolumeId(7),
            mark: Mark {
                epoch: Epoch(epoch),
                generation: 8,
                fingerprint: 9,
            },
        }
    }

    fn filled(disk: &dyn Disk) -> Arc<Database> {
        let database = Database::create(disk, &Arc::default(), WRITE_CACHE).unwrap();
        let changes: Vec<Change> = (0..2000u32)
            .map(|n| {
                let value: Value = vec![n as u8; 100].into();
                (Key::setting(&n.to_be_bytes()), Some(value))
            })
            .collect();
        database.apply_changes(&changes, Some(state(3))).unwrap();
        Arc::new(database)
    }

    #[test]
    fn what_was_put_is_found_after_reopening() {
        let disk = MemoryDisk::new("a");
        drop(filled(&disk));
        let database = Arc::new(
            Database::open(&disk, &Arc::default(), WRITE_CACHE, true)
                .unwrap()
                .unwrap(),
        );
        assert_eq!(database.state().unwrap(), Some(state(3)));
        let snapshot = database.snapshot().unwrap();
        database
            .apply_changes(&[(Key::setting(&5u32.to_be_bytes()), None)], Some(state(4)))
            .unwrap();
        let key = Key::setting(&5u32.to_be_bytes());
        assert_eq!(snapshot.get(&key).unwrap().unwrap()[..], [5; 100]);
        assert_eq!(database.snapshot().unwrap().get(&key).unwrap(), None);
        let prefix = Key::setting(&[0, 0, 1]);
        let found = snapshot
            .range(prefix.as_bytes(), Bound::Included(prefix.as_bytes()), 1000)
            .unwrap();
        assert_eq!(found.len(), 256);
    }

    #[test]
    fn steps_without_a_state_are_not_believed() {
        let disk = MemoryDisk::new("a");
        let database = Database::create(&disk, &Arc::default(), WRITE_CACHE).unwrap();
        database
            .apply_changes(&[(Key::setting(b"x"), Some(b"y"[..].into()))], None)
            .unwrap();
        assert_eq!(database.state().unwrap(), None);
        drop(database);
        let killed = disk.after_kill();
        let database = Database::open(&killed, &Arc::default(), WRITE_CACHE, true)
            .unwrap()
            .unwrap();
        assert_eq!(database.state().unwrap(), None);
    }

    /// Guards against values served from a file that was changed below redb, and against its panics.
    #[test]
    fn no_damage_gives_a_wrong_value_or_a_panic() {
        let disk = MemoryDisk::new("a");
        drop(filled(&disk));
        let length = disk.length(ObjectName::Database).unwrap();
        let mut noticed = 0;
        for n in 0..150 {
            let damaged = disk.after_kill();
            let at = (n * 7919 * 97) % length;
            let mut byte = [0];
            damaged
                .read_at(ObjectName::Database, at, &mut byte)
                .unwrap();
            byte[0] ^= 1 << (n % 8);
            damaged.restore(ObjectName::Database, at, &byte).unwrap();
            let Ok(Some(database)) = Database::open(&damaged, &Arc::default(), WRITE_CACHE, true)
            else {
                noticed += 1;
                continue;
            };
            let snapshot = Arc::new(database).snapshot().unwrap();
            for n in 0..2000u32 {
                let found = snapshot.get(&Key::setting(&n.to_be_bytes())).unwrap();
                assert_eq!(found.unwrap()[..], [n as u8; 100]);
            }
        }
        assert!(noticed > 50, "{noticed}");
    }

    #[test]
    fn a_value_that_changes_below_an_open_database_is_seen() {
        let disk = MemoryDisk::new("a");
        drop(filled(&disk));
        let mut bytes = vec![0; disk.length(ObjectName::Database).unwrap() as usize];
        disk.read_at(ObjectName::Database, 0, &mut bytes).unwrap();
        let at = bytes.windows(100).position(|w| w == [77; 100]).unwrap();
        disk.restore(ObjectName::Database, at as u64, &[78])
            .unwrap();
        let database = Arc::new(
            Database::open(&disk, &Arc::default(), WRITE_CACHE, false)
                .unwrap()
                .unwrap(),
        );
        let snapshot = database.snapshot().unwrap();
        let damaged = (0..2000u32)
            .filter(|n| {
                matches!(
                    snapshot.get(&Key::setting(&n.to_be_bytes())),
                    Err(MetaError::Damaged { .. })
                )
            })
            .count();
        assert_eq!(damaged, 1);
    }

    #[test]
    fn a_copy_leaves_the_disk_alone() {
        let disk = MemoryDisk::new("a");
        assert!(Database::open_copy(&disk).unwrap().is_none());
        drop(filled(&disk));
        let plan = crate::disk::FaultPlan::new(0);
        plan.add(crate::disk::Rule::new(
            crate::disk::Operations::WRITES,
            crate::disk::When::Always,
            crate::disk::Fault::Death,
        ));
        let unwritable = crate::disk::FaultyDisk::new(Arc::new(disk), plan);
        let copy = Database::open_copy(&unwritable).unwrap().unwrap();
        assert_eq!(copy.state().unwrap(), Some(state(3)));
        copy.apply_changes(&[], Some(state(4))).unwrap();
    }
}
