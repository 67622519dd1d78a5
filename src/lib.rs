//! parsfs keeps the snapshots of virtual machines on several disks and spends redundancy only on
//! the pages whose loss would hurt.
//!
//! The rooms, from the top of the house to its foundation; imports go down only, and the four
//! rooms of one line do not know each other:
//!
//! ```text
//! cli                                   commands, their output, the daemon
//! mount                                 FUSE: the kernel's requests become calls on a volume
//! volume                                what a file is: names, handles, extents, commits, reading
//! snapshot   guest   store   meta       formats | pages | where bytes rest | what is committed
//! disk       config                     one backing store that can fail alone | the TOML
//! ids   sys   queue   threads           the newtypes that rooms hand to each other | the only unsafe code | helpers of threads
//! ```
//!
//! `docs/architecture.md` tells how they work together and why.

#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod cli;
pub mod config;
pub mod disk;
pub mod guest;
pub mod ids;
pub mod meta;
pub mod mount;
mod queue;
pub mod snapshot;
pub mod store;
mod sys;
mod threads;
pub mod volume;
