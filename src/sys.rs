//! The system calls that have no safe wrapper. This is the only room with unsafe code (`integration/test style` sees to
//! it); everything else is denied it.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// The signals that ask the daemon to end.
const ENDING: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Takes no notice of SIGHUP from now on, as whoever serves without a terminal does: there is nobody to hang up, and what
/// many daemons are asked with it (to read their config again) must not unmount a volume.
pub(crate) fn ignore_hangup() {
    // SAFETY: no handler is set, only that the signal is ignored. It cannot fail for this signal.
    unsafe {
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
    }
}

/// Whether a signal is ignored, as by `ignore_hangup` and nohup(1). One that is held back would be waited for all the same.
fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no action is set, and the one that holds is put into a place that outlives the call. All zeros is an action.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

fn ending() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset fills in the whole set that it is given, and sigaddset gets a set that is filled in. The
    // numbers are valid, so neither can fail.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in ENDING.into_iter().filter(|signal| !is_ignored(*signal)) {
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

/// Memory that came from the system in one go; it goes back with the last of its pieces.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: nothing but the pieces reaches the memory through this, and no two of them the same bytes.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared mapping can do nothing with its memory.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is what was mapped, and every piece kept this from being dropped. That it fails leaves memory
        // occupied, which is no matter of being right.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A piece of memory of which nothing else has a part, filled with zeros or whatever was put there last.
#[derive(Debug)]
pub(crate) struct Piece {
    place: NonNull<u8>,
    length: usize,
    of: Arc<Mapping>,
}

// SAFETY: it owns its bytes as a box does.
unsafe impl Send for Piece {}
// SAFETY: shared, it gives shared slices only.
unsafe impl Sync for Piece {}

impl Piece {
    /// As many pieces as fit into `length` bytes from the system, which is asked for large pages: one page fault for all
    /// instead of one for every 4 KiB. `piece` is not 0.
    pub(crate) fn many(piece: usize, length: usize) -> io::Result<Vec<Piece>> {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at a place that the kernel chooses touches no memory that is in use.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), length, access, flags) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Arc::new(Mapping { start, length });
        // SAFETY: the range was just mapped, and this advice changes nothing of what is in it. Without it all works too.
        let _ = unsafe { madvise(start.as_ptr().cast(), length, Advice::LinuxHugepage) };
        let pieces = (0..length / piece).map(|number| Piece {
            // SAFETY: it ends within the mapping, since `number` is less than the pieces that fit into it.
            place: unsafe { start.add(number * piece) },
            length: piece,
            of: Arc::clone(&mapping),
        });
        Ok(pieces.collect())
    }

    /// Where it is: pieces of one mapping lie side by side.
    pub(crate) fn address(&self) -> usize {
        self.place.as_ptr() as usize
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        debug_assert!(self.of.length >= self.length);
        // SAFETY: the bytes are mapped as long as `of` is here, are initialised (the system gives zeros), belong to no other
        // piece, and whoever changes them has this one to himself.
        unsafe { std::slice::from_raw_parts(self.place.as_ptr(), self.length) }
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.place.as_ptr(), self.length) }
    }
}

/// A thread, and how it competes for processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Competitor {
    thread: libc::pid_t,
    policy: libc::c_int,
    priority: libc::c_int,
}

impl Competitor {
    /// This thread as it competes now; none where the system does not tell.
    pub(crate) fn this() -> Option<Competitor> {
        let mut parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: 0 is the calling thread, and the pointer is to a value that outlives the call.
        let policy = unsafe { libc::sched_getscheduler(0) };
        // SAFETY: as above.
        let told = unsafe { libc::sched_getparam(0, &mut parameters) };
        (policy >= 0 && told == 0).then_some(Competitor {
            thread: rustix::thread::gettid().as_raw_nonzero().get(),
            policy,
            priority: parameters.sched_priority,
        })
    }

    /// Has it take a processor only when nobody else wants one, from now on. A hint: a system that refuses it has the
    /// thread compete as before.
    pub(crate) fn make_way(&self) {
        let _ = self.set(libc::SCHED_IDLE, 0);
    }

    /// Has it compete as it did. Tells whether the system let it.
    pub(crate) fn compete(&self) -> bool {
        self.set(self.policy, self.priority)
    }

    fn set(&self, policy: libc::c_int, priority: libc::c_int) -> bool {
        let parameters = libc::sched_param {
            sched_priority: priority,
        };
        // SAFETY: the pointer is to a value that outlives the call. The thread is one of this process, or has ended, which is
        // an error.
        unsafe { libc::sched_setscheduler(self.thread, policy, &parameters) == 0 }
    }
}

/// Whether this thread makes way.
#[cfg(test)]
pub(crate) fn makes_way() -> bool {
    Competitor::this().is_some_and(|this| this.policy == libc::SCHED_IDLE)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_apart_and_outlive_each_other() {
        let mut pieces = Piece::many(1000, 10_500).expect("memory");
        assert_eq!(pieces.len(), 10);
        for (number, piece) in pieces.iter_mut().enumerate() {
            assert!(piece.iter().all(|&byte| byte == 0));
            piece.fill(number as u8 + 1);
        }
        for number in (0..10).rev() {
            let piece = pieces.pop().expect("a piece");
            assert_eq!(piece.len(), 1000);
            assert!(piece.iter().all(|&byte| byte == number + 1));
        }
    }

    #[test]
    fn what_the_system_does_not_give_is_an_error() {
        assert!(Piece::many(4096, usize::MAX / 2).is_err());
    }
}
