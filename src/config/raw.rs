//! The config as it is written: text by text, nothing judged but that every key is known and of its type.

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub volume: Volume,
    #[serde(default, rename = "disk")]
    pub disks: Vec<Disk>,
    #[serde(default)]
    pub policy: Policy,
    #[serde(default)]
    pub commit: Commit,
    #[serde(default)]
    pub memory: Memory,
    #[serde(default)]
    pub mount: Mount,
    #[serde(default)]
    pub log: Log,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    pub name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub path: String,
    pub name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    pub critical: Option<String>,
    pub expendable: Option<String>,
    pub expendable_classes: Option<Vec<String>>,
    pub keep_cache: Option<bool>,
    pub compression: Option<String>,
    pub compress_later: Option<String>,
    pub block_size: Option<Amount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    pub mode: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    pub cache: Option<Amount>,
    pub write: Option<Amount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    pub allow_other: Option<bool>,
    pub dev: Option<bool>,
    pub suid: Option<bool>,
    pub threads: Option<u32>,
    pub read_ahead: Option<Amount>,
    pub lost: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub file: Option<String>,
}

/// A size: a number of bytes, or text with a unit.
#[derive(Debug)]
pub struct Amount(pub String);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Amount;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a size such as 4096 or \"64M\"")
            }

            fn visit_str<E>(self, text: &str) -> Result<Amount, E> {
                Ok(Amount(text.to_string()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Amount, E> {
                Ok(Amount(number.to_string()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Amount, E> {
                Ok(Amount(number.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
