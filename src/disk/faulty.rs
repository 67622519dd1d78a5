//! A disk that fails on demand: wraps any other and follows a plan that a test changes while it runs. With
//! the same seed and the same calls in the same order the same faults come, so that a failure found among
//! thousands of schedules can be looked at again.

mod plan;

use std::io;
use std::ops::Range;
use std::sync::Arc;

pub use plan::{Fault, FaultPlan, ObjectFilter, Operation, Operations, Rule, When};

use super::{Appender, Disk, DiskError, ObjectName, RandomAccess, Result, Space};

/// A disk that fails as its plan says.
#[derive(Debug)]
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    plan: Arc<FaultPlan>,
}

impl FaultyDisk {
    /// Wraps a disk. Several disks may follow one plan, at the price of replay by seed where they are
    /// called from several threads.
    pub fn new(inner: Arc<dyn Disk>, plan: Arc<FaultPlan>) -> FaultyDisk {
        FaultyDisk { inner, plan }
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<FaultPlan> {
        &self.plan
    }

    /// From now on every call fails.
    pub fn die(&self) {
        self.plan.die();
    }

    /// Answers again.
    pub fn revive(&self) {
        self.plan.revive();
    }

    /// An operation that no fault but an error or silence makes sense for.
    fn simple<T>(
        &self,
        operation: Operation,
        object: Option<ObjectName>,
        dropped: Option<T>,
        go: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        match self.plan.decide(operation, object) {
            None => go(),
            Some(fault) => match (fault, dropped) {
                (Fault::Dropped, Some(dropped)) => Ok(dropped),
                _ => Err(error(self.name(), operation, object, fault)),
            },
        }
    }
}

fn error(disk: &str, operation: Operation, object: Option<ObjectName>, fault: Fault) -> DiskError {
    let disk = disk.to_owned();
    match (fault, object) {
        (Fault::Full, Some(object)) => DiskError::Full { disk, object },
        (Fault::Short, Some(object)) => DiskError::Short {
            disk,
            object,
            offset: 0,
            length: 0,
        },
        _ => {
            let what = match object {
                Some(object) => format!("{operation:?} {object}"),
                None => format!("{operation:?}"),
            };
            match fault {
                Fault::Exhausted => DiskError::Exhausted {
                    disk,
                    what,
                    source: io::Error::from(rustix::io::Errno::MFILE),
                },
                _ => DiskError::Io {
                    disk,
                    what,
                    source: io::Error::from(rustix::io::Errno::IO),
                },
            }
        }
    }
}

impl Disk for FaultyDisk {
    fn may_hang(&self) -> bool {
        self.inner.may_hang()
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn device(&self) -> Option<u64> {
        self.inner.device()
    }

    fn check(&self) -> Result<()> {
        self.inner.check()
    }

    fn create(&self, object: ObjectName) -> Result<Box<dyn Appender>> {
        let inner = self.simple(Operation::Create, Some(object), None, || {
            self.inner.create(object)
        })?;
        Ok(Box::new(FaultyAppender {
            below: Arc::clone(&self.inner),
            object,
            plan: Arc::clone(&self.plan),
            inner,
            end: 0,
            owed: 0,
        }))
    }

    fn resume(&self, object: ObjectName, length: u64) -> Result<Box<dyn Appender>> {
        let inner = self.simple(Operation::Resume, Some(object), None, || {
            self.inner.resume(object, length)
        })?;
        Ok(Box::new(FaultyAppender {
            below: Arc::clone(&self.inner),
            object,
            plan: Arc::clone(&self.plan),
            inner,
            end: length,
            owed: 0,
        }))
    }

    fn read_at(&self, object: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self.plan.decide(Operation::Read, Some(object)) {
            None => self.inner.read_at(object, offset, buffer),
            Some(Fault::BitFlip) => {
                self.inner.read_at(object, offset, buffer)?;
                self.plan.flip(buffer);
                Ok(())
            }
            Some(Fault::Dropped) => {
                buffer.fill(0);
                Ok(())
            }
            Some(Fault::Misdirected) => {
                let length = self.inner.length(object)?;
                let elsewhere = self.plan.elsewhere(length, offset, buffer.len() as u64);
                self.inner.read_at(object, elsewhere, buffer)
            }
            Some(fault) => Err(error(self.name(), Operation::Read, Some(object), fault)),
        }
    }

    fn will_read(&self, object: ObjectName, range: Range<u64>) {
        if !self.plan.is_dead() {
            self.plan.delay(Operation::Read, object);
            self.inner.will_read(object, range);
        }
    }

    fn forget(&self, object: ObjectName) {
        self.plan.delay(Operation::Read, object);
        self.inner.forget(object);
    }

    fn let_go(&self) {
        self.inner.let_go();
    }

    fn length(&self, object: ObjectName) -> Result<u64> {
        self.simple(Operation::Length, Some(object), None, || {
            self.inner.length(object)
        })
    }

    fn put(&self, object: ObjectName, bytes: &[u8]) -> Result<()> {
        match self.plan.decide(Operation::Put, Some(object)) {
            None => self.inner.put(object, bytes),
            Some(Fault::Dropped) => Ok(()),
            Some(Fault::BitFlip) => {
                let mut bytes = bytes.to_vec();
                self.plan.flip(&mut bytes);
                self.inner.put(object, &bytes)
            }
            Some(fault) => Err(error(self.name(), Operation::Put, Some(object), fault)),
        }
    }

    fn restore(&self, object: ObjectName, offset: u64, bytes: &[u8]) -> Result<()> {
        match self.plan.decide(Operation::Restore, Some(object)) {
            None => self.inner.restore(object, offset, bytes),
            Some(Fault::Dropped) => Ok(()),
            Some(Fault::BitFlip) => {
                let mut bytes = bytes.to_vec();
                self.plan.flip(&mut bytes);
                self.inner.restore(object, offset, &bytes)
            }
            Some(Fault::Misdirected) => {
                let length = self.inner.length(object)?;
                let elsewhere = self.plan.elsewhere(length, offset, bytes.len() as u64);
                self.inner.restore(object, elsewhere, bytes)
            }
            Some(fault) => {
                if fault == Fault::Torn {
                    let part = self.plan.pick(bytes.len() as u64) as usize;
                    let part = bytes.get(..part).unwrap_or_default();
                    self.inner.restore(object, offset, part)?;
                }
                Err(error(self.name(), Operation::Restore, Some(object), fault))
            }
        }
    }

    fn punch(&self, object: ObjectName, range: Range<u64>) -> Result<()> {
        self.simple(Operation::Punch, Some(object), Some(()), || {
            self.inner.punch(object, range)
        })
    }

    fn remove(&self, object: ObjectName) -> Result<()> {
        self.simple(Operation::Remove, Some(object), Some(()), || {
            self.inner.remove(object)
        })
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>> {
        self.simple(Operation::List, None, None, || self.inner.list())
    }

    fn sync_names(&self) -> Result<()> {
        self.simple(Operation::SyncNames, None, Some(()), || {
            self.inner.sync_names()
        })
    }

    fn space(&self) -> Result<Space> {
        self.simple(Operation::Space, None, None, || self.inner.space())
    }

    fn random_access(&self, object: ObjectName) -> Result<Box<dyn RandomAccess>> {
        let inner = self.simple(Operation::RandomOpen, Some(object), None, || {
            self.inner.random_access(object)
        })?;
        Ok(Box::new(FaultyRandomAccess {
            disk: self.name().to_owned(),
            object,
            plan: Arc::clone(&self.plan),
            inner,
        }))
    }
}

#[derive(Debug)]
struct FaultyAppender {
    below: Arc<dyn Disk>,
    object: ObjectName,
    plan: Arc<FaultPlan>,
    inner: Box<dyn Appender>,
    /// What the caller believes was appended.
    end: u64,
    /// How much of its end was dropped. Zeros fill the gap when something is appended after all.
    owed: u64,
}

impl FaultyAppender {
    fn pass_on(&mut self, slices: &[&[u8]]) -> Result<()> {
        if self.owed > 0 {
            self.inner.append(&[&vec![0; self.owed as usize]])?;
            self.owed = 0;
        }
        self.inner.append(slices)?;
        Ok(())
    }
}

impl Appender for FaultyAppender {
    fn append(&mut self, slices: &[&[u8]]) -> Result<u64> {
        let first = self.end;
        let length: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        match self.plan.decide(Operation::Append, Some(self.object)) {
            None => self.pass_on(slices)?,
            Some(Fault::Dropped) => self.owed += length,
            Some(Fault::BitFlip) => {
                let mut bytes = slices.concat();
                self.plan.flip(&mut bytes);
                self.pass_on(&[&bytes])?;
            }
            Some(Fault::Misdirected) => {
                // Over what is there already; in its own place are zeros once something follows.
                let elsewhere = self.plan.elsewhere(first, first, length);
                let bytes = slices.concat();
                let room = bytes.len().min((first - elsewhere) as usize);
                let bytes = bytes.get(..room).unwrap_or_default();
                self.below.restore(self.object, elsewhere, bytes)?;
                self.owed += length;
            }
            Some(fault) => {
                if fault == Fault::Torn {
                    let mut bytes = slices.concat();
                    bytes.truncate(self.plan.pick(length) as usize);
                    self.pass_on(&[&bytes])?;
                }
                let object = Some(self.object);
                return Err(error(self.below.name(), Operation::Append, object, fault));
            }
        }
        self.end += length;
        Ok(first)
    }

    fn start_sync(&mut self, but: u64) {
        if !self.plan.is_dead() {
            self.inner.start_sync(but);
        }
    }

    fn sync(&mut self) -> Result<()> {
        match self.plan.decide(Operation::Sync, Some(self.object)) {
            None => self.inner.sync(),
            Some(Fault::Dropped) => Ok(()),
            Some(fault) => {
                let object = Some(self.object);
                Err(error(self.below.name(), Operation::Sync, object, fault))
            }
        }
    }
}

#[derive(Debug)]
struct FaultyRandomAccess {
    disk: String,
    object: ObjectName,
    plan: Arc<FaultPlan>,
    inner: Box<dyn RandomAccess>,
}

impl FaultyRandomAccess {
    fn decide(&self, operation: Operation) -> Option<Fault> {
        self.plan.decide(operation, Some(self.object))
    }

    fn error<T>(&self, operation: Operation, fault: Fault) -> Result<T> {
        Err(error(&self.disk, operation, Some(self.object), fault))
    }
}

impl RandomAccess for FaultyRandomAccess {
    fn length(&self) -> Result<u64> {
        match self.decide(Operation::RandomLength) {
            None => self.inner.length(),
            Some(fault) => self.error(Operation::RandomLength, fault),
        }
    }

    fn set_length(&self, length: u64) -> Result<()> {
        match self.decide(Operation::RandomSetLength) {
            None => self.inner.set_length(length),
            Some(Fault::Dropped) => Ok(()),
            Some(fault) => self.error(Operation::RandomSetLength, fault),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self.decide(Operation::RandomRead) {
            None => self.inner.read_at(offset, buffer),
            Some(Fault::BitFlip) => {
                self.inner.read_at(offset, buffer)?;
                self.plan.flip(buffer);
                Ok(())
            }
            Some(Fault::Dropped) => {
                buffer.fill(0);
                Ok(())
            }
            Some(Fault::Misdirected) => {
                let length = self.inner.length()?;
                let elsewhere = self.plan.elsewhere(length, offset, buffer.len() as u64);
                self.inner.read_at(elsewhere, buffer)
            }
            Some(fault) => self.error(Operation::RandomRead, fault),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        match self.decide(Operation::RandomWrite) {
            None => self.inner.write_at(offset, bytes),
            Some(Fault::Dropped) => Ok(()),
            Some(Fault::BitFlip) => {
                let mut bytes = bytes.to_vec();
                self.plan.flip(&mut bytes);
                self.inner.write_at(offset, &bytes)
            }
            Some(Fault::Misdirected) => {
                let length = self.inner.length()?;
                let elsewhere = self.plan.elsewhere(length, offset, bytes.len() as u64);
                self.inner.write_at(elsewhere, bytes)
            }
            Some(fault) => {
                if fault == Fault::Torn {
                    let part = self.plan.pick(bytes.len() as u64) as usize;
                    self.inner
                        .write_at(offset, bytes.get(..part).unwrap_or_default())?;
                }
                self.error(Operation::RandomWrite, fault)
            }
        }
    }

    fn sync(&self) -> Result<()> {
        match self.decide(Operation::RandomSync) {
            None => self.inner.sync(),
            Some(Fault::Dropped) => Ok(()),
            Some(fault) => self.error(Operation::RandomSync, fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::ids::SetId;

    const BLOCKS: ObjectName = ObjectName::Blocks(SetId(1));
    const DATA: &[u8] = b"the quick brown fox jumps over the lazy dog";

    fn disk(seed: u64) -> FaultyDisk {
        let disk = FaultyDisk::new(Arc::new(MemoryDisk::new("a")), FaultPlan::new(seed));
        disk.create(BLOCKS).unwrap().append(&[DATA]).unwrap();
        disk
    }

    fn read(disk: &FaultyDisk) -> Result<Vec<u8>> {
        let mut buffer = vec![1; disk.length(BLOCKS)? as usize];
        disk.read_at(BLOCKS, 0, &mut buffer)?;
        Ok(buffer)
    }

    fn once(kind: Operation, fault: Fault) -> Rule {
        Rule::new(
            Operations::of(&[kind]),
            When::Count { skip: 0, times: 1 },
            fault,
        )
    }

    #[test]
    fn a_rule_counts_the_calls_it_fits() {
        let disk = disk(1);
        disk.plan().add(
            Rule::new(
                Operations::READS,
                When::Count { skip: 1, times: 2 },
                Fault::Io,
            )
            .only(|object| object == BLOCKS),
        );
        disk.put(ObjectName::Label, b"x").unwrap();
        disk.read_at(ObjectName::Label, 0, &mut [0]).unwrap();
        let went: Vec<bool> = (0..5).map(|_| read(&disk).is_ok()).collect();
        assert_eq!(went, [true, false, false, true, true]);
        assert_eq!(disk.plan().injected(), 2);
    }

    #[test]
    fn reads_go_wrong_in_every_way() {
        let disk = disk(2);
        let wrong = |fault| {
            disk.plan().clear();
            disk.plan().add(once(Operation::Read, fault));
            read(&disk)
        };
        assert!(matches!(wrong(Fault::Io), Err(DiskError::Io { .. })));
        assert!(matches!(wrong(Fault::Short), Err(DiskError::Short { .. })));
        assert_eq!(wrong(Fault::Dropped).unwrap(), vec![0; DATA.len()]);
        let flipped = wrong(Fault::BitFlip).unwrap();
        let bits: u32 = std::iter::zip(&flipped, DATA)
            .map(|(a, b)| (a ^ b).count_ones())
            .sum();
        assert_eq!(bits, 1);
        disk.plan().clear();
        disk.plan().add(once(Operation::Read, Fault::Misdirected));
        let mut buffer = [0; 4];
        disk.read_at(BLOCKS, 0, &mut buffer).unwrap();
        assert_ne!(buffer, DATA[..4]);
        assert_eq!(read(&disk).unwrap(), DATA);
    }

    #[test]
    fn appends_go_wrong_in_every_way() {
        let disk = disk(3);
        let object = ObjectName::Journal(1);
        let after = |fault| {
            disk.plan().clear();
            disk.remove(object).unwrap();
            let mut appender = disk.create(object).unwrap();
            disk.plan().add(once(Operation::Append, fault));
            let first = appender.append(&[b"abc", b"def"]);
            let mut bytes = vec![0; disk.length(object).unwrap() as usize];
            disk.read_at(object, 0, &mut bytes).unwrap();
            (first, bytes, appender)
        };
        let (error, bytes, _) = after(Fault::Full);
        assert!(error.unwrap_err().is_full());
        assert!(bytes.is_empty());
        let (error, bytes, _) = after(Fault::Torn);
        assert!(error.is_err());
        assert!(bytes.len() < 6 && b"abcdef".starts_with(&bytes));
        let (first, bytes, mut appender) = after(Fault::Dropped);
        assert_eq!((first.unwrap(), bytes.len()), (0, 0));
        assert_eq!(appender.append(&[b"g"]).unwrap(), 6);
        assert_eq!(disk.length(object).unwrap(), 7);
        let (first, bytes, _) = after(Fault::BitFlip);
        assert_eq!((first.unwrap(), bytes.len()), (0, 6));
        assert_ne!(bytes, b"abcdef");
        disk.plan().clear();
        let mut appender = disk.resume(object, 6).unwrap();
        disk.plan().add(once(Operation::Append, Fault::Misdirected));
        assert_eq!(appender.append(&[b"XYZ"]).unwrap(), 6);
        assert_eq!(appender.append(&[b"g"]).unwrap(), 9);
        let mut bytes = vec![1; disk.length(object).unwrap() as usize];
        disk.read_at(object, 0, &mut bytes).unwrap();
        assert_eq!(bytes[6..], *b"\0\0\0g");
        assert!(bytes[..6].windows(3).any(|part| part == b"XYZ"));
    }

    #[test]
    fn the_dead_fail_until_they_are_revived() {
        let disk = disk(4);
        disk.plan().die_at(disk.plan().calls() + 2);
        read(&disk).unwrap();
        assert!(read(&disk).is_err());
        assert!(disk.list().is_err() && disk.space().is_err() && disk.sync_names().is_err());
        assert!(disk.random_access(ObjectName::Database).is_err());
        disk.revive();
        assert_eq!(read(&disk).unwrap(), DATA);
        disk.plan().add(once(Operation::List, Fault::Death));
        assert!(disk.list().is_err());
        assert!(read(&disk).is_err());
    }

    #[test]
    fn a_seed_gives_the_same_faults_again() {
        let run = |seed| -> Vec<bool> {
            let disk = disk(seed);
            disk.plan()
                .add(Rule::new(Operations::ALL, When::Chance(300_000), Fault::Io));
            (0..100).map(|_| read(&disk).is_ok()).collect()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }
}
