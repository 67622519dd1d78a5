//! What can be wrong with a config. Every error names the file and the key, and tells what to do.

use std::io;
use std::path::PathBuf;

/// A config that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the config {}: {source}; give the path of a TOML file such as those in mount-configs/",
        file.display()
    )]
    Read {
        /// The config's path.
        file: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A disk cannot be named in it.
    #[error(
        "cannot edit the config {}: {why}; put a [[disk]] with the disk's path into it yourself, and give the command again",
        file.display()
    )]
    Edit {
        /// The config's path.
        file: PathBuf,
        /// Why not.
        why: String,
    },
    /// Not TOML, a key that does not exist, one that is missing, or one of another type. The parser's message
    /// shows the line and lists the keys there are.
    #[error("the config {} is not right: {}", file.display(), source)]
    Syntax {
        /// The config's path.
        file: PathBuf,
        /// The parser's message.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A key has a value that it cannot have.
    #[error("{}: {key} = {value:?} is not possible: {problem}", file.display())]
    Value {
        /// The config's path.
        file: PathBuf,
        /// The key, with its section.
        key: &'static str,
        /// What it says.
        value: String,
        /// What is wrong, and what is possible.
        problem: String,
    },
    /// There is no `[[disk]]`.
    #[error("{}: there is no [[disk]]; give one [[disk]] with its path for every disk", file.display())]
    NoDisks {
        /// The config's path.
        file: PathBuf,
    },
    /// More shards than disks.
    #[error(
        "{}: {key} = \"{code}\" needs {needed} disks, but {given} [[disk]] are given; \
         add disks, or choose a code of at most {given}",
        file.display()
    )]
    TooFewDisks {
        /// The config's path.
        file: PathBuf,
        /// The key, with its section.
        key: &'static str,
        /// The code, as written.
        code: String,
        /// The disks it needs.
        needed: usize,
        /// The disks there are.
        given: usize,
    },
    /// Two disks at one path.
    #[error(
        "{}: two [[disk]] have path = {:?}; every disk needs a directory of its own, on its own device",
        file.display(), path.display()
    )]
    DuplicatePath {
        /// The config's path.
        file: PathBuf,
        /// The path.
        path: PathBuf,
    },
    /// Two disks of one name.
    #[error("{}: two [[disk]] have name = {name:?}; give each a name of its own", file.display())]
    DuplicateName {
        /// The config's path.
        file: PathBuf,
        /// The name.
        name: String,
    },
}
