//! The namespace and what is committed: an embedded database and a journal on every disk. It knows disks,
//! but neither blocks nor extents: what a file is made of is opaque bytes here.
