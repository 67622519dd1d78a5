//! Whether a page of the file cache can be fetched again: the predicate, and the edits that make the guest do so.
//!
//! A folio that is clean, not locked and not up to date is a state that the kernel itself produces, when a read ahead fails;
//! every reader knows to read it again. So clearing PG_uptodate mends a folio, if nothing but the page cache knows of it:
//! its reference count is exactly what the cache itself holds. What file systems keep beside the folio must be told
//! as well: buffer heads and iomap's state hold up-to-date bits of their own, a block each.

use std::collections::HashMap;

use super::flags::Flags;
use super::mend::Edit;
use super::page::{Page, Pages};
use super::paging::Translations;
use super::reason::Reason;
use super::shape::{BufferShape, CacheShape, IomapShape, LargeFolios};

const S_IFMT: u16 = 0o170_000;
const S_IFREG: u16 = 0o100_000;
const S_IFBLK: u16 = 0o060_000;

/// The largest folio of a file: 32 MiB of 4 KiB pages. A ring of buffers is at most eight times as long.
const ORDER_MAX: u32 = 13;

/// Address spaces that are remembered; more of them are read again. A guest that lies has another one for every page.
const MAPPINGS_MAX: usize = 1 << 14;

/// What a file system keeps beside its folios.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    /// Nothing that is understood.
    Nothing,
    Buffers,
    Iomap,
    /// The word 1, and nothing else.
    Mark,
}

/// The file systems that fetch a page again when it is not up to date, and what they keep beside it.
const FILE_SYSTEMS: [(&[u8], Beside); 9] = [
    (b"ext4", Beside::Buffers),
    (b"ext3", Beside::Buffers),
    (b"ext2", Beside::Buffers),
    (b"xfs", Beside::Iomap),
    (b"btrfs", Beside::Mark),
    (b"vfat", Beside::Nothing),
    (b"iso9660", Beside::Nothing),
    (b"erofs", Beside::Nothing),
    (b"squashfs", Beside::Nothing),
];

/// What is known of one address space.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    beside: Beside,
    /// Log2 of the block size in bytes.
    block_bits: u32,
    order_max: u32,
}

/// Judges folios; remembers the address spaces that it has seen. One a thread.
pub(super) struct Cache<'g> {
    shape: &'g CacheShape,
    flags: &'g Flags,
    page_shift: u32,
    /// btrfs keeps no up-to-date record of its own for files, from 6.1.
    btrfs_mark: bool,
    mappings: HashMap<u64, Result<Mapping, Reason>>,
    /// The one that was asked for last: pages of one file mostly follow each other.
    last: Option<(u64, Result<Mapping, Reason>)>,
}

impl<'g> Cache<'g> {
    pub fn new(
        shape: &'g CacheShape,
        flags: &'g Flags,
        page_shift: u32,
        btrfs_mark: bool,
    ) -> Cache<'g> {
        Cache {
            shape,
            flags,
            page_shift,
            btrfs_mark,
            mappings: HashMap::new(),
            last: None,
        }
    }

    /// Whether the folio at `index`, of 2^order pages, can be fetched again, and with `edits` how. The caller has found it
    /// to be page cache, clean, unmapped and of a whole compound page if any. `Ok` carries the reason in favour.
    pub fn judge(
        &mut self,
        guest: &mut Translations<'_>,
        pages: Pages<'_>,
        index: usize,
        order: u32,
        mut edits: Option<&mut Vec<Edit>>,
    ) -> Result<Reason, Reason> {
        let page = pages.get(index).ok_or(Reason::BrokenCompound)?;
        let flags = self.flags;
        if order > ORDER_MAX {
            return Err(Reason::OtherFlags);
        }
        if page.flags & flags.known & !(flags.harmless | flags.private) != 0 {
            return Err(Reason::OtherFlags);
        }
        if order > 0
            && pages
                .second_flags(index)
                .is_none_or(|second| second & flags.has_hwpoisoned != 0)
        {
            return Err(Reason::HwPoison);
        }
        let private = page.flags & flags.private != 0;
        // The cache holds one reference a page, private data one more.
        if i64::from(page.refcount) != (1i64 << order) + i64::from(private) {
            return Err(Reason::Referenced);
        }
        let mapping = self.mapping(guest, page.mapping)?;
        if order > mapping.order_max {
            return Err(Reason::LargeNotSupported);
        }
        let folio = Folio {
            va: pages.address(index),
            bytes: 1u64 << (self.page_shift + order),
            page,
        };
        let reason = match (private, mapping.beside) {
            // btrfs always marks its pages; one without the mark is not understood.
            (false, Beside::Mark) => return Err(Reason::OtherPrivate),
            (false, _) => Reason::Recoverable,
            (true, Beside::Buffers) => {
                let shape = self.shape.buffers.as_ref().ok_or(Reason::OtherPrivate)?;
                buffers(
                    guest,
                    shape,
                    &folio,
                    mapping.block_bits,
                    edits.as_deref_mut(),
                )?;
                Reason::RecoverableBuffers
            }
            (true, Beside::Iomap) => {
                let shape = self.shape.iomap.as_ref().ok_or(Reason::OtherPrivate)?;
                iomap(
                    guest,
                    shape,
                    &folio,
                    mapping.block_bits,
                    edits.as_deref_mut(),
                )?;
                Reason::RecoverableIomap
            }
            (true, Beside::Mark) if !self.btrfs_mark => return Err(Reason::OldBtrfs),
            (true, Beside::Mark) if page.private == 1 => Reason::RecoverableBtrfs,
            (true, _) => return Err(Reason::OtherPrivate),
        };
        let at = folio.va.wrapping_add(pages.shape.flags as u64);
        if page.flags & flags.in_step != 0 {
            clear_bit(guest, at, flags.in_step, edits.as_deref_mut())
                .ok_or(Reason::NoStructPage)?;
        }
        clear_bit(guest, at, flags.uptodate, edits).ok_or(Reason::NoStructPage)?;
        Ok(reason)
    }

    fn mapping(&mut self, guest: &mut Translations<'_>, va: u64) -> Result<Mapping, Reason> {
        if let Some((last, known)) = self.last
            && last == va
        {
            return known;
        }
        let found = match self.mappings.get(&va) {
            Some(known) => *known,
            None => {
                let found = self.read_mapping(guest, va);
                if self.mappings.len() >= MAPPINGS_MAX {
                    self.mappings.clear();
                }
                self.mappings.insert(va, found);
                found
            }
        };
        self.last = Some((va, found));
        found
    }

    fn read_mapping(&self, guest: &mut Translations<'_>, va: u64) -> Result<Mapping, Reason> {
        let shape = self.shape;
        let broken = Reason::BrokenMapping;
        let mut follow = |va: u64, at: usize| {
            va.checked_add(at as u64)
                .and_then(|va| guest.u64(va))
                .ok_or(broken)
        };
        let flags = follow(va, shape.mapping_flags)?;
        let host = follow(va, shape.host)?;
        let operations = follow(va, shape.a_ops)?;
        // The word of mode and the byte of block bits may lie unaligned within eight bytes; they are read as such.
        let mode = follow(host, shape.i_mode)? as u16;
        let block_bits = follow(host, shape.i_blkbits)? as u8;
        if follow(host, shape.i_mapping)? != va {
            return Err(broken);
        }
        if flags & !shape.harmless != 0 {
            return Err(Reason::MappingFlags);
        }
        if let Some(at) = shape.write_error
            && follow(va, at)? as u32 != 0
        {
            return Err(Reason::WriteError);
        }
        if follow(operations, shape.read)? == 0 {
            return Err(Reason::NoReader);
        }
        let super_block = follow(host, shape.i_sb)?;
        let kind = follow(super_block, shape.s_type)?;
        let name = follow(kind, shape.name)?;
        let name = guest.text(name, 32).ok_or(broken)?;
        let beside = match mode & S_IFMT {
            S_IFREG => FILE_SYSTEMS
                .iter()
                .find(|(other, _)| *other == name)
                .map(|&(_, beside)| beside),
            // Buffers of a block device are a file system's own metadata: left alone.
            S_IFBLK if name == b"bdev" => Some(Beside::Nothing),
            _ => return Err(Reason::NotAFile),
        };
        let order_max = match shape.large {
            LargeFolios::Never => 0,
            LargeFolios::Flag(flag) if flags & flag == 0 => 0,
            LargeFolios::Flag(_) => ORDER_MAX,
            LargeFolios::MaxOrder(at) => (flags >> at) as u32 & 31,
        };
        if !(9..=16).contains(&block_bits) {
            return Err(broken);
        }
        Ok(Mapping {
            beside: beside.ok_or(Reason::OtherFileSystem)?,
            block_bits: u32::from(block_bits),
            order_max,
        })
    }
}

struct Folio {
    va: u64,
    bytes: u64,
    page: Page,
}

/// A ring of buffer heads, one a block, each of which must be as good as its block on the disk.
fn buffers(
    guest: &mut Translations<'_>,
    shape: &BufferShape,
    folio: &Folio,
    block_bits: u32,
    mut edits: Option<&mut Vec<Edit>>,
) -> Result<(), Reason> {
    let blocks = (folio.bytes >> block_bits).max(1);
    let broken = Reason::BrokenBuffers;
    let mut va = folio.page.private;
    for _ in 0..blocks {
        let mut word = |at: usize| {
            va.checked_add(at as u64)
                .and_then(|va| guest.u64(va))
                .ok_or(broken)
        };
        let state = word(shape.state)?;
        let users = word(shape.count)? as u32;
        if word(shape.page)? != folio.va || word(shape.size)? != 1 << block_bits {
            return Err(broken);
        }
        if users != 0 || state & shape.mapped == 0 || state & !shape.harmless != 0 {
            return Err(Reason::BufferBusy);
        }
        let next = word(shape.next)?;
        clear_bit(
            guest,
            va.wrapping_add(shape.state as u64),
            shape.uptodate,
            edits.as_deref_mut(),
        )
        .ok_or(broken)?;
        va = next;
    }
    // As many steps as there are blocks lead around the ring, neither more nor fewer.
    if va == folio.page.private {
        Ok(())
    } else {
        Err(broken)
    }
}

/// iomap's state of a folio: bits a block, of which none may be dirty.
fn iomap(
    guest: &mut Translations<'_>,
    shape: &IomapShape,
    folio: &Folio,
    block_bits: u32,
    mut edits: Option<&mut Vec<Edit>>,
) -> Result<(), Reason> {
    let blocks = folio.bytes >> block_bits;
    let state = folio.page.private;
    let broken = Reason::OtherPrivate;
    let at = |offset: u64| state.checked_add(offset).ok_or(broken);
    for pending in [shape.reading, shape.writing] {
        if guest.u32(at(pending as u64)?).ok_or(broken)? != 0 {
            return Err(Reason::IomapBusy);
        }
    }
    let all = if shape.has_dirty { 2 * blocks } else { blocks };
    for word in 0..all.div_ceil(64) {
        let va = at(shape.bits as u64 + 8 * word)?;
        let bits = guest.u64(va).ok_or(broken)?;
        // Blocks of this word that hold up-to-date bits; the rest is dirty bits and must be clear.
        let here = blocks.saturating_sub(64 * word).min(64);
        let uptodate = if here == 64 {
            u64::MAX
        } else {
            (1u64 << here) - 1
        };
        let beyond = all.saturating_sub(64 * word).min(64);
        let counted = if beyond == 64 {
            u64::MAX
        } else {
            (1u64 << beyond) - 1
        };
        if bits & counted & !uptodate != 0 {
            return Err(Reason::IomapBusy);
        }
        if let Some(edits) = edits.as_deref_mut() {
            for (byte, mask) in uptodate
                .to_le_bytes()
                .into_iter()
                .enumerate()
                .filter(|&(_, mask)| mask != 0)
            {
                let gpa = va
                    .checked_add(byte as u64)
                    .and_then(|va| guest.gpa(va))
                    .ok_or(broken)?;
                edits.push(Edit { gpa, and: !mask });
            }
        }
    }
    Ok(())
}

/// The edit that clears one bit of a little-endian word of eight bytes.
fn clear_bit(
    guest: &mut Translations<'_>,
    va: u64,
    bit: u64,
    edits: Option<&mut Vec<Edit>>,
) -> Option<()> {
    if let Some(edits) = edits {
        let number = bit.trailing_zeros();
        let gpa = guest.gpa(va.checked_add(u64::from(number / 8))?)?;
        edits.push(Edit {
            gpa,
            and: !(1 << (number % 8)),
        });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{BASE, Synthetic, word};
    use super::super::{FlatMemory, Guest, Hints, Layout};
    use super::*;

    #[test]
    fn memory_is_bounded_however_many_address_spaces_a_guest_claims() {
        let mut guest = Synthetic::new();
        let file = guest.file("ext4");
        guest.cached(0x300, 0, &file);
        let real = guest.get(Synthetic::page(0x300) + word::MAPPING);
        assert!(real > BASE);
        let layouts = Layout::candidates(guest.bytes.len() as u64);
        let memory = FlatMemory::new(&guest.bytes, &layouts[0]);
        let found = Guest::find(&memory, &Hints::default()).expect("a kernel");
        let shape = found.cache.as_ref().expect("BTF");
        let mut cache = Cache::new(shape, &found.flags, 12, true);
        let mut translations = Translations::new(&memory, found.kernel.tables);
        for number in 0..3 * MAPPINGS_MAX as u64 {
            cache
                .mapping(&mut translations, number << 12)
                .expect_err("nothing is mapped there");
            assert!(cache.mappings.len() <= MAPPINGS_MAX);
        }
        cache
            .mapping(&mut translations, real)
            .expect("still understood");
    }
}
