//! Decompressed blocks that are kept in memory within a budget, for all files of a volume. A block is known here by its
//! file, its set and its number in the file. No set's number is ever used again, so nothing here becomes stale; a
//! block's number alone may be: a file that is given up before it was committed begins again where its last commit
//! ended.

use std::fmt;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::ids::{BlockId, FileId, SetId};

/// The name of a block in a volume.
pub type BlockKey = (FileId, SetId, BlockId);

/// What an entry occupies beyond its bytes, about.
const OVERHEAD: u64 = 100;

#[derive(Clone)]
struct Weigh;

impl Weighter<BlockKey, Arc<[u8]>> for Weigh {
    fn weight(&self, _: &BlockKey, bytes: &Arc<[u8]>) -> u64 {
        bytes.len() as u64 + OVERHEAD
    }
}

/// The blocks in memory. Shared by all readers of a volume.
pub struct BlockCache {
    blocks: Cache<BlockKey, Arc<[u8]>, Weigh>,
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BlockCache {{ {} of {} bytes }}",
            self.weight(),
            self.blocks.capacity()
        )
    }
}

impl BlockCache {
    /// A cache of at most `bytes`; 0 keeps nothing.
    pub fn new(bytes: u64) -> Self {
        // How many entries to expect decides into how many parts the cache is divided, and a block must
        // be small beside a part: the largest block is 128 KiB.
        let entries = (bytes >> 17).max(1) as usize;
        BlockCache {
            blocks: Cache::with_weighter(entries, bytes, Weigh),
        }
    }

    /// The block, if it is there.
    pub fn get(&self, key: BlockKey) -> Option<Arc<[u8]>> {
        self.blocks.get(&key)
    }

    /// Whether it is there; is no use of it.
    pub fn contains(&self, key: BlockKey) -> bool {
        self.blocks.contains_key(&key)
    }

    /// The block, loaded if it is not there. Of several that ask at once one loads and the others wait; when
    /// loading fails, the next one tries.
    pub fn get_or_load<E>(
        &self,
        key: BlockKey,
        load: impl FnOnce() -> Result<Arc<[u8]>, E>,
    ) -> Result<Arc<[u8]>, E> {
        self.blocks.get_or_insert_with(&key, load)
    }

    /// Puts a block there that came along with another.
    pub fn insert(&self, key: BlockKey, bytes: Arc<[u8]>) {
        self.blocks.insert(key, bytes);
    }

    /// Bytes held now.
    pub fn weight(&self) -> u64 {
        self.blocks.weight()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::ids::WindowNo;

    fn key(number: u32) -> BlockKey {
        let block = BlockId {
            window: WindowNo(number),
            index: 3,
        };
        (FileId(1), SetId(1), block)
    }

    #[test]
    fn many_that_ask_at_once_load_once() {
        let (cache, loads, barrier) =
            (BlockCache::new(1 << 20), AtomicU32::new(0), Barrier::new(8));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    let block = cache.get_or_load(key(1), || {
                        loads.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(30));
                        Ok::<_, ()>(Arc::from(&b"block"[..]))
                    });
                    assert_eq!(block.as_deref(), Ok(&b"block"[..]));
                });
            }
        });
        assert_eq!(loads.into_inner(), 1);
    }

    #[test]
    fn a_block_of_another_set_is_another_block() {
        let cache = BlockCache::new(1 << 20);
        let (file, _, block) = key(1);
        cache.insert((file, SetId(1), block), Arc::from([1].as_slice()));
        assert_eq!(cache.get((file, SetId(2), block)), None);
    }

    #[test]
    fn a_failed_load_is_tried_again() {
        let cache = BlockCache::new(1 << 20);
        assert_eq!(
            cache.get_or_load(key(1), || Err("bad disk")),
            Err("bad disk")
        );
        let block = cache.get_or_load(key(1), || Ok::<_, ()>(Arc::from([5].as_slice())));
        assert_eq!(block.as_deref(), Ok(&[5][..]));
    }

    #[test]
    fn the_budget_holds_and_is_used() {
        let budget = 16 << 20;
        let cache = BlockCache::new(budget);
        for number in 0..1000 {
            cache.insert(key(number), Arc::from(vec![0; 128 << 10]));
            assert!(cache.weight() <= budget);
        }
        assert!(cache.weight() > budget * 3 / 4, "{}", cache.weight());
        let none = BlockCache::new(0);
        none.insert(key(1), Arc::from([1].as_slice()));
        assert_eq!(none.get(key(1)), None);
    }
}
