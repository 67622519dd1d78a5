//! A page of a manifest: 4096 bytes, of which the first 8 are the xxh3 of the rest. The hash is keyed with
//! the volume, the manifest and the page's number, so that a page that strayed is as bad as a damaged one.

use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::ids::{ManifestId, VolumeId};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Bytes of a page's checksum.
const CHECKSUM: usize = 8;

/// Bytes of a page that a section can use.
pub const PAYLOAD: usize = PAGE - CHECKSUM;

/// Whose pages: the key of their checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageKey {
    /// The volume.
    pub volume: VolumeId,
    /// The manifest.
    pub manifest: ManifestId,
}

impl PageKey {
    fn checksum(self, number: u64, payload: &[u8]) -> u64 {
        let mut key = [0; 32];
        let (volume, rest) = key.split_at_mut(16);
        let (manifest, page) = rest.split_at_mut(8);
        volume.copy_from_slice(&self.volume.0.to_le_bytes());
        manifest.copy_from_slice(&self.manifest.0.to_le_bytes());
        page.copy_from_slice(&number.to_le_bytes());
        xxh3_64_with_seed(payload, xxh3_64(&key))
    }

    /// Appends a page with this payload, filled up with zeros.
    pub fn put(self, out: &mut Vec<u8>, number: u64, payload: &[u8]) {
        debug_assert!(payload.len() <= PAYLOAD);
        let start = out.len();
        out.extend_from_slice(&[0; CHECKSUM]);
        out.extend_from_slice(payload);
        out.resize(start + PAGE, 0);
        if let Some((checksum, payload)) = out
            .get_mut(start..)
            .and_then(<[u8]>::split_first_chunk_mut::<CHECKSUM>)
        {
            *checksum = self.checksum(number, payload).to_le_bytes();
        }
    }

    /// The page, when these are its bytes.
    pub fn check(self, number: u64, bytes: &[u8]) -> Option<Page> {
        let (checksum, payload) = bytes.split_first_chunk::<CHECKSUM>()?;
        let whole =
            bytes.len() == PAGE && u64::from_le_bytes(*checksum) == self.checksum(number, payload);
        whole.then(|| Page(Arc::from(bytes)))
    }
}

/// A page whose checksum is good.
#[derive(Clone, Debug)]
pub struct Page(Arc<[u8]>);

impl Page {
    /// All of the page, as it is stored.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// What the section put there.
    pub fn payload(&self) -> &[u8] {
        self.0.get(CHECKSUM..).unwrap_or_default()
    }

    /// Entry number `place` of the page, entries being `size` bytes.
    pub fn entry(&self, place: usize, size: usize) -> Option<&[u8]> {
        let start = place.checked_mul(size)?;
        self.payload().get(start..start.checked_add(size)?)
    }
}
