//! Windows written to disks of memory, which then lose and change things in every way. Whatever is read is
//! what was written, or an error; and where the code allows it, no error.

mod damage;
mod losses;
mod rig;
