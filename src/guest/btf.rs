//! BTF: the kernel's own description of its types, which it carries in its image (`include/uapi/linux/btf.h`). Finds it in
//! guest memory and answers where a member lies. All offsets in the blob are the guest's word: each is checked, and
//! nothing follows references further than a fixed depth.
//!
//! A blob has a hundred thousand types in several MiB, of which a dozen are wanted, once, and most kernels have those in
//! its first quarter. So it is read where it lies, no further than it has to be and never twice, and nothing is kept
//! for a type but for every [`MARK`]th.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use memchr::memmem;

use super::kernel::Kernel;
use super::memory::{GuestMemory, u32_at};

/// Magic 0xEB9F, version 1, no flags, a header of 24 bytes, and types right behind it: little-endian.
const HEADER: &[u8] = &[0x9F, 0xEB, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0];

/// A kernel's own blob has more types than any module's. Those lie in the image too, when they are built in.
const TYPES_MIN: u32 = 5_000;

/// The longest blob that is believed; Debian's take 4 to 7 MiB.
const LEN_MAX: usize = 64 << 20;

/// Bytes of blobs that are read in all. A guest may fill its image with beginnings, each of which leads through all others.
const TRIED_MAX: usize = 4 * LEN_MAX;

/// How deep types refer to types before the search is given up: anonymous members and modifiers.
const DEPTH_MAX: u32 = 12;

/// How far beyond `_stext` the image may reach.
const IMAGE_MAX: u64 = 96 << 20;

const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// The number of a type, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeId(u32);

/// Where a member lies within its structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the structure's beginning.
    pub offset: usize,
    /// The member's type.
    pub type_id: TypeId,
}

/// The types of one kernel.
#[derive(Clone, Debug)]
pub struct Btf<'b> {
    /// Where it begins, guest-physical.
    gpa: u64,
    bytes: Cow<'b, [u8]>,
    /// Where the types and their names lie in `bytes`.
    types: Range<usize>,
    strings: Range<usize>,
    walked: RefCell<Walked>,
    /// The structures and enums that were asked for.
    named: Vec<(&'static str, TypeId)>,
}

/// Of so many types the place of one is kept; the others are found from it.
const MARK: u32 = 32;

/// How far the types have been passed through.
#[derive(Clone, Debug, Default)]
struct Walked {
    /// Where every `MARK`th type begins among the types; number 1 is the first.
    marks: Vec<u32>,
    /// How many types there are up to here.
    count: u32,
    /// Where the next one begins.
    at: usize,
}

impl Walked {
    /// Passes the next type. None behind the last, and before one of a kind that is not known.
    #[inline]
    fn step(&mut self, types: &[u8]) -> Option<Head> {
        let head = Head::of(types, self.at)?;
        let next = head.next()?;
        if self.count.is_multiple_of(MARK) {
            self.marks.push(self.at as u32);
        }
        self.count += 1;
        self.at = next;
        Some(head)
    }
}

/// One type's three words.
#[derive(Clone, Copy)]
struct Head {
    at: usize,
    name: u32,
    kind: u32,
    vlen: usize,
    /// Bit fields: a member's offset carries its width in its top byte.
    flag: bool,
    /// Size in bytes, or the number of another type.
    rest: u32,
}

impl Head {
    /// The type whose words begin there.
    #[inline]
    fn of(types: &[u8], at: usize) -> Option<Head> {
        let words = types.get(at..)?.first_chunk::<12>()?;
        let [name, info, rest] = [0, 4, 8].map(|at| u32_at(words, at).unwrap_or_default());
        Some(Head {
            at,
            name,
            kind: (info >> 24) & 0x1F,
            vlen: (info & 0xFFFF) as usize,
            flag: info >> 31 != 0,
            rest,
        })
    }

    /// Where the next type begins. None if the kind is not known, and with it how long the type is.
    #[inline]
    fn next(&self) -> Option<usize> {
        let &(fixed, each) = LENGTHS.get(self.kind as usize)?;
        (fixed != UNKNOWN)
            .then(|| self.at + 12 + usize::from(fixed) + usize::from(each) * self.vlen)
    }
}

/// The names that are looked for, told apart by their first four bytes before they are compared.
struct Wanted {
    names: Vec<&'static str>,
    beginnings: Vec<u32>,
}

/// Structures and enums that are looked for: in each group names of which a kernel has one.
pub(super) type Groups = &'static [&'static [&'static str]];

impl Wanted {
    fn new(groups: Groups) -> Wanted {
        let names: Vec<&str> = groups.concat();
        // A name of three letters ends with NUL here as it does in the blob; there is no shorter one.
        let beginning = |name: &&str| {
            let mut bytes = name.bytes().chain([0; 4]);
            u32::from_le_bytes([(); 4].map(|()| bytes.next().unwrap_or_default()))
        };
        Wanted {
            beginnings: names.iter().map(beginning).collect(),
            names,
        }
    }

    /// The name that begins there.
    #[inline]
    fn at(&self, strings: &[u8], at: u32) -> Option<&'static str> {
        let rest = strings.get(at as usize..)?;
        let beginning = u32::from_le_bytes(*rest.first_chunk::<4>()?);
        // Hardly ever true.
        if !self.beginnings.contains(&beginning) {
            return None;
        }
        let same = |name: &&&str| {
            let after = rest.strip_prefix(name.as_bytes());
            after.is_some_and(|after| after.first() == Some(&0))
        };
        self.names.iter().find(same).copied()
    }
}

impl<'b> Btf<'b> {
    /// Searches the kernel's image, which lies in one piece in guest-physical space. The blob is among what is only read, so
    /// the search begins behind the code, and goes over that only if it was in vain.
    pub(super) fn search(
        memory: &'b dyn GuestMemory,
        kernel: &Kernel,
        wanted: Groups,
    ) -> Option<Btf<'b>> {
        let text = kernel.text;
        let end = memory
            .ranges()
            .iter()
            .find(|range| range.contains(&text))?
            .end
            .min(text.saturating_add(IMAGE_MAX));
        let data = text
            .saturating_add(kernel.code(memory, end - text))
            .min(end);
        let mut budget = TRIED_MAX;
        Btf::search_in(memory, data..end, wanted, &mut budget)
            .or_else(|| Btf::search_in(memory, text..data, wanted, &mut budget))
    }

    /// Searches for a blob that begins within a range.
    fn search_in(
        memory: &'b dyn GuestMemory,
        range: Range<u64>,
        wanted: Groups,
        budget: &mut usize,
    ) -> Option<Btf<'b>> {
        const STEP: u64 = 1 << 20;
        let finder = memmem::Finder::new(HEADER);
        let mut copy = Vec::new();
        let mut gpa = range.start;
        while gpa < range.end {
            // Windows overlap by a header.
            let len = (STEP + HEADER.len() as u64).min(range.end - gpa) as usize;
            let window = match memory.slice(gpa, len) {
                Some(slice) => slice,
                None => {
                    copy.resize(len, 0);
                    if !memory.read(gpa, &mut copy) {
                        copy.fill(0);
                    }
                    copy.as_slice()
                }
            };
            for at in finder.find_iter(window) {
                let at = at as u64;
                if at < STEP
                    && (gpa + at).is_multiple_of(4)
                    && let Some(btf) = Btf::load(memory, gpa + at, wanted, budget)
                {
                    return Some(btf);
                }
            }
            gpa += STEP;
        }
        None
    }

    fn load(
        memory: &'b dyn GuestMemory,
        gpa: u64,
        wanted: Groups,
        budget: &mut usize,
    ) -> Option<Btf<'b>> {
        let mut header = [0; 24];
        if !memory.read(gpa, &mut header) {
            return None;
        }
        let end =
            |at: usize| Some(u32_at(&header, at)? as usize + u32_at(&header, at + 4)? as usize);
        let len = 24 + end(8)?.max(end(16)?);
        if len > LEN_MAX {
            return None;
        }
        *budget = budget.checked_sub(len)?;
        let bytes = match memory.slice(gpa, len) {
            Some(slice) => Cow::Borrowed(slice),
            None => {
                let mut bytes = vec![0; len];
                if !memory.read(gpa, &mut bytes) {
                    return None;
                }
                Cow::Owned(bytes)
            }
        };
        let found = Btf::parse(bytes, wanted).filter(|btf| btf.passed() >= TYPES_MIN)?;
        Some(Btf { gpa, ..found })
    }

    /// Reads a blob; of structures and enums only the wanted ones can be found by name.
    fn parse(bytes: Cow<'b, [u8]>, wanted: Groups) -> Option<Btf<'b>> {
        if !bytes.starts_with(HEADER) || bytes.len() > LEN_MAX {
            return None;
        }
        let part = |at: usize| -> Option<Range<usize>> {
            let start = 24usize.checked_add(u32_at(&bytes, at)? as usize)?;
            let end = start.checked_add(u32_at(&bytes, at + 4)? as usize)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let (types, strings) = (part(8)?, part(16)?);
        let (words, texts) = (bytes.get(types.clone())?, bytes.get(strings.clone())?);
        let (groups, wanted) = (wanted, Wanted::new(wanted));
        let mut walked = Walked::default();
        let mut named: Vec<(&'static str, TypeId)> = Vec::new();
        let mut all_named = false;
        while !all_named || walked.count < TYPES_MIN {
            let Some(head) = walked.step(words) else {
                // The end, if this is one.
                if walked.at != words.len() {
                    return None;
                }
                break;
            };
            if matches!(
                head.kind,
                KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64
            ) && head.vlen > 0
                && let Some(name) = wanted.at(texts, head.name)
                && named.iter().all(|&(other, _)| other != name)
            {
                named.push((name, TypeId(walked.count)));
                let is_named = |name: &&str| named.iter().any(|(other, _)| other == name);
                all_named = groups.iter().all(|group| group.iter().any(is_named));
            }
        }
        Some(Btf {
            gpa: 0,
            types,
            strings,
            walked: RefCell::new(walked),
            named,
            bytes,
        })
    }

    /// The guest-physical addresses that it lies at.
    pub(super) fn place(&self) -> Range<u64> {
        self.gpa..self.gpa.saturating_add(self.bytes.len() as u64)
    }

    /// How many types have been passed so far.
    fn passed(&self) -> u32 {
        self.walked.borrow().count
    }

    fn types(&self) -> &[u8] {
        self.bytes.get(self.types.clone()).unwrap_or_default()
    }

    fn head(&self, id: TypeId) -> Option<Head> {
        let index = id.0.checked_sub(1)?;
        let types = self.types();
        let mut walked = self.walked.borrow_mut();
        while walked.count <= index {
            walked.step(types)?;
        }
        let mut at = *walked.marks.get((index / MARK) as usize)? as usize;
        for _ in 0..index % MARK {
            at = Head::of(types, at)?.next()?;
        }
        Head::of(types, at)
    }

    /// The type behind typedefs, const and the like.
    fn plain(&self, mut id: TypeId) -> Option<(TypeId, Head)> {
        for _ in 0..DEPTH_MAX {
            let head = self.head(id)?;
            match head.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = TypeId(head.rest)
                }
                _ => return Some((id, head)),
            }
        }
        None
    }

    fn string(&self, at: u32) -> &[u8] {
        let strings = self.bytes.get(self.strings.clone()).unwrap_or_default();
        let rest = strings.get(at as usize..).unwrap_or_default();
        rest.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// A structure or enum by name.
    pub fn named(&self, name: &str) -> Option<TypeId> {
        let mut named = self.named.iter();
        named.find(|(other, _)| *other == name).map(|&(_, id)| id)
    }

    /// A member by its path, `a.b` for a member of a member; anonymous structures in between are passed through.
    pub fn member(&self, structure: &str, path: &str) -> Option<Member> {
        let mut found = Member {
            offset: 0,
            type_id: self.named(structure)?,
        };
        for name in path.split('.') {
            let inner = self.member_of(found.type_id, name.as_bytes(), &mut 4096, 0)?;
            found = Member {
                offset: found.offset.checked_add(inner.offset)?,
                type_id: inner.type_id,
            };
        }
        Some(found)
    }

    /// Bytes to a member.
    pub fn offset(&self, structure: &str, path: &str) -> Option<usize> {
        self.member(structure, path).map(|member| member.offset)
    }

    /// `budget` bounds the members looked at: anonymous members of a lying blob may fan out.
    fn member_of(&self, id: TypeId, name: &[u8], budget: &mut u32, depth: u32) -> Option<Member> {
        let (_, head) = self.plain(id)?;
        if !matches!(head.kind, KIND_STRUCT | KIND_UNION) || depth > DEPTH_MAX {
            return None;
        }
        for index in 0..head.vlen {
            *budget = budget.checked_sub(1)?;
            let at = head.at + 12 + 12 * index;
            let bits = u32_at(self.types(), at + 8)?;
            let bits = if head.flag { bits & 0xFF_FFFF } else { bits };
            let member = Member {
                offset: bits as usize / 8,
                type_id: TypeId(u32_at(self.types(), at + 4)?),
            };
            let own = self.string(u32_at(self.types(), at)?);
            if own == name {
                return Some(member);
            }
            if own.is_empty()
                && let Some(inner) = self.member_of(member.type_id, name, budget, depth + 1)
            {
                return Some(Member {
                    offset: member.offset.checked_add(inner.offset)?,
                    ..inner
                });
            }
        }
        None
    }

    /// Elements of an array.
    pub fn array_len(&self, id: TypeId) -> Option<usize> {
        let (_, head) = self.plain(id)?;
        (head.kind == KIND_ARRAY)
            .then(|| u32_at(self.types(), head.at + 20))
            .flatten()
            .map(|n| n as usize)
    }

    /// The names of an enum and their values, truncated to 64 bits.
    pub fn values(&self, name: &str) -> HashMap<String, u64> {
        let Some(head) = self.named(name).and_then(|id| self.head(id)) else {
            return HashMap::new();
        };
        let step = match head.kind {
            KIND_ENUM => 8,
            KIND_ENUM64 => 12,
            _ => return HashMap::new(),
        };
        let value = |index: usize| {
            let at = head.at + 12 + step * index;
            let name = String::from_utf8_lossy(self.string(u32_at(self.types(), at)?)).into_owned();
            Some((name, u64::from(u32_at(self.types(), at + 4)?)))
        };
        (0..head.vlen).filter_map(value).collect()
    }
}

/// In place of a length: the kind is not known.
const UNKNOWN: u8 = u8::MAX;

/// Bytes that follow the three words of a type, by kind: always, and for each of its `vlen`.
const LENGTHS: [(u8, u8); 20] = [
    (UNKNOWN, 0),
    // Integer, pointer, array, structure, union, enum.
    (4, 0),
    (0, 0),
    (12, 0),
    (0, 12),
    (0, 12),
    (0, 8),
    // Forward, typedef, volatile, const, restrict, function, and its prototype.
    (0, 0),
    (0, 0),
    (0, 0),
    (0, 0),
    (0, 0),
    (0, 0),
    (0, 8),
    // Variable, section of variables, float, declaration tag, type tag, enum of 64 bits.
    (4, 0),
    (0, 12),
    (0, 0),
    (4, 0),
    (0, 0),
    (0, 12),
];

#[cfg(test)]
mod tests {
    use super::super::shape::WANTED;
    use super::super::synthetic;
    use super::*;

    fn parse(blob: &[u8]) -> Option<Btf<'_>> {
        Btf::parse(Cow::Borrowed(blob), WANTED)
    }

    /// Where the first type of a kind begins in a blob, and the number that it has.
    fn first_of(blob: &[u8], kind: u32) -> (usize, u32) {
        let mut at = 0;
        for number in 1.. {
            let head = Head::of(&blob[24..], at).expect("a type");
            if head.kind == kind {
                return (24 + at, number);
            }
            at = head.next().expect("a known kind");
        }
        unreachable!()
    }

    #[test]
    fn every_type_is_found_by_its_number() {
        let blob = synthetic::btf();
        let btf = parse(&blob).expect("a blob");
        assert_eq!(btf.passed(), TYPES_MIN, "no further than it has to be");
        let (mut at, mut places) = (0, Vec::new());
        while let Some(head) = Head::of(btf.types(), at) {
            places.push(at);
            at = head.next().expect("a known kind");
        }
        assert_eq!(at, btf.types().len());
        // Backwards, so that those behind what was passed are asked for first.
        for (before, &place) in places.iter().enumerate().rev() {
            let head = btf.head(TypeId(before as u32 + 1));
            assert_eq!(head.map(|head| head.at), Some(place));
        }
        assert_eq!(btf.passed() as usize, places.len());
        for number in [0, places.len() as u32 + 1, u32::MAX] {
            assert!(btf.head(TypeId(number)).is_none());
        }
        assert_eq!(btf.offset("address_space", "wb_err"), Some(24));
        assert_eq!(btf.offset("address_space", "wb"), None);
        assert_eq!(btf.values("pageflags").get("PG_swapcache"), Some(&10));
    }

    #[test]
    fn names_that_begin_alike_are_told_apart() {
        let blob = synthetic::btf();
        let at = blob
            .windows(6)
            .position(|bytes| bytes == b"inode\0")
            .expect("its name");
        let mut longer = blob.clone();
        longer[at..at + 6].copy_from_slice(b"inodes");
        assert!(parse(&blob).expect("a blob").named("inode").is_some());
        assert!(parse(&longer).expect("a blob").named("inode").is_none());
    }

    #[test]
    fn a_blob_that_contradicts_itself_is_none() {
        let blob = synthetic::btf();
        let (array, _) = first_of(&blob, KIND_ARRAY);
        for kind in [0, 20, 31] {
            let mut unknown = blob.clone();
            unknown[array + 7] = kind;
            assert!(parse(&unknown).is_none(), "kind {kind}");
        }
        for cut in [0, 11, 23, 24, 100, blob.len() - 1] {
            assert!(parse(&blob[..cut]).is_none(), "cut at {cut}");
        }
        let mut beyond = blob.clone();
        beyond[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(parse(&beyond).is_none());
        // The last type ends behind its part.
        let mut longer = blob.clone();
        let (first, _) = first_of(&blob, KIND_STRUCT);
        longer[first + 4..first + 6].copy_from_slice(&u16::MAX.to_le_bytes());
        assert!(parse(&longer).is_none());
    }
}
