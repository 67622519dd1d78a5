//! What a test guest is made of: packages of the distribution, unpacked; an initramfs with busybox, the agent and the
//! modules in the order in which they must be loaded; disks with fresh file systems. Everything lies in one directory
//! outside the repository and is made again when it is absent.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where packages and saved guests lie: `PARSFS_GUESTS`, or a directory that outlives reboots.
pub fn home() -> PathBuf {
    std::env::var_os("PARSFS_GUESTS")
        .map_or_else(|| PathBuf::from("/var/tmp/parsfs-guests"), PathBuf::from)
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/guests")
}

/// Keeps two tests from making the same thing, or from running two guests, at once. Released when dropped.
pub fn exclusive(name: &str) -> fs::File {
    fs::create_dir_all(home()).expect("the guests' directory");
    let file = fs::File::create(home().join(format!("{name}.lock"))).expect("a lock file");
    file.lock().expect("the lock");
    file
}

/// Makes sure that a part of `packages.sh` is there.
pub fn part(name: &str) -> PathBuf {
    let dir = home().join(name);
    if !dir.join(".complete").exists() {
        let _turn = exclusive("packages");
        let done = Command::new(here().join("packages.sh"))
            .arg(home())
            .arg(name)
            .status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "packages.sh could not bring {name}"
        );
    }
    dir
}

/// A program of an unpacked part, run with that part's own libraries.
pub fn program(part_dir: &Path, name: &str) -> Command {
    let find = |candidates: &[&str]| {
        candidates
            .iter()
            .map(|c| part_dir.join(c))
            .find(|p| p.is_file())
            .unwrap_or_else(|| panic!("no {candidates:?}"))
    };
    let loader = find(&[
        "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    ]);
    let binary = find(&[
        &format!("usr/bin/{name}"),
        &format!("usr/sbin/{name}"),
        &format!("sbin/{name}"),
    ]);
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
        .map(|l| part_dir.join(l).display().to_string());
    let mut command = Command::new(loader);
    command
        .arg("--library-path")
        .arg(libraries.join(":"))
        .arg(binary);
    command
}

/// QEMU with its own firmware, whatever the machine has.
pub fn qemu(name: &str) -> Command {
    let dir = part("qemu");
    let mut command = program(&dir, name);
    for share in ["qemu", "seabios", "ipxe/qemu"] {
        command.arg("-L").arg(dir.join("usr/share").join(share));
    }
    command
}

/// One kernel of the distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    V5_10,
    V6_1,
    V6_12,
    /// One that lies between those in age: major and minor number.
    Between(u32, u32),
    Newest,
    Arm64,
    /// The same with pages of 16 KiB.
    Arm64Pages16K,
}

impl Kernel {
    pub const X86: [Kernel; 4] = [Kernel::V5_10, Kernel::V6_1, Kernel::V6_12, Kernel::Newest];

    pub fn name(self) -> String {
        match self {
            Kernel::V5_10 => "kernel-5.10".into(),
            Kernel::V6_1 => "kernel-6.1".into(),
            Kernel::V6_12 => "kernel-6.12".into(),
            Kernel::Between(major, minor) => format!("kernel-{major}.{minor}"),
            Kernel::Newest => "kernel-new".into(),
            Kernel::Arm64 => "arm64".into(),
            Kernel::Arm64Pages16K => "arm64-16k".into(),
        }
    }

    /// All kernels that the distribution's backports offer beside those above.
    pub fn between() -> Vec<Kernel> {
        let list = fs::read_to_string(part("between").join("list")).expect("a list of kernels");
        let kernels: Vec<Kernel> = list
            .lines()
            .filter_map(|line| {
                let (major, minor) = line.split_once('.')?;
                Some(Kernel::Between(major.parse().ok()?, minor.parse().ok()?))
            })
            .collect();
        assert!(!kernels.is_empty(), "backports offer no kernel");
        kernels
    }

    pub fn is_arm(self) -> bool {
        matches!(self, Kernel::Arm64 | Kernel::Arm64Pages16K)
    }

    pub fn image(self) -> PathBuf {
        let dir = part(&self.name());
        walk(&dir)
            .into_iter()
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
            })
            .unwrap_or_else(|| panic!("no kernel in {}", dir.display()))
    }
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => todo.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

/// The modules that a guest needs, those of optional kernels among them.
const WANTED: [&str; 11] = [
    "virtio_ring",
    "virtio",
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "crc32c_generic",
    "crc32c_intel",
    "crc32c_cryptoapi",
    "ext4",
    "xfs",
    "btrfs",
];

/// The wanted modules of a kernel and what they need, in the order of loading, as they lie in the package, unpacked.
fn modules(kernel: Kernel) -> Vec<(String, Vec<u8>)> {
    let mut by_name = BTreeMap::new();
    for path in walk(&part(&kernel.name())) {
        let file = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if let Some((name, _)) = file.split_once(".ko") {
            by_name.insert(name.replace('-', "_"), path);
        }
    }
    let mut loaded = Vec::new();
    for name in WANTED {
        load(name, &by_name, &mut loaded);
    }
    loaded
}

fn load(name: &str, by_name: &BTreeMap<String, PathBuf>, loaded: &mut Vec<(String, Vec<u8>)>) {
    let Some(path) = by_name.get(name) else {
        return;
    };
    if loaded.iter().any(|(other, _)| other == name) {
        return;
    }
    let bytes = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => output(Command::new("xz").arg("-dc").arg(path)),
        Some("zst") => output(Command::new("zstd").arg("-dc").arg(path)),
        _ => fs::read(path).expect("a module"),
    };
    // A module says in its .modinfo section which others it needs.
    let needs = memchr::memmem::find(&bytes, b"\0depends=")
        .and_then(|at| bytes[at + 9..].split(|&byte| byte == 0).next())
        .map(|list| String::from_utf8_lossy(list).into_owned())
        .unwrap_or_default();
    for need in needs.split(',').filter(|need| !need.is_empty()) {
        load(&need.replace('-', "_"), by_name, loaded);
    }
    loaded.push((name.to_string(), bytes));
}

fn output(command: &mut Command) -> Vec<u8> {
    let done = command
        .stderr(Stdio::inherit())
        .output()
        .expect("a program of this machine");
    assert!(done.status.success(), "{command:?} failed");
    done.stdout
}

/// A `newc` cpio archive, which is what the kernel unpacks as its first root.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            data.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08x}").expect("memory");
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The guest's own program, compiled statically with the compiler that compiles the tests.
fn agent() -> PathBuf {
    compiled(
        &here().join("agent.rs"),
        "agent",
        &["-C", "target-feature=+crt-static", "-C", "strip=symbols"],
    )
}

/// One source file, compiled alone unless what is there is newer.
pub fn compiled(source: &Path, name: &str, options: &[&str]) -> PathBuf {
    let binary = home().join(name);
    let newer = |a: &Path, b: &Path| {
        let time = |p: &Path| fs::metadata(p).and_then(|m| m.modified()).ok();
        time(a) > time(b)
    };
    if !newer(&binary, source) {
        // Only what is whole gets the name.
        let made = home().join(format!("{name}.{}", std::process::id()));
        let built = Command::new("rustc")
            .args(["--edition", "2024", "-O", "-C", "panic=abort"])
            .args(options)
            .arg(source)
            .arg("-o")
            .arg(&made)
            .status();
        assert!(
            built.is_ok_and(|status| status.success()),
            "{} does not compile",
            source.display()
        );
        fs::rename(&made, &binary).expect("the name of a program");
    }
    binary
}

/// The initramfs of a kernel's guests.
pub fn initramfs(kernel: Kernel) -> PathBuf {
    let path = home().join(format!("{}.cpio", kernel.name()));
    let tools = if kernel.is_arm() {
        part(&kernel.name())
    } else {
        part("tools")
    };
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "proc", "sys", "modules"] {
        archive.add(dir, 0o040_755, &[]);
    }
    archive.add(
        "init",
        0o100_755,
        &fs::read(here().join("init.sh")).expect("init.sh"),
    );
    archive.add(
        "bin/busybox",
        0o100_755,
        &fs::read(tools.join("usr/bin/busybox")).expect("busybox"),
    );
    archive.add("bin/sh", 0o120_777, b"busybox");
    if !kernel.is_arm() {
        archive.add(
            "bin/agent",
            0o100_755,
            &fs::read(agent()).expect("the agent"),
        );
    }
    for (number, (name, bytes)) in modules(kernel).into_iter().enumerate() {
        archive.add(&format!("modules/{number:03}-{name}.ko"), 0o100_644, &bytes);
    }
    archive.add("TRAILER!!!", 0, &[]);
    fs::write(&path, &archive.bytes).expect("the initramfs");
    path
}

/// The file systems of a guest's disks, in the order of the disks. Features that 5.10 does not know are left out.
pub const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Makes an ext4 disk with files on it, and the sums of all of them in the file `sums`: for a guest that has no agent.
pub fn filled_disk(path: &Path) {
    let files = tempfile::tempdir().expect("a directory for files");
    let mut random = 0x2545_F491_4F6C_DD1Du64;
    for number in 0..24 {
        let mut bytes = Vec::new();
        for _ in 0..20_000 + 9_000 * number {
            random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            bytes.extend_from_slice(&(random >> 16).to_le_bytes()[..6]);
        }
        fs::write(files.path().join(format!("f{number:02}")), bytes).expect("a file");
    }
    let sums = output(
        Command::new("sh")
            .args(["-c", "md5sum f*"])
            .current_dir(files.path()),
    );
    fs::write(files.path().join("sums"), sums).expect("the sums");
    disk_with(path, "ext4", &["-d", &files.path().display().to_string()]);
}

/// Makes a disk with a fresh file system.
pub fn disk(path: &Path, file_system: &str) {
    disk_with(path, file_system, &[]);
}

fn disk_with(path: &Path, file_system: &str, more: &[&str]) {
    let file = fs::File::create(path).expect("a disk image");
    file.set_len(if file_system == "xfs" {
        320 << 20
    } else {
        256 << 20
    })
    .expect("a disk image");
    let tools = part("tools");
    let options: &[&str] = match file_system {
        "ext4" => &["-q", "-O", "^orphan_file,^metadata_csum_seed"],
        "xfs" => &[
            "-q",
            "-m",
            "bigtime=0,inobtcount=0,rmapbt=0,reflink=0",
            "-i",
            "nrext64=0,exchange=0",
            "-n",
            "parent=0",
        ],
        _ => &["-q", "-O", "^block-group-tree"],
    };
    let name = if file_system == "ext4" {
        "mke2fs".into()
    } else {
        format!("mkfs.{file_system}")
    };
    let mut command = program(&tools, &name);
    if file_system == "ext4" {
        command.args(["-t", "ext4"]);
    }
    let done = command
        .args(options)
        .args(more)
        .arg(path)
        .stdout(Stdio::null())
        .status();
    assert!(done.is_ok_and(|status| status.success()), "{name} failed");
}
