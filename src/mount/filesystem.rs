//! The adapter: each request of the kernel becomes one call on the volume and one answer. Session threads do what
//! waits for nothing: names, attributes, and reads and writes that memory can serve. Everything that may wait takes its
//! reply along to other threads. The kernel never sends a request before those are answered that it must come after
//! (it keeps a direct write's lock until the answer, flushes after writes, releases last), so nothing is ordered here.
//!
//! A file is read and written past the page cache while somebody writes it, as the volume says at each open; the handle
//! that the kernel keeps tells which it was.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crossbeam_channel::Sender;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use super::attributes::{
    NAME_TTL, from_request, kind_of_mode, kind_to_fuse, nothing, set_time, to_fuse, ttl,
};
use super::cached::CachedOpens;
use super::errno::errno;
use super::handshake::negotiate;
use super::kernel::Kernel;
use super::names::{self, XattrName};
use super::privileges::drop_privileges;
use super::workers::{Workers, guarded};
use crate::ids::FileId;
use crate::volume::{Allocate, Attributes, Caller, Changes, Handle, Opened, Result, Volume};

/// Threads that read from disks. More than one disk answers at a time, and readahead asks ahead.
const READERS: usize = 8;

/// The most that one copy_file_range copies before it answers, so that it can be interrupted in between.
const COPY_MAX: u64 = 64 << 20;

/// Entries asked of the volume at a time; an answer of the usual 4 to 128 KiB holds a few such.
const ENTRIES: usize = 128;

/// File numbers are never used again, so there is one generation.
const GENERATION: Generation = Generation(0);

/// A volume as fuser's `Filesystem`.
pub(super) struct Adapter {
    volume: Arc<Volume>,
    kernel: Kernel,
    cached: Arc<CachedOpens>,
    readers: Workers,
    waiters: Workers,
    /// Dropped when the session has ended, which wakes who waits at the other end.
    session: Option<Sender<()>>,
}

/// The threads that may still be at work when a session has ended.
#[derive(Clone)]
pub(super) struct AtWork {
    readers: Workers,
    waiters: Workers,
}

impl AtWork {
    /// Waits until all answers are given.
    pub(super) fn finish(&self) {
        self.readers.drain();
        self.waiters.drain();
    }
}

impl Adapter {
    /// An adapter; `session` is dropped at the session's end.
    pub(super) fn new(volume: Arc<Volume>, kernel: Kernel, session: Sender<()>) -> Adapter {
        Adapter {
            volume,
            kernel,
            cached: Arc::default(),
            readers: Workers::new("read", READERS),
            waiters: Workers::new("wait", usize::MAX),
            session: Some(session),
        }
    }

    /// Who is to be waited for after the session.
    pub(super) fn at_work(&self) -> AtWork {
        AtWork {
            readers: self.readers.clone(),
            waiters: self.waiters.clone(),
        }
    }

    /// Tells the kernel how an opened file is served, and remembers it.
    fn opened(&self, file: INodeNo, opened: Opened) -> (FileHandle, FopenFlags) {
        let (handle, flags) = open_answer(opened);
        if !opened.direct_io {
            self.cached.opened(file);
        }
        (handle, flags)
    }
}

/// What the kernel is told of an opened file. The lowest bit of its handle says whether it goes past the page cache.
fn open_answer(opened: Opened) -> (FileHandle, FopenFlags) {
    let mut flags = FopenFlags::empty();
    if opened.direct_io {
        // Writers of one file at different places need not wait for each other.
        flags |= FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    }
    if opened.keep_cache {
        flags |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    (
        FileHandle(opened.handle.0 << 1 | u64::from(opened.direct_io)),
        flags,
    )
}

fn handle(fh: FileHandle) -> Handle {
    Handle(fh.0 >> 1)
}

fn is_direct(fh: FileHandle) -> bool {
    fh.0 & 1 == 1
}

fn id(file: INodeNo) -> FileId {
    FileId(file.0)
}

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}

fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

fn answer_empty(operation: &'static str, file: INodeNo, reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(operation, file, &error)),
    }
}

fn answer_entry(
    operation: &'static str,
    parent: INodeNo,
    reply: ReplyEntry,
    result: Result<Attributes>,
) {
    match result {
        Ok(attributes) => reply.entry_with_ttls(
            &ttl(attributes.kind),
            &NAME_TTL,
            &to_fuse(&attributes),
            GENERATION,
        ),
        Err(error) => reply.error(errno(operation, parent, &error)),
    }
}

fn answer_attributes(
    operation: &'static str,
    file: INodeNo,
    reply: ReplyAttr,
    result: Result<Attributes>,
) {
    match result {
        Ok(attributes) => reply.attr(&ttl(attributes.kind), &to_fuse(&attributes)),
        Err(error) => reply.error(errno(operation, file, &error)),
    }
}

fn answer_data(operation: &'static str, file: INodeNo, reply: ReplyData, result: Result<Vec<u8>>) {
    match result {
        Ok(data) => reply.data(&data),
        Err(error) => reply.error(errno(operation, file, &error)),
    }
}

fn answer_write(file: INodeNo, reply: ReplyWrite, result: Result<()>, length: usize) {
    match result {
        Ok(()) => reply.written(length as u32),
        Err(error) => reply.error(errno("write", file, &error)),
    }
}

/// getxattr(2) and listxattr(2): a size of 0 asks how much there is.
fn answer_xattr(reply: ReplyXattr, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        negotiate(config);
        Ok(())
    }

    fn destroy(&mut self) {
        self.session = None;
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded("lookup", || {
            let result = match name.as_bytes() {
                // Only an exported file system is asked for these, by number, when the kernel has forgotten a file.
                b"." => self.volume.attributes(id(parent)),
                b".." => parent_of(&self.volume, id(parent)),
                name => self.volume.lookup(id(parent), name),
            };
            match result {
                Err(error) if error.errno() == libc::ENOENT => {
                    reply.entry(&NAME_TTL, &nothing(), GENERATION)
                }
                result => answer_entry("lookup", parent, reply, result),
            }
        });
    }

    fn forget(&self, _: &Request, _: INodeNo, _: u64) {}

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        guarded("getattr", || {
            answer_attributes("getattr", ino, reply, self.volume.attributes(id(ino)));
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        guarded("setattr", || {
            let changes = Changes {
                mode: mode.map(permissions),
                uid,
                gid,
                size,
                atime: atime.map(set_time),
                mtime: mtime.map(set_time),
                ctime: ctime.map(from_request),
            };
            let volume = self.volume.clone();
            let change = move || {
                let result = volume.set_attributes(id(ino), fh.map(handle), &changes);
                answer_attributes("setattr", ino, reply, result);
            };
            if size.is_some() {
                self.waiters.run("truncate", change);
            } else {
                change();
            }
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        guarded("readlink", || {
            answer_data("readlink", ino, reply, self.volume.read_link(id(ino)));
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        guarded("mknod", || {
            let Some(kind) = kind_of_mode(mode) else {
                return reply.error(Errno::EINVAL);
            };
            let result = self.volume.make_node(
                id(parent),
                name.as_bytes(),
                kind,
                permissions(mode),
                rdev,
                caller(request),
            );
            answer_entry("mknod", parent, reply, result);
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        guarded("mkdir", || {
            let result = self.volume.make_directory(
                id(parent),
                name.as_bytes(),
                permissions(mode),
                caller(request),
            );
            answer_entry("mkdir", parent, reply, result);
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded("unlink", || {
            let result = self.volume.remove(id(parent), name.as_bytes());
            answer_empty("unlink", parent, reply, result);
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded("rmdir", || {
            let result = self.volume.remove_directory(id(parent), name.as_bytes());
            answer_empty("rmdir", parent, reply, result);
        });
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        guarded("symlink", || {
            let target = target.as_os_str().as_bytes();
            let result =
                self.volume
                    .make_symlink(id(parent), name.as_bytes(), target, caller(request));
            answer_entry("symlink", parent, reply, result);
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        guarded("rename", || {
            // Whiteouts are overlayfs's own; rename(2) has EINVAL for a file system without them.
            let known = RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE;
            if !known.contains(flags) {
                return reply.error(Errno::EINVAL);
            }
            let result = self.volume.rename(
                id(parent),
                name.as_bytes(),
                id(to_parent),
                to_name.as_bytes(),
                flags.bits(),
            );
            answer_empty("rename", parent, reply, result);
        });
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded("link", || {
            let result = self.volume.make_link(id(ino), id(parent), name.as_bytes());
            answer_entry("link", ino, reply, result);
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        guarded("open", || {
            let truncate = flags.0 & libc::O_TRUNC != 0;
            let unprivileged = request.uid() != 0;
            let (volume, kernel, cached) = (
                self.volume.clone(),
                self.kernel.clone(),
                self.cached.clone(),
            );
            let open = move || {
                let result = if truncate && unprivileged {
                    drop_privileges(&volume, &kernel, ino)
                } else {
                    Ok(())
                };
                match result.and_then(|()| volume.open_file(id(ino), flags.0)) {
                    Ok(opened) => {
                        if !opened.direct_io {
                            cached.opened(ino);
                        }
                        let (fh, flags) = open_answer(opened);
                        reply.opened(fh, flags);
                    }
                    Err(error) => reply.error(errno("open", ino, &error)),
                }
            };
            if truncate {
                self.waiters.run("open", open);
            } else {
                open();
            }
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        guarded("create", || {
            let result = self.volume.create_file(
                id(parent),
                name.as_bytes(),
                permissions(mode),
                flags,
                caller(request),
            );
            match result {
                Ok((attributes, opened)) => {
                    let (fh, flags) = self.opened(INodeNo(attributes.file.0), opened);
                    reply.created(
                        &ttl(attributes.kind),
                        &to_fuse(&attributes),
                        GENERATION,
                        fh,
                        flags,
                    );
                }
                Err(error) => reply.error(errno("create", parent, &error)),
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guarded("read", || {
            let (handle, length) = (handle(fh), size as usize);
            if let Some(result) = self.volume.try_read(handle, offset, length) {
                return answer_data("read", ino, reply, result);
            }
            let volume = self.volume.clone();
            self.readers.run("read", move || {
                answer_data("read", ino, reply, volume.read(handle, offset, length));
            });
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        guarded("write", || {
            if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID)
                && let Err(error) = drop_privileges(&self.volume, &self.kernel, ino)
            {
                return reply.error(errno("write", ino, &error));
            }
            let (handle, length) = (handle(fh), data.len());
            // What comes from the page cache holds its pages' locks until it is answered; it needs neither of these,
            // and must not have its pages dropped.
            let from_program = is_direct(fh) && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
            // The kernel leaves O_SYNC and O_DSYNC (a part of O_SYNC) of direct writes to us.
            let synchronous = from_program && flags.0 & libc::O_DSYNC != 0;
            let stale = from_program && self.cached.any(ino);
            if !synchronous
                && !stale
                && let Some(result) = self.volume.try_write(handle, offset, data)
            {
                return answer_write(ino, reply, result, length);
            }
            let (volume, kernel, data) = (self.volume.clone(), self.kernel.clone(), data.to_vec());
            self.waiters.run("write", move || {
                let mut result = volume.write(handle, offset, &data);
                if synchronous {
                    result = result.and_then(|()| volume.fsync(handle));
                }
                if stale {
                    kernel.forget_range(ino, offset, length as u64);
                }
                answer_write(ino, reply, result, length);
            });
        });
    }

    fn flush(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        guarded("flush", || {
            let handle = handle(fh);
            if !self.volume.owes_commit(handle) {
                return reply.ok();
            }
            let volume = self.volume.clone();
            self.waiters.run("flush", move || {
                answer_empty("flush", ino, reply, volume.flush(handle));
            });
        });
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        guarded("release", || {
            if !is_direct(fh) {
                self.cached.released(ino);
            }
            let handle = handle(fh);
            let volume = self.volume.clone();
            let release = move || {
                volume.release(handle);
                reply.ok();
            };
            if self.volume.owes_commit(handle) {
                self.waiters.run("release", release);
            } else {
                release();
            }
        });
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        let volume = self.volume.clone();
        self.waiters.run("fsync", move || {
            answer_empty("fsync", ino, reply, volume.fsync(handle(fh)));
        });
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        guarded("opendir", || match self.volume.open_directory(id(ino)) {
            Ok(handle) => reply.opened(FileHandle(handle.0), FopenFlags::empty()),
            Err(error) => reply.error(errno("opendir", ino, &error)),
        });
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        guarded("readdir", || {
            let mut position = offset as i64;
            loop {
                let entries = match self.volume.read_directory(Handle(fh.0), position, ENTRIES) {
                    Ok(entries) => entries,
                    Err(error) => return reply.error(errno("readdir", ino, &error)),
                };
                let Some(last) = entries.last() else {
                    return reply.ok();
                };
                position = last.next;
                for entry in &entries {
                    let name = OsStr::from_bytes(&entry.name);
                    let kind = kind_to_fuse(entry.kind);
                    if reply.add(INodeNo(entry.file.0), entry.next as u64, kind, name) {
                        return reply.ok();
                    }
                }
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        guarded("readdirplus", || {
            let mut position = offset as i64;
            loop {
                let entries = match self.volume.read_directory(Handle(fh.0), position, ENTRIES) {
                    Ok(entries) => entries,
                    Err(error) => return reply.error(errno("readdir", ino, &error)),
                };
                let Some(last) = entries.last() else {
                    return reply.ok();
                };
                position = last.next;
                for entry in &entries {
                    let name = OsStr::from_bytes(&entry.name);
                    // Number 0 names the entry without saying anything of the file: for one that went meanwhile.
                    let (number, ttl, attributes) = match self.volume.attributes(entry.file) {
                        Ok(attributes) => {
                            (entry.file.0, ttl(attributes.kind), to_fuse(&attributes))
                        }
                        Err(_) => {
                            let mut attributes = nothing();
                            attributes.ino = INodeNo(entry.file.0);
                            attributes.kind = kind_to_fuse(entry.kind);
                            (0, NAME_TTL, attributes)
                        }
                    };
                    let number = INodeNo(number);
                    if reply.add(
                        number,
                        entry.next as u64,
                        name,
                        &ttl,
                        &attributes,
                        GENERATION,
                    ) {
                        return reply.ok();
                    }
                }
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        guarded("releasedir", || {
            self.volume.close_directory(Handle(fh.0));
            reply.ok();
        });
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let volume = self.volume.clone();
        self.waiters.run("fsyncdir", move || {
            answer_empty("fsyncdir", ino, reply, volume.sync_names());
        });
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        const UNIT: u32 = 4096;
        let volume = self.volume.clone();
        // A disk may be slow to tell its space.
        self.waiters.run("statfs", move || match volume.capacity() {
            Ok(capacity) => {
                let total = capacity.total / u64::from(UNIT);
                let free = capacity.free / u64::from(UNIT);
                reply.statfs(
                    total,
                    free,
                    free,
                    capacity.files,
                    capacity.files_free,
                    UNIT,
                    255,
                    UNIT,
                );
            }
            Err(error) => reply.error(errno("statfs", ino, &error)),
        });
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        guarded("setxattr", || {
            let name = name.as_bytes();
            if names::judge(name) == XattrName::Unsupported {
                return reply.error(Errno::EOPNOTSUPP);
            }
            answer_empty(
                "setxattr",
                ino,
                reply,
                self.volume.set_xattr(id(ino), name, value, flags),
            );
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        guarded("getxattr", || {
            let name = name.as_bytes();
            if names::judge(name) == XattrName::Unsupported {
                return reply.error(Errno::EOPNOTSUPP);
            }
            match self.volume.get_xattr(id(ino), name) {
                Ok(value) => answer_xattr(reply, &value, size),
                Err(error) => reply.error(errno("getxattr", ino, &error)),
            }
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        guarded("listxattr", || match self.volume.list_xattrs(id(ino)) {
            Ok(found) => answer_xattr(reply, &names::list(&found, request.uid() == 0), size),
            Err(error) => reply.error(errno("listxattr", ino, &error)),
        });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded("removexattr", || {
            let name = name.as_bytes();
            if names::judge(name) == XattrName::Unsupported {
                return reply.error(Errno::EOPNOTSUPP);
            }
            answer_empty(
                "removexattr",
                ino,
                reply,
                self.volume.remove_xattr(id(ino), name),
            );
        });
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel then takes every file as ready and does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(how) = allocation(mode) else {
            return reply.error(Errno::EOPNOTSUPP);
        };
        let volume = self.volume.clone();
        self.waiters.run("fallocate", move || {
            let result = volume.allocate(handle(fh), offset, length, how);
            answer_empty("fallocate", ino, reply, result);
        });
    }

    fn lseek(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let volume = self.volume.clone();
        // The map of a large file is read from disks.
        self.readers.run("lseek", move || {
            match volume.seek(handle(fh), offset, data) {
                Ok(found) => match i64::try_from(found) {
                    Ok(found) => reply.offset(found),
                    Err(_) => reply.error(Errno::EOVERFLOW),
                },
                Err(error) if error.errno() == libc::ENXIO => reply.error(Errno::ENXIO),
                Err(error) => reply.error(errno("lseek", ino, &error)),
            }
        });
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        from: FileHandle,
        from_offset: u64,
        to_ino: INodeNo,
        to: FileHandle,
        to_offset: u64,
        length: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let volume = self.volume.clone();
        // The kernel itself drops what it cached of the target, after our answer.
        self.waiters.run("copy_file_range", move || {
            let length = length.min(COPY_MAX);
            match volume.copy_range(handle(from), from_offset, handle(to), to_offset, length) {
                Ok(copied) => reply.written(copied.min(COPY_MAX) as u32),
                Err(error) => reply.error(errno("copy_file_range", to_ino, &error)),
            }
        });
    }
}

/// fallocate(2)'s mode; `None` for one that no file here can do.
fn allocation(mode: i32) -> Option<Allocate> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP_SIZE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    match mode {
        0 => Some(Allocate::Reserve),
        libc::FALLOC_FL_KEEP_SIZE => Some(Allocate::ReserveKeepSize),
        PUNCH => Some(Allocate::Punch),
        libc::FALLOC_FL_ZERO_RANGE => Some(Allocate::Zero),
        ZERO_KEEP_SIZE => Some(Allocate::ZeroKeepSize),
        _ => None,
    }
}

/// The directory that a directory lies in.
fn parent_of(volume: &Volume, directory: FileId) -> Result<Attributes> {
    let handle = volume.open_directory(directory)?;
    // `.` and `..` come first.
    let entries = volume.read_directory(handle, 0, 2);
    volume.close_directory(handle);
    let parent = entries?
        .into_iter()
        .find(|entry| entry.name == b"..")
        .map_or(directory, |entry| entry.file);
    volume.attributes(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_keep_how_they_were_opened() {
        for (number, direct_io) in [(0, true), (1, false), (77, true), (u64::MAX >> 1, false)] {
            let (fh, flags) = open_answer(Opened {
                handle: Handle(number),
                direct_io,
                keep_cache: !direct_io,
            });
            assert_eq!(handle(fh), Handle(number));
            assert_eq!(is_direct(fh), direct_io);
            assert_eq!(flags.contains(FopenFlags::FOPEN_DIRECT_IO), direct_io);
            assert_eq!(flags.contains(FopenFlags::FOPEN_KEEP_CACHE), !direct_io);
        }
    }

    #[test]
    fn fallocate_modes() {
        let punch = libc::FALLOC_FL_PUNCH_HOLE;
        assert!(matches!(allocation(0), Some(Allocate::Reserve)));
        assert!(matches!(
            allocation(punch | libc::FALLOC_FL_KEEP_SIZE),
            Some(Allocate::Punch)
        ));
        assert!(allocation(punch).is_none());
        assert!(allocation(libc::FALLOC_FL_COLLAPSE_RANGE).is_none());
        assert!(allocation(-1).is_none());
    }
}
