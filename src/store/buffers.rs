//! Memory for the bytes of blocks and of parity, used again: fresh memory costs a page fault for every 4 KiB, which at
//! the speed of writing is a tenth of all the work. So it comes from the system in runs for many buffers, each a large page if
//! the system has one. Knows sizes, not what the bytes are.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::Mutex;

use super::records::BLOCK_MAX;
use crate::sys::Piece;

/// Buffers that come from the system at once: 2 MiB.
const TOGETHER: usize = 16;

/// The most that is kept while nothing is written: enough for many small files one after the other.
const KEPT_AT_REST: usize = 64;

/// A small buffer that outgrows this is as good as a full one.
const SMALL: usize = 32 << 10;

/// Buffers of `BLOCK_MAX` bytes that nobody uses now: as many as were in use at once since the last rest, which is what the
/// budget for writing allows.
#[derive(Debug, Default)]
pub struct Buffers {
    free: Mutex<Vec<Piece>>,
}

impl Buffers {
    /// An empty buffer that holds `BLOCK_MAX` bytes without growing.
    pub fn take(self: &Arc<Self>) -> Buffer {
        let mut free = self.free.lock();
        if free.is_empty() {
            match Piece::many(BLOCK_MAX, BLOCK_MAX * TOGETHER) {
                Ok(pieces) => free.extend(pieces.into_iter().rev()),
                Err(error) => tracing::warn!(%error, "memory for writing comes in small parts"),
            }
        }
        let bytes = match free.pop() {
            Some(piece) => Bytes::Full { piece, length: 0 },
            None => Bytes::Own(Vec::with_capacity(BLOCK_MAX)),
        };
        Buffer {
            bytes,
            home: Some(Arc::clone(self)),
        }
    }

    /// An empty buffer for about so many bytes, that may grow to `BLOCK_MAX`.
    pub fn take_small(self: &Arc<Self>, bytes: usize) -> Buffer {
        if bytes > SMALL {
            return self.take();
        }
        Buffer {
            bytes: Bytes::Own(Vec::with_capacity(bytes)),
            home: Some(Arc::clone(self)),
        }
    }

    /// Gives memory back to the system that is not likely to be wanted soon.
    pub fn rest(&self) {
        let mut free = self.free.lock();
        // What lies side by side: a run goes back only as a whole.
        free.sort_unstable_by_key(|piece| std::cmp::Reverse(piece.address()));
        let surplus = free.len().saturating_sub(KEPT_AT_REST);
        let given: Vec<Piece> = free.drain(..surplus).collect();
        drop(free);
        drop(given);
    }
}

/// Bytes whose memory goes back to where it came from when they are dropped.
#[derive(Debug)]
pub struct Buffer {
    bytes: Bytes,
    home: Option<Arc<Buffers>>,
}

#[derive(Debug)]
enum Bytes {
    Own(Vec<u8>),
    /// `length` bytes at the beginning of a piece.
    Full {
        piece: Piece,
        length: usize,
    },
}

impl Buffer {
    /// Takes the bytes out.
    pub fn into_bytes(mut self) -> Vec<u8> {
        match &mut self.bytes {
            Bytes::Own(bytes) => std::mem::take(bytes),
            Bytes::Full { .. } => self.to_vec(),
        }
    }

    /// Bytes of memory that it takes.
    pub fn capacity(&self) -> usize {
        match &self.bytes {
            Bytes::Own(bytes) => bytes.capacity(),
            Bytes::Full { piece, .. } => piece.len(),
        }
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        self
    }

    /// Puts bytes behind those that are there. One that came from [`Buffers`] keeps its memory up to `BLOCK_MAX` bytes.
    pub fn extend_from_slice(&mut self, more: &[u8]) {
        let end = self.len() + more.len();
        match &mut self.bytes {
            Bytes::Full { piece, length } => {
                if let Some(place) = piece.get_mut(*length..end) {
                    place.copy_from_slice(more);
                    *length = end;
                    return;
                }
            }
            Bytes::Own(bytes) if end <= bytes.capacity().max(SMALL) => {
                return bytes.extend_from_slice(more);
            }
            Bytes::Own(_) => {}
        }
        // It outgrows its memory: into a full one, or out of all that there are.
        let mut grown = match &self.home {
            Some(home) if end <= BLOCK_MAX && matches!(self.bytes, Bytes::Own(_)) => home.take(),
            _ => Buffer::from(Vec::with_capacity(end)),
        };
        match &mut grown.bytes {
            Bytes::Own(bytes) => {
                bytes.extend_from_slice(self);
                bytes.extend_from_slice(more);
            }
            Bytes::Full { .. } => {
                grown.extend_from_slice(self);
                grown.extend_from_slice(more);
            }
        }
        *self = grown;
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Buffer {
        Buffer {
            bytes: Bytes::Own(bytes),
            home: None,
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Own(bytes) => bytes,
            Bytes::Full { piece, length } => piece.get(..*length).unwrap_or_default(),
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.bytes {
            Bytes::Own(bytes) => bytes,
            Bytes::Full { piece, length } => piece.get_mut(..*length).unwrap_or_default(),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::replace(&mut self.bytes, Bytes::Own(Vec::new()));
        if let (Some(home), Bytes::Full { piece, .. }) = (&self.home, bytes) {
            home.free.lock().push(piece);
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
        assert_eq!(again.capacity(), BLOCK_MAX);
    }

    #[test]
    fn a_buffer_holds_what_was_put_in_however_it_grew() {
        let buffers = Arc::new(Buffers::default());
        let expected: Vec<u8> = (0..BLOCK_MAX + 5)
            .map(|place| (place % 251) as u8)
            .collect();
        for (small, step) in [
            (10, 7),
            (SMALL, 4096),
            (SMALL + 1, 4096),
            (BLOCK_MAX, 50_000),
        ] {
            for length in [3, SMALL, SMALL + 1, BLOCK_MAX, BLOCK_MAX + 5] {
                let mut buffer = buffers.take_small(small);
                for part in expected[..length].chunks(step) {
                    buffer.extend_from_slice(part);
                }
                assert_eq!(&*buffer, &expected[..length], "{small}, {step}");
                if let Some(last) = buffer.last_mut() {
                    *last ^= 1;
                }
                let bytes = buffer.into_bytes();
                assert_eq!(bytes.len(), length);
                assert_eq!(bytes[length - 1], expected[length - 1] ^ 1);
            }
        }
    }

    #[test]
    fn at_rest_few_are_kept_and_those_side_by_side() {
        let buffers = Arc::new(Buffers::default());
        let mut many: Vec<Buffer> = (0..TOGETHER * 20).map(|_| buffers.take()).collect();
        // Given back out of order.
        for number in 0..many.len() {
            many.swap_remove(number * 7 % many.len());
            if number % 50 == 0 {
                many.push(buffers.take());
            }
        }
        drop(many);
        buffers.rest();
        let free = buffers.free.lock();
        assert_eq!(free.len(), KEPT_AT_REST);
        let mut runs: Vec<usize> = free.iter().map(|piece| piece.address()).collect();
        runs.sort_unstable();
        let apart = runs
            .windows(2)
            .filter(|pair| pair[0] + BLOCK_MAX != pair[1])
            .count();
        assert!(apart < 8, "{apart} gaps");
    }

    #[test]
    fn bytes_from_elsewhere_are_not_kept() {
        let buffers = Arc::new(Buffers::default());
        drop(Buffer::from(vec![1, 2, 3]));
        drop(buffers.take_small(100));
        assert!(buffers.free.lock().is_empty());
    }
}
