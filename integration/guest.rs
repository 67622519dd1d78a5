//! The tests with a real QEMU: snapshots that it writes, Linux guests that it runs. They need no mount and no root, but QEMU and
//! kernels of the distribution, which `integration/guests/packages.sh` brings; `integration/test` runs them.
//!
//! A scenario is a module here, and all are one program, for linking takes longer than most of them. What they share is in
//! `guests`: kernels, disks, guests that were saved; and in `qemu`: a QEMU without a guest.

mod guests;
mod qemu;

mod classify;
mod dumps;
mod formats_qemu;
mod guest_hostile;
mod guest_make;
mod guest_mend;
mod guest_truth;
