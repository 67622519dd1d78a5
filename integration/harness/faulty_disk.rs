//! A disk that fails when it is told to: a FUSE filesystem over a directory, with knobs. It does from outside what a
//! device mapper's error target would do, without needing one: reads, writes and syncs that end in EIO, a full disk, a slow
//! one, one that is gone.
//!
//! It has what a store of files needs and no more: no links, no attributes but sizes. Nothing is cached by the kernel, so
//! that a fault is felt at once.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, SessionACL, TimeOrNow, WriteFlags,
};

const NEVER_CACHED: Duration = Duration::ZERO;

/// What the disk does wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Every request ends in EIO.
    pub dead: bool,
    pub failing_reads: bool,
    pub failing_writes: bool,
    pub failing_syncs: bool,
    /// Writes end in ENOSPC, and no space is reported.
    pub full: bool,
    /// Writes fail once so many bytes more were written.
    pub writes_fail_after: Option<u64>,
    /// Every read, write and sync takes this long.
    pub delay: Duration,
    /// Writes and syncs do not end before this is taken back.
    pub writes_hang: bool,
}

/// The mounted disk; dropped, it is unmounted.
#[derive(Debug)]
pub struct FaultyDisk {
    faults: Arc<Mutex<Faults>>,
    _session: BackgroundSession,
}

impl FaultyDisk {
    pub fn mount(below: &Path, mountpoint: &Path) -> FaultyDisk {
        let faults = Arc::new(Mutex::new(Faults::default()));
        let served = Served {
            faults: Arc::clone(&faults),
            paths: Mutex::new(Paths::new(below)),
            files: Mutex::default(),
            next_handle: AtomicU64::new(1),
        };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("faulty".into())];
        config.acl = SessionACL::All;
        // A slow request must not hold up the others.
        config.n_threads = Some(8);
        config.clone_fd = true;
        let session =
            fuser::spawn_mount(served, mountpoint, &config).expect("mounting a faulty disk");
        FaultyDisk {
            faults,
            _session: session,
        }
    }

    /// Turns the knobs.
    pub fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults.lock().expect("faults"));
    }

    /// Everything works again.
    pub fn heal(&self) {
        self.set(|faults| *faults = Faults::default());
    }
}

#[derive(Debug)]
struct Served {
    faults: Arc<Mutex<Faults>>,
    paths: Mutex<Paths>,
    files: Mutex<HashMap<u64, Arc<File>>>,
    next_handle: AtomicU64,
}

/// Which inode number is which path. Numbers are given out once and kept.
#[derive(Debug)]
struct Paths {
    by_number: HashMap<u64, PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    next: u64,
}

impl Paths {
    fn new(root: &Path) -> Paths {
        let root_number = INodeNo::ROOT.0;
        Paths {
            by_number: HashMap::from([(root_number, root.to_owned())]),
            numbers: HashMap::from([(root.to_owned(), root_number)]),
            next: root_number + 1,
        }
    }

    fn number(&mut self, path: PathBuf) -> u64 {
        if let Some(number) = self.numbers.get(&path) {
            return *number;
        }
        let number = self.next;
        self.next += 1;
        self.by_number.insert(number, path.clone());
        self.numbers.insert(path, number);
        number
    }

    fn forget(&mut self, path: &Path) {
        self.numbers.remove(path);
    }

    /// Files only: a store renames no directories.
    fn rename(&mut self, from: &Path, to: PathBuf) {
        if let Some(number) = self.numbers.remove(from) {
            self.by_number.insert(number, to.clone());
            self.numbers.insert(to, number);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Name,
    Read,
    Write(u64),
    Sync,
}

type Answer<T> = Result<T, Errno>;

impl Served {
    /// Whether a request fails, and how.
    fn fault(&self, act: Act) -> Answer<()> {
        let mut faults = self.faults.lock().expect("faults");
        if let (Act::Write(bytes), Some(left)) = (act, faults.writes_fail_after.as_mut()) {
            *left = left.saturating_sub(bytes);
            faults.failing_writes |= *left == 0;
        }
        let now = *faults;
        drop(faults);
        if act != Act::Name {
            thread::sleep(now.delay);
        }
        while matches!(act, Act::Write(_) | Act::Sync)
            && self.faults.lock().expect("faults").writes_hang
        {
            thread::sleep(Duration::from_millis(50));
        }
        let fails = match act {
            Act::Name => false,
            Act::Read => now.failing_reads,
            Act::Write(_) => now.failing_writes,
            Act::Sync => now.failing_syncs,
        };
        match act {
            _ if now.dead || fails => Err(Errno::EIO),
            Act::Write(_) if now.full => Err(Errno::ENOSPC),
            _ => Ok(()),
        }
    }

    fn path(&self, number: INodeNo) -> Answer<PathBuf> {
        self.fault(Act::Name)?;
        self.paths
            .lock()
            .expect("paths")
            .by_number
            .get(&number.0)
            .cloned()
            .ok_or(Errno::ESTALE)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Answer<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    fn file(&self, handle: FileHandle) -> Answer<Arc<File>> {
        self.files
            .lock()
            .expect("files")
            .get(&handle.0)
            .cloned()
            .ok_or(Errno::EBADF)
    }

    fn keep(&self, file: File) -> FileHandle {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.files
            .lock()
            .expect("files")
            .insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    fn attributes(&self, path: PathBuf) -> Answer<FileAttr> {
        let metadata = fs::symlink_metadata(&path)?;
        let number = self.paths.lock().expect("paths").number(path);
        Ok(FileAttr {
            ino: INodeNo(number),
            size: metadata.len(),
            blocks: metadata.blocks(),
            atime: SystemTime::UNIX_EPOCH,
            mtime: metadata.modified()?,
            ctime: metadata.modified()?,
            crtime: SystemTime::UNIX_EPOCH,
            kind: FileType::from_std(metadata.file_type()).ok_or(Errno::EIO)?,
            perm: (metadata.mode() & 0o7777) as u16,
            nlink: 1,
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn open_file(&self, path: &Path, flags: i32, mode: Option<u32>) -> Answer<FileHandle> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(flags & libc::O_ACCMODE != libc::O_RDONLY);
        if let Some(mode) = mode {
            options
                .write(true)
                .create(true)
                .create_new(flags & libc::O_EXCL != 0)
                .mode(mode);
        }
        let file = options.open(path)?;
        if flags & libc::O_TRUNC != 0 {
            file.set_len(0)?;
        }
        Ok(self.keep(file))
    }
}

/// What a created or opened file is served with: past the page cache, so that each request comes here.
const UNCACHED: FopenFlags = FopenFlags::FOPEN_DIRECT_IO;

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self
            .child(parent, name)
            .and_then(|path| self.attributes(path))
        {
            Ok(attributes) => reply.entry(&NEVER_CACHED, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let found =
            self.path(number)
                .and_then(|path| match handle.map(|handle| self.file(handle)) {
                    // A file that was removed and is still open.
                    Some(Ok(file)) if !path.exists() => {
                        let mut attributes =
                            self.attributes(path.parent().ok_or(Errno::EIO)?.to_owned())?;
                        attributes.ino = number;
                        attributes.kind = FileType::RegularFile;
                        attributes.size = file.metadata()?.len();
                        Ok(attributes)
                    }
                    _ => self.attributes(path),
                });
        match found {
            Ok(attributes) => reply.attr(&NEVER_CACHED, &attributes),
            Err(error) => reply.error(error),
        }
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
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let done = self.path(number).and_then(|path| {
            if let Some(size) = size {
                self.fault(Act::Write(0))?;
                OpenOptions::new().write(true).open(&path)?.set_len(size)?;
            }
            self.attributes(path)
        });
        match done {
            Ok(attributes) => reply.attr(&NEVER_CACHED, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.child(parent, name).and_then(|path| {
            self.fault(Act::Write(0))?;
            fs::DirBuilder::new().mode(mode).create(&path)?;
            self.attributes(path)
        });
        match made {
            Ok(attributes) => reply.entry(&NEVER_CACHED, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.child(parent, name).and_then(|path| {
            fs::remove_file(&path)?;
            self.paths.lock().expect("paths").forget(&path);
            Ok(())
        });
        answer(done, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.child(parent, name).and_then(|path| {
            fs::remove_dir(&path)?;
            self.paths.lock().expect("paths").forget(&path);
            Ok(())
        });
        answer(done, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let done = self.child(parent, name).and_then(|from| {
            let to = self.child(new_parent, new_name)?;
            self.fault(Act::Write(0))?;
            fs::rename(&from, &to)?;
            self.paths.lock().expect("paths").rename(&from, to);
            Ok(())
        });
        answer(done, reply);
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self
            .path(number)
            .and_then(|path| self.open_file(&path, flags.0, None))
        {
            Ok(handle) => reply.opened(handle, UNCACHED),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.child(parent, name).and_then(|path| {
            self.fault(Act::Write(0))?;
            let handle = self.open_file(&path, flags, Some(mode))?;
            Ok((self.attributes(path)?, handle))
        });
        match made {
            Ok((attributes, handle)) => {
                reply.created(&NEVER_CACHED, &attributes, Generation(0), handle, UNCACHED)
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.fault(Act::Read).and_then(|()| {
            let mut buffer = vec![0; size as usize];
            let count = self.file(handle)?.read_at(&mut buffer, offset)?;
            buffer.truncate(count);
            Ok(buffer)
        });
        match read {
            Ok(buffer) => reply.data(&buffer),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.fault(Act::Write(data.len() as u64)).and_then(|()| {
            self.file(handle)?.write_all_at(data, offset)?;
            Ok(data.len() as u32)
        });
        match written {
            Ok(count) => reply.written(count),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.files.lock().expect("files").remove(&handle.0);
        reply.ok();
    }

    fn fsync(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let done = self
            .fault(Act::Sync)
            .and_then(|()| Ok(self.file(handle)?.sync_data()?));
        answer(done, reply);
    }

    fn fsyncdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        answer(self.fault(Act::Sync), reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let done = self.fault(Act::Write(0)).and_then(|()| {
            let flags = rustix::fs::FallocateFlags::from_bits_retain(mode as u32);
            rustix::fs::fallocate(&*self.file(handle)?, flags, offset, length)
                .map_err(io::Error::from)?;
            Ok(())
        });
        answer(done, reply);
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.path(number).and_then(|path| {
            self.fault(Act::Read)?;
            let mut entries = vec![
                (number, FileType::Directory, ".".into()),
                (number, FileType::Directory, "..".into()),
            ];
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                let kind = FileType::from_std(entry.file_type()?).ok_or(Errno::EIO)?;
                let child = self.paths.lock().expect("paths").number(entry.path());
                entries.push((INodeNo(child), kind, entry.file_name()));
            }
            Ok(entries)
        });
        match listed {
            Ok(entries) => {
                for (place, (child, kind, name)) in
                    entries.into_iter().enumerate().skip(offset as usize)
                {
                    if reply.add(child, place as u64 + 1, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let root = INodeNo::ROOT;
        let asked = self
            .path(root)
            .and_then(|path| Ok(rustix::fs::statvfs(&path).map_err(io::Error::from)?));
        let full = self.faults.lock().expect("faults").full;
        match asked {
            Ok(space) => {
                let left = |blocks: u64| if full { 0 } else { blocks };
                reply.statfs(
                    space.f_blocks,
                    left(space.f_bfree),
                    left(space.f_bavail),
                    space.f_files,
                    space.f_ffree,
                    space.f_bsize as u32,
                    255,
                    space.f_frsize as u32,
                );
            }
            Err(error) => reply.error(error),
        }
    }
}

fn answer(done: Answer<()>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

#[test]
fn it_fails_only_when_told_to() {
    let scratch = super::scratch::Scratch::new();
    let disk = scratch.directory("disk");
    let faulty = FaultyDisk::mount(&scratch.directory("below"), &disk);
    let name = disk.join("a");
    fs::write(&name, b"first").expect("writing to a healthy disk");
    fs::rename(&name, disk.join("b")).expect("renaming");
    let name = disk.join("b");
    assert_eq!(fs::read(&name).expect("reading back"), b"first");

    let errno = |result: io::Result<()>| result.expect_err("a fault").raw_os_error();
    faulty.set(|faults| faults.failing_writes = true);
    assert_eq!(errno(fs::write(&name, b"second")), Some(libc::EIO));
    faulty.heal();
    faulty.set(|faults| faults.full = true);
    assert_eq!(errno(fs::write(&name, b"second")), Some(libc::ENOSPC));
    faulty.heal();
    fs::write(&name, b"second").expect("writing to a healed disk");
    faulty.set(|faults| faults.failing_reads = true);
    assert_eq!(errno(fs::read(&name).map(drop)), Some(libc::EIO));
    faulty.heal();
    faulty.set(|faults| faults.failing_syncs = true);
    assert_eq!(
        errno(File::open(&name).and_then(|file| file.sync_all())),
        Some(libc::EIO)
    );
    faulty.set(|faults| faults.dead = true);
    assert_eq!(errno(fs::metadata(&name).map(drop)), Some(libc::EIO));
    faulty.heal();
    assert_eq!(
        fs::read(&name).expect("reading from a healed disk"),
        b"second"
    );
}
