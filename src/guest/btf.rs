//! BTF: the kernel's own description of its types, which it carries in its image (`include/uapi/linux/btf.h`). Finds it in
//! guest memory and answers where a member lies. All offsets in the blob are the guest's word: each is checked, and
//! nothing follows references further than a fixed depth.

use std::collections::HashMap;

use memchr::memmem;

use super::memory::{GuestMemory, u32_at};

/// Magic 0xEB9F, version 1, no flags, a header of 24 bytes, and types right behind it: little-endian.
const HEADER: &[u8] = &[0x9F, 0xEB, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0];

/// A kernel's own blob has more types than any module's. Those lie in the image too, when they are built in.
const TYPES_MIN: usize = 5_000;

/// The longest blob that is believed; Debian's take 4 to 7 MiB.
const LEN_MAX: usize = 64 << 20;

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
pub struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where each type begins in `types`; number 1 is at index 0.
    offsets: Vec<u32>,
    /// The structures and enums that were asked for.
    named: HashMap<String, TypeId>,
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

impl Btf {
    /// Searches the kernel's image, which begins near `text` and lies in one piece in guest-physical space.
    pub(super) fn search(memory: &dyn GuestMemory, text: u64, wanted: &[&str]) -> Option<Btf> {
        const STEP: usize = 1 << 20;
        let end = memory
            .ranges()
            .iter()
            .find(|range| range.contains(&text))?
            .end
            .min(text.saturating_add(IMAGE_MAX));
        let finder = memmem::Finder::new(HEADER);
        let mut copy = Vec::new();
        let mut gpa = text;
        while gpa < end {
            // Windows overlap by a header.
            let len = (STEP + HEADER.len()).min((end - gpa) as usize);
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
                if at < STEP
                    && at % 4 == 0
                    && let Some(btf) = Btf::load(memory, gpa + at as u64, wanted)
                {
                    return Some(btf);
                }
            }
            gpa += STEP as u64;
        }
        None
    }

    fn load(memory: &dyn GuestMemory, gpa: u64, wanted: &[&str]) -> Option<Btf> {
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
        let mut bytes = vec![0; len];
        if !memory.read(gpa, &mut bytes) {
            return None;
        }
        Btf::parse(&bytes, wanted).filter(|btf| btf.offsets.len() >= TYPES_MIN)
    }

    /// Reads a blob; of structures and enums only the wanted ones can be found by name.
    pub fn parse(bytes: &[u8], wanted: &[&str]) -> Option<Btf> {
        if !bytes.starts_with(HEADER) {
            return None;
        }
        let part = |at: usize| -> Option<&[u8]> {
            let start = 24usize.checked_add(u32_at(bytes, at)? as usize)?;
            bytes.get(start..start.checked_add(u32_at(bytes, at + 4)? as usize)?)
        };
        let mut btf = Btf {
            types: part(8)?.to_vec(),
            strings: part(16)?.to_vec(),
            offsets: Vec::new(),
            named: HashMap::new(),
        };
        let mut at = 0;
        while at + 12 <= btf.types.len() {
            let head = btf.head_at(at)?;
            btf.offsets.push(u32::try_from(at).ok()?);
            if matches!(
                head.kind,
                KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64
            ) && head.vlen > 0
            {
                let number = TypeId(btf.offsets.len() as u32);
                let name = btf.string(head.name);
                if let Some(&name) = wanted.iter().find(|wanted| wanted.as_bytes() == name) {
                    btf.named.entry(name.to_string()).or_insert(number);
                }
            }
            at = at
                .checked_add(12)?
                .checked_add(data_len(head.kind, head.vlen)?)?;
        }
        (at == btf.types.len()).then_some(btf)
    }

    fn head_at(&self, at: usize) -> Option<Head> {
        let info = u32_at(&self.types, at.checked_add(4)?)?;
        Some(Head {
            at,
            name: u32_at(&self.types, at)?,
            kind: (info >> 24) & 0x1F,
            vlen: (info & 0xFFFF) as usize,
            flag: info >> 31 != 0,
            rest: u32_at(&self.types, at.checked_add(8)?)?,
        })
    }

    fn head(&self, id: TypeId) -> Option<Head> {
        self.head_at(*self.offsets.get((id.0 as usize).checked_sub(1)?)? as usize)
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
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        rest.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// A structure or enum by name.
    pub fn named(&self, name: &str) -> Option<TypeId> {
        self.named.get(name).copied()
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
            let bits = u32_at(&self.types, at + 8)?;
            let bits = if head.flag { bits & 0xFF_FFFF } else { bits };
            let member = Member {
                offset: bits as usize / 8,
                type_id: TypeId(u32_at(&self.types, at + 4)?),
            };
            let own = self.string(u32_at(&self.types, at)?);
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
            .then(|| u32_at(&self.types, head.at + 20))
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
            let name = String::from_utf8_lossy(self.string(u32_at(&self.types, at)?)).into_owned();
            Some((name, u64::from(u32_at(&self.types, at + 4)?)))
        };
        (0..head.vlen).filter_map(value).collect()
    }
}

/// Bytes that follow the three words of a type.
fn data_len(kind: u32, vlen: usize) -> Option<usize> {
    Some(match kind {
        // int, var, declaration tag
        1 | 14 | 17 => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | 15 | KIND_ENUM64 => 12 * vlen,
        KIND_ENUM | 13 => 8 * vlen,
        // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}
