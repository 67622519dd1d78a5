//! Whether the kernel that was found is the one that runs, by what the processors walk.

use super::super::synthetic::{Synthetic, VMCOREINFO};
use super::*;

/// Where the guest's top table lies, and a page that nothing of it lies in, before a second one.
const TOP: u64 = 0x1000;
const FREE: u64 = 0x3F_C000;

fn found(guest: &Synthetic, tables: Option<Vec<TopTable>>) -> Option<GuestError> {
    let layouts = Layout::candidates(guest.bytes.len() as u64);
    let memory = FlatMemory::new(&guest.bytes, &layouts[0]);
    let hints = Hints {
        tables,
        ..Hints::default()
    };
    Guest::find(&memory, &hints).err()
}

fn top(gpa: u64) -> TopTable {
    TopTable {
        gpa,
        five_levels: false,
    }
}

#[test]
fn a_kernel_runs_where_a_processor_walks_tables_that_map_it() {
    let mut guest = Synthetic::new();
    assert_eq!(found(&guest, None), None);
    assert_eq!(found(&guest, Some(vec![top(TOP)])), None);
    // A program's table: the kernel's half is the same.
    guest.put(FREE + 8 * 511, 0x2067);
    assert_eq!(found(&guest, Some(vec![top(FREE)])), None);
    // Others may do something else: firmware's tables, or none.
    assert_eq!(found(&guest, Some(vec![top(0x8000), top(FREE)])), None);
}

#[test]
fn a_program_under_page_table_isolation_runs_on_its_kernel() {
    let mut guest = Synthetic::new();
    guest.put(FREE + 8 * 511, 0x2067);
    assert_eq!(found(&guest, Some(vec![top(FREE + 0x1000)])), None);
}

#[test]
fn a_kernel_that_no_processor_walks_does_not_run() {
    let mut guest = Synthetic::new();
    let no = Some(GuestError::NotRunning);
    // Firmware without paging; tables that map nothing; tables out of memory.
    for tables in [vec![], vec![top(FREE)], vec![top(1 << 40)]] {
        assert_eq!(found(&guest, Some(tables)), no);
    }
    // Where they map the kernel's addresses to something else.
    guest.put(FREE + 8 * 511, (FREE + 0x2000) | 0x67);
    guest.put(FREE + 0x2000 + 8 * 510, (FREE + 0x3000) | 0x67);
    guest.put(FREE + 0x3000, (2 << 21) | 0xE3);
    assert_eq!(found(&guest, Some(vec![top(FREE)])), no);
    // Five levels are not four.
    let five = TopTable {
        gpa: TOP,
        five_levels: true,
    };
    assert_eq!(found(&guest, Some(vec![five])), no);
}

/// The kernel that was left before a reboot passes all checks, and is mapped by its own tables alone.
#[test]
fn of_two_kernels_the_one_that_runs_is_found() {
    let mut guest = Synthetic::new();
    let text = guest.bytes[VMCOREINFO as usize..][..4096].to_vec();
    let copy = VMCOREINFO as usize + 0x1000;
    // Another image: 2 MiB further on, with a name of its own, by tables of its own.
    let moved = String::from_utf8_lossy(&text)
        .replace(
            "NUMBER(phys_base)=0",
            &format!("NUMBER(phys_base)={}", 2 << 20),
        )
        .replace("6.12.0-synthetic", "6.11.0-synthetic");
    assert_ne!(moved.as_bytes(), text);
    guest.bytes[copy..copy + 4096].copy_from_slice(&moved.as_bytes()[..4096]);
    let other = TOP + (2 << 20);
    guest.put(other + 8 * 511, (FREE + 0x2000) | 0x67);
    guest.put(FREE + 0x2000 + 8 * 510, (FREE + 0x3000) | 0x67);
    guest.put(FREE + 0x3000, (1 << 21) | 0xE3);
    let name = (2 << 20) + 0x2_0000 + 130;
    guest.bytes[name..][..16].copy_from_slice(b"6.11.0-synthetic");
    assert_eq!(found(&guest, None), Some(GuestError::TwoKernels));
    let running = |table: u64| {
        let layouts = Layout::candidates(guest.bytes.len() as u64);
        let memory = FlatMemory::new(&guest.bytes, &layouts[0]);
        let hints = Hints {
            tables: Some(vec![top(table)]),
            ..Hints::default()
        };
        Kernel::find(&memory, &hints).map(|kernel| kernel.release)
    };
    assert_eq!(running(TOP), Ok("6.12.0-synthetic".to_owned()));
    assert_eq!(running(other), Ok("6.11.0-synthetic".to_owned()));
    assert_eq!(running(FREE), Err(GuestError::NotRunning));
}
