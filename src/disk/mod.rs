//! One backing store that can fail alone: a directory on its own device now, a pool of a distributed
//! engine later. A disk keeps named objects that are appended to and read by range; what was appended is
//! never rewritten with other bytes. This room knows nothing of what the objects hold.

mod directory;
mod error;
mod faulty;
mod label;
mod lock;
mod memory;
mod open_limit;
mod patience;
mod patient;

use std::fmt;
use std::ops::Range;

pub use directory::DirectoryDisk;
pub use error::DiskError;
pub use faulty::{Fault, FaultPlan, FaultyDisk, ObjectFilter, Operation, Operations, Rule, When};
pub use label::{FORMAT, Format, Label, LabelError};
pub use lock::{DiskLock, LockError};
pub use memory::MemoryDisk;
pub use open_limit::{allow_open_files, kept_open, warn_of_small_limit};
pub(crate) use patience::Patience;
pub use patient::{AT_LAST, PatientDisk};

use crate::ids::{ManifestId, SetId};

/// The result of asking a disk.
pub type Result<T> = std::result::Result<T, DiskError>;

/// The name of an object: its kind, and within the kind its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// Who this disk is: written by `init`, small, replaced as a whole.
    Label,
    /// The embedded database, the one object written at random.
    Database,
    /// One file of the journal of metadata transactions; a higher number is later.
    Journal(u64),
    /// The manifest of the namespace; a higher number is later.
    Names(u64),
    /// A file's manifest.
    Manifest(ManifestId),
    /// The blocks that one commit put on this disk.
    Blocks(SetId),
    /// The parity that one commit put on this disk.
    Parity(SetId),
}

impl fmt::Display for ObjectName {
    /// For administrators: its kind, and the name of its file on a disk that is a directory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectName::Label => write!(f, "label"),
            ObjectName::Database => write!(f, "meta.redb"),
            ObjectName::Journal(number) => write!(f, "journal {number:016x}"),
            ObjectName::Names(number) => write!(f, "names {number:016x}"),
            ObjectName::Manifest(ManifestId(number)) => write!(f, "manifest {number:016x}"),
            ObjectName::Blocks(SetId(number)) => write!(f, "segment {number:016x}.blocks"),
            ObjectName::Parity(SetId(number)) => write!(f, "segment {number:016x}.parity"),
        }
    }
}

/// How much a disk holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// All of the disk.
    pub total: u64,
    /// What can still be written.
    pub free: u64,
}

/// A named store of objects. Every method may be called from any thread; none may panic, whatever the
/// medium holds. An error says nothing about other objects.
pub trait Disk: Send + Sync + fmt::Debug {
    /// What the administrator calls this disk; for errors and logs.
    fn name(&self) -> &str;

    /// What tells the device below apart from others where that is known, so that two disks on one device
    /// can be warned of.
    fn device(&self) -> Option<u64>;

    /// Whether a call may take for ever. Memory answers.
    fn may_hang(&self) -> bool {
        true
    }

    /// Whether the medium is still the one that was opened: an error (`Gone`) when it was taken away, or something else
    /// is in its place. What it held open may still answer then.
    fn check(&self) -> Result<()>;

    /// Begins a new object. An object of that name is an error (`AlreadyExists`).
    fn create(&self, object: ObjectName) -> Result<Box<dyn Appender>>;

    /// Goes on appending to an object after its first `length` bytes; anything behind them is cut off.
    fn resume(&self, object: ObjectName, length: u64) -> Result<Box<dyn Appender>>;

    /// Fills `buffer` with the object's bytes from `offset`; fewer bytes there is an error (`Short`).
    fn read_at(&self, object: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Fills `buffer` if that needs no waiting for the medium; tells whether it did. Nothing else is told by it: what
    /// went wrong, if anything did, `read_at` says.
    fn read_at_once(&self, _object: ObjectName, _offset: u64, _buffer: &mut [u8]) -> bool {
        false
    }

    /// Forgets what is kept in memory of an object, so that the next read asks the medium. Does nothing where that
    /// cannot be had.
    fn forget(&self, _object: ObjectName) {}

    /// Closes what is kept open for reading, so that nothing of this holds the medium. What is asked later opens it again.
    fn let_go(&self) {}

    /// Tells that the range is soon to be read. Does nothing where the medium has no use for it. It may take as long as
    /// `read_at`: nobody is to wait for it who waits for no read.
    fn will_read(&self, object: ObjectName, range: Range<u64>);

    /// The object's length in bytes.
    fn length(&self, object: ObjectName) -> Result<u64>;

    /// Puts a whole object in place of whatever was there, at once and durably: after a crash it is the old
    /// or the new one.
    fn put(&self, object: ObjectName, bytes: &[u8]) -> Result<()>;

    /// Writes again what was appended there before and went bad, and makes it durable. The object is created
    /// if it is gone. `Unsupported` where the medium cannot.
    fn restore(&self, object: ObjectName, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Gives back the room of a range, which will never be read again. `Unsupported` is not a failure.
    fn punch(&self, object: ObjectName, range: Range<u64>) -> Result<()>;

    /// Removes an object; its not being there is no error.
    fn remove(&self, object: ObjectName) -> Result<()>;

    /// Every object with the bytes it occupies on the medium. Foreign files are passed over.
    fn list(&self) -> Result<Vec<(ObjectName, u64)>>;

    /// Makes creations and removals so far durable.
    fn sync_names(&self) -> Result<()>;

    /// What the disk holds and can still hold.
    fn space(&self) -> Result<Space>;

    /// Opens an object for reading and writing at random, for a database; created if it is not there.
    fn random_access(&self, object: ObjectName) -> Result<Box<dyn RandomAccess>>;
}

/// The one writer of an object that grows.
pub trait Appender: Send + fmt::Debug {
    /// Appends the slices one after the other; returns the offset of the first byte. After an error nothing
    /// more may be appended: how much arrived is not known.
    fn append(&mut self, slices: &[&[u8]]) -> Result<u64>;

    /// Asks the medium to begin writing down what was appended, but for the last `but` bytes, and does not wait.
    fn start_sync(&mut self, but: u64);

    /// Makes everything appended durable, the object's name excluded (`Disk::sync_names`).
    fn sync(&mut self) -> Result<()>;
}

/// An object read and written at random.
pub trait RandomAccess: Send + Sync + fmt::Debug {
    /// The length in bytes.
    fn length(&self) -> Result<u64>;
    /// Sets the length; new bytes are zero.
    fn set_length(&self, length: u64) -> Result<()>;
    /// Fills the buffer from the offset.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
    /// Writes the bytes at the offset.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// Makes all writes so far durable.
    fn sync(&self) -> Result<()>;
}
