//! Every writer of snapshots as it is, into the real mount: what it wrote reads back byte for byte, with any two of the
//! disks gone every byte that the guest needs, and the guest goes on from it and is well.
//!
//! The guest is a saved one of `guests`, loaded and not let run, so that what a save must hold is known: its memory is
//! a file. Tests whose names end in `in_full` take long; `integration/test` runs them when it is asked for everything.
//! No two saves of it are the same, though: what QEMU does to its file it also does to one elsewhere (`tee.rs`).

mod copies;
mod libvirt;
mod loss;
mod lost;
mod qemu;
pub mod view;
mod vmms;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::guests::image::{self, Kernel};
use crate::guests::machine::{Machine, Way};
use crate::guests::{Scene, Work, health};
use crate::harness::volume::{Shape, Volume};

/// How long a guest may take for one order. Emulation on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(400);

/// How long one scenario may take.
const SECONDS: u64 = 2400;

/// A saved guest and a mounted volume of six disks, of which any two may be lost. Guests take turns.
struct Stand {
    scene: Scene,
    later: Option<Scene>,
    volume: Volume,
    _turn: fs::File,
}

impl Stand {
    fn new() -> Stand {
        Stand::of(scene(), None, &Shape::default())
    }

    /// With the same guest some minutes later.
    fn with_later() -> Stand {
        let scene = scene();
        let later = scene.later();
        Stand::of(scene, Some(later), &Shape::default())
    }

    /// On a volume that keeps every page as if it were critical.
    fn critical() -> Stand {
        let shape = Shape {
            expendable: "4+2",
            ..Shape::default()
        };
        Stand::of(scene(), None, &shape)
    }

    fn of(scene: Scene, later: Option<Scene>, shape: &Shape) -> Stand {
        let turn = image::exclusive("guest");
        let volume = Volume::mounted_as(shape);
        volume.limit(SECONDS);
        Stand {
            scene,
            later,
            volume,
            _turn: turn,
        }
    }

    /// The guest as it was some minutes later.
    fn later(&self) -> Scene {
        self.later.clone().expect("a stand with a later guest")
    }

    /// The guest's memory, which is what every save is of.
    fn memory(&self) -> &Path {
        &self.scene.setup.memory
    }

    /// The guest, loaded and stopped: it can be saved once.
    fn guest(&self) -> Machine {
        self.loaded(&self.scene)
    }

    /// A guest, loaded and stopped. What it does to a file in the mount it also does to one `elsewhere`.
    fn loaded(&self, scene: &Scene) -> Machine {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/writers/tee.rs");
        let tee = image::compiled(&source, "tee.so", &["--crate-type", "cdylib"]);
        let mut setup = scene.setup.clone();
        setup.environment = vec![
            ("LD_PRELOAD", tee),
            ("PARSFS_TEE_FROM", self.volume.mountpoint.clone()),
            ("PARSFS_TEE_TO", self.volume.scratch.directory("elsewhere")),
        ];
        Machine::load(&setup, &scene.state())
    }

    /// What a program wrote that wrote this file in the mount.
    fn elsewhere(&self, path: &Path) -> PathBuf {
        let name = path
            .strip_prefix(&self.volume.mountpoint)
            .expect("a file in the mount");
        self.volume.scratch.directory("elsewhere").join(name)
    }

    /// Loses two disks, by their numbers from 0, with nothing of any file left in anybody's memory.
    fn lose(&mut self, pair: [usize; 2]) {
        self.volume.umount();
        for number in pair {
            self.volume.disks[number].take_away();
        }
        self.volume.mount();
    }

    /// Has the guest go on from a save with memory of its own, and asks it whether it is well.
    #[track_caller]
    fn goes_on_from(&self, way: &Way) {
        let memory = self.volume.scratch.path().join("resumed");
        self.goes_on(&memory, false, |machine| machine.begin_load(way));
        let _ = fs::remove_file(&memory);
    }

    /// Has the guest go on in a memory file of which it maps its own copy, and asks it whether it is well.
    #[track_caller]
    fn goes_on_in(&self, memory: &Path) {
        let state = Way::state(&self.scene.state());
        self.goes_on(memory, true, |machine| machine.begin_load(&state));
    }

    #[track_caller]
    fn goes_on(&self, memory: &Path, private: bool, load: impl FnOnce(&mut Machine)) {
        let mut machine = Machine::wait_for_state(&self.scene.setup_with(memory, private), true);
        load(&mut machine);
        machine.wait_loaded().expect("the guest is loaded");
        machine.go_on();
        if let Err(text) = machine.try_run("", PATIENCE) {
            panic!("the guest does not go on: {text}");
        }
        let complaints = health::complaints(&mut machine.serial, PATIENCE);
        assert!(
            complaints.is_empty(),
            "the guest is not well: {complaints:#?}"
        );
    }
}

fn scene() -> Scene {
    Scene::new(Kernel::V6_12, Work::Mixed, "").ready()
}

/// The pairs of six disks.
fn pairs() -> Vec<[usize; 2]> {
    (0..6)
        .flat_map(|first| (first + 1..6).map(move |second| [first, second]))
        .collect()
}

/// Asserts that a file is what was written.
#[track_caller]
fn assert_written(path: &Path, written: &Path) {
    if let Err(why) = view::same(path, written) {
        panic!("{why}");
    }
}

/// Asserts that a file on a volume with lost disks is what was written, or what a guest is to read in its place.
#[track_caller]
fn assert_readable(path: &Path, written: &Path) {
    match view::after_loss(path, written) {
        Ok(read) => println!("{}: {read}", path.display()),
        Err(why) => panic!("{why}"),
    }
}

/// Asserts that a save holds the guest's memory, page by page.
#[track_caller]
fn assert_holds(path: &Path, memory: &Path) {
    if let Err(why) = view::holds(path, memory) {
        panic!("{why}");
    }
}

/// What the volume tells of a file, in an attribute of this name.
#[track_caller]
fn told(path: &Path, name: &str) -> String {
    let mut value = vec![0; 65_536];
    let length = rustix::fs::getxattr(path, format!("user.parsfs.{name}"), &mut value)
        .unwrap_or_else(|error| panic!("{}: {name}: {error}", path.display()));
    value.truncate(length);
    String::from_utf8(value).expect("text")
}

/// The number behind `name=` in lines of an attribute; 0 where there is no such line.
fn number(lines: &str, name: &str) -> u64 {
    let value = lines
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.map_or(0, |value| value.parse().expect("a number"))
}

/// Asserts that a save is protected, and that what the guest does without is stored once and the rest with parity. Of several
/// descriptors the last one's release gives the tiers, which nobody waits for.
#[track_caller]
fn assert_sorted(path: &Path) {
    let begin = Instant::now();
    while let Err(why) = sorted(path) {
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "{}: {why}",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether that is so; else what is there.
fn sorted(path: &Path) -> Result<(), String> {
    let state = told(path, "state");
    if state != "protected" {
        return Err(format!("its state is {state}"));
    }
    let (classes, stored) = (told(path, "classes"), told(path, "stored"));
    if number(&classes, "cache-clean") <= 10_000
        || number(&classes, "free") <= 1000
        || number(&classes, "anon") <= 1000
    {
        return Err(format!("{}\n{classes}", told(path, "guest")));
    }
    let (critical, expendable, parity) = (
        number(&stored, "critical"),
        number(&stored, "expendable"),
        number(&stored, "parity"),
    );
    // Two shards of parity for four of critical bytes, and none for the others; a window's shards are as long as its longest.
    match expendable > 0 && parity >= critical / 2 && parity < critical * 6 / 10 {
        true => Ok(()),
        false => Err(stored),
    }
}
