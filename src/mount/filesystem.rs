//! The adapter: each request of the kernel becomes one call on the volume and one answer. Session threads do what
//! waits for nothing: names, attributes, and reads and writes that memory can serve. Everything that may wait takes its
//! reply along to other threads. The kernel never sends a request before those are answered that it must come after
//! (it keeps a direct write's lock until the answer, flushes after writes, releases last), so nothing is ordered here.
//!
//! A file is read and written past the page cache while somebody writes it, unless it was open through the cache before:
//! the volume says so at each open, and the handle that the kernel keeps tells which it was.

mod answers;
mod directory;
mod open_file;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crossbeam_channel::Sender;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use self::answers::{
    GENERATION, answer_attributes, answer_data, answer_empty, answer_entry, answer_xattr, caller,
    handle, id, open_answer, permissions,
};
use self::directory::parent_of;
use super::attributes::{NAME_TTL, from_request, kind_of_mode, nothing, set_time, to_fuse, ttl};
use super::errno::errno;
use super::handshake::negotiate;
use super::kernel::Kernel;
use super::names::{self, XattrName};
use super::workers::{Workers, guarded};
use crate::volume::{Changes, Handle, Result, Volume};

/// Threads that read from disks. More than one disk answers at a time, and readahead asks ahead.
const READERS: usize = 8;

/// A volume as fuser's `Filesystem`.
pub(super) struct Adapter {
    volume: Arc<Volume>,
    kernel: Kernel,
    readers: Workers,
    waiters: Workers,
    /// What the kernel cached of a file holds from one open to the next. Not where a private mapping of a file that is
    /// written can leave stale pages: there each open through the cache begins with none.
    may_keep_cache: bool,
    /// Whether a change of names is durable before it is answered.
    syncs_names: bool,
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
    pub(super) fn new(
        volume: Arc<Volume>,
        kernel: Kernel,
        syncs_names: bool,
        session: Sender<()>,
    ) -> Adapter {
        Adapter {
            volume,
            kernel,
            readers: Workers::new("read", READERS),
            waiters: Workers::new("wait", usize::MAX),
            may_keep_cache: false,
            syncs_names,
            session: Some(session),
        }
    }

    /// Answers a change of names: at once, or when it is durable.
    fn changed<T: Send + 'static>(
        &self,
        operation: &'static str,
        result: Result<T>,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        if !self.syncs_names || result.is_err() {
            return answer(result);
        }
        let volume = Arc::clone(&self.volume);
        self.waiters.run(operation, move || {
            answer(result.and_then(|made| volume.sync_names().map(|()| made)));
        });
    }

    /// Makes a change of names and answers it as `changed` does; `waits` if it may have to wait for disks itself.
    fn change<T: Send + 'static>(
        &self,
        operation: &'static str,
        waits: bool,
        change: impl FnOnce(&Volume) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        if !waits {
            return self.changed(operation, change(&self.volume), answer);
        }
        let (volume, syncs) = (Arc::clone(&self.volume), self.syncs_names);
        self.waiters.run(operation, move || {
            let made = change(&volume);
            answer(match syncs {
                true => made.and_then(|made| volume.sync_names().map(|()| made)),
                false => made,
            });
        });
    }

    /// Who is to be waited for after the session.
    pub(super) fn at_work(&self) -> AtWork {
        AtWork {
            readers: self.readers.clone(),
            waiters: self.waiters.clone(),
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.may_keep_cache = negotiate(config);
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
            self.changed("mknod", result, move |result| {
                answer_entry("mknod", parent, reply, result);
            });
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
            self.changed("mkdir", result, move |result| {
                answer_entry("mkdir", parent, reply, result);
            });
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded("unlink", || {
            let name = name.as_bytes().to_vec();
            let waits = self.volume.removal_may_wait(id(parent), &name);
            let remove = move |volume: &Volume| volume.remove(id(parent), &name);
            self.change("unlink", waits, remove, move |result| {
                answer_empty("unlink", parent, reply, result);
            });
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded("rmdir", || {
            let result = self.volume.remove_directory(id(parent), name.as_bytes());
            self.changed("rmdir", result, move |result| {
                answer_empty("rmdir", parent, reply, result);
            });
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
            self.changed("symlink", result, move |result| {
                answer_entry("symlink", parent, reply, result);
            });
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
            let (name, to_name) = (name.as_bytes().to_vec(), to_name.as_bytes().to_vec());
            let waits = self.volume.removal_may_wait(id(to_parent), &to_name);
            let rename = move |volume: &Volume| {
                let (from, to) = (id(parent), id(to_parent));
                volume.rename(from, &name, to, &to_name, flags.bits())
            };
            self.change("rename", waits, rename, move |result| {
                answer_empty("rename", parent, reply, result);
            });
        });
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded("link", || {
            let result = self.volume.make_link(id(ino), id(parent), name.as_bytes());
            self.changed("link", result, move |result| {
                answer_entry("link", ino, reply, result);
            });
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.open_file(ino, flags, reply);
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
            let may_keep_cache = self.may_keep_cache;
            let volume = Arc::clone(&self.volume);
            let made = result.as_ref().ok().map(|(_, opened)| opened.handle);
            self.changed("create", result, move |result| match result {
                Ok((attributes, opened)) => {
                    let (fh, flags) = open_answer(opened, may_keep_cache);
                    reply.created(
                        &ttl(&attributes),
                        &to_fuse(&attributes),
                        GENERATION,
                        fh,
                        flags,
                    );
                }
                Err(error) => {
                    // Nobody gets it who could release it.
                    if let Some(made) = made {
                        volume.release(made);
                    }
                    reply.error(errno("create", parent, &error));
                }
            });
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
        self.write_file(ino, fh, offset, data, (write_flags, flags), reply);
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
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.release_file(fh, reply);
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
        reply: ReplyDirectory,
    ) {
        self.list(ino, fh, offset, reply);
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.list_with_attributes(ino, fh, offset, reply);
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
            if Volume::sets_policy(name) {
                let volume = Arc::clone(&self.volume);
                let (name, value) = (name.to_vec(), value.to_vec());
                return self.waiters.run("setxattr", move || {
                    let set = volume.set_xattr(id(ino), &name, &value, flags);
                    answer_empty("setxattr", ino, reply, set);
                });
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
            let answer = move |volume: &Volume, name: &[u8]| match volume.get_xattr(id(ino), name) {
                Ok(value) => answer_xattr(reply, &value, size),
                Err(error) => reply.error(errno("getxattr", ino, &error)),
            };
            if Volume::is_kept_xattr(name) {
                return answer(&self.volume, name);
            }
            // What the volume tells of a file may have to be read from disks, and wait for a commit.
            let (volume, name) = (Arc::clone(&self.volume), name.to_vec());
            self.waiters.run("getxattr", move || answer(&volume, &name));
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
            if Volume::sets_policy(name) {
                let (volume, name) = (Arc::clone(&self.volume), name.to_vec());
                return self.waiters.run("removexattr", move || {
                    answer_empty(
                        "removexattr",
                        ino,
                        reply,
                        volume.remove_xattr(id(ino), &name),
                    );
                });
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
        self.allocate(ino, fh, offset, length, mode, reply);
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
        self.seek(ino, fh, offset, whence, reply);
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
        if flags.is_empty() {
            self.copy_range((from, from_offset), (to_ino, to, to_offset), length, reply);
        } else {
            reply.error(Errno::EINVAL);
        }
    }
}
