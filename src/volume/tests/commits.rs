//! Commits that are disturbed: by spills before them, by changes while they run, and by errors in their middle.

use std::fmt;
use std::ops::Range;

use parking_lot::Mutex;

use super::super::commit::Purpose;
use super::super::filemap::Window;
use super::super::fold::FrozenMap;
use super::super::overlay::Overlay;
use super::super::repack::Pace;
use super::tiers::MadeUp;
use super::*;
use crate::ids::{BlockId, WindowNo};
use crate::meta::Records;
use crate::store::manifest::{decode_delta, encode_delta};
use crate::store::{Delta, Extent, Lane, Source, Tier};

/// Small windows, of bytes that are stored as they are.
const POLICY: &str = "critical = \"2+1\"\nblock_size = \"4K\"\ncompression = \"none\"";

const PAGE: u64 = 4096;

/// An extent that leads to a window which there is none of.
const ASTRAY: Source = Source::Block {
    block: BlockId {
        window: WindowNo(9999),
        index: 0,
    },
    offset: 0,
};

type OnWriting = dyn FnMut() -> Lane + Send;
type OnCommit = dyn FnOnce() + Send;

/// Tiers that say nothing, and do something where they are asked.
#[derive(Default)]
struct Hooked {
    writing: Mutex<Option<Box<OnWriting>>>,
    commit: Mutex<Option<Box<OnCommit>>>,
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

impl TierSource for Hooked {
    fn while_writing(&self, _: FileId, _: &Range<u64>, _: &[u8]) -> Lane {
        let mut writing = self.writing.lock();
        writing.as_mut().map_or(Lane::Undecided, |go| go())
    }

    fn at_commit(&self, _: &Finished<'_>) -> Judged {
        if let Some(go) = self.commit.lock().take() {
            go();
        }
        Judged {
            tiers: None,
            kept: Kept::Same,
        }
    }
}

fn spill(volume: &Volume, file: FileId) {
    let file = volume.use_file(file).expect("in use");
    volume.commit(&file, Purpose::Spill).expect("spilled");
    volume.sweeper.wait();
}

fn open_to_write(volume: &Volume, file: FileId) -> Handle {
    volume.open_file(file, libc::O_RDWR).expect("open").handle
}

fn check_nothing_is_wrong(rig: &Rig) {
    let (report, _) = Volume::fsck(&rig.config, false).expect("checked");
    assert_eq!(report.problem_count, 0, "{:?}", report.problems);
}

#[test]
fn a_spill_takes_nothing_from_the_committed_file() {
    let rig = Rig::new(3, POLICY);
    let volume = rig.open();
    let old = noise(1, 4 << 20);
    let file = write_file(&volume, "f", &old);
    let handle = open_to_write(&volume, file);
    volume
        .write(handle, 0, &noise(2, 2 << 20))
        .expect("written");
    spill(&volume, file);
    // The process dies: nothing is closed.
    drop(volume);
    let volume = rig.open();
    assert!(read_file(&volume, "f").expect("readable") == old);
}

#[test]
fn what_spills_found_empty_is_given_back_by_the_next_commit() {
    const MIB: u64 = 1 << 20;
    let rig = Rig::new(3, POLICY);
    let volume = rig.open();
    let mut bytes = noise(1, 4 << 20);
    let file = write_file(&volume, "f", &bytes);
    volume.sweeper.wait();
    let before = rig.occupied();
    let handle = open_to_write(&volume, file);
    for part in 0..3u64 {
        let new = noise(part + 2, MIB as usize);
        volume.write(handle, part * MIB, &new).expect("written");
        let at = (part * MIB) as usize;
        bytes[at..at + MIB as usize].copy_from_slice(&new);
        spill(&volume, file);
    }
    volume.fsync(handle).expect("synced");
    volume.sweeper.wait();
    let after = rig.occupied();
    assert!(
        after < before + MIB,
        "{before} bytes were occupied, and {after} are"
    );
    close(&volume, handle);
    volume.close().expect("closed");
    drop(volume);
    let volume = rig.open();
    assert!(read_file(&volume, "f").expect("readable") == bytes);
    volume.close().expect("closed");
    drop(volume);
    check_nothing_is_wrong(&rig);
}

#[test]
fn a_truncate_while_a_spilled_file_is_committed_belongs_to_the_next_commit() {
    let rig = Rig::new(3, POLICY);
    let tiers = Arc::new(Hooked::default());
    let volume = rig.open_with(tiers.clone());
    let bytes = noise(1, 3 << 20);
    let (file, handle) = create(&volume, "f");
    write_all(&volume, handle, &bytes);
    spill(&volume, file);
    let weak = Arc::downgrade(&volume);
    *tiers.commit.lock() = Some(Box::new(move || {
        let volume = weak.upgrade().expect("it is open");
        let changes = Changes {
            size: Some(0),
            ..Changes::default()
        };
        volume
            .set_attributes(file, Some(handle), &changes)
            .expect("cut");
    }));
    volume.fsync(handle).expect("synced");
    assert!(tiers.commit.lock().is_none());
    drop(volume);
    let volume = rig.open();
    assert!(read_file(&volume, "f").expect("readable") == bytes);
    volume.close().expect("closed");
    drop(volume);
    check_nothing_is_wrong(&rig);
}

#[test]
fn what_was_moved_before_an_error_is_kept_by_the_next_commit() {
    const SIZE: u64 = 14 << 20;
    const PIECE: u64 = 256;
    let rig = Rig::new(3, "critical = \"2+1\"\ncompression = \"none\"");
    let volume = rig.open();
    let mut bytes = noise(1, SIZE as usize);
    let file = write_file(&volume, "f", &bytes);
    let handle = open_to_write(&volume, file);
    {
        let open = volume.use_file(file).expect("in use");
        {
            let mut state = open.state.lock();
            let mut astray = Overlay::default();
            astray.insert(SIZE..SIZE + PAGE, ASTRAY);
            state.map.frozen = Some(astray);
            state.size = SIZE + PAGE;
        }
        let all = |source: &Source| matches!(source, Source::Block { .. });
        // So many that some are entered before the last of them.
        let lanes = |extent: &Extent, piece: &mut dyn FnMut(Range<u64>, Lane)| {
            let range = extent.range.clone();
            for at in range.clone().step_by(PIECE as usize) {
                piece(at..(at + PIECE).min(range.end), Lane::Critical);
            }
        };
        volume
            .repack_with(&open, &all, &lanes, Pace::Now)
            .expect_err("the last cannot be read");
        let mut state = open.state.lock();
        state.map.thaw();
        assert!(state.map.top.data() > PAGE, "nothing was moved");
    }
    let page = noise(2, PAGE as usize);
    volume.write(handle, SIZE, &page).expect("written");
    bytes.extend(page);
    volume.fsync(handle).expect("synced");
    volume.sweeper.wait();
    drop(volume);
    let volume = rig.open();
    volume.commit_all().expect("tidy is done");
    assert!(read_file(&volume, "f").expect("readable") == bytes);
    volume.close().expect("closed");
    drop(volume);
    check_nothing_is_wrong(&rig);
}

#[test]
fn new_parity_is_synced_although_a_window_after_it_could_not_be_read() {
    const SIZE: u64 = 4 << 20;
    let rig = Rig::new(3, POLICY);
    let tiers = Arc::new(MadeUp::default());
    let volume = rig.open_with(tiers.clone());
    let file = write_file(&volume, "f", &noise(1, SIZE as usize));
    volume.close().expect("closed");
    drop(volume);
    // The last windows lie at the end of every segment, two disks of which are wrong there.
    for number in 0..2 {
        for place in rig.objects(number, "segments") {
            let mut bytes = std::fs::read(&place).expect("read");
            let from = bytes.len() / 2;
            bytes[from..].iter_mut().for_each(|byte| *byte ^= 4);
            std::fs::write(place, bytes).expect("written");
        }
    }
    *tiers.runs.lock() = super::tiers::runs(SIZE, 2, 1);
    let volume = rig.open_with(tiers);
    let handle = open_to_write(&volume, file);
    volume
        .write(handle, 0, &noise(2, PAGE as usize))
        .expect("written");
    volume.flush(handle).expect_err("half of it is lost");
    let open = volume.use_file(file).expect("in use");
    let state = open.state.lock();
    let mut new = 0;
    for window in state.map.windows.values() {
        if let Window::Made(record) = window
            && !record.parity.is_empty()
            && !state.sets.contains(&record.parity_set)
        {
            new += 1;
            let mut pending = state.pending.iter();
            assert!(
                pending.any(|writer| writer.set() == record.parity_set),
                "nobody syncs the parity of window {}",
                record.no
            );
        }
    }
    assert!(new > 0, "no window got new parity");
}

#[test]
fn what_a_commit_that_failed_had_found_free_is_given_back_by_the_next() {
    const SIZE: u64 = 4 << 20;
    let mut occupied = Vec::new();
    for fails in [false, true] {
        let rig = Rig::new(3, POLICY);
        let tiers = Arc::new(MadeUp::default());
        let volume = rig.open_with(tiers.clone());
        let mut bytes = noise(1, SIZE as usize);
        let file = write_file(&volume, "f", &bytes);
        volume.close().expect("closed");
        drop(volume);
        let mut damaged = Vec::new();
        for place in (0..2).flat_map(|number| rig.objects(number, "segments")) {
            if fails {
                let good = std::fs::read(&place).expect("read");
                let mut bad = good.clone();
                bad[good.len() / 2..].iter_mut().for_each(|byte| *byte ^= 4);
                std::fs::write(&place, bad).expect("written");
                damaged.push((place, good));
            }
        }
        *tiers.runs.lock() = super::tiers::runs(SIZE, 2, 1);
        let volume = rig.open_with(tiers);
        let handle = open_to_write(&volume, file);
        let page = noise(2, PAGE as usize);
        volume.write(handle, 0, &page).expect("written");
        bytes[..PAGE as usize].copy_from_slice(&page);
        let synced = volume.flush(handle);
        assert_eq!(synced.is_err(), fails, "{synced:?}");
        for (place, good) in damaged {
            std::fs::write(place, good).expect("written");
        }
        close(&volume, handle);
        volume.sweeper.wait();
        occupied.push(rig.occupied());
        assert!(read_file(&volume, "f").expect("readable") == bytes);
        volume.close().expect("closed");
        drop(volume);
        check_nothing_is_wrong(&rig);
    }
    let (without, with) = (occupied[0], occupied[1]);
    assert!(
        with < without + (SIZE >> 4),
        "{without} bytes are occupied where no commit failed, and {with} where one did"
    );
}

#[test]
fn old_parity_is_given_back_by_a_commit_that_writes_no_manifest() {
    const SIZE: u64 = 256 << 10;
    let rig = Rig::new(3, POLICY);
    let tiers = Arc::new(MadeUp::default());
    let volume = rig.open_with(tiers.clone());
    let bytes = noise(1, SIZE as usize);
    let file = write_file(&volume, "f", &bytes);
    volume.sweeper.wait();
    let before = rig.occupied();
    // Of both columns every other block.
    *tiers.runs.lock() = super::tiers::runs(SIZE, 4, 2);
    let handle = open_to_write(&volume, file);
    volume
        .write(handle, 0, &bytes[..PAGE as usize])
        .expect("written");
    close(&volume, handle);
    volume.sweeper.wait();
    {
        let open = volume.use_file(file).expect("in use");
        assert_eq!(open.state.lock().head.base, None);
    }
    let after = rig.occupied();
    assert!(
        after < before,
        "{before} bytes were occupied, and {after} are with half as much protected"
    );
    assert!(read_file(&volume, "f").expect("readable") == bytes);
}

#[test]
fn no_commit_makes_an_extent_true_that_leads_to_no_window() {
    for spilled in [false, true] {
        let rig = Rig::new(3, POLICY);
        let volume = rig.open();
        let mut bytes = noise(1, 1 << 20);
        let file = write_file(&volume, "f", &bytes);
        let handle = open_to_write(&volume, file);
        volume
            .write(handle, 0, &bytes[..300 << 10])
            .expect("written");
        {
            let open = volume.use_file(file).expect("in use");
            let mut state = open.state.lock();
            state.map.top.insert(0..PAGE, ASTRAY);
        }
        if spilled {
            spill(&volume, file);
        }
        let error = volume.fsync(handle).expect_err("refused");
        assert_eq!(error.errno(), libc::EIO, "{error}");
        let page = noise(2, PAGE as usize);
        volume.write(handle, 0, &page).expect("written");
        bytes[..PAGE as usize].copy_from_slice(&page);
        volume.fsync(handle).expect("synced");
        drop(volume);
        let volume = rig.open();
        assert!(read_file(&volume, "f").expect("readable") == bytes);
        volume.close().expect("closed");
        drop(volume);
        check_nothing_is_wrong(&rig);
    }
}

#[test]
fn a_file_that_is_written_again_after_it_was_given_up_has_nothing_of_what_it_was() {
    const SIZE: usize = 1 << 20;
    let rig = Rig::new(3, POLICY);
    let volume = rig.open();
    let (file, handle) = create(&volume, "f");
    let given_up = noise(1, SIZE);
    write_all(&volume, handle, &given_up);
    {
        let open = volume.use_file(file).expect("in use");
        open.state.lock().map.top.insert(0..PAGE, ASTRAY);
    }
    volume.flush(handle).expect_err("refused");
    // The blocks are decompressed into memory.
    let rest = volume.read(handle, PAGE, SIZE - PAGE as usize);
    assert!(rest.expect("readable") == given_up[PAGE as usize..]);
    volume.release(handle);
    assert!(volume.hold(file).is_none(), "somebody has it in use");

    let flags = libc::O_RDWR | libc::O_TRUNC;
    let handle = volume.open_file(file, flags).expect("open").handle;
    let bytes = noise(2, SIZE);
    write_all(&volume, handle, &bytes);
    close(&volume, handle);
    assert!(read_file(&volume, "f").expect("readable") == bytes);
}

#[test]
fn the_kernel_keeps_nothing_of_a_file_that_is_given_up() {
    const SIZE: usize = 1 << 20;
    let rig = Rig::new(3, POLICY);
    let volume = rig.open();
    let bytes = noise(1, SIZE);
    let file = write_file(&volume, "f", &bytes);
    // As long as it is open so, who writes goes through the kernel's cache too.
    let reader = volume.open_file(file, libc::O_RDONLY).expect("open");
    assert!(reader.keep_cache);
    let writer = volume.open_file(file, libc::O_RDWR).expect("open");
    assert!(!writer.direct_io);
    volume
        .write(writer.handle, 0, &noise(2, SIZE))
        .expect("written");
    {
        let open = volume.use_file(file).expect("in use");
        open.state.lock().map.top.insert(0..PAGE, ASTRAY);
    }
    volume.flush(writer.handle).expect_err("refused");
    volume.release(writer.handle);
    volume.release(reader.handle);
    let opened = volume.open_file(file, libc::O_RDONLY).expect("open");
    assert!(!opened.keep_cache, "the kernel may hold what was given up");
    volume.release(opened.handle);
    assert!(read_file(&volume, "f").expect("readable") == bytes);
}

#[test]
fn nothing_of_a_write_that_was_refused_lies_behind_the_end() {
    const PART: usize = 64 << 10;
    let rig = Rig::new(3, POLICY);
    let tiers = Arc::new(Hooked::default());
    let volume = rig.open_with(tiers.clone());
    let (file, handle) = create(&volume, "f");
    let first = noise(1, PART);
    volume.write(handle, 0, &first).expect("written");
    let disks = Arc::clone(&volume.disks);
    let mut asked = 0;
    *tiers.writing.lock() = Some(Box::new(move || {
        asked += 1;
        if asked == 1 {
            return Lane::Undecided;
        }
        for id in disks.usable_for_writing() {
            disks.mark_faulty(id, "for this test");
        }
        Lane::Critical
    }));
    // The second half of it needs another window, for which there are no disks.
    let refused = [noise(2, PART), vec![0; PART], noise(3, PART)].concat();
    let half = PART / 2;
    volume
        .write(handle, half as u64, &refused)
        .expect_err("refused");
    let changes = Changes {
        size: Some(4 * PART as u64),
        ..Changes::default()
    };
    assert_eq!(volume.attributes(file).expect("told").size, PART as u64);
    volume
        .set_attributes(file, Some(handle), &changes)
        .expect("grown");
    let found = volume.read(handle, 0, 4 * PART).expect("readable");
    assert!(found[..half] == first[..half]);
    // Bytes in its middle may be either, as after any write that fails.
    assert!(found[PART..].iter().all(|&byte| byte == 0));
}

#[test]
fn what_is_stored_once_on_a_disk_that_dies_in_a_commit_is_there_when_it_comes_back() {
    const SIZE: usize = 12 << 20;
    let bytes = noise(1, SIZE);
    let mut lost = 0;
    for dies in 0..3 {
        let rig = Rig::new(3, "critical = \"2+1\"\ncompression = \"none\"");
        let plans = rig.plans();
        let tiers = Arc::new(MadeUp::default());
        let options = VolumeOptions {
            tiers: tiers.clone(),
            ..VolumeOptions::default()
        };
        let volume = rig.open_failing_with(&plans, options);
        let (_, handle) = create(&volume, "f");
        *tiers.guess.lock() = Some(Lane::Critical);
        volume.write(handle, 0, &bytes[..1 << 20]).expect("written");
        *tiers.guess.lock() = Some(Lane::Expendable);
        *tiers.runs.lock() = vec![(1 << 20..SIZE as u64, Tier::Expendable)];
        for at in (1 << 20..SIZE).step_by(1 << 20) {
            volume
                .write(handle, at as u64, &bytes[at..at + (1 << 20)])
                .expect("written");
        }
        wait_until_held(&volume, SIZE as u64 / 2);
        plans[dies].die();
        volume.fsync(handle).expect("synced");
        let pages = (0..SIZE).step_by(PAGE as usize);
        lost += pages
            .filter(|&at| volume.read(handle, at as u64, PAGE as usize).is_err())
            .count();
        drop(volume);
        let volume = rig.open();
        // Whether it was told as faulty before the volume was gone, does not matter.
        let disk = rig.config.disks[dies].name.clone();
        volume.bring_disk_online(&disk).expect("taken back");
        assert!(
            read_file(&volume, "f").expect("readable") == bytes,
            "{dies}"
        );
        volume.close().expect("closed");
        drop(volume);
        // The disk's own metadata may be behind still.
        let (report, _) = Volume::fsck(&rig.config, false).expect("checked");
        assert_eq!(report.beyond_repair, 0, "{:?}", report.problems);
    }
    assert!(lost > 0, "nothing was stored once on a disk that died");
}

/// The length of a piece.
const PIECE: usize = 30_000;

/// A file of two inline pieces, of which the second dies without having been read since the volume was opened.
fn with_a_dead_piece(rig: &Rig) -> (Arc<Volume>, FileId, Handle) {
    let volume = rig.open();
    let (file, handle) = create(&volume, "f");
    for number in 0..2 {
        let piece = noise(number as u64, PIECE);
        let at = (number * PIECE) as u64;
        volume.write(handle, at, &piece).expect("written");
        volume.fsync(handle).expect("synced");
    }
    close(&volume, handle);
    volume.close().expect("closed");
    drop(volume);
    let volume = rig.open();
    let handle = open_to_write(&volume, file);
    let (at, length) = (PIECE as u64, PIECE as u64);
    volume
        .allocate(handle, at, length, Allocate::Punch)
        .expect("punched");
    (volume, file, handle)
}

/// The lengths of the pieces that the metadata has.
fn kept_pieces(volume: &Volume, file: FileId) -> Vec<usize> {
    let kept = volume.meta.view().inlines(file).expect("read");
    kept.iter().map(|(_, bytes)| bytes.len()).collect()
}

#[test]
fn pieces_that_go_into_blocks_are_taken_off_the_sum_once() {
    for spilled in [false, true] {
        let rig = Rig::new(3, "critical = \"2+1\"");
        let (volume, file, handle) = with_a_dead_piece(&rig);
        if spilled {
            spill(&volume, file);
        }
        volume
            .write(handle, 2 * PIECE as u64, &noise(3, 4 * PIECE))
            .expect("written");
        volume.fsync(handle).expect("synced");
        close(&volume, handle);
        assert!(kept_pieces(&volume, file).is_empty());
        volume.close().expect("closed");
        drop(volume);
        check_nothing_is_wrong(&rig);
    }
}

#[test]
fn a_piece_that_nobody_has_read_does_not_outlive_its_last_use() {
    let rig = Rig::new(3, "critical = \"2+1\"");
    let (volume, file, handle) = with_a_dead_piece(&rig);
    close(&volume, handle);
    let open = volume.use_file(file).expect("in use");
    volume.commit(&open, Purpose::Compact).expect("folded");
    drop(open);
    assert_eq!(kept_pieces(&volume, file), [PIECE]);
    let found = read_file(&volume, "f").expect("readable");
    assert!(found[..PIECE] == noise(0, PIECE));
    assert!(found[PIECE..].iter().all(|&byte| byte == 0));
    volume.close().expect("closed");
    drop(volume);
    check_nothing_is_wrong(&rig);
}

/// A guest that uses little of its memory has gigabytes in a row that nobody needs.
#[test]
fn more_bytes_in_a_row_may_be_given_up_than_an_entry_of_a_manifest_holds() {
    const LENGTH: u64 = 5 << 30;
    for by_delta in [false, true] {
        let rig = Rig::new(3, POLICY);
        let volume = rig.open();
        let file = write_file(&volume, "f", b"something");
        let open = volume.use_file(file).expect("in use");
        let dropped = Extent {
            range: 0..LENGTH,
            source: Source::Dropped,
        };
        {
            let mut state = open.state.lock();
            state.size = LENGTH;
            if by_delta {
                let delta = Delta {
                    extents: vec![dropped],
                    ..Delta::default()
                };
                let delta = decode_delta(&encode_delta(&delta).expect("encoded")).expect("decoded");
                for extent in delta.extents {
                    state.map.settled.insert(extent.range, extent.source);
                }
            } else {
                state.map.top.insert(dropped.range, dropped.source);
            }
        }
        spill(&volume, file);
        let base = open.state.lock().map.base.clone().expect("a base");
        let mut at = 0;
        let whole = |extent: Extent| {
            assert_eq!(extent.source, Source::Dropped);
            assert_eq!(extent.range.start, at);
            at = extent.range.end;
            Ok(())
        };
        FrozenMap::of_base(base).each(whole).expect("walked");
        assert_eq!(at, LENGTH);
    }
}
