//! Sockets that daemons left behind which were killed: nobody answers there, and nobody else would ever remove them. Knows
//! the directory and nothing of what is said on a socket.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tracing::debug;

/// How old a socket is before it may count as left behind: one that a daemon is just making does not answer yet.
const AGE: Duration = Duration::from_secs(60);

/// Removes what dead daemons left in the directory. What cannot be looked at or removed stays.
pub(super) fn remove(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if is_left_behind(&path)
            && let Err(error) = fs::remove_file(&path)
        {
            debug!("cannot remove {}: {error}", path.display());
        }
    }
}

fn is_left_behind(path: &Path) -> bool {
    let Ok(seen) = fs::symlink_metadata(path) else {
        return false;
    };
    let age = seen.modified().ok().and_then(|made| made.elapsed().ok());
    seen.file_type().is_socket()
        && age.is_some_and(|age| age >= AGE)
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::SystemTime;

    use super::*;

    fn grow_old(path: &Path) {
        let made = SystemTime::now() - 2 * AGE;
        let since = made.duration_since(SystemTime::UNIX_EPOCH).expect("a time");
        let time = rustix::fs::Timespec {
            tv_sec: since.as_secs() as i64,
            tv_nsec: 0,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        let how = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, how).expect("another time");
    }

    #[test]
    fn only_old_sockets_that_nobody_answers_at_are_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let alive = UnixListener::bind(at("alive")).expect("a socket");
        for name in ["dead", "young"] {
            drop(UnixListener::bind(at(name)).expect("a socket"));
        }
        fs::write(at("file"), "of somebody's").expect("a file");
        std::os::unix::fs::symlink("dead", at("link")).expect("a link");
        for name in ["alive", "dead", "file", "link"] {
            grow_old(&at(name));
        }
        remove(directory.path());
        let left = ["alive", "dead", "young", "file", "link"]
            .map(|name| fs::symlink_metadata(at(name)).is_ok());
        assert_eq!(left, [true, false, true, true, true]);
        drop(alive);
        remove(directory.path());
        assert!(!at("alive").exists());
        remove(&at("no directory"));
    }
}
