//! What has changed since the last checkpoint, in memory: for each key its values by version, so that a
//! view goes on seeing what was there when it was taken. Knows no disk.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::change::Change;
use super::table::{Key, Value};

/// Bytes that a key's place costs beside key and value, roughly.
const OVERHEAD: u64 = 120;

#[derive(Debug, Default)]
pub(super) struct Layer {
    entries: RwLock<BTreeMap<Key, Versions>>,
    bytes: AtomicU64,
}

/// Values with the versions that set them, the newest last; never empty.
type Versions = Vec<(u64, Option<Value>)>;

fn at_version(versions: &Versions, version: u64) -> Option<&Option<Value>> {
    let (_, value) = versions.iter().rev().find(|(at, _)| *at <= version)?;
    Some(value)
}

impl Layer {
    /// Adds changes as of a version. Without `keep_old`, which needs nobody to be looking, values that they
    /// replace are gone.
    pub(super) fn add(&self, changes: impl Iterator<Item = Change>, version: u64, keep_old: bool) {
        let mut entries = self.entries.write();
        let mut bytes = 0;
        for (key, value) in changes {
            let size = OVERHEAD
                + key.as_bytes().len() as u64
                + value.as_ref().map_or(0, |value| value.len() as u64);
            let versions = entries.entry(key).or_default();
            if !keep_old {
                versions.clear();
            }
            versions.push((version, value));
            // What replaces counts as well: it is as much work for the next checkpoint's journal.
            bytes += size;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Two layers as one: what the older says, and what the newer says over it.
    pub(super) fn joined(older: &Layer, newer: &Layer) -> Layer {
        let mut entries = older.entries.read().clone();
        for (key, versions) in &*newer.entries.read() {
            let all = entries.entry(key.clone()).or_default();
            all.extend(versions.iter().cloned());
        }
        Layer {
            entries: RwLock::new(entries),
            bytes: AtomicU64::new(older.bytes() + newer.bytes()),
        }
    }

    /// Roughly the memory in use.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.read().is_empty()
    }

    /// What this layer says of a key at a version: nothing, or its value, or that it is deleted.
    pub(super) fn get(&self, key: &Key, version: u64) -> Option<Option<Value>> {
        let entries = self.entries.read();
        at_version(entries.get(key)?, version).cloned()
    }

    /// Up to `limit` changes in order of keys, from a bound on, below a prefix.
    pub(super) fn range(
        &self,
        prefix: &[u8],
        from: Bound<&Key>,
        limit: usize,
        version: u64,
    ) -> Vec<Change> {
        let entries = self.entries.read();
        entries
            .range::<Key, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.as_bytes().starts_with(prefix))
            .filter_map(|(key, versions)| {
                Some((key.clone(), at_version(versions, version)?.clone()))
            })
            .take(limit)
            .collect()
    }

    /// Shows the newest value of every key, in order.
    pub(super) fn newest<T>(
        &self,
        show: impl for<'a> FnOnce(&mut (dyn Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + 'a)) -> T,
    ) -> T {
        let entries = self.entries.read();
        show(&mut entries.iter().map(|(key, versions)| {
            let value = versions.last().and_then(|(_, value)| value.as_deref());
            (key.as_bytes(), value)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(name: &[u8], value: Option<&[u8]>) -> Change {
        (Key::setting(name), value.map(Value::from))
    }

    #[test]
    fn a_version_sees_what_was_there() {
        let layer = Layer::default();
        layer.add([change(b"a", Some(b"1"))].into_iter(), 1, true);
        layer.add(
            [change(b"a", None), change(b"b", Some(b"2"))].into_iter(),
            2,
            true,
        );
        let a = Key::setting(b"a");
        assert_eq!(layer.get(&a, 0), None);
        assert_eq!(layer.get(&a, 1), Some(Some(b"1"[..].into())));
        assert_eq!(layer.get(&a, 2), Some(None));
        let all = Key::setting(b"");
        let range = |version| {
            layer
                .range(all.as_bytes(), Bound::Included(&all), 9, version)
                .len()
        };
        assert_eq!([range(0), range(1), range(2)], [0, 1, 2]);
        layer.add([change(b"a", Some(b"3"))].into_iter(), 3, false);
        assert_eq!(layer.get(&a, 2), None);
    }
}
