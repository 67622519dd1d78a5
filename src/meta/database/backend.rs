//! What redb writes to: an object of a disk, every page of which is checked as it is read, or memory.

use std::io;
use std::sync::Arc;

use parking_lot::RwLock;
use redb::StorageBackend;

use super::sums::Sums;
use crate::disk::{Disk, DiskError, ObjectName, RandomAccess, Result};

/// An object of a disk, and what is known of it.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) file: Box<dyn RandomAccess>,
    pub(super) sums: Arc<Sums>,
}

fn io_error(error: DiskError) -> io::Error {
    io::Error::other(Arc::new(error))
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.length().map_err(io_error)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, out).map_err(io_error)?;
        self.sums.read(offset, out).map_err(|at| {
            let what = format!("the page at byte {at} is not what was written");
            io::Error::new(io::ErrorKind::InvalidData, what)
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_length(length).map_err(io_error)?;
        self.sums.cut(length);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync().map_err(io_error)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, data).map_err(io_error)?;
        self.sums.written(offset, data);
        Ok(())
    }
}

const PIECE: usize = 1 << 20;

/// Memory, in pieces so that growing copies nothing.
#[derive(Debug)]
pub(super) struct Copied(RwLock<Pieces>);

#[derive(Debug)]
struct Pieces {
    pieces: Vec<Vec<u8>>,
    length: u64,
}

impl Copied {
    pub(super) fn empty() -> Copied {
        Copied(RwLock::new(Pieces {
            pieces: Vec::new(),
            length: 0,
        }))
    }

    /// A copy of an object; none if it is not there or empty.
    pub(super) fn of(disk: &dyn Disk, object: ObjectName) -> Result<Option<Copied>> {
        let length = match disk.length(object) {
            Err(error) if error.is_missing() => return Ok(None),
            length => length?,
        };
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < length {
            // The last piece is whole as well: what is beyond the length is zero, and is never read.
            let mut piece = vec![0; PIECE];
            let part = (length - at).min(PIECE as u64) as usize;
            disk.read_at(object, at, piece.get_mut(..part).unwrap_or_default())?;
            pieces.push(piece);
            at += part as u64;
        }
        let copy = Copied(RwLock::new(Pieces { pieces, length }));
        Ok((length > 0).then_some(copy))
    }
}

impl Pieces {
    /// Calls `each` for every piece of a range with the place of its bytes in the range.
    fn walk(
        &mut self,
        offset: u64,
        length: usize,
        mut each: impl FnMut(&mut [u8], std::ops::Range<usize>),
    ) -> io::Result<()> {
        let beyond = || io::Error::from(io::ErrorKind::UnexpectedEof);
        if offset.checked_add(length as u64).ok_or_else(beyond)? > self.length {
            return Err(beyond());
        }
        let mut done = 0;
        while done < length {
            let at = offset as usize + done;
            let within = at % PIECE;
            let part = (length - done).min(PIECE - within);
            let piece = self.pieces.get_mut(at / PIECE).ok_or_else(beyond)?;
            let place = piece.get_mut(within..within + part).ok_or_else(beyond)?;
            each(place, done..done + part);
            done += part;
        }
        Ok(())
    }
}

impl StorageBackend for Copied {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.read().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let length = out.len();
        self.0.write().walk(offset, length, |piece, range| {
            if let Some(out) = out.get_mut(range) {
                out.copy_from_slice(piece);
            }
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut memory = self.0.write();
        let old = memory.length;
        if length < old {
            // What is cut off must read as zeros if the length grows again.
            memory.walk(length, (old - length) as usize, |piece, _| piece.fill(0))?;
        }
        memory.length = length;
        let pieces = (length as usize).div_ceil(PIECE);
        memory.pieces.resize_with(pieces, || vec![0; PIECE]);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write().walk(offset, data.len(), |piece, range| {
            if let Some(data) = data.get(range) {
                piece.copy_from_slice(data);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_reads_what_it_wrote_across_pieces() {
        let memory = Copied::empty();
        memory.set_len(3 * PIECE as u64).unwrap();
        let data: Vec<u8> = (0..2 * PIECE).map(|n| (n % 251) as u8).collect();
        memory.write(PIECE as u64 / 2, &data).unwrap();
        let mut back = vec![0; data.len()];
        memory.read(PIECE as u64 / 2, &mut back).unwrap();
        assert_eq!(back, data);
        memory.set_len(PIECE as u64 + 5).unwrap();
        memory.set_len(2 * PIECE as u64).unwrap();
        memory.read(PIECE as u64 + 5, &mut back[..100]).unwrap();
        assert_eq!(back[..100], [0; 100]);
        assert!(memory.read(2 * PIECE as u64 - 1, &mut [0; 2]).is_err());
        assert!(memory.write(u64::MAX, &[0; 2]).is_err());
    }
}
