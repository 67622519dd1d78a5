//! What is known of a snapshot, for people and for programs.

use serde_json::{Map, Value, json};

use super::account::{Account, percent};
use super::page::tier_name;
use crate::cli::table::{Align, Table, bytes};
use crate::guest::PageClass;
use crate::snapshot::{Gpa, PageMap};
use crate::volume::look::Look;

/// Classes with their pages and bytes, in the order of their numbers. A file without page map counts as pages of 4 KiB.
pub(super) fn classes(look: &Look, file: u64) -> Vec<(PageClass, u64, u64)> {
    let Some(classes) = look.classes() else {
        let all = |class| {
            if class == PageClass::Unknown {
                (file.div_ceil(4096), file)
            } else {
                (0, 0)
            }
        };
        return PageClass::ALL
            .iter()
            .map(|&class| (class, all(class).0, all(class).1))
            .collect();
    };
    let shift = classes.page_shift();
    classes
        .counts()
        .into_iter()
        .map(|(class, pages)| (class, pages, pages << shift))
        .collect()
}

/// What people read.
pub(super) fn text(what: &str, look: &Look, account: &Account) -> String {
    let format = &look.snapshot().format;
    let mut text = format!("{what}: {format}, {}\n", bytes(account.file));
    match look.guest() {
        Ok(found) => {
            text.push_str(&format!(
                "guest   {found}, {} in pages of {}\n",
                bytes(found.memory),
                bytes(1 << found.page_shift)
            ));
            if !found.has_btf {
                text.push_str("        its kernel has no BTF, so all page cache is critical\n");
            }
        }
        Err(reason) => text.push_str(&format!(
            "guest   none: {reason}\n        what is not known is critical\n"
        )),
    }
    if let Some(map) = look.map() {
        text.push_str(&format!("layout  {} ({})\n", ranges(map), map.layout()));
    }
    if !look.resumes() && look.map().is_some() {
        text.push_str("        a dump is never resumed, so page cache in it is critical\n");
    }

    let list = classes(look, account.file);
    let all: u64 = list.iter().map(|&(_, _, bytes)| bytes).sum();
    let mut table = Table::new(&[
        ("class", Align::Left),
        ("pages", Align::Right),
        ("bytes", Align::Right),
        ("share", Align::Right),
        ("tier", Align::Left),
    ]);
    for (class, pages, size) in list.into_iter().filter(|&(_, pages, _)| pages > 0) {
        table.row([
            class.to_string(),
            pages.to_string(),
            bytes(size),
            format!("{:.1}%", percent(size, all)),
            tier_name(look.worth(class)).to_string(),
        ]);
    }
    text.push_str(&format!("\n{table}"));

    let mut table = Table::new(&[
        ("of the file", Align::Left),
        ("bytes", Align::Right),
        ("share", Align::Right),
        ("code", Align::Left),
        ("on disks", Align::Right),
        ("", Align::Left),
    ]);
    let mut row = |name: &str, size: u64, code: String, stored: Option<u64>, note: String| {
        let share = format!("{:.1}%", percent(size, account.file));
        table.row([
            name.to_string(),
            bytes(size),
            share,
            code,
            stored.map(bytes).unwrap_or_default(),
            note,
        ]);
    };
    let note = |part: u64, text: &str| {
        if part > 0 {
            format!("{} {text}", bytes(part))
        } else {
            String::new()
        }
    };
    row(
        "critical",
        account.critical,
        account.policy.critical.to_string(),
        Some(account.critical_stored()),
        note(account.framing, "of it are headers and devices"),
    );
    row(
        "expendable",
        account.expendable,
        account.policy.expendable.to_string(),
        Some(account.expendable_stored()),
        note(account.dead, "of it were written again later"),
    );
    row(
        "not stored",
        account.not_stored,
        String::new(),
        Some(0),
        note(account.not_stored, "of zeros"),
    );
    text.push_str(&format!("\n{table}"));
    text.push_str(&format!(
        "\nBefore compression it takes {} on the disks; three copies take {}{}.\n",
        bytes(account.stored()),
        bytes(account.three_copies()),
        saving(account)
    ));
    text
}

fn saving(account: &Account) -> String {
    match account.three_copies() {
        0 => String::new(),
        copies => format!(
            " (this is {:.0}% of that)",
            percent(account.stored(), copies)
        ),
    }
}

fn ranges(map: &PageMap) -> String {
    let mut list: Vec<String> = map
        .ram()
        .take(8)
        .map(|(start, length)| format!("{start} to {}", Gpa(start.0.saturating_add(length))))
        .collect();
    let more = map.ram().count().saturating_sub(list.len());
    if more > 0 {
        list.push(format!("and {more} more"));
    }
    list.join(", ")
}

/// What programs read. Its keys are stable.
pub(super) fn json(what: &str, look: &Look, account: &Account) -> String {
    let snapshot = look.snapshot();
    let guest = look.guest().ok().map(|found| {
        json!({
            "release": found.release,
            "architecture": found.arch.to_string(),
            "memory": found.memory,
            "page_size": 1u64 << found.page_shift,
            "btf": found.has_btf,
            "layout": look.map().map(|map| map.layout().to_string()),
            "ranges": look.map().map(|map| map.ram().map(|(start, length)| {
                json!({"start": start.0, "bytes": length})
            }).collect::<Vec<_>>()),
        })
    });
    let classes: Map<String, Value> = classes(look, account.file)
        .into_iter()
        .map(|(class, pages, bytes)| {
            let tier = tier_name(look.worth(class));
            (
                class.to_string(),
                json!({"pages": pages, "bytes": bytes, "tier": tier}),
            )
        })
        .collect();
    let value = json!({
        "file": what,
        "bytes": account.file,
        "format": snapshot.format.to_string(),
        "resumable": look.resumes(),
        "machine": snapshot.hints.machine,
        "opaque": snapshot.opaque_reason().map(ToString::to_string),
        "guest": guest,
        "no_guest": look.guest().err().map(ToString::to_string),
        "classes": classes,
        "tiers": {
            "critical": {
                "bytes": account.critical, "framing": account.framing,
                "code": account.policy.critical.to_string(), "stored": account.critical_stored(),
            },
            "expendable": {
                "bytes": account.expendable, "dead": account.dead,
                "code": account.policy.expendable.to_string(), "stored": account.expendable_stored(),
            },
            "not stored": {"bytes": account.not_stored, "stored": 0},
        },
        "cost": {"stored": account.stored(), "three_copies": account.three_copies()},
    });
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::classify::account::Policy;
    use crate::store::Code;
    use crate::volume::look::recognise;

    fn told(bytes: &[u8]) -> (String, Value) {
        let source = bytes.to_vec();
        let look = Look::into(recognise(&source, None).unwrap(), &source, &|_| ()).unwrap();
        let policy = Policy {
            critical: Code { k: 4, m: 2 },
            expendable: Code { k: 1, m: 0 },
        };
        let account = Account::of(&look, bytes.len() as u64, policy);
        let value = serde_json::from_str(&json("a file", &look, &account)).unwrap();
        (text("a file", &look, &account), value)
    }

    #[test]
    fn memory_without_a_guest_costs_its_parity_and_zeros_nothing() {
        let mut bytes = vec![0; 2 << 20];
        bytes[..512 << 10].fill(3);
        let (text, value) = told(&bytes);
        for line in [
            "a file: raw memory, 2.00 MiB",
            "guest   none: no vmcoreinfo in guest memory",
            "  unknown    128   512 KiB  25.0%  critical",
            "  zero       384  1.50 MiB  75.0%  not stored",
            "Before compression it takes 768 KiB on the disks; three copies take 6.00 MiB (this is 12% of that).",
        ] {
            assert!(
                text.lines().any(|told| told == line),
                "{line}\nis not in\n{text}"
            );
        }
        assert_eq!(value["format"], "raw memory");
        assert_eq!(
            value["classes"]["zero"],
            json!({"pages": 384, "bytes": 384 << 12, "tier": "not stored"})
        );
        assert_eq!(
            value["classes"].as_object().unwrap().len(),
            PageClass::ALL.len()
        );
        assert_eq!(value["tiers"]["critical"]["stored"], 768 << 10);
        assert_eq!(value["cost"]["three_copies"], 6 << 20);
        assert_eq!(value["guest"], Value::Null);
    }

    #[test]
    fn what_has_no_pages_is_critical_as_a_whole() {
        for bytes in [
            b"no snapshot at all".as_slice(),
            &[0x1f, 0x8b, 8, 0, 0],
            &[],
        ] {
            let (text, value) = told(bytes);
            assert!(text.contains("guest   none: "), "{text}");
            assert_eq!(value["tiers"]["critical"]["bytes"], bytes.len());
            assert!(value["opaque"].is_string());
        }
    }
}
