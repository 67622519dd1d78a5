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
        let main = guests
            .iter()
            .copied()
            .find(|block| is_main(&block.name))
            .or_else(|| guests.iter().copied().max_by_key(|block| block.pages));
        let mut list = Vec::new();
        if let Some(main) = main {
            // Memory backends: NUMA nodes that are the main memory together, or modules plugged in behind it.
            // QEMU lists blocks by size, so the order of nodes of unlike size is that of their names.
            let others: Vec<&RamBlock> = guests
                .iter()
                .copied()
                .filter(|block| block.first_page != main.first_page)
                .collect();
            let mut named = guests.clone();
            named.sort_by_cached_key(|block| natural(&block.name));
            if !is_main(&main.name) && !others.is_empty() {
                list.extend(joined(machine, &guests, page_size));
                list.extend(joined(machine, &named, page_size));
            }
            let alone = joined(machine, &[main], page_size);
            if !others.is_empty() {
                list.extend(
                    alone
                        .iter()
                        .filter_map(|base| plugged(base, &others, page_size)),
                );
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

/// Modules in the place that QEMU keeps for them: from the next GiB above 4 GiB and above all RAM. See `pc_memory_init`.
fn plugged(base: &Layout, modules: &[&RamBlock], page_size: u64) -> Option<Layout> {
    let top = base
        .ranges()
        .iter()
        .map(|range| range.gpa.0 + range.length)
        .max()?;
    let mut at = top.max(4 << 30).checked_next_multiple_of(1 << 30)?;
    let mut ranges = base.ranges().to_vec();
    for module in modules {
        let length = module.pages * page_size;
        ranges.push(RamRange {
            gpa: Gpa(at),
            ram: module.first_page * page_size,
            length,
        });
        at = at.checked_add(length)?;
    }
    Layout::new(
        format!("{}, {} modules above", base.name(), modules.len()),
        ranges,
    )
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

/// A name so that "node10" comes after "node9".
fn natural(name: &[u8]) -> (Vec<u8>, u64) {
    let digits = name
        .iter()
        .rev()
        .take_while(|byte| byte.is_ascii_digit())
        .count()
        .min(18);
    let (stem, number) = name.split_at(name.len() - digits);
    let value = number
        .iter()
        .fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    (stem.to_vec(), value)
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
