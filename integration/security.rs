//! What the daemon may do, and what others may do with the volume: the daemon's own rights, files on the disks, and
//! permissions in the mount.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::harness::content;
use crate::harness::volume::Volume;

/// `nobody` on Debian.
const NOBODY: u32 = 65534;

/// CAP_DAC_OVERRIDE and CAP_SYS_ADMIN, as bits of /proc/PID/status.
const KEPT: u64 = 1 << 1 | 1 << 21;

#[test]
fn the_daemon_gives_up_what_it_does_not_need() {
    let mut volume = Volume::mounted();
    content::write_file(&volume.path("a"), 1, 300_000).expect("writing");
    let process = volume.daemon().as_raw_nonzero();
    // Threads have rights of their own.
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("the daemon's threads");
    let mut seen = 0;
    for thread in threads {
        let status = thread.expect("a thread").path().join("status");
        let Ok(status) = fs::read_to_string(status) else {
            // It has ended meanwhile.
            continue;
        };
        let fields: BTreeMap<&str, &str> = status
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name, value.trim()))
            .collect();
        let bits = |name: &str| u64::from_str_radix(fields[name], 16).expect("a number");
        assert_eq!(fields["NoNewPrivs"], "1");
        assert_eq!(bits("CapInh"), 0);
        assert_eq!(bits("CapAmb"), 0);
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(bits(set) & !KEPT, 0, "{set} of {}", fields["Name"]);
        }
        seen += 1;
    }
    assert!(seen > 5, "{seen} threads");
    // With what is left it still unmounts by itself, which a signal asks it to do.
    rustix::process::kill_process(volume.daemon(), rustix::process::Signal::TERM)
        .expect("a signal");
    crate::harness::wait_until(
        "the daemon's end",
        std::time::Duration::from_secs(60),
        || !volume.serves(),
    );
    assert!(!volume.is_mounted());
}

#[test]
fn nobody_else_can_read_the_disks() {
    let mut volume = Volume::mounted();
    content::write_file(&volume.path("large"), 1, 9_000_000).expect("writing");
    content::write_file(&volume.path("small"), 2, 900).expect("writing");
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(volume.path("large"), open).expect("chmod");
    volume.umount();
    let mut files = 0;
    for disk in &volume.disks {
        walk(&disk.path, &mut |path| {
            let metadata = fs::symlink_metadata(path).expect("stat");
            let mode = metadata.permissions().mode() & 0o7777;
            let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode, expected, "{} is {mode:o}", path.display());
            files += 1;
        });
    }
    assert!(files > 20, "{files} files");
}

fn walk(directory: &Path, see: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(directory).expect("list") {
        let path = entry.expect("an entry").path();
        see(&path);
        if path.is_dir() {
            walk(&path, see);
        }
    }
}

/// Whether `nobody` can do it.
fn nobody(program: &str, arguments: &[&Path]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).uid(NOBODY).gid(NOBODY);
    command.stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::null());
    command.status().expect("a program").success()
}

#[test]
fn permissions_are_the_kernels() {
    let mut volume = Volume::new(&Default::default());
    // The way to the mount must be open to others, or nothing is tested.
    let scratch = volume.scratch.path().to_owned();
    fs::set_permissions(&scratch, fs::Permissions::from_mode(0o755)).expect("chmod");
    volume.mount();
    let (closed, open) = (volume.path("closed"), volume.path("open"));
    let directory = volume.path("directory");
    fs::write(&closed, b"secret").expect("writing");
    fs::write(&open, b"public").expect("writing");
    fs::create_dir(&directory).expect("a directory");
    fs::write(directory.join("inside"), b"secret").expect("writing");
    symlink(&closed, volume.path("link")).expect("a link");
    for (path, mode) in [(&closed, 0o600), (&open, 0o644), (&directory, 0o700)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }
    assert!(nobody("cat", &[&open]));
    assert!(!nobody("cat", &[&closed]));
    assert!(!nobody("cat", &[&volume.path("link")]));
    assert!(!nobody("cat", &[&directory.join("inside")]));
    assert!(!nobody("ls", &[&directory]));
    assert!(!nobody("touch", &[&volume.path("new")]));
    assert!(!nobody("rm", &["-f".as_ref(), &open]));
    assert!(!nobody("chmod", &["777".as_ref(), &closed]));
    volume.umount();
    // Without allow_other nobody but the one who mounted sees anything.
    volume.mount_with(&["-o", "noallow_other"]);
    assert!(!nobody("cat", &[&open]));
    assert_eq!(fs::read(&open).expect("reading"), b"public");
}
