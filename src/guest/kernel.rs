//! The running kernel: tells which copy of vmcoreinfo, in which layout of memory, is that of the kernel whose page tables
//! and structures are there. Knows nothing of pages.

use super::error::GuestError;
use super::memory::GuestMemory;
use super::paging::{Arch, PageTables, Translations};
use super::vmcoreinfo::{self, Vmcoreinfo};

/// Where x86_64 maps the kernel's image (`__START_KERNEL_map`).
const X86_IMAGE: u64 = 0xFFFF_FFFF_8000_0000;

/// How many pages from `swapper_pg_dir` arm64's other tables of the kernel's half lie at most: `tramp_pg_dir` and
/// `reserved_pg_dir` (`arch/arm64/kernel/vmlinux.lds.S`).
const BESIDE: u64 = 8;

/// `new_utsname` has 65 bytes a name; the release is the third.
const RELEASE_IN_UTSNAME: u64 = 130;

/// What is known of a guest without looking at its memory. All may be left empty.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// Guest-physical addresses where vmcoreinfo may lie: what a dump's header or a device's state says, or what was seen
    /// as pages went by ([`vmcoreinfo::is_candidate`]).
    pub vmcoreinfo: Vec<u64>,
    /// Whether memory is to be searched when the hinted places do not hold.
    pub only_hinted: bool,
    /// By which page tables the processors translate addresses of the kernel: empty where none does, as in firmware.
    /// None where that is not known: then a kernel is believed to run that does not.
    pub tables: Option<Vec<TopTable>>,
}

/// The top page table that a register of a processor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopTable {
    /// Its guest-physical address.
    pub gpa: u64,
    /// Whether the processor walks five levels from it (x86's LA57).
    pub five_levels: bool,
}

/// A kernel that passed all checks.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its keys.
    pub info: Vmcoreinfo,
    /// `uname -r`.
    pub release: String,
    /// Major and minor number of the release.
    pub version: (u32, u32),
    /// Log2 of its page size.
    pub page_shift: u32,
    /// Its page tables.
    pub tables: PageTables,
    /// The guest-physical address of `_stext`.
    pub text: u64,
    /// The guest-physical address of the copy of vmcoreinfo that it was found by.
    pub note: u64,
}

impl Kernel {
    /// Tries the hinted places, then every page of memory. A reboot may leave a kernel behind that is whole, and nothing
    /// tells which of two is the running one: then there is none.
    pub(super) fn find(memory: &dyn GuestMemory, hints: &Hints) -> Result<Kernel, GuestError> {
        let tables = hints.tables.as_deref();
        match Kernel::only_one(memory, &hints.vmcoreinfo, tables) {
            Err(error) if error != GuestError::TwoKernels && !hints.only_hinted => {
                let places = vmcoreinfo::search(memory);
                let searched = places.and_then(|places| Kernel::only_one(memory, &places, tables));
                searched.map_err(|other| other.further(error))
            }
            found => found,
        }
    }

    /// The kernel that all copies at these places are of, if they pass the checks. Copies of kernels of which it is known
    /// that they do not run do not count.
    fn only_one(
        memory: &dyn GuestMemory,
        places: &[u64],
        walked: Option<&[TopTable]>,
    ) -> Result<Kernel, GuestError> {
        let mut found: Option<Kernel> = None;
        let mut failure = GuestError::NoVmcoreinfo;
        for &gpa in places {
            let Some(info) = Vmcoreinfo::read(memory, gpa) else {
                continue;
            };
            let verified = Kernel::verify(memory, info, gpa).and_then(|kernel| {
                let runs =
                    |walked: &[TopTable]| walked.iter().any(|top| kernel.runs_by(memory, top));
                if walked.is_none_or(runs) {
                    Ok(kernel)
                } else {
                    Err(GuestError::NotRunning)
                }
            });
            match (verified, &found) {
                (Ok(kernel), None) => found = Some(kernel),
                (Ok(kernel), Some(other)) if !kernel.is(other) => {
                    return Err(GuestError::TwoKernels);
                }
                (Ok(_), Some(_)) => {}
                (Err(error), _) => failure = error.further(failure),
            }
        }
        found.ok_or(failure)
    }

    /// Whether two copies of vmcoreinfo are of one kernel and one boot.
    pub(super) fn is(&self, other: &Kernel) -> bool {
        let place = |kernel: &Kernel| {
            let sections = kernel.info.symbol("mem_section");
            (kernel.text, kernel.tables, sections, kernel.release.clone())
        };
        place(self) == place(other)
    }

    fn verify(memory: &dyn GuestMemory, info: Vmcoreinfo, note: u64) -> Result<Kernel, GuestError> {
        let page_shift = info.page_shift()?;
        let text_va = info
            .symbol("_stext")
            .ok_or(GuestError::MissingKey("SYMBOL(_stext)"))?;
        let top = info
            .symbol("swapper_pg_dir")
            .or_else(|| info.symbol("init_top_pgt"))
            .ok_or(GuestError::MissingKey("SYMBOL(swapper_pg_dir)"))?;
        let uts = info
            .symbol("init_uts_ns")
            .ok_or(GuestError::MissingKey("SYMBOL(init_uts_ns)"))?;
        let release = info
            .text("OSRELEASE")
            .ok_or(GuestError::MissingKey("OSRELEASE"))?
            .to_string();
        let version = version(&release).ok_or(GuestError::ImpossibleValue("OSRELEASE"))?;

        let (image, candidates) = tables(&info, top, page_shift)?;
        let text = text_va.wrapping_add(image);
        // The arithmetic of the image and a walk of its page tables must agree on where the kernel's code is.
        let tables = candidates
            .into_iter()
            .find(|tables| {
                tables
                    .translate(memory, text_va)
                    .is_some_and(|found| found.gpa == text)
            })
            .ok_or(GuestError::PagingContradicts)?;

        // Before 5.11 the namespace began with a reference count, and vmcoreinfo did not tell.
        let offsets = info
            .offset("uts_namespace.name")
            .map_or(vec![4, 0], |known| vec![known as u64]);
        let running = offsets.into_iter().any(|name| {
            let at = uts.wrapping_add(name).wrapping_add(RELEASE_IN_UTSNAME);
            Translations::new(memory, tables).text(at, 65).as_deref() == Some(release.as_bytes())
        });
        if !running {
            return Err(GuestError::ReleaseContradicts);
        }
        Ok(Kernel {
            info,
            release,
            version,
            page_shift,
            tables,
            text,
            note,
        })
    }

    /// Whether a processor that translates by a table runs this kernel.
    fn runs_by(&self, memory: &dyn GuestMemory, top: &TopTable) -> bool {
        match self.arch() {
            // Every program has tables of its own, which map the kernel as the kernel's own do.
            Arch::X86_64 => {
                let text = self.info.symbol("_stext");
                let walks = self
                    .tables
                    .of_processor(top.gpa, top.five_levels)
                    .into_iter();
                let mut found = walks.flatten().filter_map(|tables| {
                    let found = tables.translate(memory, text?)?;
                    Some(found.gpa)
                });
                found.any(|gpa| gpa == self.text)
            }
            // The kernel's half has one table, and one beside it in the image while a program runs (KPTI).
            Arch::Arm64 => {
                let beside = BESIDE << self.page_shift;
                self.tables.root().abs_diff(top.gpa) <= beside
            }
        }
    }

    /// The processor.
    pub fn arch(&self) -> Arch {
        self.tables.arch()
    }

    /// How many bytes from `_stext` on are code, as the page tables have it, up to a limit.
    pub(super) fn code(&self, memory: &dyn GuestMemory, limit: u64) -> u64 {
        let Some(text) = self.info.symbol("_stext") else {
            return 0;
        };
        let mut bytes = 0;
        while bytes < limit {
            match self.tables.translate(memory, text.wrapping_add(bytes)) {
                Some(found) if found.code => bytes += found.left,
                _ => break,
            }
        }
        bytes.min(limit)
    }

    /// Whether the kernel is of this version or newer.
    pub fn since(&self, major: u32, minor: u32) -> bool {
        self.version >= (major, minor)
    }
}

/// What to add to an address of the image to get its guest-physical one, and the page tables that may hold.
fn tables(
    info: &Vmcoreinfo,
    top: u64,
    page_shift: u32,
) -> Result<(u64, Vec<PageTables>), GuestError> {
    if let Some(voffset) = info.number("kimage_voffset") {
        let image = voffset.wrapping_neg();
        let root = top.wrapping_add(image);
        // A kernel built for 52 bits may run with 48; then the register tells, and with 64 KiB pages the table
        // still has the shape of 52.
        let actual = info
            .number("TCR_EL1_T1SZ")
            .map(|size| 64u64.saturating_sub(size));
        let candidates = [actual, info.number("VA_BITS")]
            .into_iter()
            .flatten()
            .filter_map(|bits| PageTables::arm64(root, page_shift, u32::try_from(bits).ok()?))
            .collect();
        return Ok((image, candidates));
    }
    let phys_base = info
        .number("phys_base")
        .ok_or(GuestError::MissingKey("NUMBER(phys_base)"))?;
    let image = phys_base.wrapping_sub(X86_IMAGE);
    let five_levels = info.number("pgtable_l5_enabled") == Some(1);
    let encryption = info.number("sme_mask").unwrap_or(0);
    Ok((
        image,
        vec![PageTables::x86_64(
            top.wrapping_add(image),
            five_levels,
            encryption,
        )],
    ))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
