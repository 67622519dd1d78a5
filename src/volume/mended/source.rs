//! What is left of a file's bytes, as a snapshot and its guest are read from them: committed, without a view, and with an
//! error where they are lost.

use std::io;
use std::sync::Arc;

use super::super::Volume;
use super::super::error::VolumeError;
use super::super::file::OpenFile;
use super::coded::Runs;
use crate::snapshot::ByteSource;

/// See the module's head.
pub(super) struct Surviving<'a> {
    pub volume: &'a Volume,
    pub file: &'a Arc<OpenFile>,
    pub size: u64,
    pub lost: &'a Runs,
}

impl Surviving<'_> {
    fn range(&self, offset: u64, length: usize) -> io::Result<std::ops::Range<u64>> {
        let end = offset.checked_add(length as u64);
        match end.filter(|end| *end <= self.size) {
            Some(end) => Ok(offset..end),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl ByteSource for Surviving<'_> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let range = self.range(offset, buffer.len())?;
        if self.lost.within(range.clone()).next().is_some() {
            let lost = VolumeError::new(libc::EIO, "these bytes are lost");
            return Err(io::Error::other(lost));
        }
        let bytes = self
            .volume
            .read_frozen(self.file, range)
            .map_err(io::Error::other)?;
        buffer.copy_from_slice(&bytes);
        Ok(())
    }

    fn read_past_losses(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let range = self.range(offset, buffer.len())?;
        let bytes = self
            .volume
            .read_past_losses(self.file, range, &mut |_| {})
            .map_err(io::Error::other)?;
        buffer.copy_from_slice(&bytes);
        Ok(())
    }
}
