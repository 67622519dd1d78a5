//! One running QEMU: its serial port, where the guest's first program takes orders, and its monitor. Memory is a file, so
//! that stopping a guest leaves its memory behind as a raw snapshot, and a guest can be started from a changed copy.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::image::{self, Kernel};

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
}

/// A running guest. Killed when dropped.
pub struct Machine {
    child: Child,
    serial: BufReader<UnixStream>,
    monitor: BufReader<UnixStream>,
    sockets: tempfile::TempDir,
}

impl Machine {
    /// Boots a guest and waits for its first program.
    pub fn boot(setup: &Setup) -> Machine {
        let mut machine = Machine::start(setup, None, false);
        machine.answer_until("@@ready@@");
        machine
    }

    /// Goes on from a saved device state and the memory file of `setup`. Disks are left as they are.
    pub fn resume(setup: &Setup, state: &Path) -> Machine {
        let mut machine = Machine::load(setup, state);
        machine.order("cont", json!({}));
        machine
    }

    /// Loads a saved device state and stays stopped.
    pub fn load(setup: &Setup, state: &Path) -> Machine {
        let mut machine = Machine::start(setup, Some(state), true);
        let since = Instant::now();
        loop {
            let status = machine.order("query-status", json!({}));
            match status["status"].as_str() {
                Some("inmigrate") if since.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Some("paused" | "postmigrate" | "prelaunch" | "running") => return machine,
                other => panic!("the guest did not come back: {other:?}"),
            }
        }
    }

    fn start(setup: &Setup, state: Option<&Path>, keep_disks: bool) -> Machine {
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
        command.args([
            "-object",
            &format!(
                "memory-backend-file,id=mem0,size={}M,mem-path={memory},share=on",
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
        if !arm {
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
        if state.is_some() {
            command.args(["-incoming", "defer"]);
        }
        let mut child = command.stdin(Stdio::null()).spawn().expect("QEMU");
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
        serial.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let (monitor, serial) = (BufReader::new(monitor), BufReader::new(serial));
        let mut machine = Machine {
            child,
            serial,
            monitor,
            sockets,
        };
        machine.reply(|message| message.get("QMP").is_some());
        machine.order("qmp_capabilities", json!({}));
        if let Some(state) = state {
            machine.ignore_memory();
            machine.order(
                "migrate-incoming",
                json!({ "uri": format!("file:{}", state.display()) }),
            );
        }
        machine
    }

    /// Memory is a shared file: a saved state leaves it out.
    fn ignore_memory(&mut self) {
        let capabilities =
            json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
        self.order("migrate-set-capabilities", capabilities);
    }

    fn reply(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let mut line = String::new();
            let got = self.monitor.read_line(&mut line).expect("the monitor");
            assert!(got > 0, "QEMU is gone");
            let message: Value = serde_json::from_str(&line).expect("the monitor speaks JSON");
            if wanted(&message) {
                return message;
            }
        }
    }

    /// One order to the monitor, and its answer.
    pub fn order(&mut self, name: &str, arguments: Value) -> Value {
        let text = json!({ "execute": name, "arguments": arguments }).to_string();
        self.monitor
            .get_mut()
            .write_all(text.as_bytes())
            .expect("the monitor");
        let message =
            self.reply(|message| message.get("return").is_some() || message.get("error").is_some());
        assert!(message.get("error").is_none(), "{name}: {message}");
        message["return"].clone()
    }

    fn answer_until(&mut self, end: &str) -> String {
        self.try_answer(end, PATIENCE)
            .unwrap_or_else(|text| panic!("the guest fell silent: {text}"))
    }

    /// What comes over the serial port until a text, or what had come by then.
    fn try_answer(&mut self, end: &str, patience: Duration) -> Result<String, String> {
        let since = Instant::now();
        let mut text = Vec::new();
        self.serial
            .get_ref()
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("a timeout");
        loop {
            let mut byte = [0u8; 1];
            match self.serial.read(&mut byte) {
                Ok(1) => text.push(byte[0]),
                Ok(_) => return Err(String::from_utf8_lossy(&text).into_owned()),
                Err(_) if since.elapsed() > patience => {
                    return Err(String::from_utf8_lossy(&text).into_owned());
                }
                Err(_) => {}
            }
            if text.ends_with(end.as_bytes()) {
                return Ok(String::from_utf8_lossy(&text).into_owned());
            }
        }
    }

    /// Has the guest run one line; gives its exit status and what it printed, or what there was when patience ended.
    pub fn try_run(&mut self, line: &str, patience: Duration) -> Result<(i32, String), String> {
        if self
            .serial
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())
            .is_err()
        {
            return Err("the serial port is closed".into());
        }
        let since = Instant::now();
        let mut text = String::new();
        // Two marks end an answer; what the kernel prints in between stays in the text.
        loop {
            text.push_str(&self.try_answer("@@", patience.saturating_sub(since.elapsed()))?);
            let parts: Vec<&str> = text.split("@@").collect();
            if let [.., before, status, ""] = parts.as_slice()
                && let Ok(status) = status.parse()
            {
                return Ok((status, (*before).to_string()));
            }
        }
    }

    /// Has the guest run one line, which must succeed.
    pub fn run(&mut self, line: &str) -> String {
        match self.try_run(line, PATIENCE) {
            Ok((0, text)) => text,
            other => panic!("in the guest, {line:?}: {other:?}"),
        }
    }

    /// Stops the guest's processors.
    pub fn stop(&mut self) {
        self.order("stop", json!({}));
    }

    fn migrated(&mut self) {
        let since = Instant::now();
        loop {
            match self.order("query-migrate", json!({}))["status"].as_str() {
                Some("completed") => return,
                Some("failed") => panic!("the save failed"),
                _ => assert!(since.elapsed() < PATIENCE, "the save takes too long"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Saves the device state of a stopped guest whose memory file is the rest of the snapshot.
    pub fn save_state(&mut self, to: &Path) {
        self.ignore_memory();
        self.order(
            "migrate",
            json!({ "uri": format!("file:{}", to.display()) }),
        );
        self.migrated();
    }

    /// Saves all, as a stream or as mapped-ram.
    pub fn save_all(&mut self, to: &Path, mapped_ram: bool) {
        let capabilities = json!({ "capabilities": [
            { "capability": "x-ignore-shared", "state": false },
            { "capability": "mapped-ram", "state": mapped_ram },
        ] });
        self.order("migrate-set-capabilities", capabilities);
        self.order(
            "migrate",
            json!({ "uri": format!("file:{}", to.display()) }),
        );
        self.migrated();
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
