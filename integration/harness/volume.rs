//! A volume over test disks, served by the real binary. The daemon runs in the foreground as a child, so that a test can
//! kill it and see how it ended; going into the background is the business of `command_line`.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Resource, Rlimit, Signal, setrlimit};

use super::disks::{Backing, TestDisk};
use super::process::{self, Outcome};
use super::scratch::Scratch;
use super::watchdog::Watchdog;
use super::{mounts, wait_until};

/// How long a mount or an unmount may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a scenario may take where it says nothing else.
const SCENARIO: Duration = Duration::from_secs(300);

/// The shape of a volume.
#[derive(Clone, Debug)]
pub struct Shape {
    pub disks: usize,
    pub critical: &'static str,
    pub expendable: &'static str,
    pub compression: &'static str,
    pub backing: Backing,
    /// More lines of the config's `[policy]`.
    pub more: String,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            disks: 6,
            critical: "4+2",
            expendable: "1+0",
            compression: "zstd:1",
            backing: Backing::Directory,
            more: String::new(),
        }
    }
}

/// A volume.
#[derive(Debug)]
pub struct Volume {
    pub disks: Vec<TestDisk>,
    pub config: PathBuf,
    pub mountpoint: PathBuf,
    pub scratch: Scratch,
    /// How many files the daemon may have open, for the next mount.
    pub open_files: Option<u64>,
    log: PathBuf,
    daemon: Option<Child>,
    watchdog: Watchdog,
}

impl Volume {
    /// Makes a volume, not yet mounted.
    pub fn new(shape: &Shape) -> Volume {
        let volume = Volume::unmade(shape);
        volume
            .parsfs(["init".as_ref(), volume.config.as_os_str()])
            .expect_success("parsfs init");
        volume
    }

    /// The usual volume, 4+2 over six directories, mounted.
    pub fn mounted() -> Volume {
        Volume::mounted_as(&Shape::default())
    }

    pub fn mounted_as(shape: &Shape) -> Volume {
        let mut volume = Volume::new(shape);
        volume.mount();
        volume
    }

    /// The disks and the config, and no volume on them.
    pub fn unmade(shape: &Shape) -> Volume {
        let scratch = Scratch::new();
        let disks: Vec<TestDisk> = (1..=shape.disks)
            .map(|n| TestDisk::new(&scratch, n, shape.backing))
            .collect();
        let config = scratch.path().join("volume.toml");
        let volume = Volume {
            disks,
            config,
            mountpoint: scratch.directory("mnt"),
            open_files: None,
            log: scratch.path().join("daemon.log"),
            scratch,
            daemon: None,
            watchdog: Watchdog::new(SCENARIO),
        };
        volume.write_config(shape);
        volume
    }

    fn write_config(&self, shape: &Shape) {
        let mut text = String::from("[volume]\nname = \"test\"\n\n");
        for disk in &self.disks {
            text += &format!("[[disk]]\npath = \"{}\"\n\n", disk.path.display());
        }
        text += &format!(
            "[policy]\ncritical = \"{}\"\nexpendable = \"{}\"\ncompression = \"{}\"\n{}\n\n",
            shape.critical, shape.expendable, shape.compression, shape.more
        );
        // Where a daemon in the background writes, which normally is the machine's own log directory.
        text += &format!(
            "[log]\nfile = \"{}\"\n",
            self.scratch.path().join("background.log").display()
        );
        fs::write(&self.config, text).expect("the config");
    }

    /// Gives the scenario this long from now before its daemon is killed.
    pub fn limit(&self, seconds: u64) {
        self.watchdog.limit(Duration::from_secs(seconds));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.mountpoint.join(name)
    }

    /// Runs the binary to its end.
    pub fn parsfs<I, A>(&self, arguments: I) -> Outcome
    where
        I: IntoIterator<Item = A>,
        A: AsRef<std::ffi::OsStr>,
    {
        process::run(Command::new(binary()).args(arguments), PATIENCE)
    }

    #[track_caller]
    pub fn mount(&mut self) {
        self.mount_with(&[]);
    }

    #[track_caller]
    pub fn mount_with(&mut self, options: &[&str]) {
        if let Err(why) = self.try_mount(options) {
            panic!("the volume does not mount: {why}");
        }
    }

    /// Mounts, and returns when the mount answers; what the daemon said if it ended instead.
    pub fn try_mount(&mut self, options: &[&str]) -> Result<(), String> {
        assert!(self.daemon.is_none(), "mounted already");
        let from = fs::metadata(&self.log).map_or(0, |metadata| metadata.len());
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("the daemon's log");
        let mut command = Command::new(binary());
        command
            .arg("mount")
            .args([&self.config, &self.mountpoint])
            .arg("--foreground")
            .args(options)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the daemon's log"))
            .stderr(log)
            .process_group(0);
        let open_files = self.open_files;
        // SAFETY: between fork and exec it makes two system calls, which is allowed there.
        unsafe {
            // A test that is killed takes its daemon with it.
            command.pre_exec(move || {
                if open_files.is_some() {
                    let limit = Rlimit {
                        current: open_files,
                        maximum: open_files,
                    };
                    setrlimit(Resource::Nofile, limit)?;
                }
                Ok(rustix::process::set_parent_process_death_signal(Some(
                    Signal::KILL,
                ))?)
            });
        }
        let mut child = command.spawn().expect("the parsfs binary");
        let begin = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("waiting for the daemon") {
                return Err(format!("{status}: {}", self.said_since(from)));
            }
            if self.is_mounted() {
                self.watchdog.server(Some(Pid::from_child(&child)));
                self.daemon = Some(child);
                // The kernel holds this back until the daemon answers.
                return rustix::fs::statvfs(&self.mountpoint)
                    .map(drop)
                    .map_err(|error| format!("statfs: {error}; {}", self.said_since(from)));
            }
            if begin.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!(
                    "not mounted after {PATIENCE:?}; {}",
                    self.said_since(from)
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn is_mounted(&self) -> bool {
        mounts::on(&self.mountpoint).is_some()
    }

    /// Unmounts as an administrator does, and waits for the daemon's end. A program that another test starts has our open
    /// files for a moment, until it is past its exec; so "in use" is asked again.
    #[track_caller]
    pub fn umount(&mut self) {
        if let Err(why) = self.try_umount() {
            panic!("the volume does not unmount: {why}");
        }
    }

    /// The same; what went wrong if something did.
    pub fn try_umount(&mut self) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            let outcome = self.parsfs(["umount".as_ref(), self.mountpoint.as_os_str()]);
            let in_use = !outcome.success() && outcome.stderr.contains("is in use");
            if !in_use || begin.elapsed() > PATIENCE {
                if outcome.success() {
                    break;
                }
                let users = mounts::users(&self.mountpoint).join("\n");
                return Err(format!("{}: {}{users}", outcome.status, outcome.stderr));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut daemon = self.daemon.take().expect("a mounted volume");
        let ended = process::wait(&mut daemon, PATIENCE);
        self.watchdog.server(None);
        let Some(status) = ended else {
            let _ = daemon.kill();
            let _ = daemon.wait();
            return Err(format!("the daemon lives on for {PATIENCE:?}"));
        };
        if !status.success() {
            return Err(format!("the daemon ended with {status}: {}", self.said()));
        }
        if self.is_mounted() {
            return Err("it is still mounted after parsfs umount".to_owned());
        }
        Ok(())
    }

    /// Ends the daemon as a crash would, at whatever it is doing. The dead mount stays, and gives errors to whoever uses
    /// it: without it a program that comes late would write into the plain directory below, for ever.
    pub fn kill_daemon(&mut self) {
        self.watchdog.server(None);
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// The same, and takes the dead mount away.
    pub fn kill(&mut self) {
        self.kill_daemon();
        let _ = unmount(&self.mountpoint, UnmountFlags::DETACH);
        wait_until("the dead mount to go", PATIENCE, || !self.is_mounted());
    }

    /// The daemon's process id.
    pub fn daemon(&self) -> Pid {
        Pid::from_child(self.daemon.as_ref().expect("a mounted volume"))
    }

    /// Whether the daemon lives.
    pub fn serves(&mut self) -> bool {
        self.daemon
            .as_mut()
            .is_some_and(|daemon| matches!(daemon.try_wait(), Ok(None)))
    }

    /// Unmounts and mounts again.
    #[track_caller]
    pub fn remount(&mut self) {
        self.umount();
        self.mount();
    }

    /// The bytes that the volume occupies on all disks.
    pub fn used(&self) -> u64 {
        self.disks.iter().map(TestDisk::used).sum()
    }

    /// `parsfs status --json` of the volume.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let target = if self.is_mounted() {
            &self.mountpoint
        } else {
            &self.config
        };
        let outcome = self.parsfs(["status".as_ref(), target.as_os_str(), "--json".as_ref()]);
        let outcome = outcome.expect_success("parsfs status --json");
        serde_json::from_str(&outcome.stdout).expect("JSON from parsfs status --json")
    }

    /// Bytes that are yet to be compressed.
    pub fn to_compress(&self) -> u64 {
        let owed = &self.status()["owed"]["bytes_to_compress"];
        owed.as_u64().expect("a number")
    }

    /// Waits until everything takes the room that it takes in the end.
    pub fn until_compressed(&self) {
        let end = Instant::now() + Duration::from_secs(120);
        while self.to_compress() > 0 {
            assert!(Instant::now() < end, "something stays uncompressed");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// All that the daemon said.
    pub fn said(&self) -> String {
        self.said_since(0)
    }

    fn said_since(&self, from: u64) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let text =
            String::from_utf8_lossy(bytes.get(from as usize..).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let why = if self.watchdog.fired() {
                " (killed: out of time)"
            } else {
                ""
            };
            eprintln!("--- the daemon said{why}:\n{}\n---", self.said());
        }
        self.kill();
    }
}

/// The binary under test: the one just built, or that of `PARSFS_BINARY`, such as an installed one.
pub fn binary() -> PathBuf {
    std::env::var_os("PARSFS_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_parsfs").into(), PathBuf::from)
}
