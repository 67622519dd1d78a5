//! Parity is coded along the columns as they grow, over what is on them, and what is coded and on its disk is let go.

use super::*;
use crate::ids::{BlockId, VolumeId};
use crate::store::block::{BlockIds, seal};
use crate::store::compression::Compression;
use crate::store::parity::{ParityError, Shard, encode};

/// A window whose disks are those here, and what was put on its columns.
struct Rig {
    window: Arc<OpenWindow>,
    columns: Vec<Vec<u8>>,
    shards: Option<Result<Vec<Shard>, ParityError>>,
    stretches: usize,
    noise: u64,
}

impl Rig {
    fn new(k: u8, m: u8) -> Rig {
        let shards = u16::from(k) + u16::from(m);
        let disks = (0..shards).map(DiskId).collect();
        let window = OpenWindow::new(
            WindowNo(1),
            FileId(2),
            SetId(3),
            Lane::Critical,
            (Code { k, m }, disks),
            false,
            &Arc::default(),
        );
        Rig {
            window,
            columns: vec![Vec::new(); usize::from(k)],
            shards: None,
            stretches: 0,
            noise: 1,
        }
    }

    /// A block of so many bytes is put on a column. Its place and its column.
    fn put(&mut self, length: usize) -> (u16, usize) {
        let index = self.window.begin(COLUMN_BLOCKS).expect("a place");
        let raw: Vec<u8> = (0..length)
            .map(|_| {
                self.noise = self
                    .noise
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(99);
                (self.noise >> 56) as u8
            })
            .collect();
        let raw = Arc::new(Buffer::from(raw));
        let ids = BlockIds {
            volume: VolumeId(4),
            file: self.window.file,
            set: self.window.set,
            block: BlockId {
                window: self.window.no,
                index,
            },
        };
        let sealed = seal(ids, &raw, Compression::None);
        let block = SealedBlock::new(sealed, length as u32, None);
        let mut column = 0;
        let columns = &mut self.columns;
        self.window.place(index, block, |disk, block| {
            column = usize::from(disk.0);
            columns[column].extend_from_slice(&block.sealed.header);
            columns[column].extend_from_slice(&block.sealed.payload);
        });
        (index, column)
    }

    /// Does what the window needs.
    fn advance(&mut self) {
        while let Next::Encode(stretch) = self.window.next() {
            self.stretches += 1;
            assert!(
                matches!(self.window.next(), Next::Wait),
                "two code at a time"
            );
            let (upto, last) = (stretch.range.end, stretch.last);
            let maker = stretch.code();
            if last {
                self.window.all_coded();
                self.shards = Some(maker.finish());
            } else {
                self.window.coded(maker, upto);
            }
        }
    }

    /// Closes the window, and compares its parity with that of the whole columns.
    fn finish(mut self) -> Arc<WindowRecord> {
        self.window.close();
        self.advance();
        let whole = encode(
            self.window.code,
            &self.columns.iter().map(|c| [c]).collect::<Vec<_>>(),
        );
        let shards = self.shards.expect("coded").expect("no failure");
        for (number, (made, whole)) in shards.iter().zip(whole.expect("coded")).enumerate() {
            let bytes = made.pieces.iter().flat_map(|piece| piece.to_vec());
            assert!(bytes.eq(whole.iter().copied()), "shard {number} differs");
            let placed = ParityShard {
                offset: 0,
                checksum: made.checksum,
            };
            self.window.parity_placed(number, made.length, Ok(placed));
        }
        assert!(matches!(self.window.next(), Next::Complete));
        self.window.wait().0
    }

    fn is_kept(&self, index: u16) -> bool {
        match self.window.held(index).expect("sealed") {
            Held::Sealed(..) => true,
            Held::OnDisk { record, .. } => {
                assert!(record.block(index).expect("known").protected);
                false
            }
            Held::Raw(_) => panic!("it was sealed"),
        }
    }
}

#[test]
fn parity_follows_the_columns_and_what_is_coded_is_let_go() {
    let mut rig = Rig::new(3, 2);
    let (slow, _) = rig.put(100_000);
    let mut blocks = Vec::new();
    for turn in 0..40 {
        let (index, column) = rig.put(20_000 + turn * 2311 % 110_000);
        rig.window
            .placed(index, Ok(rig.columns[column].len() as u64));
        rig.advance();
        blocks.push(index);
    }
    assert!(rig.stretches >= 2, "{} stretches", rig.stretches);
    let kept = blocks.iter().filter(|&&index| rig.is_kept(index)).count();
    assert!(kept < 20, "{kept} of 40 blocks are kept");
    assert!(rig.is_kept(slow), "its disk has not got it yet");
    assert!(!rig.is_kept(blocks[0]));
    rig.window.placed(slow, Ok(0));
    assert!(!rig.is_kept(slow), "it is coded and on its disk");
    let record = rig.finish();
    assert_eq!(record.blocks.len(), 41);
    assert!(record.blocks.iter().all(|block| block.protected));
}

#[test]
fn a_column_whose_disk_fails_counts_as_ended_and_its_blocks_stay() {
    let mut rig = Rig::new(2, 1);
    let mut lost = Vec::new();
    for _ in 0..30 {
        let (index, column) = rig.put(90_000);
        match column {
            1 if rig.columns[1].len() > 300_000 => {
                rig.window.placed(index, Err(()));
                lost.push(index);
            }
            _ => rig.window.placed(index, Ok(0)),
        }
        rig.advance();
    }
    assert_eq!(lost.len(), 1, "more was put on a column that had failed");
    assert!(rig.stretches >= 5, "parity no longer grew");
    assert!(rig.is_kept(lost[0]), "no disk holds it");
    // When no disk takes anything, nothing may be put where parity counts zeros.
    let short = rig.columns[1].len();
    for _ in 0..3 {
        let (index, column) = rig.put(90_000);
        rig.window.placed(index, Err(()));
        assert_eq!(column, 0);
        rig.advance();
    }
    assert_eq!(rig.columns[1].len(), short);
    rig.finish();
}

#[test]
fn windows_without_blocks_and_without_parity_end() {
    let rig = Rig::new(2, 1);
    let index = rig.window.begin(COLUMN_BLOCKS).expect("a place");
    rig.window.close();
    assert!(matches!(rig.window.next(), Next::Wait));
    rig.window.give_up(index);
    assert!(matches!(rig.window.next(), Next::Complete));
    let mut rig = Rig::new(2, 0);
    let (index, _) = rig.put(100_000);
    rig.window.close();
    assert!(matches!(rig.window.next(), Next::Wait));
    rig.window.placed(index, Ok(0));
    assert!(matches!(rig.window.next(), Next::Complete));
    let Some(Held::OnDisk { record, complete }) = rig.window.held(index) else {
        panic!("it is on its disk");
    };
    assert!(complete && record.parity.is_empty() && !record.blocks[0].protected);
}

/// Parity is coded from memory, and may be on its disk before the blocks are on theirs.
#[test]
fn a_window_is_not_complete_before_its_blocks_are_on_their_disks_although_its_parity_is() {
    let mut rig = Rig::new(2, 1);
    let (first, _) = rig.put(100_000);
    let (second, _) = rig.put(100_000);
    rig.window.placed(first, Ok(0));
    rig.window.close();
    rig.advance();
    let parity = ParityShard {
        offset: 64,
        checksum: 1,
    };
    rig.window.parity_placed(0, 100_096, Ok(parity));
    assert!(matches!(rig.window.next(), Next::Wait));
    let is_complete = || match rig.window.held(first) {
        Some(Held::OnDisk { complete, .. }) => complete,
        held => panic!("{held:?}"),
    };
    assert!(!is_complete());
    rig.window.placed(second, Ok(0));
    assert!(matches!(rig.window.next(), Next::Complete));
    assert!(is_complete());
}
