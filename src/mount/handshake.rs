//! What is agreed with the kernel when a session begins, and why.

use fuser::{InitFlags, KernelConfig};
use tracing::{debug, warn};

/// The most bytes of one request. The kernel allows no more (256 pages) unless an administrator raises
/// fs.fuse.max_pages_limit, and a single one reaches 0.94 of tmpfs's speed with it.
const REQUEST_MAX: u32 = 1 << 20;

/// Readahead and asynchronous reads that the kernel may have under way: enough to keep a dozen disks busy.
const BACKGROUND: u16 = 256;

/// Asks for what each kernel may have and do without. Never asked for: SETXATTR_EXT (fuser 0.18 panics at the first
/// setxattr), OVER_IO_URING (fuser does not speak it), WRITEBACK_CACHE (halves the speed of writing),
/// HANDLE_KILLPRIV (`privileges.rs` says why), ATOMIC_O_TRUNC (with it an open with O_RDONLY and O_TRUNC cuts a running
/// program before the kernel sees that it runs and refuses with ETXTBSY), POSIX_LOCKS and FLOCK_LOCKS (the kernel's own are right: nobody else
/// changes the files), AUTO_INVAL_DATA (the same: a cached page is stale only when we say so).
const WANTED: [InitFlags; 10] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_BIG_WRITES,
    // Names by file number, for an NFS server on top.
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    // Eight requests at once for a program's own O_DIRECT.
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_MAX_PAGES,
];

/// Settles the terms of a session. Tells whether the kernel itself drops cached pages that a write past the cache makes
/// stale: it does since 6.6, which is also the first that has DIRECT_IO_ALLOW_MMAP.
pub(super) fn negotiate(config: &mut KernelConfig) -> bool {
    for flag in WANTED {
        if config.add_capabilities(flag).is_err() {
            debug!("this kernel has no {flag:?}; going on without");
        }
    }
    // Each of these refuses only what the kernel could not take, and names what it could.
    if let Err(most) = config.set_max_write(REQUEST_MAX) {
        debug!("requests of at most {most} bytes");
    }
    if let Err(most) = config.set_max_readahead(REQUEST_MAX) {
        let _ = config.set_max_readahead(most);
    }
    let _ = config.set_max_background(BACKGROUND);
    let _ = config.set_congestion_threshold(BACKGROUND);
    let maps = config
        .capabilities()
        .contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
    if !maps {
        warn!(
            "this kernel is older than 6.6: a shared mapping (MAP_SHARED) of a file that is open for writing is refused there \
             (ENODEV)"
        );
    }
    maps
}
