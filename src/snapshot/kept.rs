//! A page map as bytes, so that a file whose map took a pass over all of it need not be read again. Knows the map and the
//! bytes, not where they are kept.
//!
//! Numbers are LEB128 (7 bits a byte, low ones first) unless a size stands behind them:
//!
//! ```text
//! version 1 byte: 1 · log2 of the page size 1 byte · lead · zero record · first file offset · file length
//! blocks: count, then each: name · ram · length        (a name: its length, its bytes)
//! layout: name · count, then each range: gpa · ram · length
//! deltas: count, then each: page, less the one before · file offset · length
//! runs, to the end, in the tokens of the run log: kind and count, and jumps between page numbers
//! ```

use super::address::Gpa;
use super::layout::{Layout, RamRange};
use super::map::{Block, PageMap};
use super::runs::{self, Geometry, Kind, RunLog, Token};
use super::supersede::Delta;

const VERSION: u8 = 1;

/// Page numbers and file offsets stay below this; sums of two cannot overflow.
const REACH: u64 = 1 << 60;

/// Names are shorter, in bytes.
const NAME_MAX: u64 = 1024;

impl PageMap {
    /// The map under the layout in force.
    pub fn encode(&self) -> Vec<u8> {
        let inner = &self.inner;
        let geometry = inner.log.geometry();
        let mut bytes = vec![VERSION, geometry.page_size.trailing_zeros() as u8];
        let first = inner.log.runs_from(0).next().map_or(0, |run| run.file);
        for number in [geometry.lead, geometry.zero_record, first, inner.length] {
            put(&mut bytes, number);
        }
        put(&mut bytes, self.blocks().len() as u64);
        for block in self.blocks() {
            put_text(&mut bytes, &block.name);
            put(&mut bytes, block.ram);
            put(&mut bytes, block.length);
        }
        put_text(&mut bytes, self.layout().name());
        put(&mut bytes, self.layout().ranges().len() as u64);
        for range in self.layout().ranges() {
            for number in [range.gpa.0, range.ram, range.length] {
                put(&mut bytes, number);
            }
        }
        put(&mut bytes, self.deltas().len() as u64);
        let mut before = 0;
        for delta in self.deltas() {
            put(&mut bytes, delta.page - before);
            put(&mut bytes, delta.file);
            put(&mut bytes, u64::from(delta.length));
            before = delta.page;
        }
        let mut page = 0;
        for run in inner.log.runs_from(0) {
            runs::encode_run(&mut bytes, &run, &mut page);
        }
        bytes
    }

    /// The map again; nothing if these are not the bytes of one.
    pub fn decode(bytes: &[u8]) -> Option<PageMap> {
        let mut rest = bytes;
        let [VERSION, shift] = *take(&mut rest, 2)? else {
            return None;
        };
        let page_size = (12..=16).contains(&shift).then(|| 1u64 << shift)?;
        let geometry = Geometry {
            page_size,
            lead: below(&mut rest, page_size)?,
            zero_record: below(&mut rest, page_size)?,
        };
        let first = below(&mut rest, REACH)?;
        let length = below(&mut rest, REACH)?;
        let mut blocks = Vec::new();
        for _ in 0..below(&mut rest, bytes.len() as u64)? {
            blocks.push(Block {
                name: text(&mut rest)?,
                ram: below(&mut rest, REACH)?,
                length: below(&mut rest, REACH)?,
            });
        }
        let name = text(&mut rest)?;
        let mut ranges = Vec::new();
        for _ in 0..below(&mut rest, bytes.len() as u64)? {
            ranges.push(RamRange {
                gpa: Gpa(below(&mut rest, REACH)?),
                ram: below(&mut rest, REACH)?,
                length: below(&mut rest, REACH)?,
            });
        }
        let layout = Layout::new(name, ranges)?;
        let mut deltas: Vec<Delta> = Vec::new();
        let mut page = 0;
        for _ in 0..below(&mut rest, bytes.len() as u64)? {
            page = Some(page + below(&mut rest, REACH)?).filter(|&page| page < REACH)?;
            deltas.push(Delta {
                page,
                file: below(&mut rest, REACH)?,
                length: u16::try_from(number(&mut rest)?).ok()?,
            });
        }
        let mut log = RunLog::new(geometry, first);
        let mut page = 0u64;
        while !rest.is_empty() {
            match runs::decode_token(&mut rest)? {
                Token::Jump(distance) => {
                    page = page
                        .checked_add_signed(distance)
                        .filter(|&page| page < REACH)?;
                }
                Token::Run(kind, count) => {
                    let file = geometry.unit(kind).checked_mul(count)?;
                    let end = log.end().checked_add(file)?;
                    if end > length || count >= REACH {
                        return None;
                    }
                    if kind == Kind::Framing {
                        log.framing(count);
                    } else {
                        log.pages(kind, page, count);
                        page = Some(page + count).filter(|&page| page < REACH)?;
                    }
                }
            }
        }
        PageMap::new(log, blocks, vec![layout], deltas, length)
    }
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let text = text
        .get(..text.len().min(NAME_MAX as usize))
        .unwrap_or_default();
    put(bytes, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
}

fn take<'b>(rest: &mut &'b [u8], length: usize) -> Option<&'b [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..).step_by(7) {
        let byte = *take(rest, 1)?.first()?;
        let part = u64::from(byte & 0x7f);
        if shift > 63 || part.leading_zeros() < shift {
            return None;
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn below(rest: &mut &[u8], limit: u64) -> Option<u64> {
    number(rest).filter(|&number| number < limit)
}

fn text(rest: &mut &[u8]) -> Option<String> {
    let length = below(rest, NAME_MAX + 1)?;
    String::from_utf8(take(rest, length as usize)?.to_vec()).ok()
}
