//! What can go wrong and what cannot be mapped. The two are apart: a file that is no snapshot, or a broken
//! one, is an ordinary answer ([`Opaque`]); only a source that cannot be read is an error.

use std::io;

use thiserror::Error;

/// The bytes could not be had.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The source could not tell its length.
    #[error("cannot tell the length of the snapshot")]
    Length(#[source] io::Error),
    /// The source could not give bytes that it said to have.
    #[error("cannot read the snapshot at byte {offset}")]
    Read {
        /// The file offset in bytes.
        offset: u64,
        /// What the source said.
        #[source]
        source: io::Error,
    },
    /// A page that is stored as a page and later deltas could not be put together.
    #[error("the delta at byte {offset} does not fit its page")]
    Delta {
        /// The file offset of the delta in bytes.
        offset: u64,
    },
    /// A page has more deltas than are followed.
    #[error(
        "a page has {deltas} deltas, of which the first is at byte {offset}, and no more than {most} are followed"
    )]
    TooManyDeltas {
        /// The file offset of the first delta in bytes.
        offset: u64,
        /// How many there are.
        deltas: usize,
        /// How many are followed.
        most: usize,
    },
    /// The buffer is not one page long.
    #[error("a buffer of one page of {page_size} bytes is needed")]
    Buffer {
        /// The map's page size in bytes.
        page_size: u64,
    },
}

/// Why a file has no page map. Every byte of such a file is critical.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Opaque {
    /// No format that is known here.
    #[error("not a known snapshot format")]
    Unknown,
    /// The pages are compressed: no byte of the file belongs to one page alone.
    #[error("compressed with {0}")]
    Compressed(&'static str),
    /// The bytes say nothing about the pages.
    #[error("encrypted with {0}")]
    Encrypted(&'static str),
    /// A known format whose pages are not mapped.
    #[error("{0}")]
    NotMapped(&'static str),
    /// The file ends before the format does: the save is still running, or it failed.
    #[error("unfinished: {0}")]
    Unfinished(&'static str),
    /// The file names something that cannot be passed over safely.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The file contradicts its own format.
    #[error("malformed at byte {offset}: {what}")]
    Malformed {
        /// The file offset in bytes.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The map would take more memory than it may: a stream whose pages were sent again too often.
    #[error("the page map would take more than {limit} bytes")]
    MapTooLarge {
        /// The bound in bytes.
        limit: u64,
    },
}
