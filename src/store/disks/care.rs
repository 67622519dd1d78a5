//! Looking after the disks: whether each is still there and answers, and what follows from it.

use std::time::Instant;

use super::{DiskState, Disks, SOON};
use crate::disk::{AT_LAST, Disk, DiskError};
use crate::ids::DiskId;

impl Disks {
    /// Marks a disk missing whose medium is gone. Tells whether it is there.
    pub fn check(&self, id: DiskId) -> bool {
        match self.ask(id, |disk| disk.check()) {
            Some(Err(gone)) => {
                self.mark_missing(id, gone);
                false
            }
            Some(Ok(())) | None => true,
        }
    }

    /// Asks a disk something that is soon answered; `None` when it is missing, or hangs. One that hangs already is not
    /// waited for.
    pub fn ask<T: Send + 'static>(
        &self,
        id: DiskId,
        request: impl FnOnce(&dyn Disk) -> crate::disk::Result<T> + Send + 'static,
    ) -> Option<crate::disk::Result<T>> {
        let patience = {
            let slots = self.slots.read();
            let slot = slots.get(&id)?;
            if slot.hangs.lock().is_some() {
                return None;
            }
            slot.patience.clone()?
        };
        let answer = patience.ask(SOON, request);
        if answer.is_none() {
            self.count_wait(id);
        }
        answer
    }

    /// Asks every disk whether it is still there, and draws the conclusions: one that is gone is missing, one that
    /// answers nothing for long is faulty, a suspect one that has done well for long is online again.
    pub fn look_after(&self) {
        for status in self.list() {
            let patience = {
                let slots = self.slots.read();
                slots.get(&status.id).and_then(|slot| slot.patience.clone())
            };
            let Some(patience) = patience else { continue };
            match patience.ask(SOON, |disk| disk.check()) {
                Some(Ok(())) => {
                    self.count_success(status.id);
                    self.look_calmly(status.id);
                }
                Some(Err(error @ DiskError::Gone { .. })) => self.mark_missing(status.id, error),
                Some(Err(error)) => self.count_failure(status.id, &error),
                None => {
                    self.count_wait(status.id);
                    let hangs = {
                        let slots = self.slots.read();
                        let slot = slots.get(&status.id);
                        slot.and_then(|slot| *slot.hangs.lock())
                    };
                    if hangs.is_some_and(|since| since.elapsed() >= AT_LAST) {
                        self.mark_faulty(
                            status.id,
                            format!("it has not answered for {} s", AT_LAST.as_secs()),
                        );
                    }
                }
            }
        }
    }

    fn look_calmly(&self, id: DiskId) {
        let calm = {
            let slots = self.slots.read();
            slots.get(&id).is_some_and(|slot| {
                slot.state == DiskState::Suspect && slot.score.lock().is_calm(Instant::now())
            })
        };
        if calm {
            self.mark_online(id, "it has done well for hours");
        }
    }

    /// Looks whether every disk is still what it was: one that was taken away under the program is noticed before it is
    /// relied on. Those that are not there are named.
    pub fn absent(&self) -> Vec<DiskId> {
        self.look_after();
        let list = self.list().into_iter();
        list.filter(|status| status.state == DiskState::Missing)
            .map(|status| status.id)
            .collect()
    }
}
