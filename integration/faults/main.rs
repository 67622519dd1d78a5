//! The volume without a kernel, on disks in memory that fail as a seed has it, or lose power at any moment. Nothing
//! is mounted, so thousands of schedules take minutes. `integration/test faults crashes` runs it.

#[path = "../harness/random.rs"]
mod random;

mod crashes;
mod faults;
mod fixtures;
mod hostile;
mod model;
mod odd_disks;
mod operation;
mod recorder;
mod rig;
mod schedule;
mod tiers;
