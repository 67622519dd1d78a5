//! The view of a file out of what is lost of it: each lost page is judged by its class, the guest tells what mends the loss of
//! page cache, and guest-physical places become places in the file. One pass over the guest's pages and one over the lost
//! bytes; what is kept is a few bytes for each run and each edit.

use std::ops::Range;

use rayon::prelude::*;

use super::super::look::Look;
use super::check::{LostBytes, PROMISED};
use super::coded::{Edits, Runs};
use super::{Losses, Lost, Reads, View};
use crate::config::LostReads;
use crate::guest::{Classes, Edit, Guest, PageClass, Tier as Worth};
use crate::snapshot::{ByteSource, Gpa, PageMap, PieceKind, Place};

/// Lost pages of page cache that are judged together, and how many frames one thread takes on: a section of memory.
const BATCH: usize = 1 << 20;
const SPELL: u64 = 1 << 15;

/// What a guest says to the loss of its pages.
struct Mend {
    /// What lost free pages hold.
    fill: u8,
    edits: Edits,
    /// Frames of page cache whose loss cannot be mended.
    refused: Runs,
}

/// Makes the view. `source` gives what is left of the file; without a look nothing is known of its pages. `memory` is where the
/// first byte may be that tells what others are used for.
pub(super) fn build(
    lost: &LostBytes,
    mode: LostReads,
    look: Option<&Look>,
    source: &(dyn ByteSource + Sync),
    memory: u64,
) -> View {
    let mend = match (mode, look) {
        (LostReads::Mend, Some(look)) => mend(look, &lost.runs, source),
        _ => None,
    };
    let mut losses = Counter::default();
    let mut runs = Runs::default();
    // Without a guest no page has a class that says anything.
    let known = look
        .filter(|look| look.guest().is_ok())
        .and_then(|look| Some((look, look.map()?, look.classes()?)));
    for (range, kind) in lost.runs.iter() {
        let mut at = range.start;
        let promised = kind == PROMISED;
        if let Some((look, map, classes)) = known {
            let mut heads = map.heads(range.start);
            let page = Page {
                look,
                classes,
                mode,
                mend: mend.as_ref(),
            };
            for piece in map.pieces(range.clone()) {
                at = piece.range.end;
                match piece.kind {
                    PieceKind::Page(gpa) => {
                        page.each(piece.range, gpa, |range, pfn, class, reads| {
                            let reads = if promised { Reads::Error } else { reads };
                            losses.page(&range, pfn, class, reads);
                            runs.push(range, reads as u8);
                        })
                    }
                    PieceKind::Framing if heads.has(&piece.range) && !promised => {
                        runs.push(piece.range, Reads::Head as u8);
                    }
                    PieceKind::Framing => {
                        losses.bytes(&piece.range, "framing", Reads::Error);
                        runs.push(piece.range, Reads::Error as u8);
                    }
                    PieceKind::Dead => {
                        let reads = match mode {
                            LostReads::Mend | LostReads::Zero if !promised => Reads::Zeros,
                            _ => Reads::Error,
                        };
                        losses.bytes(&piece.range, "dead", reads);
                        runs.push(piece.range, reads as u8);
                    }
                }
            }
        }
        // What no page map tells of.
        let reads = match mode {
            LostReads::Zero if lost.expendable && !promised => Reads::Zeros,
            LostReads::Zero | LostReads::Mend | LostReads::Error => Reads::Error,
        };
        if at < range.end {
            let rest = at..range.end;
            losses.bytes(&rest, "unknown", reads);
            runs.push(rest, reads as u8);
        }
    }
    let (fill, edits) = mend.map_or((0, Edits::default()), |mend| (mend.fill, mend.edits));
    View {
        lost: runs,
        doubted_from: (mode == LostReads::Mend).then_some(memory),
        map: known.map(|(_, map, _)| map.clone()),
        fill,
        edits,
        losses: losses.done(mode),
    }
}

/// Judges lost pages in the order of the file.
struct Page<'a> {
    look: &'a Look,
    classes: &'a Classes,
    mode: LostReads,
    mend: Option<&'a Mend>,
}

impl Page<'_> {
    /// Cuts a piece into pages.
    fn each(
        &self,
        piece: Range<u64>,
        gpa: Gpa,
        mut tell: impl FnMut(Range<u64>, u64, PageClass, Reads),
    ) {
        let shift = self.classes.page_shift();
        let (mut at, mut gpa) = (piece.start, gpa.0);
        while at < piece.end {
            let step = ((1 << shift) - gpa % (1 << shift)).min(piece.end - at);
            let pfn = gpa >> shift;
            let class = self.classes.get(pfn).unwrap_or(PageClass::Unknown);
            tell(at..at + step, pfn, class, self.reads(pfn, class));
            at += step;
            gpa += step;
        }
    }

    fn reads(&self, pfn: u64, class: PageClass) -> Reads {
        match (self.mode, self.look.worth(class)) {
            (LostReads::Error, _) | (_, Worth::Critical) => Reads::Error,
            (LostReads::Zero, _) | (LostReads::Mend, Worth::NotStored) => Reads::Zeros,
            (LostReads::Mend, Worth::Expendable) => match (self.mend, class) {
                (Some(_), PageClass::Free) => Reads::Fill,
                (Some(_), PageClass::Offline) => Reads::Zeros,
                (Some(mend), PageClass::CacheClean) if !mend.refuses(pfn) => Reads::Zeros,
                _ => Reads::Error,
            },
        }
    }
}

impl Mend {
    fn refuses(&self, pfn: u64) -> bool {
        self.refused.within(pfn..pfn + 1).next().is_some()
    }
}

/// Asks the guest what mends the loss of its page cache. None if it cannot be found any more.
fn mend(look: &Look, lost: &Runs, source: &(dyn ByteSource + Sync)) -> Option<Mend> {
    let map = look.map()?;
    let seen = look.guest().ok().and_then(|found| found.fill);
    look.with_guest(source, |guest, classes| {
        let mut mend = Mend {
            // What the commit saw, when all pages were there.
            fill: seen
                .or_else(|| guest.fill_of_free_pages(classes))
                .unwrap_or(0),
            edits: Edits::default(),
            refused: Runs::default(),
        };
        let mut cached = Vec::new();
        each_lost_page(map, classes.page_shift(), lost, |pfn| {
            if classes.get(pfn) == Some(PageClass::CacheClean) && cached.last() != Some(&pfn) {
                cached.push(pfn);
                if cached.len() >= BATCH {
                    mend.judge(guest, map, &cached);
                    cached.clear();
                }
            }
        });
        mend.judge(guest, map, &cached);
        mend.edits.close();
        mend
    })
}

/// Tells the frames of all pages of which bytes are lost, in rising order.
fn each_lost_page(map: &PageMap, shift: u32, lost: &Runs, mut tell: impl FnMut(u64)) {
    let size = map.page_size();
    for run in map.addresses(Gpa(0)..Gpa(u64::MAX)) {
        let Place::Stored(file) = run.place else {
            continue;
        };
        let stride = run.stride.max(1);
        let end = file + (run.pages - 1) * stride + size;
        let mut next = 0;
        for (range, _) in lost.within(file..end) {
            let first = ((range.start - file) / stride).max(next);
            let last = ((range.end - 1 - file) / stride).min(run.pages - 1);
            for page in first..=last {
                // A lost range may begin between two pages.
                if file + page * stride + size > range.start {
                    tell((run.gpa.0 + page * size) >> shift);
                }
            }
            next = last + 1;
        }
    }
}

/// Edits of bytes of the file with the bits that stay, and the page frames that cannot be mended.
type Judged = (Vec<(u64, u8)>, Vec<u64>);

impl Mend {
    /// Judges lost pages of page cache, ascending.
    fn judge(&mut self, guest: &Guest<'_>, map: &PageMap, cached: &[u64]) {
        let spells: Vec<&[u64]> = cached.chunk_by(|a, b| a / SPELL == b / SPELL).collect();
        let judged: Vec<Judged> = spells
            .par_iter()
            .map(|frames| {
                let (mut edits, mut refused) = (Vec::new(), Vec::new());
                // All pages of one folio are mended by the same.
                let mut done = None;
                guest.mend_cached(frames, |pfn, head, verdict| {
                    if done == Some(head) {
                        return;
                    }
                    let placed = verdict.ok().and_then(|verdict| place(map, verdict));
                    match placed {
                        Some(placed) => {
                            edits.extend(placed);
                            done = Some(head);
                        }
                        None => refused.push(pfn),
                    }
                });
                (edits, refused)
            })
            .collect();
        for (edits, refused) in judged {
            for (offset, and) in edits {
                self.edits.add(offset, and);
            }
            for pfn in refused {
                self.refused.push(pfn..pfn + 1, 0);
            }
        }
    }
}

/// Where edits lie in the file. None if one lies where the file has no byte of its own for it.
fn place(map: &PageMap, edits: &[Edit]) -> Option<Vec<(u64, u8)>> {
    let mut placed = Vec::with_capacity(edits.len());
    for edit in edits {
        match map.lookup(Gpa(edit.gpa)) {
            Place::Stored(file) => placed.push((file + edit.gpa % map.page_size(), edit.and)),
            // Nothing is to be cleared in zeros.
            Place::Zero => {}
            // What is put together from deltas has no place that a byte could be changed at.
            Place::Patched | Place::Absent => return None,
        }
    }
    Some(placed)
}

/// Counts what is lost.
#[derive(Default)]
struct Counter {
    losses: Losses,
    /// The last page that was counted: it may be told of in several parts.
    last: Option<u64>,
}

impl Counter {
    fn page(&mut self, range: &Range<u64>, pfn: u64, class: PageClass, reads: Reads) {
        let new = self.last.replace(pfn) != Some(pfn);
        let lost = self.count(range, class.name(), reads, class == PageClass::CacheClean);
        lost.pages += u64::from(new);
    }

    fn bytes(&mut self, range: &Range<u64>, what: &'static str, reads: Reads) {
        self.count(range, what, reads, false);
    }

    fn count(
        &mut self,
        range: &Range<u64>,
        what: &'static str,
        reads: Reads,
        fetched: bool,
    ) -> &mut Lost {
        let bytes = range.end - range.start;
        if reads == Reads::Error {
            self.losses.errors += bytes;
        }
        let word = match reads {
            Reads::Error => "error",
            Reads::Fill => "mended",
            Reads::Zeros if fetched => "mended",
            Reads::Zeros => "zeros",
            Reads::Head => "as it was",
        };
        let lost = self.losses.by.entry((what, word)).or_default();
        lost.bytes += bytes;
        lost
    }

    fn done(self, mode: LostReads) -> Losses {
        Losses {
            mended: mode == LostReads::Mend,
            ..self.losses
        }
    }
}
