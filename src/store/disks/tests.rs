use super::*;
use crate::disk::{
    Disk, Fault, FaultPlan, FaultyDisk, MemoryDisk, ObjectName, Operations, Rule, When,
};
use crate::ids::SetId;

const OBJECT: ObjectName = ObjectName::Blocks(SetId(1));

fn table(read_only: bool) -> Disks {
    let disks = Disks::new(read_only);
    let disk = MemoryDisk::new("a");
    disk.put(OBJECT, b"hello").unwrap();
    disks.insert(DiskId(1), "a", Some(Arc::new(disk)));
    disks.insert(DiskId(2), "b", None);
    disks
}

#[test]
fn a_missing_object_does_not_harm_its_disk() {
    let disks = table(false);
    let mut room = [0; 9];
    for _ in 0..3 * READ_FAILURES_MAX {
        assert!(disks.read(DiskId(1), OBJECT, 0, &mut room).is_err());
        let other = ObjectName::Parity(SetId(1));
        assert!(disks.read(DiskId(1), other, 0, &mut room).is_err());
    }
    assert_eq!(disks.usable_for_writing(), [DiskId(1)]);
}

#[test]
fn a_faulty_disk_is_read_and_not_written() {
    let disks = table(false);
    disks.mark_faulty(DiskId(1), "it smokes");
    disks.mark_faulty(DiskId(1), "later");
    disks.mark_faulty(DiskId(2), "it is not even there");
    assert_eq!(disks.state(DiskId(1)), DiskState::Faulty);
    assert_eq!(disks.list()[0].note, "it smokes");
    assert_eq!(disks.state(DiskId(2)), DiskState::Missing);
    assert_eq!(disks.usable_for_writing(), []);
    let mut room = [0; 5];
    disks.read(DiskId(1), OBJECT, 0, &mut room).unwrap();
    assert_eq!(&room, b"hello");
    assert!(!disks.repair(DiskId(1), OBJECT, 0, b"HELLO"));
    let error = disks.read(DiskId(2), OBJECT, 0, &mut room).unwrap_err();
    assert_eq!(error.to_string(), "disk b is missing");
}

#[test]
fn a_mount_that_may_not_write_repairs_nothing() {
    let disks = table(true);
    assert!(!disks.repair(DiskId(1), OBJECT, 0, b"HELLO"));
    assert_eq!(disks.usable_for_writing(), []);
    assert!(table(false).repair(DiskId(1), OBJECT, 0, b"HELLO"));
}

#[test]
fn a_disk_that_fails_now_and_then_is_suspect_and_one_that_gives_wrong_bytes_too() {
    let disks = table(false);
    for _ in 0..3 {
        disks.count_wrong_bytes(DiskId(1), "not what was written");
        assert_eq!(disks.state(DiskId(1)), DiskState::Online);
    }
    disks.count_wrong_bytes(DiskId(1), "not what was written");
    assert_eq!(disks.state(DiskId(1)), DiskState::Suspect);
    assert_eq!(disks.takes_data(DiskId(1)), Takes::WhatOthersCannot);
    assert!(!disks.reads_fail(DiskId(1)), "what it gives is verified");
    assert!(disks.repair(DiskId(1), OBJECT, 0, b"HELLO"));
    for _ in 0..1000 {
        disks.count_wrong_bytes(DiskId(1), "not what was written");
    }
    assert_eq!(
        disks.state(DiskId(1)),
        DiskState::Suspect,
        "never faulty by that"
    );
    disks.mark_online(DiskId(1), "looked at");
    disks.count_wrong_bytes(DiskId(1), "not what was written");
    assert_eq!(disks.state(DiskId(1)), DiskState::Online, "it begins anew");
    disks.mark_rebuilding(DiskId(1), "it was away");
    for _ in 0..100 {
        disks.count_wrong_bytes(DiskId(1), "it lacks that");
    }
    assert_eq!(disks.state(DiskId(1)), DiskState::Rebuilding);
    disks.set_leaving(DiskId(1), true);
    assert_eq!(disks.takes_data(DiskId(1)), Takes::Nothing);
}

#[test]
fn a_disk_that_is_gone_is_not_asked_any_more() {
    let disks = table(false);
    disks.mark_missing(DiskId(1), "its directory was deleted");
    assert!(disks.get(DiskId(1)).is_none());
    disks.mark_faulty(DiskId(1), "later");
    disks.mark_online(DiskId(1), "nothing is there");
    assert_eq!(disks.state(DiskId(1)), DiskState::Missing);
}

/// A disk that takes so long for every read.
fn slow(delay: Duration) -> (Disks, Arc<FaultPlan>) {
    let plan = FaultPlan::new(1);
    let rule = Rule::new(Operations::READS, When::Always, Fault::Delay(delay));
    plan.add(rule);
    let disk = FaultyDisk::new(Arc::new(MemoryDisk::new("a")), Arc::clone(&plan));
    let disks = Disks::new(false);
    disks.insert(DiskId(1), "a", Some(Arc::new(disk)));
    (disks, plan)
}

#[test]
fn telling_a_disk_that_hangs_what_will_be_read_holds_nobody_up() {
    const LONG: Duration = Duration::from_secs(4);
    let (disks, plan) = slow(LONG);
    let begun = Instant::now();
    for _ in 0..100 {
        disks.will_read(DiskId(1), OBJECT, 0..5);
    }
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
    // It was told all the same, and what it had no time to hear is not told later.
    while plan.injected() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "never told");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(2 * LONG);
    assert!(plan.injected() < 100);
}

#[test]
fn a_disk_that_is_read_after_the_others_is_not_told_what_will_be_read() {
    let (disks, plan) = slow(Duration::ZERO);
    disks.count_wait(DiskId(1));
    disks.will_read(DiskId(1), OBJECT, 0..5);
    disks.will_read(DiskId(2), OBJECT, 0..5);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(plan.injected(), 0);
}

/// A disk that comes back lacks what was written meanwhile, and at no moment looks as if it had all.
#[test]
fn a_disk_that_comes_back_is_at_once_one_that_is_rebuilt() {
    let disks = Arc::new(Disks::new(false));
    disks.insert(DiskId(1), "a", None);
    let seen: Arc<Mutex<Vec<DiskState>>> = Arc::default();
    let told = {
        let (seen, disks) = (Arc::clone(&seen), Arc::downgrade(&disks));
        Box::new(move || {
            let disks = disks.upgrade().expect("the table");
            seen.lock().push(disks.state(DiskId(1)));
        })
    };
    disks.set_on_change(told);
    let medium: Arc<dyn Disk> = Arc::new(MemoryDisk::new("a"));
    disks.insert_rebuilding(DiskId(1), medium, "for this test");
    assert_eq!(disks.state(DiskId(1)), DiskState::Rebuilding);
    assert_eq!(disks.name(DiskId(1)), "a");
    assert_eq!(*seen.lock(), [DiskState::Rebuilding]);
}

/// Who hears of it looks after the disks at once.
#[test]
fn a_disk_that_is_known_to_be_suspect_is_at_no_moment_well_enough_to_be_trusted() {
    let disks = Arc::new(Disks::new(false));
    disks.insert(DiskId(1), "a", Some(Arc::new(MemoryDisk::new("a"))));
    let told = {
        let disks = Arc::downgrade(&disks);
        Box::new(move || disks.upgrade().expect("the table").look_after())
    };
    disks.set_on_change(told);
    disks.mark_suspect(DiskId(1), "for this test");
    assert_eq!(disks.state(DiskId(1)), DiskState::Suspect);
}

#[test]
fn what_this_process_may_not_have_is_not_held_against_a_disk() {
    let plan = FaultPlan::new(1);
    let below = MemoryDisk::new("a");
    below.put(OBJECT, b"hello").unwrap();
    let disks = Disks::new(false);
    let disk = FaultyDisk::new(Arc::new(below), Arc::clone(&plan));
    disks.insert(DiskId(1), "a", Some(Arc::new(disk)));
    plan.add(Rule::new(Operations::ALL, When::Always, Fault::Exhausted));
    let mut room = [0; 5];
    for _ in 0..1000 {
        let error = disks.read(DiskId(1), OBJECT, 0, &mut room).unwrap_err();
        assert!(error.to_string().contains("not to blame"), "{error}");
        let error = disks.get(DiskId(1)).unwrap().create(OBJECT).unwrap_err();
        assert!(!disks.hold_against(DiskId(1), &error));
    }
    let status = &disks.list()[0];
    assert_eq!((status.state, status.read_errors), (DiskState::Online, 0));
    assert!(!disks.reads_fail(DiskId(1)));
    plan.clear();
    disks.read(DiskId(1), OBJECT, 0, &mut room).unwrap();
    assert_eq!(&room, b"hello");
}
