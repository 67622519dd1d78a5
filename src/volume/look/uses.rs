//! What the bytes of a file are used for: the page map's pieces, cut where the class of a page changes. Knows classes and
//! not what they are worth.

use std::ops::Range;

use crate::guest::{Classes, PageClass};
use crate::snapshot::{Gpa, PageMap, Piece, PieceKind, Pieces};

/// What a range of file bytes is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileUse {
    /// Guest memory of this class.
    Page(PageClass),
    /// Headers, device state, the memory of devices, and whatever is not understood.
    Framing,
    /// Bytes whose content nobody uses.
    Dead,
}

/// Ranges of a file with their use, ascending, without gaps. Empty for a file without page map.
#[derive(Clone, Debug)]
pub struct Uses<'a> {
    pieces: Option<Pieces<'a>>,
    classes: Option<&'a Classes>,
    rest: Option<Piece>,
}

impl<'a> Uses<'a> {
    pub(super) fn new(map: Option<&'a PageMap>, classes: Option<&'a Classes>) -> Self {
        Self {
            pieces: map.map(|map| map.pieces(0..map.file_length())),
            classes,
            rest: None,
        }
    }

    /// The class of the page at an address, and how many bytes from there on have it, up to a limit.
    fn class(&self, gpa: u64, limit: u64) -> (PageClass, u64) {
        let Some(classes) = self.classes else {
            return (PageClass::Unknown, limit);
        };
        // The guest's pages may be larger than the file's; an address may lie within one.
        let size = 1 << classes.page_shift();
        let (class, pages) = classes.run_at(gpa, limit.div_ceil(size) + 1);
        (
            class.unwrap_or(PageClass::Unknown),
            (pages * size - gpa % size).min(limit),
        )
    }
}

impl Iterator for Uses<'_> {
    type Item = (Range<u64>, FileUse);

    fn next(&mut self) -> Option<Self::Item> {
        let piece = match self.rest.take() {
            Some(rest) => rest,
            None => self.pieces.as_mut()?.next()?,
        };
        let gpa = match piece.kind {
            PieceKind::Page(gpa) => gpa.0,
            PieceKind::Framing => return Some((piece.range, FileUse::Framing)),
            PieceKind::Dead => return Some((piece.range, FileUse::Dead)),
        };
        let Range { start, end } = piece.range;
        let (class, length) = self.class(gpa, end - start);
        let cut = end.min(start + length.max(1));
        if cut < end {
            let kind = PieceKind::Page(Gpa(gpa + length));
            self.rest = Some(Piece {
                range: cut..end,
                kind,
            });
        }
        Some((start..cut, FileUse::Page(class)))
    }
}
