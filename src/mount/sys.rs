//! The system calls of this room that have no safe wrapper: waiting for signals.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;

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
pub(super) fn hold_back_signals() -> io::Result<()> {
    let set = ending();
    // SAFETY: the set is valid, and no old one is asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Waits for one of the signals that were held back; gives its number.
pub(super) fn wait_for_signal() -> io::Result<i32> {
    let set = ending();
    let mut signal = 0;
    // SAFETY: both pointers are to values that outlive the call.
    match unsafe { libc::sigwait(&set, &mut signal) } {
        0 => Ok(signal),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
