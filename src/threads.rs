//! Work that waits for several disks at a time, a thread for each. Where no more threads can be had (a limit of the system's or of a
//! container's) the ones that there are do it, one after the other: that takes longer, and nothing fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, Builder};

use parking_lot::Mutex;

/// Does the work for all items side by side. The results come in the order of the items; one whose work panicked is an error.
pub(crate) fn side_by_side<T: Send, R: Send>(
    items: Vec<T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<thread::Result<R>> {
    let others = items.len().saturating_sub(1);
    on_threads(others, items, work)
}

/// The same with at most so many threads besides this one.
fn on_threads<T: Send, R: Send>(
    others: usize,
    items: Vec<T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<thread::Result<R>> {
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let left = Mutex::new(items.into_iter().enumerate());
    let go_on = || {
        loop {
            let next = left.lock().next();
            let Some((place, item)) = next else { break };
            let result = catch_unwind(AssertUnwindSafe(|| work(item)));
            results.lock().push((place, result));
        }
    };
    thread::scope(|scope| {
        for _ in 0..others {
            if let Err(error) = Builder::new().spawn_scoped(scope, go_on) {
                tracing::debug!(%error, "no more threads for work that waits for disks");
                break;
            }
        }
        go_on();
    });
    let mut results = results.into_inner();
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn each_item_has_a_thread_of_its_own() {
        let all = Barrier::new(6);
        let results = side_by_side((0..6).collect(), |item: u32| {
            all.wait();
            item * 2
        });
        let results: Vec<u32> = results
            .into_iter()
            .map(|result| result.expect("done"))
            .collect();
        assert_eq!(results, [0, 2, 4, 6, 8, 10]);
        assert!(side_by_side(Vec::<u32>::new(), |item| item).is_empty());
    }

    #[test]
    fn without_threads_the_one_that_asks_does_it_all() {
        for others in [0, 1, 2] {
            let results = on_threads(others, (0..9).collect(), |item: u32| item + 1);
            let results: Vec<u32> = results
                .into_iter()
                .map(|result| result.expect("done"))
                .collect();
            assert_eq!(results, (1..10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_panics_is_an_error_and_the_rest_is_done() {
        let results = side_by_side(vec![1, 2, 3], |item: u32| {
            assert_ne!(item, 2, "as wanted by the test");
            item
        });
        let good: Vec<Option<u32>> = results.into_iter().map(Result::ok).collect();
        assert_eq!(good, [Some(1), None, Some(3)]);
    }
}
