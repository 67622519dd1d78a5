//! Files that are known for what they are and never mapped: other hypervisors' states, compressed and
//! encrypted files, disk images. Knows their first bytes.

use super::error::Opaque;
use super::recognise::Format;

/// What a file's first bytes make of it.
pub(super) fn recognise(head: &[u8]) -> Option<(Format, Opaque)> {
    vmware(head).or_else(|| {
        TABLE
            .iter()
            .find(|(magic, ..)| head.starts_with(magic))
            .map(|(_, format, reason)| (*format, reason.clone()))
    })
}

/// `.vmss` and `.vmsn`: the low byte of the first word tells the version. The guest's memory is in a `.vmem`
/// beside it, which is raw, or inside.
fn vmware(head: &[u8]) -> Option<(Format, Opaque)> {
    let known = matches!(
        head.first_chunk()?,
        [0xd0, 0xbe, 0xd2, 0xbe]
            | [0xd1, 0xba, 0xd1, 0xba]
            | [0xd2, 0xbe, 0xd2, 0xbe]
            | [0xd3, 0xbe, 0xd3, 0xbe]
    );
    let reason = Opaque::NotMapped("VMware's state; its groups of regions are not read");
    known.then_some((Format::Vmware, reason))
}

type Entry = (&'static [u8], Format, Opaque);

const TABLE: &[Entry] = &[
    (
        b"\x7fVirtualBox SavedState",
        Format::VirtualBox,
        Opaque::Compressed("LZF, in VirtualBox's units"),
    ),
    (
        b"LibxlFmt",
        Format::Xen,
        Opaque::NotMapped("a Xen domain behind libxl's header"),
    ),
    (
        b"\xff\xff\xff\xff\xff\xff\xff\xffXENF",
        Format::Xen,
        Opaque::NotMapped("a Xen domain, whose frames the stream names one by one"),
    ),
    (
        b"LinuxGuestRecord",
        Format::Xen,
        Opaque::NotMapped("a Xen domain saved by xend"),
    ),
    (b"\x1f\x8b", Format::Compressed, Opaque::Compressed("gzip")),
    (b"BZh", Format::Compressed, Opaque::Compressed("bzip2")),
    (b"\xfd7zXZ\0", Format::Compressed, Opaque::Compressed("xz")),
    (
        b"\x28\xb5\x2f\xfd",
        Format::Compressed,
        Opaque::Compressed("zstd"),
    ),
    (
        b"\x04\x22\x4d\x18",
        Format::Compressed,
        Opaque::Compressed("lz4"),
    ),
    (
        b"\x89LZO\0\r\n\x1a\n",
        Format::Compressed,
        Opaque::Compressed("lzop"),
    ),
    (
        b"\xff\x06\0\0sNaPpY",
        Format::Compressed,
        Opaque::Compressed("Snappy"),
    ),
    (
        b"LUKS\xba\xbe",
        Format::Encrypted,
        Opaque::Encrypted("LUKS"),
    ),
    (b"Salted__", Format::Encrypted, Opaque::Encrypted("openssl")),
    (
        b"age-encryption.org/",
        Format::Encrypted,
        Opaque::Encrypted("age"),
    ),
    (
        b"QFI\xfb",
        Format::DiskImage,
        Opaque::NotMapped("a qcow2 disk image"),
    ),
    (
        b"KDMV",
        Format::DiskImage,
        Opaque::NotMapped("a VMDK disk image"),
    ),
];
