//! What POSIX says about names, link counts and times, case by case.

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 5 }
}

fn new(kind: FileKind) -> New<'static> {
    New {
        kind,
        mode: 0o640,
        uid: 10,
        gid: 20,
        rdev: 0,
        target: b"",
    }
}

const CLOSED: &dyn Fn(FileId) -> bool = &|_| false;
const OPEN: &dyn Fn(FileId) -> bool = &|_| true;

type Change<'a, T> = &'a mut dyn FnMut(&mut Update) -> std::result::Result<T, NamespaceError>;

struct Tree {
    meta: Meta,
}

impl Tree {
    fn new() -> Tree {
        Tree {
            meta: open(&volume(1)),
        }
    }

    fn change<T>(&self, change: Change<'_, T>) -> std::result::Result<T, NamespaceError> {
        self.meta.update(change)
    }

    fn make(&self, parent: FileId, name: &str, kind: FileKind, now: i64) -> FileId {
        let made = self.change(&mut |u| u.create(parent, name.as_bytes(), new(kind), at(now)));
        made.unwrap().0
    }

    fn inode(&self, file: FileId) -> Inode {
        self.meta.view().inode(file).unwrap().unwrap()
    }

    fn rename(
        &self,
        from: (FileId, &str),
        to: (FileId, &str),
        how: Rename,
    ) -> std::result::Result<Option<Removed>, NamespaceError> {
        let (from, to) = ((from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()));
        self.change(&mut |u| u.rename(from, to, how, at(9), CLOSED))
    }
}

#[test]
fn a_new_file_touches_its_directory() {
    let tree = Tree::new();
    let file = tree.make(ROOT, "f", FileKind::Regular, 3);
    let (found, inode) = tree.meta.view().lookup(ROOT, b"f").unwrap();
    assert_eq!(found, file);
    assert_eq!(inode.links, 1);
    assert_eq!((inode.uid, inode.gid, inode.mode), (10, 20, 0o640));
    assert!([inode.atime, inode.mtime, inode.ctime, inode.born] == [at(3); 4]);
    let root = tree.inode(ROOT);
    assert_eq!((root.mtime, root.ctime, root.links), (at(3), at(3), 2));
    assert_eq!(root.atime, Timestamp::default());
    let directory = tree.make(ROOT, "d", FileKind::Directory, 4);
    assert_eq!(tree.inode(ROOT).links, 3);
    assert_eq!(tree.inode(directory).links, 2);
    let view = tree.meta.view();
    assert_eq!(view.lookup(directory, b"..").unwrap().0, ROOT);
    assert_eq!(view.lookup(directory, b".").unwrap().0, directory);
    assert_eq!(view.names(file).unwrap(), [(ROOT, b"f".to_vec())]);
}

#[test]
fn names_that_cannot_be() {
    let tree = Tree::new();
    let file = tree.make(ROOT, "f", FileKind::Regular, 1);
    let attempt = |parent, name: &[u8]| {
        tree.change(&mut |u| u.create(parent, name, new(FileKind::Regular), at(2)))
            .unwrap_err()
    };
    for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
        assert!(matches!(attempt(ROOT, bad), NamespaceError::BadName { .. }));
    }
    assert!(matches!(
        attempt(ROOT, &[b'a'; 256]),
        NamespaceError::NameTooLong { .. }
    ));
    assert!(matches!(attempt(ROOT, b"f"), NamespaceError::Exists { .. }));
    assert!(matches!(
        attempt(file, b"x"),
        NamespaceError::NotDirectory { .. }
    ));
    assert!(matches!(
        attempt(FileId(77), b"x"),
        NamespaceError::Gone { .. }
    ));
    tree.make(ROOT, &"a".repeat(255), FileKind::Regular, 2);
    assert_eq!(tree.inode(ROOT).mtime, at(2));
}

#[test]
fn setgid_directories_give_their_group() {
    let tree = Tree::new();
    let shared = tree.make(ROOT, "shared", FileKind::Directory, 1);
    let set = Attributes {
        mode: Some(0o2775),
        gid: Some(500),
        ..Attributes::default()
    };
    tree.change(&mut |u| u.set_attributes(shared, &set, at(2)))
        .unwrap();
    let file = tree.inode(tree.make(shared, "f", FileKind::Regular, 3));
    assert_eq!((file.gid, file.mode), (500, 0o640));
    let below = tree.inode(tree.make(shared, "d", FileKind::Directory, 3));
    assert_eq!((below.gid, below.mode), (500, 0o2640));
}

#[test]
fn links_count_names() {
    let tree = Tree::new();
    let file = tree.make(ROOT, "f", FileKind::Regular, 1);
    let directory = tree.make(ROOT, "d", FileKind::Directory, 2);
    let inode = tree
        .change(&mut |u| u.link(file, directory, b"g", at(3)))
        .unwrap();
    assert_eq!((inode.links, inode.ctime, inode.mtime), (2, at(3), at(1)));
    assert_eq!(tree.inode(directory).mtime, at(3));
    assert_eq!(tree.meta.view().names(file).unwrap().len(), 2);
    assert!(matches!(
        tree.change(&mut |u| u.link(directory, ROOT, b"x", at(3))),
        Err(NamespaceError::DirectoryLink { .. })
    ));
    assert!(matches!(
        tree.change(&mut |u| u.link(file, ROOT, b"f", at(3))),
        Err(NamespaceError::Exists { .. })
    ));
    let removed = tree
        .change(&mut |u| u.unlink(ROOT, b"f", at(4), CLOSED))
        .unwrap();
    assert_eq!((removed.gone, removed.inode.links), (false, 1));
    assert_eq!(tree.inode(file).ctime, at(4));
    assert_eq!(tree.inode(ROOT).mtime, at(4));
    let names = tree.meta.view().names(file).unwrap();
    assert_eq!(names, [(directory, b"g".to_vec())]);
}

#[test]
fn the_last_name_takes_the_file_with_it() {
    let tree = Tree::new();
    let link = New {
        target: b"over/there",
        ..new(FileKind::Symlink)
    };
    let (file, inode) = tree
        .change(&mut |u| u.create(ROOT, b"l", link, at(1)))
        .unwrap();
    assert_eq!(inode.size, 10);
    assert_eq!(
        tree.meta.view().target(file).unwrap().unwrap()[..],
        *b"over/there"
    );
    let value = SetXattr {
        name: b"user.a",
        value: b"1",
        overwrite: Overwrite::Either,
    };
    tree.change(&mut |u| {
        u.put_manifest(file, b"m");
        u.put_delta(file, 3, b"d");
        u.put_inline(file, 4, b"i");
        u.set_xattr(file, value, at(2))
    })
    .unwrap();
    let removed = tree
        .change(&mut |u| u.unlink(ROOT, b"l", at(3), CLOSED))
        .unwrap();
    assert!(removed.gone);
    let view = tree.meta.view();
    assert_eq!(view.inode(file).unwrap(), None);
    assert_eq!(view.target(file).unwrap(), None);
    assert_eq!(view.get(&Key::xattr(file, b"user.a")).unwrap(), None);
    // What it was made of is still there for whoever gives back its room.
    assert!(view.manifest(file).unwrap().is_some());
    assert_eq!(view.deltas(file).unwrap().len(), 1);
    assert_eq!(view.inlines(file).unwrap().len(), 1);
    tree.change(&mut |u| Ok(u.drop_content(file)?)).unwrap();
    let view = tree.meta.view();
    assert!(view.manifest(file).unwrap().is_none());
    assert!(view.deltas(file).unwrap().is_empty());
    assert!(view.inlines(file).unwrap().is_empty());
}

#[test]
fn an_open_file_without_a_name_is_an_orphan() {
    let tree = Tree::new();
    let file = tree.make(ROOT, "f", FileKind::Regular, 1);
    let directory = tree.make(ROOT, "d", FileKind::Directory, 1);
    let removed = tree
        .change(&mut |u| u.unlink(ROOT, b"f", at(2), OPEN))
        .unwrap();
    assert_eq!((removed.gone, removed.inode.links), (false, 0));
    tree.change(&mut |u| u.rmdir(ROOT, b"d", at(2), OPEN))
        .unwrap();
    let mut orphans = tree.meta.view().orphans().unwrap();
    orphans.sort();
    assert_eq!(orphans, [file, directory]);
    assert!(matches!(
        tree.change(&mut |u| u.create(directory, b"x", new(FileKind::Regular), at(3))),
        Err(NamespaceError::Gone { .. })
    ));
    assert!(matches!(
        tree.change(&mut |u| u.link(file, ROOT, b"x", at(3))),
        Err(NamespaceError::Gone { .. })
    ));
    let set = Attributes {
        size: Some(7),
        ..Attributes::default()
    };
    tree.change(&mut |u| u.set_attributes(file, &set, at(4)))
        .unwrap();
    tree.change(&mut |u| u.remove_orphan(file)).unwrap();
    assert_eq!(tree.meta.view().orphans().unwrap(), [directory]);
    assert_eq!(tree.meta.view().inode(file).unwrap(), None);
}

#[test]
fn directories_go_only_when_they_are_empty() {
    let tree = Tree::new();
    let directory = tree.make(ROOT, "d", FileKind::Directory, 1);
    tree.make(directory, "f", FileKind::Regular, 1);
    let rmdir = |name: &[u8]| tree.change(&mut |u| u.rmdir(ROOT, name, at(2), CLOSED));
    assert!(matches!(rmdir(b"d"), Err(NamespaceError::NotEmpty { .. })));
    assert!(matches!(rmdir(b"."), Err(NamespaceError::BadName { .. })));
    assert!(matches!(rmdir(b".."), Err(NamespaceError::NotEmpty { .. })));
    assert!(matches!(rmdir(b"x"), Err(NamespaceError::NotFound { .. })));
    assert!(matches!(
        tree.change(&mut |u| u.unlink(ROOT, b"d", at(2), CLOSED)),
        Err(NamespaceError::IsDirectory { .. })
    ));
    tree.change(&mut |u| u.unlink(directory, b"f", at(3), CLOSED))
        .unwrap();
    assert!(rmdir(b"d").unwrap().gone);
    let root = tree.inode(ROOT);
    assert_eq!((root.links, root.mtime), (2, at(2)));
}

#[test]
fn moving_a_directory_moves_its_dot_dot() {
    let tree = Tree::new();
    let a = tree.make(ROOT, "a", FileKind::Directory, 1);
    let b = tree.make(ROOT, "b", FileKind::Directory, 1);
    let inner = tree.make(a, "inner", FileKind::Directory, 1);
    tree.rename((a, "inner"), (b, "moved"), Rename::NoReplace)
        .unwrap();
    let [root, a_now, b_now, inner_now] = [ROOT, a, b, inner].map(|file| tree.inode(file));
    assert_eq!([root.links, a_now.links, b_now.links], [4, 2, 3]);
    assert_eq!([a_now.mtime, b_now.mtime, b_now.ctime], [at(9); 3]);
    assert_eq!((inner_now.parent, inner_now.ctime), (b, at(9)));
    assert_eq!(inner_now.mtime, at(1));
    assert_eq!(
        tree.meta.view().names(inner).unwrap(),
        [(b, b"moved".to_vec())]
    );
    for to in [inner, b] {
        assert!(matches!(
            tree.rename((ROOT, "b"), (to, "x"), Rename::Replace),
            Err(NamespaceError::BelowItself { .. })
        ));
    }
}

#[test]
fn what_may_replace_what() {
    let tree = Tree::new();
    let file = tree.make(ROOT, "file", FileKind::Regular, 1);
    tree.make(ROOT, "other", FileKind::Regular, 1);
    let full = tree.make(ROOT, "full", FileKind::Directory, 1);
    tree.make(full, "x", FileKind::Regular, 1);
    let empty = tree.make(ROOT, "empty", FileKind::Directory, 1);
    let mv = |from, to, how| tree.rename((ROOT, from), (ROOT, to), how);
    use NamespaceError as E;
    assert!(matches!(
        mv("file", "empty", Rename::Replace),
        Err(E::IsDirectory { .. })
    ));
    assert!(matches!(
        mv("empty", "file", Rename::Replace),
        Err(E::NotDirectory { .. })
    ));
    assert!(matches!(
        mv("empty", "full", Rename::Replace),
        Err(E::NotEmpty { .. })
    ));
    assert!(matches!(
        mv("file", "other", Rename::NoReplace),
        Err(E::Exists { .. })
    ));
    assert!(matches!(
        mv("file", "nothing", Rename::Exchange),
        Err(E::NotFound { .. })
    ));
    let gone = mv("other", "file", Rename::Replace).unwrap().unwrap();
    assert_eq!((gone.file, gone.gone), (file, true));
    let gone = mv("full", "empty", Rename::Replace).unwrap().unwrap();
    assert_eq!((gone.file, gone.gone), (empty, true));
    assert_eq!(tree.inode(ROOT).links, 3);
    assert_eq!(tree.meta.view().lookup(ROOT, b"empty").unwrap().0, full);
}

#[test]
fn two_names_of_one_file_are_left_alone() {
    let tree = Tree::new();
    let file = tree.make(ROOT, "a", FileKind::Regular, 1);
    tree.change(&mut |u| u.link(file, ROOT, b"b", at(2)))
        .unwrap();
    let nothing = tree.rename((ROOT, "a"), (ROOT, "b"), Rename::Replace);
    assert_eq!(nothing.unwrap(), None);
    assert_eq!(tree.inode(file).links, 2);
    assert_eq!(tree.inode(file).ctime, at(2));
    assert_eq!(tree.meta.view().list(ROOT, None, 9).unwrap().len(), 2);
}

#[test]
fn an_exchange_keeps_both() {
    let tree = Tree::new();
    let directory = tree.make(ROOT, "d", FileKind::Directory, 1);
    let inner = tree.make(directory, "inner", FileKind::Directory, 1);
    let file = tree.make(ROOT, "f", FileKind::Regular, 1);
    tree.rename((ROOT, "f"), (directory, "inner"), Rename::Exchange)
        .unwrap();
    let view = tree.meta.view();
    assert_eq!(view.lookup(ROOT, b"f").unwrap().0, inner);
    assert_eq!(view.lookup(directory, b"inner").unwrap().0, file);
    assert_eq!(tree.inode(inner).parent, ROOT);
    assert_eq!(tree.inode(ROOT).links, 4);
    assert_eq!(tree.inode(directory).links, 2);
    assert_eq!(
        [tree.inode(file).ctime, tree.inode(inner).ctime],
        [at(9); 2]
    );
    // Each way round a directory would get below itself.
    tree.make(directory, "deep", FileKind::Directory, 2);
    for (from, to) in [
        ((ROOT, "d"), (directory, "deep")),
        ((directory, "deep"), (ROOT, "d")),
    ] {
        assert!(matches!(
            tree.rename(from, to, Rename::Exchange),
            Err(NamespaceError::BelowItself { .. })
        ));
    }
}

#[test]
fn attributes_change_the_right_times() {
    let tree = Tree::new();
    let file = tree.make(ROOT, "f", FileKind::Regular, 1);
    let set = |set: Attributes, now| {
        tree.change(&mut |u| u.set_attributes(file, &set, at(now)))
            .unwrap()
    };
    let inode = set(
        Attributes {
            mode: Some(0o4755),
            uid: Some(1),
            ..Attributes::default()
        },
        2,
    );
    assert_eq!((inode.mode, inode.uid, inode.gid), (0o4755, 1, 20));
    assert_eq!((inode.mtime, inode.ctime), (at(1), at(2)));
    let inode = set(
        Attributes {
            size: Some(100),
            ..Attributes::default()
        },
        3,
    );
    assert_eq!((inode.size, inode.mtime, inode.ctime), (100, at(3), at(3)));
    let inode = set(
        Attributes {
            atime: Some(at(50)),
            mtime: Some(at(60)),
            ..Attributes::default()
        },
        4,
    );
    assert_eq!(
        (inode.atime, inode.mtime, inode.ctime),
        (at(50), at(60), at(4))
    );
    assert_eq!(tree.inode(file), inode);
}

#[test]
fn extended_attributes() {
    let tree = Tree::new();
    let file = tree.make(ROOT, "f", FileKind::Regular, 1);
    let set = |name: &[u8], value: &[u8], overwrite| {
        let set = SetXattr {
            name,
            value,
            overwrite,
        };
        tree.change(&mut |u| u.set_xattr(file, set, at(2)))
    };
    use NamespaceError as E;
    assert!(matches!(
        set(b"user.a", b"1", Overwrite::Replace),
        Err(E::NoAttribute { .. })
    ));
    set(b"user.a", b"1", Overwrite::Create).unwrap();
    assert_eq!(tree.inode(file).ctime, at(2));
    assert!(matches!(
        set(b"user.a", b"2", Overwrite::Create),
        Err(E::AttributeExists { .. })
    ));
    set(b"user.a", b"2", Overwrite::Replace).unwrap();
    set(b"user.b", &[7; XATTR_MAX], Overwrite::Either).unwrap();
    assert!(matches!(
        set(b"user.b", &[7; XATTR_MAX + 1], Overwrite::Either),
        Err(E::AttributeTooLong { .. })
    ));
    let view = tree.meta.view();
    assert_eq!(view.xattr(file, b"user.a").unwrap(), b"2");
    assert_eq!(
        view.xattrs(file).unwrap(),
        [b"user.a".to_vec(), b"user.b".to_vec()]
    );
    tree.change(&mut |u| u.remove_xattr(file, b"user.a", at(5)))
        .unwrap();
    assert_eq!(tree.inode(file).ctime, at(5));
    assert!(matches!(
        tree.meta.view().xattr(file, b"user.a"),
        Err(E::NoAttribute { .. })
    ));
}

#[test]
fn extended_attributes_have_a_bound() {
    let tree = Tree::new();
    let file = tree.make(ROOT, "f", FileKind::Regular, 1);
    let set = |name: &str, value: &[u8]| {
        let set = SetXattr {
            name: name.as_bytes(),
            value,
            overwrite: Overwrite::Either,
        };
        tree.change(&mut |u| u.set_xattr(file, set, at(2)))
    };
    let is_full = |result| matches!(result, Err(NamespaceError::TooManyAttributes { .. }));
    // Values: sixteen of the longest, and not a byte more, but for one that takes the place of another.
    for number in 0..16 {
        set(&format!("user.{number}"), &[7; XATTR_MAX]).unwrap();
    }
    assert!(is_full(set("user.more", b"1")));
    set("user.5", &[8; XATTR_MAX]).unwrap();
    set("user.5", b"less").unwrap();
    set("user.more", b"1").unwrap();
    assert!(is_full(set("user.5", &[8; XATTR_MAX])));
    // Names: the kernel lists no more than 64 KiB of them, what the volume tells of a file included.
    let other = tree.make(ROOT, "g", FileKind::Regular, 1);
    let mut most = 0;
    loop {
        let name = format!("user.{most:0250}");
        let set = SetXattr {
            name: name.as_bytes(),
            value: b"",
            overwrite: Overwrite::Create,
        };
        match tree.change(&mut |u| u.set_xattr(other, set, at(2))) {
            Ok(()) => most += 1,
            result => break assert!(is_full(result)),
        }
        assert!(most * 256 < 64 << 10);
    }
    assert!(most * 256 > 60 << 10);
}

#[test]
fn a_long_listing_in_pieces() {
    let tree = Tree::new();
    for n in 0..300 {
        tree.make(ROOT, &format!("f{n:03}"), FileKind::Regular, 1);
        if n == 150 {
            tree.meta.checkpoint().unwrap();
        }
    }
    for n in (0..300).filter(|n| n % 3 != 0) {
        let name = format!("f{n:03}");
        tree.change(&mut |u| u.unlink(ROOT, name.as_bytes(), at(2), CLOSED))
            .unwrap();
    }
    let view = tree.meta.view();
    let mut names = Vec::new();
    loop {
        let after = names.last().map(Vec::as_slice);
        let piece = view.list(ROOT, after, 7).unwrap();
        if piece.is_empty() {
            break;
        }
        assert!(piece.len() <= 7);
        names.extend(piece.into_iter().map(|listed| listed.name));
    }
    let expected: Vec<Vec<u8>> = (0..300)
        .step_by(3)
        .map(|n| format!("f{n:03}").into_bytes())
        .collect();
    assert_eq!(names, expected);
}

/// Guards against a listing that looks further into the database than into memory, and finds names there
/// that memory says are deleted.
#[test]
fn deleted_names_do_not_come_back_in_a_listing() {
    let tree = Tree::new();
    for n in 150..300 {
        tree.make(ROOT, &format!("f{n:03}"), FileKind::Regular, 1);
    }
    tree.meta.checkpoint().unwrap();
    for n in 0..150 {
        tree.make(ROOT, &format!("f{n:03}"), FileKind::Regular, 1);
    }
    for n in 0..290 {
        let name = format!("f{n:03}");
        tree.change(&mut |u| u.unlink(ROOT, name.as_bytes(), at(2), CLOSED))
            .unwrap();
    }
    let listed = tree.meta.view().list(ROOT, None, 20).unwrap();
    let names: Vec<Vec<u8>> = listed.into_iter().map(|listed| listed.name).collect();
    let expected: Vec<Vec<u8>> = (290..300).map(|n| format!("f{n}").into_bytes()).collect();
    assert_eq!(names, expected);
}
