//! A small writer for each format, written from its description and apart from the parser: what the parser
//! reads is what these write, and what QEMU itself writes (`integration/formats_qemu.rs`).

/// The bytes of a page.
pub const PAGE: usize = 4096;

/// A page that tells its number and which time it is sent.
pub fn page_of(page: u64, turn: u8) -> Vec<u8> {
    let mut bytes = vec![turn | 1; PAGE];
    bytes[..8].copy_from_slice(&page.to_le_bytes());
    bytes
}

/// A QEMU stream.
pub struct StreamWriter {
    /// The file so far.
    pub bytes: Vec<u8>,
    blocks: Vec<(String, u64)>,
    last_block: Option<usize>,
}

/// What makes streams differ at their head.
#[derive(Clone, Copy, Default)]
pub struct Head<'a> {
    /// The machine's name; none is an ancient stream.
    pub machine: &'a str,
    /// The capabilities that are recorded.
    pub capabilities: &'a [&'a str],
    /// A page size after each block's length, as postcopy adds it.
    pub page_size: Option<u64>,
}

const RAM_SECTION: u32 = 2;

impl StreamWriter {
    /// Everything up to the list of blocks: names and pages.
    pub fn new(prefix: &[u8], head: Head<'_>, blocks: &[(&str, u64)]) -> Self {
        let mut writer = Self::without_list(prefix, head, blocks);
        for (name, pages) in blocks {
            writer.name(name);
            writer.word(pages * PAGE as u64);
            if let Some(size) = head.page_size {
                writer.word(size);
            }
            if head.capabilities.contains(&"x-ignore-shared") {
                writer.word(0);
            }
        }
        writer.end_section();
        writer
    }

    fn without_list(prefix: &[u8], head: Head<'_>, blocks: &[(&str, u64)]) -> Self {
        let mut bytes = prefix.to_vec();
        bytes.extend(b"QEVM\0\0\0\x03");
        if !head.machine.is_empty() {
            bytes.push(7);
            bytes.extend((head.machine.len() as u32).to_be_bytes());
            bytes.extend(head.machine.as_bytes());
            subsection(&mut bytes, "configuration/uuid", &[9; 16]);
            if !head.capabilities.is_empty() {
                let mut body = (head.capabilities.len() as u32).to_be_bytes().to_vec();
                for name in head.capabilities {
                    body.push(name.len() as u8);
                    body.extend(name.as_bytes());
                }
                subsection(&mut bytes, "configuration/capabilities", &body);
            }
        }
        bytes.push(1);
        bytes.extend(RAM_SECTION.to_be_bytes());
        bytes.extend(b"\x03ram");
        bytes.extend(0_u32.to_be_bytes());
        bytes.extend(4_u32.to_be_bytes());
        let blocks = blocks
            .iter()
            .map(|(name, pages)| ((*name).to_owned(), *pages));
        let mut writer = Self {
            bytes,
            blocks: blocks.collect(),
            last_block: None,
        };
        let total: u64 = writer
            .blocks
            .iter()
            .map(|(_, pages)| pages * PAGE as u64)
            .sum();
        writer.word(total | 4);
        writer
    }

    fn word(&mut self, word: u64) {
        self.bytes.extend(word.to_be_bytes());
    }

    fn name(&mut self, name: &str) {
        self.bytes.push(name.len() as u8);
        self.bytes.extend(name.as_bytes());
    }

    fn end_section(&mut self) {
        self.word(0x10);
        self.bytes.push(0x7e);
        self.bytes.extend(RAM_SECTION.to_be_bytes());
    }

    /// Ends the section and begins another part; `last` makes it the one that completes the memory.
    pub fn next_section(&mut self, last: bool) {
        if !self.bytes.ends_with(&[0x7e, 0, 0, 0, 2]) {
            self.end_section();
        }
        self.bytes.push(if last { 3 } else { 2 });
        self.bytes.extend(RAM_SECTION.to_be_bytes());
        self.last_block = None;
    }

    fn record(&mut self, block: usize, page: u64, flag: u64) {
        let continues = if self.last_block == Some(block) {
            0x20
        } else {
            0
        };
        self.word((page * PAGE as u64) | flag | continues);
        if continues == 0 {
            let name = self.blocks[block].0.clone();
            self.name(&name);
            self.last_block = Some(block);
        }
    }

    /// A page; gives the offset of its bytes.
    pub fn page(&mut self, block: usize, page: u64, content: &[u8]) -> usize {
        self.record(block, page, 8);
        self.bytes.extend(content);
        self.bytes.len() - PAGE
    }

    /// A zero page.
    pub fn zero(&mut self, block: usize, page: u64) {
        self.record(block, page, 2);
        self.bytes.push(0);
    }

    /// A delta that replaces the bytes at a place below 128.
    pub fn delta(&mut self, block: usize, page: u64, at: u8, bytes: &[u8]) {
        self.record(block, page, 0x40);
        self.bytes.push(1);
        self.bytes.extend((bytes.len() as u16 + 2).to_be_bytes());
        self.bytes.extend([at, bytes.len() as u8]);
        self.bytes.extend(bytes);
    }

    /// A record without a page.
    pub fn flush(&mut self) {
        self.word(0x200);
    }

    /// Ends the memory and adds a device, a vmcoreinfo device and a description.
    pub fn finish(mut self) -> Vec<u8> {
        self.end_section();
        tail(&mut self.bytes);
        self.bytes
    }
}

fn subsection(bytes: &mut Vec<u8>, name: &str, body: &[u8]) {
    bytes.extend([5, name.len() as u8]);
    bytes.extend(name.as_bytes());
    bytes.extend(1_u32.to_be_bytes());
    bytes.extend(body);
}

fn tail(bytes: &mut Vec<u8>) {
    for (id, name, body) in [
        (5_u32, "timer", &[3; 24][..]),
        (
            6,
            "vmcoreinfo",
            &[1, 0, 0, 0, 1, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0x50, 0],
        ),
    ] {
        bytes.push(4);
        bytes.extend(id.to_be_bytes());
        bytes.push(name.len() as u8);
        bytes.extend(name.as_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        bytes.push(0x7e);
        bytes.extend(id.to_be_bytes());
    }
    bytes.push(0);
    bytes.extend(b"\x06\0\0\0\x02{}");
}

/// A mapped-ram file, and the writes that made it in the order in which QEMU makes them: offset and bytes.
/// Pages are of the content given, or not there and zero; what is in the slots of those is `stale`.
pub fn mapped_ram(
    prefix: &[u8],
    blocks: &[(&str, Vec<Option<Vec<u8>>>)],
    stale: Option<u8>,
) -> (Vec<u8>, Vec<(usize, Vec<u8>)>) {
    let head = Head {
        machine: "pc-q35-10.0",
        capabilities: &["mapped-ram"],
        page_size: None,
    };
    let sizes: Vec<(&str, u64)> = blocks
        .iter()
        .map(|(name, pages)| (*name, pages.len() as u64))
        .collect();
    let mut writer = StreamWriter::without_list(prefix, head, &sizes);
    let mut writes = Vec::new();
    let mut bitmaps = Vec::new();
    let mut at = 0;
    for (name, pages) in blocks {
        writer.name(name);
        writer.word((pages.len() * PAGE) as u64);
        let bitmap_length = pages.len().div_ceil(64) * 8;
        let bitmap_at = at + writer.bytes.len() + 28;
        let pages_at = (bitmap_at + bitmap_length).next_multiple_of(1 << 20);
        writer.bytes.extend(1_u32.to_be_bytes());
        writer.word(PAGE as u64);
        writer.word(bitmap_at as u64);
        writer.word(pages_at as u64);
        writes.push((at, std::mem::take(&mut writer.bytes)));
        let mut bitmap = vec![0; bitmap_length];
        for (index, page) in pages.iter().enumerate() {
            let slot = pages_at + index * PAGE;
            match page {
                Some(content) => {
                    bitmap[index / 8] |= 1 << (index % 8);
                    writes.push((slot, content.clone()));
                }
                None => {
                    writes.extend(stale.map(|fill| (slot, vec![fill; PAGE])));
                }
            }
        }
        bitmaps.push((bitmap_at, bitmap));
        at = pages_at + pages.len() * PAGE;
    }
    writes.extend(bitmaps);
    writer.end_section();
    writer.next_section(true);
    writer.end_section();
    tail(&mut writer.bytes);
    writes.push((at, writer.bytes));
    let mut bytes = Vec::new();
    for (offset, part) in &writes {
        let end = offset + part.len();
        bytes.resize(bytes.len().max(end), 0);
        bytes[*offset..end].copy_from_slice(part);
    }
    (bytes, writes)
}

/// libvirt's header, description and padding.
pub fn libvirt_head(format: u32, finished: bool) -> Vec<u8> {
    let mut head = if finished {
        *b"LibvirtQemudSave"
    } else {
        *b"LibvirtQemudPart"
    }
    .to_vec();
    let data = 301_u32;
    for word in [2, data, 1, format, 0] {
        head.extend(u32::to_le_bytes(word));
    }
    head.resize(92, 0);
    head.extend(b"<domain/>");
    head.resize(92 + data as usize, 0);
    head
}

/// An ELF core of 64 bits: ranges of address and bytes, and the text of a VMCOREINFO note.
pub fn elf64(ranges: &[(u64, Vec<u8>)], vmcoreinfo: &str) -> Vec<u8> {
    let mut note = Vec::new();
    for (name, content) in [
        ("CORE", &[1; 30][..]),
        ("VMCOREINFO", vmcoreinfo.as_bytes()),
    ] {
        for word in [name.len() as u32 + 1, content.len() as u32, 0] {
            note.extend(word.to_le_bytes());
        }
        note.extend(name.as_bytes());
        note.push(0);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend(content);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    let headers = ranges.len() as u64 + 1;
    let note_at = 64 + 56 * headers;
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend([4, 0, 62, 0, 1, 0, 0, 0]);
    bytes.extend([0_u64, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend([0; 4]);
    bytes.extend(
        [64_u16, 56, headers as u16, 0, 0, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes()),
    );
    let mut program = |kind: u32, offset: u64, gpa: u64, size: u64| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend([0; 4]);
        let words = [offset, 0, gpa, size, size, 0];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    };
    program(4, note_at, 0, note.len() as u64);
    let mut at = note_at + note.len() as u64;
    for (gpa, content) in ranges {
        program(1, at, *gpa, content.len() as u64);
        at += content.len() as u64;
    }
    bytes.extend(note);
    bytes.extend(ranges.iter().flat_map(|(_, content)| content));
    bytes
}

/// An ELF core of 32 bits with one range.
pub fn elf32(gpa: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend([4, 0, 3, 0, 1, 0, 0, 0]);
    bytes.extend([0_u32, 52, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend(
        [52_u16, 32, 1, 0, 0, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes()),
    );
    let size = content.len() as u32;
    let words = [1, 84, 0, gpa, size, size, 0, 0];
    bytes.extend(words.iter().flat_map(|word: &u32| word.to_le_bytes()));
    bytes.extend(content);
    bytes
}

/// LiME, or with another magic and version the head of an AVML file.
pub fn lime(magic: &[u8; 4], version: u32, ranges: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (gpa, content) in ranges {
        bytes.extend(magic);
        bytes.extend(version.to_le_bytes());
        let words = [*gpa, gpa + content.len() as u64 - 1, 0];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(content);
    }
    bytes
}

/// The first block of a kdump dump with a status word.
pub fn kdump(status: u32) -> Vec<u8> {
    let mut bytes = b"KDUMP   \x06\0\0\0".to_vec();
    bytes.resize(424, 0);
    bytes.extend(status.to_le_bytes());
    bytes.resize(8192, 1);
    bytes
}

/// A small file of every format that is mapped, and of some that are not.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let head = Head {
        machine: "pc-q35-10.0",
        ..Head::default()
    };
    let live = |prefix: &[u8], head: Head<'_>| {
        let mut writer = StreamWriter::new(prefix, head, &[("pc.ram", 8), ("vga.vram", 2)]);
        writer.next_section(false);
        for page in 0..8 {
            if page % 3 == 1 {
                writer.zero(0, page);
            } else {
                writer.page(0, page, &page_of(page, 1));
            }
        }
        writer.flush();
        writer.zero(1, 0);
        writer.page(1, 1, &page_of(1, 1));
        writer.next_section(true);
        writer.page(0, 2, &page_of(2, 3));
        writer.delta(0, 3, 9, b"changed");
        writer.zero(0, 5);
        writer.finish()
    };
    let pages: Vec<Option<Vec<u8>>> = (0..9)
        .map(|page| (page % 4 != 0).then(|| page_of(page, 1)))
        .collect();
    let blocks = [("pc.ram", pages), ("pc.bios", vec![None; 2])];
    let ranges = [(0x1000, page_of(1, 1)), (0x10_0800, vec![7; 3 * PAGE])];
    vec![
        ("stream", live(&[], head)),
        ("old stream", live(&[], Head::default())),
        (
            "postcopy",
            live(
                &[],
                Head {
                    page_size: Some(2 << 20),
                    ..head
                },
            ),
        ),
        (
            "ignore-shared",
            live(
                &[],
                Head {
                    capabilities: &["x-ignore-shared"],
                    ..head
                },
            ),
        ),
        ("libvirt stream", live(&libvirt_head(0, true), head)),
        ("libvirt gzip", live(&libvirt_head(1, true), head)),
        ("libvirt unfinished", live(&libvirt_head(0, false), head)),
        ("mapped-ram", mapped_ram(&[], &blocks, Some(5)).0),
        (
            "libvirt mapped-ram",
            mapped_ram(&libvirt_head(6, true), &blocks, None).0,
        ),
        ("ELF 64", elf64(&ranges, "OSRELEASE=6.12\n")),
        ("ELF 32", elf32(0x2000, &page_of(2, 1))),
        ("LiME", lime(b"EMiL", 1, &ranges)),
        ("AVML", lime(b"AVML", 2, &ranges)),
        ("kdump", kdump(1)),
        ("raw", vec![3; 1 << 20]),
    ]
}
