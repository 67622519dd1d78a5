//! Extended attributes: those that programs keep, and those in which the volume itself tells of a file. The latter can be
//! read and listed; setting or removing one is no error and changes nothing, since `cp -a` and `rsync -X` carry them from
//! one mount to another, where the file has its own truth.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::commit::Purpose;
use super::error::{Result, VolumeError};
use super::look::Insight;
use super::names::gone;
use super::{Handle, Inspection, Volume};
use crate::config::Tiering;
use crate::guest::PageClass;
use crate::ids::FileId;
use crate::meta::{FileKind, Key, Names, New, Overwrite, Records, SetXattr, Timestamp, Update};

const PREFIX: &[u8] = b"user.parsfs.";
const PAGE: &[u8] = b"page.";

/// The attribute that a directory gives to what is made in it.
pub(super) const POLICY: &[u8] = b"user.parsfs.policy";

/// The attribute in which the kernel keeps the capabilities of a program, see capabilities(7).
const CAPABILITIES: &[u8] = b"security.capability";

/// The attributes that every regular file has.
const TOLD: [&str; 7] = [
    "state",
    "format",
    "guest",
    "classes",
    "stored",
    "redundancy",
    "lost",
];

/// What a name means.
enum Name {
    /// An attribute of a program, or the policy: kept as it is.
    Kept,
    /// One of `TOLD`.
    Told(&'static str),
    /// The page of a guest frame number.
    Page(u64),
    /// In the volume's own namespace, and nothing.
    Unknown,
}

fn meaning(name: &[u8]) -> Name {
    let Some(own) = name.strip_prefix(PREFIX) else {
        return Name::Kept;
    };
    if name == POLICY {
        return Name::Kept;
    }
    if let Some(told) = TOLD.iter().find(|told| told.as_bytes() == own) {
        return Name::Told(told);
    }
    let frame = own
        .strip_prefix(PAGE)
        .and_then(|text| std::str::from_utf8(text).ok());
    let number = frame.and_then(|text| match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    });
    number.map_or(Name::Unknown, Name::Page)
}

impl Volume {
    /// Whether an attribute's value is in the metadata, so that nothing has to be waited for.
    pub fn is_kept_xattr(name: &[u8]) -> bool {
        matches!(meaning(name), Name::Kept)
    }

    /// The value of an extended attribute.
    pub fn get_xattr(&self, file: FileId, name: &[u8]) -> Result<Vec<u8>> {
        let nothing = || VolumeError::new(libc::ENODATA, "the file has no such attribute");
        let told = meaning(name);
        if matches!(told, Name::Kept) {
            return Ok(self.meta.view().xattr(file, name)?);
        }
        if self.kind(file)? != FileKind::Regular {
            return Err(nothing());
        }
        let value = match told {
            Name::Told("state") => self.worth(file)?.0.to_owned(),
            Name::Told("format") => self.format(file)?,
            Name::Told("guest") => self.guest(file)?,
            Name::Told("classes") => self.classes(file)?,
            Name::Told("stored") => stored(&self.inspect(file)?),
            Name::Told("redundancy") => self.redundancy(&self.inspect(file)?),
            Name::Told("lost") => self.lost(file)?,
            Name::Page(frame) => self.page(file, frame)?.ok_or_else(nothing)?,
            Name::Told(_) | Name::Kept | Name::Unknown => return Err(nothing()),
        };
        Ok(value.into_bytes())
    }

    /// Sets an extended attribute. `flags`: `libc::XATTR_CREATE` or `libc::XATTR_REPLACE`.
    pub fn set_xattr(&self, file: FileId, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        self.check_writable()?;
        let overwrite = match flags {
            0 => Overwrite::Either,
            libc::XATTR_CREATE => Overwrite::Create,
            libc::XATTR_REPLACE => Overwrite::Replace,
            _ => {
                return Err(VolumeError::new(
                    libc::EINVAL,
                    "unknown flags for an extended attribute",
                ));
            }
        };
        match meaning(name) {
            Name::Kept => {}
            Name::Told(_) | Name::Page(_) => return Ok(()),
            Name::Unknown => return Err(unknown(name)),
        }
        if name == POLICY {
            self.check_policy(file, value)?;
        }
        let set = SetXattr {
            name,
            value,
            overwrite,
        };
        self.meta
            .update(|update| update.set_xattr(file, set, Timestamp::now()))?;
        if name == CAPABILITIES
            && let Some(open) = self.in_use(file)
        {
            open.harmless.store(false, Ordering::SeqCst);
        }
        self.judge_again_if(file, name)
    }

    /// Takes the capabilities of a program from the file that is written by the handle. Says whether it had any; asks only
    /// once as long as nobody gives it some.
    pub fn drop_capabilities_by(&self, handle: Handle) -> Result<bool> {
        let file = Arc::clone(&self.handle(handle)?.file);
        // Told before it is asked: who sets some meanwhile takes that back.
        if file.harmless.swap(true, Ordering::SeqCst) {
            return Ok(false);
        }
        let dropped = self.drop_capabilities(file.id);
        if dropped.is_err() {
            file.harmless.store(false, Ordering::SeqCst);
        }
        dropped
    }

    /// Takes the capabilities of a program from a file. Says whether it had any.
    pub fn drop_capabilities(&self, file: FileId) -> Result<bool> {
        let removed = self
            .get_xattr(file, CAPABILITIES)
            .and_then(|_| self.remove_xattr(file, CAPABILITIES));
        match removed {
            Ok(()) => Ok(true),
            // None, or another write took them first.
            Err(error) if error.errno() == libc::ENODATA => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether setting or removing an attribute may take long: a file is judged by its new policy.
    pub fn sets_policy(name: &[u8]) -> bool {
        name == POLICY
    }

    /// A file whose policy changed gets the tiers that it says now, before the caller goes on. One that has something new gets
    /// them with that.
    fn judge_again_if(&self, file: FileId, name: &[u8]) -> Result<()> {
        if name != POLICY || self.kind(file)? != FileKind::Regular {
            return Ok(());
        }
        let open = self.use_file(file)?;
        {
            let mut state = open.state.lock();
            let size = state.size;
            state.follow.judge_again(size);
        }
        self.commit(&open, Purpose::JudgeAgain)
    }

    /// The names of all extended attributes, those of single pages left out.
    pub fn list_xattrs(&self, file: FileId) -> Result<Vec<Vec<u8>>> {
        let mut names = self.meta.view().xattrs(file)?;
        if self.kind(file)? == FileKind::Regular {
            names.extend(TOLD.map(|told| [PREFIX, told.as_bytes()].concat()));
        }
        Ok(names)
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, file: FileId, name: &[u8]) -> Result<()> {
        self.check_writable()?;
        match meaning(name) {
            Name::Kept => {}
            Name::Told(_) | Name::Page(_) => return Ok(()),
            Name::Unknown => return Err(unknown(name)),
        }
        self.meta
            .update(|update| update.remove_xattr(file, name, Timestamp::now()))?;
        self.judge_again_if(file, name)
    }

    fn kind(&self, file: FileId) -> Result<FileKind> {
        let inode = self.meta.view().inode(file)?.ok_or_else(|| gone(file))?;
        Ok(inode.kind)
    }

    fn check_policy(&self, file: FileId, value: &[u8]) -> Result<()> {
        if !matches!(self.kind(file)?, FileKind::Regular | FileKind::Directory) {
            return Err(VolumeError::new(
                libc::EINVAL,
                "only regular files and directories have a policy",
            ));
        }
        words(value).and_then(|text| {
            let checked = self.tiering.with_words(text);
            checked.map(drop).map_err(|problem| {
                // The program that sets it is told no more than that it is wrong.
                let of = self.called(file);
                tracing::warn!("user.parsfs.policy of {of} is refused: {problem}");
                VolumeError::new(libc::EINVAL, format!("user.parsfs.policy: {problem}"))
            })
        })
    }

    /// What holds for a file: the config, as changed by the file's own policy.
    pub(super) fn tiering_of(&self, file: FileId) -> Tiering {
        let Ok(value) = self.meta.view().xattr(file, POLICY) else {
            return self.tiering;
        };
        let read = words(&value)
            .ok()
            .and_then(|text| self.tiering.with_words(text).ok());
        read.unwrap_or_else(|| {
            // It was checked when it was set; what cannot be read now is kept as well as can be.
            tracing::warn!(%file, "its policy cannot be read; all of it is critical");
            Tiering {
                classes: crate::guest::ClassSet::EMPTY,
                keep_cache: true,
                drop: false,
            }
        })
    }

    fn known(&self, file: FileId) -> Result<Option<Insight>> {
        let file = self.use_file(file)?;
        self.insight(&file)
    }

    fn format(&self, file: FileId) -> Result<String> {
        if let Some(insight) = self.known(file)? {
            return Ok(insight.format.to_string());
        }
        let file = self.use_file(file)?;
        let head = self.read_file(&file, 0, crate::snapshot::HEAD)?;
        let format = crate::snapshot::format_by_head(&head);
        Ok(format.map_or_else(|| "unknown".to_owned(), |format| format.to_string()))
    }

    fn guest(&self, file: FileId) -> Result<String> {
        Ok(match self.known(file)? {
            None => "none".to_owned(),
            Some(insight) => match &insight.guest {
                Ok(guest) => format!("{guest}, {} MiB, {}", guest.memory >> 20, insight.layout),
                Err(why) => format!("none: {why}"),
            },
        })
    }

    fn classes(&self, file: FileId) -> Result<String> {
        let insight = self.known(file)?;
        let counts = insight.iter().flat_map(|insight| &insight.counts);
        let lines = counts.filter(|(_, pages)| *pages > 0);
        Ok(lines
            .map(|(class, pages)| format!("{class}={pages}\n"))
            .collect())
    }

    fn page(&self, file: FileId, frame: u64) -> Result<Option<String>> {
        let file = self.use_file(file)?;
        let Some(insight) = self.insight(&file)? else {
            return Ok(None);
        };
        let class = insight.class(frame, &|range| self.read_annex(&file, range))?;
        Ok(class.map(|class| {
            let tier = match class {
                PageClass::Zero => "not stored",
                _ if insight.guest.is_ok() && insight.expendable.contains(class) => "expendable",
                _ => "critical",
            };
            format!("{class}, {tier}")
        }))
    }

    fn redundancy(&self, file: &Inspection) -> String {
        let policy = &self.pipeline.policy;
        let with_parity = file.codes.iter().filter(|code| !code.ends_with("+0"));
        let codes: Vec<String> = match file.codes.is_empty() || policy.critical.m == 0 {
            true => vec![policy.critical.to_string()],
            false => with_parity.cloned().collect(),
        };
        let mut text = format!("critical={}\n", codes.join(","));
        if file
            .tiers
            .iter()
            .any(|tier| tier.tier == "expendable" && tier.logical > 0)
        {
            text.push_str(&format!("expendable={}\n", policy.expendable));
        }
        text
    }

    fn lost(&self, file: FileId) -> Result<String> {
        let (state, losses) = self.worth(file)?;
        Ok(match losses.lines() {
            lines if !lines.is_empty() => lines,
            // Something failed to be read that has more than one copy.
            _ if state == "damaged" => "some".to_owned(),
            _ => "none".to_owned(),
        })
    }
}

/// Gives a new file or directory the policy of the directory that it is made in.
pub(super) fn inherit(
    update: &mut Update,
    parent: FileId,
    new: &New<'_>,
    file: FileId,
) -> std::result::Result<(), crate::meta::NamespaceError> {
    if matches!(new.kind, FileKind::Regular | FileKind::Directory)
        && let Some(policy) = crate::meta::Read::get(update, &Key::xattr(parent, POLICY))?
    {
        update.put(Key::xattr(file, POLICY), &policy);
    }
    Ok(())
}

fn words(value: &[u8]) -> Result<&str> {
    std::str::from_utf8(value)
        .map(|text| text.trim_end_matches('\0'))
        .map_err(|_| VolumeError::new(libc::EINVAL, "user.parsfs.policy: write it in plain text"))
}

fn unknown(name: &[u8]) -> VolumeError {
    let name = String::from_utf8_lossy(name);
    VolumeError::new(
        libc::EINVAL,
        format!(
            "there is no attribute {name}; of user.parsfs.*, only user.parsfs.policy can be set"
        ),
    )
}

/// Bytes on the disks by tier, and by disk.
fn stored(file: &Inspection) -> String {
    let mut text = String::new();
    for tier in &file.tiers {
        text.push_str(&format!("{}={}\n", tier.tier, tier.stored));
    }
    text.push_str(&format!(
        "parity={}\nmetadata={}\n",
        file.parity_bytes, file.metadata_bytes
    ));
    for share in &file.disks {
        let bytes = share.data_bytes + share.parity_bytes;
        text.push_str(&format!("disk:{}={bytes}\n", share.disk));
    }
    text
}
