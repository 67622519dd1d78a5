//! Random operations out of a seed. The names are few, so that they collide; the places lie near where something changes
//! inside parsfs: pages, the 64 KiB that fit in the metadata, blocks.

use super::operation::{Allocation, Fill, How, Node, Operation, Renaming, SLOTS};
use crate::harness::random::Random;

const XATTRS: [&str; 2] = ["user.a", "user.checksum"];

/// A stream of operations.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    /// Files grow no larger.
    largest: u64,
}

impl Generator {
    pub fn new(seed: u64) -> Generator {
        let mut random = Random::new(seed);
        let largest = *random.pick(&[200_000, 1_000_000, 4_000_000]);
        Generator { random, largest }
    }

    pub fn next(&mut self) -> Operation {
        use Operation::*;
        let slot = self.random.index(SLOTS);
        match self.random.below(100) {
            0..14 => Open {
                slot,
                path: self.path(),
                how: self.how(),
            },
            14..20 => Close { slot },
            20..27 => Read {
                slot,
                at: self.place(),
                length: self.length(),
            },
            27..43 => Write {
                slot,
                at: self.place(),
                length: self.length(),
                fill: self.fill(),
            },
            43..45 => MapRead {
                slot,
                at: self.place(),
                length: self.length(),
            },
            45..49 => MapWrite {
                slot,
                at: self.place(),
                length: self.length(),
                fill: self.fill(),
            },
            49..52 => Resize {
                slot,
                size: self.place(),
            },
            52..58 => Allocate {
                slot,
                kind: self.allocation(),
                at: self.place(),
                length: self.length() as u64,
            },
            58..61 => Copy {
                from: slot,
                to: self.random.index(SLOTS),
                from_at: self.place(),
                to_at: self.place(),
                length: self.length(),
            },
            61..64 => Sync {
                slot,
                data_only: self.random.once_in(2),
            },
            64 => ResizePath {
                path: self.path(),
                size: self.place(),
            },
            65..71 => Rename {
                from: self.path(),
                to: self.path(),
                how: self.renaming(),
            },
            71..74 => Link {
                from: self.path(),
                to: self.path(),
            },
            74..76 => Symlink {
                target: self.target(),
                path: self.path(),
            },
            76..80 => Unlink { path: self.path() },
            80..84 => MakeDirectory {
                path: self.directory(),
                mode: self.mode(),
            },
            84 => RemoveDirectory {
                path: self.directory(),
            },
            85 => MakeNode {
                path: self.path(),
                kind: self.node(),
                mode: self.mode(),
            },
            86..89 => ChangeMode {
                path: self.path(),
                mode: self.mode(),
            },
            89 => ChangeOwner {
                path: self.path(),
                user: self.owner(),
                group: self.owner(),
            },
            90..92 => SetTimes {
                path: self.path(),
                seconds: self.random.below(1_500_000_000) as i64,
                nanoseconds: self.random.below(1_000_000_000) as i64,
            },
            92..94 => SetXattr {
                path: self.path(),
                name: self.random.pick::<&str>(&XATTRS),
                length: self.random.index(200),
                create: self.random.once_in(4),
                replace: self.random.once_in(6),
            },
            94..96 => RemoveXattr {
                path: self.path(),
                name: self.random.pick::<&str>(&XATTRS),
            },
            96..98 => Look { path: self.path() },
            _ => List {
                path: self.directory(),
            },
        }
    }

    /// A name of a file mostly, and of a directory at times: that is how renames over the wrong kind come about.
    fn path(&mut self) -> String {
        let mut path = self.parents();
        path += &match self.random.below(10) {
            0 => format!("d{}", self.random.below(3)),
            _ => format!("f{}", self.random.below(5)),
        };
        path
    }

    fn directory(&mut self) -> String {
        let mut path = self.parents();
        // Some of these hold nothing, and can be removed.
        path += &format!("d{}", self.random.below(4));
        path
    }

    fn parents(&mut self) -> String {
        let depth = *self.random.pick(&[0, 0, 0, 1, 1, 1, 2]);
        (0..depth)
            .map(|_| format!("d{}/", self.random.below(3)))
            .collect()
    }

    /// Where a symlink leads: beside it, above it or nowhere, and never out of the tree.
    fn target(&mut self) -> String {
        let name = format!("f{}", self.random.below(5));
        match self.random.below(4) {
            0 => format!("d{}/{name}", self.random.below(3)),
            1 => format!("d{}", self.random.below(3)),
            _ => name,
        }
    }

    fn how(&mut self) -> How {
        let access = self.random.below(8);
        let append = self.random.once_in(6);
        How {
            read: access != 1,
            write: access != 0,
            create: !self.random.once_in(4),
            exclusive: self.random.once_in(8),
            truncate: access != 0 && self.random.once_in(6),
            append,
            direct: !append && self.random.once_in(5),
            mode: self.mode(),
        }
    }

    fn mode(&mut self) -> u32 {
        match self.random.below(4) {
            0 => self.random.below(0o10000) as u32,
            1 => *self.random.pick(&[0o4755, 0o2755, 0o6711, 0o1777, 0o2770]),
            _ => *self.random.pick(&[0o644, 0o600, 0o755, 0o700]),
        }
    }

    fn owner(&mut self) -> u32 {
        *self.random.pick(&[0, 1, 1000, 65534])
    }

    fn place(&mut self) -> u64 {
        let unit = *self.random.pick(&[1, 1, 4096, 4096, 64 << 10, 128 << 10]);
        let near = self.random.below(self.largest / unit + 1) * unit;
        match self.random.below(6) {
            0 => 0,
            1 => (near + self.random.below(3)).saturating_sub(1),
            2 => self.random.below(20_000),
            _ => near,
        }
    }

    fn length(&mut self) -> usize {
        let length = match self.random.below(8) {
            0 => self.random.below(100),
            1 | 2 => self.random.below(10_000),
            3 => 4096 * (1 + self.random.below(4)),
            4 => 64 << 10,
            5 => (128 << 10) + self.random.below(3) - 1,
            6 => self.random.below(150_000),
            _ => self.random.below(600_000),
        };
        length.min(self.largest / 2) as usize
    }

    fn fill(&mut self) -> Fill {
        match self.random.below(8) {
            0 => Fill::Zeros,
            1 => Fill::Byte(self.random.below(256) as u8),
            _ => Fill::Noise(self.random.next()),
        }
    }

    fn allocation(&mut self) -> Allocation {
        use Allocation::*;
        *self
            .random
            .pick(&[Extend, KeepSize, Punch, Punch, Zero, ZeroKeepSize])
    }

    fn renaming(&mut self) -> Renaming {
        *self.random.pick(&[
            Renaming::Plain,
            Renaming::Plain,
            Renaming::NoReplace,
            Renaming::Exchange,
        ])
    }

    fn node(&mut self) -> Node {
        *self.random.pick(&[
            Node::Fifo,
            Node::Socket,
            Node::CharacterDevice,
            Node::BlockDevice,
        ])
    }
}
