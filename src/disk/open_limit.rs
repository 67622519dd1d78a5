//! How many files this process may have open, and how many of them each disk keeps open for reading.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The most files that one disk keeps open for reading.
const KEPT_MAX: u64 = 256;

/// The fewest: with fewer disks than limit there is always something to close when a file cannot be opened.
const KEPT_MIN: u64 = 4;

/// As many as the files that are being written need: twice the disks for each.
const ENOUGH: u64 = 4096;

/// Nobody needs more, and some programs that are started from here go through all the numbers that there may be.
const ASKED_MAX: u64 = 1 << 20;

/// Allows this process as many open files as the system lets it have. To be called as it starts: the usual limit of 1024
/// is there for programs that cannot count further, and is soon used up by many disks.
pub fn allow_open_files() {
    let now = getrlimit(Resource::Nofile);
    let (Some(soft), hard) = (now.current, now.maximum.unwrap_or(u64::MAX)) else {
        return;
    };
    let wanted = hard.min(ASKED_MAX);
    if soft < wanted {
        // Where it is refused, less is kept open.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(wanted),
                maximum: now.maximum,
            },
        );
    }
}

/// How many files each of so many disks keeps open for reading.
pub fn kept_open(disks: usize) -> usize {
    kept_of(limit(), disks)
}

/// Says so where the limit is small.
pub fn warn_of_small_limit() {
    let limit = limit();
    if limit < ENOUGH {
        tracing::warn!(
            limit,
            "few files may be open at once: many that are written at once may fail with an error; allow {ENOUGH} or more \
             (ulimit -Hn, LimitNOFILE= of a systemd unit)"
        );
    }
}

fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// A quarter of the limit for all together: the rest is for what is written, the metadata, and the kernel's requests.
fn kept_of(limit: u64, disks: usize) -> usize {
    let each = limit / 4 / (disks as u64).max(1);
    each.clamp(KEPT_MIN, KEPT_MAX) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_disks_together_keep_no_more_open_than_a_quarter_of_the_limit() {
        for limit in [256, 1024, 4096, 1 << 20, u64::MAX] {
            for disks in [1, 2, 6, 16] {
                let each = kept_of(limit, disks);
                assert!(each as u64 * disks as u64 <= limit / 4, "{limit} {disks}");
                assert!((4..=256).contains(&each), "{each}");
            }
        }
        assert_eq!(kept_of(1024, 6), 42);
        assert_eq!(kept_of(1 << 20, 6), 256);
        // However many there are, each can read.
        assert_eq!(kept_of(64, 100), 4);
        assert_eq!(kept_of(0, 0), 4);
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_goes() {
        allow_open_files();
        let now = getrlimit(Resource::Nofile);
        let most = now.maximum.unwrap_or(u64::MAX).min(ASKED_MAX);
        assert!(limit() >= most, "{now:?}");
    }
}
