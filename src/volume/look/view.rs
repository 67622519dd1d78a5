//! A page map and the bytes that it maps, as the guest room reads memory. Keeps the pages of small reads, which come back
//! again and again: page tables, inodes. What cannot be read is not there.

use std::ops::Range;
use std::sync::Arc;

use quick_cache::sync::Cache;

use crate::guest::GuestMemory;
use crate::snapshot::{ByteSource, Content, Gpa, PageMap, Place};

/// Bytes of pages that are kept.
const KEPT: u64 = 16 << 20;

/// Bytes of the file that are read at once where other bytes lie between its pages.
const SPAN: u64 = 256 << 10;

/// See the module's head.
pub(super) struct View<'s> {
    map: PageMap,
    source: &'s (dyn ByteSource + Sync),
    ranges: Vec<Range<u64>>,
    pages: Cache<u64, Arc<[u8]>>,
}

impl<'s> View<'s> {
    pub(super) fn new(map: PageMap, source: &'s (dyn ByteSource + Sync)) -> Self {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (gpa, length) in map.ram() {
            let end = gpa.0.saturating_add(length);
            match ranges.last_mut() {
                Some(last) if last.end == gpa.0 => last.end = end,
                _ => ranges.push(gpa.0..end),
            }
        }
        let pages = Cache::new((KEPT / map.page_size()).max(16) as usize);
        Self {
            map,
            source,
            ranges,
            pages,
        }
    }

    pub(super) fn map(&self) -> &PageMap {
        &self.map
    }

    fn page(&self, gpa: u64) -> Option<Arc<[u8]>> {
        if let Some(page) = self.pages.get(&gpa) {
            return Some(page);
        }
        let mut bytes = vec![0; self.map.page_size() as usize];
        match self.map.read(self.source, Gpa(gpa), &mut bytes) {
            Ok(Content::Bytes | Content::Zero) => {}
            Ok(Content::Absent) | Err(_) => return None,
        }
        let page: Arc<[u8]> = bytes.into();
        self.pages.insert(gpa, Arc::clone(&page));
        Some(page)
    }

    /// A part of one page.
    fn read_small(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        let inside = gpa % self.map.page_size();
        let Some(page) = self.page(gpa - inside) else {
            return false;
        };
        let from = inside as usize;
        match page.get(from..from + bytes.len()) {
            Some(part) => {
                bytes.copy_from_slice(part);
                true
            }
            None => false,
        }
    }

    /// Whole pages.
    fn read_pages(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        let size = self.map.page_size();
        let end = gpa + bytes.len() as u64;
        let (mut at, mut rest) = (gpa, bytes);
        for run in self.map.addresses(Gpa(gpa)..Gpa(end)) {
            let length = run.pages * size;
            if run.gpa.0 != at || length > rest.len() as u64 {
                return false;
            }
            let (part, after) = rest.split_at_mut(length as usize);
            let done = match run.place {
                Place::Zero => {
                    part.fill(0);
                    true
                }
                Place::Stored(file) => self.read_run(file, run.stride, part),
                // Put together once, however often it is read in a row.
                Place::Patched => part
                    .chunks_exact_mut(size as usize)
                    .zip((at..).step_by(size as usize))
                    .all(|(to, gpa)| match self.page(gpa) {
                        Some(page) => {
                            to.copy_from_slice(&page);
                            true
                        }
                        None => false,
                    }),
                Place::Absent => false,
            };
            if !done {
                return false;
            }
            rest = after;
            at += length;
        }
        rest.is_empty()
    }

    /// Pages that lie one after the other in the file, `stride` bytes apart.
    fn read_run(&self, file: u64, stride: u64, bytes: &mut [u8]) -> bool {
        let size = self.map.page_size();
        if stride == size {
            return self.source.read_at(file, bytes).is_ok();
        }
        let at_once = (SPAN / stride.max(1)).max(1);
        let mut span = Vec::new();
        let mut at = file;
        for group in bytes.chunks_mut((at_once * size) as usize) {
            let pages = group.len() as u64 / size;
            span.resize(((pages - 1) * stride + size) as usize, 0);
            if self.source.read_at(at, &mut span).is_err() {
                return false;
            }
            for (to, from) in group
                .chunks_exact_mut(size as usize)
                .zip(span.chunks(stride as usize))
            {
                match from.get(..size as usize) {
                    Some(page) => to.copy_from_slice(page),
                    None => return false,
                }
            }
            at += pages * stride;
        }
        true
    }
}

impl GuestMemory for View<'_> {
    fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        let size = self.map.page_size();
        let Some(end) = gpa.checked_add(bytes.len() as u64) else {
            return false;
        };
        // A part of a page, whole pages, a part of a page.
        let first = end.min(gpa.checked_next_multiple_of(size).unwrap_or(end));
        let last = first.max(end / size * size);
        let (head, rest) = bytes.split_at_mut((first - gpa) as usize);
        let (body, tail) = rest.split_at_mut((last - first) as usize);
        (head.is_empty() || self.read_small(gpa, head))
            && (body.is_empty() || self.read_pages(first, body))
            && (tail.is_empty() || self.read_small(last, tail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::index;
    use crate::snapshot::tests::counting::Counting;
    use crate::snapshot::tests::writers::{Head, PAGE, StreamWriter, page_of};

    #[test]
    fn a_page_is_put_together_once_however_often_it_is_read() {
        const PAGES: u64 = 16;
        const DELTAS: u8 = 8;
        let head = Head {
            machine: "pc-q35-10.0",
            ..Head::default()
        };
        let mut writer = StreamWriter::new(&[], head, &[("pc.ram", PAGES)]);
        writer.next_section(true);
        let mut wanted = Vec::new();
        for page in 0..PAGES {
            let mut content = page_of(page, 1);
            writer.page(0, page, &content);
            content[9] = DELTAS;
            wanted.extend(content);
        }
        for delta in 1..=DELTAS {
            for page in 0..PAGES {
                writer.delta(0, page, 9, &[delta]);
            }
        }
        let bytes = writer.finish();
        let snapshot = index(&bytes).unwrap();
        let source = Counting::new(&bytes);
        let view = View::new(snapshot.map().unwrap().clone(), &source);
        let mut read = vec![0; wanted.len()];
        for part in [1, 3, PAGES as usize] {
            for _ in 0..20 {
                for (at, part) in (0..).zip(read.chunks_mut(part * PAGE)) {
                    assert!(view.read(at * (part.len() / PAGE * PAGE) as u64, part));
                }
            }
        }
        assert!(view.read(0, &mut read));
        assert!(read == wanted);
        let reads = source.reads();
        assert!(
            reads <= PAGES * (1 + u64::from(DELTAS)),
            "{reads} reads of the file"
        );
    }
}
