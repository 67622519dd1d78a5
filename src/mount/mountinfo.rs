//! The kernel's table of mounts, which answers without asking any file system: a mount whose daemon hangs or is dead
//! can be found in it all the same.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type of our mounts in the table.
pub const FS_TYPE: &str = "fuse.parsfs";

/// As many links does the kernel follow in a path.
const LINKS_MAX: usize = 40;

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount's own number.
    pub id: u64,
    /// `major:minor` as the table writes it: stat(2) of every file in it gives the same device.
    pub device: String,
    /// Where.
    pub mountpoint: PathBuf,
    /// `fuse.parsfs` for ours.
    pub fs_type: String,
    /// What is mounted: the volume's name for ours.
    pub source: String,
    /// Who mounted it, by the options that FUSE shows.
    pub user: Option<u32>,
}

impl Mount {
    /// Whether it is one of ours.
    pub fn is_parsfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// All mounts, later ones last; a later one covers an earlier one at the same place.
pub fn all() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The mount that is on top at a place.
pub fn at(path: &Path) -> io::Result<Option<Mount>> {
    Ok(all()?
        .into_iter()
        .rev()
        .find(|mount| mount.mountpoint == path))
}

/// The path of a mount point as the table has it, also when it is given by a symbolic link. Does not touch the mount point
/// itself, which may be dead: the kernel knows by itself that a mount's root is no link.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let mut whole = std::path::absolute(path)?;
    for _ in 0..LINKS_MAX {
        let plain: PathBuf = whole.components().collect();
        let (Some(parent), Some(name)) = (plain.parent(), plain.file_name()) else {
            return plain.canonicalize();
        };
        let parent = parent.canonicalize()?;
        let found = parent.join(name);
        match fs::read_link(&found) {
            Ok(target) => whole = parent.join(target),
            Err(_) => return Ok(found),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

fn parse(table: &[u8]) -> Vec<Mount> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let text =
        |index: usize| Some(String::from_utf8_lossy(&unescape(fields.get(index)?)).into_owned());
    let user = text(separator + 3).and_then(|options| {
        options
            .split(',')
            .find_map(|option| option.strip_prefix("user_id=")?.parse().ok())
    });
    Some(Mount {
        id: text(0)?.parse().ok()?,
        device: text(2)?,
        mountpoint: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        fs_type: text(separator + 1)?,
        source: text(separator + 2)?,
        user,
    })
}

/// Undoes `\040` for a space and its like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let table = b"36 35 0:52 / /mnt/with\\040space rw,nosuid,nodev shared:1 - fuse.parsfs vms rw,user_id=7,group_id=0\n\
                      37 35 8:1 / / rw - ext4 /dev/sda1 rw\nnonsense\n\n38 1 0:1 - x\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(
            mounts[0],
            Mount {
                id: 36,
                device: "0:52".to_string(),
                mountpoint: PathBuf::from("/mnt/with space"),
                fs_type: "fuse.parsfs".to_string(),
                source: "vms".to_string(),
                user: Some(7),
            }
        );
        assert!(mounts[0].is_parsfs() && !mounts[1].is_parsfs());
        assert_eq!(mounts[1].user, None);
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape(b"a\\134b\\011"), b"a\\b\t");
        assert_eq!(unescape(b"\\"), b"\\");
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\9ab\\777"), b"\\9ab\\777");
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(at(Path::new("/")).unwrap().is_some());
        assert_eq!(absolute(Path::new("/")).unwrap(), PathBuf::from("/"));
        assert_eq!(
            absolute(Path::new("/./proc//")).unwrap(),
            PathBuf::from("/proc")
        );
    }

    #[test]
    fn a_link_to_a_mount_point_leads_to_it() {
        let place = tempfile::tempdir().unwrap();
        let real = place.path().canonicalize().unwrap().join("mnt");
        fs::create_dir(&real).unwrap();
        for (target, link) in [("mnt", "one"), ("./one", "two"), ("three", "three")] {
            std::os::unix::fs::symlink(target, place.path().join(link)).unwrap();
        }
        for link in ["mnt", "one", "two"] {
            assert_eq!(absolute(&place.path().join(link)).unwrap(), real);
        }
        assert!(absolute(&place.path().join("three")).is_err());
    }
}
