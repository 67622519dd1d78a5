//! Programs that are run to their end, and never longer than a limit: a test that hangs tells nothing.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// How long a program may take where nothing else is said.
pub const LIMIT: Duration = Duration::from_secs(120);

/// What came of a program.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Panics with all that the program said unless it succeeded.
    #[track_caller]
    pub fn expect_success(self, what: &str) -> Outcome {
        assert!(
            self.success(),
            "{what} failed with {}\n{}{}",
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }
}

/// Runs a program in a process group of its own, with no input; kills the group and panics at the limit.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Outcome {
    start(command).finish(limit)
}

/// A program that runs.
pub struct Started {
    shown: String,
    child: Child,
    stdout: thread::JoinHandle<String>,
    stderr: thread::JoinHandle<String>,
}

/// Starts a program in a process group of its own, with no input.
#[track_caller]
pub fn start(command: &mut Command) -> Started {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    Started {
        shown,
        child,
        stdout,
        stderr,
    }
}

impl Started {
    /// Waits for its end; kills its group and panics at the limit.
    #[track_caller]
    pub fn finish(self, limit: Duration) -> Outcome {
        let Started {
            shown,
            mut child,
            stdout,
            stderr,
        } = self;
        let status = match wait(&mut child, limit) {
            Some(status) => status,
            None => {
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                // A process inside a request to a filesystem that hangs cannot be killed; do not wait for its output then.
                let ended = wait(&mut child, Duration::from_secs(5)).is_some();
                let said = if ended {
                    stdout.join().unwrap_or_default() + &stderr.join().unwrap_or_default()
                } else {
                    String::new()
                };
                panic!(
                    "{shown}: not done after {limit:?} {}\n{said}",
                    if ended { "" } else { "(and cannot be killed)" }
                );
            }
        };
        Outcome {
            status,
            stdout: stdout.join().unwrap_or_default(),
            stderr: stderr.join().unwrap_or_default(),
        }
    }
}

/// Runs a program that has to succeed within the usual limit.
#[track_caller]
pub fn must(command: &mut Command) -> Outcome {
    let shown = format!("{command:?}");
    run(command, LIMIT).expect_success(&shown)
}

/// Runs lines of shell in a directory; the first that fails ends them.
#[track_caller]
pub fn shell(directory: &std::path::Path, script: &str) -> Outcome {
    must(
        Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(directory),
    )
}

/// Waits for a child, at most for the limit.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            return Some(status);
        }
        if begin.elapsed() > limit {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn collect<R: Read + Send + 'static>(pipe: Option<R>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[test]
#[should_panic(expected = "not done after")]
fn a_program_that_hangs_is_ended() {
    run(Command::new("sleep").arg("60"), Duration::from_millis(200));
}
