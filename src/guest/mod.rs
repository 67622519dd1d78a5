//! What the pages are: finds a Linux kernel in guest memory and classifies every page. Pure: it reads guest
//! memory through a trait and knows no files, no disks, no FUSE.
