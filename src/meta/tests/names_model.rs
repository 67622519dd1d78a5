//! Random calls on the namespace against a model as simple as can be: files and directories in maps, with
//! checkpoints, crashes and lost disks in between.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Call {
    Create(usize, u8, bool),
    Link(usize, usize, u8),
    Unlink(usize, u8),
    Rmdir(usize, u8),
    Rename(usize, u8, usize, u8, Rename),
    Checkpoint,
    Crash,
    LoseDisk(usize),
}

fn call() -> impl Strategy<Value = Call> {
    let (place, name) = (0usize..12, 0u8..4);
    let how = prop_oneof![
        3 => Just(Rename::Replace),
        1 => Just(Rename::NoReplace),
        2 => Just(Rename::Exchange),
    ];
    prop_oneof![
        6 => (place.clone(), name.clone(), any::<bool>()).prop_map(|(d, n, k)| Call::Create(d, n, k)),
        2 => (place.clone(), place.clone(), name.clone()).prop_map(|(f, d, n)| Call::Link(f, d, n)),
        2 => (place.clone(), name.clone()).prop_map(|(d, n)| Call::Unlink(d, n)),
        2 => (place.clone(), name.clone()).prop_map(|(d, n)| Call::Rmdir(d, n)),
        6 => (place.clone(), name.clone(), place, name, how)
            .prop_map(|(d, n, e, m, how)| Call::Rename(d, n, e, m, how)),
        1 => Just(Call::Checkpoint),
        1 => Just(Call::Crash),
        1 => (0usize..3).prop_map(Call::LoseDisk),
    ]
}

/// Directories by number with their names; every number that is no directory is a file.
#[derive(Clone, Default)]
struct Model {
    directories: BTreeMap<FileId, BTreeMap<Vec<u8>, FileId>>,
}

impl Model {
    fn is_directory(&self, file: FileId) -> bool {
        self.directories.contains_key(&file)
    }

    fn find(&self, directory: FileId, name: &[u8]) -> Option<FileId> {
        self.directories.get(&directory)?.get(name).copied()
    }

    fn all(&self) -> Vec<FileId> {
        let below = self.directories.values().flat_map(|names| names.values());
        let mut all: Vec<FileId> = below.copied().chain([ROOT]).collect();
        all.sort();
        all.dedup();
        all
    }

    fn parent(&self, directory: FileId) -> FileId {
        let above = self
            .directories
            .iter()
            .find(|(_, names)| names.values().any(|file| *file == directory));
        above.map_or(ROOT, |(above, _)| *above)
    }

    fn is_below(&self, mut file: FileId, top: FileId) -> bool {
        loop {
            if file == top {
                return true;
            }
            if file == ROOT {
                return false;
            }
            file = self.parent(file);
        }
    }

    fn insert(&mut self, directory: FileId, name: &[u8], file: FileId) {
        let names = self.directories.get_mut(&directory).unwrap();
        names.insert(name.to_vec(), file);
    }

    fn remove(&mut self, directory: FileId, name: &[u8]) {
        self.directories.get_mut(&directory).unwrap().remove(name);
    }

    /// Whether the rename is done, as rename(2) tells it.
    fn rename(&mut self, a: FileId, n: &[u8], b: FileId, m: &[u8], how: Rename) -> bool {
        let (Some(moved), true) = (self.find(a, n), self.is_directory(b)) else {
            return false;
        };
        if self.is_directory(moved) && self.is_below(b, moved) {
            return false;
        }
        let there = self.find(b, m);
        match (there, how) {
            (Some(_), Rename::NoReplace) | (None, Rename::Exchange) => return false,
            (Some(there), _) if there == moved => return true,
            (Some(there), Rename::Exchange) => {
                if self.is_directory(there) && self.is_below(a, there) {
                    return false;
                }
                self.insert(a, n, there);
                self.insert(b, m, moved);
                return true;
            }
            (Some(there), Rename::Replace) => {
                if self.is_directory(there) != self.is_directory(moved) {
                    return false;
                }
                if self.directories.get(&there).is_some_and(|d| !d.is_empty()) {
                    return false;
                }
                self.directories.remove(&there);
            }
            (None, _) => {}
        }
        self.remove(a, n);
        self.insert(b, m, moved);
        true
    }

    fn check(&self, meta: &Meta) {
        let view = meta.view();
        let mut links: BTreeMap<FileId, u32> = BTreeMap::new();
        for (directory, names) in &self.directories {
            let listed = view.list(*directory, None, 1000).unwrap();
            let found: BTreeMap<Vec<u8>, FileId> =
                listed.into_iter().map(|l| (l.name, l.file)).collect();
            assert_eq!(&found, names);
            for (name, file) in names {
                *links.entry(*file).or_default() += 1;
                let (found, inode) = view.lookup(*directory, name).unwrap();
                assert_eq!(found, *file);
                let is_directory = inode.kind == FileKind::Directory;
                assert_eq!(is_directory, self.is_directory(*file));
                assert!(!is_directory || inode.parent == *directory);
                let names = view.names(*file).unwrap();
                assert!(names.contains(&(*directory, name.clone())));
            }
        }
        for (file, count) in &links {
            let inode = view.inode(*file).unwrap().unwrap();
            let expected = match self.directories.get(file) {
                None => *count,
                Some(names) => 2 + names.values().filter(|f| self.is_directory(**f)).count() as u32,
            };
            assert_eq!(inode.links, expected);
            assert_eq!(view.names(*file).unwrap().len() as u32, *count);
        }
        let files: Vec<FileId> = view.files().map(|found| found.unwrap().0).collect();
        assert_eq!(files, self.all(), "nothing is left of what is gone");
    }
}

fn run(calls: Vec<Call>) {
    let mut media = volume(3);
    let mut meta = open(&media);
    let mut model = Model::default();
    model.directories.insert(ROOT, BTreeMap::new());
    let now = Timestamp::default();
    let closed: &dyn Fn(FileId) -> bool = &|_| false;
    for call in calls {
        let all = model.all();
        let file = |place: usize| all[place % all.len()];
        let name = |n: u8| vec![b'a' + n];
        match call {
            Call::Create(directory, n, is_directory) => {
                let new = New {
                    kind: if is_directory {
                        FileKind::Directory
                    } else {
                        FileKind::Regular
                    },
                    mode: 0o755,
                    uid: 0,
                    gid: 0,
                    rdev: 0,
                    target: b"",
                };
                let directory = file(directory);
                let may =
                    model.is_directory(directory) && model.find(directory, &name(n)).is_none();
                let made = meta.update(|u| u.create(directory, &name(n), new, now));
                assert_eq!(made.is_ok(), may);
                if let Ok((made, _)) = made {
                    model.insert(directory, &name(n), made);
                    if is_directory {
                        model.directories.insert(made, BTreeMap::new());
                    }
                }
            }
            Call::Link(which, directory, n) => {
                let (which, directory) = (file(which), file(directory));
                let may = !model.is_directory(which)
                    && model.is_directory(directory)
                    && model.find(directory, &name(n)).is_none();
                let linked = meta.update(|u| u.link(which, directory, &name(n), now));
                assert_eq!(linked.is_ok(), may);
                if may {
                    model.insert(directory, &name(n), which);
                }
            }
            Call::Unlink(directory, n) => {
                let directory = file(directory);
                let there = model.find(directory, &name(n));
                let may = there.is_some_and(|file| !model.is_directory(file));
                let gone = meta.update(|u| u.unlink(directory, &name(n), now, closed));
                assert_eq!(gone.is_ok(), may);
                if may {
                    model.remove(directory, &name(n));
                }
            }
            Call::Rmdir(directory, n) => {
                let directory = file(directory);
                let there = model.find(directory, &name(n));
                let may = there
                    .and_then(|file| model.directories.get(&file))
                    .is_some_and(BTreeMap::is_empty);
                let gone = meta.update(|u| u.rmdir(directory, &name(n), now, closed));
                assert_eq!(gone.is_ok(), may);
                if may {
                    model.remove(directory, &name(n));
                    model.directories.remove(&there.unwrap());
                }
            }
            Call::Rename(a, n, b, m, how) => {
                let (a, b) = (file(a), file(b));
                let may = model.rename(a, &name(n), b, &name(m), how);
                let from = (a, &name(n)[..]);
                let to = (b, &name(m)[..]);
                let done = meta.update(|u| u.rename(from, to, how, now, closed));
                assert_eq!(done.is_ok(), may, "{done:?}");
            }
            Call::Checkpoint => meta.checkpoint().unwrap(),
            Call::Crash => {
                meta.sync().unwrap();
                let after = without_power(&media, 7);
                drop(meta);
                media = after;
                meta = open(&media);
            }
            Call::LoseDisk(which) => {
                meta.close().unwrap();
                drop(meta);
                media[which] = Arc::new(MemoryDisk::new(&format!("disk{which}")));
                meta = open(&media);
            }
        }
    }
    model.check(&meta);
    drop(meta);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]
    #[test]
    fn the_namespace_does_as_the_model(calls in prop::collection::vec(call(), 1..80)) {
        run(calls);
    }
}
