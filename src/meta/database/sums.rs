//! Checksums of what a database file holds, kept in memory for as long as its disk is in use. redb checks a file as
//! a whole when it is asked to and trusts every page that it reads after that; a page that changed below it makes it
//! panic, or miss a key that is there. With these sums such a page is an error of the medium, which redb can take.

use parking_lot::RwLock;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes under one sum: a page of redb.
const CHUNK: u64 = 4096;

/// The sums of one file. A sum of 0 is not known.
#[derive(Debug, Default)]
pub(in crate::meta) struct Sums(RwLock<Vec<u64>>);

impl Sums {
    /// Nothing is known any more: the file is another one.
    pub(super) fn forget(&self) {
        self.0.write().clear();
    }

    /// Bytes were written. What is known of a page of which only a part was written is forgotten.
    pub(super) fn written(&self, offset: u64, bytes: &[u8]) {
        let mut sums = self.0.write();
        let end = offset + bytes.len() as u64;
        let needed = end.div_ceil(CHUNK) as usize;
        if sums.len() < needed {
            sums.resize(needed, 0);
        }
        // Only these: of a page that was not touched, say the one right after, what is known must stay. Forgotten, it
        // would be learnt anew from whatever the disk holds by then, and damage would be taken for what was written.
        for at in [offset, end]
            .into_iter()
            .filter(|at| !at.is_multiple_of(CHUNK))
        {
            if let Some(sum) = sums.get_mut((at / CHUNK) as usize) {
                *sum = 0;
            }
        }
        for (chunk, bytes) in whole_chunks(offset, bytes) {
            if let Some(sum) = sums.get_mut(chunk) {
                *sum = sum_of(bytes);
            }
        }
    }

    /// The file has this length now.
    pub(super) fn cut(&self, length: u64) {
        let mut sums = self.0.write();
        sums.truncate(length.div_ceil(CHUNK) as usize);
        if let Some(last) = sums.last_mut().filter(|_| !length.is_multiple_of(CHUNK)) {
            *last = 0;
        }
    }

    /// Bytes were read; where one of their pages is not what it was, the offset of that page. Pages that are new
    /// here are taken for what they are.
    pub(super) fn read(&self, offset: u64, bytes: &[u8]) -> Result<(), u64> {
        let mut new = Vec::new();
        {
            let sums = self.0.read();
            for (chunk, bytes) in whole_chunks(offset, bytes) {
                match sums.get(chunk).copied().unwrap_or(0) {
                    0 => new.push((chunk, sum_of(bytes))),
                    known if known == sum_of(bytes) => {}
                    _ => return Err(chunk as u64 * CHUNK),
                }
            }
        }
        if let Some((last, _)) = new.last() {
            let mut sums = self.0.write();
            if sums.len() <= *last {
                sums.resize(last + 1, 0);
            }
            for (chunk, sum) in new {
                // Not over what was written since.
                if let Some(known) = sums.get_mut(chunk).filter(|known| **known == 0) {
                    *known = sum;
                }
            }
        }
        Ok(())
    }
}

/// The chunks that lie in a range as a whole, by number.
fn whole_chunks(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let first = offset.div_ceil(CHUNK);
    let skipped = (first * CHUNK - offset) as usize;
    let rest = bytes.get(skipped..).unwrap_or_default();
    rest.chunks_exact(CHUNK as usize)
        .enumerate()
        .map(move |(n, chunk)| (first as usize + n, chunk))
}

/// Never 0.
fn sum_of(bytes: &[u8]) -> u64 {
    xxh3_64(bytes).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = CHUNK as usize;

    #[test]
    fn what_changed_is_seen_and_what_was_written_is_not_a_change() {
        let sums = Sums::default();
        let mut file: Vec<u8> = (0..5 * PAGE).map(|n| (n % 251) as u8).collect();
        sums.read(0, &file).unwrap();
        sums.read(100, &file[100..4 * PAGE + 7]).unwrap();
        file[2 * PAGE + 9] ^= 1;
        assert_eq!(sums.read(0, &file), Err(2 * CHUNK));
        assert_eq!(sums.read(3 * CHUNK, &file[3 * PAGE..]), Ok(()));
        // A part of a page: no longer known, and learnt anew.
        sums.written(2 * CHUNK + 9, &file[2 * PAGE + 9..2 * PAGE + 12]);
        sums.read(0, &file).unwrap();
        file[2 * PAGE] ^= 1;
        assert_eq!(sums.read(0, &file), Err(2 * CHUNK));
        sums.written(CHUNK, &file[PAGE..4 * PAGE]);
        sums.read(0, &file).unwrap();
    }

    #[test]
    fn what_is_known_of_a_page_beside_a_write_stays() {
        let file = vec![7; 4 * PAGE];
        for (offset, length) in [(PAGE, PAGE), (PAGE + 5, PAGE - 5), (PAGE, 5), (PAGE, 0)] {
            let sums = Sums::default();
            sums.read(0, &file).unwrap();
            sums.written(offset as u64, &file[offset..offset + length]);
            for beside in [0, 2, 3] {
                let mut damaged = file.clone();
                damaged[beside * PAGE + 1] ^= 1;
                let expected = Err((beside * PAGE) as u64);
                assert_eq!(sums.read(0, &damaged), expected, "{offset}, {length}");
            }
        }
    }

    #[test]
    fn what_is_cut_off_is_forgotten() {
        let sums = Sums::default();
        let mut file = vec![7; 3 * PAGE];
        sums.written(0, &file);
        sums.cut(CHUNK + 1);
        file[PAGE + 1..].fill(0);
        sums.read(0, &file).unwrap();
        sums.forget();
        file[0] = 8;
        sums.read(0, &file).unwrap();
    }
}
