//! The system calls that have no safe wrapper. This is the only room with unsafe code (`integration/test style` sees to
//! it); everything else is denied it.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// The signals that ask the daemon to end.
const ENDING: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

fn ending() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset fills in the whole set that it is given, and sigaddset gets a set that is filled in. The
    // numbers are valid, so neither can fail.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in ENDING {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// Keeps the ending signals back for `wait_for_signal`, in this thread and all that it starts afterwards. Programs
/// started by `std::process` are not affected: it gives them an empty mask.
pub(crate) fn hold_back_signals() -> io::Result<()> {
    let set = ending();
    // SAFETY: the set is valid, and no old one is asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Waits for one of the signals that were held back; gives its number.
pub(crate) fn wait_for_signal() -> io::Result<i32> {
    let set = ending();
    let mut signal = 0;
    // SAFETY: both pointers are to values that outlive the call.
    match unsafe { libc::sigwait(&set, &mut signal) } {
        0 => Ok(signal),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Has the allocator share few arenas among all threads. Of its own accord it makes eight a processor, and what one thread
/// frees in one of them no thread of another can use: with threads for every disk that doubles what a daemon occupies.
#[cfg(target_env = "gnu")]
pub(crate) fn share_memory_among_threads() {
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    let arenas = i32::try_from(processors.clamp(2, 8)).unwrap_or(2);
    // SAFETY: it sets a number in the allocator, under the allocator's own lock. What comes of it is no matter of being
    // right: a number that is refused leaves things as they are.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, arenas);
    }
}

/// Gives memory that was freed back to the system.
#[cfg(target_env = "gnu")]
pub(crate) fn give_back_memory() {
    // SAFETY: it touches only memory that the allocator holds as free, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators have their own way.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn share_memory_among_threads() {}

/// Other allocators give it back by themselves.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn give_back_memory() {}

/// Begins to write down a range of a file and does not wait. A hint: what comes of it is told by the sync.
pub(crate) fn start_write_back(file: &File, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return;
    };
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and the call takes no pointer.
    unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            offset,
            length,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}
