//! One file a command. It may know every room; none knows it.
