//! What an answer that was made ahead is made of, and whether it is still the answer. Blocks, windows and pieces keep their
//! names as long as somebody has the file in use, and no other bytes come by them: bytes that lie at the same places are
//! the same bytes. Answers do not outlive that: they go with the handle that they were made for.

use std::sync::Arc;

use crate::store::Extent;
use crate::volume::Volume;
use crate::volume::error::Result;
use crate::volume::file::{FileState, OpenFile};
use crate::volume::handles::OpenHandle;
use crate::volume::in_use::Aside;
use crate::volume::mended::{Over, View};
use crate::volume::straight::UnderWay;

/// Threads that make answers for one reader: most of their time they wait for disks.
const MAKERS: usize = 8;

/// Bytes, and what they were made of.
#[derive(Debug)]
pub(in crate::volume) struct Answer {
    pub(super) bytes: Vec<u8>,
    pub(super) extents: Vec<Extent>,
    /// How lost bytes were read.
    pub(super) view: Option<Arc<View>>,
}

impl Volume {
    /// Reads for the kernel, which reads ahead of a program: out of what was made ahead of the kernel, if there is something.
    pub(in crate::volume) fn read_with_plans(
        &self,
        handle: &Arc<OpenHandle>,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>> {
        let size = handle.file.state.lock().size;
        let more = handle.ahead.plan(offset, length, size, MAKERS);
        for _ in 0..more {
            if let Some(aside) = self.aside(&handle.file) {
                self.make_ahead(Arc::clone(handle), aside);
            }
        }
        let made = handle.ahead.take(offset, length);
        match made.and_then(|answer| answer.if_still(&handle.file, offset)) {
            Some(bytes) => Ok(bytes),
            None => self.read_file(&handle.file, offset, length),
        }
    }

    /// Makes one answer after the other aside. In between, others come to use the threads.
    fn make_ahead(&self, handle: Arc<OpenHandle>, aside: Aside) {
        self.readers.spawn(move || {
            let Some(mut turn) = handle.ahead.next() else {
                return;
            };
            let Some(volume) = aside.volume() else {
                return;
            };
            turn.answer = volume.prepare(&handle.file, turn.offset, turn.length);
            drop(turn);
            volume.make_ahead(handle, aside);
        });
    }

    /// An answer for later; none where it is likely to be another one then, or cannot be had: that is told to whoever asks.
    fn prepare(&self, file: &Arc<OpenFile>, offset: u64, length: usize) -> Option<Answer> {
        let _reading = file.reading.read_recursive();
        let mut state = file.state.lock();
        let (extents, view) = places(&state, offset, length)?;
        let range = offset..offset + length as u64;
        let over = state.mended.as_ref().map(|mended| mended.over(range));
        if over.as_ref().and_then(Over::error).is_some() {
            return None;
        }
        let parts = self
            .locate_over(&mut state, offset, extents.clone(), over.as_ref())
            .ok()?;
        drop(state);
        let (_under_way, _) = UnderWay::begin(&self.reads);
        let mut bytes = self.fetch_here(file, length, parts).ok()?;
        if let Some(over) = over {
            over.edit(offset, &mut bytes);
        }
        Some(Answer {
            bytes,
            extents,
            view,
        })
    }
}

impl Answer {
    /// The bytes, if they are what the file has there now.
    fn if_still(self, file: &OpenFile, offset: u64) -> Option<Vec<u8>> {
        let (extents, view) = places(&file.state.lock(), offset, self.bytes.len())?;
        let same_view = match (&view, &self.view) {
            (Some(now), Some(then)) => Arc::ptr_eq(now, then),
            (now, then) => now.is_none() && then.is_none(),
        };
        (same_view && extents == self.extents).then_some(self.bytes)
    }
}

/// Where the bytes of a range are, and how those that are lost are read. None where a program changes the file: open blocks
/// have a name too, and other bytes from one moment to the next.
fn places(
    state: &FileState,
    offset: u64,
    length: usize,
) -> Option<(Vec<Extent>, Option<Arc<View>>)> {
    let end = offset.checked_add(length as u64)?;
    if state.is_dirty() || end > state.size {
        return None;
    }
    let extents = state.map.resolve(offset..end).ok()?;
    let view = state.mended.as_ref();
    Some((extents, view.map(|mended| Arc::clone(&mended.view))))
}
