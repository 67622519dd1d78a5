//! A task as people and programs see it go on: a bar on a terminal, lines of plain text elsewhere, JSON on request.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::table::bytes;
use crate::volume::{TaskState, TaskStatus};

/// How often a line of plain text is written at most.
const LINES: Duration = Duration::from_secs(5);

/// Shows how a task goes on.
pub(super) struct Progress {
    how: How,
}

enum How {
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
    Json { last: Option<Instant> },
}

impl Progress {
    pub(super) fn new(json: bool) -> Progress {
        let how = if json {
            How::Json { last: None }
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {percent}% {prefix}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            How::Bar(bar)
        } else {
            How::Lines { last: None }
        };
        Progress { how }
    }

    /// Shows how it is now.
    pub(super) fn show(&mut self, status: &TaskStatus) {
        match &mut self.how {
            How::Bar(bar) => {
                bar.set_length(status.bytes_total.max(1));
                bar.set_position(status.bytes_done.min(status.bytes_total));
                bar.set_message(status.what.clone());
                bar.set_prefix(pace(status));
                bar.tick();
            }
            How::Lines { last } => {
                if last.is_none_or(|last| last.elapsed() >= LINES) {
                    *last = Some(Instant::now());
                    eprintln!("{}: {}% {}", status.what, percent(status), pace(status));
                }
            }
            How::Json { last } => {
                if last.is_none_or(|last| last.elapsed() >= Duration::from_secs(1)) {
                    *last = Some(Instant::now());
                    json(status);
                }
            }
        }
    }

    /// Shows how it ended.
    pub(super) fn end(self, status: &TaskStatus) {
        match self.how {
            How::Json { .. } => json(status),
            How::Bar(bar) => {
                bar.finish_and_clear();
                print!("{}", describe(status));
            }
            How::Lines { .. } => print!("{}", describe(status)),
        }
    }
}

/// A task as a line for programs.
pub(super) fn json(status: &TaskStatus) {
    // Plain fields of plain types: it cannot fail.
    println!("{}", serde_json::to_string(status).unwrap_or_default());
}

fn percent(status: &TaskStatus) -> u64 {
    let done = u128::from(status.bytes_done.min(status.bytes_total)) * 100;
    match status.bytes_total {
        0 => 0,
        total => (done / u128::from(total)) as u64,
    }
}

fn pace(status: &TaskStatus) -> String {
    let mut text = format!(
        "{} of {}, {}/s",
        bytes(status.bytes_done),
        bytes(status.bytes_total),
        bytes(status.bytes_per_second)
    );
    if let Some(seconds) = status.seconds_left {
        text.push_str(&format!(", {} left", time(seconds)));
    }
    if status.waiting > 0 {
        text.push_str(&format!(
            ", waits for {} files that are being written",
            status.waiting
        ));
    }
    text
}

/// `45 s`, `3 min 20 s`, `2 h 5 min`.
fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// A task in words.
pub(super) fn describe(status: &TaskStatus) -> String {
    let mut text = match status.state {
        TaskState::Running => format!("{}: {}% {}\n", status.what, percent(status), pace(status)),
        TaskState::Interrupted => format!(
            "{} is interrupted at {}%, and goes on at the next mount for writing\n",
            status.what,
            percent(status)
        ),
        state => format!(
            "{} is {} after {}\n",
            status.what,
            state.word(),
            time(status.seconds as u64)
        ),
    };
    let mut facts = Vec::new();
    for (count, fact) in [
        (status.verified, "verified"),
        (status.moved, "moved"),
        (status.lost, "of files are lost for good"),
    ] {
        if count > 0 {
            facts.push(format!("{} {fact}", bytes(count)));
        }
    }
    for (count, fact) in [
        (status.bad, "bad"),
        (status.repaired, "repaired"),
        (
            status.unseen,
            "not looked at, as their disks are away or faulty",
        ),
        (status.gone, "blocks beyond repair"),
    ] {
        if count > 0 {
            facts.push(format!("{count} {fact}"));
        }
    }
    if !facts.is_empty() {
        text.push_str(&format!("{}\n", facts.join(", ")));
    } else if status.state == TaskState::Done {
        text.push_str("there was nothing to do\n");
    }
    for warning in &status.warnings {
        text.push_str(&format!("  warning: {warning}\n"));
    }
    for problem in &status.problems {
        text.push_str(&format!("  {problem}\n"));
    }
    let more = status
        .problem_count
        .saturating_sub(status.problems.len() as u64);
    if more > 0 {
        text.push_str(&format!("  and {more} more problems; the log has them\n"));
    }
    if let Some(error) = &status.error {
        text.push_str(&format!("{error}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_two_units() {
        assert_eq!(time(59), "59 s");
        assert_eq!(time(200), "3 min 20 s");
        assert_eq!(time(7500), "2 h 5 min");
    }
}
