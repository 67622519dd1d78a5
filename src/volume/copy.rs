//! copy_file_range(2): bytes go from file to file without crossing into the program.

use std::sync::Arc;

use super::Volume;
use super::error::{Result, VolumeError};
use super::file::OpenFile;
use super::handles::Handle;
use super::write::Allocate;

/// Bytes copied at once.
const CHUNK: usize = 1 << 20;

impl Volume {
    /// Copies bytes between two open files, as many as there are up to `length`; says how many. Holes stay
    /// holes. What fails after the first bytes is left for the next call to meet: the kernel forgets what it cached
    /// of the target only as far as it is told that bytes were copied.
    pub fn copy_range(
        &self,
        from: Handle,
        from_offset: u64,
        to: Handle,
        to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        let source = self.handle(from)?;
        let target = self.handle(to)?;
        if !source.may_read || !target.may_write {
            return Err(VolumeError::new(
                libc::EBADF,
                "the files are not open for copying this way",
            ));
        }
        let overlap = from_offset < to_offset.saturating_add(length)
            && to_offset < from_offset.saturating_add(length);
        if source.file.id == target.file.id && overlap {
            return Err(VolumeError::new(
                libc::EINVAL,
                "a range cannot be copied onto itself",
            ));
        }
        let mut done = 0;
        while done < length {
            let now = length - done;
            match self.copy_part(&source.file, from_offset + done, to, to_offset + done, now) {
                Ok(0) => break,
                Ok(copied) => done += copied,
                Err(error) if done == 0 => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "a copy ends early");
                    break;
                }
            }
        }
        Ok(done)
    }

    /// Copies up to `length` bytes, of a hole or of data; says how many.
    fn copy_part(
        &self,
        source: &Arc<OpenFile>,
        from: u64,
        target: Handle,
        to: u64,
        length: u64,
    ) -> Result<u64> {
        let (data, length) = self.run_at(source, from, length, CHUNK as u64)?;
        if !data && length > 0 {
            self.allocate(target, to, length, Allocate::Zero)?;
            return Ok(length);
        }
        let bytes = self.read_file(source, from, length.min(CHUNK as u64) as usize)?;
        if !bytes.is_empty() {
            self.write(target, to, &bytes)?;
        }
        Ok(bytes.len() as u64)
    }
}
