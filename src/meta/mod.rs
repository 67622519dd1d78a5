//! The namespace and what is committed: an embedded database and a journal on every disk. It knows disks,
//! but neither blocks nor extents: what a file is made of is opaque bytes here.
//!
//! ```text
//! namespace   files and names as POSIX has them     records, table   values and keys
//! view, update   reading, changing                  layer   what changed since the last checkpoint
//! commit   into the journals (`journal`)            checkpoint   into the databases (`database`), and once more (`names`)
//! open     recovery finds what the disks hold by `history`, rebuild brings every disk up to it
//! ```
//!
//! A change is made in memory, where every view finds it at once. A sync appends all changes since the last
//! one to the journal of every disk. A checkpoint brings them into every disk's database, so all databases
//! hold the same, and each can stand in for another.

mod change;
mod check;
mod checkpoint;
mod codec;
mod commit;
mod database;
mod error;
mod flusher;
mod history;
mod inner;
mod join;
mod journal;
mod layer;
mod names;
mod namespace;
mod open;
mod rebuild;
mod records;
mod recovery;
mod replica;
mod report;
mod table;
mod typed;
mod update;
mod view;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

pub use check::check;
pub use error::{MetaError, Result};
pub use history::Mark;
pub use join::CopiesReport;
pub use namespace::{
    Attributes, Listed, NAME_MAX, Names, NamespaceError, New, Overwrite, Removed, Rename, SetXattr,
    TARGET_MAX, XATTR_MAX,
};
pub use open::{Disks, OnDiskFailed, Options};
pub use records::{
    DiskHealth, DiskRecord, DiskState, Entry, FileKind, Inode, SetRecord, Timestamp,
};
pub use report::RescueReport;
pub use table::{Key, PunchKey, Table, Value};
pub use typed::{Records, WriteRecords};
pub use update::Update;
pub use view::{Read, Scan, View};

use self::inner::Inner;
use crate::disk::Disk;
use crate::ids::{DiskId, FileId};

/// The root directory.
pub const ROOT: FileId = FileId(1);

/// The metadata of a volume, open. Any thread may use it.
pub struct Meta {
    inner: Arc<Inner>,
    flusher: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Meta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Meta of volume {}", self.inner.options.volume)
    }
}

impl Meta {
    /// What is there now, for reading; later changes do not reach it. Costs well under a microsecond.
    pub fn view(&self) -> View {
        self.inner.view()
    }

    /// Makes a change as a whole, or none at all if `change` fails. Every later view sees it; it is durable
    /// after the next `sync`, or by itself within about a second.
    pub fn update<T, E: From<MetaError>>(
        &self,
        change: impl FnOnce(&mut Update) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        self.inner.update(change)
    }

    /// Returns when every change made before the call is durable on every disk that takes part.
    pub fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    /// Makes everything durable and brings every disk's database up to the journal.
    pub fn checkpoint(&self) -> Result<()> {
        self.inner.checkpoint()
    }

    /// Ends all writing in good order. Without it, what was synced is found again all the same.
    pub fn close(&self) -> Result<()> {
        self.stop_flusher();
        if self.inner.read_only {
            return Ok(());
        }
        let result = self.inner.checkpoint_for(true);
        self.inner
            .poisoned
            .lock()
            .get_or_insert(MetaError::Poisoned {
                why: "it was closed".to_owned(),
            });
        result
    }

    /// Takes no more part with a disk that failed elsewhere. The next transaction begins a generation
    /// without it. What is on it may still be read.
    pub fn leave_out(&self, disk: DiskId, why: &MetaError) {
        self.inner.leave_out(disk, why);
    }

    /// Has a disk take part from now on, while the metadata is in use: a new one, or one that was left out. It is
    /// durable when this returns.
    pub fn join(&self, disk: DiskId, medium: &Arc<dyn Disk>) -> Result<()> {
        self.inner.join(disk, medium)
    }

    /// Has a disk take no part from now on, although nothing is wrong with it: it leaves.
    pub fn part_with(&self, disk: DiskId) -> Result<()> {
        self.inner.part_with(disk)
    }

    /// Closes what is open on a disk that was left out, as far as nobody is in a call there. To be called every few
    /// seconds: what is read of it opens it again.
    pub fn let_go(&self, disk: DiskId) {
        self.inner.let_go(disk);
    }

    /// So many disks the volume has now: half of them must take what is written.
    pub fn set_members(&self, count: usize) {
        self.inner.set_members(count);
    }

    /// Looks all copies of the metadata over, on every disk that takes part, and with `repair` makes good what is not
    /// what it should be.
    pub fn check_copies(&self, repair: bool) -> Result<CopiesReport> {
        self.inner.check_copies(repair)
    }

    /// The disks that are here and take no part, since they were faulty in an earlier mount.
    pub fn excluded(&self) -> &[DiskId] {
        &self.inner.excluded
    }

    /// The disks that missed transactions when the metadata was opened, and have them now.
    pub fn was_away(&self) -> &[DiskId] {
        &self.inner.was_away
    }

    /// The disks that take what is written.
    pub fn online(&self) -> Vec<DiskId> {
        self.inner.online().map(|replica| replica.id).collect()
    }

    /// Whether nothing may be changed: as asked, or because too few disks are here.
    pub fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    /// How often the volume was mounted for writing, this time included.
    pub fn mounts(&self) -> u32 {
        self.inner.mounts
    }

    /// A number that no file, set or manifest of this volume ever had: `(mounts << 32) | counter`.
    pub fn new_number(&self) -> Result<u64> {
        self.inner.new_number()
    }

    /// The newest durable moment.
    pub fn mark(&self) -> Mark {
        *self.inner.newest.lock()
    }

    fn stop_flusher(&self) {
        if let Some(flusher) = self.flusher.lock().take() {
            self.inner.wake.stop();
            // What it failed at it has told already.
            let _ = flusher.join();
        }
    }
}

impl Drop for Meta {
    fn drop(&mut self) {
        self.stop_flusher();
    }
}
