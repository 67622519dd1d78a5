//! A disk leaves: what it holds of every window is moved to the others, or to the one that takes its place; files whose
//! windows have no place there are written anew. When nothing refers to it any more, it is struck off the volume.

use std::sync::Arc;
use std::time::Duration;

use super::relocate::{Plan, Wanted};
use super::shards::bytes_of_shard;
use super::{Running, TaskKind, Walked, Work};
use crate::ids::{DiskId, FileId};
use crate::store::{Takes, WindowRecord};
use crate::volume::Volume;
use crate::volume::error::{Result, VolumeError};
use crate::volume::file::OpenFile;
use crate::volume::filemap::Window;

/// How often files that were written while they were walked over are walked over again at the end, and how long that waits.
const ROUNDS: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(500);

/// The work of emptying a disk.
pub(super) struct Evacuate {
    disk: DiskId,
    by: Option<DiskId>,
    /// Disks whose bytes are given up where they cannot be had.
    give_up: Vec<DiskId>,
}

impl Evacuate {
    pub(super) fn new(
        volume: &Volume,
        disk: DiskId,
        by: Option<DiskId>,
        give_up: Vec<DiskId>,
    ) -> Evacuate {
        volume.disks.set_leaving(disk, true);
        Evacuate { disk, by, give_up }
    }
}

impl Evacuate {
    /// Goes over what is left until nothing is, and strikes the disk off.
    fn leave(&mut self, volume: &Volume, running: &Running) -> Result<bool> {
        let mut left = volume.files_on(self.disk, running)?;
        let mut rounds = 0;
        // What was a problem before would be one again.
        while !left.is_empty()
            && rounds < ROUNDS
            && !running.ends()
            && running.status.lock().problem_count == 0
        {
            // Windows that were just being committed when their file was walked over: now they are.
            std::thread::sleep(BETWEEN);
            let mut waiting = 0;
            for file in left {
                if !running.ends() && volume.walk_file(running, self, file) == Walked::Later {
                    waiting += 1;
                }
            }
            running.note(|status| status.waiting = waiting);
            // Whoever writes may take as long as he likes.
            if waiting == 0 {
                rounds += 1;
            }
            left = volume.files_on(self.disk, running)?;
        }
        running.note(|status| status.waiting = 0);
        if running.ends() {
            return Ok(false);
        }
        if let Some(first) = left.first() {
            return Err(VolumeError::new(
                libc::EIO,
                format!(
                    "{} files still need disk {} (the first is {}), so it stays a disk of the volume; the problems tell why. {}",
                    left.len(),
                    volume.disks.name(self.disk),
                    volume.called(*first),
                    self.way_out(volume)
                ),
            ));
        }
        volume.strike_off(self.disk)?;
        Ok(true)
    }

    /// What an administrator can do about files that still need the disk.
    fn way_out(&self, volume: &Volume) -> String {
        let away: Vec<String> = volume
            .disks
            .list()
            .into_iter()
            .filter(|of| of.id != self.disk && !of.state.takes_writes())
            .filter(|of| !self.give_up.contains(&of.id))
            .map(|of| of.name)
            .collect();
        let first = match away.is_empty() {
            true => String::new(),
            false => format!(
                "Missing or faulty besides: {}; bring back first what can be brought back. ",
                away.join(", ")
            ),
        };
        match (self.give_up.is_empty(), away.is_empty()) {
            (true, _) => format!(
                "{first}Bytes that only this disk had and does not give can be given up with --give-up"
            ),
            (false, false) => {
                format!("{first}A disk that is gone for good too is named with --gone")
            }
            (false, true) => {
                "Copy what can be read of these files, remove them, and try again".to_owned()
            }
        }
    }
}

/// Where what a disk has of a window goes: to the disk that takes its place, where that has room, else to the one with most.
fn choose(volume: &Volume, record: &WindowRecord, disk: DiskId, by: Option<DiskId>) -> Wanted {
    let Some(shard) = record.disks.iter().position(|of| *of == disk) else {
        return Wanted::Stay;
    };
    let bytes = bytes_of_shard(record, shard);
    let has_place =
        |to: DiskId| !record.disks.contains(&to) && volume.disks.takes_data(to) != Takes::Nothing;
    let candidates = volume.pipeline.room.candidates().into_iter();
    let best = candidates
        .filter(|candidate| has_place(candidate.disk) && candidate.free >= bytes)
        .max_by_key(|candidate| (Some(candidate.disk) == by, candidate.free));
    match best {
        Some(best) => Wanted::Move(vec![(shard, best.disk)]),
        None => Wanted::Anew,
    }
}

impl Work for Evacuate {
    fn begin(&mut self, _volume: &Volume, _running: &Running) -> Result<()> {
        Ok(())
    }

    fn file(&mut self, volume: &Volume, running: &Running, file: FileId) -> Result<Walked> {
        let open = volume.use_file(file)?;
        if !volume.needs(&open, self.disk)? {
            return Ok(Walked::Done);
        }
        let (disk, by) = (self.disk, self.by);
        let mut plan = Plan {
            choose: &mut |volume, record| choose(volume, record, disk, by),
            give_up: &self.give_up,
            punch: true,
            patient: false,
            besides: 0,
        };
        volume.relocate(file, running, &mut plan, Some(disk))
    }

    fn finish(&mut self, volume: &Volume, running: &Running) -> Result<bool> {
        let left = self.leave(volume, running);
        if left.is_err() {
            // It stays, and takes new data as before.
            volume.disks.set_leaving(self.disk, false);
        }
        left
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
                if self.needs(&open, disk)? {
                    found.push(file);
                }
            }
        }
    }

    /// Whether a disk holds something of a file, committed or not. One that leaves gets nothing new: what a file that is
    /// being written has on others does not matter to it.
    fn needs(&self, file: &Arc<OpenFile>, disk: DiskId) -> Result<bool> {
        {
            let state = file.state.lock();
            let head = &state.head;
            let is_committed = head.base.is_some() || head.first_delta < head.next_delta;
            // What is committed of these is not in memory, and may be there.
            let hidden = state.spilled && is_committed
                || state.uncommitted.iter().any(|no| no.0 < head.next_window);
            let objects = state.pending.iter().flat_map(|writer| writer.objects());
            let new = objects.into_iter().any(|(of, _)| of == disk)
                || state.map.windows.iter().any(|(no, window)| match window {
                    Window::Making(window) => window.disks.contains(&disk),
                    Window::Made(record) => {
                        state.uncommitted.contains(no) && record.disks.contains(&disk)
                    }
                });
            if hidden || new {
                return Ok(true);
            }
        }
        let mut holds = false;
        // A commit that is made meanwhile does not take away the manifest that is read.
        let _reading = file.reading.read_recursive();
        self.frozen_view(file).each_window(|record| {
            holds |= record.disks.contains(&disk);
            Ok(())
        })?;
        Ok(holds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, Fault, FaultyDisk, MemoryDisk, Operation, Operations, Rule, When};
    use crate::meta::Timestamp;
    use crate::volume::commit::Purpose;
    use crate::volume::tests::{Rig, close, create, noise, read_file, write_all, write_file};
    use crate::volume::{Mode, ROOT, TaskStatus, VolumeOptions};

    /// A volume of five disks with a file on four of them: a disk that it is on, and the one that it is not on.
    fn rig() -> (Rig, Arc<Volume>, DiskId, DiskId) {
        let rig = Rig::new(5, "critical = \"2+2\"");
        let volume = rig.open();
        write_file(&volume, "f", &noise(1, 3 << 20));
        let running = running(DiskId(0));
        let holds = |disk: &DiskId| !volume.files_on(*disk, &running).expect("files").is_empty();
        let disks = volume.disks.list().into_iter().map(|disk| disk.id);
        let (on, off): (Vec<DiskId>, Vec<DiskId>) = disks.partition(holds);
        assert_eq!((on.len(), off.len()), (4, 1));
        (rig, volume, on[0], off[0])
    }

    fn running(disk: DiskId) -> Running {
        let task = TaskKind::Remove {
            disk,
            give_up: false,
            gone: Vec::new(),
        };
        let status = TaskStatus::new(task, "a test".into(), None, Timestamp::now().seconds);
        Running::new(status)
    }

    fn is_member(volume: &Volume, disk: DiskId) -> bool {
        volume.disks.list().iter().any(|of| of.id == disk)
    }

    /// As when a window is just being committed while its file is walked over: the walk passes it over.
    #[test]
    fn what_the_walk_passed_over_is_moved_before_the_disk_is_struck_off() {
        let (_rig, volume, leaves, _) = rig();
        let running = running(leaves);
        let mut work = Evacuate::new(&volume, leaves, None, Vec::new());
        assert!(work.finish(&volume, &running).expect("it leaves"));
        assert_eq!(running.status.lock().problems, Vec::<String>::new());
        assert!(!is_member(&volume, leaves));
        assert!(read_file(&volume, "f").expect("readable") == noise(1, 3 << 20));
    }

    #[test]
    fn no_manifest_is_walked_over_while_room_is_given_back() {
        type Walk = fn(&Volume, DiskId);
        let walks: [Walk; 2] = [
            |volume, disk| {
                let files = volume.files_on(disk, &running(disk)).expect("files");
                assert_eq!(files.len(), 1);
            },
            |volume, _| {
                let file = volume.lookup(ROOT, b"f").expect("there").file;
                let file = volume.use_file(file).expect("in use");
                let windows = volume.windows_of(&file).expect("windows");
                assert!(!windows.is_empty());
            },
        ];
        let (_rig, volume, on, _) = rig();
        let file = volume.lookup(ROOT, b"f").expect("there").file;
        let file = volume.use_file(file).expect("in use");
        for walk in walks {
            // The sweeper has it as long as it removes something.
            let sweeping = file.reading.write();
            let walker = std::thread::spawn({
                let volume = Arc::clone(&volume);
                move || walk(&volume, on)
            });
            std::thread::sleep(Duration::from_millis(200));
            assert!(!walker.is_finished(), "it reads what is being removed");
            drop(sweeping);
            walker.join().expect("it goes on");
        }
    }

    #[test]
    fn a_file_that_is_written_on_the_others_holds_no_disk_up() {
        for spills in [false, true] {
            let rig = Rig::new(3, "critical = \"1+1\"");
            let volume = rig.open();
            write_file(&volume, "f", &noise(1, 3 << 20));
            let leaves = DiskId(0);
            let running = running(leaves);
            let mut work = Evacuate::new(&volume, leaves, None, Vec::new());
            let bytes = noise(2, 40 << 20);
            let (file, handle) = create(&volume, "new");
            write_all(&volume, handle, &bytes);
            let open = volume.in_use(file).expect("in use");
            if spills {
                volume.commit(&open, Purpose::Spill).expect("spilled");
            }
            assert!(work.finish(&volume, &running).expect("it leaves"));
            assert!(!is_member(&volume, leaves));
            close(&volume, handle);
            assert!(read_file(&volume, "new").expect("readable") == bytes);
            assert!(read_file(&volume, "f").expect("readable") == noise(1, 3 << 20));
        }
    }

    /// A disk that takes metadata; there is no segment on it, and none can be made.
    fn breaks(rig: &Rig, volume: &Volume, disk: DiskId) {
        let directory = rig.place.path().join(volume.disks.name(disk));
        let segments = directory.join("segments");
        let _ = std::fs::remove_dir_all(&segments);
        std::os::unix::fs::symlink("nowhere", &segments).expect("a link");
    }

    #[test]
    fn where_the_new_disk_fails_the_others_take_what_the_old_one_has() {
        let (rig, volume, leaves, by) = rig();
        breaks(&rig, &volume, by);
        let running = running(leaves);
        let mut work = Evacuate::new(&volume, leaves, Some(by), Vec::new());
        assert!(work.finish(&volume, &running).expect("it leaves"));
        assert_eq!(running.status.lock().problems, Vec::<String>::new());
        assert!(!is_member(&volume, leaves));
        assert!(!volume.disks.is_online(by));
        assert!(read_file(&volume, "f").expect("readable") == noise(1, 3 << 20));
    }

    #[test]
    fn a_disk_stays_when_no_other_takes_what_it_has() {
        let (rig, volume, leaves, by) = rig();
        let running = running(leaves);
        for disk in volume.disks.list() {
            if disk.id != leaves {
                breaks(&rig, &volume, disk.id);
            }
        }
        let mut work = Evacuate::new(&volume, leaves, Some(by), Vec::new());
        work.finish(&volume, &running)
            .expect_err("something still needs it");
        assert!(running.status.lock().problem_count > 0);
        assert!(is_member(&volume, leaves));
        assert!(!volume.disks.is_online(by));
        assert_eq!(volume.files_on(leaves, &running).expect("files").len(), 1);
    }

    #[test]
    fn a_disk_leaves_although_a_file_of_it_is_deleted_and_open() {
        let (_rig, volume, leaves, _) = rig();
        let file = volume.lookup(ROOT, b"f").expect("there").file;
        let handle = volume.open_file(file, libc::O_RDONLY).expect("open").handle;
        volume.remove(ROOT, b"f").expect("removed");
        let running = running(leaves);
        let mut work = Evacuate::new(&volume, leaves, None, Vec::new());
        assert!(work.finish(&volume, &running).expect("it leaves"));
        assert!(!is_member(&volume, leaves));
        assert!(volume.read(handle, 0, 3 << 20).expect("read") == noise(1, 3 << 20));
        volume.release(handle);
        volume.sweeper.wait();
        assert!(volume.files_in_use().is_empty());
    }

    /// Another one takes it, and what is kept free on every disk stays free.
    #[test]
    fn where_the_new_disk_has_no_room_the_others_take_what_the_old_one_has() {
        for refuses in [false, true] {
            let rig = Rig::new(6, "critical = \"2+2\"\ncompression = \"none\"");
            let plans = rig.plans();
            let media: Vec<Arc<MemoryDisk>> = (0..6)
                .map(|number| {
                    // The last one has room for hardly more than what is kept free.
                    let room = if number == 5 && !refuses {
                        5 << 20
                    } else {
                        1 << 30
                    };
                    Arc::new(MemoryDisk::with_capacity(&format!("d{number}"), room))
                })
                .collect();
            let disks = || {
                media
                    .iter()
                    .map(|medium| Arc::clone(medium) as Arc<dyn Disk>)
            };
            Volume::create_on(&rig.config, disks().collect()).expect("a new volume");
            let failing = disks().zip(&plans).map(|(medium, plan)| {
                Some(Arc::new(FaultyDisk::new(medium, Arc::clone(plan))) as Arc<dyn Disk>)
            });
            let options = VolumeOptions::default();
            let mode = Mode::ReadWrite;
            let volume = Volume::open_on(&rig.config, failing.collect(), mode, options);
            let volume = volume.expect("it opens");
            write_file(&volume, "f", &noise(1, 12 << 20));
            let last = DiskId(5);
            let leaves = {
                let running = running(last);
                let holds =
                    |disk: &DiskId| !volume.files_on(*disk, &running).expect("files").is_empty();
                (0..5).map(DiskId).find(holds).expect("a disk that is used")
            };
            if refuses {
                let full = Rule::new(
                    Operations::of(&[Operation::Restore]),
                    When::Always,
                    Fault::Full,
                );
                plans[5].add(full);
            }
            let running = running(leaves);
            let mut work = Evacuate::new(&volume, leaves, Some(last), Vec::new());
            assert!(
                work.finish(&volume, &running).expect("it leaves"),
                "{refuses}"
            );
            assert_eq!(running.status.lock().problems, Vec::<String>::new());
            assert!(!is_member(&volume, leaves));
            assert!(volume.disks.is_online(last));
            let free = media[5].space().expect("told").free;
            assert!(refuses || free >= 4 << 20, "{free} bytes are free");
            assert!(read_file(&volume, "f").expect("readable") == noise(1, 12 << 20));
        }
    }
}
