//! `parsfs plan`: what a policy costs and how likely it is to lose something, before any disk is bought. It computes, and
//! looks at no disk.

mod chance;

use std::path::PathBuf;

use serde::Serialize;

use self::chance::{Disks, of_loss};
use super::failure::Failure;
use super::table::{Align, Table, bytes};
use crate::config::{Config, parse_code, parse_size};
use crate::store::Code;

/// Compute what a policy costs, and the yearly chance of losing something with it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  parsfs plan --disks 6 --critical 4+2
  parsfs plan --disks 12 --critical 8+3 --critical 4+2 --critical 1+2 --data 20T --expendable-share 60%
  parsfs plan /etc/parsfs/vms.toml --failures 4% --rebuild 3d
  parsfs plan --disks 6 --critical 4+2 --json | jq '.plans[0].critical_loss_a_year'

The chances are those of whole disks that fail independently of each other. docs/reliability.md has the formula and
what it leaves out.

Exit codes: 0 computed, 1 failed, 2 wrong usage.")]
pub(super) struct Plan {
    /// A config whose disks and policy are taken
    config: Option<PathBuf>,
    /// How many disks the volume has
    #[arg(long, conflicts_with = "config", required_unless_present = "config")]
    disks: Option<u32>,
    /// The code of critical bytes, k+m; several are compared
    #[arg(long, value_parser = parse_code)]
    critical: Vec<Code>,
    /// The code of expendable bytes
    #[arg(long, value_parser = parse_code)]
    expendable: Option<Code>,
    /// How many of a hundred disks fail in a year
    #[arg(long, default_value = "2%", value_parser = percent)]
    failures: f64,
    /// From a disk's failure until its bytes are on another one, the time to notice it included: 90m, 24h, 3d
    #[arg(long, default_value = "24h", value_parser = hours)]
    rebuild: f64,
    /// Bytes to be stored, as they are after compression: 500G, 20T
    #[arg(long, default_value = "1T", value_parser = parse_size)]
    data: u64,
    /// How much of them is expendable
    #[arg(long, default_value = "0%", value_parser = share)]
    expendable_share: f64,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// What was asked, and the answers.
#[derive(Debug, Serialize)]
struct Answer {
    disks: u32,
    /// Of one disk, as a fraction.
    failures_a_year: f64,
    rebuild_hours: f64,
    data_bytes: u64,
    expendable_share: f64,
    plans: Vec<Line>,
}

/// One policy.
#[derive(Debug, Serialize)]
struct Line {
    critical: String,
    expendable: String,
    /// The chance that a year loses a critical byte.
    critical_loss_a_year: f64,
    /// The chance that a year loses an expendable byte.
    expendable_loss_a_year: f64,
    /// On all disks.
    stored_bytes: u64,
}

impl Plan {
    pub(super) fn run(self) -> Result<(), Failure> {
        let answer = self.answer()?;
        if self.json {
            let text = serde_json::to_string_pretty(&answer);
            println!(
                "{}",
                text.map_err(|error| Failure::Other(error.to_string()))?
            );
        } else {
            print!("{}", describe(&answer));
        }
        Ok(())
    }

    fn answer(&self) -> Result<Answer, Failure> {
        let (count, policy) = match &self.config {
            None => (self.disks.unwrap_or_default(), None),
            Some(file) => {
                let config = Config::load(file)?;
                (config.disks.len() as u32, Some(config.policy))
            }
        };
        let mut critical = self.critical.clone();
        if critical.is_empty() {
            critical.extend(policy.map(|policy| policy.critical));
        }
        if critical.is_empty() {
            return Err(Failure::Usage(
                "which policy? for example --critical 4+2".to_string(),
            ));
        }
        let dropped = self.expendable.is_none() && policy.is_some_and(|policy| policy.tiering.drop);
        let expendable = self.expendable.or(policy.map(|policy| policy.expendable));
        let expendable = expendable.unwrap_or(Code { k: 1, m: 0 });
        for code in critical.iter().chain([&expendable]) {
            if u32::from(code.k) + u32::from(code.m) > count {
                let (k, m) = (code.k, code.m);
                return Err(Failure::Usage(format!(
                    "{k}+{m} needs {} disks, and there are {count}",
                    k + m
                )));
            }
        }
        let disks = Disks {
            count,
            failures_a_year: self.failures,
            rebuild_hours: self.rebuild,
        };
        let plan = |code: &Code| {
            let with_parity = |share: f64, code: &Code| {
                self.data as f64 * share * f64::from(code.k + code.m) / f64::from(code.k)
            };
            let of_expendable = match dropped {
                true => 0.0,
                false => with_parity(self.expendable_share, &expendable),
            };
            let stored = with_parity(1.0 - self.expendable_share, code) + of_expendable;
            Line {
                critical: format!("{}+{}", code.k, code.m),
                expendable: match dropped {
                    true => "drop".to_owned(),
                    false => format!("{}+{}", expendable.k, expendable.m),
                },
                critical_loss_a_year: of_loss(disks, code.m.into(), 1.0),
                expendable_loss_a_year: match dropped {
                    true => 1.0,
                    false => of_loss(disks, expendable.m.into(), 1.0),
                },
                stored_bytes: stored.round() as u64,
            }
        };
        Ok(Answer {
            disks: count,
            failures_a_year: self.failures,
            rebuild_hours: self.rebuild,
            data_bytes: self.data,
            expendable_share: self.expendable_share,
            plans: critical.iter().map(plan).collect(),
        })
    }
}

fn describe(answer: &Answer) -> String {
    let mut table = Table::new(&[
        ("critical", Align::Left),
        ("expendable", Align::Left),
        ("a critical byte lost", Align::Right),
        ("an expendable one", Align::Right),
        ("stored", Align::Right),
        ("of the data", Align::Right),
    ]);
    for plan in &answer.plans {
        table.row([
            plan.critical.clone(),
            plan.expendable.clone(),
            chance(plan.critical_loss_a_year),
            if plan.expendable == "drop" {
                "not kept".to_string()
            } else if answer.expendable_share > 0.0 {
                chance(plan.expendable_loss_a_year)
            } else {
                "none stored".to_string()
            },
            bytes(plan.stored_bytes),
            format!(
                "{:.3}",
                plan.stored_bytes as f64 / answer.data_bytes.max(1) as f64
            ),
        ]);
    }
    format!(
        "{} disks, of which {:.3}% fail in a year; rebuilt within {:.1} hours; {} of data, {:.0}% of it expendable\n\n\
         {table}\nThe chances are for one year.\n",
        answer.disks,
        answer.failures_a_year * 100.0,
        answer.rebuild_hours,
        bytes(answer.data_bytes),
        answer.expendable_share * 100.0,
    )
}

/// A chance as people say it.
fn chance(of: f64) -> String {
    if of == 0.0 {
        "never".to_string()
    } else if of >= 0.001 {
        format!("{:.2}%", of * 100.0)
    } else {
        format!("{of:.1e} (once in {:.1e} years)", 1.0 / of)
    }
}

fn part_of_hundred(text: &str) -> Option<f64> {
    let number: f64 = text.strip_suffix('%')?.trim().parse().ok()?;
    (0.0..=100.0).contains(&number).then_some(number / 100.0)
}

fn percent(text: &str) -> Result<f64, String> {
    let failures = part_of_hundred(text).filter(|part| *part < 1.0);
    failures.ok_or_else(|| "write a percentage below 100, such as 2%".to_string())
}

fn share(text: &str) -> Result<f64, String> {
    part_of_hundred(text).ok_or_else(|| "write a percentage, such as 60%".to_string())
}

fn hours(text: &str) -> Result<f64, String> {
    let wrong = || "write a time above zero with m, h or d, such as 24h".to_string();
    let text = text.trim();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let hours = match unit {
        'm' => 1.0 / 60.0,
        'h' => 1.0,
        'd' => 24.0,
        _ => return Err(wrong()),
    };
    let number: f64 = text.trim_end_matches(unit).parse().map_err(|_| wrong())?;
    let time = number * hours;
    if time.is_finite() && time > 0.0 {
        Ok(time)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        plan: Plan,
    }

    fn plan(arguments: &str) -> Result<Answer, Failure> {
        let words = std::iter::once("plan").chain(arguments.split_whitespace());
        Line::try_parse_from(words)
            .map_err(|error| Failure::Usage(error.to_string()))?
            .plan
            .answer()
    }

    #[test]
    fn a_policy_is_told_with_its_price() {
        let found =
            plan("--disks 6 --critical 4+2 --critical 1+2 --data 1T --expendable-share 50%")
                .unwrap();
        let [code, copies] = &found.plans[..] else {
            panic!("{found:?}")
        };
        assert_eq!(code.stored_bytes, (1 << 40) / 2 * 3 / 2 + (1 << 40) / 2);
        assert_eq!(copies.stored_bytes, (1 << 40) / 2 * 3 + (1 << 40) / 2);
        assert_eq!(code.critical_loss_a_year, copies.critical_loss_a_year);
        assert!(code.critical_loss_a_year < 1e-8 && code.critical_loss_a_year > 0.0);
        let all_live = 0.98f64.powi(6);
        assert!((code.expendable_loss_a_year - (1.0 - all_live)).abs() < 1e-9);
        let text = describe(&found);
        assert!(text.contains("11.42%") && text.contains("4+2"), "{text}");
    }

    #[test]
    fn what_is_dropped_takes_no_room() {
        let place = tempfile::tempdir().unwrap();
        let config = place.path().join("vms.toml");
        let disks: String = (0..6)
            .map(|number| format!("[[disk]]\npath = \"/mnt/disk{number}\"\n"))
            .collect();
        let policy = "[policy]\ncritical = \"4+2\"\nexpendable = \"drop\"\n";
        let text = format!("[volume]\nname = \"vms\"\n{disks}{policy}");
        std::fs::write(&config, text).unwrap();
        let found = plan(&format!(
            "{} --data 1T --expendable-share 50%",
            config.display()
        ))
        .unwrap();
        assert_eq!(found.plans[0].stored_bytes, (1 << 40) / 2 * 3 / 2);
        let text = describe(&found);
        assert!(text.contains("drop") && text.contains("not kept"), "{text}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [
            "--disks 6",
            "--critical 4+2",
            "--disks 5 --critical 4+2",
            "--disks 6 --critical 4+2 --failures 100%",
            "--disks 6 --critical 4+2 --failures 3",
            "--disks 6 --critical 4+2 --rebuild 0h",
            "--disks 6 --critical 4+2 --rebuild 5",
            "--disks 6 --critical 4+2 --expendable-share 101%",
            "--disks 6 --critical 4",
        ] {
            let refused = plan(wrong).unwrap_err();
            assert_eq!(refused.code(), 2, "{wrong}: {refused}");
        }
    }
}
