//! What is to go wrong, and when: rules over the kinds of operations, followed by seed. Touches no disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::disk::ObjectName;

/// What a disk is asked to do: one kind for each method of `Disk`, `Appender` and `RandomAccess` that may
/// fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs)] // each is the method of its name
pub enum Operation {
    Create,
    Resume,
    Append,
    Sync,
    Read,
    Length,
    Put,
    Restore,
    Punch,
    Remove,
    List,
    SyncNames,
    Space,
    RandomOpen,
    RandomLength,
    RandomSetLength,
    RandomRead,
    RandomWrite,
    RandomSync,
}

/// A set of kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operations(u32);

impl Operations {
    /// Every kind.
    pub const ALL: Operations = Operations(u32::MAX);

    /// The kinds that change what is on the medium.
    pub const WRITES: Operations = Operations::of(&[
        Operation::Create,
        Operation::Resume,
        Operation::Append,
        Operation::Sync,
        Operation::Put,
        Operation::Restore,
        Operation::Punch,
        Operation::Remove,
        Operation::SyncNames,
        Operation::RandomSetLength,
        Operation::RandomWrite,
        Operation::RandomSync,
    ]);

    /// The kinds that give bytes back.
    pub const READS: Operations = Operations::of(&[Operation::Read, Operation::RandomRead]);

    /// The kinds named.
    pub const fn of(mut kinds: &[Operation]) -> Operations {
        let mut set = 0;
        while let [kind, rest @ ..] = kinds {
            set |= 1 << *kind as u8;
            kinds = rest;
        }
        Operations(set)
    }

    fn has(self, kind: Operation) -> bool {
        self.0 & (1 << kind as u8) != 0
    }
}

/// What goes wrong. Where a fault makes no sense (half of a `Sync`) it is `Io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The medium answers EIO, and nothing was done.
    Io,
    /// No room: nothing was done.
    Full,
    /// This process may open no further file: nothing was done, and the disk is well.
    Exhausted,
    /// The object ends before the bytes that were asked for.
    Short,
    /// A part at the front is written, then comes EIO.
    Torn,
    /// Success is claimed and nothing was done: a read gives zeros.
    Dropped,
    /// Success is claimed, and one bit of what is read or written is wrong.
    BitFlip,
    /// Success is claimed, and the bytes were read from or written to another place of the same object.
    Misdirected,
    /// The answer is right and late.
    Delay(Duration),
    /// This and every later call gives EIO.
    Death,
}

/// Which of the calls that a rule fits are hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// All.
    Always,
    /// `times` of them, after the first `skip`.
    Count {
        /// How many go well first.
        skip: u64,
        /// How many then do not.
        times: u64,
    },
    /// Each with this chance in a million, by the plan's seed.
    Chance(u32),
}

/// Whether a rule concerns an object.
pub type ObjectFilter = Box<dyn Fn(ObjectName) -> bool + Send>;

/// One line of a plan.
pub struct Rule {
    operations: Operations,
    objects: Option<ObjectFilter>,
    when: When,
    fault: Fault,
}

impl Rule {
    /// A rule for all objects.
    pub fn new(operations: Operations, when: When, fault: Fault) -> Rule {
        Rule {
            operations,
            objects: None,
            when,
            fault,
        }
    }

    /// The same for some objects. Operations that concern no object (`List`, `SyncNames`, `Space`) are
    /// then left alone.
    pub fn only(mut self, objects: impl Fn(ObjectName) -> bool + Send + 'static) -> Rule {
        self.objects = Some(Box::new(objects));
        self
    }

    fn fits(&self, operation: Operation, object: Option<ObjectName>) -> bool {
        self.operations.has(operation)
            && match (&self.objects, object) {
                (None, _) => true,
                (Some(objects), Some(object)) => objects(object),
                (Some(_), None) => false,
            }
    }
}

/// What is to go wrong; shared by a test and by the disks that follow it.
#[derive(Default)]
pub struct FaultPlan {
    state: Mutex<State>,
    /// Whether there is any rule: without one a call costs next to nothing.
    armed: AtomicBool,
    dead: AtomicBool,
    calls: AtomicU64,
    dies_at: AtomicU64,
    injected: AtomicU64,
}

#[derive(Default)]
struct State {
    rules: Vec<(Rule, u64)>,
    random: u64,
}

impl std::fmt::Debug for FaultPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultPlan")
            .field("dead", &self.is_dead())
            .field("calls", &self.calls())
            .field("injected", &self.injected())
            .finish_non_exhaustive()
    }
}

impl FaultPlan {
    /// A plan without a rule, whose chances follow the seed.
    pub fn new(seed: u64) -> Arc<FaultPlan> {
        let plan = FaultPlan::default();
        plan.state.lock().random = seed;
        plan.dies_at.store(u64::MAX, Ordering::Relaxed);
        Arc::new(plan)
    }

    /// Adds a rule. The first one that hits a call is followed.
    pub fn add(&self, rule: Rule) {
        self.state.lock().rules.push((rule, 0));
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Takes all rules away. The dead stay dead.
    pub fn clear(&self) {
        self.state.lock().rules.clear();
        self.armed.store(false, Ordering::SeqCst);
    }

    /// From now on every call fails.
    pub fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// Dies at the call of this number, counted from 0 at the plan's beginning.
    pub fn die_at(&self, call: u64) {
        self.dies_at.store(call, Ordering::SeqCst);
    }

    /// Answers again, with what was there when it died.
    pub fn revive(&self) {
        self.dies_at.store(u64::MAX, Ordering::SeqCst);
        self.dead.store(false, Ordering::SeqCst);
    }

    /// Whether every call fails.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// How many calls there were that could have failed.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// How many calls were hit, those to the dead left out.
    pub fn injected(&self) -> u64 {
        self.injected.load(Ordering::SeqCst)
    }

    /// What is to happen to a call; `Delay` is over when this returns, and `Death` is `Io` from here on.
    pub(super) fn decide(&self, operation: Operation, object: Option<ObjectName>) -> Option<Fault> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if call >= self.dies_at.load(Ordering::SeqCst) {
            self.die();
        }
        if self.is_dead() {
            return Some(Fault::Io);
        }
        if !self.armed.load(Ordering::SeqCst) {
            return None;
        }
        let fault = self.state.lock().hit(operation, object)?;
        self.injected.fetch_add(1, Ordering::SeqCst);
        match fault {
            Fault::Delay(time) => {
                std::thread::sleep(time);
                None
            }
            Fault::Death => {
                self.die();
                Some(Fault::Io)
            }
            fault => Some(fault),
        }
    }

    /// Makes a hint as late as the call that it tells of would be. It counts as no call of its own, so that the calls that follow
    /// meet the same faults with it and without it.
    pub(super) fn delay(&self, operation: Operation, object: ObjectName) {
        if !self.armed.load(Ordering::SeqCst) {
            return;
        }
        let delay = self.state.lock().delay(operation, object);
        if let Some(time) = delay {
            self.injected.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(time);
        }
    }

    /// A number below `end`, by the seed; 0 where `end` is 0.
    pub(super) fn pick(&self, end: u64) -> u64 {
        self.state.lock().next() % end.max(1)
    }

    /// The bytes with one bit wrong.
    pub(super) fn flip(&self, bytes: &mut [u8]) {
        let at = self.pick(bytes.len() as u64 * 8);
        if let Some(byte) = bytes.get_mut((at / 8) as usize) {
            *byte ^= 1 << (at % 8);
        }
    }

    /// Another place in an object of this length: a wrong sector, as near or far as chance has it.
    pub(super) fn elsewhere(&self, length: u64, offset: u64, wanted: u64) -> u64 {
        let room = length.saturating_sub(wanted);
        let other = self.pick(room + 1);
        if other == offset { room } else { other }
    }
}

impl State {
    fn hit(&mut self, operation: Operation, object: Option<ObjectName>) -> Option<Fault> {
        for n in 0..self.rules.len() {
            let (rule, seen) = self.rules.get_mut(n)?;
            if !rule.fits(operation, object) {
                continue;
            }
            let number = *seen;
            *seen += 1;
            let (when, fault) = (rule.when, rule.fault);
            let hit = match when {
                When::Always => true,
                When::Count { skip, times } => number >= skip && number - skip < times,
                When::Chance(chance) => self.next() % 1_000_000 < u64::from(chance),
            };
            if hit {
                return Some(fault);
            }
        }
        None
    }

    /// By how much the next call would be late; what only chance says counts for nothing.
    fn delay(&self, operation: Operation, object: ObjectName) -> Option<Duration> {
        let mut rules = self.rules.iter();
        rules.find_map(|(rule, seen)| match (rule.fault, rule.when) {
            (Fault::Delay(_), _) if !rule.fits(operation, Some(object)) => None,
            (Fault::Delay(time), When::Always) => Some(time),
            (Fault::Delay(time), When::Count { skip, times }) => {
                (*seen >= skip && *seen - skip < times).then_some(time)
            }
            _ => None,
        })
    }

    /// The next of a row of numbers that the seed fixes (splitmix64).
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
