//! A second fault while the first one is being made good: nothing is lost, and the work comes to its end.

use std::fs;

use crate::harness::content;
use crate::harness::disks::{self, Backing, Kind};
use crate::harness::random::Random;
use crate::harness::volume::{Shape, Volume};
use crate::harness::wait_until;
use crate::operate::{
    PATIENCE, becomes, check, done, fill, forget_cached, new_directory, paths, state_of,
    survives_any_two, task, text,
};

fn faulty() -> Volume {
    Volume::mounted_as(&Shape {
        backing: Backing::Faulty,
        ..Shape::default()
    })
}

/// A replacement at a slow rate that has moved something.
fn begin_to_replace(volume: &Volume, old: &str, new: &str) {
    done(
        volume,
        &["disk", "replace", "--rate", "400K", "--detach"],
        &[old, new],
    );
    wait_until("the replacement to move something", PATIENCE, || {
        task(volume)["moved"].as_u64() > Some(0)
    });
    assert_eq!(task(volume)["state"], "running", "{:#}", task(volume));
}

/// While a lost disk is being replaced a second one dies: everything is still there, and the replacement comes to its end.
/// After it a third may die, with the second still dead.
#[test]
fn a_second_disk_dies_during_a_replacement() {
    let volume = faulty();
    fill(&volume);
    volume.disks[1].faults().set(|faults| faults.dead = true);
    let new = new_directory(&volume, "new");
    begin_to_replace(&volume, "disk2", text(&new));
    volume.disks[4].faults().set(|faults| faults.dead = true);
    check(&volume, "in the middle of it");
    done(&volume, &["task", "--rate", "0"], &[]);
    done(&volume, &["task", "--wait"], &[]);
    assert_eq!(state_of(&volume, "disk2"), None, "{:#}", task(&volume));
    check(&volume, "with a second one dead");
    // The new one has all that the first had: one more may go.
    volume.disks[0].faults().set(|faults| faults.dead = true);
    forget_cached();
    check(&volume, "with a third one dead");
}

/// A second disk dies as soon as one that was away, and has lost what it had, is back and gets what it lacks. It gets all of
/// it: a third may die then, with the second still dead.
#[test]
fn a_second_disk_dies_during_a_rebuild() {
    let volume = faulty();
    fill(&volume);
    volume.disks[1].faults().set(|faults| faults.dead = true);
    content::write_file(&volume.path("meanwhile"), 9, 1 << 20).expect("written");
    wait_until("disk2 to be left alone", PATIENCE, || {
        let state = state_of(&volume, "disk2");
        matches!(state.as_deref(), Some("faulty" | "missing"))
    });
    volume.disks[1].faults().heal();
    let segments = volume.disks[1].files(Kind::Segment);
    assert!(!segments.is_empty());
    for segment in segments {
        let segment = fs::File::options().write(true).open(segment);
        segment.expect("a segment").set_len(0).expect("emptied");
    }
    done(&volume, &["disk", "online"], &["disk2"]);
    volume.disks[4].faults().set(|faults| faults.dead = true);
    check(&volume, "while disk2 is rebuilt");
    becomes(&volume, "disk2", "online");
    volume.disks[0].faults().set(|faults| faults.dead = true);
    forget_cached();
    check(&volume, "with disks 1 and 5 dead");
    content::check_file(&volume.path("meanwhile"), 9, 1 << 20).expect("with disks 1 and 5 dead");
}

/// What the others have of a dead disk's windows is bad in places, which nobody knew: the replacement goes around it, and a
/// scrub leaves a volume that survives any two losses.
#[test]
fn a_replacement_meets_bad_blocks_on_another_disk() {
    let mut volume = Volume::mounted();
    fill(&volume);
    volume.umount();
    let mut random = Random::new(5);
    let flips = volume.disks[3].flip_bits(Kind::Segment, 60, &mut random);
    assert!(flips.len() > 30);
    fs::remove_dir_all(&volume.disks[1].path).expect("rm -rf");
    fs::create_dir(&volume.disks[1].path).expect("the empty mount point");
    volume.mount();
    let new = new_directory(&volume, "new");
    done(&volume, &["disk", "replace"], &["disk2", text(&new)]);
    let last = task(&volume);
    assert_eq!(last["lost"], 0, "{last:#}");
    check(&volume, "after the replacement");
    done(&volume, &["scrub"], &[]);
    let scrub = task(&volume);
    assert_eq!(
        (&scrub["gone"], &scrub["problem_count"]),
        (&0.into(), &0.into())
    );
    nothing_bad_was_copied(&volume);
    let mut all = paths(&volume);
    all[1] = new;
    survives_any_two(&mut volume, &all);
}

/// The scrub that was just done, which read all of it, has found nothing bad on the new disk.
#[track_caller]
fn nothing_bad_was_copied(volume: &Volume) {
    let status = volume.status();
    let disks = status["disks"].as_array().expect("disks");
    let found = disks.iter().find(|disk| disk["name"] == "new");
    assert_eq!(found.expect("the new disk")["wrong_bytes"], 0, "{status:#}");
}

/// The disk that is replaced works, and is bad in places: the others give what it does not, and nothing bad is copied.
#[test]
fn a_replacement_meets_bad_blocks_on_the_disk_that_leaves() {
    let mut volume = Volume::mounted();
    fill(&volume);
    volume.umount();
    let mut random = Random::new(6);
    let flips = volume.disks[3].flip_bits(Kind::Segment, 60, &mut random);
    assert!(flips.len() > 30);
    volume.mount();
    let new = new_directory(&volume, "new");
    done(&volume, &["disk", "replace"], &["disk4", text(&new)]);
    done(&volume, &["scrub"], &[]);
    let scrub = task(&volume);
    // Not even parity, whose bad shards do not count against their disk.
    assert_eq!(
        (&scrub["bad"], &scrub["problem_count"]),
        (&0.into(), &0.into()),
        "{scrub:#}"
    );
    nothing_bad_was_copied(&volume);
    check(&volume, "after the replacement");
}

/// The new disk dies as well: the old one leaves all the same, its place is taken by yet another one, and any two may go.
#[test]
fn the_new_disk_dies_during_a_replacement() {
    let mut volume = Volume::mounted();
    fill(&volume);
    let new = new_directory(&volume, "new");
    begin_to_replace(&volume, "disk2", text(&new));
    disks::delete(&new);
    becomes(&volume, "new", "missing");
    check(&volume, "without the new disk");
    done(&volume, &["task", "--rate", "0"], &[]);
    done(&volume, &["task", "--wait"], &[]);
    check(&volume, "after the replacement");
    let newer = new_directory(&volume, "newer");
    done(&volume, &["disk", "replace"], &["new", text(&newer)]);
    assert_eq!(state_of(&volume, "new"), None);
    assert_eq!(state_of(&volume, "disk2"), None, "{:#}", task(&volume));
    check(&volume, "with a newer disk");
    let mut all = paths(&volume);
    all[1] = newer;
    survives_any_two(&mut volume, &all);
}

/// The daemon is killed in the middle of a replacement, and the next mount lacks another disk: it goes on without it.
#[test]
fn a_disk_is_gone_when_a_replacement_goes_on_after_a_crash() {
    let mut volume = Volume::mounted();
    fill(&volume);
    let new = new_directory(&volume, "new");
    begin_to_replace(&volume, "disk6", text(&new));
    volume.kill();
    volume.disks[2].take_away();
    volume.mount();
    check(&volume, "in the middle of it");
    done(&volume, &["task", "--rate", "0"], &[]);
    done(&volume, &["task", "--wait"], &[]);
    let last = task(&volume);
    assert_eq!(state_of(&volume, "disk6"), None, "{last:#}");
    // It goes on as what it was: the new disk still takes what the old one had.
    assert!(last["kind"]["replace"].is_object(), "{last:#}");
    check(&volume, "after the replacement");
    volume.umount();
    volume.disks[2].bring_back();
    volume.mount();
    becomes(&volume, "disk3", "online");
    let mut all = paths(&volume);
    all[5] = new;
    survives_any_two(&mut volume, &all);
}
