//! Real programs: what they make on the mount is what they make elsewhere.

use std::path::Path;

use crate::guests::image;
use crate::harness::process::{must, shell};
use crate::harness::tree::{self, Times};
use crate::harness::volume::Volume;

/// A tree with one of everything, beside the mount.
const SOURCE: &str = "
mkdir -p source/dir/deep source/empty
head -c 3000000 /dev/urandom > source/random
seq 200000 > source/text
: > source/nothing
truncate -s 5M source/sparse
printf data | dd of=source/sparse bs=1 seek=3000000 conv=notrunc status=none
ln source/random source/dir/hard
ln -s ../text source/dir/soft
ln -s /does/not/exist source/dangling
mkfifo source/dir/fifo
mknod source/dir/null c 1 3
chmod 4711 source/text; chmod 2750 source/dir; chmod 1777 source/empty
chown 1000:100 source/text; chown -h 1:1 source/dir/soft
setfattr -n user.origin -v 'somewhere else' source/text
setfattr -n user.kind -v directory source/dir
touch -d '2003-04-05 06:07:08.123456789' source/random source/dir/deep
touch -h -d '2004-05-06 07:08:09.5' source/dir/soft
for i in $(seq 300); do echo $i > source/dir/deep/$i; done
# Older than this second: rsync does not set a time that differs in less than seconds.
find source -newermt '2010-01-01' -exec touch -h -d '2005-06-07 08:09:10.987654321' {} +
";

/// Runs lines in a directory where `source` is the tree, `mnt` the mount, and compares what they made with the source,
/// once at once and once after a remount.
fn same_as_source(script: &str, made: &str) {
    let mut volume = Volume::mounted();
    let scratch = volume.scratch.path().to_owned();
    shell(&scratch, SOURCE);
    shell(&scratch, script);
    check(&scratch.join("source"), &scratch.join(made));
    volume.remount();
    check(&scratch.join("source"), &scratch.join(made));
}

#[track_caller]
fn check(source: &Path, made: &Path) {
    if let Err(why) = tree::compare(source, made, Times::Exact) {
        panic!("{why}");
    }
}

#[test]
fn cp() {
    same_as_source("cp -a source mnt/copy", "mnt/copy");
}

#[test]
fn cp_within_the_mount() {
    same_as_source(
        "cp -a source mnt/first && cp -a mnt/first mnt/copy",
        "mnt/copy",
    );
}

#[test]
fn mv_onto_the_mount() {
    same_as_source("cp -a source other && mv other mnt/copy", "mnt/copy");
}

#[test]
fn rsync() {
    same_as_source("rsync -aHX source/ mnt/copy/", "mnt/copy");
}

#[test]
fn rsync_sparse() {
    same_as_source("rsync -aHXS source/ mnt/copy/", "mnt/copy");
}

/// What is there is changed in place, by blocks that differ.
#[test]
fn rsync_in_place() {
    same_as_source(
        "cp -a source mnt/copy
         printf changed | dd of=mnt/copy/random bs=1 seek=1234567 conv=notrunc status=none
         truncate -s 1000 mnt/copy/dir/deep/7; rm mnt/copy/dir/soft; echo more >> mnt/copy/text
         rsync -aHX --inplace --no-whole-file --checksum --delete source/ mnt/copy/",
        "mnt/copy",
    );
}

#[test]
fn rsync_appending() {
    same_as_source(
        "rsync -aHX source/ mnt/copy/
         truncate -s 1000000 mnt/copy/random
         truncate -s 500 mnt/copy/sparse
         rsync -aHX --append source/ mnt/copy/",
        "mnt/copy",
    );
}

#[test]
fn tar_there_and_back() {
    same_as_source(
        "tar --xattrs -C source -cf mnt/a.tar . && mkdir mnt/copy && tar --xattrs -xpf mnt/a.tar -C mnt/copy",
        "mnt/copy",
    );
}

#[test]
fn dd() {
    same_as_source(
        "cp -a source mnt/copy && rm mnt/copy/dir/hard
         dd if=source/random of=mnt/copy/random bs=7777 conv=fsync,notrunc status=none
         ln mnt/copy/random mnt/copy/dir/hard
         touch -r source/random mnt/copy/random && touch -r source/dir mnt/copy/dir",
        "mnt/copy",
    );
}

/// cp looks for holes where a file occupies less than it is long, and asks for that right after its writer has closed it.
#[test]
fn cp_of_a_hole() {
    let volume = Volume::mounted();
    shell(
        &volume.mountpoint,
        "truncate -s 1T hole
         [ $(stat -c %b hole) = 0 ]
         timeout 60 cp hole copy && [ $(stat -c %s copy) = 1099511627776 ]
         printf x | dd of=hole bs=1 seek=1T conv=notrunc status=none
         timeout 60 cp --sparse=always hole copy && [ \"$(tail -c 1 copy)\" = x ]
         exec 3<>copy; head -c 100000 /dev/urandom >&3; [ $(stat -c %b copy) -gt 0 ]",
    );
}

/// Disk images whose runs of zeros begin and end anywhere, as they do in a saved guest, and are holes here. QEMU reads them with
/// O_DIRECT by whole sectors.
#[test]
fn qemu_img() {
    let volume = Volume::mounted();
    let scratch = volume.scratch.path().to_owned();
    shell(
        &scratch,
        "truncate -s 8M odd mnt/odd
         for i in $(seq 0 30); do
             head -c $((20011 + i * 37)) /dev/urandom > part
             for file in odd mnt/odd; do dd if=part of=$file bs=64K seek=$((i * 262147)) oflag=seek_bytes conv=notrunc status=none; done
         done
         cmp odd mnt/odd
         # There are holes, or this would show nothing.
         [ $(($(stat -c %b mnt/odd) * 512)) -lt 4000000 ]",
    );
    let parts = image::part("images");
    let qemu_img = |arguments: &str| {
        let mut command = image::program(&parts, "qemu-img");
        must(
            command
                .current_dir(&scratch)
                .args(arguments.split_whitespace()),
        );
    };
    qemu_img("convert -t none -T none -f raw -O raw mnt/odd mnt/direct");
    qemu_img("convert -T none -f raw -O qcow2 mnt/odd mnt/q.qcow2");
    qemu_img("check mnt/q.qcow2");
    qemu_img("compare -T none -f raw -F qcow2 mnt/odd mnt/q.qcow2");
    qemu_img("convert -t none -T none -f qcow2 -O raw mnt/q.qcow2 out");
    qemu_img("map --image-opts driver=file,filename=mnt/odd,cache.direct=on");
    shell(&scratch, "cmp odd mnt/direct && cmp odd out");
}

/// Editors write beside the file and rename over it; the file keeps what the editor keeps, and nothing is left over.
#[test]
fn editors_save() {
    let mut volume = Volume::mounted();
    shell(
        &volume.mountpoint,
        "seq 1000 > notes; chmod 640 notes
         for i in $(seq 20); do sed -i \"s/^$i\\$/line $i/\" notes; done
         [ \"$(sed -n 20p notes)\" = 'line 20' ] && [ $(wc -l < notes) = 1000 ] && [ $(stat -c %a notes) = 640 ]
         cp notes notes~ && seq 5 > .notes.swp && sync -d .notes.swp && mv -f .notes.swp notes
         [ $(wc -l < notes) = 5 ] && [ \"$(ls -A)\" = \"$(printf 'notes\\nnotes~')\" ]",
    );
    volume.remount();
    shell(
        &volume.mountpoint,
        "[ $(wc -l < notes) = 5 ] && [ $(wc -l < notes~) = 1000 ]",
    );
}

/// A compiler and a version control system: many small files, renames, locks, mappings.
#[test]
fn git() {
    let volume = Volume::mounted();
    shell(
        &volume.mountpoint,
        "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
         git init -q repository && cd repository
         git config user.email nobody@example.org && git config user.name Nobody
         for i in $(seq 50); do echo $i > f$i; done
         git add . && git commit -qm one && git repack -qad && git fsck --strict 2>&1 && [ -z \"$(git status --porcelain)\" ]",
    );
}

/// sqlite-like use: a journal beside a file that is patched in place, synced each time.
#[test]
fn small_writes_with_syncs_over_a_large_file() {
    let mut volume = Volume::mounted();
    let path = volume.path("database");
    use crate::harness::content;
    use crate::harness::random::Random;
    use std::os::unix::fs::FileExt;
    const PAGES: u64 = 4096;
    content::write_file(&path, 1, PAGES * 4096).expect("a file");
    let mut random = Random::new(1);
    let mut owner = vec![1; PAGES as usize];
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("open");
    for round in 2..400 {
        let page = random.below(PAGES);
        file.write_all_at(&content::bytes(round, page * 4096, 4096), page * 4096)
            .expect("write");
        owner[page as usize] = round;
        if random.once_in(2) {
            file.sync_data().expect("fdatasync");
        }
    }
    content::close(file).expect("close");
    volume.remount();
    let file = std::fs::File::open(&path).expect("open");
    for (page, seed) in owner.iter().enumerate() {
        content::check_range(&file, *seed, page as u64 * 4096, 4096).expect("a page");
    }
}
