//! Set-user-id and set-group-id bits, which a write by anyone but root takes away, and the capabilities of a program, which
//! any write takes away: as ext4 does it, where CAP_FSETID keeps the bits and nothing keeps the capabilities.
//! With `default_permissions` and without HANDLE_KILLPRIV the kernel does so itself, by requests of its own before chown,
//! truncate, fallocate and buffered writes, and together with the cut of an open with O_TRUNC. One way is left to the
//! file system: a direct write, which only carries a flag, and that only where the bits are to go.

use fuser::INodeNo;

use super::kernel::Kernel;
use crate::ids::FileId;
use crate::volume::{Changes, FileKind, Handle, Result, Volume};

/// The mode after such a write; `None` if it stays.
fn without_privileges(mode: u16) -> Option<u16> {
    let mut left = mode & !0o4000;
    // Without the group's execute bit, set-group-id means mandatory locking and is no privilege.
    if mode & 0o010 != 0 {
        left &= !0o2000;
    }
    (left != mode).then_some(left)
}

/// What a direct write takes away: the capabilities, and the bits if the kernel says so.
pub(super) fn drop_by_write(
    volume: &Volume,
    kernel: &Kernel,
    (file, handle): (INodeNo, Handle),
    bits: bool,
) -> Result<()> {
    if bits {
        return drop_privileges(volume, kernel, file);
    }
    let capabilities = volume.drop_capabilities_by(handle);
    if !matches!(capabilities, Ok(false)) {
        kernel.forget_attributes(file);
    }
    capabilities.map(drop)
}

/// Takes them all away from a regular file, and from what the kernel remembers of it: it runs programs by that.
fn drop_privileges(volume: &Volume, kernel: &Kernel, file: INodeNo) -> Result<()> {
    let attributes = volume.attributes(FileId(file.0))?;
    if attributes.kind != FileKind::Regular {
        return Ok(());
    }
    let mode = without_privileges(attributes.mode);
    if let Some(mode) = mode {
        let changes = Changes {
            mode: Some(mode),
            ..Changes::default()
        };
        volume.set_attributes(FileId(file.0), None, &changes)?;
    }
    // With either gone and the other not, the kernel must not go by what was.
    let capabilities = volume.drop_capabilities(attributes.file);
    if mode.is_some() || !matches!(capabilities, Ok(false)) {
        kernel.forget_attributes(file);
    }
    capabilities.map(drop)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::volume::{Caller, Mode, ROOT};

    #[test]
    fn privileges_go_and_the_rest_stays() {
        assert_eq!(without_privileges(0o755), None);
        assert_eq!(without_privileges(0o4755), Some(0o755));
        assert_eq!(without_privileges(0o2755), Some(0o755));
        assert_eq!(without_privileges(0o2745), None);
        assert_eq!(without_privileges(0o6745), Some(0o2745));
        assert_eq!(without_privileges(0o7777), Some(0o1777));
    }

    /// A volume with a file of mode 4755.
    fn program() -> (tempfile::TempDir, Arc<Volume>, FileId) {
        let place = tempfile::tempdir().unwrap();
        let text = format!(
            "[volume]\nname = \"test\"\n[[disk]]\npath = {:?}\n[policy]\ncritical = \"1+0\"\n",
            place.path()
        );
        let config = Config::parse(&text, Path::new("/test.toml")).unwrap();
        Volume::create(&config).unwrap();
        let volume = Volume::open(&config, Mode::ReadWrite).unwrap();
        let caller = Caller { uid: 0, gid: 0 };
        let made = volume.make_node(ROOT, b"program", FileKind::Regular, 0o4755, 0, caller);
        let file = made.unwrap().file;
        (place, volume, file)
    }

    #[test]
    fn capabilities_go_and_other_attributes_stay() {
        let (_place, volume, file) = program();
        for name in [&b"security.capability"[..], b"security.other", b"user.name"] {
            volume.set_xattr(file, name, b"value", 0).unwrap();
        }
        let drop = || drop_privileges(&volume, &Kernel::default(), INodeNo(file.0)).unwrap();
        drop();
        let gone = volume.get_xattr(file, b"security.capability");
        assert_eq!(gone.unwrap_err().errno(), libc::ENODATA);
        let changed = volume.attributes(file).unwrap();
        assert_eq!(changed.mode, 0o755);
        for name in [&b"security.other"[..], b"user.name"] {
            assert_eq!(volume.get_xattr(file, name).unwrap(), b"value");
        }
        // The next write finds nothing to take, and changes nothing.
        drop();
        assert_eq!(volume.attributes(file).unwrap().ctime, changed.ctime);
        // Capabilities alone, on a program without the bits.
        volume
            .set_xattr(file, b"security.capability", b"value", 0)
            .unwrap();
        drop();
        assert!(volume.get_xattr(file, b"security.capability").is_err());
    }

    /// What a program sees on ext4 that may keep the bits.
    #[test]
    fn a_write_by_root_takes_the_capabilities_and_leaves_the_bits() {
        let (_place, volume, file) = program();
        let handle = volume.open_file(file, libc::O_WRONLY).unwrap().handle;
        let write = |bits| {
            let by = (INodeNo(file.0), handle);
            drop_by_write(&volume, &Kernel::default(), by, bits).unwrap();
        };
        // Also those that it is given after a write.
        for _ in 0..2 {
            let name = b"security.capability";
            volume.set_xattr(file, name, b"value", 0).unwrap();
            write(false);
            let gone = volume.get_xattr(file, name);
            assert_eq!(gone.unwrap_err().errno(), libc::ENODATA);
        }
        assert_eq!(volume.attributes(file).unwrap().mode, 0o4755);
        write(true);
        assert_eq!(volume.attributes(file).unwrap().mode, 0o755);
    }
}
