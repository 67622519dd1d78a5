//! `parsfs classify`: what a snapshot is, which guest is in it, what every page is used for, and what keeping it would
//! cost. Looks at any file, in a volume or not, and changes nothing.

mod account;
mod font;
mod page;
mod pages;
mod picture;
mod report;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::failure::Failure;
use super::log;
use crate::config;
use crate::snapshot::cloud_hypervisor::{MEMORY_FILE, STATE_FILE};
use crate::snapshot::{ByteSource, SnapshotError};
use crate::store::Code;
use crate::volume::look::{Look, recognise};

/// Show what is in a snapshot of a virtual machine, page by page
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Show what is in a snapshot of a virtual machine, page by page

Recognises the format of the file (raw memory, QEMU, libvirt, ELF core, LiME, ...), finds the Linux kernel in it, \
and tells what the guest uses each page of its memory for: free, page cache that it could read from its disk again, \
memory of programs, and so on. From that follows what has to survive the loss of a disk (critical), what the guest \
does without (expendable), and what need not be stored at all (zeros).

Works on any file, in a parsfs volume or not, and changes nothing. What is not understood is critical.",
    after_help = "Examples:
  parsfs classify guest.save
  parsfs classify --map guest.png guest.save       a picture of the guest's memory
  parsfs classify --page 0x3f2a000 guest.save      what one page is, and why
  parsfs classify --json guest.save | jq .classes.free.bytes
  parsfs classify --critical 10+2 guest.save       what it costs with another code

Files that are looked at together with FILE: state.json beside Cloud Hypervisor's memory-ranges.

Exit codes: 0 shown (also where no guest was found), 1 failed, 2 wrong usage."
)]
pub(super) struct Classify {
    /// The snapshot
    file: PathBuf,
    /// For programs
    #[arg(long)]
    json: bool,
    /// Show one page only: the guest-physical address of any byte in it, such as 0x3f2a000
    #[arg(long, value_name = "GPA", value_parser = page::address)]
    page: Option<u64>,
    /// Write the class of every page frame into a file, one byte each (values: docs/classify.md)
    #[arg(long, value_name = "OUT")]
    pages: Option<PathBuf>,
    /// Write a picture of the guest's memory by class
    #[arg(long, value_name = "OUT.png")]
    map: Option<PathBuf>,
    /// The code of critical bytes: k+m, over k disks with parity on m more
    #[arg(long, value_name = "K+M", default_value = "4+2", value_parser = config::parse_code)]
    critical: Code,
    /// The code of expendable bytes
    #[arg(long, value_name = "K+M", default_value = "1+0", value_parser = config::parse_code)]
    expendable: Code,
}

/// A `state.json` that is longer is none: it describes devices and CPUs.
const STATE_MAX: u64 = 256 << 20;

impl Classify {
    pub(super) fn run(self) -> Result<(), Failure> {
        log::start("warn");
        if self.expendable.m > self.critical.m {
            return Err(Failure::Usage(format!(
                "--expendable {} has more parity than --critical {}; give it no more than the critical bytes have",
                self.expendable, self.critical
            )));
        }
        let what = self.file.display().to_string();
        let file = File::open(&self.file).map_err(Failure::io(format!("open {what}")))?;
        let metadata = file
            .metadata()
            .map_err(Failure::io(format!("look at {what}")))?;
        if !metadata.is_file() {
            return Err(Failure::Other(format!(
                "{what} is not a file; name the file that holds the memory"
            )));
        }
        let look = look(&file, state_beside(&self.file).as_deref(), &what)?;
        if let Some(path) = &self.pages {
            save(path, |out| pages::write(&look, out))?;
        }
        if let Some(path) = &self.map {
            let picture = picture::draw(&look, &what).ok_or_else(|| {
                Failure::Other(format!(
                    "there is no picture of {what}: no page of a guest is known"
                ))
            })?;
            save(path, |out| picture.write(out))?;
        }
        let text = match self.page {
            Some(gpa) => page::tell(&look, &file, gpa, self.json)?,
            None => {
                let policy = account::Policy {
                    critical: self.critical,
                    expendable: self.expendable,
                };
                let account = account::Account::of(&look, metadata.len(), policy);
                if self.json {
                    report::json(&what, &look, &account)
                } else {
                    report::text(&what, &look, &account)
                }
            }
        };
        io::stdout()
            .write_all(text.as_bytes())
            .map_err(Failure::io("write the answer"))
    }
}

/// Looks into the file, with a bar on a terminal.
fn look(file: &File, state: Option<&[u8]>, what: &str) -> Result<Look, Failure> {
    let failed = |source: SnapshotError| Failure::Snapshot {
        what: what.to_owned(),
        source,
    };
    let length = ByteSource::length(file).map_err(Failure::io(format!("look at {what}")))?;
    // Draws nothing unless stderr is a terminal.
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template(
        "{msg} {bar:30} {binary_bytes} of {binary_total_bytes}, {eta} left",
    ) {
        bar.set_style(style);
    }
    bar.set_message("recognising");
    bar.enable_steady_tick(Duration::from_millis(200));
    let result = recognise(file, state).and_then(|snapshot| {
        bar.set_message("looking at pages");
        Look::into(snapshot, file, &|bytes| bar.inc(bytes))
    });
    bar.finish_and_clear();
    result.map_err(failed)
}

/// What Cloud Hypervisor says of the layout, if the file is one of its memory files.
fn state_beside(file: &Path) -> Option<Vec<u8>> {
    let state = file.with_file_name(STATE_FILE);
    let named = file.file_name().is_some_and(|name| name == MEMORY_FILE);
    let fits = fs::metadata(&state).is_ok_and(|state| state.is_file() && state.len() <= STATE_MAX);
    (named && fits).then(|| fs::read(state).ok())?
}

/// Writes a file that was asked for.
fn save(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), Failure> {
    let to = || format!("write {}", path.display());
    let file = File::create(path).map_err(Failure::io(to()))?;
    let mut out = BufWriter::new(file);
    write(&mut out)
        .and_then(|()| out.flush())
        .map_err(Failure::io(to()))
}
