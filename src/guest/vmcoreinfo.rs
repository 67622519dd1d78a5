//! vmcoreinfo: the text in which a running kernel tells crash tools about itself (`kernel/vmcore_info.c`, before 6.9
//! `kernel/crash_core.c`). Finds its copies in memory and reads its keys; whether to believe one is for
//! [`super::kernel`] to say.

use std::collections::HashMap;

use super::error::GuestError;
use super::memory::GuestMemory;

/// The kernel keeps the text in one page of at most this many bytes, whatever its page size.
const TEXT_MAX: usize = 4096;

/// How many copies are tried. A guest has two, and stale ones from before a reboot.
const COPIES_MAX: usize = 64;

/// Whether a page may begin a copy: the text itself, or the ELF note that holds it. Cheap enough for every page of a
/// stream as it goes by; `page` may be as short as 24 bytes.
#[inline]
pub fn is_candidate(page: &[u8]) -> bool {
    text_offset(page).is_some()
}

#[inline]
fn text_offset(page: &[u8]) -> Option<usize> {
    // Hardly any page is told from both by more than its first word.
    let first = u32::from_le_bytes(*page.first_chunk::<4>()?);
    if first != u32::from_le_bytes(*b"OSRE") && first != 11 {
        return None;
    }
    if page.starts_with(b"OSRELEASE=") {
        return Some(0);
    }
    // An ELF note: u32 name size, u32 text size, u32 type 0, then the name, padded to 12 bytes.
    let name = page.get(12..24)?;
    (page.starts_with(&11u32.to_le_bytes()) && name == b"VMCOREINFO\0\0").then_some(24)
}

/// How much memory is looked through at once where it lies in this process.
const SPAN: u64 = 1 << 20;

/// The places where a copy may begin, by a look at the first bytes of every page. An error if they are more than are tried:
/// what is cut off may be the one that counts.
pub(super) fn search(memory: &dyn GuestMemory) -> Result<Vec<u64>, GuestError> {
    let mut found = Vec::new();
    let mut head = [0; 24];
    for range in memory.ranges() {
        let mut gpa = range.start.next_multiple_of(TEXT_MAX as u64);
        while gpa < range.end {
            let len = SPAN.min(range.end - gpa);
            // One look at a span instead of one at every page: what it costs is waiting for memory, and pages are waited for
            // side by side.
            if let Some(span) = memory.slice(gpa, len as usize) {
                for (page, at) in span.chunks(TEXT_MAX).zip((gpa..).step_by(TEXT_MAX)) {
                    if is_candidate(page) {
                        found.push(at);
                    }
                }
            } else {
                for at in (gpa..gpa.saturating_add(len)).step_by(TEXT_MAX) {
                    if memory.read(at, &mut head) && is_candidate(&head) {
                        found.push(at);
                    }
                }
            }
            if found.len() > COPIES_MAX {
                return Err(GuestError::TooManyPlaces(COPIES_MAX));
            }
            match gpa.checked_add(SPAN) {
                Some(next) => gpa = next,
                None => break,
            }
        }
    }
    Ok(found)
}

/// The keys of one copy.
#[derive(Clone, Debug, Default)]
pub struct Vmcoreinfo {
    keys: HashMap<String, String>,
    /// How many bytes it takes, its note's header among them.
    pub(super) length: u64,
}

impl Vmcoreinfo {
    /// Reads a copy out of guest memory: `gpa` is where the text or its note begins.
    pub(super) fn read(memory: &dyn GuestMemory, gpa: u64) -> Option<Vmcoreinfo> {
        let mut page = vec![0; TEXT_MAX];
        if !memory.read(gpa, &mut page) {
            return None;
        }
        let at = text_offset(&page)?;
        let mut text = page.split_off(at);
        // The note's text goes on in the next page for as long as its header took of this one.
        let mut rest = vec![0; at];
        if at > 0
            && gpa
                .checked_add(TEXT_MAX as u64)
                .is_some_and(|next| memory.read(next, &mut rest))
        {
            text.extend_from_slice(&rest);
        }
        let mut info = Vmcoreinfo::parse(&text);
        info.length += at as u64;
        Some(info)
    }

    /// Reads text of the form `KEY=value`, a line each, up to the first NUL.
    pub fn parse(text: &[u8]) -> Vmcoreinfo {
        let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
        let mut keys = HashMap::new();
        for line in text.split(|&byte| byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else {
                continue;
            };
            if let Some((key, value)) = line.split_once('=') {
                keys.insert(key.to_string(), value.to_string());
            }
        }
        let length = text.len() as u64;
        Vmcoreinfo { keys, length }
    }

    /// The text of a key.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    /// `SYMBOL(name)`: an address, hexadecimal without prefix, moved by KASLR already.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.text(&format!("SYMBOL({name})"))?, 16).ok()
    }

    fn decimal(&self, key: &str) -> Option<u64> {
        let text = self.text(key)?;
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            // Numbers are signed: phys_base may be negative, page types are.
            None => text.parse::<i64>().ok().map(|number| number as u64),
        }
    }

    /// `NUMBER(name)`, in two's complement.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.decimal(&format!("NUMBER({name})"))
    }

    /// `OFFSET(struct.member)` in bytes.
    pub fn offset(&self, name: &str) -> Option<usize> {
        self.decimal(&format!("OFFSET({name})"))
            .and_then(|n| usize::try_from(n).ok())
    }

    /// `SIZE(struct)` in bytes.
    pub fn size(&self, name: &str) -> Option<usize> {
        self.decimal(&format!("SIZE({name})"))
            .and_then(|n| usize::try_from(n).ok())
    }

    /// `LENGTH(array)` in elements.
    pub fn length(&self, name: &str) -> Option<usize> {
        self.decimal(&format!("LENGTH({name})"))
            .and_then(|n| usize::try_from(n).ok())
    }

    /// `PAGESIZE`, as its log2.
    pub fn page_shift(&self) -> Result<u32, GuestError> {
        let size = self
            .decimal("PAGESIZE")
            .ok_or(GuestError::MissingKey("PAGESIZE"))?;
        match size {
            4096 | 16384 | 65536 => Ok(size.trailing_zeros()),
            _ => Err(GuestError::ImpossibleValue("PAGESIZE")),
        }
    }
}
