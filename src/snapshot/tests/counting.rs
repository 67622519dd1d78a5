//! Bytes that count how often they are read: what is bounded is shown by a count and not by a clock.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::snapshot::ByteSource;

/// See the module's head.
pub struct Counting<'b> {
    bytes: &'b [u8],
    reads: AtomicU64,
}

impl<'b> Counting<'b> {
    /// Not read yet.
    pub fn new(bytes: &'b [u8]) -> Self {
        let reads = AtomicU64::new(0);
        Self { bytes, reads }
    }

    /// How often bytes were read since the last call.
    pub fn reads(&self) -> u64 {
        self.reads.swap(0, Ordering::Relaxed)
    }
}

impl ByteSource for Counting<'_> {
    fn length(&self) -> io::Result<u64> {
        self.bytes.length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.read_at(offset, buffer)
    }
}
