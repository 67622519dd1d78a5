//! Where the bytes rest: blocks, windows, parity, segments, manifests. It knows disks and no VMs.

pub mod block;
pub mod cache;
pub mod compression;
pub mod disks;
pub mod header;
pub mod manifest;
pub mod parity;
pub mod reader;
mod records;
pub mod window_form;
pub mod wire;

pub use records::*;
