//! Finds bytes that are all zero, at memory speed. Knows nothing of pages or formats.

/// What is looked at before it is decided to go on: most pages that are not zero show it at once.
const STRIDE: usize = 256;

/// Whether all bytes are zero. A slice of no bytes is.
///
/// The bytes are or-ed together in groups without a branch in them, which the compiler makes vector
/// instructions of; the test comes once a group, so that a page that is not zero is left early.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut groups = bytes.chunks_exact(STRIDE);
    for group in groups.by_ref() {
        let mut sum = 0;
        for word in group.as_chunks::<8>().0 {
            sum |= u64::from_ne_bytes(*word);
        }
        if sum != 0 {
            return false;
        }
    }
    groups.remainder().iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn finds_the_one_byte_wherever_it_is() {
        for length in [0, 1, 7, 8, 255, 256, 257, 4096, 4099] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes), "{length} zeros");
            for at in 0..length {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "byte {at} of {length}");
                bytes[at] = 0;
            }
        }
    }
}
