//! Which extended attributes a file can have, by their names.

/// What becomes of an attribute's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum XattrName {
    /// Kept by the volume.
    Stored,
    /// There is no such thing here: EOPNOTSUPP, upon which `cp -a` and others go without.
    Unsupported,
}

/// Judges a name. The kernel has checked by then that the caller may use its namespace. `system.` holds access
/// control lists, which are not kept: permissions are the mode bits.
pub(super) fn judge(name: &[u8]) -> XattrName {
    let stored = [&b"user."[..], b"trusted.", b"security."];
    if stored
        .iter()
        .any(|prefix| name.len() > prefix.len() && name.starts_with(prefix))
    {
        XattrName::Stored
    } else {
        XattrName::Unsupported
    }
}

/// The names as listxattr(2) gives them: each ended by a zero byte. `trusted.` names are for root's eyes only.
pub(super) fn list(names: &[Vec<u8>], root: bool) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        if root || !name.starts_with(b"trusted.") {
            list.extend_from_slice(name);
            list.push(0);
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_by_their_namespace() {
        for name in ["user.a", "trusted.overlay.opaque", "security.selinux"] {
            assert_eq!(judge(name.as_bytes()), XattrName::Stored, "{name}");
        }
        for name in [
            "",
            "user.",
            "user",
            "system.posix_acl_access",
            "system.posix_acl_default",
            "other.a",
        ] {
            assert_eq!(judge(name.as_bytes()), XattrName::Unsupported, "{name}");
        }
    }

    #[test]
    fn lists_end_every_name_and_hide_what_is_trusted() {
        let names = [b"user.a".to_vec(), b"trusted.b".to_vec()];
        assert_eq!(list(&names, true), b"user.a\0trusted.b\0");
        assert_eq!(list(&names, false), b"user.a\0");
        assert_eq!(list(&[], true), b"");
    }
}
