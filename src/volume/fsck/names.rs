//! The rules of names: every name leads to a file and every file knows its names, counts are what they count, and all
//! directories hang below the root.

use std::collections::{BTreeMap, BTreeSet};

use super::Check;
use crate::ids::FileId;
use crate::meta::{FileKind, Inode, Key, ROOT, Read, Records, Table};
use crate::volume::error::Result;

/// A file's number at the beginning of a key.
fn first(key: &Key) -> Option<FileId> {
    let bytes = key.in_table().first_chunk::<8>()?;
    Some(FileId(u64::from_be_bytes(*bytes)))
}

impl Check<'_> {
    pub(super) fn names(&mut self) -> Result<()> {
        let view = self.volume.meta.view();
        // Files that are there and of which no more is known.
        let mut unknown: BTreeSet<FileId> = BTreeSet::new();
        for found in view.scan(&Key::table_prefix(Table::Inode)) {
            let (key, value) = match found {
                Ok(found) => found,
                Err(error) => {
                    self.unread(error.to_string());
                    break;
                }
            };
            match (first(&key), Inode::decode(&value)) {
                (Some(file), Some(inode)) => {
                    self.inodes.insert(file, inode);
                }
                // What has no meaning is told of already.
                (file, _) => {
                    unknown.extend(file);
                    self.unread(format!("{key:?} has no meaning"));
                }
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
            let (key, value) = match found {
                Ok(found) => found,
                Err(error) => {
                    self.unread(error.to_string());
                    break;
                }
            };
            let (Some(directory), Some(entry)) = (first(&key), crate::meta::Entry::decode(&value))
            else {
                self.unread(format!("{key:?} has no meaning"));
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
                None if unknown.contains(&entry.file) => continue,
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
            let leads = match view.entry(directory, name) {
                Ok(leads) => leads,
                Err(error) => {
                    self.unread(error.to_string());
                    continue;
                }
            };
            if leads.is_none_or(|entry| entry.file != file) {
                let what = format!(
                    "file {file} claims the name {} in directory {directory}, which is not its",
                    name.escape_ascii()
                );
                self.stray.push((key, what));
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
                self.unfounded.push(Key::file(Table::Orphan, *file));
            }
        }
        self.hang_below_root();
        self.belong_to_files(&unknown)
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
    fn belong_to_files(&mut self, unknown: &BTreeSet<FileId>) -> Result<()> {
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
                let (key, _) = match found {
                    Ok(found) => found,
                    Err(error) => {
                        self.unread(error.to_string());
                        break;
                    }
                };
                let file = first(&key);
                let inode = file.and_then(|file| self.inodes.get(&file));
                match inode {
                    None if file.is_some_and(|file| unknown.contains(&file)) => {}
                    None => {
                        let what = format!("{key:?} belongs to no file");
                        self.stray.push((key, what));
                    }
                    Some(inode) if kind.is_some_and(|kind| kind != inode.kind) => {
                        let what = format!("{key:?} belongs to a file of another kind");
                        // It stays, and nobody reads what it refers to.
                        self.unread(what.as_str());
                        self.report.broken(what);
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
