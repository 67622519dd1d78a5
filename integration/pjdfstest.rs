//! `pjdfstest`: what POSIX says of names, modes, owners, times and errors. It runs on a plain ext4 and on the mount, and the
//! mount may fail nothing that ext4 passes but what `pjdfstest-known-failures.txt` gives a reason for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::loop_device;
use crate::harness::process;
use crate::harness::volume::Volume;

const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// One line a test, `name: reason`.
const KNOWN: &str = include_str!("pjdfstest-known-failures.txt");

#[derive(Debug, Default)]
struct Results {
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
    said: String,
}

fn run_on(directory: &Path, other: &Path, config: &Path) -> Results {
    // 0.2.2 counts down from the length of its path in steps of 127 and stumbles over a remainder of zero.
    assert_ne!(
        (4095 - directory.as_os_str().len() - 22) % 127,
        0,
        "choose a longer name for {}",
        directory.display()
    );
    let mut command = Command::new("pjdfstest");
    command
        .arg("-c")
        .arg(config)
        .arg("-s")
        .arg(other)
        .arg("-p")
        .arg(directory)
        .env("NO_COLOR", "1");
    let outcome = process::run(&mut command, Duration::from_secs(240));
    let mut results = Results::default();
    for line in outcome.stdout.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next_back()) {
            (Some(name), Some("ok")) => drop(results.passed.insert(name.to_owned())),
            (Some(name), Some("FAILED")) => drop(results.failed.insert(name.to_owned())),
            _ => {}
        }
    }
    results.said = outcome.stdout + &outcome.stderr;
    assert!(
        results.passed.len() > 300,
        "pjdfstest on {} did not run:\n{}",
        directory.display(),
        results.said
    );
    results
}

/// What pjdfstest said of one test.
fn reason(said: &str, name: &str) -> String {
    let lines = said
        .lines()
        .skip_while(|line| line.split_whitespace().next() != Some(name));
    let told: Vec<&str> = lines
        .skip(1)
        .take_while(|line| line.starts_with('\t'))
        .collect();
    told.join(" ")
}

#[test]
fn nothing_fails_that_ext4_passes() {
    let volume = Volume::mounted();
    // As long as the name of the mount point: the tests of long paths do the same on both.
    let plain = volume.scratch.directory("ext");
    loop_device::make(&volume.scratch.path().join("ext4.img"), 1024, &plain);
    let config = volume.scratch.path().join("pjdfstest.toml");
    fs::write(&config, CONFIG).expect("pjdfstest's config");

    let on_ext4 = run_on(&plain, &volume.mountpoint, &config);
    let on_parsfs = run_on(&volume.mountpoint, &plain, &config);

    let known: BTreeSet<&str> = KNOWN
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(": ").next())
        .collect();
    let new: Vec<String> = on_parsfs
        .failed
        .iter()
        .filter(|name| !on_ext4.failed.contains(*name) && !known.contains(name.as_str()))
        .map(|name| format!("{name}: {}", reason(&on_parsfs.said, name)))
        .collect();
    assert!(
        new.is_empty(),
        "{} tests fail on the mount and not on ext4:\n{}",
        new.len(),
        new.join("\n")
    );

    let ran = |results: &Results| -> BTreeSet<String> {
        results.passed.union(&results.failed).cloned().collect()
    };
    let (here, there) = (ran(&on_parsfs), ran(&on_ext4));
    let skipped: Vec<String> = there
        .difference(&here)
        .filter(|name| !known.contains(name.as_str()))
        .map(|name| format!("{name}: {}", reason(&on_parsfs.said, name)))
        .collect();
    assert!(
        skipped.is_empty(),
        "not run on the mount:\n{}",
        skipped.join("\n")
    );
    let fixed: Vec<&&str> = known
        .iter()
        .filter(|name| on_parsfs.passed.contains(**name))
        .collect();
    assert!(
        fixed.is_empty(),
        "known failures that pass now: take them off the list: {fixed:?}"
    );
}
