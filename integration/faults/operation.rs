//! Operations that a seed makes up, done to a volume and to the model side by side.

use std::sync::Arc;

use parsfs::ids::FileId;
use parsfs::volume::{Allocate, Caller, Changes, Handle, ROOT, Volume, VolumeError};

use crate::model::{File, Model};
use crate::random::Random;

/// Names that files have, the last ones in a directory.
pub const NAMES: [&str; 6] = ["a", "b", "c", "d", "sub/a", "sub/b"];

/// Whoever does it.
pub const CALLER: Caller = Caller { uid: 0, gid: 0 };

/// What is done. Files are named by their place in the model.
#[derive(Clone, Debug)]
pub enum Operation {
    Create {
        name: &'static str,
    },
    Open {
        file: usize,
        truncate: bool,
    },
    Write {
        file: usize,
        at: u64,
        length: usize,
        seed: u64,
    },
    Zeros {
        file: usize,
        at: u64,
        length: usize,
    },
    Truncate {
        file: usize,
        size: u64,
    },
    TruncateClosed {
        file: usize,
        size: u64,
    },
    Punch {
        file: usize,
        at: u64,
        length: u64,
    },
    Sync {
        file: usize,
    },
    Close {
        file: usize,
    },
    Rename {
        from: &'static str,
        to: &'static str,
    },
    Remove {
        name: &'static str,
    },
    Read {
        file: usize,
        at: u64,
        length: usize,
    },
    SyncNames,
}

/// How large files become, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub file: u64,
    pub write: u64,
}

/// Bytes that a seed makes; half of them compress.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend((random.next() | 0x0101_0101).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Makes up what can be done next.
pub fn next(random: &mut Random, model: &Model, sizes: Sizes) -> Operation {
    loop {
        let open = model.open();
        let file = (!open.is_empty()).then(|| *random.pick(&open));
        let here: Vec<&'static str> = NAMES
            .into_iter()
            .filter(|name| model.names.contains_key(*name))
            .collect();
        let at = random.below(sizes.file);
        match random.below(24) {
            0..=2 => {
                let name = *random.pick(&NAMES);
                if !here.contains(&name) && open.len() < 3 {
                    return Operation::Create { name };
                }
            }
            3..=5 if !here.is_empty() => {
                let file = model.names[*random.pick(&here)];
                if model.files[file].handle.is_none() && open.len() < 3 {
                    let truncate = random.once_in(4);
                    return Operation::Open { file, truncate };
                }
            }
            6..=11 => {
                if let Some(file) = file {
                    let most = match random.below(4) {
                        0 => 200,
                        1 => 9000,
                        _ => sizes.write,
                    };
                    return Operation::Write {
                        file,
                        at: if random.once_in(3) {
                            at
                        } else {
                            at / 4096 * 4096
                        },
                        length: 1 + random.below(most) as usize,
                        seed: random.next(),
                    };
                }
            }
            12 => {
                if let Some(file) = file {
                    let length = 1 + random.below(30_000) as usize;
                    return Operation::Zeros { file, at, length };
                }
            }
            13 => {
                if let Some(file) = file {
                    return Operation::Truncate { file, size: at };
                }
            }
            14 if !here.is_empty() => {
                let file = model.names[*random.pick(&here)];
                if model.files[file].handle.is_none() {
                    return Operation::TruncateClosed { file, size: at };
                }
            }
            15 => {
                if let Some(file) = file {
                    let length = 1 + random.below(sizes.file / 2);
                    return Operation::Punch { file, at, length };
                }
            }
            16..=17 => {
                if let Some(file) = file {
                    return Operation::Sync { file };
                }
            }
            18..=19 => {
                if let Some(file) = file {
                    return Operation::Close { file };
                }
            }
            20 if !here.is_empty() => {
                let (from, to) = (*random.pick(&here), *random.pick(&NAMES));
                if from != to {
                    return Operation::Rename { from, to };
                }
            }
            21 if here.len() > 2 => {
                let name = *random.pick(&here);
                return Operation::Remove { name };
            }
            22 => {
                if let Some(file) = file {
                    let length = 1 + random.below(sizes.file) as usize;
                    return Operation::Read { file, at, length };
                }
            }
            23 => return Operation::SyncNames,
            _ => {}
        }
    }
}

/// Why an operation is not what the model has it.
#[derive(Debug)]
pub enum Failure {
    /// The volume refused it.
    Refused(VolumeError),
    /// It answered something wrong.
    Wrong(String),
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Failure {
        Failure::Refused(error)
    }
}

/// The directory of a name, and the name in it.
fn place(volume: &Volume, name: &'static str) -> Result<(FileId, &'static [u8]), VolumeError> {
    match name.split_once('/') {
        None => Ok((ROOT, name.as_bytes())),
        Some((directory, name)) => {
            let found = volume.lookup(ROOT, directory.as_bytes())?;
            Ok((found.file, name.as_bytes()))
        }
    }
}

fn handle(model: &Model, file: usize) -> Handle {
    model.files[file].handle.expect("an open file")
}

fn put(bytes: &mut Vec<u8>, at: u64, new: &[u8]) {
    let end = at as usize + new.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at as usize..end].copy_from_slice(new);
}

/// Does an operation to both. After a refusal the model holds every state that it may have left.
pub fn apply(volume: &Volume, model: &mut Model, operation: &Operation) -> Result<(), Failure> {
    match *operation {
        Operation::Create { name } => {
            let (directory, base) = place(volume, name)?;
            let made = volume.create_file(directory, base, 0o644, libc::O_RDWR, CALLER);
            let (attributes, opened) = match made {
                Ok(made) => made,
                Err(error) => {
                    // It may have been made and not opened.
                    model.names.insert(name.to_owned(), model.files.len());
                    model.files.push(new_file(FileId(0), None));
                    model.changed();
                    return Err(error.into());
                }
            };
            model.names.insert(name.to_owned(), model.files.len());
            model
                .files
                .push(new_file(attributes.file, Some(opened.handle)));
            model.changed();
        }
        Operation::Open { file, truncate } => {
            let flags = libc::O_RDWR | if truncate { libc::O_TRUNC } else { 0 };
            let opened = volume.open_file(model.files[file].id, flags)?;
            let file = &mut model.files[file];
            file.handle = Some(opened.handle);
            if truncate {
                file.dirty |= !file.now.is_empty();
                file.now.clear();
            }
        }
        Operation::Write {
            file,
            at,
            length,
            seed,
        } => {
            let bytes = noise(seed, length);
            volume.write(handle(model, file), at, &bytes)?;
            put(&mut model.files[file].now, at, &bytes);
            model.files[file].dirty = true;
        }
        Operation::Zeros { file, at, length } => {
            let bytes = vec![0; length];
            volume.write(handle(model, file), at, &bytes)?;
            put(&mut model.files[file].now, at, &bytes);
            model.files[file].dirty = true;
        }
        Operation::Truncate { file, size } => {
            let handle = Some(handle(model, file));
            volume.set_attributes(model.files[file].id, handle, &size_of(size))?;
            model.files[file].now.resize(size as usize, 0);
            model.files[file].dirty = true;
        }
        Operation::TruncateClosed { file, size } => {
            model.files[file].now.resize(size as usize, 0);
            model.files[file].dirty = true;
            model.committed(file);
            volume.set_attributes(model.files[file].id, None, &size_of(size))?;
            model.synced();
        }
        Operation::Punch { file, at, length } => {
            volume.allocate(handle(model, file), at, length, Allocate::Punch)?;
            let now = &mut model.files[file].now;
            let end = (at + length).min(now.len() as u64) as usize;
            if let Some(range) = now.get_mut(at as usize..end) {
                range.fill(0);
            }
            model.files[file].dirty = true;
        }
        Operation::Sync { file } => {
            let handle = handle(model, file);
            model.committed(file);
            volume.fsync(handle)?;
            answered(model, file);
        }
        Operation::Close { file } => {
            let handle = handle(model, file);
            model.committed(file);
            let flushed = volume.flush(handle);
            volume.release(handle);
            model.files[file].handle = None;
            flushed?;
            answered(model, file);
        }
        Operation::Rename { from, to } => {
            let (directory, base) = place(volume, from)?;
            let (to_directory, to_base) = place(volume, to)?;
            volume.rename(directory, base, to_directory, to_base, 0)?;
            let file = model.names.remove(from).expect("a name");
            if let Some(replaced) = model.names.insert(to.to_owned(), file) {
                model.files[replaced].named = false;
            }
            model.changed();
        }
        Operation::Remove { name } => {
            let (directory, base) = place(volume, name)?;
            volume.remove(directory, base)?;
            let file = model.names.remove(name).expect("a name");
            model.files[file].named = false;
            model.changed();
        }
        Operation::Read { file, at, length } => {
            let found = volume.read(handle(model, file), at, length)?;
            let now = &model.files[file].now;
            let start = now.len().min(at as usize);
            let end = now.len().min(at as usize + length);
            if found != now[start..end] {
                let place = std::iter::zip(&found, &now[start..end]).position(|(a, b)| a != b);
                return Err(Failure::Wrong(format!(
                    "WRONG BYTES: {} of {} bytes read, the first difference at {place:?}",
                    found.len(),
                    end - start,
                )));
            }
        }
        Operation::SyncNames => {
            volume.sync_names()?;
            model.synced();
        }
    }
    Ok(())
}

/// A commit was answered. That of a file without a name is none.
fn answered(model: &mut Model, file: usize) {
    if model.files[file].named {
        model.synced();
    }
}

fn new_file(id: FileId, handle: Option<Handle>) -> File {
    File {
        id,
        now: Vec::new(),
        committed: Arc::default(),
        handle,
        dirty: false,
        named: true,
    }
}

fn size_of(size: u64) -> Changes {
    Changes {
        size: Some(size),
        ..Changes::default()
    }
}
