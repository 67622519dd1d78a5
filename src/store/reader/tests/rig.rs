//! A window on disks, made the way a writer makes it, and the means to harm it.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::disk::{Disk, FaultPlan, FaultyDisk, MemoryDisk, ObjectName};
use crate::ids::{BlockId, DiskId, FileId, SetId, VolumeId, WindowNo};
use crate::store::block::{BlockIds, seal};
use crate::store::cache::BlockCache;
use crate::store::compression::Compression;
use crate::store::disks::Disks;
use crate::store::parity::{ParityIds, encode, shard_header};
use crate::store::reader::Reader;
use crate::store::records::{BlockRecord, Code, Encoding, ParityShard, WindowRecord};

pub const VOLUME: VolumeId = VolumeId(99);
pub const FILE: FileId = FileId(3);
pub const BLOCKS: ObjectName = ObjectName::Blocks(SetId(5));
pub const PARITY: ObjectName = ObjectName::Parity(SetId(6));

pub struct Rig {
    pub disks: Arc<Disks>,
    /// By shard; the disk of shard `i` has number `i + 10`.
    pub media: Vec<Arc<FaultyDisk>>,
    pub window: WindowRecord,
    pub raws: Vec<Option<Vec<u8>>>,
    pub reader: Reader,
}

pub fn random(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    *state >> 33
}

fn raw(state: &mut u64, most: usize) -> Vec<u8> {
    let length = 1 + random(state) as usize % most;
    let plain = random(state).is_multiple_of(3);
    (0..length)
        .map(|at| {
            let byte = random(state) as u8;
            if plain || at % 3 == 0 { byte } else { 7 }
        })
        .collect()
}

impl Rig {
    /// `blocks` blocks of up to `most` bytes: of eight about two unprotected and one given up.
    pub fn new(code: Code, blocks: usize, most: usize, seed: u64) -> Rig {
        let mut state = seed;
        let (k, m) = (usize::from(code.k), usize::from(code.m));
        let mut objects = vec![Vec::new(); k + m];
        let mut columns: Vec<Vec<Vec<u8>>> = vec![Vec::new(); k];
        let mut ends = vec![0u32; k];
        let (mut raws, mut records) = (Vec::new(), Vec::new());
        for index in 0..blocks as u16 {
            // Columns are filled unevenly, now and then not at all.
            let column = (random(&mut state) % (k as u64 + 1)) as usize % k;
            let kind = random(&mut state) % 8;
            let raw = raw(&mut state, most);
            let ids = BlockIds {
                volume: VOLUME,
                file: FILE,
                set: SetId(5),
                block: BlockId {
                    window: WindowNo(4),
                    index,
                },
            };
            let sealed = seal(
                ids,
                &Arc::new(raw.clone().into()),
                [Compression::Lz4, Compression::Zstd(1)][column % 2],
            );
            if kind == 7 {
                raws.push(None);
                records.push(BlockRecord {
                    column: column as u8,
                    encoding: Encoding::Plain,
                    protected: false,
                    lost: false,
                    hasty: false,
                    offset: 0,
                    column_offset: 0,
                    stored: 0,
                    raw: 0,
                    checksum: 0,
                });
                continue;
            }
            let protected = kind < 5;
            records.push(BlockRecord {
                column: column as u8,
                encoding: sealed.encoding,
                protected,
                lost: false,
                hasty: false,
                offset: objects[column].len() as u64,
                column_offset: if protected { ends[column] } else { 0 },
                stored: sealed.length() as u32,
                raw: raw.len() as u32,
                checksum: sealed.checksum,
            });
            objects[column].extend_from_slice(&sealed.bytes());
            if protected {
                ends[column] += sealed.length() as u32;
                columns[column].push(sealed.bytes());
            }
            raws.push(Some(raw));
        }
        let mut parity = Vec::new();
        let shards = encode(code, &columns).unwrap();
        let parity_length = shards.first().map_or(0, Vec::len) as u32;
        for (number, shard) in shards.iter().enumerate().filter(|_| parity_length > 0) {
            let ids = ParityIds {
                volume: VOLUME,
                file: FILE,
                set: SetId(6),
                window: WindowNo(4),
                code,
                shard: number as u8,
            };
            // Something of another window lies before it.
            let object = &mut objects[k + number];
            object.resize(100 * number, 0xee);
            object.extend_from_slice(&shard_header(ids, shard.len() as u32, xxh3_64(shard)));
            parity.push(ParityShard {
                offset: object.len() as u64,
                checksum: xxh3_64(shard),
            });
            object.extend_from_slice(shard);
        }
        let window = WindowRecord {
            no: WindowNo(4),
            set: SetId(5),
            code,
            disks: (10..10 + (k + m) as u16).map(DiskId).collect(),
            parity_set: SetId(6),
            parity_length,
            parity,
            blocks: records,
        };
        crate::store::window_form::validate(&window).unwrap();
        let media: Vec<Arc<FaultyDisk>> = objects
            .iter()
            .enumerate()
            .map(|(shard, bytes)| {
                let disk = MemoryDisk::new(&format!("disk{shard}"));
                disk.put(if shard < k { BLOCKS } else { PARITY }, bytes)
                    .unwrap();
                Arc::new(FaultyDisk::new(Arc::new(disk), FaultPlan::new(seed)))
            })
            .collect();
        let (disks, reader) = mounted(&media, false);
        Rig {
            disks,
            media,
            window,
            raws,
            reader,
        }
    }

    /// A mount anew: nothing in memory, all disks online.
    pub fn remount(&mut self, read_only: bool) {
        (self.disks, self.reader) = mounted(&self.media, read_only);
    }

    pub fn object(&self, shard: usize) -> ObjectName {
        if shard < usize::from(self.window.code.k) {
            BLOCKS
        } else {
            PARITY
        }
    }

    pub fn bytes(&self, shard: usize) -> Vec<u8> {
        let disk = &self.media[shard];
        let Ok(length) = disk.length(self.object(shard)) else {
            return Vec::new();
        };
        let mut bytes = vec![0; length as usize];
        disk.read_at(self.object(shard), 0, &mut bytes).unwrap();
        bytes
    }

    pub fn change(&self, shard: usize, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.bytes(shard);
        change(&mut bytes);
        self.media[shard].put(self.object(shard), &bytes).unwrap();
    }

    /// The disk is not there in this mount.
    pub fn unplug(&self, shard: usize) {
        let id = self.window.disks[shard];
        self.disks.insert(id, format!("disk{shard}"), None);
    }

    pub fn has_parity(&self) -> bool {
        !self.window.parity.is_empty()
    }

    /// Every block that is there: its place, its bytes, and whether parity stands for it.
    pub fn blocks(&self) -> impl Iterator<Item = (u16, &[u8], bool)> {
        let protected = |index: usize| self.window.blocks[index].protected && self.has_parity();
        let raws = self.raws.iter().enumerate();
        raws.filter_map(move |(i, raw)| Some((i as u16, raw.as_deref()?, protected(i))))
    }
}

fn mounted(media: &[Arc<FaultyDisk>], read_only: bool) -> (Arc<Disks>, Reader) {
    let disks = Arc::new(Disks::new(read_only));
    for (shard, disk) in media.iter().enumerate() {
        let id = DiskId(10 + shard as u16);
        disks.insert(id, format!("disk{shard}"), Some(disk.clone()));
    }
    let cache = Arc::new(BlockCache::new(0));
    let reader = Reader::new(VOLUME, disks.clone(), cache).unwrap();
    (disks, reader)
}
