//! The chance that more disks are gone at one time than a code stands. Pure: numbers in, numbers out; knows no config
//! and no disk. `docs/reliability.md` explains the formula, and the tests here compare it with a simulation.

/// Hours of a year.
pub const YEAR: f64 = 365.25 * 24.0;

/// How the disks of a volume fail and are made good again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Disks {
    /// How many there are.
    pub count: u32,
    /// How many of a hundred fail in a year, as a fraction: 0.02. Below 1.
    pub failures_a_year: f64,
    /// Hours from a failure until the disk's bytes are on another one. Above 0.
    pub rebuild_hours: f64,
}

/// The chance that within `years` at some time more than `losses` disks are gone.
///
/// The number of disks that are gone goes up by one at the rate at which the others fail, and down by one at the
/// rate at which lost ones are rebuilt, each by itself; above `losses` it stays for good. The chances of all numbers
/// after some time are the exponential of the matrix of rates. Every term of it is positive, so that small chances
/// are as exact as large ones.
pub fn of_loss(disks: Disks, losses: u32, years: f64) -> f64 {
    if losses >= disks.count {
        return 0.0;
    }
    // A disk that fails with this chance in a year fails at this rate.
    let failing = -(1.0 - disks.failures_a_year).ln();
    let rebuilt = YEAR / disks.rebuild_hours;
    let states = losses as usize + 2;
    let up = |gone: usize| f64::from(disks.count - gone as u32) * failing;
    let down = |gone: usize| gone as f64 * rebuilt;
    let fastest = (0..states - 1)
        .map(|gone| up(gone) + down(gone))
        .fold(0.0, f64::max);
    if fastest == 0.0 {
        return 0.0;
    }
    // So short a time that little happens, doubled until it is the whole.
    let doublings = (fastest * years * 4.0).log2().ceil().max(0.0) as u32;
    let step = fastest * years / 2f64.powi(doublings as i32);
    // One event at the fastest rate, as chances: some of these events change nothing.
    let mut event = Matrix::zero(states);
    for gone in 0..states - 1 {
        event.set(gone, gone + 1, up(gone) / fastest);
        if gone > 0 {
            event.set(gone, gone - 1, down(gone) / fastest);
        }
        event.set(gone, gone, 1.0 - (up(gone) + down(gone)) / fastest);
    }
    event.set(states - 1, states - 1, 1.0);
    // Poisson: so many events in the short time, each number with its chance.
    let mut sum = Matrix::zero(states);
    let mut power = Matrix::one(states);
    let mut weight = (-step).exp();
    for events in 1..64 {
        sum.add(&power, weight);
        power = power.times(&event);
        weight *= step / f64::from(events);
    }
    for _ in 0..doublings {
        sum = sum.times(&sum);
    }
    sum.get(0, states - 1).clamp(0.0, 1.0)
}

/// A small square matrix.
struct Matrix {
    size: usize,
    cells: Vec<f64>,
}

impl Matrix {
    fn zero(size: usize) -> Matrix {
        Matrix {
            size,
            cells: vec![0.0; size * size],
        }
    }

    fn one(size: usize) -> Matrix {
        let mut one = Matrix::zero(size);
        for place in 0..size {
            one.set(place, place, 1.0);
        }
        one
    }

    fn get(&self, row: usize, column: usize) -> f64 {
        self.cells[row * self.size + column]
    }

    fn set(&mut self, row: usize, column: usize, value: f64) {
        self.cells[row * self.size + column] = value;
    }

    fn add(&mut self, other: &Matrix, weight: f64) {
        for (cell, more) in self.cells.iter_mut().zip(&other.cells) {
            *cell += more * weight;
        }
    }

    fn times(&self, other: &Matrix) -> Matrix {
        let mut product = Matrix::zero(self.size);
        for row in 0..self.size {
            for column in 0..self.size {
                let sum = (0..self.size).map(|at| self.get(row, at) * other.get(at, column));
                product.set(row, column, sum.sum());
            }
        }
        product
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64, so that a seed gives the same years everywhere.
    struct Random(u64);

    impl Random {
        /// A number above 0 and at most 1.
        fn part(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (((z ^ (z >> 31)) >> 11) + 1) as f64 / (1u64 << 53) as f64
        }

        /// A time until something that happens at this rate.
        fn time(&mut self, rate: f64) -> f64 {
            -self.part().ln() / rate
        }

        fn below(&mut self, end: usize) -> usize {
            ((self.part() * end as f64) as usize).min(end - 1)
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Rebuild {
        /// Always as long.
        Fixed,
        /// As the formula has it.
        Random,
    }

    /// Lives years disk by disk and window by window: every window lies on `k + m` of the disks and is lost when more
    /// than m of those are gone. The share of years with a loss.
    fn simulated(disks: Disks, (k, m): (usize, usize), rebuild: Rebuild, years: u32) -> f64 {
        let mut random = Random(u64::from(disks.count) << 8 | m as u64);
        let count = disks.count as usize;
        let windows: Vec<u64> = (0..3000)
            .map(|_| {
                let mut of = 0u64;
                while (of.count_ones() as usize) < k + m {
                    of |= 1 << random.below(count);
                }
                of
            })
            .collect();
        let failing = -(1.0 - disks.failures_a_year).ln();
        let rebuilding = disks.rebuild_hours / YEAR;
        let mut lost = 0;
        for _ in 0..years {
            // When each disk's state changes next, and which are gone.
            let mut next: Vec<f64> = (0..count).map(|_| random.time(failing)).collect();
            let mut gone = 0u64;
            loop {
                let (disk, at) = next
                    .iter()
                    .copied()
                    .enumerate()
                    .min_by(|a, b| a.1.total_cmp(&b.1))
                    .unwrap();
                if at > 1.0 {
                    break;
                }
                gone ^= 1 << disk;
                let fails = gone >> disk & 1 == 1;
                next[disk] = at
                    + match (fails, rebuild) {
                        (false, _) => random.time(failing),
                        (true, Rebuild::Fixed) => rebuilding,
                        (true, Rebuild::Random) => random.time(1.0 / rebuilding),
                    };
                let too_many = |window: &u64| (window & gone).count_ones() as usize > m;
                if fails && gone.count_ones() as usize > m && windows.iter().any(too_many) {
                    lost += 1;
                    break;
                }
            }
        }
        f64::from(lost) / f64::from(years)
    }

    #[test]
    fn a_simulation_of_disks_and_windows_says_the_same() {
        let years = 40_000;
        for (count, failures_a_year, rebuild_days, code) in [
            (6, 0.30, 20.0, (4, 2)),
            (6, 0.60, 30.0, (4, 2)),
            (3, 0.20, 30.0, (2, 1)),
            (12, 0.25, 10.0, (4, 2)),
            (12, 0.40, 20.0, (8, 3)),
            (8, 0.05, 7.0, (1, 0)),
            (5, 0.90, 5.0, (1, 2)),
        ] {
            let disks = Disks {
                count,
                failures_a_year,
                rebuild_hours: rebuild_days * 24.0,
            };
            let expected = of_loss(disks, code.1 as u32, 1.0);
            assert!(expected > 0.005, "{disks:?}: too seldom to be counted");
            let noise = (expected * (1.0 - expected) / f64::from(years)).sqrt();
            let found = simulated(disks, code, Rebuild::Random, years);
            assert!(
                (found - expected).abs() < 4.5 * noise,
                "{disks:?} {code:?}: {found} simulated, {expected} computed"
            );
            // That rebuilding takes as long each time, and not twice or half as long, makes little difference.
            let found = simulated(disks, code, Rebuild::Fixed, years);
            assert!(
                (found - expected).abs() < 4.5 * noise + 0.12 * expected,
                "{disks:?} {code:?}: {found} simulated with a fixed time, {expected} computed"
            );
        }
    }

    #[test]
    fn what_can_be_computed_by_hand() {
        let disks = |count| Disks {
            count,
            failures_a_year: 0.02,
            rebuild_hours: 24.0,
        };
        let close = |a: f64, b: f64, by: f64| assert!((a / b - 1.0).abs() < by, "{a} and {b}");
        // One copy: all disks live through the year or not.
        close(of_loss(disks(6), 0, 1.0), 1.0 - 0.98f64.powi(6), 1e-9);
        // m + 1 disks, one after the other, within the time of a rebuild.
        let (rate, time) = (-(0.98f64.ln()), 24.0 / YEAR);
        close(of_loss(disks(3), 1, 1.0), 6.0 * rate * rate * time, 5e-3);
        let triple = 120.0 * rate.powi(3) * time.powi(2) / 2.0;
        close(of_loss(disks(6), 2, 1.0), triple, 5e-3);
        // Small chances are exact: ten years are ten times one.
        let small = of_loss(disks(12), 5, 1.0);
        assert!(small > 0.0 && small < 1e-15, "{small}");
        close(of_loss(disks(12), 5, 10.0), 10.0 * small, 0.02);
        // More may be lost than there are.
        assert_eq!(of_loss(disks(2), 2, 1.0), 0.0);
    }

    #[test]
    fn more_of_anything_goes_the_right_way() {
        let disks = Disks {
            count: 8,
            failures_a_year: 0.05,
            rebuild_hours: 48.0,
        };
        let base = of_loss(disks, 2, 1.0);
        let faster = Disks {
            rebuild_hours: 24.0,
            ..disks
        };
        let worse = Disks {
            failures_a_year: 0.1,
            ..disks
        };
        let more = Disks { count: 9, ..disks };
        assert!(of_loss(faster, 2, 1.0) < base);
        assert!(of_loss(worse, 2, 1.0) > base);
        assert!(of_loss(more, 2, 1.0) > base);
        assert!(of_loss(disks, 3, 1.0) < base);
        assert!(
            of_loss(
                Disks {
                    failures_a_year: 0.0,
                    ..disks
                },
                2,
                1.0
            ) == 0.0
        );
        let never = Disks {
            rebuild_hours: 1e9,
            ..disks
        };
        let chance = of_loss(never, 2, 1.0);
        assert!(chance > 0.001 && chance < 0.01, "{chance}");
    }
}
