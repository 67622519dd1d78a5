//! A libvirtd of the distribution, run beside the machine's own if there is one, and a guest that it runs: the same guest as the
//! others, under libvirt's hands.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::guests::image::{self, FILE_SYSTEMS, Kernel};
use crate::guests::serial::Serial;
use crate::harness::process::{self, Outcome};

/// How long libvirt may take for one order.
const PATIENCE: Duration = Duration::from_secs(300);

/// The name of the guest.
pub const GUEST: &str = "guest";

/// A running libvirtd. It and all its guests end when it is dropped.
pub struct Libvirt {
    daemon: Child,
    part: PathBuf,
    root: PathBuf,
    shared: PathBuf,
}

impl Libvirt {
    /// Starts it. `root` keeps what it knows over a restart; `shared` is seen inside under its own name, with what is mounted
    /// there now; `saves` is where managed saves go.
    pub fn start(root: &Path, shared: &Path, saves: &Path) -> Libvirt {
        let part = image::part("libvirt");
        fs::create_dir_all(root).expect("libvirt's root");
        let socket = root.join("run/libvirt/libvirt-sock");
        let _ = fs::remove_file(&socket);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/guests/libvirt.sh");
        let said = fs::File::create(root.join("said")).expect("a file");
        let daemon = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child"])
            .arg(script)
            .args([root, &part, shared, saves])
            .stdin(Stdio::null())
            .stdout(said.try_clone().expect("a file"))
            .stderr(said)
            .spawn()
            .expect("unshare");
        let mut libvirt = Libvirt {
            daemon,
            part,
            root: root.to_owned(),
            shared: shared.to_owned(),
        };
        let since = Instant::now();
        while !libvirt.virsh(&["version"]).success() {
            let ended = libvirt.daemon.try_wait().expect("waiting for libvirtd");
            assert!(
                ended.is_none() && since.elapsed() < PATIENCE,
                "libvirtd does not answer: {ended:?} {}",
                libvirt.said()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        libvirt
    }

    fn said(&self) -> String {
        ["said", "var/log/libvirt/libvirtd.log"]
            .map(|name| fs::read_to_string(self.root.join(name)).unwrap_or_default())
            .concat()
    }

    /// Runs virsh to its end.
    pub fn virsh(&self, arguments: &[&str]) -> Outcome {
        let socket = self.root.join("run/libvirt/libvirt-sock");
        let mut command = image::program(&self.part, "virsh");
        command
            .args(["-c", &format!("qemu:///system?socket={}", socket.display())])
            .args(arguments);
        process::run(&mut command, PATIENCE)
    }

    /// Runs virsh, which must succeed.
    #[track_caller]
    pub fn must(&self, arguments: &[&str]) {
        let outcome = self.virsh(arguments);
        assert!(
            outcome.success(),
            "virsh {arguments:?}: {}{}\n{}",
            outcome.stdout,
            outcome.stderr,
            self.said()
        );
    }

    /// Defines the guest with disks in the shared directory, and starts it; returns when it takes orders.
    pub fn boot(&self, kernel: Kernel, memory_mib: u64) -> Serial {
        image::initramfs(kernel);
        let copy = |from: &Path, name: &str| {
            fs::copy(from, self.shared.join(name)).expect("what the guest boots from");
        };
        copy(&kernel.image(), "vmlinuz");
        copy(
            &image::home().join(format!("{}.cpio", kernel.name())),
            "initramfs",
        );
        let out = fs::File::create(self.shared.join("out.img")).expect("a disk");
        out.set_len(33 << 20).expect("a disk");
        for file_system in FILE_SYSTEMS {
            image::disk(&self.shared.join(format!("{file_system}.img")), file_system);
        }
        let definition = self.shared.join("guest.xml");
        fs::write(&definition, self.definition(memory_mib)).expect("the definition");
        self.must(&["define", &definition.display().to_string()]);
        self.must(&["start", GUEST]);
        let mut serial = self.serial();
        serial.wait_ready();
        serial
    }

    /// The guest's serial port; each start of the guest has a new one.
    pub fn serial(&self) -> Serial {
        let path = self.shared.join("serial");
        let stream = UnixStream::connect(&path)
            .unwrap_or_else(|error| panic!("the guest's serial port: {error}"));
        Serial::new(stream)
    }

    fn definition(&self, memory_mib: u64) -> String {
        let at = self.shared.display();
        let mut disks = String::new();
        let names = ["out"].into_iter().chain(FILE_SYSTEMS);
        for (name, target) in names.zip(["vda", "vdb", "vdc", "vdd"]) {
            disks += &format!(
                "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{at}/{name}.img'/>\
                 <target dev='{target}' bus='virtio'/></disk>"
            );
        }
        format!(
            "<domain type='qemu'>
               <name>{GUEST}</name><memory unit='MiB'>{memory_mib}</memory><vcpu>2</vcpu>
               <os>
                 <type arch='x86_64' machine='q35'>hvm</type>
                 <kernel>{at}/vmlinuz</kernel><initrd>{at}/initramfs</initrd>
                 <cmdline>console=ttyS0 panic=-1 mitigations=off quiet</cmdline>
               </os>
               <features><acpi/><vmcoreinfo state='on'/></features>
               <cpu mode='maximum'><feature policy='disable' name='la57'/></cpu>
               <devices>
                 <emulator>/usr/bin/qemu-system-x86_64</emulator>
                 {disks}
                 <serial type='unix'><source mode='bind' path='{at}/serial'/><target port='0'/></serial>
                 <controller type='usb' model='none'/><memballoon model='none'/>
               </devices>
             </domain>"
        )
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // The name space of processes goes with its first one, and with it the guests.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
