//! The serial port of a guest, where its first program takes orders: one line of shell each, answered with its exit status.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a guest may take for one order. Emulation on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(400);

/// One end of the port.
pub struct Serial(BufReader<UnixStream>);

impl Serial {
    pub fn new(stream: UnixStream) -> Serial {
        Serial(BufReader::new(stream))
    }

    /// Waits until the guest's first program takes orders.
    pub fn wait_ready(&mut self) {
        if let Err(text) = self.try_answer("@@ready@@", PATIENCE) {
            panic!("the guest fell silent: {text}");
        }
    }

    /// Gives an order that has no answer.
    pub fn send(&mut self, line: &str) {
        let written = self.0.get_mut().write_all(format!("{line}\n").as_bytes());
        written.expect("the serial port");
    }

    /// What comes over the serial port until a text, or what had come by then.
    fn try_answer(&mut self, end: &str, patience: Duration) -> Result<String, String> {
        let since = Instant::now();
        let mut text = Vec::new();
        self.0
            .get_ref()
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("a timeout");
        loop {
            let mut byte = [0u8; 1];
            match self.0.read(&mut byte) {
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
        let written = self.0.get_mut().write_all(format!("{line}\n").as_bytes());
        if written.is_err() {
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
}
