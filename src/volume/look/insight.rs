//! What a look found, as bytes that are kept with the file: a short summary, and in sections behind it the class of every page
//! and the page map, so that a question about one page reads one section, and a look is had again without reading
//! the guest. Knows the bytes, and nothing of where they lie.
//!
//! ```text
//! head, 32 bytes, little-endian:
//!   `PFSSIGHT` · version 2 bytes: 2 · 0 (2) · bytes of the summary 4 · length of the file 8 · xxh3 of the summary 8
//! summary, numbers in LEB128, a text as its length and its bytes:
//!   format 1 byte · bytes before QEMU's stream in libvirt's image · classes that are expendable, a bit each ·
//!   places: count, then each, less the one before
//!   found 1 byte: 0, then why not (text); or 1, then release (text) · processor 1 byte (0 x86_64, 1 arm64) ·
//!     bytes of memory · BTF 1 byte · address of vmcoreinfo · from version 2, what free pages are filled with: 0 if that
//!     is not known, or the byte and 1
//!   layout (text) · dead bytes that are zeros · page counts: count, then each class's, by number ·
//!   log2 of the guest's page size 1 byte · frames: count, then each range: first, less the end before · frames
//!   sections: count, then each: kind 1 byte (1 classes, 2 page map) · bytes as they lie here · bytes as they are · xxh3 of
//!     the bytes here 8
//! sections, end to end: one zstd frame each
//!   classes: of 65536 pages: runs of class 1 byte · pages
//!   page map: the next MiB of `PageMap::encode`
//! ```

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::{Found, Look, NoGuest, printable};
use crate::guest::{Arch, ClassSet, Classes, PageClass};
use crate::snapshot::{Contents, Format, Hints, PageMap, Snapshot};
use crate::store::wire::{Wire, put_varint};

const MAGIC: &[u8; 8] = b"PFSSIGHT";
const VERSION: u16 = 2;

/// What is written without the filling of free pages. It is still read.
const WITHOUT_FILL: u16 = 1;
const HEAD: usize = 32;

/// Pages of one section of classes.
const PAGES: usize = 65536;

/// Bytes of one section of the page map.
const MAP_PART: usize = 1 << 20;

/// The most bytes of a section before it is compressed: every page another class than the one before.
const SECTION_MAX: usize = MAP_PART;

/// The largest page map that is kept. A larger one is made anew by reading the file: that of a guest of hundreds of GiB that
/// was saved while it ran.
const MAP_MAX: usize = 64 << 20;

/// The largest summary: the table of sections of a guest of 16 TiB, and room.
const SUMMARY_MAX: usize = 4 << 20;

/// The largest insight.
pub(in crate::volume) const INSIGHT_MAX: u64 = 1 << 36;

/// Reads a range of the kept bytes.
pub type ReadKept<'r, E> = &'r dyn Fn(Range<u64>) -> Result<Vec<u8>, E>;

/// What was found in a file, without the classes of its pages.
#[derive(Clone, Debug)]
pub struct Insight {
    /// The format.
    pub format: Format,
    /// The length of the file in bytes.
    pub size: u64,
    /// Where QEMU's stream begins in libvirt's image; 0 for others.
    pub payload: u64,
    /// The classes that were expendable when the file was committed.
    pub expendable: ClassSet,
    /// File offsets where vmcoreinfo may begin.
    pub places: Vec<u64>,
    /// The guest, or why there is none, or why all of the file is critical all the same.
    pub guest: Result<Found, String>,
    /// The name of the layout of memory.
    pub layout: String,
    /// Bytes that are dead and zeros.
    pub empty: u64,
    /// How many pages each class has.
    pub counts: Vec<(PageClass, u64)>,
    page_shift: u32,
    frames: Vec<Range<u64>>,
    sections: Vec<Section>,
    /// Where the first section begins.
    start: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Classes,
    Map,
}

#[derive(Clone, Copy, Debug)]
struct Section {
    kind: Kind,
    stored: u64,
    raw: u64,
    checksum: u64,
}

/// What the volume adds to a look when it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'c> {
    /// The length of the file in bytes.
    pub size: u64,
    /// Where QEMU's stream begins in libvirt's image; 0 for others.
    pub payload: u64,
    /// The classes that are expendable.
    pub expendable: ClassSet,
    /// File offsets where vmcoreinfo may begin.
    pub places: &'c [u64],
    /// Why all of the file is critical although there is a guest.
    pub kept_whole: Option<&'c str>,
}

impl Look {
    /// Whether the page map is small enough to be kept.
    pub fn keeps_map(&self) -> bool {
        self.map().is_some_and(|map| map.encode().len() <= MAP_MAX)
    }

    /// The bytes to be kept.
    pub fn keep(&self, with: &Circumstances<'_>) -> Vec<u8> {
        let mut body = Vec::new();
        let mut sections = Vec::new();
        let mut section = |kind, raw: &[u8]| {
            // Level 3 of a compressor that cannot fail on bytes in memory.
            let packed = zstd::bulk::compress(raw, 3).unwrap_or_default();
            sections.push(Section {
                kind,
                stored: packed.len() as u64,
                raw: raw.len() as u64,
                checksum: xxh3_64(&packed),
            });
            body.extend_from_slice(&packed);
        };
        if let Some(classes) = &self.classes {
            for pages in classes.numbers().chunks(PAGES) {
                section(Kind::Classes, &runs(pages));
            }
        }
        if let Some(map) = self.map() {
            let map = map.encode();
            if map.len() <= MAP_MAX {
                map.chunks(MAP_PART)
                    .for_each(|part| section(Kind::Map, part));
            }
        }
        let summary = self.summary(with, &sections);
        let mut bytes = Vec::with_capacity(HEAD + summary.len() + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&(summary.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&with.size.to_le_bytes());
        bytes.extend_from_slice(&xxh3_64(&summary).to_le_bytes());
        bytes.extend_from_slice(&summary);
        bytes.extend_from_slice(&body);
        bytes
    }

    fn summary(&self, with: &Circumstances<'_>, sections: &[Section]) -> Vec<u8> {
        let mut out = vec![number_of(self.snapshot.format)];
        put_varint(&mut out, with.payload);
        put_varint(&mut out, with.expendable.bits().into());
        put_rising(&mut out, with.places);
        match (&self.guest, with.kept_whole) {
            (Ok(found), None) => {
                out.push(1);
                put_found(&mut out, found);
            }
            (Ok(found), Some(why)) => put_reason(&mut out, &format!("{why} ({found})")),
            (Err(why), _) => put_reason(&mut out, &why.to_string()),
        }
        put_text(&mut out, self.map().map_or("", |map| map.layout().name()));
        put_varint(&mut out, self.empty);
        let counts = self
            .classes
            .as_ref()
            .map(Classes::counts)
            .unwrap_or_default();
        put_varint(&mut out, counts.len() as u64);
        for (_, count) in &counts {
            put_varint(&mut out, *count);
        }
        let shift = self.classes.as_ref().map_or(12, Classes::page_shift);
        out.push(shift as u8);
        let frames: Vec<Range<u64>> = self
            .classes
            .as_ref()
            .map(|classes| classes.frames().collect())
            .unwrap_or_default();
        put_varint(&mut out, frames.len() as u64);
        let mut end = 0;
        for range in frames {
            put_varint(&mut out, range.start - end);
            put_varint(&mut out, range.end - range.start);
            end = range.end;
        }
        put_varint(&mut out, sections.len() as u64);
        for section in sections {
            out.push(match section.kind {
                Kind::Classes => 1,
                Kind::Map => 2,
            });
            put_varint(&mut out, section.stored);
            put_varint(&mut out, section.raw);
            out.extend_from_slice(&section.checksum.to_le_bytes());
        }
        out
    }
}

impl Insight {
    /// Reads the summary. None if nothing is kept, or nothing that can be believed.
    pub fn read<E>(read: ReadKept<'_, E>) -> Result<Option<Insight>, E> {
        let head = read(0..HEAD as u64)?;
        let mut wire = Wire::new(&head);
        let magic = wire.array::<8>().filter(|magic| magic == MAGIC);
        let version = wire.u16().filter(|_| magic.is_some());
        let version = version.filter(|version| (WITHOUT_FILL..=VERSION).contains(version));
        let sound = wire.u16() == Some(0);
        let fields = wire.u32().zip(wire.u64()).zip(wire.u64());
        let (Some(((length, size), checksum)), Some(version)) = (fields.filter(|_| sound), version)
        else {
            return Ok(None);
        };
        if length as usize > SUMMARY_MAX {
            return Ok(None);
        }
        let summary = read(HEAD as u64..HEAD as u64 + u64::from(length))?;
        if xxh3_64(&summary) != checksum {
            return Ok(None);
        }
        Ok(decode(&summary, size, version))
    }

    /// The class of a page frame; none if it is no memory of the guest, or was not kept.
    pub fn class<E>(&self, pfn: u64, read: ReadKept<'_, E>) -> Result<Option<PageClass>, E> {
        let mut before = 0;
        let mut place = None;
        for range in &self.frames {
            if range.contains(&pfn) {
                place = Some(before + (pfn - range.start));
            }
            before += range.end - range.start;
        }
        let Some(place) = place else { return Ok(None) };
        let (number, inside) = (place / PAGES as u64, (place % PAGES as u64) as usize);
        let Some(raw) = self.section(Kind::Classes, number as usize, read)? else {
            return Ok(None);
        };
        let mut classes = Vec::new();
        Ok(take_runs(&raw, &mut classes).and_then(|()| classes.get(inside).copied()))
    }

    /// The whole look again. None if not all of it was kept; a look into the file gives it then.
    pub fn look<E>(&self, read: ReadKept<'_, E>) -> Result<Option<Look>, E> {
        let mut numbers = Vec::new();
        let mut map = Vec::new();
        for (kind, number) in self.numbered() {
            let Some(raw) = self.section(kind, number, read)? else {
                return Ok(None);
            };
            match kind {
                Kind::Classes if take_runs(&raw, &mut numbers).is_none() => return Ok(None),
                Kind::Classes => {}
                Kind::Map => map.extend_from_slice(&raw),
            }
        }
        let Some(map) = PageMap::decode(&map).filter(|map| map.file_length() == self.size) else {
            return Ok(None);
        };
        let Some(classes) = Classes::restore(self.page_shift, self.frames.clone(), numbers) else {
            return Ok(None);
        };
        Ok(Some(Look {
            snapshot: Snapshot {
                format: self.format,
                contents: Contents::Mapped(map),
                hints: Hints::default(),
            },
            guest: match &self.guest {
                Ok(found) => Ok(found.clone()),
                Err(why) => Err(NoGuest::Kept(why.clone())),
            },
            classes: Some(classes),
            empty: self.empty,
        }))
    }

    /// Whether it tells of lost bytes whatever the other one tells: by a page map, and by a guest.
    pub fn tells_as_much_as(&self, other: &Insight) -> bool {
        let has_map = |insight: &Insight| {
            let mut sections = insight.sections.iter();
            sections.any(|section| section.kind == Kind::Map)
        };
        (has_map(self) || !has_map(other)) && (self.guest.is_ok() || other.guest.is_err())
    }

    /// Bytes of the whole, summary and sections.
    pub fn length(&self) -> u64 {
        self.start
            + self
                .sections
                .iter()
                .map(|section| section.stored)
                .sum::<u64>()
    }

    /// The sections by kind, each with its number among those of its kind.
    fn numbered(&self) -> Vec<(Kind, usize)> {
        let (mut classes, mut maps) = (0, 0);
        let number = |section: &Section| {
            let count = match section.kind {
                Kind::Classes => &mut classes,
                Kind::Map => &mut maps,
            };
            *count += 1;
            (section.kind, *count - 1)
        };
        self.sections.iter().map(number).collect()
    }

    /// The bytes of a section; none if it is not there or not to be believed.
    fn section<E>(
        &self,
        kind: Kind,
        number: usize,
        read: ReadKept<'_, E>,
    ) -> Result<Option<Vec<u8>>, E> {
        let mut at = self.start;
        let mut left = number;
        for section in &self.sections {
            if section.kind == kind {
                if left == 0 {
                    let packed = read(at..at + section.stored)?;
                    if xxh3_64(&packed) != section.checksum {
                        return Ok(None);
                    }
                    let raw = zstd::bulk::decompress(&packed, section.raw as usize).ok();
                    return Ok(raw.filter(|raw| raw.len() as u64 == section.raw));
                }
                left -= 1;
            }
            at += section.stored;
        }
        Ok(None)
    }
}

fn decode(summary: &[u8], size: u64, version: u16) -> Option<Insight> {
    let mut wire = Wire::new(summary);
    let format = *Format::ALL.get(usize::from(wire.u8()?))?;
    let payload = wire.varint()?;
    let expendable = ClassSet::from_bits(wire.varint_u32()?)?;
    let places = take_rising(&mut wire)?;
    let guest = match wire.u8()? {
        0 => Err(take_text(&mut wire)?),
        1 => Ok(take_found(&mut wire, version)?),
        _ => return None,
    };
    let layout = take_text(&mut wire)?;
    let empty = wire.varint()?;
    let mut counts = Vec::new();
    for number in 0..count(&mut wire)? {
        counts.push((
            PageClass::from_number(number.try_into().ok()?)?,
            wire.varint()?,
        ));
    }
    let page_shift = u32::from(wire.u8()?);
    let mut frames: Vec<Range<u64>> = Vec::new();
    let mut end = 0u64;
    for _ in 0..count(&mut wire)? {
        let start = end.checked_add(wire.varint()?)?;
        end = start.checked_add(wire.varint()?)?;
        frames.push(start..end);
    }
    let mut sections = Vec::new();
    for _ in 0..count(&mut wire)? {
        let kind = match wire.u8()? {
            1 => Kind::Classes,
            2 => Kind::Map,
            _ => return None,
        };
        let (stored, raw) = (wire.varint()?, wire.varint()?);
        let bounded = |length: u64| length <= SECTION_MAX as u64 + 1024;
        if !bounded(stored) || !bounded(raw) {
            return None;
        }
        let checksum = wire.u64()?;
        sections.push(Section {
            kind,
            stored,
            raw,
            checksum,
        });
    }
    (wire.left() == 0).then_some(Insight {
        format,
        size,
        payload,
        expendable,
        places,
        guest: guest.map(|found| Found {
            page_shift,
            ..found
        }),
        layout,
        empty,
        counts,
        page_shift,
        frames,
        sections,
        start: (HEAD + summary.len()) as u64,
    })
}

/// Pages as runs of one class.
fn runs(pages: &[PageClass]) -> Vec<u8> {
    let mut out = Vec::new();
    for run in pages.chunk_by(|a, b| a == b) {
        out.push(run.first().map_or(0, |&class| class as u8));
        put_varint(&mut out, run.len() as u64);
    }
    out
}

/// Adds the pages of one section; nothing if they are more than it can have, or of no class.
fn take_runs(raw: &[u8], pages: &mut Vec<PageClass>) -> Option<()> {
    let mut wire = Wire::new(raw);
    let mut left = PAGES;
    while wire.left() > 0 {
        let class = PageClass::from_number(wire.u8()?)?;
        let length = usize::try_from(wire.varint()?).ok()?;
        left = left.checked_sub(length)?;
        pages.resize(pages.len() + length, class);
    }
    Some(())
}

fn number_of(format: Format) -> u8 {
    let place = Format::ALL.iter().position(|known| *known == format);
    place.unwrap_or(Format::ALL.len() - 1) as u8
}

/// A count of things of which each takes a byte at least.
fn count(wire: &mut Wire<'_>) -> Option<u64> {
    let left = wire.left() as u64;
    wire.varint().filter(|&count| count <= left)
}

fn put_rising(out: &mut Vec<u8>, numbers: &[u64]) {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    put_varint(out, numbers.len() as u64);
    let mut before = 0;
    for number in numbers {
        put_varint(out, number - before);
        before = number;
    }
}

fn take_rising(wire: &mut Wire<'_>) -> Option<Vec<u64>> {
    let mut numbers = Vec::new();
    let mut at = 0u64;
    for _ in 0..count(wire)? {
        at = at.checked_add(wire.varint()?)?;
        numbers.push(at);
    }
    Some(numbers)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn take_text(wire: &mut Wire<'_>) -> Option<String> {
    let length = count(wire)?;
    String::from_utf8(wire.bytes(length as usize)?.to_vec()).ok()
}

fn put_reason(out: &mut Vec<u8>, why: &str) {
    out.push(0);
    let short: String = why.chars().take(400).collect();
    put_text(out, &short);
}

fn put_found(out: &mut Vec<u8>, found: &Found) {
    put_text(out, &found.release);
    out.push(match found.arch {
        Arch::X86_64 => 0,
        Arch::Arm64 => 1,
    });
    put_varint(out, found.memory);
    out.push(found.has_btf.into());
    put_varint(out, found.note);
    put_varint(out, found.fill.map_or(0, |byte| 1 + u64::from(byte)));
}

fn take_found(wire: &mut Wire<'_>, version: u16) -> Option<Found> {
    let release = printable(&take_text(wire)?);
    let arch = match wire.u8()? {
        0 => Arch::X86_64,
        1 => Arch::Arm64,
        _ => return None,
    };
    let memory = wire.varint()?;
    let has_btf = match wire.u8()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let note = wire.varint()?;
    let fill = match version {
        WITHOUT_FILL => None,
        _ => match wire.varint()? {
            0 => None,
            byte => Some(u8::try_from(byte - 1).ok()?),
        },
    };
    Some(Found {
        release,
        arch,
        page_shift: 12,
        memory,
        has_btf,
        fill,
        note,
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::guest::synthetic::Synthetic;

    fn read(bytes: &[u8]) -> Option<Insight> {
        let read = |range: Range<u64>| {
            let part = bytes.get(range.start as usize..range.end as usize);
            Ok::<_, Infallible>(part.unwrap_or_default().to_vec())
        };
        Insight::read(&read).expect("nothing fails")
    }

    /// The kept bytes with another version and another summary.
    fn altered(bytes: &[u8], version: u16, alter: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let length = u32::from_le_bytes(bytes[12..16].try_into().expect("four bytes")) as usize;
        let mut summary = bytes[HEAD..HEAD + length].to_vec();
        alter(&mut summary);
        let mut out = bytes[..HEAD].to_vec();
        out[8..10].copy_from_slice(&version.to_le_bytes());
        out[12..16].copy_from_slice(&(summary.len() as u32).to_le_bytes());
        out[24..32].copy_from_slice(&xxh3_64(&summary).to_le_bytes());
        out.extend_from_slice(&summary);
        out.extend_from_slice(&bytes[HEAD + length..]);
        out
    }

    #[test]
    fn what_an_earlier_version_kept_is_read_without_what_it_did_not_keep() {
        let mut guest = Synthetic::new();
        guest.buddy(0x240, 6);
        guest.bytes[0x24_0000..0x28_0000].fill(0xAA);
        let snapshot = super::super::recognise(&guest.bytes, None).expect("recognised");
        let look = Look::into(snapshot, &guest.bytes, &|_| ()).expect("looked into");
        let kept = look.keep(&Circumstances {
            size: guest.bytes.len() as u64,
            payload: 0,
            expendable: ClassSet::MENDABLE,
            places: &[],
            kept_whole: None,
        });
        let now = read(&kept).expect("kept");
        let found = now.guest.as_ref().expect("a guest");
        assert_eq!(found.fill, Some(0xAA));

        // The fill stands behind the address of vmcoreinfo, which nothing before it looks like.
        let mut note = Vec::new();
        put_varint(&mut note, found.note);
        put_varint(&mut note, 1 + 0xAA);
        let place = |summary: &[u8]| {
            let mut places = summary.windows(note.len()).enumerate();
            let found = places.find(|(_, bytes)| *bytes == note);
            found.expect("the address of vmcoreinfo").0 + note.len() - 2
        };
        let earlier = altered(&kept, WITHOUT_FILL, |summary| {
            let at = place(summary);
            summary.drain(at..at + 2);
        });
        let earlier = read(&earlier).expect("still read");
        let then = earlier.guest.as_ref().expect("a guest");
        assert_eq!(
            (then.fill, then.note, &then.release, earlier.counts),
            (None, found.note, &found.release, now.counts.clone())
        );

        // Neither more than a byte nor another version is believed.
        let no_byte = altered(&kept, VERSION, |summary| {
            let at = place(summary);
            summary.splice(at..at + 2, [0x81, 0x02]);
        });
        assert!(read(&no_byte).is_none());
        assert!(read(&altered(&kept, VERSION + 1, |_| ())).is_none());
    }
}
