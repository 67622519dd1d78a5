//! The head of a committed file: the small record in the metadata that says which base manifest and which
//! deltas make it up. Knows its own encoding only.
//!
//! Little-endian, version first:
//! `u8 1 or 2, u64 first delta, u64 next delta, u32 next window, u32 next piece, u32 inline bytes, u64 dead, u64 base dead, u64 stored,
//! u64 unprotected, (in version 2) u64 dropped, u16 sets, u64 set…, u8 has base, base reference…`

use crate::ids::SetId;
use crate::store::manifest::ManifestRef;

/// Of a head without dropped bytes, and of one with.
const VERSION: u8 = 1;
const DROPPED: u8 = 2;

/// What a committed file is made of, and the sums that a commit goes on with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileHead {
    /// The base manifest; none while deltas and inline pieces say it all.
    pub base: Option<ManifestRef>,
    /// The first delta over the base.
    pub first_delta: u64,
    /// The number that the next delta gets.
    pub next_delta: u64,
    /// The number that the next window gets.
    pub next_window: u32,
    /// The number that the next inline piece gets.
    pub next_piece: u32,
    /// Bytes in inline pieces.
    pub inline_bytes: u32,
    /// Bytes of blocks that were overwritten or cut off since the last compaction, about.
    pub dead: u64,
    /// Bytes of them that were dead when the base was written.
    pub base_dead: u64,
    /// Bytes on the disks, parity included.
    pub stored: u64,
    /// Bytes on the disks in blocks under no parity.
    pub unprotected: u64,
    /// Bytes of the file that were given up, by the policy or by an administrator with a disk that died; at most. While it
    /// is zero, nothing of the file is recorded as lost.
    pub dropped: u64,
    /// Bytes on the disks in blocks that are yet to be compressed; about. It is kept beside the head (`Records::hasty`), where
    /// versions of parsfs that know nothing of it pass over it.
    pub hasty: u64,
    /// The segment sets that deltas brought in since the base.
    pub sets: Vec<SetId>,
}

impl FileHead {
    /// The bytes for the metadata.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![if self.dropped > 0 { DROPPED } else { VERSION }];
        bytes.extend(self.first_delta.to_le_bytes());
        bytes.extend(self.next_delta.to_le_bytes());
        bytes.extend(self.next_window.to_le_bytes());
        bytes.extend(self.next_piece.to_le_bytes());
        bytes.extend(self.inline_bytes.to_le_bytes());
        bytes.extend(self.dead.to_le_bytes());
        bytes.extend(self.base_dead.to_le_bytes());
        bytes.extend(self.stored.to_le_bytes());
        bytes.extend(self.unprotected.to_le_bytes());
        if self.dropped > 0 {
            bytes.extend(self.dropped.to_le_bytes());
        }
        bytes.extend((self.sets.len() as u16).to_le_bytes());
        for set in &self.sets {
            bytes.extend(set.0.to_le_bytes());
        }
        match &self.base {
            Some(base) => {
                bytes.push(1);
                bytes.extend(base.encode());
            }
            None => bytes.push(0),
        }
        bytes
    }

    /// Reads them again; `None` when they are no head.
    pub fn decode(bytes: &[u8]) -> Option<FileHead> {
        let mut rest = bytes;
        let drops = match take::<1>(&mut rest)? {
            [VERSION] => false,
            [DROPPED] => true,
            _ => return None,
        };
        let mut head = FileHead {
            first_delta: u64::from_le_bytes(take(&mut rest)?),
            next_delta: u64::from_le_bytes(take(&mut rest)?),
            next_window: u32::from_le_bytes(take(&mut rest)?),
            next_piece: u32::from_le_bytes(take(&mut rest)?),
            inline_bytes: u32::from_le_bytes(take(&mut rest)?),
            dead: u64::from_le_bytes(take(&mut rest)?),
            base_dead: u64::from_le_bytes(take(&mut rest)?),
            stored: u64::from_le_bytes(take(&mut rest)?),
            unprotected: u64::from_le_bytes(take(&mut rest)?),
            dropped: if drops {
                u64::from_le_bytes(take(&mut rest)?)
            } else {
                0
            },
            ..FileHead::default()
        };
        for _ in 0..u16::from_le_bytes(take(&mut rest)?) {
            head.sets.push(SetId(u64::from_le_bytes(take(&mut rest)?)));
        }
        match take::<1>(&mut rest)? {
            [0] if rest.is_empty() => {}
            [1] => head.base = Some(ManifestRef::decode(rest)?),
            _ => return None,
        }
        Some(head)
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_shorter() {
        for dropped in [0, 4096] {
            check(dropped);
        }
    }

    fn check(dropped: u64) {
        let head = FileHead {
            dropped,
            first_delta: 3,
            next_delta: 9,
            next_window: 4,
            inline_bytes: 77,
            sets: vec![SetId(5), SetId(1 << 40)],
            ..FileHead::default()
        };
        let bytes = head.encode();
        assert_eq!(FileHead::decode(&bytes), Some(head));
        for length in 0..bytes.len() {
            assert_eq!(FileHead::decode(&bytes[..length]), None);
        }
    }
}
