//! When a disk counts as having all that it should have.

use std::time::{Duration, Instant};

use super::relocate::{Ends, Plan, Wanted};
use super::scrub::{Scrub, ends};
use super::*;
use crate::disk::{
    DirectoryDisk, Fault, FaultPlan, FaultyDisk, ObjectName, Operation, Operations, Rule, When,
};
use crate::ids::SetId;
use crate::meta::PunchKey;
use crate::store::{BlockCache, Reader, WindowRecord};
use crate::volume::Mode;
use crate::volume::sweep::Sweep;
use crate::volume::tests::{Rig, create, noise, read_file, write_all, write_file};

/// A volume with a file, in which no rebuild begins by itself.
struct Lacking {
    rig: Rig,
    volume: Arc<Volume>,
    file: FileId,
    plans: Vec<Arc<FaultPlan>>,
}

impl Lacking {
    fn new(disks: usize, critical: &str) -> Lacking {
        let policy = format!("critical = \"{critical}\"\ncompression = \"none\"");
        let rig = Rig::new(disks, &policy);
        let plans: Vec<_> = (0..disks as u64).map(FaultPlan::new).collect();
        let volume = rig.open_failing(&plans);
        let file = write_file(&volume, "f", &noise(1, 6 << 20));
        volume.tasks.no_rebuild.store(true, Ordering::Release);
        Lacking {
            rig,
            volume,
            file,
            plans,
        }
    }

    fn records(&self) -> Vec<Arc<WindowRecord>> {
        let open = self.volume.use_file(self.file).expect("in use");
        let numbers = self.volume.windows_of(&open).expect("windows");
        let record = |no| self.volume.committed_window(&open, no).expect("read");
        numbers.into_iter().filter_map(record).collect()
    }

    /// A disk that holds blocks.
    fn disk(&self) -> DiskId {
        self.records()[0].disks[0]
    }

    fn state(&self, disk: DiskId) -> DiskState {
        self.volume.disks.state(disk)
    }

    /// The disk fails, and comes back.
    fn comes_back(&self, disk: DiskId) {
        self.volume.disks.mark_faulty(disk, "for this test");
        let name = self.volume.disks.name(disk);
        let number = usize::from(disk.0);
        let medium = DirectoryDisk::open(&name, &self.rig.disk(number)).expect("a disk");
        let medium = FaultyDisk::new(Arc::new(medium), Arc::clone(&self.plans[number]));
        self.volume
            .bring_disk_online_on(&name, Arc::new(medium))
            .expect("it comes back");
        // Where a rebuild may begin it may have come to its end.
        let state = self.state(disk);
        assert!(
            matches!(state, DiskState::Rebuilding | DiskState::Online),
            "{state:?}"
        );
    }

    /// The same, and it has lost its segments.
    fn comes_back_without_segments(&self, disk: DiskId) {
        let segments = self.rig.disk(usize::from(disk.0)).join("segments");
        std::fs::remove_dir_all(segments).expect("removed");
        self.comes_back(disk);
    }

    fn let_it_be_rebuilt(&self) {
        self.volume.tasks.no_rebuild.store(false, Ordering::Release);
        self.volume.bell.ring();
    }

    fn wait(&self, what: &str, is_so: impl Fn() -> bool) {
        let since = Instant::now();
        while !is_so() {
            assert!(since.elapsed() < Duration::from_secs(60), "never {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end of a task, and gives it.
    fn ended(&self) -> TaskStatus {
        let task = || self.volume.task().expect("told");
        let done = || task().is_some_and(|task| task.state == TaskState::Done);
        self.wait("done", done);
        task().expect("a task")
    }

    fn is_good(&self) -> bool {
        let reader = &self.volume.reader;
        let mut records = self.records().into_iter();
        records.all(|record| reader.verify_window(self.file, &record).is_good())
    }

    fn is_rebuilt(&self, disks: &[DiskId]) {
        let online = |disk: &DiskId| self.state(*disk) == DiskState::Online;
        self.wait("online", || disks.iter().all(online));
        assert!(self.is_good());
    }
}

/// What a program reads at the end of an object makes it no longer than it was.
#[test]
fn a_disk_that_was_read_from_meanwhile_is_rebuilt() {
    let lacking = Lacking::new(4, "2+2");
    let disk = lacking.disk();
    lacking.comes_back_without_segments(disk);
    let record = lacking.records()[0].clone();
    let own = |index: &u16| record.block(*index).is_some_and(|block| block.column == 0);
    let blocks = (0..record.blocks.len() as u16).filter(own);
    let last = blocks.max_by_key(|index| record.block(*index).map(|block| block.offset));
    // One that has read nothing yet.
    let (disks, cache) = (&lacking.volume.disks, BlockCache::new(0));
    let reader = Reader::new(lacking.volume.id, Arc::clone(disks), Arc::new(cache));
    reader
        .expect("a reader")
        .read_block(lacking.file, &record, last.expect("a block"))
        .expect("reconstructed");
    lacking.let_it_be_rebuilt();
    lacking.is_rebuilt(&[disk]);
}

#[test]
fn a_disk_that_was_moved_to_meanwhile_is_rebuilt() {
    let lacking = Lacking::new(4, "2+2");
    let disk = lacking.disk();
    lacking.comes_back_without_segments(disk);
    let mut behind = Ends::new();
    for record in lacking.records() {
        for (disk, object, end) in ends(&record) {
            let known = behind.entry((disk, object)).or_default();
            *known = end.max(*known);
        }
    }
    let object = ObjectName::Blocks(lacking.records()[0].set);
    lacking
        .volume
        .append_to(disk, object, &[7; 100], &mut behind)
        .expect("appended");
    lacking.let_it_be_rebuilt();
    lacking.is_rebuilt(&[disk]);
}

#[test]
fn a_disk_that_does_not_take_what_it_lacks_is_tried_again_later() {
    let lacking = Lacking::new(4, "2+2");
    let disk = lacking.disk();
    lacking.comes_back_without_segments(disk);
    let once = When::Count { skip: 0, times: 1 };
    let rule = Rule::new(Operations::of(&[Operation::Restore]), once, Fault::Full);
    lacking.plans[usize::from(disk.0)]
        .add(rule.only(|object| matches!(object, ObjectName::Blocks(_))));
    lacking.let_it_be_rebuilt();
    lacking.wait("tried", || {
        lacking.plans[usize::from(disk.0)].injected() > 0
    });
    let first = lacking.ended();
    assert_eq!(lacking.state(disk), DiskState::Rebuilding);
    assert!(first.problem_count > 0);
    // Not at once.
    for _ in 0..50 {
        lacking.volume.bell.ring();
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(lacking.ended(), first);
    lacking.volume.tasks.tried.lock().take();
    lacking.volume.bell.ring();
    lacking.is_rebuilt(&[disk]);
}

#[test]
fn a_disk_whose_bytes_cannot_be_had_is_rebuilt_when_another_comes_back() {
    let lacking = Lacking::new(4, "2+1");
    let record = lacking.records()[0].clone();
    let (disk, other) = (record.disks[0], record.disks[1]);
    lacking.plans[usize::from(other.0)].die();
    lacking.volume.disks.mark_faulty(other, "for this test");
    lacking.comes_back_without_segments(disk);
    lacking.let_it_be_rebuilt();
    lacking.wait("begun", || lacking.volume.task().expect("told").is_some());
    lacking.ended();
    assert_eq!(lacking.state(disk), DiskState::Rebuilding);
    lacking.plans[usize::from(other.0)].revive();
    lacking.comes_back(other);
    lacking.is_rebuilt(&[disk, other]);
}

#[test]
fn a_scrub_that_goes_on_does_not_tell_of_what_an_earlier_mount_looked_at() {
    let lacking = Lacking::new(5, "2+2");
    let disk = lacking.disk();
    let doubtful = (0..5).map(DiskId).find(|other| *other != disk);
    let doubtful = doubtful.expect("another disk");
    lacking.comes_back_without_segments(disk);
    lacking.volume.disks.mark_suspect(doubtful, "for this test");
    let mut status = TaskStatus::new(TaskKind::Scrub {}, "the scrub".into(), None, 0);
    status.cursor = lacking.file.0;
    lacking.volume.launch(status).expect("it goes on");
    lacking.ended();
    assert_eq!(lacking.state(disk), DiskState::Rebuilding);
    assert_eq!(lacking.state(doubtful), DiskState::Suspect);
    lacking.volume.scrub(None).expect("a scrub");
    lacking.is_rebuilt(&[disk, doubtful]);
}

#[test]
fn a_disk_that_fails_and_comes_back_while_it_is_rebuilt_is_rebuilt_again() {
    let lacking = Lacking::new(4, "2+2");
    let disk = lacking.disk();
    lacking.comes_back(disk);
    let mut work = Scrub::of_rebuilding(&lacking.volume);
    lacking.comes_back_without_segments(disk);
    let running = Running::of_no_task("a test");
    assert!(work.finish(&lacking.volume, &running).expect("it ends"));
    assert_eq!(lacking.state(disk), DiskState::Rebuilding);
    lacking.let_it_be_rebuilt();
    lacking.is_rebuilt(&[disk]);
}

/// Whoever waits for a task hears of its end, though the next begins before he asks.
#[test]
fn a_rebuild_that_begins_by_itself_keeps_no_task_of_an_administrators_from_beginning() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let volume = rig.open();
    let begin = |kind| volume.begin_task(kind, "a test".into(), None);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let _ = begin(TaskKind::Rebuild {});
            }
        });
        let all: Result<Vec<TaskStatus>> = (0..30)
            .map(|_| {
                let begun = begin(TaskKind::Scrub {})?;
                // One that is not known any more has ended long ago.
                let now = || volume.task_of(begun.number);
                while now().is_ok_and(|task| task.state == TaskState::Running) {
                    std::thread::yield_now();
                }
                Ok(begun)
            })
            .collect();
        done.store(true, Ordering::Release);
        assert_eq!(all.expect("all of them begin").len(), 30);
    });
}

#[test]
fn a_task_is_told_of_by_its_number_when_another_has_begun() {
    let lacking = Lacking::new(4, "2+2");
    let volume = &lacking.volume;
    let first = volume.scrub(None).expect("begun");
    let of = |number| volume.task_of(number).expect("known");
    lacking.wait("done", || of(first.number).state == TaskState::Done);
    let mut last = first.number;
    for _ in 0..PAST {
        let next = volume.rebalance(None).expect("begun");
        assert_eq!(next.number, last + 1);
        last = next.number;
        let told = of(first.number);
        assert_eq!(
            (&told.kind, told.state),
            (&TaskKind::Scrub {}, TaskState::Done)
        );
        lacking.wait("done", || of(last).state == TaskState::Done);
    }
    // Nobody waits for it any more.
    volume.rebalance(None).expect("begun");
    volume.task_of(first.number).expect_err("forgotten");
    volume.task_of(0).expect_err("none has it");
}

/// The room that is still to be given back in a set.
fn to_give_back(volume: &Volume, set: SetId) -> Vec<(PunchKey, u64)> {
    volume.meta.view().punches_of(set).expect("read")
}

fn keep(volume: &Volume, punches: &[(PunchKey, u64)]) {
    let kept = volume.meta.update(|update| -> Result<()> {
        for (key, length) in punches {
            update.put_punch(key, *length);
        }
        Ok(())
    });
    kept.expect("kept");
}

/// Room on a disk that is away is given back when it has come back.
#[test]
fn room_on_a_disk_that_is_away_is_given_back_later() {
    const LENGTH: usize = 64 << 10;
    let lacking = Lacking::new(4, "2+2");
    let (volume, disk) = (&lacking.volume, lacking.disk());
    let set = lacking.records()[0].set;
    let object = ObjectName::Blocks(set);
    let mut behind = Ends::new();
    let offset = volume.append_to(disk, object, &[7; LENGTH], &mut behind);
    let key = PunchKey {
        set,
        disk,
        offset: offset.expect("appended"),
        parity: false,
    };
    let punches = vec![(key, LENGTH as u64)];
    keep(volume, &punches);
    volume.disks.mark_faulty(disk, "for this test");
    let sweep = Sweep {
        punches: punches.clone(),
        ..Sweep::default()
    };
    volume.sweeper.add_closed(sweep);
    volume.sweeper.wait();
    assert_eq!(to_give_back(volume, set), punches);
    let read = || {
        let mut bytes = vec![1; LENGTH];
        let medium = volume.disks.get(disk).expect("a disk");
        medium
            .read_at(object, key.offset, &mut bytes)
            .expect("read");
        bytes
    };
    assert!(read().iter().all(|byte| *byte == 7));
    lacking.comes_back(disk);
    volume.sweeper.wait();
    assert_eq!(to_give_back(volume, set), []);
    assert!(read().iter().all(|byte| *byte == 0));
    lacking.let_it_be_rebuilt();
    lacking.is_rebuilt(&[disk]);
}

/// With a set go its ranges on disks that are away, and with a disk that has left all of its ranges.
#[test]
fn room_that_nobody_has_any_more_is_forgotten() {
    let lacking = Lacking::new(4, "2+2");
    let (volume, disk) = (&lacking.volume, lacking.disk());
    let set = lacking.records()[0].set;
    let of = |disk| {
        let key = PunchKey {
            set,
            disk,
            offset: 4096,
            parity: true,
        };
        (key, 4096)
    };
    volume.disks.mark_faulty(disk, "for this test");
    keep(volume, &[of(disk), of(DiskId(77))]);
    let sweep = Sweep {
        punches: vec![of(DiskId(77))],
        ..Sweep::default()
    };
    volume.sweeper.add_closed(sweep);
    volume.sweeper.wait();
    assert_eq!(to_give_back(volume, set), [of(disk)]);
    volume.remove(crate::meta::ROOT, b"f").expect("removed");
    volume.sweeper.wait();
    assert_eq!(to_give_back(volume, set), []);
}

/// What is put behind an object does not lie where something is still to be given back.
#[test]
fn nothing_is_put_where_room_is_still_to_be_given_back() {
    let lacking = Lacking::new(4, "2+2");
    let (volume, disk) = (&lacking.volume, lacking.disk());
    let set = lacking.records()[0].set;
    let object = ObjectName::Blocks(set);
    let medium = volume.disks.get(disk).expect("a disk");
    let offset = medium.length(object).expect("known") + 100;
    let key = PunchKey {
        set,
        disk,
        offset,
        parity: false,
    };
    keep(volume, &[(key, 5000)]);
    let start = volume.append_to(disk, object, &[7; 100], &mut Ends::new());
    assert_eq!(start.expect("appended"), offset + 5000);
}

/// As while a commit runs that gave it new parity: its blocks are those that the disk may lack.
#[test]
fn a_window_that_changes_while_its_file_is_walked_over_is_rebuilt_before_the_disk_is_whole() {
    let lacking = Lacking::new(4, "2+2");
    let disk = lacking.disk();
    lacking.comes_back_without_segments(disk);
    let changing = lacking.records()[0].no;
    let open = lacking.volume.use_file(lacking.file).expect("in use");
    let running = Running::of_no_task("a test");
    let walk = |work: &mut Scrub| {
        let walked = work.file(&lacking.volume, &running, lacking.file);
        walked.expect("walked over")
    };
    let finish = |mut work: Scrub| {
        let running = Running::of_no_task("a test");
        assert!(work.finish(&lacking.volume, &running).expect("it ends"));
    };

    // One whose commits fail holds up nobody for ever, and the disk is not whole.
    open.state.lock().uncommitted.insert(changing);
    let mut work = Scrub::of_rebuilding(&lacking.volume);
    let rounds = (0..100).take_while(|_| walk(&mut work) == Walked::Later);
    assert!((1..100).contains(&rounds.count()));
    finish(work);
    assert_eq!(lacking.state(disk), DiskState::Rebuilding);

    // A scrub goes on at once, and does not tell of the disk either.
    let mut work = Scrub::whole(&lacking.volume, false);
    assert_eq!(walk(&mut work), Walked::Done);
    finish(work);
    assert_eq!(lacking.state(disk), DiskState::Rebuilding);

    let mut work = Scrub::of_rebuilding(&lacking.volume);
    assert_eq!(walk(&mut work), Walked::Later);
    open.state.lock().uncommitted.clear();
    assert_eq!(walk(&mut work), Walked::Done);
    finish(work);
    lacking.is_rebuilt(&[disk]);
}

#[test]
fn no_two_shards_of_a_window_are_moved_to_one_disk() {
    let lacking = Lacking::new(5, "2+2");
    let before = lacking.records();
    let free = (0..5).map(DiskId).find(|disk| *disk != lacking.disk());
    let free = free.filter(|disk| before.iter().all(|record| !record.disks.contains(disk)));
    let moves = |record: &WindowRecord| {
        let mut moves = vec![vec![(0, record.disks[2])]];
        moves.extend(free.map(|free| vec![(0, free), (2, free)]));
        moves
    };
    for which in 0..moves(&before[0]).len() {
        let mut plan = Plan {
            choose: &mut |_, record| Wanted::Move(moves(record).swap_remove(which)),
            give_up: &[],
            punch: true,
            patient: false,
            besides: 0,
        };
        let running = Running::of_no_task("a test");
        let moved = lacking
            .volume
            .relocate(lacking.file, &running, &mut plan, None);
        assert_eq!(moved.expect("refused"), Walked::Done);
        assert_eq!(lacking.records(), before);
    }
}

#[test]
fn a_rebuild_that_waits_for_a_disk_that_hangs_keeps_no_file_from_being_committed() {
    const LONG: Duration = Duration::from_secs(50);
    let lacking = Lacking::new(4, "2+2");
    let disk = lacking.disk();
    lacking.comes_back_without_segments(disk);
    let plan = &lacking.plans[usize::from(disk.0)];
    let length = Operations::of(&[Operation::Length]);
    let blocks = |object| matches!(object, ObjectName::Blocks(_));
    plan.add(Rule::new(length, When::Always, Fault::Delay(LONG)).only(blocks));
    let before = plan.injected();
    lacking.let_it_be_rebuilt();
    lacking.wait("hung", || plan.injected() > before);
    let (_, handle) = create(&lacking.volume, "g");
    let bytes = noise(2, 3 << 20);
    write_all(&lacking.volume, handle, &bytes);
    let since = Instant::now();
    lacking.volume.close().expect("closed");
    assert!(since.elapsed() < LONG / 2, "{:?}", since.elapsed());
    let after = Volume::open(&lacking.rig.config, Mode::ReadOnly).expect("opened to be read");
    assert!(read_file(&after, "g").expect("read") == bytes);
}
