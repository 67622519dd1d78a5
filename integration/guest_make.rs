//! Guests for tests can be made from nothing, and saved in every format that QEMU has without changing them.

use std::fs;
use std::io::Read;

use crate::guests::image::Kernel;
use crate::guests::{Format, Scene, Work};

#[test]
fn a_guest_is_saved_in_every_format() {
    let scene = Scene::new(Kernel::V6_12, Work::Mixed, "").ready();
    let before = fs::metadata(&scene.setup.memory)
        .expect("the guest's memory")
        .len();
    for (format, magic) in [
        (Format::Stream, b"QEVM"),
        (Format::MappedRam, b"QEVM"),
        (Format::Elf, b"\x7fELF"),
    ] {
        let path = scene.saved(format);
        let mut head = [0; 4];
        fs::File::open(&path)
            .and_then(|mut file| file.read_exact(&mut head))
            .expect("the saved guest");
        assert_eq!(&head, magic, "{format:?}");
        let len = fs::metadata(&path).expect("the saved guest").len();
        assert!(len > before / 4, "{format:?} is only {len} bytes");
    }
}
