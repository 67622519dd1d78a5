//! The judgement of every page: what its struct page says, in an order in which the first that holds decides. Works on one
//! section at a time, sections side by side. In doubt a page is critical.

use std::collections::HashSet;
use std::ops::Range;

use super::Guest;
use super::cache::Cache;
use super::class::PageClass;
use super::flags::Kind;
use super::memmap::Section;
use super::mend::Edit;
use super::page::{Page, Pages};
use super::paging::Translations;
use super::reason::Reason;

/// No compound page is larger than 2^30 frames.
const ORDER_MAX: u32 = 30;

/// Heads of lists that are kept a section; a guest has a few dozen.
const HEADS_MAX: usize = 4096;

/// What is found of one run of frames.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verdict {
    pub class: PageClass,
    pub reason: Reason,
    /// Frames from the judged one for which it holds, at least one.
    pub span: u64,
}

impl Verdict {
    fn one(class: PageClass, reason: Reason) -> Verdict {
        Verdict {
            class,
            reason,
            span: 1,
        }
    }
}

/// The judgement of one section.
pub(super) struct Judged {
    pub first: u64,
    pub classes: Vec<PageClass>,
    /// A run that goes beyond the section.
    pub beyond: Option<(Range<u64>, PageClass)>,
    /// What the first pages of lists point back to.
    pub heads: Vec<u64>,
    /// Struct pages that contradict themselves or others.
    pub contradictions: u64,
    /// Struct pages that were read.
    pub pages: u64,
}

/// Judges pages of one guest. One a thread.
pub(super) struct Judge<'g> {
    guest: &'g Guest<'g>,
    translations: Translations<'g>,
    cache: Option<Cache<'g>>,
    /// Room for struct pages that do not lie together.
    buffer: Vec<u8>,
}

impl<'g> Judge<'g> {
    pub fn new(guest: &'g Guest<'g>) -> Judge<'g> {
        let cache = guest.cache.as_ref().filter(|_| guest.flags.can_prove());
        let btrfs_mark = guest.kernel.since(6, 1);
        Judge {
            guest,
            translations: Translations::new(guest.memory, guest.kernel.tables),
            cache: cache
                .map(|shape| Cache::new(shape, &guest.flags, guest.kernel.page_shift, btrfs_mark)),
            buffer: Vec::new(),
        }
    }

    /// Judges a whole section.
    pub fn section(&mut self, section: &Section) -> Judged {
        let guest = self.guest;
        let mut judged = Judged {
            first: section.first,
            classes: vec![PageClass::Unknown; section.pages],
            beyond: None,
            heads: Vec::new(),
            contradictions: 0,
            pages: 0,
        };
        let mut heads = HashSet::new();
        self.each(section, false, |at, verdict, pages, _| {
            judged.pages += 1;
            judged.contradictions += u64::from(matches!(
                verdict.reason,
                Reason::BrokenBuddy | Reason::BrokenCompound
            ));
            if verdict.reason == Reason::Idle
                && heads.len() < HEADS_MAX
                && let Some((_, before)) = pages.links(at)
                && !self_contained(guest, before)
            {
                heads.insert(before);
            }
            let end = section.first + at as u64 + verdict.span;
            let section_end = section.first + section.pages as u64;
            let slots = judged
                .classes
                .get_mut(at..(end.min(section_end) - section.first) as usize);
            slots.unwrap_or_default().fill(verdict.class);
            if end > section_end {
                judged.beyond = Some((section_end..end, verdict.class));
            }
        });
        judged.heads = heads.into_iter().collect();
        judged
    }

    /// The verdicts on single frames of one section, ascending, each with the frame from which it holds and the edits that
    /// mend it.
    pub fn frames(
        &mut self,
        section: &Section,
        wanted: &[u64],
        mut tell: impl FnMut(u64, u64, Verdict, &[Edit]),
    ) {
        let mut left = wanted.iter().copied().peekable();
        self.each(section, true, |at, verdict, _, edits| {
            let first = section.first + at as u64;
            while left.next_if(|&pfn| pfn < first).is_some() {}
            while let Some(pfn) = left.next_if(|&pfn| pfn < first + verdict.span) {
                tell(pfn, first, verdict, edits);
            }
        });
    }

    fn each(
        &mut self,
        section: &Section,
        mend: bool,
        mut tell: impl FnMut(usize, Verdict, Pages<'_>, &[Edit]),
    ) {
        let guest = self.guest;
        let mut buffer = std::mem::take(&mut self.buffer);
        let (bytes, absent) =
            guest
                .memmap
                .load(guest.memory, &guest.kernel.tables, section, &mut buffer);
        let pages = Pages {
            bytes,
            shape: &guest.shape,
            map: section.map,
            first: section.first,
        };
        let size = guest.shape.size;
        let mut absent = absent
            .into_iter()
            .map(|range| range.start / size..range.end.div_ceil(size))
            .peekable();
        let mut edits = Vec::new();
        let mut at = 0;
        while at < section.pages {
            while absent.next_if(|range| range.end <= at).is_some() {}
            edits.clear();
            let verdict = match absent.peek() {
                Some(range) if range.contains(&at) => Verdict {
                    class: PageClass::Unmanaged,
                    reason: Reason::NoStructPage,
                    span: (range.end - at) as u64,
                },
                _ => self.page(pages, at, mend.then_some(&mut edits)),
            };
            tell(at, verdict, pages, &edits);
            at += usize::try_from(verdict.span)
                .unwrap_or(usize::MAX)
                .clamp(1, section.pages - at);
        }
        self.buffer = buffer;
    }

    fn page(&mut self, pages: Pages<'_>, at: usize, edits: Option<&mut Vec<Edit>>) -> Verdict {
        let flags = &self.guest.flags;
        let Some(page) = pages.get(at) else {
            return Verdict::one(PageClass::Unmanaged, Reason::NoStructPage);
        };
        if page.is_tail() {
            return Verdict::one(PageClass::Unknown, Reason::OrphanTail);
        }
        if page.flags & flags.hwpoison != 0 {
            return Verdict::one(PageClass::Unknown, Reason::HwPoison);
        }
        let kind = self.guest.types.kind(page.mapcount);
        if kind == Some(Kind::Buddy) {
            return self.buddy(pages, at, &page);
        }
        let mut order = 0;
        if page.flags & flags.head != 0 {
            let pfn = pages.first + at as u64;
            match pages.order(at) {
                Some(found)
                    if (1..=ORDER_MAX).contains(&found) && pfn.is_multiple_of(1 << found) =>
                {
                    order = found
                }
                _ if pages.is_fake_head(at, self.guest.page_shift()) => {
                    return Verdict::one(PageClass::Unknown, Reason::OrphanTail);
                }
                _ => return Verdict::one(PageClass::Unknown, Reason::BrokenCompound),
            }
        }
        let (class, reason) = self.use_of(pages, at, &page, order, kind, edits);
        Verdict {
            class,
            reason,
            span: 1 << order,
        }
    }

    /// A block of the buddy allocator: its first page carries the order, and no page of it may be in use.
    fn buddy(&self, pages: Pages<'_>, at: usize, page: &Page) -> Verdict {
        let broken = Verdict::one(PageClass::Unknown, Reason::BrokenBuddy);
        let pfn = pages.first + at as u64;
        let order = page.private;
        if order >= u64::from(self.guest.free_orders) || !pfn.is_multiple_of(1 << order) {
            return broken;
        }
        let span = 1usize << order;
        let in_use = |index: usize| {
            let Some(page) = pages.get(index) else {
                return true;
            };
            let typed = index > at && page.mapcount != u32::MAX;
            page.refcount != 0
                || typed
                || page.flags & (self.guest.flags.lru | self.guest.flags.reserved) != 0
        };
        if at + span > pages.len() || (at..at + span).any(in_use) {
            return broken;
        }
        Verdict {
            class: PageClass::Free,
            reason: Reason::Buddy,
            span: span as u64,
        }
    }

    fn use_of(
        &mut self,
        pages: Pages<'_>,
        at: usize,
        page: &Page,
        order: u32,
        kind: Option<Kind>,
        edits: Option<&mut Vec<Edit>>,
    ) -> (PageClass, Reason) {
        let guest = self.guest;
        let flags = &guest.flags;
        let has = |mask: u64| page.flags & mask != 0;
        // Slab first: its counters lie where others keep the address space.
        if has(flags.slab) {
            return (PageClass::Slab, Reason::Slab);
        }
        match kind {
            Some(Kind::Slab) => return (PageClass::Slab, Reason::Slab),
            Some(Kind::Hugetlb) => return (PageClass::Hugetlb, Reason::Hugetlb),
            Some(Kind::Table) => return (PageClass::PageTable, Reason::PageTable),
            Some(Kind::Offline) if order == 0 => return (PageClass::Offline, Reason::Offline),
            Some(_) => return (PageClass::Kernel, Reason::OtherType),
            None => {}
        }
        if has(flags.reserved) {
            return (PageClass::Reserved, Reason::Reserved);
        }
        if page.refcount == 0 {
            return (PageClass::Unknown, Reason::Idle);
        }
        match page.mapping & 3 {
            0 => {}
            2 => return (PageClass::Kernel, Reason::Movable),
            _ => return (PageClass::Anon, Reason::Anonymous),
        }
        if has(flags.swapbacked) && has(flags.swapcache) {
            return (PageClass::Anon, Reason::SwapCache);
        }
        if page.mapping == 0 || !has(flags.lru) {
            return (PageClass::Kernel, Reason::KernelPage);
        }
        if has(flags.swapbacked) {
            return (PageClass::Shmem, Reason::SwapBacked);
        }
        if has(flags.dirty | flags.writeback | flags.locked) {
            return (PageClass::CacheDirty, Reason::Dirty);
        }
        let large = (order > 0).then(|| pages.large_mapcount(at)).flatten();
        if page.mapcount != u32::MAX || large.is_some_and(|count| count != u32::MAX) {
            return (PageClass::CacheMapped, Reason::Mapped);
        }
        if !has(flags.uptodate) {
            return (PageClass::CacheKept, Reason::NotUptodate);
        }
        let Some(cache) = &mut self.cache else {
            return (PageClass::CacheKept, Reason::NoBtf);
        };
        if !whole(pages, at, order) {
            return (PageClass::Unknown, Reason::BrokenCompound);
        }
        match cache.judge(&mut self.translations, pages, at, order, edits) {
            Ok(reason) => (PageClass::CacheClean, reason),
            Err(reason) => (PageClass::CacheKept, reason),
        }
    }
}

/// Whether a compound page's tails are all its own, and nobody refers to them apart from it.
fn whole(pages: Pages<'_>, head: usize, order: u32) -> bool {
    let Some(end) = 1usize
        .checked_shl(order)
        .and_then(|span| head.checked_add(span))
    else {
        return false;
    };
    let own = |index: usize| {
        pages.is_tail_of(index, head) && pages.get(index).is_some_and(|tail| tail.refcount == 0)
    };
    end <= pages.len() && (head + 1..end).all(own)
}

/// Whether a pointer leads nowhere that the head of a list could be: to another struct page, or to no kernel address.
fn self_contained(guest: &Guest<'_>, pointer: u64) -> bool {
    !pointer.is_multiple_of(8) || pointer >> 55 == 0 || guest.memmap.spans(pointer)
}
