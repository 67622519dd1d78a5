//! What goes by while a file is written: its format as far as the bytes tell, where vmcoreinfo may lie, and what has
//! changed since the last commit. Only looks at bytes that are in hand; no disk is read and no lock waited for, since
//! a program waits for the answer to its write. Memory is bounded whatever the bytes are.

use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem::Finder;

use crate::snapshot::Indexer;

/// What the page map of a file that is being written may take: a byte a page of a guest of 512 GiB at worst. A stream that
/// needs more is critical as a whole.
const MAP_LIMIT: u64 = 128 << 20;

/// Places of vmcoreinfo that are remembered. A guest has two or three; files full of such text are no guest's.
const PLACES_MAX: usize = 1024;

/// The bytes at a write's end that the next write is looked at together with: as long as the head of a note.
const TAIL: usize = 24;

/// The bytes of the note before its text, which begins like the text that stands alone. So one search finds both.
const NOTE_HEAD: usize = 24;

/// How the note's head ends.
const NAME: &[u8] = b"VMCOREINFO\0\0";

static TEXT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"OSRELEASE="));

/// What is known of a file from its writes.
#[derive(Clone, Debug)]
pub struct Followed {
    /// Follows the records of a stream; gives up what did not come in order.
    pub indexer: Indexer,
    /// File offsets where a page with vmcoreinfo may begin, as they were seen. Some may be old, or in the middle of a page.
    pub places: Vec<u64>,
    /// There were more places than are remembered.
    pub overflowed: bool,
    /// The bytes that changed since the last commit lie in this range; none changed if there is none.
    pub changed: Option<Range<u64>>,
}

/// Follows one file.
#[derive(Debug)]
pub struct Follow {
    seen: Followed,
    /// The last bytes of the last write, and where it ended.
    tail: Vec<u8>,
    end: u64,
    /// Zeros at the end of the last write, too few to be a hole of their own.
    zeros: usize,
}

impl Follow {
    /// For a file that holds nothing yet.
    pub fn new() -> Follow {
        Follow {
            seen: Followed {
                indexer: Indexer::within(MAP_LIMIT),
                places: Vec::new(),
                overflowed: false,
                changed: None,
            },
            tail: Vec::new(),
            end: 0,
            zeros: 0,
        }
    }

    /// For a file whose bytes went by earlier, and were committed.
    pub fn committed() -> Follow {
        let mut follow = Follow::new();
        follow.seen.indexer.lose();
        follow
    }

    /// Bytes are written at the offset.
    pub fn wrote(&mut self, offset: u64, bytes: &[u8]) {
        self.touch(offset..offset + bytes.len() as u64);
        self.seen.indexer.feed(offset, bytes);
        if offset != self.end {
            self.tail.clear();
        }
        let tail = std::mem::take(&mut self.tail);
        if !tail.is_empty() {
            let mut both = tail.clone();
            both.extend_from_slice(&bytes[..bytes.len().min(TAIL)]);
            self.search(offset - tail.len() as u64, &[], &both, |range| {
                range.start < tail.len() && range.end > tail.len()
            });
        }
        self.search(offset, &tail, bytes, |_| true);
        self.tail = tail;
        self.end = offset + bytes.len() as u64;
        self.tail
            .extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL)..]);
        let surplus = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..surplus);
        self.zeros = 0;
    }

    /// Zeros at the end of the last write that no hole holds; to be told behind [`Follow::wrote`].
    pub fn ended_in_zeros(&mut self, zeros: usize) {
        self.zeros = zeros;
    }

    /// The zeros that stand right before the offset at the end of the last write.
    pub fn zeros_before(&self, offset: u64) -> usize {
        if offset == self.end { self.zeros } else { 0 }
    }

    /// A range became zeros without a write.
    pub fn emptied(&mut self, range: Range<u64>) {
        self.seen.indexer.lose();
        self.zeros = 0;
        self.tail.clear();
        self.touch(range);
    }

    /// The file got another length in bytes.
    pub fn resized(&mut self, before: u64, size: u64) {
        if size == 0 {
            // What comes now is another file.
            *self = Follow::new();
        } else {
            self.seen.indexer.truncate(size);
            self.zeros = 0;
            self.tail.clear();
        }
        self.touch(before.min(size)..before.max(size));
    }

    /// The next commit is to judge a file of so many bytes as if all of it had changed.
    pub fn judge_again(&mut self, size: u64) {
        if size > 0 {
            self.touch(0..size);
        }
    }

    fn touch(&mut self, range: Range<u64>) {
        self.seen.changed = Some(match &self.seen.changed {
            Some(changed) => changed.start.min(range.start)..changed.end.max(range.end),
            None => range,
        });
    }

    /// What the commit that begins now goes by.
    pub fn freeze(&mut self) -> Followed {
        let seen = self.seen.clone();
        self.seen.changed = None;
        seen
    }

    /// The commit failed: what it was to make true is still to be done.
    pub fn thaw(&mut self, frozen: &Followed) {
        if let Some(range) = &frozen.changed {
            self.touch(range.clone());
        }
    }

    /// Bytes of memory that following takes.
    #[cfg(test)]
    fn memory(&self) -> u64 {
        self.seen.indexer.memory() + self.seen.places.capacity() as u64 * 8
    }

    /// Looks into bytes that lie at `start`, right behind those of `before`.
    fn search(
        &mut self,
        start: u64,
        before: &[u8],
        bytes: &[u8],
        wanted: impl Fn(&Range<usize>) -> bool,
    ) {
        if self.seen.overflowed {
            return;
        }
        for at in TEXT.find_iter(bytes) {
            if !wanted(&(at..at + TEXT.needle().len())) {
                continue;
            }
            let place = start + at as u64;
            self.found(place);
            // Where the bytes before are not in hand, a note may begin there.
            let known = bytes.get(at.saturating_sub(NAME.len())..at);
            let known = known.unwrap_or_default();
            let earlier = before.get(before.len().saturating_sub(NAME.len() - known.len())..);
            let head = [earlier.unwrap_or_default(), known].concat();
            if NAME.ends_with(&head)
                && let Some(note) = place.checked_sub(NOTE_HEAD as u64)
            {
                self.found(note);
            }
        }
    }

    fn found(&mut self, place: u64) {
        if self.seen.places.contains(&place) {
            return;
        }
        if self.seen.places.len() == PLACES_MAX {
            self.seen.overflowed = true;
            return;
        }
        self.seen.places.push(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Vec<u8> {
        let mut note = [11u32, 500, 0].map(u32::to_le_bytes).concat();
        note.extend(b"VMCOREINFO\0\0OSRELEASE=6.12\n");
        note
    }

    #[test]
    fn places_are_found_however_the_writes_are_cut() {
        let mut bytes = vec![7; 10_000];
        bytes[4096..4096 + note().len()].copy_from_slice(&note());
        bytes[9000..9010].copy_from_slice(b"OSRELEASE=");
        for step in 1..200 {
            let mut follow = Follow::new();
            for (number, part) in bytes.chunks(step * 7).enumerate() {
                follow.wrote((number * step * 7) as u64, part);
            }
            let mut places = follow.freeze().places;
            places.sort_unstable();
            assert_eq!(
                places,
                [4096, 4096 + 24, 9000],
                "writes of {} bytes",
                step * 7
            );
        }
    }

    #[test]
    fn memory_is_bounded_whatever_is_written() {
        let mut follow = Follow::new();
        let text = b"OSRELEASE=VMCOREINFO\0\0".repeat(2000);
        for round in 0..20 {
            follow.wrote(round * text.len() as u64, &text);
        }
        assert!(follow.memory() < 1 << 20);
        assert!(follow.freeze().overflowed);
    }

    #[test]
    fn what_changed_is_told_once_and_again_after_a_failure() {
        let mut follow = Follow::committed();
        assert_eq!(follow.freeze().changed, None);
        follow.wrote(100, b"abc");
        follow.wrote(20, b"x");
        let frozen = follow.freeze();
        assert_eq!(frozen.changed, Some(20..103));
        assert_eq!(follow.freeze().changed, None);
        follow.thaw(&frozen);
        follow.resized(200, 300);
        assert_eq!(follow.freeze().changed, Some(20..300));
    }
}
