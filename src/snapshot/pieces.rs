//! A file's bytes in the order of the file: what is a page, what is framing, what is dead. Knows the run log
//! and a layout.

use std::ops::Range;

use super::address::Gpa;
use super::layout::Layout;
use super::runs::{Kind, Run, RunLog, Runs};

/// What a range of file bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// Guest memory: the address of the piece's first byte. A piece may be many pages, or a part of one.
    Page(Gpa),
    /// Everything that cannot be lost without losing more: headers, device state, the memory of devices, and
    /// pages that later deltas build upon.
    Framing,
    /// Bytes whose content nobody uses: a page that was sent again, or the slot of a page that is zero.
    Dead,
}

/// A range of file bytes that are of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The file offsets in bytes.
    pub range: Range<u64>,
    /// What they are.
    pub kind: PieceKind,
}

/// The pieces of a file range: without gaps, in order, neighbours never of one kind that could be one piece.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    runs: Runs<'a>,
    run: Option<Run>,
    log: &'a RunLog,
    /// Without a layout the address is the place in RAM space.
    layout: Option<&'a Layout>,
    at: u64,
    end: u64,
    held: Option<Piece>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(log: &'a RunLog, layout: Option<&'a Layout>, range: Range<u64>) -> Self {
        let mut runs = log.runs_from(range.start);
        let run = runs.next();
        Self {
            runs,
            run,
            log,
            layout,
            at: range.start,
            end: range.end,
            held: None,
        }
    }

    /// The next piece, cut wherever a run or a page ends.
    fn next_raw(&mut self) -> Option<Piece> {
        if self.at >= self.end {
            return None;
        }
        let geometry = self.log.geometry();
        let (kind, upto) = loop {
            let Some(run) = self.run else {
                break (PieceKind::Framing, self.end);
            };
            let unit = geometry.unit(run.kind);
            let run_end = run.file.saturating_add(unit.saturating_mul(run.count));
            if self.at < run.file {
                break (PieceKind::Framing, run.file);
            }
            if self.at >= run_end {
                self.run = self.runs.next();
                continue;
            }
            let lead = geometry.lead;
            let inside = self.at - run.file;
            let next_unit = self.at + (unit - inside % unit);
            break match run.kind {
                Kind::Page | Kind::DeadPage if inside % unit < lead => {
                    (PieceKind::Framing, self.at + (lead - inside % unit))
                }
                Kind::Page => {
                    let page = run.page + inside / unit;
                    let ram = page * geometry.page_size + (inside % unit - lead);
                    let stop = if lead == 0 { run_end } else { next_unit };
                    self.page(ram, stop)
                }
                Kind::DeadPage => (PieceKind::Dead, next_unit),
                Kind::EmptySlot => (PieceKind::Dead, run_end),
                Kind::Zero | Kind::DeadZero | Kind::Base | Kind::Framing => {
                    (PieceKind::Framing, run_end)
                }
            };
        };
        let range = self.at..upto.min(self.end);
        self.at = range.end;
        Some(Piece { range, kind })
    }

    /// Bytes of RAM space up to the file offset `stop`, as far as they go on in the guest.
    fn page(&self, ram: u64, stop: u64) -> (PieceKind, u64) {
        let Some(layout) = self.layout else {
            return (PieceKind::Page(Gpa(ram)), stop);
        };
        match layout.gpa_of(ram) {
            Some((gpa, left)) => (PieceKind::Page(gpa), stop.min(self.at.saturating_add(left))),
            None => {
                let left = layout.unmapped_from(ram);
                (PieceKind::Framing, stop.min(self.at.saturating_add(left)))
            }
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let mut piece = match self.held.take() {
            Some(piece) => piece,
            None => self.next_raw()?,
        };
        while let Some(next) = self.next_raw() {
            let joins = match (piece.kind, next.kind) {
                (PieceKind::Page(first), PieceKind::Page(then)) => {
                    then.0.checked_sub(first.0) == Some(piece.range.end - piece.range.start)
                }
                (a, b) => a == b,
            };
            if !joins {
                self.held = Some(next);
                break;
            }
            piece.range.end = next.range.end;
        }
        Some(piece)
    }
}
