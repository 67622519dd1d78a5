//! Where the bytes rest: blocks, windows, parity, segments, manifests. It knows disks and no VMs.

pub mod block;
pub mod budget;
mod buffers;
pub mod cache;
pub mod compression;
pub mod disks;
pub mod header;
pub mod manifest;
pub mod parity;
mod pipeline;
mod placement;
pub mod reader;
mod records;
mod room;
mod segment;
mod set_writer;
mod window;
pub mod window_form;
pub mod wire;
mod workers;

pub use budget::{Budget, Permit};
pub use buffers::{Buffer, Buffers};
pub use cache::BlockCache;
pub use compression::Compression;
pub use disks::{DiskState, Disks, Takes};
pub use pipeline::{NoWindow, Pipeline, WritePolicy};
pub use placement::{Candidate, data_capacity};
pub use reader::{ReadError, Reader};
pub use records::*;
pub use room::{Room, beyond_reserve};
pub use segment::AppendError;
pub use set_writer::{Begun, SetWriter, WriteError};
pub use window::{Held, Lane, OpenWindow, SealedBlock};
pub use workers::{Hurry, Workers};
