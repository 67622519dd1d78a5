//! A view comes into being when a file is opened for reading that nobody reads yet, and serves all who open it until the last
//! of them has closed it. So a program that maps a file sees one view for as long as it does; a disk that dies meanwhile
//! is an error to it where bytes are lost, and mended for who comes after.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::Volume;
use super::super::commit::Purpose;
use super::super::file::OpenFile;
use super::super::look::{self, Look};
use super::build::build;
use super::check::LostBytes;
use super::source::Surviving;
use super::{Losses, Mended, View};
use crate::config::LostReads;
use crate::snapshot::{self, ByteSource, PastLosses};

impl Volume {
    /// One more reader of a file, if that can be said at once: false when bytes may have to be looked for.
    pub(in crate::volume) fn try_begin_reading(&self, file: &OpenFile) -> bool {
        let Some(mut readers) = file.readers.try_lock() else {
            return false;
        };
        let at_once = *readers > 0 || !self.has_expendable(file);
        *readers += u32::from(at_once);
        at_once
    }

    /// One more reader of a file; the first one waits until it is known what is lost of it, and the view is there.
    pub(in crate::volume) fn begin_reading(&self, file: &Arc<OpenFile>) {
        let mut readers = file.readers.lock();
        if *readers == 0 && self.has_expendable(file) {
            self.look_for_losses(file);
        }
        *readers += 1;
    }

    /// A reader goes, and with the last one the view. Says whether a commit waited for that to give bytes up: then
    /// the file is to be judged again.
    #[must_use]
    pub(in crate::volume) fn end_reading(&self, file: &OpenFile) -> bool {
        let last = {
            let mut readers = file.readers.lock();
            *readers = readers.saturating_sub(1);
            if *readers == 0 {
                file.state.lock().mended = None;
            }
            *readers == 0
        };
        let owed = last && file.owes_drop.swap(false, Ordering::SeqCst);
        if owed {
            let mut state = file.state.lock();
            let size = state.size;
            state.follow.judge_again(size);
        }
        owed
    }

    /// What is lost of a file, as far as reading it now would show.
    pub(in crate::volume) fn losses(&self, file: &Arc<OpenFile>) -> Option<Losses> {
        self.begin_reading(file);
        let losses = {
            let state = file.state.lock();
            let mended = state.mended.as_ref();
            mended.map(|mended| mended.view.losses().clone())
        };
        if self.end_reading(file) {
            self.commit_aside(file, Purpose::JudgeAgain);
        }
        losses
    }

    fn look_for_losses(&self, file: &Arc<OpenFile>) {
        // While all is well only what was given up is lost.
        let look = self.may_have_lost(file);
        if !look && !file.state.lock().gave_up() {
            return;
        }
        // No commit changes what is looked at.
        let (_hurry, _turn) = self.turn_of(file);
        let size = {
            let mut state = file.state.lock();
            // What is not committed is newer than any view, and so is what is written from here on.
            let mut mended = Mended::default();
            for extent in state.map.top.iter() {
                mended.change(extent.range);
            }
            state.mended = Some(mended);
            state.committed_size
        };
        // What reads found before is in the view, if it is so.
        file.damaged.store(false, Ordering::Release);
        let view = self
            .lost_bytes(file, look)
            .map(|lost| (!lost.runs.is_empty()).then(|| self.view(file, size, &lost)));
        let mut state = file.state.lock();
        match view {
            Ok(Some(view)) => {
                // Changes that were put into the map to save memory are not told apart from the others any more.
                let spilled = state.spilled;
                if let Some(mended) = &mut state.mended {
                    mended.give(if spilled { view.doubted() } else { view });
                }
                drop(state);
                self.known_losses.served.lock().insert(file.id);
            }
            Ok(None) => state.mended = None,
            Err(error) => {
                // What the file is made of cannot be read in parts. The others are read all the same, and what is lost of
                // them is an error: without all of it no view would be whole.
                state.mended = None;
                drop(state);
                file.damaged.store(true, Ordering::Release);
                tracing::error!(file = %file.id, %error, "it is not known what is lost of it; nothing of it is mended");
            }
        }
    }

    fn view(&self, file: &Arc<OpenFile>, size: u64, lost: &LostBytes) -> View {
        let source = Surviving {
            volume: self,
            file,
            size,
            lost: &lost.runs,
        };
        // What the last commit saw is kept with the file; without it the file is looked into anew.
        let kept = self.look_of(file).inspect_err(
            |error| tracing::warn!(file = %file.id, %error, "what was seen in it is lost"),
        );
        let look = kept.ok().flatten().or_else(|| {
            look::recognise(&PastLosses(&source), None)
                .and_then(|snapshot| Look::into(snapshot, &source, &|_| ()))
                .inspect_err(
                    |error| tracing::warn!(file = %file.id, %error, "cannot be looked into"),
                )
                .ok()
        });
        // libvirt's header is written anew when the image is whole, and tells nothing of pages.
        let mut head = vec![0; snapshot::HEAD.min(size as usize)];
        let read = source.read_past_losses(0, &mut head);
        let payload = read.ok().and_then(|()| snapshot::libvirt_payload(&head));
        let view = build(
            lost,
            self.lost,
            look.as_ref(),
            &source,
            payload.unwrap_or(0),
        );
        let losses = view.losses();
        let paths = self.paths(file.id).unwrap_or_default();
        let path = paths.first().map(|path| String::from_utf8_lossy(path));
        let path = path.as_deref().unwrap_or_default();
        let read = match (self.lost, losses.errors()) {
            (LostReads::Mend, 0) => "mended: a guest can go on with it",
            (LostReads::Zero, 0) => "read as zeros: no guest can go on with it",
            _ => "what cannot be mended cannot be read",
        };
        let (bytes, runs, edits) = view.extent();
        tracing::warn!(
            file = %file.id, path, lost = %losses, bytes, runs, edits, memory = view.memory(),
            "bytes are lost: {read}"
        );
        view
    }
}
