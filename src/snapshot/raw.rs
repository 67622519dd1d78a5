//! Raw RAM: the guest's memory and nothing else, as Firecracker, Cloud Hypervisor and QEMU's `pmemsave` write
//! it. There is no magic; whether it is a guest at all is for whoever looks inside.

use super::layout::{self, Machine};
use super::map::{Block, PageMap};
use super::runs::{Geometry, Kind, RunLog};

/// Every guest's memory is a multiple of this, in bytes.
const GRAIN: u64 = 1 << 20;

/// A guest larger than this is none, and its file is a sparse one: 2^46 bytes.
const LARGEST: u64 = 1 << 46;

/// Whether the length is one that a raw image can have.
pub(super) fn may_be(length: u64) -> bool {
    length > 0 && length.is_multiple_of(GRAIN) && length <= LARGEST
}

/// Maps the whole file as RAM.
pub(super) fn map(length: u64) -> Option<PageMap> {
    let geometry = Geometry::PLAIN;
    let mut log = RunLog::new(geometry, 0);
    log.pages(Kind::Page, 0, length / geometry.page_size);
    let block = Block {
        name: String::new(),
        ram: 0,
        length,
    };
    let layouts = layout::candidates(Machine::Raw, 0, length);
    PageMap::new(log, vec![block], layouts, Vec::new(), length)
}
