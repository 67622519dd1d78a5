//! Disks that write down everything that changes them, in the order in which it happened on all of them, and the
//! media that a loss of power may leave at any place in that record.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use parsfs::disk::{Appender, Disk, MemoryDisk, ObjectName, RandomAccess, Result, Space};

use crate::rig::{Disks, Media};

/// What an object holds, whatever its name is.
type ContentId = usize;

/// A step of a disk.
#[derive(Clone, Debug)]
enum Step {
    /// A name stands for this content from now on, or for none.
    Name(ObjectName, Option<ContentId>),
    Write(ContentId, u64, Arc<[u8]>),
    Length(ContentId, u64),
    Sync(ContentId),
    /// What this name stands for is durable.
    SyncName(ObjectName),
    SyncNames,
}

/// The record of all disks: which one did what.
#[derive(Debug, Default)]
pub struct Record {
    steps: Mutex<Steps>,
}

#[derive(Debug, Default)]
struct Steps {
    all: Vec<(usize, Step)>,
    contents: usize,
    /// What names stand for, by disk.
    names: Vec<BTreeMap<ObjectName, ContentId>>,
}

impl Steps {
    fn add(&mut self, disk: usize, step: Step) {
        self.all.push((disk, step));
    }

    fn new_content(&mut self, disk: usize, object: ObjectName) -> ContentId {
        let content = self.contents;
        self.contents += 1;
        self.names[disk].insert(object, content);
        self.add(disk, Step::Name(object, Some(content)));
        content
    }

    fn content(&mut self, disk: usize, object: ObjectName) -> ContentId {
        match self.names[disk].get(&object) {
            Some(content) => *content,
            None => self.new_content(disk, object),
        }
    }

    /// Everything of this object was durable when its maker returned.
    fn whole(&mut self, disk: usize, object: ObjectName, bytes: &[u8]) {
        let content = self.contents;
        self.contents += 1;
        self.add(disk, Step::Write(content, 0, bytes.into()));
        self.add(disk, Step::Sync(content));
        self.names[disk].insert(object, content);
        self.add(disk, Step::Name(object, Some(content)));
        self.add(disk, Step::SyncName(object));
    }
}

impl Record {
    /// A record that begins with what is on these disks, all of it durable.
    pub fn of(media: &Media) -> Result<(Arc<Record>, Disks)> {
        let record = Arc::new(Record::default());
        let mut disks = Vec::new();
        for (number, medium) in media.iter().enumerate() {
            let mut steps = record.steps.lock();
            steps.names.push(BTreeMap::new());
            for (object, _) in medium.list()? {
                let mut bytes = vec![0; medium.length(object)? as usize];
                medium.read_at(object, 0, &mut bytes)?;
                steps.whole(number, object, &bytes);
            }
            disks.push(Arc::new(Recorder {
                number,
                medium: Arc::clone(medium),
                record: Arc::clone(&record),
            }) as Arc<dyn Disk>);
        }
        Ok((record, disks))
    }

    /// How many steps there are.
    pub fn length(&self) -> usize {
        self.steps.lock().all.len()
    }

    /// What may have become of the disks when power fails after so many steps.
    pub fn after(&self, steps: usize) -> Crash {
        let record = self.steps.lock();
        let mut crash = Crash {
            disks: vec![Lost::default(); record.names.len()],
        };
        for (disk, step) in &record.all[..steps] {
            crash.disks[*disk].take(step);
        }
        crash
    }
}

/// A moment at which power fails.
#[derive(Debug)]
pub struct Crash {
    disks: Vec<Lost>,
}

/// A disk at that moment: what is durable, and what was asked for since.
#[derive(Clone, Debug, Default)]
struct Lost {
    names: BTreeMap<ObjectName, ContentId>,
    contents: BTreeMap<ContentId, Vec<u8>>,
    /// In the order in which it was asked for.
    open: Vec<Step>,
}

fn apply(bytes: &mut Vec<u8>, step: &Step, most: usize) {
    match step {
        Step::Write(_, offset, new) => {
            let new = &new[..new.len().min(most)];
            let (start, end) = (*offset as usize, *offset as usize + new.len());
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[start..end].copy_from_slice(new);
        }
        Step::Length(_, length) => bytes.resize(*length as usize, 0),
        Step::Name(..) | Step::Sync(_) | Step::SyncName(_) | Step::SyncNames => {}
    }
}

impl Lost {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Name(..) | Step::Write(..) | Step::Length(..) => self.open.push(step.clone()),
            Step::Sync(content) => {
                let bytes = self.contents.entry(*content).or_default();
                self.open.retain(|open| {
                    let mine =
                        matches!(open, Step::Write(of, ..) | Step::Length(of, _) if of == content);
                    if mine {
                        apply(bytes, open, usize::MAX);
                    }
                    !mine
                });
            }
            Step::SyncName(object) => self.sync_names(|name| name == *object),
            Step::SyncNames => self.sync_names(|_| true),
        }
    }

    fn sync_names(&mut self, which: impl Fn(ObjectName) -> bool) {
        let names = &mut self.names;
        self.open.retain(|open| {
            let Step::Name(object, content) = open else {
                return true;
            };
            if !which(*object) {
                return true;
            }
            match content {
                Some(content) => names.insert(*object, *content),
                None => names.remove(object),
            };
            false
        });
    }
}

impl Crash {
    /// For each step that is open, how many fates it can have: a write may be torn, nothing else can.
    pub fn open(&self) -> Vec<usize> {
        let steps = self.disks.iter().flat_map(|disk| &disk.open);
        steps
            .map(|step| match step {
                Step::Write(_, _, bytes) if bytes.len() > 1 => 3,
                _ => 2,
            })
            .collect()
    }

    /// The media with these fates, one for each open step: 0 dropped, 1 kept, 2 torn at a place that `tear` gives.
    pub fn media(&self, fates: &[usize], mut tear: impl FnMut(usize) -> usize) -> Media {
        let mut fates = fates.iter();
        let media = self.disks.iter().enumerate().map(|(number, lost)| {
            let mut names = lost.names.clone();
            let mut contents = lost.contents.clone();
            for step in &lost.open {
                let most = match (fates.next(), step) {
                    (Some(0) | None, _) => continue,
                    (Some(2), Step::Write(_, _, bytes)) => 1 + tear(bytes.len() - 1),
                    _ => usize::MAX,
                };
                match step {
                    Step::Name(object, Some(content)) => {
                        names.insert(*object, *content);
                    }
                    Step::Name(object, None) => {
                        names.remove(object);
                    }
                    Step::Write(content, ..) | Step::Length(content, _) => {
                        apply(contents.entry(*content).or_default(), step, most);
                    }
                    Step::Sync(_) | Step::SyncName(_) | Step::SyncNames => {}
                }
            }
            let disk = MemoryDisk::new(&format!("disk{number}"));
            for (object, content) in names {
                let bytes = contents
                    .get(&content)
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                disk.put(object, bytes).expect("a disk in memory takes all");
            }
            Arc::new(disk)
        });
        media.collect()
    }
}

/// A disk that writes down what it is asked to do, and does it.
#[derive(Debug)]
struct Recorder {
    number: usize,
    medium: Arc<MemoryDisk>,
    record: Arc<Record>,
}

impl Disk for Recorder {
    fn may_hang(&self) -> bool {
        false
    }

    fn name(&self) -> &str {
        self.medium.name()
    }

    fn device(&self) -> Option<u64> {
        self.medium.device()
    }

    fn check(&self) -> Result<()> {
        self.medium.check()
    }

    fn create(&self, object: ObjectName) -> Result<Box<dyn Appender>> {
        let mut steps = self.record.steps.lock();
        let inner = self.medium.create(object)?;
        let content = steps.new_content(self.number, object);
        Ok(Box::new(Handle {
            disk: self.number,
            content,
            record: Arc::clone(&self.record),
            inner,
        }))
    }

    fn resume(&self, object: ObjectName, length: u64) -> Result<Box<dyn Appender>> {
        let mut steps = self.record.steps.lock();
        let inner = self.medium.resume(object, length)?;
        let content = steps.content(self.number, object);
        steps.add(self.number, Step::Length(content, length));
        Ok(Box::new(Handle {
            disk: self.number,
            content,
            record: Arc::clone(&self.record),
            inner,
        }))
    }

    fn read_at(&self, object: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.medium.read_at(object, offset, buffer)
    }

    fn will_read(&self, object: ObjectName, range: Range<u64>) {
        self.medium.will_read(object, range);
    }

    fn length(&self, object: ObjectName) -> Result<u64> {
        self.medium.length(object)
    }

    fn put(&self, object: ObjectName, bytes: &[u8]) -> Result<()> {
        let mut steps = self.record.steps.lock();
        self.medium.put(object, bytes)?;
        steps.whole(self.number, object, bytes);
        Ok(())
    }

    fn restore(&self, object: ObjectName, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut steps = self.record.steps.lock();
        self.medium.restore(object, offset, bytes)?;
        let content = steps.content(self.number, object);
        steps.add(self.number, Step::Write(content, offset, bytes.into()));
        steps.add(self.number, Step::Sync(content));
        steps.add(self.number, Step::SyncName(object));
        Ok(())
    }

    fn punch(&self, object: ObjectName, range: Range<u64>) -> Result<()> {
        let mut steps = self.record.steps.lock();
        self.medium.punch(object, range.clone())?;
        let end = range.end.min(self.medium.length(object)?);
        let zeros = vec![0; end.saturating_sub(range.start) as usize];
        let content = steps.content(self.number, object);
        let start = range.start.min(end);
        steps.add(self.number, Step::Write(content, start, zeros.into()));
        Ok(())
    }

    fn remove(&self, object: ObjectName) -> Result<()> {
        let mut steps = self.record.steps.lock();
        self.medium.remove(object)?;
        if steps.names[self.number].remove(&object).is_some() {
            steps.add(self.number, Step::Name(object, None));
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>> {
        self.medium.list()
    }

    fn sync_names(&self) -> Result<()> {
        let mut steps = self.record.steps.lock();
        self.medium.sync_names()?;
        steps.add(self.number, Step::SyncNames);
        Ok(())
    }

    fn space(&self) -> Result<Space> {
        self.medium.space()
    }

    fn random_access(&self, object: ObjectName) -> Result<Box<dyn RandomAccess>> {
        let mut steps = self.record.steps.lock();
        let inner = self.medium.random_access(object)?;
        let content = steps.content(self.number, object);
        Ok(Box::new(RandomHandle {
            disk: self.number,
            content,
            record: Arc::clone(&self.record),
            inner,
        }))
    }
}

#[derive(Debug)]
struct Handle {
    disk: usize,
    content: ContentId,
    record: Arc<Record>,
    inner: Box<dyn Appender>,
}

impl Appender for Handle {
    fn append(&mut self, slices: &[&[u8]]) -> Result<u64> {
        let mut steps = self.record.steps.lock();
        let first = self.inner.append(slices)?;
        steps.add(
            self.disk,
            Step::Write(self.content, first, slices.concat().into()),
        );
        Ok(first)
    }

    fn start_sync(&mut self, but: u64) {
        self.inner.start_sync(but);
    }

    fn sync(&mut self) -> Result<()> {
        let mut steps = self.record.steps.lock();
        self.inner.sync()?;
        steps.add(self.disk, Step::Sync(self.content));
        Ok(())
    }
}

#[derive(Debug)]
struct RandomHandle {
    disk: usize,
    content: ContentId,
    record: Arc<Record>,
    inner: Box<dyn RandomAccess>,
}

impl RandomAccess for RandomHandle {
    fn length(&self) -> Result<u64> {
        self.inner.length()
    }

    fn set_length(&self, length: u64) -> Result<()> {
        let mut steps = self.record.steps.lock();
        self.inner.set_length(length)?;
        steps.add(self.disk, Step::Length(self.content, length));
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut steps = self.record.steps.lock();
        self.inner.write_at(offset, bytes)?;
        steps.add(self.disk, Step::Write(self.content, offset, bytes.into()));
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let mut steps = self.record.steps.lock();
        self.inner.sync()?;
        steps.add(self.disk, Step::Sync(self.content));
        Ok(())
    }
}
