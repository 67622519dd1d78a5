//! The free pages that every processor keeps for itself (`mm/page_alloc.c`). Their struct pages say nothing: no type, no
//! flags, no references, like pages in use that nobody counts. Only the list says that they are free.
//!
//! Where the lists lie is found from the pages: the first page of a list points back at the list's head, which lies in
//! a processor's own memory, a multiple of the page size away from the per-CPU pointer of its zone. So no symbol of the
//! kernel is needed. A set of lists counts only if a walk through all of them meets exactly as many pages as it says that
//! it holds.

use std::collections::HashSet;

use super::kernel::Kernel;
use super::memmap::Memmap;
use super::memory::u32_at;
use super::paging::Translations;
use super::shape::{ListsShape, PageShape};

/// Nodes of NUMA that are looked at; kernels have at most 1024.
const NODES_MAX: u64 = 1024;
/// Zones of a node: DMA, DMA32, normal, movable, device.
const ZONES_MAX: u64 = 6;
/// More pages than a set of lists ever holds.
const COUNT_MAX: u64 = 1 << 22;
/// Pages walked in all, so that a guest that lies does not keep us.
const STEPS_MAX: u64 = 1 << 24;
/// Lists of orders 0 to 3, three migration types each; what follows is for huge pages.
const SMALL_LISTS: usize = 12;

/// A run of free pages: its first frame and its order.
pub(super) type FreeRun = (u64, u32);

pub(super) struct Lists<'a, 'm> {
    pub kernel: &'a Kernel,
    pub memmap: &'a Memmap,
    pub page: &'a PageShape,
    pub shape: &'a ListsShape,
    pub guest: Translations<'m>,
    pub steps: u64,
}

impl<'a, 'm> Lists<'a, 'm> {
    pub fn new(
        kernel: &'a Kernel,
        memmap: &'a Memmap,
        page: &'a PageShape,
        shape: &'a ListsShape,
        guest: Translations<'m>,
    ) -> Lists<'a, 'm> {
        Lists {
            kernel,
            memmap,
            page,
            shape,
            guest,
            steps: 0,
        }
    }

    /// The runs on all lists whose heads are among `heads`: addresses that idle pages point back to.
    pub fn free(&mut self, heads: &[u64]) -> Vec<FreeRun> {
        let mut runs = Vec::new();
        let mut seen = HashSet::new();
        for pointer in self.zone_pointers() {
            for &head in heads {
                // Which list it is follows from the distance, for areas of processors lie whole pages apart.
                let distance = head
                    .wrapping_sub(pointer)
                    .wrapping_sub(self.shape.lists as u64)
                    & 0xFFF;
                let list = (distance / 16) as usize;
                if distance % 16 != 0 || list >= self.shape.count_of_lists {
                    continue;
                }
                let set = head
                    .wrapping_sub(distance)
                    .wrapping_sub(self.shape.lists as u64);
                if seen.insert(set)
                    && let Some(found) = self.walk_set(set)
                {
                    runs.extend(found);
                }
            }
        }
        runs
    }

    /// The per-CPU pointers of all zones of all nodes.
    fn zone_pointers(&mut self) -> Vec<u64> {
        let info = &self.kernel.info;
        let mut nodes = Vec::new();
        if let Some(table) = info.symbol("node_data") {
            let count = info
                .length("node_data")
                .map_or(1, |n| n as u64)
                .min(NODES_MAX);
            nodes.extend(
                (0..count)
                    .filter_map(|node| self.guest.u64(table.checked_add(8 * node)?))
                    .filter(|&va| va != 0),
            );
        } else {
            nodes.extend(info.symbol("contig_page_data"));
        }
        let mut pointers = Vec::new();
        for node in nodes {
            let zones = self
                .guest
                .u32(node.wrapping_add(self.shape.nr_zones as u64))
                .map_or(0, u64::from);
            for zone in 0..zones.min(ZONES_MAX) {
                let at =
                    node.wrapping_add(self.shape.zones as u64 + zone * self.shape.zone_size as u64);
                pointers.extend(
                    self.guest
                        .u64(at.wrapping_add(self.shape.pointer as u64))
                        .filter(|&pointer| pointer != 0),
                );
            }
        }
        pointers
    }

    /// Walks all lists of one processor and zone. Any contradiction, and none of their pages is free.
    fn walk_set(&mut self, set: u64) -> Option<Vec<FreeRun>> {
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
                (true, _) => self.kernel.page_shift - 3,
            };
            let head = set.checked_add((self.shape.lists + 16 * list) as u64)?;
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
                    || !self.is_idle(entry)
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

    /// No references, no mappings, no type.
    fn is_idle(&mut self, entry: u64) -> bool {
        let mut bytes = [0u8; 256];
        let page = entry.wrapping_sub(self.page.lru as u64);
        let Some(bytes) = bytes.get_mut(..self.page.size) else {
            return false;
        };
        self.guest.read(page, bytes)
            && u32_at(bytes, self.page.refcount) == Some(0)
            && u32_at(bytes, self.page.mapcount) == Some(u32::MAX)
    }
}
