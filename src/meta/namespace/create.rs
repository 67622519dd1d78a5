//! New files and new names.

use super::{LINKS_MAX, NamespaceError, Result, check_name, directory, inode};
use crate::ids::FileId;
use crate::meta::ROOT;
use crate::meta::records::{Entry, FileKind, Inode, Timestamp};
use crate::meta::table::{Key, Table};
use crate::meta::typed::{Records, WriteRecords};
use crate::meta::update::Update;

/// The most bytes in a symbolic link.
pub const TARGET_MAX: usize = 4095;

const SETGID: u16 = 0o2000;

/// A file to be made.
#[derive(Clone, Copy, Debug)]
pub struct New<'a> {
    /// What kind of file.
    pub kind: FileKind,
    /// Permissions with setuid, setgid and sticky, the umask taken off already.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group, unless the directory gives its own.
    pub gid: u32,
    /// The device that a device file stands for.
    pub rdev: u32,
    /// Where a symbolic link points; empty for other kinds.
    pub target: &'a [u8],
}

impl Update {
    /// The root directory of a new volume.
    pub fn make_root(&mut self, mode: u16, uid: u32, gid: u32, now: Timestamp) {
        let root = Inode {
            kind: FileKind::Directory,
            mode: mode & 0o7777,
            uid,
            gid,
            rdev: 0,
            links: 2,
            size: 0,
            stored: 0,
            atime: now,
            mtime: now,
            ctime: now,
            born: now,
            parent: ROOT,
        };
        self.put_inode(ROOT, &root);
    }

    /// Makes a file. A directory with setgid gives it its group, and to a directory setgid too.
    pub fn create(
        &mut self,
        parent: FileId,
        name: &[u8],
        new: New<'_>,
        now: Timestamp,
    ) -> Result<(FileId, Inode)> {
        let file = FileId(self.view.inner.new_number()?);
        Ok((file, self.create_as(file, parent, name, new, now)?))
    }

    /// The same for a file that has its number already: one that a rescue found without a name.
    pub fn create_as(
        &mut self,
        file: FileId,
        parent: FileId,
        name: &[u8],
        new: New<'_>,
        now: Timestamp,
    ) -> Result<Inode> {
        let above = self.free_name(parent, name)?;
        if new.target.len() > TARGET_MAX {
            return Err(NamespaceError::NameTooLong {
                length: new.target.len(),
                most: TARGET_MAX,
            });
        }
        let is_directory = new.kind == FileKind::Directory;
        let inherits = above.mode & SETGID != 0;
        let mut mode = new.mode & 0o7777;
        if inherits && is_directory {
            mode |= SETGID;
        }
        let inode = Inode {
            kind: new.kind,
            mode,
            uid: new.uid,
            gid: if inherits { above.gid } else { new.gid },
            rdev: new.rdev,
            links: if is_directory { 2 } else { 1 },
            size: new.target.len() as u64,
            stored: 0,
            atime: now,
            mtime: now,
            ctime: now,
            born: now,
            parent: if is_directory { parent } else { FileId(0) },
        };
        self.touch_directory(parent, i32::from(is_directory), now)?;
        self.put_inode(file, &inode);
        if new.kind == FileKind::Symlink {
            self.put(Key::file(Table::Target, file), new.target);
        }
        self.put_name(parent, name, file, new.kind);
        Ok(inode)
    }

    /// Gives a file one more name.
    pub fn link(
        &mut self,
        file: FileId,
        parent: FileId,
        name: &[u8],
        now: Timestamp,
    ) -> Result<Inode> {
        let mut inode = inode(self, file)?;
        if inode.kind == FileKind::Directory {
            return Err(NamespaceError::DirectoryLink { file });
        }
        if inode.links == 0 {
            return Err(NamespaceError::Gone { file });
        }
        self.free_name(parent, name)?;
        if inode.links >= LINKS_MAX {
            return Err(NamespaceError::TooManyLinks { file });
        }
        inode.links += 1;
        inode.ctime = now;
        self.put_inode(file, &inode);
        self.touch_directory(parent, 0, now)?;
        self.put_name(parent, name, file, inode.kind);
        Ok(inode)
    }

    /// Checks that a name can be given in a directory; gives the directory.
    fn free_name(&self, parent: FileId, name: &[u8]) -> Result<Inode> {
        let above = directory(self, parent)?;
        check_name(name)?;
        if above.links == 0 {
            return Err(NamespaceError::Gone { file: parent });
        }
        if self.entry(parent, name)?.is_some() {
            return Err(NamespaceError::Exists {
                directory: parent,
                name: name.to_vec(),
            });
        }
        Ok(above)
    }

    pub(super) fn put_name(&mut self, parent: FileId, name: &[u8], file: FileId, kind: FileKind) {
        self.put(Key::entry(parent, name), &Entry { file, kind }.encode());
        self.put(Key::link(file, parent, name), &[]);
    }

    pub(super) fn delete_name(&mut self, parent: FileId, name: &[u8], file: FileId) {
        self.delete(Key::entry(parent, name));
        self.delete(Key::link(file, parent, name));
    }
}
