//! The manifest of the namespace: what the databases hold, once more on every disk, for a rescue when every database and
//! every journal is lost. It is an append-only object of records: an image of everything, and behind it one step a
//! checkpoint, which is what changed since the one before. It is written aside and nobody is answered for it, so a disk
//! that fails at it is only left without one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::change;
use super::checkpoint::{Image, PART, Writing};
use super::codec::Decoder;
use super::history::Mark;
use super::inner::Inner;
use super::join::CopiesReport;
use super::journal::{Failed, HEADER, Header, Journal, Kind, Series, abandon_all, walk};
use super::layer::Layer;
use super::recovery::{Found, Places, WholeImage};
use crate::disk::{Disk, DiskError, ObjectName};
use crate::ids::{DiskId, Epoch, VolumeId};

/// A manifest is begun anew when it is longer than this, and than three times its image. Bytes.
const LENGTH: u64 = 32 << 20;

/// Bytes of the payload of a step's end: epoch and fingerprint from which the step leads, length of the image.
const STEP_END: usize = 24;

/// The manifests of the namespace, one a disk, all alike.
#[derive(Default)]
pub(super) struct Names {
    open: Option<Open>,
    /// The highest number that one has had.
    highest: u64,
    /// Disks that failed at it, and get none in this mount.
    left_out: BTreeSet<DiskId>,
}

struct Open {
    writers: Vec<Journal>,
    length: u64,
    image_length: u64,
    /// The moment that they hold.
    mark: Mark,
}

impl Names {
    /// Goes on with the manifests of an earlier mount, if those of all disks end at this very moment; otherwise the
    /// next checkpoint begins new ones.
    pub(super) fn resume(all: &[Found], well: &[DiskId], mark: Mark, volume: VolumeId) -> Names {
        let numbers = all.iter().flat_map(|disk| disk.scan.names.iter().copied());
        let mut names = Names {
            highest: numbers.max().unwrap_or_default(),
            ..Names::default()
        };
        let mut ends = BTreeSet::new();
        let mut disks = Vec::new();
        for disk in all.iter().filter(|disk| well.contains(&disk.id)) {
            let end = match disk.scan.names.as_slice() {
                [number] => end_of(&*disk.disk, *number, mark, volume)
                    .map(|(length, image)| (*number, length, image)),
                _ => None,
            };
            let Some(end) = end else { return names };
            ends.insert(end);
            disks.push(disk);
        }
        let [(number, length, image_length)] = ends.into_iter().collect::<Vec<_>>()[..] else {
            return names;
        };
        let started = disks.into_iter().map(|disk| {
            let from = Some((number, length));
            Journal::start(disk.id, Arc::clone(&disk.disk), Series::Names, from)
        });
        if let Ok(writers) = started.collect::<Result<Vec<_>, _>>() {
            names.open = Some(Open {
                writers,
                length,
                image_length,
                mark,
            });
        }
        names
    }

    /// Closes a disk's manifest; the next checkpoint begins new ones on the others.
    pub(super) fn let_go(&mut self, disk: DiskId) {
        if let Some(open) = &mut self.open {
            open.writers.retain(|writer| writer.disk != disk);
        }
    }

    fn leave_out(&mut self, failed: Failed) {
        for (disk, error) in failed {
            tracing::warn!(%disk, %error, "a disk is left without a manifest of the namespace");
            self.left_out.insert(disk);
        }
        if let Some(open) = &mut self.open {
            let left_out = &self.left_out;
            open.writers
                .retain(|writer| !left_out.contains(&writer.disk));
        }
    }
}

/// The length of a manifest and of its image, if it ends whole and at this moment.
fn end_of(disk: &dyn Disk, number: u64, mark: Mark, volume: VolumeId) -> Option<(u64, u64)> {
    let object = ObjectName::Names(number);
    let length = disk.length(object).ok()?;
    let mut bytes = vec![0; length.min((HEADER + STEP_END) as u64) as usize];
    disk.read_at(object, length - bytes.len() as u64, &mut bytes)
        .ok()?;
    let reaches =
        |header: &Header| (header.epoch, header.previous) == (mark.epoch, mark.fingerprint);
    let (head, payload) = bytes.split_at_checked(HEADER)?;
    let step = Header::decode(head, volume)
        .filter(|header| header.kind == Kind::StepEnd && header.fits(payload));
    if let Some(step) = step.filter(reaches) {
        let (_, image_length) = from_of(payload)?;
        return (step.length as usize == STEP_END).then_some((length, image_length));
    }
    let image = Header::decode(bytes.get(bytes.len() - HEADER..)?, volume);
    image
        .filter(|header| header.kind == Kind::ImageEnd && header.length == 0 && reaches(header))
        .map(|_| (length, length))
}

/// What is wrong with a disk's manifest of the namespace; nothing if every record of it is whole and the last one leads to
/// this moment. The end of one that a crash cut short is wrong too: the next mount begins a new one.
pub(super) fn wrong_with(
    disk: &dyn Disk,
    number: u64,
    mark: Mark,
    volume: VolumeId,
) -> Result<Option<String>, DiskError> {
    let object = ObjectName::Names(number);
    // Parts since the last end, and the moment to which that led.
    let (mut parts, mut reached, mut gap) = (0u32, None, false);
    let mut begun = None;
    let walked = walk(disk, object, volume, &mut |header, payload| {
        let reaches = (header.epoch, header.previous);
        // All parts of an image or of a step, and its end, lead to one moment.
        gap |= begun.is_some_and(|begun| begun != reaches);
        match header.kind {
            Kind::Image | Kind::Step => {
                gap |=
                    header.sequence != parts || (header.kind == Kind::Image) != reached.is_none();
                parts += 1;
                begun = Some(reaches);
            }
            Kind::ImageEnd | Kind::StepEnd => {
                gap |= header.sequence != parts;
                if header.kind == Kind::StepEnd {
                    let from = payload.and_then(|(_, payload)| from_of(payload));
                    gap |= from.map(|(from, _)| from) != reached;
                }
                (parts, begun) = (0, None);
                reached = Some(reaches);
            }
            Kind::Transaction => gap = true,
        }
    })?;
    let name = "its manifest of the namespace";
    Ok(match walked {
        None => Some(format!("{name} is missing")),
        Some(walked) => match walked.damaged_at {
            Some(at) => Some(format!("{name} is damaged at byte {at}")),
            None if gap || begun.is_some() => Some(format!("{name} has a gap")),
            None if reached != Some((mark.epoch, mark.fingerprint)) => {
                Some(format!("{name} does not lead to its database"))
            }
            None => None,
        },
    })
}

/// From where a step leads, and the length of the image, as its end tells.
fn from_of(payload: &[u8]) -> Option<((Epoch, u64), u64)> {
    let mut decoder = Decoder(payload);
    let from = (Epoch(decoder.u64()?), decoder.u64()?);
    let image_length = decoder.u64()?;
    decoder.end((from, image_length))
}

impl Inner {
    /// Brings the manifests of the namespace to the databases' moment: by what changed `since` the databases were at
    /// `from`, or as a whole.
    pub(super) fn write_names(self: &Arc<Self>, from: Mark, since: &Layer, mark: Mark) {
        let mut names = self.names.lock();
        let names = &mut *names;
        let wanted: BTreeSet<DiskId> = self
            .online()
            .map(|replica| replica.id)
            .filter(|disk| !names.left_out.contains(disk))
            .collect();
        let volume = self.options.volume;
        if let Some(open) = &mut names.open {
            let has: BTreeSet<DiskId> = open.writers.iter().map(|writer| writer.disk).collect();
            if open.mark == mark && has == wanted {
                return;
            }
            // Where a step was left out, this one does not lead on from what they hold.
            let leads_on = open.mark.is_same_as(from);
            if leads_on && has == wanted && open.length <= LENGTH.max(3 * open.image_length) {
                let failed = open.step(volume, since, mark);
                names.leave_out(failed);
                return;
            }
        }
        names.open = None;
        self.begin_names(names, &wanted, mark);
    }

    /// Reads every disk's manifest of the namespace, and with `repair` begins new ones where one is not as it must be. To
    /// be called during a checkpoint, with the databases at `mark`.
    pub(super) fn check_names(
        self: &Arc<Self>,
        mark: Mark,
        repair: bool,
        report: &mut CopiesReport,
    ) {
        let bad = self.wrong_names(mark, &mut report.bytes);
        if bad.is_empty() {
            return;
        }
        if repair {
            let mut names = self.names.lock();
            let names = &mut *names;
            // A disk that failed at it has another try.
            names.left_out.clear();
            names.open = None;
            let wanted = self.online().map(|replica| replica.id).collect();
            self.begin_names(names, &wanted, mark);
        }
        let still = match repair {
            true => self.wrong_names(mark, &mut 0),
            false => bad.clone(),
        };
        let mended = bad.keys().filter(|id| !still.contains_key(id));
        report.repaired.extend(mended);
        report.bad.extend(bad);
    }

    fn wrong_names(&self, mark: Mark, bytes: &mut u64) -> BTreeMap<DiskId, String> {
        let volume = self.options.volume;
        let look = |disk: &dyn Disk, bytes: &mut u64| -> Result<Option<String>, DiskError> {
            let mut newest = None;
            for (object, length) in disk.list()? {
                if let Some(number) = Series::Names.number(object) {
                    *bytes += length;
                    newest = newest.max(Some(number));
                }
            }
            let Some(number) = newest else {
                return Ok(Some("its manifest of the namespace is missing".to_owned()));
            };
            // Off the medium, not out of memory.
            disk.forget(ObjectName::Names(number));
            wrong_with(disk, number, mark, volume)
        };
        let mut bad = BTreeMap::new();
        for replica in self.online() {
            let wrong = look(&*replica.disk, bytes);
            if let Some(wrong) = wrong.unwrap_or_else(|error| Some(error.to_string())) {
                bad.insert(replica.id, wrong);
            }
        }
        bad
    }

    fn begin_names(self: &Arc<Self>, names: &mut Names, wanted: &BTreeSet<DiskId>, mark: Mark) {
        let view = self.view();
        if !view.base.mark.is_same_as(mark) {
            // The databases went on; whoever brought them there comes here too.
            return;
        }
        let replicas = self.online().filter(|replica| wanted.contains(&replica.id));
        let started = replicas.map(|replica| {
            Journal::start(replica.id, Arc::clone(&replica.disk), Series::Names, None)
        });
        let writers = match started.collect::<Result<Vec<_>, _>>() {
            Ok(writers) => writers,
            Err(error) => {
                tracing::warn!(%error, "no manifest of the namespace can be written");
                return;
            }
        };
        names.highest += 1;
        let image = Image {
            volume: self.options.volume,
            mark,
            number: names.highest,
        };
        let all: Vec<&Journal> = writers.iter().collect();
        match image.write(&all, &|after| view.base_batch(after)) {
            Ok((length, failed)) => {
                names.open = Some(Open {
                    writers,
                    length,
                    image_length: length,
                    mark,
                });
                names.leave_out(failed);
            }
            Err(error) => {
                tracing::warn!(%error, "no manifest of the namespace can be written");
                let failed = abandon_all(&all);
                names.leave_out(failed);
            }
        }
    }
}

impl Open {
    fn step(&mut self, volume: VolumeId, since: &Layer, mark: Mark) -> Failed {
        let mut writing = Writing::new(volume, mark, self.writers.iter().collect());
        since.newest(|changes| {
            let mut payload = Vec::new();
            for (key, value) in changes {
                change::encode(key, value, &mut payload);
                if payload.len() >= PART {
                    writing.append(Kind::Step, &payload);
                    payload.clear();
                }
            }
            if !payload.is_empty() {
                writing.append(Kind::Step, &payload);
            }
        });
        let mut end = Vec::with_capacity(STEP_END);
        end.extend(self.mark.epoch.0.to_le_bytes());
        end.extend(self.mark.fingerprint.to_le_bytes());
        end.extend(self.image_length.to_le_bytes());
        writing.append(Kind::StepEnd, &end);
        let (length, failed) = writing.end();
        self.length += length;
        self.mark = mark;
        failed
    }
}

/// Metadata as the manifests of the namespace have it, put together from those of all disks.
#[derive(Debug, Default)]
pub(super) struct Saved {
    /// Whether it is that; the image of a journal can stand here too.
    pub(super) by_names: bool,
    /// The moment that it reaches.
    pub(super) epoch: Epoch,
    pub(super) image: WholeImage,
    /// The steps behind the image in order, the parts of each where they are readable.
    pub(super) steps: Vec<Vec<Places>>,
}

#[derive(Debug, Default)]
struct StepFound {
    parts: BTreeMap<u32, Places>,
    wanted: Option<u32>,
    from: Option<(Epoch, u64)>,
}

impl StepFound {
    /// Its parts, if none is missing.
    fn whole(&self) -> Option<Vec<Places>> {
        let whole = self.wanted? as usize == self.parts.len();
        whole.then(|| self.parts.values().cloned().collect())
    }
}

/// Reads the manifests of the namespace of all disks. None if there is nothing of any. `unread` is told of the disks that
/// failed to give some of theirs.
pub(super) fn saved(
    found: &[Found],
    volume: VolumeId,
    unread: &mut BTreeSet<DiskId>,
) -> Option<Saved> {
    let mut images: BTreeMap<(Epoch, u64), WholeImage> = BTreeMap::new();
    let mut steps: BTreeMap<(Epoch, u64), StepFound> = BTreeMap::new();
    for (place, disk) in found.iter().enumerate() {
        for number in &disk.scan.names {
            let object = Series::Names.object(*number);
            let walked = walk(&*disk.disk, object, volume, &mut |header, payload| {
                let reaches = (header.epoch, header.previous);
                let part = payload.map(|(at, _)| (place, at));
                match header.kind {
                    Kind::Image | Kind::ImageEnd => {
                        let image = images.entry(reaches).or_default();
                        image.epoch = header.epoch;
                        if header.kind == Kind::ImageEnd {
                            image.wanted = Some(header.sequence);
                        } else if let Some(part) = part {
                            image.parts.entry(header.sequence).or_default().push(part);
                        }
                    }
                    Kind::Step | Kind::StepEnd => {
                        let step = steps.entry(reaches).or_default();
                        if header.kind == Kind::StepEnd {
                            step.wanted = Some(header.sequence);
                            let from = payload.and_then(|(_, payload)| from_of(payload));
                            step.from = step.from.or(from.map(|(from, _)| from));
                        } else if let Some(part) = part {
                            step.parts.entry(header.sequence).or_default().push(part);
                        }
                    }
                    Kind::Transaction => {}
                }
            });
            match walked {
                Ok(Some(walked)) if walked.unread => _ = unread.insert(disk.id),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "a manifest of the namespace cannot be read");
                    unread.insert(disk.id);
                }
            }
        }
    }
    let mut best: Option<Saved> = None;
    for (reaches, image) in images {
        let mut at = reaches;
        let mut whole_steps = Vec::new();
        // Where one begins, the last that begins there is the one that went on.
        while let Some((next, parts)) = steps
            .range((Epoch(at.0.0 + 1), 0)..)
            .rev()
            .filter(|(_, step)| step.from == Some(at))
            .find_map(|(next, step)| Some((*next, step.whole()?)))
        {
            whole_steps.push(parts);
            at = next;
        }
        let saved = Saved {
            by_names: true,
            epoch: at.0,
            image,
            steps: whole_steps,
        };
        let rank = |saved: &Saved| (saved.image.missing() == 0, saved.epoch);
        if best.as_ref().is_none_or(|best| rank(&saved) > rank(best)) {
            best = Some(saved);
        }
    }
    best.filter(|saved| !saved.image.parts.is_empty())
}
