//! The records of the section `ram`: pages, zero pages, deltas. From QEMU's `ram_save_page` and its
//! neighbours.
//!
//! ```text
//! u64 offset | flags; unless CONTINUE: u8 n, block's name; then
//! PAGE: the page   ZERO: one zero byte   XBZRLE: u8 1, u16 length, delta   END: the section's body ends
//! ```

use super::{Expect, Record, RecordKind, Stream, be_u16, be_u64, byte};
use crate::snapshot::error::Opaque;
use crate::snapshot::runs::Kind;
use crate::snapshot::supersede::Delta;

/// The bits of a record's head below the page size. From `migration/ram.c`.
mod flag {
    pub(super) const ZERO: u64 = 0x02;
    pub(super) const MEM_SIZE: u64 = 0x04;
    pub(super) const PAGE: u64 = 0x08;
    pub(super) const END: u64 = 0x10;
    pub(super) const CONTINUE: u64 = 0x20;
    pub(super) const XBZRLE: u64 = 0x40;
    pub(super) const HOOK: u64 = 0x80;
    pub(super) const COMPRESS: u64 = 0x100;
    pub(super) const MULTIFD_FLUSH: u64 = 0x200;
}

impl Stream {
    /// The records that a save is made of, whole in memory and of the block of the one before: most bytes of
    /// every stream come through here.
    pub(super) fn records(&mut self, rest: &mut &[u8]) {
        self.log.framing_to(self.position);
        let page_size = self.page_size();
        let (first, end) = self.window;
        let mut bytes = *rest;
        let mut position = self.position;
        while let Some((head, body)) = bytes.split_first_chunk::<8>() {
            let word = u64::from_be_bytes(*head);
            let page = first + (word >> self.page_bits);
            if page >= end {
                break;
            }
            let flags = word & (page_size - 1);
            if flags == flag::PAGE | flag::CONTINUE {
                self.log.one(Kind::Page, page);
                position += 8;
                match body.get(page_size as usize..) {
                    Some(after) => {
                        bytes = after;
                        position += page_size;
                    }
                    None => {
                        bytes = body;
                        self.skip = page_size;
                        break;
                    }
                }
            } else if flags == flag::ZERO | flag::CONTINUE
                && let Some((0, after)) = body.split_first()
            {
                self.log.one(Kind::Zero, page);
                bytes = after;
                position += 9;
            } else {
                break;
            }
        }
        *rest = bytes;
        self.position = position;
    }

    pub(super) fn step_record(&mut self, field: &[u8]) {
        match self.expect {
            Expect::Record => self.record(be_u64(field)),
            Expect::RecordName(record) => match byte(field) {
                0 => self.malformed("a page of a RAM block without a name"),
                length => {
                    let name = usize::from(length);
                    let record = Record {
                        name: 1 + name as u64,
                        ..record
                    };
                    self.expect(Expect::RecordNameBytes(record), name);
                }
            },
            Expect::RecordNameBytes(record) => {
                self.current = self.blocks.find(field);
                let block = self.current.and_then(|index| self.blocks.get(index));
                let Some(block) = block else {
                    return self.malformed("a page of an unknown RAM block");
                };
                self.window = (block.first_page, block.first_page + block.pages);
                self.payload(record);
            }
            Expect::ZeroByte(record) => {
                if byte(field) != 0 {
                    return self.malformed("a page of one byte that is not zero");
                }
                self.page(Kind::Zero, record, 9);
            }
            Expect::DeltaHead(record) => self.delta(field, record),
            _ => {}
        }
    }

    fn record(&mut self, word: u64) {
        let mask = self.page_size() - 1;
        let offset = word & !mask;
        let continues = word & flag::CONTINUE != 0;
        let kind = match word & mask & !flag::CONTINUE {
            flag::MEM_SIZE if !continues && self.blocks.total_pages() == 0 => {
                return self.next_block(offset);
            }
            flag::END => {
                self.ram_ended |= self.in_end_section;
                return self.expect(Expect::Section, 1);
            }
            flag::MULTIFD_FLUSH => return,
            flag::PAGE => RecordKind::Page,
            flag::ZERO => RecordKind::Zero,
            flag::XBZRLE => RecordKind::Xbzrle,
            flag::COMPRESS => return self.fail(Opaque::Compressed("zlib, page by page")),
            flag::HOOK => {
                return self.fail(Opaque::Unsupported(
                    "a stream that went over RDMA".to_owned(),
                ));
            }
            _ => return self.malformed("a RAM record with unknown flags"),
        };
        let record = Record {
            kind,
            offset,
            name: 0,
        };
        if !continues {
            self.expect(Expect::RecordName(record), 1);
        } else if self.current.is_some() {
            self.payload(record);
        } else {
            self.malformed("a page of no RAM block");
        }
    }

    /// The head and name of a record have been read.
    fn payload(&mut self, record: Record) {
        let (first, end) = self.window;
        if record.offset >> self.page_bits >= end - first {
            return self.malformed("a page beyond its RAM block");
        }
        match record.kind {
            RecordKind::Page => {
                let page_size = self.page_size();
                self.page(Kind::Page, record, 8);
                self.pass(page_size);
            }
            RecordKind::Zero => self.expect(Expect::ZeroByte(record), 1),
            RecordKind::Xbzrle => self.expect(Expect::DeltaHead(record), 3),
        }
    }

    /// Puts a record into the log. Its last `head` bytes before here belong to it, and the name before those
    /// and whatever came before that is framing.
    fn page(&mut self, kind: Kind, record: Record, head: u64) {
        self.log.framing_to(self.position.saturating_sub(head));
        self.log
            .one(kind, self.window.0 + (record.offset >> self.page_bits));
        self.expect(Expect::Record, 8);
    }

    fn delta(&mut self, field: &[u8], record: Record) {
        let length = be_u16(field.get(1..).unwrap_or_default());
        if byte(field) != 1 || u64::from(length) > self.page_size() {
            return self.malformed("a delta of an unknown kind");
        }
        let page = self.window.0 + (record.offset >> self.page_bits);
        self.deltas.push(Delta {
            page,
            file: self.position,
            length,
        });
        self.log.framing_to(self.position + u64::from(length));
        self.pass(u64::from(length));
        self.expect(Expect::Record, 8);
    }
}
