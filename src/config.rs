//! The config of a volume: the TOML of `mount-configs/`, typed. Judges everything that can be judged from the
//! text alone, and names the file and the key of what it refuses. Looks at no disk, but for the device that two
//! paths may share (`warnings`).

mod edit;
mod error;
mod parse;
mod raw;
mod tiering;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

pub use error::ConfigError;
pub use parse::{code as parse_code, size as parse_size};
pub use tiering::Tiering;

use crate::store::compression::{CompressLater, Compression};
use crate::store::{BLOCK_MAX, Code};

/// The result of reading a config.
pub type Result<T> = std::result::Result<T, ConfigError>;

/// One volume: its disks, its policy, and how it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// `volume.name`: what the mount table and logs call the volume.
    pub name: String,
    /// Every `[[disk]]`, in the order of the file.
    pub disks: Vec<DiskConfig>,
    /// `[policy]`
    pub policy: Policy,
    /// `commit.mode`
    pub commit: CommitMode,
    /// `[memory]`
    pub memory: Memory,
    /// `[mount]`
    pub mount: MountConfig,
    /// `log.file`: where a daemon in the background writes its log, if not in the usual place.
    pub log: Option<PathBuf>,
}

/// One `[[disk]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// What errors and `status` call it; no other disk has this name.
    pub name: String,
    /// Its directory; absolute if the config's own path was.
    pub path: PathBuf,
}

/// What redundancy is spent on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The code of critical bytes.
    pub critical: Code,
    /// The code of expendable bytes; never more parity than the critical ones have.
    pub expendable: Code,
    /// What is expendable, and whether it is kept at all.
    pub tiering: Tiering,
    /// What is tried on every block.
    pub compression: Compression,
    /// When blocks are stored as they are first.
    pub compress_later: CompressLater,
    /// The most bytes of a file in one block: a power of two, 4 KiB to 128 KiB.
    pub block_size: u32,
}

impl Policy {
    /// How expendable bytes are stored, as the config has it: `drop`, or a code.
    pub fn expendable_word(&self) -> String {
        match self.tiering.drop {
            true => "drop".to_owned(),
            false => self.expendable.to_string(),
        }
    }
}

/// When a close is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CommitMode {
    /// Once everything written is protected on all disks.
    #[default]
    Close,
    /// At once; the commit goes on beside it. An fsync waits all the same.
    Background,
}

/// What is read of expendable bytes that no disk holds any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LostReads {
    /// A view from which a guest can be resumed: its pages mended, and an error only where that cannot be.
    #[default]
    Mend,
    /// Zeros, and nothing else of the file changed: for tools that look into memory. No guest resumes from that.
    Zero,
    /// An error.
    Error,
}

/// How much memory the daemon may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of decompressed blocks kept for reading.
    pub cache: u64,
    /// Bytes written and not yet on a disk; a writer that is faster than the disks waits.
    pub write: u64,
}

/// How the kernel is to mount the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountConfig {
    /// Whether users other than the one who mounts see the files; their permissions hold in any case.
    pub allow_other: bool,
    /// Whether device nodes work.
    pub dev: bool,
    /// Whether set-user-id bits work.
    pub suid: bool,
    /// Threads that take requests from the kernel; 0 lets parsfs choose.
    pub threads: u32,
    /// How far the kernel reads ahead in files that nobody writes, in bytes; 0 leaves the kernel's own.
    pub read_ahead: u64,
    /// What is read of expendable bytes that are lost.
    pub lost: LostReads,
}

impl Config {
    /// Reads and judges a config. Relative paths in it are taken from the config's own directory.
    pub fn load(file: &Path) -> Result<Config> {
        let failed = |source| ConfigError::Read {
            file: file.to_owned(),
            source,
        };
        let text = fs::read_to_string(file).map_err(failed)?;
        Self::parse(&text, &fs::canonicalize(file).map_err(failed)?)
    }

    /// Judges the text of a config; `file` is what errors call it and where relative paths begin.
    pub fn parse(text: &str, file: &Path) -> Result<Config> {
        let raw: raw::Config = toml::from_str(text).map_err(|source| ConfigError::Syntax {
            file: file.to_owned(),
            source: Box::new(source),
        })?;
        let reader = Reader { file };
        let disks = reader.disks(raw.disks)?;
        Ok(Config {
            file: file.to_owned(),
            name: reader.value("volume.name", &raw.volume.name, parse::name)?,
            policy: reader.policy(raw.policy, disks.len())?,
            disks,
            commit: reader.value(
                "commit.mode",
                raw.commit.mode.as_deref().unwrap_or("close"),
                commit_mode,
            )?,
            memory: Memory {
                cache: reader.size("memory.cache", raw.memory.cache, 64 << 20, 1 << 20)?,
                write: reader.size("memory.write", raw.memory.write, 128 << 20, 16 << 20)?,
            },
            mount: MountConfig {
                allow_other: raw.mount.allow_other.unwrap_or(true),
                dev: raw.mount.dev.unwrap_or(false),
                suid: raw.mount.suid.unwrap_or(false),
                threads: reader.value(
                    "mount.threads",
                    &raw.mount.threads.unwrap_or(0).to_string(),
                    threads,
                )?,
                read_ahead: reader.size("mount.read_ahead", raw.mount.read_ahead, 4 << 20, 0)?,
                lost: reader.value(
                    "mount.lost",
                    raw.mount.lost.as_deref().unwrap_or("mend"),
                    str::parse,
                )?,
            },
            log: raw.log.file.map(|path| reader.path(&path)),
        })
    }

    /// What is possible but hardly meant, in sentences for the administrator.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut devices: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
        for disk in &self.disks {
            // A disk that is not there is no matter of the config.
            if let Ok(metadata) = fs::metadata(&disk.path) {
                devices.entry(metadata.dev()).or_default().push(&disk.name);
            }
        }
        for disks in devices.values() {
            if let [others @ .., last] = disks.as_slice()
                && !others.is_empty()
            {
                warnings.push(on_one_device(others, last));
            }
        }
        if self.policy.critical.m == 0 {
            warnings.push(format!(
                "policy.critical = \"{}\" survives the loss of no disk",
                self.policy.critical
            ));
        }
        warnings
    }
}

/// What is said of disks that lie on one device.
pub(crate) fn on_one_device(others: &[&str], last: &str) -> String {
    format!(
        "the disks {} and {last} lie on one device: when it fails, all of them are lost",
        others.join(", ")
    )
}

/// Judges the values of one file.
struct Reader<'a> {
    file: &'a Path,
}

impl Reader<'_> {
    fn bad(
        &self,
        key: &'static str,
        value: impl ToString,
        problem: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value {
            file: self.file.to_owned(),
            key,
            value: value.to_string(),
            problem: problem.into(),
        }
    }

    fn value<T>(
        &self,
        key: &'static str,
        text: &str,
        read: impl FnOnce(&str) -> parse::Parsed<T>,
    ) -> Result<T> {
        read(text).map_err(|problem| self.bad(key, text, problem))
    }

    fn size(
        &self,
        key: &'static str,
        amount: Option<raw::Amount>,
        default: u64,
        least: u64,
    ) -> Result<u64> {
        let Some(raw::Amount(text)) = amount else {
            return Ok(default);
        };
        let size = self.value(key, &text, parse::size)?;
        if size < least {
            return Err(self.bad(key, text, format!("give at least {}M", least >> 20)));
        }
        Ok(size)
    }

    /// The path with the config's directory before it, and without `.` and doubled slashes, so that one
    /// directory is not taken for two. `..` stays: what it means is for the filesystem to say.
    fn path(&self, path: &str) -> PathBuf {
        let base = self.file.parent().unwrap_or(Path::new(""));
        base.join(path)
            .components()
            .filter(|component| *component != Component::CurDir)
            .collect()
    }

    fn disks(&self, raw: Vec<raw::Disk>) -> Result<Vec<DiskConfig>> {
        if raw.is_empty() {
            return Err(ConfigError::NoDisks {
                file: self.file.to_owned(),
            });
        }
        let mut paths = HashSet::new();
        let mut names = HashSet::new();
        // Names that were given go first: a name that parsfs makes up must not take one of them.
        for disk in &raw {
            if let Some(name) = &disk.name {
                let name = self.value("disk.name", name, parse::name)?;
                if !names.insert(name.clone()) {
                    return Err(ConfigError::DuplicateName {
                        file: self.file.to_owned(),
                        name,
                    });
                }
            }
        }
        let mut disks = Vec::with_capacity(raw.len());
        for disk in raw {
            if disk.path.is_empty() {
                return Err(self.bad("disk.path", "", "give the path of a directory"));
            }
            let path = self.path(&disk.path);
            if !paths.insert(path.clone()) {
                return Err(ConfigError::DuplicatePath {
                    file: self.file.to_owned(),
                    path,
                });
            }
            let name = match disk.name {
                Some(name) => name,
                None => made_up_name(&path, &mut names),
            };
            disks.push(DiskConfig { name, path });
        }
        Ok(disks)
    }

    fn policy(&self, raw: raw::Policy, disks: usize) -> Result<Policy> {
        let critical_text = raw.critical.as_deref();
        let critical = match critical_text {
            Some(text) => self.code("policy.critical", text, disks)?,
            None => default_code(disks),
        };
        let mut tiering = Tiering::default();
        if let Some(names) = &raw.expendable_classes {
            let list = names.join(", ");
            tiering.classes = self.value("policy.expendable_classes", &list, |_| {
                tiering::classes(names.iter().map(String::as_str))
            })?;
        }
        tiering.keep_cache = raw.keep_cache == Some(true);
        let expendable = match raw.expendable.as_deref() {
            Some("drop") => {
                tiering.drop = true;
                Code { k: 1, m: 0 }
            }
            text => self.code("policy.expendable", text.unwrap_or("1+0"), disks)?,
        };
        if expendable.m > critical.m {
            return Err(self.bad(
                "policy.expendable",
                expendable,
                format!(
                    "expendable bytes cannot survive more losses than critical ones do; the second number is at \
                     most {}, as in policy.critical = \"{critical}\"",
                    critical.m
                ),
            ));
        }
        let compression = self.value(
            "policy.compression",
            raw.compression.as_deref().unwrap_or("zstd:1"),
            |text| {
                text.parse::<Compression>()
                    .map_err(|error| error.to_string())
            },
        )?;
        Ok(Policy {
            critical,
            expendable,
            tiering,
            compression,
            compress_later: self.value(
                "policy.compress_later",
                raw.compress_later.as_deref().unwrap_or("behind"),
                str::parse,
            )?,
            block_size: match raw.block_size {
                Some(raw::Amount(text)) => self.value("policy.block_size", &text, block_size)?,
                None => BLOCK_MAX as u32,
            },
        })
    }

    fn code(&self, key: &'static str, text: &str, disks: usize) -> Result<Code> {
        let code = self.value(key, text, parse::code)?;
        let needed = usize::from(code.k) + usize::from(code.m);
        if needed > disks {
            return Err(ConfigError::TooFewDisks {
                file: self.file.to_owned(),
                key,
                code: code.to_string(),
                needed,
                given: disks,
            });
        }
        Ok(code)
    }
}

/// What protects critical bytes if the config does not say: two losses where there are disks for it.
fn default_code(disks: usize) -> Code {
    let (k, m) = match disks {
        0 | 1 => (1, 0),
        2 => (1, 1),
        3 => (1, 2),
        4 => (2, 2),
        5 => (3, 2),
        _ => (4, 2),
    };
    Code { k, m }
}

/// A name out of the last component of a path that no disk has yet.
fn made_up_name(path: &Path, names: &mut HashSet<String>) -> String {
    let last = path
        .file_name()
        .map(|name| name.to_string_lossy())
        .unwrap_or_default();
    let plain: String = last
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .take(48)
        .collect();
    let plain = plain.trim_start_matches(['.', '-']);
    let plain = if plain.is_empty() { "disk" } else { plain };
    let mut name = plain.to_string();
    let mut number = 2;
    while !names.insert(name.clone()) {
        name = format!("{plain}-{number}");
        number += 1;
    }
    name
}

fn commit_mode(text: &str) -> parse::Parsed<CommitMode> {
    match text {
        "close" => Ok(CommitMode::Close),
        "background" => Ok(CommitMode::Background),
        _ => Err(
            "write \"close\" (a close is answered once everything is protected) or \"background\" (at once)"
                .to_string(),
        ),
    }
}

impl std::str::FromStr for LostReads {
    type Err = String;

    fn from_str(text: &str) -> parse::Parsed<LostReads> {
        match text {
            "mend" => Ok(LostReads::Mend),
            "zero" => Ok(LostReads::Zero),
            "error" => Ok(LostReads::Error),
            _ => Err(
                "write \"mend\" (as a guest can go on with), \"zero\" (zeros, for tools that look into memory) or \
                 \"error\" (reading fails)"
                    .to_string(),
            ),
        }
    }
}

fn block_size(text: &str) -> parse::Parsed<u32> {
    let size = parse::size(text)?;
    u32::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two() && (4 << 10..=BLOCK_MAX as u32).contains(size))
        .ok_or_else(|| "give a power of two from \"4K\" to \"128K\"".to_string())
}

fn threads(text: &str) -> parse::Parsed<u32> {
    text.parse()
        .ok()
        .filter(|threads| *threads <= 64)
        .ok_or_else(|| "give 1 to 64, or 0 to let parsfs choose".to_string())
}

#[cfg(test)]
mod tests;
