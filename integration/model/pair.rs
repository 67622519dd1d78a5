//! Two trees that get the same operations and must stay equal, with a record of what was done.

use std::collections::BTreeMap;
use std::path::Path;

use super::operation::Operation;
use super::side::Side;
use crate::harness::tree::{self, Times};

/// How much of the record is shown when something is wrong.
const SHOWN: usize = 60;

/// The tree under test and the one that is known to be right.
#[derive(Debug)]
pub struct Pair {
    pub tested: Side,
    pub right: Side,
    record: Vec<String>,
    /// How often each kind of operation succeeded.
    pub succeeded: BTreeMap<String, u64>,
}

impl Pair {
    pub fn new(tested: &Path, right: &Path) -> Pair {
        Pair {
            tested: Side::new(tested),
            right: Side::new(right),
            record: Vec::new(),
            succeeded: BTreeMap::new(),
        }
    }

    /// Carries an operation out on both sides; whether it succeeded, or how the sides differ.
    pub fn apply(&mut self, operation: &Operation) -> Result<bool, String> {
        let tested = self.tested.apply(operation);
        let right = self.right.apply(operation);
        self.note(format!("{operation:?} -> {right:?}"));
        if tested != right {
            return Err(self.failure(&format!(
                "{operation:?} gave {tested:?} instead of {right:?}"
            )));
        }
        if right.success() {
            *self.succeeded.entry(operation.name()).or_default() += 1;
        }
        Ok(right.success())
    }

    /// Whether the trees are equal.
    pub fn compare(&self) -> Result<(), String> {
        tree::compare(&self.tested.root, &self.right.root, Times::SetOnesExact)
            .map_err(|why| self.failure(&why))
    }

    /// Writes a line into the record.
    pub fn note(&mut self, line: String) {
        self.record.push(line);
    }

    /// A failure with what led to it.
    pub fn failure(&self, why: &str) -> String {
        let from = self.record.len().saturating_sub(SHOWN);
        let first = self.record.first().map_or("", String::as_str);
        format!(
            "{why}\n{first}\nafter {} steps, the last of which were\n  {}",
            self.record.len(),
            self.record[from..].join("\n  ")
        )
    }
}
