//! A whole window looked over, and mended: what a scrub does, window after window.

use std::sync::Arc;

use super::shards::in_column;
use super::{Cause, Reader, Wanted};
use crate::disk::ObjectName;
use crate::ids::{DiskId, FileId};
use crate::store::block::{BLOCK_HEADER, check};
use crate::store::disks::DiskState;
use crate::store::parity::{PARITY_HEADER, ParityIds, check_shard_header, encode, shard_header};
use crate::store::records::WindowRecord;

/// A block that its disk does not give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadBlock {
    /// Its place in the window.
    pub index: u16,
    /// Whether parity stands for it.
    pub protected: bool,
    /// Its disk.
    pub disk: DiskId,
    /// What the disk says, by name.
    pub cause: String,
}

/// A parity shard that its disk does not give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadShard {
    /// Which, from 0.
    pub shard: u8,
    /// Its disk.
    pub disk: DiskId,
    /// What the disk says, by name.
    pub cause: String,
}

/// What was found in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WindowReport {
    /// Blocks looked at.
    pub blocks: u32,
    /// Bytes read, or tried to.
    pub bytes: u64,
    /// Blocks that are bad on their disks; after a repair, those that still are.
    pub bad_blocks: Vec<BadBlock>,
    /// Parity shards that are bad; after a repair, those that still are.
    pub bad_shards: Vec<BadShard>,
    /// Blocks and shards that were written good again.
    pub repaired: u32,
    /// Blocks that cannot be had any more, not from the others either. Known after a repair only.
    pub gone: Vec<u16>,
}

impl WindowReport {
    /// Whether all is as it was written.
    pub fn is_good(&self) -> bool {
        self.bad_blocks.is_empty() && self.bad_shards.is_empty()
    }
}

impl Reader {
    /// Reads every block and parity shard of a window off its disk, all disks side by side, and compares
    /// checksums. Changes nothing.
    pub fn verify_window(&self, file: FileId, window: &WindowRecord) -> WindowReport {
        let shards = usize::from(window.code.k) + window.parity.len();
        self.verify_shards(file, window, &(0..shards).collect::<Vec<_>>())
    }

    /// The same of what these disks should have of it.
    pub fn verify_disks(
        &self,
        file: FileId,
        window: &WindowRecord,
        disks: &[DiskId],
    ) -> WindowReport {
        let shards = 0..usize::from(window.code.k) + window.parity.len();
        let theirs = |shard: &usize| window.disk(*shard).is_some_and(|of| disks.contains(&of));
        self.verify_shards(file, window, &shards.filter(theirs).collect::<Vec<_>>())
    }

    fn verify_shards(&self, file: FileId, window: &WindowRecord, shards: &[usize]) -> WindowReport {
        let k = usize::from(window.code.k);
        let parts = self.side_by_side(shards, |&shard| match shard.checked_sub(k) {
            None => self.verify_column(file, window, shard),
            Some(parity) => self.verify_shard(file, window, parity),
        });
        let mut report = WindowReport::default();
        for part in parts {
            report.blocks += part.blocks;
            report.bytes += part.bytes;
            report.bad_blocks.extend(part.bad_blocks);
            report.bad_shards.extend(part.bad_shards);
        }
        report.bad_blocks.sort_by_key(|bad| bad.index);
        report
    }

    /// The same, and then writes again what is bad where its disk is online, blocks first.
    pub fn repair_window(&self, file: FileId, window: &WindowRecord) -> WindowReport {
        let mut report = self.verify_window(file, window);
        for bad in std::mem::take(&mut report.bad_blocks) {
            let mended = self.find(file, window, bad.index).and_then(|wanted| {
                let cause = self.stored(wanted).err();
                // It may have been mended by a reader meanwhile. One that was left alone may be read all the same.
                let Some(cause) = cause else {
                    return Ok(self.disks.is_online(wanted.disk));
                };
                let stored = self.rebuild(wanted, &cause)?;
                Ok(self.put_back(wanted, &stored, &cause))
            });
            match mended {
                Ok(true) => report.repaired += 1,
                Ok(false) => report.bad_blocks.push(bad),
                Err(_) => {
                    report.gone.push(bad.index);
                    report.bad_blocks.push(bad);
                }
            }
        }
        let shards = std::mem::take(&mut report.bad_shards);
        if shards.iter().any(|bad| self.disks.is_online(bad.disk)) {
            let parity = self.parity_again(file, window).unwrap_or_default();
            for bad in shards {
                if self.mend_shard(file, window, &bad, &parity) {
                    report.repaired += 1;
                } else {
                    report.bad_shards.push(bad);
                }
            }
        } else {
            report.bad_shards = shards;
        }
        report
    }

    /// A block's stored bytes off its own disk, their checksum verified.
    pub(super) fn stored(&self, wanted: Wanted<'_>) -> Result<Vec<u8>, Cause> {
        let mut stored = vec![0; wanted.record.stored as usize];
        let offset = wanted.record.offset;
        self.disks
            .read(wanted.disk, wanted.object(), offset, &mut stored)
            .map_err(|failure| self.failed(wanted, failure))?;
        check(&stored, wanted.record).map_err(|error| self.bad_block(wanted, error))?;
        Ok(stored)
    }

    fn verify_column(&self, file: FileId, window: &WindowRecord, column: usize) -> WindowReport {
        let mut report = WindowReport::default();
        for (index, record) in (0u16..).zip(&window.blocks) {
            if record.stored == 0 || record.lost || usize::from(record.column) != column {
                continue;
            }
            report.blocks += 1;
            let disk = window.disk(column).unwrap_or(DiskId(u16::MAX));
            if self.disks.state(disk) == DiskState::Faulty {
                report.bad_blocks.push(BadBlock {
                    index,
                    protected: record.protected,
                    disk,
                    cause: format!("disk {} is faulty and left alone", self.disks.name(disk)),
                });
                continue;
            }
            report.bytes += u64::from(record.stored);
            let cause = match self.find(file, window, index) {
                Ok(wanted) => self.stored(wanted).err().map(|cause| cause.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(cause) = cause {
                report.bad_blocks.push(BadBlock {
                    index,
                    protected: record.protected,
                    disk,
                    cause,
                });
            }
        }
        report
    }

    fn verify_shard(&self, file: FileId, window: &WindowRecord, parity: usize) -> WindowReport {
        let disk = self.parity_disk(window, parity);
        let damaged = |what: &str| {
            let (disk, set) = (self.disks.name(disk), window.parity_set);
            Some(format!(
                "disk {disk}: parity shard {parity} in set {set}: {what}"
            ))
        };
        let cause = match self.parity_is_good(window, parity) {
            Ok(true) => match self.shard_header_is_good(file, window, parity) {
                Some(true) => None,
                _ => damaged("its header is damaged"),
            },
            Ok(false) => damaged("it is not what was written (checksum)"),
            Err(error) => Some(error.to_string()),
        };
        let bad = cause.map(|cause| BadShard {
            shard: parity as u8,
            disk,
            cause,
        });
        WindowReport {
            bytes: u64::from(window.parity_length) + PARITY_HEADER as u64,
            bad_shards: bad.into_iter().collect(),
            ..WindowReport::default()
        }
    }

    fn parity_disk(&self, window: &WindowRecord, parity: usize) -> DiskId {
        let disk = window.disk(usize::from(window.code.k) + parity);
        disk.unwrap_or(DiskId(u16::MAX))
    }

    pub(super) fn parity_ids(
        &self,
        file: FileId,
        window: &WindowRecord,
        parity: usize,
    ) -> ParityIds {
        ParityIds {
            volume: self.volume,
            file,
            set: window.parity_set,
            window: window.no,
            code: window.code,
            shard: parity as u8,
        }
    }

    fn shard_header_is_good(
        &self,
        file: FileId,
        window: &WindowRecord,
        parity: usize,
    ) -> Option<bool> {
        let shard = window.parity.get(parity)?;
        let mut header = [0; PARITY_HEADER];
        let object = ObjectName::Parity(window.parity_set);
        let offset = shard.offset.checked_sub(PARITY_HEADER as u64)?;
        let disk = self.parity_disk(window, parity);
        self.disks.read(disk, object, offset, &mut header).ok()?;
        let ids = self.parity_ids(file, window, parity);
        Some(check_shard_header(ids, &header, window.parity_length, shard.checksum).is_ok())
    }

    /// All parity of a window computed anew, from blocks that are all verified. Holds the window's protected
    /// blocks in memory, at most 32 MiB. `None` when one of them cannot be had.
    pub(super) fn parity_again(&self, file: FileId, window: &WindowRecord) -> Option<Vec<Vec<u8>>> {
        let k = usize::from(window.code.k);
        let mut columns: Vec<Vec<(u32, Arc<[u8]>)>> = vec![Vec::new(); k];
        for (index, record) in (0u16..).zip(&window.blocks) {
            if record.stored == 0 || !record.protected {
                continue;
            }
            let wanted = self.find(file, window, index).ok()?;
            let stored = self
                .stored(wanted)
                .or_else(|cause| self.rebuild(wanted, &cause));
            let column = columns.get_mut(usize::from(record.column))?;
            column.push((in_column(record).start, Arc::from(stored.ok()?)));
        }
        let zeros = vec![0; super::BLOCK_MAX + BLOCK_HEADER];
        let mut slices: Vec<Vec<&[u8]>> = Vec::with_capacity(k);
        for column in &mut columns {
            column.sort_by_key(|(start, _)| *start);
            let mut end = 0;
            let mut column_slices: Vec<&[u8]> = Vec::new();
            for (start, bytes) in column.iter() {
                // Between blocks a column is zeros, as behind its end.
                let mut gap = start.checked_sub(end)? as usize;
                while gap > 0 {
                    let filler = zeros.get(..gap.min(zeros.len()))?;
                    gap -= filler.len();
                    column_slices.push(filler);
                }
                column_slices.push(bytes);
                end = start.checked_add(bytes.len() as u32)?;
            }
            slices.push(column_slices);
        }
        encode(window.code, &slices).ok()
    }

    fn mend_shard(
        &self,
        file: FileId,
        window: &WindowRecord,
        bad: &BadShard,
        parity: &[Vec<u8>],
    ) -> bool {
        let number = usize::from(bad.shard);
        let (Some(bytes), Some(record)) = (parity.get(number), window.parity.get(number)) else {
            return false;
        };
        // Computed from blocks as they are recorded: another checksum means that the record is of other
        // blocks, and then nothing here may be overwritten.
        if bytes.len() != window.parity_length as usize
            || xxhash_rust::xxh3::xxh3_64(bytes) != record.checksum
        {
            return false;
        }
        let header = shard_header(
            self.parity_ids(file, window, number),
            window.parity_length,
            record.checksum,
        );
        let stored = [&header[..], bytes].concat();
        let Some(offset) = record.offset.checked_sub(PARITY_HEADER as u64) else {
            return false;
        };
        let object = ObjectName::Parity(window.parity_set);
        self.disks.repair(bad.disk, object, offset, &stored)
    }
}
