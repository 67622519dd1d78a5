//! Naming another disk in a config's text, and taking one out of it, so that everything else in it, comments included,
//! stays as somebody wrote it. What comes out is read again before it is believed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use super::{Config, ConfigError, Result};

impl Config {
    /// The config's text with one more disk at its end.
    pub fn with_disk(&self, path: &Path, name: Option<&str>) -> Result<String> {
        let mut text = self.text()?;
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str("\n[[disk]]\n");
        text.push_str(&format!("path = {}\n", quoted(&path.display().to_string())));
        if let Some(name) = name {
            text.push_str(&format!("name = {}\n", quoted(name)));
        }
        let after = Config::parse(&text, &self.file).map_err(|error| match error {
            // What is there was read: its disks are written in a way that no [[disk]] can follow.
            ConfigError::Syntax { source, .. } => self.not_edited(source.message()),
            error => error,
        })?;
        let kept = after
            .disks
            .iter()
            .zip(&self.disks)
            .all(|(new, old)| new == old);
        if kept && after.disks.len() == self.disks.len() + 1 {
            Ok(text)
        } else {
            Err(self.not_edited("a disk of another name or path came out of it"))
        }
    }

    /// The config's text without a disk; `None` when its lines are not found with certainty.
    pub fn without_disk(&self, name: &str) -> Option<String> {
        let text = self.text().ok()?;
        let place = self.disks.iter().position(|disk| disk.name == name)?;
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let is_header = |line: &str| line.trim_start().starts_with('[');
        let is_disk = |line: &str| line.split('#').next().unwrap_or_default().trim() == "[[disk]]";
        let begin = (0..lines.len())
            .filter(|at| is_disk(lines[*at]))
            .nth(place)?;
        let next = (begin + 1..lines.len()).find(|at| is_header(lines[*at]));
        // Comments and empty lines before the next header belong to what comes there.
        let mut end = next.unwrap_or(lines.len());
        while end > begin + 1 {
            let line = lines[end - 1].trim();
            if !line.is_empty() && !line.starts_with('#') {
                break;
            }
            end -= 1;
        }
        let rest: String = lines[..begin]
            .iter()
            .chain(&lines[end..])
            .copied()
            .collect();
        // Whether what is left holds under its policy is not for us to say; but it must be the other disks.
        let left: Vec<PathBuf> = paths(&rest)?;
        let mut wanted = paths(&text)?;
        wanted.remove(place);
        (left == wanted).then_some(rest)
    }

    fn text(&self) -> Result<String> {
        fs::read_to_string(&self.file).map_err(|source| ConfigError::Read {
            file: self.file.clone(),
            source,
        })
    }

    fn not_edited(&self, why: &str) -> ConfigError {
        ConfigError::Edit {
            file: self.file.clone(),
            why: why.to_owned(),
        }
    }

    /// Puts another text in a config's place, at once: after a crash it is the old one or the new one. Owner and
    /// permissions stay. Where the owner cannot be given to a new file, as a daemon that serves gave up the right to, the
    /// text is written into the old one; a crash in the middle of that leaves the whole text beside it.
    pub fn replace(file: &Path, text: &str) -> io::Result<()> {
        let metadata = fs::metadata(file)?;
        let directory = file.parent().unwrap_or(Path::new("/"));
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let new = directory.join(format!(".{name}.new-{}", std::process::id()));
        let mut in_place = false;
        let written = (|| {
            let mut out = File::create(&new)?;
            out.write_all(text.as_bytes())?;
            out.set_permissions(metadata.permissions())?;
            let own = out.metadata()?;
            let differs = (own.uid(), own.gid()) != (metadata.uid(), metadata.gid());
            let owned = match differs {
                true => fchown(&out, Some(metadata.uid()), Some(metadata.gid())),
                false => Ok(()),
            };
            out.sync_all()?;
            match owned {
                Ok(()) => fs::rename(&new, file)?,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    File::open(directory)?.sync_all()?;
                    in_place = true;
                    write_into(file, text)?;
                    fs::remove_file(&new)?;
                }
                Err(error) => return Err(error),
            }
            File::open(directory)?.sync_all()
        })();
        if written.is_err() && !in_place {
            // Best effort: the old one is in its place.
            let _ = fs::remove_file(&new);
        }
        written
    }
}

/// Puts another text into a file, which stays the same file.
fn write_into(file: &Path, text: &str) -> io::Result<()> {
    let mut out = OpenOptions::new().write(true).truncate(true).open(file)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()
}

/// The paths of the disks that a text names.
fn paths(text: &str) -> Option<Vec<PathBuf>> {
    let raw: super::raw::Config = toml::from_str(text).ok()?;
    Some(raw.disks.into_iter().map(|disk| disk.path.into()).collect())
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# my disks\n[volume]\nname = \"v\"\n\n[[disk]] # the first\npath = \"/a\"\n\n[[disk]]\npath = \"/b\"\n# \
                        an old one\nname = \"bee\"\n\n# what it costs\n[policy]\ncritical = \"1+1\"\n\n[[disk]]\npath = \"/c\"\n";

    fn config(directory: &Path, text: &str) -> Config {
        let file = directory.join("v.toml");
        fs::write(&file, text).unwrap();
        Config::load(&file).unwrap()
    }

    #[test]
    fn a_disk_is_named_at_the_end_and_all_else_stays() {
        let directory = tempfile::tempdir().unwrap();
        let before = config(directory.path(), TEXT);
        let text = before
            .with_disk(Path::new("/new \"disk\""), Some("dee"))
            .unwrap();
        assert!(text.starts_with(TEXT));
        let after = config(directory.path(), &text);
        assert_eq!(after.disks[..3], before.disks[..]);
        assert_eq!(
            (after.disks[3].name.as_str(), after.disks[3].path.as_path()),
            ("dee", Path::new("/new \"disk\""))
        );
        assert!(
            before.with_disk(Path::new("/x"), Some("bee")).is_err(),
            "a name twice"
        );
        assert!(
            before.with_disk(Path::new("/a"), None).is_err(),
            "a path twice"
        );
    }

    /// It is no failure to read, and the config as it is is right.
    #[test]
    fn a_config_that_cannot_be_edited_is_told_as_such() {
        let directory = tempfile::tempdir().unwrap();
        let inline = "disk = [{ path = \"/a\" }, { path = \"/b\" }]\n[volume]\nname = \"v\"\n[policy]\ncritical = \"1+1\"\n";
        let before = config(directory.path(), inline);
        let error = before.with_disk(Path::new("/c"), None).unwrap_err();
        let told = error.to_string();
        assert!(told.starts_with("cannot edit the config"), "{told}");
        assert!(
            told.contains("v.toml") && told.contains("[[disk]]"),
            "{told}"
        );
    }

    #[test]
    fn a_disk_is_taken_out_and_all_else_stays() {
        let directory = tempfile::tempdir().unwrap();
        let before = config(directory.path(), TEXT);
        let text = before.without_disk("bee").unwrap();
        assert_eq!(
            text,
            TEXT.replace(
                "[[disk]]\npath = \"/b\"\n# an old one\nname = \"bee\"\n",
                ""
            )
        );
        assert_eq!(
            before.without_disk("c").unwrap(),
            TEXT.replace("[[disk]]\npath = \"/c\"\n", "")
        );
        assert_eq!(before.without_disk("nobody"), None);
        let inline = "disk = [{ path = \"/a\" }, { path = \"/b\" }]\n[volume]\nname = \"v\"\n";
        assert_eq!(
            config(directory.path(), inline).without_disk("a"),
            None,
            "its lines are not its own"
        );
    }

    #[test]
    fn a_config_is_replaced_with_its_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = config(directory.path(), TEXT).file;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        Config::replace(&file, "other").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "other");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o640
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    /// As a daemon of root does it that has given up its capabilities. Only root can give a file to another group.
    #[test]
    fn a_config_of_another_group_is_replaced_without_the_right_to_give_files_away() {
        use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
        use std::os::unix::fs::PermissionsExt;
        let now = capabilities(None).unwrap();
        if !rustix::process::geteuid().is_root() || !now.effective.contains(CapabilitySet::CHOWN) {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let file = config(directory.path(), TEXT).file;
        std::os::unix::fs::chown(&file, None, Some(4)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let replaced = std::thread::spawn({
            let file = file.clone();
            move || {
                // Of this thread alone.
                let without = CapabilitySets {
                    effective: now.effective - CapabilitySet::CHOWN,
                    permitted: now.permitted - CapabilitySet::CHOWN,
                    inheritable: CapabilitySet::empty(),
                };
                set_capabilities(None, without).unwrap();
                Config::replace(&file, "other")
            }
        });
        replaced.join().unwrap().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "other");
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!(
            (metadata.mode() & 0o777, metadata.uid(), metadata.gid()),
            (0o640, 0, 4)
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
