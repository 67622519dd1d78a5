//! Which files are open through the page cache, and what a direct write to one of them must do: a reader that was
//! there before the writer came keeps its cache. Kernels before 6.16 drop a cached range before a direct write but not
//! after it, so a page read in between would stay stale.

use std::collections::HashMap;

use fuser::INodeNo;
use parking_lot::Mutex;

/// How often each file is open through the page cache.
#[derive(Debug, Default)]
pub(super) struct CachedOpens {
    opens: Mutex<HashMap<u64, usize>>,
}

impl CachedOpens {
    /// The file was opened so.
    pub(super) fn opened(&self, file: INodeNo) {
        *self.opens.lock().entry(file.0).or_default() += 1;
    }

    /// One such descriptor is gone.
    pub(super) fn released(&self, file: INodeNo) {
        let mut opens = self.opens.lock();
        if let Some(count) = opens.get_mut(&file.0) {
            *count -= 1;
            if *count == 0 {
                opens.remove(&file.0);
            }
        }
    }

    /// Whether anyone has it open so.
    pub(super) fn any(&self, file: INodeNo) -> bool {
        self.opens.lock().contains_key(&file.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_are_counted() {
        let cached = CachedOpens::default();
        let file = INodeNo(7);
        cached.released(file);
        cached.opened(file);
        cached.opened(file);
        cached.released(file);
        assert!(cached.any(file));
        cached.released(file);
        assert!(!cached.any(file));
        assert!(cached.opens.lock().is_empty());
    }
}
