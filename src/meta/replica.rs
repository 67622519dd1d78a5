//! One disk as the metadata sees it: whether it still takes part, and its database while anybody needs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::database::{Database, Snapshot, State, Sums, WRITE_CACHE};
use super::error::{MetaError, Result};
use super::history::Mark;
use super::rebuild::copy_all;
use crate::disk::Disk;
use crate::ids::DiskId;

#[derive(Debug)]
pub(super) struct Replica {
    pub(super) id: DiskId,
    pub(super) disk: Arc<dyn Disk>,
    online: AtomicBool,
    /// Opened and closed under the lock: two handles on one file would ruin it.
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    database: Option<Arc<Database>>,
    /// What is known of its file, open or not.
    sums: Arc<Sums>,
}

impl Replica {
    pub(super) fn new(id: DiskId, disk: Arc<dyn Disk>, sums: Arc<Sums>) -> Replica {
        let open = Open {
            database: None,
            sums,
        };
        Replica {
            id,
            disk,
            online: AtomicBool::new(true),
            open: Mutex::new(open),
        }
    }

    /// Whether the disk still takes what is written.
    pub(super) fn is_online(&self) -> bool {
        self.online.load(Ordering::SeqCst)
    }

    /// Leaves the disk out from now on; tells whether it took part until now.
    pub(super) fn leave_out(&self) -> bool {
        self.online.swap(false, Ordering::SeqCst)
    }

    /// The disk's database, opened if it is not.
    pub(super) fn database(&self) -> Result<Arc<Database>> {
        self.database_with(WRITE_CACHE)
    }

    /// The disk's database; if it is not open it gets so many bytes for its pages.
    pub(super) fn database_with(&self, cache: usize) -> Result<Arc<Database>> {
        let mut open = self.open.lock();
        if let Some(database) = open.database.as_ref() {
            return Ok(Arc::clone(database));
        }
        let database = Database::open(&*self.disk, &open.sums, cache, false)?;
        let database = Arc::new(database.ok_or_else(|| MetaError::Database {
            disk: self.disk.name().to_owned(),
            what: "open",
            why: "it is gone".to_owned(),
        })?);
        open.database = Some(Arc::clone(&database));
        Ok(database)
    }

    /// Makes the database anew with all that another one holds. Who still reads the old one goes on with it.
    pub(super) fn rebuild(&self, from: &Snapshot, state: State) -> Result<()> {
        let mut open = self.open.lock();
        open.database = None;
        // The old file's pages are another matter from now on.
        open.sums = Arc::default();
        let database = Database::create(&*self.disk, &open.sums, WRITE_CACHE)?;
        copy_all(from, &database, state)?;
        open.database = Some(Arc::new(database));
        Ok(())
    }

    /// Whether this is the disk's open database.
    pub(super) fn has_open(&self, database: &Arc<Database>) -> bool {
        let open = self.open.lock();
        let open = open.database.as_ref();
        open.is_some_and(|open| Arc::ptr_eq(open, database))
    }

    /// A snapshot of the disk's database if it is at this moment.
    pub(super) fn snapshot_at(&self, mark: Mark) -> Result<Option<Snapshot>> {
        let snapshot = self.database()?.snapshot()?;
        Ok(snapshot.mark.is_same_as(mark).then_some(snapshot))
    }

    /// Closes the database if nobody reads it.
    pub(super) fn close_if_idle(&self) {
        let mut open = self.open.lock();
        if open
            .database
            .as_ref()
            .is_some_and(|database| Arc::strong_count(database) == 1)
        {
            open.database = None;
        }
    }
}
