//! Disks that were away, and disks that went separate ways.

use super::*;
use crate::ids::Epoch;

fn set_on(media: &Media, here: &[usize], force: bool, name: &str, value: &str) {
    let meta = Meta::open(some(media, here), Options { force, ..options() }).unwrap();
    set(&meta, name, value);
    meta.sync().unwrap();
}

#[test]
fn a_stale_disk_is_brought_up_by_the_records_it_lacks() {
    let media = volume(3);
    set_on(&media, &[0, 1], false, "a", "1");
    set_on(&media, &[0, 1], false, "b", "2");
    let journal_before = media[2].list().unwrap();
    let meta = open(&media);
    let expected = everything(&meta);
    drop(meta);
    // The same journal, gone on with.
    let names = |list: &[(crate::disk::ObjectName, u64)]| -> Vec<crate::disk::ObjectName> {
        list.iter().map(|(name, _)| *name).collect()
    };
    assert_eq!(names(&media[2].list().unwrap()), names(&journal_before));
    let alone = Meta::open(
        some(&killed(&media), &[2]),
        Options {
            force: true,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(everything(&alone), expected);
}

#[test]
fn a_disk_that_was_away_too_long_gets_an_image() {
    let media = volume(3);
    let meta = Meta::open(
        some(&media, &[0, 1]),
        Options {
            journal_bytes: 100,
            ..options()
        },
    )
    .unwrap();
    for n in 0..100 {
        set(&meta, &format!("k{n}"), &"v".repeat(n));
        if n % 10 == 0 {
            meta.checkpoint().unwrap();
        }
    }
    meta.close().unwrap();
    drop(meta);
    let meta = open(&media);
    let expected = everything(&meta);
    assert_eq!(get(&meta, "k99"), Some("v".repeat(99)));
    drop(meta);
    let alone = Meta::open(
        some(&media, &[2]),
        Options {
            force: true,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(everything(&alone), expected);
}

#[test]
fn an_empty_disk_in_the_place_of_a_lost_one_is_filled() {
    let mut media = volume(3);
    set_on(&media, &[0, 1, 2], false, "a", "1");
    media[1] = Arc::new(MemoryDisk::new("disk1"));
    drop(open(&media));
    let alone = Meta::open(some(&media, &[1]), options()).unwrap();
    assert!(alone.is_read_only());
    assert_eq!(get(&alone, "a").as_deref(), Some("1"));
}

#[test]
fn separate_ways_are_refused_by_name() {
    let media = volume(3);
    set_on(&media, &[0], true, "a", "1");
    set_on(&media, &[1, 2], false, "a", "2");
    for read_only in [false, true] {
        let refused = Meta::open(
            disks(&media),
            Options {
                read_only,
                ..options()
            },
        );
        let Err(error @ MetaError::Diverged { .. }) = &refused else {
            panic!("{refused:?}");
        };
        let said = error.to_string();
        assert!(said.contains("disk disk0"), "{said}");
        assert!(said.contains("disks disk1 and disk2"), "{said}");
    }
    // Without the one that went off, all is well.
    let meta = Meta::open(some(&media, &[1, 2]), options()).unwrap();
    assert_eq!(get(&meta, "a").as_deref(), Some("2"));
}

#[test]
fn separate_ways_after_a_failure_are_refused() {
    // Disks 2 and 3 fail while a record is on its way; it is answered by 0 and 1. Then the other two are
    // mounted alone.
    let media = volume(4);
    let (disks_now, plans) = faulty(&media);
    let meta = Meta::open(disks_now, options()).unwrap();
    plans[2].die();
    plans[3].die();
    set(&meta, "a", "1");
    meta.sync().unwrap();
    let media = killed(&media);
    set_on(&media, &[2, 3], false, "b", "1");
    assert!(matches!(
        Meta::open(disks(&media), options()),
        Err(MetaError::Diverged { .. })
    ));
}

#[test]
fn a_record_that_nobody_was_answered_for_is_dropped() {
    use crate::disk::{Fault, Operation, Operations, Rule, When};
    // Only disk 0 takes the record.
    let media = volume(3);
    let (disks_now, plans) = faulty(&media);
    let meta = Meta::open(disks_now, options()).unwrap();
    for plan in &plans[1..] {
        plan.add(Rule::new(
            Operations::of(&[Operation::Append]),
            When::Always,
            Fault::Death,
        ));
    }
    set(&meta, "a", "never answered");
    assert!(meta.sync().is_err());
    let media = killed(&media);
    // All there: it may as well be kept.
    let all = killed(&media);
    assert!(get(&open(&all), "a").is_some());
    // The others go on without it, and when the disk comes back its record is dropped.
    set_on(&media, &[1, 2], false, "b", "1");
    let meta = open(&media);
    assert_eq!(get(&meta, "a"), None);
    assert_eq!(get(&meta, "b").as_deref(), Some("1"));
    let expected = everything(&meta);
    drop(meta);
    let alone = Meta::open(some(&media, &[0]), options()).unwrap();
    assert_eq!(everything(&alone), expected);
}

#[test]
fn with_fewer_than_half_it_is_read_only_unless_forced() {
    let media = volume(4);
    let half = Meta::open(some(&killed(&media), &[0, 1]), options()).unwrap();
    assert!(!half.is_read_only());
    let meta = Meta::open(some(&media, &[0]), options()).unwrap();
    assert!(meta.is_read_only());
    assert!(matches!(
        meta.update(|_| Ok::<_, MetaError>(())),
        Err(MetaError::ReadOnly)
    ));
    meta.sync().unwrap();
    meta.checkpoint().unwrap();
    drop(meta);
    set_on(&media, &[0], true, "a", "1");
}

#[test]
fn reading_only_writes_nothing() {
    let media = volume(3);
    let meta = open(&media);
    set(&meta, "a", "1");
    meta.sync().unwrap();
    // One disk is stale, one has a torn end, one no database.
    let media = killed(&media);
    let number = |disk: &MemoryDisk| {
        disk.list()
            .unwrap()
            .into_iter()
            .map(|(object, _)| object)
            .find(|object| matches!(object, crate::disk::ObjectName::Journal(_)))
            .unwrap()
    };
    let journal = number(&media[1]);
    let length = media[1].length(journal).unwrap();
    drop(media[1].resume(journal, length - 3).unwrap());
    media[2].remove(crate::disk::ObjectName::Database).unwrap();
    let (disks_now, plans) = faulty(&media);
    for plan in &plans {
        plan.add(crate::disk::Rule::new(
            crate::disk::Operations::WRITES,
            crate::disk::When::Always,
            crate::disk::Fault::Io,
        ));
        plan.add(crate::disk::Rule::new(
            crate::disk::Operations::of(&[crate::disk::Operation::RandomOpen]),
            crate::disk::When::Always,
            crate::disk::Fault::Io,
        ));
    }
    let meta = Meta::open(
        disks_now,
        Options {
            read_only: true,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(get(&meta, "a").as_deref(), Some("1"));
    meta.close().unwrap();
    drop(meta);
    assert!(plans.iter().all(|plan| plan.injected() == 0));
}

#[test]
fn new_metadata_is_not_put_over_old() {
    let media = volume(1);
    let disk = Arc::clone(&media[0]) as Arc<dyn Disk>;
    let refused = Meta::create(vec![(DiskId(0), disk)], options(), |_| Ok(()));
    assert!(matches!(refused, Err(MetaError::NotEmpty { disk }) if disk == "disk0"));
    let empty: Disks = vec![(DiskId(0), Some(Arc::new(MemoryDisk::new("x"))))];
    assert!(matches!(
        Meta::open(empty, options()),
        Err(MetaError::Nothing)
    ));
}

/// Disk 0 took a record of "a" that nobody was answered for, and the others went on without it and set "b". Gives the
/// epoch of a record before that, of "before", and that of the unanswered one.
fn with_an_unanswered_tail() -> (Media, u64, u64) {
    use crate::disk::{Fault, Operation, Operations, Rule, When};
    let media = volume(3);
    let (disks_now, plans) = faulty(&media);
    let meta = Meta::open(disks_now, options()).unwrap();
    set(&meta, "before", "answered");
    meta.sync().unwrap();
    let before = meta.mark().epoch.0;
    for plan in &plans[1..] {
        let appends = Operations::of(&[Operation::Append]);
        plan.add(Rule::new(appends, When::Always, Fault::Death));
    }
    set(&meta, "a", "never answered");
    assert!(meta.sync().is_err());
    let media = killed(&media);
    set_on(&media, &[1, 2], false, "b", "1");
    (killed(&media), before, before + 1)
}

/// Has only the journals left, and of them no record of these epochs but on a disk that is spared.
fn lose(media: &Media, epochs: &[u64], spared: Option<usize>) {
    use crate::disk::ObjectName;
    for (number, disk) in media.iter().enumerate() {
        for (object, _) in disk.list().unwrap() {
            if !matches!(object, ObjectName::Journal(_)) {
                disk.remove(object).unwrap();
            }
        }
        let scan = super::super::journal::scan(&**disk, VOLUME).unwrap();
        let transactions = scan.files.iter().flat_map(|file| &file.transactions);
        let lost = transactions.filter(|t| epochs.contains(&t.epoch.0));
        for place in lost.filter_map(|t| t.place) {
            if spared != Some(number) {
                disk.restore(place.object, place.offset, b"lost").unwrap();
            }
        }
    }
}

#[test]
fn a_rescue_drops_a_record_that_nobody_was_answered_for() {
    let (sound, before, tail) = with_an_unanswered_tail();
    let case = |lost: &[u64]| {
        let media = killed(&sound);
        lose(&media, lost, Some(0));
        // The record before has to be lost everywhere: otherwise there is nothing to be rescued.
        lose(&media, &[before], None);
        Meta::rescue(disks(&media), options()).unwrap()
    };
    // The others' record of that epoch is there, which ended the generation; or only the one behind it, which tells what
    // came before; or neither.
    for lost in [&[][..], &[tail], &[tail, tail + 1]] {
        let (rescued, report) = case(lost);
        assert_eq!(get(&rescued, "a"), None, "{lost:?}");
        assert_eq!(get(&rescued, "b").as_deref(), Some("1"), "{lost:?}");
        let last = before + lost.len() as u64;
        assert_eq!(report.lost_transactions, [Epoch(before)..=Epoch(last)]);
    }
}

#[test]
fn a_rescue_keeps_what_comes_before_a_lost_end_of_its_generation() {
    let (media, before, tail) = with_an_unanswered_tail();
    lose(&media, &[tail, tail + 1], None);
    let (rescued, report) = Meta::rescue(some(&media, &[1, 2]), options()).unwrap();
    assert_eq!(get(&rescued, "before").as_deref(), Some("answered"));
    assert_eq!(get(&rescued, "b").as_deref(), Some("1"));
    let lost = [Epoch(before + 1)..=Epoch(before + 2)];
    assert_eq!(report.lost_transactions, lost);
}

/// Guards against a walk from number to number: it would not come to an end.
#[test]
fn a_record_with_a_number_that_cannot_be_is_no_end_of_the_world() {
    use super::super::history::EPOCH_MAX;
    use super::super::journal::{Kind, Record};
    for epoch in [EPOCH_MAX.0 - 100, EPOCH_MAX.0, EPOCH_MAX.0 + 1, u64::MAX] {
        let media = volume(2);
        let meta = open(&media);
        set(&meta, "a", "1");
        meta.close().unwrap();
        let generation = meta.mark().generation;
        drop(meta);
        for disk in &media {
            let scan = super::super::journal::scan(&**disk, VOLUME).unwrap();
            let file = scan.files.last().unwrap();
            let record = Record {
                kind: Kind::Transaction,
                sequence: 0,
                epoch: Epoch(epoch),
                generation,
                previous: 1,
                volume: VOLUME,
            };
            let (header, _) = record.header(b"");
            let object = crate::disk::ObjectName::Journal(file.number);
            let mut appender = disk.resume(object, file.length).unwrap();
            appender.append(&[&header]).unwrap();
            appender.sync().unwrap();
        }
        let rescued = Meta::rescue(disks(&killed(&media)), options());
        match rescued {
            Ok((rescued, report)) => {
                assert!(epoch != EPOCH_MAX.0, "{epoch}");
                assert_eq!(get(&rescued, "a").as_deref(), Some("1"), "{epoch}");
                // The number is believed as far as it goes.
                assert_eq!(report.is_complete(), epoch > EPOCH_MAX.0, "{epoch}");
            }
            Err(error) => {
                assert!(matches!(error, MetaError::EpochsUsedUp), "{error}");
                assert_eq!(epoch, EPOCH_MAX.0);
            }
        }
    }
}
