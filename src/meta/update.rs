//! Changing: an update is a list of puts and deletes that is made as a whole or not at all. One update is
//! made at a time; it sees its own changes.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::error::Result;
use super::table::{Key, Value};
use super::view::{Read, View};

/// Changes that are being put together.
#[derive(Debug)]
pub struct Update {
    pub(super) view: View,
    pub(super) changes: BTreeMap<Key, Option<Value>>,
}

impl Update {
    /// Sets the value of a key.
    pub fn put(&mut self, key: Key, value: &[u8]) {
        self.changes.insert(key, Some(value.into()));
    }

    /// Deletes a key; its not being there is no error.
    pub fn delete(&mut self, key: Key) {
        self.changes.insert(key, None);
    }

    /// Deletes every key that begins with `prefix`.
    pub fn delete_all(&mut self, prefix: &Key) -> Result<()> {
        let keys: Vec<Key> = self
            .scan(prefix)
            .map(|found| found.map(|(key, _)| key))
            .collect::<Result<_>>()?;
        for key in keys {
            self.delete(key);
        }
        Ok(())
    }
}

impl Read for Update {
    fn get(&self, key: &Key) -> Result<Option<Value>> {
        match self.changes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.view.get(key),
        }
    }

    fn range(&self, prefix: &Key, from: Bound<&Key>, limit: usize) -> Result<Vec<(Key, Value)>> {
        self.view.merge(&self.changes, prefix, from, limit)
    }
}
