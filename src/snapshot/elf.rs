//! ELF cores of a whole guest: QEMU's `dump-guest-memory`, libvirt's `virsh dump --memory-only`, kdump's
//! `/proc/vmcore`. From the ELF specification and QEMU's `dump/dump.c`. Little-endian, 32 and 64 bits.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::error::{Opaque, SnapshotError};
use super::map::PageMap;
use super::physical::{self, Stored};
use super::processors;
use super::recognise::{Architecture, Hints, NotePlace};
use super::source::Reader;

/// The file header of 64 bits.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header64 {
    ident: [u8; 16],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U64,
    program_headers: U64,
    section_headers: U64,
    flags: U32,
    header_size: U16,
    program_header_size: U16,
    program_header_count: U16,
    section_header_size: U16,
    section_header_count: U16,
    names: U16,
}

/// The file header of 32 bits.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header32 {
    ident: [u8; 16],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U32,
    program_headers: U32,
    section_headers: U32,
    flags: U32,
    header_size: U16,
    program_header_size: U16,
    program_header_count: U16,
    section_header_size: U16,
    section_header_count: U16,
    names: U16,
}

/// A program header of 64 bits.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Program64 {
    kind: U32,
    flags: U32,
    offset: U64,
    virtual_address: U64,
    physical_address: U64,
    file_size: U64,
    memory_size: U64,
    align: U64,
}

/// A program header of 32 bits.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Program32 {
    kind: U32,
    offset: U32,
    virtual_address: U32,
    physical_address: U32,
    file_size: U32,
    memory_size: U32,
    flags: U32,
    align: U32,
}

/// The head of a note; name and content follow, each padded to 4 bytes.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Note {
    name_size: U32,
    content_size: U32,
    kind: U32,
}

const CORE: u16 = 4;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// The count that says "see `sh_info` of section 0".
const MANY: u16 = 0xffff;
/// A guest has a range per memory slot, or per mapping if the dump was made with paging; no more than this.
const MOST: u64 = 1 << 16;
/// The bytes of notes that are looked through: a few KiB per CPU.
const NOTES: usize = 16 << 20;
/// A core has one header of notes.
const NOTES_MOST: u32 = 4;

/// What the two sizes of header have in common.
struct Head {
    wide: bool,
    machine: u16,
    programs: u64,
    program_size: u64,
    count: u64,
    sections: u64,
}

/// Whether the file begins as any ELF file does.
pub(super) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

/// What a core gives: its map, and what is known of the guest.
type Core = Result<(PageMap, Hints), Opaque>;

/// Maps the core.
pub(super) fn read(reader: &Reader<'_>, head: &[u8]) -> Result<Core, SnapshotError> {
    let mut head = match parse_head(head) {
        Ok(head) => head,
        Err(reason) => return Ok(Err(reason)),
    };
    if head.count == u64::from(MANY) {
        // Only the 64-bit layout: `sh_info` is at byte 44 of a section header.
        let info = head.sections.checked_add(44);
        match info.map(|at| reader.array::<4>(at)).transpose()?.flatten() {
            Some(count) if head.wide => head.count = u64::from(u32::from_le_bytes(count)),
            _ => return Ok(Err(malformed(0, "more program headers than it can tell"))),
        }
    }
    if head.count > MOST {
        return Ok(Err(malformed(0, "too many program headers")));
    }
    let mut ranges = Vec::new();
    let mut hints = Hints {
        architecture: match head.machine {
            62 | 3 => Some(Architecture::X86),
            183 => Some(Architecture::Arm64),
            _ => None,
        },
        ..Hints::default()
    };
    let mut notes = 0;
    for index in 0..head.count {
        let at = head.programs.checked_add(index * head.program_size);
        let Some(program) = at
            .map(|at| program(reader, at, head.wide))
            .transpose()?
            .flatten()
        else {
            return Ok(Err(Opaque::Unfinished(
                "the file ends before its headers do",
            )));
        };
        match program.0 {
            LOAD => ranges.push(program.1),
            NOTE => {
                notes += 1;
                if notes <= NOTES_MOST {
                    read_notes(reader, program.1, &mut hints)?;
                }
            }
            _ => {}
        }
    }
    Ok(physical::map(ranges, reader.length()).map(|map| (map, hints)))
}

fn malformed(offset: u64, what: &'static str) -> Opaque {
    Opaque::Malformed { offset, what }
}

fn parse_head(bytes: &[u8]) -> Result<Head, Opaque> {
    let class = bytes.get(4).copied().unwrap_or_default();
    if bytes.get(5) != Some(&1) {
        return Err(Opaque::NotMapped("a big-endian ELF core"));
    }
    let head = match class {
        2 => Header64::read_from_prefix(bytes).ok().map(|(header, _)| {
            let head = Head {
                wide: true,
                machine: header.machine.get(),
                programs: header.program_headers.get(),
                program_size: u64::from(header.program_header_size.get()),
                count: u64::from(header.program_header_count.get()),
                sections: header.section_headers.get(),
            };
            (header.kind.get(), head, size_of::<Program64>())
        }),
        1 => Header32::read_from_prefix(bytes).ok().map(|(header, _)| {
            let head = Head {
                wide: false,
                machine: header.machine.get(),
                programs: u64::from(header.program_headers.get()),
                program_size: u64::from(header.program_header_size.get()),
                count: u64::from(header.program_header_count.get()),
                sections: u64::from(header.section_headers.get()),
            };
            (header.kind.get(), head, size_of::<Program32>())
        }),
        _ => return Err(malformed(4, "an ELF file of no known class")),
    };
    let Some((kind, head, least)) = head else {
        return Err(Opaque::Unfinished("the file ends within its header"));
    };
    if kind != CORE {
        return Err(Opaque::NotMapped("an ELF file that is no core"));
    }
    if head.program_size < least as u64 {
        return Err(malformed(0, "program headers that are too small"));
    }
    Ok(head)
}

/// The kind and range of a program header; nothing where the file has ended.
fn program(
    reader: &Reader<'_>,
    at: u64,
    wide: bool,
) -> Result<Option<(u32, Stored)>, SnapshotError> {
    if wide {
        let bytes = reader.array::<{ size_of::<Program64>() }>(at)?;
        let program = bytes.and_then(|bytes| Program64::read_from_bytes(&bytes).ok());
        Ok(program.map(|program| {
            let range = Stored {
                gpa: program.physical_address.get(),
                file: program.offset.get(),
                length: program.file_size.get(),
            };
            (program.kind.get(), range)
        }))
    } else {
        let bytes = reader.array::<{ size_of::<Program32>() }>(at)?;
        let program = bytes.and_then(|bytes| Program32::read_from_bytes(&bytes).ok());
        Ok(program.map(|program| {
            let range = Stored {
                gpa: u64::from(program.physical_address.get()),
                file: u64::from(program.offset.get()),
                length: u64::from(program.file_size.get()),
            };
            (program.kind.get(), range)
        }))
    }
}

/// Takes what the notes tell: VMCOREINFO, and the processors of an x86 guest.
fn read_notes(reader: &Reader<'_>, range: Stored, hints: &mut Hints) -> Result<(), SnapshotError> {
    let length = usize::try_from(range.length)
        .unwrap_or(usize::MAX)
        .min(NOTES);
    let notes = reader.up_to(range.file, length)?;
    let mut processors = Vec::new();
    let mut rest = notes.as_slice();
    while let Ok((note, body)) = Note::read_from_prefix(rest) {
        let name_size = note.name_size.get() as usize;
        let content_at = name_size.next_multiple_of(4);
        let content_size = note.content_size.get() as usize;
        let (Some(name), Some(content)) = (body.get(..name_size), body.get(content_at..)) else {
            break;
        };
        match name.strip_suffix(b"\0").unwrap_or(name) {
            b"VMCOREINFO" if hints.vmcoreinfo.is_none() => {
                let offset = range.file + (notes.len() - content.len()) as u64;
                let length = content_size.min(content.len()) as u64;
                hints.vmcoreinfo = Some(NotePlace::File { offset, length });
            }
            b"QEMU" if hints.architecture == Some(Architecture::X86) => {
                let content = content.get(..content_size).unwrap_or_default();
                if processors.len() <= processors::MOST {
                    processors.push(processors::of_note(content));
                }
            }
            _ => {}
        }
        rest = content
            .get(content_size.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    hints.tables = processors::together(processors.into_iter()).or(hints.tables.take());
    Ok(())
}
