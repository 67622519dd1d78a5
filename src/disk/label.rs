//! A disk's label: which volume it belongs to and which of its disks it is. A few lines of text, so that
//! an administrator can read it, with a checksum as the last one. Knows no more of volumes than their ids.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{Disk, DiskError, ObjectName};
use crate::ids::{DiskId, VolumeId};

/// The format that this version writes. A disk with a higher major number is refused, one with a higher
/// minor number has things added that may be passed over.
pub const FORMAT: Format = Format { major: 1, minor: 0 };

/// No label is longer; what is longer is none.
const LENGTH_MAX: u64 = 64 << 10;

const FIRST_WORDS: &str = "# parsfs disk, format ";
const CHECKSUM: &str = "# checksum ";

/// The version of everything on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Higher: cannot be read by an older version.
    pub major: u16,
    /// Higher: can.
    pub minor: u16,
}

/// Who a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The format of what is on the disk.
    pub format: Format,
    /// The volume that the disk belongs to.
    pub volume: VolumeId,
    /// The volume's name when the disk joined it.
    pub volume_name: String,
    /// Which of the volume's disks it is.
    pub disk: DiskId,
    /// The disk's name when it joined.
    pub disk_name: String,
    /// When it joined, in seconds since 1970.
    pub created: i64,
    /// Counts the changes of the volume's disks: of two labels the one with the higher number knows better.
    pub roster: u32,
    /// All disks that the volume had when the label was written, with their names.
    pub members: Vec<(DiskId, String)>,
}

/// The lines of the text between the first and the last. The volume is text because TOML has no number
/// as large.
#[derive(Serialize, Deserialize)]
struct Lines {
    volume: String,
    volume_name: String,
    disk: DiskId,
    disk_name: String,
    created: i64,
    roster: u32,
    members: Vec<(DiskId, String)>,
}

/// Why a disk's label was not read.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// The disk did not give it. That it has none is `DiskError::Missing`.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It is not what was written.
    #[error(
        "disk {disk}: its label is damaged ({why}); if the other disks of its volume are well, put the \
         disk in anew"
    )]
    Damaged {
        /// The disk's name.
        disk: String,
        /// What is wrong.
        why: String,
    },
    /// A later version of parsfs wrote it.
    #[error(
        "disk {disk}: written in format {found_major}, and this parsfs reads up to format {}; use a newer \
         parsfs", FORMAT.major
    )]
    TooNew {
        /// The disk's name.
        disk: String,
        /// The format's major number.
        found_major: u16,
    },
}

impl Label {
    /// Writes the label in place of what was there, durably.
    pub fn write(&self, disk: &dyn Disk) -> Result<(), LabelError> {
        disk.put(ObjectName::Label, self.encode(disk.name())?.as_bytes())?;
        Ok(())
    }

    /// Reads a disk's label.
    pub fn read(disk: &dyn Disk) -> Result<Label, LabelError> {
        let length = disk.length(ObjectName::Label)?;
        if length > LENGTH_MAX {
            return Err(LabelError::Damaged {
                disk: disk.name().to_owned(),
                why: format!("{length} bytes long"),
            });
        }
        let mut bytes = vec![0; length as usize];
        disk.read_at(ObjectName::Label, 0, &mut bytes)?;
        Self::decode(disk.name(), &bytes)
    }

    fn encode(&self, disk: &str) -> Result<String, LabelError> {
        let lines = toml::to_string(&Lines {
            volume: self.volume.to_string(),
            volume_name: self.volume_name.clone(),
            disk: self.disk,
            disk_name: self.disk_name.clone(),
            created: self.created,
            roster: self.roster,
            members: self.members.clone(),
        })
        .map_err(|error| LabelError::Damaged {
            disk: disk.to_owned(),
            why: error.to_string(),
        })?;
        let Format { major, minor } = self.format;
        let mut text = format!("{FIRST_WORDS}{major}.{minor}\n{lines}");
        let checksum = xxh3_64(text.as_bytes());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{CHECKSUM}{checksum:016x}");
        Ok(text)
    }

    fn decode(disk: &str, bytes: &[u8]) -> Result<Label, LabelError> {
        let damaged = |why: &str| LabelError::Damaged {
            disk: disk.to_owned(),
            why: why.to_owned(),
        };
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("no text"))?;
        let (body, checksum) = text
            .rfind(CHECKSUM)
            .and_then(|at| text.split_at_checked(at))
            .ok_or_else(|| damaged("no checksum"))?;
        // The whole line, so that nothing in the file goes unchecked.
        if checksum != format!("{CHECKSUM}{:016x}\n", xxh3_64(body.as_bytes())) {
            return Err(damaged("wrong checksum"));
        }
        let (first, lines) = body
            .split_once('\n')
            .ok_or_else(|| damaged("no first line"))?;
        let (major, minor) = first
            .strip_prefix(FIRST_WORDS)
            .and_then(|numbers| numbers.split_once('.'))
            .ok_or_else(|| damaged("no format"))?;
        let major: u16 = major.parse().map_err(|_| damaged("no format"))?;
        if major > FORMAT.major {
            return Err(LabelError::TooNew {
                disk: disk.to_owned(),
                found_major: major,
            });
        }
        let minor: u16 = minor.parse().map_err(|_| damaged("no format"))?;
        let lines: Lines = toml::from_str(lines).map_err(|error| damaged(error.message()))?;
        let volume = u128::from_str_radix(&lines.volume, 16).map_err(|_| damaged("no volume"))?;
        Ok(Label {
            format: Format { major, minor },
            volume: VolumeId(volume),
            volume_name: lines.volume_name,
            disk: lines.disk,
            disk_name: lines.disk_name,
            created: lines.created,
            roster: lines.roster,
            members: lines.members,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::DirectoryDisk;

    fn label() -> Label {
        Label {
            format: FORMAT,
            volume: VolumeId(0xfeed_0000_1111_2222_3333_4444_5555_6666),
            volume_name: "vms".into(),
            disk: DiskId(3),
            disk_name: "cellar".into(),
            created: 1_700_000_000,
            roster: 2,
            members: vec![(DiskId(0), "attic".into()), (DiskId(3), "cellar".into())],
        }
    }

    #[test]
    fn a_label_is_read_from_the_disk_it_was_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let disk = DirectoryDisk::open("cellar", directory.path()).unwrap();
        assert!(matches!(
            Label::read(&disk),
            Err(LabelError::Disk(DiskError::Missing { .. }))
        ));
        label().write(&disk).unwrap();
        assert_eq!(Label::read(&disk).unwrap(), label());
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_seen() {
        let good = label().encode("a").unwrap().into_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Label::decode("a", &bad).is_err(), "bit {bit}");
        }
        for length in 0..good.len() {
            assert!(Label::decode("a", &good[..length]).is_err());
        }
    }

    #[test]
    fn a_newer_major_format_is_refused_by_name_and_a_newer_minor_one_is_read() {
        let with = |format: Format, more: &str| {
            let text = Label { format, ..label() }.encode("a").unwrap();
            let body = format!("{}{more}", &text[..text.rfind(CHECKSUM).unwrap()]);
            let checksum = xxh3_64(body.as_bytes());
            Label::decode(
                "cellar",
                format!("{body}{CHECKSUM}{checksum:016x}\n").as_bytes(),
            )
        };
        let error = with(Format { major: 2, minor: 0 }, "shape = 'other'\n").unwrap_err();
        assert!(matches!(error, LabelError::TooNew { found_major: 2, .. }));
        assert!(error.to_string().contains("cellar"));
        let newer = with(Format { major: 1, minor: 9 }, "colour = 'red'\n").unwrap();
        assert_eq!(newer.format.minor, 9);
        assert_eq!(newer.volume, label().volume);
    }

    proptest! {
        #[test]
        fn any_names_survive(volume_name: String, disk_name: String, volume: u128, created: i64) {
            let label = Label {
                volume: VolumeId(volume), volume_name, disk_name, created, ..label()
            };
            let text = label.encode("a").unwrap();
            prop_assert_eq!(Label::decode("a", text.as_bytes()).unwrap(), label);
        }
    }
}
