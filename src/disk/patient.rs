//! A disk whose calls end in time, whatever the medium does. A call is made on a thread of the disk's own; when it takes longer than the limit, the caller gets an error and goes on, and so does at once whoever comes while
//! that call is still under way. What became of such a call is not known: the caller leaves the disk alone, as after
//! any error of a write.
//!
//! Two things go straight to the medium. Reads, and what is told of reads to come, since `store::disks` has a patience of its own for them. And appends to segments,
//! since their bytes would have to be copied: `store::segment` watches over the threads that make them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::patience::Patience;
use super::{Appender, Disk, DiskError, ObjectName, RandomAccess, Result, Space};

/// How long a call may take. A disk that answers nothing for so long is faulty.
pub const AT_LAST: Duration = Duration::from_secs(60);

/// A disk that is waited for no longer than a limit.
#[derive(Debug)]
pub struct PatientDisk {
    below: Arc<dyn Disk>,
    calls: Calls,
}

/// Who makes the calls.
#[derive(Clone, Debug)]
struct Calls {
    patience: Patience,
    limit: Duration,
    /// A call was given up, and has perhaps not ended yet.
    hangs: Arc<AtomicBool>,
}

impl PatientDisk {
    /// Over a disk that may hang; one that cannot is given back as it is.
    pub fn over(disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        match disk.may_hang() {
            true => Arc::new(PatientDisk::with_limit(disk, AT_LAST)),
            false => disk,
        }
    }

    fn with_limit(below: Arc<dyn Disk>, limit: Duration) -> PatientDisk {
        PatientDisk {
            calls: Calls {
                patience: Patience::new(Arc::clone(&below)),
                limit,
                hangs: Arc::default(),
            },
            below,
        }
    }
}

impl Calls {
    fn late(&self, what: &str, object: Option<ObjectName>) -> DiskError {
        let object = object.map_or_else(String::new, |object| format!(" {object}"));
        DiskError::Io {
            disk: self.patience.disk().name().to_owned(),
            what: format!("{what}{object}"),
            source: std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("no answer in {} s", self.limit.as_secs()),
            ),
        }
    }

    /// The answer of a call, if it comes in time.
    fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        object: Option<ObjectName>,
        call: impl FnOnce(&dyn Disk) -> T + Send + 'static,
    ) -> Result<T> {
        if self.hangs.load(Ordering::Acquire) {
            if !self.patience.is_idle() {
                return Err(self.late(what, object));
            }
            self.hangs.store(false, Ordering::Release);
        }
        self.patience.ask(self.limit, call).ok_or_else(|| {
            self.hangs.store(true, Ordering::Release);
            self.late(what, object)
        })
    }
}

impl Disk for PatientDisk {
    fn name(&self) -> &str {
        self.below.name()
    }

    fn device(&self) -> Option<u64> {
        self.below.device()
    }

    fn check(&self) -> Result<()> {
        self.below.check()
    }

    fn create(&self, object: ObjectName) -> Result<Box<dyn Appender>> {
        let call = move |disk: &dyn Disk| disk.create(object);
        let appender = self.calls.ask("create", Some(object), call)??;
        Ok(self.appender(object, appender))
    }

    fn resume(&self, object: ObjectName, length: u64) -> Result<Box<dyn Appender>> {
        let call = move |disk: &dyn Disk| disk.resume(object, length);
        let appender = self.calls.ask("open", Some(object), call)??;
        Ok(self.appender(object, appender))
    }

    fn read_at(&self, object: ObjectName, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.below.read_at(object, offset, buffer)
    }

    fn read_at_once(&self, object: ObjectName, offset: u64, buffer: &mut [u8]) -> bool {
        self.below.read_at_once(object, offset, buffer)
    }

    fn forget(&self, object: ObjectName) {
        // Waited for, since what is read next is to come from the medium. That it does not is told by the read.
        let call = move |disk: &dyn Disk| disk.forget(object);
        let _ = self.calls.ask("forget", Some(object), call);
    }

    fn let_go(&self) {
        // The last file that is closed may unmount a filesystem: nobody waits for that.
        self.calls.patience.tell(|disk| disk.let_go());
    }

    fn will_read(&self, object: ObjectName, range: Range<u64>) {
        self.below.will_read(object, range);
    }

    fn length(&self, object: ObjectName) -> Result<u64> {
        let call = move |disk: &dyn Disk| disk.length(object);
        self.calls.ask("measure", Some(object), call)?
    }

    fn put(&self, object: ObjectName, bytes: &[u8]) -> Result<()> {
        let bytes = bytes.to_vec();
        let call = move |disk: &dyn Disk| disk.put(object, &bytes);
        self.calls.ask("write", Some(object), call)?
    }

    fn restore(&self, object: ObjectName, offset: u64, bytes: &[u8]) -> Result<()> {
        let bytes = bytes.to_vec();
        let call = move |disk: &dyn Disk| disk.restore(object, offset, &bytes);
        self.calls.ask("write", Some(object), call)?
    }

    fn punch(&self, object: ObjectName, range: Range<u64>) -> Result<()> {
        let call = move |disk: &dyn Disk| disk.punch(object, range);
        self.calls.ask("punch", Some(object), call)?
    }

    fn remove(&self, object: ObjectName) -> Result<()> {
        let call = move |disk: &dyn Disk| disk.remove(object);
        self.calls.ask("remove", Some(object), call)?
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>> {
        self.calls.ask("list", None, |disk| disk.list())?
    }

    fn sync_names(&self) -> Result<()> {
        self.calls
            .ask("sync its names", None, |disk| disk.sync_names())?
    }

    fn space(&self) -> Result<Space> {
        self.calls.ask("tell its room", None, |disk| disk.space())?
    }

    fn random_access(&self, object: ObjectName) -> Result<Box<dyn RandomAccess>> {
        let call = move |disk: &dyn Disk| disk.random_access(object);
        let file = self.calls.ask("open", Some(object), call)??;
        Ok(Box::new(PatientAccess {
            file: Arc::from(file),
            calls: self.calls.clone(),
            object,
        }))
    }
}

impl PatientDisk {
    fn appender(&self, object: ObjectName, below: Box<dyn Appender>) -> Box<dyn Appender> {
        match object {
            ObjectName::Blocks(_) | ObjectName::Parity(_) => below,
            _ => Box::new(PatientAppender {
                below: Some(below),
                calls: self.calls.clone(),
                object,
            }),
        }
    }
}

/// An appender that goes to the disk's threads and comes back with each call; one that does not come back is lost.
struct PatientAppender {
    below: Option<Box<dyn Appender>>,
    calls: Calls,
    object: ObjectName,
}

impl fmt::Debug for PatientAppender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} behind {:?}", self.below, self.calls)
    }
}

impl PatientAppender {
    fn ask<T: Send + 'static>(
        &mut self,
        what: &'static str,
        call: impl FnOnce(&mut dyn Appender) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let object = Some(self.object);
        let lost = || self.calls.late(what, object);
        let mut below = self.below.take().ok_or_else(lost)?;
        let (below, result) = self.calls.ask(what, object, move |_| {
            let result = call(below.as_mut());
            (below, result)
        })?;
        self.below = Some(below);
        result
    }
}

impl Appender for PatientAppender {
    fn append(&mut self, slices: &[&[u8]]) -> Result<u64> {
        let bytes = slices.concat();
        self.ask("append to", move |below| below.append(&[&bytes]))
    }

    fn start_sync(&mut self, but: u64) {
        // Nothing is waited for, and what comes of it the next call tells.
        let _ = self.ask("sync", move |below| {
            below.start_sync(but);
            Ok(())
        });
    }

    fn sync(&mut self) -> Result<()> {
        self.ask("sync", |below| below.sync())
    }
}

/// A file that is written at random.
#[derive(Debug)]
struct PatientAccess {
    file: Arc<dyn RandomAccess>,
    calls: Calls,
    object: ObjectName,
}

impl PatientAccess {
    fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&dyn RandomAccess) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let file = Arc::clone(&self.file);
        let call = move |_: &dyn Disk| call(&*file);
        self.calls.ask(what, Some(self.object), call)?
    }
}

impl RandomAccess for PatientAccess {
    fn length(&self) -> Result<u64> {
        self.ask("measure", |file| file.length())
    }

    fn set_length(&self, length: u64) -> Result<()> {
        self.ask("set the length of", move |file| file.set_length(length))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let bytes = bytes.to_vec();
        self.ask("write to", move |file| file.write_at(offset, &bytes))
    }

    fn sync(&self) -> Result<()> {
        self.ask("sync", |file| file.sync())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::disk::{
        Fault, FaultPlan, FaultyDisk, MemoryDisk, Operation, Operations, Rule, When,
    };

    const SHORT: Duration = Duration::from_secs(1);
    const LONG: Duration = Duration::from_secs(5);

    /// Waits until what hung has ended.
    fn wait(disk: &PatientDisk) {
        while !disk.calls.patience.is_idle() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn disk() -> (PatientDisk, Arc<FaultPlan>) {
        let plan = FaultPlan::new(1);
        let faulty = FaultyDisk::new(Arc::new(MemoryDisk::new("a")), Arc::clone(&plan));
        (PatientDisk::with_limit(Arc::new(faulty), SHORT), plan)
    }

    fn hang(plan: &FaultPlan, operation: Operation) {
        let once = When::Count { skip: 0, times: 1 };
        plan.add(Rule::new(
            Operations::of(&[operation]),
            once,
            Fault::Delay(LONG),
        ));
    }

    fn is_late<T: fmt::Debug>(result: Result<T>) {
        let error = result.unwrap_err();
        assert!(error.to_string().contains("no answer"), "{error}");
    }

    #[test]
    fn every_change_is_made_and_one_that_hangs_is_an_error_in_time() {
        let object = ObjectName::Journal(1);
        for hangs in [Operation::Append, Operation::Sync] {
            let (disk, plan) = disk();
            let mut appender = disk.create(object).unwrap();
            assert_eq!(appender.append(&[b"ab", b"c"]).unwrap(), 0);
            appender.sync().unwrap();
            hang(&plan, hangs);
            let begun = Instant::now();
            match hangs {
                Operation::Append => is_late(appender.append(&[b"d"])),
                _ => is_late(appender.sync()),
            }
            assert!(begun.elapsed() < LONG / 2);
            // Nobody else waits, and an appender that did not come back takes nothing more.
            let begun = Instant::now();
            is_late(disk.sync_names());
            is_late(appender.append(&[b"e"]));
            assert!(begun.elapsed() < SHORT);
            // Once that call has ended the disk is as good as any.
            wait(&disk);
            disk.sync_names().unwrap();
            is_late(appender.append(&[b"e"]));
            let mut start = [0; 3];
            disk.read_at(object, 0, &mut start).unwrap();
            assert_eq!(&start, b"abc");
        }
    }

    #[test]
    fn what_a_task_asks_is_an_error_in_time_and_no_writer_waits_behind_it() {
        let object = ObjectName::Journal(1);
        let (disk, plan) = disk();
        disk.put(object, b"abc").unwrap();
        assert_eq!(disk.length(object).unwrap(), 3);
        hang(&plan, Operation::Length);
        let begun = Instant::now();
        is_late(disk.length(object));
        is_late(disk.length(object));
        assert!(begun.elapsed() < LONG / 2);
        wait(&disk);
        assert_eq!(disk.length(object).unwrap(), 3);
        plan.clear();
        hang(&plan, Operation::Read);
        let begun = Instant::now();
        disk.forget(object);
        assert!(begun.elapsed() < LONG / 2);
        is_late(disk.length(object));
        let before = plan.injected();
        assert_eq!(before, 2, "it reached the medium");
    }

    #[test]
    fn a_database_that_hangs_is_an_error_in_time() {
        for hangs in [
            Operation::RandomWrite,
            Operation::RandomSync,
            Operation::RandomSetLength,
            Operation::RandomLength,
        ] {
            let (disk, plan) = disk();
            let file = disk.random_access(ObjectName::Database).unwrap();
            let work = || {
                file.set_length(9)?;
                file.write_at(3, b"abc")?;
                assert_eq!(file.length()?, 9);
                file.sync()
            };
            work().unwrap();
            hang(&plan, hangs);
            is_late(work());
            wait(&disk);
            work().unwrap();
            let mut bytes = [0; 3];
            file.read_at(3, &mut bytes).unwrap();
            assert_eq!(&bytes, b"abc");
        }
    }

    #[test]
    fn a_disk_that_cannot_hang_is_given_back() {
        let memory: Arc<dyn Disk> = Arc::new(MemoryDisk::new("a"));
        assert!(Arc::ptr_eq(
            &PatientDisk::over(Arc::clone(&memory)),
            &memory
        ));
    }
}
