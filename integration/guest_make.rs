//! Guests for tests can be made, from nothing.

mod guests;

use guests::image::Kernel;
use guests::{Scene, Work};

#[test]
fn every_kernel_boots() {
    for kernel in Kernel::X86 {
        let at = std::time::Instant::now();
        let scene = Scene::new(kernel, Work::Mixed, "").ready();
        eprintln!("{} {:?}", scene.name, at.elapsed());
    }
}
