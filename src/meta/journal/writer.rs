//! The one writer of a disk's journal, or of its manifest of the namespace. Each has a thread of its own, so that a
//! record is appended to all disks side by side.

use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender};

use super::record::Record;
use crate::disk::{Appender, Disk, DiskError, ObjectName, Result};
use crate::ids::DiskId;

/// The disks that failed, each with its error.
pub(in crate::meta) type Failed = Vec<(DiskId, DiskError)>;

/// Which row of objects a writer appends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::meta) enum Series {
    /// The journals.
    Journal,
    /// The manifests of the namespace.
    Names,
}

impl Series {
    pub(in crate::meta) fn object(self, number: u64) -> ObjectName {
        match self {
            Series::Journal => ObjectName::Journal(number),
            Series::Names => ObjectName::Names(number),
        }
    }

    /// The number of an object of this series; none for another one.
    pub(in crate::meta) fn number(self, object: ObjectName) -> Option<u64> {
        match (self, object) {
            (Series::Journal, ObjectName::Journal(number))
            | (Series::Names, ObjectName::Names(number)) => Some(number),
            _ => None,
        }
    }
}

/// What is asked of a journal's thread, with where the answer goes.
struct Request {
    what: What,
    answer: Sender<(DiskId, Result<()>)>,
}

enum What {
    Append {
        bytes: Arc<Vec<u8>>,
        sync: bool,
    },
    /// Begin the journal of this number; what is appended from now on goes there.
    Begin(u64),
    /// The journal begun last is whole: make its name durable and remove all others.
    Settle,
    /// The journal begun last came to nothing: go on with the one before.
    Abandon,
}

/// A disk's journal, open for appending.
pub(in crate::meta) struct Journal {
    pub(in crate::meta) disk: DiskId,
    requests: Option<Sender<Request>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was answered with a broken channel already.
            let _ = thread.join();
        }
    }
}

impl Journal {
    /// Starts the thread. `resume` names a journal to go on with, after its first bytes.
    pub(in crate::meta) fn start(
        id: DiskId,
        disk: Arc<dyn Disk>,
        series: Series,
        resume: Option<(u64, u64)>,
    ) -> Result<Journal> {
        let mut writer = Writer {
            disk,
            series,
            now: None,
            before: None,
            begun: false,
        };
        if let Some((number, length)) = resume {
            let appender = writer.disk.resume(series.object(number), length)?;
            writer.now = Some((number, appender));
        }
        let name = writer.disk.name().to_owned();
        let (requests, inbox) = crossbeam_channel::unbounded::<Request>();
        let thread = thread::Builder::new()
            .name(match series {
                Series::Journal => format!("journal-{id}"),
                Series::Names => format!("names-{id}"),
            })
            .spawn(move || {
                for request in inbox {
                    let result = writer.handle(request.what);
                    // The asker waits for all answers, or is gone with the whole process.
                    let _ = request.answer.send((id, result));
                }
            })
            .map_err(|source| DiskError::Exhausted {
                disk: name,
                what: "start the thread that writes its journal".to_owned(),
                source,
            })?;
        Ok(Journal {
            disk: id,
            requests: Some(requests),
            thread: Some(thread),
        })
    }

    fn ask(&self, what: What, answer: &Sender<(DiskId, Result<()>)>) {
        let request = Request {
            what,
            answer: answer.clone(),
        };
        if let Some(requests) = &self.requests {
            // A thread that is gone is seen by its missing answer.
            let _ = requests.send(request);
        }
    }
}

struct Writer {
    disk: Arc<dyn Disk>,
    series: Series,
    now: Option<(u64, Box<dyn Appender>)>,
    /// The journal before the one that was begun, until that is settled.
    before: Option<(u64, Box<dyn Appender>)>,
    /// `now` was begun and is not settled: it may be abandoned.
    begun: bool,
}

impl Writer {
    fn handle(&mut self, what: What) -> Result<()> {
        match what {
            What::Append { bytes, sync } => {
                let (_, appender) = self.now.as_mut().ok_or_else(|| DiskError::Unsupported {
                    disk: self.disk.name().to_owned(),
                    what: "append to a journal that was not begun",
                })?;
                appender.append(&[&bytes])?;
                if sync { appender.sync() } else { Ok(()) }
            }
            What::Begin(number) => {
                let object = self.series.object(number);
                self.begun = false;
                // Left by a crash while it was begun.
                self.disk.remove(object)?;
                let begun = (number, self.disk.create(object)?);
                self.before = self.now.replace(begun);
                self.begun = true;
                Ok(())
            }
            What::Settle => {
                self.before = None;
                self.begun = false;
                // 1. The new journal's name is durable before 2. the older ones go.
                self.disk.sync_names()?;
                let kept = self.now.as_ref().map(|(number, _)| *number);
                for (object, _) in self.disk.list()? {
                    if self
                        .series
                        .number(object)
                        .is_some_and(|number| Some(number) != kept)
                    {
                        self.disk.remove(object)?;
                    }
                }
                self.disk.sync_names()
            }
            // One that could not be begun leaves the old one as it was.
            What::Abandon if !self.begun => Ok(()),
            What::Abandon => {
                self.begun = false;
                let begun = std::mem::replace(&mut self.now, self.before.take());
                match begun {
                    Some((number, _)) => self.disk.remove(self.series.object(number)),
                    None => Ok(()),
                }
            }
        }
    }
}

fn wait(journals: &[&Journal], answers: Receiver<(DiskId, Result<()>)>) -> Failed {
    let mut failed = Vec::new();
    let mut missing: Vec<DiskId> = journals.iter().map(|journal| journal.disk).collect();
    for (id, result) in answers {
        missing.retain(|other| *other != id);
        if let Err(error) = result {
            failed.push((id, error));
        }
    }
    for id in missing {
        let source = std::io::Error::other("the thread that writes its journal is gone");
        let error = DiskError::Io {
            disk: id.to_string(),
            what: "write the journal".to_owned(),
            source,
        };
        failed.push((id, error));
    }
    failed
}

fn ask_all(journals: &[&Journal], what: impl Fn() -> What) -> Failed {
    let (answer, answers) = crossbeam_channel::unbounded();
    for journal in journals {
        journal.ask(what(), &answer);
    }
    drop(answer);
    wait(journals, answers)
}

/// Appends a record to journals side by side, synced if asked. Gives the record's fingerprint, its length in
/// bytes, and the disks that failed.
pub(in crate::meta) fn append_all(
    journals: &[&Journal],
    record: Record,
    payload: &[u8],
    sync: bool,
) -> (u64, u64, Failed) {
    let (header, fingerprint) = record.header(payload);
    let mut bytes = Vec::with_capacity(header.len() + payload.len());
    bytes.extend(header);
    bytes.extend(payload);
    let length = bytes.len() as u64;
    let bytes = Arc::new(bytes);
    let failed = ask_all(journals, || What::Append {
        bytes: Arc::clone(&bytes),
        sync,
    });
    (fingerprint, length, failed)
}

/// Begins a journal on every disk; see `settle_all`.
pub(in crate::meta) fn begin_all(journals: &[&Journal], number: u64) -> Failed {
    ask_all(journals, || What::Begin(number))
}

/// Makes the journals begun last, which must be synced and whole, the only ones.
pub(in crate::meta) fn settle_all(journals: &[&Journal]) -> Failed {
    ask_all(journals, || What::Settle)
}

/// Gives up the journals begun last.
pub(in crate::meta) fn abandon_all(journals: &[&Journal]) -> Failed {
    ask_all(journals, || What::Abandon)
}
