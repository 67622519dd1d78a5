//! The files that are open for reading: a bounded number, the least recently used closed first, and more of them when
//! this process may open no further file. Knows nothing of what they hold.
//!
//! A close may be work for the disk, which frees what a removed file had, and a disk may hang in it: no file is closed under
//! the lock that every reader of the disk takes.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::disk::ObjectName;

/// How many files one disk keeps open for reading where nothing else was said.
const OPEN_FILES: usize = 256;

/// How long to wait each time that nothing is left to close: others close theirs soon.
const WAITS: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(90),
    Duration::from_millis(270),
    Duration::from_millis(810),
];

#[derive(Debug)]
pub(super) struct OpenFiles {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<ObjectName, (Arc<File>, u64)>,
    /// Counts uses: the smallest in `files` was used longest ago.
    clock: u64,
    /// Counts objects forgotten, so that a file opened before its removal is not kept after it.
    forgotten: u64,
}

impl Default for OpenFiles {
    fn default() -> OpenFiles {
        OpenFiles::at_most(OPEN_FILES)
    }
}

/// Whether this process or this machine ran out of something of its own: no disk is to blame for it.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    use rustix::io::Errno;
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

impl OpenFiles {
    /// None is open yet, and never more than so many.
    pub(super) fn at_most(most: usize) -> OpenFiles {
        OpenFiles {
            most: most.max(1),
            state: Mutex::default(),
        }
    }

    /// The open file of an object, opened with `open` where it is not at hand.
    pub(super) fn get(
        &self,
        object: ObjectName,
        open: impl FnMut() -> io::Result<File>,
    ) -> io::Result<Arc<File>> {
        let forgotten = {
            let mut state = self.state.lock();
            state.clock += 1;
            let clock = state.clock;
            if let Some((file, used)) = state.files.get_mut(&object) {
                *used = clock;
                return Ok(Arc::clone(file));
            }
            state.forgotten
        };
        // Not under the lock: a slow disk must not hold up readers of files that are open.
        let file = Arc::new(self.with_room(open)?);
        let mut closed = Vec::new();
        let mut state = self.state.lock();
        if state.forgotten == forgotten {
            while state.files.len() >= self.most {
                closed.push(state.take_oldest());
            }
            let clock = state.clock;
            let before = state.files.insert(object, (Arc::clone(&file), clock));
            closed.push(before.map(|(file, _)| file));
        }
        drop(state);
        drop(closed);
        Ok(file)
    }

    /// The open file of an object, if it is at hand.
    pub(super) fn peek(&self, object: ObjectName) -> Option<Arc<File>> {
        let mut state = self.state.lock();
        state.clock += 1;
        let clock = state.clock;
        let (file, used) = state.files.get_mut(&object)?;
        *used = clock;
        Some(Arc::clone(file))
    }

    /// Closes all files, once whoever reads one now is done with it.
    pub(super) fn clear(&self) {
        let closed = {
            let mut state = self.state.lock();
            state.forgotten += 1;
            std::mem::take(&mut state.files)
        };
        drop(closed);
    }

    /// Closes an object's file: it was removed or replaced, and an open file would keep its room.
    pub(super) fn forget(&self, object: ObjectName) {
        let closed = {
            let mut state = self.state.lock();
            state.forgotten += 1;
            state.files.remove(&object)
        };
        drop(closed);
    }

    /// Does something that needs a new descriptor. Where none is to be had files are closed that were not used for long,
    /// then the others, and it is tried again; then it waits for a moment for what others close.
    pub(super) fn with_room<T>(&self, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut waits = WAITS.into_iter();
        loop {
            let error = match open() {
                Err(error) if is_exhausted(&error) => error,
                result => return result,
            };
            if self.close_half() {
                continue;
            }
            match waits.next() {
                Some(wait) => std::thread::sleep(wait),
                None => return Err(error),
            }
        }
    }

    /// Closes the half that was used longest ago, one at least; tells whether there was any.
    fn close_half(&self) -> bool {
        let closed: Vec<Arc<File>> = {
            let mut state = self.state.lock();
            let count = state.files.len().div_ceil(2);
            (0..count).filter_map(|_| state.take_oldest()).collect()
        };
        !closed.is_empty()
    }
}

impl State {
    /// The file that was used longest ago, which is not kept any more.
    fn take_oldest(&mut self) -> Option<Arc<File>> {
        let oldest = self.files.iter().min_by_key(|(_, (_, used))| *used);
        let object = oldest.map(|(object, _)| *object)?;
        self.files.remove(&object).map(|(file, _)| file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> io::Result<File> {
        File::open("/dev/null")
    }

    fn filled(files: u64) -> OpenFiles {
        let open = OpenFiles::at_most(files as usize);
        for n in 0..files {
            open.get(ObjectName::Journal(n), null).unwrap();
        }
        open
    }

    fn count(open: &OpenFiles) -> usize {
        open.state.lock().files.len()
    }

    #[test]
    fn the_file_used_longest_ago_is_closed() {
        let open = filled(20);
        open.get(ObjectName::Journal(0), || panic!("is open"))
            .unwrap();
        open.get(ObjectName::Label, null).unwrap();
        assert_eq!(count(&open), 20);
        open.get(ObjectName::Journal(0), || panic!("was used just now"))
            .unwrap();
        let mut opened = false;
        open.get(ObjectName::Journal(1), || {
            opened = true;
            null()
        })
        .unwrap();
        assert!(opened);
    }

    #[test]
    fn a_file_opened_before_its_removal_is_not_kept() {
        let open = OpenFiles::default();
        open.get(ObjectName::Label, || {
            open.forget(ObjectName::Label);
            null()
        })
        .unwrap();
        assert_eq!(count(&open), 0);
    }

    #[test]
    fn files_are_closed_until_another_can_be_opened() {
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            let open = filled(20);
            let mut tries = 0;
            // The system has room for no more than six.
            open.get(ObjectName::Label, || {
                tries += 1;
                match count(&open) {
                    0..6 => null(),
                    _ => Err(io::Error::from_raw_os_error(errno)),
                }
            })
            .unwrap();
            assert_eq!((tries, count(&open)), (3, 6));
            let kept = |object| open.peek(object).is_some();
            assert!(kept(ObjectName::Journal(19)) && !kept(ObjectName::Journal(14)));
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error_in_the_end_and_no_other_error_closes_anything() {
        let open = filled(3);
        let other = || Err::<(), _>(io::Error::from_raw_os_error(libc::EIO));
        open.with_room(other).unwrap_err();
        assert_eq!(count(&open), 3);
        let never = || Err::<(), _>(io::Error::from_raw_os_error(libc::EMFILE));
        let error = open.with_room(never).unwrap_err();
        assert!(is_exhausted(&error));
        assert_eq!(count(&open), 0);
        // Others close theirs meanwhile.
        let mut left = 3;
        open.with_room(|| {
            left -= 1;
            if left == 0 { Ok(()) } else { never() }
        })
        .unwrap();
    }
}
