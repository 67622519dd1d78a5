//! The 64 bytes that lie before every block and every parity shard, so that each tells by itself what it
//! is: a volume can be rebuilt from its disks alone. Knows the layout, not what blocks and parity are for.
//!
//! ```text
//!  0  4  magic: "PFSB" a block, "PFSP" a parity shard
//!  4  1  version of the format: 1
//!  5  1  block: encoding (0 plain, 1 zstd, 2 lz4)      parity: number of the shard, from 0
//!  6  2  block: place in the window                    parity: k in the low byte, m in the high one
//!  8 16  volume
//! 24  8  file
//! 32  8  segment set
//! 40  4  window
//! 44  4  block: bytes of the file in it                parity: 0
//! 48  4  bytes that follow this header
//! 52  4  low half of the xxh3 of this header with these four bytes zero
//! 56  8  xxh3 of the bytes that follow
//! ```
//!
//! All numbers are little-endian.

use xxhash_rust::xxh3::xxh3_64;

use super::wire::Wire;
use crate::ids::{FileId, SetId, VolumeId, WindowNo};

/// Bytes of a header.
pub const HEADER: usize = 64;

const VERSION: u8 = 1;

/// What follows a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A block.
    Block,
    /// A parity shard.
    Parity,
}

impl Kind {
    fn magic(self) -> [u8; 4] {
        match self {
            Kind::Block => *b"PFSB",
            Kind::Parity => *b"PFSP",
        }
    }
}

/// A header as a value; the fields whose meaning depends on the kind are explained in the layout above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Encoding, or shard number.
    pub detail: u8,
    /// Place in the window, or code.
    pub place: u16,
    /// The volume.
    pub volume: VolumeId,
    /// The file.
    pub file: FileId,
    /// The segment set.
    pub set: SetId,
    /// The window in the file.
    pub window: WindowNo,
    /// Bytes of the file, or 0.
    pub raw: u32,
    /// Bytes that follow.
    pub length: u32,
    /// xxh3 of the bytes that follow.
    pub checksum: u64,
}

/// Why 64 bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer than 64 bytes.
    #[error("cut off before the end of its header")]
    Short,
    /// Not the beginning of a block or shard.
    #[error("it does not begin as a block or parity shard does")]
    Magic,
    /// A later format.
    #[error("format version {0} is newer than this program; use the parsfs that wrote it")]
    Version(u8),
    /// Damaged.
    #[error("its header is damaged")]
    Checksum,
    /// Whole, but of another block or shard.
    #[error("its header is that of another place")]
    Foreign,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0..4].copy_from_slice(&self.kind.magic());
        out[4] = VERSION;
        out[5] = self.detail;
        out[6..8].copy_from_slice(&self.place.to_le_bytes());
        out[8..24].copy_from_slice(&self.volume.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.file.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.set.0.to_le_bytes());
        out[40..44].copy_from_slice(&self.window.0.to_le_bytes());
        out[44..48].copy_from_slice(&self.raw.to_le_bytes());
        out[48..52].copy_from_slice(&self.length.to_le_bytes());
        out[56..64].copy_from_slice(&self.checksum.to_le_bytes());
        let check = own_checksum(&out);
        out[52..56].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a header from the start of `bytes` and checks it. What follows is not looked at.
    pub fn decode(bytes: &[u8]) -> Result<Header, HeaderError> {
        let header: &[u8; HEADER] = bytes.first_chunk().ok_or(HeaderError::Short)?;
        Self::parse(header).unwrap_or(Err(HeaderError::Short))
    }

    fn parse(header: &[u8; HEADER]) -> Option<Result<Header, HeaderError>> {
        let mut wire = Wire::new(header);
        let kind = match &wire.array::<4>()? {
            b"PFSB" => Kind::Block,
            b"PFSP" => Kind::Parity,
            _ => return Some(Err(HeaderError::Magic)),
        };
        let version = wire.u8()?;
        let detail = wire.u8()?;
        let place = wire.u16()?;
        let volume = VolumeId(wire.u128()?);
        let file = FileId(wire.u64()?);
        let set = SetId(wire.u64()?);
        let window = WindowNo(wire.u32()?);
        let raw = wire.u32()?;
        let length = wire.u32()?;
        let check = wire.u32()?;
        let checksum = wire.u64()?;
        if check != own_checksum(header) {
            return Some(Err(HeaderError::Checksum));
        }
        // After the checksum, so that a flipped bit is not taken for a format to come.
        if version != VERSION {
            return Some(Err(HeaderError::Version(version)));
        }
        Some(Ok(Header {
            kind,
            detail,
            place,
            volume,
            file,
            set,
            window,
            raw,
            length,
            checksum,
        }))
    }
}

fn own_checksum(header: &[u8; HEADER]) -> u32 {
    let mut covered = *header;
    covered[52..56].fill(0);
    xxh3_64(&covered) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: Kind::Parity,
            detail: 3,
            place: 0x0204,
            volume: VolumeId(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00),
            file: FileId(0x0102_0304_0506_0708),
            set: SetId(77),
            window: WindowNo(5),
            raw: 0,
            length: 4096,
            checksum: 0xdead_beef_0000_0001,
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = header().encode();
        assert_eq!(&bytes[..8], b"PFSP\x01\x03\x04\x02");
        assert_eq!(bytes[8], 0x00);
        assert_eq!(bytes[23], 0x11);
        assert_eq!(bytes[24], 0x08);
        assert_eq!(&bytes[40..52], &[5, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0]);
        assert_eq!(Header::decode(&bytes), Ok(header()));
    }

    #[test]
    fn no_flipped_bit_goes_unseen() {
        let bytes = header().encode();
        for bit in 0..HEADER * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad).is_err(), "bit {bit}");
        }
        assert_eq!(Header::decode(&bytes[..63]), Err(HeaderError::Short));
    }
}
