//! The journal: one append-only object on every disk, begun with an image of all metadata and followed by
//! one record a durable transaction. The newest journal alone rebuilds everything. Knows nothing of what
//! the changes mean, generations excepted.

mod record;
mod scan;
mod writer;

pub(super) use record::{HEADER, Header, Kind, Record};
pub(super) use scan::{FileScan, Place, Scan, Transaction, read_payload, scan, walk};
pub(super) use writer::{Failed, Journal, Series, abandon_all, append_all, begin_all, settle_all};
