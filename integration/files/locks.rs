//! Locks between processes: flock and fcntl.

use std::process::Command;
use std::time::Duration;

use crate::harness::process::{run, shell};
use crate::harness::volume::Volume;

#[test]
fn flock_keeps_others_out_until_it_is_given_back() {
    let volume = Volume::mounted();
    shell(
        &volume.mountpoint,
        "touch lock
         exec 9<lock
         flock -x 9
         if flock -xn lock true; then echo 'two had it'; exit 1; fi
         if flock -sn lock true; then echo 'a reader had it too'; exit 1; fi
         flock -u 9
         flock -xn lock true",
    );
}

#[test]
fn flock_waits_for_its_turn() {
    let volume = Volume::mounted();
    shell(
        &volume.mountpoint,
        "echo 0 > counter
         for i in 1 2 3 4; do
           (for n in $(seq 10); do flock lock bash -c 'echo $(($(cat counter) + 1)) > counter'; done) &
         done
         wait
         [ $(cat counter) = 40 ]",
    );
}

/// Python is the shortest way to a second process with fcntl locks on ranges.
const RANGES: &str = r#"
import fcntl, os, sys
f = open(sys.argv[1], "r+b")
fcntl.lockf(f, fcntl.LOCK_EX, 10, 100)
if os.fork() == 0:
    g = open(sys.argv[1], "r+b")
    fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 200)
    try:
        fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 105)
    except OSError:
        os._exit(0)
    os._exit(1)
sys.exit(os.wait()[1] != 0)
"#;

#[test]
fn fcntl_locks_ranges() {
    let volume = Volume::mounted();
    let path = volume.path("database");
    std::fs::write(&path, [0; 1000]).expect("a file");
    let mut command = Command::new("python3");
    let outcome = run(
        command.args(["-c", RANGES]).arg(&path),
        Duration::from_secs(30),
    );
    outcome.expect_success("locking ranges");
}
