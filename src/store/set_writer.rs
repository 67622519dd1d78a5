//! The segments of one commit of one file while they are written: blocks go in, placed windows come out. The
//! way of a block: `begin` names it, `seal` hands over its bytes; a compressing thread seals it, its window
//! puts it on a column, the column's disk takes it, and parity is coded over it when all columns are as long; the last one
//! of a closed window has the parity written.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::block::{BlockIds, seal, seal_in_haste};
use super::budget::Permit;
use super::buffers::Buffer;
use super::compression::Compression;
use super::parity::{self, PARITY_HEADER, ParityIds, Shard, encode_shards, shard_header};
use super::pipeline::{NoWindow, Pipeline};
use super::records::{Code, ParityShard, WindowRecord};
use super::segment::{AppendError, Payload, Segment};
use super::window::{COLUMN_BLOCKS, Lane, Next, OpenWindow, SealedBlock, Stretch};
use crate::disk::{Disk, ObjectName};
use crate::ids::{BlockId, DiskId, FileId, SetId, WindowNo};
use crossbeam_channel::bounded;
use parking_lot::Mutex;

/// A block that is being gathered: its name, and the window that waits for it.
#[derive(Clone, Debug)]
pub struct Begun {
    /// The window.
    pub window: Arc<OpenWindow>,
    /// The place in it.
    pub index: u16,
}

impl Begun {
    /// The block's name.
    pub fn id(&self) -> BlockId {
        BlockId {
            window: self.window.no,
            index: self.index,
        }
    }
}

/// What cannot be written for a window.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// No disks for it.
    #[error(transparent)]
    NoWindow(#[from] NoWindow),
    /// Parity could not be computed.
    #[error(transparent)]
    Parity(#[from] parity::ParityError),
    /// A disk did not take it.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// The writer of one segment set.
#[derive(Debug)]
pub struct SetWriter {
    pipeline: Arc<Pipeline>,
    file: FileId,
    set: SetId,
    /// Every block is compressed, however long it takes, and nobody waits for it.
    thorough: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: HashMap<Lane, Arc<OpenWindow>>,
    windows: Vec<Arc<OpenWindow>>,
    segments: HashMap<(DiskId, ObjectName), Arc<Segment>>,
    /// What is appended is written down as it comes.
    eager: bool,
    failed: BTreeSet<DiskId>,
}

impl State {
    fn by_disk(&self) -> HashMap<DiskId, Vec<Arc<Segment>>> {
        let mut by_disk: HashMap<DiskId, Vec<Arc<Segment>>> = HashMap::new();
        for ((disk, _), segment) in &self.segments {
            by_disk.entry(*disk).or_default().push(Arc::clone(segment));
        }
        by_disk
    }

    /// Whether all that the set has on a disk lies on this medium.
    fn is_all_on(&self, set: SetId, disk: DiskId, medium: &Arc<dyn Disk>) -> bool {
        let objects = [ObjectName::Blocks(set), ObjectName::Parity(set)];
        objects.iter().all(|object| {
            let segment = self.segments.get(&(disk, *object));
            segment.is_none_or(|segment| segment.is_on(medium))
        })
    }
}

/// A parity shard on its way to a disk.
struct ShardPayload {
    header: [u8; PARITY_HEADER],
    pieces: Vec<Buffer>,
}

impl Payload for ShardPayload {
    fn parts<'a>(&'a self, parts: &mut Vec<&'a [u8]>) {
        parts.push(&self.header);
        parts.extend(self.pieces.iter().map(|piece| piece.as_slice()));
    }
}

impl SetWriter {
    /// A writer that has not touched a disk yet.
    pub fn new(pipeline: Arc<Pipeline>, file: FileId, set: SetId) -> Arc<SetWriter> {
        Self::with(pipeline, file, set, false)
    }

    /// The same for what is written again and waited for by nobody: every block is compressed, however long it takes.
    pub fn thorough(pipeline: Arc<Pipeline>, file: FileId, set: SetId) -> Arc<SetWriter> {
        Self::with(pipeline, file, set, true)
    }

    fn with(pipeline: Arc<Pipeline>, file: FileId, set: SetId, thorough: bool) -> Arc<SetWriter> {
        Arc::new(SetWriter {
            pipeline,
            file,
            set,
            thorough,
            state: Mutex::default(),
        })
    }

    /// The set's number.
    pub fn set(&self) -> SetId {
        self.set
    }

    /// Names the next block of a lane. `next_window` counts the file's windows.
    pub fn begin(self: &Arc<Self>, lane: Lane, next_window: &AtomicU32) -> Result<Begun, NoWindow> {
        // A window's lock is never taken under this state's: the writers take them the other way round.
        let current = self.state.lock().current.get(&lane).cloned();
        if let Some(window) = current {
            if let Some(index) = window.begin(self.pipeline.column_blocks(window.code)) {
                return Ok(Begun { window, index });
            }
            self.advance(&window);
        }
        let (code, disks) = self.pipeline.choose(lane)?;
        // All of the window or nothing: what is stored as it is has its whole window written anew later.
        let hasty = !self.thorough && self.pipeline.makes_haste(false);
        let no = WindowNo(next_window.fetch_add(1, Ordering::Relaxed));
        let buffers = &self.pipeline.buffers;
        let place = (code, disks);
        let window = OpenWindow::new(no, self.file, self.set, lane, place, hasty, buffers);
        let index = window.begin(COLUMN_BLOCKS).unwrap_or_default();
        if code.m > 0 {
            window.count(self.pipeline.one_more_grows());
        }
        let mut state = self.state.lock();
        let before = state.current.insert(lane, Arc::clone(&window));
        state.windows.push(Arc::clone(&window));
        drop(state);
        if let Some(before) = before {
            self.close(&before);
        }
        Ok(Begun { window, index })
    }

    /// Hands over the bytes of a block, 1 to `BLOCK_MAX` of them.
    pub fn seal(self: &Arc<Self>, begun: &Begun, raw: Arc<Buffer>, permit: Option<Permit>) {
        let length = raw.len() as u64;
        let pipeline = &self.pipeline;
        pipeline.unwritten.fetch_add(length, Ordering::Relaxed);
        let plain = pipeline.policy.compression == Compression::None;
        if plain || begun.window.hasty {
            // Only hashing is left to do, and that is cheapest at once, while the bytes are in this CPU's cache.
            self.seal_now(
                (&begun.window, begun.index),
                &raw,
                permit,
                begun.window.hasty,
            );
            return;
        }
        pipeline.uncompressed.fetch_add(length, Ordering::Relaxed);
        let (window, index) = (Arc::clone(&begun.window), begun.index);
        window.fill(index, Arc::clone(&raw));
        let this = Arc::clone(self);
        pipeline.workers.spawn(move || {
            let pipeline = &this.pipeline;
            let hasty =
                !this.thorough && pipeline.workers.is_waited_for() && pipeline.makes_haste(true);
            pipeline.uncompressed.fetch_sub(length, Ordering::Relaxed);
            this.seal_now((&window, index), &raw, permit, hasty);
        });
    }

    fn seal_now(
        self: &Arc<Self>,
        (window, index): (&Arc<OpenWindow>, u16),
        raw: &Arc<Buffer>,
        permit: Option<Permit>,
        hasty: bool,
    ) {
        let ids = BlockIds {
            volume: self.pipeline.volume,
            file: self.file,
            set: self.set,
            block: BlockId {
                window: window.no,
                index,
            },
        };
        let sealed = if hasty {
            self.pipeline.defer(raw.len() as u64);
            seal_in_haste(ids, raw)
        } else {
            seal(ids, raw, self.pipeline.policy.compression)
        };
        let sealed = SealedBlock::new(sealed, raw.len() as u32, permit);
        let (this, window) = (Arc::clone(self), Arc::clone(window));
        self.pipeline.workers.at_once(move || {
            window.place(index, sealed, |disk, block| {
                this.queue(disk, &window, index, block)
            });
            this.advance(&window);
        });
    }

    /// Nothing came for a block that was begun.
    pub fn give_up(self: &Arc<Self>, begun: &Begun) {
        begun.window.give_up(begun.index);
        self.advance(&begun.window);
    }

    fn queue(
        self: &Arc<Self>,
        disk: DiskId,
        window: &Arc<OpenWindow>,
        index: u16,
        block: Arc<SealedBlock>,
    ) {
        let raw = block.raw;
        let segment = match self.segment(disk, ObjectName::Blocks(self.set)) {
            Ok(segment) => segment,
            Err(_) => {
                // Not from here: the window is locked.
                let (this, window) = (Arc::clone(self), Arc::clone(window));
                self.pipeline
                    .workers
                    .spawn(move || this.placed((&window, index, raw), disk, Err(())));
                return;
            }
        };
        let (this, window) = (Arc::clone(self), Arc::clone(window));
        let done = Box::new(move |result: Result<u64, AppendError>| {
            this.placed((&window, index, raw), disk, result.map_err(|_| ()));
        });
        if let Err(refused) = self.pipeline.writers.append(segment, block, done) {
            // Nor this from here.
            self.pipeline.workers.spawn(|| refused.tell());
        }
    }

    fn placed(
        self: &Arc<Self>,
        (window, index, raw): (&Arc<OpenWindow>, u16, u32),
        disk: DiskId,
        result: Result<u64, ()>,
    ) {
        self.pipeline
            .unwritten
            .fetch_sub(raw.into(), Ordering::Relaxed);
        if result.is_err() {
            self.state.lock().failed.insert(disk);
        }
        window.placed(index, result);
        self.advance(window);
    }

    fn segment(&self, disk: DiskId, object: ObjectName) -> Result<Arc<Segment>, AppendError> {
        let mut state = self.state.lock();
        let medium = self.pipeline.disks.get(disk);
        // One that was brought back has failed this set for good: it may lack what was put there, and what it has under the
        // set's name is not to be written over.
        let Some(medium) = medium.filter(|medium| state.is_all_on(self.set, disk, medium)) else {
            state.failed.insert(disk);
            let reason = format!("disk {disk} is gone, or was gone since the set was begun");
            return Err(AppendError::new(reason));
        };
        if let Some(segment) = state.segments.get(&(disk, object)) {
            return Ok(Arc::clone(segment));
        }
        let segment = Segment::new(disk, medium, object, state.eager || self.thorough);
        state.segments.insert((disk, object), Arc::clone(&segment));
        Ok(segment)
    }

    fn advance(self: &Arc<Self>, window: &Arc<OpenWindow>) {
        if let Next::Encode(stretch) = window.next() {
            let (this, window) = (Arc::clone(self), Arc::clone(window));
            let encode = move || this.encode(&window, stretch);
            // The bytes are in the processor's cache, and the blocks keep their memory until it is done.
            match self.thorough {
                true => self.pipeline.workers.spawn(encode),
                false => self.pipeline.workers.soon(encode),
            }
        }
    }

    fn encode(self: &Arc<Self>, window: &Arc<OpenWindow>, stretch: Stretch) {
        let (upto, last) = (stretch.range.end, stretch.last);
        let mut maker = stretch.code();
        maker.pay(&self.pipeline.budget);
        if !last {
            window.coded(maker, upto);
            return self.advance(window);
        }
        window.all_coded();
        let shards = match maker.finish() {
            Ok(shards) => shards.into_iter().map(Some).collect(),
            Err(error) => {
                tracing::error!(file = %self.file, window = %window.no, %error, "no parity could be computed");
                let none = || None;
                std::iter::repeat_with(none)
                    .take(usize::from(window.code.m))
                    .collect::<Vec<_>>()
            }
        };
        for (shard, made) in shards.into_iter().enumerate() {
            let disk = window.disks[usize::from(window.code.k) + shard];
            let length = made.as_ref().map_or(0, |made| made.length);
            let (this, of) = (Arc::clone(self), Arc::clone(window));
            self.append_shard(disk, (window.no, window.code), shard, made, move |result| {
                let result = result.map_err(|_| {
                    this.state.lock().failed.insert(disk);
                });
                of.parity_placed(shard, length, result);
                this.advance(&of);
            });
        }
    }

    fn append_shard(
        self: &Arc<Self>,
        disk: DiskId,
        (window, code): (WindowNo, Code),
        shard: usize,
        made: Option<Shard>,
        done: impl FnOnce(Result<ParityShard, AppendError>) + Send + 'static,
    ) {
        let Some(made) = made.filter(|made| made.length > 0) else {
            let reason = "the parity of this window could not be computed";
            return done(Err(AppendError::new(reason)));
        };
        let segment = match self.segment(disk, ObjectName::Parity(self.set)) {
            Ok(segment) => segment,
            Err(error) => return done(Err(error)),
        };
        let ids = ParityIds {
            volume: self.pipeline.volume,
            file: self.file,
            set: self.set,
            window,
            code,
            shard: shard as u8,
        };
        let checksum = made.checksum;
        let header = shard_header(ids, made.length, checksum);
        let start = header.len() as u64;
        let permit = self.pipeline.budget.force(made.length.into());
        let payload = Arc::new(ShardPayload {
            header,
            pieces: made.pieces,
        });
        let done = Box::new(move |result: Result<u64, AppendError>| {
            // Not with the bytes: a call that hangs keeps them for ever, and nobody else would have any memory in the end.
            drop(permit);
            done(result.map(|offset| ParityShard {
                offset: offset + start,
                checksum,
            }));
        });
        if let Err(refused) = self.pipeline.writers.append(segment, payload, done) {
            refused.tell();
        }
    }

    /// Codes new parity over the protected blocks of a window whose record was changed, and writes it into
    /// this set. `columns` are the stored bytes of its protected blocks in the order of their column offsets,
    /// which must be laid out already. Parity disks that do not work are replaced by others.
    pub fn write_parity(
        self: &Arc<Self>,
        mut record: WindowRecord,
        columns: &[Vec<Vec<u8>>],
    ) -> Result<WindowRecord, WriteError> {
        let k = usize::from(record.code.k);
        let m = usize::from(record.code.m);
        let shards = encode_shards(record.code, columns, &self.pipeline.buffers)?;
        let usable: Vec<DiskId> = self
            .pipeline
            .room
            .candidates()
            .iter()
            .map(|c| c.disk)
            .collect();
        for shard in k..k + m {
            let works = record
                .disks
                .get(shard)
                .is_some_and(|disk| usable.contains(disk));
            if !works {
                let other = usable
                    .iter()
                    .find(|disk| !record.disks.contains(disk))
                    .copied();
                let other = other.ok_or(NoWindow::TooFewDisks {
                    usable: usable.len(),
                    needed: k + m,
                    m: record.code.m,
                })?;
                record.disks[shard] = other;
            }
        }
        let (sender, results) = bounded(m);
        record.parity_length = shards.first().map_or(0, |shard| shard.length);
        for (shard, made) in shards.into_iter().enumerate() {
            let (disk, sender) = (record.disks[k + shard], sender.clone());
            self.append_shard(
                disk,
                (record.no, record.code),
                shard,
                Some(made),
                move |result| {
                    // The receiver waits for exactly these answers.
                    let _ = sender.send((shard, disk, result));
                },
            );
        }
        drop(sender);
        let mut parity = vec![
            ParityShard {
                offset: 0,
                checksum: 0
            };
            m
        ];
        for (shard, disk, result) in results {
            match result {
                Ok(placed) => parity[shard] = placed,
                Err(error) => {
                    self.state.lock().failed.insert(disk);
                    return Err(error.into());
                }
            }
        }
        record.parity = parity;
        record.parity_set = self.set;
        Ok(record)
    }

    fn close(self: &Arc<Self>, window: &Arc<OpenWindow>) {
        window.close();
        self.advance(window);
    }

    /// Closes the windows that still take blocks; their memory comes back once they are on their disks.
    pub fn close_windows(self: &Arc<Self>) {
        let current: Vec<_> = self
            .state
            .lock()
            .current
            .drain()
            .map(|(_, window)| window)
            .collect();
        for window in current {
            self.close(&window);
        }
    }

    /// Closes all windows and waits until their blocks and parity are with the disks. No block may be in
    /// the gathering. Returns the windows that were not taken before.
    pub fn finish(self: &Arc<Self>) -> Vec<Arc<WindowRecord>> {
        let _hurry = (!self.thorough).then(|| self.pipeline.hurry());
        self.write_down();
        self.close_windows();
        let windows = std::mem::take(&mut self.state.lock().windows);
        windows.iter().map(|window| window.wait().0).collect()
    }

    /// Has the disks write down what they have and what will come: the commit has begun, and has other things to do first.
    fn write_down(&self) {
        let mut state = self.state.lock();
        state.eager = true;
        let by_disk = state.by_disk();
        drop(state);
        for (disk, segments) in by_disk {
            if self.pipeline.disks.get(disk).is_some() {
                self.pipeline.writers.write_down(disk, segments);
            }
        }
    }

    /// Has the disks close the files of a set that is finished, and does not wait: a file that is not committed for long may
    /// have many such sets. What goes wrong the next `sync` tells.
    pub fn close_segments(&self) {
        let by_disk = self.state.lock().by_disk();
        for (disk, segments) in by_disk {
            if self.pipeline.disks.get(disk).is_some() {
                self.pipeline.writers.close(disk, segments);
            }
        }
    }

    /// Takes windows that are complete and wholly on their disks off this writer.
    pub fn take_complete(&self) -> Vec<Arc<OpenWindow>> {
        let windows = self.state.lock().windows.clone();
        let complete: Vec<_> = windows
            .into_iter()
            .filter(|window| window.is_complete() && window.wait().1.is_empty())
            .collect();
        self.state
            .lock()
            .windows
            .retain(|window| !complete.iter().any(|taken| taken.no == window.no));
        complete
    }

    /// Makes everything durable that was appended so far, on all disks side by side. Returns the disks that
    /// failed this set at any time: what it put there is not to be counted on.
    pub fn sync(&self) -> BTreeSet<DiskId> {
        let by_disk = self.state.lock().by_disk();
        let (sender, results) = bounded(by_disk.len().max(1));
        for (disk, segments) in by_disk {
            let medium = self.pipeline.disks.get(disk);
            let is_there = |segment: &Arc<Segment>| {
                let medium = medium.as_ref();
                medium.is_some_and(|medium| segment.is_on(medium))
            };
            if !segments.iter().all(is_there) {
                // Its directory was deleted, or is another one now: what is still open there would take everything, and keep
                // nothing.
                self.state.lock().failed.insert(disk);
                continue;
            }
            let sender = sender.clone();
            let done = Box::new(move |result: Result<(), AppendError>| {
                // The receiver waits for exactly these answers.
                let _ = sender.send((disk, result));
            });
            self.pipeline.writers.sync(disk, segments, done);
        }
        drop(sender);
        for (disk, result) in results {
            if result.is_err() {
                self.state.lock().failed.insert(disk);
            }
        }
        self.failed_disks()
    }

    /// The disks that did not take everything of this set.
    pub fn failed_disks(&self) -> BTreeSet<DiskId> {
        self.state.lock().failed.clone()
    }

    /// Whether anything was appended or will be.
    pub fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.windows.is_empty() && state.segments.is_empty()
    }

    /// The objects that this set has on disks.
    pub fn objects(&self) -> Vec<(DiskId, ObjectName)> {
        self.state.lock().segments.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests;
