//! The newtypes that rooms hand to each other, so that a file number is never taken for a block's.
//! Knows nothing else.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

id!(
    /// One volume, for ever: random, made by `parsfs init`, and on every label, block and manifest.
    VolumeId(u128), "{:032x}"
);
id!(
    /// A disk's place in its volume's table of disks. Never used again after the disk has left.
    DiskId(u16), "{}"
);
id!(
    /// A file's number: the inode number that programs see. Never used again.
    FileId(u64), "{}"
);
id!(
    /// A segment set: the segments that one commit of one file wrote, one or none a disk. Never used again.
    SetId(u64), "{}"
);
id!(
    /// One written form of a file's manifest. Never used again.
    ManifestId(u64), "{}"
);
id!(
    /// A window's number within its file: counts up. Never used again for what was committed; numbers of what was given
    /// up before that come again, in another set.
    WindowNo(u32), "{}"
);
id!(
    /// Counts the durable metadata transactions of a volume.
    Epoch(u64), "{}"
);

/// A block's name within its file: the window that holds it and its place there, both given out when
/// the block is begun, before it is known where its bytes will lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId {
    /// The window.
    pub window: WindowNo,
    /// The place in the window, from 0.
    pub index: u16,
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.window, self.index)
    }
}
