//! What a file is: names, attributes, handles, gathering, extent maps, commits and reading. The only room
//! that brings guests, snapshots, the store and the metadata together.

mod ahead;
mod annex;
mod attributes;
mod commit;
mod compact;
mod copy;
mod error;
mod file;
mod filemap;
mod fold;
mod follow;
mod frozen;
mod fsck;
mod gather;
mod guests;
mod handles;
mod head;
mod health;
mod holes;
mod in_use;
pub mod look;
mod members;
mod mended;
mod names;
mod open;
mod open_file;
mod overlay;
mod read;
mod recover;
mod repack;
mod rescue;
mod rest;
mod roster;
mod sets;
mod settle;
mod status;
mod straight;
mod sweep;
mod tally;
mod tasks;
#[cfg(test)]
mod tests;
mod tiers;
mod write;
mod xattrs;
mod zeros;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

pub use attributes::{Attributes, Caller, Capacity, Changes, Entry, SetTime};
pub use error::{Result, VolumeError};
pub use follow::Followed;
pub use fsck::{FsckReport, Problem};
pub use guests::Guests;
pub use handles::{Handle, Opened};
pub use mended::{Losses, Lost};
pub use open::{Mode, VolumeOptions};
pub use open_file::{Opening, Waiting};
pub use status::{
    DiskShare, DiskStatus, FileCounts, Inspection, LostLine, Owed, Status, TierBytes, WindowLine,
};
pub use straight::reuse;
pub use tasks::{TaskKind, TaskState, TaskStatus};
pub use tiers::{Finished, FrozenBytes, Judged, Kept, TierSource, Tiers};
pub use write::Allocate;

pub use crate::meta::{FileKind, ROOT, Timestamp};

use self::ahead::Shelf;
use self::file::OpenFile;
use self::handles::{Handles, OpenHandle};
use self::mended::KnownLosses;
use self::names::Table;
use self::sweep::Sweeper;
use self::write::RoomLeft;
use crate::config::{LostReads, Tiering};
use crate::disk::DiskLock;
use crate::ids::{DiskId, FileId, ManifestId, SetId, VolumeId};
use crate::meta::Meta;
use crate::store::manifest::ManifestCache;
use crate::store::{
    BlockCache, Disks, NoWindow, Pipeline, Reader, Workers, beyond_reserve, data_capacity,
};

/// Whether a volume takes changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// It does.
    Writable,
    /// Mounted so, or fewer than half of the disks are here.
    ReadOnly,
    /// Closed.
    Closed,
}

/// An open volume. Any thread may call it.
pub struct Volume {
    me: Weak<Volume>,
    id: VolumeId,
    name: String,
    read_only: bool,
    closed: AtomicBool,
    background: bool,
    block_size: usize,
    cache_bytes: u64,
    meta: Meta,
    disks: Arc<Disks>,
    /// Given back when the volume is closed, or the disk no longer takes part.
    locks: Mutex<BTreeMap<DiskId, DiskLock>>,
    paths: Mutex<Vec<(DiskId, String)>>,
    /// Where the config is, which names the disks.
    config: std::path::PathBuf,
    roster: Mutex<roster::Roster>,
    bell: Arc<health::Bell>,
    rest: rest::Rest,
    tasks: tasks::Tasks,
    squeezer: tasks::Squeezer,
    pipeline: Arc<Pipeline>,
    reader: Reader,
    cache: Arc<BlockCache>,
    manifests: Arc<ManifestCache>,
    readers: Workers,
    /// Room for answers that are made before they are asked for.
    shelf: Arc<Shelf>,
    /// Reads that fetch blocks now.
    reads: AtomicUsize,
    /// Reads that nobody waits for, begun or queued.
    reads_aside: AtomicUsize,
    /// With fewer reads than this under way, the blocks of one are fetched side by side.
    spread_below: usize,
    tiers: Arc<dyn TierSource>,
    tiering: Tiering,
    files: Mutex<Table>,
    loads: in_use::Loads,
    handles: Handles,
    /// Files of all kinds.
    inodes: AtomicU64,
    room: Mutex<RoomLeft>,
    sweeper: Sweeper,
    /// What is read of lost bytes.
    lost: LostReads,
    known_losses: KnownLosses,
    /// Commits that nobody waits for.
    aside: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Volume {} ({})", self.name, self.id)
    }
}

impl Volume {
    /// The volume's identity.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// Whether nothing may be changed.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether it takes changes now.
    pub fn state(&self) -> VolumeState {
        if self.closed.load(Ordering::Acquire) {
            VolumeState::Closed
        } else if self.read_only {
            VolumeState::ReadOnly
        } else {
            VolumeState::Writable
        }
    }

    fn check_writable(&self) -> Result<()> {
        match self.state() {
            VolumeState::Writable => Ok(()),
            VolumeState::ReadOnly => Err(VolumeError::new(
                libc::EROFS,
                "the volume is mounted read-only",
            )),
            VolumeState::Closed => Err(VolumeError::new(libc::EIO, "the volume is closed")),
        }
    }

    fn handle(&self, handle: Handle) -> Result<Arc<OpenHandle>> {
        self.handles.get(handle)
    }

    /// The files that are in use now.
    fn files_in_use(&self) -> Vec<Arc<OpenFile>> {
        self.files.lock().values().cloned().collect()
    }

    /// A file, if it is in use.
    fn in_use(&self, file: FileId) -> Option<Arc<OpenFile>> {
        self.files.lock().get(&file).cloned()
    }

    /// A number for a segment set; none when the metadata takes no more changes, since nothing could refer to the set.
    fn next_set(&self) -> std::result::Result<SetId, NoWindow> {
        let number = self.meta.new_number().map_err(|error| {
            tracing::error!(%error, "no number for what is written; mount the volume anew");
            NoWindow::NoNumber
        })?;
        Ok(SetId(number))
    }

    /// A number for a manifest.
    fn next_manifest(&self) -> Result<ManifestId> {
        Ok(ManifestId(self.meta.new_number()?))
    }

    /// Bytes of incompressible critical data that can still be stored.
    fn data_room(&self) -> u64 {
        let free: Vec<u64> = self
            .pipeline
            .room
            .candidates()
            .iter()
            .map(|disk| disk.free)
            .collect();
        data_capacity(self.pipeline.policy.critical, &free)
    }

    /// Why no data can be written although the volume is mounted for writing, if so.
    pub fn refuses_data(&self) -> Option<String> {
        let refusal = (!self.read_only).then(|| self.pipeline.refuses()).flatten();
        refusal.map(|refusal| refusal.to_string())
    }

    /// What can be stored under the policy.
    pub fn capacity(&self) -> Result<Capacity> {
        let space = self.pipeline.room.space();
        let total: Vec<u64> = space.values().map(|space| space.total).collect();
        let free = if self.read_only {
            // What could be stored if it were mounted for writing.
            let left: Vec<u64> = space.values().map(beyond_reserve).collect();
            data_capacity(self.pipeline.policy.critical, &left)
        } else {
            self.data_room().saturating_sub(self.pipeline.unwritten())
        };
        Ok(Capacity {
            total: data_capacity(self.pipeline.policy.critical, &total),
            free,
            files: self.inodes.load(Ordering::Relaxed),
            files_free: free / 4096,
        })
    }
}
