//! A library for `LD_PRELOAD`: what a program does to a file below `PARSFS_TEE_FROM` it does to a file of the same name
//! below `PARSFS_TEE_TO` as well, operation for operation. So a test knows exactly what a writer wrote, though no two saves of a
//! guest are the same. Compiled alone by the harness, without the standard library's files: those are what is watched.
//!
//! Operations that a program does around the C library, through mappings or through a descriptor that it was given are not seen.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Iovec {
    base: *const c_void,
    length: usize,
}

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn getenv(name: *const c_char) -> *const c_char;
}

/// The function of this name behind this library.
macro_rules! next {
    ($name:literal as fn($($kind:ty),*) -> $result:ty) => {{
        static FOUND: OnceLock<usize> = OnceLock::new();
        let address = *FOUND.get_or_init(|| {
            unsafe { dlsym(-1isize as *mut c_void, concat!($name, "\0").as_ptr().cast()) as usize }
        });
        unsafe { std::mem::transmute::<usize, unsafe extern "C" fn($($kind),*) -> $result>(address) }
    }};
}

const MOST: usize = 65_536;
const O_CREAT: c_int = 0o100;
const O_TRUNC: c_int = 0o1000;
const O_EXCL: c_int = 0o200;
const O_DIRECT: c_int = 0o40000;
const O_ACCMODE: c_int = 0o3;
const O_RDWR: c_int = 0o2;

/// By descriptor, one more than that of its twin; 0 where there is none.
static TWINS: [AtomicI32; MOST] = [const { AtomicI32::new(0) }; MOST];

fn twin(fd: c_int) -> Option<c_int> {
    let place = TWINS.get(usize::try_from(fd).ok()?)?;
    match place.load(Ordering::Acquire) {
        0 => None,
        twin => Some(twin - 1),
    }
}

/// Where the file of this name is done again.
fn beside(path: *const c_char) -> Option<Vec<u8>> {
    let variable = |name: &CStr| {
        let text = unsafe { getenv(name.as_ptr()) };
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes())
    };
    let (from, to) = (variable(c"PARSFS_TEE_FROM")?, variable(c"PARSFS_TEE_TO")?);
    let rest = unsafe { CStr::from_ptr(path) }
        .to_bytes()
        .strip_prefix(from)?;
    Some([to, rest, &[0]].concat())
}

fn opened(fd: c_int, path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    if fd < 0 || flags & O_ACCMODE == 0 {
        return fd;
    }
    if let (Some(path), Ok(place)) = (beside(path), usize::try_from(fd))
        && place < MOST
    {
        let open = next!("open64" as fn(*const c_char, c_int, c_int) -> c_int);
        let flags = flags & !(O_DIRECT | O_EXCL | O_ACCMODE) | O_RDWR;
        let twin = unsafe { open(path.as_ptr().cast(), flags, mode) };
        TWINS[place].store(twin + 1, Ordering::Release);
    }
    fd
}

/// Does again a write of which so many bytes went through; at a place, or where the twin stands.
fn again(twin: c_int, pieces: &[Iovec], written: isize, mut at: Option<i64>) {
    let write = next!("write" as fn(c_int, *const c_void, usize) -> isize);
    let pwrite = next!("pwrite64" as fn(c_int, *const c_void, usize, i64) -> isize);
    let mut left = usize::try_from(written).unwrap_or(0);
    for piece in pieces {
        let (mut base, mut length) = (piece.base.cast::<u8>(), piece.length.min(left));
        left -= length;
        while length > 0 {
            let done = unsafe {
                match at {
                    Some(at) => pwrite(twin, base.cast(), length, at),
                    None => write(twin, base.cast(), length),
                }
            };
            if done <= 0 {
                // A twin that cannot be written is seen as a difference.
                return;
            }
            at = at.map(|at| at + done as i64);
            base = unsafe { base.add(done as usize) };
            length -= done as usize;
        }
    }
}

fn slices<'a>(pieces: *const Iovec, count: c_int) -> &'a [Iovec] {
    unsafe { std::slice::from_raw_parts(pieces, usize::try_from(count).unwrap_or(0)) }
}

macro_rules! opens {
    ($($name:ident),*) => { $(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
            let real = next!("open64" as fn(*const c_char, c_int, c_int) -> c_int);
            opened(unsafe { real(path, flags, mode) }, path, flags, mode)
        }
    )* };
}
opens!(open, open64);

macro_rules! opens_at {
    ($($name:ident),*) => { $(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(directory: c_int, path: *const c_char, flags: c_int, mode: c_int) -> c_int {
            let real = next!("openat64" as fn(c_int, *const c_char, c_int, c_int) -> c_int);
            opened(unsafe { real(directory, path, flags, mode) }, path, flags, mode)
        }
    )* };
}
opens_at!(openat, openat64);

#[unsafe(no_mangle)]
pub extern "C" fn creat(path: *const c_char, mode: c_int) -> c_int {
    open64(path, O_CREAT | O_TRUNC | 1, mode)
}

#[unsafe(no_mangle)]
pub extern "C" fn close(fd: c_int) -> c_int {
    let real = next!("close" as fn(c_int) -> c_int);
    if let Some(twin) = twin(fd) {
        TWINS[fd as usize].store(0, Ordering::Release);
        unsafe { real(twin) };
    }
    unsafe { real(fd) }
}

#[unsafe(no_mangle)]
pub extern "C" fn write(fd: c_int, buffer: *const c_void, length: usize) -> isize {
    let real = next!("write" as fn(c_int, *const c_void, usize) -> isize);
    let done = unsafe { real(fd, buffer, length) };
    if let Some(twin) = twin(fd) {
        again(
            twin,
            &[Iovec {
                base: buffer,
                length,
            }],
            done,
            None,
        );
    }
    done
}

#[unsafe(no_mangle)]
pub extern "C" fn writev(fd: c_int, pieces: *const Iovec, count: c_int) -> isize {
    let real = next!("writev" as fn(c_int, *const Iovec, c_int) -> isize);
    let done = unsafe { real(fd, pieces, count) };
    if let Some(twin) = twin(fd) {
        again(twin, slices(pieces, count), done, None);
    }
    done
}

macro_rules! writes_at {
    ($($name:ident),*) => { $(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(fd: c_int, buffer: *const c_void, length: usize, at: i64) -> isize {
            let real = next!("pwrite64" as fn(c_int, *const c_void, usize, i64) -> isize);
            let done = unsafe { real(fd, buffer, length, at) };
            if let Some(twin) = twin(fd) {
                again(twin, &[Iovec { base: buffer, length }], done, Some(at));
            }
            done
        }
    )* };
}
writes_at!(pwrite, pwrite64);

macro_rules! gathers_at {
    ($($name:ident),*) => { $(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(fd: c_int, pieces: *const Iovec, count: c_int, at: i64) -> isize {
            let real = next!("pwritev64" as fn(c_int, *const Iovec, c_int, i64) -> isize);
            let done = unsafe { real(fd, pieces, count, at) };
            if let Some(twin) = twin(fd) {
                again(twin, slices(pieces, count), done, Some(at));
            }
            done
        }
    )* };
}
gathers_at!(pwritev, pwritev64);

macro_rules! seeks {
    ($($name:ident),*) => { $(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(fd: c_int, offset: i64, whence: c_int) -> i64 {
            let real = next!("lseek64" as fn(c_int, i64, c_int) -> i64);
            let at = unsafe { real(fd, offset, whence) };
            if let Some(twin) = twin(fd)
                && at >= 0
            {
                unsafe { real(twin, at, 0) };
            }
            at
        }
    )* };
}
seeks!(lseek, lseek64);

macro_rules! cuts {
    ($($name:ident),*) => { $(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(fd: c_int, length: i64) -> c_int {
            let real = next!("ftruncate64" as fn(c_int, i64) -> c_int);
            if let Some(twin) = twin(fd) {
                unsafe { real(twin, length) };
            }
            unsafe { real(fd, length) }
        }
    )* };
}
cuts!(ftruncate, ftruncate64);
