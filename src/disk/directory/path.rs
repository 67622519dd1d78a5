//! Where an object lies below a disk's directory, and which object a path is. Touches no disk.

use std::path::{Path, PathBuf};

use crate::disk::ObjectName;
use crate::ids::{ManifestId, SetId};

/// What the name of a file begins with that is being written and not yet in its place.
pub(super) const TEMPORARY: &str = ".new-";

/// The path of an object, relative to the disk's directory. Objects with many of a kind are spread over 256
/// directories by the low byte of their number, so that no directory grows long.
pub(super) fn of(object: ObjectName) -> PathBuf {
    match object {
        ObjectName::Label => PathBuf::from("label"),
        ObjectName::Database => PathBuf::from("meta.redb"),
        ObjectName::Journal(number) => PathBuf::from(format!("journal/{number:016x}")),
        ObjectName::Names(number) => PathBuf::from(format!("names/{number:016x}")),
        ObjectName::Manifest(ManifestId(number)) => spread("manifests", number, ""),
        ObjectName::Blocks(SetId(number)) => spread("segments", number, ".blocks"),
        ObjectName::Parity(SetId(number)) => spread("segments", number, ".parity"),
    }
}

fn spread(kind: &str, number: u64, ending: &str) -> PathBuf {
    PathBuf::from(format!(
        "{kind}/{:02x}/{number:016x}{ending}",
        number & 0xff
    ))
}

/// The object that lies at a path relative to the disk's directory; none for a foreign file.
pub(super) fn parse(path: &Path) -> Option<ObjectName> {
    let text = path.to_str()?;
    let parts: Vec<&str> = text.split('/').collect();
    let object = match parts.as_slice() {
        ["label"] => ObjectName::Label,
        ["meta.redb"] => ObjectName::Database,
        ["journal", name] => ObjectName::Journal(number(name)?),
        ["names", name] => ObjectName::Names(number(name)?),
        ["manifests", _, name] => ObjectName::Manifest(ManifestId(number(name)?)),
        ["segments", _, name] => {
            if let Some(name) = name.strip_suffix(".blocks") {
                ObjectName::Blocks(SetId(number(name)?))
            } else {
                ObjectName::Parity(SetId(number(name.strip_suffix(".parity")?)?))
            }
        }
        _ => return None,
    };
    // One spelling a name: capitals, or the wrong one of the 256 directories, are foreign.
    (of(object) == path).then_some(object)
}

fn number(text: &str) -> Option<u64> {
    (text.len() == 16)
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn foreign_names_are_no_objects() {
        for foreign in [
            "",
            "Label",
            "lost+found",
            "journal",
            "journal/12",
            "journal/000000000000000A",
            "journal/+00000000000000a",
            "segments/00/0000000000000001.blocks",
            "segments/01/0000000000000001",
            "segments/01/0000000000000001.blocks/x",
            "manifests/01/.new-0000000000000001",
        ] {
            assert_eq!(parse(Path::new(foreign)), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn every_object_is_found_under_its_path(number: u64) {
            for object in [
                ObjectName::Label,
                ObjectName::Database,
                ObjectName::Journal(number),
                ObjectName::Names(number),
                ObjectName::Manifest(ManifestId(number)),
                ObjectName::Blocks(SetId(number)),
                ObjectName::Parity(SetId(number)),
            ] {
                prop_assert_eq!(parse(&of(object)), Some(object));
            }
        }
    }
}
