//! Reading after loss. A file of which blocks that were stored once are gone is read through a *view*: what each lost byte
//! reads as, and which bytes elsewhere are edited so that a guest does without those pages. The view is complete before the
//! first byte is read, since the edits must be in whatever a guest sees first; what is found lost later is an error. Stored
//! bytes stay as they are.
//!
//! `check` finds what is lost, `build` makes the view of it, `begin` gives it to those who open the file.

mod begin;
mod build;
mod check;
mod coded;
mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use self::coded::{Edits, Runs};
use super::overlay::Overlay;
use crate::ids::FileId;
use crate::snapshot::PageMap;
use crate::store::Source;

/// What is read of a byte that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reads {
    /// An error: the guest cannot do without it, or nobody can say so.
    Error = 0,
    /// Zero.
    Zeros = 1,
    /// What the guest's allocator checks its free pages for.
    Fill = 2,
    /// What stood there: the head of a record, which the page map writes again.
    Head = 3,
}

impl Reads {
    fn from_kind(kind: u8) -> Reads {
        match kind {
            1 => Reads::Zeros,
            2 => Reads::Fill,
            3 => Reads::Head,
            _ => Reads::Error,
        }
    }
}

/// What was lost of one class of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Pages of which bytes are lost; 0 for what is no page.
    pub pages: u64,
    /// Lost bytes.
    pub bytes: u64,
}

/// What is lost of a file, by class and by what is read of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    by: BTreeMap<(&'static str, &'static str), Lost>,
    errors: u64,
    mended: bool,
}

impl Losses {
    /// Each class with what is read of it and how much it is.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, Lost)> + '_ {
        let lines = self.by.iter();
        lines.map(|((class, reads), lost)| (*class, *reads, *lost))
    }

    /// Bytes whose reading fails.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// One line a class and what is read of it: `free=120 mended`, in pages; what is no page in bytes, `framing=90 bytes error`.
    pub fn lines(&self) -> String {
        let line = |(class, reads, lost): (_, _, Lost)| match lost.pages {
            0 => format!("{class}={} bytes {reads}\n", lost.bytes),
            pages => format!("{class}={pages} {reads}\n"),
        };
        self.iter().map(line).collect()
    }

    /// The same if all of it is an error.
    fn as_errors(&self) -> Losses {
        let mut all = Losses::default();
        for ((class, _), lost) in &self.by {
            let line = all.by.entry((class, "error")).or_default();
            line.pages += lost.pages;
            line.bytes += lost.bytes;
            all.errors += lost.bytes;
        }
        all
    }

    /// Whether a guest can be resumed from what is read.
    pub fn is_mended(&self) -> bool {
        self.mended && self.errors == 0
    }
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (class, reads, lost)) in self.iter().enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            match lost.pages {
                0 => write!(f, "{comma}{} bytes of {class} ({reads})", lost.bytes)?,
                pages => write!(f, "{comma}{pages} pages of {class} ({reads})")?,
            }
        }
        Ok(())
    }
}

/// How a file with losses is read.
#[derive(Debug, Default)]
pub struct View {
    lost: Runs,
    /// Writes the heads of records again.
    map: Option<PageMap>,
    fill: u8,
    edits: Edits,
    losses: Losses,
    /// From here on a byte that is written may make another page of one that is lost. None where no lost byte's reading
    /// depends on others.
    doubted_from: Option<u64>,
}

impl View {
    /// Whether bytes of a range that become others make it doubtful what lost bytes read as. A lost page's own bytes do not:
    /// whatever they are, a guest that was made to do without the page does without them.
    fn is_doubted_by(&self, range: &Range<u64>) -> bool {
        let Some(from) = self.doubted_from else {
            return false;
        };
        let range = range.start.max(from)..range.end;
        if range.is_empty() {
            return false;
        }
        let mended = |(part, kind): (Range<u64>, u8)| match Reads::from_kind(kind) {
            Reads::Error => 0,
            Reads::Zeros | Reads::Fill | Reads::Head => part.end - part.start,
        };
        let inside: u64 = self.lost.within(range.clone()).map(mended).sum();
        inside < range.end - range.start
    }

    /// The view in which every lost byte is an error. The edits stay, so that who has read bytes with them reads the same again.
    fn doubted(&self) -> View {
        let mut lost = Runs::default();
        for (range, _) in self.lost.iter() {
            lost.push(range, Reads::Error as u8);
        }
        View {
            lost,
            map: None,
            fill: 0,
            edits: self.edits.clone(),
            losses: self.losses.as_errors(),
            doubted_from: None,
        }
    }

    /// What is lost.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// Lost bytes, runs of them, and edits of other bytes.
    pub fn extent(&self) -> (u64, usize, usize) {
        (self.lost.total(), self.lost.len(), self.edits.len())
    }

    /// Bytes of memory that it takes.
    pub fn memory(&self) -> usize {
        self.lost.memory() + self.edits.memory()
    }
}

/// The view of a file that is open, and what was written since: there the view says nothing.
///
/// A view is made of the file as it was. What is written under it may say of a lost page that it holds something (its struct
/// page, that it is up to date), and the edit that said otherwise falls away: so from then on no lost byte is made up any
/// more, whoever reads it. It is an error until the last reader goes and a view is made of what the file is then.
#[derive(Debug, Default)]
pub struct Mended {
    /// The view.
    pub view: Arc<View>,
    /// Ranges with bytes that are newer than the view.
    pub changed: Overlay,
}

impl Mended {
    /// Bytes of the range are about to be others.
    pub fn change(&mut self, range: Range<u64>) {
        if self.view.is_doubted_by(&range) {
            self.view = Arc::new(self.view.doubted());
        }
        self.changed.insert(range, Source::Hole);
    }

    /// The view is there. What changed up to now was not seen by who made it.
    fn give(&mut self, view: View) {
        let doubted = self
            .changed
            .iter()
            .any(|change| view.is_doubted_by(&change.range));
        self.view = Arc::new(if doubted { view.doubted() } else { view });
    }

    /// What the view says of a range.
    pub fn over(&self, range: Range<u64>) -> Over {
        let mut over = Over {
            view: Arc::clone(&self.view),
            lost: Vec::new(),
            changed: Vec::new(),
        };
        for (run, kind) in self.view.lost.within(range.clone()) {
            let reads = Reads::from_kind(kind);
            let mut still = |gap| over.lost.push((gap, reads));
            self.changed.walk(run, &mut |_| {}, &mut still);
        }
        let mut newer = |extent: crate::store::Extent| over.changed.push(extent.range);
        self.changed.walk(range, &mut newer, &mut |_| {});
        over
    }
}

/// What a view says of a range of the file.
#[derive(Debug)]
pub struct Over {
    view: Arc<View>,
    /// Lost ranges in order.
    lost: Vec<(Range<u64>, Reads)>,
    /// Ranges to leave alone.
    changed: Vec<Range<u64>>,
}

impl Over {
    /// The first range whose reading fails.
    pub fn error(&self) -> Option<&Range<u64>> {
        let mut errors = self.lost.iter();
        errors
            .find(|(_, reads)| *reads == Reads::Error)
            .map(|(range, _)| range)
    }

    /// The lost ranges, and the byte that each reads as.
    pub fn filled(&self) -> impl Iterator<Item = (Range<u64>, u8)> + '_ {
        self.lost.iter().map(|(range, reads)| {
            let byte = match reads {
                Reads::Fill => self.view.fill,
                Reads::Zeros | Reads::Head | Reads::Error => 0,
            };
            (range.clone(), byte)
        })
    }

    /// Edits the bytes of the range, which begin at `offset` of the file.
    pub fn edit(&self, offset: u64, bytes: &mut [u8]) {
        let end = offset + bytes.len() as u64;
        for (range, reads) in &self.lost {
            let inside = (range.start - offset) as usize..(range.end - offset) as usize;
            if let (Reads::Head, Some(map), Some(head)) =
                (reads, &self.view.map, bytes.get_mut(inside))
            {
                map.write_heads(range.start, head);
            }
        }
        self.view.edits.within(offset..end, |at, and| {
            let newer = self.changed.iter().any(|range| range.contains(&at));
            if let (false, Some(byte)) = (newer, bytes.get_mut((at - offset) as usize)) {
                *byte &= and;
            }
        });
    }
}

/// What is known in this mount of losses, besides which disks are missing.
#[derive(Debug, Default)]
pub struct KnownLosses {
    /// Files of which a block was found bad that no other disk makes good.
    bad: Mutex<HashSet<FileId>>,
    /// Files that were read through a view, or changed in a way that was given up: what the kernel keeps of them may be
    /// of another one.
    served: Mutex<HashSet<FileId>>,
}

impl KnownLosses {
    /// A block of the file was found bad, and is lost.
    pub fn found_bad(&self, file: FileId) {
        self.bad.lock().insert(file);
    }

    /// Whether blocks of the file are known to be bad.
    pub fn is_bad(&self, file: FileId) -> bool {
        self.bad.lock().contains(&file)
    }

    /// What of the file was not committed is given up: what the kernel keeps may be of it.
    pub fn gave_up(&self, file: FileId) {
        self.served.lock().insert(file);
    }

    /// Whether the kernel may keep bytes that were read in another view of the file.
    pub fn was_served(&self, file: FileId) -> bool {
        self.served.lock().contains(&file)
    }
}
