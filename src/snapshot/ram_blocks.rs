//! The RAM blocks of a QEMU stream, and where the guest may see them. QEMU names the memory of the guest,
//! of its firmware and of its devices alike; only the guest's is mapped. Knows names and lengths.

use std::collections::HashMap;

use super::address::Gpa;
use super::layout::{self, Layout, Machine, RamRange};
use super::map::Block;

/// How many blocks a stream may name. Guests have tens.
const MOST: usize = 1024;

/// How much RAM a stream may speak of, devices included: 2^46 bytes, the reach of x86 today.
const LARGEST: u64 = 1 << 46;

/// What QEMU says about one block.
#[derive(Clone, Debug)]
pub(super) struct RamBlock {
    pub(super) name: Vec<u8>,
    /// The number of the first page in RAM space.
    pub(super) first_page: u64,
    pub(super) pages: u64,
    /// The address that `x-ignore-shared` puts there; relative to whatever holds the block.
    pub(super) address: Option<u64>,
    /// Where `mapped-ram` keeps the pages.
    pub(super) mapped: Option<MappedBlock>,
}

/// Where `mapped-ram` keeps a block; file offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MappedBlock {
    pub(super) bitmap: u64,
    pub(super) pages: u64,
}

/// The list at the head of the section `ram`.
#[derive(Clone, Debug, Default)]
pub(super) struct RamBlocks {
    blocks: Vec<RamBlock>,
    by_name: HashMap<Vec<u8>, usize>,
    total_pages: u64,
}

impl RamBlocks {
    /// Adds a block of `length` bytes; false if it cannot be one.
    pub(super) fn push(&mut self, name: Vec<u8>, length: u64, page_size: u64) -> bool {
        let pages = length / page_size;
        let sound = length.is_multiple_of(page_size)
            && length <= LARGEST
            && (self.total_pages + pages) * page_size <= LARGEST
            && self.blocks.len() < MOST
            && self
                .by_name
                .insert(name.clone(), self.blocks.len())
                .is_none();
        if sound {
            let first_page = self.total_pages;
            self.blocks.push(RamBlock {
                name,
                first_page,
                pages,
                address: None,
                mapped: None,
            });
            self.total_pages += pages;
        }
        sound
    }

    /// The block that was added last.
    pub(super) fn last_mut(&mut self) -> Option<&mut RamBlock> {
        self.blocks.last_mut()
    }

    /// The pages of all blocks.
    pub(super) fn total_pages(&self) -> u64 {
        self.total_pages
    }

    pub(super) fn get(&self, index: usize) -> Option<&RamBlock> {
        self.blocks.get(index)
    }

    pub(super) fn find(&self, name: &[u8]) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &RamBlock> {
        self.blocks.iter()
    }

    /// The blocks for a reader of the map.
    pub(super) fn for_map(&self, page_size: u64) -> Vec<Block> {
        let block = |block: &RamBlock| Block {
            name: printable(&block.name),
            ram: block.first_page * page_size,
            length: block.pages * page_size,
        };
        self.blocks.iter().map(block).collect()
    }

    /// The layouts that the guest may have: one per layout of the machine and per way to say which blocks are
    /// its main memory. Never empty.
    pub(super) fn layouts(&self, machine: &str, page_size: u64) -> Vec<Layout> {
        let machine = Machine::of_qemu(machine);
        let guests: Vec<&RamBlock> = self
            .blocks
            .iter()
            .filter(|block| block.pages > 0 && may_be_guest(&block.name))
            .collect();
        let main = main_memory(&guests);
        let others: Vec<&RamBlock> = guests
            .iter()
            .copied()
            .filter(|block| main.iter().all(|main| main.first_page != block.first_page))
            .collect();
        let mut list = Vec::new();
        if !main.is_empty() {
            let alone = joined(machine, &main, page_size);
            // QEMU lists blocks by size, and addresses follow the numbers of nodes and the order of plugging, or are what
            // the user gave. So a stream with one more block has one place for it; of several nothing tells which
            // lies where, the guest knows memory in the place of each, and no check would find two of them exchanged.
            if let [other] = others.as_slice() {
                if let [main] = main.as_slice()
                    && !is_main(&main.name)
                {
                    // Two nodes: the kernel is found in its own alone where it belongs.
                    list.extend(joined(machine, &[main, other], page_size));
                    list.extend(joined(machine, &[other, main], page_size));
                }
                let module = |base| plugged(base, other, page_size);
                list.extend(alone.iter().filter_map(module));
            }
            list.extend(alone);
        }
        let mut distinct: Vec<Layout> = Vec::new();
        for layout in list {
            if !distinct
                .iter()
                .any(|known| known.ranges() == layout.ranges())
            {
                distinct.push(layout);
            }
        }
        distinct.truncate(64);
        if distinct.is_empty() {
            distinct.extend(Layout::new("no guest memory", []));
        }
        distinct
    }
}

/// The layouts of the machine for several blocks end to end.
fn joined(machine: Machine, blocks: &[&RamBlock], page_size: u64) -> Vec<Layout> {
    let total: u64 = blocks.iter().map(|block| block.pages * page_size).sum();
    let candidates = layout::candidates(machine, 0, total);
    let split = |candidate: Layout| {
        let mut ranges = Vec::new();
        let mut start = 0;
        for block in blocks {
            let length = block.pages * page_size;
            let mut done = 0;
            while done < length {
                let (gpa, left) = candidate.gpa_of(start + done)?;
                let part = left.min(length - done);
                let ram = block.first_page * page_size + done;
                ranges.push(RamRange {
                    gpa,
                    ram,
                    length: part,
                });
                done += part;
            }
            start += length;
        }
        let name = match blocks {
            [_] => candidate.name().to_owned(),
            _ => format!("{} blocks as one: {}", blocks.len(), candidate.name()),
        };
        Layout::new(name, ranges)
    };
    candidates.into_iter().filter_map(split).collect()
}

/// A module in the place that QEMU keeps for such: from the next GiB above all RAM, and above 4 GiB where RAM begins at 0
/// as on x86. See `pc_memory_init`, and `virt_set_memmap` of `hw/arm/virt.c`.
fn plugged(base: &Layout, module: &RamBlock, page_size: u64) -> Option<Layout> {
    let top = base
        .ranges()
        .iter()
        .map(|range| range.gpa.0 + range.length)
        .max()?;
    let from_zero = base.ranges().first().is_some_and(|range| range.gpa.0 == 0);
    let least = if from_zero { 4 << 30 } else { 0 };
    let at = top.max(least).checked_next_multiple_of(1 << 30)?;
    let mut ranges = base.ranges().to_vec();
    ranges.push(RamRange {
        gpa: Gpa(at),
        ram: module.first_page * page_size,
        length: module.pages * page_size,
    });
    Layout::new(format!("{}, a module above", base.name()), ranges)
}

/// The blocks that are the main memory, in the order of their addresses: the one of that name, else NUMA nodes whose names
/// number them, else the largest.
fn main_memory<'b>(guests: &[&'b RamBlock]) -> Vec<&'b RamBlock> {
    if let Some(main) = guests.iter().find(|block| is_main(&block.name)) {
        return vec![main];
    }
    let mut nodes: Vec<(u64, &RamBlock)> = guests
        .iter()
        .filter_map(|block| Some((node(&block.name)?, *block)))
        .collect();
    nodes.sort_by_key(|(number, _)| *number);
    if !nodes.is_empty() && (0..).zip(&nodes).all(|(at, (number, _))| at == *number) {
        return nodes.into_iter().map(|(_, block)| block).collect();
    }
    let largest = guests.iter().copied().max_by_key(|block| block.pages);
    largest.into_iter().collect()
}

/// The number of the NUMA node whose memory libvirt, or QEMU itself, gives this name.
fn node(name: &[u8]) -> Option<u64> {
    let name = name.strip_prefix(b"/objects/").unwrap_or(name);
    let number = std::str::from_utf8(name.strip_prefix(b"ram-node")?).ok()?;
    // One name a number, so that no two blocks are the same node.
    number
        .parse()
        .ok()
        .filter(|value: &u64| value.to_string() == number)
}

/// What QEMU calls the memory of a guest that names no memory backend.
fn is_main(name: &[u8]) -> bool {
    const MAIN: [&[u8]; 5] = [
        b"pc.ram",
        b"mach-virt.ram",
        b"microvm.ram",
        b"ram",
        b"/objects/pc.ram",
    ];
    MAIN.contains(&name)
}

/// Whether the block may be guest memory: it has a main memory's name or that of a memory backend. Everything
/// else is a device's or firmware's.
fn may_be_guest(name: &[u8]) -> bool {
    is_main(name) || name.starts_with(b"/objects/") || name.starts_with(b"ram-node")
        // A backend on a machine type from before 4.0 has its bare id.
        || !(name.contains(&b'/') || name.contains(&b'.') || name.contains(&b'@'))
}

/// A name out of a file, fit for a terminal.
pub(super) fn printable(name: &[u8]) -> String {
    name.iter()
        .take(80)
        .map(|byte| {
            if byte.is_ascii_graphic() {
                char::from(*byte)
            } else {
                '?'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 4096;

    /// The numbers of the blocks by their addresses, in each layout that has that many.
    fn orders(blocks: &[(&str, u64)]) -> Vec<Vec<usize>> {
        let mut all = RamBlocks::default();
        for (name, pages) in blocks {
            assert!(all.push(name.as_bytes().to_vec(), pages * SIZE, SIZE));
        }
        let starts: Vec<u64> = all.iter().map(|block| block.first_page * SIZE).collect();
        let order = |layout: &Layout| {
            let ranges = layout.ranges().iter();
            ranges
                .filter_map(|range| starts.iter().position(|&start| start == range.ram))
                .collect()
        };
        let mut orders: Vec<Vec<usize>> =
            all.layouts("pc-q35-10.0", SIZE).iter().map(order).collect();
        orders.sort();
        orders.dedup();
        orders
    }

    #[test]
    fn a_module_lies_above_all_ram_and_on_x86_above_4_gib() {
        let mut all = RamBlocks::default();
        for (name, length) in [
            ("mach-virt.ram", 512 << 20),
            ("/objects/memdimm0", 256 << 20),
        ] {
            assert!(all.push(name.as_bytes().to_vec(), length, SIZE));
        }
        let places = |machine| -> Vec<(u64, u64)> {
            let layouts = all.layouts(machine, SIZE).into_iter();
            let two = layouts.filter_map(|layout| match layout.ranges() {
                [main, module] => Some((main.gpa.0, module.gpa.0)),
                _ => None,
            });
            two.collect()
        };
        let (gib, virt) = (1 << 30, places("virt-10.0"));
        assert_eq!(virt.first(), Some(&(gib, 2 * gib)));
        assert!(virt.contains(&(0, 4 * gib)), "{virt:?}");
        assert_eq!(places("pc-q35-10.0").first(), Some(&(0, 4 * gib)));
    }

    #[test]
    fn nodes_lie_in_the_order_of_their_numbers_and_nothing_else_has_one() {
        let nodes = |names: [&'static str; 3]| names.map(|name| (name, 8));
        assert_eq!(
            orders(&nodes([
                "/objects/ram-node1",
                "/objects/ram-node2",
                "/objects/ram-node0"
            ])),
            [[2, 0, 1]]
        );
        // Larger than all of them, and plugged behind them.
        let module = [
            ("/objects/memdimm0", 9),
            ("/objects/ram-node0", 8),
            ("/objects/ram-node1", 8),
        ];
        assert_eq!(orders(&module), [vec![1, 2], vec![1, 2, 0]]);
        // Names that number nothing, or not all.
        for names in [
            ["/objects/a", "/objects/b", "/objects/c"],
            [
                "/objects/ram-node0",
                "/objects/ram-node2",
                "/objects/ram-node02",
            ],
            [
                "/objects/ram-node3",
                "/objects/ram-node1",
                "/objects/ram-node2",
            ],
        ] {
            let orders = orders(&nodes(names));
            assert!(orders.iter().all(|order| order.len() < 3), "{orders:?}");
        }
        // Of two, the kernel's place tells.
        let two = [("/objects/a", 8), ("/objects/b", 8)];
        let orders = orders(&two);
        assert!(
            orders.contains(&vec![0, 1]) && orders.contains(&vec![1, 0]),
            "{orders:?}"
        );
    }
}
