//! What a finished file is: its format, its page map or the reason why it has none, and what the file tells
//! of the guest. Knows every format by its first bytes and leaves the rest to each.

use std::fmt;

use super::address::Gpa;
use super::error::{Opaque, SnapshotError};
use super::map::PageMap;
use super::processors::TopTable;
use super::source::{ByteSource, Reader};
use super::stream::{MAGIC, Stream};
use super::{elf, foreign, kdump, libvirt, lime, qemu, raw};

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The guest's memory and nothing else, as far as its length tells. Whether it is a guest's is for whoever
    /// looks inside.
    Raw,
    /// QEMU's migration stream.
    QemuStream,
    /// QEMU's mapped-ram.
    QemuMappedRam,
    /// libvirt's image around a QEMU stream.
    LibvirtStream,
    /// libvirt's image around QEMU's mapped-ram ("sparse").
    LibvirtMappedRam,
    /// libvirt's image around what cannot be looked at.
    Libvirt,
    /// An ELF core of the whole guest.
    ElfCore,
    /// LiME.
    Lime,
    /// AVML 2.
    Avml,
    /// kdump's dump, bare or flattened.
    Kdump,
    /// A VMware suspend or snapshot state.
    Vmware,
    /// A VirtualBox saved state.
    VirtualBox,
    /// A saved Xen domain.
    Xen,
    /// A compressed file.
    Compressed,
    /// An encrypted file.
    Encrypted,
    /// The image of a disk.
    DiskImage,
    /// None of these.
    Unknown,
}

impl Format {
    /// All formats. A format's place here is its number wherever it is kept, so new ones come last.
    pub const ALL: [Format; 17] = [
        Format::Raw,
        Format::QemuStream,
        Format::QemuMappedRam,
        Format::LibvirtStream,
        Format::LibvirtMappedRam,
        Format::Libvirt,
        Format::ElfCore,
        Format::Lime,
        Format::Avml,
        Format::Kdump,
        Format::Vmware,
        Format::VirtualBox,
        Format::Xen,
        Format::Compressed,
        Format::Encrypted,
        Format::DiskImage,
        Format::Unknown,
    ];
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw memory",
            Self::QemuStream => "QEMU stream",
            Self::QemuMappedRam => "QEMU mapped-ram",
            Self::LibvirtStream => "libvirt save image, QEMU stream",
            Self::LibvirtMappedRam => "libvirt save image, QEMU mapped-ram",
            Self::Libvirt => "libvirt save image",
            Self::ElfCore => "ELF core",
            Self::Lime => "LiME",
            Self::Avml => "AVML 2",
            Self::Kdump => "kdump",
            Self::Vmware => "VMware state",
            Self::VirtualBox => "VirtualBox saved state",
            Self::Xen => "Xen domain",
            Self::Compressed => "compressed file",
            Self::Encrypted => "encrypted file",
            Self::DiskImage => "disk image",
            Self::Unknown => "unknown",
        })
    }
}

/// A processor family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// x86, 32 or 64 bits.
    X86,
    /// arm64.
    Arm64,
}

/// Where the kernel's VMCOREINFO is, as the file tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotePlace {
    /// An ELF note in guest memory: the guest-physical address of its head, and its size in bytes.
    Guest {
        /// The address of the note's head.
        gpa: Gpa,
        /// The note's size in bytes.
        size: u64,
    },
    /// The text itself, in the file.
    File {
        /// The file offset in bytes.
        offset: u64,
        /// The length in bytes.
        length: u64,
    },
}

/// What the file tells of the guest. Hints: the guest's own memory has the last word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// QEMU's name of the machine, made printable.
    pub machine: Option<String>,
    /// The processor family.
    pub architecture: Option<Architecture>,
    /// Where VMCOREINFO is.
    pub vmcoreinfo: Option<NotePlace>,
    /// By which page tables the guest's processors translate addresses of its kernel: empty where none does, as in
    /// firmware. None where the file does not tell.
    pub tables: Option<Vec<TopTable>>,
}

/// What is in the file.
#[derive(Clone, Debug)]
pub enum Contents {
    /// The guest's pages and where they are.
    Mapped(PageMap),
    /// Bytes to be kept whole, all of them critical; and why.
    Opaque(Opaque),
}

/// What a file is.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The format.
    pub format: Format,
    /// The page map, or why there is none.
    pub contents: Contents,
    /// What the file tells of the guest.
    pub hints: Hints,
}

impl Snapshot {
    fn opaque(format: Format, reason: Opaque) -> Self {
        Self {
            format,
            contents: Contents::Opaque(reason),
            hints: Hints::default(),
        }
    }

    fn of(format: Format, result: Result<(PageMap, Hints), Opaque>) -> Self {
        match result {
            Ok((map, hints)) => Self {
                format,
                contents: Contents::Mapped(map),
                hints,
            },
            Err(reason) => Self::opaque(format, reason),
        }
    }

    /// The page map, if the file has one.
    pub fn map(&self) -> Option<&PageMap> {
        match &self.contents {
            Contents::Mapped(map) => Some(map),
            Contents::Opaque(_) => None,
        }
    }

    /// Why the file has no page map.
    pub fn opaque_reason(&self) -> Option<&Opaque> {
        match &self.contents {
            Contents::Mapped(_) => None,
            Contents::Opaque(reason) => Some(reason),
        }
    }
}

/// How much memory a page map may take unless the caller says otherwise, in bytes: 2 bytes a page of a guest of
/// 1 TiB, and as much again for pages that were sent twice.
pub const MAP_LIMIT: u64 = 1 << 30;

/// The first bytes that decide on the format.
pub const HEAD: usize = 4096;

/// Looks through a finished file.
pub fn index(source: &dyn ByteSource) -> Result<Snapshot, SnapshotError> {
    index_within(source, MAP_LIMIT)
}

/// As [`index`]; the page map may take so many bytes of memory.
pub fn index_within(source: &dyn ByteSource, limit: u64) -> Result<Snapshot, SnapshotError> {
    let reader = Reader::new(source)?;
    let head = reader.up_to(0, HEAD)?;
    if is_qemu(&head) {
        let stream = qemu::read_through(&reader, limit)?;
        return of_stream(&reader, &stream, limit);
    }
    if elf::is_elf(&head) {
        return Ok(Snapshot::of(Format::ElfCore, elf::read(&reader, &head)?));
    }
    if lime::is_lime(&head) {
        let map = lime::read(&reader)?.map(|map| (map, Hints::default()));
        return Ok(Snapshot::of(Format::Lime, map));
    }
    if lime::is_avml(&head) {
        return Ok(Snapshot::opaque(
            Format::Avml,
            Opaque::Compressed("Snappy, in AVML's blocks"),
        ));
    }
    if let Some(reason) = kdump::recognise(&head) {
        return Ok(Snapshot::opaque(Format::Kdump, reason));
    }
    if let Some((format, reason)) = foreign::recognise(&head) {
        return Ok(Snapshot::opaque(format, reason));
    }
    let map = raw::may_be(reader.length())
        .then(|| raw::map(reader.length()))
        .flatten();
    Ok(match map {
        Some(map) => Snapshot::of(Format::Raw, Ok((map, Hints::default()))),
        None => Snapshot::opaque(Format::Unknown, Opaque::Unknown),
    })
}

/// Whether a file that begins with these bytes (4 KiB of them, or all) and has this length in bytes may have a page map.
/// What may not is whole and critical whatever the rest of it is, so nobody needs to look.
pub fn may_have_pages(head: &[u8], length: u64) -> bool {
    if is_qemu(head) || elf::is_elf(head) || lime::is_lime(head) {
        return true;
    }
    raw::may_be(length)
        && !lime::is_avml(head)
        && kdump::recognise(head).is_none()
        && foreign::recognise(head).is_none()
}

/// The format that the first bytes of a file tell, if they tell one. A QEMU file may have its pages in either of QEMU's ways, which
/// only a look at more of it tells; raw memory has no mark.
pub fn format_by_head(head: &[u8]) -> Option<Format> {
    if head.starts_with(&MAGIC) {
        return Some(Format::QemuStream);
    }
    if is_qemu(head) {
        return Some(Format::Libvirt);
    }
    if elf::is_elf(head) {
        return Some(Format::ElfCore);
    }
    if lime::is_lime(head) {
        return Some(Format::Lime);
    }
    if lime::is_avml(head) {
        return Some(Format::Avml);
    }
    let kdump = kdump::recognise(head).map(|_| Format::Kdump);
    kdump.or_else(|| foreign::recognise(head).map(|(format, _)| format))
}

/// Whether QEMU or libvirt wrote the file.
fn is_qemu(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
        || head.starts_with(libvirt::SAVED)
        || head.starts_with(libvirt::PARTIAL)
}

/// What a stream that has been read through makes of the file.
pub(super) fn of_stream(
    reader: &Reader<'_>,
    stream: &Stream,
    limit: u64,
) -> Result<Snapshot, SnapshotError> {
    let result = qemu::map(reader, stream, limit)?;
    let head = reader.up_to(0, libvirt::LENGTH)?;
    let format = match (head.starts_with(&MAGIC), stream.is_mapped()) {
        (true, true) => Format::QemuMappedRam,
        (true, false) => Format::QemuStream,
        (false, _) if stream.libvirt().is_none() => Format::Libvirt,
        (false, true) => Format::LibvirtMappedRam,
        (false, false) => Format::LibvirtStream,
    };
    Ok(Snapshot::of(format, result))
}
