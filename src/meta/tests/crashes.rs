//! What was answered for is there after a crash; and what was not is there whole or not at all.

use super::*;
use std::sync::atomic::{AtomicU64, Ordering};

#[test]
fn what_was_synced_is_there_without_closing() {
    let media = volume(3);
    let meta = open(&media);
    set(&meta, "a", "1");
    meta.sync().unwrap();
    set(&meta, "a", "2");
    let after = open(&killed(&media));
    assert_eq!(get(&after, "a").as_deref(), Some("1"));
    assert_eq!(get(&meta, "a").as_deref(), Some("2"));
    meta.close().unwrap();
    assert!(matches!(
        meta.update(|_| Ok::<_, MetaError>(())),
        Err(MetaError::Poisoned { .. })
    ));
    drop(meta);
    let again = open(&media);
    assert_eq!(get(&again, "a").as_deref(), Some("2"));
}

/// Runs updates in pairs of keys that must be equal, with syncs, checkpoints and new journals in
/// between, and looks at the media after a crash at every step.
fn crash_everywhere(crash: impl Fn(&Media, u64) -> Media) {
    let media = volume(3);
    let small = || Options {
        journal_bytes: 2000,
        ..options()
    };
    let mut mounts = 0;
    for round in 0..4u64 {
        let meta = Meta::open(disks(&media), small()).unwrap();
        for step in 0..25u64 {
            let number = round * 100 + step;
            meta.update(|update| {
                update.put_setting(b"left", &number.to_le_bytes());
                update.put_setting(&step.to_le_bytes(), &[7; 50]);
                update.put_setting(b"right", &number.to_le_bytes());
                Ok::<_, MetaError>(())
            })
            .unwrap();
            let answered = step % 3 == 0;
            match step % 9 {
                6 => meta.checkpoint().unwrap(),
                _ if answered => meta.sync().unwrap(),
                _ => {}
            }
            let after = crash(&media, number);
            let after = Meta::open(disks(&after), small()).unwrap();
            let view = after.view();
            let value = |name: &[u8]| {
                let value = view.setting(name).unwrap()?;
                Some(u64::from_le_bytes(value.as_ref().try_into().unwrap()))
            };
            let found = value(b"left");
            assert_eq!(found, value(b"right"));
            let synced = number - step % 3;
            assert!(
                found >= Some(synced) && found <= Some(number),
                "{found:?} after {synced} was answered"
            );
            assert!(after.mounts() > mounts);
        }
        mounts = meta.mounts();
        if round % 2 == 0 {
            meta.close().unwrap();
        }
    }
}

#[test]
fn killed_at_every_step() {
    crash_everywhere(|media, _| killed(media));
}

#[test]
fn without_power_at_every_step() {
    crash_everywhere(without_power);
}

/// Stops at every call to a disk, also in the middle of a new journal, and takes the databases away too.
#[test]
fn the_journals_alone_are_enough_wherever_power_fails() {
    power_fails_at_every_call(1, 6);
    power_fails_at_every_call(2, 1);
}

fn power_fails_at_every_call(disks: u16, seeds: u64) {
    let fresh = volume(disks);
    for call in 0.. {
        let media = killed(&fresh);
        // One plan for all disks, so that they stop together.
        let plan = FaultPlan::new(0);
        plan.die_at(call);
        let stopping = media.iter().enumerate().map(|(n, disk)| {
            let inner = Arc::clone(disk) as Arc<dyn Disk>;
            let disk: Arc<dyn Disk> = Arc::new(FaultyDisk::new(inner, Arc::clone(&plan)));
            (DiskId(n as u16), Some(disk))
        });
        let small = Options {
            journal_bytes: 600,
            ..options()
        };
        let mut answered = None;
        if let Ok(meta) = Meta::open(stopping.collect(), small) {
            for n in 0..12 {
                let done = meta.update(|update| {
                    update.put_setting(b"n", n.to_string().as_bytes());
                    Ok::<_, MetaError>(())
                });
                let synced = match n % 4 {
                    3 => done.and_then(|()| meta.checkpoint()),
                    _ => done.and_then(|()| meta.sync()),
                };
                if synced.is_err() {
                    break;
                }
                answered = Some(n);
            }
        }
        let stopped = plan.is_dead();
        for seed in 0..seeds {
            let after = without_power(&media, call * seeds + seed);
            for disk in &after {
                disk.remove(crate::disk::ObjectName::Database).unwrap();
            }
            let found = get(&open(&after), "n").and_then(|n| n.parse::<i32>().ok());
            assert!(found >= answered, "call {call}: {found:?} < {answered:?}");
        }
        if !stopped {
            assert_eq!(answered, Some(11));
            return;
        }
    }
}

/// Crashes while other threads write, sync, checkpoint and begin journals.
#[test]
fn without_power_in_the_middle_of_everything() {
    for seed in 0..12 {
        let media = volume(3);
        let meta = Meta::open(
            disks(&media),
            Options {
                journal_bytes: 4000,
                checkpoint_bytes: 3000,
                flush_after: Duration::from_millis(1),
                checkpoint_after: Duration::from_millis(5),
                ..options()
            },
        )
        .unwrap();
        let answered = [const { AtomicU64::new(0) }; 3];
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (n, answered) in answered.iter().enumerate() {
                let (meta, stop) = (&meta, &stop);
                scope.spawn(move || {
                    for value in 1..u64::MAX {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        set(meta, &format!("t{n}"), &value.to_string());
                        meta.sync().unwrap();
                        answered.store(value, Ordering::SeqCst);
                    }
                });
            }
            for crash in 0..6 {
                std::thread::sleep(Duration::from_millis(7));
                let before: Vec<u64> = answered.iter().map(|a| a.load(Ordering::SeqCst)).collect();
                let after = open(&without_power(&media, seed * 100 + crash));
                for (n, least) in before.into_iter().enumerate() {
                    let found = get(&after, &format!("t{n}")).unwrap_or_default();
                    assert!(found.parse().unwrap_or(0) >= least, "seed {seed}");
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn many_that_sync_at_once_share_records() {
    let media = volume(2);
    let (disks, plans) = faulty(&media);
    let meta = Meta::open(disks, options()).unwrap();
    for plan in &plans {
        plan.add(crate::disk::Rule::new(
            crate::disk::Operations::of(&[crate::disk::Operation::Sync]),
            crate::disk::When::Always,
            // Longer than a busy machine keeps one of the threads from its turn.
            crate::disk::Fault::Delay(Duration::from_millis(30)),
        ));
    }
    let before = meta.mark().epoch.0;
    std::thread::scope(|scope| {
        for n in 0..16 {
            let meta = &meta;
            scope.spawn(move || {
                for m in 0..4 {
                    set(meta, &format!("{n}-{m}"), "x");
                    meta.sync().unwrap();
                }
            });
        }
    });
    let records = meta.mark().epoch.0 - before;
    assert!(records < 32, "{records} records for 64 syncs");
    let after = open(&killed(&media));
    assert!((0..16).all(|n| get(&after, &format!("{n}-3")).is_some()));
}

#[test]
fn a_change_that_nobody_syncs_is_durable_after_a_while() {
    let media = volume(2);
    let meta = Meta::open(
        disks(&media),
        Options {
            flush_after: Duration::from_secs(2),
            ..options()
        },
    )
    .unwrap();
    set(&meta, "a", "1");
    assert_eq!(get(&open(&killed(&media)), "a"), None);
    let begun = std::time::Instant::now();
    while get(&open(&without_power(&media, 1)), "a").is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "not durable");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn numbers_are_never_given_out_twice() {
    let media = volume(2);
    let mut given = std::collections::BTreeSet::new();
    let mut media = media;
    for seed in 0..5 {
        let meta = open(&media);
        for _ in 0..10 {
            assert!(given.insert(meta.new_number().unwrap()));
        }
        let next = without_power(&media, seed);
        drop(meta);
        media = next;
    }
    assert!(*given.first().unwrap() > ROOT.0);
}

#[test]
fn a_view_does_not_change() {
    let media = volume(2);
    let meta = open(&media);
    set(&meta, "a", "1");
    let before = meta.view();
    set(&meta, "a", "2");
    set(&meta, "b", "2");
    let between = meta.view();
    meta.checkpoint().unwrap();
    meta.update(|update| {
        update.delete(Key::setting(b"a"));
        assert_eq!(update.setting(b"a").unwrap(), None);
        Ok::<_, MetaError>(())
    })
    .unwrap();
    meta.checkpoint().unwrap();
    let settings = |view: &View| -> Vec<String> {
        view.scan(&Key::table_prefix(Table::Setting))
            .map(|found| String::from_utf8_lossy(&found.unwrap().1).into_owned())
            .filter(|value| value.len() == 1)
            .collect()
    };
    assert_eq!(settings(&before), ["1"]);
    assert_eq!(settings(&between), ["2", "2"]);
    assert_eq!(settings(&meta.view()), ["2"]);
    assert_eq!(between.setting(b"a").unwrap().unwrap()[..], *b"2");
}

#[test]
fn an_update_that_fails_leaves_nothing() {
    let media = volume(1);
    let meta = open(&media);
    let failed: Result<()> = meta.update(|update| {
        update.put_setting(b"a", b"1");
        Err(MetaError::Nothing)
    });
    assert!(failed.is_err());
    assert_eq!(get(&meta, "a"), None);
}

#[test]
fn real_directories_keep_it_too() {
    let directory = tempfile::tempdir().unwrap();
    let disk = |n: u16| -> Arc<dyn Disk> {
        let name = format!("disk{n}");
        let path = directory.path().join(&name);
        Arc::new(crate::disk::DirectoryDisk::create(&name, &path).unwrap())
    };
    let all = || (0..3).map(|n| (DiskId(n), Some(disk(n)))).collect();
    let new = (0..3).map(|n| (DiskId(n), disk(n))).collect();
    Meta::create(new, options(), |update| {
        update.make_root(0o755, 0, 0, Timestamp::default());
        Ok(())
    })
    .unwrap();
    let meta = Meta::open(all(), options()).unwrap();
    set(&meta, "a", "1");
    meta.sync().unwrap();
    drop(meta);
    let meta = Meta::open(all(), options()).unwrap();
    assert_eq!(get(&meta, "a").as_deref(), Some("1"));
    meta.close().unwrap();
    drop(meta);
    std::fs::remove_file(directory.path().join("disk1/meta.redb")).unwrap();
    let meta = Meta::open(all(), options()).unwrap();
    assert_eq!(get(&meta, "a").as_deref(), Some("1"));
    assert!(meta.view().inode(ROOT).unwrap().is_some());
    assert_eq!(meta.online().len(), 3);
}
