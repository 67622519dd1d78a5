//! The tiers of real files: a snapshot of a guest is looked into when it is committed, and its pages get the tiers of their
//! classes. Everything else is critical: what is no snapshot, what cannot be looked into, guests that are not found, dumps.
//! What cannot be a snapshot costs nothing, and no page is read that tells nothing of others.

use std::io;
use std::ops::Range;

use parking_lot::Mutex;

use super::look::{self, Circumstances, Insight, Known, Look};
use super::tiers::{Finished, FrozenBytes, Judged, Kept, TierSource, Tiers};
use crate::ids::FileId;
use crate::snapshot::{
    self, ByteSource, Declared, Format, PastLosses, SnapshotError, cloud_hypervisor,
};
use crate::store::{Lane, Tier};

/// A smaller file holds no guest, in bytes.
const LEAST: u64 = 1 << 20;

/// More guest memory is not looked at, in bytes: a look takes a byte and a bit a page.
const LARGEST: u64 = 1 << 40;

/// Looks into files for guests, one at a time: each takes all cores, and memory for one.
#[derive(Debug, Default)]
pub struct Guests {
    turn: Mutex<()>,
}

/// Why a file was not looked into.
enum Spared {
    /// It cannot be a snapshot.
    NoSnapshot,
    /// It has more memory than is looked at, in bytes.
    TooLarge(u64),
    /// Its bytes cannot be read.
    Unreadable(SnapshotError),
}

impl From<SnapshotError> for Spared {
    fn from(error: SnapshotError) -> Self {
        Spared::Unreadable(error)
    }
}

impl TierSource for Guests {
    fn while_writing(&self, _: FileId, _: &Range<u64>, _: &[u8]) -> Lane {
        // Under parity until the commit knows better.
        Lane::Critical
    }

    fn at_commit(&self, finished: &Finished<'_>) -> Judged {
        let file = finished.file;
        match judge(finished, &self.turn) {
            Ok(judged) => judged,
            Err(Spared::NoSnapshot) => Judged::critical(),
            Err(Spared::TooLarge(bytes)) => {
                tracing::warn!(%file, bytes, "too large to be looked into; all of it is critical");
                Judged::critical()
            }
            Err(Spared::Unreadable(error)) => {
                tracing::warn!(%file, %error, "cannot be looked into; all of it is critical");
                Judged::critical()
            }
        }
    }
}

fn judge(finished: &Finished<'_>, turn: &Mutex<()>) -> Result<Judged, Spared> {
    let source = Source(finished.bytes);
    let length = finished.bytes.size();
    if length < LEAST {
        return Err(Spared::NoSnapshot);
    }
    let mut head = vec![0; snapshot::HEAD];
    let read = source.read_past_losses(0, &mut head);
    read.map_err(|source| SnapshotError::Read { offset: 0, source })?;
    if !snapshot::may_have_pages(&head, length) {
        return Err(Spared::NoSnapshot);
    }
    let before = (finished.before)();
    let payload = snapshot::libvirt_payload(&head).unwrap_or(0);
    if before
        .as_ref()
        .is_some_and(|before| is_libvirts_own(before, finished, payload))
    {
        return Ok(Judged {
            tiers: None,
            kept: Kept::Same,
        });
    }
    let mut places = finished.followed.places.clone();
    places.extend(before.iter().flat_map(|before| &before.places));
    places.sort_unstable();
    places.dedup();
    let _turn = turn.lock();
    // libvirt writes its header anew in the end. What is behind it is whole before, and is judged before.
    let mut look = look_into(finished, &Declared(&source), &places)?;
    if let Some(before) = &before {
        look.remember(before);
    }
    let expendable = finished.tiering.classes;
    // Dumps are for looking at, and nothing in them can be fetched again.
    let kept_whole = (!look.resumes()).then_some("a dump is kept whole");
    let (file, format) = (finished.file, look.snapshot().format);
    match look.guest() {
        Ok(guest) => tracing::info!(%file, %format, %guest, "a guest was found"),
        Err(reason) => tracing::info!(%file, %format, %reason, "no guest was found"),
    }
    let tiers = match kept_whole {
        Some(_) => Tiers::All(Tier::Critical),
        None => look.tiers(expendable, look.keeps_map()),
    };
    let kept = look.keep(&Circumstances {
        size: length,
        payload,
        expendable,
        places: &places,
        kept_whole,
    });
    Ok(Judged {
        tiers: Some(tiers),
        kept: Kept::Bytes(kept),
    })
}

/// Whether nothing changed but what libvirt keeps before QEMU's stream: its header, written anew when the image is whole, and the
/// description of the machine. No page has another class then.
fn is_libvirts_own(before: &Insight, finished: &Finished<'_>, payload: u64) -> bool {
    let changed = finished.followed.changed.as_ref();
    payload > 0
        && before.payload == payload
        && before.size == finished.bytes.size()
        && changed.is_some_and(|changed| changed.end <= payload)
}

/// Looks into a file that may be a snapshot.
fn look_into(
    finished: &Finished<'_>,
    source: &(dyn ByteSource + Sync),
    places: &[u64],
) -> Result<Look, Spared> {
    let followed = finished.followed;
    // Of a file that was there before, pages may be lost. What leads through it is not.
    let mut snapshot = followed.indexer.finish(&PastLosses(source))?;
    if snapshot.format == Format::Raw {
        let page_begins = |place: &u64| place.is_multiple_of(4096);
        if !places.iter().any(page_begins) && !followed.overflowed {
            return Err(Spared::NoSnapshot);
        }
        let state = (finished.beside)(cloud_hypervisor::STATE_FILE);
        look::place(&mut snapshot, state.as_deref());
    }
    if let Some(map) = snapshot.map() {
        let memory = map.ram().map(|(_, length)| length).sum::<u64>();
        if memory.max(map.file_length() / 2) > LARGEST {
            return Err(Spared::TooLarge(memory));
        }
    }
    if followed.overflowed {
        return Ok(Look::into(snapshot, source, &|_| ())?);
    }
    let known = Known {
        places,
        holes: &|hole| finished.bytes.holes(hole).map_err(io::Error::other),
    };
    Ok(Look::knowing(snapshot, source, &known)?)
}

/// The frozen bytes as the snapshot room reads them.
struct Source<'a>(&'a dyn FrozenBytes);

impl ByteSource for Source<'_> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.size())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.0.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.read_at(offset, buffer).map_err(io::Error::other)
    }

    fn read_past_losses(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.0.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let read = self.0.read_past_losses(offset, buffer);
        read.map_err(io::Error::other)
    }
}
