//! What goes wrong in a run: which disks fail, how, and when. All of it follows a seed, and can be printed.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parsfs::disk::{
    Disk, Fault, FaultPlan, FaultyDisk, ObjectName, Operation, Operations, Rule, When,
};

use crate::random::Random;
use crate::rig::{Media, Shape};

/// How much goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regime {
    /// At most m disks at a time say that they fail; after a mount they may be others.
    Loud,
    /// The same m disks or fewer lie the whole time.
    Silent,
    /// More than m disks say that they fail.
    LoudBeyond,
    /// More than m disks lie, but not all.
    SilentBeyond,
}

impl Regime {
    /// Some regime; most are within what a volume has to stand.
    pub fn pick(random: &mut Random) -> Regime {
        match random.below(10) {
            0..=3 => Regime::Loud,
            4..=6 => Regime::Silent,
            7..=8 => Regime::LoudBeyond,
            _ => Regime::SilentBeyond,
        }
    }

    /// Whether more disks fail than a volume has to stand.
    pub fn is_beyond(self) -> bool {
        matches!(self, Regime::LoudBeyond | Regime::SilentBeyond)
    }

    /// Whether what fails lies about it.
    pub fn is_silent(self) -> bool {
        matches!(self, Regime::Silent | Regime::SilentBeyond)
    }

    /// The disks that fail. Those that are left alone already are among them, as far as there is room.
    pub fn victims(
        self,
        random: &mut Random,
        shape: Shape,
        left_alone: &BTreeSet<usize>,
    ) -> Vec<usize> {
        let count = match self {
            Regime::Loud | Regime::Silent => 1 + random.index(shape.m),
            Regime::LoudBeyond => shape.m + 1 + random.index(shape.disks - shape.m),
            Regime::SilentBeyond => shape.m + 1 + random.index(shape.disks - shape.m - 1),
        };
        let mut disks: Vec<usize> = (0..shape.disks).collect();
        let count = count.max(left_alone.len().min(shape.disks));
        while disks.len() > count {
            let place = random.index(disks.len());
            if !left_alone.contains(&disks[place]) {
                disks.remove(place);
            }
        }
        disks
    }
}

/// A rule that can be told of.
#[derive(Clone, Debug)]
pub struct Line {
    operations: Vec<Operation>,
    objects: Objects,
    when: When,
    fault: Fault,
}

/// Which objects a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Objects {
    All,
    Blocks,
    Parity,
    Manifests,
    Journals,
    Names,
    Databases,
    Labels,
}

impl Objects {
    fn has(self, object: ObjectName) -> bool {
        match self {
            Objects::All => true,
            Objects::Blocks => matches!(object, ObjectName::Blocks(_)),
            Objects::Parity => matches!(object, ObjectName::Parity(_)),
            Objects::Manifests => matches!(object, ObjectName::Manifest(_)),
            Objects::Journals => matches!(object, ObjectName::Journal(_)),
            Objects::Names => matches!(object, ObjectName::Names(_)),
            Objects::Databases => object == ObjectName::Database,
            Objects::Labels => object == ObjectName::Label,
        }
    }
}

const KINDS: [Operation; 19] = [
    Operation::Create,
    Operation::Resume,
    Operation::Append,
    Operation::Sync,
    Operation::Read,
    Operation::Length,
    Operation::Put,
    Operation::Restore,
    Operation::Punch,
    Operation::Remove,
    Operation::List,
    Operation::SyncNames,
    Operation::Space,
    Operation::RandomOpen,
    Operation::RandomLength,
    Operation::RandomSetLength,
    Operation::RandomRead,
    Operation::RandomWrite,
    Operation::RandomSync,
];

/// The kinds that can lie.
const LYING: [Operation; 13] = [
    Operation::Append,
    Operation::Sync,
    Operation::Read,
    Operation::Put,
    Operation::Restore,
    Operation::Punch,
    Operation::Remove,
    Operation::SyncNames,
    Operation::RandomSetLength,
    Operation::RandomRead,
    Operation::RandomWrite,
    Operation::RandomSync,
    Operation::Append,
];

impl Line {
    /// Some way to fail.
    fn pick(random: &mut Random, regime: Regime) -> Line {
        let kinds: &[Operation] = if regime.is_silent() { &LYING } else { &KINDS };
        let operations = match random.below(4) {
            0 => kinds.to_vec(),
            1 => vec![Operation::Read, Operation::RandomRead],
            2 => vec![Operation::Append, Operation::Sync, Operation::RandomWrite],
            _ => vec![*random.pick(kinds)],
        };
        let fault = if regime.is_silent() {
            *random.pick(&[Fault::Dropped, Fault::BitFlip, Fault::Misdirected])
        } else {
            match random.below(12) {
                0..=4 => Fault::Io,
                5..=6 => Fault::Torn,
                7 => Fault::Full,
                8..=9 => Fault::Short,
                10 => Fault::Death,
                _ => Fault::Delay(Duration::from_micros(300)),
            }
        };
        let when = match random.below(5) {
            0 => When::Always,
            1..=2 => When::Count {
                skip: random.below(120),
                times: 1 + random.below(9),
            },
            _ => When::Chance(*random.pick(&[2_000, 20_000, 100_000, 400_000])),
        };
        let objects = match random.below(12) {
            0 => Objects::Blocks,
            1 => Objects::Parity,
            2 => Objects::Manifests,
            3 => Objects::Journals,
            4 => Objects::Databases,
            5 => Objects::Labels,
            6 => Objects::Names,
            _ => Objects::All,
        };
        Line {
            operations,
            objects,
            when,
            fault,
        }
    }

    /// The rule for a plan.
    pub fn rule(&self) -> Rule {
        let rule = Rule::new(Operations::of(&self.operations), self.when, self.fault);
        match self.objects {
            Objects::All => rule,
            objects => rule.only(move |object| objects.has(object)),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operations = match self.operations.len() {
            13.. => "anything".to_owned(),
            _ => format!("{:?}", self.operations),
        };
        let objects = self.objects;
        write!(
            f,
            "{:?} at {operations} of {objects:?}, {:?}",
            self.fault, self.when
        )
    }
}

/// The rules of one mount: for each disk that fails its own.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    pub rules: Vec<(usize, Line)>,
}

impl Schedule {
    /// Rules for these disks.
    pub fn pick(random: &mut Random, regime: Regime, victims: &[usize]) -> Schedule {
        let mut rules = Vec::new();
        for &disk in victims {
            for _ in 0..1 + random.below(3) {
                rules.push((disk, Line::pick(random, regime)));
            }
        }
        Schedule { rules }
    }

    /// Puts faults over the disks.
    pub fn over(&self, media: &Media, seed: u64) -> (Vec<Arc<dyn Disk>>, Vec<Arc<FaultPlan>>) {
        let plans: Vec<Arc<FaultPlan>> = (0..media.len() as u64)
            .map(|disk| FaultPlan::new(seed ^ disk << 32))
            .collect();
        for (disk, line) in &self.rules {
            plans[*disk].add(line.rule());
        }
        let disks = std::iter::zip(media, &plans).map(|(disk, plan)| {
            let disk = Arc::clone(disk) as Arc<dyn Disk>;
            Arc::new(FaultyDisk::new(disk, Arc::clone(plan))) as Arc<dyn Disk>
        });
        (disks.collect(), plans)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (disk, line) in &self.rules {
            writeln!(f, "      disk{disk}: {line}")?;
        }
        Ok(())
    }
}
