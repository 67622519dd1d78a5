//! Finds the runs of zeros that are worth no storage. Knows bytes only.

use std::ops::Range;

/// The shortest run that becomes a hole: a page, the unit that guests leave empty.
pub const RUN: usize = 4096;

/// Every run of `RUN` zeros contains one of these, aligned to the start of the slice.
const PROBE: usize = RUN / 2;

/// Calls `piece` for every part of `bytes` in turn, with whether it is a run of zeros at least a page long.
/// Runs begin and end at any byte, since pages lie at any alignment in a file.
pub fn split<E>(
    bytes: &[u8],
    mut piece: impl FnMut(Range<usize>, bool) -> Result<(), E>,
) -> Result<(), E> {
    let mut data = 0;
    let mut at = 0;
    while at + PROBE <= bytes.len() {
        if !is_zero(&bytes[at..at + PROBE]) {
            at += PROBE;
            continue;
        }
        let before = bytes[data..at]
            .iter()
            .rev()
            .take_while(|&&byte| byte == 0)
            .count();
        let start = at - before;
        let mut end = at + PROBE;
        while end + PROBE <= bytes.len() && is_zero(&bytes[end..end + PROBE]) {
            end += PROBE;
        }
        end += bytes[end..].iter().take_while(|&&byte| byte == 0).count();
        if end - start >= RUN {
            if data < start {
                piece(data..start, false)?;
            }
            piece(start..end, true)?;
            data = end;
        }
        at = end.next_multiple_of(PROBE);
    }
    if data < bytes.len() {
        piece(data..bytes.len(), false)?;
    }
    Ok(())
}

/// How many zeros stand at the beginning.
pub fn leading(bytes: &[u8]) -> usize {
    let whole = bytes
        .chunks_exact(64)
        .take_while(|part| is_zero(part))
        .count()
        * 64;
    let rest = bytes[whole..].iter().take_while(|&&byte| byte == 0);
    whole + rest.count()
}

/// How many zeros stand at the end, counted up to one less than make a run.
pub fn trailing(bytes: &[u8]) -> usize {
    let zeros = bytes.iter().rev().take_while(|&&byte| byte == 0);
    zeros.take(RUN - 1).count()
}

/// Whether all of it becomes a hole.
pub fn becomes_hole(bytes: &[u8]) -> bool {
    bytes.len() >= RUN && is_zero(bytes)
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (head, words, tail) = (
        bytes.get(..16).unwrap_or(bytes),
        bytes.chunks_exact(128),
        bytes.chunks_exact(128).remainder(),
    );
    if head.iter().any(|&byte| byte != 0) {
        return false;
    }
    // Whole chunks are folded without a branch, so that the compiler can use wide registers.
    words
        .into_iter()
        .all(|chunk| chunk.iter().fold(0, |or, &byte| or | byte) == 0)
        && tail.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn takes_every_long_run_and_nothing_but_zeros(
            parts in prop::collection::vec((any::<bool>(), 1usize..9000), 1..8),
        ) {
            let mut bytes = Vec::new();
            for &(zero, length) in &parts {
                bytes.resize(bytes.len() + length, u8::from(!zero));
            }
            let mut at = 0;
            let mut holes = 0;
            split(&bytes, |range, zero| {
                assert_eq!(range.start, at);
                at = range.end;
                if zero {
                    assert!(range.len() >= RUN && is_zero(&bytes[range.clone()]));
                    holes += range.len();
                }
                Ok::<(), ()>(())
            }).expect("nothing fails");
            prop_assert_eq!(at, bytes.len());
            let mut expected = 0;
            for run in bytes.split(|&byte| byte != 0) {
                if run.len() >= RUN {
                    expected += run.len();
                }
            }
            prop_assert_eq!(holes, expected);
        }
    }
}
