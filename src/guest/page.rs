//! One struct page's words, out of a section's bytes. Knows what they are called and not what they mean.

use super::memory::{u32_at, u64_at};
use super::shape::{OrderAt, PageShape};

/// The struct pages of one section.
#[derive(Clone, Copy)]
pub(super) struct Pages<'b> {
    pub bytes: &'b [u8],
    pub shape: &'b PageShape,
    /// Virtual address of the first.
    pub map: u64,
    /// Frame of the first.
    pub first: u64,
}

/// What every judgement needs of a struct page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    pub flags: u64,
    pub refcount: i32,
    pub mapcount: u32,
    pub mapping: u64,
    pub private: u64,
    pub compound: u64,
}

impl Page {
    #[inline]
    pub fn is_tail(&self) -> bool {
        self.compound & 1 != 0
    }
}

impl<'b> Pages<'b> {
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.shape.size
    }

    #[inline]
    fn one(&self, index: usize) -> Option<&'b [u8]> {
        let at = index.checked_mul(self.shape.size)?;
        self.bytes.get(at..at.checked_add(self.shape.size)?)
    }

    #[inline]
    pub fn get(&self, index: usize) -> Option<Page> {
        let bytes = self.one(index)?;
        Some(Page {
            flags: u64_at(bytes, self.shape.flags)?,
            refcount: u32_at(bytes, self.shape.refcount)? as i32,
            mapcount: u32_at(bytes, self.shape.mapcount)?,
            mapping: u64_at(bytes, self.shape.mapping)?,
            private: u64_at(bytes, self.shape.private)?,
            compound: u64_at(bytes, self.shape.compound)?,
        })
    }

    #[inline]
    pub fn address(&self, index: usize) -> u64 {
        self.map.wrapping_add((index * self.shape.size) as u64)
    }

    /// The two pointers of its place in a list: next, previous.
    #[inline]
    pub fn links(&self, index: usize) -> Option<(u64, u64)> {
        let bytes = self.one(index)?;
        Some((
            u64_at(bytes, self.shape.lru)?,
            u64_at(bytes, self.shape.lru + 8)?,
        ))
    }

    /// The order of the compound page that begins here.
    #[inline]
    pub fn order(&self, head: usize) -> Option<u32> {
        let second = self.one(head.checked_add(1)?)?;
        let order = match self.shape.order {
            OrderAt::SecondPage(at) => *second.get(at)?,
            OrderAt::SecondFlags => u64_at(second, self.shape.flags)? as u8,
        };
        Some(u32::from(order))
    }

    /// The flags of the second page of a compound one.
    #[inline]
    pub fn second_flags(&self, head: usize) -> Option<u64> {
        u64_at(self.one(head.checked_add(1)?)?, self.shape.flags)
    }

    /// Whether a page is the head of a compound page only by its looks. Where the struct pages of huge pages of hugetlbfs are
    /// optimised, the first page of them is mapped in the place of those that follow, and each of those begins with the head
    /// again (`page_fixed_fake_head` of `include/linux/page-flags.h`, before 7.1). The next is a tail of the head before.
    #[inline]
    pub fn is_fake_head(&self, index: usize, page_shift: u32) -> bool {
        let own = self.address(index);
        let second = index.checked_add(1).and_then(|second| self.one(second));
        let word = second.and_then(|bytes| u64_at(bytes, self.shape.compound));
        let before = |word: u64| word & 1 == 1 && word < own;
        own.is_multiple_of(1 << page_shift) && word.is_some_and(before)
    }

    /// Mappings of a whole folio, less one, where the kernel counts them.
    #[inline]
    pub fn large_mapcount(&self, head: usize) -> Option<u32> {
        u32_at(self.one(head.checked_add(1)?)?, self.shape.large_mapcount?)
    }

    /// Whether the page is a tail of the compound page that begins at `head`. Tails point to their head; from 7.1 those of
    /// kernels with optimised huge pages hold a mask instead, which leads from the tail's own address to the head's.
    #[inline]
    pub fn is_tail_of(&self, index: usize, head: usize) -> bool {
        let Some(word) = self
            .one(index)
            .and_then(|bytes| u64_at(bytes, self.shape.compound))
        else {
            return false;
        };
        let (pointer, to) = (word & !1, self.address(head));
        let is_mask = pointer != 0 && pointer == u64::MAX << pointer.trailing_zeros();
        word & 1 == 1 && (pointer == to || (is_mask && self.address(index) & pointer == to))
    }
}
