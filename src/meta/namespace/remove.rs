//! Names that go, and the files that go with the last of them.

use super::{NamespaceError, Result, directory, inode};
use crate::ids::FileId;
use crate::meta::namespace::Names;
use crate::meta::records::{Entry, FileKind, Inode, Timestamp};
use crate::meta::table::{Key, Table};
use crate::meta::typed::{Records, WriteRecords};
use crate::meta::update::Update;

/// A file that lost a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The file.
    pub file: FileId,
    /// Its attributes afterwards.
    pub inode: Inode,
    /// Whether the file is gone: nothing is left of it but what it is made of (manifest, deltas and inline
    /// pieces), for the caller to see to and delete with `drop_content`.
    pub gone: bool,
}

impl Update {
    /// Takes a name from a file that is no directory. With its last name the file goes, unless `is_open`
    /// says that it is still in use: then it is an orphan until `remove_orphan`.
    pub fn unlink(
        &mut self,
        parent: FileId,
        name: &[u8],
        now: Timestamp,
        is_open: &dyn Fn(FileId) -> bool,
    ) -> Result<Removed> {
        let Entry { file, kind } = self.entry_of(parent, name)?;
        if kind == FileKind::Directory {
            return Err(NamespaceError::IsDirectory { file });
        }
        self.touch_directory(parent, 0, now)?;
        self.delete_name(parent, name, file);
        self.lose_name(file, now, is_open)
    }

    /// Removes an empty directory.
    pub fn rmdir(
        &mut self,
        parent: FileId,
        name: &[u8],
        now: Timestamp,
        is_open: &dyn Fn(FileId) -> bool,
    ) -> Result<Removed> {
        match name {
            b"." => {
                return Err(NamespaceError::BadName {
                    name: name.to_vec(),
                });
            }
            b".." => return Err(NamespaceError::NotEmpty { directory: parent }),
            _ => {}
        }
        let Entry { file, .. } = self.entry_of(parent, name)?;
        self.check_empty(file)?;
        self.touch_directory(parent, -1, now)?;
        self.delete_name(parent, name, file);
        self.lose_name(file, now, is_open)
    }

    /// Removes an orphan that nobody has open any more. What it is made of stays: see `Removed::gone`.
    pub fn remove_orphan(&mut self, file: FileId) -> Result<()> {
        self.delete(Key::file(Table::Orphan, file));
        self.delete_file(file)
    }

    pub(super) fn entry_of(&self, parent: FileId, name: &[u8]) -> Result<Entry> {
        directory(self, parent)?;
        self.entry(parent, name)?
            .ok_or_else(|| NamespaceError::NotFound {
                directory: parent,
                name: name.to_vec(),
            })
    }

    /// Checks that a file is a directory without names.
    pub(super) fn check_empty(&self, file: FileId) -> Result<()> {
        if self.list(file, None, 1)?.is_empty() {
            Ok(())
        } else {
            Err(NamespaceError::NotEmpty { directory: file })
        }
    }

    /// What becomes of a file that has one name less; the name itself is gone already.
    pub(super) fn lose_name(
        &mut self,
        file: FileId,
        now: Timestamp,
        is_open: &dyn Fn(FileId) -> bool,
    ) -> Result<Removed> {
        let mut inode = inode(self, file)?;
        inode.links = match inode.kind {
            // Its own `.` goes with its name.
            FileKind::Directory => 0,
            _ => inode.links.saturating_sub(1),
        };
        inode.ctime = now;
        let gone = inode.links == 0 && !is_open(file);
        if gone {
            self.delete_file(file)?;
        } else {
            self.put_inode(file, &inode);
            if inode.links == 0 {
                self.put_orphan(file);
            }
        }
        Ok(Removed { file, inode, gone })
    }

    fn delete_file(&mut self, file: FileId) -> Result<()> {
        self.delete(Key::file(Table::Inode, file));
        self.delete_all(&Key::file(Table::Target, file))?;
        self.delete_all(&Key::file(Table::Xattr, file))?;
        Ok(())
    }
}
