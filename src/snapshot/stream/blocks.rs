//! The list of RAM blocks at the head of the section `ram`. From QEMU's `ram_save_setup`.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Expect, Stream, be_u64, byte};
use crate::snapshot::error::Opaque;
use crate::snapshot::ram_blocks::MappedBlock;

/// What a mapped-ram file has after the length of each block. From `mapped_ram_setup_ramblock`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MappedHeader {
    version: U32,
    page_size: U64,
    bitmap_offset: U64,
    pages_offset: U64,
}

impl Stream {
    pub(super) fn step_block(&mut self, field: &[u8]) {
        match self.expect {
            Expect::BlockName { left } => match byte(field) {
                0 => self.malformed("a RAM block without a name"),
                length => self.expect(Expect::BlockNameBytes { left }, usize::from(length)),
            },
            Expect::BlockNameBytes { left } => {
                self.name = field.to_vec();
                self.expect(Expect::BlockLength { left }, 8);
            }
            Expect::BlockLength { left } => {
                let length = be_u64(field);
                let name = std::mem::take(&mut self.name);
                let Some(left) = left.checked_sub(length) else {
                    return self.malformed("RAM blocks larger than their sum");
                };
                if !self.blocks.push(name, length, self.page_size()) {
                    return self.malformed("a RAM block that cannot be one");
                }
                if self.ignore_shared {
                    self.expect(Expect::BlockAddress { left }, 8);
                } else if self.mapped {
                    self.expect(Expect::BlockMapped { left }, size_of::<MappedHeader>());
                } else {
                    self.expect(Expect::BlockOrRecord { left }, 1);
                }
            }
            Expect::BlockOrRecord { left } => {
                // Only a stream that postcopy may take over tells the page size of a block on huge pages, and
                // nothing else says whether it does. It cannot be mistaken: a name does not begin with a zero
                // length, and no record is without flags.
                if byte(field) == 0 {
                    self.carry = field.to_vec();
                    self.expect(Expect::BlockPageSize { left }, 8);
                } else {
                    self.next_block(left);
                    self.step(field);
                }
            }
            Expect::BlockPageSize { left } => {
                let word = be_u64(field);
                if word > self.page_size() && word.is_power_of_two() {
                    self.next_block(left);
                } else if left == 0 {
                    self.expect(Expect::Record, 8);
                    self.step(field);
                } else {
                    self.malformed("a RAM block with pages of no known size");
                }
            }
            Expect::BlockAddress { left } => {
                let address = be_u64(field);
                if let Some(block) = self.blocks.last_mut() {
                    block.address = Some(address);
                }
                if self.mapped {
                    self.expect(Expect::BlockMapped { left }, size_of::<MappedHeader>());
                } else {
                    self.next_block(left);
                }
            }
            Expect::BlockMapped { left } => self.mapped_block(field, left),
            _ => {}
        }
    }

    pub(super) fn next_block(&mut self, left: u64) {
        if left == 0 {
            self.expect(Expect::Record, 8);
        } else {
            self.expect(Expect::BlockName { left }, 1);
        }
    }

    fn mapped_block(&mut self, field: &[u8], left: u64) {
        let page_size = self.page_size();
        let position = self.position;
        let Ok(header) = MappedHeader::read_from_bytes(field) else {
            return self.malformed("no mapped-ram header");
        };
        let Some(block) = self.blocks.last_mut() else {
            return self.malformed("a mapped-ram header without a block");
        };
        if header.version.get() != 1 || header.page_size.get() != page_size {
            let version = header.version.get();
            return self.fail(Opaque::Unsupported(format!("mapped-ram version {version}")));
        }
        let bitmap = header.bitmap_offset.get();
        let pages = header.pages_offset.get();
        let bitmap_end = bitmap.checked_add(bitmap_bytes(block.pages));
        let end = pages.checked_add(block.pages * page_size);
        let sound = bitmap >= position && bitmap_end.is_some_and(|end| end <= pages);
        let Some(end) = end.filter(|_| sound) else {
            return self.malformed("a mapped-ram block outside the file");
        };
        block.mapped = Some(MappedBlock { bitmap, pages });
        self.pass(end - position);
        self.next_block(left);
    }
}

/// The bytes of a block's bitmap: whole words of 64 pages. From `mapped_ram_setup_ramblock`.
pub(in crate::snapshot) fn bitmap_bytes(pages: u64) -> u64 {
    pages.div_ceil(64) * 8
}
