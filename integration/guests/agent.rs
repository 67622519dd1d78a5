//! The program that works inside the test guests: makes files, holds memory, touches files in every way that a program
//! can, and says whether what it then finds is right. Compiled alone and statically by the harness, so it knows only
//! the standard library. What a file holds follows from its path, so no checksums have to survive anywhere.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

unsafe extern "C" {
    fn mmap(addr: *mut u8, len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
    fn munmap(addr: *mut u8, len: usize) -> i32;
    fn sendfile(out: i32, input: i32, offset: *mut i64, count: usize) -> isize;
}

/// One word of a file's content: a mix of the file's seed and the word's place.
fn word(seed: u64, index: u64) -> u64 {
    let mut x = seed ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn seed(path: &Path) -> u64 {
    let name = path.to_string_lossy();
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn content(path: &Path, len: usize) -> Vec<u8> {
    let seed = seed(path);
    let mut bytes = Vec::with_capacity(len + 8);
    let mut index = 0;
    while bytes.len() < len {
        bytes.extend_from_slice(&word(seed, index).to_le_bytes());
        index += 1;
    }
    bytes.truncate(len);
    bytes
}

/// `fill DIR COUNT MAX`: COUNT files of up to MAX bytes, at odd lengths.
fn fill(dir: &Path, count: usize, max: u64) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    for number in 0..count {
        let path = dir.join(format!("f{number:04}"));
        let len = word(seed(&path), u64::MAX) % max + 1;
        File::create(&path)?.write_all(&content(&path, len as usize))?;
    }
    Ok(())
}

fn files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    found.sort();
    Ok(found)
}

/// `read DIR`: brings a directory's files into the page cache and looks at nothing.
fn read(dir: &Path) -> std::io::Result<()> {
    for path in files(dir)? {
        std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
    }
    Ok(())
}

fn difference(path: &Path, expected: &[u8], found: &[u8]) -> Option<String> {
    if found == expected {
        return None;
    }
    let at = found.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
    Some(format!("{}: differs at {at:#x}, {} bytes for {}", path.display(), found.len(), expected.len()))
}

/// `verify DIR`: every file must hold what its path says.
fn verify(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut wrong = Vec::new();
    for path in files(dir)? {
        let found = fs::read(&path)?;
        wrong.extend(difference(&path, &content(&path, found.len()), &found));
    }
    Ok(wrong)
}

const TOUCHES: [&str; 7] = ["read", "partial", "append", "truncate", "extend", "mmap", "sendfile"];
const TOUCHED_LEN: usize = 1_000_003;

/// `touch-make DIR`: one file for every kind of first touch.
fn touch_make(dir: &Path) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    for kind in TOUCHES {
        for copy in 0..3 {
            let path = dir.join(format!("{kind}{copy}"));
            File::create(&path)?.write_all(&content(&path, TOUCHED_LEN))?;
        }
    }
    Ok(())
}

/// Touches one file in its kind's way and gives what it must hold afterwards, and for sendfile what was seen.
fn touch_one(kind: &str, path: &Path) -> std::io::Result<(Vec<u8>, Option<Vec<u8>>)> {
    let mut expected = content(path, TOUCHED_LEN);
    let mut seen = None;
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    match kind {
        "partial" => {
            for at in [5usize, 4096 * 3 + 100, 400_001, 999_000] {
                file.seek(SeekFrom::Start(at as u64))?;
                file.write_all(b"written over")?;
                expected[at..at + 12].copy_from_slice(b"written over");
            }
        }
        "append" => {
            file.seek(SeekFrom::End(0))?;
            file.write_all(b"appended")?;
            expected.extend_from_slice(b"appended");
        }
        "truncate" => {
            file.set_len(500_001)?;
            expected.truncate(500_001);
        }
        "extend" => {
            file.set_len(300_001)?;
            file.set_len(700_000)?;
            expected.truncate(300_001);
            expected.resize(700_000, 0);
        }
        "mmap" => {
            let address = unsafe { mmap(std::ptr::null_mut(), TOUCHED_LEN, 3, 1, file.as_raw_fd(), 0) };
            if address as isize == -1 {
                return Err(std::io::Error::last_os_error());
            }
            let view = unsafe { std::slice::from_raw_parts_mut(address, TOUCHED_LEN) };
            for at in (7..TOUCHED_LEN).step_by(4096 * 5) {
                view[at] ^= 0xff;
                expected[at] ^= 0xff;
            }
            unsafe { munmap(address, TOUCHED_LEN) };
        }
        "sendfile" => {
            let out_path = PathBuf::from("/run/sendfile.out");
            let out = File::create(&out_path)?;
            let mut offset = 0i64;
            loop {
                let sent = unsafe { sendfile(out.as_raw_fd(), file.as_raw_fd(), &mut offset, 1 << 20) };
                if sent < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                if sent == 0 {
                    break;
                }
            }
            seen = Some(fs::read(&out_path)?);
        }
        _ => {}
    }
    Ok((expected, seen))
}

/// `touch DIR`: touches every file and checks it, then checks all again from the disk.
fn touch(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut all = Vec::new();
    for path in files(dir)? {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let (expected, seen) = match touch_one(kind, &path) {
            Ok(done) => done,
            Err(error) => {
                wrong.push(format!("{}: {error}", path.display()));
                continue;
            }
        };
        if let Some(seen) = seen {
            wrong.extend(difference(&path, &expected, &seen).map(|text| format!("sendfile {text}")));
        }
        wrong.extend(difference(&path, &expected, &fs::read(&path)?));
        all.push((path, expected));
    }
    for (path, _) in &all {
        File::open(path)?.sync_all()?;
    }
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    for (path, expected) in &all {
        wrong.extend(difference(path, expected, &fs::read(path)?).map(|text| format!("from disk {text}")));
    }
    Ok(wrong)
}

/// `hold MIB FLAG`: holds memory with a pattern until the file FLAG appears, then says whether it is still there.
fn hold(mib: usize, flag: &Path) -> std::io::Result<Vec<String>> {
    let words = mib << 17;
    let memory: Vec<u64> = (0..words as u64).map(|index| word(42, index)).collect();
    fs::write(flag.with_extension("ready"), "")?;
    while !flag.exists() {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let wrong = (0..words as u64).filter(|&index| memory[index as usize] != word(42, index)).count();
    let verdict = if wrong == 0 { "right".to_string() } else { format!("{wrong} words wrong") };
    fs::write(flag.with_extension("done"), verdict)?;
    Ok(Vec::new())
}

/// `hog KIB`: takes that much memory, page by page, looks at it again and gives it back. What is fresh must be zero.
fn hog(kib: usize) -> std::io::Result<Vec<String>> {
    let len = kib << 10;
    let address = unsafe { mmap(std::ptr::null_mut(), len, 3, 0x22, -1, 0) };
    if address as isize == -1 {
        return Err(std::io::Error::last_os_error());
    }
    let view = unsafe { std::slice::from_raw_parts_mut(address.cast::<u64>(), len / 8) };
    let mut wrong = Vec::new();
    for (number, page) in view.chunks_mut(512).enumerate() {
        if page.iter().any(|&word| word != 0) && wrong.len() < 10 {
            wrong.push(format!("fresh page {number} is not zero"));
        }
        page.fill(number as u64 + 1);
    }
    for (number, page) in view.chunks(512).enumerate() {
        if page.iter().any(|&word| word != number as u64 + 1) && wrong.len() < 10 {
            wrong.push(format!("page {number} changed"));
        }
    }
    Ok(wrong)
}

/// Copies a file of /proc to a place on a disk, around the page cache.
fn dump(from: &Path, to: &Path, at: u64) -> std::io::Result<()> {
    const O_DIRECT: i32 = 0o40000;
    let mut source = File::open(from)?;
    let mut sink = OpenOptions::new().write(true).custom_flags(O_DIRECT).open(to)?;
    sink.seek(SeekFrom::Start(at))?;
    let layout = std::alloc::Layout::from_size_align(1 << 16, 4096).expect("a fixed size");
    let buffer = unsafe { std::slice::from_raw_parts_mut(std::alloc::alloc_zeroed(layout), 1 << 16) };
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            let got = source.read(&mut buffer[filled..])?;
            if got == 0 {
                break;
            }
            filled += got;
        }
        if filled == 0 {
            return Ok(());
        }
        buffer[filled..].fill(0);
        sink.write_all(buffer)?;
    }
}

/// `tell DISK`: what the kernel says of its pages goes to a disk; then answers for the shell that waits for it and stays,
/// so that nothing in the guest changes any more until a line comes in.
fn tell(disk: &Path) -> std::io::Result<()> {
    dump(Path::new("/proc/zoneinfo"), disk, 32 << 20)?;
    dump(Path::new("/proc/kpagecount"), disk, 16 << 20)?;
    dump(Path::new("/proc/kpageflags"), disk, 0)?;
    print!("@@0@@");
    std::io::stdout().flush()?;
    std::io::stdin().read_line(&mut String::new()).map(drop)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text = |at: usize| arguments.get(at).map_or("", String::as_str);
    let path = |at: usize| PathBuf::from(text(at));
    let number = |at: usize| text(at).parse::<usize>().unwrap_or(0);
    let done = match text(0) {
        "fill" => fill(&path(1), number(2), number(3) as u64).map(|()| Vec::new()),
        "read" => read(&path(1)).map(|()| Vec::new()),
        "verify" => verify(&path(1)),
        "touch-make" => touch_make(&path(1)).map(|()| Vec::new()),
        "touch" => touch(&path(1)),
        "hold" => hold(number(1), &path(2)),
        "hog" => hog(number(1)),
        "tell" => tell(&path(1)).map(|()| Vec::new()),
        other => Ok(vec![format!("unknown task {other:?}")]),
    };
    match done {
        Ok(wrong) if wrong.is_empty() => ExitCode::SUCCESS,
        Ok(wrong) => {
            wrong.iter().for_each(|line| println!("WRONG {line}"));
            ExitCode::from(1)
        }
        Err(error) => {
            println!("WRONG {}: {error}", arguments.join(" "));
            ExitCode::from(2)
        }
    }
}
