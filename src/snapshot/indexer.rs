//! Follows a file while it is written. A QEMU stream is parsed as its bytes arrive, so that nothing of it has
//! to be read again; every other format keeps what describes its pages in small parts, which are read when
//! the file is finished. Knows the order in which writers write, and no format.

use std::ops::Range;

use super::error::SnapshotError;
use super::libvirt;
use super::pieces::{PieceKind, Pieces};
use super::recognise::{self, MAP_LIMIT, Snapshot};
use super::source::{ByteSource, Reader};
use super::stream::{MAGIC, Stream};

/// What is known of a file that is being written.
///
/// Every write is shown to it, in the order in which the writes take effect. Whatever the order, the answer of
/// [`Indexer::finish`] is that of [`index`](super::index()) on the finished file: bytes that do not come
/// in the order of the stream only mean that the file's records are read then, and not now.
#[derive(Clone, Debug)]
pub struct Indexer {
    stream: Stream,
    /// Whether what the stream has been shown is what the file holds.
    follows: bool,
    limit: u64,
}

impl Default for Indexer {
    fn default() -> Self {
        Self::new()
    }
}

impl Indexer {
    /// For a new, empty file.
    pub fn new() -> Self {
        Self::within(MAP_LIMIT)
    }

    /// As [`Indexer::new`]; the page map may take so many bytes of memory.
    pub fn within(limit: u64) -> Self {
        Self {
            stream: Stream::new(limit),
            follows: true,
            limit,
        }
    }

    /// Whether more bytes would tell anything before the end.
    fn is_following(&self) -> bool {
        self.follows && !self.stream.is_mapped() && !self.stream.is_settled()
    }

    /// Bytes were written at the file offset.
    pub fn feed(&mut self, offset: u64, bytes: &[u8]) {
        if !self.follows || bytes.is_empty() {
            return;
        }
        let position = self.stream.position();
        let end = offset.saturating_add(bytes.len() as u64);
        if offset > position {
            // A hole where nothing is looked at, or a write that came early.
            if offset > self.stream.wanted() && !self.stream.is_settled() {
                self.lose();
                return;
            }
            self.stream.pass_to(offset);
        } else if offset < position && !self.may_change(offset..end.min(position)) {
            self.lose();
            return;
        }
        let known = position.saturating_sub(offset).min(bytes.len() as u64) as usize;
        if let Some(new) = bytes.get(known..).filter(|new| !new.is_empty()) {
            self.stream.feed(new);
        }
    }

    /// The file was cut or extended to the length.
    pub fn truncate(&mut self, length: u64) {
        if length == 0 {
            *self = Self::within(self.limit);
        } else if length < self.stream.position()
            && self.stream.tail().is_none_or(|tail| length < tail)
        {
            self.lose();
        }
    }

    /// Bytes changed in a way that was not shown: what the file is made of is read when it is finished.
    pub fn lose(&mut self) {
        self.follows = false;
        // Its memory is of no use any more.
        self.stream = Stream::new(self.limit);
    }

    /// Whether bytes that have been seen may become others without changing what the file is made of: the
    /// content of pages, libvirt's header and description, the state of devices.
    fn may_change(&self, range: Range<u64>) -> bool {
        if !self.stream.is_stream() || self.stream.is_mapped() {
            // All of it is read when the file is finished.
            return self.stream.is_mapped() || range.start > 0;
        }
        if self.stream.tail().is_some_and(|tail| range.start >= tail)
            || self
                .stream
                .libvirt()
                .is_some_and(|image| range.end <= image.payload)
        {
            return true;
        }
        Pieces::new(self.stream.log(), None, range)
            .all(|piece| matches!(piece.kind, PieceKind::Page(_)))
    }

    /// Where guest pages begin and end in a range that has just been written, as far as can be known yet: file
    /// ranges in order, true for those that are pages, false for framing. Nothing until the format is
    /// known to have both. For gathering alone: no tier may rest on it.
    pub fn boundaries(
        &self,
        range: Range<u64>,
    ) -> Option<impl Iterator<Item = (Range<u64>, bool)>> {
        let known = self.follows
            && self.stream.is_stream()
            && !self.stream.is_mapped()
            && range.end <= self.stream.position();
        known.then(|| {
            Pieces::new(self.stream.log(), None, range)
                .map(|piece| (piece.range, matches!(piece.kind, PieceKind::Page(_))))
        })
    }

    /// Whether the bytes fed so far are followed as they come.
    pub fn is_stream(&self) -> bool {
        self.is_following() && self.stream.is_stream()
    }

    /// The bytes of memory that following takes.
    pub fn memory(&self) -> u64 {
        self.stream.memory()
    }

    /// What the file is, now that it is finished, or so far. Reads of the source what has not been kept:
    /// headers and bitmaps; all records of a stream only if its bytes came out of order. May be called
    /// again after more writes.
    pub fn finish(&self, source: &dyn ByteSource) -> Result<Snapshot, SnapshotError> {
        let reader = Reader::new(source)?;
        if self.follows && self.stream.is_stream() && !self.stream.is_mapped() {
            let head = reader.up_to(0, libvirt::LENGTH)?;
            let head_is_same = match self.stream.libvirt() {
                Some(image) => matches!(
                    libvirt::parse(&head),
                    Some(Ok(now)) if now.payload == image.payload
                ),
                None => head.starts_with(&MAGIC),
            };
            let all_seen = match self.stream.tail() {
                Some(tail) => reader.length() >= tail,
                None => reader.length() <= self.stream.wanted(),
            };
            if head_is_same && all_seen {
                let finished = match self.stream.libvirt() {
                    Some(_) => libvirt::parse(&head).and_then(Result::ok),
                    None => None,
                };
                let stream = self.stream.with_header(finished);
                return recognise::of_stream(&reader, &stream, self.limit);
            }
        }
        recognise::index_within(source, self.limit)
    }
}
