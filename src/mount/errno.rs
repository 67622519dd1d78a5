//! The one place where a failed call on a volume becomes the number that a program sees, and where it is logged
//! if an administrator should know.

use fuser::{Errno, INodeNo};
use tracing::{debug, warn};

use crate::volume::VolumeError;

/// The number to answer with. Trouble with disks is logged; what programs bring about by asking for what is not
/// there is not.
pub(super) fn errno(operation: &'static str, file: INodeNo, error: &VolumeError) -> Errno {
    let number = error.errno();
    match number {
        libc::EIO | libc::ENOSPC | libc::EUCLEAN | libc::ENOMEM if !error.was_told() => {
            warn!("{operation} of file {}: {error}", file.0);
        }
        _ => debug!("{operation} of file {}: {error}", file.0),
    }
    number_of(number)
}

/// A number the kernel takes: it drops an answer with any other, and the program would wait for ever.
fn number_of(number: i32) -> Errno {
    if (1..512).contains(&number) {
        Errno::from_i32(number)
    } else {
        Errno::EIO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_pass_and_nonsense_is_eio() {
        let of = |number| errno("test", INodeNo(2), &VolumeError::new(number, "x")).code();
        for number in [
            libc::ENOENT,
            libc::ENOSPC,
            libc::EIO,
            libc::ENOTEMPTY,
            libc::ENXIO,
        ] {
            assert_eq!(of(number), number);
        }
        for number in [0, -1, -libc::ENOENT, 512, 4096, i32::MIN, i32::MAX] {
            assert_eq!(of(number), libc::EIO, "{number}");
        }
    }
}
