//! Everything at once for as long as `PARSFS_SOAK_SECONDS` says (600 where it says nothing): writers that make, rewrite,
//! grow, rename and delete files, readers of files that nobody changes, disks that go away and come back, an operator who
//! scrubs and puts new disks in the place of others, and a daemon that is killed with -9 or unmounted in the middle of it.
//! After each end of the daemon every writer finds one of the states that its calls may have left, and in the end
//! everything is compared, with pairs of disks gone too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::content;
use crate::harness::disks::{Backing, Kind, TestDisk};
use crate::harness::process;
use crate::harness::random::Random;
use crate::harness::volume::{Shape, Volume, binary};
use crate::harness::wait_until;

const WRITERS: u64 = 3;
const READERS: u64 = 2;
/// Names that a writer uses.
const NAMES: u64 = 10;
/// Files that nobody changes, and how long each is.
const STILL: u64 = 4;
const STILL_LENGTH: u64 = 9_000_000;
/// How long a task of the operator's may take.
const LONG: Duration = Duration::from_secs(200);

/// What a name holds: the seed of its bytes and how many there are.
type Held = (u64, u64);
type State = BTreeMap<String, Held>;

/// A writer, its directory, and what may be found in it.
struct Writer {
    number: u64,
    random: Random,
    now: State,
    /// What a crash may leave, the oldest first: a sync that was answered leaves only the newest.
    legal: Vec<State>,
}

/// Calls that came to a good end.
#[derive(Default)]
struct Counts {
    written: AtomicU64,
    renamed: AtomicU64,
    removed: AtomicU64,
    read: AtomicU64,
    scrubs: AtomicU64,
}

impl Writer {
    fn new(number: u64) -> Writer {
        Writer {
            number,
            random: Random::new(number + 100),
            now: State::new(),
            legal: vec![State::new()],
        }
    }

    fn directory(&self, root: &Path) -> PathBuf {
        root.join(format!("writer{}", self.number))
    }

    fn change(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.now);
        self.legal.push(self.now.clone());
    }

    fn synced(&mut self) {
        self.legal = vec![self.now.clone()];
    }

    /// Works until a call fails, which only the end of the daemon may cause, or until it is told to stop.
    fn work(&mut self, root: &Path, stop: &AtomicBool, counts: &Counts) -> Result<(), String> {
        let directory = self.directory(root);
        while !stop.load(Ordering::SeqCst) {
            if let Err(error) = self.step(&directory, counts) {
                return refused(&error, stop)
                    .map_err(|why| format!("writer {}: {why}", self.number));
            }
        }
        Ok(())
    }

    fn step(&mut self, directory: &Path, counts: &Counts) -> io::Result<()> {
        let name = format!("f{}", self.random.below(NAMES));
        let path = directory.join(&name);
        let seed = self.random.next();
        let length = match self.random.below(6) {
            0 => self.random.below(3_000_000),
            1..=2 => self.random.below(300_000),
            _ => self.random.below(30_000),
        };
        let held = self.now.get(&name).copied();
        match self.random.below(10) {
            // A new file, or an old one written anew.
            0..=3 => {
                let file = match held {
                    Some(_) => OpenOptions::new().write(true).truncate(true).open(&path)?,
                    None => {
                        // It may be there although the call fails.
                        self.legal.push({
                            let mut made = self.now.clone();
                            made.insert(name.clone(), (seed, 0));
                            made
                        });
                        let file = OpenOptions::new()
                            .write(true)
                            .create_new(true)
                            .open(&path)?;
                        self.now.insert(name.clone(), (seed, 0));
                        file
                    }
                };
                content::write_range(&file, seed, 0, length)?;
                self.change(|state| {
                    state.insert(name, (seed, length));
                });
                content::close(file)?;
                self.synced();
                counts.written.fetch_add(1, Ordering::Relaxed);
            }
            4 => {
                if let Some((seed, before)) = held {
                    let file = OpenOptions::new().write(true).open(&path)?;
                    content::write_range(&file, seed, before, length)?;
                    self.change(|state| {
                        state.insert(name, (seed, before + length));
                    });
                    file.sync_all()?;
                    self.synced();
                    content::close(file)?;
                    counts.written.fetch_add(1, Ordering::Relaxed);
                }
            }
            5 => {
                let to = format!("f{}", self.random.below(NAMES));
                if let Some(held) = held.filter(|_| to != name) {
                    let renamed = |state: &mut State| {
                        state.remove(&name);
                        state.insert(to.clone(), held);
                    };
                    let mut after = self.now.clone();
                    renamed(&mut after);
                    self.legal.push(after);
                    fs::rename(&path, directory.join(&to))?;
                    renamed(&mut self.now);
                    counts.renamed.fetch_add(1, Ordering::Relaxed);
                }
            }
            6 => {
                if held.is_some() {
                    let mut after = self.now.clone();
                    after.remove(&name);
                    self.legal.push(after);
                    fs::remove_file(&path)?;
                    self.now.remove(&name);
                    counts.removed.fetch_add(1, Ordering::Relaxed);
                }
            }
            7 => {
                File::open(directory)?.sync_all()?;
                self.synced();
            }
            _ => {
                if let Some(held) = held {
                    check(&path, held)?;
                    counts.read.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Finds out which of the legal states is there.
    fn look(&mut self, root: &Path) -> Result<(), String> {
        let directory = self.directory(root);
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&directory).map_err(|error| error.to_string())? {
            let entry = entry.map_err(|error| error.to_string())?;
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
        let mut why = Vec::new();
        for state in self.legal.iter().rev() {
            if !state.keys().eq(names.iter()) {
                why.push(format!("the names are {:?}", state.keys()));
                continue;
            }
            let wrong = state
                .iter()
                .find_map(|(name, held)| check(&directory.join(name), *held).err());
            match wrong {
                Some(error) => why.push(error.to_string()),
                None => {
                    self.now = state.clone();
                    // It may still be lost: only what is committed now is certain.
                    self.legal = vec![self.now.clone()];
                    return Ok(());
                }
            }
        }
        Err(format!(
            "writer {} finds {names:?}, which is none of {} legal states: {}",
            self.number,
            why.len(),
            why.join("; ")
        ))
    }
}

fn check(path: &Path, (seed, length): Held) -> io::Result<()> {
    let file = File::open(path)?;
    let found = file.metadata()?.len();
    if found != length {
        return Err(io::Error::other(format!(
            "{}: {found} bytes long instead of {length}",
            path.display()
        )));
    }
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    while done < length {
        let now = (length - done).min(buffer.len() as u64) as usize;
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut buffer[..now], done)?;
        if let Some(place) = content::first_wrong(seed, done, &buffer[..now]) {
            return Err(io::Error::other(format!(
                "{}: WRONG BYTE at {place}",
                path.display()
            )));
        }
        done += now as u64;
    }
    Ok(())
}

/// A call failed: the system may refuse it once the daemon is being ended. That bytes are wrong nothing excuses.
fn refused(error: &io::Error, stop: &AtomicBool) -> Result<(), String> {
    if error.raw_os_error().is_some() && stop.load(Ordering::SeqCst) {
        Ok(())
    } else {
        Err(error.to_string())
    }
}

fn still(root: &Path, number: u64) -> PathBuf {
    root.join(format!("still{number}"))
}

/// Reads files that nobody changes, over and over.
fn read(root: &Path, from: u64, stop: &AtomicBool, counts: &Counts) -> Result<(), String> {
    for number in from.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let number = number % STILL;
        match check(&still(root, number), (number, STILL_LENGTH)) {
            Ok(()) => {
                counts.read.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => return refused(&error, stop).map_err(|why| format!("a reader: {why}")),
        }
    }
    Ok(())
}

/// A disk that is to take the place of another one.
struct Replacement {
    /// Which of the volume's disks is to leave.
    place: usize,
    by: TestDisk,
}

/// What the operator does in a round.
#[derive(Debug)]
enum Order {
    Scrub {
        detach: bool,
    },
    Replace {
        old: String,
        new: PathBuf,
        detach: bool,
    },
}

impl Order {
    fn pick(
        random: &mut Random,
        volume: &Volume,
        replacing: &mut Option<Replacement>,
        made: &mut usize,
    ) -> Option<Order> {
        let detach = random.once_in(2);
        match random.below(3) {
            0 => None,
            1 => Some(Order::Scrub { detach }),
            _ => {
                // One that was begun is gone on with: the same command once more.
                let replacement = replacing.get_or_insert_with(|| {
                    *made += 1;
                    Replacement {
                        place: random.index(volume.disks.len()),
                        by: TestDisk::new(&volume.scratch, *made, Backing::Directory),
                    }
                });
                Some(Order::Replace {
                    old: called(&volume.disks[replacement.place].path),
                    new: replacement.by.path.clone(),
                    detach,
                })
            }
        }
    }

    fn detach(&self) -> bool {
        match self {
            Order::Scrub { detach } | Order::Replace { detach, .. } => *detach,
        }
    }

    /// Gives it. Not while a writer has anything open: a program inherits the files of the whole process and closes them on its
    /// way to exec, and a close makes true what was written until then.
    fn give(&self, root: &Path) -> process::Started {
        let mut command = Command::new(binary());
        match self {
            Order::Scrub { .. } => command.arg("scrub").arg(root),
            Order::Replace { old, new, .. } => command
                .args(["disk", "replace"])
                .arg(root)
                .arg(old)
                .arg(new),
        };
        command.arg(if self.detach() { "--detach" } else { "--json" });
        process::start(&mut command)
    }

    /// Waits until it is done. It may be refused when the daemon is being ended, or while another task is under way; nothing
    /// may be beyond repair.
    fn done(
        &self,
        given: process::Started,
        stop: &AtomicBool,
        counts: &Counts,
    ) -> Result<(), String> {
        let outcome = given.finish(LONG);
        if let (false, Some(last)) = (self.detach(), outcome.stdout.lines().last()) {
            let status: serde_json::Value = serde_json::from_str(last)
                .map_err(|error| format!("the operator is told {last}: {error}"))?;
            if status["gone"] != 0 {
                return Err(format!("the operator is told of a loss: {status:#}"));
            }
        }
        if outcome.success() {
            if let Order::Scrub { .. } = self {
                counts.scrubs.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(());
        }
        // What ended it may have been the end of the daemon, which is told of a moment later.
        std::thread::sleep(Duration::from_millis(300));
        let over = match self {
            // The replacement that was to be gone on with ended by itself meanwhile.
            Order::Replace { old, .. } => outcome.stderr.contains(&format!("has no disk {old}")),
            Order::Scrub { .. } => false,
        };
        let excused = over
            || stop.load(Ordering::SeqCst)
            || outcome.stderr.contains("under way")
            // A disk that is taken away under a scrub is a problem to it.
            || outcome.status.code() == Some(4);
        if excused {
            Ok(())
        } else {
            Err(format!(
                "the operator: {self:?} ended with {}: {}{}",
                outcome.status, outcome.stdout, outcome.stderr
            ))
        }
    }
}

/// What a volume calls the disk at this path.
fn called(path: &Path) -> String {
    let name = path.file_name().expect("a directory's name");
    name.to_string_lossy().into_owned()
}

/// Whether the volume has a disk of this name.
fn has_disk(volume: &Volume, name: &str) -> bool {
    let status = volume.status();
    let disks = status["disks"].as_array().expect("disks");
    disks.iter().any(|disk| disk["name"] == name)
}

/// Takes note of a replacement that has come to its end.
fn note_replaced(
    volume: &mut Volume,
    replacing: &mut Option<Replacement>,
    away: &mut Vec<usize>,
) -> bool {
    let Some(replacement) = replacing.take() else {
        return false;
    };
    let place = replacement.place;
    if has_disk(volume, &called(&volume.disks[place].path)) {
        *replacing = Some(replacement);
        return false;
    }
    assert!(
        has_disk(volume, &called(&replacement.by.path)),
        "the old disk has left, and the new one is not there:\n{:#}",
        volume.status()
    );
    let old = std::mem::replace(&mut volume.disks[place], replacement.by);
    // One that was away when it was struck off stays away.
    if away.contains(&place) {
        away.retain(|disk| *disk != place);
        old.bring_back();
    }
    fs::remove_dir_all(&old.path).expect("the old disk");
    true
}

#[test]
fn everything_at_once() {
    let seconds = std::env::var("PARSFS_SOAK_SECONDS").map_or(600, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("PARSFS_SOAK_SECONDS is {text}, and not a number"))
    });
    let mut volume = Volume::new(&Shape {
        backing: Backing::Directory,
        more: "block_size = \"32K\"".to_owned(),
        ..Shape::default()
    });
    volume.limit(seconds + 240);
    volume.mount();
    let root = volume.mountpoint.clone();
    for number in 0..STILL {
        content::write_file(&still(&root, number), number, STILL_LENGTH).expect("a still file");
    }
    let mut writers: Vec<Writer> = (0..WRITERS).map(Writer::new).collect();
    for writer in &writers {
        fs::create_dir(writer.directory(&root)).expect("a writer's directory");
    }
    File::open(&root)
        .and_then(|root| root.sync_all())
        .expect("synced");
    let counts = Counts::default();
    let mut random = Random::new(7);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut kills, mut rounds, mut replaced) = (0, 0, 0);
    let mut away: Vec<usize> = Vec::new();
    let mut replacing: Option<Replacement> = None;
    let mut made = volume.disks.len();
    while Instant::now() < end {
        rounds += 1;
        let stop = AtomicBool::new(false);
        let order = Order::pick(&mut random, &volume, &mut replacing, &mut made);
        let failed: Vec<String> = std::thread::scope(|scope| {
            let (root, stop, counts) = (&root, &stop, &counts);
            let mut running = Vec::new();
            let given = order.as_ref().map(|order| (order, order.give(root)));
            for writer in &mut writers {
                running.push(scope.spawn(move || writer.work(root, stop, counts)));
            }
            for reader in 0..READERS {
                running.push(scope.spawn(move || read(root, reader, stop, counts)));
            }
            if let Some((order, given)) = given {
                running.push(scope.spawn(move || order.done(given, stop, counts)));
            }
            std::thread::sleep(Duration::from_millis(200 + random.below(6000)));
            // In the middle of it all at most two disks are gone.
            if away.is_empty() && random.once_in(2) {
                for _ in 0..1 + random.below(2) {
                    let disk = random.index(volume.disks.len());
                    if !away.contains(&disk) {
                        volume.disks[disk].take_away();
                        away.push(disk);
                    }
                }
                std::thread::sleep(Duration::from_millis(random.below(3000)));
            }
            stop.store(true, Ordering::SeqCst);
            if !random.once_in(3) {
                volume.kill();
                kills += 1;
            }
            let results = running
                .into_iter()
                .map(|thread| thread.join().expect("a thread"));
            results.filter_map(Result::err).collect()
        });
        assert!(failed.is_empty(), "round {rounds}: {}", failed.join("\n"));
        if volume.is_mounted() {
            volume.umount();
        }
        // Sometimes a mount has to do without them too.
        if random.once_in(2) {
            for disk in away.drain(..) {
                volume.disks[disk].bring_back();
            }
        }
        if let Err(why) = volume.try_mount(&[]) {
            panic!("round {rounds}: it does not mount: {why}");
        }
        replaced += u64::from(note_replaced(&mut volume, &mut replacing, &mut away));
        for writer in &mut writers {
            if let Err(why) = writer.look(&root) {
                panic!("round {rounds}: {why}");
            }
        }
    }
    volume.umount();
    for disk in away.drain(..) {
        volume.disks[disk].bring_back();
    }
    // Once with all disks, so that what was begun ends and those that were away catch up, and then with pairs of them gone.
    volume.limit(900);
    volume.mount();
    finish(&mut volume, &mut replacing);
    let compare = |writers: &mut [Writer], when: &str| {
        for writer in writers {
            writer
                .look(&root)
                .unwrap_or_else(|why| panic!("{when}: {why}"));
        }
        for number in 0..STILL {
            check(&still(&root, number), (number, STILL_LENGTH))
                .unwrap_or_else(|error| panic!("{when}: {error}"));
        }
    };
    compare(&mut writers, "in the end");
    process::run(Command::new(binary()).arg("scrub").arg(&root), LONG)
        .expect_success("a scrub in the end");
    volume.umount();
    volume
        .parsfs(["fsck".as_ref(), volume.config.as_os_str()])
        .expect_success("fsck in the end");
    for (first, second) in [(0, 1), (2, 5), (3, 4)] {
        volume.disks[first].take_away();
        volume.disks[second].take_away();
        volume.mount_with(&["--read-only"]);
        compare(&mut writers, &format!("without disks {first} and {second}"));
        volume.umount();
        volume.disks[first].bring_back();
        volume.disks[second].bring_back();
    }
    volume.mount();
    for entry in fs::read_dir(&root).expect("list") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        }
        .expect("removing");
    }
    volume.remount();
    volume.umount();
    for disk in &volume.disks {
        for kind in [Kind::Segment, Kind::Manifest] {
            assert_eq!(
                disk.files(kind),
                Vec::<PathBuf>::new(),
                "of an empty volume"
            );
        }
    }
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    println!(
        "{rounds} rounds with {kills} kills and {replaced} replaced disks: {} scrubs, {} files written, {} renamed, {} \
         removed, {} read",
        count(&counts.scrubs),
        count(&counts.written),
        count(&counts.renamed),
        count(&counts.removed),
        count(&counts.read)
    );
    assert!(
        kills > 0 && count(&counts.written) > 20,
        "nothing was tested"
    );
    // In two minutes there are some twenty rounds.
    assert!(
        seconds < 100 || replaced > 0 && count(&counts.scrubs) > 0,
        "the operator did nothing"
    );
}

/// Has the replacement that was begun come to its end, and every disk have what it should have.
fn finish(volume: &mut Volume, replacing: &mut Option<Replacement>) {
    let long = Duration::from_secs(120);
    let idle = |volume: &Volume| {
        let outcome = volume.parsfs([
            "task".as_ref(),
            "--json".as_ref(),
            volume.mountpoint.as_os_str(),
        ]);
        !outcome.stdout.contains("\"running\"")
    };
    wait_until("the task to end", long, || idle(volume));
    note_replaced(volume, replacing, &mut Vec::new());
    if let Some(replacement) = replacing {
        let old = called(&volume.disks[replacement.place].path);
        let order = Order::Replace {
            old: old.clone(),
            new: replacement.by.path.clone(),
            detach: false,
        };
        order
            .give(&volume.mountpoint)
            .finish(LONG)
            .expect_success("the last replacement");
        assert!(
            note_replaced(volume, replacing, &mut Vec::new()),
            "{old} is still there"
        );
    }
    wait_until("all disks to be online", long, || {
        let status = volume.status();
        let disks = status["disks"].as_array().expect("disks");
        disks
            .iter()
            .all(|disk| disk["state"] == "online" || disk["state"] == "suspect")
    });
}
