//! Firecracker and Cloud Hypervisor, which need KVM and are in no package: their file operations one by one, as they were
//! traced, on the memory of a real guest.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom as Place, seek};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{Stand, assert_readable, assert_sorted, assert_written, told};

const PAGE: usize = 4096;

/// Firecracker's state file: made or cut off, written in two pieces, synced.
fn firecracker_state(path: &Path, state: &[u8]) {
    let mut file = File::create(path).expect("the state file");
    let (head, body) = state.split_at(state.len().min(8));
    file.write_all(head).expect("the state file");
    file.write_all(body).expect("the state file");
    file.sync_all().expect("the state file");
}

/// Firecracker's memory file: made if it is not there, but not cut off unless its length is another one; then all of
/// a region in one write, and a sync.
fn firecracker_memory(path: &Path) -> File {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .expect("the memory file")
}

fn firecracker_full(path: &Path, memory: &[u8]) {
    let mut file = firecracker_memory(path);
    if file.metadata().expect("the memory file").len() != memory.len() as u64 {
        file.set_len(0).expect("ftruncate");
    }
    file.set_len(memory.len() as u64).expect("ftruncate");
    file.write_all(memory).expect("the region");
    file.sync_all().expect("fsync");
}

/// A snapshot of only what has changed, into the file of the full one: over clean runs by a seek, dirty ones in one write each.
fn firecracker_diff(path: &Path, before: &[u8], after: &[u8]) -> usize {
    let mut file = firecracker_memory(path);
    file.set_len(after.len() as u64).expect("ftruncate");
    let dirty: Vec<bool> = before
        .chunks(PAGE)
        .zip(after.chunks(PAGE))
        .map(|(a, b)| a != b)
        .collect();
    let mut at = 0;
    for run in dirty.chunk_by(|a, b| a == b) {
        let bytes = run.len() * PAGE;
        if run[0] {
            file.write_all(&after[at..at + bytes]).expect("a dirty run");
        } else {
            file.seek(SeekFrom::Current(bytes as i64)).expect("lseek");
        }
        at += bytes;
    }
    file.sync_all().expect("fsync");
    dirty.iter().filter(|&&dirty| dirty).count()
}

#[test]
fn firecracker_saves_and_a_guest_goes_on_in_its_memory_file() {
    let mut stand = Stand::new();
    let memory = fs::read(stand.memory()).expect("the memory");
    let state = fs::read(stand.scene.state()).expect("the state");
    firecracker_state(&stand.volume.path("state"), &state);
    let path = stand.volume.path("memory");
    firecracker_full(&path, &memory);
    assert_written(&path, stand.memory());
    assert_written(&stand.volume.path("state"), &stand.scene.state());
    assert_sorted(&path);
    stand.lose([1, 3]);
    assert_readable(&path, stand.memory());
    assert_written(&stand.volume.path("state"), &stand.scene.state());
    stand.goes_on_in(&path);
}

/// A diff is laid over the full snapshot by what is data in it, as Firecracker's own tool does: pages that became zeros are among
/// that.
fn assert_merges_by_its_data(diff: &Path, before: &[u8], after: &[u8]) {
    let mut merged = before.to_vec();
    let file = File::open(diff).expect("the diff");
    let mut zeroed = 0;
    for range in data(&file) {
        let part = range.start as usize..range.end as usize;
        file.read_exact_at(&mut merged[part], range.start)
            .expect("data");
    }
    for at in (0..after.len()).step_by(PAGE) {
        let page = at..at + PAGE;
        assert!(merged[page.clone()] == after[page.clone()], "page {at:#x}");
        let became = after[page.clone()].iter().all(|&byte| byte == 0)
            && before[page.clone()] != after[page];
        zeroed += usize::from(became);
    }
    assert!(zeroed > 0, "no page became zeros, so nothing is shown");
}

/// A full snapshot with a later diff merged into it, two disks lost; the later guest, and where its memory is.
fn merged_and_lost() -> (Stand, std::path::PathBuf) {
    let mut stand = Stand::with_later();
    let later = stand.later();
    let before = fs::read(stand.memory()).expect("the memory");
    let after = fs::read(&later.setup.memory).expect("the memory");
    let path = stand.volume.path("memory");
    firecracker_full(&path, &before);
    // A sparse one of its own first, as Firecracker writes it where there is no full one.
    let alone = stand.volume.path("diff");
    let dirty = firecracker_diff(&alone, &before, &after);
    assert!(
        dirty > 1000,
        "only {dirty} pages differ: the guest did nothing"
    );
    firecracker_diff(&path, &before, &after);
    assert_written(&path, &later.setup.memory);
    // It is classified again: its classes are those of the later guest.
    assert_sorted(&path);
    let fresh = stand.volume.path("fresh");
    firecracker_full(&fresh, &after);
    assert_eq!(told(&path, "classes"), told(&fresh, "classes"));
    assert_merges_by_its_data(&alone, &before, &after);
    stand.lose([2, 4]);
    assert_readable(&path, &later.setup.memory);
    let elsewhere = stand.volume.scratch.path().join("diff");
    firecracker_diff(&elsewhere, &before, &after);
    assert_written(&alone, &elsewhere);
    stand.scene = later;
    (stand, path)
}

#[test]
fn firecrackers_diff_is_merged_into_the_full_snapshot() {
    merged_and_lost();
}

#[test]
fn a_guest_goes_on_from_a_merged_diff_in_full() {
    let (stand, path) = merged_and_lost();
    stand.goes_on_in(&path);
}

/// Firecracker runs a guest in a private mapping of its memory file, and saves it into that very file: what is written comes
/// out of a mapping of what it is written to.
#[test]
fn a_guest_is_saved_into_the_file_that_it_runs_in() {
    let mut stand = Stand::with_later();
    let later = stand.later();
    let after = fs::read(&later.setup.memory).expect("the memory");
    let path = stand.volume.path("memory");
    firecracker_full(&path, &fs::read(stand.memory()).expect("the memory"));
    stand.volume.remount();

    let file = File::open(&path).expect("the memory file");
    // SAFETY: a new mapping at a place of the kernel's choice; the file is not cut off while it is mapped.
    let mapped = unsafe {
        let address = mmap(
            std::ptr::null_mut(),
            after.len(),
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
            &file,
            0,
        )
        .expect("mmap");
        std::slice::from_raw_parts_mut(address.cast::<u8>(), after.len())
    };
    drop(file);
    // The guest runs, and dirties some pages. Those that it leaves alone are not touched here either.
    let before = fs::read(stand.memory()).expect("the memory");
    for at in (0..after.len()).step_by(PAGE) {
        if before[at..at + PAGE] != after[at..at + PAGE] {
            mapped[at..at + PAGE].copy_from_slice(&after[at..at + PAGE]);
        }
    }
    firecracker_full(&path, mapped);
    // SAFETY: the mapping made above, which nobody uses any more.
    unsafe { munmap(mapped.as_mut_ptr().cast(), after.len()).expect("munmap") };
    assert_written(&path, &later.setup.memory);
    stand.lose([0, 2]);
    assert_readable(&path, &later.setup.memory);
}

/// A new file, which must not be there.
fn cloud_hypervisor_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
}

/// The ranges of a file that hold data, by SEEK_DATA and SEEK_HOLE.
fn data(file: &File) -> Vec<std::ops::Range<u64>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(begin) = seek(file, Place::Data(at)) {
        at = seek(file, Place::Hole(begin)).expect("the hole behind data");
        found.push(begin..at);
    }
    found
}

/// A directory written, two disks lost, and its memory restored beside the mount.
fn written_and_restored() -> Stand {
    let mut stand = Stand::new();
    let memory = fs::read(stand.memory()).expect("the memory");
    let table = serde_json::json!([{ "gpa": 0, "length": memory.len() }]);
    let inner = serde_json::json!({ "memory_ranges": { "data": table } }).to_string();
    let state = serde_json::json!({
        "id": "", "snapshots": { "memory-manager": { "snapshot_data": { "state": inner } } }
    });
    // Once as it writes a range, once as it writes memory that other processes share: only what is data.
    for name in ["whole", "by-data"] {
        let directory = stand.volume.path(name);
        fs::create_dir(&directory).expect("the directory");
        for (file, text) in [
            ("config.json", "{}".to_string()),
            ("state.json", state.to_string()),
        ] {
            let mut file = cloud_hypervisor_file(&directory.join(file)).expect("a new file");
            file.write_all(text.as_bytes()).expect("a small file");
        }
        let path = directory.join("memory-ranges");
        let mut file = cloud_hypervisor_file(&path).expect("a new file");
        let again = cloud_hypervisor_file(&path).map(drop);
        assert_eq!(
            again.expect_err("it is there").kind(),
            std::io::ErrorKind::AlreadyExists
        );
        file.set_len(memory.len() as u64).expect("ftruncate");
        if name == "whole" {
            file.seek(SeekFrom::Start(0)).expect("lseek");
            file.write_all(&memory).expect("the range");
        } else {
            for range in data(&File::open(stand.memory()).expect("the memory")) {
                for at in range.clone().step_by(1 << 20) {
                    let end = range.end.min(at + (1 << 20));
                    file.write_all_at(&memory[at as usize..end as usize], at)
                        .expect("a piece");
                }
            }
        }
    }
    let path = |name: &str| stand.volume.path(name).join("memory-ranges");
    let paths = [path("whole"), path("by-data")];
    for path in &paths {
        assert_written(path, stand.memory());
        assert_sorted(path);
    }
    stand.lose([3, 5]);
    for path in &paths {
        assert_readable(path, stand.memory());
        let restored = stand.volume.scratch.path().join("restored");
        let from = File::open(path).expect("the memory");
        let to = File::create(&restored).expect("a file");
        to.set_len(memory.len() as u64).expect("ftruncate");
        let ranges = data(&from);
        let held: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        if *path == paths[1] {
            assert!(
                held < memory.len() as u64 * 9 / 10,
                "what was not written is no hole: {held} bytes of data"
            );
        }
        for range in ranges {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            from.read_exact_at(&mut bytes, range.start).expect("data");
            to.write_all_at(&bytes, range.start).expect("the copy");
        }
        assert_readable(&restored, stand.memory());
    }
    stand
}

#[test]
fn cloud_hypervisors_directory_reads_back_by_its_holes() {
    written_and_restored();
}

#[test]
fn a_guest_goes_on_from_cloud_hypervisors_directory_in_full() {
    let stand = written_and_restored();
    stand.goes_on_in(&stand.volume.scratch.path().join("restored"));
}
