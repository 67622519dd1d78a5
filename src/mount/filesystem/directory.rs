//! What is in a directory, as the kernel wants to be told: as much as its answer holds.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{FileHandle, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::Adapter;
use super::answers::{GENERATION, id};
use crate::ids::FileId;
use crate::mount::attributes::{NAME_TTL, kind_to_fuse, nothing, to_fuse, ttl};
use crate::mount::errno::errno;
use crate::mount::workers::guarded;
use crate::volume::{Attributes, Handle, Result, Volume};

/// Entries asked of the volume at a time; an answer of the usual 4 to 128 KiB holds a few such.
const ENTRIES: usize = 128;

impl Adapter {
    /// Names and kinds.
    pub(super) fn list(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        guarded("readdir", || {
            let mut position = offset as i64;
            loop {
                let entries = match self.volume.read_directory(Handle(fh.0), position, ENTRIES) {
                    Ok(entries) => entries,
                    Err(error) => return reply.error(errno("readdir", ino, &error)),
                };
                let Some(last) = entries.last() else {
                    return reply.ok();
                };
                position = last.next;
                for entry in &entries {
                    let name = OsStr::from_bytes(&entry.name);
                    let kind = kind_to_fuse(entry.kind);
                    if reply.add(INodeNo(entry.file.0), entry.next as u64, kind, name) {
                        return reply.ok();
                    }
                }
            }
        });
    }

    /// The same with all that a lookup of each would tell.
    pub(super) fn list_with_attributes(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        guarded("readdirplus", || {
            let mut position = offset as i64;
            loop {
                let entries = match self.volume.read_directory(Handle(fh.0), position, ENTRIES) {
                    Ok(entries) => entries,
                    Err(error) => return reply.error(errno("readdir", ino, &error)),
                };
                let Some(last) = entries.last() else {
                    return reply.ok();
                };
                position = last.next;
                for entry in &entries {
                    let name = OsStr::from_bytes(&entry.name);
                    // Number 0 names the entry without saying anything of the file: for a name that leads elsewhere or nowhere
                    // by now, which the kernel would go by for an hour. It holds renames off until it has our answer.
                    let listed = self.volume.listed(id(ino), entry);
                    let (number, ttl, attributes) = match listed {
                        Ok(Some(attributes)) => {
                            (entry.file.0, ttl(&attributes), to_fuse(&attributes))
                        }
                        Ok(None) | Err(_) => {
                            let mut attributes = nothing();
                            attributes.ino = INodeNo(entry.file.0);
                            attributes.kind = kind_to_fuse(entry.kind);
                            (0, NAME_TTL, attributes)
                        }
                    };
                    let number = INodeNo(number);
                    if reply.add(
                        number,
                        entry.next as u64,
                        name,
                        &ttl,
                        &attributes,
                        GENERATION,
                    ) {
                        return reply.ok();
                    }
                }
            }
        });
    }
}

/// The directory that a directory lies in.
pub(super) fn parent_of(volume: &Volume, directory: FileId) -> Result<Attributes> {
    let handle = volume.open_directory(directory)?;
    // `.` and `..` come first.
    let entries = volume.read_directory(handle, 0, 2);
    volume.close_directory(handle);
    let parent = entries?
        .into_iter()
        .find(|entry| entry.name == b"..")
        .map_or(directory, |entry| entry.file);
    volume.attributes(parent)
}
