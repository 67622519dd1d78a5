//! What it costs to look into a guest once its last byte is there: finding the kernel, and giving every page its class. The
//! bar is 50 ms of one core a GiB, and a tenth of the time of `makedumpfile -d 31` on the same guest's ELF core in the same run.
//!
//! A commit knows where a copy of vmcoreinfo may be, for it saw the pages go by; what it costs without is told beside. One peer
//! reads that memory once, which any tool that copies a dump has to do; the other is `makedumpfile`, as it is and with
//! the compression that most use it with. It is measured as it is used, with its start and its output, which goes to memory.
//!
//! Times are the least of a number of runs: of one thread's processor time, or of a program's user and system time.
//! `PARSFS_BENCH_ROUNDS` sets how many (30 unless told).

#[path = "../integration/guests/mod.rs"]
mod guests;

use std::fs::File;
use std::hint::black_box;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use guests::core::Core;
use guests::image::Kernel;
use guests::{Format, Scene, Work};
use parsfs::guest::{FlatMemory, Guest, GuestMemory, Hints, Layout, is_candidate};
use parsfs::snapshot::is_zero;
use parsfs::volume::look::{Known, Look, recognise};

const PAGE: usize = 4096;

/// What a run took.
#[derive(Clone, Copy)]
struct Took {
    processor: Duration,
    wall: Duration,
}

impl Took {
    const MAX: Took = Took {
        processor: Duration::MAX,
        wall: Duration::MAX,
    };

    fn least(self, other: Took) -> Took {
        Took {
            processor: self.processor.min(other.processor),
            wall: self.wall.min(other.wall),
        }
    }
}

/// The processor time of a clock.
fn clock(which: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills the one structure it is given.
    let result = unsafe { libc::clock_gettime(which, &mut time) };
    assert_eq!(result, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// User and system time of all programs that were waited for.
fn children() -> Duration {
    // SAFETY: all its fields are numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the one structure it is given.
    let result = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) };
    assert_eq!(result, 0);
    let part = |time: libc::timeval| Duration::new(time.tv_sec as u64, 1000 * time.tv_usec as u32);
    part(usage.ru_utime) + part(usage.ru_stime)
}

fn once(processor: impl Fn() -> Duration, run: impl FnOnce()) -> Took {
    let (before, begun) = (processor(), Instant::now());
    run();
    Took {
        processor: processor() - before,
        wall: begun.elapsed(),
    }
}

fn rounds() -> usize {
    let told = std::env::var("PARSFS_BENCH_ROUNDS").ok();
    told.and_then(|text| text.parse().ok()).unwrap_or(30)
}

/// The least of all rounds, on this thread.
fn best(mut run: impl FnMut()) -> Took {
    (0..rounds()).fold(Took::MAX, |least, _| {
        least.least(once(|| clock(libc::CLOCK_THREAD_CPUTIME_ID), &mut run))
    })
}

fn report(what: &str, took: Took, bytes: u64) {
    let ms = |time: Duration| 1e3 * time.as_secs_f64();
    println!(
        "  {what:<52} {:>9.2} ms {:>8.2} ms a GiB {:>9.2} ms by the clock",
        ms(took.processor),
        ms(took.processor) * (1u64 << 30) as f64 / bytes as f64,
        ms(took.wall)
    );
}

/// A guest, in memory.
struct Subject {
    scene: Scene,
    bytes: Vec<u8>,
    layout: Layout,
}

impl Subject {
    fn new(kernel: Kernel, work: Work) -> Subject {
        let scene = Scene::new(kernel, work, "").ready();
        let bytes = std::fs::read(&scene.setup.memory).expect("the guest's memory");
        let layouts = Layout::candidates(bytes.len() as u64);
        let views: Vec<FlatMemory<'_>> = layouts
            .iter()
            .map(|layout| FlatMemory::new(&bytes, layout))
            .collect();
        let views = views.iter().map(|view| view as &dyn GuestMemory);
        let (place, _) = Guest::find_among(views, &Hints::default()).expect("a kernel");
        let layout = layouts[place].clone();
        Subject {
            scene,
            bytes,
            layout,
        }
    }

    /// What a commit has seen: where vmcoreinfo may begin.
    fn hints(&self, memory: &FlatMemory<'_>) -> Hints {
        let mut places = Vec::new();
        for range in memory.ranges() {
            for gpa in range.clone().step_by(PAGE) {
                if memory.slice(gpa, PAGE).is_some_and(is_candidate) {
                    places.push(gpa);
                }
            }
        }
        Hints {
            vmcoreinfo: places,
            only_hinted: true,
            tables: None,
        }
    }
}

fn look(memory: &FlatMemory<'_>, hints: &Hints) {
    let guest = Guest::find(memory, hints).expect("a kernel");
    black_box(guest.classify().expect("classes"));
}

fn classify(subject: &Subject) {
    let Subject {
        scene,
        bytes,
        layout,
    } = subject;
    let memory = FlatMemory::new(bytes, layout);
    let hints = subject.hints(&memory);
    let size = bytes.len() as u64;
    println!("{}, {} MiB", scene.name, size >> 20);
    let guest = Guest::find(&memory, &hints).expect("a kernel");
    report(
        "the kernel is found",
        best(|| drop(black_box(Guest::find(&memory, &hints)))),
        size,
    );
    report(
        "pages are classified",
        best(|| drop(black_box(guest.classify()))),
        size,
    );
    report(
        "both: after the last byte",
        best(|| look(&memory, &hints)),
        size,
    );
    report(
        "both, and all memory searched for the kernel",
        best(|| look(&memory, &Hints::default())),
        size,
    );
    report(
        "peer: reading that memory once",
        best(|| {
            black_box(
                bytes
                    .chunks_exact(8)
                    .filter(|word| **word == [0; 8])
                    .count(),
            );
        }),
        size,
    );
    for (what, path) in [
        (
            "as a commit does, memory in a file",
            scene.setup.memory.clone(),
        ),
        (
            "as a commit does, a stream in a file",
            scene.saved(Format::Stream),
        ),
        (
            "as a commit does, mapped-ram in a file",
            scene.saved(Format::MappedRam),
        ),
    ] {
        report(what, commit(&path), size);
    }
}

/// The look of a commit at a file that is all in the page cache: its format and its zeros are known, its pages are not.
fn commit(path: &Path) -> Took {
    let file = File::open(path).expect("a file");
    let bytes = std::fs::read(path).expect("the file");
    let mut places = Vec::new();
    let mut holes: Vec<Range<u64>> = Vec::new();
    let snapshot = recognise(&file, None).expect("readable");
    for piece in snapshot.map().expect("a page map").pieces(0..u64::MAX) {
        for at in piece.range.clone().step_by(PAGE) {
            let page = bytes
                .get(at as usize..at as usize + PAGE)
                .unwrap_or_default();
            if page.is_empty() || at + PAGE as u64 > piece.range.end {
                continue;
            }
            if is_candidate(page) {
                places.push(at);
            }
            if is_zero(page) {
                let end = at + PAGE as u64;
                match holes.last_mut() {
                    Some(last) if last.end == at => last.end = end,
                    _ => holes.push(at..end),
                }
            }
        }
    }
    drop(bytes);
    let known = Known {
        places: &places,
        holes: &|tell| {
            holes.iter().cloned().for_each(tell);
            Ok(())
        },
    };
    best(|| {
        let look = Look::knowing(snapshot.clone(), &file, &known).expect("readable");
        assert!(look.guest().is_ok(), "{:?}", look.guest());
        black_box(look);
    })
}

/// Both by turns, so that whatever else the machine does meets both.
fn makedumpfile(subject: &Subject) {
    let memory = FlatMemory::new(&subject.bytes, &subject.layout);
    let hints = subject.hints(&memory);
    let core = Core::of(&subject.scene);
    // Not on a disk, whose speed is no part of this.
    let out = Path::new("/dev/shm/parsfs-makedumpfile");
    let run = |options: &[&str]| {
        let _ = std::fs::remove_file(out);
        once(children, || {
            let done = core.makedumpfile(options, out).output().expect("it runs");
            assert!(done.status.success(), "{done:?}");
        })
    };
    let thread = || clock(libc::CLOCK_THREAD_CPUTIME_ID);
    let (mut ours, mut cold, mut theirs) = (Took::MAX, Took::MAX, Took::MAX);
    for _ in 0..rounds() {
        theirs = theirs.least(run(&["-d", "31"]));
        ours = ours.least(once(thread, || look(&memory, &hints)));
        cold = cold.least(once(thread, || look(&memory, &Hints::default())));
    }
    let compressed = (0..3).fold(Took::MAX, |least, _| least.least(run(&["-c", "-d", "31"])));
    let _ = std::fs::remove_file(out);
    println!("{}, beside makedumpfile", subject.scene.name);
    let size = subject.bytes.len() as u64;
    report("after the last byte", ours, size);
    report("and all memory searched for the kernel", cold, size);
    report("peer: makedumpfile -d 31", theirs, size);
    report("peer: makedumpfile -c -d 31", compressed, size);
    for (what, ours) in [("after the last byte", ours), ("with the search", cold)] {
        println!(
            "  {what}, of the time of makedumpfile -d 31: {:.3} by processor time, {:.3} by the clock; the bar is 0.1",
            ours.processor.as_secs_f64() / theirs.processor.as_secs_f64(),
            ours.wall.as_secs_f64() / theirs.wall.as_secs_f64()
        );
    }
}

fn main() {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    one.expect("a thread").install(|| {
        for (kernel, work) in [
            (Kernel::V6_12, Work::Mixed),
            (Kernel::V6_12, Work::Cache),
            (Kernel::Newest, Work::Mixed),
            (Kernel::Newest, Work::Idle),
        ] {
            classify(&Subject::new(kernel, work));
        }
        makedumpfile(&Subject::new(Kernel::V6_12, Work::Mixed));
    });
}
