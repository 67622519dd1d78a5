//! Everything that a program can see of a tree, and the differences between two trees.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use xxhash_rust::xxh3::Xxh3;

/// What is seen of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: &'static str,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Links of anything but a directory: filesystems count those of directories differently.
    pub links: u64,
    /// Bytes of a file, and none of anything else.
    pub size: u64,
    pub device: u64,
    pub digest: u128,
    pub target: OsString,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    pub modified: (i64, i64),
    /// The first name of the same file.
    pub same_as: PathBuf,
    /// Not compared: tells whether a file is the same as at another time.
    pub number: u64,
    /// Not compared: tells whether a file was touched since.
    pub changed: (i64, i64),
}

/// A tree by path.
#[derive(Clone, Debug, Default)]
pub struct Tree(pub BTreeMap<PathBuf, Entry>);

/// How modification times are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// To the nanosecond.
    Exact,
    /// Times before 2020 were set by hand and are exact. Later ones were given by a clock, at about the same time on both
    /// sides.
    SetOnesExact,
}

const SET_BY_HAND_BEFORE: i64 = 1_577_836_800;
const CLOCKS_APART: i64 = 30;

impl Tree {
    /// Sees a whole tree. Reads every byte, and asks for holes: one that is told and holds something is an error.
    pub fn capture(root: &Path) -> Result<Tree, String> {
        let mut tree = Tree::default();
        let mut first_names = BTreeMap::new();
        tree.add(root, Path::new(""), &mut first_names)?;
        Ok(tree)
    }

    fn add(
        &mut self,
        root: &Path,
        relative: &Path,
        first: &mut BTreeMap<u64, PathBuf>,
    ) -> Result<(), String> {
        let path = root.join(relative);
        let failed = |what: &str, error: io::Error| format!("{}: {what}: {error}", path.display());
        let metadata = fs::symlink_metadata(&path).map_err(|error| failed("stat", error))?;
        if relative != Path::new("") {
            let mut entry = see(&path, &metadata).map_err(|(what, error)| failed(what, error))?;
            entry.same_as = first
                .entry(metadata.ino())
                .or_insert_with(|| relative.to_owned())
                .clone();
            self.0.insert(relative.to_owned(), entry);
        }
        if metadata.is_dir() {
            let mut names = Vec::new();
            for entry in fs::read_dir(&path).map_err(|error| failed("list", error))? {
                names.push(entry.map_err(|error| failed("list", error))?.file_name());
            }
            names.sort();
            if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(format!("{}: lists {:?} twice", path.display(), twice[0]));
            }
            for name in names {
                self.add(root, &relative.join(name), first)?;
            }
        }
        Ok(())
    }

    /// What differs, one line a difference.
    pub fn differences(&self, other: &Tree, times: Times) -> Vec<String> {
        let mut found = Vec::new();
        for (path, entry) in &self.0 {
            match other.0.get(path) {
                None => found.push(format!(
                    "{}: only on the first side ({})",
                    path.display(),
                    entry.kind
                )),
                Some(theirs) => found.extend(
                    entry
                        .differences(theirs, times)
                        .into_iter()
                        .map(|what| format!("{}: {what}", path.display())),
                ),
            }
        }
        let missing = other
            .0
            .iter()
            .filter(|(path, _)| !self.0.contains_key(*path));
        found.extend(missing.map(|(path, entry)| {
            format!(
                "{}: only on the second side ({})",
                path.display(),
                entry.kind
            )
        }));
        found
    }
}

impl Entry {
    /// What differs between two entries of one path.
    pub fn differences(&self, other: &Entry, times: Times) -> Vec<String> {
        if self.kind != other.kind {
            return vec![format!("kind {} and {}", self.kind, other.kind)];
        }
        let mut found = Vec::new();
        let mut compare = |what: &str, a: &dyn fmt::Debug, b: &dyn fmt::Debug| {
            let (a, b) = (format!("{a:?}"), format!("{b:?}"));
            if a != b {
                found.push(format!("{what} {a} and {b}"));
            }
        };
        compare(
            "mode",
            &format_args!("{:o}", self.mode),
            &format_args!("{:o}", other.mode),
        );
        compare("owner", &self.owner, &other.owner);
        compare("links", &self.links, &other.links);
        compare("size", &self.size, &other.size);
        compare("device", &self.device, &other.device);
        compare("content", &self.digest, &other.digest);
        compare("target", &self.target, &other.target);
        compare("xattrs", &self.xattrs, &other.xattrs);
        compare("first link", &self.same_as, &other.same_as);
        let apart = (self.modified.0 - other.modified.0).abs();
        let by_hand = self.modified.0.min(other.modified.0) < SET_BY_HAND_BEFORE;
        if times == Times::Exact || by_hand || apart > CLOCKS_APART {
            compare("mtime", &self.modified, &other.modified);
        }
        found
    }
}

/// Compares two trees where they lie; for files that differ, tells where.
pub fn compare(first: &Path, second: &Path, times: Times) -> Result<(), String> {
    let mut found = Tree::capture(first)?.differences(&Tree::capture(second)?, times);
    if found.is_empty() {
        return Ok(());
    }
    for line in &mut found {
        let path = line.split(": ").next().unwrap_or_default().to_owned();
        if line.contains(": content ") {
            line.push_str(&format!(
                ", {}",
                first_difference(&first.join(&path), &second.join(&path))
            ));
        }
    }
    Err(format!(
        "{} and {} differ:\n  {}",
        first.display(),
        second.display(),
        found.join("\n  ")
    ))
}

fn first_difference(first: &Path, second: &Path) -> String {
    let (Ok(a), Ok(b)) = (fs::read(first), fs::read(second)) else {
        return "which cannot be read again".to_owned();
    };
    let differing: Vec<usize> = (0..a.len().min(b.len()))
        .filter(|&at| a[at] != b[at])
        .collect();
    match (differing.first(), differing.last()) {
        (Some(from), Some(to)) => {
            let zero = |bytes: &[u8]| {
                if bytes[*from..=*to].iter().all(|&byte| byte == 0) {
                    " (zeros)"
                } else {
                    ""
                }
            };
            format!(
                "{} bytes from {from} to {to}{}{}",
                differing.len(),
                zero(&a),
                zero(&b)
            )
        }
        _ => "the same when read again".to_owned(),
    }
}

/// Sees one name.
pub fn look(path: &Path) -> Result<Entry, String> {
    let failed = |(what, error): Failure| format!("{}: {what}: {error}", path.display());
    let metadata = fs::symlink_metadata(path).map_err(|error| failed(("stat", error)))?;
    see(path, &metadata).map_err(failed)
}

type Failure = (&'static str, io::Error);

fn see(path: &Path, metadata: &fs::Metadata) -> Result<Entry, Failure> {
    let kind = metadata.file_type();
    let file = kind.is_file();
    let name = match () {
        () if file => "file",
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "character device",
        () => "block device",
    };
    Ok(Entry {
        kind: name,
        // The mode of a symlink is nothing that anyone can set.
        mode: if kind.is_symlink() {
            0
        } else {
            metadata.mode() & 0o7777
        },
        owner: (metadata.uid(), metadata.gid()),
        links: if kind.is_dir() { 0 } else { metadata.nlink() },
        size: if file { metadata.len() } else { 0 },
        device: metadata.rdev(),
        digest: if file {
            digest(path, metadata.len())?
        } else {
            0
        },
        target: if kind.is_symlink() {
            fs::read_link(path)
                .map_err(|error| ("readlink", error))?
                .into_os_string()
        } else {
            OsString::new()
        },
        xattrs: xattrs(path).map_err(|error| ("xattrs", error))?,
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        same_as: PathBuf::new(),
        number: metadata.ino(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// Digests a file's bytes, holes as the zeros that they read as.
fn digest(path: &Path, size: u64) -> Result<u128, Failure> {
    let file = File::open(path).map_err(|error| ("open", error))?;
    let holes = holes(&file, size).map_err(|error| ("SEEK_HOLE", error))?;
    let mut digest = Xxh3::new();
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        let count = file
            .read_at(&mut buffer, at)
            .map_err(|error| ("read", error))?;
        if count == 0 {
            break;
        }
        let end = at + count as u64;
        for &(from, to) in &holes {
            let (from, to) = (from.clamp(at, end), to.clamp(at, end));
            if buffer[(from - at) as usize..(to - at) as usize]
                .iter()
                .any(|&byte| byte != 0)
            {
                return Err((
                    "a hole that holds data",
                    io::Error::other(format!("between {from} and {to}")),
                ));
            }
        }
        digest.update(&buffer[..count]);
        at = end;
    }
    if at != size {
        return Err((
            "read",
            io::Error::other(format!("{at} bytes of a file of {size}")),
        ));
    }
    Ok(digest.digest128())
}

/// The holes that a file tells of.
pub fn holes(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let hole = seek(file, SeekFrom::Hole(at))?;
        // Programs that read with O_DIRECT count on holes of whole sectors.
        if hole < at || hole > size || (hole < size && hole % 512 != 0) {
            return Err(io::Error::other(format!(
                "SEEK_HOLE from {at} gives {hole} in a file of {size}"
            )));
        }
        if hole == size {
            break;
        }
        at = match seek(file, SeekFrom::Data(hole)) {
            Ok(data) if data > hole && data <= size && data % 512 == 0 => data,
            Ok(data) => {
                return Err(io::Error::other(format!(
                    "SEEK_DATA from {hole} gives {data} in a file of {size}"
                )));
            }
            Err(rustix::io::Errno::NXIO) => size,
            Err(error) => return Err(error.into()),
        };
        found.push((hole, at));
    }
    Ok(found)
}

/// The extended attributes that programs set; those that the system keeps for itself may differ.
fn xattrs(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(&path, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let mut found = BTreeMap::new();
    for name in names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| name.starts_with(b"user."))
        // In these the volume tells of a file; no other filesystem has them.
        .filter(|name| !name.starts_with(b"user.parsfs."))
    {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(&path, name, &mut value[..])?;
        value.truncate(length);
        found.insert(OsString::from_vec(name.to_owned()), value);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::process::shell;
    use super::*;

    /// A tree with one of everything, and a copy of it.
    fn twins() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let scratch = tempfile::tempdir().expect("a directory");
        shell(
            scratch.path(),
            "mkdir -p a/d
             head -c 300000 /dev/urandom > a/f
             ln a/f a/d/hard
             ln -s ../f a/d/soft
             truncate -s 1M a/sparse
             printf x | dd of=a/sparse bs=1 seek=700000 conv=notrunc status=none
             mkfifo a/fifo
             touch -d '2001-02-03 04:05:06.789' a/f
             cp -a a b",
        );
        let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
        (scratch, a, b)
    }

    #[test]
    fn a_copy_is_equal() {
        let (_scratch, a, b) = twins();
        compare(&a, &b, Times::Exact).expect("a copy equals its original");
    }

    /// The comparer is what the model test rests on: each difference that it must see is made, and has to be told.
    #[test]
    fn every_difference_is_seen() {
        let cases = [
            (
                "printf y | dd of=b/f bs=1 seek=200000 conv=notrunc status=none",
                "f: content",
            ),
            ("truncate -s 299999 b/f", "f: size"),
            ("truncate -s 300001 b/f", "f: size"),
            ("rm b/d/hard", "f: links"),
            ("rm b/d/hard; cp -p b/f b/d/hard", "f: first link"),
            ("chmod 640 b/f", "f: mode"),
            ("chmod u+s b/d", "d: mode"),
            ("chown 1 b/fifo", "fifo: owner"),
            ("chgrp 1 b/d/soft -h", "d/soft: owner"),
            ("ln -sfn ../g b/d/soft", "d/soft: target"),
            ("rm b/fifo; touch b/fifo", "fifo: kind"),
            ("touch b/new", "new: only on the second side"),
            ("rm b/sparse", "sparse: only on the first side"),
            ("touch -d '2001-02-03 04:05:06.788' b/f", "f: mtime"),
            ("touch -d '-2 minutes' b/sparse", "sparse: mtime"),
        ];
        for (damage, told) in cases {
            let (scratch, a, b) = twins();
            shell(scratch.path(), damage);
            let why = compare(&a, &b, Times::SetOnesExact).expect_err(damage);
            assert!(why.contains(told), "{damage}: {why}");
        }
        let (_scratch, a, b) = twins();
        rustix::fs::setxattr(
            b.join("f"),
            "user.color",
            b"blue",
            rustix::fs::XattrFlags::empty(),
        )
        .expect("setxattr");
        let why = compare(&a, &b, Times::SetOnesExact).expect_err("an xattr");
        assert!(why.contains("f: xattrs"), "{why}");
    }

    #[test]
    fn holes_are_found_where_they_are() {
        let (_scratch, a, _) = twins();
        let file = File::open(a.join("sparse")).expect("the sparse file");
        let found = holes(&file, 1 << 20).expect("its holes");
        assert_eq!(found.first().map(|hole| hole.0), Some(0));
        assert!(
            found
                .iter()
                .all(|&(from, to)| to <= 700_000 || from > 700_000),
            "{found:?}"
        );
    }
}
