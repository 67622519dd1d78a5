//! What a file must read as: what was written, or after the loss of disks the mended view of it, which is worked out here
//! from what was written and from which pages are gone, and not asked of the mount.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use parsfs::guest::{FlatMemory, Guest, GuestMemory, Hints, Layout, PageClass, Tier};
use parsfs::snapshot::{self, PieceKind};

/// How a file reads.
#[derive(Debug)]
pub enum Reading {
    /// As it was written.
    Written,
    /// As its mended view.
    Mended {
        /// Pages that read as what they are replaced by.
        lost: usize,
        /// Bytes of other pages that the mend changes.
        edited: usize,
    },
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reading::Written => write!(f, "reads as it was written"),
            Reading::Mended { lost, edited } => {
                write!(f, "is mended: {lost} pages are lost, {edited} bytes edited")
            }
        }
    }
}

/// Why two files are not the same.
pub fn same(path: &Path, written: &Path) -> Result<(), String> {
    let open =
        |path: &Path| File::open(path).map_err(|error| format!("{}: {error}", path.display()));
    let (mut a, mut b) = (open(path)?, open(written)?);
    let length = |file: &File| file.metadata().map_or(0, |metadata| metadata.len());
    if length(&a) != length(&b) {
        return Err(format!(
            "{} has {} bytes and not {}",
            path.display(),
            length(&a),
            length(&b)
        ));
    }
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let got = fill(&mut a, &mut ours)
            .map_err(|error| format!("{} at {at}: {error}", path.display()))?;
        let wanted =
            fill(&mut b, &mut theirs).map_err(|error| format!("{}: {error}", written.display()))?;
        if let Some(place) = (0..got.max(wanted)).find(|&i| ours.get(i) != theirs.get(i)) {
            return Err(format!("{} differs at {:#x}", path.display(), at + place));
        }
        if got == 0 {
            return Ok(());
        }
        at += got;
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            got => filled += got,
        }
    }
    buffer[filled..].fill(0);
    Ok(filled)
}

/// Why a save does not hold the guest's memory, page by page. Below 1 MiB the processor may see something else than what lies
/// there, and dumps show what it sees.
pub fn holds(path: &Path, memory: &Path) -> Result<(), String> {
    let name = path.display();
    let file = File::open(path).map_err(|error| format!("{name}: {error}"))?;
    let snapshot = snapshot::index(&file).map_err(|error| format!("{name}: {error}"))?;
    let map = snapshot
        .map()
        .ok_or_else(|| format!("{name}: {:?}", snapshot.opaque_reason()))?;
    let memory = fs::read(memory).map_err(|error| error.to_string())?;
    let mut page = vec![0; 4096];
    for (truth, at) in memory.chunks(4096).zip((0..).step_by(4096)).skip(256) {
        let content = map
            .read(&file, snapshot::Gpa(at), &mut page)
            .map_err(|error| format!("{name}: page {at:#x}: {error}"))?;
        if content == snapshot::Content::Absent || page != truth {
            return Err(format!(
                "{name}: page {at:#x} is not the guest's ({content:?})"
            ));
        }
    }
    Ok(())
}

/// How a file with lost disks reads; an error if it is neither what was written nor its mended view.
pub fn after_loss(path: &Path, written: &Path) -> Result<Reading, String> {
    let name = path.display();
    let found = fs::read(path).map_err(|error| format!("{name}: {error}"))?;
    let original = fs::read(written).map_err(|error| format!("{}: {error}", written.display()))?;
    if found == original {
        return Ok(Reading::Written);
    }
    if found.len() != original.len() {
        return Err(format!(
            "{name}: {} bytes instead of {}",
            found.len(),
            original.len()
        ));
    }
    let snapshot = snapshot::index(&original).map_err(|error| error.to_string())?;
    let map = snapshot
        .map()
        .ok_or_else(|| format!("{name} differs from what was written and has no guest"))?;
    let memory: u64 = map.ram().map(|(_, length)| length).sum();
    let layout = map.layout().ranges();
    if layout.len() != 1 || layout[0].gpa.0 != 0 {
        return Err("these tests know guests whose memory lies at 0 in one piece".into());
    }
    let mut flat = vec![0; memory as usize];
    for (page, at) in flat.chunks_mut(4096).zip((0..).step_by(4096)) {
        map.read(&original, snapshot::Gpa(at), page)
            .map_err(|error| format!("page {at:#x}: {error}"))?;
    }
    let layouts = Layout::candidates(memory);
    let views: Vec<FlatMemory<'_>> = layouts
        .iter()
        .map(|layout| FlatMemory::new(&flat, layout))
        .collect();
    let (_, guest) = Guest::find_among(
        views.iter().map(|view| view as &dyn GuestMemory),
        &Hints::default(),
    )
    .map_err(|error| format!("{name}: no guest: {error}"))?;
    let classes = guest.classify().map_err(|error| error.to_string())?;

    // Which pages are gone is seen by their content. Of a page that lies in two blocks a part may be gone that was zeros, as
    // at the end of a file: then it looks whole, and may be mended all the same.
    let differs = |range: &std::ops::Range<usize>| found[range.clone()] != original[range.clone()];
    let (mut lost, mut perhaps) = (Vec::new(), Vec::new());
    let mut pages = Vec::new();
    for piece in map.pieces(0..u64::MAX) {
        let range = piece.range.start as usize..piece.range.end as usize;
        match piece.kind {
            PieceKind::Page(gpa) => {
                for (number, at) in range.step_by(4096).enumerate() {
                    let pfn = (gpa.0 >> 12) + number as u64;
                    let page = at..at + 4096;
                    let class = classes.get(pfn).unwrap_or(PageClass::Unknown);
                    if class.tier() == Tier::Expendable {
                        let ends = [original[page.start], original[page.end - 1]];
                        if differs(&page) {
                            lost.push(pfn);
                        } else if class == PageClass::CacheClean && ends.contains(&0) {
                            perhaps.push(pfn);
                        }
                    }
                    pages.push((pfn, page));
                }
            }
            PieceKind::Dead => {}
            _ if differs(&range) => {
                return Err(format!(
                    "{name}: {:#x} to {:#x} are no pages and differ",
                    range.start, range.end
                ));
            }
            _ => {}
        }
    }
    let mend = guest
        .mend(&classes, &lost)
        .map_err(|error| error.to_string())?;
    let mut optional: BTreeMap<u64, u8> = BTreeMap::new();
    guest.mend_cached(&perhaps, |_, _, verdict| {
        // A page that cannot be mended is an error to read, and never mended in part.
        for edit in verdict.unwrap_or_default() {
            *optional.entry(edit.gpa).or_insert(0xff) &= edit.and;
        }
    });
    let mut fills = mend
        .fills
        .iter()
        .map(|fill| (fill.pfn, fill.byte))
        .collect::<Vec<_>>();
    fills.sort_unstable();
    for (pfn, range) in pages {
        let mut wanted = original[range.clone()].to_vec();
        if let Ok(place) = fills.binary_search_by_key(&pfn, |&(pfn, _)| pfn) {
            // A page may lie in two blocks of which one is there: then a part of it is as it was.
            let fill = fills[place].1;
            for (wanted, found) in wanted.iter_mut().zip(&found[range.clone()]) {
                if *found == fill {
                    *wanted = fill;
                }
            }
        }
        mend.apply(pfn << 12, &mut wanted);
        for (gpa, and) in optional.range(pfn << 12..(pfn + 1) << 12) {
            let at = (gpa - (pfn << 12)) as usize;
            let edited = wanted[at] & and;
            if found[range.start + at] == edited {
                wanted[at] = edited;
            }
        }
        if wanted != found[range.clone()] {
            return Err(format!(
                "{name}: page frame {pfn:#x} ({}) at {:#x} is neither what was written nor what its mend says",
                classes.get(pfn).unwrap_or(PageClass::Unknown).name(),
                range.start
            ));
        }
    }
    Ok(Reading::Mended {
        lost: lost.len(),
        edited: mend.edits.len(),
    })
}
