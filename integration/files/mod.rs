//! What programs do to files beyond reading and writing: one file a subject.

mod direct;
mod handles;
mod locks;
mod mapping;
mod names;
mod sparse;
