//! A disk in memory that knows what a loss of power would leave: what was synced for certain, and of the
//! rest whatever chance has it. Made for tests of crashes, at any moment and without stopping anybody: the
//! medium after the crash is a copy.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::{Appender, Disk, DiskError, ObjectName, RandomAccess, Result, Space};

/// A disk in memory.
#[derive(Debug)]
pub struct MemoryDisk {
    name: String,
    capacity: u64,
    names: Mutex<Names>,
    /// Held for reading by whatever changes the disk, and for writing while several disks are copied: what no crash
    /// can do is happen to one disk earlier than to another.
    gate: Arc<RwLock<()>>,
}

#[derive(Debug, Default)]
struct Names {
    now: BTreeMap<ObjectName, Arc<Mutex<Content>>>,
    /// What a loss of power leaves for certain.
    durable: BTreeMap<ObjectName, Arc<Mutex<Content>>>,
}

#[derive(Debug, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// What has been done to `durable` to make it `now`.
    unsynced: Vec<Change>,
    /// How many of its bytes the disk was asked to begin writing down.
    asked: u64,
}

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, new) => {
            let start = *offset as usize;
            let end = start + new.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            if let Some(place) = bytes.get_mut(start..end) {
                place.copy_from_slice(new);
            }
        }
        Change::Length(length) => bytes.resize(*length as usize, 0),
    }
}

impl Content {
    fn change(&mut self, change: Change) {
        apply(&mut self.now, &change);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            apply(&mut self.durable, &change);
        }
    }

    fn whole(bytes: Vec<u8>) -> Arc<Mutex<Content>> {
        Arc::new(Mutex::new(Content {
            now: bytes.clone(),
            durable: bytes,
            unsynced: Vec::new(),
            asked: 0,
        }))
    }
}

impl MemoryDisk {
    /// An empty disk of 1 TiB.
    pub fn new(name: &str) -> MemoryDisk {
        Self::with_capacity(name, 1 << 40)
    }

    /// An empty disk of so many bytes.
    pub fn with_capacity(name: &str, capacity: u64) -> MemoryDisk {
        MemoryDisk {
            name: name.to_owned(),
            capacity,
            names: Mutex::default(),
            gate: Arc::default(),
        }
    }

    /// Several disks as one crash leaves them, each by `copy` of its number and the disk: no change falls between the
    /// copies, whoever goes on writing meanwhile.
    pub fn together(
        disks: &[Arc<MemoryDisk>],
        copy: impl Fn(usize, &MemoryDisk) -> MemoryDisk,
    ) -> Vec<Arc<MemoryDisk>> {
        let _gates: Vec<_> = disks.iter().map(|disk| disk.gate.write()).collect();
        let disks = disks.iter().enumerate();
        disks
            .map(|(number, disk)| Arc::new(copy(number, disk)))
            .collect()
    }

    /// The disk as the next process finds it when this one is killed now: with all that was written.
    pub fn after_kill(&self) -> MemoryDisk {
        let names = self.names.lock();
        let copies = names
            .now
            .iter()
            .map(|(object, content)| (*object, content.lock().now.clone()))
            .collect();
        self.holding(copies)
    }

    /// The disk as it is found when power fails now: everything synced is there; of each name and each write
    /// since, chance (by the seed) decides, and a write may be there in part.
    pub fn after_power_loss(&self, seed: u64) -> MemoryDisk {
        let mut random = seed;
        let mut chance = |end: u64| {
            random = random
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            (random >> 33) % end.max(1)
        };
        let names = self.names.lock();
        let mut copies = BTreeMap::new();
        let all: std::collections::BTreeSet<&ObjectName> =
            names.now.keys().chain(names.durable.keys()).collect();
        for object in all {
            let (now, durable) = (names.now.get(object), names.durable.get(object));
            let Some(content) = (if chance(2) == 0 { now } else { durable }) else {
                continue;
            };
            let content = content.lock();
            let mut bytes = content.durable.clone();
            for change in &content.unsynced {
                match (chance(4), change) {
                    (0, _) => {}
                    (1, Change::Write(offset, new)) => {
                        let part = chance(new.len() as u64) as usize;
                        let part = new.get(..part).unwrap_or_default().to_vec();
                        apply(&mut bytes, &Change::Write(*offset, part));
                    }
                    _ => apply(&mut bytes, change),
                }
            }
            copies.insert(*object, bytes);
        }
        self.holding(copies)
    }

    /// The bytes from an object's beginning that the disk was asked to begin writing down.
    pub fn asked_to_write(&self, object: ObjectName) -> u64 {
        self.content(object)
            .map_or(0, |content| content.lock().asked)
    }

    fn holding(&self, copies: BTreeMap<ObjectName, Vec<u8>>) -> MemoryDisk {
        let now: BTreeMap<ObjectName, Arc<Mutex<Content>>> = copies
            .into_iter()
            .map(|(object, bytes)| (object, Content::whole(bytes)))
            .collect();
        MemoryDisk {
            name: self.name.clone(),
            capacity: self.capacity,
            names: Mutex::new(Names {
                durable: now.clone(),
                now,
            }),
            gate: Arc::default(),
        }
    }

    fn content(&self, object: ObjectName) -> Result<Arc<Mutex<Content>>> {
        let names = self.names.lock();
        names.now.get(&object).cloned().ok_or(DiskError::Missing {
            disk: self.name.clone(),
            object,
        })
    }

    fn used(&self) -> u64 {
        let names = self.names.lock();
        let lengths = names.now.values().map(|content| content.lock().now.len());
        lengths.sum::<usize>() as u64
    }

    fn handle(&self, object: ObjectName, content: Arc<Mutex<Content>>) -> Handle {
        Handle {
            disk: self.name.clone(),
            object,
            content,
            gate: Arc::clone(&self.gate),
        }
    }

    fn reserve(&self, object: ObjectName, bytes: usize) -> Result<()> {
        if self.used() + bytes as u64 > self.capacity {
            return Err(DiskError::Full {
                disk: self.name.clone(),
                object,
            });
        }
        Ok(())
    }
}

fn read(disk: &str, object: ObjectName, bytes: &[u8], offset: u64, into: &mut [u8]) -> Result<()> {
    let from = usize::try_from(offset)
        .ok()
        .and_then(|start| bytes.get(start..start.checked_add(into.len())?));
    match from {
        Some(from) => {
            into.copy_from_slice(from);
            Ok(())
        }
        None => Err(DiskError::Short {
            disk: disk.to_owned(),
            object,
            offset,
            length: into.len() as u64,
        }),
    }
}

impl Disk for MemoryDisk {
    fn may_hang(&self) -> bool {
        false
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn device(&self) -> Option<u64> {
        None
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn create(&self, object: ObjectName) -> Result<Box<dyn Appender>> {
        let _gate = self.gate.read();
        self.reserve(object, 1)?;
        let mut names = self.names.lock();
        if names.now.contains_key(&object) {
            return Err(DiskError::AlreadyExists {
                disk: self.name.clone(),
                object,
            });
        }
        let content = Arc::<Mutex<Content>>::default();
        names.now.insert(object, Arc::clone(&content));
        Ok(Box::new(self.handle(object, content)))
    }

    fn resume(&self, object: ObjectName, length: u64) -> Result<Box<dyn Appender>> {
        let _gate = self.gate.read();
        let content = self.content(object)?;
        {
            let mut content = content.lock();
            if (content.now.len() as u64) < length {
                return Err(DiskError::Short {
                    disk: self.name.clone(),
                    object,
                    offset: 0,
                    length,
                });
            }
            content.change(Change::Length(length));
        }
        Ok(Box::new(self.handle(object, content)))
    }

    fn read_at(&self, object: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let content = self.content(object)?;
        let content = content.lock();
        read(&self.name, object, &content.now, offset, buffer)
    }

    fn will_read(&self, _object: ObjectName, _range: Range<u64>) {}

    fn read_at_once(&self, object: ObjectName, offset: u64, buffer: &mut [u8]) -> bool {
        self.read_at(object, offset, buffer).is_ok()
    }

    fn length(&self, object: ObjectName) -> Result<u64> {
        Ok(self.content(object)?.lock().now.len() as u64)
    }

    fn put(&self, object: ObjectName, bytes: &[u8]) -> Result<()> {
        let _gate = self.gate.read();
        self.reserve(object, bytes.len())?;
        let content = Content::whole(bytes.to_vec());
        let mut names = self.names.lock();
        names.now.insert(object, Arc::clone(&content));
        names.durable.insert(object, content);
        Ok(())
    }

    fn restore(&self, object: ObjectName, offset: u64, bytes: &[u8]) -> Result<()> {
        let _gate = self.gate.read();
        self.reserve(object, bytes.len())?;
        let mut names = self.names.lock();
        let content = Arc::clone(names.now.entry(object).or_default());
        names.durable.insert(object, Arc::clone(&content));
        let mut content = content.lock();
        content.change(Change::Write(offset, bytes.to_vec()));
        content.sync();
        Ok(())
    }

    fn punch(&self, object: ObjectName, range: Range<u64>) -> Result<()> {
        let _gate = self.gate.read();
        let content = self.content(object)?;
        let mut content = content.lock();
        let end = range.end.min(content.now.len() as u64);
        let length = end.saturating_sub(range.start) as usize;
        content.change(Change::Write(range.start.min(end), vec![0; length]));
        Ok(())
    }

    fn remove(&self, object: ObjectName) -> Result<()> {
        let _gate = self.gate.read();
        self.names.lock().now.remove(&object);
        Ok(())
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>> {
        let names = self.names.lock();
        let all = names.now.iter();
        Ok(all
            .map(|(object, content)| (*object, content.lock().now.len() as u64))
            .collect())
    }

    fn sync_names(&self) -> Result<()> {
        let _gate = self.gate.read();
        let mut names = self.names.lock();
        names.durable = names.now.clone();
        Ok(())
    }

    fn space(&self) -> Result<Space> {
        Ok(Space {
            total: self.capacity,
            free: self.capacity.saturating_sub(self.used()),
        })
    }

    fn random_access(&self, object: ObjectName) -> Result<Box<dyn RandomAccess>> {
        let _gate = self.gate.read();
        let content = Arc::clone(self.names.lock().now.entry(object).or_default());
        Ok(Box::new(self.handle(object, content)))
    }
}

/// An object that is open for writing; it outlives its name.
#[derive(Debug)]
struct Handle {
    disk: String,
    object: ObjectName,
    content: Arc<Mutex<Content>>,
    gate: Arc<RwLock<()>>,
}

impl Appender for Handle {
    fn append(&mut self, slices: &[&[u8]]) -> Result<u64> {
        let _gate = self.gate.read();
        let mut content = self.content.lock();
        let first = content.now.len() as u64;
        content.change(Change::Write(first, slices.concat()));
        Ok(first)
    }

    fn start_sync(&mut self, but: u64) {
        let mut content = self.content.lock();
        content.asked = content.now.len() as u64 - but.min(content.now.len() as u64);
    }

    fn sync(&mut self) -> Result<()> {
        let _gate = self.gate.read();
        self.content.lock().sync();
        Ok(())
    }
}

impl RandomAccess for Handle {
    fn length(&self) -> Result<u64> {
        Ok(self.content.lock().now.len() as u64)
    }

    fn set_length(&self, length: u64) -> Result<()> {
        let _gate = self.gate.read();
        if length > isize::MAX as u64 {
            return Err(DiskError::Io {
                disk: self.disk.clone(),
                what: format!("set the length of {}", self.object),
                source: io::Error::from(io::ErrorKind::FileTooLarge),
            });
        }
        self.content.lock().change(Change::Length(length));
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let content = self.content.lock();
        read(&self.disk, self.object, &content.now, offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let _gate = self.gate.read();
        let mut content = self.content.lock();
        content.change(Change::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let _gate = self.gate.read();
        self.content.lock().sync();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOURNAL: ObjectName = ObjectName::Journal(1);

    fn bytes(disk: &MemoryDisk) -> Option<Vec<u8>> {
        let mut buffer = vec![0; disk.length(JOURNAL).ok()? as usize];
        disk.read_at(JOURNAL, 0, &mut buffer).unwrap();
        Some(buffer)
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_may() {
        let disk = MemoryDisk::new("a");
        let mut appender = disk.create(JOURNAL).unwrap();
        appender.append(&[b"synced"]).unwrap();
        appender.sync().unwrap();
        let without_name = (0..64).filter(|&seed| bytes(&disk.after_power_loss(seed)).is_none());
        assert!((1..64).contains(&without_name.count()));
        disk.sync_names().unwrap();
        appender.append(&[b", not synced"]).unwrap();
        let mut found = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let bytes = bytes(&disk.after_power_loss(seed)).unwrap();
            assert!(bytes.starts_with(b"synced"));
            assert!(b"synced, not synced".starts_with(&bytes));
            found.insert(bytes);
        }
        assert!(found.len() > 3);
        assert_eq!(bytes(&disk.after_kill()).unwrap(), b"synced, not synced");
    }

    #[test]
    fn a_removal_may_be_undone_until_it_is_synced() {
        let disk = MemoryDisk::new("a");
        disk.create(JOURNAL).unwrap();
        disk.sync_names().unwrap();
        disk.remove(JOURNAL).unwrap();
        let undone = (0..64).filter(|&seed| bytes(&disk.after_power_loss(seed)).is_some());
        assert!((1..64).contains(&undone.count()));
        disk.sync_names().unwrap();
        assert!((0..64).all(|seed| bytes(&disk.after_power_loss(seed)).is_none()));
    }

    /// A byte is appended to the first disk, and then to the second one. No crash finds the second one ahead.
    #[test]
    fn a_crash_comes_to_all_disks_at_once() {
        let disks = [MemoryDisk::new("a"), MemoryDisk::new("b")].map(Arc::new);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut appenders = disks.each_ref().map(|disk| disk.create(JOURNAL).unwrap());
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for appender in &mut appenders {
                        appender.append(&[b"x"]).unwrap();
                        appender.sync().unwrap();
                    }
                }
            });
            let since = std::time::Instant::now();
            let mut moments = std::collections::BTreeSet::new();
            let mut apart = None;
            while moments.len() < 50 && apart.is_none() && since.elapsed().as_secs() < 60 {
                let copies = MemoryDisk::together(&disks, |_, disk| disk.after_kill());
                let [first, second] =
                    [0, 1].map(|disk: usize| bytes(&copies[disk]).unwrap_or_default().len());
                if !(second..=second + 1).contains(&first) {
                    apart = Some((first, second));
                }
                moments.insert(first);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            // Only now: the scope waits for the thread, which would go on for ever.
            assert_eq!(apart, None, "bytes on the two disks");
            assert!(moments.len() > 1);
        });
    }

    #[test]
    fn the_medium_after_a_crash_is_its_own() {
        let disk = MemoryDisk::new("a");
        let mut appender = disk.create(JOURNAL).unwrap();
        let after = disk.after_kill();
        appender.append(&[b"ghost"]).unwrap();
        assert_eq!(bytes(&after).unwrap(), b"");
    }
}
