//! How the disks fare, over mounts: what earlier mounts knew of them is taken up at the opening; a thread looks after
//! them every few seconds, and what changes is kept in the metadata. Judging is the business of `store::disks`.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Volume;
use super::error::Result;
use super::roster::Found;
use crate::ids::DiskId;
use crate::meta::{
    DiskHealth, DiskRecord, DiskState as Membership, Records, Timestamp, WriteRecords,
};
use crate::store::DiskState;

/// How often the disks are looked after.
const PERIOD: Duration = Duration::from_secs(2);

/// The bell of the thread that looks after the disks.
#[derive(Debug, Default)]
pub(super) struct Bell {
    state: Mutex<State>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rung: bool,
    stop: bool,
}

impl Bell {
    /// Something has changed.
    pub(super) fn ring(&self) {
        self.state.lock().rung = true;
        self.rung.notify_all();
    }

    /// The thread is to end.
    pub(super) fn stop(&self) {
        self.state.lock().stop = true;
        self.rung.notify_all();
    }

    /// Whether the thread is to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.state.lock().stop
    }

    /// Waits until it is rung or `PERIOD` has gone by; false when it is time to end.
    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        if !state.rung && !state.stop {
            self.rung.wait_for(&mut state, PERIOD);
        }
        state.rung = false;
        !state.stop
    }
}

fn health(state: DiskState) -> DiskHealth {
    match state {
        DiskState::Online => DiskHealth::Online,
        DiskState::Suspect => DiskHealth::Suspect,
        DiskState::Faulty => DiskHealth::Faulty,
        DiskState::Missing => DiskHealth::Missing,
        DiskState::Rebuilding => DiskHealth::Rebuilding,
    }
}

impl Volume {
    /// Takes up what earlier mounts knew of the disks.
    pub(super) fn take_up_health(&self, found: &[(DiskId, Found)]) -> Result<()> {
        let records: BTreeMap<DiskId, DiskRecord> = self.meta.view().disks()?.into_iter().collect();
        for (id, _) in found {
            let Some(record) = records.get(id) else {
                continue;
            };
            if record.state == Membership::Left {
                // A crash kept its label from saying so.
                if !self.read_only {
                    self.meta.part_with(*id)?;
                }
                self.disks.remove(*id);
                continue;
            }
            if self.disks.state(*id) == DiskState::Missing {
                continue;
            }
            let why = record.why.as_str();
            match record.health {
                DiskHealth::Faulty if self.read_only || self.meta.excluded().contains(id) => {
                    self.disks.mark_faulty(*id, why);
                }
                DiskHealth::Faulty => self.disks.mark_suspect(
                    *id,
                    format!(
                        "it was faulty ({why}), and without it the volume could not be written to"
                    ),
                ),
                DiskHealth::Missing => self.disks.mark_rebuilding(*id, "it was away"),
                DiskHealth::Rebuilding => self.disks.mark_rebuilding(*id, why),
                _ if self.meta.was_away().contains(id) => {
                    self.disks
                        .mark_rebuilding(*id, "it missed what others were given");
                }
                DiskHealth::Suspect => self.disks.mark_suspect(*id, why),
                DiskHealth::Online => {}
            }
        }
        Ok(())
    }

    /// Begins to look after the disks.
    pub(super) fn begin_to_look_after(volume: &Arc<Volume>) {
        let bell = Arc::clone(&volume.bell);
        volume.disks.set_on_change(Box::new({
            let bell = Arc::clone(&bell);
            move || bell.ring()
        }));
        let weak: Weak<Volume> = Arc::downgrade(volume);
        let work = move || {
            let mut rested = Instant::now();
            loop {
                match weak.upgrade() {
                    Some(volume) => {
                        volume.look_after_disks();
                        // Not each time that the bell rings: whoever has asked for nothing in between may be about to.
                        if rested.elapsed() >= PERIOD {
                            volume.rest_if_quiet();
                            rested = Instant::now();
                        }
                    }
                    None => return,
                }
                if !bell.wait() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("disks".into()).spawn(work);
        if let Err(error) = thread {
            tracing::error!(%error, "no thread to look after the disks");
        }
    }

    fn look_after_disks(&self) {
        self.pipeline.look_after();
        self.disks.look_after();
        if let Err(error) = self.keep_health() {
            tracing::debug!(%error, "how the disks fare is not kept");
        }
        let list = self.disks.list();
        let is_away = |state| matches!(state, DiskState::Faulty | DiskState::Missing);
        // With none left the metadata is still read from one of them, and nobody else may write to it meanwhile.
        let any_left = list.iter().any(|disk| !is_away(disk.state));
        for disk in list.iter().filter(|_| any_left) {
            // Its filesystem can be unmounted and repaired, and it comes back by its path.
            if is_away(disk.state) {
                {
                    // It may have been brought back while another one was let go.
                    let mut locks = self.locks.lock();
                    if !is_away(self.disks.state(disk.id)) {
                        continue;
                    }
                    locks.remove(&disk.id);
                }
                self.meta.let_go(disk.id);
                self.disks.let_go(disk.id);
            }
        }
        if list.iter().any(|disk| disk.state == DiskState::Rebuilding) {
            self.begin_rebuild();
        }
    }

    /// Keeps how the disks fare in the metadata.
    pub(super) fn keep_health(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let known: BTreeMap<DiskId, DiskRecord> = self.meta.view().disks()?.into_iter().collect();
        let now = Timestamp::now();
        let mut changed = Vec::new();
        for status in self.disks.list() {
            let Some(record) = known.get(&status.id) else {
                continue;
            };
            let health = health(status.state);
            if record.health == health && record.why == status.note {
                continue;
            }
            let since = if record.health == health {
                record.since
            } else {
                now
            };
            changed.push((
                status.id,
                DiskRecord {
                    health,
                    why: status.note,
                    since,
                    ..record.clone()
                },
            ));
        }
        if changed.is_empty() {
            return Ok(());
        }
        self.meta.update(|update| {
            for (id, record) in &changed {
                update.put_disk(*id, record);
            }
            Ok(())
        })
    }
}
