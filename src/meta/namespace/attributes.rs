//! Attributes, plain and extended.

use super::{NAME_MAX, NamespaceError, Result, inode};
use crate::ids::FileId;
use crate::meta::records::{Inode, Timestamp};
use crate::meta::table::{Key, Table};
use crate::meta::typed::WriteRecords;
use crate::meta::update::Update;
use crate::meta::view::Read;

/// The most bytes in the value of an extended attribute.
pub const XATTR_MAX: usize = 64 << 10;

/// The most bytes in the names of a file's extended attributes, each with the zero behind it: the kernel lists no more than
/// 64 KiB, and what the volume tells of a file is listed with them.
const XATTR_NAMES_MAX: usize = (64 << 10) - (1 << 10);

/// The most bytes in the values of all extended attributes of a file.
const XATTR_VALUES_MAX: usize = 1 << 20;

/// Attributes to be set; those that are none stay as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    /// Permissions with setuid, setgid and sticky.
    pub mode: Option<u16>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// Bytes in the file. Setting it sets `mtime`, unless that is given.
    pub size: Option<u64>,
    /// Bytes that count as occupied.
    pub stored: Option<u64>,
    /// When it was last read.
    pub atime: Option<Timestamp>,
    /// When its content last changed.
    pub mtime: Option<Timestamp>,
    /// When it last changed, if it is not now.
    pub ctime: Option<Timestamp>,
}

/// What is done about an extended attribute that is there already, or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// It is set in either case.
    Either,
    /// It must not be there (XATTR_CREATE).
    Create,
    /// It must be there (XATTR_REPLACE).
    Replace,
}

/// An extended attribute to be set.
#[derive(Clone, Copy, Debug)]
pub struct SetXattr<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// What is done about one that is there.
    pub overwrite: Overwrite,
}

impl Update {
    /// Sets attributes; gives all of them afterwards. A file without a name, but open, will do.
    pub fn set_attributes(
        &mut self,
        file: FileId,
        set: &Attributes,
        now: Timestamp,
    ) -> Result<Inode> {
        let mut inode = inode(self, file)?;
        inode.mode = set.mode.map_or(inode.mode, |mode| mode & 0o7777);
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        if let Some(size) = set.size {
            inode.size = size;
            inode.mtime = now;
        }
        inode.stored = set.stored.unwrap_or(inode.stored);
        inode.atime = set.atime.unwrap_or(inode.atime);
        inode.mtime = set.mtime.unwrap_or(inode.mtime);
        inode.ctime = set.ctime.unwrap_or(now);
        self.put_inode(file, &inode);
        Ok(inode)
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&mut self, file: FileId, set: SetXattr<'_>, now: Timestamp) -> Result<()> {
        let mut inode = inode(self, file)?;
        let name = set.name.to_vec();
        if name.len() > NAME_MAX {
            return Err(NamespaceError::NameTooLong {
                length: name.len(),
                most: NAME_MAX,
            });
        }
        if name.is_empty() || name.contains(&0) {
            return Err(NamespaceError::BadName { name });
        }
        if set.value.len() > XATTR_MAX {
            return Err(NamespaceError::AttributeTooLong {
                length: set.value.len(),
            });
        }
        let key = Key::xattr(file, set.name);
        let before = self.get(&key)?.map(|value| value.len());
        match (before, set.overwrite) {
            (Some(_), Overwrite::Create) => {
                return Err(NamespaceError::AttributeExists { file, name });
            }
            (None, Overwrite::Replace) => {
                return Err(NamespaceError::NoAttribute { file, name });
            }
            _ => {}
        }
        // One that takes less than before is no harm, however much there is.
        if before.is_none_or(|before| before < set.value.len()) {
            self.check_room(file, &set, before)?;
        }
        self.put(key, set.value);
        inode.ctime = now;
        self.put_inode(file, &inode);
        Ok(())
    }

    /// Refuses an attribute with which a file would have more than it may.
    fn check_room(&self, file: FileId, set: &SetXattr<'_>, before: Option<usize>) -> Result<()> {
        let mut names = match before {
            Some(_) => 0,
            None => set.name.len() + 1,
        };
        let mut values = set.value.len() - before.unwrap_or(0);
        for found in self.scan(&Key::file(Table::Xattr, file)) {
            let (key, value) = found?;
            let mut decoder = key.decoder();
            decoder.key_u64();
            names += decoder.rest().len() + 1;
            values += value.len();
        }
        let is_new_name = before.is_none();
        if is_new_name && names > XATTR_NAMES_MAX || values > XATTR_VALUES_MAX {
            return Err(NamespaceError::TooManyAttributes { file });
        }
        Ok(())
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&mut self, file: FileId, name: &[u8], now: Timestamp) -> Result<()> {
        let mut inode = inode(self, file)?;
        let key = Key::xattr(file, name);
        if self.get(&key)?.is_none() {
            return Err(NamespaceError::NoAttribute {
                file,
                name: name.to_vec(),
            });
        }
        self.delete(key);
        inode.ctime = now;
        self.put_inode(file, &inode);
        Ok(())
    }
}
