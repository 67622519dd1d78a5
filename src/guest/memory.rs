//! How this room reads a guest's memory: a trait over guest-physical addresses, and the ways in which a hypervisor may
//! have laid out one run of RAM. Knows no files and no formats.

use std::ops::Range;

/// A guest's memory by guest-physical address, in bytes.
///
/// What it gives is hostile: the guest wrote it. Bytes that are lost cannot be read; nothing that a guest's pages are
/// judged by may come from a page that the judgement calls expendable, so a snapshot that lost such pages is judged as
/// the whole one was.
pub trait GuestMemory: Sync {
    /// The guest's memory: ascending, apart from each other.
    fn ranges(&self) -> &[Range<u64>];

    /// Fills `bytes` from an address, wholly or not at all. False where there is no memory, or it is lost.
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> bool;

    /// The bytes themselves, where they lie together in this process's memory.
    fn slice(&self, gpa: u64, len: usize) -> Option<&[u8]> {
        let _ = (gpa, len);
        None
    }
}

/// Eight little-endian bytes at a guest-physical address.
#[inline]
pub(super) fn read_u64(memory: &dyn GuestMemory, gpa: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    match memory.slice(gpa, 8) {
        Some(slice) => bytes.copy_from_slice(slice.get(..8)?),
        None if !memory.read(gpa, &mut bytes) => return None,
        None => {}
    }
    Some(u64::from_le_bytes(bytes))
}

/// A little-endian word within bytes.
#[inline]
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let end = at.checked_add(8)?;
    bytes
        .get(at..end)
        .and_then(|word| word.try_into().ok())
        .map(u64::from_le_bytes)
}

/// A little-endian half word within bytes.
#[inline]
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let end = at.checked_add(4)?;
    bytes
        .get(at..end)
        .and_then(|word| word.try_into().ok())
        .map(u32::from_le_bytes)
}

/// Where a run of RAM, kept as one piece, lies in guest-physical space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Ranges of guest-physical addresses, ascending; the bytes of the run follow each other in this order.
    pub ranges: Vec<Range<u64>>,
}

const GIB: u64 = 1 << 30;

impl Layout {
    /// One range.
    fn whole(base: u64, len: u64) -> Layout {
        Layout {
            ranges: std::iter::once(base..base.saturating_add(len)).collect(),
        }
    }

    /// A low part, and the rest from 4 GiB, as PCs have it.
    fn split(low: u64, len: u64) -> Layout {
        Layout {
            ranges: vec![
                0..low,
                4 * GIB..(4 * GIB).saturating_add(len.saturating_sub(low)),
            ],
        }
    }

    /// The layouts in which `len` bytes of RAM may lie, the likelier first. Which one holds is found by looking for a
    /// kernel in each ([`super::Guest::find`]).
    ///
    /// x86: QEMU's q35 (low part 2 GiB, from 2.75 GiB on), i440fx and microvm, Cloud Hypervisor and Firecracker
    /// (3 GiB), older Firecracker (3.25 GiB), then what `max-ram-below-4g` may give. arm64: RAM from 1 GiB (QEMU's
    /// virt, Cloud Hypervisor) or 2 GiB (Firecracker).
    pub fn candidates(len: u64) -> Vec<Layout> {
        let mut layouts = Vec::new();
        let likely = [2 * GIB, 3 * GIB, 13 * GIB / 4, 7 * GIB / 2, 11 * GIB / 4];
        let others = (1..8).map(|n| n * GIB / 2);
        if len <= 7 * GIB / 2 {
            layouts.push(Layout::whole(0, len));
        }
        for low in likely.into_iter().chain(others) {
            let layout = Layout::split(low, len);
            if low < len && !layouts.contains(&layout) {
                layouts.push(layout);
            }
        }
        layouts.push(Layout::whole(GIB, len));
        layouts.push(Layout::whole(2 * GIB, len));
        layouts
    }
}

/// Memory that lies in this process as one run of bytes.
#[derive(Clone, Debug)]
pub struct FlatMemory<'b> {
    bytes: &'b [u8],
    ranges: Vec<Range<u64>>,
}

impl<'b> FlatMemory<'b> {
    /// The bytes, and where they lie. What the layout has beyond the bytes is no memory.
    pub fn new(bytes: &'b [u8], layout: &Layout) -> FlatMemory<'b> {
        let mut left = bytes.len() as u64;
        let mut ranges = Vec::new();
        for range in &layout.ranges {
            let len = range.end.saturating_sub(range.start).min(left);
            if len > 0 {
                ranges.push(range.start..range.start + len);
            }
            left -= len;
        }
        FlatMemory { bytes, ranges }
    }

    /// Where an address lies in the run of bytes.
    pub fn offset(&self, gpa: u64) -> Option<usize> {
        let mut before = 0u64;
        for range in &self.ranges {
            if range.contains(&gpa) {
                return usize::try_from(before + (gpa - range.start)).ok();
            }
            before += range.end - range.start;
        }
        None
    }
}

impl GuestMemory for FlatMemory<'_> {
    fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        match self.slice(gpa, bytes.len()) {
            Some(slice) => {
                bytes.copy_from_slice(slice);
                true
            }
            None => false,
        }
    }

    fn slice(&self, gpa: u64, len: usize) -> Option<&[u8]> {
        let end = gpa.checked_add(len as u64)?;
        // Bytes on both sides of a gap lie together here, but not for the guest.
        self.ranges
            .iter()
            .find(|range| range.contains(&gpa) && end <= range.end)?;
        let at = self.offset(gpa)?;
        self.bytes.get(at..at.checked_add(len)?)
    }
}
