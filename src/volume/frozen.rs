//! What a commit is for, and what it works on while writes go on. Knows no step of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::follow::Followed;
use super::sweep::Sweep;
use crate::ids::WindowNo;
use crate::store::{SetWriter, WindowRecord};

/// What a commit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// fsync: make true what is new. A file that somebody has open for writing is not finished by that.
    MakeTrue,
    /// close(2): the same, and the file is finished if nobody else has it open for writing.
    Close,
    /// The map has grown too large for memory: write a base, commit nothing.
    Spill,
    /// Too much is dead: move what lives out of sparse windows. Not while something is new.
    Compact,
    /// The policy changed: give every byte the tier that it has now. Not while something is new, whose commit does it too.
    JudgeAgain,
    /// Make true what a task has moved, and nothing that programs wrote.
    Relocate,
}

impl Purpose {
    /// What programs wrote becomes true.
    pub fn makes_true(self) -> bool {
        matches!(self, Purpose::MakeTrue | Purpose::Close)
    }
}

/// What a commit works on.
pub(super) struct Frozen {
    pub size: u64,
    pub pieces: Vec<u32>,
    pub writer: Option<Arc<SetWriter>>,
    /// What went by of the bytes; nothing when no bytes become true.
    pub followed: Option<Followed>,
    /// Nobody is in the middle of writing the file: its tiers are those that hold.
    pub finished: bool,
    /// A commit before it left tiers to this one.
    pub owed_tiers: bool,
    /// Bytes of the file that the policy gave up, if this commit counted them.
    pub dropped: Option<u64>,
    pub dead: u64,
    /// All inline pieces are to become blocks.
    pub unpack_pieces: bool,
    /// A new base is written in any case.
    pub must_fold: bool,
    /// What may be given back once this is true.
    pub sweep: Sweep,
    pub purpose: Purpose,
    /// Pieces that nothing refers to any more; those that went into blocks a fold finds again.
    pub dead_pieces: BTreeMap<u32, u32>,
    /// Bytes that are to be written anew later, besides those whose blocks are marked.
    pub besides: u64,
    /// The windows since the base as the commit before has them.
    pub recorded: HashMap<WindowNo, Arc<WindowRecord>>,
}
