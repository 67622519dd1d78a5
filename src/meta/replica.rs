//! One disk as the metadata sees it: whether it still takes part, and its database while anybody needs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::database::{Database, Snapshot, WRITE_CACHE};
use super::error::{MetaError, Result};
use crate::disk::Disk;
use crate::ids::{DiskId, Epoch};

#[derive(Debug)]
pub(super) struct Replica {
    pub(super) id: DiskId,
    pub(super) disk: Arc<dyn Disk>,
    online: AtomicBool,
    /// Opened and closed under the lock: two handles on one file would ruin it.
    database: Mutex<Option<Arc<Database>>>,
}

impl Replica {
    pub(super) fn new(id: DiskId, disk: Arc<dyn Disk>) -> Replica {
        Replica {
            id,
            disk,
            online: AtomicBool::new(true),
            database: Mutex::new(None),
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
        let mut open = self.database.lock();
        if let Some(database) = open.as_ref() {
            return Ok(Arc::clone(database));
        }
        let database = Database::open(&*self.disk, cache, false)?;
        let database = Arc::new(database.ok_or_else(|| MetaError::Database {
            disk: self.disk.name().to_owned(),
            what: "open",
            why: "it is gone".to_owned(),
        })?);
        *open = Some(Arc::clone(&database));
        Ok(database)
    }

    /// A snapshot of the disk's database if it is at this epoch.
    pub(super) fn snapshot_at(&self, epoch: Epoch) -> Result<Option<Snapshot>> {
        let snapshot = self.database()?.snapshot()?;
        Ok((snapshot.epoch == epoch).then_some(snapshot))
    }

    /// Closes the database if nobody reads it.
    pub(super) fn close_if_idle(&self) {
        let mut open = self.database.lock();
        if open
            .as_ref()
            .is_some_and(|database| Arc::strong_count(database) == 1)
        {
            *open = None;
        }
    }
}
