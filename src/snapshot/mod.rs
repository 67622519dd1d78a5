//! What the bytes of a file are: one file a format; every format gives a page map between file ranges and
//! guest-physical pages. Pure: it reads bytes through a trait and knows no disks.
