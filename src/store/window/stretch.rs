//! A stretch of a window's columns while parity is coded over it, from the bytes that are still in memory. Knows blocks and
//! where they begin, not what comes before or after.

use std::sync::Arc;

use super::SealedBlock;
use crate::store::parity::ShardMaker;

/// The next part of all columns that parity is coded over.
#[derive(Debug)]
pub struct Stretch {
    /// Codes it.
    pub maker: ShardMaker,
    /// Where it begins and ends in each column that is as long.
    pub range: std::ops::Range<u32>,
    /// It is the last one.
    pub last: bool,
    /// The blocks of each column that have a part in it, and where each begins there.
    pub(super) columns: Vec<Vec<(u32, Arc<SealedBlock>)>>,
}

impl Stretch {
    /// Codes it. The blocks are let go.
    pub fn code(self) -> ShardMaker {
        let Stretch {
            mut maker,
            range,
            columns,
            ..
        } = self;
        let columns: Vec<Vec<&[u8]>> = columns
            .iter()
            .map(|column| {
                let mut slices = Vec::with_capacity(2 * column.len());
                for (at, block) in column {
                    let mut at = *at as usize;
                    for part in [&block.sealed.header[..], &block.sealed.payload[..]] {
                        let (begin, end) = (range.start as usize, range.end as usize);
                        let from = begin.saturating_sub(at).min(part.len());
                        let to = end.saturating_sub(at).min(part.len());
                        slices.push(part.get(from..to).unwrap_or_default());
                        at += part.len();
                    }
                }
                slices
            })
            .collect();
        maker.add(&columns);
        maker
    }
}
