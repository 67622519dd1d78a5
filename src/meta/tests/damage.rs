//! Journals and databases that are not what was written.

use super::*;
use crate::disk::ObjectName;

fn journal(disk: &MemoryDisk) -> ObjectName {
    let all = disk.list().unwrap().into_iter().map(|(object, _)| object);
    all.filter(|object| matches!(object, ObjectName::Journal(_)))
        .max()
        .unwrap()
}

fn without_databases(media: &Media) -> Media {
    let media = killed(media);
    for disk in &media {
        disk.remove(ObjectName::Database).unwrap();
    }
    media
}

fn flip(disk: &MemoryDisk, object: ObjectName, at: u64, bit: u8) {
    let mut byte = [0];
    disk.read_at(object, at, &mut byte).unwrap();
    disk.restore(object, at, &[byte[0] ^ 1 << bit]).unwrap();
}

/// A volume whose journals hold an image and some records; the names set are 0 to 19.
fn with_records(count: u16) -> Media {
    let media = volume(count);
    let meta = open(&media);
    for n in 0..20 {
        set(&meta, &n.to_string(), "value");
        meta.sync().unwrap();
    }
    killed(&media)
}

/// How many of the names are there; they must be the first ones.
fn names(meta: &Meta) -> usize {
    let there: Vec<bool> = (0..20)
        .map(|n| get(meta, &n.to_string()).is_some())
        .collect();
    let count = there.iter().filter(|there| **there).count();
    assert!(there[..count].iter().all(|there| *there), "{there:?}");
    count
}

#[test]
fn journals_alone_rebuild_everything() {
    let media = with_records(3);
    let expected = everything(&open(&killed(&media)));
    let meta = open(&without_databases(&media));
    assert_eq!(everything(&meta), expected);
    let read_only = Meta::open(
        disks(&without_databases(&media)),
        Options {
            read_only: true,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(everything(&read_only), expected);
    let (rescued, report) = Meta::rescue(disks(&without_databases(&media)), options()).unwrap();
    assert_eq!(everything(&rescued), expected);
    assert!(report.is_complete());
    assert_eq!(report.rebuilt.len(), 3);
}

#[test]
fn a_journal_cut_off_anywhere_gives_the_records_before() {
    let media = with_records(1);
    let object = journal(&media[0]);
    let length = media[0].length(object).unwrap();
    let (mut fewest, mut before) = (20, None);
    // The image is needed in any case.
    for cut in (length - 1500..=length).rev() {
        let media = killed(&media);
        drop(media[0].resume(object, cut).unwrap());
        let Ok(meta) = Meta::open(disks(&media), options()) else {
            panic!("cut at {cut}");
        };
        let found = names(&meta);
        assert!(before.is_none_or(|before| found <= before && found + 1 >= before));
        before = Some(found);
        fewest = fewest.min(found);
    }
    assert!(fewest < 10);
}

#[test]
fn a_flipped_bit_in_one_journal_costs_nothing() {
    let media = with_records(3);
    let expected = everything(&open(&killed(&media)));
    let object = journal(&media[1]);
    let length = media[1].length(object).unwrap();
    for at in (0..length).step_by(7) {
        let media = without_databases(&media);
        flip(&media[1], object, at, (at % 8) as u8);
        // Two of the disks, so that the damaged one's records are needed for a majority of nothing.
        let meta = Meta::open(some(&media, &[1, 2]), options()).unwrap();
        assert_eq!(everything(&meta), expected, "at {at}");
        drop(meta);
        // And afterwards the journal is whole again.
        for disk in &media {
            disk.remove(ObjectName::Database).unwrap();
        }
        let alone = Meta::open(some(&media, &[1]), options()).unwrap();
        assert_eq!(everything(&alone), expected, "at {at}");
    }
}

#[test]
fn two_journals_damaged_in_different_places_complete_each_other() {
    let media = with_records(2);
    let expected = everything(&open(&killed(&media)));
    let object = journal(&media[0]);
    let length = media[0].length(object).unwrap();
    for seed in 0..40u64 {
        let media = without_databases(&media);
        flip(&media[0], object, length * (seed % 40) / 80, 3);
        flip(&media[1], object, length / 2 + length * (seed % 40) / 80, 3);
        let meta = open(&media);
        assert_eq!(everything(&meta), expected, "seed {seed}");
    }
}

#[test]
fn a_record_in_the_middle_that_nobody_has_is_told_and_rescue_keeps_the_rest() {
    let media = with_records(2);
    // Where the record of name 10 lies.
    let object = journal(&media[0]);
    let mut bytes = vec![0; media[0].length(object).unwrap() as usize];
    media[0].read_at(object, 0, &mut bytes).unwrap();
    let key = Key::setting(b"10");
    let at = bytes
        .windows(key.as_bytes().len())
        .position(|window| window == key.as_bytes())
        .unwrap();
    let damaged = without_databases(&media);
    for disk in &damaged {
        flip(disk, object, at as u64, 0);
    }
    let refused = Meta::open(disks(&damaged), options());
    assert!(matches!(refused, Err(MetaError::Unreadable { .. })));
    let (rescued, report) = Meta::rescue(disks(&damaged), options()).unwrap();
    assert_eq!(report.lost_transactions.len(), 1);
    let there: Vec<u32> = (0..20)
        .filter(|n| get(&rescued, &n.to_string()).is_some())
        .collect();
    assert_eq!(there, (0..20).filter(|n| *n != 10).collect::<Vec<_>>());
    drop(rescued);
    assert_eq!(everything(&open(&damaged)).len(), 1 + 19);
    // With any one database nothing is lost, and nothing need be rescued.
    media[0].remove(ObjectName::Database).unwrap();
    let meta = open(&media);
    assert_eq!(names(&meta), 20);
}

#[test]
fn an_image_with_a_hole_is_rescued_as_far_as_it_goes() {
    let media = volume(2);
    let meta = Meta::open(
        disks(&media),
        Options {
            journal_bytes: 100,
            ..options()
        },
    )
    .unwrap();
    for n in 0..3000 {
        set(&meta, &format!("k{n:05}"), &"x".repeat(300));
    }
    meta.close().unwrap();
    let damaged = without_databases(&media);
    for disk in &damaged {
        let object = journal(disk);
        flip(disk, object, 300_000, 1);
        // Which would have it.
        disk.remove(names_of(disk)).unwrap();
    }
    assert!(Meta::open(disks(&damaged), options()).is_err());
    let (rescued, report) = Meta::rescue(disks(&damaged), options()).unwrap();
    assert_eq!(report.lost_image_parts, 1);
    assert!(report.lost_transactions.is_empty());
    let left = everything(&rescued).len();
    assert!((1500..3000).contains(&left), "{left}");
}

#[test]
fn a_manifest_of_the_namespace_stands_in_for_an_image_with_a_hole() {
    let media = volume(2);
    let meta = Meta::open(
        disks(&media),
        Options {
            journal_bytes: 100,
            ..options()
        },
    )
    .unwrap();
    for n in 0..3000 {
        set(&meta, &format!("k{n:05}"), &"x".repeat(300));
    }
    meta.close().unwrap();
    let expected = everything(&meta);
    let damaged = without_databases(&media);
    for disk in &damaged {
        flip(disk, journal(disk), 300_000, 1);
    }
    assert!(Meta::open(disks(&damaged), options()).is_err());
    let (rescued, report) = Meta::rescue(disks(&damaged), options()).unwrap();
    assert!(report.is_complete() && report.from_names.is_some());
    assert_eq!(everything(&rescued), expected);
}

#[test]
fn damaged_databases_are_rebuilt() {
    let media = volume(3);
    let meta = open(&media);
    for n in 0..20 {
        set(&meta, &n.to_string(), &"v".repeat(1000));
    }
    meta.close().unwrap();
    let expected = everything(&meta);
    drop(meta);
    let length = media[0].length(ObjectName::Database).unwrap();
    for seed in 0..60u64 {
        let media = killed(&media);
        for (n, disk) in media.iter().enumerate() {
            let random = (seed + 1) * 0x9e37_79b9 * (n as u64 + 1);
            match seed % 4 {
                0 => flip(disk, ObjectName::Database, random % length, 2),
                1 => disk
                    .random_access(ObjectName::Database)
                    .unwrap()
                    .set_length(random % length)
                    .unwrap(),
                2 => disk
                    .restore(ObjectName::Database, random % (length - 512), &[0xa5; 512])
                    .unwrap(),
                _ => disk
                    .put(ObjectName::Database, &random.to_le_bytes().repeat(1000))
                    .unwrap(),
            }
        }
        let read_only = Meta::open(
            disks(&media),
            Options {
                read_only: true,
                ..options()
            },
        )
        .unwrap();
        assert_eq!(everything(&read_only), expected, "seed {seed}");
        let meta = open(&media);
        assert_eq!(everything(&meta), expected, "seed {seed}");
    }
}

#[test]
fn a_database_of_another_volume_is_not_believed() {
    let (media, other) = (with_records(2), volume(1));
    let mut bytes = vec![0; other[0].length(ObjectName::Database).unwrap() as usize];
    other[0]
        .read_at(ObjectName::Database, 0, &mut bytes)
        .unwrap();
    let options_of_other = Options {
        volume: VolumeId(99),
        ..options()
    };
    assert!(matches!(
        Meta::open(disks(&media), options_of_other),
        Err(MetaError::Nothing)
    ));
    media[0].put(ObjectName::Database, &bytes).unwrap();
    assert_eq!(names(&open(&media)), 20);
}

#[test]
fn a_value_that_goes_bad_is_read_from_another_disk_and_healed() {
    let media = volume(3);
    let meta = open(&media);
    set(&meta, "a", &"needle".repeat(20));
    // More than the database that is read from keeps in memory.
    for n in 0..3000 {
        set(&meta, &format!("big{n}"), &"v".repeat(10_000));
    }
    meta.close().unwrap();
    drop(meta);
    let meta = open(&media);
    everything(&meta);
    // Behind the back of the open database; whichever disk it reads from.
    let mut harmed = 0;
    for disk in &media[..1] {
        let mut bytes = vec![0; disk.length(ObjectName::Database).unwrap() as usize];
        disk.read_at(ObjectName::Database, 0, &mut bytes).unwrap();
        for at in memchr::memmem::find_iter(&bytes, "needleneedle") {
            flip(disk, ObjectName::Database, at as u64, 0);
            harmed += 1;
        }
    }
    assert!(harmed > 0);
    assert_eq!(get(&meta, "a"), Some("needle".repeat(20)));
    meta.close().unwrap();
    assert_eq!(meta.online().len(), 3);
    drop(meta);
    // Whichever disk is asked, by its database alone.
    for disk in &media {
        let object = journal(disk);
        disk.remove(object).unwrap();
    }
    for n in 0..3 {
        let meta = Meta::open(some(&killed(&media), &[n]), forced()).unwrap();
        assert_eq!(get(&meta, "a"), Some("needle".repeat(20)), "disk {n}");
    }
}

fn forced() -> Options {
    Options {
        force: true,
        ..options()
    }
}

/// Guards against redb's trust in what it reads: it panicked while it wrote, and once more when it was closed, or it
/// could have missed a key.
#[test]
fn a_database_that_is_damaged_while_it_is_open_is_made_anew() {
    for seed in 0..40u64 {
        let media = volume(3);
        let meta = open(&media);
        for n in 0..600 {
            set(&meta, &format!("k{n}"), &"v".repeat(40 + n % 900));
        }
        meta.checkpoint().unwrap();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
        let mut below = |limit: u64| {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (random >> 33) % limit
        };
        for round in 0..6 {
            // Any but one, which is more than a volume promises to survive.
            for disk in [&media[0], &media[(seed as usize % 2) + 1]] {
                let length = disk.length(ObjectName::Database).unwrap();
                for _ in 0..1 + below(30) {
                    flip(disk, ObjectName::Database, below(length), below(8) as u8);
                }
            }
            for n in 0..50 {
                set(&meta, &format!("k{}", below(700)), &format!("{round} {n}"));
            }
            everything(&meta);
            meta.checkpoint().unwrap();
            assert_eq!(meta.online().len(), 3, "seed {seed}, round {round}");
        }
        let expected = everything(&meta);
        meta.close().unwrap();
        drop(meta);
        for n in 0..3 {
            let alone = Meta::open(some(&killed(&media), &[n]), forced()).unwrap();
            assert_eq!(everything(&alone), expected, "seed {seed}, disk {n}");
        }
    }
}

/// What closing does beyond the last transaction, which is in the journals, asks the databases: any good one will do.
#[test]
fn a_volume_closes_over_a_database_that_is_damaged() {
    for seed in 0..2u64 {
        let media = volume(3);
        let meta = open(&media);
        for n in 0..4000 {
            set(&meta, &format!("k{n}"), &"v".repeat(6000 + n % 300));
        }
        meta.checkpoint().unwrap();
        let length = media[0].length(ObjectName::Database).unwrap();
        let mut at = seed * 97 % 4096;
        // Every page of it, the first with its two roots aside. More than the database's cache holds.
        while at + 4096 < length {
            at += 4096;
            flip(&media[0], ObjectName::Database, at, (seed % 8) as u8);
        }
        meta.close().unwrap();
        drop(meta);
        let reopened = open(&killed(&media));
        for n in 0..4000 {
            let value = get(&reopened, &format!("k{n}"));
            assert_eq!(value, Some("v".repeat(6000 + n % 300)), "seed {seed}");
        }
    }
}

fn names_of(disk: &MemoryDisk) -> ObjectName {
    let all = disk.list().unwrap().into_iter().map(|(object, _)| object);
    let names: Vec<ObjectName> = all
        .filter(|object| matches!(object, ObjectName::Names(_)))
        .collect();
    let [one] = names[..] else {
        panic!("{names:?}");
    };
    one
}

fn without_databases_and_journals(media: &Media) -> Media {
    let media = without_databases(media);
    for disk in &media {
        for (object, _) in disk.list().unwrap() {
            if matches!(object, ObjectName::Journal(_)) {
                disk.remove(object).unwrap();
            }
        }
    }
    media
}

#[test]
fn manifests_of_the_namespace_alone_rebuild_everything() {
    let media = volume(3);
    let mut first = None;
    for session in 0..4 {
        let meta = open(&media);
        for n in 0..300 {
            set(
                &meta,
                &format!("k{}", n * (session + 1) % 500),
                &"v".repeat(n + 900),
            );
            if n % 100 == 50 {
                meta.checkpoint().unwrap();
            }
        }
        meta.close().unwrap();
        // Each mount goes on with the object of the one before.
        assert_eq!(
            *first.get_or_insert(names_of(&media[1])),
            names_of(&media[1])
        );
    }
    let expected = everything(&open(&killed(&media)));
    let bare = || without_databases_and_journals(&media);
    assert!(matches!(
        Meta::open(disks(&bare()), options()),
        Err(MetaError::Nothing)
    ));
    let (rescued, report) = Meta::rescue(disks(&bare()), options()).unwrap();
    assert_eq!(everything(&rescued), expected);
    assert!(report.is_complete() && report.from_names.is_some());
    // One disk's is enough, and several complete each other.
    let alone = Options {
        force: true,
        ..options()
    };
    let (rescued, _) = Meta::rescue(some(&bare(), &[2]), alone).unwrap();
    assert_eq!(everything(&rescued), expected);
    let length = media[0].length(names_of(&media[0])).unwrap();
    for seed in 0..30 {
        let media = bare();
        for (n, disk) in media.iter().enumerate() {
            let third = length / 3;
            flip(
                disk,
                names_of(disk),
                n as u64 * third + seed * third / 30,
                2,
            );
        }
        let (rescued, report) = Meta::rescue(disks(&media), options()).unwrap();
        assert_eq!(everything(&rescued), expected, "seed {seed}");
        assert!(report.is_complete(), "seed {seed}: {report:?}");
        drop(rescued);
        // And what was rescued is whole for the next mount.
        assert_eq!(everything(&open(&media)), expected, "seed {seed}");
    }
}

#[test]
fn a_manifest_of_the_namespace_is_as_of_the_last_checkpoint_whatever_came_after() {
    let media = volume(3);
    let meta = open(&media);
    let mut checkpoints = Vec::new();
    for n in 0..6 {
        set(&meta, &format!("a{n}"), &"v".repeat(100_000 * n));
        meta.checkpoint().unwrap();
        checkpoints.push(everything(&meta));
        set(&meta, "after", "the checkpoint");
        meta.sync().unwrap();
    }
    // Cut off anywhere, it is as one of the checkpoints.
    let length = media[0].length(names_of(&media[0])).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for cut in (0..40).map(|n| length - n * length / 41) {
        let media = without_databases_and_journals(&media);
        for disk in &media {
            drop(disk.resume(names_of(disk), cut).unwrap());
        }
        let Ok((rescued, report)) = Meta::rescue(disks(&media), options()) else {
            continue;
        };
        if !report.is_complete() {
            continue;
        }
        let found = everything(&rescued);
        let which = checkpoints
            .iter()
            .position(|checkpoint| *checkpoint == found);
        seen.insert(which.unwrap_or_else(|| panic!("cut at {cut}")));
    }
    assert!(seen.len() >= 4 && seen.contains(&5), "{seen:?}");
    // A mount after a crash begins a new one, as the old one lacks what the journals have.
    let before = names_of(&media[0]);
    drop(meta);
    let meta = open(&media);
    meta.close().unwrap();
    assert_ne!(names_of(&media[0]), before);
    let expected = everything(&meta);
    let bare = without_databases_and_journals(&media);
    let (rescued, _) = Meta::rescue(disks(&bare), options()).unwrap();
    assert_eq!(everything(&rescued), expected);
}

#[test]
fn an_image_is_written_in_small_parts() {
    let media = volume(2);
    let meta = Meta::open(
        disks(&media),
        Options {
            journal_bytes: 1 << 20,
            // So that the one image is that of the closing.
            checkpoint_bytes: 1 << 40,
            ..options()
        },
    )
    .unwrap();
    for n in 0..300u32 {
        meta.update(|update| {
            for m in 0..100u32 {
                update.put_setting(&(n * 1000 + m).to_be_bytes(), &[n as u8; 200]);
            }
            Ok::<_, MetaError>(())
        })
        .unwrap();
    }
    meta.close().unwrap();
    let scan = super::super::journal::scan(&*media[0], VOLUME).unwrap();
    let [file] = scan.files.as_slice() else {
        panic!("one journal");
    };
    let image = file.image.as_ref().unwrap();
    assert!(image.is_whole() && image.parts.len() > 20);
    assert!(image.parts.values().all(|part| part.length < 300 << 10));
    assert!(file.is_sound());
    let alone = Meta::open(some(&without_databases(&media), &[0]), options()).unwrap();
    assert_eq!(everything(&alone), everything(&meta));
}

/// A flipped bit anywhere in a manifest of the namespace, one cut short, one that is gone: a look at the copies finds each,
/// mounted or not, and makes it good. What is whole is left alone.
#[test]
fn a_bad_manifest_of_the_namespace_is_found_and_written_anew() {
    let sound = volume(3);
    let meta = open(&sound);
    for n in 0..6 {
        set(&meta, &format!("k{n}"), &"v".repeat(3000));
        meta.checkpoint().unwrap();
    }
    meta.close().unwrap();
    drop(meta);
    let here = |media: &Media| -> Vec<(DiskId, Arc<dyn Disk>)> {
        let disks = disks(media).into_iter();
        disks.filter_map(|(id, disk)| Some((id, disk?))).collect()
    };
    assert_eq!(check(&here(&sound), VOLUME).unwrap(), []);
    let meta = open(&killed(&sound));
    assert_eq!(meta.check_copies(true).unwrap().bad, []);
    let length = sound[1].length(names_of(&sound[1])).unwrap();
    let mut begun_anew = 0;
    for n in 0..24 {
        let media = killed(&sound);
        let object = names_of(&media[1]);
        match n {
            0 => media[1].remove(object).unwrap(),
            1..8 => drop(media[1].resume(object, length * n / 8).unwrap()),
            _ => flip(&media[1], object, (n - 8) * length / 16, 3),
        }
        let found = check(&here(&media), VOLUME).unwrap();
        assert!(
            matches!(&found[..], [(DiskId(1), what)] if what.contains("manifest of the namespace")),
            "{n}: {found:?}"
        );
        let meta = open(&media);
        let report = meta.check_copies(true).unwrap();
        // A mount that sees it by the end of one has begun new ones before.
        begun_anew += u64::from(report.bad.is_empty());
        let bad: Vec<DiskId> = report.bad.iter().map(|(disk, _)| *disk).collect();
        assert_eq!(report.repaired, bad, "{n}");
        assert_eq!(meta.check_copies(true).unwrap().bad, [], "{n}");
        meta.close().unwrap();
        drop(meta);
        assert_eq!(check(&here(&media), VOLUME).unwrap(), [], "{n}");
    }
    assert!((1..16).contains(&begun_anew), "{begun_anew}");
}

/// A medium that gives bytes once and not again, and then again: nothing is given up for it.
#[test]
fn a_rescue_goes_on_where_a_record_cannot_be_read_a_second_time() {
    use crate::disk::{Fault, Operation, Operations, Rule, When};
    let media = with_records(2);
    let (disks, plans) = faulty(&media);
    for plan in &plans {
        let reads = Operations::of(&[Operation::Read]);
        // The look at a disk reads its short journal in one go.
        let second = When::Count { skip: 1, times: 1 };
        let rule = Rule::new(reads, second, Fault::Io);
        plan.add(rule.only(|object| matches!(object, ObjectName::Journal(_))));
    }
    let (rescued, report) = Meta::rescue(disks, options()).unwrap();
    assert!(plans.iter().all(|plan| plan.injected() == 1));
    assert!(report.is_complete());
    assert_eq!(names(&rescued), 20);
}

#[test]
fn transactions_are_kept_where_nothing_is_left_that_they_changed() {
    let media = without_databases(&with_records(2));
    for disk in &media {
        disk.remove(names_of(disk)).unwrap();
        // In the only part of the image.
        flip(disk, journal(disk), journal::HEADER as u64 + 5, 2);
    }
    let (rescued, report) = Meta::rescue(disks(&media), options()).unwrap();
    assert_eq!(names(&rescued), 20);
    assert_eq!(report.lost_image_parts, 1);
    assert!(report.lost_transactions.is_empty());
}

/// What a disk does not give now may be all there is.
#[test]
fn nothing_is_taken_for_useless_that_cannot_be_read() {
    use crate::disk::{Fault, Operation, Operations, Rule, When};
    let media = without_databases_and_journals(&with_records(2));
    let (disks, plans) = faulty(&media);
    for plan in &plans {
        let reads = Operations::of(&[Operation::Read]);
        plan.add(Rule::new(reads, When::Always, Fault::Io));
    }
    let refused = Meta::rescue(disks.clone(), options()).map(|_| ());
    assert!(matches!(refused, Err(MetaError::NotLookedAt { .. })));
    plans.iter().for_each(|plan| plan.clear());
    let (_, report) = Meta::rescue(disks, options()).unwrap();
    assert!(report.from_names.is_some());
    for disk in &media {
        for (object, _) in disk.list().unwrap() {
            disk.remove(object).unwrap();
        }
    }
    let nothing = Meta::rescue(super::disks(&media), options()).map(|_| ());
    assert!(matches!(nothing, Err(MetaError::NothingOfUse)));
}

/// The databases go on without the manifests of the namespace: what these lack is not passed over.
#[test]
fn a_step_that_was_left_out_begins_a_manifest_of_the_namespace_anew() {
    use crate::disk::{Fault, Operation, Operations, Rule, When};
    let media = volume(2);
    let (disks_now, plans) = faulty(&media);
    let meta = Meta::open(disks_now, options()).unwrap();
    set(&meta, "a", "1");
    meta.checkpoint().unwrap();
    set(&meta, "b", "2");
    let list = Operations::of(&[Operation::List]);
    plans[0].add(Rule::new(list, When::Always, Fault::Io));
    assert!(meta.check_copies(false).is_err());
    plans[0].clear();
    set(&meta, "c", "3");
    meta.checkpoint().unwrap();
    meta.close().unwrap();
    let expected = everything(&meta);
    let bare = without_databases_and_journals(&media);
    let (rescued, _) = Meta::rescue(disks(&bare), options()).unwrap();
    assert_eq!(get(&rescued, "b").as_deref(), Some("2"));
    assert_eq!(everything(&rescued), expected);
}
