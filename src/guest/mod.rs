//! What the pages are: finds a Linux kernel in guest memory and classifies every page. Pure: it reads guest
//! memory through a trait and knows no files, no disks, no FUSE.
//!
//! ```text
//! memory → vmcoreinfo → kernel (paging, self-checks) → candidate → btf, flags, shape
//!                                                    → memmap → classify (cache, freelist) → mend
//! ```
//!
//! Everything that is read was written by the guest and may be a lie. A lie makes pages critical, or the guest harm
//! itself with its own mend; it cannot make this code panic, run for ever or take memory without bound. `docs/guests.md`
//! tells what is read, what the classes mean and why.

mod btf;
mod cache;
mod candidate;
mod class;
mod classify;
mod error;
mod flags;
mod freelist;
mod kernel;
mod memmap;
mod memory;
mod mend;
mod page;
mod paging;
mod reason;
mod shape;
mod vmcoreinfo;

#[cfg(test)]
#[path = "../../integration/guests/synthetic.rs"]
pub(crate) mod synthetic;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;

use parking_lot::Mutex;
use rayon::prelude::*;

use btf::Btf;
use candidate::Candidate;
use classify::{Judge, Judged};
use flags::{Flags, Types};
use freelist::Lists;
use memmap::Memmap;
use paging::Translations;
use shape::{CacheShape, ListsShape, PageShape};

pub use class::{ClassSet, Classes, PageClass, Tier};
pub use error::{GuestError, MendError};
pub use kernel::{Hints, Kernel, TopTable};
pub use memory::{FlatMemory, GuestMemory, Layout};
pub use mend::{Edit, Fill, Mend};
pub use paging::Arch;
pub use reason::Reason;
pub use vmcoreinfo::{Vmcoreinfo, is_candidate};

/// A kernel that was found in a guest's memory and passed all checks.
pub struct Guest<'m> {
    memory: &'m dyn GuestMemory,
    kernel: Kernel,
    flags: Flags,
    types: Types,
    shape: PageShape,
    /// Without BTF, no page cache can be understood.
    cache: Option<CacheShape>,
    lists: Option<ListsShape>,
    memmap: Memmap,
    /// Orders of the buddy allocator: blocks are smaller than two to this.
    free_orders: u32,
}

/// Why a page has its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The page frame.
    pub pfn: u64,
    /// Its class.
    pub class: PageClass,
    /// What decided it.
    pub reason: Reason,
    /// The first frame of the block, folio or huge page that it is part of.
    pub head: u64,
    /// How many frames that has.
    pub span: u64,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "page frame {:#x} is {}: {}",
            self.pfn, self.class, self.reason
        )?;
        if self.span > 1 {
            write!(f, " (one of {} from {:#x})", self.span, self.head)?;
        }
        Ok(())
    }
}

impl<'m> Guest<'m> {
    /// Looks for a kernel in one view of memory. Where the layout is not known, each candidate is a view of its own and
    /// the right one is that in which a kernel is found: [`Guest::find_among`].
    pub fn find(memory: &'m dyn GuestMemory, hints: &Hints) -> Result<Guest<'m>, GuestError> {
        Candidate::of(memory, hints)?.understood()
    }

    fn with_types(
        candidate: Candidate<'m>,
        btf: Option<&Btf<'_>>,
    ) -> Result<Guest<'m>, GuestError> {
        let Candidate {
            memory,
            kernel,
            memmap,
        } = candidate;
        let shape = PageShape::of(&kernel, btf)?;
        let flags = Flags::of(&kernel, btf)?;
        Ok(Guest {
            memory,
            types: Types::of(&kernel, btf),
            cache: btf.and_then(CacheShape::of),
            lists: btf.and_then(|btf| ListsShape::of(&kernel, btf)),
            memmap,
            free_orders: kernel
                .info
                .length("zone.free_area")
                .filter(|n| (1..=20).contains(n))
                .unwrap_or(11) as u32,
            kernel,
            flags,
            shape,
        })
    }

    /// The view of one memory, of several, that is laid out as the kernel in it knows its memory, and its place among them.
    /// See `candidate.rs`.
    pub fn find_among(
        views: impl IntoIterator<Item = &'m dyn GuestMemory>,
        hints: &Hints,
    ) -> Result<(usize, Guest<'m>), GuestError> {
        let (place, candidate) = Candidate::among(views, hints)?;
        Ok((place, candidate.understood()?))
    }

    /// The kernel.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// `uname -r`.
    pub fn release(&self) -> &str {
        &self.kernel.release
    }

    /// The processor.
    pub fn arch(&self) -> Arch {
        self.kernel.arch()
    }

    /// Log2 of the guest's page size in bytes.
    pub fn page_shift(&self) -> u32 {
        self.kernel.page_shift
    }

    /// Bytes of guest memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory
            .ranges()
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    }

    /// Whether the kernel carries BTF. Without, only free and offline pages are expendable.
    pub fn has_btf(&self) -> bool {
        self.cache.is_some()
    }

    /// Gives every page its class, sections of memory side by side.
    pub fn classify(&self) -> Result<Classes, GuestError> {
        let sections = self.memmap.sections();
        let mut classes = Classes::unmanaged(self.memory.ranges(), self.page_shift());
        let mut beyond = Vec::new();
        let mut heads = Vec::new();
        let (mut contradictions, mut pages) = (0, 0);
        // As many as there are threads: each has room for a section's struct pages, and knows files that it has met.
        let judges: Mutex<Vec<Judge<'_>>> = Mutex::default();
        // In batches, so that a large guest's verdicts are not all held twice.
        for batch in sections.chunks(256) {
            let judged: Vec<Judged> = batch
                .par_iter()
                .map(|section| {
                    let judge = judges.lock().pop();
                    let mut judge = judge.unwrap_or_else(|| Judge::new(self));
                    let judged = judge.section(section);
                    judges.lock().push(judge);
                    judged
                })
                .collect();
            for judged in judged {
                classes.copy(judged.first, &judged.classes);
                beyond.extend(judged.beyond);
                freelist::gather(&mut heads, judged.heads);
                contradictions += judged.contradictions;
                pages += judged.pages;
            }
        }
        if contradictions.saturating_mul(100) > pages {
            return Err(GuestError::MemmapContradicts {
                contradictions,
                pages,
            });
        }
        for (frames, class) in beyond {
            classes.fill(frames, class);
        }
        if let Some(shape) = &self.lists {
            heads.sort_unstable();
            heads.dedup();
            let guest = Translations::new(self.memory, self.kernel.tables);
            let never = self.flags.never_free();
            let mut lists = Lists::new(&self.memmap, &self.shape, shape, guest, never);
            for (first, order) in lists.free(&heads) {
                let frames = first..first.saturating_add(1 << order);
                if frames
                    .clone()
                    .all(|pfn| classes.get(pfn) == Some(PageClass::Unknown))
                {
                    classes.fill(frames, PageClass::Free);
                }
            }
        }
        // Vmcoreinfo may be a copy in a page that could be lost, such as a dump tool's in a file that was read. Without it
        // the guest would not be found again, and nothing of it mended.
        for pfn in self.found_by() {
            if classes.get(pfn).is_some_and(mendable) {
                classes.fill(pfn..pfn + 1, PageClass::Unknown);
            }
        }
        Ok(classes)
    }

    /// The frames of the copy of vmcoreinfo that the kernel was found by.
    fn found_by(&self) -> Range<u64> {
        let (kernel, shift) = (&self.kernel, self.page_shift());
        let end = kernel.note.saturating_add(kernel.info.length);
        kernel.note >> shift..end.div_ceil(1 << shift)
    }

    /// Whether the kernel holds all pages of a range for itself, as it does its image.
    fn keeps(&self, range: Range<u64>) -> bool {
        let shift = self.page_shift();
        let frames = range.start >> shift..range.end.div_ceil(1 << shift);
        let mut judge = Judge::new(self);
        let mut next = frames.start;
        while next < frames.end {
            let Some(section) = self.memmap.section(next) else {
                return false;
            };
            let end = (section.first + section.pages as u64).min(frames.end);
            let here: Vec<u64> = (next..end).collect();
            let mut kept = 0;
            judge.frames(&section, &here, |_, _, verdict, _| {
                let own = matches!(verdict.class, PageClass::Reserved | PageClass::Kernel);
                kept += usize::from(own);
            });
            if kept != here.len() {
                return false;
            }
            next = end;
        }
        true
    }

    /// Why a page has the class that it has in `classes`.
    pub fn explain(&self, classes: &Classes, pfn: u64) -> Explanation {
        let class = classes.get(pfn).unwrap_or(PageClass::Unmanaged);
        let mut told = Explanation {
            pfn,
            class,
            reason: Reason::NoStructPage,
            head: pfn,
            span: 1,
        };
        if let Some(section) = self.memmap.section(pfn) {
            Judge::new(self).frames(&section, &[pfn], |_, head, verdict, _| {
                let reason = match (class, verdict.class) {
                    (PageClass::Zero, _) => Reason::Zero,
                    (PageClass::Free, PageClass::Unknown) => Reason::PerCpuList,
                    (PageClass::Hugetlb, PageClass::Unknown) => Reason::Hugetlb,
                    (PageClass::Unknown, found)
                        if mendable(found) && self.found_by().contains(&pfn) =>
                    {
                        Reason::Vmcoreinfo
                    }
                    _ => verdict.reason,
                };
                told = Explanation {
                    reason,
                    head,
                    span: verdict.span,
                    ..told
                };
            });
        }
        told
    }
}

/// Whether the guest can do without pages of a class.
fn mendable(class: PageClass) -> bool {
    ClassSet::MENDABLE.contains(class)
}
