//! Between fuser's words and the volume's: numbers, handles, and the answer that a result becomes.

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyWrite, ReplyXattr, Request,
};

use crate::ids::FileId;
use crate::mount::attributes::{NAME_TTL, to_fuse, ttl};
use crate::mount::errno::errno;
use crate::volume::{Attributes, Caller, Handle, Opened, Result, reuse};

/// File numbers are never used again, so there is one generation.
pub(super) const GENERATION: Generation = Generation(0);

/// What the kernel is told of an opened file. The lowest bit of its handle says whether it goes past the page cache.
pub(super) fn open_answer(opened: Opened, may_keep_cache: bool) -> (FileHandle, FopenFlags) {
    let mut flags = FopenFlags::empty();
    if opened.direct_io {
        // Writers of one file at different places need not wait for each other.
        flags |= FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    }
    if opened.keep_cache && may_keep_cache {
        flags |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    (
        FileHandle(opened.handle.0 << 1 | u64::from(opened.direct_io)),
        flags,
    )
}

pub(super) fn handle(fh: FileHandle) -> Handle {
    Handle(fh.0 >> 1)
}

pub(super) fn is_direct(fh: FileHandle) -> bool {
    fh.0 & 1 == 1
}

pub(super) fn id(file: INodeNo) -> FileId {
    FileId(file.0)
}

pub(super) fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}

pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

pub(super) fn answer_empty(
    operation: &'static str,
    file: INodeNo,
    reply: ReplyEmpty,
    result: Result<()>,
) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(operation, file, &error)),
    }
}

pub(super) fn answer_entry(
    operation: &'static str,
    parent: INodeNo,
    reply: ReplyEntry,
    result: Result<Attributes>,
) {
    match result {
        Ok(attributes) => reply.entry_with_ttls(
            &ttl(&attributes),
            &NAME_TTL,
            &to_fuse(&attributes),
            GENERATION,
        ),
        Err(error) => reply.error(errno(operation, parent, &error)),
    }
}

pub(super) fn answer_attributes(
    operation: &'static str,
    file: INodeNo,
    reply: ReplyAttr,
    result: Result<Attributes>,
) {
    match result {
        Ok(attributes) => reply.attr(&ttl(&attributes), &to_fuse(&attributes)),
        Err(error) => reply.error(errno(operation, file, &error)),
    }
}

pub(super) fn answer_data(
    operation: &'static str,
    file: INodeNo,
    reply: ReplyData,
    result: Result<Vec<u8>>,
) {
    match result {
        Ok(data) => {
            reply.data(&data);
            reuse(data);
        }
        Err(error) => reply.error(errno(operation, file, &error)),
    }
}

pub(super) fn answer_write(file: INodeNo, reply: ReplyWrite, result: Result<()>, length: usize) {
    match result {
        Ok(()) => reply.written(length as u32),
        Err(error) => reply.error(errno("write", file, &error)),
    }
}

/// lseek(2), for which that there is nothing more is no failure.
pub(super) fn answer_seek(file: INodeNo, reply: ReplyLseek, result: Result<u64>) {
    match result {
        Ok(found) => match i64::try_from(found) {
            Ok(found) => reply.offset(found),
            Err(_) => reply.error(Errno::EOVERFLOW),
        },
        Err(error) if error.errno() == libc::ENXIO => reply.error(Errno::ENXIO),
        Err(error) => reply.error(errno("lseek", file, &error)),
    }
}

/// getxattr(2) and listxattr(2): a size of 0 asks how much there is.
pub(super) fn answer_xattr(reply: ReplyXattr, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_keep_how_they_were_opened() {
        for (number, direct_io) in [(0, true), (1, false), (77, true), (u64::MAX >> 1, false)] {
            let opened = Opened {
                handle: Handle(number),
                direct_io,
                keep_cache: !direct_io,
            };
            let (fh, flags) = open_answer(opened, true);
            assert_eq!(handle(fh), Handle(number));
            assert_eq!(is_direct(fh), direct_io);
            assert_eq!(flags.contains(FopenFlags::FOPEN_DIRECT_IO), direct_io);
            assert_eq!(flags.contains(FopenFlags::FOPEN_KEEP_CACHE), !direct_io);
            let (_, flags) = open_answer(opened, false);
            assert!(!flags.contains(FopenFlags::FOPEN_KEEP_CACHE));
        }
    }
}
