//! What a rescue tells of what it found and of what is lost. Knows numbers only.

use std::ops::{Range, RangeInclusive};

use crate::ids::{DiskId, Epoch};

/// What a rescue found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RescueReport {
    /// The disks whose databases were of no use, and were made anew.
    pub rebuilt: Vec<DiskId>,
    /// Transactions that no disk could give any more, or of which it cannot be told whether they took place. Those in a row
    /// are one range: a damaged number may make it a long one.
    pub lost_transactions: Vec<RangeInclusive<Epoch>>,
    /// Parts of the image, each of some thousand keys, that no disk could give any more.
    pub lost_image_parts: u32,
    /// The manifests of the namespace are what was left: all is as of this epoch, and later transactions are lost that
    /// no journal has.
    pub from_names: Option<Epoch>,
}

impl RescueReport {
    /// Notes transactions as lost. To be called in order.
    pub(super) fn lose(&mut self, epochs: Range<u64>) {
        if epochs.is_empty() {
            return;
        }
        let mut first = Epoch(epochs.start);
        let before = self
            .lost_transactions
            .pop_if(|before| before.end().0 + 1 == epochs.start);
        if let Some(before) = before {
            first = *before.start();
        }
        self.lost_transactions.push(first..=Epoch(epochs.end - 1));
    }

    /// Whether everything was found.
    pub fn is_complete(&self) -> bool {
        self.lost_transactions.is_empty() && self.lost_image_parts == 0
    }
}
