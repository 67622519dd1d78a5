//! Power fails after every step that a disk was asked for, and of what was not synced then every combination is
//! dropped, kept or torn. Each time the volume must mount, hold one of the states that it may, whole, and leave nothing
//! behind when its files are removed. All combinations for short programs, samples for long ones.
//!
//! `PARSFS_CRASH_PROGRAMS` is how many programs of each kind are run, `PARSFS_CRASH_SEED` repeats one.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use parsfs::config::Config;
use parsfs::disk::Disk;

use crate::faults::number;
use crate::model::{Loss, Model, State};
use crate::operation::{Operation, Sizes, apply, next};
use crate::random::Random;
use crate::recorder::Record;
use crate::rig::{Media, Shape, all, left_over, new_volume, observe, open};

/// So many combinations at one moment are tried all; of more, the extremes and some by chance.
const COMBINATIONS: usize = 1 << 7;

/// How a program is looked at.
#[derive(Clone, Copy, Debug)]
struct Kind {
    shape: Shape,
    operations: usize,
    sizes: Sizes,
    /// Of so many moments one is looked at.
    one_in: u64,
    /// Combinations by chance at a moment.
    samples: usize,
}

#[test]
fn short_programs_at_every_step() {
    let shape = Shape {
        disks: 2,
        k: 1,
        m: 1,
    };
    run_all(Kind {
        shape,
        operations: 9,
        sizes: Sizes {
            file: 110_000,
            write: 80_000,
        },
        one_in: 1,
        samples: 12,
    });
}

#[test]
fn long_programs_by_samples() {
    let shape = Shape {
        disks: 4,
        k: 2,
        m: 2,
    };
    run_all(Kind {
        shape,
        operations: 70,
        sizes: Sizes {
            file: 600_000,
            write: 200_000,
        },
        one_in: 23,
        samples: 3,
    });
}

fn run_all(kind: Kind) {
    let one = number("PARSFS_CRASH_SEED");
    let count = match one {
        Some(_) => 1,
        None => number("PARSFS_CRASH_PROGRAMS").unwrap_or(6),
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    for seed in one.unwrap_or(0)..one.unwrap_or(0) + count {
        let program = Program::run(kind, seed);
        let moments: Vec<usize> = (0..=program.record.length()).collect();
        let turn = AtomicU64::new(0);
        let failed: Mutex<Vec<String>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let at = turn.fetch_add(1, Ordering::Relaxed) as usize;
                        let Some(moment) = moments.get(at) else { break };
                        if !failed.lock().expect("failures").is_empty() {
                            break;
                        }
                        if let Err(why) = program.power_fails_after(*moment) {
                            failed.lock().expect("failures").push(why);
                        }
                    }
                });
            }
        });
        let failed = failed.into_inner().expect("failures");
        assert!(
            failed.is_empty(),
            "PARSFS_CRASH_SEED={seed}: {}\n{}",
            failed.join("\n"),
            program.story.join("\n")
        );
    }
}

/// A program that ran, and what it left to be found at every step.
struct Program {
    kind: Kind,
    seed: u64,
    config: Config,
    record: Arc<Record>,
    /// Every state that was ever committed or about to be.
    states: Vec<State>,
    /// From so many steps on: the states from the first number to the last may be found.
    bounds: Vec<(usize, usize, usize)>,
    story: Vec<String>,
}

impl Program {
    fn run(kind: Kind, seed: u64) -> Program {
        let mut random = Random::new(seed);
        let config = kind.shape.config();
        let media = new_volume(&config);
        let (record, disks) = Record::of(&media).expect("disks in memory can be read");
        let begin = record.length();
        let mut model = Model {
            legal: vec![State::new()],
            ..Model::default()
        };
        let mut states = vec![State::new()];
        let mut bounds = vec![(begin, 0, 0)];
        let mut story = Vec::new();
        let volume = open(&config, disks, None).expect("the volume opens");
        for number in 0..kind.operations {
            // A program that commits nothing shows nothing.
            let mut operation = next(&mut random, &model, kind.sizes);
            if number % 3 == 2
                && let Some(&file) = model.open().first()
            {
                operation = Operation::Sync { file };
            }
            // Nor does one whose bytes all lie in the metadata.
            if number % 4 == 1
                && let Some(&file) = model.open().first()
            {
                operation = Operation::Write {
                    file,
                    at: random.below(20_000),
                    length: 66_000 + random.below(9000) as usize,
                    seed: random.next(),
                };
            }
            let before = record.length();
            let known = model.legal.len();
            let first = bounds.last().map_or(0, |bound| bound.1);
            apply(&volume, &mut model, &operation).expect("no disk fails");
            if model.legal.len() > known {
                states.extend_from_slice(&model.legal[known..]);
                bounds.push((before, first, states.len() - 1));
            } else if model.legal.len() == 1 {
                // It was synced, and is certain from here on.
                states.extend_from_slice(&model.legal);
                bounds.push((before, first, states.len() - 1));
                bounds.push((record.length(), states.len() - 1, states.len() - 1));
            }
            story.push(format!("   {before}: {operation:?}"));
        }
        drop(volume);
        Program {
            kind,
            seed,
            config,
            record,
            states,
            bounds,
            story,
        }
    }

    /// Every combination of what is not certain after so many steps, or some of them.
    fn power_fails_after(&self, steps: usize) -> Result<(), String> {
        let begin = self.bounds[0].0;
        let mut random = Random::new(self.seed ^ (steps as u64) << 20);
        if steps < begin || !random.once_in(self.kind.one_in) {
            return Ok(());
        }
        let crash = self.record.after(steps);
        let open = crash.open();
        let mut seen = HashSet::new();
        for fates in combinations(&open, self.kind.samples, &mut random) {
            let media = crash.media(&fates, |most| random.index(most.max(1)));
            // Much of what is open makes no difference, where it has no name for example.
            if seen.insert(fingerprint(&media)) {
                self.look(steps, &media)
                    .map_err(|why| format!("after {steps} steps, with {fates:?}: {why}"))?;
            }
        }
        Ok(())
    }

    fn look(&self, steps: usize, media: &Media) -> Result<(), String> {
        let bound = self.bounds.iter().rev().find(|bound| bound.0 <= steps);
        let (_, mut first, mut last) = *bound.expect("the first bound");
        // An operation that began later and one that ended earlier at the same step.
        for bound in self.bounds.iter().filter(|bound| bound.0 == steps) {
            first = first.min(bound.1);
            last = last.max(bound.2);
        }
        let mut model = Model {
            legal: self.states[first..=last].to_vec(),
            ..Model::default()
        };
        let volume = open(&self.config, all(media), None)
            .map_err(|error| format!("the mount failed: {error}"))?;
        let found = observe(&volume).map_err(|error| error.to_string())?;
        model.settle(&found, Loss::None)?;
        let left = left_over(&volume, media).map_err(|error| error.to_string())?;
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("left over: {left:?}"))
        }
    }
}

/// Fates for open steps: all that there are if they are few.
fn combinations(open: &[usize], samples: usize, random: &mut Random) -> Vec<Vec<usize>> {
    let mut count = 1usize;
    for &fates in open {
        count = count.saturating_mul(fates);
    }
    if count <= COMBINATIONS {
        let all = (0..count).map(|mut number| {
            open.iter()
                .map(|&fates| {
                    let fate = number % fates;
                    number /= fates;
                    fate
                })
                .collect()
        });
        return all.collect();
    }
    let mut some = vec![vec![0; open.len()], vec![1; open.len()]];
    // One that is the only one kept, one that is the only one lost, one that is torn.
    for fate in [0, 1] {
        for _ in 0..samples {
            let mut fates = vec![fate; open.len()];
            let which = random.index(open.len());
            fates[which] = (1 - fate + random.index(2)).min(open[which] - 1);
            some.push(fates);
        }
    }
    for _ in 0..samples {
        some.push(open.iter().map(|&fates| random.index(fates)).collect());
    }
    some
}

fn fingerprint(media: &Media) -> u64 {
    let mut hasher = DefaultHasher::new();
    for disk in media {
        for (object, length) in disk.list().expect("a disk in memory") {
            let mut bytes = vec![0; length as usize];
            disk.read_at(object, 0, &mut bytes)
                .expect("a disk in memory");
            (object, bytes).hash(&mut hasher);
        }
    }
    hasher.finish()
}
