//! FUSE: the kernel's requests become calls on a volume. It knows no storage and no guests.
