//! What all writing shares: the compressing threads, the disks' writers, the budget of memory, and the choice
//! of disks for the next window.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::budget::Budget;
use super::buffers::Buffers;
use super::compression::{CompressLater, Compression};
use super::disks::Disks;
use super::placement::{choose, data_capacity};
use super::records::{BLOCK_MAX, Code};
use super::room::Room;
use super::segment::DiskWriters;
use super::window::{COLUMN_BLOCKS, Lane};
use super::workers::{Hurry, Workers};
use crate::ids::{DiskId, VolumeId};

/// What one thread compresses in the time that somebody who waits for it hardly notices. Bytes.
const SOON: u64 = 8 << 20;

/// What must find room beside blocks that wait to be compressed: a full window of which some do, one that is gathered, and one
/// whose parity is coded, 32 MiB each; and half a one to spare. Bytes.
const UNDER_WAY: u64 = 112 << 20;

/// One part in so many of the room that is left may be filled with blocks that are yet to be compressed.
const DEFERRED: u64 = 4;

/// The least blocks of a column that a window has if bytes enough come.
const COLUMN_LEAST: usize = 8;

/// How blocks are made and protected.
#[derive(Clone, Copy, Debug)]
pub struct WritePolicy {
    /// The code of critical blocks.
    pub critical: Code,
    /// The code of expendable blocks; its `m` may be 0.
    pub expendable: Code,
    /// How blocks are made smaller.
    pub compression: Compression,
    /// When they are stored as they are, and made smaller later.
    pub compress_later: CompressLater,
}

/// No window can be begun.
#[derive(Debug, thiserror::Error)]
pub enum NoWindow {
    /// Too few disks are left that work.
    #[error(
        "{usable} disks can be written to, and {needed} are needed to keep every byte through {m} lost disks; \
         bring disks back or replace them"
    )]
    TooFewDisks {
        /// Disks that can be written to.
        usable: usize,
        /// Disks that one column with its parity needs.
        needed: usize,
        /// Losses that the policy asks for.
        m: u8,
    },
    /// Enough disks work, but too few have room.
    #[error("{with_room} disks have room left, and {needed} are needed; free space or add disks")]
    NoRoom {
        /// Disks with room.
        with_room: usize,
        /// Disks needed.
        needed: usize,
    },
    /// Enough disks work, and this process lacks what it takes to write to them.
    #[error(
        "nothing can be written to {resting} disks for the moment: this process may open no further file, or the machine has no \
         memory left; allow more open files (ulimit -Hn, LimitNOFILE=) or free memory"
    )]
    Exhausted {
        /// Disks that are left alone for a moment.
        resting: usize,
    },
    /// The volume's metadata takes no more changes, so nothing could refer to what is written.
    #[error("the volume takes no more changes; mount it anew")]
    NoNumber,
}

/// Threads, queues and memory of a volume's writing.
#[derive(Debug)]
pub struct Pipeline {
    /// The volume, for the headers.
    pub volume: VolumeId,
    /// How blocks are made and protected.
    pub policy: WritePolicy,
    /// The disks.
    pub disks: Arc<Disks>,
    /// The room on them.
    pub room: Arc<Room>,
    /// The memory for writing.
    pub budget: Arc<Budget>,
    /// Memory for blocks and parity.
    pub buffers: Arc<Buffers>,
    pub(super) writers: DiskWriters,
    pub(super) workers: Workers,
    /// Bytes of sealed blocks that no disk has taken yet.
    pub(super) unwritten: AtomicU64,
    /// Bytes of those that wait for a thread to compress them.
    pub(super) uncompressed: AtomicU64,
    /// Bytes of blocks on the disks, about, that are yet to be compressed.
    deferred: AtomicU64,
    /// There is room for more of them.
    may_defer: AtomicBool,
    threads: u64,
    turn: AtomicU64,
    /// New windows are narrower than the policy has them.
    narrow: AtomicBool,
    /// Windows whose parity is in the making.
    growing: Arc<AtomicUsize>,
}

/// A window whose parity is in the making, for as long as this is there.
#[derive(Debug)]
pub struct Growing(Arc<AtomicUsize>);

impl Drop for Growing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pipeline {
    /// Starts the threads.
    pub fn start(
        volume: VolumeId,
        policy: WritePolicy,
        disks: Arc<Disks>,
        budget: Arc<Budget>,
    ) -> std::io::Result<Arc<Pipeline>> {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let workers = Workers::start_behind("compress", threads, true)?;
        let room = Arc::new(Room::new(Arc::clone(&disks)));
        let writers = DiskWriters::new(&disks, &room);
        Ok(Arc::new(Pipeline {
            volume,
            policy,
            disks,
            room,
            budget,
            buffers: Arc::default(),
            writers,
            workers,
            unwritten: AtomicU64::new(0),
            uncompressed: AtomicU64::new(0),
            deferred: AtomicU64::new(0),
            may_defer: AtomicBool::new(false),
            threads: threads as u64,
            turn: AtomicU64::new(0),
            narrow: AtomicBool::new(false),
            growing: Arc::default(),
        }))
    }

    /// Says once when new windows cannot be as wide as the policy has it, and when they can again. They survive as many
    /// losses all the same, for more room.
    fn tell_of_narrow_windows(&self, code: Code, disks: usize) {
        let narrow = disks < usize::from(code.k) + usize::from(code.m);
        if code.m == 0 || self.narrow.swap(narrow, Ordering::Relaxed) == narrow {
            return;
        }
        if narrow {
            tracing::warn!(disks, policy = %code, "too few disks take data for windows as wide as the policy has them");
        } else {
            tracing::info!(disks, policy = %code, "enough disks take data again");
        }
    }

    /// Somebody waits for what is written, or for its memory, for as long as the answer is kept.
    pub fn hurry(&self) -> Hurry<'_> {
        self.workers.hurry()
    }

    /// A disk is another one now, or gone: its writer ends once what is queued for it is done.
    pub fn end_writer(&self, disk: DiskId) {
        self.writers.end(disk);
    }

    /// Goes on without disks that hang in a write. To be called every few seconds.
    pub fn look_after(&self) {
        self.writers.look_after();
    }

    /// Bytes of blocks that are on their way to a disk.
    pub fn unwritten(&self) -> u64 {
        self.unwritten.load(Ordering::Relaxed)
    }

    /// Whether what is stored now had better be stored as it is, since its writer would have to wait for compression and the
    /// disks have time. `waits`: somebody waits already.
    pub(super) fn makes_haste(&self, waits: bool) -> bool {
        if !self.may_defer.load(Ordering::Relaxed) {
            return false;
        }
        if self.policy.compress_later == CompressLater::Always {
            return true;
        }
        let limit = self.budget.limit();
        let uncompressed = self.uncompressed.load(Ordering::Relaxed);
        let most = match waits {
            true => (self.threads * SOON).min(limit / 2),
            false => (limit / 8).max(limit.saturating_sub(UNDER_WAY)),
        };
        // Where the disks are what everybody waits for, smaller blocks are the sooner written.
        let queued = self.unwritten().saturating_sub(uncompressed);
        uncompressed > most && queued < limit / 4
    }

    /// Whether somebody waits for what is written, or for its memory.
    pub fn is_waited_for(&self) -> bool {
        self.workers.is_waited_for()
    }

    /// Blocks of so many bytes were found, or stored, that are yet to be compressed.
    pub fn defer(&self, bytes: u64) {
        self.deferred.fetch_add(bytes, Ordering::Relaxed);
    }

    /// They are no longer.
    pub fn deferred_no_longer(&self, bytes: u64) {
        let _ = self
            .deferred
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |deferred| {
                Some(deferred.saturating_sub(bytes))
            });
    }

    /// No file has any left.
    pub fn nothing_deferred(&self) {
        self.deferred.store(0, Ordering::Relaxed);
    }

    /// Counts a window whose parity is in the making.
    pub(super) fn one_more_grows(&self) -> Growing {
        self.growing.fetch_add(1, Ordering::Relaxed);
        Growing(Arc::clone(&self.growing))
    }

    /// Windows whose parity is in the making.
    pub(super) fn growing(&self) -> usize {
        self.growing.load(Ordering::Relaxed)
    }

    /// The most blocks of a column of a window, on average. Parity lies in memory until its window ends: where many files are
    /// written at once it would take all there is, and every writer would wait for windows that end only when more is
    /// written. So all of it together may take half.
    pub(super) fn column_blocks(&self, code: Code) -> usize {
        let windows = self.growing().max(1) as u64;
        let blocks = self.budget.limit() / 2 / BLOCK_MAX as u64;
        match blocks / windows / u64::from(code.m).max(1) {
            _ if code.m == 0 => COLUMN_BLOCKS,
            each => (each as usize).clamp(COLUMN_LEAST, COLUMN_BLOCKS),
        }
    }

    /// The code that the policy gives a lane's windows.
    pub fn code(&self, lane: Lane) -> Code {
        match lane {
            Lane::Critical | Lane::Undecided => self.policy.critical,
            Lane::Expendable if self.policy.expendable.m == 0 => {
                // Without parity the number of columns changes nothing but how many disks work side by side.
                Code {
                    k: self.policy.critical.k.max(self.policy.expendable.k),
                    m: 0,
                }
            }
            Lane::Expendable => self.policy.expendable,
        }
    }

    /// The disks of a new window, and its code on the disks that are left.
    pub(super) fn choose(&self, lane: Lane) -> Result<(Code, Vec<DiskId>), NoWindow> {
        let code = self.code(lane);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let whole = usize::from(code.k) + usize::from(code.m);
        let candidates = self.room.candidates_for(whole);
        self.tell_of_narrow_windows(code, candidates.len());
        if self.policy.compress_later != CompressLater::Never
            && self.policy.compression != Compression::None
        {
            let free: Vec<u64> = candidates.iter().map(|disk| disk.free).collect();
            let most = data_capacity(self.policy.critical, &free) / DEFERRED;
            let deferred = self.deferred.load(Ordering::Relaxed);
            self.may_defer.store(deferred < most, Ordering::Relaxed);
        }
        choose(code, &candidates, turn).ok_or_else(|| self.refusal(code, candidates.len()))
    }

    /// Why no critical byte can be stored now, if none can.
    pub fn refuses(&self) -> Option<NoWindow> {
        let code = self.policy.critical;
        let with_room = self.room.candidates().len();
        (with_room <= usize::from(code.m)).then(|| self.refusal(code, with_room))
    }

    fn refusal(&self, code: Code, with_room: usize) -> NoWindow {
        let needed = usize::from(code.m) + 1;
        let usable = self.disks.usable_for_writing().len();
        let resting = self.room.resting();
        if usable >= needed && with_room + resting >= needed {
            NoWindow::Exhausted { resting }
        } else if usable >= needed {
            NoWindow::NoRoom { with_room, needed }
        } else {
            NoWindow::TooFewDisks {
                usable,
                needed,
                m: code.m,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    const LIMIT: u64 = 1 << 20;

    fn pipeline(compress_later: CompressLater) -> Arc<Pipeline> {
        let disks = Arc::new(Disks::new(false));
        for number in 0..3 {
            let disk = Arc::new(MemoryDisk::new(&format!("disk{number}")));
            disks.insert(DiskId(number), format!("disk{number}"), Some(disk));
        }
        let policy = WritePolicy {
            critical: Code { k: 2, m: 1 },
            expendable: Code { k: 1, m: 0 },
            compression: Compression::default(),
            compress_later,
        };
        Pipeline::start(VolumeId(7), policy, disks, Budget::new(LIMIT)).expect("threads")
    }

    #[test]
    fn haste_is_made_when_compressing_is_behind_and_the_disks_are_not() {
        let pipeline = pipeline(CompressLater::Behind);
        let set = |uncompressed: u64, queued: u64| {
            pipeline.uncompressed.store(uncompressed, Ordering::Relaxed);
            let unwritten = uncompressed + queued;
            pipeline.unwritten.store(unwritten, Ordering::Relaxed);
        };
        set(LIMIT, 0);
        assert!(!pipeline.makes_haste(false), "no room was seen yet");
        pipeline.choose(Lane::Critical).expect("disks");
        assert!(pipeline.makes_haste(false));
        set(LIMIT, LIMIT / 2);
        assert!(!pipeline.makes_haste(false), "the disks are behind too");
        set(0, 0);
        assert!(!pipeline.makes_haste(false));
        // Nearly all of the room that may be filled so.
        set(LIMIT, 0);
        pipeline.defer(1 << 50);
        pipeline.choose(Lane::Critical).expect("disks");
        assert!(!pipeline.makes_haste(false), "no room is left for it");
        pipeline.deferred_no_longer(1 << 51);
        pipeline.choose(Lane::Critical).expect("disks");
        assert!(pipeline.makes_haste(false));
    }

    #[test]
    fn haste_is_made_as_the_policy_has_it() {
        for (later, expected) in [(CompressLater::Never, false), (CompressLater::Always, true)] {
            let pipeline = pipeline(later);
            pipeline.choose(Lane::Critical).expect("disks");
            pipeline.uncompressed.store(0, Ordering::Relaxed);
            assert_eq!(pipeline.makes_haste(false), expected);
            pipeline.uncompressed.store(LIMIT, Ordering::Relaxed);
            assert_eq!(pipeline.makes_haste(false), expected);
        }
    }
}
