//! Guests for tests: boots them, has them work, and keeps what they leave behind: memory, device state, disks and what
//! the guest itself says of its pages. A saved guest is used again by later runs.

#![allow(
    dead_code,
    reason = "every test target uses its own part of this module"
)]

pub mod core;
pub mod health;
pub mod image;
pub mod machine;
pub mod serial;
pub mod synthetic;

use std::fs;
use std::path::{Path, PathBuf};

use image::Kernel;
use machine::{Machine, Setup};
use serial::Serial;

/// What a guest does before it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// All three file systems, memory and tmpfs in use.
    Mixed,
    /// Most of memory is page cache.
    Cache,
    /// Most of memory is anonymous.
    Anonymous,
    /// Nothing but booting.
    Idle,
    /// Booting, and booting again without losing its memory.
    Rebooted,
}

/// A format in which QEMU saves a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Memory and devices in one stream.
    Stream,
    /// Every page at a place of its own.
    MappedRam,
    /// `dump-guest-memory`.
    Elf,
}

/// One saved guest.
#[derive(Clone, Debug)]
pub struct Scene {
    pub name: String,
    pub setup: Setup,
    pub work: Work,
}

impl Scene {
    pub fn new(kernel: Kernel, work: Work, arguments: &str) -> Scene {
        let tag: String = arguments
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect();
        let name = format!("{}-{work:?}{tag}", kernel.name()).to_lowercase();
        let dir = image::home().join("scenes").join(&name);
        let memory = dir.join("memory");
        let la57 = matches!(kernel, Kernel::V6_1 | Kernel::Newest);
        // An idle guest is large enough that its memory lies on both sides of the gap below 4 GiB.
        let memory_mib = if work == Work::Idle && !kernel.is_arm() {
            3072
        } else {
            512
        };
        let setup = Setup {
            kernel,
            memory_mib,
            arguments: arguments.into(),
            la57,
            dir,
            memory,
            private: false,
            environment: Vec::new(),
        };
        Scene { name, setup, work }
    }

    pub fn state(&self) -> PathBuf {
        self.setup.dir.join("state")
    }

    /// The guest's own word on each page frame: `/proc/kpageflags` and `/proc/kpagecount`, native 64-bit words.
    pub fn words(&self, which: &str) -> Vec<u64> {
        let bytes = fs::read(self.setup.dir.join(which)).expect("what the guest said");
        bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
            .collect()
    }

    /// What the guest's allocator counts: free pages of each zone, and of each processor's lists.
    pub fn zoneinfo(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.setup.dir.join("zoneinfo")).expect("zoneinfo");
        let number = |line: &str, key: &str| line.trim().strip_prefix(key)?.trim().parse().ok();
        text.lines()
            .filter_map(|line| number(line, "pages free").or_else(|| number(line, "count:")))
            .collect()
    }

    /// What the guest's processors count as free and keep for themselves.
    pub fn kept_by_processors(&self) -> u64 {
        let text = fs::read_to_string(self.setup.dir.join("zoneinfo")).expect("zoneinfo");
        let number = |line: &str| {
            line.trim()
                .strip_prefix("count:")?
                .trim()
                .parse::<u64>()
                .ok()
        };
        text.lines().filter_map(number).sum()
    }

    /// The same guest, saved in another format; made when it is absent. The raw memory is `setup.memory`.
    pub fn saved(&self, format: Format) -> PathBuf {
        let _turn = image::exclusive("guest");
        let path = self.setup.dir.join(format!("{format:?}").to_lowercase());
        if !path.exists() {
            // QEMU saves a guest once; for each format the guest is loaded again and stays stopped.
            let mut machine = Machine::load(&self.setup, &self.state());
            let partial = path.with_extension("partial");
            match format {
                Format::Stream => machine.save_all(&partial, false),
                Format::MappedRam => machine.save_all(&partial, true),
                Format::Elf => machine.dump(&partial),
            }
            machine.quit();
            fs::rename(&partial, &path).expect("the saved guest");
        }
        path
    }

    /// Makes sure that the saved guest is there.
    pub fn ready(self) -> Scene {
        let complete = self.setup.dir.join("complete");
        // What is there can be looked at while another guest runs.
        if !complete.exists() {
            let _turn = image::exclusive("guest");
            if !complete.exists() {
                let _ = fs::remove_dir_all(&self.setup.dir);
                fs::create_dir_all(&self.setup.dir).expect("the scene's directory");
                self.make();
                fs::write(&complete, "").expect("the scene's mark");
            }
        }
        self
    }

    /// Goes on from the saved guest with another memory file, and lets its shell take orders again.
    pub fn resume(&self, memory: &Path) -> Result<Machine, String> {
        let setup = Setup {
            memory: memory.to_path_buf(),
            ..self.setup.clone()
        };
        let mut machine = Machine::resume(&setup, &self.state());
        machine
            .try_run("", std::time::Duration::from_secs(60))
            .map(|_| machine)
    }

    /// How the guest is started with another memory file. `private`: the file is only read.
    pub fn setup_with(&self, memory: &Path, private: bool) -> Setup {
        Setup {
            memory: memory.to_path_buf(),
            private,
            ..self.setup.clone()
        }
    }

    /// The same guest after it has gone on and worked, with disks of its own; made when it is absent.
    pub fn later(&self) -> Scene {
        let name = format!("{}-later", self.name);
        let dir = image::home().join("scenes").join(&name);
        let setup = Setup {
            memory: dir.join("memory"),
            dir,
            ..self.setup.clone()
        };
        let later = Scene {
            name,
            setup,
            work: self.work,
        };
        let complete = later.setup.dir.join("complete");
        if !complete.exists() {
            let _turn = image::exclusive("guest");
            if !complete.exists() {
                let _ = fs::remove_dir_all(&later.setup.dir);
                fs::create_dir_all(&later.setup.dir).expect("the scene's directory");
                self.work_on(&later);
                fs::write(&complete, "").expect("the scene's mark");
            }
        }
        later
    }

    fn work_on(&self, later: &Scene) {
        let disks = image::FILE_SYSTEMS.map(|name| format!("{name}.img"));
        for file in disks
            .iter()
            .map(String::as_str)
            .chain(["memory", "out.img"])
        {
            let done = std::process::Command::new("cp")
                .arg("--sparse=always")
                .args([self.setup.dir.join(file), later.setup.dir.join(file)])
                .status();
            assert!(done.is_ok_and(|status| status.success()), "cp {file}");
        }
        let mut machine = Machine::wait_for_state(&later.setup, false);
        machine.begin_load(&machine::Way::state(&self.state()));
        machine.wait_loaded().expect("the guest is loaded");
        machine.go_on();
        machine.run("");
        machine.run("agent fill /m/ext4/later 6 1000000; agent fill /run/later 4 1000000");
        machine.run("rm -r /m/btrfs/written && agent fill /m/btrfs/written 5 900000");
        machine.run("sync; agent read /m/xfs/read; agent hog 60000; sleep 3");
        machine.stop();
        machine.save_state(&later.state());
        machine.quit();
    }

    fn make(&self) {
        let dir = &self.setup.dir;
        image::initramfs(self.setup.kernel);
        let out = fs::File::create(dir.join("out.img")).expect("a disk");
        out.set_len(33 << 20).expect("a disk");
        if self.setup.kernel.is_arm() {
            image::filled_disk(&dir.join("ext4.img"));
        } else {
            for file_system in image::FILE_SYSTEMS {
                image::disk(&dir.join(format!("{file_system}.img")), file_system);
            }
        }
        let mut machine = Machine::boot(&self.setup);
        if self.work == Work::Rebooted {
            machine.reboot();
        }
        fs::write(dir.join("release"), machine.run("uname -r").trim()).expect("the release");
        if self.setup.kernel.is_arm() {
            self.work_alone(&mut machine);
        } else {
            self.work_on_disks(&mut machine.serial);
        }
        machine.stop();
        machine.save_state(&self.state());
        machine.quit();
        split(dir);
        // Half of most memories is zeros.
        for file in ["memory", "out.img", "kpageflags", "kpagecount"] {
            let _ = std::process::Command::new("fallocate")
                .arg("-d")
                .arg(dir.join(file))
                .status();
        }
    }

    /// A guest without the agent: busybox alone works and tells. What tells is gone when the guest is stopped, so its own
    /// pages differ.
    fn work_alone(&self, machine: &mut Machine) {
        machine.run("mkdir -p /m/ext4 && mount -t ext4 /dev/vdb /m/ext4");
        machine.run("cd /m/ext4 && md5sum -cs sums");
        machine.run("cd /m/ext4 && for n in 1 2 3 4 5 6; do dd if=/dev/urandom of=written$n bs=150k count=7 2>/dev/null; done");
        machine.run("cd /m/ext4 && md5sum written* >/run/written && cp f0* /run/ && cd /run && md5sum f0* >/run/sums");
        machine.run("cd /; sync; sleep 3");
        for (file, at) in [("zoneinfo", 512), ("kpagecount", 256), ("kpageflags", 0)] {
            let options = format!("bs=64k oflag=direct seek={at} conv=notrunc,sync");
            machine.run(&format!(
                "dd if=/proc/{file} of=/dev/vda {options} 2>/dev/null"
            ));
        }
    }

    /// Has a guest that was just booted with the disks do its work and fall quiet.
    pub fn work_on_disks(&self, machine: &mut Serial) {
        machine.run("mkdir -p /m/ext4 /m/xfs /m/btrfs");
        for (number, file_system) in image::FILE_SYSTEMS.iter().enumerate() {
            let device = ["vdb", "vdc", "vdd"][number];
            machine.run(&format!(
                "mount -t {file_system} /dev/{device} /m/{file_system}"
            ));
        }
        let (count, held) = match self.work {
            Work::Mixed => (24, 48),
            Work::Cache => (60, 8),
            Work::Anonymous => (6, 220),
            Work::Idle | Work::Rebooted => (1, 1),
        };
        for file_system in image::FILE_SYSTEMS {
            let at = format!("/m/{file_system}");
            machine.run(&format!("agent fill {at}/read {count} 2000000"));
            machine.run(&format!("agent touch-make {at}/touch"));
            machine.run(&format!(
                "mkdir {at}/bin && cp /bin/busybox /bin/agent {at}/bin/"
            ));
        }
        machine.run("sync; echo 3 >/proc/sys/vm/drop_caches");
        for file_system in image::FILE_SYSTEMS {
            let at = format!("/m/{file_system}");
            machine.run(&format!(
                "agent read {at}/read && agent read {at}/touch && {at}/bin/busybox true"
            ));
            // What was written and has reached the disk still has its buffers.
            machine.run(&format!("agent fill {at}/written 6 1000000"));
        }
        machine.run("agent fill /run/files 6 2000000");
        machine.run(&format!(
            "(agent hold {held} /run/hold </dev/null >/dev/null 2>&1 &)"
        ));
        machine.run("while [ ! -e /run/hold.ready ]; do sleep 1; done");
        machine.run(
            "sync; agent fill /m/ext4/dirty 2 500000; agent fill /m/xfs/dirty 2 500000; sleep 3",
        );
        // The guest tells of its pages through a disk of its own, with direct I/O, and does nothing else any more.
        machine.run("agent tell /dev/vda");
    }
}

/// Takes what the guest said of its pages from its disk.
fn split(dir: &Path) {
    let bytes = fs::read(dir.join("out.img")).expect("the guest's disk");
    let (flags, rest) = bytes.split_at(16 << 20);
    let (counts, zones) = rest.split_at(16 << 20);
    fs::write(dir.join("kpageflags"), flags).expect("kpageflags");
    fs::write(dir.join("kpagecount"), counts).expect("kpagecount");
    let text: Vec<u8> = zones
        .iter()
        .copied()
        .take_while(|&byte| byte != 0)
        .collect();
    fs::write(dir.join("zoneinfo"), text).expect("zoneinfo");
}
