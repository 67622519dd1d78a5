//! The values of the tables: what is known of a file, a name, a segment set, a disk. Each begins with its
//! version where it may ever grow. Decoding gives none for bytes that no version wrote.

use super::codec::Decoder;
use crate::ids::FileId;

const VERSION: u8 = 1;

/// What kind of file. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// Holds bytes.
    Regular = 1,
    /// Holds names.
    Directory = 2,
    /// Points to a path.
    Symlink = 3,
    /// A named pipe.
    Fifo = 4,
    /// A local socket.
    Socket = 5,
    /// A character device.
    CharDevice = 6,
    /// A block device.
    BlockDevice = 7,
}

impl FileKind {
    fn from_byte(byte: u8) -> Option<FileKind> {
        Some(match byte {
            1 => FileKind::Regular,
            2 => FileKind::Directory,
            3 => FileKind::Symlink,
            4 => FileKind::Fifo,
            5 => FileKind::Socket,
            6 => FileKind::CharDevice,
            7 => FileKind::BlockDevice,
            _ => return None,
        })
    }
}

/// A moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970; negative before.
    pub seconds: i64,
    /// Nanoseconds in the second.
    pub nanos: u32,
}

impl Timestamp {
    /// This moment, by the host's clock.
    pub fn now() -> Timestamp {
        match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => Timestamp {
                seconds: since.as_secs().try_into().unwrap_or(i64::MAX),
                nanos: since.subsec_nanos(),
            },
            // The host's clock is before 1970.
            Err(_) => Timestamp::default(),
        }
    }

    fn encode(self, into: &mut Vec<u8>) {
        into.extend(self.seconds.to_le_bytes());
        into.extend(self.nanos.to_le_bytes());
    }

    fn decode(decoder: &mut Decoder<'_>) -> Option<Timestamp> {
        let (seconds, nanos) = (decoder.i64()?, decoder.u32()?);
        (nanos < 1_000_000_000).then_some(Timestamp { seconds, nanos })
    }
}

/// A file's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// What kind of file.
    pub kind: FileKind,
    /// Permissions with setuid, setgid and sticky: the low 12 bits of `st_mode`.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The device that a device file stands for.
    pub rdev: u32,
    /// How many names it has; a directory 2 and one for each directory in it.
    pub links: u32,
    /// Bytes in the file.
    pub size: u64,
    /// Bytes that count as occupied (`st_blocks`).
    pub stored: u64,
    /// When it was last read.
    pub atime: Timestamp,
    /// When its content last changed.
    pub mtime: Timestamp,
    /// When the file or its attributes last changed.
    pub ctime: Timestamp,
    /// When it was made.
    pub born: Timestamp,
    /// The directory above a directory, itself for the root; 0 for other kinds.
    pub parent: FileId,
}

impl Inode {
    /// The bytes to be stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(96);
        bytes.extend([VERSION, self.kind as u8]);
        bytes.extend(self.mode.to_le_bytes());
        for number in [self.uid, self.gid, self.rdev, self.links] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.stored.to_le_bytes());
        for time in [self.atime, self.mtime, self.ctime, self.born] {
            time.encode(&mut bytes);
        }
        bytes.extend(self.parent.0.to_le_bytes());
        bytes
    }

    /// The attributes from stored bytes.
    pub fn decode(bytes: &[u8]) -> Option<Inode> {
        let mut decoder = Decoder(bytes);
        if decoder.u8()? != VERSION {
            return None;
        }
        let inode = Inode {
            kind: FileKind::from_byte(decoder.u8()?)?,
            mode: decoder.u16().filter(|mode| *mode <= 0o7777)?,
            uid: decoder.u32()?,
            gid: decoder.u32()?,
            rdev: decoder.u32()?,
            links: decoder.u32()?,
            size: decoder.u64()?,
            stored: decoder.u64()?,
            atime: Timestamp::decode(&mut decoder)?,
            mtime: Timestamp::decode(&mut decoder)?,
            ctime: Timestamp::decode(&mut decoder)?,
            born: Timestamp::decode(&mut decoder)?,
            parent: FileId(decoder.u64()?),
        };
        decoder.end(inode)
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file.
    pub file: FileId,
    /// Its kind, so that a listing need not ask each file.
    pub kind: FileKind,
}

impl Entry {
    /// The bytes to be stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind as u8];
        bytes.extend(self.file.0.to_le_bytes());
        bytes
    }

    /// The entry from stored bytes.
    pub fn decode(bytes: &[u8]) -> Option<Entry> {
        let mut decoder = Decoder(bytes);
        let entry = Entry {
            kind: FileKind::from_byte(decoder.u8()?)?,
            file: FileId(decoder.u64()?),
        };
        decoder.end(entry)
    }
}

/// A segment set that is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetRecord {
    /// How many manifests need it.
    pub references: u32,
}

impl SetRecord {
    /// The bytes to be stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.references.to_le_bytes());
        bytes
    }

    /// The record from stored bytes.
    pub fn decode(bytes: &[u8]) -> Option<SetRecord> {
        let mut decoder = Decoder(bytes);
        if decoder.u8()? != VERSION {
            return None;
        }
        let set = SetRecord {
            references: decoder.u32()?,
        };
        decoder.end(set)
    }
}

/// Whether a disk belongs to its volume. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DiskState {
    /// It does.
    Member = 1,
    /// It has left; its number is not used again.
    Left = 2,
}

/// How a disk fares, over mounts. The numbers are on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DiskHealth {
    /// Written to and read from.
    #[default]
    Online = 1,
    /// It fails now and then, or is slow: read around, and given no new data while the others are enough.
    Suspect = 2,
    /// It failed: nothing is written to it.
    Faulty = 3,
    /// It is not there.
    Missing = 4,
    /// It was away, or is new: what it lacks is being written to it.
    Rebuilding = 5,
}

impl DiskHealth {
    fn from_byte(byte: u8) -> Option<DiskHealth> {
        Some(match byte {
            1 => DiskHealth::Online,
            2 => DiskHealth::Suspect,
            3 => DiskHealth::Faulty,
            4 => DiskHealth::Missing,
            5 => DiskHealth::Rebuilding,
            _ => return None,
        })
    }

    /// The word that administrators see.
    pub fn word(self) -> &'static str {
        match self {
            DiskHealth::Online => "online",
            DiskHealth::Suspect => "suspect",
            DiskHealth::Faulty => "faulty",
            DiskHealth::Missing => "missing",
            DiskHealth::Rebuilding => "rebuilding",
        }
    }
}

/// What the volume knows of one of its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRecord {
    /// Whether it belongs to the volume.
    pub state: DiskState,
    /// How it fares.
    pub health: DiskHealth,
    /// What the administrator calls it.
    pub name: String,
    /// When it joined.
    pub joined: Timestamp,
    /// Since when it fares so.
    pub since: Timestamp,
    /// Why it is not online; empty when it is.
    pub why: String,
}

/// The longest name and the longest reason of a disk, in bytes.
const DISK_TEXT: usize = u16::MAX as usize;

impl DiskRecord {
    /// A disk that joins now.
    pub fn new(name: &str, now: Timestamp) -> DiskRecord {
        DiskRecord {
            state: DiskState::Member,
            health: DiskHealth::Online,
            name: name.to_owned(),
            joined: now,
            since: now,
            why: String::new(),
        }
    }

    /// The bytes to be stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, self.state as u8, self.health as u8];
        self.joined.encode(&mut bytes);
        self.since.encode(&mut bytes);
        let name = shortened(&self.name);
        bytes.extend((name.len() as u16).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(shortened(&self.why).as_bytes());
        bytes
    }

    /// The record from stored bytes.
    pub fn decode(bytes: &[u8]) -> Option<DiskRecord> {
        let mut decoder = Decoder(bytes);
        if decoder.u8()? != VERSION {
            return None;
        }
        let state = match decoder.u8()? {
            1 => DiskState::Member,
            2 => DiskState::Left,
            _ => return None,
        };
        let health = DiskHealth::from_byte(decoder.u8()?)?;
        let joined = Timestamp::decode(&mut decoder)?;
        let since = Timestamp::decode(&mut decoder)?;
        let length = usize::from(decoder.u16()?);
        let (name, why) = decoder.rest().split_at_checked(length)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let record = DiskRecord {
            state,
            health,
            name: text(name)?,
            joined,
            since,
            why: text(why)?,
        };
        (record.why.len() <= DISK_TEXT).then_some(record)
    }
}

/// As much of a text as a record takes.
fn shortened(text: &str) -> &str {
    let mut end = text.len().min(DISK_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind() -> impl Strategy<Value = FileKind> {
        (1u8..=7).prop_map(|byte| FileKind::from_byte(byte).unwrap())
    }

    fn time() -> impl Strategy<Value = Timestamp> {
        (any::<i64>(), 0u32..1_000_000_000)
            .prop_map(|(seconds, nanos)| Timestamp { seconds, nanos })
    }

    prop_compose! {
        fn inode()(
            kind in kind(), mode in 0u16..=0o7777,
            numbers: [u32; 4], sizes: [u64; 3],
            times in [time(), time(), time(), time()],
        ) -> Inode {
            Inode {
                kind, mode,
                uid: numbers[0], gid: numbers[1], rdev: numbers[2], links: numbers[3],
                size: sizes[0], stored: sizes[1], parent: FileId(sizes[2]),
                atime: times[0], mtime: times[1], ctime: times[2], born: times[3],
            }
        }
    }

    proptest! {
        #[test]
        fn records_come_back(inode in inode(), file: u64, kind in kind(), references: u32, name: String, why: String, joined in time()) {
            prop_assert_eq!(Inode::decode(&inode.encode()), Some(inode));
            let entry = Entry { file: FileId(file), kind };
            prop_assert_eq!(Entry::decode(&entry.encode()), Some(entry));
            let set = SetRecord { references };
            prop_assert_eq!(SetRecord::decode(&set.encode()), Some(set));
            let disk = DiskRecord {
                state: DiskState::Left, health: DiskHealth::Faulty, since: joined, ..DiskRecord { why, ..DiskRecord::new(&name, joined) }
            };
            prop_assert_eq!(DiskRecord::decode(&disk.encode()), Some(disk));
        }

        #[test]
        fn any_bytes_are_a_record_or_none(bytes: Vec<u8>) {
            let again = |encoded: Option<Vec<u8>>| encoded.is_none_or(|encoded| encoded == bytes);
            prop_assert!(again(Inode::decode(&bytes).map(|r| r.encode())));
            prop_assert!(again(Entry::decode(&bytes).map(|r| r.encode())));
            prop_assert!(again(SetRecord::decode(&bytes).map(|r| r.encode())));
            prop_assert!(again(DiskRecord::decode(&bytes).map(|r| r.encode())));
        }

        #[test]
        fn a_changed_inode_is_another_one_or_none(inode in inode(), at in 0usize..96, bit in 0u8..8) {
            let mut bytes = inode.encode();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert_ne!(Inode::decode(&bytes), Some(inode));
            prop_assert_eq!(Inode::decode(&inode.encode()[..at]), None);
        }
    }

    #[test]
    fn the_encoding_of_an_inode_stays_as_it_is() {
        let time = |n| Timestamp {
            seconds: n,
            nanos: n as u32,
        };
        let inode = Inode {
            kind: FileKind::Directory,
            mode: 0o1755,
            uid: 1,
            gid: 2,
            rdev: 3,
            links: 4,
            size: 5,
            stored: 6,
            atime: time(7),
            mtime: time(8),
            ctime: time(9),
            born: time(10),
            parent: FileId(11),
        };
        let hex: String = inode.encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "0102ed03010000000200000003000000040000000500000000000000060000000000000007000000000000000700\
             00000800000000000000080000000900000000000000090000000a000000000000000a0000000b00000000000000"
        );
    }
}
