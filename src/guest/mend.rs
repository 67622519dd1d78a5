//! The mend: what to change in the memory that a guest resumes from, so that it does without the pages that are lost. Knows the
//! verdict on a page and nothing of how it came about.

use std::collections::BTreeMap;

use super::Guest;
use super::class::{Classes, PageClass};
use super::classify::Judge;
use super::error::MendError;
use super::reason::Reason;

/// One byte of guest memory that is to lose some bits. Edits of one byte add up, in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edit {
    /// Guest-physical address of the byte.
    pub gpa: u64,
    /// The bits that stay.
    pub and: u8,
}

/// One lost page that has to hold a certain byte throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fill {
    /// The page frame.
    pub pfn: u64,
    /// The byte: zero, or what the guest's allocator checks its free pages for.
    pub byte: u8,
}

/// All that mends a set of lost pages. It must be in what the guest reads before the guest first reads any of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mend {
    /// Bytes to change, one entry a byte, ascending.
    pub edits: Vec<Edit>,
    /// What each lost page reads as, ascending.
    pub fills: Vec<Fill>,
}

/// How many free pages are looked at to find what the guest fills them with: a few, and more if one of those is poisoned. A
/// guest that poisons does so with all of them, and each may cost the reading of a block.
const SAMPLES: [u64; 2] = [32, 512];

/// `PAGE_POISON` (`include/linux/poison.h`).
const POISON: u8 = 0xAA;

impl Guest<'_> {
    /// What mends the loss of these page frames, in any order. Refused if any of them is one that the guest cannot do
    /// without. `classes` must be this guest's: as found by [`Guest::classify`] on the same memory, pages that hold zeros
    /// marked or not.
    ///
    /// A folio becomes unread as a whole, even when one page of it is lost: the guest keeps one mark a folio.
    pub fn mend(&self, classes: &Classes, lost: &[u64]) -> Result<Mend, MendError> {
        let mut lost = lost.to_vec();
        lost.sort_unstable();
        lost.dedup();
        let mut fill = None;
        let mut mend = Mend::default();
        let mut cached = Vec::new();
        for &pfn in &lost {
            let class = classes.get(pfn).ok_or(MendError::NotMemory { pfn })?;
            let byte = match class {
                // Free pages may be checked for what they were filled with when they were freed.
                PageClass::Free => {
                    *fill.get_or_insert_with(|| self.fill_of_free_pages(classes).unwrap_or(0))
                }
                PageClass::Zero | PageClass::Offline => 0,
                PageClass::CacheClean => {
                    cached.push(pfn);
                    0
                }
                _ => {
                    return Err(MendError::NotRecoverable {
                        pfn,
                        class,
                        reason: self.explain(classes, pfn).reason,
                    });
                }
            };
            mend.fills.push(Fill { pfn, byte });
        }
        mend.edits = self.edits(&cached)?;
        Ok(mend)
    }

    /// The edits for pages of the file cache, ascending frames.
    fn edits(&self, cached: &[u64]) -> Result<Vec<Edit>, MendError> {
        let mut masks: BTreeMap<u64, u8> = BTreeMap::new();
        let mut refused = None;
        self.mend_cached(cached, |_, _, verdict| match verdict {
            Ok(edits) => {
                for edit in edits {
                    *masks.entry(edit.gpa).or_insert(u8::MAX) &= edit.and;
                }
            }
            Err(error) => {
                refused.get_or_insert(error);
            }
        });
        if let Some(error) = refused {
            return Err(error);
        }
        Ok(masks
            .into_iter()
            .map(|(gpa, and)| Edit { gpa, and })
            .collect())
    }

    /// Tells for each lost page of the file cache, given in ascending frames, the first frame of its folio and what mends that,
    /// or why nothing does. Each is judged again: the proof is made where it is used. Pages of one folio are told the same.
    pub fn mend_cached(
        &self,
        cached: &[u64],
        mut tell: impl FnMut(u64, u64, Result<&[Edit], MendError>),
    ) {
        let mut judge = Judge::new(self);
        let mut left = cached;
        while let Some((&pfn, after)) = left.split_first() {
            let Some(section) = self.memmap.section(pfn) else {
                tell(pfn, pfn, Err(MendError::NotMemory { pfn }));
                left = after;
                continue;
            };
            let end = section.first + section.pages as u64;
            let (here, rest) = left.split_at(left.partition_point(|&pfn| pfn < end));
            left = rest;
            let mut wanted = here.iter().copied().peekable();
            let unproved = |pfn| {
                let (class, reason) = (PageClass::Unknown, Reason::NoStructPage);
                Err(MendError::NotRecoverable { pfn, class, reason })
            };
            judge.frames(&section, here, |pfn, head, verdict, edits| {
                while let Some(passed) = wanted.next_if(|&other| other < pfn) {
                    tell(passed, passed, unproved(passed));
                }
                wanted.next();
                let (class, reason) = (verdict.class, verdict.reason);
                let told = match class {
                    PageClass::CacheClean => Ok(edits),
                    _ => Err(MendError::NotRecoverable { pfn, class, reason }),
                };
                tell(pfn, head, told);
            });
            for passed in wanted {
                tell(passed, passed, unproved(passed));
            }
        }
    }

    /// What the guest's allocator fills free pages with; none if no free page can be read. With `page_poison=1` it complains
    /// of any that differ; with `init_on_free=1` it hands them out as they are, so they must be zeros, and otherwise it
    /// does not matter.
    pub fn fill_of_free_pages(&self, classes: &Classes) -> Option<u8> {
        let free = || {
            classes
                .iter()
                .filter(|&(_, class)| class == PageClass::Free)
        };
        let count = free().count() as u64;
        let mut page = vec![0u8; 1 << self.page_shift()];
        let (mut poisoned, mut seen) = (0u64, 0u64);
        for samples in SAMPLES {
            (poisoned, seen) = (0, 0);
            for (pfn, _) in free().step_by((count / samples).max(1) as usize) {
                if self.memory.read(pfn << self.page_shift(), &mut page) {
                    seen += 1;
                    poisoned += u64::from(page.iter().all(|&byte| byte == POISON));
                }
            }
            if seen > 0 && poisoned == 0 {
                return Some(0);
            }
        }
        let fill = if 2 * poisoned > seen { POISON } else { 0 };
        (seen > 0).then_some(fill)
    }
}

impl Mend {
    /// What a byte at a guest-physical address becomes. Only for bytes that are not lost.
    pub fn apply(&self, gpa: u64, bytes: &mut [u8]) {
        let from = self.edits.partition_point(|edit| edit.gpa < gpa);
        for edit in self.edits.iter().skip(from) {
            match usize::try_from(edit.gpa - gpa)
                .ok()
                .and_then(|at| bytes.get_mut(at))
            {
                Some(byte) => *byte &= edit.and,
                None => break,
            }
        }
    }
}
