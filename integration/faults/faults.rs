//! Thousands of schedules of faults: a made-up program runs on a volume whose disks fail, and everything that the
//! volume answers is compared with a model. With no more than m disks failing nothing may be refused, lost or wrong;
//! with more, a call may fail, and still no byte may be wrong, and when disks that failed openly are well again,
//! everything that was answered for is there.
//!
//! `PARSFS_FAULT_SCHEDULES` is how many schedules are run, `PARSFS_FAULT_FROM` the first one's seed, and
//! `PARSFS_FAULT_SEED` repeats one, some dozen times, since threads of a volume may take turns otherwise.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use parsfs::config::Config;
use parsfs::disk::{FaultPlan, MemoryDisk};
use parsfs::volume::{Mode, Volume, VolumeError};

use crate::model::{Loss, Model};
use crate::operation::{Failure, Operation, Sizes, apply, next};
use crate::random::Random;
use crate::rig::{Media, Shape, after_kill, all, left_over, new_volume, observe, open};
use crate::schedule::{Regime, Schedule};
use crate::tiers::{MadeUp, PAGE, always_critical};

/// After this a schedule stands still.
const PATIENCE: Duration = Duration::from_secs(300);

/// After so many failed schedules no more are run.
const FAILURES: usize = 12;

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text}, and not a number")),
    )
}

#[test]
fn whatever_fails_no_byte_is_wrong() {
    let one = number("PARSFS_FAULT_SEED");
    let from = one.or_else(|| number("PARSFS_FAULT_FROM")).unwrap_or(0);
    let count = match one {
        Some(_) => number("PARSFS_FAULT_SCHEDULES").unwrap_or(36),
        None => number("PARSFS_FAULT_SCHEDULES").unwrap_or(1000),
    };
    if one.is_some() {
        // What the volume says; each line names its thread, as many volumes speak at once.
        tracing_subscriber::fmt()
            .with_env_filter(std::env::var("PARSFS_LOG").unwrap_or_else(|_| "warn".to_owned()))
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .init();
    }
    let begun = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let running: Mutex<HashMap<u64, Instant>> = Mutex::default();
    let done = AtomicBool::new(false);
    let threads = std::thread::available_parallelism().map_or(2, usize::from) + 1;
    // Panics of a volume's own threads are its business; those of a schedule are told below.
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let turn = begun.fetch_add(1, Ordering::Relaxed);
                if turn >= count || failed.lock().expect("failures").len() >= FAILURES {
                    break;
                }
                let seed = if one.is_some() { from } else { from + turn };
                running.lock().expect("seeds").insert(turn, Instant::now());
                let mut story = String::new();
                let run = catch_unwind(AssertUnwindSafe(|| run(seed, &mut story)));
                running.lock().expect("seeds").remove(&turn);
                let why = match run {
                    Ok(Ok(())) => continue,
                    Ok(Err(why)) => why,
                    Err(panic) => panic.downcast_ref::<String>().map_or_else(
                        || "it panicked".to_owned(),
                        |message| format!("it panicked: {message}"),
                    ),
                };
                let story = format!("seed {seed}: {why}\n{story}");
                // At once, in case that something stands still later.
                let _ = writeln!(std::io::stderr(), "{story}");
                failed.lock().expect("failures").push(story);
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
                let late = running.lock().expect("seeds");
                let late = late.iter().find(|(_, since)| since.elapsed() > PATIENCE);
                if let Some((turn, _)) = late {
                    let seed = if one.is_some() { from } else { from + turn };
                    eprintln!("seed {seed}: it stands still");
                    std::process::abort();
                }
            }
        });
        for worker in workers {
            let _ = worker.join();
        }
        done.store(true, Ordering::Relaxed);
    });
    let _ = std::panic::take_hook();
    let failed = failed.into_inner().expect("failures");
    assert!(
        failed.is_empty(),
        "{}\nrepeat one with PARSFS_FAULT_SEED={}",
        failed.join("\n\n"),
        failed[0].split([' ', ':']).nth(1).unwrap_or_default()
    );
}

/// A run of one seed.
struct Run {
    random: Random,
    shape: Shape,
    regime: Regime,
    victims: Vec<usize>,
    /// Disks that became faulty in an earlier mount, and are left alone until they are trusted again.
    left_alone: BTreeSet<usize>,
    config: Config,
    media: Media,
    tiers: Option<Arc<MadeUp>>,
    loss: Loss,
    model: Model,
    plans: Vec<Arc<FaultPlan>>,
}

fn run(seed: u64, story: &mut String) -> Result<(), String> {
    let mut random = Random::new(seed);
    let shape = Shape::pick(&mut random);
    let regime = Regime::pick(&mut random);
    let victims = regime.victims(&mut random, shape, &BTreeSet::new());
    let with_tiers = random.once_in(3);
    let config = shape.config();
    let sizes = *random.pick(&[
        Sizes {
            file: 40_000,
            write: 20_000,
        },
        Sizes {
            file: 200_000,
            write: 90_000,
        },
        Sizes {
            file: 200_000,
            write: 90_000,
        },
        Sizes {
            file: 900_000,
            write: 400_000,
        },
    ]);
    tell(
        story,
        format_args!("{shape:?}, {regime:?}, tiers: {with_tiers}, {sizes:?}"),
    );
    let mut run = Run {
        random,
        shape,
        regime,
        victims,
        left_alone: BTreeSet::new(),
        media: new_volume(&config),
        config,
        tiers: with_tiers.then(Arc::default),
        loss: if with_tiers {
            Loss::Expendable
        } else {
            Loss::None
        },
        model: Model {
            legal: vec![Default::default()],
            ..Model::default()
        },
        plans: Vec::new(),
    };
    let mounts = 1 + run.random.below(4);
    for _ in 0..mounts {
        let Some(volume) = run.mount(story)? else {
            return Ok(());
        };
        let well = run.work(&volume, sizes, story)?;
        run.leave(volume, well, story)?;
    }
    run.last_look(story)
}

fn tell(story: &mut String, line: std::fmt::Arguments<'_>) {
    let _ = writeln!(story, "   {line}");
}

impl Run {
    /// Whether nothing may be refused now.
    fn must_work(&self) -> bool {
        // Where a lying disk has lost a byte that was expendable when it was written and is critical now, the commit
        // that finds it is refused.
        let may_have_lost = self.tiers.is_some() && self.regime.is_silent();
        !self.regime.is_beyond()
            && self.shape.can_write_without(self.victims.len())
            && !may_have_lost
    }

    /// Whether a mount has so few disks that others may know better. Exactly half of them may be written to
    /// (`docs/reliability.md`, known faults).
    fn may_be_stale(&self, volume: &Volume) -> bool {
        let online = match volume.status() {
            Ok(status) => status
                .disks
                .iter()
                .filter(|disk| disk.state == "online")
                .count(),
            Err(_) => 0,
        };
        volume.is_read_only() || 2 * online <= self.shape.disks
    }

    fn went_apart(&self, error: &VolumeError) -> bool {
        let halves = self.regime.is_beyond() && self.shape.disks.is_multiple_of(2);
        halves && error.to_string().contains("apart from each other")
    }

    fn may_lose(&self) -> Loss {
        if self.regime.is_beyond() {
            Loss::Anything
        } else {
            self.loss
        }
    }

    /// Mounts with new faults and looks at everything. With too many faults it may not come to that, and then it is
    /// mounted without any. `None`: the volume is gone, as it may be.
    fn mount(&mut self, story: &mut String) -> Result<Option<Arc<Volume>>, String> {
        if !self.regime.is_silent() {
            // A disk that became faulty is left alone, and counts with those that fail, until an operator looks after it.
            if !self.left_alone.is_empty() && self.random.once_in(2) && !self.trust_again(story)? {
                return Ok(None);
            }
            self.victims = self
                .regime
                .victims(&mut self.random, self.shape, &self.left_alone);
        }
        let schedule = Schedule::pick(&mut self.random, self.regime, &self.victims);
        tell(story, format_args!("mount, with\n{schedule}"));
        let (disks, plans) = schedule.over(&self.media, self.random.next());
        self.plans = plans;
        // Some faults begin only when the volume is mounted.
        let late = self.random.once_in(2);
        if late {
            self.plans.iter().for_each(|plan| plan.clear());
        }
        let opened = open(&self.config, disks, self.tiers.as_ref()).and_then(|volume| {
            let found = observe(&volume)?;
            Ok((volume, found))
        });
        let loss = if late {
            self.settled_loss()
        } else {
            self.may_lose()
        };
        match opened {
            // With half of the disks, or fewer, it may be an older state.
            Ok((volume, _)) if self.regime.is_beyond() && self.may_be_stale(&volume) => {
                tell(story, format_args!("perhaps stale, as it may be"));
                self.without_faults(story)
            }
            Ok((volume, found)) => {
                self.model.settle(&found, loss)?;
                if late {
                    for (disk, line) in &schedule.rules {
                        self.plans[*disk].add(line.rule());
                    }
                }
                Ok(Some(volume))
            }
            // While a disk lies, a mount may be refused; nothing may be lost by it.
            Err(error) if (self.regime.is_beyond() || self.regime.is_silent()) && !late => {
                tell(story, format_args!("refused, as it may be: {error}"));
                self.without_faults(story)
            }
            Err(error) if self.regime == Regime::SilentBeyond => {
                tell(story, format_args!("the volume is gone: {error}"));
                Ok(None)
            }
            Err(error) if self.went_apart(&error) => {
                tell(
                    story,
                    format_args!("two halves went apart, as they may: {error}"),
                );
                Ok(None)
            }
            Err(error) => Err(format!("the mount failed: {error}")),
        }
    }

    /// What may be lost when no disk fails any more.
    fn settled_loss(&self) -> Loss {
        match self.regime {
            // What openly failed is well again.
            Regime::Loud | Regime::LoudBeyond => self.loss,
            Regime::Silent => self.loss,
            Regime::SilentBeyond => Loss::Anything,
        }
    }

    fn without_faults(&mut self, story: &mut String) -> Result<Option<Arc<Volume>>, String> {
        tell(story, format_args!("mount without faults"));
        self.reopen_media();
        let (disks, plans) = Schedule::default().over(&self.media, 0);
        self.plans = plans;
        let opened = open(&self.config, disks, self.tiers.as_ref()).and_then(|volume| {
            let found = observe(&volume)?;
            Ok((volume, found))
        });
        match opened {
            Ok((volume, found)) => {
                self.model.settle(&found, self.settled_loss())?;
                Ok(Some(volume))
            }
            Err(error) if self.regime == Regime::SilentBeyond => {
                tell(story, format_args!("the volume is gone: {error}"));
                Ok(None)
            }
            // Each half of the disks was written to without the other one.
            Err(error) if self.went_apart(&error) => {
                tell(
                    story,
                    format_args!("two halves went apart, as they may: {error}"),
                );
                Ok(None)
            }
            Err(error) => Err(format!("all disks are well, and the mount failed: {error}")),
        }
    }

    /// Notes which disks the volume leaves alone from now on: after everything that it does, as it may find one faulty until its
    /// end. One of which a kill kept it from writing that down is among them too.
    fn note_left_alone(&mut self, volume: &Volume, story: &mut String) -> Result<(), String> {
        let status = match volume.status() {
            Ok(status) => status,
            // Where too many fail there may be none, and any that fails may be left alone.
            Err(error) if self.regime.is_beyond() => {
                tell(story, format_args!("no status, as it may be: {error}"));
                self.left_alone = self.victims.iter().copied().collect();
                return Ok(());
            }
            Err(error) => return Err(format!("no status is had: {error}")),
        };
        let disks = status.disks.iter().enumerate();
        self.left_alone = disks
            .filter(|(_, disk)| disk.state == "faulty")
            .map(|(number, _)| number)
            .collect();
        if !self.left_alone.is_empty() {
            tell(story, format_args!("left alone: {:?}", self.left_alone));
        }
        Ok(())
    }

    /// What an operator does about faulty disks that work again: they are trusted, and what they lack is written to them.
    /// From then on any m disks may be gone. `false`: the volume is gone, as it may be.
    fn trust_again(&mut self, story: &mut String) -> Result<bool, String> {
        let Some(volume) = self.without_faults(story)? else {
            return Ok(false);
        };
        let state = |word: &str| -> Result<Vec<String>, String> {
            let status = volume.status();
            let status = status.map_err(|error| format!("no status is had: {error}"))?;
            let disks = status.disks.into_iter();
            Ok(disks
                .filter(|disk| disk.state == word)
                .map(|disk| disk.name)
                .collect())
        };
        let faulty = state("faulty")?;
        tell(story, format_args!("{faulty:?} are trusted again"));
        for (number, disk) in self.config.disks.iter().enumerate() {
            if faulty.contains(&disk.name) {
                volume
                    .bring_disk_online_on(&disk.name, Arc::clone(&self.media[number]) as _)
                    .map_err(|error| format!("{} does not come back: {error}", disk.name))?;
            }
        }
        let since = Instant::now();
        while !state("rebuilding")?.is_empty() {
            if since.elapsed() > PATIENCE / 2 {
                return Err(format!("{:?} stay rebuilding", state("rebuilding")?));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.note_left_alone(&volume, story)?;
        if !self.left_alone.is_empty() {
            return Err("disks that are trusted again are faulty without a fault".to_owned());
        }
        volume
            .close()
            .map_err(|error| format!("close after a rebuild: {error}"))?;
        self.reopen_media();
        self.without_any_m(story)?;
        Ok(true)
    }

    /// Looks at everything while m disks are gone.
    fn without_any_m(&mut self, story: &mut String) -> Result<(), String> {
        let mut disks: Vec<_> = all(&self.media).into_iter().map(Some).collect();
        let mut gone = Vec::new();
        while gone.len() < self.shape.m {
            let disk = self.random.index(disks.len());
            if disks[disk].take().is_some() {
                gone.push(disk);
            }
        }
        tell(story, format_args!("everything is there without {gone:?}"));
        let found = Volume::open_on(&self.config, disks, Mode::ReadOnly, Default::default())
            .and_then(|volume| observe(&volume))
            .map_err(|error| format!("without {gone:?}: {error}"))?;
        self.model
            .settle(&found, self.settled_loss())
            .map_err(|why| format!("without {gone:?}: {why}"))?;
        self.reopen_media();
        Ok(())
    }

    /// The disks as a program finds them that is started after this one was killed.
    fn reopen_media(&mut self) {
        self.media = after_kill(&self.media);
    }

    /// Some operations; `false` when one was refused, as it may be.
    fn work(&mut self, volume: &Volume, sizes: Sizes, story: &mut String) -> Result<bool, String> {
        for _ in 0..4 + self.random.below(22) {
            if self.random.once_in(12)
                && let Some(tiers) = &self.tiers
            {
                tiers.change();
            }
            let operation = next(&mut self.random, &self.model, sizes);
            tell(story, format_args!("{operation:?}"));
            match apply(volume, &mut self.model, &operation) {
                Ok(()) => {}
                Err(Failure::Wrong(why)) => return Err(why),
                Err(Failure::Refused(_)) if self.only_lost_pages(volume, &operation)? => {}
                Err(Failure::Refused(error)) => {
                    if self.must_work() {
                        return Err(format!("it was refused: {error}"));
                    }
                    tell(story, format_args!("refused, as it may be: {error}"));
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether an operation is a read that was refused for expendable pages alone: every other page of it must be there.
    fn only_lost_pages(&self, volume: &Volume, operation: &Operation) -> Result<bool, String> {
        let &Operation::Read { file, at, length } = operation else {
            return Ok(false);
        };
        if self.tiers.is_none() || self.regime.is_beyond() {
            return Ok(false);
        }
        let file = &self.model.files[file];
        let Some(handle) = file.handle else {
            return Ok(false);
        };
        let end = file.now.len().min(at as usize + length) as u64;
        for page in (at / PAGE..end.div_ceil(PAGE)).filter(|&page| always_critical(page)) {
            let found = volume
                .read(handle, page * PAGE, PAGE as usize)
                .map_err(|error| format!("page {page}: {error}"))?;
            let expected = file.now.chunks(PAGE as usize).nth(page as usize);
            if Some(&found[..]) != expected {
                return Err(format!("WRONG BYTES in page {page}"));
            }
        }
        Ok(true)
    }

    /// Ends a mount: in good order, by a kill, or by a loss of power.
    fn leave(&mut self, volume: Arc<Volume>, well: bool, story: &mut String) -> Result<(), String> {
        let way = if well {
            self.random.below(3)
        } else {
            1 + self.random.below(2)
        };
        match way {
            0 => {
                tell(story, format_args!("close"));
                let open = self.model.open();
                // Each of the files may be committed when another one fails.
                let before = self.model.legal.len();
                for &file in &open {
                    self.model.committed(file);
                }
                match volume.close() {
                    Ok(()) => self.model.synced(),
                    Err(error) if self.must_work() => return Err(format!("close: {error}")),
                    Err(error) => {
                        tell(story, format_args!("refused, as it may be: {error}"));
                        self.any_of(before, open.len());
                    }
                }
                self.reopen_media();
                self.note_left_alone(&volume, story)?;
                drop(volume);
            }
            1 => {
                tell(story, format_args!("kill"));
                self.reopen_media();
                self.note_left_alone(&volume, story)?;
                drop(volume);
            }
            _ => {
                let seed = self.random.next();
                tell(story, format_args!("power is lost, {seed}"));
                self.media = MemoryDisk::together(&self.media, |number, disk| {
                    disk.after_power_loss(seed ^ number as u64)
                });
                self.note_left_alone(&volume, story)?;
                drop(volume);
            }
        }
        Ok(())
    }

    /// Files were committed in an order that is not known, and some were not: every mixture is legal.
    fn any_of(&mut self, before: usize, files: usize) {
        let states = &self.model.legal;
        let Some(last) = states.last().cloned() else {
            return;
        };
        let Some(first) = states.get(before.saturating_sub(1)).cloned() else {
            return;
        };
        let changed: Vec<String> = last
            .iter()
            .filter(|(name, bytes)| first.get(*name) != Some(bytes))
            .map(|(name, _)| name.clone())
            .collect();
        for choice in 0..1u32 << changed.len().min(files + 1) {
            let mut state = first.clone();
            for (n, name) in changed.iter().enumerate() {
                if choice >> n & 1 == 1 {
                    state.insert(name.clone(), last[name].clone());
                }
            }
            self.model.legal.push(state);
        }
    }

    /// Everything once more without faults, and nothing may be left when all files are removed.
    fn last_look(&mut self, story: &mut String) -> Result<(), String> {
        if !self.left_alone.is_empty()
            && !self.regime.is_silent()
            && self.random.once_in(2)
            && !self.trust_again(story)?
        {
            return Ok(());
        }
        let Some(volume) = self.without_faults(story)? else {
            return Ok(());
        };
        if self.regime.is_silent() {
            return Ok(());
        }
        let left =
            left_over(&volume, &self.media).map_err(|error| format!("at the end: {error}"))?;
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("left over: {left:?}"))
        }
    }
}
