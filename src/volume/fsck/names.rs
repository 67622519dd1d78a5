//! The rules of names: every name leads to a file and every file knows its names, counts are what they count, and all
//! directories hang below the root.

use std::collections::{BTreeMap, BTreeSet};

use super::Check;
use crate::ids::FileId;
use crate::meta::{FileKind, Key, ROOT, Read, Records, Table};
use crate::volume::error::Result;

/// A file's number at the beginning of a key.
fn first(key: &Key) -> Option<FileId> {
    let bytes = key.in_table().first_chunk::<8>()?;
    Some(FileId(u64::from_be_bytes(*bytes)))
}

impl Check<'_> {
    pub(super) fn names(&mut self) -> Result<()> {
        let view = self.volume.meta.view();
        for found in view.files() {
            // What has no meaning is told of already.
            if let Ok((file, inode)) = found {
                self.inodes.insert(file, inode);
            } else {
                break;
            }
        }
        self.report.files = self.inodes.len() as u64;
        match self.inodes.get(&ROOT) {
            Some(root) if root.kind == FileKind::Directory && root.parent == ROOT => {}
            Some(_) => self.report.broken("the root is no directory of its own"),
            None => self.report.broken("there is no root"),
        }
        let mut names: BTreeMap<FileId, u32> = BTreeMap::new();
        let mut directories: BTreeMap<FileId, u32> = BTreeMap::new();
        for found in view.scan(&Key::table_prefix(Table::Entry)) {
            let Ok((key, value)) = found else { break };
            let (Some(directory), Some(entry)) = (first(&key), crate::meta::Entry::decode(&value))
            else {
                continue;
            };
            let name = key.in_table().get(8..).unwrap_or_default();
            let shown = || format!("{} in directory {directory}", name.escape_ascii());
            match self.inodes.get(&directory) {
                Some(inode) if inode.kind == FileKind::Directory => {}
                _ => self
                    .report
                    .broken(format!("the name {} is in no directory", shown())),
            }
            match self.inodes.get(&entry.file).copied() {
                None => {
                    self.report
                        .broken(format!("the name {} leads to no file", shown()));
                    continue;
                }
                Some(inode) if inode.kind != entry.kind => {
                    self.report.broken(format!(
                        "the name {} tells of another kind of file",
                        shown()
                    ));
                }
                Some(inode) if inode.kind == FileKind::Directory && inode.parent != directory => {
                    self.report.broken(format!(
                        "the directory {} is not where its name is",
                        shown()
                    ));
                }
                Some(_) => {}
            }
            *names.entry(entry.file).or_default() += 1;
            if entry.kind == FileKind::Directory {
                *directories.entry(directory).or_default() += 1;
            }
            let link = Key::link(entry.file, directory, name);
            if view.get(&link)?.is_none() {
                self.report.mendable(format!(
                    "the file behind {} does not know that name",
                    shown()
                ));
                self.missing_links.push(link);
            }
        }
        for found in view.scan(&Key::table_prefix(Table::Link)) {
            let Ok((key, _)) = found else { break };
            let bytes = key.in_table();
            let (Some(file), Some(directory), Some(name)) = (
                first(&key),
                bytes.get(8..16).and_then(|bytes| bytes.try_into().ok()),
                bytes.get(16..),
            ) else {
                continue;
            };
            let directory = FileId(u64::from_be_bytes(directory));
            let leads = view.entry(directory, name);
            if !matches!(leads, Ok(Some(entry)) if entry.file == file) {
                self.report.mendable(format!(
                    "file {file} claims the name {} in directory {directory}, which is not its",
                    name.escape_ascii()
                ));
                self.lost_links.push(key);
            }
        }
        let orphans: BTreeSet<FileId> = view.orphans()?.into_iter().collect();
        for (file, inode) in &self.inodes {
            let count = names.get(file).copied().unwrap_or_default();
            let right = if inode.kind == FileKind::Directory {
                2 + directories.get(file).copied().unwrap_or_default()
            } else {
                count
            };
            if inode.links != right {
                self.report.mendable(format!(
                    "file {file} counts {} links and has {right}",
                    inode.links
                ));
                self.links.insert(*file, right);
            }
            let named = count > 0 || *file == ROOT;
            if inode.kind == FileKind::Directory && count > 1 {
                self.report
                    .broken(format!("directory {file} has {count} names"));
            }
            if !named && !orphans.contains(file) {
                self.report.broken(format!("file {file} has no name"));
            }
            if named && orphans.contains(file) {
                self.report
                    .mendable(format!("file {file} has a name and is taken for removed"));
                self.stray.push(Key::file(Table::Orphan, *file));
            }
        }
        self.hang_below_root();
        self.belong_to_files()
    }

    /// Every directory's way up ends at the root.
    fn hang_below_root(&mut self) {
        let mut good: BTreeSet<FileId> = BTreeSet::from([ROOT]);
        let mut lost = Vec::new();
        let is_directory = |inode: &crate::meta::Inode| inode.kind == FileKind::Directory;
        for (file, _) in self.inodes.iter().filter(|(_, inode)| is_directory(inode)) {
            let mut way = vec![*file];
            let mut seen = BTreeSet::from([*file]);
            let reaches = loop {
                let Some(last) = way.last() else { break false };
                if good.contains(last) {
                    break true;
                }
                match self.inodes.get(last) {
                    Some(inode) if is_directory(inode) && seen.insert(inode.parent) => {
                        way.push(inode.parent);
                    }
                    _ => break false,
                }
            };
            if reaches {
                good.extend(way);
            } else {
                lost.push(*file);
            }
        }
        for file in lost {
            self.report
                .broken(format!("directory {file} does not hang below the root"));
        }
    }

    /// What belongs to a file has one, of the right kind.
    fn belong_to_files(&mut self) -> Result<()> {
        let view = self.volume.meta.view();
        for (table, kind) in [
            (Table::Target, Some(FileKind::Symlink)),
            (Table::Xattr, None),
            (Table::Manifest, Some(FileKind::Regular)),
            (Table::Delta, Some(FileKind::Regular)),
            (Table::Inline, Some(FileKind::Regular)),
            (Table::Orphan, None),
        ] {
            for found in view.scan(&Key::table_prefix(table)) {
                let Ok((key, _)) = found else { break };
                let inode = first(&key).and_then(|file| self.inodes.get(&file));
                match inode {
                    None => {
                        self.report.mendable(format!("{key:?} belongs to no file"));
                        self.stray.push(key);
                    }
                    Some(inode) if kind.is_some_and(|kind| kind != inode.kind) => {
                        self.report
                            .broken(format!("{key:?} belongs to a file of another kind"));
                    }
                    Some(_) => {}
                }
            }
        }
        let targets = self
            .inodes
            .iter()
            .filter(|(_, inode)| inode.kind == FileKind::Symlink);
        let without: Vec<FileId> = targets
            .filter(|(file, _)| !matches!(view.target(**file), Ok(Some(_))))
            .map(|(file, _)| *file)
            .collect();
        for file in without {
            self.report
                .broken(format!("symbolic link {file} points nowhere"));
        }
        Ok(())
    }
}
