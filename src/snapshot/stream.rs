//! The grammar of a QEMU migration stream, version 3, read forward in one pass: bytes come in as they are
//! written, split anywhere, and the payload of pages is passed over. From QEMU's `migration/savevm.c` and
//! `migration/ram.c`; every integer is big-endian.
//!
//! ```text
//! u32 0x5145564D, u32 3
//! 07 configuration: u32 length, machine name; subsections 05: u8 n, name, u32 version, body
//! 01 start, 04 full: u32 id, u8 n, name, u32 instance, u32 version, body
//! 02 part, 03 end:   u32 id, body
//! 08 command:        u16 command, u16 length, data
//! 7E footer:         u32 id, after each body
//! 00 end of the sections; 06 a description in JSON
//! ```
//!
//! The sections of devices have no length, so all that follows the RAM is taken as device state. The same
//! grammar reads the head of a mapped-ram file, whose pages are then found through its bitmaps.

mod blocks;
mod configuration;
mod records;

use std::borrow::Cow;

use super::error::Opaque;
use super::libvirt;
use super::ram_blocks::{RamBlocks, printable};
use super::runs::{Geometry, RunLog};
use super::supersede::Delta;

/// "QEVM", and the version behind it.
pub(super) const MAGIC: [u8; 8] = *b"QEVM\0\0\0\x03";

/// What a map may take for a guest of whatever size, in bytes, and for each of its pages. A paused guest needs at
/// most 2 bytes a page; the rest is for pages that were sent again while the guest ran.
const LEAST_LIMIT: u64 = 64 << 20;
const LIMIT_PER_PAGE: u64 = 8;

/// The head of a record of one page, once it is known what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    kind: RecordKind,
    /// The offset in its block in bytes.
    offset: u64,
    /// The bytes of the block's name before the payload.
    name: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecordKind {
    Page,
    Zero,
    Xbzrle,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Magic,
    LibvirtRest,
    StreamMagic,
    Section,
    MachineLength,
    Machine,
    SubsectionOrSection,
    SubsectionName,
    SubsectionVersion,
    PageBits,
    CapabilityCount,
    CapabilityLength {
        left: u32,
    },
    Capability {
        left: u32,
    },
    SectionHead,
    SectionName {
        id: u32,
    },
    SectionVersion {
        id: u32,
    },
    PartHead {
        end: bool,
    },
    Command,
    Footer,
    Record,
    BlockName {
        left: u64,
    },
    BlockNameBytes {
        left: u64,
    },
    BlockLength {
        left: u64,
    },
    BlockOrRecord {
        left: u64,
    },
    BlockPageSize {
        left: u64,
    },
    BlockAddress {
        left: u64,
    },
    BlockMapped {
        left: u64,
    },
    RecordName(Record),
    RecordNameBytes(Record),
    ZeroByte(Record),
    DeltaHead(Record),
    /// Device state: nothing more is read.
    Tail,
    /// The reason is in `failure`.
    Failed,
}

/// The state of reading; see the module's head.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    /// The file offset of the next byte.
    position: u64,
    skip: u64,
    expect: Expect,
    need: usize,
    carry: Vec<u8>,
    failure: Option<Opaque>,
    limit: u64,

    /// The file offset where QEMU's stream begins.
    start: u64,
    libvirt: Option<libvirt::Image>,
    machine: String,
    page_bits: u32,
    ignore_shared: bool,
    mapped: bool,
    /// The name that is being read: of a subsection, or of a RAM block.
    name: Vec<u8>,

    ram_section: Option<u32>,
    blocks: RamBlocks,
    current: Option<usize>,
    /// The pages of `current`: the first, and one past the last, in RAM space.
    window: (u64, u64),
    in_end_section: bool,
    ram_ended: bool,
    tail: Option<u64>,
    log: RunLog,
    deltas: Vec<Delta>,
}

/// What reading to the end of RAM gave.
#[derive(Debug)]
pub(super) struct Parsed<'a> {
    pub(super) machine: &'a str,
    pub(super) mapped: bool,
    pub(super) page_size: u64,
    pub(super) blocks: &'a RamBlocks,
    pub(super) log: &'a RunLog,
    pub(super) deltas: &'a [Delta],
    /// The file offset of the device state.
    pub(super) tail: u64,
}

impl Stream {
    /// Reads from the file's first byte; the map may take so many bytes of memory.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            position: 0,
            skip: 0,
            expect: Expect::Magic,
            need: MAGIC.len(),
            carry: Vec::new(),
            failure: None,
            limit,
            start: 0,
            libvirt: None,
            machine: String::new(),
            page_bits: 12,
            ignore_shared: false,
            mapped: false,
            name: Vec::new(),
            ram_section: None,
            blocks: RamBlocks::default(),
            current: None,
            window: (0, 0),
            in_end_section: false,
            ram_ended: false,
            tail: None,
            log: RunLog::new(
                Geometry {
                    lead: 8,
                    zero_record: 9,
                    ..Geometry::PLAIN
                },
                0,
            ),
            deltas: Vec::new(),
        }
    }

    /// The file offset of the next byte that matters; the bytes before it need not be shown.
    pub(super) fn wanted(&self) -> u64 {
        self.position.saturating_add(self.skip)
    }

    /// Takes what lies before [`Stream::wanted`] as passed over.
    pub(super) fn skip_to_wanted(&mut self) {
        self.position = self.wanted();
        self.skip = 0;
    }

    /// Passes over the bytes up to a file offset that is not beyond [`Stream::wanted`], or any once nothing is
    /// looked at any more.
    pub(super) fn pass_to(&mut self, offset: u64) {
        self.skip = self.wanted().saturating_sub(offset);
        self.position = offset;
    }

    /// The same stream under a header that libvirt has written anew.
    pub(super) fn with_header(&self, image: Option<libvirt::Image>) -> Cow<'_, Self> {
        if self.libvirt == image {
            return Cow::Borrowed(self);
        }
        let mut other = self.clone();
        other.libvirt = image;
        Cow::Owned(other)
    }

    /// The bytes of memory that this takes.
    pub(super) fn memory(&self) -> u64 {
        self.log.memory() + (self.deltas.capacity() * size_of::<Delta>()) as u64
    }

    /// The file offset up to which bytes have been shown or passed over.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Whether more bytes change nothing.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.expect, Expect::Tail | Expect::Failed)
    }

    /// Whether the bytes are a QEMU stream, bare or within libvirt's image, as far as can be told.
    pub(super) fn is_stream(&self) -> bool {
        !matches!(self.expect, Expect::Magic) && self.failure != Some(Opaque::Unknown)
    }

    /// Whether the pages are to be found through bitmaps.
    pub(super) fn is_mapped(&self) -> bool {
        self.mapped
    }

    pub(super) fn libvirt(&self) -> Option<libvirt::Image> {
        self.libvirt
    }

    /// What is known of the bytes so far.
    pub(super) fn log(&self) -> &RunLog {
        &self.log
    }

    /// The file offset where the bytes are no more looked at.
    pub(super) fn tail(&self) -> Option<u64> {
        self.tail
    }

    /// The result, once the RAM has been read through.
    pub(super) fn parsed(&self) -> Result<Parsed<'_>, Opaque> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let Some(tail) = self.tail else {
            return Err(Opaque::Unfinished(
                "the stream ends before the guest's memory does",
            ));
        };
        Ok(Parsed {
            machine: &self.machine,
            mapped: self.mapped,
            page_size: self.page_size(),
            blocks: &self.blocks,
            log: &self.log,
            deltas: &self.deltas,
            tail,
        })
    }

    fn page_size(&self) -> u64 {
        1 << self.page_bits
    }

    /// Shows the bytes from [`Stream::position`] on.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        loop {
            if self.skip > 0 {
                let passed = self.skip.min(rest.len() as u64);
                self.advance(&mut rest, passed as usize);
                self.skip -= passed;
            }
            if self.is_settled() {
                self.position += rest.len() as u64;
                return;
            }
            if self.expect == Expect::Record && self.carry.is_empty() {
                self.records(&mut rest);
                if self.skip > 0 && !rest.is_empty() {
                    continue;
                }
            }
            if rest.is_empty() {
                break;
            }
            if self.is_settled() {
                continue;
            }
            if self.carry.is_empty()
                && let Some(field) = rest.get(..self.need)
            {
                self.advance(&mut rest, field.len());
                self.step(field);
            } else {
                let missing = self.need.saturating_sub(self.carry.len()).min(rest.len());
                let (part, _) = rest.split_at(missing);
                self.carry.extend_from_slice(part);
                self.advance(&mut rest, missing);
                if self.carry.len() < self.need {
                    break;
                }
                let field = std::mem::take(&mut self.carry);
                self.step(&field);
            }
        }
        let limit = self
            .limit
            .min(LEAST_LIMIT + LIMIT_PER_PAGE * self.blocks.total_pages());
        if self.roughly() > limit {
            self.fail(Opaque::MapTooLarge { limit });
        }
    }

    fn roughly(&self) -> u64 {
        self.log.roughly() + (self.deltas.len() * size_of::<Delta>()) as u64
    }

    fn advance(&mut self, rest: &mut &[u8], by: usize) {
        *rest = rest.get(by..).unwrap_or_default();
        self.position += by as u64;
    }

    fn fail(&mut self, reason: Opaque) {
        self.expect = Expect::Failed;
        self.failure = Some(reason);
        self.log = RunLog::new(self.log.geometry(), 0);
        self.deltas = Vec::new();
        self.carry = Vec::new();
    }

    fn malformed(&mut self, what: &'static str) {
        self.fail(Opaque::Malformed {
            offset: self.position,
            what,
        });
    }

    fn expect(&mut self, expect: Expect, need: usize) {
        self.expect = expect;
        self.need = need;
    }

    /// Passes over bytes that the log has to call framing.
    fn pass(&mut self, bytes: u64) {
        self.skip = bytes;
    }

    fn begin_tail(&mut self, length_of_head: u64) {
        let tail = self.position.saturating_sub(length_of_head);
        self.log.framing_to(tail);
        self.tail = Some(tail);
        self.expect = Expect::Tail;
    }

    fn step(&mut self, field: &[u8]) {
        match self.expect {
            Expect::Magic | Expect::LibvirtRest | Expect::StreamMagic => self.step_magic(field),
            Expect::Section => self.section(byte(field)),
            Expect::MachineLength
            | Expect::Machine
            | Expect::SubsectionOrSection
            | Expect::SubsectionName
            | Expect::SubsectionVersion
            | Expect::PageBits
            | Expect::CapabilityCount
            | Expect::CapabilityLength { .. }
            | Expect::Capability { .. } => self.step_configuration(field),
            Expect::SectionHead
            | Expect::SectionName { .. }
            | Expect::SectionVersion { .. }
            | Expect::PartHead { .. }
            | Expect::Command
            | Expect::Footer => self.step_section(field),
            Expect::BlockName { .. }
            | Expect::BlockNameBytes { .. }
            | Expect::BlockLength { .. }
            | Expect::BlockOrRecord { .. }
            | Expect::BlockPageSize { .. }
            | Expect::BlockAddress { .. }
            | Expect::BlockMapped { .. } => self.step_block(field),
            Expect::Record
            | Expect::RecordName(_)
            | Expect::RecordNameBytes(_)
            | Expect::ZeroByte(_)
            | Expect::DeltaHead(_) => self.step_record(field),
            Expect::Tail | Expect::Failed => {}
        }
    }

    fn step_magic(&mut self, field: &[u8]) {
        match self.expect {
            Expect::Magic if libvirt::SAVED.starts_with(field) => {
                self.carry = field.to_vec();
                self.expect(Expect::LibvirtRest, libvirt::LENGTH);
            }
            Expect::LibvirtRest => match libvirt::parse(field) {
                Some(Ok(image)) => {
                    self.libvirt = Some(image);
                    self.start = image.payload;
                    self.pass(image.payload.saturating_sub(self.position));
                    self.expect(Expect::StreamMagic, MAGIC.len());
                }
                Some(Err(reason)) => self.fail(reason),
                None => self.fail(Opaque::Unknown),
            },
            Expect::Magic | Expect::StreamMagic if field == MAGIC => {
                self.expect(Expect::Section, 1);
            }
            Expect::StreamMagic => self.malformed("no QEMU stream follows libvirt's header"),
            _ => self.fail(Opaque::Unknown),
        }
    }

    fn section(&mut self, kind: u8) {
        match kind {
            0x00 if self.ram_ended => self.begin_tail(1),
            0x00 => self.malformed("the sections end before the guest's memory"),
            0x01 | 0x04 => self.expect(Expect::SectionHead, 5),
            0x02 => self.expect(Expect::PartHead { end: false }, 4),
            0x03 => self.expect(Expect::PartHead { end: true }, 4),
            0x07 => self.expect(Expect::MachineLength, 4),
            0x08 => self.expect(Expect::Command, 4),
            0x7e => self.expect(Expect::Footer, 4),
            _ => self.malformed("no such section"),
        }
    }

    fn step_section(&mut self, field: &[u8]) {
        match self.expect {
            Expect::SectionHead => {
                // All of the RAM comes before the devices, and theirs cannot be passed over.
                if self.ram_ended {
                    return self.begin_tail(6);
                }
                let name = usize::from(field.last().copied().unwrap_or_default());
                if name == 0 {
                    return self.malformed("a section without a name");
                }
                let id = be_u32(field);
                self.expect(Expect::SectionName { id }, name);
            }
            Expect::SectionName { id } => {
                if field != b"ram" {
                    let name = printable(field);
                    let reason =
                        format!("QEMU section {name} before the end of the guest's memory");
                    return self.fail(Opaque::Unsupported(reason));
                }
                self.expect(Expect::SectionVersion { id }, 8);
            }
            Expect::SectionVersion { id } => {
                let version = be_u32(field.get(4..).unwrap_or_default());
                if version != 4 {
                    let reason = format!("QEMU section ram version {version}");
                    return self.fail(Opaque::Unsupported(reason));
                }
                if self.ram_section.replace(id).is_some() {
                    return self.malformed("a second section of the guest's memory");
                }
                self.expect(Expect::Record, 8);
            }
            Expect::PartHead { end } => {
                if self.ram_ended {
                    return self.begin_tail(5);
                }
                if self.ram_section != Some(be_u32(field)) {
                    let reason = "a part of a QEMU section that has not begun".to_owned();
                    return self.fail(Opaque::Unsupported(reason));
                }
                self.in_end_section = end;
                self.expect(Expect::Record, 8);
            }
            Expect::Command => {
                let command = be_u16(field);
                let length = be_u16(field.get(2..).unwrap_or_default());
                // See `enum qemu_vm_cmd` of `migration/savevm.c`. From a running postcopy on, pages are discarded, or go
                // their own ways; a packaged command has a stream of its own behind its data, and COLO sends memory
                // again. None is ever sent to a file.
                let refused = match command {
                    4..=7 | 9 | 10 => "a postcopy stream",
                    8 => "a COLO stream",
                    _ => {
                        self.pass(u64::from(length));
                        return self.expect(Expect::Section, 1);
                    }
                };
                self.fail(Opaque::Unsupported(refused.to_owned()));
            }
            Expect::Footer => {
                if self.ram_section != Some(be_u32(field)) {
                    return self.malformed("a footer of another section");
                }
                self.expect(Expect::Section, 1);
            }
            _ => {}
        }
    }
}

pub(super) use blocks::bitmap_bytes;

fn byte(field: &[u8]) -> u8 {
    field.first().copied().unwrap_or_default()
}

fn be_u16(field: &[u8]) -> u16 {
    field
        .first_chunk()
        .map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

fn be_u32(field: &[u8]) -> u32 {
    field
        .first_chunk()
        .map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn be_u64(field: &[u8]) -> u64 {
    field
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
