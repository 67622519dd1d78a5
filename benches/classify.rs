//! What it costs to look into a guest once its last byte is there, on one core and on all: finding the kernel, and giving
//! every page its class. Throughput is guest memory a second; the goal is 50 ms a GiB on one core, 20 GiB/s. One peer is
//! reading that memory once, which any tool that copies a dump has to do; the other is `makedumpfile -d 31` on the same
//! guest's ELF core, whose time is to be ten times ours: as it is, and with the compression that most use it with.

#[path = "../integration/guests/mod.rs"]
mod guests;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use guests::core::Core;
use guests::image::Kernel;
use guests::{Scene, Work};
use parsfs::guest::{FlatMemory, Guest, Hints, Layout};

fn classify(criterion: &mut Criterion) {
    let one = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .expect("a thread");
    for (kernel, work) in [
        (Kernel::V6_12, Work::Mixed),
        (Kernel::V6_12, Work::Cache),
        (Kernel::Newest, Work::Mixed),
    ] {
        let scene = Scene::new(kernel, work, "").ready();
        let bytes = std::fs::read(&scene.setup.memory).expect("the guest's memory");
        let memory = FlatMemory::new(&bytes, &Layout::candidates(bytes.len() as u64)[0]);
        let mut group = criterion.benchmark_group(&scene.name);
        group
            .throughput(Throughput::Bytes(bytes.len() as u64))
            .sample_size(20);
        let look = || {
            let guest = Guest::find(&memory, &Hints::default()).expect("a kernel");
            black_box(guest.classify().expect("classes"));
        };
        group.bench_function("find", |b| {
            b.iter(|| black_box(Guest::find(&memory, &Hints::default()).is_ok()))
        });
        group.bench_function("find and classify, one core", |b| {
            b.iter(|| one.install(look))
        });
        group.bench_function("find and classify, all cores", |b| b.iter(look));
        group.bench_function("peer: read memory once", |b| {
            b.iter(|| {
                black_box(
                    bytes
                        .chunks_exact(8)
                        .filter(|word| **word == [0; 8])
                        .count(),
                )
            });
        });
        group.finish();
    }
}

fn makedumpfile(criterion: &mut Criterion) {
    let scene = Scene::new(Kernel::V6_12, Work::Mixed, "").ready();
    let core = Core::of(&scene);
    // Not on a disk, whose speed is no part of this.
    let out = std::path::Path::new("/dev/shm/parsfs-makedumpfile");
    let mut group = criterion.benchmark_group(&scene.name);
    group
        .throughput(Throughput::Bytes(scene.setup.memory_mib << 20))
        .sample_size(10);
    for (name, options) in [
        ("peer: makedumpfile -d 31", vec!["-d", "31"]),
        ("peer: makedumpfile -c -d 31", vec!["-c", "-d", "31"]),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let _ = std::fs::remove_file(out);
                let done = core.makedumpfile(&options, out).output().expect("it runs");
                assert!(done.status.success());
            });
        });
    }
    let _ = std::fs::remove_file(out);
    group.finish();
}

criterion_group!(benches, classify, makedumpfile);
criterion_main!(benches);
