//! QEMU in all its ways.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Stand, assert_holds, assert_readable, assert_sorted, assert_written};
use crate::guests::machine::{Machine, Way};

/// How QEMU writes a guest into a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// `migrate file:`.
    File,
    /// `migrate exec:cat`.
    Exec,
    /// `migrate fd:`, a file that somebody else has opened.
    Descriptor,
    /// Every page at a place of its own.
    MappedRam,
    /// The same by four threads, each with a descriptor of its own.
    Multifd,
    /// The same around the page cache.
    Direct,
}

const ALL: [How; 6] = [
    How::File,
    How::Exec,
    How::Descriptor,
    How::MappedRam,
    How::Multifd,
    How::Direct,
];

impl How {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn way(self, uri: String) -> Way {
        let channels = json!({ "multifd-channels": 4, "direct-io": self == How::Direct });
        match self {
            How::File | How::Exec | How::Descriptor => Way::stream(uri),
            How::MappedRam => Way::new(uri, &["mapped-ram"], json!({ "direct-io": false })),
            How::Multifd | How::Direct => Way::new(uri, &["mapped-ram", "multifd"], channels),
        }
    }

    /// Saves a loaded guest into a file in the mount, which ends it; gives the file with what was written.
    fn save(self, stand: &Stand, to: &Path) -> PathBuf {
        let mut guest = stand.guest();
        let (shown, elsewhere) = (to.display(), stand.elsewhere(to));
        let uri = match self {
            How::Exec => format!("exec:tee {} >{shown}", elsewhere.display()),
            How::Descriptor => {
                guest.give("out", File::create(to).expect("the file"));
                "fd:out".into()
            }
            _ => format!("file:{shown}"),
        };
        guest.save(&self.way(uri));
        guest.quit();
        if self == How::Descriptor {
            // QEMU got it open and did not open it, so what it did to it was not seen; its pages are looked at.
            fs::copy(to, &elsewhere).expect("the copy");
        }
        elsewhere
    }

    /// How the guest is read in again.
    fn load(self, guest: &mut Machine, from: &Path) {
        let shown = from.display();
        let uri = match self {
            How::Exec => format!("exec:cat {shown}"),
            How::Descriptor => {
                guest.give("in", File::open(from).expect("the file"));
                "fd:in".into()
            }
            _ => format!("file:{shown}"),
        };
        guest.begin_load(&self.way(uri));
    }
}

#[test]
fn every_way_to_save_reads_back_with_two_disks_lost() {
    let mut stand = Stand::new();
    let mut saves = Vec::new();
    for how in ALL {
        let path = stand.volume.path(&how.name());
        let written = how.save(&stand, &path);
        assert_written(&path, &written);
        assert_holds(&path, stand.memory());
        assert_sorted(&path);
        saves.push((path, written));
    }
    stand.lose([0, 3]);
    for (path, written) in &saves {
        assert_readable(path, written);
    }
}

#[track_caller]
fn goes_on(how: How, pair: [usize; 2]) {
    let mut stand = Stand::new();
    let path = stand.volume.path(&how.name());
    how.save(&stand, &path);
    stand.lose(pair);
    let memory = stand.volume.scratch.path().join("resumed");
    stand.goes_on(&memory, false, |machine| how.load(machine, &path));
}

#[test]
fn a_guest_goes_on_from_a_mapped_save_around_the_page_cache() {
    goes_on(How::Direct, [2, 3]);
}

#[test]
fn a_guest_goes_on_from_every_other_way_in_full() {
    goes_on(How::File, [1, 4]);
    goes_on(How::Exec, [0, 5]);
    goes_on(How::Descriptor, [3, 4]);
    goes_on(How::MappedRam, [1, 2]);
    goes_on(How::Multifd, [4, 5]);
}

/// A dump is for people and tools; nothing goes on from it, and no page cache of it may be given up.
#[test]
fn a_dump_reads_back_with_two_disks_lost() {
    let mut stand = Stand::new();
    let path = stand.volume.path("core");
    let mut guest = stand.guest();
    guest.dump(&path);
    guest.quit();
    let written = stand.elsewhere(&path);
    assert_written(&path, &written);
    assert_holds(&path, stand.memory());
    stand.lose([2, 5]);
    assert_readable(&path, &written);
}

/// A save into a file that holds another one: QEMU does not cut off what is there, and the file is what it makes of both.
#[test]
fn a_save_over_an_older_save() {
    let mut stand = Stand::new();
    let path = stand.volume.path("again");
    How::File.save(&stand, &path);
    let written = How::MappedRam.save(&stand, &path);
    assert_written(&path, &written);
    assert_holds(&path, stand.memory());
    stand.lose([1, 5]);
    assert_readable(&path, &written);
}
