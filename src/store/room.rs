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

/// How long a disk that refused an append for want of room gets no new windows.
const REST: Duration = Duration::from_secs(2);

/// What is kept free on every disk for metadata and for repairs: a sixteenth, within these bounds.
const RESERVE: std::ops::RangeInclusive<u64> = (4 << 20)..=(256 << 20);

/// The room on all disks.
#[derive(Debug)]
pub struct Room {
    disks: Arc<Disks>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    asked: Option<Instant>,
    space: BTreeMap<DiskId, Space>,
    full: BTreeMap<DiskId, Instant>,
}

impl Room {
    /// Nothing asked yet.
    pub fn new(disks: Arc<Disks>) -> Room {
        Room {
            disks,
            state: Mutex::default(),
        }
    }

    /// Each disk's space, at most `FRESH` old.
    pub fn space(&self) -> BTreeMap<DiskId, Space> {
        let mut state = self.state.lock();
        if state.asked.is_none_or(|asked| asked.elapsed() > FRESH) {
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
                        let before = state.space.get(&status.id);
                        space.extend(before.map(|before| (status.id, *before)));
                    }
                }
            }
            state.space = space;
            state.asked = Some(Instant::now());
        }
        state.space.clone()
    }

    /// Forgets what was answered, since much has changed.
    pub fn forget(&self) {
        self.state.lock().asked = None;
    }

    /// Room was given back: a disk that was full may have some.
    pub fn given_back(&self) {
        let mut state = self.state.lock();
        state.full.clear();
        state.asked = None;
    }

    /// A disk refused an append for want of room.
    pub fn mark_full(&self, disk: DiskId) {
        let mut state = self.state.lock();
        state.full.insert(disk, Instant::now());
        state.asked = None;
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
        let usable = self.disks.usable_for_writing();
        let with_room = usable
            .into_iter()
            .filter(|disk| !state.full.contains_key(disk))
            .filter(|disk| self.disks.takes_data(*disk) != Takes::Nothing);
        with_room
            .filter_map(|disk| {
                let space = space.get(&disk)?;
                let reserve = (space.total / 16).clamp(*RESERVE.start(), *RESERVE.end());
                let free = space.free.checked_sub(reserve).filter(|&free| free > 0)?;
                Some(Candidate { disk, free })
            })
            .collect()
    }
}
