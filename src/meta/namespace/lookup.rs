//! Finding files by name, and listing.

use std::ops::Bound;

use super::{NAME_MAX, NamespaceError, Result, directory, inode};
use crate::ids::FileId;
use crate::meta::error::MetaError;
use crate::meta::records::{Entry, FileKind, Inode};
use crate::meta::table::{Key, Table};
use crate::meta::typed::Records;

/// One name of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: Vec<u8>,
    /// The file.
    pub file: FileId,
    /// Its kind.
    pub kind: FileKind,
}

/// Reading names, from a view or in an update.
pub trait Names: Records {
    /// The file that has a name in a directory. `.` and `..` are found too.
    fn lookup(&self, parent: FileId, name: &[u8]) -> Result<(FileId, Inode)> {
        let inode_of_parent = directory(self, parent)?;
        if name.len() > NAME_MAX {
            return Err(NamespaceError::NameTooLong {
                length: name.len(),
                most: NAME_MAX,
            });
        }
        let file = match name {
            b"." => return Ok((parent, inode_of_parent)),
            b".." => inode_of_parent.parent,
            _ => match self.entry(parent, name)? {
                Some(entry) => entry.file,
                None => {
                    return Err(NamespaceError::NotFound {
                        directory: parent,
                        name: name.to_vec(),
                    });
                }
            },
        };
        Ok((file, inode(self, file)?))
    }

    /// Up to `limit` names of a directory, in order of their bytes, after a name or from the first one on.
    /// `.` and `..` are not among them.
    fn list(&self, parent: FileId, after: Option<&[u8]>, limit: usize) -> Result<Vec<Listed>> {
        directory(self, parent)?;
        let prefix = Key::file(Table::Entry, parent);
        let after = after.map(|name| Key::entry(parent, name));
        let from = match &after {
            Some(key) => Bound::Excluded(key),
            None => Bound::Included(&prefix),
        };
        let mut listed = Vec::new();
        for (key, value) in self.range(&prefix, from, limit)? {
            let entry =
                Entry::decode(&value).ok_or_else(|| MetaError::Malformed { key: key.clone() })?;
            let mut decoder = key.decoder();
            decoder.key_u64();
            listed.push(Listed {
                name: decoder.rest().to_vec(),
                file: entry.file,
                kind: entry.kind,
            });
        }
        Ok(listed)
    }

    /// The value of an extended attribute.
    fn xattr(&self, file: FileId, name: &[u8]) -> Result<Vec<u8>> {
        inode(self, file)?;
        match self.get(&Key::xattr(file, name))? {
            Some(value) => Ok(value.to_vec()),
            None => Err(NamespaceError::NoAttribute {
                file,
                name: name.to_vec(),
            }),
        }
    }

    /// The names of a file's extended attributes, in order.
    fn xattrs(&self, file: FileId) -> Result<Vec<Vec<u8>>> {
        inode(self, file)?;
        let mut names = Vec::new();
        for found in self.scan(&Key::file(Table::Xattr, file)) {
            let (key, _) = found?;
            let mut decoder = key.decoder();
            decoder.key_u64();
            names.push(decoder.rest().to_vec());
        }
        Ok(names)
    }
}

impl<R: Records> Names for R {}
