//! Making updates durable: one record, appended to the journal of every disk and synced, side by side. Who
//! asks while a record is on its way waits for the next one, which then holds what all of them changed.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::change;
use super::error::{MetaError, Result};
use super::history::{EPOCH_MAX, Mark};
use super::inner::Inner;
use super::journal::{Journal, Kind, Record, append_all};
use super::layer::Layer;
use super::table::{Key, Value};
use crate::ids::Epoch;

/// The name of the setting that counts writable mounts; programs' settings do not begin with a zero.
pub(super) const MOUNTS: &[u8] = b"\0mounts";

/// The one writer of all journals.
pub(super) struct Commit {
    /// The newest durable transaction.
    pub(super) mark: Mark,
    /// The generation of the next one.
    pub(super) generation: u64,
    /// Updates up to this version are durable.
    pub(super) durable: u64,
    pub(super) journals: Vec<Journal>,
    /// The highest number that a journal has had.
    pub(super) number: u64,
    /// The length of the longest journal, and of its image. Bytes.
    pub(super) length: u64,
    pub(super) image_length: u64,
}

/// A generation's name.
pub(super) fn random_generation() -> u64 {
    // Every hasher is keyed from the system's randomness.
    let state = std::collections::hash_map::RandomState::new();
    let mut hasher = state.build_hasher();
    hasher.write_u32(std::process::id());
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    hasher.write_u128(since.map_or(0, |since| since.as_nanos()));
    hasher.finish()
}

impl Inner {
    /// Returns when every update made before the call is durable.
    pub(super) fn sync(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let wanted = self.state.read().version;
        let mut commit = self.commit.lock();
        if commit.durable >= wanted {
            return Ok(());
        }
        self.commit_pending(&mut commit, false)?;
        Ok(())
    }

    /// Makes everything pending durable. With `freeze`, what was made up to here is put aside for the
    /// databases. Gives the mark up to which that reaches.
    pub(super) fn commit_pending(&self, commit: &mut Commit, freeze: bool) -> Result<Mark> {
        self.check_writable()?;
        if self.drop_left_out(commit) {
            self.begin_generation(commit, Vec::new())?;
        }
        let mut payload = Vec::new();
        let version = {
            let mut writer = self.writer.lock();
            for (key, value) in &writer.pending {
                change::encode(key.as_bytes(), value.as_deref(), &mut payload);
            }
            writer.pending.clear();
            writer.bytes = 0;
            let mut state = self.state.write();
            if freeze && state.frozen.is_none() {
                state.frozen = Some(std::mem::take(&mut state.current));
            }
            state.version
        };
        let all_well = payload.is_empty() || self.append(commit, &payload)?;
        let mark = commit.mark;
        if !all_well {
            // Nobody is answered before the disks that are left have a generation of their own: otherwise
            // those that failed could go on by themselves, and this record would pass for unanswered.
            self.begin_generation(commit, Vec::new())?;
        }
        commit.durable = version;
        Ok(mark)
    }

    /// Begins a generation, with further changes in the record that declares it.
    pub(super) fn begin_generation(
        &self,
        commit: &mut Commit,
        changes: Vec<(Key, Option<Value>)>,
    ) -> Result<()> {
        let mut changes = changes;
        loop {
            let generation = random_generation();
            let declared = Epoch(commit.mark.epoch.0 + 1);
            let name: Value = generation.to_le_bytes().as_slice().into();
            changes.push((Key::generation(declared), Some(name)));
            let mut payload = Vec::new();
            for (key, value) in &changes {
                change::encode(key.as_bytes(), value.as_deref(), &mut payload);
            }
            let declared_everywhere = self.append(commit, &payload)?;
            commit.generation = generation;
            self.make_visible(std::mem::take(&mut changes));
            // The first record of the generation; with it the generation counts.
            let begun_everywhere = self.append(commit, &[])?;
            if declared_everywhere && begun_everywhere {
                return Ok(());
            }
        }
    }

    /// Appends one record to all journals. Tells whether every disk took it; an error when too few did.
    fn append(&self, commit: &mut Commit, payload: &[u8]) -> Result<bool> {
        if commit.mark.epoch >= EPOCH_MAX {
            // What is written with a higher one is not read again.
            self.poison(MetaError::EpochsUsedUp);
            return Err(MetaError::EpochsUsedUp);
        }
        let journals: Vec<&Journal> = commit.journals.iter().collect();
        let record = Record {
            kind: Kind::Transaction,
            sequence: 0,
            epoch: Epoch(commit.mark.epoch.0 + 1),
            generation: commit.generation,
            previous: commit.mark.fingerprint,
            volume: self.options.volume,
        };
        let (fingerprint, length, failed) = append_all(&journals, record, payload, true);
        self.leave_out_failed(failed);
        // Those too that somebody else left out meanwhile.
        let all_well = !self.drop_left_out(commit);
        if commit.journals.len() < self.disks_needed.load(Ordering::SeqCst) {
            let error = MetaError::TooFewDisks {
                online: commit.journals.len(),
                total: self.disks_of_volume.load(Ordering::SeqCst),
            };
            self.poison(error.clone());
            return Err(error);
        }
        commit.length += length;
        commit.mark = Mark {
            epoch: record.epoch,
            generation: record.generation,
            fingerprint,
        };
        *self.newest.lock() = commit.mark;
        Ok(all_well)
    }

    /// Closes the journals of disks that were left out; tells whether there were any.
    pub(super) fn drop_left_out(&self, commit: &mut Commit) -> bool {
        let before = commit.journals.len();
        commit
            .journals
            .retain(|journal| self.online().any(|replica| replica.id == journal.disk));
        commit.journals.len() < before
    }

    /// The layer that waits for the databases.
    pub(super) fn frozen(&self) -> Arc<Layer> {
        self.state.read().frozen.clone().unwrap_or_default()
    }

    /// The moment of the databases, and the layer that waits for them and begins there.
    pub(super) fn since_checkpoint(&self) -> (Mark, Arc<Layer>) {
        let state = self.state.read();
        (state.base.mark, state.frozen.clone().unwrap_or_default())
    }
}
