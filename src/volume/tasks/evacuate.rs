//! A disk leaves: what it holds of every window is moved to the others, or to the one that takes its place; files whose
//! windows have no place there are written anew. When nothing refers to it any more, it is struck off the volume.

use super::relocate::{Plan, Wanted};
use super::{Running, TaskKind, Walked, Work};
use crate::ids::{DiskId, FileId};
use crate::store::{Takes, WindowRecord};
use crate::volume::Volume;
use crate::volume::error::{Result, VolumeError};

/// The work of emptying a disk.
pub(super) struct Evacuate {
    disk: DiskId,
    by: Option<DiskId>,
    give_up: bool,
    /// Disks with the room that is left on them, the moves so far counted.
    room: Vec<(DiskId, u64)>,
}

impl Evacuate {
    pub(super) fn new(
        volume: &Volume,
        disk: DiskId,
        by: Option<DiskId>,
        give_up: bool,
    ) -> Evacuate {
        volume.disks.set_leaving(disk, true);
        Evacuate {
            disk,
            by,
            give_up,
            room: Vec::new(),
        }
    }
}

fn choose(
    volume: &Volume,
    record: &WindowRecord,
    disk: DiskId,
    by: Option<DiskId>,
    room: &[(DiskId, u64)],
) -> Wanted {
    let Some(shard) = record.disks.iter().position(|of| *of == disk) else {
        return Wanted::Stay;
    };
    let has_place =
        |to: DiskId| !record.disks.contains(&to) && volume.disks.takes_data(to) != Takes::Nothing;
    if let Some(by) = by.filter(|by| has_place(*by)) {
        return Wanted::Move(vec![(shard, by)]);
    }
    let best = room
        .iter()
        .filter(|(to, _)| has_place(*to))
        .max_by_key(|(_, free)| *free);
    match best {
        Some((to, _)) => Wanted::Move(vec![(shard, *to)]),
        None => Wanted::Anew,
    }
}

impl Work for Evacuate {
    fn begin(&mut self, _volume: &Volume, _running: &Running) -> Result<()> {
        Ok(())
    }

    fn file(&mut self, volume: &Volume, running: &Running, file: FileId) -> Result<Walked> {
        volume.pipeline.room.forget();
        let candidates = volume.pipeline.room.candidates().into_iter();
        self.room = candidates
            .map(|candidate| (candidate.disk, candidate.free))
            .collect();
        let (disk, by, room) = (self.disk, self.by, &self.room);
        let mut plan = Plan {
            choose: &mut |volume, record| choose(volume, record, disk, by, room),
            give_up: self.give_up,
            punch: true,
        };
        volume.relocate(file, running, &mut plan, Some(disk))
    }

    fn finish(&mut self, volume: &Volume, running: &Running) -> Result<bool> {
        let left = volume.files_on(self.disk, running)?;
        if running.ends() {
            return Ok(false);
        }
        if let Some(first) = left.first() {
            volume.disks.set_leaving(self.disk, false);
            return Err(VolumeError::new(
                libc::EIO,
                format!(
                    "{} files still need disk {} (the first is {}), so it stays a disk of the volume; the problems tell why. \
                     Bytes that only this disk had and does not give can be given up with --give-up",
                    left.len(),
                    volume.disks.name(self.disk),
                    volume.called(*first)
                ),
            ));
        }
        volume.strike_off(self.disk)?;
        Ok(true)
    }

    fn cancelled(&mut self, volume: &Volume, running: &Running) {
        volume.disks.set_leaving(self.disk, false);
        let kind = running.status.lock().kind.clone();
        let (old, new) = match kind {
            TaskKind::Replace { disk, by, .. } if !volume.disks.state(disk).takes_writes() => {
                (disk, by)
            }
            TaskKind::Return { disk, to } => (to, disk),
            _ => return,
        };
        running.problem(format!(
            "disks {} and {} both stay disks of the volume; `parsfs disk remove` takes one out, and `parsfs disk replace` \
             with the same two goes on",
            volume.disks.name(old),
            volume.disks.name(new)
        ));
    }
}

impl Volume {
    /// The files of which a disk holds something.
    fn files_on(&self, disk: DiskId, running: &Running) -> Result<Vec<FileId>> {
        let mut found = Vec::new();
        let mut cursor = FileId(0);
        loop {
            let batch = self.files_after(cursor)?;
            if batch.is_empty() {
                return Ok(found);
            }
            for (file, _) in batch {
                cursor = file;
                if running.ends() {
                    return Ok(found);
                }
                let open = match self.use_file(file) {
                    Err(error) if error.errno() == libc::ENOENT => continue,
                    open => open?,
                };
                let mut holds = self.is_unsettled(&open, Some(disk));
                self.frozen_view(&open).each_window(|record| {
                    holds |= record.disks.contains(&disk);
                    Ok(())
                })?;
                if holds {
                    found.push(file);
                }
            }
        }
    }
}
