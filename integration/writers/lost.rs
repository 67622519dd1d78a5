//! What is read of a saved guest of which two disks are gone, by each of the ways of `lost=`: mended, its guest goes on and
//! is well; as zeros, it is seen to go wrong; as errors, it is not loaded at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::view::{self, Reading};
use super::{Stand, assert_written};
use crate::guests::health;
use crate::guests::machine::{Machine, Way};

/// How long a guest that goes wrong may take for one order.
const WRONG: Duration = Duration::from_secs(60);

fn state(stand: &Stand, path: &Path) -> String {
    let told = stand
        .volume
        .parsfs(["inspect".as_ref(), "--json".as_ref(), path.as_os_str()]);
    let told: serde_json::Value =
        serde_json::from_str(&told.expect_success("inspect").stdout).expect("JSON");
    println!(
        "{}: {}, lost {}",
        path.display(),
        told["state"],
        told["lost"]
    );
    told["state"].as_str().expect("a state").to_owned()
}

/// What is wrong with the guest that goes on from the file, as far as it goes on.
fn wrong(stand: &Stand, way: &Way) -> Vec<String> {
    let memory = stand.volume.scratch.path().join("resumed");
    let mut machine = Machine::wait_for_state(&stand.scene.setup_with(&memory, false), true);
    machine.begin_load(way);
    if let Err(why) = machine.wait_loaded() {
        return vec![format!("not loaded: {why}")];
    }
    machine.go_on();
    match machine.try_run("", WRONG) {
        Ok(_) => health::complaints(&mut machine.serial, WRONG),
        Err(text) => vec![format!("it does not go on: {text}")],
    }
}

/// The guest, saved into the mount as a stream.
fn saved(stand: &Stand) -> (PathBuf, Way) {
    let path = stand.volume.path("stream");
    let way = Way::stream(format!("file:{}", path.display()));
    let mut guest = stand.guest();
    guest.save(&way);
    guest.quit();
    (path, way)
}

#[track_caller]
fn assert_mended(path: &Path, written: &Path) {
    match view::after_loss(path, written).expect("mended") {
        Reading::Mended { lost, edited } => {
            assert!(lost > 1000 && edited > 1000, "{lost} {edited}")
        }
        Reading::Written => panic!("nothing was lost with two of six disks"),
    }
}

#[test]
fn a_guest_goes_on_mended_and_not_from_zeros_or_errors() {
    let mut stand = Stand::new();
    let (path, way) = saved(&stand);
    let written = stand.volume.scratch.path().join("written");
    fs::copy(&path, &written).expect("the stream");
    assert_eq!(state(&stand, &path), "protected");

    stand.lose([1, 4]);
    assert_mended(&path, &written);
    assert_eq!(state(&stand, &path), "mended");
    stand.goes_on_from(&way);

    stand.volume.umount();
    stand.volume.mount_with(&["-o", "lost=error"]);
    let error = fs::read(&path).expect_err("lost bytes are errors");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert_eq!(state(&stand, &path), "damaged");
    let complaints = wrong(&stand, &way);
    assert!(
        complaints.iter().any(|why| why.starts_with("not loaded")),
        "{complaints:?}"
    );

    stand.volume.umount();
    stand.volume.mount_with(&["-o", "lost=zero"]);
    let (zeros, original) = (
        fs::read(&path).expect("zeros"),
        fs::read(&written).expect("written"),
    );
    let differ = zeros.iter().zip(&original).filter(|(a, b)| a != b);
    let (mut count, mut others) = (0, 0);
    for (zero, _) in differ {
        count += 1;
        others += usize::from(*zero != 0);
    }
    assert!(count > 1_000_000, "{count} bytes differ");
    assert_eq!(others, 0, "bytes differ that are not zeros");
    let complaints = wrong(&stand, &way);
    assert!(!complaints.is_empty(), "page cache of zeros went unnoticed");
    println!("from zeros: {complaints:#?}");

    stand.volume.umount();
    for disk in [1, 4] {
        stand.volume.disks[disk].bring_back();
    }
    stand.volume.mount();
    assert_written(&path, &written);
    assert_eq!(state(&stand, &path), "protected");
}

/// The kernel keeps pages of a file that was read while all disks were there; with two of them gone, deleted under the daemon,
/// the next open sees none of these beside mended ones.
#[test]
fn a_guest_goes_on_when_disks_are_deleted_under_the_mount() {
    let stand = Stand::new();
    let (path, way) = saved(&stand);
    let written = stand.volume.scratch.path().join("written");
    // Read before, and so kept by the kernel.
    fs::copy(&path, &written).expect("the stream");
    for disk in [0, 3] {
        stand.volume.disks[disk].take_away();
    }
    assert_mended(&path, &written);
    stand.goes_on_from(&way);
}
