//! Which of several views of one memory is right: formats that keep RAM as one run do not say where the gap in it is. A
//! kernel whose own structures lie low is found in a wrong layout, too, and everything behind the gap would then be taken
//! for something else. So a layout is right only if the kernel has no memory beside it, and no other layout fits as well.
//! Knows kernels and sections, and no pages.

use std::ops::Range;

use super::Guest;
use super::btf::Btf;
use super::error::GuestError;
use super::kernel::{Hints, Kernel};
use super::memmap::{Memmap, knows_more};
use super::memory::GuestMemory;
use super::shape::{self, PageShape};

/// How far apart the places are at which two views are compared, in bytes, and how much is read at each.
const SAMPLE_STEP: u64 = 1 << 20;
const SAMPLE: usize = 64;

/// A kernel that passed its checks in one view of memory.
pub(super) struct Candidate<'m> {
    pub memory: &'m dyn GuestMemory,
    pub kernel: Kernel,
    pub memmap: Memmap,
}

impl<'m> Candidate<'m> {
    /// Looks for a kernel in one view.
    pub fn of(memory: &'m dyn GuestMemory, hints: &Hints) -> Result<Candidate<'m>, GuestError> {
        let kernel = Kernel::find(memory, hints)?;
        let size = PageShape::of(&kernel, None)?.size;
        let memmap = Memmap::find(&kernel, memory, size)?;
        Ok(Candidate {
            memory,
            kernel,
            memmap,
        })
    }

    /// The one view of several that is right, with its place among them. If none has a kernel, the error that came furthest.
    pub fn among(
        views: impl IntoIterator<Item = &'m dyn GuestMemory>,
        hints: &Hints,
    ) -> Result<(usize, Candidate<'m>), GuestError> {
        let mut failure = GuestError::NoVmcoreinfo;
        let mut found: Vec<(usize, Candidate<'m>)> = Vec::new();
        let mut views_seen = 0;
        for (place, view) in views.into_iter().enumerate() {
            views_seen = place + 1;
            match Candidate::of(view, hints) {
                Ok(candidate) => found.push((place, candidate)),
                // A kernel that is left of an earlier boot may be found in a wrong layout, alone.
                Err(error @ (GuestError::TwoKernels | GuestError::TooManyPlaces(_))) => {
                    return Err(error);
                }
                Err(error) => failure = error.further(failure),
            }
        }
        // One view: the file says itself where its memory lies.
        if views_seen > 1 && !found.is_empty() {
            let first = found.first().map(|(_, candidate)| candidate.kernel.clone());
            if first.is_some_and(|first| found.iter().any(|(_, other)| !other.kernel.is(&first))) {
                return Err(GuestError::TwoKernels);
            }
            found.retain(|(_, candidate)| !knows_more(&candidate.kernel, candidate.memory));
            failure = GuestError::LayoutUnsure;
        }
        // Of equals the first, for the likelier layouts come first.
        let best = found
            .iter()
            .enumerate()
            .max_by_key(|(at, (_, candidate))| {
                let (known, all) = (candidate.known_bytes(), candidate.bytes());
                (known, u64::MAX - all, usize::MAX - at)
            })
            .map(|(at, _)| at)
            .ok_or(failure)?;
        let (place, best) = found.swap_remove(best);
        if found.iter().all(|(_, other)| best.agrees(other)) {
            Ok((place, best))
        } else {
            Err(GuestError::LayoutUnsure)
        }
    }

    /// Bytes of memory.
    fn bytes(&self) -> u64 {
        let length = |range: &Range<u64>| range.end - range.start;
        self.memory.ranges().iter().map(length).sum()
    }

    /// Bytes of memory that lie in sections of the kernel.
    fn known_bytes(&self) -> u64 {
        self.memmap
            .bytes_within(self.memory.ranges(), self.kernel.page_shift)
    }

    /// Whether all memory that the kernel knows lies in the same places of the file, as far as can be seen.
    fn agrees(&self, other: &Candidate<'_>) -> bool {
        let end = self.memmap.end().max(other.memmap.end()) << self.kernel.page_shift;
        let (ours, theirs) = (
            clipped(self.memory.ranges(), end),
            clipped(other.memory.ranges(), end),
        );
        let (mut one, mut two) = ([0; SAMPLE], [0; SAMPLE]);
        ours == theirs
            && ours.iter().all(|range| {
                (range.start..range.end.saturating_sub(SAMPLE as u64))
                    .step_by(SAMPLE_STEP as usize)
                    .all(|gpa| {
                        self.memory.read(gpa, &mut one) == other.memory.read(gpa, &mut two)
                            && one == two
                    })
            })
    }

    /// The guest, with what its kernel says of its types. Behind the image of a kernel that carries none there may be
    /// another's, in a file that was read or in free pages: what lies in such memory may be lost, and says nothing of this
    /// kernel.
    pub fn understood(self) -> Result<Guest<'m>, GuestError> {
        let btf = Btf::search(self.memory, &self.kernel, shape::WANTED);
        let plain = Guest::with_types(self, None)?;
        let Some(btf) = btf.filter(|btf| plain.keeps(btf.place())) else {
            return Ok(plain);
        };
        let candidate = Candidate {
            memory: plain.memory,
            kernel: plain.kernel,
            memmap: plain.memmap,
        };
        Guest::with_types(candidate, Some(&btf))
    }
}

/// The ranges up to an address.
fn clipped(ranges: &[Range<u64>], end: u64) -> Vec<Range<u64>> {
    let clip = |range: &Range<u64>| range.start..range.end.min(end);
    ranges
        .iter()
        .map(clip)
        .filter(|range| !range.is_empty())
        .collect()
}
