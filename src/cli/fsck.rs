//! `parsfs fsck`: checks a volume that is not mounted.

use std::path::PathBuf;

use super::failure::Failure;
use super::{log, warn_of};
use crate::config::Config;
use crate::volume::{FsckReport, Volume};

/// Check a volume that is not mounted: names, files, objects, copies of the metadata
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  parsfs fsck /etc/parsfs/vms.toml
  parsfs fsck --repair /etc/parsfs/vms.toml

Without --repair nothing is written. With it, what follows from something else is set right: copies of the metadata,
labels, manifests, counts, what nothing refers to. Blocks and parity are not read; `parsfs scrub` does that.
Exit codes: 0 all is well; 1 could not be checked, for example because it is mounted; 2 wrong usage; 3 everything that was
wrong is set right (without --repair: could be); 4 something is wrong that cannot be set right, or a disk is missing.")]
pub(super) struct Fsck {
    /// The volume's config
    config: PathBuf,
    /// Set right what is safe
    #[arg(long)]
    repair: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl Fsck {
    pub(super) fn run(self) -> Result<(), Failure> {
        log::start("error");
        let config = Config::load(&self.config)?;
        warn_of(&config.warnings());
        let (before, after) = Volume::fsck(&config, self.repair)?;
        if self.json {
            let reports = serde_json::json!({ "found": before, "after_repair": after });
            println!("{reports:#}");
        } else {
            print!("{}", describe(&before));
            if let Some(after) = &after {
                println!("after the repair:");
                print!("{}", describe(after));
            }
        }
        let last = after.as_ref().unwrap_or(&before);
        if last.beyond_repair > 0 || after.as_ref().is_some_and(|after| after.problem_count > 0) {
            Err(Failure::BeyondRepair)
        } else if before.problem_count > 0 {
            Err(Failure::NotWell)
        } else {
            Ok(())
        }
    }
}

fn describe(report: &FsckReport) -> String {
    let mut text = format!(
        "{} disks, {} objects, {} keys, {} files, {} windows: ",
        report.disks, report.objects, report.keys, report.files, report.windows
    );
    if report.problem_count == 0 {
        text.push_str("all is well\n");
        return text;
    }
    text.push_str(&format!(
        "{} problems, {} of them beyond repair\n",
        report.problem_count, report.beyond_repair
    ));
    for problem in &report.problems {
        let kind = if problem.mendable {
            "can be set right"
        } else {
            "beyond repair"
        };
        text.push_str(&format!("  {} ({kind})\n", problem.what));
    }
    let more = report
        .problem_count
        .saturating_sub(report.problems.len() as u64);
    if more > 0 {
        text.push_str(&format!("  and {more} more\n"));
    }
    text
}
