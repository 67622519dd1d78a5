//! The commands as an administrator uses them, mount(8) and fstab included.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Signal, kill_process};

use crate::harness::content::Outside;
use crate::harness::disks::TestDisk;
use crate::harness::process::{Outcome, run};
use crate::harness::volume::{Shape, Volume, binary};
use crate::harness::{content, mounts, wait_until};

/// Runs parsfs with words, in which CONFIG and MOUNTPOINT stand for the volume's.
fn parsfs(volume: &Volume, words: &str) -> Outcome {
    let place = |word| match word {
        "CONFIG" => volume.config.as_os_str().to_owned(),
        "MOUNTPOINT" => volume.mountpoint.as_os_str().to_owned(),
        word => word.into(),
    };
    volume.parsfs(words.split(' ').map(place))
}

/// Unmounts a volume that this test does not use any more. A child of another test that is just being started may have what
/// was open here, for a moment.
#[track_caller]
fn unmount_unused(volume: &Volume) {
    let begun = Instant::now();
    loop {
        let outcome = parsfs(volume, "umount MOUNTPOINT");
        let in_use = !outcome.success() && outcome.stderr.contains("is in use");
        if !in_use || begun.elapsed() > Duration::from_secs(10) {
            outcome.expect_success("umount");
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asserts that it failed with this exit code and named something on stderr.
#[track_caller]
fn expect_failure(outcome: &Outcome, code: i32, named: &str) {
    assert_eq!(outcome.status.code(), Some(code), "{outcome:?}");
    assert!(
        outcome.stderr.contains(named),
        "{named:?} is not named: {outcome:?}"
    );
}

#[test]
fn help_is_given_and_wrong_usage_is_told() {
    for words in [
        "--help",
        "init --help",
        "mount --help",
        "umount --help",
        "status --help",
        "inspect --help",
        "rescue --help",
    ] {
        let outcome = run(
            Command::new(binary()).args(words.split(' ')),
            Duration::from_secs(10),
        );
        assert!(
            outcome.success() && outcome.stdout.contains("Usage:"),
            "{words}: {outcome:?}"
        );
    }
    for words in ["", "frobnicate", "mount", "mount --no-such-option a b"] {
        let outcome = run(
            Command::new(binary()).args(words.split_whitespace()),
            Duration::from_secs(10),
        );
        assert_eq!(outcome.status.code(), Some(2), "{words:?}: {outcome:?}");
    }
}

#[test]
fn the_first_mount_of_a_newcomer() {
    let volume = Volume::unmade(&Shape::default());
    parsfs(&volume, "init CONFIG").expect_success("init");
    parsfs(&volume, "mount CONFIG MOUNTPOINT").expect_success("mount");
    // It serves when the command is back.
    content::write_file(&volume.path("file"), 1, 3_000_000).expect("a file right after the mount");
    let mount = mounts::on(&volume.mountpoint).expect("a mount");
    assert_eq!(mount.kind, "fuse.parsfs");
    unmount_unused(&volume);
    assert!(!volume.is_mounted());
    parsfs(&volume, "mount CONFIG MOUNTPOINT").expect_success("a second mount");
    content::check_file(&volume.path("file"), 1, 3_000_000).expect("the file after a remount");
    unmount_unused(&volume);
    expect_failure(&parsfs(&volume, "umount MOUNTPOINT"), 1, "mnt");
}

/// It may be that the disks are only not mounted, and a new volume on what lies below is no way to the old one.
#[test]
fn a_volume_that_is_not_there_is_looked_for_before_a_new_one_is_made() {
    let volume = Volume::unmade(&Shape::default());
    let refused = parsfs(&volume, "mount CONFIG MOUNTPOINT");
    expect_failure(&refused, 1, "mount their filesystems first; only if");
}

#[test]
fn wrong_configs_are_refused_by_the_key() {
    let volume = Volume::unmade(&Shape::default());
    let text = fs::read_to_string(&volume.config).expect("the config");
    let cases = [
        (text.replace("compression", "compresion"), "compresion"),
        (text.replace("4+2", "6+2"), "policy.critical"),
        (text.replace("4+2", "four"), "policy.critical"),
        (text.replace("zstd:1", "gzip"), "policy.compression"),
        (text.replace("disk6", "disk5"), "disk5"),
        (text.replace("[volume]", "[volumes]"), "volumes"),
    ];
    for (wrong, named) in cases {
        fs::write(&volume.config, wrong).expect("a wrong config");
        expect_failure(&parsfs(&volume, "init CONFIG"), 1, named);
    }
    assert!(
        volume
            .disks
            .iter()
            .all(|disk| fs::read_dir(&disk.path).expect("a disk").count() == 0),
        "a disk was written to"
    );
}

#[test]
fn disks_of_another_volume_are_refused_by_name() {
    let mut first = Volume::mounted();
    content::write_file(&first.path("file"), 1, 1_000_000).expect("a file");
    first.umount();
    expect_failure(&parsfs(&first, "init CONFIG"), 1, "disk1");

    // One disk swapped for one of another volume.
    let mut second = Volume::new(&Shape::default());
    let text = fs::read_to_string(&second.config).expect("the config");
    let own = second.disks[2].path.display().to_string();
    fs::write(
        &second.config,
        text.replace(&own, &first.disks[2].path.display().to_string()),
    )
    .expect("a config");
    match second.try_mount(&[]) {
        Err(why) => assert!(why.contains("disk3"), "the disk is not named: {why}"),
        Ok(()) => {
            let status = second.status().to_string();
            panic!("a disk of another volume is taken: {status}");
        }
    }
    first.mount();
    content::check_file(&first.path("file"), 1, 1_000_000)
        .expect("the volume that the disk belongs to");
}

#[test]
fn a_volume_has_one_writer() {
    let volume = Volume::mounted();
    let other = volume.scratch.directory("other");
    let outcome = volume.parsfs([
        "mount".as_ref(),
        volume.config.as_os_str(),
        other.as_os_str(),
        "--foreground".as_ref(),
    ]);
    assert!(!outcome.success(), "a second writer is let in");
    assert!(!outcome.stderr.is_empty());
    content::write_file(&volume.path("file"), 1, 1_000_000).expect("the first writer goes on");
}

/// umount(8) comes back while the daemon still commits.
#[test]
fn a_mount_waits_for_the_daemon_of_the_one_before() {
    let volume = Volume::new(&Shape {
        more: "\n[commit]\nmode = \"background\"".to_owned(),
        ..Shape::default()
    });
    // It is not taken for the one before, although it has the same name.
    let _other = Volume::mounted();
    parsfs(&volume, "mount CONFIG MOUNTPOINT").expect_success("mount");
    for round in 0..5 {
        content::write_file(&volume.path("file"), round, 60 << 20).expect("a file");
        // A child of another test that is just being started may have what was open here, for a moment.
        wait_until("nobody to use it", Duration::from_secs(10), || {
            let mut umount = Command::new("umount");
            let done = run(umount.arg(&volume.mountpoint), Duration::from_secs(60));
            assert!(done.success() || done.stderr.contains("busy"), "{done:?}");
            done.success()
        });
        parsfs(&volume, "mount CONFIG MOUNTPOINT").expect_success("mount, right after umount");
        content::check_file(&volume.path("file"), round, 60 << 20).expect("the file");
    }
    unmount_unused(&volume);
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let mut volume = Volume::mounted();
    content::write_file(&volume.path("file"), 1, 1_000_000).expect("a file");
    volume.umount();
    let seen = |volume: &Volume| -> Vec<Vec<u8>> {
        let files = volume
            .disks
            .iter()
            .flat_map(|disk| disk.files(crate::harness::disks::Kind::Any));
        files
            .map(|file| fs::read(file).expect("a disk's file"))
            .collect()
    };
    let before = seen(&volume);
    volume.mount_with(&["--read-only"]);
    content::check_file(&volume.path("file"), 1, 1_000_000).expect("reading");
    for result in [
        File::create(volume.path("new")).map(drop),
        fs::remove_file(volume.path("file")),
    ] {
        assert_eq!(
            result
                .expect_err("a change of a read-only mount")
                .raw_os_error(),
            Some(libc::EROFS)
        );
    }
    volume.umount();
    assert!(
        seen(&volume) == before,
        "a read-only mount wrote to the disks"
    );
}

#[test]
fn umount_waits_for_what_is_open() {
    let mut volume = Volume::mounted();
    let path = volume.path("open");
    let file = File::create(&path).expect("a file");
    content::write_range(&file, 1, 0, 5_000_000).expect("write");
    // As umount(8) does: busy is told, and nothing is harmed.
    expect_failure(&parsfs(&volume, "umount MOUNTPOINT"), 1, "mnt");
    content::write_range(&file, 1, 5_000_000, 1_000_000).expect("writing on");
    // Detached, it waits until the file is closed, and what was written is there.
    let closer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        content::close(file).expect("close");
    });
    parsfs(&volume, "umount --lazy MOUNTPOINT").expect_success("a lazy umount");
    closer.join().expect("closing");
    wait_until("the daemon to end", Duration::from_secs(30), || {
        !volume.serves()
    });
    volume.kill();
    volume.mount();
    content::check_file(&path, 1, 6_000_000).expect("what was written while it was unmounted");
}

/// Where no daemon tells that everything is committed, nobody is told that it is.
#[test]
fn umount_without_an_answer_is_no_success() {
    let mut volume = Volume::mounted();
    let path = volume.path("file");
    content::write_file(&path, 1, 1_000_000).expect("a file");
    let device = fs::metadata(&volume.mountpoint).expect("the mount").dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let ending = format!("-{major}.{minor}.sock");
    // Daemons that were killed left theirs behind: of this device's number no other one is mounted.
    let sockets = fs::read_dir("/run/parsfs").expect("the control sockets");
    let of_mount = sockets
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(&ending));
    let taken = of_mount
        .map(|socket| match fs::remove_file(socket.path()) {
            // Another mount may have taken a dead daemon's away.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.expect("taking the socket away"),
        })
        .count();
    assert!(taken > 0, "there is no socket of this mount");
    expect_failure(&parsfs(&volume, "umount MOUNTPOINT"), 1, "is not known");
    assert!(!volume.is_mounted());
    wait_until("the daemon to end", Duration::from_secs(30), || {
        !volume.serves()
    });
    volume.kill();
    volume.mount();
    content::check_file(&path, 1, 1_000_000).expect("the file");
}

/// After a kill the mount point answers ENOTCONN to all; mounting again must need nobody to clean up.
#[test]
fn a_mount_whose_daemon_died_is_mounted_over() {
    let volume = Volume::new(&Shape::default());
    parsfs(&volume, "mount CONFIG MOUNTPOINT").expect_success("mount");
    content::write_file(&volume.path("file"), 1, 1_000_000).expect("a file");
    let daemon = daemon_of(&volume);
    kill_process(daemon, Signal::KILL).expect("killing the daemon");
    wait_until("the daemon to be dead", Duration::from_secs(10), || {
        fs::read_dir(&volume.mountpoint).is_err()
    });
    parsfs(&volume, "mount CONFIG MOUNTPOINT").expect_success("mounting over a dead mount");
    content::check_file(&volume.path("file"), 1, 1_000_000).expect("the file");
    let kind = "fuse.parsfs";
    assert_eq!(
        mounts::all()
            .iter()
            .filter(|mount| mount.at == volume.mountpoint && mount.kind == kind)
            .count(),
        1
    );
    unmount_unused(&volume);
}

/// The daemon, by what it was started with: nothing else has this mount point among its arguments.
fn daemon_of(volume: &Volume) -> rustix::process::Pid {
    let mountpoint = volume.mountpoint.to_string_lossy().into_owned();
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let found = processes.filter_map(|entry| {
        let number: i32 = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).into_owned();
        words
            .split('\0')
            .any(|word| word == mountpoint)
            .then_some(number)
    });
    let all: Vec<i32> = found.collect();
    assert_eq!(all.len(), 1, "not one daemon: {all:?}");
    rustix::process::Pid::from_raw(all[0]).expect("a process id")
}

#[test]
fn status_tells_of_disks() {
    let mut volume = Volume::mounted();
    content::write_file(&volume.path("file"), 1, 5_000_000).expect("a file");
    let states = |volume: &Volume| -> Vec<String> {
        let status = volume.status();
        let disks = status["disks"].as_array().expect("disks").clone();
        disks
            .iter()
            .map(|disk| disk["state"].as_str().expect("a state").to_owned())
            .collect()
    };
    let healthy = states(&volume);
    assert_eq!(healthy.len(), 6);
    assert!(
        healthy.iter().all(|state| *state == healthy[0]),
        "{healthy:?}"
    );
    assert_eq!(volume.status()["files"]["files"], 1);
    volume.umount();
    assert_eq!(states(&volume), healthy, "the same without a mount");
    volume.disks[3].take_away();
    volume.mount();
    let degraded = states(&volume);
    assert_ne!(degraded[3], healthy[0], "a missing disk is not told of");
    assert_eq!(
        degraded
            .iter()
            .filter(|state| **state == healthy[0])
            .count(),
        5,
        "{degraded:?}"
    );
    parsfs(&volume, "status MOUNTPOINT").expect_success("status for people");
}

#[test]
fn status_tells_where_the_volume_is_mounted() {
    let mut volume = Volume::mounted();
    let mounted = |target: &str| -> serde_json::Value {
        let words = format!("status --json {target}");
        let told = parsfs(&volume, &words).expect_success("status").stdout;
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        told.get("mounted").expect("a word about it").clone()
    };
    let here = serde_json::json!({
        "mountpoint": volume.mountpoint,
        "pid": volume.daemon().as_raw_nonzero().get(),
        "read_only": false,
    });
    for target in ["MOUNTPOINT", "CONFIG"] {
        assert_eq!(mounted(target), here, "{target}");
    }
    volume.umount();
    assert!(volume.status()["mounted"].is_null());
    volume.mount_with(&["--read-only"]);
    assert_eq!(volume.status()["mounted"]["read_only"], true);
}

#[test]
fn inspect_tells_what_a_file_is_made_of() {
    let volume = Volume::mounted();
    let path = volume.path("file");
    content::write_file(&path, 1, 5_000_000).expect("a file");
    let inspect = |json: &[&str]| {
        let mut words = vec!["inspect".into(), path.as_os_str().to_owned()];
        words.extend(json.iter().map(|word| (*word).into()));
        volume.parsfs(words).expect_success("inspect").stdout
    };
    let told: serde_json::Value = serde_json::from_str(&inspect(&["--json"])).expect("JSON");
    assert_eq!(told["size"], 5_000_000);
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let disks = told["disks"].as_array().expect("disks");
    let data: u64 = disks.iter().map(|disk| number(&disk["data_bytes"])).sum();
    let parity: u64 = disks.iter().map(|disk| number(&disk["parity_bytes"])).sum();
    assert!(
        data > 1_000_000 && parity * 2 >= data,
        "data {data}, parity {parity}"
    );
    assert!(
        disks
            .iter()
            .filter(|disk| number(&disk["data_bytes"]) > 0)
            .count()
            >= 4,
        "{disks:?}"
    );
    assert!(!inspect(&[]).is_empty());
    let outside = volume.parsfs(["inspect".as_ref(), volume.config.as_os_str()]);
    expect_failure(&outside, 1, "volume.toml");
}

/// The volume is mounted elsewhere as well, and somebody writes there: whoever unmounts it here, or ends the daemon, has all of
/// that committed, and does not wait for him.
#[test]
fn what_is_written_in_a_mount_elsewhere_is_committed_by_an_unmount_and_a_signal() {
    const LENGTH: u64 = 3 << 20;
    const LONG: Duration = Duration::from_secs(60);
    for by_signal in [false, true] {
        let mut volume = Volume::mounted();
        let other = volume.scratch.directory("other");
        rustix::mount::mount_bind(&volume.mountpoint, &other).expect("a bind mount");
        let path = other.join("f");
        let mut file = Outside::begin(&path, 9, "notrunc").expect("dd");
        file.write(LENGTH).expect("written");
        let length = || fs::metadata(&path).map_or(0, |file| file.len());
        wait_until("dd", LONG, || length() == LENGTH);
        if by_signal {
            kill_process(volume.daemon(), Signal::TERM).expect("a signal");
            wait_until("what is written to be committed", LONG, || {
                let mut state = [0; 64];
                let length = rustix::fs::getxattr(&path, "user.parsfs.state", &mut state[..]);
                length.is_ok_and(|length| &state[..length] == b"protected")
            });
        } else {
            let unmounted = parsfs(&volume, "umount MOUNTPOINT").expect_success("umount");
            let left = other.display().to_string();
            assert!(unmounted.stderr.contains(&left), "{unmounted:?}");
        }
        volume.kill_daemon();
        unmount(&other, UnmountFlags::DETACH).expect("unmounted there");
        file.end().expect_err("the daemon is dead");
        volume.mount();
        content::check_file(&volume.path("f"), 9, LENGTH).expect("all of it");
    }
}

/// mount(8) finds its helper in /sbin and the helper finds parsfs in a PATH of its own; a mount namespace gives it one
/// without touching the machine.
fn with_mount_helper(volume: &Volume, script: &str) -> Outcome {
    let programs = volume.scratch.directory("bin");
    let link = programs.join("parsfs");
    if !link.exists() {
        std::os::unix::fs::symlink(binary(), &link).expect("a symlink to parsfs");
    }
    let script = format!(
        "set -eu
         mount --make-rprivate /
         mount --bind {} /usr/local/bin
         {script}",
        programs.display()
    );
    let scratch = volume.scratch.path();
    let words = ["--mount", "bash", "-c", &script];
    run(
        Command::new("unshare").args(words).current_dir(scratch),
        Duration::from_secs(60),
    )
}

#[test]
fn mount_8_mounts() {
    let volume = Volume::new(&Shape::default());
    let script = "
        mount -t fuse.parsfs -o noatime \"$PWD/volume.toml\" \"$PWD/mnt\"
        echo through mount > mnt/file
        umount mnt
        mount -t fuse.parsfs -o ro \"$PWD/volume.toml\" \"$PWD/mnt\"
        [ \"$(cat mnt/file)\" = 'through mount' ]
        if touch mnt/new 2>/dev/null; then echo 'ro is writable'; exit 1; fi
        parsfs umount mnt";
    with_mount_helper(&volume, script).expect_success("mount -t fuse.parsfs");
}

#[test]
fn an_fstab_line_mounts() {
    let volume = Volume::new(&Shape::default());
    let line = format!(
        "{} {} fuse.parsfs defaults,nofail,noatime,_netdev,x-systemd.requires=network.target 0 0\n",
        volume.config.display(),
        volume.mountpoint.display()
    );
    fs::write(volume.scratch.path().join("fstab"), line).expect("an fstab");
    let script = "
        mount -T fstab mnt
        echo from fstab > mnt/file
        parsfs umount mnt
        mount -T fstab mnt && [ \"$(cat mnt/file)\" = 'from fstab' ] && parsfs umount mnt";
    with_mount_helper(&volume, script).expect_success("mount by fstab");
}

/// A daemon that is stopped by its service manager commits like one that is unmounted.
#[test]
fn a_terminated_daemon_commits() {
    let mut volume = Volume::mounted();
    let path = volume.path("file");
    let file = File::create(&path).expect("a file");
    content::write_range(&file, 1, 0, 2_000_000).expect("write");
    content::close(file).expect("close");
    kill_process(volume.daemon(), Signal::TERM).expect("SIGTERM");
    wait_until("the daemon to end", Duration::from_secs(30), || {
        !volume.serves()
    });
    wait_until("the mount to go", Duration::from_secs(10), || {
        let _ = unmount(&volume.mountpoint, UnmountFlags::DETACH);
        !volume.is_mounted()
    });
    volume.kill();
    volume.mount();
    content::check_file(&path, 1, 2_000_000).expect("the file");
    assert!(volume.disks.iter().all(|disk| TestDisk::used(disk) > 0));
}

/// What daemons are told to read their config again by is no reason to unmount.
#[test]
fn a_daemon_takes_no_notice_of_a_hangup() {
    let volume = Volume::new(&Shape::default());
    parsfs(&volume, "mount CONFIG MOUNTPOINT").expect_success("mount");
    kill_process(daemon_of(&volume), Signal::HUP).expect("SIGHUP");
    std::thread::sleep(Duration::from_secs(2));
    content::write_file(&volume.path("file"), 1, 1_000_000).expect("a file after a hangup");
    unmount_unused(&volume);
}

#[test]
fn a_link_to_the_mount_point_does() {
    let mut volume = Volume::mounted();
    let link = volume.scratch.path().join("link");
    std::os::unix::fs::symlink("mnt", &link).expect("a link");
    let on_link = |words: &str| volume.parsfs([words.as_ref(), link.as_os_str()]);
    on_link("status").expect_success("status of a link");
    on_link("umount").expect_success("umount of a link");
    assert!(!volume.is_mounted());
    volume.kill_daemon();
}

#[test]
fn a_mount_over_its_own_disks_is_refused() {
    let volume = Volume::new(&Shape::default());
    let disk = &volume.disks[2].path;
    for at in [disk.as_path(), volume.scratch.path()] {
        let words = ["mount".as_ref(), volume.config.as_os_str(), at.as_os_str()];
        expect_failure(&volume.parsfs(words), 1, "it would cover disk");
        assert!(mounts::on(at).is_none());
    }
}

/// Whoever only has to mount a disk must not be sent to what cannot be undone.
#[test]
fn force_is_named_with_what_it_costs() {
    let volume = Volume::new(&Shape {
        disks: 3,
        critical: "1+2",
        ..Shape::default()
    });
    volume.disks[0].take_away();
    volume.disks[2].take_away();
    let mounted = parsfs(&volume, "mount CONFIG MOUNTPOINT").expect_success("mount");
    assert!(
        mounted.stderr.contains("Bring disks back") && mounted.stderr.contains("never be one"),
        "{mounted:?}"
    );
    unmount_unused(&volume);
}

/// With `dirsync` a name is durable when the call returns; without it the next second makes it so.
#[test]
fn dirsync_makes_names_durable() {
    let mut volume = Volume::new(&Shape::default());
    let mut told = BTreeMap::from([("dirsync", false), ("sync", false)]);
    // On a busy machine a round may take so long that the names were durable anyway: it tells nothing, and another does.
    for number in 10..50 {
        let Some((&options, _)) = told.iter().find(|(_, told)| !**told) else {
            return;
        };
        volume.mount_with(&["-o", options]);
        let path = |name: &str| volume.path(&format!("{name}{number}"));
        let begun = Instant::now();
        fs::create_dir(path("directory")).expect("mkdir");
        File::create(path("file")).expect("create");
        fs::hard_link(path("file"), path("link")).expect("link");
        fs::rename(path("link"), path("renamed")).expect("rename");
        fs::remove_file(path("file")).expect("unlink");
        std::os::unix::fs::symlink("x", path("symlink")).expect("symlink");
        told.insert(options, begun.elapsed() < Duration::from_millis(500));
        volume.kill();
        volume.mount();
        let names = fs::read_dir(&volume.mountpoint)
            .expect("a listing")
            .flatten();
        let mut names: Vec<String> = names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.ends_with(&number.to_string()))
            .collect();
        names.sort();
        let expected = ["directory", "renamed", "symlink"].map(|name| format!("{name}{number}"));
        assert_eq!(names, expected, "-o {options}");
        volume.umount();
    }
    panic!("no round was over in time: {told:?}");
}
