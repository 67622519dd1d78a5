//! Memory for the bytes of blocks and of parity, used again: fresh memory costs a page fault for every 4 KiB, which at
//! the speed of writing is a tenth of all the work. Knows sizes, not what the bytes are.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::Mutex;

use super::records::BLOCK_MAX;

/// The most that is kept for use again, in buffers. Two windows under way fill about as many.
const KEPT: usize = 384;

/// The most that is kept while nothing is written: enough for many small files one after the other.
const KEPT_AT_REST: usize = 64;

/// Buffers of `BLOCK_MAX` bytes that nobody uses now.
#[derive(Debug, Default)]
pub struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty buffer that holds `BLOCK_MAX` bytes without growing.
    pub fn take(self: &Arc<Self>) -> Buffer {
        let kept = self.free.lock().pop();
        Buffer {
            bytes: kept.unwrap_or_else(|| Vec::with_capacity(BLOCK_MAX)),
            home: Some(Arc::clone(self)),
        }
    }

    /// An empty buffer for about so many bytes, that may grow; once it has grown to `BLOCK_MAX` it is kept too.
    pub fn take_small(self: &Arc<Self>, bytes: usize) -> Buffer {
        if bytes >= BLOCK_MAX {
            return self.take();
        }
        Buffer {
            bytes: Vec::with_capacity(bytes),
            home: Some(Arc::clone(self)),
        }
    }

    /// Gives memory back to the system that is not likely to be wanted soon.
    pub fn rest(&self) {
        let mut free = self.free.lock();
        let most = free.len().min(KEPT_AT_REST);
        let given = free.split_off(most);
        drop(free);
        drop(given);
    }

    fn put(&self, mut bytes: Vec<u8>) {
        if bytes.capacity() != BLOCK_MAX {
            return;
        }
        bytes.clear();
        let mut free = self.free.lock();
        if free.len() < KEPT {
            free.push(bytes);
        }
    }
}

/// Bytes whose memory goes back to where it came from when they are dropped.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    home: Option<Arc<Buffers>>,
}

impl Buffer {
    /// Takes the bytes out.
    pub fn into_bytes(mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Buffer {
        Buffer { bytes, home: None }
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.put(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_comes_empty() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = buffers.take();
        buffer.extend_from_slice(b"old");
        let place = buffer.as_ptr();
        drop(buffer);
        let again = buffers.take();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
    }

    #[test]
    fn what_has_another_size_is_not_kept_nor_more_than_so_many() {
        let buffers = Arc::new(Buffers::default());
        drop(buffers.take_small(100));
        assert!(buffers.free.lock().is_empty());
        assert_eq!(buffers.take_small(10).into_bytes(), Vec::<u8>::new());
        let many: Vec<Buffer> = (0..KEPT + 5).map(|_| buffers.take()).collect();
        drop(many);
        assert_eq!(buffers.free.lock().len(), KEPT);
        buffers.rest();
        assert_eq!(buffers.free.lock().len(), KEPT_AT_REST);
    }
}
