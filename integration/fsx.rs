//! `fsx`: random reads, writes, truncations, punches, copies and mappings of one file, each read checked against what the
//! file must hold. Syncs and re-opens are among the operations, so commits fall between any two of them.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::disks::Backing;
use crate::harness::process;
use crate::harness::volume::{Shape, Volume};
use crate::harness::{content, wait_until};

/// Every operation that fsx knows. Allocation is asked of filesystems that have it, and parsfs does.
const ALL: &str = "
flen = 1048576
[opsize]
max = 150000
[weights]
close_open = 2
read = 10
write = 10
mapread = 8
mapwrite = 8
invalidate = 1
truncate = 4
fsync = 2
fdatasync = 1
posix_fallocate = 2
punch_hole = 4
sendfile = 3
posix_fadvise = 1
copy_file_range = 4
";

/// Aligned as direct I/O and databases have it, over a file of many blocks.
const PAGES: &str = "
flen = 8388608
[opsize]
max = 1048576
align = 4096
[weights]
close_open = 2
read = 10
write = 10
mapread = 0
mapwrite = 0
truncate = 3
fsync = 3
fdatasync = 2
punch_hole = 4
copy_file_range = 4
";

/// Mappings and little else: the page cache and the daemon must see the same file.
const MAPPED: &str = "
flen = 524288
[weights]
close_open = 1
read = 5
write = 5
mapread = 20
mapwrite = 20
invalidate = 4
truncate = 4
fsync = 1
";

/// Small files, which lie in the metadata and not in blocks, and grow out of it.
const SMALL: &str = "
flen = 100000
[opsize]
max = 9000
[weights]
close_open = 4
read = 10
write = 10
mapread = 4
mapwrite = 4
truncate = 6
fsync = 4
punch_hole = 3
posix_fallocate = 1
copy_file_range = 2
";

/// Starts fsx on a file; it says where it went wrong, and leaves its record beside the volume.
fn start(volume: &Volume, weights: &str, seed: u64, operations: u64) -> Child {
    let artifacts = volume.scratch.directory("fsx");
    let config = artifacts.join(format!("{seed}.toml"));
    fs::write(&config, weights).expect("fsx's config");
    let said = fs::File::create(artifacts.join(format!("{seed}.log"))).expect("fsx's log");
    Command::new("fsx")
        .arg("-f")
        .arg(&config)
        .arg("-P")
        .arg(&artifacts)
        .args(["-S", &seed.to_string(), "-N", &operations.to_string()])
        .arg(volume.path(&format!("fsx{seed}")))
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(said.try_clone().expect("fsx's log"))
        .stderr(said)
        .spawn()
        .expect("fsx; `integration/test` installs it")
}

/// Waits for fsx, and shows the end of what it said if it found something.
#[track_caller]
fn finish(volume: &Volume, mut child: Child, seed: u64) {
    let status = process::wait(&mut child, Duration::from_secs(200));
    let log = volume.scratch.path().join(format!("fsx/{seed}.log"));
    let said = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = said.lines().collect();
    let end = lines[lines.len().saturating_sub(40)..].join("\n");
    match status {
        Some(status) => assert!(status.success(), "fsx, seed {seed}: {status}\n{end}"),
        None => {
            let _ = child.kill();
            panic!("fsx, seed {seed}, does not end\n{end}");
        }
    }
}

fn run(weights: &str, seeds: std::ops::Range<u64>, operations: u64, shape: &Shape) {
    let mut volume = Volume::mounted_as(shape);
    for seed in seeds {
        volume.limit(240);
        let child = start(&volume, weights, seed, operations);
        finish(&volume, child, seed);
        let name = volume.path(&format!("fsx{seed}"));
        let before = fs::read(&name).expect("the file that fsx leaves");
        volume.remount();
        assert!(
            fs::read(&name).expect("the file after a remount") == before,
            "seed {seed}: another file after a remount"
        );
    }
}

#[test]
fn every_operation() {
    run(ALL, 1..5, 4000, &Shape::default());
}

#[test]
fn whole_pages() {
    run(
        PAGES,
        11..13,
        2000,
        &Shape {
            compression: "lz4",
            ..Shape::default()
        },
    );
}

#[test]
fn mappings() {
    run(
        MAPPED,
        21..23,
        3000,
        &Shape {
            compression: "none",
            ..Shape::default()
        },
    );
}

#[test]
fn small_files() {
    run(
        SMALL,
        31..33,
        4000,
        &Shape {
            disks: 3,
            critical: "1+2",
            ..Shape::default()
        },
    );
}

#[test]
fn many_small_blocks() {
    let more = "block_size = \"4K\"".to_owned();
    run(
        ALL,
        41..43,
        3000,
        &Shape {
            disks: 4,
            critical: "2+1",
            more,
            ..Shape::default()
        },
    );
}

/// While fsx runs, one disk fails, then another: as many as 4+2 survives. fsx must not notice.
#[test]
fn two_disks_fail_half_way() {
    let volume = Volume::mounted_as(&Shape {
        backing: Backing::Faulty,
        ..Shape::default()
    });
    let settled = volume.path("settled");
    content::write_file(&settled, 99, 5_000_000).expect("a file from before");
    for seed in 51..53 {
        let file = volume.path(&format!("fsx{seed}"));
        let child = start(&volume, ALL, seed, 6000);
        if seed == 51 {
            for disk in [1, 4] {
                let name = format!("fsx{seed}");
                wait_until("fsx to have written more", Duration::from_secs(60), || {
                    grew(&volume, &name)
                });
                volume.disks[disk].take_away();
            }
        }
        finish(&volume, child, seed);
        assert!(file.exists());
    }
    content::check_file(&settled, 99, 5_000_000).expect("what was stored before the disks failed");
}

/// Whether the file was changed since it was last looked at.
fn grew(volume: &Volume, name: &str) -> bool {
    let marker = volume.scratch.path().join("fsx/seen");
    let modified = |path: &Path| {
        fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .ok()
    };
    let now = modified(&volume.path(name));
    let seen = fs::read_to_string(&marker).unwrap_or_default();
    let text = format!("{now:?}");
    fs::write(&marker, &text).expect("the marker");
    now.is_some() && !seen.is_empty() && seen != text
}
