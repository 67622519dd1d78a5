//! Attributes, kinds and times, between the volume's types and fuser's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::volume::{Attributes, FileKind, SetTime, Timestamp};

/// How long the kernel may go by a name. Names change through this mount only, and then the kernel knows.
pub(super) const NAME_TTL: Duration = Duration::from_secs(3600);

/// What programs take as a good size for one read or write: the most that one request carries.
const PREFERRED_IO: u32 = 1 << 20;

/// How long the kernel may go by attributes. A commit changes what a regular file occupies, and the kernel does
/// not see that; everything else of it changes by requests the kernel itself sends. Where one is due it has to ask: cp
/// and tar go by what a file occupies to see whether it has holes.
pub(super) fn ttl(attributes: &Attributes) -> Duration {
    match attributes.kind {
        FileKind::Regular if attributes.commit_is_due => Duration::ZERO,
        FileKind::Regular => Duration::from_secs(1),
        _ => NAME_TTL,
    }
}

/// What stat(2) tells.
pub(super) fn to_fuse(attributes: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(attributes.file.0),
        size: attributes.size,
        blocks: attributes.allocated.div_ceil(512),
        atime: to_system(attributes.atime),
        mtime: to_system(attributes.mtime),
        ctime: to_system(attributes.ctime),
        crtime: to_system(attributes.born),
        kind: kind_to_fuse(attributes.kind),
        perm: attributes.mode & 0o7777,
        nlink: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: PREFERRED_IO,
        flags: 0,
    }
}

/// The answer "there is no such name", which the kernel may keep as it keeps a name.
pub(super) fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// A kind as fuser names it.
pub(super) fn kind_to_fuse(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// What mknod(2) is to make; `None` for what it cannot.
pub(super) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        // mknod(2): no type is a regular file.
        libc::S_IFREG | 0 => Some(FileKind::Regular),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDevice),
        libc::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

/// A time to set.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(from_request(time)),
    }
}

/// A time as a request brings it. fuser 0.18 makes `-seconds - nanoseconds` of a time before 1970 where the kernel
/// means `-seconds + nanoseconds`; this takes the two apart again.
pub(super) fn from_request(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            Timestamp {
                seconds: i64::try_from(before.as_secs()).map_or(i64::MIN, |secs| -secs),
                nanos: before.subsec_nanos(),
            }
        }
    }
}

/// A time for an answer, which fuser translates rightly. One that no `SystemTime` can hold becomes 1970.
fn to_system(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos.min(999_999_999)));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds >= 0 {
        UNIX_EPOCH.checked_add(seconds)
    } else {
        UNIX_EPOCH.checked_sub(seconds)
    };
    whole
        .and_then(|whole| whole.checked_add(nanos))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_come_out_as_the_kernel_meant_them() {
        // What fuser makes of seconds = -2, nanoseconds = 300: two seconds and 300 ns before.
        let fuser_says = UNIX_EPOCH - Duration::new(2, 300);
        let meant = Timestamp {
            seconds: -2,
            nanos: 300,
        };
        assert_eq!(from_request(fuser_says), meant);
        assert_eq!(
            to_system(meant),
            UNIX_EPOCH - Duration::from_secs(2) + Duration::from_nanos(300)
        );
        let after = Timestamp {
            seconds: 5,
            nanos: 7,
        };
        assert_eq!(from_request(UNIX_EPOCH + Duration::new(5, 7)), after);
        assert_eq!(to_system(after), UNIX_EPOCH + Duration::new(5, 7));
    }

    #[test]
    fn no_time_panics() {
        for secs in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX] {
            for nanos in [0, 999_999_999, u32::MAX] {
                to_system(Timestamp {
                    seconds: secs,
                    nanos,
                });
            }
        }
    }

    #[test]
    fn kinds_of_mknod() {
        assert_eq!(kind_of_mode(libc::S_IFIFO | 0o644), Some(FileKind::Fifo));
        assert_eq!(kind_of_mode(0o644), Some(FileKind::Regular));
        assert_eq!(kind_of_mode(libc::S_IFDIR | 0o755), None);
        assert_eq!(kind_of_mode(libc::S_IFLNK), None);
    }
}
