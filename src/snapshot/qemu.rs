//! From a read-through QEMU stream to a page map, and what its device state tells of the guest. From QEMU's
//! `hw/misc/vmcoreinfo.c`. Knows both of QEMU's file forms.

use memchr::memmem;

use super::address::Gpa;
use super::error::{Opaque, SnapshotError};
use super::map::PageMap;
use super::mapped_ram;
use super::processors;
use super::recognise::{Architecture, Hints, NotePlace};
use super::runs::RunLog;
use super::source::Reader;
use super::stream::{Parsed, Stream};
use super::supersede;

/// How much is read at a time while the stream is looked through, in bytes. Everything is read: from the page cache
/// parts of this size come at 18 GB/s, parts of 128 KiB at 13, and only the head of each page, 16 bytes a call, at 6.
const PART: usize = 1 << 20;

/// How much of the device state is searched, in bytes. It is 0.4 MB where no device keeps memory in it.
const TAIL: usize = 16 << 20;

/// Reads through the file from its first byte.
pub(super) fn read_through(reader: &Reader<'_>, limit: u64) -> Result<Stream, SnapshotError> {
    let mut stream = Stream::new(limit);
    let mut part = vec![0; PART];
    loop {
        stream.skip_to_wanted();
        let left = reader.length().saturating_sub(stream.position());
        let length = left.min(part.len() as u64) as usize;
        let Some(bytes) = part.get_mut(..length) else {
            break;
        };
        if stream.is_settled() || bytes.is_empty() {
            break;
        }
        reader.fill(stream.position(), bytes)?;
        stream.feed(bytes);
    }
    Ok(stream)
}

/// The map of a stream that has been read through.
pub(super) fn map(
    reader: &Reader<'_>,
    stream: &Stream,
    limit: u64,
) -> Result<Result<(PageMap, Hints), Opaque>, SnapshotError> {
    if stream.libvirt().is_some_and(|image| !image.finished) {
        return Ok(Err(Opaque::Unfinished(
            "libvirt has not declared the image whole",
        )));
    }
    let parsed = match stream.parsed() {
        Ok(parsed) => parsed,
        Err(reason) => return Ok(Err(reason)),
    };
    if parsed.tail > reader.length() {
        return Ok(Err(Opaque::Unfinished(
            "the file ends before the guest's memory does",
        )));
    }
    let mut deltas = parsed.deltas.to_vec();
    let log = if parsed.mapped {
        match mapped_ram::read(reader, parsed.blocks, parsed.page_size, limit)? {
            Ok(log) => log,
            Err(reason) => return Ok(Err(reason)),
        }
    } else {
        match settled(&parsed, &mut deltas) {
            Some(log) => log,
            None => {
                let what = "a delta without its page";
                return Ok(Err(Opaque::Malformed {
                    offset: parsed.tail,
                    what,
                }));
            }
        }
    };
    deltas.shrink_to_fit();
    let blocks = parsed.blocks.for_map(parsed.page_size);
    let layouts = parsed.blocks.layouts(parsed.machine, parsed.page_size);
    let map = PageMap::new(log, blocks, layouts, deltas, reader.length());
    let map = map.ok_or(Opaque::Unknown);
    let state = reader.up_to(parsed.tail, TAIL)?;
    let hints = Hints {
        machine: (!parsed.machine.is_empty()).then(|| parsed.machine.to_owned()),
        architecture: architecture(parsed.machine),
        vmcoreinfo: vmcoreinfo(&state),
        tables: processors::of_device_state(&state),
    };
    Ok(map.map(|map| (map, hints)))
}

fn settled(parsed: &Parsed<'_>, deltas: &mut Vec<supersede::Delta>) -> Option<RunLog> {
    let mut log = parsed.log.clone();
    log.close();
    if log.is_ordered() && deltas.is_empty() {
        return Some(log);
    }
    supersede::settle(&log, deltas)
}

fn architecture(machine: &str) -> Option<Architecture> {
    if machine.starts_with("pc-") || machine == "microvm" {
        Some(Architecture::X86)
    } else if machine.starts_with("virt-") {
        // RISC-V and LoongArch have a "virt" as well, but number it by the same versions: a hint, no more.
        Some(Architecture::Arm64)
    } else {
        None
    }
}

/// What the vmcoreinfo device holds: the address and size of the note that the guest has told it.
///
/// ```text
/// u8 n, "vmcoreinfo", u32 instance, u32 version; u8 has, u16 host format, u16 guest format, u32 size, u64 paddr
/// ```
fn vmcoreinfo(tail: &[u8]) -> Option<NotePlace> {
    const NAME: &[u8] = b"\x0avmcoreinfo";
    memmem::find_iter(tail, NAME).find_map(|at| {
        let body = tail.get(at + NAME.len() + 8..)?;
        let (&[has, _, _, _, guest_format], body) = body.split_first_chunk::<5>()?;
        let (size, body) = body.split_first_chunk::<4>()?;
        let address = u64::from_be_bytes(*body.first_chunk()?);
        let size = u64::from(u32::from_be_bytes(*size));
        let sound = has == 1 && guest_format == 1 && address < 1 << 52 && size > 0;
        sound.then_some(NotePlace::Guest {
            gpa: Gpa(address),
            size,
        })
    })
}
