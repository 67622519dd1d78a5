//! What we tell the kernel of our own accord: to forget attributes that it cached. Never to forget bytes: for that it takes
//! the locks of their pages, and whoever holds one may wait for an answer of ours. A daemon that is killed while a thread
//! of it waits there never ends, and its mount with it. So no file is ever open past the cache for writing and through it
//! at once (`volume/open_file.rs`), and nothing that is cached goes stale.

use std::sync::{Arc, OnceLock};

use fuser::{INodeNo, Notifier};
use tracing::debug;

/// The way to the kernel. Before the session is there, nothing is cached and everything is a no-op.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    notifier: Arc<OnceLock<Notifier>>,
}

impl Kernel {
    /// The session is there.
    pub(super) fn connect(&self, notifier: Notifier) {
        // A second session on one adapter does not happen; the first one's notifier would stay.
        let _ = self.notifier.set(notifier);
    }

    /// Drops cached attributes and no bytes: takes no page's lock, and may be called anywhere.
    pub(super) fn forget_attributes(&self, file: INodeNo) {
        // An offset below 0 means just that.
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(file, -1, 0)
        {
            debug!("the kernel keeps its cache of file {}: {error}", file.0);
        }
    }
}
