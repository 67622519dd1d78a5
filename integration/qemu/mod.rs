//! A QEMU without a guest OS whose memory the test knows: it lies in a file that the test has filled.
//! Spoken to in QMP over its standard input and output.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guests::image;

/// How long one command, or one save, may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// `PARSFS_QEMU`, a qemu-system-x86_64 of version 9.0 or later, or the one of the guests' packages.
fn program() -> Command {
    match std::env::var_os("PARSFS_QEMU") {
        Some(path) => Command::new(path),
        None => image::qemu("qemu-system-x86_64"),
    }
}

/// What is there once a program has written a file.
fn done(file: &Path) -> PathBuf {
    file.with_extension("done")
}

/// A virtual machine that is killed when it is dropped.
pub struct Machine {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    memory: PathBuf,
}

impl Machine {
    /// Starts a machine of this type whose RAM is the file, stopped before its first instruction.
    pub fn start(kind: &str, memory: &Path, extra: &[&str]) -> Self {
        let size = fs::metadata(memory).unwrap().len();
        let backend = format!(
            "memory-backend-file,id=mem0,size={size},mem-path={},share=on",
            memory.display()
        );
        let mut child = program()
            .args([
                "-machine",
                &format!("{kind},memory-backend=mem0"),
                "-object",
                &backend,
            ])
            .args(["-m", &format!("{}M", size >> 20), "-accel", "tcg", "-S"])
            .args(["-nodefaults", "-display", "none", "-qmp", "stdio"])
            .args(extra)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut machine = Self {
            child,
            input,
            output,
            memory: memory.to_owned(),
        };
        machine.next_message();
        machine.command("qmp_capabilities", json!({}));
        machine
    }

    fn next_message(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "QEMU has ended");
        serde_json::from_str(&line).unwrap()
    }

    /// Gives a command and waits for what it returns.
    pub fn command(&mut self, name: &str, arguments: Value) -> Value {
        writeln!(
            self.input,
            "{}",
            json!({"execute": name, "arguments": arguments})
        )
        .unwrap();
        loop {
            let message = self.next_message();
            assert!(message.get("error").is_none(), "{name}: {message}");
            if let Some(value) = message.get("return") {
                return value.clone();
            }
        }
    }

    /// Switches capabilities of migration on.
    pub fn capabilities(&mut self, names: &[&str]) {
        let list: Vec<Value> = names
            .iter()
            .map(|name| json!({"capability": name, "state": true}))
            .collect();
        self.command("migrate-set-capabilities", json!({"capabilities": list}));
    }

    /// Begins to save to the address.
    pub fn begin_save(&mut self, uri: &str) {
        self.command("migrate", json!({"uri": uri}));
    }

    /// Waits until the save is done; gives what QEMU says of it.
    pub fn wait_saved(&mut self) -> Value {
        let start = Instant::now();
        loop {
            let state = self.command("query-migrate", json!({}));
            match state["status"].as_str() {
                Some("completed") => return state,
                Some("failed" | "cancelled") => panic!("{state}"),
                _ => assert!(start.elapsed() < PATIENCE, "{state}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Begins to save through a program that writes the file.
    pub fn begin_save_by_pipe(&mut self, file: &Path) {
        let (file, done) = (file.display(), done(file));
        self.begin_save(&format!("exec:cat > {file}; touch {}", done.display()));
    }

    /// Waits until such a save is done and the program has written all of it: QEMU calls it completed while the last bytes are in
    /// the pipe.
    pub fn wait_saved_by_pipe(&mut self, file: &Path) -> Value {
        let state = self.wait_saved();
        let start = Instant::now();
        while !done(file).exists() {
            assert!(start.elapsed() < PATIENCE, "cat does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        state
    }

    /// How often a live save has gone over all of the guest's memory.
    pub fn rounds(&mut self) -> u64 {
        let state = self.command("query-migrate", json!({}));
        state["ram"]["dirty-sync-count"]
            .as_u64()
            .unwrap_or_default()
    }

    /// Saves and waits.
    pub fn save(&mut self, uri: &str) {
        self.begin_save(uri);
        self.wait_saved();
    }

    /// The guest's RAM as it is now, in the order of the file that backs it.
    pub fn memory(&self) -> Vec<u8> {
        fs::read(&self.memory).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
