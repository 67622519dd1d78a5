//! Reads the words that a config's values are written in: sizes, codes, modes. Each gives the value, or says in
//! words what is possible instead; it does not know which key it reads.

use crate::store::{Code, SHARDS_MAX};

/// The result of reading one value: what is wrong with it and what is possible, if it cannot be read.
pub type Parsed<T> = std::result::Result<T, String>;

/// A number of bytes: `4096`, `128K`, `64M`, `2G`, `1T` (powers of 1024; `KiB`, `MiB` and so on say the same).
pub fn size(text: &str) -> Parsed<u64> {
    let wrong = || {
        "write a number of bytes, with K, M, G or T for KiB, MiB and so on, such as \"64M\""
            .to_string()
    };
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "that is more than a file can hold".to_string())
}

/// A code, `k+m`.
pub fn code(text: &str) -> Parsed<Code> {
    let wrong = || {
        "write k+m: over how many disks the data is spread, and how many disks may die, such as \"4+2\", or \
         \"1+2\" for three copies"
            .to_string()
    };
    let (k, m) = text.split_once('+').ok_or_else(wrong)?;
    let k: u8 = k.trim().parse().map_err(|_| wrong())?;
    let m: u8 = m.trim().parse().map_err(|_| wrong())?;
    if k == 0 {
        return Err(
            "the first number counts the disks that hold the data, and is at least 1".to_string(),
        );
    }
    if usize::from(k) + usize::from(m) > SHARDS_MAX {
        return Err(format!("the two numbers together are at most {SHARDS_MAX}"));
    }
    Ok(Code { k, m })
}

/// Whether a name can stand in file names, mount tables and logs as it is.
pub fn name(text: &str) -> Parsed<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty()
        || text.len() > 64
        || text.starts_with(['.', '-'])
        || !text.chars().all(plain)
    {
        return Err(
            "use up to 64 letters, digits, '-', '_' and '.', and begin with a letter or digit"
                .to_string(),
        );
    }
    Ok(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("128K"), Ok(128 << 10));
        assert_eq!(size(" 64 MiB "), Ok(64 << 20));
        assert_eq!(size("2G"), Ok(2 << 30));
        assert_eq!(size("3T"), Ok(3 << 40));
        for wrong in [
            "",
            "K",
            "12Q",
            "-1",
            "1.5G",
            "99999999999999999999",
            "18446744073709551615G",
            "1KK",
        ] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn codes_are_read_and_bounded() {
        assert_eq!(code("4+2"), Ok(Code { k: 4, m: 2 }));
        assert_eq!(code("1 + 0"), Ok(Code { k: 1, m: 0 }));
        for wrong in [
            "", "4", "+", "4+", "+2", "0+2", "4-2", "4+2+1", "300+1", "31+2", "a+b", "-1+2",
        ] {
            assert!(code(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_plain() {
        assert!(name("vm-snapshots_1.a").is_ok());
        for wrong in ["", "a b", "a,b", "a/b", ".a", "-a", "ä", &"x".repeat(65)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }
}
