//! What a volume ought to hold: names, bytes, and which of several states a crash may leave. Every change of the
//! metadata makes a new state, and a sync that was answered leaves only the newest one.

use std::collections::BTreeMap;
use std::sync::Arc;

use parsfs::ids::FileId;
use parsfs::volume::Handle;

use crate::tiers::{PAGE, always_critical};

/// What every name holds. A directory is told by what is in it.
pub type State = BTreeMap<String, Arc<Vec<u8>>>;

/// What was found of a file: its pages, `None` for one that could not be read.
pub struct Found {
    pub size: u64,
    pub pages: Vec<Option<Vec<u8>>>,
}

/// A file as programs see it.
#[derive(Debug)]
pub struct File {
    pub id: FileId,
    /// Bytes with what is not committed.
    pub now: Vec<u8>,
    pub committed: Arc<Vec<u8>>,
    pub handle: Option<Handle>,
    pub dirty: bool,
    /// Whether a name is left.
    pub named: bool,
}

/// The volume as it ought to be.
#[derive(Debug, Default)]
pub struct Model {
    pub names: BTreeMap<String, usize>,
    pub files: Vec<File>,
    /// What may be found after a crash, the oldest first. The last is what is committed now.
    pub legal: Vec<State>,
}

impl Model {
    /// What a crash would leave if everything done so far became durable.
    fn state(&self) -> State {
        let names = self.names.iter();
        names
            .map(|(name, &file)| (name.clone(), Arc::clone(&self.files[file].committed)))
            .collect()
    }

    /// The metadata was changed.
    pub fn changed(&mut self) {
        self.legal.push(self.state());
    }

    /// A sync was answered.
    pub fn synced(&mut self) {
        let state = self.state();
        self.legal = vec![state];
    }

    /// A commit of a file begins to be true.
    pub fn committed(&mut self, file: usize) {
        let file = &mut self.files[file];
        if file.named && file.dirty {
            file.committed = Arc::new(file.now.clone());
        }
        file.dirty = false;
        self.changed();
    }

    /// Files with a handle.
    pub fn open(&self) -> Vec<usize> {
        let files = self.files.iter().enumerate();
        files
            .filter(|(_, file)| file.handle.is_some())
            .map(|(number, _)| number)
            .collect()
    }

    /// The newest legal state that what was found agrees with. A page that could not be read agrees with all; what
    /// is missing of pages that may not be lost is an error.
    pub fn settle(
        &mut self,
        found: &BTreeMap<String, (FileId, Option<Found>)>,
        lost: Loss,
    ) -> Result<(), String> {
        let mut why = Vec::new();
        let legal = std::mem::take(&mut self.legal);
        for state in legal.iter().rev() {
            match agrees(state, found, lost) {
                Ok(()) => {
                    self.names.clear();
                    self.files.clear();
                    for (name, bytes) in state {
                        self.names.insert(name.clone(), self.files.len());
                        self.files.push(File {
                            id: found.get(name).map_or(FileId(0), |found| found.0),
                            now: bytes.to_vec(),
                            committed: Arc::clone(bytes),
                            handle: None,
                            dirty: false,
                            named: true,
                        });
                    }
                    self.legal = vec![state.clone()];
                    return Ok(());
                }
                Err(reason) => why.push(reason),
            }
        }
        self.legal = legal;
        Err(format!(
            "what is found is none of {} legal states; from the newest on: {}",
            why.len(),
            why.join("; ")
        ))
    }
}

/// What may be unreadable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing.
    None,
    /// Pages that were expendable at some time.
    Expendable,
    /// Anything: too many disks fail. Wrong bytes are no less wrong.
    Anything,
}

fn agrees(
    state: &State,
    found: &BTreeMap<String, (FileId, Option<Found>)>,
    lost: Loss,
) -> Result<(), String> {
    if !state.keys().eq(found.keys()) {
        return Err(format!(
            "names are {:?} and not {:?}",
            found.keys().collect::<Vec<_>>(),
            state.keys().collect::<Vec<_>>()
        ));
    }
    for ((name, bytes), (_, found)) in state.iter().zip(found.values()) {
        match found {
            Some(found) => {
                compare(bytes, found, lost).map_err(|why| format!("file {name}: {why}"))?
            }
            None if lost == Loss::Anything => {}
            None => return Err(format!("file {name} cannot be opened")),
        }
    }
    Ok(())
}

/// Compares a file with what was found of it.
pub fn compare(bytes: &[u8], found: &Found, lost: Loss) -> Result<(), String> {
    if found.size != bytes.len() as u64 {
        return Err(format!("{} bytes and not {}", found.size, bytes.len()));
    }
    for (number, (page, found)) in bytes.chunks(PAGE as usize).zip(&found.pages).enumerate() {
        match found {
            Some(found) if found == page => {}
            Some(found) => {
                let at = std::iter::zip(found, page).position(|(a, b)| a != b);
                return Err(format!("WRONG BYTES in page {number}, from byte {at:?} on"));
            }
            None => match lost {
                Loss::Anything => {}
                Loss::Expendable if !always_critical(number as u64) => {}
                Loss::Expendable | Loss::None => return Err(format!("page {number} is lost")),
            },
        }
    }
    Ok(())
}
