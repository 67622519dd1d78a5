//! kdump's own dump format, bare or flattened: makedumpfile's, and QEMU's `dump-guest-memory -z`. From
//! makedumpfile's `diskdump_mod.h` and QEMU's `include/system/dump.h`. Recognised and not mapped: the pages
//! are compressed one by one and lie behind descriptors.

use super::error::Opaque;

/// The byte of the status word in `disk_dump_header`: magic, version, `utsname` of 390 bytes, padding, time.
const STATUS: usize = 424;

/// Why the dump is opaque; nothing if the file is none.
pub(super) fn recognise(head: &[u8]) -> Option<Opaque> {
    if head.starts_with(b"makedumpfile\0") {
        return Some(Opaque::NotMapped(
            "a flattened kdump dump, whose pieces lie in any order",
        ));
    }
    if !head.starts_with(b"KDUMP   ") && !head.starts_with(b"DISKDUMP") {
        return None;
    }
    let status = head.get(STATUS..).and_then(|rest| rest.first_chunk());
    let status = status.map_or(0, |bytes| u32::from_le_bytes(*bytes));
    Some(match status {
        flags if flags & 0x01 != 0 => Opaque::Compressed("zlib, page by page"),
        flags if flags & 0x02 != 0 => Opaque::Compressed("LZO, page by page"),
        flags if flags & 0x04 != 0 => Opaque::Compressed("Snappy, page by page"),
        flags if flags & 0x20 != 0 => Opaque::Compressed("zstd, page by page"),
        _ => Opaque::NotMapped("kdump pages, which lie behind descriptors"),
    })
}
