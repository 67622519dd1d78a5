//! The header that libvirt puts before a QEMU stream: `virsh save` and `managedsave`. From libvirt's
//! `src/qemu/qemu_saveimage.h`. Knows the 92 bytes and nothing of what follows.

use std::io;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::error::Opaque;
use super::source::ByteSource;

/// The header in the byte order of the host that wrote it, which is little-endian wherever KVM matters here.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    magic: [u8; 16],
    version: U32,
    /// The bytes of XML, cookie and padding that follow the header.
    data_length: U32,
    was_running: U32,
    format: U32,
    cookie_offset: U32,
    unused: [U32; 14],
}

/// The header's length in bytes.
pub(super) const LENGTH: usize = size_of::<Header>();

/// Of a finished image.
pub(super) const SAVED: &[u8; 16] = b"LibvirtQemudSave";
/// Of an image that is being written, or whose writing failed.
pub(super) const PARTIAL: &[u8; 16] = b"LibvirtQemudPart";

/// What the header says about the bytes behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// The file offset of QEMU's stream in bytes.
    pub(super) payload: u64,
    /// Whether libvirt has declared the image whole.
    pub(super) finished: bool,
}

/// Reads the header; nothing if this is none, or the reason why what follows cannot be mapped.
pub(super) fn parse(bytes: &[u8]) -> Option<Result<Image, Opaque>> {
    let (header, _) = Header::ref_from_prefix(bytes).ok()?;
    if &header.magic != SAVED && &header.magic != PARTIAL {
        return None;
    }
    let image = Image {
        payload: LENGTH as u64 + u64::from(header.data_length.get()),
        finished: &header.magic == SAVED,
    };
    if header.version.get() != 2 {
        let version = header.version.get();
        return Some(Err(Opaque::Unsupported(format!(
            "libvirt save image version {version}"
        ))));
    }
    Some(match header.format.get() {
        // 6 is "sparse", which is QEMU's mapped-ram; its own header tells that as well.
        0 | 6 => Ok(image),
        1 => Err(Opaque::Compressed("gzip")),
        2 => Err(Opaque::Compressed("bzip2")),
        3 => Err(Opaque::Compressed("xz")),
        4 => Err(Opaque::Compressed("lzop")),
        5 => Err(Opaque::Compressed("zstd")),
        other => Err(Opaque::Unsupported(format!(
            "libvirt save image format {other}"
        ))),
    })
}

/// An image as it will be once libvirt declares it whole, which it does by writing the header anew when all else is there.
#[derive(Clone, Copy)]
pub struct Declared<'a>(pub &'a (dyn ByteSource + Sync));

impl ByteSource for Declared<'_> {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)?;
        declare(offset, buffer);
        Ok(())
    }

    fn read_past_losses(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_past_losses(offset, buffer)?;
        declare(offset, buffer);
        Ok(())
    }
}

fn declare(offset: u64, buffer: &mut [u8]) {
    if offset == 0
        && let Some(magic) = buffer.first_chunk_mut()
        && magic == PARTIAL
    {
        *magic = *SAVED;
    }
}

/// Where QEMU's stream begins in an image with this header, if there is one that can be looked at. Bytes before are libvirt's own:
/// they tell nothing of the guest's pages.
pub fn payload(head: &[u8]) -> Option<u64> {
    parse(head)?.ok().map(|image| image.payload)
}
