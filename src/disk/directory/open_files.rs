//! The files that are open for reading: a bounded number, the least recently used closed first. Knows
//! nothing of what they hold.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::ObjectName;

/// How many files one disk keeps open for reading.
const OPEN_FILES: usize = 256;

#[derive(Debug, Default)]
pub(super) struct OpenFiles {
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

impl OpenFiles {
    /// The open file of an object, opened with `open` where it is not at hand.
    pub(super) fn get(
        &self,
        object: ObjectName,
        open: impl FnOnce() -> io::Result<File>,
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
        let file = Arc::new(open()?);
        let mut state = self.state.lock();
        if state.forgotten == forgotten {
            if state.files.len() >= OPEN_FILES {
                let oldest = state.files.iter().min_by_key(|(_, (_, used))| *used);
                if let Some(oldest) = oldest.map(|(object, _)| *object) {
                    state.files.remove(&oldest);
                }
            }
            let clock = state.clock;
            state.files.insert(object, (Arc::clone(&file), clock));
        }
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
        let mut state = self.state.lock();
        state.forgotten += 1;
        state.files.clear();
    }

    /// Closes an object's file: it was removed or replaced, and an open file would keep its room.
    pub(super) fn forget(&self, object: ObjectName) {
        let mut state = self.state.lock();
        state.forgotten += 1;
        state.files.remove(&object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> io::Result<File> {
        File::open("/dev/null")
    }

    #[test]
    fn the_file_used_longest_ago_is_closed() {
        let open = OpenFiles::default();
        for n in 0..OPEN_FILES as u64 {
            open.get(ObjectName::Journal(n), null).unwrap();
        }
        open.get(ObjectName::Journal(0), || panic!("is open"))
            .unwrap();
        open.get(ObjectName::Label, null).unwrap();
        assert_eq!(open.state.lock().files.len(), OPEN_FILES);
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
        assert!(open.state.lock().files.is_empty());
    }
}
