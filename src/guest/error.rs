//! Why a guest could not be looked into, and why a page cannot be mended. Knows nothing of how either was found out.

use thiserror::Error;

use super::class::PageClass;
use super::reason::Reason;

/// Why no page of a snapshot could be classified. Every page is then critical.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GuestError {
    /// No page of memory holds a vmcoreinfo: no Linux, no CONFIG_VMCORE_INFO, or memory that is encrypted.
    #[error("no vmcoreinfo in guest memory")]
    NoVmcoreinfo,
    /// A vmcoreinfo was found that lacks a key that everything depends on.
    #[error("vmcoreinfo lacks {0}")]
    MissingKey(&'static str),
    /// A vmcoreinfo holds a number that no kernel would write there.
    #[error("vmcoreinfo gives an impossible {0}")]
    ImpossibleValue(&'static str),
    /// The page tables do not confirm where the kernel says that it lies: another layout, or a stale copy.
    #[error("the page tables contradict vmcoreinfo")]
    PagingContradicts,
    /// The running kernel's name is not the one that vmcoreinfo tells.
    #[error("the kernel's release differs from vmcoreinfo's")]
    ReleaseContradicts,
    /// A kernel that ran before a reboot is still whole, or a crash kernel runs beside the one that crashed.
    #[error("more than one kernel passes the checks, and which one runs is not known")]
    TwoKernels,
    /// A kernel passed all checks, and no processor translates addresses by page tables that map it: it ran before a reboot,
    /// and now runs firmware, a boot loader, another system, or a guest of the guest's own.
    #[error(
        "a kernel was found that no processor runs: the guest is in its firmware, was just booted, or runs another system"
    )]
    NotRunning,
    /// Copies of vmcoreinfo may stand in so many places that not all are looked at: one that is not may be the running kernel's.
    #[error(
        "vmcoreinfo may stand in more than {0} places, and not all of them are looked at: which kernel runs is not known"
    )]
    TooManyPlaces(usize),
    /// The kernel has memory that the file does not hold in any layout, or several layouts fit it.
    #[error("how the guest's memory is laid out in the file is not certain")]
    LayoutUnsure,
    /// The sections of memory could not be read or describe no memory of this guest.
    #[error("no memory map was found")]
    NoMemmap,
    /// The guest's memory lies in so many sections that not all are looked up.
    #[error("the guest's memory lies in more than {0} sections, more than any guest has")]
    TooManySections(usize),
    /// Too many struct pages contradict themselves or each other.
    #[error("{contradictions} of {pages} struct pages contradict themselves")]
    MemmapContradicts {
        /// How many do.
        contradictions: u64,
        /// Of how many that were read.
        pages: u64,
    },
}

impl GuestError {
    /// How far the search came: of several failures the one that came furthest tells most.
    pub(super) fn progress(&self) -> u32 {
        match self {
            GuestError::NoVmcoreinfo => 0,
            GuestError::PagingContradicts => 1,
            GuestError::ReleaseContradicts => 2,
            GuestError::MissingKey(_) | GuestError::ImpossibleValue(_) => 3,
            GuestError::NoMemmap | GuestError::TooManySections(_) => 4,
            GuestError::LayoutUnsure => 5,
            GuestError::MemmapContradicts { .. } => 6,
            GuestError::NotRunning => 7,
            GuestError::TwoKernels | GuestError::TooManyPlaces(_) => 8,
        }
    }

    /// Of two the one that came further; of equals this one.
    pub(super) fn further(self, other: GuestError) -> GuestError {
        if self.progress() >= other.progress() {
            self
        } else {
            other
        }
    }
}

/// Why a lost page cannot be mended. The page then reads as an error, never as zeros.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MendError {
    /// The page is none of the guest's memory.
    #[error("page frame {pfn:#x} is no memory of the guest")]
    NotMemory {
        /// The page frame.
        pfn: u64,
    },
    /// The page is of a class that the guest cannot do without.
    #[error("page frame {pfn:#x} is {class}: {reason}")]
    NotRecoverable {
        /// The page frame.
        pfn: u64,
        /// Its class.
        class: PageClass,
        /// What decided it.
        reason: Reason,
    },
}
