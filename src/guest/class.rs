//! The classes of pages, what each is worth by default, and the table of a guest's pages. Knows nothing of how a class
//! is found.

use std::fmt;
use std::ops::Range;

/// What a page's class means for its protection, before a policy has its say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The guest cannot go on without it.
    Critical,
    /// The guest does without it, once mended.
    Expendable,
    /// There is nothing to store.
    NotStored,
}

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $tier:ident;)*) => {
        /// What the guest uses a page for. The numbers are stable: they are what a table of one byte a page holds.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum PageClass { $($(#[$doc])* $name = $number,)* }

        impl PageClass {
            /// All classes, in the order of their numbers.
            pub const ALL: &[PageClass] = &[$(PageClass::$name,)*];

            /// The name that people and policies use.
            pub fn name(self) -> &'static str {
                match self { $(PageClass::$name => $text,)* }
            }

            /// The tier that the class has if no policy says otherwise.
            pub fn tier(self) -> Tier {
                match self { $(PageClass::$name => Tier::$tier,)* }
            }

            /// The class of a number, as a table of bytes holds it.
            pub fn from_number(number: u8) -> Option<PageClass> {
                match number { $($number => Some(PageClass::$name),)* _ => None }
            }
        }
    };
}

classes! {
    /// Nothing proves what the page is: frames with a reference count of zero that are on no list, contradictions,
    /// frames that a memory error took out of use.
    #[default]
    Unknown = 0, "unknown", Critical;
    /// Holds only zeros, whatever it is used for. Found by who knows the bytes, never here.
    Zero = 1, "zero", NotStored;
    /// In the buddy allocator or on a processor's list of free pages.
    Free = 2, "free", Expendable;
    /// Given back to the hypervisor: ballooned, or unplugged by virtio-mem.
    Offline = 3, "offline", Expendable;
    /// Page cache that the guest can fetch again from its disk, proved page by page.
    CacheClean = 4, "cache-clean", Expendable;
    /// Clean page cache that fails some part of that proof.
    CacheKept = 5, "cache-kept", Critical;
    /// Page cache that some process has mapped.
    CacheMapped = 6, "cache-mapped", Critical;
    /// Page cache that is dirty, being written or locked.
    CacheDirty = 7, "cache-dirty", Critical;
    /// Memory of processes, swap cache among it.
    Anon = 8, "anon", Critical;
    /// tmpfs, shared memory, the first root.
    Shmem = 9, "shmem", Critical;
    /// The kernel's small objects, and its large ones that come the same way.
    Slab = 10, "slab", Critical;
    /// Page tables.
    PageTable = 11, "page-table", Critical;
    /// Any other page that the kernel holds: stacks, vmalloc, drivers, per-CPU areas.
    Kernel = 12, "kernel", Critical;
    /// Never handed to the allocator: the kernel's image, the memory map, firmware tables.
    Reserved = 13, "reserved", Critical;
    /// Huge pages of hugetlbfs, in use or in its pool.
    Hugetlb = 14, "hugetlb", Critical;
    /// Guest memory that the kernel has no struct page for.
    Unmanaged = 15, "unmanaged", Critical;
}

/// Some of the classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClassSet(u32);

impl ClassSet {
    /// The classes that a guest can be mended to do without. No other may be called expendable.
    pub const MENDABLE: ClassSet = ClassSet(
        1 << PageClass::Free as u32
            | 1 << PageClass::Offline as u32
            | 1 << PageClass::CacheClean as u32,
    );

    /// None at all.
    pub const EMPTY: ClassSet = ClassSet(0);

    /// Whether a class is among them.
    pub fn contains(self, class: PageClass) -> bool {
        self.0 >> (class as u32) & 1 != 0
    }

    /// These and one more.
    pub fn with(self, class: PageClass) -> ClassSet {
        ClassSet(self.0 | 1 << class as u32)
    }

    /// These without one.
    pub fn without(self, class: PageClass) -> ClassSet {
        ClassSet(self.0 & !(1 << class as u32))
    }

    /// The classes, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = PageClass> {
        let all = PageClass::ALL.iter().copied();
        all.filter(move |&class| self.contains(class))
    }

    /// A bit for each class, the one of its number.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The set of these bits; nothing if one stands for no class.
    pub fn from_bits(bits: u32) -> Option<ClassSet> {
        let set = ClassSet(bits);
        let known = set.iter().fold(ClassSet::EMPTY, ClassSet::with);
        (known == set).then_some(set)
    }
}

impl fmt::Display for ClassSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, class) in self.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            f.write_str(class.name())?;
        }
        Ok(())
    }
}

impl fmt::Display for PageClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One class for every page frame of the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    page_shift: u32,
    /// Page frames of each range of memory, ascending, and where the range begins in `numbers`.
    ranges: Vec<(Range<u64>, usize)>,
    numbers: Vec<PageClass>,
}

impl Classes {
    /// A table for ranges of guest-physical bytes in which no page has a struct page yet. A frame that lies only partly in a
    /// range is left out.
    pub(super) fn unmanaged(ranges: &[Range<u64>], page_shift: u32) -> Classes {
        let mut frames = Vec::new();
        let mut len = 0usize;
        for range in ranges {
            let first = range
                .start
                .checked_add((1 << page_shift) - 1)
                .map_or(u64::MAX, |end| end)
                >> page_shift;
            let last = range.end >> page_shift;
            if first < last {
                frames.push((first..last, len));
                len = len.saturating_add((last - first) as usize);
            }
        }
        Classes {
            page_shift,
            ranges: frames,
            numbers: vec![PageClass::Unmanaged; len],
        }
    }

    /// A table for ranges of guest-physical bytes in which nothing is known of any page: what memory without a guest gets.
    pub fn unknown(ranges: &[Range<u64>], page_shift: u32) -> Classes {
        let mut classes = Classes::unmanaged(ranges, page_shift);
        classes.numbers.fill(PageClass::Unknown);
        classes
    }

    /// Log2 of the guest's page size in bytes.
    pub fn page_shift(&self) -> u32 {
        self.page_shift
    }

    /// How many page frames the table has.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there is no page at all.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// The ranges of page frames, ascending.
    pub fn frames(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(frames, _)| frames.clone())
    }

    fn place(&self, pfn: u64) -> Option<usize> {
        let after = self
            .ranges
            .partition_point(|(frames, _)| frames.start <= pfn);
        let (frames, at) = self.ranges.get(after.checked_sub(1)?)?;
        frames
            .contains(&pfn)
            .then(|| at + (pfn - frames.start) as usize)
    }

    /// The class of a page frame, or none where the guest has no memory.
    pub fn get(&self, pfn: u64) -> Option<PageClass> {
        self.numbers.get(self.place(pfn)?).copied()
    }

    /// The class of the page at a guest-physical address.
    pub fn at(&self, gpa: u64) -> Option<PageClass> {
        self.get(gpa >> self.page_shift)
    }

    /// Which ranges have any of these frames: most calls are about few frames, and there may be many ranges.
    pub(super) fn touching(&self, target: &Range<u64>) -> Range<usize> {
        let from = self
            .ranges
            .partition_point(|(frames, _)| frames.end <= target.start);
        let to = self
            .ranges
            .partition_point(|(frames, _)| frames.start < target.end);
        from..to.max(from)
    }

    /// Sets frames to one class; those outside the guest's memory fall away.
    pub(super) fn fill(&mut self, target: Range<u64>, class: PageClass) {
        let touched = self.touching(&target);
        for (frames, at) in self.ranges.get(touched).unwrap_or_default() {
            let (from, to) = (frames.start.max(target.start), frames.end.min(target.end));
            if from < to {
                let first = at + (from - frames.start) as usize;
                self.numbers
                    .get_mut(first..first + (to - from) as usize)
                    .unwrap_or_default()
                    .fill(class);
            }
        }
    }

    /// Sets the classes of consecutive frames; those outside the guest's memory fall away.
    pub(super) fn copy(&mut self, first: u64, classes: &[PageClass]) {
        let end = first.saturating_add(classes.len() as u64);
        let touched = self.touching(&(first..end));
        for (frames, at) in self.ranges.get(touched).unwrap_or_default() {
            let (from, to) = (frames.start.max(first), frames.end.min(end));
            if from >= to {
                continue;
            }
            let to_place = at + (from - frames.start) as usize;
            let source = classes.get((from - first) as usize..(to - first) as usize);
            let target = self
                .numbers
                .get_mut(to_place..to_place + (to - from) as usize);
            if let (Some(source), Some(target)) = (source, target) {
                target.copy_from_slice(source);
            }
        }
    }

    /// Calls every page zero that holds only zeros: `zeros_from` says how many frames from one on do, or at least that one does.
    /// It is asked in rising order. What the page is used for no longer matters then: there is nothing to lose.
    pub fn mark_zero(&mut self, mut zeros_from: impl FnMut(u64) -> u64) {
        for (frames, at) in &self.ranges {
            let mut pfn = frames.start;
            while pfn < frames.end {
                let zeros = zeros_from(pfn).min(frames.end - pfn);
                let first = at + (pfn - frames.start) as usize;
                self.numbers
                    .get_mut(first..first + zeros as usize)
                    .unwrap_or_default()
                    .fill(PageClass::Zero);
                pfn += zeros.max(1);
            }
        }
    }

    /// The class of the page at a guest-physical address, and how many pages from it on have that class and follow each
    /// other, up to a limit; at least one. Without memory there the class is none, for one page.
    pub fn run_at(&self, gpa: u64, limit: u64) -> (Option<PageClass>, u64) {
        let pfn = gpa >> self.page_shift;
        let after = self
            .ranges
            .partition_point(|(frames, _)| frames.start <= pfn);
        let range = after.checked_sub(1).and_then(|last| self.ranges.get(last));
        let Some((frames, at)) = range.filter(|(frames, _)| frames.contains(&pfn)) else {
            return (None, 1);
        };
        let first = at + (pfn - frames.start) as usize;
        let pages = (frames.end - pfn).min(limit.max(1)) as usize;
        let here = self.numbers.get(first..first + pages).unwrap_or_default();
        let class = here.first().copied();
        let same = here.iter().take_while(|&&other| Some(other) == class);
        (class, (same.count() as u64).max(1))
    }

    /// Every page frame with its class, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, PageClass)> + '_ {
        self.ranges
            .iter()
            .flat_map(|(frames, at)| frames.clone().zip(self.numbers.iter().skip(*at).copied()))
    }

    /// The classes of all frames, range after range.
    pub fn numbers(&self) -> &[PageClass] {
        &self.numbers
    }

    /// A table that was taken apart into [`Classes::frames`] and [`Classes::numbers`]; nothing if they do not belong together.
    pub fn restore(
        page_shift: u32,
        frames: Vec<Range<u64>>,
        numbers: Vec<PageClass>,
    ) -> Option<Classes> {
        let mut ranges: Vec<(Range<u64>, usize)> = Vec::with_capacity(frames.len());
        let mut at = 0usize;
        for frames in frames {
            let apart = ranges
                .last()
                .is_none_or(|(before, _)| before.end <= frames.start);
            let length = frames.end.checked_sub(frames.start).filter(|_| apart)?;
            ranges.push((frames, at));
            at = at.checked_add(usize::try_from(length).ok()?)?;
        }
        (at == numbers.len() && (10..=16).contains(&page_shift)).then_some(Classes {
            page_shift,
            ranges,
            numbers,
        })
    }

    /// Runs of consecutive page frames of one class, ascending.
    pub fn runs(&self) -> impl Iterator<Item = (Range<u64>, PageClass)> + '_ {
        let mut pages = self.iter().peekable();
        std::iter::from_fn(move || {
            let (first, class) = pages.next()?;
            let mut end = first + 1;
            while pages
                .next_if(|&(pfn, next)| pfn == end && next == class)
                .is_some()
            {
                end += 1;
            }
            Some((first..end, class))
        })
    }

    /// How many pages each class has, in the order of [`PageClass::ALL`].
    pub fn counts(&self) -> Vec<(PageClass, u64)> {
        let mut counts = [0u64; 256];
        for class in &self.numbers {
            if let Some(count) = counts.get_mut(*class as usize) {
                *count += 1;
            }
        }
        PageClass::ALL
            .iter()
            .map(|&class| (class, counts.get(class as usize).copied().unwrap_or(0)))
            .collect()
    }
}
