//! One of the two trees that get the same operations: carries one out, and tells all that came of it.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, UTIME_OMIT,
    XattrFlags,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};
use xxhash_rust::xxh3::xxh3_64;

use super::operation::{Allocation, Fill, How, Node, Operation, Renaming, SLOTS};
use crate::harness::content;

const PAGE: u64 = 4096;

/// What came of an operation, as far as it must be the same on every filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Bytes(usize),
    /// How many bytes, and their digest.
    Content(usize, u64),
    Seen(String),
    Names(Vec<OsString>),
    Failed(Errno),
    /// There was no file in the slot, or nothing to map.
    Nothing,
}

impl Outcome {
    pub fn success(&self) -> bool {
        !matches!(self, Outcome::Failed(_) | Outcome::Nothing)
    }
}

/// A tree and the files open in it.
#[derive(Debug)]
pub struct Side {
    pub root: PathBuf,
    slots: [Option<Open>; SLOTS],
}

#[derive(Debug)]
struct Open {
    file: File,
    direct: bool,
    append: bool,
    /// It was opened for writing, or its opening made the file or emptied it: its close makes that true.
    commits: bool,
    /// The file was changed by it, so that its close makes that true whoever else has the file open for writing.
    changed: Cell<bool>,
}

impl Side {
    pub fn new(root: &Path) -> Side {
        Side {
            root: root.to_owned(),
            slots: Default::default(),
        }
    }

    /// Carries an operation out.
    pub fn apply(&mut self, operation: &Operation) -> Outcome {
        match self.attempt(operation) {
            Ok(outcome) => outcome,
            // Two names for one thing: POSIX allows either.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                Outcome::Failed(Errno::NOTEMPTY)
            }
            Err(error) => Outcome::Failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }

    /// Closes every file; the first error.
    pub fn close_all(&mut self) -> io::Result<()> {
        let open = self.slots.iter_mut().filter_map(Option::take);
        open.map(|open| content::close(open.file))
            .fold(Ok(()), io::Result::and)
    }

    /// Forgets every file without a word: its filesystem has died.
    pub fn abandon_all(&mut self) {
        self.slots = Default::default();
    }

    /// The path, below the root, of the file in a slot; none if it was removed.
    pub fn path_of(&self, slot: usize) -> Option<PathBuf> {
        use std::os::fd::AsRawFd;
        let descriptor = self.slots[slot].as_ref()?.file.as_raw_fd();
        let path = fs::read_link(format!("/proc/self/fd/{descriptor}")).ok()?;
        path.exists()
            .then(|| path.strip_prefix(&self.root).ok().map(Path::to_owned))
            .flatten()
    }

    /// The same, if the close of the slot makes true what was done to its file before. Any other reader's close promises
    /// nothing, not even the times that were set meanwhile; nor does that of a writer who has changed nothing, beside
    /// another one who may be in the middle of it.
    pub fn made_true_by_closing(&self, slot: usize) -> Option<PathBuf> {
        let open = self.slots[slot].as_ref()?;
        let alone = || {
            let number = file_number(open);
            let others = (0..SLOTS).filter(|other| *other != slot);
            let mut others = others.filter_map(|other| self.slots[other].as_ref());
            !others.any(|other| other.commits && file_number(other) == number)
        };
        let promises = open.commits && (open.changed.get() || alone());
        promises.then(|| self.path_of(slot)).flatten()
    }

    fn attempt(&mut self, operation: &Operation) -> io::Result<Outcome> {
        use Operation::*;
        match operation {
            Open { slot, path, how } => self.open(*slot, path, *how),
            Close { slot } => match self.slots[*slot].take() {
                Some(open) => content::close(open.file).map(|()| Outcome::Done),
                None => Ok(Outcome::Nothing),
            },
            ResizePath { path, size } => {
                let path = self.at(path);
                if special(&path) {
                    return Ok(Outcome::Nothing);
                }
                OpenOptions::new().write(true).open(path)?.set_len(*size)?;
                Ok(Outcome::Done)
            }
            Copy {
                from,
                to,
                from_at,
                to_at,
                length,
            } => self.with(*from, |from| {
                self.change(*to, |to| copy(from, to, *from_at, *to_at, *length))
            }),
            Read { slot, at, length } => self.with(*slot, |open| read(open, *at, *length)),
            Write {
                slot,
                at,
                length,
                fill,
            } => self.change(*slot, |open| write(open, *at, *length, *fill)),
            MapRead { slot, at, length } => self.with(*slot, |open| map(open, *at, *length, None)),
            MapWrite {
                slot,
                at,
                length,
                fill,
            } => self.change(*slot, |open| map(open, *at, *length, Some(*fill))),
            Resize { slot, size } => self.change(*slot, |open| done(open.file.set_len(*size))),
            Allocate {
                slot,
                kind,
                at,
                length,
            } => self.change(*slot, |open| {
                done(rustix::fs::fallocate(
                    &open.file,
                    flags(*kind),
                    *at,
                    *length,
                ))
            }),
            Sync { slot, data_only } => self.with(*slot, |open| {
                done(if *data_only {
                    open.file.sync_data()
                } else {
                    open.file.sync_all()
                })
            }),
            Rename { from, to, how } => {
                let how = match how {
                    Renaming::Plain => RenameFlags::empty(),
                    Renaming::NoReplace => RenameFlags::NOREPLACE,
                    Renaming::Exchange => RenameFlags::EXCHANGE,
                };
                done(rustix::fs::renameat_with(
                    CWD,
                    self.at(from),
                    CWD,
                    self.at(to),
                    how,
                ))
            }
            Link { from, to } => done(fs::hard_link(self.at(from), self.at(to))),
            Symlink { target, path } => done(std::os::unix::fs::symlink(target, self.at(path))),
            Unlink { path } => done(fs::remove_file(self.at(path))),
            MakeDirectory { path, mode } => {
                done(rustix::fs::mkdir(self.at(path), Mode::from_raw_mode(*mode)))
            }
            RemoveDirectory { path } => done(fs::remove_dir(self.at(path))),
            MakeNode { path, kind, mode } => {
                let (kind, device) = match kind {
                    Node::Fifo => (FileType::Fifo, 0),
                    Node::Socket => (FileType::Socket, 0),
                    Node::CharacterDevice => (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
                    Node::BlockDevice => (FileType::BlockDevice, rustix::fs::makedev(7, 200)),
                };
                done(rustix::fs::mknodat(
                    CWD,
                    self.at(path),
                    kind,
                    Mode::from_raw_mode(*mode),
                    device,
                ))
            }
            ChangeMode { path, mode } => {
                done(rustix::fs::chmod(self.at(path), Mode::from_raw_mode(*mode)))
            }
            ChangeOwner { path, user, group } => done(std::os::unix::fs::lchown(
                self.at(path),
                Some(*user),
                Some(*group),
            )),
            SetTimes {
                path,
                seconds,
                nanoseconds,
            } => {
                let times = Timestamps {
                    last_access: Timespec {
                        tv_sec: 0,
                        tv_nsec: UTIME_OMIT,
                    },
                    last_modification: Timespec {
                        tv_sec: *seconds,
                        tv_nsec: *nanoseconds,
                    },
                };
                done(rustix::fs::utimensat(
                    CWD,
                    self.at(path),
                    &times,
                    AtFlags::SYMLINK_NOFOLLOW,
                ))
            }
            SetXattr {
                path,
                name,
                length,
                create,
                replace,
            } => {
                let value = content::bytes(*length as u64, 0, *length);
                let mut how = XattrFlags::empty();
                how.set(XattrFlags::CREATE, *create);
                how.set(XattrFlags::REPLACE, *replace && !create);
                done(rustix::fs::lsetxattr(self.at(path), *name, &value, how))
            }
            RemoveXattr { path, name } => done(rustix::fs::lremovexattr(self.at(path), *name)),
            Look { path } => {
                let seen = fs::symlink_metadata(self.at(path))?;
                let (links, size) = if seen.is_dir() {
                    (0, 0)
                } else {
                    (seen.nlink(), seen.len())
                };
                let kind = if seen.file_type().is_socket() {
                    "socket"
                } else {
                    ""
                };
                Ok(Outcome::Seen(format!(
                    "{:o} {links} links, {size} bytes, {}:{} {kind}",
                    seen.mode(),
                    seen.uid(),
                    seen.gid()
                )))
            }
            List { path } => {
                let entries = fs::read_dir(self.at(path))?;
                let mut names = entries
                    .map(|entry| Ok(entry?.file_name()))
                    .collect::<io::Result<Vec<_>>>()?;
                names.sort();
                Ok(Outcome::Names(names))
            }
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn with(
        &self,
        slot: usize,
        act: impl FnOnce(&Open) -> io::Result<Outcome>,
    ) -> io::Result<Outcome> {
        self.slots[slot].as_ref().map_or(Ok(Outcome::Nothing), act)
    }

    /// The same for what changes the file where it succeeds.
    fn change(
        &self,
        slot: usize,
        act: impl FnOnce(&Open) -> io::Result<Outcome>,
    ) -> io::Result<Outcome> {
        self.with(slot, |open| {
            let outcome = act(open)?;
            if !matches!(outcome, Outcome::Nothing | Outcome::Bytes(0)) {
                open.changed.set(true);
            }
            Ok(outcome)
        })
    }

    fn open(&mut self, slot: usize, path: &str, how: How) -> io::Result<Outcome> {
        // What was there is closed first, and its close must be the same on both sides too.
        if let Some(open) = self.slots[slot].take() {
            content::close(open.file)?;
        }
        let path = self.at(path);
        if special(&path) {
            return Ok(Outcome::Nothing);
        }
        let mut flags = if how.direct { libc::O_DIRECT } else { 0 };
        if how.create {
            flags |= libc::O_CREAT;
        }
        if how.exclusive {
            flags |= libc::O_EXCL;
        }
        if how.truncate {
            flags |= libc::O_TRUNC;
        }
        if how.append {
            flags |= libc::O_APPEND;
        }
        flags |= match (how.read, how.write) {
            (true, true) => libc::O_RDWR,
            (false, true) => libc::O_WRONLY,
            _ => libc::O_RDONLY,
        };
        let made = !path.exists();
        let file = open_raw(&path, flags, how.mode)?;
        if file.metadata()?.is_dir() {
            return Ok(Outcome::Nothing);
        }
        self.slots[slot] = Some(Open {
            file,
            direct: how.direct,
            append: how.append,
            commits: made || how.write || how.truncate,
            changed: Cell::new(made || how.truncate),
        });
        Ok(Outcome::Done)
    }
}

fn file_number(open: &Open) -> Option<u64> {
    open.file.metadata().ok().map(|seen| seen.ino())
}

/// Whether it is a fifo, a socket or a device. Such are made and never opened: what comes then is not the filesystem's.
fn special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|seen| !seen.is_file() && !seen.is_dir())
}

/// Opens with exactly these flags: the library's own checks would keep odd ones from the filesystem.
fn open_raw(path: &Path, flags: i32, mode: u32) -> io::Result<File> {
    use rustix::fs::OFlags;
    let flags = OFlags::from_bits_retain(flags as u32) | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(
        path,
        flags,
        Mode::from_raw_mode(mode),
    )?))
}

fn done<E: Into<io::Error>>(result: Result<(), E>) -> io::Result<Outcome> {
    result.map(|()| Outcome::Done).map_err(Into::into)
}

/// A buffer that begins on a page, as direct I/O wants it.
struct Pages {
    bytes: Vec<u8>,
    begin: usize,
    length: usize,
}

impl Pages {
    fn new(length: usize) -> Pages {
        let bytes = vec![0; length + PAGE as usize];
        let begin = bytes.as_ptr().align_offset(PAGE as usize);
        Pages {
            bytes,
            begin,
            length,
        }
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..self.begin + self.length]
    }
}

fn aligned(open: &Open, at: u64, length: usize) -> (u64, usize) {
    if open.direct {
        (
            at / PAGE * PAGE,
            length.div_ceil(PAGE as usize) * PAGE as usize,
        )
    } else {
        (at, length)
    }
}

fn read(open: &Open, at: u64, length: usize) -> io::Result<Outcome> {
    let (at, length) = aligned(open, at, length);
    let mut pages = Pages::new(length);
    let buffer = pages.slice();
    let mut count = 0;
    while count < length {
        match open.file.read_at(&mut buffer[count..], at + count as u64)? {
            0 => break,
            // A short direct read that is no multiple of a page ends at the file's end.
            more if open.direct && !(more as u64).is_multiple_of(PAGE) => {
                count += more;
                break;
            }
            more => count += more,
        }
    }
    Ok(Outcome::Content(count, xxh3_64(&buffer[..count])))
}

fn write(open: &Open, at: u64, length: usize, fill: Fill) -> io::Result<Outcome> {
    use std::io::Write;
    let (at, length) = aligned(open, at, length);
    let mut pages = Pages::new(length);
    let buffer = pages.slice();
    put(fill, at, buffer);
    if open.append {
        (&open.file).write_all(buffer)?;
    } else {
        open.file.write_all_at(buffer, at)?;
    }
    Ok(Outcome::Bytes(length))
}

fn put(fill: Fill, at: u64, buffer: &mut [u8]) {
    match fill {
        Fill::Zeros => buffer.fill(0),
        Fill::Byte(byte) => buffer.fill(byte),
        Fill::Noise(seed) => content::fill(seed, at, buffer),
    }
}

/// Reads or writes through a shared mapping of whole pages, as far as the file goes, and syncs what it wrote.
fn map(open: &Open, at: u64, length: usize, fill: Option<Fill>) -> io::Result<Outcome> {
    let size = open.file.metadata()?.len();
    let begin = at / PAGE * PAGE;
    let length = (length as u64).min(size.saturating_sub(begin)) as usize;
    if length == 0 {
        return Ok(Outcome::Nothing);
    }
    let protection = if fill.is_some() {
        ProtFlags::READ | ProtFlags::WRITE
    } else {
        ProtFlags::READ
    };
    // SAFETY: a new mapping at an address of the kernel's choice, of bytes that the file has; nobody else shrinks the file
    // while it is mapped; it is unmapped below and nowhere used later.
    unsafe {
        let mapped = rustix::mm::mmap(
            std::ptr::null_mut(),
            length,
            protection,
            MapFlags::SHARED,
            &open.file,
            begin,
        )?;
        let bytes = std::slice::from_raw_parts_mut(mapped.cast::<u8>(), length);
        let synced = match fill {
            Some(fill) => {
                put(fill, begin, bytes);
                rustix::mm::msync(mapped, length, MsyncFlags::SYNC)
            }
            None => Ok(()),
        };
        let digest = xxh3_64(bytes);
        rustix::mm::munmap(mapped, length)?;
        synced?;
        Ok(Outcome::Content(length, digest))
    }
}

fn flags(kind: Allocation) -> FallocateFlags {
    match kind {
        Allocation::Extend => FallocateFlags::empty(),
        Allocation::KeepSize => FallocateFlags::KEEP_SIZE,
        Allocation::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Allocation::Zero => FallocateFlags::ZERO_RANGE,
        Allocation::ZeroKeepSize => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
    }
}

fn copy(from: &Open, to: &Open, from_at: u64, to_at: u64, length: usize) -> io::Result<Outcome> {
    // Through direct I/O the kernel copies by requests whose alignment is its own business.
    if from.direct || to.direct {
        return Ok(Outcome::Nothing);
    }
    let (mut from_at, mut to_at, mut left) = (from_at, to_at, length);
    while left > 0 {
        match rustix::fs::copy_file_range(
            &from.file,
            Some(&mut from_at),
            &to.file,
            Some(&mut to_at),
            left,
        )? {
            0 => break,
            count => left -= count,
        }
    }
    Ok(Outcome::Bytes(length - left))
}
