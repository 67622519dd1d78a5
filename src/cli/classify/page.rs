//! `--page`: one page, its class, and why. Asks the guest again; knows no rule itself.

use std::fs::File;

use serde_json::json;

use crate::cli::failure::Failure;
use crate::guest::{PageClass, Tier};
use crate::snapshot::{Gpa, Place};
use crate::volume::look::Look;

/// A guest-physical address as people write it: hexadecimal with `0x`, or decimal.
pub(super) fn address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "write an address in bytes, such as 0x3f2a000".to_string())
}

/// The tier as people call it.
pub(super) fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Critical => "critical",
        Tier::Expendable => "expendable",
        Tier::NotStored => "not stored",
    }
}

pub(super) fn tell(look: &Look, file: &File, gpa: u64, as_json: bool) -> Result<String, Failure> {
    let (Some(classes), Some(map)) = (look.classes(), look.map()) else {
        let why = match look.guest() {
            Err(reason) => reason.to_string(),
            Ok(_) => "no pages are known".to_string(),
        };
        return Err(Failure::Other(format!(
            "the file has no pages to look at ({why}): all of it is critical"
        )));
    };
    let frame = gpa >> classes.page_shift();
    let Some(class) = classes.get(frame) else {
        let ranges: Vec<String> = map
            .ram()
            .map(|(start, length)| format!("{start} to {}", Gpa(start.0.saturating_add(length))))
            .collect();
        return Err(Failure::Other(format!(
            "the guest has no memory at {gpa:#x}; it has {}",
            ranges.join(", ")
        )));
    };
    let told = look.with_guest(file, |guest, classes| guest.explain(classes, frame));
    let tier = look.worth(class);
    let mut reason = match (&told, look.guest()) {
        (Some(told), _) => told.reason.to_string(),
        (None, _) if class == PageClass::Zero => "it holds only zeros".to_string(),
        (None, Err(why)) => format!("no guest was found ({why})"),
        (None, Ok(_)) => "the guest is not to be found any more".to_string(),
    };
    if class.tier() != tier {
        reason.push_str("; but nothing can be fetched again for a dump, which is never resumed");
    }
    let (head, span) = told.map_or((frame, 1), |told| (told.head, told.span));
    let address = frame << classes.page_shift();
    let place = map.lookup(Gpa(gpa));
    if as_json {
        let file_offset = match place {
            Place::Stored(offset) => Some(offset),
            Place::Zero | Place::Patched | Place::Absent => None,
        };
        let page = json!({
            "address": address, "frame": frame, "class": class.name(), "tier": tier_name(tier),
            "reason": reason, "file_offset": file_offset, "head": head, "span": span,
        });
        return Ok(format!("{page:#}\n"));
    }
    let place = match place {
        Place::Stored(offset) => format!("at byte {offset} of the file"),
        Place::Zero => "not in the file: the format says that it is zero".to_string(),
        Place::Patched => "in the file as an earlier page and later changes".to_string(),
        Place::Absent => "not in the file".to_string(),
    };
    let mut text = format!(
        "page    {address:#x}, frame {frame:#x}\nclass   {class}\ntier    {}\nreason  {reason}\n",
        tier_name(tier)
    );
    if span > 1 {
        text.push_str(&format!(
            "part    one of {span} pages from frame {head:#x}\n"
        ));
    }
    text.push_str(&format!("place   {place}\n"));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn addresses_are_read_in_both_ways() {
        assert_eq!(address("0x3f2a000"), Ok(0x3f2_a000));
        assert_eq!(address("4096"), Ok(4096));
        for wrong in ["", "0x", "3f2a000", "-1", "0x10000000000000000"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
