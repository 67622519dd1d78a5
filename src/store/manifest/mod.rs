//! The base manifest of a committed file: what the file is made of, in one object that lies whole on every
//! disk. Knows extents, windows and pages of bytes; not what is in the blocks, nor where in the tree the
//! file is (the volume puts that into the description, for a rescue).
//!
//! The object is a row of pages (`page.rs`), grouped into sections, the last page being the root
//! (`root.rs`). Extents and windows are sorted; beside each is a section of *fences*, the first key of each
//! page, so that a lookup in a file of 1 TiB reads some ten pages, and the next lookup fewer. Nothing is read
//! before it is asked for: opening reads the root.
//!
//! | section | an entry |
//! | --- | --- |
//! | extents | offset 8 · length 4 · window or piece 4 · first byte in it 4 · place in the window 2 · kind 1 (1 block, 2 inline) · 0 1 |
//! | extent fences | offset 8 |
//! | windows | bytes: records end to end (`store/window_form.rs`) |
//! | window fences | window 4 · 0 4 · where its record begins in the section's bytes 8 |
//! | sets | segment set 8 · bytes of blocks 8 · bytes of parity 8 |
//! | description | bytes |
//!
//! Bytes of the file that no extent covers are holes.

mod delta;
mod extents;
mod page;
mod pages;
mod reader;
mod root;
mod writer;

pub use delta::{DeltaError, decode as decode_delta, encode as encode_delta};
pub use extents::Extents;
pub use page::PAGE;
pub use pages::ManifestCache;
pub use reader::{Manifest, Windows};
pub use root::Totals;
pub use writer::{ManifestWriteError, ManifestWriter};

use super::wire::Wire;
use crate::ids::{FileId, ManifestId, SetId};

/// What the metadata remembers of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestRef {
    /// Its number.
    pub id: ManifestId,
    /// Its length in bytes, a multiple of `PAGE`.
    pub length: u64,
    /// xxh3 of its last page.
    pub root: u64,
}

impl ManifestRef {
    /// Bytes of an encoded reference.
    pub const ENCODED: usize = 24;

    /// Number 8, length 8, root 8, little-endian.
    pub fn encode(&self) -> [u8; Self::ENCODED] {
        let mut out = [0; Self::ENCODED];
        for (place, number) in out.chunks_mut(8).zip([self.id.0, self.length, self.root]) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        out
    }

    /// The reference, unless the bytes are none.
    pub fn decode(bytes: &[u8]) -> Option<ManifestRef> {
        let mut wire = Wire::new(bytes);
        let reference = ManifestRef {
            id: ManifestId(wire.u64()?),
            length: wire.u64()?,
            root: wire.u64()?,
        };
        let whole = reference.length > 0 && reference.length.is_multiple_of(PAGE as u64);
        (wire.left() == 0 && whole).then_some(reference)
    }
}

/// What a file has in one segment set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetUse {
    /// The set.
    pub set: SetId,
    /// Stored bytes of the file's blocks, headers included.
    pub blocks: u64,
    /// Stored bytes of its parity, headers included.
    pub parity: u64,
}

/// A manifest that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// No disk has a good copy of a page.
    #[error(
        "page {page} of {manifest} cannot be read from any disk ({tried}); bring a disk back that is missing, or restore the file from elsewhere"
    )]
    Page {
        /// The page, from 0.
        page: u64,
        /// The manifest and its file.
        manifest: ManifestName,
        /// What each disk said.
        tried: String,
    },
    /// A page is as it was written, and still makes no sense.
    #[error("{manifest} cannot be understood: {what}")]
    Format {
        /// The manifest and its file.
        manifest: ManifestName,
        /// What does not fit.
        what: &'static str,
    },
}

/// A manifest as errors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestName {
    /// The manifest.
    pub id: ManifestId,
    /// Its file, once known.
    pub file: Option<FileId>,
}

impl std::fmt::Display for ManifestName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.file {
            Some(file) => write!(f, "manifest {} of file {file}", self.id),
            None => write!(f, "manifest {}", self.id),
        }
    }
}

#[cfg(test)]
mod tests;
