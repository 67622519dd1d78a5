//! A guest's ELF core in a form that `makedumpfile` reads, and that program out of the distribution.
//!
//! QEMU writes the program headers behind a section header and a size of 8 for the file's header. `makedumpfile` does not
//! look where the header says that they are, but right behind it, and so finds no memory at all ("Can't get the number
//! of PT_LOAD"). In a copy they are put where it looks. The guests have no driver that tells QEMU of vmcoreinfo, so it is
//! handed over beside.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::image;
use super::{Format, Scene};

/// Bytes of an ELF64 header and of a program header.
const HEADER: usize = 64;
const PROGRAM: usize = 56;

/// The copy, which is removed with this.
pub struct Core {
    dir: tempfile::TempDir,
}

impl Core {
    pub fn of(scene: &Scene) -> Core {
        let dir = tempfile::tempdir_in(image::home()).expect("a directory");
        let core = Core { dir };
        fs::copy(scene.saved(Format::Elf), core.path()).expect("a copy");
        fs::set_permissions(core.path(), fs::Permissions::from_mode(0o600)).expect("a mode");
        straighten(&core.path());
        vmcoreinfo(&scene.setup.memory, &core.info());
        core
    }

    /// The straightened core.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("core")
    }

    fn info(&self) -> PathBuf {
        self.dir.path().join("vmcoreinfo")
    }

    /// `makedumpfile` on this core; `to` is what it writes.
    pub fn makedumpfile(&self, options: &[&str], to: &Path) -> Command {
        let mut command = image::program(&image::part("dumps"), "makedumpfile");
        command
            .args(options)
            .arg("-i")
            .arg(self.info())
            .arg(self.path())
            .arg(to);
        command
    }
}

/// Moves the program headers of a core right behind its header and drops its section headers.
fn straighten(path: &Path) {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).open(path).expect("the core");
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).expect("a header");
    let place = u64::from_le_bytes(header[32..40].try_into().expect("eight bytes"));
    let count = u16::from_le_bytes(header[56..58].try_into().expect("two bytes"));
    let mut programs = vec![0; PROGRAM * usize::from(count)];
    file.read_exact_at(&mut programs, place)
        .expect("program headers");
    let memory = programs
        .chunks(PROGRAM)
        .map(|program| u64::from_le_bytes(program[8..16].try_into().expect("eight bytes")))
        .min();
    assert!(
        (HEADER + programs.len()) as u64 <= memory.expect("a segment"),
        "no room"
    );
    header[32..40].copy_from_slice(&(HEADER as u64).to_le_bytes());
    header[40..48].fill(0);
    for (at, value) in [(52, HEADER as u16), (58, 0), (60, 0), (62, 0)] {
        header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    file.write_all_at(&header, 0).expect("the header");
    file.write_all_at(&programs, HEADER as u64)
        .expect("program headers");
}

/// What the guest says of itself, into a file.
fn vmcoreinfo(memory: &Path, to: &Path) {
    let mut file = File::open(memory).expect("the guest's memory");
    let mut page = vec![0; 4096];
    while file.read_exact(&mut page).is_ok() {
        if page.starts_with(b"OSRELEASE=") {
            let text = page.split(|&byte| byte == 0).next().unwrap_or_default();
            fs::write(to, text).expect("vmcoreinfo");
            return;
        }
    }
    panic!("no vmcoreinfo in {}", memory.display());
}
