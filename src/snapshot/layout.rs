//! Where a guest's RAM lies in its physical address space. Most formats hold RAM as one run of bytes and do
//! not say where the hole below 4 GiB is; so a layout is a candidate until the guest itself has confirmed
//! it. Knows the machines' memory maps and nothing of file bytes.

use std::fmt;

use super::address::Gpa;

/// One GiB.
const GIB: u64 = 1 << 30;

/// Where the upper part of an x86 guest's RAM begins.
const ABOVE_4G: u64 = 4 * GIB;

/// One run of guest RAM: where the guest sees it, and where it lies in the map's own RAM space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// The guest-physical address of the first byte.
    pub gpa: Gpa,
    /// The place of that byte in RAM space: the RAM blocks of the file, end to end, in bytes.
    pub ram: u64,
    /// The length in bytes.
    pub length: u64,
}

/// A guess, or the file's own word, on how RAM space maps to guest-physical addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    name: String,
    by_gpa: Vec<RamRange>,
    by_ram: Vec<RamRange>,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Layout {
    /// A layout of the given ranges; nothing if two of them overlap on either side or one leaves the 52 bits
    /// of a physical address. Empty ranges are dropped.
    pub fn new(
        name: impl Into<String>,
        ranges: impl IntoIterator<Item = RamRange>,
    ) -> Option<Self> {
        let mut by_gpa: Vec<RamRange> = ranges
            .into_iter()
            .filter(|range| range.length > 0)
            .collect();
        if by_gpa
            .iter()
            .any(|range| !fits(range.gpa.0, range.length) || !fits(range.ram, range.length))
        {
            return None;
        }
        let mut by_ram = by_gpa.clone();
        by_gpa.sort_unstable_by_key(|range| range.gpa);
        by_ram.sort_unstable_by_key(|range| range.ram);
        let apart = |earlier: u64, length: u64, later: u64| earlier + length <= later;
        let sound = by_gpa
            .iter()
            .zip(by_gpa.iter().skip(1))
            .all(|(a, b)| apart(a.gpa.0, a.length, b.gpa.0))
            && by_ram
                .iter()
                .zip(by_ram.iter().skip(1))
                .all(|(a, b)| apart(a.ram, a.length, b.ram));
        sound.then(|| Self {
            name: name.into(),
            by_gpa,
            by_ram,
        })
    }

    /// RAM laid into the slots in their order, each filled before the next is begun; nothing if it does not
    /// fit into them.
    fn fill(name: impl Into<String>, start: u64, total: u64, slots: &[(u64, u64)]) -> Option<Self> {
        let mut left = total;
        let mut ranges = Vec::new();
        for &(gpa, room) in slots {
            let length = left.min(room);
            let ram = start + (total - left);
            ranges.push(RamRange {
                gpa: Gpa(gpa),
                ram,
                length,
            });
            left -= length;
        }
        (left == 0).then(|| Self::new(name, ranges))?
    }

    /// What the layout was derived from, for a person.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ranges of guest RAM by guest-physical address.
    pub fn ranges(&self) -> &[RamRange] {
        &self.by_gpa
    }

    /// The guest-physical address of a byte of RAM space, and how many bytes go on from there.
    pub(super) fn gpa_of(&self, ram: u64) -> Option<(Gpa, u64)> {
        let after = self.by_ram.partition_point(|range| range.ram <= ram);
        let range = self.by_ram.get(after.checked_sub(1)?)?;
        let inside = ram - range.ram;
        (inside < range.length).then(|| (Gpa(range.gpa.0 + inside), range.length - inside))
    }

    /// How many bytes of RAM space from here on belong to no range; `u64::MAX` if all of them.
    pub(super) fn unmapped_from(&self, ram: u64) -> u64 {
        let after = self.by_ram.partition_point(|range| range.ram <= ram);
        self.by_ram
            .get(after)
            .map_or(u64::MAX, |next| next.ram - ram)
    }

    /// The place in RAM space of a guest-physical address, and how many bytes go on from there.
    pub(super) fn ram_of(&self, gpa: Gpa) -> Option<(u64, u64)> {
        let after = self.by_gpa.partition_point(|range| range.gpa <= gpa);
        let range = self.by_gpa.get(after.checked_sub(1)?)?;
        let inside = gpa.0 - range.gpa.0;
        (inside < range.length).then(|| (range.ram + inside, range.length - inside))
    }
}

/// Whether a range of bytes stays within the 52 bits of a physical address.
pub(super) fn fits(start: u64, length: u64) -> bool {
    start.checked_add(length).is_some_and(|end| end <= 1 << 52)
}

/// What wrote the RAM, as far as the file tells; it decides which candidates come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    /// QEMU `pc-q35-*`.
    Q35,
    /// QEMU `pc-i440fx-*`.
    I440fx,
    /// QEMU `microvm`.
    Microvm,
    /// QEMU `virt` on arm64.
    Virt,
    /// A raw image: Firecracker, Cloud Hypervisor, a physical memory dump, or any other.
    Raw,
    /// Some other machine.
    Other,
}

impl Machine {
    /// From the machine name in a QEMU stream.
    pub(super) fn of_qemu(name: &str) -> Self {
        if name.starts_with("pc-q35") || name == "q35" {
            Self::Q35
        } else if name.starts_with("pc-i440fx") || name == "pc" {
            Self::I440fx
        } else if name == "microvm" {
            Self::Microvm
        } else if name.starts_with("virt") {
            Self::Virt
        } else {
            Self::Other
        }
    }
}

/// The layouts that a guest with `total` bytes of RAM, from `start` in RAM space, may have; the likely ones
/// first, no two alike. Sources: QEMU `hw/i386/pc_q35.c`, `pc_piix.c`, `microvm.c`, `hw/arm/virt.c`; the `layout.rs`
/// files of Firecracker and Cloud Hypervisor.
pub(super) fn candidates(machine: Machine, start: u64, total: u64) -> Vec<Layout> {
    let x86 = |low: u64| {
        let name = if total <= low {
            "RAM from 0 without a gap".to_owned()
        } else {
            format!("RAM from 0, gap from {low:#x} to 4 GiB")
        };
        Layout::fill(name, start, total, &[(0, low), (ABOVE_4G, u64::MAX)])
    };
    let based = |base: u64| {
        Layout::fill(
            format!("RAM from {base:#x}"),
            start,
            total,
            &[(base, u64::MAX)],
        )
    };
    // Firecracker since 2025 keeps [256, 512) GiB for devices; see its `arch/*/layout.rs`.
    let firecracker = || {
        let slots = [
            (0, 0xC000_0000),
            (ABOVE_4G, 252 * GIB),
            (512 * GIB, u64::MAX),
        ];
        Layout::fill(
            "RAM from 0, gaps from 3 to 4 and 256 to 512 GiB",
            start,
            total,
            &slots,
        )
    };
    let firecracker_arm = || {
        let slots = [(2 * GIB, 254 * GIB), (512 * GIB, u64::MAX)];
        Layout::fill(
            "RAM from 2 GiB, gap from 256 to 512 GiB",
            start,
            total,
            &slots,
        )
    };
    // QEMU moves the upper part of large guests above the HyperTransport window of AMD hosts.
    let above_1t = |low: u64| {
        let slots = [(0, low), (1024 * GIB, u64::MAX)];
        Layout::fill(
            format!("RAM from 0, gap from {low:#x} to 1 TiB"),
            start,
            total,
            &slots,
        )
    };
    let large = total > 900 * GIB;
    let very_large = total > 252 * GIB;

    let mut list = Vec::new();
    match machine {
        Machine::Q35 => list.push(x86(if total >= 0xB000_0000 {
            0x8000_0000
        } else {
            total
        })),
        Machine::I440fx => list.push(x86(if total >= 0xE000_0000 {
            0xC000_0000
        } else {
            total
        })),
        Machine::Microvm => list.push(x86(0xC000_0000)),
        Machine::Virt => list.push(based(GIB)),
        Machine::Raw => {
            if very_large {
                list.push(firecracker());
            }
            // Firecracker's new split and Cloud Hypervisor's, Firecracker's old one, and pmemsave,
            // which saves the gap as well.
            list.extend([x86(0xC000_0000), x86(0xD000_0000), x86(u64::MAX)]);
        }
        Machine::Other => {}
    }
    for low in [
        0xB000_0000,
        0xC000_0000,
        0xD000_0000,
        0xE000_0000,
        0x8000_0000,
    ] {
        list.push(x86(low));
        if large {
            list.push(above_1t(low));
        }
    }
    list.extend((1..8).map(|half| x86(half * (GIB / 2))));
    list.push(x86(u64::MAX));
    if very_large {
        list.push(firecracker_arm());
    }
    list.extend([based(GIB), based(2 * GIB)]);

    let mut distinct: Vec<Layout> = Vec::new();
    for layout in list.into_iter().flatten() {
        if !distinct.iter().any(|known| known.by_gpa == layout.by_gpa) {
            distinct.push(layout);
        }
    }
    distinct
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_guest_has_few_candidates_and_the_likely_one_first() {
        let list = candidates(Machine::Q35, 0, 256 << 20);
        assert_eq!(list.len(), 3, "{list:?}");
        assert_eq!(
            list[0].ram_of(Gpa(0x1234)),
            Some((0x1234, (256 << 20) - 0x1234))
        );
        assert_eq!(
            candidates(Machine::Virt, 0, 256 << 20)[0].ranges()[0].gpa,
            Gpa(GIB)
        );
    }

    #[test]
    fn the_gap_is_where_the_machine_has_it() {
        let list = candidates(Machine::Q35, 4096, 6 * GIB);
        assert_eq!(list[0].ram_of(Gpa(0x8000_0000)), None);
        assert_eq!(
            list[0].ram_of(Gpa(ABOVE_4G)),
            Some((4096 + 2 * GIB, 4 * GIB))
        );
        assert_eq!(
            list[0].gpa_of(4096 + 2 * GIB),
            Some((Gpa(ABOVE_4G), 4 * GIB))
        );
        assert_eq!(list[0].gpa_of(0), None);
        assert_eq!(list[0].unmapped_from(0), 4096);
        let raw = candidates(Machine::Raw, 0, 6 * GIB);
        assert_eq!(raw[0].ram_of(Gpa(ABOVE_4G)), Some((3 * GIB, 3 * GIB)));
        for low in (1..8).map(|half| half << 29) {
            let wanted = Some((low, 6 * GIB - low));
            assert!(
                raw.iter()
                    .any(|layout| layout.ram_of(Gpa(ABOVE_4G)) == wanted),
                "{low:#x}"
            );
        }
    }

    #[test]
    fn ranges_that_overlap_or_leave_the_address_space_are_refused() {
        let range = |gpa, ram, length| RamRange {
            gpa: Gpa(gpa),
            ram,
            length,
        };
        assert!(Layout::new("", [range(0, 0, 8192), range(4096, 8192, 4096)]).is_none());
        assert!(Layout::new("", [range(0, 0, 8192), range(8192, 4096, 4096)]).is_none());
        assert!(Layout::new("", [range(u64::MAX, 0, 1)]).is_none());
        assert!(Layout::new("", [range(0, 1 << 52, 1)]).is_none());
        assert!(Layout::new("", [range(8192, 0, 4096), range(0, 4096, 8192)]).is_some());
    }
}
