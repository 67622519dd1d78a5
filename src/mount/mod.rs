//! FUSE: the kernel's requests become calls on a volume. It knows no storage and no guests.
//!
//! `filesystem` is the adapter, `session` mounts and unmounts it, `serve` runs a volume from its opening to its
//! last commit, and `control` is how commands talk to one that runs.

mod attributes;
mod confine;
pub mod control;
mod errno;
mod error;
mod filesystem;
mod handshake;
mod kernel;
pub mod mountinfo;
mod names;
pub mod options;
mod privileges;
pub mod serve;
mod session;
mod workers;

pub use error::MountError;
pub use session::{clear_dead_mount, is_dead, unmount};
