//! Set-user-id and set-group-id bits, which a write by anyone but root takes away. With `default_permissions` and
//! without HANDLE_KILLPRIV the kernel does so itself, by a chmod before chown, truncate, fallocate and buffered writes,
//! and together with the cut of an open with O_TRUNC. One way is left to the file system: a direct write, which only
//! carries a flag.

use fuser::INodeNo;

use super::kernel::Kernel;
use crate::ids::FileId;
use crate::volume::{Changes, FileKind, Result, Volume};

/// The mode after such a write; `None` if it stays.
fn without_privileges(mode: u16) -> Option<u16> {
    let mut left = mode & !0o4000;
    // Without the group's execute bit, set-group-id means mandatory locking and is no privilege.
    if mode & 0o010 != 0 {
        left &= !0o2000;
    }
    (left != mode).then_some(left)
}

/// Takes the bits away from a regular file, and from what the kernel remembers of it: it runs programs by that.
pub(super) fn drop_privileges(volume: &Volume, kernel: &Kernel, file: INodeNo) -> Result<()> {
    let attributes = volume.attributes(FileId(file.0))?;
    if attributes.kind != FileKind::Regular {
        return Ok(());
    }
    if let Some(mode) = without_privileges(attributes.mode) {
        let changes = Changes {
            mode: Some(mode),
            ..Changes::default()
        };
        volume.set_attributes(FileId(file.0), None, &changes)?;
        kernel.forget_attributes(file);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_go_and_the_rest_stays() {
        assert_eq!(without_privileges(0o755), None);
        assert_eq!(without_privileges(0o4755), Some(0o755));
        assert_eq!(without_privileges(0o2755), Some(0o755));
        assert_eq!(without_privileges(0o2745), None);
        assert_eq!(without_privileges(0o6745), Some(0o2745));
        assert_eq!(without_privileges(0o7777), Some(0o1777));
    }
}
