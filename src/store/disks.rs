//! The disks of a mounted volume and how each fares: who may be written to, who may be asked, who is gone.
//! Everything that reads blocks, parity and manifests asks through here, so that errors are counted in one
//! place, and nobody waits for ever for a disk that hangs. It knows disks and objects, not what they hold.

mod care;
mod reading;
mod score;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use self::score::Score;
pub use self::state::{DiskState, DiskStatus, ReadFailure, Takes};
use crate::disk::{Disk, Patience};
use crate::ids::DiskId;

/// So many failed reads with none that succeeds in between make a disk faulty. One bad sector does not: it
/// is repaired, or read around.
const READ_FAILURES_MAX: u32 = 8;

/// How long a read may take before its bytes are got from elsewhere, and the disk is suspect.
pub const SOON: Duration = Duration::from_secs(5);

struct Slot {
    name: String,
    disk: Option<Arc<dyn Disk>>,
    patience: Option<Patience>,
    state: DiskState,
    note: String,
    since: u64,
    leaving: bool,
    score: Mutex<Score>,
    /// It is suspect for failing or hanging, so it is asked after the others.
    avoid: AtomicBool,
    /// Since when it has not answered.
    hangs: Mutex<Option<Instant>>,
    /// Failed reads since the last one that succeeded.
    in_a_row: AtomicU32,
    read_errors: AtomicU32,
    wrong_bytes: AtomicU32,
    waits: AtomicU32,
}

/// Called, once a disk, when a disk becomes faulty or goes missing, from any thread.
pub type OnFaulty = Box<dyn Fn(DiskId, &str) + Send + Sync>;

/// Told when a disk's state has changed. Must not wait, nor call back.
pub type OnChange = Box<dyn Fn() + Send + Sync>;

/// The table of a volume's disks. Shared by all that read and write.
#[derive(Default)]
pub struct Disks {
    read_only: bool,
    on_faulty: OnceLock<OnFaulty>,
    slots: RwLock<BTreeMap<DiskId, Slot>>,
    on_change: RwLock<Option<OnChange>>,
    /// Counts how often any disk came to be in another state.
    changes: AtomicU64,
    /// Counts reads by programs, so that work in the background can make way.
    reads: AtomicU64,
}

impl fmt::Debug for Disks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

impl Disks {
    /// An empty table. When `read_only`, nothing is repaired.
    pub fn new(read_only: bool) -> Self {
        Disks {
            read_only,
            ..Disks::default()
        }
    }

    /// Enters a disk, or puts it in the place of one that was missing; `None` is a disk known to be missing.
    pub fn insert(&self, id: DiskId, name: impl Into<String>, disk: Option<Arc<dyn Disk>>) {
        let state = match disk {
            Some(_) => DiskState::Online,
            None => DiskState::Missing,
        };
        self.enter(id, name.into(), disk, state);
        self.changed();
    }

    /// Puts a disk in the place of one that was missing or faulty. It lacks what was written meanwhile, and at no moment
    /// looks as if it had all.
    pub fn insert_rebuilding(&self, id: DiskId, disk: Arc<dyn Disk>, why: impl fmt::Display) {
        self.enter(id, self.name(id), Some(disk), DiskState::Missing);
        self.mark_rebuilding(id, why);
    }

    fn enter(&self, id: DiskId, name: String, disk: Option<Arc<dyn Disk>>, state: DiskState) {
        let slot = Slot {
            name,
            state,
            patience: disk.clone().map(Patience::new),
            disk,
            note: String::new(),
            since: self.next_change(),
            leaving: false,
            score: Mutex::new(Score::new(Instant::now())),
            avoid: AtomicBool::new(false),
            hangs: Mutex::new(None),
            in_a_row: AtomicU32::new(0),
            read_errors: AtomicU32::new(0),
            wrong_bytes: AtomicU32::new(0),
            waits: AtomicU32::new(0),
        };
        self.slots.write().insert(id, slot);
    }

    /// Takes a disk that has left out of the table.
    pub fn remove(&self, id: DiskId) {
        self.slots.write().remove(&id);
        self.changed();
    }

    /// Has `on_change` called whenever a disk's state changes.
    pub fn set_on_change(&self, on_change: OnChange) {
        *self.on_change.write() = Some(on_change);
    }

    fn next_change(&self) -> u64 {
        self.changes.fetch_add(1, Ordering::Relaxed)
    }

    fn changed(&self) {
        if let Some(on_change) = &*self.on_change.read() {
            on_change();
        }
    }

    /// The disk, faulty or not; `None` when it is missing.
    pub fn get(&self, id: DiskId) -> Option<Arc<dyn Disk>> {
        self.slots.read().get(&id)?.disk.clone()
    }

    /// Closes what is kept open on it for reading.
    pub fn let_go(&self, id: DiskId) {
        if let Some(medium) = self.get(id) {
            medium.let_go();
        }
    }

    /// What the administrator calls it; its number when the table does not know it.
    pub fn name(&self, id: DiskId) -> String {
        let slots = self.slots.read();
        slots
            .get(&id)
            .map_or_else(|| format!("#{id}"), |slot| slot.name.clone())
    }

    /// How it fares. One that the table does not know is missing.
    pub fn state(&self, id: DiskId) -> DiskState {
        let slots = self.slots.read();
        slots.get(&id).map_or(DiskState::Missing, |slot| slot.state)
    }

    /// Whether it takes writes: such a disk is asked first, and repaired.
    pub fn is_online(&self, id: DiskId) -> bool {
        self.state(id).takes_writes()
    }

    /// Whether it is a disk of the volume, missing or not.
    pub fn is_member(&self, id: DiskId) -> bool {
        self.slots.read().contains_key(&id)
    }

    /// Whether every disk is online.
    pub fn all_online(&self) -> bool {
        let slots = self.slots.read();
        slots.values().all(|slot| slot.state.is_whole())
    }

    /// Whether it is better asked after the others: its last reads all failed, it hangs, or it failed altogether.
    pub fn reads_fail(&self, id: DiskId) -> bool {
        let slots = self.slots.read();
        slots.get(&id).is_none_or(|slot| {
            slot.disk.is_none()
                || slot.state == DiskState::Faulty
                || slot.avoid.load(Ordering::Relaxed)
                || slot.in_a_row.load(Ordering::Relaxed) >= READ_FAILURES_MAX
        })
    }

    /// Has disks that become faulty, or go missing, told of. The first wish stays.
    pub fn on_faulty(&self, tell: OnFaulty) {
        let _ = self.on_faulty.set(tell);
    }

    /// Changes a state, and tells of it.
    fn set_state(&self, id: DiskId, why: &str, to: impl FnOnce(&Slot) -> Option<DiskState>) {
        let mut slots = self.slots.write();
        let Some(slot) = slots.get_mut(&id) else {
            return;
        };
        let Some(state) = to(slot).filter(|state| *state != slot.state) else {
            return;
        };
        let disk = slot.name.clone();
        match state {
            DiskState::Faulty => {
                tracing::error!(disk, why, "disk is faulty: no more is written to it");
            }
            DiskState::Missing => tracing::error!(disk, why, "disk is missing"),
            DiskState::Suspect => tracing::warn!(
                disk,
                why,
                "disk is suspect: it gets no new data while the others are enough"
            ),
            DiskState::Online => tracing::info!(disk, why, "disk is online"),
            DiskState::Rebuilding => {
                tracing::info!(
                    disk,
                    why,
                    "disk is rebuilding: what it lacks is written to it"
                );
            }
        }
        slot.state = state;
        slot.since = self.next_change();
        slot.note = match state {
            DiskState::Online => String::new(),
            _ => why.to_owned(),
        };
        if state == DiskState::Missing {
            slot.disk = None;
            slot.patience = None;
        }
        if matches!(state, DiskState::Online | DiskState::Rebuilding) {
            *slot.score.lock() = Score::new(Instant::now());
            slot.avoid.store(false, Ordering::Relaxed);
            slot.in_a_row.store(0, Ordering::Relaxed);
            *slot.hangs.lock() = None;
        }
        drop(slots);
        // Without the lock: who is told may come back.
        if matches!(state, DiskState::Faulty | DiskState::Missing)
            && let Some(tell) = self.on_faulty.get()
        {
            tell(id, why);
        }
        self.changed();
    }

    /// Nothing more is to be written to it. The first reason stays.
    pub fn mark_faulty(&self, id: DiskId, why: impl fmt::Display) {
        self.set_state(id, &why.to_string(), |slot| {
            slot.state.takes_writes().then_some(DiskState::Faulty)
        });
    }

    /// It is no longer where it was: what it held is not asked for any more.
    pub fn mark_missing(&self, id: DiskId, why: impl fmt::Display) {
        self.set_state(id, &why.to_string(), |_| Some(DiskState::Missing));
    }

    /// It gets no new data while the others are enough.
    pub fn mark_suspect(&self, id: DiskId, why: impl fmt::Display) {
        self.set_state(id, &why.to_string(), |slot| {
            if slot.state != DiskState::Online {
                return None;
            }
            // At no moment suspect for no reason: it would be trusted again at once.
            *slot.score.lock() = Score::suspect(Instant::now());
            Some(DiskState::Suspect)
        });
    }

    /// It takes part, and what it lacks is to be written to it.
    pub fn mark_rebuilding(&self, id: DiskId, why: impl fmt::Display) {
        self.set_state(id, &why.to_string(), |slot| {
            slot.disk.is_some().then_some(DiskState::Rebuilding)
        });
    }

    /// It is trusted again.
    pub fn mark_online(&self, id: DiskId, why: impl fmt::Display) {
        self.set_state(id, &why.to_string(), |slot| {
            slot.disk.is_some().then_some(DiskState::Online)
        });
    }

    /// Whether what it holds is being moved to others: then it gets no new data.
    pub fn set_leaving(&self, id: DiskId, leaving: bool) {
        if let Some(slot) = self.slots.write().get_mut(&id) {
            slot.leaving = leaving;
        }
    }

    /// Gives it another name.
    pub fn rename(&self, id: DiskId, name: &str) {
        if let Some(slot) = self.slots.write().get_mut(&id) {
            slot.name = name.to_owned();
        }
    }

    /// The disks that metadata, manifests and new windows may go to, in the order of their numbers.
    pub fn usable_for_writing(&self) -> Vec<DiskId> {
        if self.read_only {
            return Vec::new();
        }
        let slots = self.slots.read();
        let usable = slots.iter().filter(|(_, slot)| slot.state.takes_writes());
        usable.map(|(id, _)| *id).collect()
    }

    /// Whether new data may go there although others could take it: not to a suspect disk, nor to one that leaves.
    pub fn takes_data(&self, id: DiskId) -> Takes {
        let slots = self.slots.read();
        match slots.get(&id) {
            Some(slot) if slot.leaving => Takes::Nothing,
            Some(slot) if slot.state == DiskState::Suspect => Takes::WhatOthersCannot,
            Some(slot) if slot.state.takes_writes() => Takes::Anything,
            _ => Takes::Nothing,
        }
    }

    /// The whole table, in the order of the numbers.
    pub fn list(&self) -> Vec<DiskStatus> {
        let slots = self.slots.read();
        let status = |(id, slot): (&DiskId, &Slot)| DiskStatus {
            id: *id,
            name: slot.name.clone(),
            state: slot.state,
            note: slot.note.clone(),
            since: slot.since,
            leaving: slot.leaving,
            read_errors: slot.read_errors.load(Ordering::Relaxed),
            wrong_bytes: slot.wrong_bytes.load(Ordering::Relaxed),
            waits: slot.waits.load(Ordering::Relaxed),
        };
        slots.iter().map(status).collect()
    }
}
