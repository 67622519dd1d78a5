//! What an open file is made of: the base manifest and, over it, three layers of changes: committed since
//! the base was written, frozen by the commit that runs, and new. Knows where bytes are, not how to get them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::error::Result;
use super::overlay::Overlay;
use crate::ids::WindowNo;
use crate::store::manifest::Manifest;
use crate::store::{Extent, OpenWindow, Source, WindowRecord};

/// A window that the base does not know yet.
#[derive(Clone, Debug)]
pub enum Window {
    /// Its blocks are on their way.
    Making(Arc<OpenWindow>),
    /// Placed.
    Made(Arc<WindowRecord>),
}

/// The layers of a file.
#[derive(Debug, Default)]
pub struct FileMap {
    /// The newest base, committed or not.
    pub base: Option<Arc<Manifest>>,
    /// Committed since the base.
    pub settled: Overlay,
    /// What the running commit makes true.
    pub frozen: Option<Overlay>,
    /// Newer than the running commit.
    pub top: Overlay,
    /// Windows that the base does not know, or knows otherwise.
    pub windows: HashMap<WindowNo, Window>,
}

impl FileMap {
    /// The whole range in extents in rising order, holes included.
    pub fn resolve(&self, range: Range<u64>) -> Result<Vec<Extent>> {
        self.resolve_through(range, true)
    }

    /// Bytes that no commit has made true yet, about: what was written over and over again counts up to twice.
    pub fn uncommitted_data(&self) -> u64 {
        self.top.data() + self.frozen.as_ref().map_or(0, Overlay::data)
    }

    /// The same as the running commit sees it: without what is newer.
    pub fn resolve_frozen(&self, range: Range<u64>) -> Result<Vec<Extent>> {
        self.resolve_through(range, false)
    }

    fn resolve_through(&self, range: Range<u64>, with_top: bool) -> Result<Vec<Extent>> {
        let mut found = Vec::new();
        let mut open = vec![range];
        let layers = [
            with_top.then_some(&self.top),
            self.frozen.as_ref(),
            Some(&self.settled),
        ];
        for layer in layers
            .into_iter()
            .flatten()
            .filter(|layer| !layer.is_empty())
        {
            let mut below = Vec::new();
            for gap in open {
                layer.walk(gap, &mut |extent| found.push(extent), &mut |gap| {
                    below.push(gap)
                });
            }
            open = below;
        }
        for gap in open {
            let mut at = gap.start;
            if let Some(base) = &self.base {
                for extent in base.extents(gap.clone())? {
                    let extent = extent?;
                    if at < extent.range.start {
                        found.push(Extent {
                            range: at..extent.range.start,
                            source: Source::Hole,
                        });
                    }
                    at = extent.range.end;
                    found.push(extent);
                }
            }
            if at < gap.end {
                found.push(Extent {
                    range: at..gap.end,
                    source: Source::Hole,
                });
            }
        }
        found.sort_unstable_by_key(|extent| extent.range.start);
        Ok(found)
    }

    /// A window's record from memory or the base; `None` while it is being made.
    pub fn record(&self, no: WindowNo) -> Result<Option<Arc<WindowRecord>>> {
        match (self.windows.get(&no), &self.base) {
            (Some(Window::Made(record)), _) => Ok(Some(Arc::clone(record))),
            (Some(Window::Making(_)), _) | (None, None) => Ok(None),
            (None, Some(base)) => Ok(base.window(no)?),
        }
    }

    /// What the commit froze goes back under what is newer: the commit failed.
    pub fn thaw(&mut self) {
        if let Some(mut frozen) = self.frozen.take() {
            frozen.apply(&self.top);
            self.top = frozen;
        }
    }

    /// What the commit froze is committed, as a change over the base.
    pub fn settle(&mut self) {
        if let Some(frozen) = self.frozen.take() {
            self.settled.apply(&frozen);
        }
    }

    /// What the commit froze, and all before it, is in a new base.
    pub fn rebase(&mut self, base: Arc<Manifest>) {
        self.base = Some(base);
        self.settled = Overlay::default();
        self.frozen = None;
        self.windows
            .retain(|_, window| matches!(window, Window::Making(_)));
    }
}
