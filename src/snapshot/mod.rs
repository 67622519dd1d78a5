//! What the bytes of a file are: one file a format; every format gives a page map between file ranges and
//! guest-physical pages. Pure: it reads bytes through a trait and knows no disks.
//!
//! A finished file goes through [`index()`]; a file that is being written is followed by an [`Indexer`], which
//! is shown every write and gives the same answer at the commit without having to read the pages again. The
//! answer is a [`Snapshot`]: a [`Format`], and either a [`PageMap`] or the reason why all bytes have
//! to be kept as they are.
//!
//! ```text
//! recognise            the first bytes decide on one of
//!   stream, qemu       QEMU's stream, forward in one pass     mapped_ram   QEMU's bitmaps
//!   libvirt            the header around either               elf, lime    ranges that the file names
//!   raw                no header at all                       kdump, foreign   known and opaque
//! runs                 what the file is made of, in file order, run by run
//! supersede            what a later record of a live save replaces
//! heads                what the map can write again
//! kept                 the map as bytes, to be kept with the file
//! index, pieces, map   the questions: address to place, file range to pieces, pages by address
//! layout, ram_blocks   candidates for where RAM is in the guest, to be confirmed by the guest
//! processors           the page tables that the guest's processors walk
//! ```
//!
//! Everything read here may have been made to harm: no count or length is believed before it is compared with
//! the file, memory is bounded by the caller, and nothing panics.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod address;
pub mod cloud_hypervisor;
mod elf;
mod error;
mod foreign;
mod heads;
mod index;
mod indexer;
mod kdump;
mod kept;
mod layout;
mod libvirt;
mod lime;
mod map;
mod mapped_ram;
mod physical;
mod pieces;
mod processors;
mod qemu;
mod ram_blocks;
mod raw;
mod recognise;
mod runs;
mod source;
mod stream;
mod supersede;
#[cfg(test)]
pub(crate) mod tests;
mod xbzrle;
mod zero;

pub use address::Gpa;
pub use error::{Opaque, SnapshotError};
pub use heads::Heads;
pub use indexer::Indexer;
pub use layout::{Layout, RamRange};
pub use libvirt::{Declared, payload as libvirt_payload};
pub use map::{AddressRun, Addresses, Block, Content, Counts, PageMap, Place};
pub use pieces::{Piece, PieceKind, Pieces};
pub use processors::TopTable;
pub use recognise::{
    Architecture, Contents, Format, HEAD, Hints, MAP_LIMIT, NotePlace, Snapshot, format_by_head,
    index, index_within, may_have_pages,
};
pub use source::{ByteSource, PastLosses};
pub use zero::is_zero;
