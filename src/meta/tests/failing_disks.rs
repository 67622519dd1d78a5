//! Disks that die while the metadata is in use.

use super::*;
use crate::disk::{Fault, ObjectName, Operation, Operations, Rule, When};

/// Keys set and answered for, with a checkpoint and a new journal among them.
fn work(meta: &Meta, from: u32) -> u32 {
    let mut answered = from;
    for n in from..from + 12 {
        set(meta, "n", &n.to_string());
        set(meta, &format!("k{n}"), &"v".repeat(100));
        let result = if n % 5 == 4 {
            meta.checkpoint()
        } else {
            meta.sync()
        };
        result.unwrap();
        answered = n;
    }
    answered
}

fn small() -> Options {
    Options {
        journal_bytes: 1500,
        ..options()
    }
}

#[test]
fn each_disk_dies_at_each_call_and_nothing_answered_is_lost() {
    let fresh = volume(3);
    let mut reached_end = false;
    for call in (0..).step_by(3) {
        let which = call as usize % 3;
        let media = killed(&fresh);
        let (disks_now, plans) = faulty(&media);
        plans[which].die_at(call);
        let meta = Meta::open(disks_now, small()).unwrap();
        let answered = work(&meta, 0).to_string();
        let died = plans[which].is_dead();
        let alive: Vec<usize> = (0..3).filter(|n| *n != which || !died).collect();
        assert_eq!(meta.online().len(), alive.len(), "call {call}");
        let crashed = killed(&media);
        // Without it,
        let after = Meta::open(some(&crashed, &alive), small()).unwrap();
        assert_eq!(get(&after, "n"), Some(answered.clone()), "call {call}");
        let expected = everything(&after);
        drop(after);
        // with it again,
        let after = Meta::open(disks(&crashed), small()).unwrap();
        assert_eq!(everything(&after), expected, "call {call}");
        drop(after);
        // and with hardly anything else.
        let two: Vec<usize> = vec![which, (which + 1) % 3];
        let after = Meta::open(some(&crashed, &two), small()).unwrap();
        assert_eq!(everything(&after), expected, "call {call}");
        if !died {
            reached_end = true;
            break;
        }
    }
    assert!(reached_end);
}

type Told = Arc<Mutex<Vec<(DiskId, String)>>>;

/// Options that note which disks are told of as failed.
fn telling() -> (Options, Told) {
    let told = Told::default();
    let note = Arc::clone(&told);
    let options = Options {
        on_disk_failed: Box::new(move |disk, error| {
            note.lock().push((disk, error.to_string()));
        }),
        ..options()
    };
    (options, told)
}

#[test]
fn a_failed_disk_is_told_of_once_and_by_name() {
    let media = volume(3);
    let (disks_now, plans) = faulty(&media);
    let (telling, told) = telling();
    let meta = Meta::open(disks_now, telling).unwrap();
    plans[1].die();
    let before = meta.mark();
    set(&meta, "a", "1");
    meta.sync().unwrap();
    set(&meta, "a", "2");
    meta.sync().unwrap();
    meta.checkpoint().unwrap();
    let told = told.lock();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, DiskId(1));
    assert!(told[0].1.contains("disk1"), "{}", told[0].1);
    assert_ne!(meta.mark().generation, before.generation);
}

#[test]
fn what_this_process_may_not_have_puts_a_checkpoint_off_and_harms_no_disk() {
    let opens = Operations::of(&[Operation::RandomOpen]);
    let creates = Operations::of(&[Operation::Create]);
    // On all disks, and on one while the others come further.
    for (operations, hit) in [
        (opens, 0..3),
        (opens, 1..2),
        (creates, 0..3),
        (creates, 1..2),
    ] {
        let media = volume(3);
        let (disks_now, plans) = faulty(&media);
        let options = Options {
            // A checkpoint begins a journal when it is twice as long as what it holds.
            journal_bytes: 1,
            on_disk_failed: Box::new(|disk, error| panic!("{disk}: {error}")),
            ..options()
        };
        let meta = Meta::open(disks_now, options).unwrap();
        set(&meta, "a", "1");
        meta.checkpoint().unwrap();
        for n in 0..50 {
            set(&meta, "n", &n.to_string());
            meta.sync().unwrap();
        }
        for plan in &plans[hit.clone()] {
            plan.add(Rule::new(operations, When::Always, Fault::Exhausted));
        }
        set(&meta, "a", "2");
        set(&meta, "b", "1");
        match meta.checkpoint() {
            Err(error) => assert!(error.is_own(), "{error}"),
            Ok(()) => panic!("{operations:?} of {hit:?} are not needed"),
        }
        set(&meta, "c", "1");
        meta.sync().unwrap();
        assert_eq!(get(&meta, "a").as_deref(), Some("2"));
        let after_a_kill = Meta::open(disks(&killed(&media)), super::options()).unwrap();
        assert_eq!(get(&after_a_kill, "c").as_deref(), Some("1"));
        plans.iter().for_each(|plan| plan.clear());
        set(&meta, "d", "1");
        meta.checkpoint().unwrap();
        assert_eq!(meta.online().len(), 3);
        meta.close().unwrap();
        drop(meta);
        for one in 0..3 {
            let alone = Options {
                read_only: true,
                ..super::options()
            };
            let after = Meta::open(some(&media, &[one]), alone).unwrap();
            let all = ["a", "b", "c", "d"].map(|name| get(&after, name));
            let all: Vec<_> = all.iter().map(|value| value.as_deref()).collect();
            assert_eq!(all, [Some("2"), Some("1"), Some("1"), Some("1")]);
        }
    }
}

#[test]
fn with_too_few_disks_left_it_is_read_only() {
    let media = volume(4);
    let (disks_now, plans) = faulty(&media);
    let meta = Meta::open(disks_now, options()).unwrap();
    plans[0].die();
    plans[1].die();
    set(&meta, "a", "1");
    meta.sync().unwrap();
    plans[2].die();
    set(&meta, "a", "2");
    assert!(matches!(
        meta.sync(),
        Err(MetaError::TooFewDisks {
            online: 1,
            total: 4
        })
    ));
    let refused: Result<()> = meta.update(|update| {
        update.put_setting(b"b", b"1");
        Ok(())
    });
    assert!(matches!(refused, Err(MetaError::Poisoned { .. })));
    assert!(meta.sync().is_err());
    assert_eq!(get(&meta, "a").as_deref(), Some("2"));
    let after = Meta::open(some(&killed(&media), &[2, 3]), options()).unwrap();
    assert!(get(&after, "a").is_some());
}

#[test]
fn a_disk_that_is_left_out_is_stale_afterwards() {
    let media = volume(3);
    let meta = open(&media);
    meta.leave_out(DiskId(0), &MetaError::Nothing);
    set(&meta, "a", "1");
    meta.sync().unwrap();
    assert_eq!(meta.online(), [DiskId(1), DiskId(2)]);
    let crashed = killed(&media);
    let after = Meta::open(some(&crashed, &[0]), options()).unwrap();
    assert!(after.is_read_only());
    assert_eq!(get(&after, "a"), None);
    let after = Meta::open(disks(&crashed), options()).unwrap();
    assert_eq!(get(&after, "a").as_deref(), Some("1"));
}

#[test]
fn reading_goes_on_from_another_disk() {
    let media = volume(3);
    let meta = open(&media);
    for n in 0..500 {
        set(&meta, &format!("k{n}"), "v");
    }
    meta.close().unwrap();
    drop(meta);
    for fault in [Fault::Io, Fault::Death] {
        let copies = killed(&media);
        let (disks_now, plans) = faulty(&copies);
        let meta = Meta::open(disks_now, options()).unwrap();
        // Whichever disk it reads from: every disk in turn.
        for plan in plans.iter().take(2) {
            plan.add(Rule::new(
                Operations::of(&[Operation::RandomRead]),
                When::Always,
                fault,
            ));
            let view = meta.view();
            for n in 0..500 {
                let name = format!("k{n}");
                assert!(view.setting(name.as_bytes()).unwrap().is_some());
            }
        }
    }
}

#[test]
fn a_schedule_of_random_faults_loses_nothing_answered() {
    for seed in 0..40 {
        let media = volume(3);
        let (disks_now, plans) = faulty(&media);
        let Ok(meta) = Meta::open(disks_now, small()) else {
            panic!("no fault yet");
        };
        // Two of three may fail; the third is well.
        for (n, plan) in plans.iter().enumerate() {
            if n as u64 != seed % 3 {
                for fault in [Fault::Io, Fault::Torn, Fault::Full] {
                    plan.add(Rule::new(Operations::ALL, When::Chance(3000), fault));
                }
            }
        }
        let mut answered = None;
        for n in 0..40u32 {
            let set: Result<()> = meta.update(|update| {
                update.put_setting(b"n", n.to_string().as_bytes());
                update.put_setting(n.to_string().as_bytes(), &[1; 200]);
                Ok(())
            });
            let synced = set.and_then(|()| {
                if n % 7 == 6 {
                    meta.checkpoint()
                } else {
                    meta.sync()
                }
            });
            match synced {
                Ok(()) => answered = Some(n),
                Err(_) => break,
            }
        }
        plans.iter().for_each(|plan| plan.clear());
        let after = Meta::open(disks(&without_power(&media, seed)), small());
        let after = after.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let found = get(&after, "n").and_then(|n| n.parse::<u32>().ok());
        assert!(found >= answered, "seed {seed}: {found:?} < {answered:?}");
        assert!(found <= answered.map(|n| n + 1), "seed {seed}");
    }
}

/// Writes of a database that is made anew or brought forward are dropped, at each place and for as long as may be. Opened again
/// such a database can be whole and older than it should be: what is read from it must not be taken for the newest, and changes
/// put on top would leave a gap in it, which a later mount would take for the truth.
#[test]
fn a_database_of_which_writes_were_dropped_has_no_gap_then_or_later() {
    let sound = volume(3);
    let meta = open(&sound);
    for n in 0..9 {
        set(&meta, &format!("a{n}"), "1");
        meta.checkpoint().unwrap();
    }
    drop(meta);
    let before = everything(&open(&killed(&sound)));
    let mut opened = 0;
    for which in [0, 2] {
        for (skip, times) in (0..24).flat_map(|skip| [(skip, 1), (skip, 4), (skip, 1000)]) {
            let case = format!("disk {which}, {skip}, {times}");
            let media = killed(&sound);
            media[which].remove(ObjectName::Database).unwrap();
            let (disks_now, plans) = faulty(&media);
            let writes = Operations::of(&[Operation::RandomWrite]);
            plans[which].add(Rule::new(
                writes,
                When::Count { skip, times },
                Fault::Dropped,
            ));
            // Refused it may be while the disk lies.
            if let Ok(meta) = Meta::open(disks_now, options()) {
                opened += 1;
                assert_eq!(everything(&meta), before, "{case}");
                set(&meta, "b", "1");
                meta.checkpoint().unwrap();
                plans[which].clear();
                set(&meta, "c", "1");
                meta.checkpoint().unwrap();
                let after = everything(&meta);
                for other in (0..3).filter(|other| *other != which) {
                    let media = killed(&media);
                    let meta = Meta::open(some(&media, &[which, other]), options()).unwrap();
                    assert_eq!(everything(&meta), after, "{case}, with {other}");
                }
            } else {
                assert_eq!(everything(&open(&killed(&media))), before, "{case}");
            }
        }
    }
    assert!(opened > 100, "{opened}");
}

/// Flips a bit in the middle of a disk's journal.
fn harm_journal(disk: &MemoryDisk) {
    let objects = disk.list().unwrap().into_iter();
    let journals = objects.filter(|(object, _)| matches!(object, ObjectName::Journal(_)));
    for (object, length) in journals {
        let mut byte = [0];
        disk.read_at(object, length / 2, &mut byte).unwrap();
        disk.restore(object, length / 2, &[byte[0] ^ 1]).unwrap();
    }
}

#[test]
fn a_disk_whose_copy_cannot_be_made_good_is_told_of_and_the_others_are_mended() {
    let media = volume(5);
    let (disks_now, plans) = faulty(&media);
    let (telling, told) = telling();
    let meta = Meta::open(disks_now, telling).unwrap();
    set(&meta, "a", "1");
    meta.sync().unwrap();
    for disk in [1, 2] {
        harm_journal(&media[disk]);
    }
    let remove = Operations::of(&[Operation::Remove]);
    let rule = Rule::new(remove, When::Always, Fault::Io);
    plans[1].add(rule.only(|object| object == ObjectName::Database));
    let report = meta.check_copies(true).unwrap();
    assert_eq!(report.repaired, [DiskId(2)]);
    assert!(
        report
            .bad
            .iter()
            .any(|(disk, why)| { *disk == DiskId(1) && why.contains("cannot be written anew") })
    );
    {
        let told = told.lock();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].0, DiskId(1));
        assert!(told[0].1.contains("disk1"), "{}", told[0].1);
    }
    assert_eq!(meta.online().len(), 4);
    // What is changed now goes into the databases that are left.
    set(&meta, "b", "1");
    meta.checkpoint().unwrap();
    let expected = everything(&meta);
    for left in [0, 2] {
        let media = killed(&media);
        for disk in &media {
            for (object, _) in disk.list().unwrap() {
                if object != ObjectName::Database {
                    disk.remove(object).unwrap();
                }
            }
        }
        let force = Options {
            force: true,
            ..options()
        };
        let alone = Meta::open(some(&media, &[left]), force).unwrap();
        assert_eq!(everything(&alone), expected, "disk {left}");
    }
    // It comes back.
    plans[1].clear();
    let disk: Arc<dyn Disk> = Arc::clone(&media[1]) as Arc<dyn Disk>;
    meta.join(DiskId(1), &disk).unwrap();
    assert_eq!(meta.online().len(), 5);
    assert_eq!(told.lock().len(), 1);
}

/// Otherwise a look at the copies would leave fewer disks than a volume may be written with.
#[test]
fn a_copy_is_left_as_it_is_where_the_others_are_too_few() {
    let media = volume(3);
    let meta = Meta::open(some(&media, &[0, 1]), options()).unwrap();
    set(&meta, "a", "1");
    meta.sync().unwrap();
    harm_journal(&media[1]);
    let report = meta.check_copies(true).unwrap();
    assert!(report.bad.iter().any(|(disk, _)| *disk == DiskId(1)));
    set(&meta, "b", "1");
    meta.sync().unwrap();
    assert_eq!(meta.online().len(), 2);
}

#[test]
fn a_disk_that_joins_is_filled_from_another_where_the_first_does_not_answer() {
    let reads = Operations::of(&[Operation::RandomRead]);
    let mut injected = 0;
    // Which one is asked first is not said.
    for fails in 0..3 {
        let media = volume(4);
        let meta = open(&media);
        for n in 0..500 {
            set(&meta, &format!("k{n}"), &"v".repeat(300));
        }
        meta.close().unwrap();
        drop(meta);
        let (disks_now, plans) = faulty(&media);
        let meta = Meta::open(disks_now, options()).unwrap();
        plans[fails].add(Rule::new(reads, When::Always, Fault::Io));
        let disk: Arc<dyn Disk> = Arc::clone(&media[3]) as Arc<dyn Disk>;
        meta.join(DiskId(3), &disk).unwrap();
        injected += plans[fails].injected();
        let expected = everything(&meta);
        let force = Options {
            force: true,
            ..options()
        };
        let alone = Meta::open(some(&killed(&media), &[3]), force).unwrap();
        assert_eq!(everything(&alone), expected, "disk {fails} fails");
    }
    assert!(injected > 0);
}

/// A disk whose database this process may not open lags behind a checkpoint, and then fails: the others go on.
#[test]
fn a_disk_that_fails_after_a_checkpoint_was_put_off_takes_no_other_with_it() {
    let media = volume(3);
    let (disks_now, plans) = faulty(&media);
    let (options, told) = telling();
    let meta = Meta::open(disks_now, options).unwrap();
    set(&meta, "a", "1");
    meta.checkpoint().unwrap();
    let opens = Operations::of(&[Operation::RandomOpen]);
    plans[1].add(Rule::new(opens, When::Always, Fault::Exhausted));
    set(&meta, "a", "2");
    assert!(meta.checkpoint().unwrap_err().is_own());
    assert_eq!(told.lock().len(), 0);
    plans[1].die();
    set(&meta, "b", "1");
    meta.sync().unwrap();
    meta.checkpoint().unwrap();
    set(&meta, "c", "1");
    meta.checkpoint().unwrap();
    assert_eq!(meta.online(), [DiskId(0), DiskId(2)]);
    meta.close().unwrap();
    drop(meta);
    for one in [0, 2] {
        let alone = Options {
            read_only: true,
            ..super::options()
        };
        let after = Meta::open(some(&media, &[one]), alone).unwrap();
        let all = ["a", "b", "c"].map(|name| get(&after, name));
        let all: Vec<_> = all.iter().map(|value| value.as_deref()).collect();
        assert_eq!(all, [Some("2"), Some("1"), Some("1")]);
    }
}

/// A disk that is left out at an open is faulty from then on, in later mounts too.
#[test]
fn what_this_process_may_not_have_ends_an_open_and_harms_no_disk() {
    for operation in [Operation::RandomOpen, Operation::Create, Operation::List] {
        let media = volume(3);
        let meta = open(&media);
        set(&meta, "a", "1");
        meta.close().unwrap();
        drop(meta);
        let (disks_now, plans) = faulty(&media);
        let operations = Operations::of(&[operation]);
        plans[1].add(Rule::new(operations, When::Always, Fault::Exhausted));
        let (options, told) = telling();
        match Meta::open(disks_now, options) {
            Err(error) => assert!(error.is_own(), "{operation:?}: {error}"),
            // Not asked for here.
            Ok(meta) => assert_eq!(meta.online().len(), 3, "{operation:?}"),
        }
        assert_eq!(told.lock().len(), 0, "{operation:?}");
        let again = open(&media);
        assert_eq!(get(&again, "a").as_deref(), Some("1"));
        assert_eq!(again.online().len(), 3);
    }
}

/// A disk that did not come as far as to take part knows nothing of what the others answer after that: alone it is another
/// history, and not an older state of theirs.
#[test]
fn a_join_that_fails_leaves_no_disk_in_the_generation_of_the_others() {
    let creates = Operations::of(&[Operation::Create]);
    let opens = Operations::of(&[Operation::RandomOpen]);
    let mut apart = 0;
    for (operations, skip) in [(creates, 0), (creates, 1), (opens, 1), (opens, 2)] {
        let media = volume(2);
        let (disks_now, plans) = faulty(&media);
        let disk = disks_now[1].1.clone().unwrap();
        let meta = Meta::open(disks_now, options()).unwrap();
        plans[1].die();
        set(&meta, "a", "1");
        meta.sync().unwrap();
        meta.checkpoint().unwrap();
        plans[1].revive();
        let when = When::Count { skip, times: 100 };
        plans[1].add(Rule::new(operations, when, Fault::Exhausted));
        if meta.join(DiskId(1), &disk).is_ok() {
            continue;
        }
        plans[1].clear();
        set(&meta, "a", "2");
        meta.sync().unwrap();
        let crashed = killed(&media);
        // Somebody has nothing but that disk, and goes on with it.
        let alone = Meta::open(
            some(&crashed, &[1]),
            Options {
                force: true,
                ..options()
            },
        );
        if let Ok(alone) = alone {
            set(&alone, "b", "1");
            alone.sync().unwrap();
        }
        let both = Meta::open(disks(&killed(&crashed)), options());
        match both {
            Err(MetaError::Diverged { .. }) => apart += 1,
            Ok(meta) => assert_eq!(get(&meta, "a"), Some("2".to_owned()), "after {skip}"),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(apart > 0, "it never had a part");
}
