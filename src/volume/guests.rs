//! The tiers of real files: a snapshot of a guest is looked into when it is committed, and its pages get the tiers of their
//! classes. Everything else is critical: what is no snapshot, what cannot be looked into, guests that are not found, dumps.
//! What cannot be a snapshot costs nothing, and no page is read that tells nothing of others.

use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::look::{self, Circumstances, Insight, Known, Look};
use super::tiers::{Finished, FrozenBytes, Judged, Kept, TierSource, Tiers};
use crate::ids::FileId;
use crate::snapshot::{
    self, ByteSource, Declared, Format, PageMap, PastLosses, SnapshotError, cloud_hypervisor,
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
        let judged = match judge(finished, &self.turn) {
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
        };
        if !tells_less(finished, &judged.kept) || !finished.bytes.has_losses() {
            return judged;
        }
        // What was kept is all that can be said of bytes that are not there, and it cannot be had again.
        tracing::warn!(
            %file,
            "bytes of it are lost or given up, and less is seen of it now than when they were there: what was seen then is kept, \
             and so are all tiers"
        );
        Judged {
            tiers: None,
            kept: Kept::Same,
        }
    }
}

/// Whether what was kept before tells something of lost bytes that this does not.
fn tells_less(finished: &Finished<'_>, kept: &Kept) -> bool {
    let now = match kept {
        Kept::Same => return false,
        Kept::Nothing => None,
        Kept::Bytes(bytes) => {
            let part = |range: Range<u64>| bytes.get(range.start as usize..range.end as usize);
            let read = |range| Ok::<_, Infallible>(part(range).unwrap_or_default().to_vec());
            let Ok(now) = Insight::read(&read);
            now
        }
    };
    match (finished.before)() {
        Ok(Some(before)) => !now.is_some_and(|now| now.tells_as_much_as(&before)),
        Ok(None) => false,
        // Whatever it is, it may be read another time.
        Err(_) => true,
    }
}

fn judge(finished: &Finished<'_>, turn: &Mutex<()>) -> Result<Judged, Spared> {
    let source = Source::new(finished.bytes);
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
    let before = (finished.before)().unwrap_or_else(|error| {
        tracing::warn!(file = %finished.file, %error, "what was seen in it is lost");
        None
    });
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
    let mut look = look_into(finished, &source, &places)?;
    if let Some(before) = &before {
        look.remember(before);
    }
    let expendable = finished.tiering.expendable();
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
fn look_into(finished: &Finished<'_>, bytes: &Source<'_>, places: &[u64]) -> Result<Look, Spared> {
    let followed = finished.followed;
    let source = &Declared(bytes);
    // Of a file that was there before, pages may be lost. What leads through it is not, but for heads of records that go
    // with the pages around them: those stand in the page map that was kept.
    let mut snapshot = followed.indexer.finish(&PastLosses(source))?;
    if snapshot.map().is_none() && bytes.met_losses.load(Ordering::Acquire) {
        match (finished.kept)() {
            Ok(look) => {
                if let Some(map) = look.as_ref().and_then(Look::map) {
                    bytes.heads.get_or_init(|| map.clone());
                    snapshot = followed.indexer.finish(&PastLosses(source))?;
                }
            }
            Err(error) => {
                tracing::warn!(file = %finished.file, %error, "what was seen in it is lost");
            }
        }
    }
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
struct Source<'a> {
    bytes: &'a dyn FrozenBytes,
    /// Bytes were lost that were read past.
    met_losses: AtomicBool,
    /// Tells heads of records that are lost.
    heads: OnceLock<PageMap>,
}

impl<'a> Source<'a> {
    fn new(bytes: &'a dyn FrozenBytes) -> Source<'a> {
        Source {
            bytes,
            met_losses: AtomicBool::new(false),
            heads: OnceLock::new(),
        }
    }
}

impl ByteSource for Source<'_> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.bytes.size())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.bytes.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.bytes.read_at(offset, buffer).map_err(io::Error::other)
    }

    fn read_past_losses(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.bytes.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut lost = Vec::new();
        let read = self
            .bytes
            .read_past_losses(offset, buffer, &mut |range| lost.push(range));
        read.map_err(io::Error::other)?;
        if !lost.is_empty() {
            self.met_losses.store(true, Ordering::Release);
        }
        for range in lost {
            let part = (range.start - offset) as usize..(range.end - offset) as usize;
            if let (Some(map), Some(part)) = (self.heads.get(), buffer.get_mut(part)) {
                map.write_heads(range.start, part);
            }
        }
        Ok(())
    }
}
