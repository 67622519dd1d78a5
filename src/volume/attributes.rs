//! What stat(2) tells and setattr changes, as the mount hands it through.

use crate::ids::FileId;
use crate::meta::{FileKind, Inode, Timestamp};

/// What stat(2) tells.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// The file.
    pub file: FileId,
    /// Its kind.
    pub kind: FileKind,
    /// Permissions with setuid, setgid and sticky: 0o7777.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The device that a device file stands for.
    pub rdev: u32,
    /// How many names it has.
    pub links: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes that it occupies, parity included: `st_blocks` times 512.
    pub allocated: u64,
    /// A commit is to change `allocated`.
    pub commit_is_due: bool,
    /// When it was last read.
    pub atime: Timestamp,
    /// When its bytes last changed.
    pub mtime: Timestamp,
    /// When anything of it last changed.
    pub ctime: Timestamp,
    /// When it was made.
    pub born: Timestamp,
}

impl Attributes {
    /// What the metadata says of a file that is not in use.
    pub(super) fn of(file: FileId, inode: &Inode) -> Attributes {
        Attributes {
            file,
            kind: inode.kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            links: inode.links,
            size: inode.size,
            allocated: inode.stored,
            commit_is_due: false,
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
            born: inode.born,
        }
    }
}

/// A time to be set.
#[derive(Clone, Copy, Debug)]
pub enum SetTime {
    /// That of the call.
    Now,
    /// A given one.
    At(Timestamp),
}

impl SetTime {
    /// The time itself.
    pub(super) fn time(self, now: Timestamp) -> Timestamp {
        match self {
            SetTime::Now => now,
            SetTime::At(time) => time,
        }
    }
}

/// What setattr changes; what is none stays.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Permissions.
    pub mode: Option<u16>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// When it was last read.
    pub atime: Option<SetTime>,
    /// When its bytes last changed.
    pub mtime: Option<SetTime>,
    /// When anything of it last changed, if not now.
    pub ctime: Option<Timestamp>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// A name in a directory's listing.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// The file.
    pub file: FileId,
    /// Its kind.
    pub kind: FileKind,
    /// Where to go on behind it.
    pub next: i64,
}

/// What can be stored.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Bytes of file data that the volume holds in all under its policy.
    pub total: u64,
    /// Bytes of file data, incompressible and critical, that it can still take.
    pub free: u64,
    /// Files there are.
    pub files: u64,
    /// Files there can still be.
    pub files_free: u64,
}
