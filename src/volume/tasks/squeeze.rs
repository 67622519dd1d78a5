//! Compressing later: blocks that were stored as they are, because their writer would have had to wait, are written anew
//! when nobody waits, window by window, by threads that make way for every other program. What a commit or an earlier mount
//! left of them is queued by file; a file tells in its head whether there is any. It is no task: nobody begins it or waits
//! for it, and it rests while a task runs or a disk is away.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::relocate::{Plan, Wanted};
use super::{Running, Walked};
use crate::disk::ObjectName;
use crate::ids::{FileId, SetId, WindowNo};
use crate::meta::WriteRecords;
use crate::store::block::BLOCK_HEADER;
use crate::store::compression::compressed_length;
use crate::store::{BlockRecord, Compression, WindowRecord};
use crate::volume::Volume;
use crate::volume::error::Result;
use crate::volume::file::OpenFile;
use crate::volume::tally::sums;

/// How long files that are being written are left alone before the next try.
const PAUSE: Duration = Duration::from_secs(2);

/// How long whatever is more urgent is left alone before the next look.
const AGAIN: Duration = Duration::from_millis(50);

/// Windows that are written anew in one commit. More of them make fuller windows, and fewer manifests.
const WINDOWS: usize = 8;

/// A file is committed at most about so often, since each time its manifest is written.
const COMMITS: usize = 32;

/// One part in so many must be gained for a window to be written anew.
const WORTH: u64 = 32;

/// What there is to compress, and the thread that does it. It ends after this is dropped.
#[derive(Debug)]
pub(crate) struct Squeezer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    bell: Condvar,
    running: Running,
    quiet: Duration,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeSet<FileId>,
    stop: bool,
}

impl Squeezer {
    /// `quiet`: how long after a commit it begins at the earliest.
    pub(crate) fn new(quiet: Duration) -> Squeezer {
        Squeezer {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                bell: Condvar::new(),
                running: Running::of_no_task("compressing what was stored as it is"),
                quiet,
            }),
            thread: Mutex::default(),
        }
    }

    /// A file has blocks that are yet to be compressed. Says whether that is news.
    pub(crate) fn add(&self, file: FileId) -> bool {
        let news = self.shared.state.lock().files.insert(file);
        self.shared.bell.notify_all();
        news
    }

    /// Ends the thread; the next mount goes on.
    pub(crate) fn stop(&self) {
        self.shared.end();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // One that panicked has logged it.
            let _ = thread.join();
        }
    }
}

impl Drop for Squeezer {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Shared {
    fn end(&self) {
        self.state.lock().stop = true;
        self.running.stopped.store(true, Ordering::Release);
        self.bell.notify_all();
    }

    /// Waits until there is a file, or for a time whatever comes; false when it is time to end.
    fn wait(&self, time: Option<Duration>) -> bool {
        let mut state = self.state.lock();
        match time {
            None => {
                while state.files.is_empty() && !state.stop {
                    self.bell.wait(&mut state);
                }
            }
            Some(time) => {
                let until = Instant::now() + time;
                while !state.stop && !self.bell.wait_until(&mut state, until).timed_out() {}
            }
        }
        !state.stop
    }

    fn files(&self) -> Vec<FileId> {
        self.state.lock().files.iter().copied().collect()
    }

    fn done(&self, file: FileId) {
        self.state.lock().files.remove(&file);
    }
}

fn is_hasty(block: &BlockRecord) -> bool {
    block.hasty && !block.lost
}

/// Bytes of a window's blocks on the disks.
fn stored(record: &WindowRecord) -> u64 {
    let blocks = record.blocks.iter();
    blocks.map(|block| u64::from(block.stored)).sum()
}

impl Volume {
    /// Begins to compress what is to be compressed later, whenever there is something.
    pub(crate) fn begin_to_squeeze(volume: &Arc<Volume>) {
        let squeezer = Arc::clone(&volume.squeezer.shared);
        let weak: Weak<Volume> = Arc::downgrade(volume);
        let work = move || {
            while squeezer.wait(None) {
                if !squeezer.wait(Some(squeezer.quiet)) {
                    return;
                }
                let Some(volume) = weak.upgrade() else { return };
                let pause = match volume.has_other_work() {
                    true => Some(AGAIN),
                    false => volume.squeeze_queued().then_some(PAUSE),
                };
                drop(volume);
                if pause.is_some() && !squeezer.wait(pause) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("squeeze".into())
            .spawn(work);
        match thread {
            Ok(thread) => *volume.squeezer.thread.lock() = Some(thread),
            Err(error) => {
                tracing::error!(%error, "no thread to compress later what was stored as it is");
            }
        }
    }

    /// Whether something is more urgent than compressing.
    fn has_other_work(&self) -> bool {
        let busy = self.pipeline.budget.held() > self.pipeline.budget.limit() / 2;
        busy || self.pipeline.is_waited_for() || !self.disks.all_online() || self.task_runs()
    }

    /// Looks at all files of the queue once; says whether some are left.
    fn squeeze_queued(&self) -> bool {
        for file in self.squeezer.shared.files() {
            if self.has_other_work() {
                return true;
            }
            match self.squeeze(file) {
                Ok(Walked::Done) => self.squeezer.shared.done(file),
                Ok(Walked::Later) => {}
                // It is gone, and so is what there was to do.
                Err(error) if error.errno() == libc::ENOENT => {
                    if let Err(error) = self.keep_hasty(file, 0) {
                        tracing::debug!(%file, %error, "nothing is left of it to compress, which is not kept");
                    }
                    self.squeezer.shared.done(file);
                }
                Err(error) => {
                    tracing::warn!(file = self.called(file), %error, "it stays uncompressed in parts until the next mount");
                    self.squeezer.shared.done(file);
                }
            }
            if self.squeezer.shared.running.ends() {
                return false;
            }
        }
        let left = !self.squeezer.shared.files().is_empty();
        if !left {
            self.pipeline.nothing_deferred();
        }
        left
    }

    /// Compresses what of a file is yet to be compressed.
    fn squeeze(&self, file: FileId) -> Result<Walked> {
        let running = &self.squeezer.shared.running;
        let open = self.use_file(file)?;
        let (mut looked, mut moved) = (HashSet::new(), HashSet::new());
        loop {
            if running.ends() || self.has_other_work() || self.is_unsettled(&open, None) {
                return Ok(Walked::Later);
            }
            let mut windows = 0;
            let mut hasty = Vec::new();
            let mut others: Vec<(WindowNo, SetId, u64)> = Vec::new();
            let mut stays: HashMap<SetId, u64> = HashMap::new();
            // A commit that is made meanwhile does not take away the manifest that is read.
            let reading = open.reading.read_recursive();
            self.frozen_view(&open).each_window(|record| {
                windows += 1;
                *stays.entry(record.set).or_default() += stored(&record);
                if record.blocks.iter().any(is_hasty) {
                    if !looked.contains(&record.no) {
                        hasty.push(record.no);
                    }
                } else if !moved.contains(&record.no) {
                    others.push((record.no, record.set, stored(&record)));
                }
                Ok(())
            })?;
            drop(reading);
            let most = WINDOWS.max(windows / COMMITS);
            let mut wanted: HashMap<WindowNo, Wanted> = HashMap::new();
            for no in hasty.into_iter().take(most) {
                looked.insert(no);
                let _reading = open.reading.read_recursive();
                if let Some(record) = self.committed_window(&open, no)? {
                    let what = self.wanted_of(file, &record);
                    match what {
                        Wanted::Anew => {
                            let stays = stays.entry(record.set).or_default();
                            *stays = stays.saturating_sub(stored(&record));
                        }
                        Wanted::Compressed => others.push((no, record.set, stored(&record))),
                        Wanted::Stay | Wanted::Move(_) => {}
                    }
                    wanted.insert(no, what);
                }
            }
            // Where no more than two thirds stay of a set, between holes, they move too: a set that nothing refers to is
            // removed, and leaves no torn pages. That is owed until it is done, whatever comes between.
            let mut torn: HashMap<SetId, bool> = HashMap::new();
            others.retain(|(_, set, _)| {
                let stays = stays.get(set).copied().unwrap_or_default();
                *torn
                    .entry(*set)
                    .or_insert_with(|| stays * 3 <= self.written_to(*set) * 2)
            });
            let besides = others.iter().map(|(_, _, stored)| stored).sum();
            if wanted.is_empty() {
                for (no, _, _) in others.into_iter().take(most) {
                    moved.insert(no);
                    wanted.insert(no, Wanted::Anew);
                }
            }
            if wanted.is_empty() {
                return self.correct_head(&open);
            }
            let before = open.state.lock().head.hasty;
            let walked = self.relocate(
                file,
                running,
                &mut Plan {
                    choose: &mut |_, record| {
                        wanted.get(&record.no).cloned().unwrap_or(Wanted::Stay)
                    },
                    give_up: &[],
                    punch: false,
                    patient: true,
                    besides,
                },
                None,
            )?;
            // What was left to somebody who waited comes next time.
            let walked = match self.pipeline.is_waited_for() {
                true => Walked::Later,
                false => walked,
            };
            let after = open.state.lock().head.hasty;
            self.pipeline
                .deferred_no_longer(before.saturating_sub(after));
            if walked == Walked::Later {
                return Ok(walked);
            }
        }
    }

    /// Bytes that the disks hold of a set's columns, those included that nothing refers to any more.
    fn written_to(&self, set: SetId) -> u64 {
        let disks = self.disks.list().into_iter();
        let lengths = disks.filter_map(|status| {
            // What a disk has not, or does not tell, is not there to be given back.
            let disk = self.disks.get(status.id)?;
            disk.length(ObjectName::Blocks(set)).ok()
        });
        lengths.sum()
    }

    /// Whether a window is worth being written anew.
    fn wanted_of(&self, file: FileId, record: &WindowRecord) -> Wanted {
        let compression = self.pipeline.policy.compression;
        if compression == Compression::None {
            return Wanted::Compressed;
        }
        let all = record.blocks.iter().filter(|block| is_hasty(block));
        let worth = all.map(|block| u64::from(block.stored)).sum::<u64>() / WORTH;
        let mut gained = 0;
        for index in 0..record.blocks.len() as u16 {
            if !record.block(index).is_some_and(is_hasty) {
                continue;
            }
            // What cannot be read now is not made better by writing the rest anew.
            let Ok(stored) = self.reader.read_stored(file, record, index) else {
                return Wanted::Stay;
            };
            let payload = stored.get(BLOCK_HEADER..).unwrap_or_default();
            gained += (payload.len() - compressed_length(payload, compression)) as u64;
            if gained > worth {
                return Wanted::Anew;
            }
        }
        Wanted::Compressed
    }

    fn keep_hasty(&self, file: FileId, bytes: u64) -> Result<()> {
        self.meta.update(|update| {
            update.put_hasty(file, bytes);
            Ok(())
        })
    }

    /// Has a file's head tell what its windows tell of what is yet to be compressed.
    fn correct_head(&self, file: &OpenFile) -> Result<Walked> {
        let (_hurry, _turn) = self.turn_of(file);
        if self.is_unsettled(file, None) {
            return Ok(Walked::Later);
        }
        let mut hasty = 0;
        self.frozen_view(file).each_window(|record| {
            hasty += sums([&*record]).hasty;
            Ok(())
        })?;
        let told = file.state.lock().head.hasty;
        if told == hasty || file.unlinked.load(Ordering::Acquire) {
            return Ok(Walked::Done);
        }
        self.keep_hasty(file.id, hasty)?;
        file.state.lock().head.hasty = hasty;
        Ok(Walked::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::tests::Rig;

    #[test]
    fn the_thread_ends_with_its_volume() {
        let rig = Rig::new(4, "critical = \"2+1\"");
        let volume = rig.open();
        let shared = Arc::downgrade(&volume.squeezer.shared);
        // As in a crash: nobody closes it.
        drop(volume);
        let end = Instant::now() + Duration::from_secs(20);
        while shared.upgrade().is_some() {
            assert!(
                Instant::now() < end,
                "the thread goes on without its volume"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
