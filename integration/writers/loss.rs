//! Disks that are lost at the worst moments, saves that are killed, and guests that are saved at once.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::json;

use super::{PATIENCE, Stand, assert_readable, assert_written, pairs, told as told_of};
use crate::guests::health;
use crate::guests::machine::{Machine, Way};
use crate::harness::process::shell;
use crate::harness::wait_until;

/// Every pair of the six disks: a stream and a memory file read back without it, and the guest goes on after some.
fn every_pair_lost(goes_on: impl Fn(usize) -> bool) {
    let mut stand = Stand::new();
    let (stream, memory) = (stand.volume.path("stream"), stand.volume.path("memory"));
    let mut guest = stand.guest();
    guest.save(&Way::stream(format!("file:{}", stream.display())));
    guest.quit();
    fs::copy(stand.memory(), &memory).expect("the copy");
    let written = stand.volume.scratch.path().join("stream");
    fs::copy(&stream, &written).expect("the stream");
    stand.volume.umount();
    for (number, [first, second]) in pairs().into_iter().enumerate() {
        stand.volume.disks[first].take_away();
        stand.volume.disks[second].take_away();
        // So that the disks that come back are no older than the others.
        stand.volume.mount_with(&["--read-only"]);
        assert_readable(&stream, &written);
        assert_readable(&memory, stand.memory());
        if goes_on(number) {
            stand.goes_on_from(&Way::stream(format!("file:{}", stream.display())));
        }
        stand.volume.umount();
        stand.volume.disks[first].bring_back();
        stand.volume.disks[second].bring_back();
    }
    stand.volume.mount();
    assert_written(&stream, &written);
    assert_written(&memory, stand.memory());
}

#[test]
fn any_two_disks_may_be_lost() {
    every_pair_lost(|_| false);
}

#[test]
fn a_guest_goes_on_without_any_two_disks_in_full() {
    every_pair_lost(|_| true);
}

/// The save goes on while two disks die, and holds what it should.
#[test]
fn two_disks_die_in_the_middle_of_a_save() {
    let mut stand = Stand::new();
    let scratch = stand.volume.scratch.path().to_owned();
    let path = stand.volume.path("stream");
    let mut guest = stand.guest();
    // The first part, and then it waits until the disks are gone.
    let uri = format!(
        "exec:tee {elsewhere} | (head -c 100000000; touch {scratch}/half; while [ ! -e {scratch}/gone ]; do sleep 0.05; done; cat) >{path}",
        elsewhere = scratch.join("stream").display(),
        scratch = scratch.display(),
        path = path.display(),
    );
    guest.begin_save(&Way::stream(uri));
    wait_until("half of the save", PATIENCE, || {
        scratch.join("half").exists()
    });
    stand.volume.disks[1].take_away();
    stand.volume.disks[4].take_away();
    fs::write(scratch.join("gone"), "").expect("a flag");
    guest.wait_saved().expect("the save");
    guest.quit();
    let written = scratch.join("stream");
    // QEMU does not wait for the programs at the other end of its pipe.
    wait_until("the end of the save", PATIENCE, || {
        fs::metadata(&path).map_or(0, |file| file.len())
            == fs::metadata(&written).map_or(1, |file| file.len())
    });
    assert_readable(&path, &written);
    stand.volume.remount();
    assert_readable(&path, &written);
    stand.goes_on_from(&Way::stream(format!("file:{}", path.display())));
}

/// Two disks die while QEMU reads the guest in. It reads on; or where it needs a page that nobody has any more it gets an error,
/// never a wrong byte, and a second try finds the file mended.
#[test]
fn two_disks_die_in_the_middle_of_a_resume() {
    let mut stand = Stand::new();
    let scratch = stand.volume.scratch.path().to_owned();
    let path = stand.volume.path("stream");
    let mut guest = stand.guest();
    guest.save(&Way::stream(format!("file:{}", path.display())));
    guest.quit();
    let written = scratch.join("stream");
    fs::copy(&path, &written).expect("the stream");
    stand.volume.remount();
    let uri = format!(
        "exec:(head -c 50000000; touch {scratch}/half; while [ ! -e {scratch}/gone ]; do sleep 0.05; done; cat) <{path}",
        scratch = scratch.display(),
        path = path.display(),
    );
    let memory = scratch.join("resumed");
    let setup = stand.scene.setup_with(&memory, false);
    let mut machine = Machine::wait_for_state(&setup, true);
    machine.begin_load(&Way::stream(uri));
    wait_until("half of the guest", PATIENCE, || {
        scratch.join("half").exists()
    });
    stand.volume.disks[0].take_away();
    stand.volume.disks[5].take_away();
    fs::write(scratch.join("gone"), "").expect("a flag");
    match machine.wait_loaded() {
        Ok(()) => {
            machine.go_on();
            machine.try_run("", PATIENCE).expect("the guest goes on");
            let complaints = health::complaints(&mut machine.serial, PATIENCE);
            assert!(
                complaints.is_empty(),
                "the guest is not well: {complaints:#?}"
            );
        }
        Err(why) => {
            println!("the first try ended with: {why}");
            drop(machine);
            assert_readable(&path, &written);
            stand.goes_on_from(&Way::stream(format!("file:{}", path.display())));
        }
    }
}

/// The same for a guest that runs in its memory file: what it had not yet touched when the disks died comes as it was.
#[test]
fn two_disks_die_under_a_guest_that_runs_in_its_memory_file() {
    let stand = Stand::critical();
    let path = stand.volume.path("memory");
    fs::copy(stand.memory(), &path).expect("the copy");
    let setup = stand.scene.setup_with(&path, true);
    let mut machine =
        Machine::load_from(&setup, &Way::state(&stand.scene.state())).expect("the guest is loaded");
    machine.go_on();
    machine.try_run("", PATIENCE).expect("the guest goes on");
    stand.volume.disks[2].take_away();
    stand.volume.disks[3].take_away();
    shell(
        stand.volume.scratch.path(),
        "echo 1 >/proc/sys/vm/drop_caches",
    );
    let complaints = health::complaints(&mut machine.serial, PATIENCE);
    assert!(
        complaints.is_empty(),
        "the guest is not well: {complaints:#?}"
    );
}

#[test]
fn two_guests_are_saved_at_once() {
    let mut stand = Stand::with_later();
    let later = stand.later();
    let paths = [stand.volume.path("first"), stand.volume.path("second")];
    let mut guests = [stand.guest(), stand.loaded(&later)];
    let mapped = Way::new(
        format!("file:{}", paths[1].display()),
        &["mapped-ram", "multifd"],
        json!({ "multifd-channels": 2, "direct-io": false }),
    );
    guests[0].begin_save(&Way::stream(format!("file:{}", paths[0].display())));
    guests[1].begin_save(&mapped);
    for guest in guests {
        let mut guest = guest;
        guest.wait_saved().expect("the save");
        guest.quit();
    }
    for path in &paths {
        assert_written(path, &stand.elsewhere(path));
    }
    stand.lose([3, 4]);
    for path in &paths {
        assert_readable(path, &stand.elsewhere(path));
    }
}

/// QEMU is killed in the middle of a save: the file is what had come, says that it is no whole save, and hurts nobody.
#[test]
fn a_save_that_is_killed_is_an_unfinished_file() {
    let mut stand = Stand::new();
    let scratch = stand.volume.scratch.path().to_owned();
    let path = stand.volume.path("killed");
    let whole = stand.volume.path("whole");
    fs::copy(stand.memory(), &whole).expect("the copy");
    let mut guest = stand.guest();
    let uri = format!(
        "exec:(head -c 60000000; touch {scratch}/half; while [ ! -e {scratch}/gone ]; do sleep 0.05; done) >{path}",
        scratch = scratch.display(),
        path = path.display(),
    );
    guest.begin_save(&Way::stream(uri));
    wait_until("half of the save", PATIENCE, || {
        scratch.join("half").exists()
    });
    drop(guest);
    fs::write(scratch.join("gone"), "").expect("a flag");
    wait_until("the end of the pipe", Duration::from_secs(30), || {
        fs::metadata(&path).is_ok_and(|file| file.len() == 60_000_000)
    });
    let told = stand
        .volume
        .parsfs(["classify".as_ref(), path.as_os_str(), "--json".as_ref()]);
    let told: serde_json::Value =
        serde_json::from_str(&told.expect_success("classify").stdout).expect("JSON");
    assert!(
        told["opaque"]
            .as_str()
            .is_some_and(|why| why.contains("unfinished") || why.contains("ends")),
        "{told}"
    );
    assert!(
        told_of(&path, "guest").starts_with("none"),
        "a guest in half a save"
    );
    let mut before = Vec::new();
    File::open(&path)
        .and_then(|mut file| file.read_to_end(&mut before))
        .expect("what had come");
    stand.lose([0, 1]);
    let mut after = vec![0; before.len()];
    File::open(&path)
        .and_then(|file| file.read_exact_at(&mut after, 0))
        .expect("what had come");
    assert!(
        before == after,
        "an unfinished save lost bytes with two disks"
    );
    assert_readable(&whole, stand.memory());
    fs::remove_file(&path).expect("it can be removed");
    let mut guest = stand.guest();
    guest.save(&Way::stream(format!("file:{}", path.display())));
    guest.quit();
    stand.volume.remount();
    assert_readable(&whole, stand.memory());
}
