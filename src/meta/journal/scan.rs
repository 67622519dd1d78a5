//! Reading a disk's journals and manifests of the namespace, whatever became of them: what is whole is found, what is not is passed over.

use std::collections::BTreeMap;

use super::record::{HEADER, Header, Kind};
use super::writer::Series;
use crate::disk::{Disk, DiskError, ObjectName, Result};
use crate::ids::{Epoch, VolumeId};
use crate::meta::change;
use crate::meta::history::Mark;
use crate::meta::table::Table;

/// How much is read at once.
const READ: u64 = 1 << 20;

/// Where a record's payload lies that was found whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::meta) struct Place {
    /// The object.
    pub(in crate::meta) object: ObjectName,
    /// Where the header begins.
    pub(in crate::meta) offset: u64,
    /// The payload's length.
    pub(in crate::meta) length: u32,
}

/// A durable transaction that was found.
#[derive(Clone, Copy, Debug)]
pub(in crate::meta) struct Transaction {
    pub(in crate::meta) epoch: Epoch,
    pub(in crate::meta) generation: u64,
    pub(in crate::meta) previous: u64,
    pub(in crate::meta) fingerprint: u64,
    /// None where only the header is whole.
    pub(in crate::meta) place: Option<Place>,
}

impl Transaction {
    /// The moment that it leads to.
    pub(in crate::meta) fn mark(&self) -> Mark {
        Mark {
            epoch: self.epoch,
            generation: self.generation,
            fingerprint: self.fingerprint,
        }
    }
}

/// An image, whole or in part.
#[derive(Clone, Debug, Default)]
pub(in crate::meta) struct ImageScan {
    pub(in crate::meta) epoch: Epoch,
    pub(in crate::meta) generation: u64,
    pub(in crate::meta) fingerprint: u64,
    pub(in crate::meta) parts: BTreeMap<u32, Place>,
    /// How many parts there must be; none if the end was not found.
    pub(in crate::meta) wanted: Option<u32>,
}

impl ImageScan {
    pub(in crate::meta) fn is_whole(&self) -> bool {
        self.wanted
            .is_some_and(|wanted| self.parts.len() as u64 == u64::from(wanted))
    }
}

/// One journal.
#[derive(Debug, Default)]
pub(in crate::meta) struct FileScan {
    pub(in crate::meta) number: u64,
    /// Its length in bytes, as found.
    pub(in crate::meta) length: u64,
    pub(in crate::meta) image: Option<ImageScan>,
    pub(in crate::meta) transactions: Vec<Transaction>,
    /// From here on not everything is whole, and behind the last record that is there is nothing.
    pub(in crate::meta) damaged_at: Option<u64>,
}

impl FileScan {
    /// Whether this journal is whole but for its very end, so that it can be gone on with.
    pub(in crate::meta) fn is_sound(&self) -> bool {
        let ends = self.transactions.last().and_then(|last| last.place);
        let image_whole = self.image.as_ref().is_some_and(ImageScan::is_whole);
        let all = self.transactions.iter().all(|t| t.place.is_some());
        image_whole
            && all
            && match (self.damaged_at, ends) {
                (None, _) => true,
                (Some(damage), Some(last)) => damage > last.offset,
                (Some(_), None) => true,
            }
    }

    /// Bytes of the image.
    pub(in crate::meta) fn image_length(&self) -> u64 {
        let parts = self.image.iter().flat_map(|image| image.parts.values());
        parts
            .map(|part| HEADER as u64 + u64::from(part.length))
            .sum::<u64>()
            + HEADER as u64
    }
}

/// All journals of one disk.
#[derive(Debug, Default)]
pub(in crate::meta) struct Scan {
    /// The newest last.
    pub(in crate::meta) files: Vec<FileScan>,
    /// The generations that these journals tell of, by the epochs that declared them.
    pub(in crate::meta) generations: BTreeMap<Epoch, u64>,
    /// The manifests of the namespace that are there, which are not read here. The newest last.
    pub(in crate::meta) names: Vec<u64>,
    /// Whether the disk failed to give some of the journals' bytes.
    pub(in crate::meta) unread: bool,
}

/// Reads all journals of a disk. A part that the disk cannot read counts as damaged.
pub(in crate::meta) fn scan(disk: &dyn Disk, volume: VolumeId) -> Result<Scan> {
    let objects = disk.list()?;
    let numbers = |series: Series| -> Vec<u64> {
        let objects = objects.iter();
        let mut numbers: Vec<u64> = objects
            .filter_map(|(object, _)| series.number(*object))
            .collect();
        numbers.sort_unstable();
        numbers
    };
    let mut scan = Scan {
        names: numbers(Series::Names),
        ..Scan::default()
    };
    for number in numbers(Series::Journal) {
        let mut file = FileScan {
            number,
            ..FileScan::default()
        };
        let generations = &mut scan.generations;
        let walked = walk(
            disk,
            Series::Journal.object(number),
            volume,
            &mut |header, found| {
                if let Some((_, payload)) = found {
                    note_generations(payload, generations);
                }
                note(&mut file, header, found.map(|(place, _)| place));
            },
        )?;
        // A live writer began a new one and removed this.
        let Some(walked) = walked else { continue };
        file.length = walked.length;
        file.damaged_at = walked.damaged_at;
        scan.unread |= walked.unread;
        scan.files.push(file);
    }
    Ok(scan)
}

/// How a walk through an object went.
#[derive(Clone, Copy, Debug)]
pub(in crate::meta) struct Walked {
    /// The object's length in bytes.
    pub(in crate::meta) length: u64,
    /// From here on not everything is whole.
    pub(in crate::meta) damaged_at: Option<u64>,
    /// Whether the disk failed to give some of its bytes.
    pub(in crate::meta) unread: bool,
}

/// Who is shown the records of an object.
type OnRecord<'a> = dyn FnMut(&Header, Option<(Place, &[u8])>) + 'a;

/// Shows every record of an object whose header is whole, in order, with its payload where that is whole too. None
/// if there is no such object.
pub(in crate::meta) fn walk(
    disk: &dyn Disk,
    object: ObjectName,
    volume: VolumeId,
    each: &mut OnRecord<'_>,
) -> Result<Option<Walked>> {
    let length = match disk.length(object) {
        Err(error) if error.is_missing() => return Ok(None),
        length => length?,
    };
    let mut reader = Reader {
        disk,
        object,
        length,
        buffer: Vec::new(),
        start: 0,
        unread: false,
    };
    let damaged_at = walk_records(&mut reader, volume, each);
    Ok(Some(Walked {
        length,
        damaged_at,
        unread: reader.unread,
    }))
}

fn walk_records(reader: &mut Reader<'_>, volume: VolumeId, each: &mut OnRecord<'_>) -> Option<u64> {
    let mut damaged_at = None;
    let mut at = 0;
    while at < reader.length {
        let header = match reader.bytes(at, HEADER as u64) {
            Ok(bytes) => Header::decode(bytes, volume),
            Err(error) if error.is_missing() => None,
            Err(error) => {
                // What follows may be whole, but another disk has it too.
                tracing::warn!(%error, "a journal cannot be read to its end");
                return damaged_at.or(Some(at));
            }
        };
        let Some(header) = header else {
            damaged_at.get_or_insert(at);
            match reader.find_header(at + 1, volume) {
                Some(next) => at = next,
                None => return damaged_at,
            }
            continue;
        };
        let payload_at = at + HEADER as u64;
        let object = reader.object;
        let found = reader
            .bytes(payload_at, u64::from(header.length))
            .ok()
            .filter(|payload| header.fits(payload))
            .map(|payload| {
                let place = Place {
                    object,
                    offset: at,
                    length: header.length,
                };
                (place, payload)
            });
        if found.is_none() {
            damaged_at.get_or_insert(at);
        }
        each(&header, found);
        at = payload_at + u64::from(header.length);
        if at > reader.length {
            // Torn: but a record may have been written over a length that was only claimed.
            match reader.find_header(payload_at, volume) {
                Some(next) => at = next,
                None => return damaged_at,
            }
        }
    }
    damaged_at
}

fn note(file: &mut FileScan, header: &Header, place: Option<Place>) {
    if matches!(header.kind, Kind::Step | Kind::StepEnd) {
        // No part of a journal.
        return;
    }
    if header.kind == Kind::Transaction {
        file.transactions.push(Transaction {
            epoch: header.epoch,
            generation: header.generation,
            previous: header.previous,
            fingerprint: header.fingerprint,
            place,
        });
        return;
    }
    let image = file.image.get_or_insert_with(|| ImageScan {
        epoch: header.epoch,
        generation: header.generation,
        fingerprint: header.previous,
        ..ImageScan::default()
    });
    match (header.kind, place) {
        (Kind::Image, Some(place)) => {
            image.parts.insert(header.sequence, place);
        }
        (Kind::ImageEnd, _) => image.wanted = Some(header.sequence),
        _ => {}
    }
}

fn note_generations(payload: &[u8], generations: &mut BTreeMap<Epoch, u64>) {
    for (key, value) in change::decode_all(payload).unwrap_or_default() {
        if key.table() == Some(Table::Generation)
            && let Some(epoch) = key.decoder().key_u64()
            && let Some(generation) = value.and_then(|value| value.as_ref().try_into().ok())
        {
            generations.insert(Epoch(epoch), u64::from_le_bytes(generation));
        }
    }
}

/// The payload of a record, checked again as it is read; none if it is no longer what it was.
pub(in crate::meta) fn read_payload(
    disk: &dyn Disk,
    place: Place,
    volume: VolumeId,
) -> Result<Option<(Header, Vec<u8>)>> {
    let mut header = [0; HEADER];
    let object = place.object;
    disk.read_at(object, place.offset, &mut header)?;
    let mut payload = vec![0; place.length as usize];
    disk.read_at(object, place.offset + HEADER as u64, &mut payload)?;
    let header = Header::decode(&header, volume).filter(|header| header.fits(&payload));
    Ok(header.map(|header| (header, payload)))
}

/// Reads an object from front to back through a window.
struct Reader<'a> {
    disk: &'a dyn Disk,
    object: ObjectName,
    length: u64,
    buffer: Vec<u8>,
    start: u64,
    /// Whether the disk failed to give bytes.
    unread: bool,
}

impl Reader<'_> {
    fn bytes(&mut self, offset: u64, length: u64) -> Result<&[u8]> {
        let short = || DiskError::Short {
            disk: self.disk.name().to_owned(),
            object: self.object,
            offset,
            length,
        };
        let end = offset.checked_add(length).ok_or_else(short)?;
        if end > self.length {
            return Err(short());
        }
        if offset < self.start || end > self.start + self.buffer.len() as u64 {
            let read = length.max(READ).min(self.length - offset);
            self.buffer.clear();
            self.buffer.resize(read as usize, 0);
            self.start = offset;
            let result = self.disk.read_at(self.object, offset, &mut self.buffer);
            if result.is_err() {
                self.buffer.clear();
                self.unread = true;
            }
            result?;
        }
        let from = (offset - self.start) as usize;
        let bytes = self.buffer.get(from..from + length as usize);
        Ok(bytes.unwrap_or_default())
    }

    /// The next place from `at` on where a whole header is.
    fn find_header(&mut self, mut at: u64, volume: VolumeId) -> Option<u64> {
        while at + HEADER as u64 <= self.length {
            let window = READ.min(self.length - at);
            let bytes = self.bytes(at, window).ok()?;
            let found = memchr::memmem::find_iter(bytes, b"PFJ1").find(|place| {
                bytes
                    .get(*place..)
                    .is_some_and(|bytes| Header::decode(bytes, volume).is_some())
            });
            if let Some(place) = found {
                return Some(at + place as u64);
            }
            // One that began in this window's last bytes is found whole in the next.
            at += (window - HEADER as u64) + 1;
        }
        None
    }
}
