//! The free pages that every processor keeps for itself (`mm/page_alloc.c`). Their struct pages say nothing: no type, no
//! flags, no references, like pages in use that nobody counts. Only the list says that they are free.
//!
//! Where the lists lie is found from the pages: the first page of a list points back at the list's head. So no symbol of
//! the kernel is needed, and neither zones nor per-CPU areas. A set of lists counts only if each of its heads, one beside the other,
//! begins a list that is whole in both directions, and a walk through all of them meets exactly as many pages as the
//! set says that it holds.

use std::collections::HashSet;

use super::memmap::Memmap;
use super::memory::{u32_at, u64_at};
use super::paging::Translations;
use super::shape::{ListsShape, PageShape};

/// Heads that are looked at; a guest with 256 processors has some ten thousand lists.
const HEADS_MAX: usize = 1 << 16;
/// Heads that are gathered before those beyond `HEADS_MAX` are let go.
const GATHERED_MAX: usize = 4 * HEADS_MAX;
/// More pages than a set of lists ever holds.
const COUNT_MAX: u64 = 1 << 22;
/// Pages walked in all, sets tried and heads read, so that a guest that lies does not keep us.
pub(super) const STEPS_MAX: u64 = 1 << 24;
/// Lists of orders 0 to 3, three migration types each; what follows is for huge pages.
const SMALL_LISTS: usize = 12;

/// Adds heads that were found to those found before. Of more than are looked at, the lowest stay.
pub(super) fn gather(heads: &mut Vec<u64>, found: Vec<u64>) {
    heads.extend(found);
    if heads.len() > GATHERED_MAX {
        heads.sort_unstable();
        heads.dedup();
        heads.truncate(HEADS_MAX);
    }
}

/// A run of free pages: its first frame and its order.
pub(super) type FreeRun = (u64, u32);

pub(super) struct Lists<'a, 'm> {
    pub memmap: &'a Memmap,
    pub page: &'a PageShape,
    pub shape: &'a ListsShape,
    pub guest: Translations<'m>,
    /// Flags that no free page has.
    pub never: u64,
    pub steps: u64,
}

impl<'a, 'm> Lists<'a, 'm> {
    pub fn new(
        memmap: &'a Memmap,
        page: &'a PageShape,
        shape: &'a ListsShape,
        guest: Translations<'m>,
        never: u64,
    ) -> Lists<'a, 'm> {
        Lists {
            memmap,
            page,
            shape,
            guest,
            never,
            steps: 0,
        }
    }

    /// The runs on all lists whose heads are among `heads`: addresses that idle pages point back to.
    pub fn free(&mut self, heads: &[u64]) -> Vec<FreeRun> {
        let mut runs = Vec::new();
        let mut known: HashSet<u64> = HashSet::new();
        for &head in heads.iter().take(HEADS_MAX) {
            if known.contains(&head) {
                continue;
            }
            // Which of a set's lists it begins is not known: all are tried, and only the right one adds up.
            for list in 0..self.shape.count_of_lists as u64 {
                if self.steps > STEPS_MAX {
                    return runs;
                }
                let set = head.wrapping_sub(self.shape.lists as u64 + 16 * list);
                if let Some(found) = self.walk_set(set) {
                    runs.extend(found);
                    let first = set.wrapping_add(self.shape.lists as u64);
                    known.extend(
                        (0..self.shape.count_of_lists as u64)
                            .map(|list| first.wrapping_add(16 * list)),
                    );
                    break;
                }
            }
        }
        runs
    }

    /// Walks all lists of one processor and zone. Any contradiction, and none of their pages is free.
    fn walk_set(&mut self, set: u64) -> Option<Vec<FreeRun>> {
        self.steps += 1;
        let count = u64::from(self.guest.u32(set.checked_add(self.shape.count as u64)?)?);
        if count == 0 || count > COUNT_MAX {
            return None;
        }
        let mut runs = Vec::new();
        let mut pages = 0u64;
        for list in 0..self.shape.count_of_lists {
            let order = match (self.shape.orders, list) {
                (false, _) => 0,
                (true, list) if list < SMALL_LISTS => list as u32 / 3,
                (true, _) => self.shape.huge_order,
            };
            let head = set.checked_add((self.shape.lists + 16 * list) as u64)?;
            self.steps += 1;
            let mut before = head;
            let mut entry = self.guest.u64(head)?;
            while entry != head {
                self.steps += 1;
                pages += 1 << order;
                if pages > count || self.steps > STEPS_MAX {
                    return None;
                }
                let pfn = self
                    .memmap
                    .frame(entry.wrapping_sub(self.page.lru as u64))?;
                if self.guest.u64(entry.checked_add(8)?)? != before
                    || pfn % (1 << order) != 0
                    || !self.is_idle(entry, order)
                {
                    return None;
                }
                runs.push((pfn, order));
                before = entry;
                entry = self.guest.u64(entry)?;
            }
            if self.guest.u64(head.checked_add(8)?)? != before {
                return None;
            }
        }
        (pages == count).then_some(runs)
    }

    /// No references, no mappings, no type, and no flag that a free page never has: all pages of the run.
    fn is_idle(&mut self, entry: u64, order: u32) -> bool {
        let mut bytes = [0u8; 256];
        let first = entry.wrapping_sub(self.page.lru as u64);
        let Some(bytes) = bytes.get_mut(..self.page.size) else {
            return false;
        };
        self.steps += (1 << order) - 1;
        (0..1u64 << order).all(|number| {
            let page = first.wrapping_add(number * self.page.size as u64);
            self.guest.read(page, bytes)
                && u32_at(bytes, self.page.refcount) == Some(0)
                && u32_at(bytes, self.page.mapcount) == Some(u32::MAX)
                && u64_at(bytes, self.page.flags).is_some_and(|flags| flags & self.never == 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_any_number_of_heads_the_lowest_are_kept() {
        let mut heads = Vec::new();
        // The lowest come neither first nor last.
        for section in (0..200u64).map(|n| (n * 7 + 100) % 200) {
            let found = (0..4096).map(|head| (section * 4000 + head) * 16);
            gather(&mut heads, found.collect());
            assert!(heads.capacity() <= 2 * (GATHERED_MAX + 4096));
        }
        heads.sort_unstable();
        heads.dedup();
        let lowest: Vec<u64> = (0..HEADS_MAX as u64).map(|head| head * 16).collect();
        assert_eq!(heads[..HEADS_MAX], lowest);
    }
}
