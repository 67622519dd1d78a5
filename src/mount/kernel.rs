//! What we tell the kernel of our own accord: to forget what it cached. To drop bytes the kernel takes the locks of
//! their pages, and whoever holds one may wait for an answer of ours, so that must not happen on a session thread; the
//! volume's wishes go through a thread of their own, which waits for nobody else.

use std::sync::{Arc, OnceLock};
use std::thread;

use crossbeam_channel::unbounded;
use fuser::{INodeNo, Notifier};
use tracing::{debug, error};

use crate::ids::FileId;
use crate::volume::Invalidate;

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

    /// Drops cached bytes of a range (length 0: to the end). Not on a session thread.
    pub(super) fn forget_range(&self, file: INodeNo, offset: u64, length: u64) {
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        let length = i64::try_from(length).unwrap_or(0);
        self.invalidate(file, offset, length);
    }

    /// Drops cached attributes and no bytes: takes no page's lock, and may be called anywhere.
    pub(super) fn forget_attributes(&self, file: INodeNo) {
        self.invalidate(file, -1, 0);
    }

    fn invalidate(&self, file: INodeNo, offset: i64, length: i64) {
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(file, offset, length)
        {
            debug!("the kernel keeps its cache of file {}: {error}", file.0);
        }
    }

    /// What a volume calls to have ranges forgotten: from any thread, under any lock.
    pub(super) fn invalidate_aside(&self) -> Invalidate {
        let (sender, receiver) = unbounded::<(FileId, u64, u64)>();
        let kernel = self.clone();
        let spawned = thread::Builder::new()
            .name("invalidate".to_string())
            .spawn(move || {
                for (file, offset, length) in receiver {
                    kernel.forget_range(INodeNo(file.0), offset, length);
                }
            });
        if let Err(error) = spawned {
            error!("cannot start the thread that drops stale caches: {error}");
        }
        Arc::new(move |file, offset, length| {
            // It fails only when the thread is gone, and the session with it.
            let _ = sender.send((file, offset, length));
        })
    }
}
