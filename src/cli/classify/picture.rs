//! `--map`: guest memory as a picture, in the order of addresses from left to right and top to bottom, with a legend. Cool
//! colours are what the guest does without, warm and dark ones what it needs. Knows classes, and nothing of how they
//! were found.

use std::io::{self, Write};
use std::ops::Range;

use super::account::percent;
use super::font;
use super::page::tier_name;
use crate::cli::table::bytes;
use crate::guest::{Classes, PageClass, Tier};
use crate::volume::look::Look;

type Colour = [u8; 3];

const PAPER: Colour = [255, 255, 255];
const INK: Colour = [33, 37, 41];
const FAINT: Colour = [134, 142, 150];

/// Dots from the edge.
const MARGIN: usize = 28;
/// Where the memory begins; addresses stand left of it.
const LEFT: usize = 132;
/// The memory's width.
const ACROSS: usize = 1024;
/// The legend's width.
const LEGEND: usize = 440;
/// Where memory and legend begin below the heading.
const TOP: usize = 96;
/// Between two ranges of memory that are apart.
const GAP: usize = 10;
/// The most ranges that begin on a line of their own; a layout with more of them is drawn without gaps.
const RANGES_MAX: usize = 32;
/// From one line of the legend to the next.
const LINE: usize = 30;

fn colour(class: PageClass) -> Colour {
    match class {
        PageClass::Zero => [233, 236, 239],
        PageClass::Free => [178, 235, 214],
        PageClass::Offline => [99, 212, 232],
        PageClass::CacheClean => [32, 164, 120],
        PageClass::CacheKept => [165, 190, 250],
        PageClass::CacheMapped => [92, 124, 250],
        PageClass::CacheDirty => [38, 58, 160],
        PageClass::Anon => [224, 49, 49],
        PageClass::Shmem => [246, 140, 180],
        PageClass::Slab => [245, 130, 30],
        PageClass::PageTable => [132, 48, 176],
        PageClass::Kernel => [252, 210, 60],
        PageClass::Reserved => [128, 92, 64],
        PageClass::Hugetlb => [166, 20, 80],
        PageClass::Unmanaged => [150, 156, 162],
        PageClass::Unknown => [52, 58, 64],
    }
}

fn tier_colour(tier: Tier) -> Colour {
    match tier {
        Tier::Critical => [201, 42, 42],
        Tier::Expendable => colour(PageClass::CacheClean),
        Tier::NotStored => colour(PageClass::Zero),
    }
}

/// A finished picture.
pub(super) struct Picture {
    width: usize,
    height: usize,
    dots: Vec<u8>,
}

impl Picture {
    fn new(width: usize, height: usize) -> Picture {
        Picture {
            width,
            height,
            dots: PAPER.repeat(width * height),
        }
    }

    /// Writes it as a PNG.
    pub(super) fn write(&self, out: impl Write) -> io::Result<()> {
        let mut encoder = png::Encoder::new(out, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().map_err(io::Error::other)?;
        writer
            .write_image_data(&self.dots)
            .map_err(io::Error::other)?;
        writer.finish().map_err(io::Error::other)
    }

    /// Fills a rectangle; what leaves the picture is cut.
    fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, colour: Colour) {
        let end = self.width.min(x.saturating_add(width));
        for row in y..self.height.min(y.saturating_add(height)) {
            let line = row * self.width * 3;
            if let Some(dots) = self.dots.get_mut(line + x.min(end) * 3..line + end * 3) {
                for dot in dots.as_chunks_mut::<3>().0 {
                    *dot = colour;
                }
            }
        }
    }

    /// Writes text with its top left corner there; gives where it ends.
    fn text(&mut self, x: usize, y: usize, size: usize, colour: Colour, text: &str) -> usize {
        let mut at = x;
        for letter in text.chars() {
            for (row, bits) in font::rows(letter).into_iter().enumerate() {
                for column in 0..font::WIDTH {
                    if bits >> (font::WIDTH - 1 - column) & 1 != 0 {
                        self.fill(at + column * size, y + row * size, size, size, colour);
                    }
                }
            }
            at += (font::WIDTH + 1) * size;
        }
        at
    }

    /// The same, ending there.
    fn text_to(&mut self, x: usize, y: usize, size: usize, colour: Colour, text: &str) {
        let width = text.chars().count() * (font::WIDTH + 1) * size;
        self.text((x + size).saturating_sub(width), y, size, colour, text);
    }

    /// A square of a colour with a fine edge, so that light colours show on paper.
    fn swatch(&mut self, x: usize, y: usize, width: usize, height: usize, colour: Colour) {
        self.fill(x, y, width, height, FAINT);
        self.fill(
            x + 1,
            y + 1,
            width.saturating_sub(2),
            height.saturating_sub(2),
            colour,
        );
    }
}

/// How memory is laid out on paper.
struct Grid {
    /// Cells of a line.
    columns: usize,
    /// Dots of a cell, across and down.
    cell: usize,
    /// Page frames of a cell.
    frames: u64,
    /// Ranges of page frames that begin on a line of their own, and how far down.
    bands: Vec<(Range<u64>, usize)>,
    height: usize,
}

impl Grid {
    fn of(classes: &Classes) -> Grid {
        let frames = classes.len() as u64;
        let (columns, cell) = match frames {
            0..8_192 => (64, 16),
            8_192..32_768 => (128, 8),
            32_768..65_536 => (256, 4),
            _ => (512, 2),
        };
        // Below a thousand dots high: a picture is to be seen at once.
        let per_cell = frames
            .div_ceil(columns as u64 * (800 / cell as u64))
            .max(1)
            .next_power_of_two();
        let mut bands = Vec::new();
        let mut height = 0;
        let ranges: Vec<Range<u64>> = classes.frames().collect();
        if ranges.len() <= RANGES_MAX {
            for range in ranges {
                let lines = (range.end - range.start).div_ceil(per_cell * columns as u64) as usize;
                bands.push((range, height));
                height += lines * cell + GAP;
            }
            height = height.saturating_sub(GAP);
        } else {
            let all = ranges.first().map_or(0, |range| range.start);
            bands.push((all..all + frames, 0));
            height = frames.div_ceil(per_cell * columns as u64) as usize * cell;
        }
        Grid {
            columns,
            cell,
            frames: per_cell,
            bands,
            height,
        }
    }

    /// The bytes of a line.
    fn line_bytes(&self, shift: u32) -> u64 {
        (self.columns as u64 * self.frames) << shift
    }
}

/// Draws a snapshot; nothing if no page is known.
pub(super) fn draw(look: &Look, what: &str) -> Option<Picture> {
    let classes = look.classes().filter(|classes| !classes.is_empty())?;
    let grid = Grid::of(classes);
    let groups = groups(look, classes);
    // As `key` writes it: the bar, a title and the classes of each tier, and the scale.
    let legend = groups
        .iter()
        .map(|group| (group.classes.len() + 1) * LINE + LINE / 2)
        .sum::<usize>()
        + 3 * LINE;
    let height = TOP + grid.height.max(legend) + MARGIN;
    let mut picture = Picture::new(LEFT + ACROSS + MARGIN + LEGEND + MARGIN, height);
    heading(&mut picture, look, what);
    memory(&mut picture, classes, &grid);
    addresses(&mut picture, classes.page_shift(), &grid);
    key(&mut picture, &groups, classes, &grid);
    Some(picture)
}

/// Cuts a text to what fits.
fn cut(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_string();
    }
    let mut short: String = text.chars().take(letters.saturating_sub(3)).collect();
    short.push_str("...");
    short
}

fn heading(picture: &mut Picture, look: &Look, what: &str) {
    let name = what.rsplit('/').next().unwrap_or(what);
    picture.text(LEFT, MARGIN, 3, INK, &cut(name, 60));
    let guest = match look.guest() {
        Ok(found) => format!("{found}, {}", bytes(found.memory)),
        Err(reason) => format!("no guest: {reason}"),
    };
    let text = format!("{} - {guest}", look.snapshot().format);
    picture.text(LEFT, MARGIN + 36, 2, FAINT, &cut(&text, 120));
}

/// One cell after the other, each in the colour of the class that most of its pages have.
fn memory(picture: &mut Picture, classes: &Classes, grid: &Grid) {
    let single = grid.bands.len() == 1;
    let mut bands = grid.bands.iter().peekable();
    let Some(mut band) = bands.next() else {
        return;
    };
    let mut counts = [0u64; 256];
    let mut cell = 0u64;
    let mut held = 0u64;
    let mut place = |band: &(Range<u64>, usize), cell: u64, counts: &mut [u64; 256]| {
        let most = PageClass::ALL
            .iter()
            .max_by_key(|&&class| counts.get(class as usize).copied().unwrap_or(0));
        let columns = grid.columns as u64;
        let (line, column) = ((cell / columns) as usize, (cell % columns) as usize);
        if let Some(&class) = most {
            let (x, y) = (LEFT + column * grid.cell, TOP + band.1 + line * grid.cell);
            picture.fill(x, y, grid.cell, grid.cell, colour(class));
        }
        *counts = [0; 256];
    };
    for (frame, class) in classes.iter() {
        // A new band begins: what was gathered belongs to the old one.
        while !single && frame >= band.0.end {
            if held > 0 {
                place(band, cell, &mut counts);
            }
            (cell, held) = (0, 0);
            match bands.next() {
                Some(next) => band = next,
                None => return,
            }
        }
        if let Some(count) = counts.get_mut(class as usize) {
            *count += 1;
        }
        held += 1;
        if held == grid.frames {
            place(band, cell, &mut counts);
            (cell, held) = (cell + 1, 0);
        }
    }
    if held > 0 {
        place(band, cell, &mut counts);
    }
}

/// Addresses at the left, at round numbers, none too near to another.
fn addresses(picture: &mut Picture, shift: u32, grid: &Grid) {
    let line_bytes = grid.line_bytes(shift);
    let lines = (64 / grid.cell as u64).max(1);
    let step = (line_bytes * lines).next_power_of_two();
    let mut free_from = 0;
    for (frames, top) in &grid.bands {
        let (start, end) = (frames.start << shift, frames.end << shift);
        let mut address = start;
        while address < end {
            let y = TOP + top + ((address - start) / line_bytes) as usize * grid.cell;
            if y >= free_from {
                picture.fill(LEFT - 10, y, 8, 2, FAINT);
                let text = if address == 0 {
                    "0".to_string()
                } else {
                    bytes(address).replace(".00", "")
                };
                picture.text_to(LEFT - 16, y.saturating_sub(2), 2, FAINT, &text);
                free_from = y + 22;
            }
            match (address / step + 1).checked_mul(step) {
                Some(next) => address = next,
                None => break,
            }
        }
    }
}

/// The classes of one tier, the largest first.
struct Group {
    tier: Tier,
    pages: u64,
    classes: Vec<(PageClass, u64)>,
}

fn groups(look: &Look, classes: &Classes) -> Vec<Group> {
    let mut groups = Vec::new();
    for tier in [Tier::Critical, Tier::Expendable, Tier::NotStored] {
        let mut list: Vec<(PageClass, u64)> = classes
            .counts()
            .into_iter()
            .filter(|&(class, pages)| pages > 0 && look.worth(class) == tier)
            .collect();
        list.sort_by_key(|&(_, pages)| std::cmp::Reverse(pages));
        if !list.is_empty() {
            let pages = list.iter().map(|&(_, pages)| pages).sum();
            groups.push(Group {
                tier,
                pages,
                classes: list,
            });
        }
    }
    groups
}

/// The legend: a bar of the tiers, then every class with its colour, size and share.
fn key(picture: &mut Picture, groups: &[Group], classes: &Classes, grid: &Grid) {
    let left = LEFT + ACROSS + MARGIN;
    let right = left + LEGEND;
    let all = classes.len() as u64;
    let shift = classes.page_shift();
    picture.swatch(left, TOP, LEGEND, 24, PAPER);
    let mut before = 0u64;
    for group in groups {
        let place = |pages: u64| {
            left + 1 + (pages as u128 * (LEGEND - 2) as u128 / all.max(1) as u128) as usize
        };
        let (from, to) = (place(before), place(before + group.pages));
        picture.fill(from, TOP + 1, to - from, 22, tier_colour(group.tier));
        before += group.pages;
    }
    let mut y = TOP + LINE + 12;
    for group in groups {
        picture.swatch(left, y, 6, 16, tier_colour(group.tier));
        let title = match group.tier {
            Tier::NotStored => "zeros: not stored",
            tier => tier_name(tier),
        };
        picture.text(left + 14, y, 2, INK, title);
        picture.text_to(
            right,
            y,
            2,
            INK,
            &format!("{:.1}%", percent(group.pages, all)),
        );
        picture.fill(left, y + 22, LEGEND, 1, FAINT);
        y += LINE;
        for &(class, pages) in &group.classes {
            picture.swatch(left + 14, y - 1, 18, 18, colour(class));
            picture.text(left + 44, y, 2, INK, class.name());
            picture.text_to(right - 96, y, 2, FAINT, &bytes(pages << shift));
            picture.text_to(right, y, 2, INK, &format!("{:.1}%", percent(pages, all)));
            y += LINE;
        }
        y += LINE / 2;
    }
    let cell = bytes(grid.frames << shift).replace(".00", "");
    let line = bytes(grid.line_bytes(shift)).replace(".00", "");
    picture.text(
        left,
        y,
        2,
        FAINT,
        &format!("one dot is {cell}, one line {line}"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::look::recognise;

    fn drawn(length: usize) -> Picture {
        let mut bytes = vec![0u8; length];
        bytes[..length / 2].fill(1);
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        let look = Look::into(recognise(&file, None).unwrap(), &file, &|_| ()).unwrap();
        draw(&look, "somewhere/guest.raw").unwrap()
    }

    #[test]
    fn half_of_a_picture_is_unknown_and_half_is_zero() {
        for length in [2 << 20, 40 << 20] {
            let picture = drawn(length);
            let count = |wanted: Colour| {
                (TOP..picture.height)
                    .flat_map(|y| (LEFT..LEFT + ACROSS).map(move |x| (x, y)))
                    .filter(|(x, y)| picture.dots[(y * picture.width + x) * 3..][..3] == wanted)
                    .count()
            };
            let (unknown, zero) = (
                count(colour(PageClass::Unknown)),
                count(colour(PageClass::Zero)),
            );
            assert!(unknown > 10_000, "{unknown}");
            assert_eq!(unknown, zero);
        }
    }

    #[test]
    fn a_picture_is_a_png_of_its_size() {
        let picture = drawn(2 << 20);
        let mut out = Vec::new();
        picture.write(&mut out).unwrap();
        let reader = png::Decoder::new(std::io::Cursor::new(out))
            .read_info()
            .unwrap();
        let info = reader.info();
        assert_eq!(
            (info.width as usize, info.height as usize),
            (picture.width, picture.height)
        );
    }

    #[test]
    fn no_two_classes_have_one_colour() {
        for (at, &class) in PageClass::ALL.iter().enumerate() {
            for &other in &PageClass::ALL[at + 1..] {
                let (a, b) = (colour(class), colour(other));
                let apart: i32 = a
                    .iter()
                    .zip(b)
                    .map(|(a, b)| (i32::from(*a) - i32::from(b)).abs())
                    .sum();
                assert!(apart > 60, "{class} and {other} look alike");
            }
        }
    }

    #[test]
    fn nothing_is_drawn_outside() {
        let mut picture = Picture::new(10, 10);
        picture.fill(8, 8, 100, 100, INK);
        picture.fill(50, 50, 1, 1, INK);
        picture.text(usize::MAX / 2, 5, 1, INK, "x");
        picture.text(5, 5, 3, INK, "far too long");
        assert_eq!(picture.dots.len(), 300);
    }
}
