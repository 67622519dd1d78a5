//! The tests through a real mount: the binary as it is shipped, with programs on one side and failing disks on the
//! other. They need root and `/dev/fuse`; `integration/test` prepares a machine and runs them scenario by scenario.
//!
//! A scenario is a module here. What they share is in `harness`: disks that can be taken away, damaged or made to fail,
//! a volume over them, and a comparer of trees.

mod guests;
mod harness;

mod bad_disks;
mod command_line;
mod compress_later;
mod crash;
mod damage;
mod double_faults;
mod files;
mod fsx;
mod model;
mod operate;
mod pjdfstest;
mod programs;
mod security;
mod soak;
mod space;
mod tiers;
mod writers;
