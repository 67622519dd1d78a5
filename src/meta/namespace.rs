//! Files and their names as POSIX has them, over the tables: what a program's call changes, in which
//! objects' link counts and times. Whether the program may is for the kernel to say. The moment is passed
//! in, so that one call's times are all the same.

mod attributes;
mod create;
mod lookup;
mod remove;
mod rename;

pub use attributes::{Attributes, Overwrite, SetXattr, XATTR_MAX};
pub use create::{New, TARGET_MAX};
pub use lookup::{Listed, Names};
pub use remove::Removed;
pub use rename::Rename;

use super::error::MetaError;
use super::records::{Inode, Timestamp};
use super::typed::{Records, WriteRecords};
use super::update::Update;
use crate::ids::FileId;

/// The most bytes in a name, of a file or an extended attribute.
pub const NAME_MAX: usize = 255;

/// The most names of a file.
const LINKS_MAX: u32 = i32::MAX as u32;

/// What a call on names or attributes came to.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Nothing has that name. ENOENT.
    #[error("there is no `{name}` in directory {directory}", name = name.escape_ascii())]
    NotFound {
        /// The directory.
        directory: FileId,
        /// The name.
        name: Vec<u8>,
    },
    /// The file has been removed. ENOENT, or ESTALE.
    #[error("file {file} is no longer there")]
    Gone {
        /// The file.
        file: FileId,
    },
    /// The name is taken. EEXIST.
    #[error("there is a `{name}` in directory {directory} already", name = name.escape_ascii())]
    Exists {
        /// The directory.
        directory: FileId,
        /// The name.
        name: Vec<u8>,
    },
    /// The directory holds names. ENOTEMPTY.
    #[error("directory {directory} is not empty")]
    NotEmpty {
        /// The directory.
        directory: FileId,
    },
    /// A directory is needed. ENOTDIR.
    #[error("file {file} is no directory")]
    NotDirectory {
        /// The file.
        file: FileId,
    },
    /// A directory will not do. EISDIR.
    #[error("file {file} is a directory")]
    IsDirectory {
        /// The file.
        file: FileId,
    },
    /// A directory has one name only. EPERM.
    #[error("directory {file} cannot have a second name")]
    DirectoryLink {
        /// The directory.
        file: FileId,
    },
    /// A name, or a symbolic link's target, is too long. ENAMETOOLONG.
    #[error("a name of {length} bytes is too long; {most} is the most")]
    NameTooLong {
        /// Its bytes.
        length: usize,
        /// The most.
        most: usize,
    },
    /// The name is empty, `.` or `..`, or has a byte that no name has. EINVAL.
    #[error("`{name}` is no name", name = name.escape_ascii())]
    BadName {
        /// The name.
        name: Vec<u8>,
    },
    /// A directory cannot be moved below itself. EINVAL.
    #[error("directory {directory} cannot be moved below itself")]
    BelowItself {
        /// The directory.
        directory: FileId,
    },
    /// The file has as many names as a file can have. EMLINK.
    #[error("file {file} has too many names")]
    TooManyLinks {
        /// The file.
        file: FileId,
    },
    /// There is no such extended attribute. ENODATA.
    #[error("file {file} has no attribute `{name}`", name = name.escape_ascii())]
    NoAttribute {
        /// The file.
        file: FileId,
        /// The attribute.
        name: Vec<u8>,
    },
    /// There is such an extended attribute already. EEXIST.
    #[error("file {file} has an attribute `{name}` already", name = name.escape_ascii())]
    AttributeExists {
        /// The file.
        file: FileId,
        /// The attribute.
        name: Vec<u8>,
    },
    /// An extended attribute's value is too long. E2BIG.
    #[error("an attribute of {length} bytes is too long; {XATTR_MAX} is the most")]
    AttributeTooLong {
        /// Its bytes.
        length: usize,
    },
    /// A file has as many extended attributes as it can have. ENOSPC.
    #[error("file {file} has no room for more in its extended attributes; remove some")]
    TooManyAttributes {
        /// The file.
        file: FileId,
    },
    /// The metadata could not be read. EIO, or EROFS for `ReadOnly`.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

type Result<T> = std::result::Result<T, NamespaceError>;

/// A name that may be given to a file.
fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(NamespaceError::NameTooLong {
            length: name.len(),
            most: NAME_MAX,
        });
    }
    let bad = matches!(name, b"" | b"." | b"..") || memchr::memchr2(b'/', 0, name).is_some();
    if bad {
        return Err(NamespaceError::BadName {
            name: name.to_vec(),
        });
    }
    Ok(())
}

/// A file that must be there.
fn inode(from: &(impl Records + ?Sized), file: FileId) -> Result<Inode> {
    from.inode(file)?.ok_or(NamespaceError::Gone { file })
}

/// A directory that must be there. One without a name takes no names.
fn directory(from: &(impl Records + ?Sized), file: FileId) -> Result<Inode> {
    let inode = inode(from, file)?;
    if inode.kind != super::FileKind::Directory {
        return Err(NamespaceError::NotDirectory { file });
    }
    Ok(inode)
}

impl Update {
    /// A directory whose names are about to change, by `links` names of directories more or fewer.
    fn touch_directory(&mut self, file: FileId, links: i32, now: Timestamp) -> Result<()> {
        let mut inode = directory(self, file)?;
        inode.links = inode.links.saturating_add_signed(links);
        if inode.links > LINKS_MAX {
            return Err(NamespaceError::TooManyLinks { file });
        }
        inode.mtime = now;
        inode.ctime = now;
        self.put_inode(file, &inode);
        Ok(())
    }
}
