//! How a disk fares, in words that programs and administrators share.

use std::fmt;

use crate::disk::DiskError;
use crate::ids::DiskId;

/// How a disk fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// Written to and read from.
    Online,
    /// It fails now and then, is slow, or gave wrong bytes: it gets no new data while the others are enough.
    Suspect,
    /// It failed: nothing more is written to it, what it holds is read where nothing else has it.
    Faulty,
    /// Not there.
    Missing,
    /// Online, and what it lacks is being written to it.
    Rebuilding,
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiskState::Online => "online",
            DiskState::Suspect => "suspect",
            DiskState::Faulty => "faulty",
            DiskState::Missing => "missing",
            DiskState::Rebuilding => "rebuilding",
        })
    }
}

impl DiskState {
    /// Whether such a disk takes metadata, manifests and repairs.
    pub fn takes_writes(self) -> bool {
        matches!(
            self,
            DiskState::Online | DiskState::Suspect | DiskState::Rebuilding
        )
    }

    /// Whether such a disk has all that it should have.
    pub fn is_whole(self) -> bool {
        matches!(self, DiskState::Online | DiskState::Suspect)
    }
}

/// A line of the table of disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// The number.
    pub id: DiskId,
    /// What the administrator calls it.
    pub name: String,
    /// How it fares.
    pub state: DiskState,
    /// Why it is not online; empty when it is.
    pub note: String,
    /// A number that another one takes the place of whenever the disk comes to be in another state, or comes back.
    pub since: u64,
    /// Whether what it holds is being moved to others.
    pub leaving: bool,
    /// Reads that failed in this mount, those for want of an object excluded.
    pub read_errors: u32,
    /// Times that it gave other bytes than were written, or lacked them.
    pub wrong_bytes: u32,
    /// Times that somebody waited too long for it.
    pub waits: u32,
}

/// Why a range of a disk could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFailure {
    /// The disk is not there.
    #[error("disk {0} is missing")]
    NoDisk(String),
    /// It does not answer.
    #[error("disk {disk}: no answer in {seconds} s")]
    Slow {
        /// The disk.
        disk: String,
        /// How long somebody waited.
        seconds: u64,
    },
    /// The disk said so.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What new data a disk is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Any.
    Anything,
    /// Only what the others have no place for.
    WhatOthersCannot,
    /// None.
    Nothing,
}
