//! The tables and their keys. In the database and the journal all tables are one sorted space: a key is
//! its table's byte and then the parts of the key, numbers big endian.

use std::fmt;
use std::sync::Arc;

use super::codec::Decoder;
use crate::ids::{DiskId, Epoch, FileId, SetId};

/// What a key and its value are about. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// File: its attributes.
    Inode = 1,
    /// Directory and name: the file.
    Entry = 2,
    /// File, directory and name: the way back from a file to its names.
    Link = 3,
    /// File: where a symbolic link points.
    Target = 4,
    /// File and name: an extended attribute.
    Xattr = 5,
    /// File: its base manifest, opaque.
    Manifest = 6,
    /// File and number: a step from the base manifest on, opaque.
    Delta = 7,
    /// File and piece: bytes of the file itself.
    Inline = 8,
    /// Segment set: how many manifests need it.
    Set = 9,
    /// Set, disk, offset and kind: room still to be given back.
    Punch = 10,
    /// File: unlinked, but open when it was.
    Orphan = 11,
    /// Disk: what the volume knows of it.
    Disk = 12,
    /// Name: a setting of the volume, opaque.
    Setting = 13,
    /// Epoch: the generation that was begun with it. Only `meta` itself writes these.
    Generation = 14,
}

impl Table {
    pub(super) fn from_byte(byte: u8) -> Option<Table> {
        Some(match byte {
            1 => Table::Inode,
            2 => Table::Entry,
            3 => Table::Link,
            4 => Table::Target,
            5 => Table::Xattr,
            6 => Table::Manifest,
            7 => Table::Delta,
            8 => Table::Inline,
            9 => Table::Set,
            10 => Table::Punch,
            11 => Table::Orphan,
            12 => Table::Disk,
            13 => Table::Setting,
            14 => Table::Generation,
            _ => return None,
        })
    }
}

/// The key of a value: its table, and where in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<[u8]>);

/// The bytes of a value.
pub type Value = Arc<[u8]>;

impl Key {
    fn build(table: Table, parts: &[&[u8]]) -> Key {
        let mut bytes = vec![table as u8];
        for part in parts {
            bytes.extend_from_slice(part);
        }
        Key(bytes.into())
    }

    /// A key from the database or the journal; none if its table is unknown.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Key> {
        Table::from_byte(*bytes.first()?)?;
        Some(Key(bytes.into()))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The table.
    pub fn table(&self) -> Option<Table> {
        Table::from_byte(*self.0.first()?)
    }

    /// The key without its table.
    pub fn in_table(&self) -> &[u8] {
        self.0.get(1..).unwrap_or_default()
    }

    pub(super) fn decoder(&self) -> Decoder<'_> {
        Decoder(self.in_table())
    }

    /// A whole table, as a prefix of its keys.
    pub fn table_prefix(table: Table) -> Key {
        Self::build(table, &[])
    }

    /// The key of, or the prefix of all keys of, one file in a table that begins with the file.
    pub fn file(table: Table, file: FileId) -> Key {
        Self::build(table, &[&file.0.to_be_bytes()])
    }

    /// A name in a directory.
    pub fn entry(directory: FileId, name: &[u8]) -> Key {
        Self::build(Table::Entry, &[&directory.0.to_be_bytes(), name])
    }

    /// One of a file's names.
    pub fn link(file: FileId, directory: FileId, name: &[u8]) -> Key {
        let parts = [file.0.to_be_bytes(), directory.0.to_be_bytes()];
        Self::build(Table::Link, &[&parts[0], &parts[1], name])
    }

    /// An extended attribute.
    pub fn xattr(file: FileId, name: &[u8]) -> Key {
        Self::build(Table::Xattr, &[&file.0.to_be_bytes(), name])
    }

    /// One delta of a file.
    pub fn delta(file: FileId, sequence: u64) -> Key {
        let parts = [file.0.to_be_bytes(), sequence.to_be_bytes()];
        Self::build(Table::Delta, &[&parts[0], &parts[1]])
    }

    /// One inline piece of a file.
    pub fn inline(file: FileId, piece: u32) -> Key {
        Self::build(
            Table::Inline,
            &[&file.0.to_be_bytes(), &piece.to_be_bytes()],
        )
    }

    /// A segment set.
    pub fn set(set: SetId) -> Key {
        Self::build(Table::Set, &[&set.0.to_be_bytes()])
    }

    /// Room to be given back.
    pub fn punch(punch: &PunchKey) -> Key {
        Self::build(
            Table::Punch,
            &[
                &punch.set.0.to_be_bytes(),
                &punch.disk.0.to_be_bytes(),
                &punch.offset.to_be_bytes(),
                &[u8::from(punch.parity)],
            ],
        )
    }

    /// What all room to be given back in a segment set begins with.
    pub fn punches_of(set: SetId) -> Key {
        Self::build(Table::Punch, &[&set.0.to_be_bytes()])
    }

    /// A disk.
    pub fn disk(disk: DiskId) -> Key {
        Self::build(Table::Disk, &[&disk.0.to_be_bytes()])
    }

    /// A setting.
    pub fn setting(name: &[u8]) -> Key {
        Self::build(Table::Setting, &[name])
    }

    pub(super) fn generation(begun: Epoch) -> Key {
        Self::build(Table::Generation, &[&begun.0.to_be_bytes()])
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.table() {
            Some(table) => write!(f, "{table:?} {}", self.in_table().escape_ascii()),
            None => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

impl fmt::Display for Key {
    /// For administrators: what is kept under the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut decoder = self.decoder();
        let (Some(table), Some(first)) = (self.table(), decoder.key_u64()) else {
            // Keys without a number in front: settings, disks, and what no table has.
            return match self.table() {
                Some(Table::Setting) => write!(f, "setting {}", self.in_table().escape_ascii()),
                Some(Table::Disk) => match self.in_table() {
                    [high, low] => write!(f, "disk {}", u16::from_be_bytes([*high, *low])),
                    other => write!(f, "disk {}", other.escape_ascii()),
                },
                _ => write!(f, "key {}", self.0.escape_ascii()),
            };
        };
        let rest = decoder.rest();
        match table {
            Table::Inode => write!(f, "the attributes of file {first}"),
            Table::Entry => write!(f, "name {} in directory {first}", rest.escape_ascii()),
            Table::Link => write!(f, "a name of file {first}"),
            Table::Target => write!(f, "the target of symbolic link {first}"),
            Table::Xattr => write!(f, "xattr {} of file {first}", rest.escape_ascii()),
            Table::Manifest => write!(f, "the head of file {first}"),
            Table::Delta => write!(f, "a delta of file {first}"),
            Table::Inline => write!(f, "bytes of file {first}"),
            Table::Set => write!(f, "segment set {first}"),
            Table::Punch => write!(f, "room to be given back in segment set {first}"),
            Table::Orphan => write!(f, "unlinked file {first}"),
            Table::Setting => write!(f, "setting {}", self.in_table().escape_ascii()),
            Table::Disk => write!(f, "disk {}", self.in_table().escape_ascii()),
            Table::Generation => write!(f, "the generation of epoch {first}"),
        }
    }
}

/// Which room is to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PunchKey {
    /// The segment set.
    pub set: SetId,
    /// The disk.
    pub disk: DiskId,
    /// The first byte, in the set's object on that disk.
    pub offset: u64,
    /// Whether the object is the parity, or the blocks.
    pub parity: bool,
}

impl PunchKey {
    pub(super) fn decode(key: &Key) -> Option<PunchKey> {
        let mut decoder = key.decoder();
        let punch = PunchKey {
            set: SetId(decoder.key_u64()?),
            disk: DiskId(decoder.key_u16()?),
            offset: decoder.key_u64()?,
            parity: match decoder.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            },
        };
        decoder.end(punch)
    }
}
