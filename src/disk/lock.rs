//! One writer a disk: a lock on a file in the disk's directory that ends with the process that took it, however
//! that ends. The file tells who holds it, for the error that the next one gets.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// The name of the lock file in a disk's directory.
const LOCK_FILE: &str = "lock";

/// A disk taken for this process. Given back when it is dropped.
#[derive(Debug)]
pub struct DiskLock {
    file: File,
}

impl Drop for DiskLock {
    /// Gives it back at once: a program that this process is just starting has a copy of the open file until its exec.
    fn drop(&mut self) {
        // What fails here ends with the last copy.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// A disk that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process writes there.
    #[error(
        "the disk at {} is in use by {holder}; unmount that volume first (parsfs umount), or mount with --read-only",
        path.display()
    )]
    Held {
        /// The disk's directory.
        path: PathBuf,
        /// Who has it, in words.
        holder: String,
    },
    /// The lock file cannot be made or locked.
    #[error("cannot lock the disk at {}: {source}", path.display())]
    Io {
        /// The disk's directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl DiskLock {
    /// Takes the disk in the directory `path`, if nobody else has it. Does not wait.
    pub fn take(path: &Path) -> Result<DiskLock, LockError> {
        let failed = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK_FILE))
            .map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LockError::Held {
                    path: path.to_owned(),
                    holder: holder(&mut file),
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
        // Only for the error above: a full disk must not keep a volume from being mounted.
        let _ = sign(&mut file);
        Ok(DiskLock { file })
    }
}

fn sign(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Who holds the lock, by what the holder wrote. The file is small or not ours, so little of it is read.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(32).read_to_string(&mut text) {
        Ok(_) => match text.trim().parse::<u32>() {
            Ok(pid) => format!("process {pid}"),
            Err(_) => "another process".to_string(),
        },
        Err(_) => "another process".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_taken_once_and_the_holder_is_named() {
        let disk = tempfile::tempdir().unwrap();
        let lock = DiskLock::take(disk.path()).unwrap();
        let error = DiskLock::take(disk.path()).unwrap_err();
        assert!(matches!(error, LockError::Held { .. }));
        let text = error.to_string();
        assert!(
            text.contains(&format!("process {}", std::process::id())),
            "{text}"
        );
        assert!(text.contains(&disk.path().display().to_string()), "{text}");
        drop(lock);
        DiskLock::take(disk.path()).unwrap();
    }

    #[test]
    fn a_copy_of_the_open_file_keeps_nothing_taken() {
        let disk = tempfile::tempdir().unwrap();
        let lock = DiskLock::take(disk.path()).unwrap();
        let copy = lock.file.try_clone().unwrap();
        drop(lock);
        DiskLock::take(disk.path()).unwrap();
        drop(copy);
    }

    #[test]
    fn a_strange_lock_file_is_no_harm() {
        let disk = tempfile::tempdir().unwrap();
        std::fs::write(disk.path().join(LOCK_FILE), [0xff; 4096]).unwrap();
        let lock = DiskLock::take(disk.path()).unwrap();
        std::fs::write(disk.path().join(LOCK_FILE), [0xff; 4096]).unwrap();
        let text = DiskLock::take(disk.path()).unwrap_err().to_string();
        assert!(text.contains("another process"), "{text}");
        drop(lock);
    }

    #[test]
    fn a_disk_that_is_not_there_is_an_error() {
        assert!(matches!(
            DiskLock::take(Path::new("/nowhere/at/all")),
            Err(LockError::Io { .. })
        ));
    }
}
