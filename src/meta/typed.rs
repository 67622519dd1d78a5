//! Typed reading and writing: keys and values of each table as what they mean.

use super::error::{MetaError, Result};
use super::records::{DiskRecord, Entry, Inode, SetRecord};
use super::table::{Key, PunchKey, Table, Value};
use super::update::Update;
use super::view::Read;
use crate::ids::{DiskId, FileId, SetId};

fn understood<T>(key: &Key, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| MetaError::Malformed { key: key.clone() })
}

fn decoded<T>(
    from: &(impl Read + ?Sized),
    key: &Key,
    decode: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<Option<T>> {
    match from.get(key)? {
        None => Ok(None),
        Some(value) => understood(key, decode(&value)).map(Some),
    }
}

/// The tables, read as what they mean.
pub trait Records: Read {
    /// A file's attributes.
    fn inode(&self, file: FileId) -> Result<Option<Inode>> {
        decoded(self, &Key::file(Table::Inode, file), Inode::decode)
    }

    /// What a name in a directory stands for.
    fn entry(&self, directory: FileId, name: &[u8]) -> Result<Option<Entry>> {
        decoded(self, &Key::entry(directory, name), Entry::decode)
    }

    /// Every name of a file: the directory and the name there.
    fn names(&self, file: FileId) -> Result<Vec<(FileId, Vec<u8>)>> {
        self.scan(&Key::file(Table::Link, file))
            .map(|found| {
                let (key, _) = found?;
                let mut decoder = key.decoder();
                let parent = decoder.key_u64().and_then(|_| decoder.key_u64());
                let parent = understood(&key, parent)?;
                Ok((FileId(parent), decoder.rest().to_vec()))
            })
            .collect()
    }

    /// Where a symbolic link points.
    fn target(&self, file: FileId) -> Result<Option<Value>> {
        self.get(&Key::file(Table::Target, file))
    }

    /// A file's base manifest.
    fn manifest(&self, file: FileId) -> Result<Option<Value>> {
        self.get(&Key::file(Table::Manifest, file))
    }

    /// A file's deltas by their numbers, in order.
    fn deltas(&self, file: FileId) -> Result<Vec<(u64, Value)>> {
        self.scan(&Key::file(Table::Delta, file))
            .map(|found| {
                let (key, value) = found?;
                let mut decoder = key.decoder();
                let number = decoder.key_u64().and_then(|_| decoder.key_u64());
                Ok((understood(&key, number)?, value))
            })
            .collect()
    }

    /// One inline piece of a file.
    fn inline(&self, file: FileId, piece: u32) -> Result<Option<Value>> {
        self.get(&Key::inline(file, piece))
    }

    /// The inline pieces of a file by their numbers, in order.
    fn inlines(&self, file: FileId) -> Result<Vec<(u32, Value)>> {
        self.scan(&Key::file(Table::Inline, file))
            .map(|found| {
                let (key, value) = found?;
                let mut decoder = key.decoder();
                let piece = decoder.key_u64().and_then(|_| decoder.key_u32());
                Ok((understood(&key, piece)?, value))
            })
            .collect()
    }

    /// A segment set.
    fn set(&self, set: SetId) -> Result<Option<SetRecord>> {
        decoded(self, &Key::set(set), SetRecord::decode)
    }

    /// All segment sets.
    fn sets(&self) -> Result<Vec<(SetId, SetRecord)>> {
        self.scan(&Key::table_prefix(Table::Set))
            .map(|found| {
                let (key, value) = found?;
                let set = understood(&key, key.decoder().key_u64())?;
                let record = understood(&key, SetRecord::decode(&value))?;
                Ok((SetId(set), record))
            })
            .collect()
    }

    /// All room that is still to be given back, with its length in bytes.
    fn punches(&self) -> Result<Vec<(PunchKey, u64)>> {
        self.punches_below(&Key::table_prefix(Table::Punch))
    }

    /// The same of one segment set.
    fn punches_of(&self, set: SetId) -> Result<Vec<(PunchKey, u64)>> {
        self.punches_below(&Key::punches_of(set))
    }

    /// The same of all keys that begin so.
    fn punches_below(&self, prefix: &Key) -> Result<Vec<(PunchKey, u64)>> {
        self.scan(prefix)
            .map(|found| {
                let (key, value) = found?;
                let length = value.as_ref().try_into().ok().map(u64::from_le_bytes);
                let punch = understood(&key, PunchKey::decode(&key).zip(length))?;
                Ok(punch)
            })
            .collect()
    }

    /// All files that lost their last name while they were open.
    fn orphans(&self) -> Result<Vec<FileId>> {
        self.scan(&Key::table_prefix(Table::Orphan))
            .map(|found| {
                let (key, _) = found?;
                understood(&key, key.decoder().key_u64()).map(FileId)
            })
            .collect()
    }

    /// All files, in order of their numbers.
    fn files(&self) -> impl Iterator<Item = Result<(FileId, Inode)>> {
        self.scan(&Key::table_prefix(Table::Inode)).map(|found| {
            let (key, value) = found?;
            let file = understood(&key, key.decoder().key_u64())?;
            let inode = understood(&key, Inode::decode(&value))?;
            Ok((FileId(file), inode))
        })
    }

    /// A disk of the volume.
    fn disk(&self, disk: DiskId) -> Result<Option<DiskRecord>> {
        decoded(self, &Key::disk(disk), DiskRecord::decode)
    }

    /// All disks that the volume has or had.
    fn disks(&self) -> Result<Vec<(DiskId, DiskRecord)>> {
        self.scan(&Key::table_prefix(Table::Disk))
            .map(|found| {
                let (key, value) = found?;
                let disk = understood(&key, key.decoder().key_u16())?;
                let record = understood(&key, DiskRecord::decode(&value))?;
                Ok((DiskId(disk), record))
            })
            .collect()
    }

    /// Bytes of a file on the disks that are yet to be compressed, about.
    fn hasty(&self, file: FileId) -> Result<u64> {
        let found = self.setting(&hasty_key(file))?;
        Ok(found.and_then(|bytes| number(&bytes)).unwrap_or(0))
    }

    /// All files of which bytes are yet to be compressed, and how many, about.
    fn all_hasty(&self) -> Result<Vec<(FileId, u64)>> {
        let mut all = Vec::new();
        for found in self.scan(&Key::setting(HASTY)) {
            let (key, value) = found?;
            let file = key.in_table().get(HASTY.len()..);
            let file = file.and_then(|file| file.try_into().ok());
            // What cannot be understood is only not known to be uncompressed.
            if let (Some(file), Some(bytes)) = (file.map(u64::from_be_bytes), number(&value)) {
                all.push((FileId(file), bytes));
            }
        }
        Ok(all)
    }

    /// A setting of the volume.
    fn setting(&self, name: &[u8]) -> Result<Option<Value>> {
        self.get(&Key::setting(name))
    }
}

impl<R: Read> Records for R {}

/// What the names of settings begin with that tell of a file, by its number (big-endian), how many of its bytes are yet to be
/// compressed (little-endian).
const HASTY: &[u8] = b"hasty";

fn hasty_key(file: FileId) -> Vec<u8> {
    [HASTY, &file.0.to_be_bytes()].concat()
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
}

/// The tables, written as what they mean.
pub trait WriteRecords {
    /// Sets a file's attributes.
    fn put_inode(&mut self, file: FileId, inode: &Inode);
    /// Sets a file's base manifest.
    fn put_manifest(&mut self, file: FileId, manifest: &[u8]);
    /// Sets a delta of a file.
    fn put_delta(&mut self, file: FileId, number: u64, delta: &[u8]);
    /// Sets an inline piece of a file.
    fn put_inline(&mut self, file: FileId, piece: u32, bytes: &[u8]);
    /// Sets what is known of a segment set.
    fn put_set(&mut self, set: SetId, record: SetRecord);
    /// Notes room that is to be given back. Bytes.
    fn put_punch(&mut self, punch: &PunchKey, length: u64);
    /// Notes that a file has no name and is open.
    fn put_orphan(&mut self, file: FileId);
    /// Sets what is known of a disk.
    fn put_disk(&mut self, disk: DiskId, record: &DiskRecord);
    /// Sets a setting.
    fn put_setting(&mut self, name: &[u8], value: &[u8]);
    /// Sets how many bytes of a file are yet to be compressed.
    fn put_hasty(&mut self, file: FileId, bytes: u64);
    /// Deletes what a file is made of: base manifest, deltas and inline pieces; and what is yet to be done with it.
    fn drop_content(&mut self, file: FileId) -> Result<()>;
}

impl WriteRecords for Update {
    fn put_inode(&mut self, file: FileId, inode: &Inode) {
        self.put(Key::file(Table::Inode, file), &inode.encode());
    }

    fn put_manifest(&mut self, file: FileId, manifest: &[u8]) {
        self.put(Key::file(Table::Manifest, file), manifest);
    }

    fn put_delta(&mut self, file: FileId, number: u64, delta: &[u8]) {
        self.put(Key::delta(file, number), delta);
    }

    fn put_inline(&mut self, file: FileId, piece: u32, bytes: &[u8]) {
        self.put(Key::inline(file, piece), bytes);
    }

    fn put_set(&mut self, set: SetId, record: SetRecord) {
        self.put(Key::set(set), &record.encode());
    }

    fn put_punch(&mut self, punch: &PunchKey, length: u64) {
        self.put(Key::punch(punch), &length.to_le_bytes());
    }

    fn put_orphan(&mut self, file: FileId) {
        self.put(Key::file(Table::Orphan, file), &[]);
    }

    fn put_disk(&mut self, disk: DiskId, record: &DiskRecord) {
        self.put(Key::disk(disk), &record.encode());
    }

    fn put_setting(&mut self, name: &[u8], value: &[u8]) {
        self.put(Key::setting(name), value);
    }

    fn put_hasty(&mut self, file: FileId, bytes: u64) {
        match bytes {
            0 => self.delete(Key::setting(&hasty_key(file))),
            _ => self.put_setting(&hasty_key(file), &bytes.to_le_bytes()),
        }
    }

    fn drop_content(&mut self, file: FileId) -> Result<()> {
        self.put_hasty(file, 0);
        for table in [Table::Manifest, Table::Delta, Table::Inline] {
            self.delete_all(&Key::file(table, file))?;
        }
        Ok(())
    }
}
