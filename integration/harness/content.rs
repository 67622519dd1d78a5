//! Contents of which every byte is known from a seed and its place alone, so that a reader can judge any range of a file
//! without keeping a copy. A third of the pages are noise, a third compress well, the rest are between; none is zero, so
//! that a hole or a lost block can never pass for content.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::random::mix;

const PAGE: u64 = 4096;

/// The byte of file `seed` at `offset`.
fn word(seed: u64, word_index: u64) -> u64 {
    let page = word_index * 8 / PAGE;
    let page_seed = mix(seed ^ page.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let counter = match page_seed % 3 {
        0 => word_index,
        1 => word_index / 64,
        _ => word_index / 3,
    };
    mix(page_seed ^ counter) | 0x0101_0101_0101_0101
}

/// Fills the buffer with the bytes of file `seed` from `offset`.
pub fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    let mut at = offset;
    let mut rest = buffer;
    while !rest.is_empty() {
        let bytes = word(seed, at / 8).to_le_bytes();
        let from = (at % 8) as usize;
        let take = (8 - from).min(rest.len());
        let (now, later) = rest.split_at_mut(take);
        now.copy_from_slice(&bytes[from..from + take]);
        at += take as u64;
        rest = later;
    }
}

/// The bytes of file `seed` in a range.
pub fn bytes(seed: u64, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    fill(seed, offset, &mut buffer);
    buffer
}

/// Where the buffer first differs from file `seed` at `offset`.
pub fn first_wrong(seed: u64, offset: u64, buffer: &[u8]) -> Option<u64> {
    let expected = bytes(seed, offset, buffer.len());
    let place = buffer.iter().zip(&expected).position(|(a, b)| a != b)?;
    Some(offset + place as u64)
}

/// Writes a whole file of `length` bytes in pieces of a MiB and closes it, so that an error of the close is seen.
pub fn write_file(path: &Path, seed: u64, length: u64) -> io::Result<()> {
    let file = File::create(path)?;
    write_range(&file, seed, 0, length)?;
    close(file)
}

/// Writes a range of file `seed` where it belongs.
pub fn write_range(file: &File, seed: u64, offset: u64, length: u64) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let now = (length - done).min(1 << 20);
        file.write_all_at(&bytes(seed, offset + done, now as usize), offset + done)?;
        done += now;
    }
    Ok(())
}

/// A program that writes a file from the bytes it is given. This process has no descriptor of the file then: what other tests
/// start would inherit it, close it before they begin, and wait for the commit that this brings about, however long a disk
/// hangs in that.
#[derive(Debug)]
pub struct Outside {
    program: Child,
    seed: u64,
    written: u64,
}

impl Outside {
    /// Begins to write file `seed`; `conversion` is what dd(1) has under `conv=`.
    pub fn begin(path: &Path, seed: u64, conversion: &str) -> io::Result<Outside> {
        let mut of = OsString::from("of=");
        of.push(path);
        let program = Command::new("dd")
            .args(["bs=1M", "iflag=fullblock", "status=none"])
            .arg(format!("conv={conversion}"))
            .arg(of)
            .stdin(Stdio::piped())
            .spawn()?;
        Ok(Outside {
            program,
            seed,
            written: 0,
        })
    }

    /// Writes so many bytes more, which should be whole MiB.
    pub fn write(&mut self, length: u64) -> io::Result<()> {
        let mut pipe = self
            .program
            .stdin
            .as_ref()
            .ok_or(io::ErrorKind::BrokenPipe)?;
        let end = self.written + length;
        while self.written < end {
            let now = (end - self.written).min(1 << 20);
            pipe.write_all(&bytes(self.seed, self.written, now as usize))?;
            self.written += now;
        }
        Ok(())
    }

    /// Has it end, and tells whether all was written.
    pub fn end(mut self) -> io::Result<()> {
        drop(self.program.stdin.take());
        let status = self.program.wait()?;
        match status.success() {
            true => Ok(()),
            false => Err(io::Error::other(format!("dd: {status}"))),
        }
    }
}

/// Closes a file and tells what came of it, which dropping it does not.
pub fn close(file: File) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    let descriptor = file.into_raw_fd();
    // SAFETY: the descriptor was just given up by its only owner.
    if unsafe { libc::close(descriptor) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Why the file is not file `seed` of `length` bytes.
pub fn check_file(path: &Path, seed: u64, length: u64) -> Result<(), String> {
    let name = path.display();
    let file = File::open(path).map_err(|error| format!("{name}: open: {error}"))?;
    let found = file
        .metadata()
        .map_err(|error| format!("{name}: stat: {error}"))?
        .len();
    if found != length {
        return Err(format!("{name}: {found} bytes long instead of {length}"));
    }
    check_range(&file, seed, 0, length).map_err(|why| format!("{name}: {why}"))
}

/// Why a range of an open file does not hold the bytes of file `seed`.
pub fn check_range(file: &File, seed: u64, offset: u64, length: u64) -> Result<(), String> {
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    while done < length {
        let now = (length - done).min(buffer.len() as u64) as usize;
        let at = offset + done;
        file.read_exact_at(&mut buffer[..now], at)
            .map_err(|error| format!("read of {now} bytes at {at}: {error}"))?;
        if let Some(place) = first_wrong(seed, at, &buffer[..now]) {
            return Err(format!("wrong byte at {place}"));
        }
        done += now as u64;
    }
    Ok(())
}

#[test]
fn a_wrong_byte_is_found_where_it_is() {
    let mut buffer = bytes(7, 5000, 9000);
    assert_eq!(first_wrong(7, 5000, &buffer), None);
    buffer[4321] ^= 1;
    assert_eq!(first_wrong(7, 5000, &buffer), Some(5000 + 4321));
    assert!(first_wrong(8, 5000, &bytes(7, 5000, 9000)).is_some());
}
