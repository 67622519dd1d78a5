//! Reading: a view sees the metadata as it was when it was taken, from any thread and for as long as it is
//! kept. Puts together what is in memory and what is in the database.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::database::Snapshot;
use super::error::Result;
use super::inner::Inner;
use super::layer::Layer;
use super::table::{Key, Value};

/// Keys read at once by a scan.
const BATCH: usize = 256;

/// Where metadata is read from: a `View`, or an `Update`, which sees its own changes.
pub trait Read {
    /// The value of a key.
    fn get(&self, key: &Key) -> Result<Option<Value>>;

    /// Up to `limit` keys that begin with `prefix`, in order, from a bound on, with their values.
    fn range(&self, prefix: &Key, from: Bound<&Key>, limit: usize) -> Result<Vec<(Key, Value)>>;

    /// All keys that begin with `prefix`, in order, read a few hundred at a time.
    fn scan<'a>(&'a self, prefix: &Key) -> Scan<'a, Self> {
        Scan {
            from: self,
            prefix: prefix.clone(),
            next: Some(Bound::Included(prefix.clone())),
            batch: Vec::new().into_iter(),
        }
    }
}

/// The iterator of `Read::scan`. Ends after an error.
#[derive(Debug)]
pub struct Scan<'a, R: ?Sized> {
    from: &'a R,
    prefix: Key,
    next: Option<Bound<Key>>,
    batch: std::vec::IntoIter<(Key, Value)>,
}

impl<R: Read + ?Sized> Iterator for Scan<'_, R> {
    type Item = Result<(Key, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(found) = self.batch.next() {
            return Some(Ok(found));
        }
        let next = self.next.take()?;
        match self.from.range(&self.prefix, next.as_ref(), BATCH) {
            Err(error) => Some(Err(error)),
            Ok(batch) => {
                if batch.len() == BATCH {
                    self.next = batch.last().map(|(key, _)| Bound::Excluded(key.clone()));
                }
                self.batch = batch.into_iter();
                self.batch.next().map(Ok)
            }
        }
    }
}

/// The metadata as it was at one moment.
#[derive(Clone)]
pub struct View {
    pub(super) inner: Arc<Inner>,
    pub(super) version: u64,
    pub(super) current: Arc<Layer>,
    pub(super) frozen: Option<Arc<Layer>>,
    pub(super) base: Arc<Snapshot>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View at version {}", self.version)
    }
}

impl Read for View {
    fn get(&self, key: &Key) -> Result<Option<Value>> {
        let layers = [Some(&self.current), self.frozen.as_ref()];
        for layer in layers.into_iter().flatten() {
            if let Some(value) = layer.get(key, self.version) {
                return Ok(value);
            }
        }
        self.inner.read_base(&self.base, key)
    }

    fn range(&self, prefix: &Key, from: Bound<&Key>, limit: usize) -> Result<Vec<(Key, Value)>> {
        self.merge(&BTreeMap::new(), prefix, from, limit)
    }
}

/// What one source says of a key.
enum Said {
    Value(Value),
    Deleted,
    /// The database has something here that must be read again from elsewhere.
    Damaged,
}

impl View {
    /// `range` with changes over it that are not made yet.
    pub(super) fn merge(
        &self,
        changes: &BTreeMap<Key, Option<Value>>,
        prefix: &Key,
        from: Bound<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Value)>> {
        // A few more than asked for, so that many deleted keys are passed over quickly.
        let want = limit.max(64);
        let mut from = from.cloned();
        let mut found = Vec::new();
        loop {
            let sources = self.sources(changes, prefix, from.as_ref(), want)?;
            // Up to here every source has told all it knows.
            let mut told: Option<Key> = None;
            let mut merged: BTreeMap<Key, Said> = BTreeMap::new();
            for source in sources {
                if source.len() == want
                    && let Some((last, _)) = source.last()
                    && told.as_ref().is_none_or(|told| last < told)
                {
                    told = Some(last.clone());
                }
                for (key, said) in source {
                    merged.entry(key).or_insert(said);
                }
            }
            for (key, said) in merged {
                if found.len() == limit || told.as_ref().is_some_and(|told| key > *told) {
                    break;
                }
                let value = match said {
                    Said::Value(value) => Some(value),
                    Said::Deleted => None,
                    Said::Damaged => self.inner.read_base(&self.base, &key)?,
                };
                found.extend(value.map(|value| (key, value)));
            }
            match told {
                Some(told) if found.len() < limit => from = Bound::Excluded(told),
                _ => return Ok(found),
            }
        }
    }

    /// What each source says from a bound on, the newest source first.
    fn sources(
        &self,
        changes: &BTreeMap<Key, Option<Value>>,
        prefix: &Key,
        from: Bound<&Key>,
        want: usize,
    ) -> Result<Vec<Vec<(Key, Said)>>> {
        let said = |value: Option<Value>| value.map_or(Said::Deleted, Said::Value);
        let mut sources = Vec::with_capacity(4);
        if !changes.is_empty() {
            let below = changes
                .range::<Key, _>((from, Bound::Unbounded))
                .take_while(|(key, _)| key.as_bytes().starts_with(prefix.as_bytes()))
                .take(want);
            sources.push(
                below
                    .map(|(key, value)| (key.clone(), said(value.clone())))
                    .collect(),
            );
        }
        let layers = [Some(&self.current), self.frozen.as_ref()];
        for layer in layers.into_iter().flatten() {
            let range = layer.range(prefix.as_bytes(), from, want, self.version);
            sources.push(
                range
                    .into_iter()
                    .map(|(key, value)| (key, said(value)))
                    .collect(),
            );
        }
        let base = self.inner.range_base(&self.base, prefix, from, want)?;
        sources.push(
            base.into_iter()
                .map(|(key, value)| (key, value.map_or(Said::Damaged, Said::Value)))
                .collect(),
        );
        Ok(sources)
    }
}
