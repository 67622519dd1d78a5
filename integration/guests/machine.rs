//! One running QEMU: its serial port, where the guest's first program takes orders, and its monitor. Memory is a file, so
//! that stopping a guest leaves its memory behind as a raw snapshot, and a guest can be started from a changed copy. It is
//! saved, and goes on, in all the ways that QEMU has.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use super::image::{self, Kernel};
use super::serial::Serial;

/// How long a guest may take for one order. Emulation on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(400);

/// How a guest is started.
#[derive(Clone, Debug)]
pub struct Setup {
    pub kernel: Kernel,
    pub memory_mib: u64,
    /// Added to the kernel's command line.
    pub arguments: String,
    /// Five-level page tables.
    pub la57: bool,
    /// The directory with the disks and the memory file.
    pub dir: PathBuf,
    /// The memory file, in `dir` unless it is somebody's changed copy.
    pub memory: PathBuf,
    /// The memory file is only read, and what the guest writes stays with QEMU: `MAP_PRIVATE`.
    pub private: bool,
    /// Variables of QEMU's environment.
    pub environment: Vec<(&'static str, PathBuf)>,
}

/// How QEMU saves a guest, or loads one.
#[derive(Clone, Debug)]
pub struct Way {
    /// QEMU's address of a migration, such as `file:/a/path`.
    pub uri: String,
    /// The capabilities of migration that are on; all others that are used here are off.
    pub capabilities: Vec<&'static str>,
    /// Parameters of migration, as QEMU names them.
    pub parameters: Value,
}

/// The capabilities that some way uses.
const CAPABILITIES: [&str; 3] = ["x-ignore-shared", "mapped-ram", "multifd"];

impl Way {
    pub fn new(uri: String, capabilities: &[&'static str], parameters: Value) -> Way {
        Way {
            uri,
            capabilities: capabilities.to_vec(),
            parameters,
        }
    }

    /// One stream with memory and devices.
    pub fn stream(uri: String) -> Way {
        Way::new(uri, &[], json!({}))
    }

    /// Devices alone, beside memory in a shared file.
    pub fn state(path: &Path) -> Way {
        Way::new(
            format!("file:{}", path.display()),
            &["x-ignore-shared"],
            json!({}),
        )
    }
}

/// A running guest. Killed when dropped.
pub struct Machine {
    child: Child,
    pub serial: Serial,
    monitor: BufReader<UnixStream>,
    sockets: tempfile::TempDir,
}

impl Machine {
    /// Boots a guest and waits for its first program.
    pub fn boot(setup: &Setup) -> Machine {
        let mut machine = Machine::start(setup, false, false);
        machine.serial.wait_ready();
        machine
    }

    /// Boots the guest again: its memory keeps what the new kernel does not write over.
    pub fn reboot(&mut self) {
        self.serial.send("reboot -f");
        self.serial.wait_ready();
    }

    /// Goes on from a saved device state and the memory file of `setup`. Disks are left as they are.
    pub fn resume(setup: &Setup, state: &Path) -> Machine {
        let mut machine = Machine::load(setup, state);
        machine.go_on();
        machine
    }

    /// Loads a saved device state and stays stopped.
    pub fn load(setup: &Setup, state: &Path) -> Machine {
        Machine::load_from(setup, &Way::state(state)).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Loads what was saved in some way and stays stopped; what QEMU says if it cannot. Disks are left as they are.
    pub fn load_from(setup: &Setup, way: &Way) -> Result<Machine, String> {
        let mut machine = Machine::wait_for_state(setup, true);
        machine.begin_load(way);
        machine.wait_loaded().map(|()| machine)
    }

    /// Starts QEMU, which then waits for the guest's state. With `keep_disks` what is written to the disks is forgotten.
    pub fn wait_for_state(setup: &Setup, keep_disks: bool) -> Machine {
        Machine::start(setup, true, keep_disks)
    }

    /// Begins to load a guest that was saved in some way.
    pub fn begin_load(&mut self, way: &Way) {
        self.set(way);
        self.order("migrate-incoming", json!({ "uri": way.uri }));
    }

    /// Waits until the guest is loaded; what QEMU says if it cannot be.
    pub fn wait_loaded(&mut self) -> Result<(), String> {
        let since = Instant::now();
        loop {
            let status = self.try_order("query-status", json!({}))?;
            match status["status"].as_str() {
                Some("inmigrate") if since.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Some("paused" | "postmigrate" | "prelaunch" | "running") => return Ok(()),
                other => return Err(format!("the guest did not come back: {other:?}")),
            }
        }
    }

    /// Lets a loaded or stopped guest run.
    pub fn go_on(&mut self) {
        self.order("cont", json!({}));
    }

    fn start(setup: &Setup, incoming: bool, keep_disks: bool) -> Machine {
        let sockets = tempfile::tempdir().expect("a directory for sockets");
        let arm = setup.kernel.is_arm();
        let mut command = image::qemu(if arm {
            "qemu-system-aarch64"
        } else {
            "qemu-system-x86_64"
        });
        let console = if arm { "ttyAMA0" } else { "ttyS0" };
        let cpu = match (arm, setup.la57) {
            (true, _) => "max,pauth-impdef=on",
            (false, true) => "max",
            (false, false) => "max,la57=off",
        };
        command.args([
            "-machine",
            if arm {
                "virt,memory-backend=mem0"
            } else {
                "q35,memory-backend=mem0"
            },
        ]);
        command.args(["-accel", "tcg,thread=multi", "-cpu", cpu, "-smp", "2"]);
        command.args(["-m", &format!("{}M", setup.memory_mib)]);
        let memory = setup.memory.display();
        let mapping = if setup.private {
            "share=off,readonly=on,rom=off"
        } else {
            "share=on"
        };
        command.args([
            "-object",
            &format!(
                "memory-backend-file,id=mem0,size={}M,mem-path={memory},{mapping}",
                setup.memory_mib
            ),
        ]);
        command.args([
            "-display",
            "none",
            "-nodefaults",
            "-no-user-config",
            "-device",
            "vmcoreinfo",
        ]);
        for (name, option) in [("serial", "-serial"), ("monitor", "-qmp")] {
            let path = sockets.path().join(name);
            command.args([
                option,
                &format!("unix:{},server=on,wait=off", path.display()),
            ]);
        }
        command
            .arg("-kernel")
            .arg(setup.kernel.image())
            .arg("-initrd")
            .arg(image::home().join(format!("{}.cpio", setup.kernel.name())));
        command.args([
            "-append",
            &format!(
                "console={console} panic=-1 mitigations=off quiet {}",
                setup.arguments
            ),
        ]);
        let mut disks = vec!["out".to_string()];
        if arm {
            disks.push("ext4".to_string());
        } else {
            disks.extend(image::FILE_SYSTEMS.map(str::to_string));
        }
        for disk in disks {
            let path = setup.dir.join(format!("{disk}.img"));
            let keep = if keep_disks { ",snapshot=on" } else { "" };
            command.args([
                "-drive",
                &format!("if=none,id={disk},format=raw,file={}{keep}", path.display()),
            ]);
            command.args([
                "-device",
                &format!("virtio-blk-pci,drive={disk},serial={disk}"),
            ]);
        }
        if incoming {
            command.args(["-incoming", "defer"]);
        }
        let mut child = command
            .envs(setup.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .spawn()
            .expect("QEMU");
        let mut connect = |name: &str| {
            let since = Instant::now();
            loop {
                match UnixStream::connect(sockets.path().join(name)) {
                    Ok(stream) => return stream,
                    Err(error) => {
                        let gone = child.try_wait().ok().flatten();
                        let late = since.elapsed() > Duration::from_secs(30);
                        assert!(gone.is_none() && !late, "QEMU's {name}: {error} ({gone:?})");
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            }
        };
        let monitor = connect("monitor");
        let serial = connect("serial");
        let mut machine = Machine {
            child,
            serial: Serial::new(serial),
            monitor: BufReader::new(monitor),
            sockets,
        };
        machine
            .reply(|message| message.get("QMP").is_some())
            .expect("the monitor's greeting");
        machine.order("qmp_capabilities", json!({}));
        machine
    }

    /// Makes QEMU save or load in this way from now on.
    fn set(&mut self, way: &Way) {
        let capabilities: Vec<Value> = CAPABILITIES
            .iter()
            .map(|name| json!({ "capability": name, "state": way.capabilities.contains(name) }))
            .collect();
        self.order(
            "migrate-set-capabilities",
            json!({ "capabilities": capabilities }),
        );
        self.order("migrate-set-parameters", way.parameters.clone());
    }

    fn reply(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<Value, String> {
        loop {
            let mut line = String::new();
            let got = self.monitor.read_line(&mut line);
            if !got.is_ok_and(|got| got > 0) {
                return Err("QEMU is gone".into());
            }
            let message: Value = serde_json::from_str(&line).expect("the monitor speaks JSON");
            if wanted(&message) {
                return Ok(message);
            }
        }
    }

    /// One order to the monitor, and its answer.
    pub fn order(&mut self, name: &str, arguments: Value) -> Value {
        self.try_order(name, arguments)
            .unwrap_or_else(|why| panic!("{name}: {why}"))
    }

    /// One order to the monitor, and its answer, or what QEMU says against it.
    pub fn try_order(&mut self, name: &str, arguments: Value) -> Result<Value, String> {
        let text = json!({ "execute": name, "arguments": arguments }).to_string();
        self.send(text.as_bytes(), None)?;
        let message = self
            .reply(|message| message.get("return").is_some() || message.get("error").is_some())?;
        match message.get("error") {
            Some(error) => Err(error.to_string()),
            None => Ok(message["return"].clone()),
        }
    }

    /// Gives QEMU an open file under a name, for addresses of the kind `fd:NAME`.
    pub fn give(&mut self, name: &str, file: impl AsFd) {
        let text = json!({ "execute": "getfd", "arguments": { "fdname": name } }).to_string();
        self.send(text.as_bytes(), Some(file.as_fd()))
            .expect("the monitor");
        let answer =
            self.reply(|message| message.get("return").is_some() || message.get("error").is_some());
        assert!(
            answer
                .as_ref()
                .is_ok_and(|answer| answer.get("error").is_none()),
            "getfd: {answer:?}"
        );
    }

    /// Writes to the monitor, with an open file beside the bytes if there is one.
    fn send(&mut self, text: &[u8], file: Option<BorrowedFd<'_>>) -> Result<(), String> {
        let Some(file) = file else {
            let written = self.monitor.get_mut().write_all(text);
            return written.map_err(|error| format!("the monitor: {error}"));
        };
        let files = [file];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        assert!(beside.push(SendAncillaryMessage::ScmRights(&files)));
        let sent = sendmsg(
            self.monitor.get_ref(),
            &[std::io::IoSlice::new(text)],
            &mut beside,
            SendFlags::empty(),
        );
        match sent {
            Ok(sent) if sent == text.len() => Ok(()),
            other => Err(format!(
                "the monitor took {other:?} of {} bytes",
                text.len()
            )),
        }
    }

    /// Has the guest run one line; gives its exit status and what it printed, or what there was when patience ended.
    pub fn try_run(&mut self, line: &str, patience: Duration) -> Result<(i32, String), String> {
        self.serial.try_run(line, patience)
    }

    /// Has the guest run one line, which must succeed.
    pub fn run(&mut self, line: &str) -> String {
        self.serial.run(line)
    }

    /// Stops the guest's processors.
    pub fn stop(&mut self) {
        self.order("stop", json!({}));
    }

    /// Resets a stopped guest, which stays stopped: at the first instruction of its firmware.
    pub fn reset(&mut self) {
        let order = json!({ "execute": "system_reset" }).to_string();
        let (mut taken, mut done) = (false, false);
        let both = self.send(order.as_bytes(), None).and_then(|()| {
            // The answer and the word that it is done come in either order.
            while !(taken && done) {
                let awaited = |message: &Value| {
                    message.get("return").is_some() || message["event"] == "RESET"
                };
                let message = self.reply(awaited)?;
                done |= message.get("event").is_some();
                taken |= message.get("return").is_some();
            }
            Ok(())
        });
        both.unwrap_or_else(|why| panic!("{why}"));
    }

    /// Begins to save in some way.
    pub fn begin_save(&mut self, way: &Way) {
        self.set(way);
        self.order("migrate", json!({ "uri": way.uri }));
    }

    /// How far a save or a load has come, in QEMU's words.
    pub fn progress(&mut self) -> Value {
        self.order("query-migrate", json!({}))
    }

    /// Waits until a save is done.
    pub fn wait_saved(&mut self) -> Result<(), String> {
        let since = Instant::now();
        loop {
            let progress = self.progress();
            match progress["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => return Err(progress.to_string()),
                _ if since.elapsed() > PATIENCE => return Err(format!("too slow: {progress}")),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Saves in some way, and waits.
    pub fn save(&mut self, way: &Way) {
        self.begin_save(way);
        self.wait_saved()
            .unwrap_or_else(|why| panic!("{way:?}: {why}"));
    }

    /// Saves the device state of a stopped guest whose memory file is the rest of the snapshot.
    pub fn save_state(&mut self, to: &Path) {
        self.save(&Way::state(to));
    }

    /// Saves all, as a stream or as mapped-ram.
    pub fn save_all(&mut self, to: &Path, mapped_ram: bool) {
        let capabilities: &[&'static str] = if mapped_ram { &["mapped-ram"] } else { &[] };
        self.save(&Way::new(
            format!("file:{}", to.display()),
            capabilities,
            json!({}),
        ));
    }

    /// Writes an ELF core.
    pub fn dump(&mut self, to: &Path) {
        let arguments = json!({ "paging": false, "protocol": format!("file:{}", to.display()), "format": "elf" });
        self.order("dump-guest-memory", arguments);
    }

    /// Ends QEMU in order, so that the disks are written out.
    pub fn quit(mut self) {
        self.order("quit", json!({}));
        let _ = self.child.wait();
        let _ = self.sockets.path();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
