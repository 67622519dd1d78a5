//! Mappings: one shared by two processes, a private one, and one beside descriptors that write.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use crate::harness::content;
use crate::harness::process::run;
use crate::harness::volume::Volume;

const SHARED: &str = r#"
import mmap, os, sys
with open(sys.argv[1], "r+b") as f:
    m = mmap.mmap(f.fileno(), 0)
    r, w = os.pipe()
    if os.fork() == 0:
        os.read(r, 1)
        # A descriptor of its own, so that nothing is shared but the file.
        with open(sys.argv[1], "r+b") as g:
            n = mmap.mmap(g.fileno(), 0)
            ok = n[300000:300005] == b"hello"
            n[600000:600005] = b"world"
            n.flush()
        os._exit(0 if ok else 1)
    m[300000:300005] = b"hello"
    os.write(w, b"x")
    ok = os.wait()[1] == 0
    ok = ok and m[600000:600005] == b"world"
    m.flush()
    m.close()
    os.fsync(f.fileno())
    sys.exit(0 if ok else 1)
"#;

#[test]
fn two_processes_share_a_mapping() {
    let mut volume = Volume::mounted();
    let path = volume.path("shared");
    content::write_file(&path, 1, 1 << 20).expect("a file");
    let outcome = run(
        Command::new("python3").args(["-c", SHARED]).arg(&path),
        Duration::from_secs(60),
    );
    outcome.expect_success("sharing a mapping");
    volume.remount();
    let mut expected = content::bytes(1, 0, 1 << 20);
    expected[300_000..300_005].copy_from_slice(b"hello");
    expected[600_000..600_005].copy_from_slice(b"world");
    assert!(
        fs::read(&path).expect("read") == expected,
        "what was written through mappings is not all there"
    );
}

/// Firecracker restores so: it maps the snapshot privately and writes into its own copy.
const PRIVATE: &str = r#"
import mmap, sys
with open(sys.argv[1], "rb") as f:
    m = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    before = bytes(m)
    for at in range(0, len(m), 4096):
        m[at] = (m[at] + 1) % 256
    ok = bytes(m) != before
    m.close()
with open(sys.argv[1], "rb") as f:
    sys.exit(0 if ok and f.read() == before else 1)
"#;

#[test]
fn a_private_mapping_changes_nothing() {
    let mut volume = Volume::mounted();
    let path = volume.path("snapshot");
    content::write_file(&path, 2, 3 << 20).expect("a file");
    volume.remount();
    let outcome = run(
        Command::new("python3").args(["-c", PRIVATE]).arg(&path),
        Duration::from_secs(60),
    );
    outcome.expect_success("a private mapping");
    volume.remount();
    content::check_file(&path, 2, 3 << 20).expect("the snapshot after it was mapped");
}

#[test]
fn a_write_is_seen_in_a_mapping_and_the_other_way_round() {
    let volume = Volume::mounted();
    let path = volume.path("both");
    content::write_file(&path, 3, 1 << 20).expect("a file");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("open");
    let length = 1 << 20;
    // SAFETY: a new mapping at an address of the kernel's choice, unmapped at the end; the file keeps its length.
    unsafe {
        use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let mapped = rustix::mm::mmap(
            std::ptr::null_mut(),
            length,
            protection,
            MapFlags::SHARED,
            &file,
            0,
        )
        .expect("mmap");
        let bytes = mapped.cast::<u8>();
        assert_eq!(*bytes.add(500_000), content::bytes(3, 500_000, 1)[0]);
        file.write_all_at(b"W", 500_000).expect("write");
        assert_eq!(
            std::ptr::read_volatile(bytes.add(500_000)),
            b'W',
            "a write is not seen in the mapping"
        );
        std::ptr::write_volatile(bytes.add(700_000), b'M');
        rustix::mm::msync(mapped, length, MsyncFlags::SYNC).expect("msync");
        let mut read = [0];
        file.read_exact_at(&mut read, 700_000).expect("read");
        assert_eq!(&read, b"M", "what was written in the mapping is not read");
        rustix::mm::munmap(mapped, length).expect("munmap");
    }
}
