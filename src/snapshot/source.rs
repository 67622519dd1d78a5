//! Where a format's bytes are read from: a trait, so that a parser works on a file, on a file of the mount
//! whose commit is running, and on a slice in a test. Knows neither disks nor volumes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::error::SnapshotError;

/// The bytes of one finished (or, at an fsync, so far written) file.
pub trait ByteSource {
    /// The file's length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Fills the whole buffer with the bytes from `offset`; holes read as zeros. Fewer bytes there is
    /// `UnexpectedEof`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// The first range from `offset` on that may hold other bytes than zeros: what lies before it is a hole and need not
    /// be read. `None` if only a hole follows. A source that does not know its holes calls everything data.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let length = self.length()?;
        Ok((offset < length).then_some(offset..length))
    }

    /// As `read_at`, for who only has to find a way past lost bytes: those are filled with something that is
    /// neither zeros nor the beginning of anything. `read_at` fails there, which is right for all that is judged by content.
    fn read_past_losses(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, buffer)
    }
}

impl ByteSource for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    /// Moves the file's own position, which nothing here uses.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let length = self.length()?;
        match seek(self, SeekFrom::Data(offset)) {
            Ok(start) if start >= length => Ok(None),
            Ok(start) => {
                let end = seek(self, SeekFrom::Hole(start))?;
                Ok(Some(start..end.min(length)))
            }
            Err(Errno::NXIO) => Ok(None),
            // A block device, or a file system that does not tell.
            Err(_) => Ok((offset < length).then_some(offset..length)),
        }
    }
}

impl ByteSource for [u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|from| self.get(from..)?.get(..buffer.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl<T: ByteSource + ?Sized> ByteSource for &T {
    fn length(&self) -> io::Result<u64> {
        (**self).length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        (**self).next_data(offset)
    }

    fn read_past_losses(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_past_losses(offset, buffer)
    }
}

impl ByteSource for Vec<u8> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, buffer)
    }
}

/// A source as its parser is to see it that has lost bytes: what tells the way through the file is never among them.
#[derive(Clone, Copy)]
pub struct PastLosses<'a>(pub &'a dyn ByteSource);

impl ByteSource for PastLosses<'_> {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_past_losses(offset, buffer)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.0.next_data(offset)
    }
}

/// A source whose length has been asked for once, so that a parser cannot be led astray by a file that
/// grows, and whose errors name the offset.
pub(super) struct Reader<'a> {
    source: &'a dyn ByteSource,
    length: u64,
}

impl<'a> Reader<'a> {
    /// Asks for the length, and no more.
    pub(super) fn new(source: &'a dyn ByteSource) -> Result<Self, SnapshotError> {
        let length = source.length().map_err(SnapshotError::Length)?;
        Ok(Self { source, length })
    }

    /// The file's length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Fills the buffer; false if the file ends before.
    pub(super) fn fill(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, SnapshotError> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Ok(false);
        }
        self.source
            .read_at(offset, buffer)
            .map_err(|source| SnapshotError::Read { offset, source })?;
        Ok(true)
    }

    /// The `N` bytes at the offset; nothing if the file ends before.
    pub(super) fn array<const N: usize>(
        &self,
        offset: u64,
    ) -> Result<Option<[u8; N]>, SnapshotError> {
        let mut bytes = [0; N];
        Ok(self.fill(offset, &mut bytes)?.then_some(bytes))
    }

    /// Up to `limit` bytes from the offset, fewer at the file's end. The limit is the caller's promise that
    /// no count out of the file decides how much memory is taken.
    pub(super) fn up_to(&self, offset: u64, limit: usize) -> Result<Vec<u8>, SnapshotError> {
        let there = self.length.saturating_sub(offset).min(limit as u64);
        let mut bytes = vec![0; there as usize];
        self.fill(offset, &mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparse_file_tells_its_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(9 << 20).unwrap();
        assert_eq!(file.next_data(0).unwrap(), None);
        file.write_all_at(&[1; 4096], 5 << 20).unwrap();
        let data = file.next_data(0).unwrap().unwrap();
        // How finely a file system tells is its own affair.
        assert!(data.start > 0 && data.start <= 5 << 20 && data.end >= (5 << 20) + 4096);
        assert_eq!(file.next_data(data.end).unwrap(), None);
        let inside = file.next_data((5 << 20) + 100).unwrap().unwrap();
        assert_eq!(inside.start, (5 << 20) + 100);
        assert_eq!(file.next_data(9 << 20).unwrap(), None);
        assert_eq!([0u8; 10].next_data(3).unwrap(), Some(3..10));
    }
}
