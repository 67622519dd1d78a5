//! What a file would cost on the disks: bytes by tier, times what the tier's code makes of them. Compression is not
//! looked at, so this is the most that it takes.

use crate::store::{Code, Tier};
use crate::volume::look::{FileUse, Look};

/// The codes of the two tiers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) critical: Code,
    pub(super) expendable: Code,
}

/// The bytes of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    pub(super) policy: Policy,
    /// The file's length.
    pub(super) file: u64,
    /// Critical bytes, framing among them.
    pub(super) critical: u64,
    /// Headers, device state, the memory of devices.
    pub(super) framing: u64,
    /// Expendable bytes, dead ones among them.
    pub(super) expendable: u64,
    /// Bytes whose content nobody uses.
    pub(super) dead: u64,
    /// Zeros: holes.
    pub(super) not_stored: u64,
}

impl Account {
    pub(super) fn of(look: &Look, file: u64, policy: Policy) -> Account {
        let mut account = Account {
            policy,
            file,
            critical: 0,
            framing: 0,
            expendable: 0,
            dead: 0,
            not_stored: 0,
        };
        let mut known = 0;
        for (range, used) in look.uses() {
            let bytes = range.end - range.start;
            known += bytes;
            match used {
                FileUse::Framing => account.framing += bytes,
                FileUse::Dead => account.dead += bytes,
                FileUse::Page(_) => {}
            }
            match look.tier(used) {
                Some(Tier::Critical) => account.critical += bytes,
                Some(Tier::Expendable) => account.expendable += bytes,
                None => account.not_stored += bytes,
            }
        }
        // Dead zeros are holes like any others.
        let empty = look.empty().min(account.dead);
        account.dead -= empty;
        account.expendable -= empty;
        account.not_stored += empty;
        // Without page map: all of it.
        account.critical += file.saturating_sub(known);
        account
    }

    /// What critical bytes take on the disks.
    pub(super) fn critical_stored(&self) -> u64 {
        spread(self.critical, self.policy.critical)
    }

    /// What expendable bytes take on the disks.
    pub(super) fn expendable_stored(&self) -> u64 {
        spread(self.expendable, self.policy.expendable)
    }

    /// What the file takes on the disks.
    pub(super) fn stored(&self) -> u64 {
        self.critical_stored()
            .saturating_add(self.expendable_stored())
    }

    /// What three copies of it take, zeros and all.
    pub(super) fn three_copies(&self) -> u64 {
        self.file.saturating_mul(3)
    }
}

fn spread(bytes: u64, code: Code) -> u64 {
    let (k, m) = (u128::from(code.k.max(1)), u128::from(code.m));
    u64::try_from((u128::from(bytes) * (k + m)).div_ceil(k)).unwrap_or(u64::MAX)
}

/// A part in percent.
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_costs_its_parity() {
        assert_eq!(spread(4096, Code { k: 4, m: 2 }), 6144);
        assert_eq!(spread(4097, Code { k: 1, m: 0 }), 4097);
        assert_eq!(spread(5, Code { k: 4, m: 2 }), 8);
        assert_eq!(spread(u64::MAX, Code { k: 1, m: 2 }), u64::MAX);
    }
}
