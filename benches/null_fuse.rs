//! The least that a FUSE filesystem can do with a write: take it and forget it. What `benches/compare` measures the write path
//! of parsfs against, so it talks to the kernel in the same way: requests of 1 MiB, direct I/O, several threads.
//! `null_fuse MOUNTPOINT [THREADS]` serves until it is unmounted.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyCreate, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

const CACHED: Duration = Duration::from_secs(1);

/// One directory of files that have a name and a size.
#[derive(Debug, Default)]
struct Null {
    numbers: Mutex<HashMap<OsString, u64>>,
    sizes: Mutex<HashMap<u64, AtomicU64>>,
}

impl Null {
    fn attributes(&self, number: INodeNo) -> FileAttr {
        let root = number == INodeNo::ROOT;
        let sizes = self.sizes.lock().expect("sizes");
        FileAttr {
            ino: number,
            size: sizes
                .get(&number.0)
                .map_or(0, |size| size.load(Ordering::Relaxed)),
            blocks: 0,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: if root {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: if root { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 1 << 20,
            flags: 0,
        }
    }

    fn number(&self, name: &OsStr) -> Option<INodeNo> {
        self.numbers
            .lock()
            .expect("numbers")
            .get(name)
            .copied()
            .map(INodeNo)
    }
}

impl Filesystem for Null {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(1 << 20);
        let _ = config.set_max_background(256);
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ];
        for flag in wanted {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.number(name) {
            Some(number) => reply.entry(&CACHED, &self.attributes(number), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&CACHED, &self.attributes(number));
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let (Some(size), Some(known)) = (size, self.sizes.lock().expect("sizes").get(&number.0))
        {
            known.store(size, Ordering::Relaxed);
        }
        reply.attr(&CACHED, &self.attributes(number));
    }

    fn create(
        &self,
        _: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut numbers = self.numbers.lock().expect("numbers");
        let number = INodeNo::ROOT.0 + 1 + numbers.len() as u64;
        numbers.insert(name.to_owned(), number);
        drop(numbers);
        self.sizes
            .lock()
            .expect("sizes")
            .insert(number, AtomicU64::new(0));
        let attributes = self.attributes(INodeNo(number));
        reply.created(
            &CACHED,
            &attributes,
            Generation(0),
            FileHandle(0),
            FopenFlags::FOPEN_DIRECT_IO,
        );
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if let (true, Some(size)) = (
            flags.0 & libc::O_TRUNC != 0,
            self.sizes.lock().expect("sizes").get(&number.0),
        ) {
            size.store(0, Ordering::Relaxed);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn unlink(&self, _: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.numbers.lock().expect("numbers").remove(name);
        reply.ok();
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if let Some(size) = self.sizes.lock().expect("sizes").get(&number.0) {
            size.fetch_max(offset + data.len() as u64, Ordering::Relaxed);
        }
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        reply.ok();
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(mountpoint) = words.next() else {
        eprintln!("usage: null_fuse MOUNTPOINT [THREADS]");
        return ExitCode::from(2);
    };
    let mut config = fuser::Config::default();
    config.mount_options = vec![MountOption::FSName("null".into())];
    let threads = || {
        std::thread::available_parallelism()
            .map_or(2, usize::from)
            .clamp(2, 8)
    };
    config.n_threads = Some(
        words
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or_else(threads),
    );
    config.clone_fd = true;
    match fuser::mount(Null::default(), &mountpoint, &config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("null_fuse: {mountpoint}: {error}");
            ExitCode::FAILURE
        }
    }
}
