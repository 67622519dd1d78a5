//! What a file tells of the guest's processors: by which page tables they translate the kernel's addresses. From the
//! sections `cpu` of QEMU's device state (`target/i386/machine.c`, `target/arm/machine.c`) and the notes `QEMU` of its
//! cores (`target/i386/arch_dump.c`). Knows registers and no memory.
//!
//! ```text
//! section  04, u32 id, 3, "cpu", u32 instance, u32 version; big-endian, one behind the other:
//!   12, x86_64: u64 regs[16], rip, rflags; u32 hflags; FPU 88 bytes; ten segments, each u32 selector, u64 base, u32
//!       limit, u32 flags; u32 sysenter_cs, u64 esp, u64 eip; u64 cr0, cr2, cr3, cr4
//!   22, arm64: u32 regs[16]; u64 xregs[32], pc; u32 cpsr, spsr; u64 banked_spsr[8]; u32 banked_r13[8], banked_r14[8],
//!       usr_regs[5], fiq_regs[5]; u64 elr_el[4], sp_el[4]; u32 n; u64 indexes[n], ascending, and u64 values[n]; 64 bytes;
//!       u8, whether it is off
//! note     u32 version, size; u64 regs[16], rip, rflags; ten segments, each u32 selector, limit, flags, pad, u64 base;
//!          u64 cr[5]; little-endian
//! ```

use memchr::memmem;

use super::address::Gpa;

/// The top page table by which a processor translates addresses of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TopTable {
    /// Where it lies.
    pub gpa: Gpa,
    /// Whether the processor walks five levels from it (x86's LA57).
    pub five_levels: bool,
}

/// More processors than any guest has: with more of them nothing is believed of any.
pub(super) const MOST: usize = 4096;

/// Registers of one arm64 processor: it has some hundreds.
const REGISTERS_MOST: usize = 4096;

/// The bytes before the name of a section, and those between the name and the body.
const BEFORE: usize = 5;
const AFTER: usize = 8;
const NAME: &[u8] = b"\x03cpu";

/// The numbers of registers in an arm64 section: those of KVM's interface (`arch/arm64/include/uapi/asm/kvm.h`), by op0,
/// op1, CRn, CRm and op2.
const fn register(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    0x6030_0000_0013_0000 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// The table of the kernel's half of addresses and the register whose bit 0 turns translation on, where the kernel runs
/// in EL1 and where it runs in EL2.
const ARM_TABLES: [(u64, u64); 2] = [
    (register(3, 0, 2, 0, 1), register(3, 0, 1, 0, 0)),
    (register(3, 4, 2, 0, 1), register(3, 4, 1, 0, 0)),
];

/// By which tables the processors in a device state translate. None where no processor is found, or one whose state is not
/// understood: a part of them proves nothing. Those that translate nothing, as in firmware, give no table.
pub(super) fn of_device_state(state: &[u8]) -> Option<Vec<TopTable>> {
    let is_full = |at: &usize| {
        let kind = at.checked_sub(BEFORE).and_then(|at| state.get(at));
        kind == Some(&0x04)
    };
    let of_section = |at: usize| {
        let rest = state.get(at + NAME.len()..)?;
        let (head, body) = rest.split_first_chunk::<AFTER>()?;
        let version = u32::from_be_bytes(*head.last_chunk()?);
        match version {
            12 => {
                let registers = IN_SECTION.map(|at| word(body, at).map(u64::from_be_bytes));
                Some(x86(registers))
            }
            22 => Some(arm64(body)),
            _ => None,
        }
    };
    let sections = memmem::find_iter(state, NAME).filter(is_full);
    together(sections.filter_map(of_section))
}

/// The same of the content of a note of x86.
pub(super) fn of_note(note: &[u8]) -> Option<Vec<TopTable>> {
    x86(IN_NOTE.map(|at| word(note, at).map(u64::from_le_bytes)))
}

/// What several processors translate by; none where there are none, one that is not understood, or more than any guest has.
pub(super) fn together(
    processors: impl Iterator<Item = Option<Vec<TopTable>>>,
) -> Option<Vec<TopTable>> {
    let mut count = 0;
    let mut tables = Vec::new();
    for processor in processors {
        count += 1;
        if count > MOST {
            return None;
        }
        tables.extend(processor?);
    }
    if count == 0 {
        return None;
    }
    tables.sort_unstable_by_key(|table| (table.gpa.0, table.five_levels));
    tables.dedup();
    Some(tables)
}

/// Where rflags, cr0, cr3 and cr4 stand.
const IN_SECTION: [usize; 4] = [136, 456, 472, 480];
const IN_NOTE: [usize; 4] = [144, 392, 416, 424];

/// What an x86 processor translates by. None where these registers hold what they cannot: then it is not what it seemed
/// to be.
fn x86(registers: [Option<u64>; 4]) -> Option<Vec<TopTable>> {
    let [Some(flags), Some(cr0), Some(cr3), Some(cr4)] = registers else {
        return None;
    };
    // Bit 1 of the flags is always set, and the upper halves are reserved but for one bit (CR4.FRED).
    if flags & 2 == 0 || (flags | cr0) >> 32 != 0 || cr4 >> 33 != 0 {
        return None;
    }
    let (paging, physical_extension) = (cr0 >> 31 & 1 == 1, cr4 >> 5 & 1 == 1);
    if !paging || !physical_extension {
        return Some(Vec::new());
    }
    Some(vec![TopTable {
        gpa: Gpa(cr3 & 0x000F_FFFF_FFFF_F000),
        five_levels: cr4 >> 12 & 1 == 1,
    }])
}

/// Bytes before the number of registers in an arm64 section.
const ARM_LIST: usize = 64 + 256 + 8 + 4 + 4 + 64 + 32 + 32 + 20 + 20 + 32 + 32;

/// Bytes between the values of registers and the one that tells whether the processor is off: three words of its exclusive
/// access and one of its features, two half words and a word of its exception, two timers.
const ARM_BEFORE_OFF: usize = 64;

fn arm64(body: &[u8]) -> Option<Vec<TopTable>> {
    let (count, lists) = body.get(ARM_LIST..)?.split_first_chunk()?;
    let count = u32::from_be_bytes(*count) as usize;
    if count > REGISTERS_MOST {
        return None;
    }
    let (numbers, values) = lists.get(..count * 16)?.split_at_checked(count * 8)?;
    let numbers = numbers.as_chunks::<8>().0.iter();
    let numbers: Vec<u64> = numbers.map(|bytes| u64::from_be_bytes(*bytes)).collect();
    if !numbers.is_sorted() {
        return None;
    }
    let value = |register: u64| {
        let at = numbers.binary_search(&register).ok()?;
        word(values, at * 8).map(u64::from_be_bytes)
    };
    // Every processor has EL1.
    let [(first, _), _] = ARM_TABLES;
    value(first)?;
    // One that is off keeps its registers: kexec turns all off but the one that goes on to the new kernel.
    let is_off = lists.get(count * 16 + ARM_BEFORE_OFF)?;
    if *is_off == 1 {
        return Some(Vec::new());
    }
    let of_level = |(table, control): (u64, u64)| {
        let translates = value(control)? & 1 == 1;
        // Above the address is the address space's number, below it are flags.
        let gpa = Gpa(value(table)? & 0x0000_FFFF_FFFF_F000);
        translates.then_some(TopTable {
            gpa,
            five_levels: false,
        })
    };
    Some(ARM_TABLES.into_iter().filter_map(of_level).collect())
}

fn word(bytes: &[u8], at: usize) -> Option<[u8; 8]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RUNNING: (u64, u64, u64) = (0x8005_0033, 0x1ae2_2801, 0x75_0ef0);

    fn section(instance: u32, version: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x04];
        bytes.extend(7u32.to_be_bytes());
        bytes.extend(NAME);
        bytes.extend(instance.to_be_bytes());
        bytes.extend(version.to_be_bytes());
        bytes.extend(body);
        bytes.extend([0x7e, 0, 0, 0, 7]);
        bytes
    }

    fn x86_body((cr0, cr3, cr4): (u64, u64, u64)) -> Vec<u8> {
        let mut body = vec![0; 2048];
        let words = [(136, 0x246), (456, cr0), (472, cr3), (480, cr4)];
        for (at, word) in words {
            body[at..at + 8].copy_from_slice(&u64::to_be_bytes(word));
        }
        body
    }

    fn arm_body(registers: &[(u64, u64)]) -> Vec<u8> {
        let mut body = vec![0; ARM_LIST];
        body.extend((registers.len() as u32).to_be_bytes());
        body.extend(registers.iter().flat_map(|of| of.0.to_be_bytes()));
        body.extend(registers.iter().flat_map(|of| of.1.to_be_bytes()));
        body.extend([0; ARM_BEFORE_OFF]);
        body.push(0);
        body
    }

    fn table(gpa: u64) -> TopTable {
        TopTable {
            gpa: Gpa(gpa),
            five_levels: false,
        }
    }

    #[test]
    fn each_processor_gives_its_table_once() {
        let mut state = b"\x04\0\0\0\x01\x05timer\0\0\0\0\0\0\0\x02".to_vec();
        for (instance, cr3) in [(0, 0x1ae2_2801), (1, 0x1000), (2, 0x1ae2_2000)] {
            let body = x86_body((RUNNING.0, cr3, RUNNING.2));
            state.extend(section(instance, 12, &body));
        }
        let found = of_device_state(&state);
        assert_eq!(found, Some(vec![table(0x1000), table(0x1ae2_2000)]));
    }

    #[test]
    fn a_processor_that_does_not_translate_gives_none() {
        // As a reset leaves it, and as a boot loader of 32 bits has it.
        for registers in [(0x6000_0010, 0, 0), (0x8000_0011, 0x1000, 0)] {
            let state = section(0, 12, &x86_body(registers));
            assert_eq!(of_device_state(&state), Some(vec![]));
        }
        let mut state = section(0, 12, &x86_body((0x6000_0010, 0, 0)));
        let five = x86_body((RUNNING.0, RUNNING.1, RUNNING.2 | 1 << 12));
        state.extend(section(1, 12, &five));
        let wanted = TopTable {
            gpa: Gpa(0x1ae2_2000),
            five_levels: true,
        };
        assert_eq!(of_device_state(&state), Some(vec![wanted]));
        let fred = x86_body((RUNNING.0, RUNNING.1, RUNNING.2 | 1 << 32));
        let found = of_device_state(&section(0, 12, &fred));
        assert_eq!(found, Some(vec![table(0x1ae2_2000)]));
    }

    #[test]
    fn what_is_not_understood_tells_nothing() {
        let body = x86_body(RUNNING);
        let named = section(0, 12, &body);
        let mut other_kind = named.clone();
        other_kind[0] = 0x05;
        let mut no_flags = body.clone();
        no_flags[136..144].fill(0);
        let cases = [
            Vec::new(),
            section(0, 11, &body),
            section(0, 12, &body[..480]),
            section(0, 12, &no_flags),
            section(0, 12, &x86_body((1 << 32, 0, 0))),
            other_kind,
            [section(0, 12, &body), section(1, 12, &no_flags)].concat(),
            vec![section(0, 12, &body); MOST + 1].concat(),
            section(0, 22, &arm_body(&[])),
            section(0, 22, &body),
        ];
        for case in cases {
            assert_eq!(of_device_state(&case), None);
        }
    }

    #[test]
    fn an_arm64_processor_translates_where_its_control_register_says_so() {
        let [(table_1, control_1), (table_2, control_2)] = ARM_TABLES;
        // As KVM numbers TTBR1_EL1.
        assert_eq!(table_1, 0x6030_0000_0013_C101);
        let state = |mut registers: Vec<(u64, u64)>| {
            registers.extend([(1, 7), (u64::MAX, 8)]);
            registers.sort_unstable();
            of_device_state(&section(0, 22, &arm_body(&registers)))
        };
        let space: u64 = 0x42 << 48 | 1;
        let on = |at: u64| vec![(table_1, at | space), (control_1, 0x30d0_0801)];
        assert_eq!(state(on(0x4215_3000)), Some(vec![table(0x4215_3000)]));
        let off = vec![(table_1, 0x4215_3000), (control_1, 0x30d0_0800)];
        assert_eq!(state(off.clone()), Some(vec![]));
        let mut of_hypervisor = off;
        of_hypervisor.extend([(table_2, 0x4300_0000), (control_2, 1)]);
        assert_eq!(state(of_hypervisor), Some(vec![table(0x4300_0000)]));
        let [on_table, on_control]: [(u64, u64); 2] = on(0x1000).try_into().expect("two");
        let mut is_off = arm_body(&[on_control, on_table]);
        let of = |body: &[u8]| of_device_state(&section(0, 22, body));
        assert_eq!(of(&is_off), Some(vec![table(0x1000)]));
        *is_off.last_mut().expect("bytes") = 1;
        assert_eq!(of(&is_off), Some(vec![]));
        // A list that is out of order is none.
        let [first, second]: [(u64, u64); 2] = on(0x1000).try_into().expect("two");
        let unsorted = section(0, 22, &arm_body(&[first, second]));
        assert!(first.0 > second.0);
        assert_eq!(of_device_state(&unsorted), None);
    }

    #[test]
    fn a_note_tells_the_same() {
        let mut note = vec![0; 440];
        let words = [
            (144, 0x246),
            (392, RUNNING.0),
            (416, RUNNING.1),
            (424, RUNNING.2),
        ];
        for (at, word) in words {
            note[at..at + 8].copy_from_slice(&u64::to_le_bytes(word));
        }
        assert_eq!(of_note(&note), Some(vec![table(0x1ae2_2000)]));
        assert_eq!(of_note(&note[..424]), None);
        assert_eq!(of_note(&[0; 440]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(
            head in proptest::collection::vec(any::<u8>(), 0..16),
            version in prop_oneof![Just(12u32), Just(22)],
            body in proptest::collection::vec(any::<u8>(), 0..4096),
        ) {
            let mut state = head;
            state.extend(section(0, version, &body));
            let _ = (of_device_state(&state), of_note(&body));
        }
    }
}
