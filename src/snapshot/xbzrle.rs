//! XBZRLE, QEMU's delta of a page: runs of bytes that stay alternate with runs that are replaced. From
//! QEMU's `docs/devel/migration` and `migration/xbzrle.c`. Knows one page.
//!
//! ```text
//! (ULEB128 bytes that stay, ULEB128 bytes that follow, those bytes)*
//! ```

/// Applies a delta; false, with the page partly changed, if it leaves the page or ends early.
pub(super) fn apply(page: &mut [u8], mut delta: &[u8]) -> bool {
    let mut at = 0_usize;
    while !delta.is_empty() {
        let Some(stays) = uleb128(&mut delta) else {
            return false;
        };
        // QEMU leaves out the last run if the page's end stays as it is.
        if delta.is_empty() {
            return at.checked_add(stays).is_some_and(|end| end <= page.len());
        }
        let Some(follow) = uleb128(&mut delta) else {
            return false;
        };
        let Some((bytes, rest)) = delta.split_at_checked(follow) else {
            return false;
        };
        let from = at.saturating_add(stays);
        let end = from.saturating_add(follow);
        let Some(target) = page.get_mut(from..end) else {
            return false;
        };
        target.copy_from_slice(bytes);
        delta = rest;
        at = end;
    }
    true
}

/// QEMU writes one or two bytes and reads no more.
fn uleb128(bytes: &mut &[u8]) -> Option<usize> {
    let (first, rest) = bytes.split_first()?;
    if first & 0x80 == 0 {
        *bytes = rest;
        return Some(usize::from(*first));
    }
    let (second, rest) = rest.split_first()?;
    *bytes = rest;
    (second & 0x80 == 0).then(|| usize::from(first & 0x7f) | usize::from(*second) << 7)
}

#[cfg(test)]
mod tests {
    use super::apply;

    #[test]
    fn replaces_what_it_says_and_nothing_else() {
        let mut page = vec![1; 4096];
        // 300 stay, 2 follow, 3 stay, 1 follows.
        assert!(apply(&mut page, &[0xac, 0x02, 2, 7, 8, 3, 1, 9]));
        let mut wanted = vec![1; 4096];
        wanted[300..302].copy_from_slice(&[7, 8]);
        wanted[305] = 9;
        assert_eq!(page, wanted);
    }

    #[test]
    fn a_delta_that_leaves_the_page_is_refused() {
        for delta in [
            &[0xff, 0x3f, 1, 1][..],
            &[0, 2, 1],
            &[0x80],
            &[0x80, 0x80, 1],
            &[0xff, 0x1f, 2, 1, 1],
        ] {
            assert!(!apply(&mut [0; 4096], delta), "{delta:?}");
        }
    }
}
