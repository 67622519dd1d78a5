//! libvirt's saves: `virsh save`, around the page cache as well, `managedsave` and `dump`. Their header is rewritten when the rest
//! is there.

mod daemon;

use std::fs;
use std::path::{Path, PathBuf};

use self::daemon::{GUEST, Libvirt};
use super::{PATIENCE, SECONDS, assert_holds, assert_readable, assert_sorted, assert_written};
use crate::guests::image::{self, Kernel};
use crate::guests::{Scene, Work, health};
use crate::harness::volume::Volume;

const MEMORY_MIB: u64 = 512;

#[test]
fn libvirt_saves_and_restores_a_guest() {
    let _turn = image::exclusive("guest");
    let mut volume = Volume::mounted();
    volume.limit(SECONDS);
    let shared = volume.scratch.path().to_owned();
    let root = tempfile::tempdir().expect("a directory");
    let managed = volume.path("managed");
    fs::create_dir(&managed).expect("a directory");
    let scene = Scene::new(Kernel::V6_12, Work::Mixed, "");

    let libvirt = Libvirt::start(root.path(), &shared, &managed);
    let mut serial = libvirt.boot(scene.setup.kernel, MEMORY_MIB);
    scene.work_on_disks(&mut serial);
    libvirt.must(&["suspend", GUEST]);
    let memory = shared.join("memory");
    let order = format!(
        "pmemsave 0 {:#x} \"{}\"",
        MEMORY_MIB << 20,
        memory.display()
    );
    libvirt.must(&["qemu-monitor-command", "--hmp", GUEST, &order]);

    // A dump lets the guest stay; the saves end it, and it is restored to be saved again.
    let path = |name: &str| volume.path(name);
    let text = |path: &Path| path.display().to_string();
    libvirt.must(&["dump", "--memory-only", GUEST, &text(&path("core"))]);
    assert_holds(&path("core"), &memory);
    for (name, options) in [("save", &[] as &[&str]), ("around", &["--bypass-cache"])] {
        let to = text(&path(name));
        libvirt.must(&[&["save"], options, &[GUEST, &to]].concat());
        assert_holds(&path(name), &memory);
        assert_sorted(&path(name));
        libvirt.must(&[&["restore", "--paused"], options, &[&to]].concat());
    }
    libvirt.must(&["managedsave", "--running", GUEST]);
    let kept = managed.join(format!("{GUEST}.save"));
    assert_holds(&kept, &memory);
    drop(libvirt);

    let saves: Vec<PathBuf> = vec![path("core"), path("save"), path("around"), kept];
    let written: Vec<PathBuf> = saves
        .iter()
        .zip(0..)
        .map(|(save, number)| {
            let copy = shared.join(format!("written{number}"));
            fs::copy(save, &copy).expect("a copy");
            assert_written(save, &copy);
            copy
        })
        .collect();
    volume.umount();
    volume.disks[1].take_away();
    volume.disks[5].take_away();
    volume.mount();
    for (save, written) in saves.iter().zip(&written) {
        assert_readable(save, written);
    }

    // It starts from its managed save, which libvirt then removes, and is saved and restored by hand.
    let libvirt = Libvirt::start(root.path(), &shared, &managed);
    libvirt.must(&["start", GUEST]);
    assert!(!saves[3].exists(), "the managed save is still there");
    let mut serial = libvirt.serial();
    serial.try_run("", PATIENCE).expect("the guest goes on");
    serial.run("agent verify /m/ext4/written");
    let again = volume.path("again");
    libvirt.must(&["save", GUEST, &text(&again)]);
    drop(serial);
    libvirt.must(&["restore", "--running", &text(&again)]);
    let mut serial = libvirt.serial();
    let complaints = health::complaints(&mut serial, PATIENCE);
    assert!(
        complaints.is_empty(),
        "the guest is not well: {complaints:#?}"
    );
    libvirt.must(&["destroy", GUEST]);
}
