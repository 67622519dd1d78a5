//! How much room the disks have left, asked for seldom and remembered: every window and every write wants
//! to know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::disks::{Disks, Takes};
use super::placement::Candidate;
use crate::disk::Space;
use crate::ids::DiskId;

/// How old an answer may be.
const FRESH: Duration = Duration::from_millis(200);

/// How long a disk that refused an append for want of room, or of a file that may be opened, gets no new windows.
const REST: Duration = Duration::from_secs(2);

/// What is kept free on every disk for metadata and for repairs: a sixteenth, within these bounds.
const RESERVE: std::ops::RangeInclusive<u64> = (4 << 20)..=(256 << 20);

/// What a disk can take beyond what is kept free.
pub fn beyond_reserve(space: &Space) -> u64 {
    let reserve = (space.total / 16).clamp(*RESERVE.start(), *RESERVE.end());
    space.free.saturating_sub(reserve)
}

/// The room on all disks.
#[derive(Debug)]
pub struct Room {
    disks: Arc<Disks>,
    state: Mutex<State>,
    /// Held while the disks are asked, which may hang for a while: `state` is not, since every write looks there.
    asking: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// When the last answer came, if nothing was forgotten since.
    asked: Option<Instant>,
    /// How often what was answered has been forgotten.
    forgotten: u64,
    /// The same when the disks were last asked.
    answered: u64,
    space: BTreeMap<DiskId, Space>,
    full: BTreeMap<DiskId, Instant>,
    /// Disks to which this process could not write for want of something of its own, and when.
    resting: BTreeMap<DiskId, Instant>,
}

impl State {
    fn is_fresh(&self) -> bool {
        self.asked.is_some_and(|asked| asked.elapsed() <= FRESH)
    }

    fn forget(&mut self) {
        self.asked = None;
        self.forgotten += 1;
    }
}

impl Room {
    /// Nothing asked yet.
    pub fn new(disks: Arc<Disks>) -> Room {
        Room {
            disks,
            state: Mutex::default(),
            asking: Mutex::default(),
        }
    }

    /// Each disk's space, at most `FRESH` old; older while somebody else asks the disks.
    pub fn space(&self) -> BTreeMap<DiskId, Space> {
        let forgotten = {
            let state = self.state.lock();
            if state.is_fresh() {
                return state.space.clone();
            }
            state.forgotten
        };
        let _asking = match self.asking.try_lock() {
            Some(asking) => asking,
            None => {
                {
                    let state = self.state.lock();
                    if state.asked.is_some() {
                        return state.space.clone();
                    }
                }
                let asking = self.asking.lock();
                let state = self.state.lock();
                // Asked after it was last forgotten here: one answer does for all who have waited.
                if state.answered >= forgotten {
                    return state.space.clone();
                }
                drop(state);
                asking
            }
        };
        let (forgotten, before) = {
            let state = self.state.lock();
            if state.is_fresh() {
                return state.space.clone();
            }
            (state.forgotten, state.space.clone())
        };
        let space = self.ask_disks(&before);
        let mut state = self.state.lock();
        state.space = space.clone();
        state.answered = forgotten;
        if state.forgotten == forgotten {
            state.asked = Some(Instant::now());
        }
        space
    }

    fn ask_disks(&self, before: &BTreeMap<DiskId, Space>) -> BTreeMap<DiskId, Space> {
        let mut space = BTreeMap::new();
        for status in self.disks.list() {
            // Asked here because nothing else notices that a disk is gone on which nothing new is made.
            if status.state.takes_writes() && !self.disks.check(status.id) {
                continue;
            }
            match self.disks.ask(status.id, |disk| disk.space()) {
                Some(Ok(now)) => {
                    space.insert(status.id, now);
                }
                Some(Err(_)) => {}
                // It hangs: what it last said is as good as anything.
                None => {
                    let before = before.get(&status.id);
                    space.extend(before.map(|before| (status.id, *before)));
                }
            }
        }
        space
    }

    /// Whether a disk has room for so many bytes beyond what is kept free on it. Of one that does not tell its room, whoever
    /// writes to it finds out.
    pub fn has_room(&self, disk: DiskId, bytes: u64) -> bool {
        let space = self.space();
        let space = space.get(&disk);
        space.is_none_or(|space| beyond_reserve(space) >= bytes)
    }

    /// Forgets what was answered, since much has changed.
    pub fn forget(&self) {
        self.state.lock().forget();
    }

    /// Room was given back: a disk that was full may have some.
    pub fn given_back(&self) {
        let mut state = self.state.lock();
        state.full.clear();
        state.forget();
    }

    /// A disk refused an append for want of room.
    pub fn mark_full(&self, disk: DiskId) {
        let mut state = self.state.lock();
        state.full.insert(disk, Instant::now());
        state.forget();
    }

    /// Nothing can be written to a disk at this moment, and it is not to blame.
    pub fn let_rest(&self, disk: DiskId) {
        self.state.lock().resting.insert(disk, Instant::now());
    }

    /// How many disks rest now.
    pub fn resting(&self) -> usize {
        let state = self.state.lock();
        let rests = |since: &&Instant| since.elapsed() < REST;
        state.resting.values().filter(rests).count()
    }

    /// The disks that can take new windows of so many disks, with what they can take beyond the reserve. Suspect
    /// disks are among them only where the others are not enough.
    pub fn candidates_for(&self, disks: usize) -> Vec<Candidate> {
        let all = self.candidates();
        let takes =
            |candidate: &&Candidate| self.disks.takes_data(candidate.disk) == Takes::Anything;
        let good: Vec<Candidate> = all.iter().filter(takes).copied().collect();
        if good.len() >= disks { good } else { all }
    }

    /// The disks that can take new windows, with what they can take beyond the reserve.
    pub fn candidates(&self) -> Vec<Candidate> {
        let space = self.space();
        let mut state = self.state.lock();
        state.full.retain(|_, since| since.elapsed() < REST);
        state.resting.retain(|_, since| since.elapsed() < REST);
        let usable = self.disks.usable_for_writing();
        let with_room = usable
            .into_iter()
            .filter(|disk| !state.full.contains_key(disk) && !state.resting.contains_key(disk))
            .filter(|disk| self.disks.takes_data(*disk) != Takes::Nothing);
        with_room
            .filter_map(|disk| {
                let free = beyond_reserve(space.get(&disk)?);
                (free > 0).then_some(Candidate { disk, free })
            })
            .collect()
    }
}
