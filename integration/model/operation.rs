//! What a program can ask of a filesystem, as data: so that the same can be asked of two, and written down.

use std::fmt;

/// The number of files that are open at once.
pub const SLOTS: usize = 4;

/// One request. A slot is an open file's place; an empty one makes the request fail alike on both sides.
#[derive(Clone, Debug)]
pub enum Operation {
    Open {
        slot: usize,
        path: String,
        how: How,
    },
    Close {
        slot: usize,
    },
    Read {
        slot: usize,
        at: u64,
        length: usize,
    },
    Write {
        slot: usize,
        at: u64,
        length: usize,
        fill: Fill,
    },
    MapRead {
        slot: usize,
        at: u64,
        length: usize,
    },
    MapWrite {
        slot: usize,
        at: u64,
        length: usize,
        fill: Fill,
    },
    Resize {
        slot: usize,
        size: u64,
    },
    Allocate {
        slot: usize,
        kind: Allocation,
        at: u64,
        length: u64,
    },
    Copy {
        from: usize,
        to: usize,
        from_at: u64,
        to_at: u64,
        length: usize,
    },
    Sync {
        slot: usize,
        data_only: bool,
    },
    ResizePath {
        path: String,
        size: u64,
    },
    Rename {
        from: String,
        to: String,
        how: Renaming,
    },
    Link {
        from: String,
        to: String,
    },
    Symlink {
        target: String,
        path: String,
    },
    Unlink {
        path: String,
    },
    MakeDirectory {
        path: String,
        mode: u32,
    },
    RemoveDirectory {
        path: String,
    },
    MakeNode {
        path: String,
        kind: Node,
        mode: u32,
    },
    ChangeMode {
        path: String,
        mode: u32,
    },
    ChangeOwner {
        path: String,
        user: u32,
        group: u32,
    },
    SetTimes {
        path: String,
        seconds: i64,
        nanoseconds: i64,
    },
    SetXattr {
        path: String,
        name: &'static str,
        length: usize,
        create: bool,
        replace: bool,
    },
    RemoveXattr {
        path: String,
        name: &'static str,
    },
    Look {
        path: String,
    },
    List {
        path: String,
    },
}

impl Operation {
    /// The operation's kind, for counting.
    pub fn name(&self) -> String {
        let text = format!("{self:?}");
        text.split([' ', '{']).next().unwrap_or_default().to_owned()
    }
}

/// The flags of an open.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    pub read: bool,
    pub write: bool,
    pub create: bool,
    pub exclusive: bool,
    pub truncate: bool,
    pub append: bool,
    /// Past the page cache; the lengths and places of such a file's requests are rounded to pages.
    pub direct: bool,
    pub mode: u32,
}

/// What is written.
#[derive(Clone, Copy)]
pub enum Fill {
    Zeros,
    Byte(u8),
    Noise(u64),
}

impl fmt::Debug for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fill::Zeros => f.write_str("Zeros"),
            Fill::Byte(byte) => write!(f, "Byte({byte})"),
            Fill::Noise(seed) => write!(f, "Noise({seed:#x})"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Allocation {
    Extend,
    KeepSize,
    Punch,
    Zero,
    ZeroKeepSize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renaming {
    Plain,
    NoReplace,
    Exchange,
}

#[derive(Clone, Copy, Debug)]
pub enum Node {
    Fifo,
    Socket,
    CharacterDevice,
    BlockDevice,
}
