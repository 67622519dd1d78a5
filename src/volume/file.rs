//! A file that is in use: its map, its open blocks, and what is pending of its attributes. One lock guards
//! all of it and is never held while a disk is written or a block is read.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use parking_lot::{Mutex, RwLock};

use super::filemap::FileMap;
use super::follow::Follow;
use super::gather::Gatherer;
use super::head::FileHead;
use super::mended::Mended;
use crate::ids::{FileId, SetId, WindowNo};
use crate::meta::{PunchKey, Timestamp};
use crate::store::SetWriter;

/// What a file's committed bytes are worth, for `user.parsfs.state` and `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileCondition {
    /// Written to; something is not committed.
    Open,
    /// A commit runs.
    Committing,
    /// Committed with all the redundancy that the policy asks for.
    Protected,
    /// Readable, but only by reconstruction in parts, or with less redundancy than asked for.
    Degraded,
    /// Bytes are gone, and a guest can be resumed all the same.
    Mended,
    /// Bytes are gone.
    Damaged,
}

impl FileCondition {
    /// The word that administrators see.
    pub fn word(self) -> &'static str {
        match self {
            FileCondition::Open => "open",
            FileCondition::Committing => "committing",
            FileCondition::Protected => "protected",
            FileCondition::Degraded => "degraded",
            FileCondition::Mended => "mended",
            FileCondition::Damaged => "damaged",
        }
    }
}

/// Times of a file that its inode does not tell yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Modification of its bytes.
    pub mtime: Option<Timestamp>,
    /// Change of its status.
    pub ctime: Option<Timestamp>,
}

impl Times {
    /// These, and what they do not tell from `older`.
    pub fn or(self, older: Times) -> Times {
        Times {
            mtime: self.mtime.or(older.mtime),
            ctime: self.ctime.or(older.ctime),
        }
    }

    /// Takes away what is set by hand: the change of status always, the modification with `mtime`.
    pub fn take_set(&mut self, mtime: bool) -> Times {
        Times {
            mtime: if mtime { self.mtime.take() } else { None },
            ctime: self.ctime.take(),
        }
    }
}

/// A file in use.
#[derive(Debug)]
pub struct OpenFile {
    /// Its number.
    pub id: FileId,
    /// One commit at a time.
    pub turn: Mutex<()>,
    /// Held shared while blocks are read by an extent that was found; taken alone before room is given back.
    pub reading: RwLock<()>,
    /// Handles that may write.
    pub writers: AtomicU32,
    /// Handles that the kernel serves through its page cache.
    pub cached: AtomicU32,
    /// Handles that may read. While it is locked, somebody looks for what is lost of the file.
    pub readers: Mutex<u32>,
    /// All handles, and others that need the file kept in use.
    pub users: AtomicU64,
    /// No name leads to it any more.
    pub unlinked: AtomicBool,
    /// A commit runs.
    pub committing: AtomicBool,
    /// An uncommitted base is being written.
    pub spilling: AtomicBool,
    /// A read found bytes that are gone.
    pub damaged: AtomicBool,
    /// It has no capabilities of a program since somebody looked, so that not every write has to.
    pub harmless: AtomicBool,
    /// Somebody wrote through a mapping: the kernel does not say who, so the close of every handle commits.
    pub mapped: AtomicBool,
    /// A commit left bytes in place that the policy gives up, since somebody read the file.
    pub owes_drop: AtomicBool,
    /// The times that the running commit makes true: until then they are the file's as well. Locked last, also while the
    /// metadata is changed: whoever sets times by hand takes these away in that moment.
    pub frozen_times: Mutex<Times>,
    /// All else.
    pub state: Mutex<FileState>,
}

/// What the lock of a file in use guards.
#[derive(Debug)]
pub struct FileState {
    /// Where the bytes are.
    pub map: FileMap,
    /// The open blocks.
    pub gatherer: Gatherer,
    /// What goes by as the file is written.
    pub follow: Follow,
    /// The length that programs see.
    pub size: u64,
    /// The length that is committed.
    pub committed_size: u64,
    /// The head that is committed.
    pub head: FileHead,
    /// Whether `map.base` is not the head's: it was written to keep memory small, and not committed.
    pub spilled: bool,
    /// Room that the committed file may still need, and that the next commit gives back: of windows that spilled bases left
    /// out as nothing lived in them any more, and of what windows had no use for once they got new parity.
    pub emptied: Vec<(PunchKey, u64)>,
    /// Sets that are written and not committed.
    pub pending: Vec<Arc<SetWriter>>,
    /// Windows whose record differs from the committed one.
    pub uncommitted: BTreeSet<WindowNo>,
    /// The sets that the base and the committed deltas refer to.
    pub sets: Vec<SetId>,
    /// Counts the file's windows.
    pub next_window: Arc<AtomicU32>,
    /// The number of the next inline piece.
    pub next_piece: u32,
    /// Inline pieces that are in memory: all new ones, others once they were read.
    pub pieces: HashMap<u32, Arc<[u8]>>,
    /// Pieces that the next commit brings in.
    pub new_pieces: Vec<u32>,
    /// Bytes in inline pieces, new ones included.
    pub inline_bytes: u32,
    /// Bytes of blocks overwritten since the last compaction, about.
    pub dead: u64,
    /// When its bytes changed last, as far as no commit has taken it up.
    pub times: Times,
    /// A commit in the middle of writing left protected, or in place, what the tiers of a finished file would not. The
    /// last close judges again.
    pub owes_tiers: bool,
    /// Bytes were given up that the committed head does not count yet.
    pub gives_up: bool,
    /// How lost bytes are read; none while nobody reads, or nothing was lost when the first reader came.
    pub mended: Option<Mended>,
    /// Counts changes of the map that move bytes: a read that failed looks again when it differs.
    pub version: u64,
}

impl FileState {
    /// Bytes of a range are about to be others: no view says anything of them.
    pub fn change(&mut self, range: std::ops::Range<u64>) {
        if let Some(mended) = &mut self.mended {
            mended.change(range);
        }
    }

    /// Whether the policy gave bytes of it up.
    pub fn gave_up(&self) -> bool {
        self.head.dropped > 0 || self.gives_up
    }

    /// Whether a commit would change anything.
    pub fn is_dirty(&self) -> bool {
        !self.map.top.is_empty()
            || self.size != self.committed_size
            || self.times.mtime.is_some()
            || self.times.ctime.is_some()
            || self.spilled
    }
}

impl OpenFile {
    /// Bytes in open blocks; none while somebody works on the file.
    pub fn open_bytes(&self) -> u64 {
        let state = self.state.try_lock();
        state.map_or(0, |state| state.gatherer.open_bytes() as u64)
    }
}
