//! Virtual addresses of the kernel to guest-physical ones: x86_64 with four and five levels, arm64 with pages of 4, 16
//! and 64 KiB. Every walk has as many steps as there are levels, so no table can lead it in circles.

use super::memory::{GuestMemory, read_u64};

/// A guest's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// AMD and Intel, 64 bits.
    X86_64,
    /// ARM, 64 bits.
    Arm64,
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Arch::X86_64 => "x86_64",
            Arch::Arm64 => "arm64",
        })
    }
}

/// The kernel's page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageTables {
    arch: Arch,
    /// Guest-physical address of the top table.
    root: u64,
    /// Log2 of the page size: 12, 14 or 16.
    page_shift: u32,
    /// Bits of a virtual address that the tables translate.
    va_bits: u32,
    levels: u32,
    /// Address bits of an x86 entry that mean encryption and no address.
    encryption: u64,
    /// arm64: entries keep address bits 51:50 in their bits 9:8.
    lpa2: bool,
}

/// What a virtual address is translated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The guest-physical address.
    pub gpa: u64,
    /// Bytes from there to the end of what one entry maps.
    pub left: u64,
    /// Whether the kernel may execute it.
    pub code: bool,
}

/// Bits 51:12 of an entry.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

impl PageTables {
    /// x86_64 (`arch/x86/include/asm/pgtable_types.h`): pages of 4 KiB, nine bits a level.
    pub fn x86_64(root: u64, five_levels: bool, encryption: u64) -> PageTables {
        let levels = if five_levels { 5 } else { 4 };
        PageTables {
            arch: Arch::X86_64,
            root,
            page_shift: 12,
            va_bits: 12 + 9 * levels,
            levels,
            encryption,
            lpa2: false,
        }
    }

    /// arm64 (`arch/arm64/include/asm/pgtable-hwdef.h`): the number of levels follows from page size and `va_bits`.
    pub fn arm64(root: u64, page_shift: u32, va_bits: u32) -> Option<PageTables> {
        if !matches!(page_shift, 12 | 14 | 16) || va_bits <= page_shift || va_bits > 52 {
            return None;
        }
        let levels = (va_bits - page_shift).div_ceil(page_shift - 3);
        let lpa2 = va_bits == 52 && page_shift < 16;
        Some(PageTables {
            arch: Arch::Arm64,
            root,
            page_shift,
            va_bits,
            levels,
            encryption: 0,
            lpa2,
        })
    }

    /// Tables of the same shape that an x86 processor translates by, as its register has it: while a program runs under page
    /// table isolation that is the second of a pair, which maps hardly anything of the kernel, and the first is the kernel's.
    pub fn of_processor(self, root: u64, five_levels: bool) -> [Option<PageTables>; 2] {
        let root = root & !self.encryption;
        let of = |root| {
            let same = five_levels == (self.levels == 5);
            same.then_some(PageTables { root, ..self })
        };
        [of(root), of(root & !0x1000)]
    }

    /// The guest-physical address of the top table.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// The processor that reads these tables.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Levels of tables.
    pub fn levels(&self) -> u32 {
        self.levels
    }

    fn is_kernel(&self, va: u64) -> bool {
        match self.arch {
            Arch::X86_64 => va >> (self.va_bits - 1) == u64::MAX >> (self.va_bits - 1),
            Arch::Arm64 => va >> self.va_bits == u64::MAX >> self.va_bits,
        }
    }

    /// Walks the tables for an address of the kernel.
    pub fn translate(&self, memory: &dyn GuestMemory, va: u64) -> Option<Translated> {
        // The top byte of an arm64 pointer may be a tag; bit 55 says whose address it is.
        let va = if self.arch == Arch::Arm64 {
            ((va << 8) as i64 >> 8) as u64
        } else {
            va
        };
        if !self.is_kernel(va) {
            return None;
        }
        let stride = self.page_shift - 3;
        let mut table = self.root;
        let mut code = true;
        for step in 0..self.levels {
            let shift = self.page_shift + stride * (self.levels - 1 - step);
            let bits = if step == 0 {
                self.va_bits - shift
            } else {
                stride
            };
            let index = (va >> shift) & ((1 << bits) - 1);
            let entry = read_u64(memory, table.checked_add(index * 8)?)?;
            if entry & 1 == 0 {
                return None;
            }
            let last = step + 1 == self.levels;
            let leaf = match self.arch {
                // Bit 7 is the page size bit where a level may have large pages, and PAT at the last one.
                Arch::X86_64 => last || (entry & 0x80 != 0 && shift <= 30),
                Arch::Arm64 if last && entry & 2 == 0 => return None,
                Arch::Arm64 => last || entry & 2 == 0,
            };
            // x86's NX counts at every level; arm64's PXN is another bit in an entry that leads to a table.
            code &= match self.arch {
                Arch::X86_64 => entry >> 63 == 0,
                Arch::Arm64 if leaf => entry >> 53 & 1 == 0,
                Arch::Arm64 => entry >> 59 & 1 == 0,
            };
            let address = self.address(entry);
            if leaf {
                let inside = va & ((1u64 << shift) - 1);
                let base = address & !((1u64 << shift) - 1);
                return Some(Translated {
                    gpa: base + inside,
                    left: (1 << shift) - inside,
                    code,
                });
            }
            table = address;
        }
        None
    }

    fn address(&self, entry: u64) -> u64 {
        match self.arch {
            Arch::X86_64 => entry & ADDRESS & !self.encryption,
            Arch::Arm64 if self.page_shift == 16 => {
                (entry & 0x0000_FFFF_FFFF_0000) | ((entry & 0xF000) << 36)
            }
            Arch::Arm64 if self.lpa2 => {
                (entry & 0x0003_FFFF_FFFF_F000 & !((1 << self.page_shift) - 1))
                    | ((entry & 0x300) << 42)
            }
            Arch::Arm64 => entry & 0x0000_FFFF_FFFF_FFFF & !((1 << self.page_shift) - 1),
        }
    }
}

const SLOTS: usize = 1024;

/// Remembers recent translations, as a processor would. One a thread: it keeps no lock.
pub struct Translations<'m> {
    memory: &'m dyn GuestMemory,
    tables: PageTables,
    /// Virtual page number and the guest-physical address of that page; misses are not kept.
    slots: Vec<(u64, u64)>,
}

impl<'m> Translations<'m> {
    /// With nothing remembered.
    pub fn new(memory: &'m dyn GuestMemory, tables: PageTables) -> Translations<'m> {
        Translations {
            memory,
            tables,
            slots: vec![(u64::MAX, 0); SLOTS],
        }
    }

    /// Where an address lies.
    #[inline]
    pub fn gpa(&mut self, va: u64) -> Option<u64> {
        let (page, inside) = (va >> 12, va & 0xFFF);
        let slot = self.slots.get_mut((page ^ (page >> 10)) as usize % SLOTS)?;
        if slot.0 != page {
            let found = self.tables.translate(self.memory, va & !0xFFF)?;
            *slot = (page, found.gpa);
        }
        slot.1.checked_add(inside)
    }

    /// Fills bytes from a virtual address, page by page where it has to be.
    #[inline]
    pub fn read(&mut self, va: u64, bytes: &mut [u8]) -> bool {
        let mut done = 0usize;
        while done < bytes.len() {
            let Some(at) = va.checked_add(done as u64) else {
                return false;
            };
            let len = ((0x1000 - (at & 0xFFF)) as usize).min(bytes.len() - done);
            let Some(gpa) = self.gpa(at) else {
                return false;
            };
            let Some(part) = bytes.get_mut(done..done + len) else {
                return false;
            };
            match self.memory.slice(gpa, len) {
                Some(slice) if slice.len() == len => part.copy_from_slice(slice),
                _ => {
                    if !self.memory.read(gpa, part) {
                        return false;
                    }
                }
            }
            done += len;
        }
        true
    }

    /// A little-endian word of eight bytes.
    #[inline]
    pub fn u64(&mut self, va: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(va, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }

    /// A little-endian word of four bytes.
    #[inline]
    pub fn u32(&mut self, va: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(va, &mut bytes).then(|| u32::from_le_bytes(bytes))
    }

    /// A text that ends with NUL within `max` bytes.
    pub fn text(&mut self, va: u64, max: usize) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        for step in 0..max {
            let mut byte = [0];
            if !self.read(va.checked_add(step as u64)?, &mut byte) {
                return None;
            }
            match byte {
                [0] => return Some(text),
                [byte] => text.push(byte),
            }
        }
        None
    }
}
