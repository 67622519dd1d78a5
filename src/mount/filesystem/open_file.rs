//! What is done with an open file, and how it comes to be open.

use fuser::{
    Errno, FileHandle, INodeNo, OpenFlags, ReplyEmpty, ReplyLseek, ReplyOpen, ReplyWrite,
    WriteFlags,
};

use super::Adapter;
use super::answers::{answer_empty, answer_seek, answer_write, handle, id, is_direct, open_answer};
use crate::mount::errno::errno;
use crate::mount::privileges::drop_by_write;
use crate::mount::workers::guarded;
use crate::volume::{Allocate, Opened, Opening, Result};

/// The most that one copy_file_range copies before it answers, so that it can be interrupted in between.
const COPY_MAX: u64 = 64 << 20;

impl Adapter {
    /// An open; it may wait where lost bytes have to be looked for. The kernel cuts a file that is opened with O_TRUNC by a request
    /// of its own.
    pub(super) fn open_file(&self, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        guarded("open", || {
            let (volume, may_keep_cache) = (self.volume.clone(), self.may_keep_cache);
            let answer = move |result: Result<Opened>| match result {
                Ok(opened) => {
                    let (fh, flags) = open_answer(opened, may_keep_cache);
                    reply.opened(fh, flags);
                }
                Err(error) => reply.error(errno("open", ino, &error)),
            };
            match volume.begin_open(id(ino), flags.0) {
                Ok(Opening::Opened(opened)) => answer(Ok(opened)),
                Ok(Opening::Waiting(waiting)) => {
                    self.waiters
                        .run("open", move || answer(volume.finish_open(waiting)));
                }
                Err(error) => answer(Err(error)),
            }
        });
    }

    /// A write: at once if there is memory for it.
    pub(super) fn write_file(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        (write_flags, flags): (WriteFlags, OpenFlags),
        reply: ReplyWrite,
    ) {
        guarded("write", || {
            let (handle, length) = (handle(fh), data.len());
            let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
            if from_cache {
                self.volume.wrote_by_mapping(handle);
            }
            let from_program = is_direct(fh) && !from_cache;
            let bits = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            if (from_program || bits)
                && let Err(error) = drop_by_write(&self.volume, &self.kernel, (ino, handle), bits)
            {
                return reply.error(errno("write", ino, &error));
            }
            // The kernel leaves O_SYNC and O_DSYNC (a part of O_SYNC) of direct writes to us.
            let synchronous = from_program && flags.0 & libc::O_DSYNC != 0;
            if !synchronous && let Some(result) = self.volume.try_write(handle, offset, data) {
                return answer_write(ino, reply, result, length);
            }
            let (volume, data) = (self.volume.clone(), data.to_vec());
            self.waiters.run("write", move || {
                let mut result = volume.write(handle, offset, &data);
                if synchronous {
                    result = result.and_then(|()| volume.fsync(handle));
                }
                answer_write(ino, reply, result, length);
            });
        });
    }

    /// The last descriptor is gone.
    pub(super) fn release_file(&self, fh: FileHandle, reply: ReplyEmpty) {
        guarded("release", || {
            let handle = handle(fh);
            let volume = self.volume.clone();
            let release = move || {
                volume.release(handle);
                reply.ok();
            };
            if self.volume.release_may_wait(handle) {
                self.waiters.run("release", release);
            } else {
                release();
            }
        });
    }

    /// fallocate(2)
    pub(super) fn allocate(
        &self,
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

    /// SEEK_DATA and SEEK_HOLE; the kernel does the others.
    pub(super) fn seek(
        &self,
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
        if let Some(found) = self.volume.try_seek(handle(fh), offset, data) {
            return answer_seek(ino, reply, found);
        }
        let volume = self.volume.clone();
        // The map of a large file is read from disks.
        self.readers.run("lseek", move || {
            answer_seek(ino, reply, volume.seek(handle(fh), offset, data));
        });
    }

    /// copy_file_range(2), a part of it at a time.
    pub(super) fn copy_range(
        &self,
        (from, from_offset): (FileHandle, u64),
        (to_ino, to, to_offset): (INodeNo, FileHandle, u64),
        length: u64,
        reply: ReplyWrite,
    ) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
