//! A record of the journal: a header of 64 bytes and a payload, each with its own checksum, so that a
//! record whose payload is bad can be passed over and taken from another disk.
//!
//! ```text
//!  0 magic "PFJ1"        16 epoch                        48 checksum of the payload
//!  4 kind, 3 bytes of 0  24 generation                   56 checksum of bytes 0 to 55: the record's
//!  8 payload's length    32 fingerprint of the epoch        fingerprint
//! 12 sequence               before
//!                        40 volume, folded
//! ```
//!
//! The fingerprint covers the payload's checksum and the fingerprint before it, and so all the past: two
//! disks with the same one hold the same metadata. An image or a step carries the fingerprint of the epoch that it
//! reaches where a transaction has the one before it.

use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{Epoch, VolumeId};
use crate::meta::codec::Decoder;
use crate::meta::history::EPOCH_MAX;

pub(in crate::meta) const HEADER: usize = 64;

const MAGIC: [u8; 4] = *b"PFJ1";

/// No payload is longer: what claims to be is damaged.
const PAYLOAD_MAX: u32 = 1 << 30;

/// What a record is. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::meta) enum Kind {
    /// One durable transaction.
    Transaction = 1,
    /// A part of an image; `sequence` counts them from 0.
    Image = 2,
    /// The end of an image; `sequence` is the number of its parts.
    ImageEnd = 3,
    /// A part of a step, only in the namespace's manifest; `sequence` counts them from 0.
    Step = 4,
    /// The end of a step; `sequence` is the number of its parts.
    StepEnd = 5,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::meta) struct Record {
    pub(in crate::meta) kind: Kind,
    pub(in crate::meta) sequence: u32,
    pub(in crate::meta) epoch: Epoch,
    pub(in crate::meta) generation: u64,
    pub(in crate::meta) previous: u64,
    pub(in crate::meta) volume: VolumeId,
}

/// A header that was read.
#[derive(Clone, Copy, Debug)]
pub(in crate::meta) struct Header {
    pub(in crate::meta) kind: Kind,
    pub(in crate::meta) sequence: u32,
    pub(in crate::meta) epoch: Epoch,
    pub(in crate::meta) generation: u64,
    pub(in crate::meta) previous: u64,
    pub(in crate::meta) length: u32,
    pub(in crate::meta) payload_checksum: u64,
    pub(in crate::meta) fingerprint: u64,
}

fn fold(volume: VolumeId) -> u64 {
    (volume.0 ^ (volume.0 >> 64)) as u64
}

impl Record {
    /// The header for a payload, and its fingerprint.
    pub(in crate::meta) fn header(&self, payload: &[u8]) -> ([u8; HEADER], u64) {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(MAGIC);
        bytes.extend([self.kind as u8, 0, 0, 0]);
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(self.sequence.to_le_bytes());
        bytes.extend(self.epoch.0.to_le_bytes());
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.previous.to_le_bytes());
        bytes.extend(fold(self.volume).to_le_bytes());
        bytes.extend(xxh3_64(payload).to_le_bytes());
        let fingerprint = xxh3_64(&bytes);
        bytes.extend(fingerprint.to_le_bytes());
        let mut header = [0; HEADER];
        for (to, from) in header.iter_mut().zip(bytes) {
            *to = from;
        }
        (header, fingerprint)
    }
}

impl Header {
    /// The header at the beginning of the bytes; none if it is not whole, or of another volume.
    pub(in crate::meta) fn decode(bytes: &[u8], volume: VolumeId) -> Option<Header> {
        let bytes = bytes.get(..HEADER)?;
        let (covered, _) = bytes.split_last_chunk::<8>()?;
        let mut decoder = Decoder(bytes);
        if decoder.bytes(4)? != MAGIC {
            return None;
        }
        let kind = match decoder.bytes(4)? {
            [1, 0, 0, 0] => Kind::Transaction,
            [2, 0, 0, 0] => Kind::Image,
            [3, 0, 0, 0] => Kind::ImageEnd,
            [4, 0, 0, 0] => Kind::Step,
            [5, 0, 0, 0] => Kind::StepEnd,
            _ => return None,
        };
        let length = decoder.u32()?;
        let sequence = decoder.u32()?;
        let epoch = Epoch(decoder.u64()?);
        let generation = decoder.u64()?;
        let previous = decoder.u64()?;
        let of_volume = decoder.u64()?;
        let payload_checksum = decoder.u64()?;
        let fingerprint = decoder.u64()?;
        let good =
            of_volume == fold(volume) && length <= PAYLOAD_MAX && fingerprint == xxh3_64(covered);
        let good = good && epoch <= EPOCH_MAX;
        decoder.end(good).filter(|good| *good)?;
        Some(Header {
            kind,
            sequence,
            epoch,
            generation,
            previous,
            length,
            payload_checksum,
            fingerprint,
        })
    }

    /// Whether this is the payload that was written.
    pub(in crate::meta) fn fits(&self, payload: &[u8]) -> bool {
        payload.len() == self.length as usize && xxh3_64(payload) == self.payload_checksum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            kind: Kind::Transaction,
            sequence: 0,
            epoch: Epoch(5),
            generation: 6,
            previous: 7,
            volume: VolumeId(1 << 100 | 8),
        }
    }

    #[test]
    fn a_header_comes_back() {
        let (bytes, fingerprint) = record().header(b"payload");
        let header = Header::decode(&bytes, record().volume).unwrap();
        assert_eq!(header.epoch, Epoch(5));
        assert_eq!((header.generation, header.previous), (6, 7));
        assert_eq!(header.fingerprint, fingerprint);
        assert!(header.fits(b"payload"));
        assert!(!header.fits(b"paymoad"));
        assert!(Header::decode(&bytes, VolumeId(9)).is_none());
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_seen() {
        let (bytes, _) = record().header(b"payload");
        for bit in 0..HEADER * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, record().volume).is_none(), "{bit}");
        }
    }
}
