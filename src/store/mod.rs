//! Where the bytes rest: blocks, windows, parity, segments, manifests. It knows disks and no VMs.

mod records;

pub use records::*;
