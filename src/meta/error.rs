//! What can go wrong with the metadata as such. What a program did wrong with a name is `NamespaceError`.

use crate::disk::DiskError;
use crate::ids::Epoch;

use super::Key;

/// A failed request to the metadata. Names the disk or the key.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MetaError {
    /// A disk failed.
    #[error(transparent)]
    Disk(#[from] std::sync::Arc<DiskError>),
    /// A disk's database failed or is damaged.
    #[error("disk {disk}: its metadata database failed to {what}: {why}")]
    Database {
        /// The disk's name.
        disk: String,
        /// What was tried.
        what: &'static str,
        /// What it says.
        why: String,
    },
    /// A stored value is not what was written, on any disk.
    #[error("metadata: {key} is damaged on every disk; `parsfs rescue` may find an earlier copy")]
    Damaged {
        /// The key.
        key: Key,
    },
    /// A stored value or key has no meaning to this version.
    #[error(
        "metadata: {key} cannot be understood; was it written by a newer parsfs? If not, \
         run `parsfs rescue`"
    )]
    Malformed {
        /// The key.
        key: Key,
    },
    /// Two disks hold histories of which neither is a continuation of the other.
    #[error(
        "{} and {} were written to apart from each other, and the two histories cannot be joined; take all disks of \
         one side away, mount, and see what is there; those that are given up must stay away",
        side(.newer), side(.older)
    )]
    Diverged {
        /// The names of the disks that hold the history that came further.
        newer: Vec<String>,
        /// The names of those that hold one that cannot be joined to it.
        older: Vec<String>,
    },
    /// No disk holds any metadata.
    #[error(
        "no disk holds any metadata of this volume; are they mounted? If every copy is lost, run \
         `parsfs rescue`"
    )]
    Nothing,
    /// There is metadata, and a part in its middle is readable on no disk.
    #[error(
        "the metadata transaction of epoch {epoch} is readable on no disk; run `parsfs rescue` to keep \
         what is"
    )]
    Unreadable {
        /// The transaction.
        epoch: Epoch,
    },
    /// So few disks are here that a rescue could give up what the others hold.
    #[error(
        "only {here} of {total} disks are here; a rescue without half of them could give up what the others hold, so \
         nothing was changed: bring disks back and run `parsfs rescue` again"
    )]
    TooFewToRescue {
        /// The disks that answer.
        here: usize,
        /// The disks of the volume.
        total: usize,
    },
    /// Nothing of use was found, and not everything could be looked at.
    #[error(
        "disk {disk}: not all of its metadata can be read ({why}), and no other disk has any of use; nothing was \
         changed: mend the disk, or take it away, and run `parsfs rescue` again"
    )]
    NotLookedAt {
        /// The disk's name.
        disk: String,
        /// Why not.
        why: String,
    },
    /// A rescue has looked at all there is, and none of it is of use.
    #[error("no disk holds any metadata that is of use")]
    NothingOfUse,
    /// There is metadata already where new was to be made.
    #[error("disk {disk} holds metadata already; choose an empty disk")]
    NotEmpty {
        /// The disk's name.
        disk: String,
    },
    /// Too few disks are left to keep a transaction.
    #[error(
        "only {online} of {total} disks take metadata: nothing more is written; bring disks back and mount anew"
    )]
    TooFewDisks {
        /// The disks that do.
        online: usize,
        /// The disks of the volume.
        total: usize,
    },
    /// Nothing may be changed in this mount.
    #[error("the volume is mounted read-only")]
    ReadOnly,
    /// An earlier failure ended all writing.
    #[error("no more metadata can be written since then: {why}{}", anew(why))]
    Poisoned {
        /// The failure.
        why: String,
    },
    /// A disk failed at something else than metadata.
    #[error("{why}")]
    Elsewhere {
        /// What it failed at.
        why: String,
    },
    /// The numbers of this mount are used up.
    #[error("this mount has given out all its file numbers; mount anew")]
    NumbersUsedUp,
    /// The volume's epochs are used up.
    #[error(
        "the volume's transactions have come to the highest number there is, which only damage can have made: take out the \
         disk whose metadata says so and mount without it"
    )]
    EpochsUsedUp,
}

/// The disks of one side, as a sentence has them.
fn side(disks: &[String]) -> String {
    match disks {
        [one] => format!("disk {one}"),
        [others @ .., last] => format!("disks {} and {last}", others.join(", ")),
        [] => "no disk".to_owned(),
    }
}

impl MetaError {
    /// Whether what failed is this process or its machine, and nothing is to be held against a disk.
    pub fn is_own(&self) -> bool {
        matches!(self, MetaError::Disk(error) if error.is_own())
    }
}

impl From<DiskError> for MetaError {
    fn from(error: DiskError) -> MetaError {
        MetaError::Disk(std::sync::Arc::new(error))
    }
}

/// The result of asking the metadata.
pub type Result<T> = std::result::Result<T, MetaError>;

/// What to do, unless the failure says it.
fn anew(why: &str) -> &'static str {
    match why.ends_with("mount anew") {
        true => "",
        false => "; mount anew",
    }
}
