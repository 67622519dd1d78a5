//! The formats against writers of their own, a model of what the guest would see, and bytes that mean harm.

pub(crate) mod counting;
mod deltas;
mod examine;
mod formats;
mod memory;
mod model;
pub(crate) mod writers;

use crate::snapshot;
