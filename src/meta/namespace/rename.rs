//! Moving a name, over another one or in exchange with it.

use super::{NamespaceError, Removed, Result, check_name, directory, inode};
use crate::ids::FileId;
use crate::meta::records::{Entry, FileKind, Timestamp};
use crate::meta::typed::{Records, WriteRecords};
use crate::meta::update::Update;

/// What is done about a name that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rename {
    /// It is replaced.
    Replace,
    /// It is an error (RENAME_NOREPLACE).
    NoReplace,
    /// The two change places (RENAME_EXCHANGE).
    Exchange,
}

/// A name in a directory.
type Place<'a> = (FileId, &'a [u8]);

impl Update {
    /// Moves a name. Gives the file that was replaced, if one was.
    pub fn rename(
        &mut self,
        from: (FileId, &[u8]),
        to: (FileId, &[u8]),
        how: Rename,
        now: Timestamp,
        is_open: &dyn Fn(FileId) -> bool,
    ) -> Result<Option<Removed>> {
        check_name(from.1)?;
        check_name(to.1)?;
        let moved = self.entry_of(from.0, from.1)?;
        if directory(self, to.0)?.links == 0 {
            return Err(NamespaceError::Gone { file: to.0 });
        }
        self.check_not_below(moved, to.0)?;
        match (self.entry(to.0, to.1)?, how) {
            (None, Rename::Exchange) => Err(NamespaceError::NotFound {
                directory: to.0,
                name: to.1.to_vec(),
            }),
            (Some(_), Rename::NoReplace) => Err(NamespaceError::Exists {
                directory: to.0,
                name: to.1.to_vec(),
            }),
            // Two names of one file: nothing is done, and that is success.
            (Some(there), _) if there.file == moved.file => Ok(None),
            (Some(there), Rename::Exchange) => {
                self.check_not_below(there, from.0)?;
                self.exchange(from, moved, to, there, now)?;
                Ok(None)
            }
            (there, _) => self.replace(from, moved, to, there, now, is_open),
        }
    }

    fn replace(
        &mut self,
        from: Place<'_>,
        moved: Entry,
        to: Place<'_>,
        there: Option<Entry>,
        now: Timestamp,
        is_open: &dyn Fn(FileId) -> bool,
    ) -> Result<Option<Removed>> {
        let is_directory = |entry: Entry| entry.kind == FileKind::Directory;
        if let Some(there) = there {
            match (is_directory(moved), is_directory(there)) {
                (true, false) => return Err(NamespaceError::NotDirectory { file: there.file }),
                (false, true) => return Err(NamespaceError::IsDirectory { file: there.file }),
                (true, true) => self.check_empty(there.file)?,
                (false, false) => {}
            }
        }
        let links = i32::from(is_directory(moved));
        self.touch_directory(from.0, -links, now)?;
        // A directory that is replaced was counted there, and the one that comes is counted instead.
        let replaced = i32::from(there.is_some_and(is_directory));
        self.touch_directory(to.0, links - replaced, now)?;
        self.delete_name(from.0, from.1, moved.file);
        let mut removed = None;
        if let Some(there) = there {
            self.delete_name(to.0, to.1, there.file);
            removed = Some(self.lose_name(there.file, now, is_open)?);
        }
        self.arrive(to, moved, now)?;
        Ok(removed)
    }

    fn exchange(
        &mut self,
        from: Place<'_>,
        moved: Entry,
        to: Place<'_>,
        there: Entry,
        now: Timestamp,
    ) -> Result<()> {
        let links = |entry: Entry| i32::from(entry.kind == FileKind::Directory);
        self.touch_directory(from.0, links(there) - links(moved), now)?;
        self.touch_directory(to.0, links(moved) - links(there), now)?;
        self.delete_name(from.0, from.1, moved.file);
        self.delete_name(to.0, to.1, there.file);
        self.arrive(to, moved, now)?;
        self.arrive(from, there, now)
    }

    /// Gives a file that is being moved its new name.
    fn arrive(&mut self, to: Place<'_>, moved: Entry, now: Timestamp) -> Result<()> {
        let mut inode = inode(self, moved.file)?;
        inode.ctime = now;
        if moved.kind == FileKind::Directory {
            inode.parent = to.0;
        }
        self.put_inode(moved.file, &inode);
        self.put_name(to.0, to.1, moved.file, moved.kind);
        Ok(())
    }

    /// Checks that a directory does not get below itself.
    fn check_not_below(&self, moved: Entry, to: FileId) -> Result<()> {
        if moved.kind != FileKind::Directory {
            return Ok(());
        }
        let mut above = to;
        // The root is above itself; so, perhaps, is a damaged directory, hence the bound.
        for _ in 0..1_000_000 {
            if above == moved.file {
                break;
            }
            let parent = directory(self, above)?.parent;
            if parent == above {
                return Ok(());
            }
            above = parent;
        }
        Err(NamespaceError::BelowItself {
            directory: moved.file,
        })
    }
}
