//! Generations: which stretches of epochs were written by one set of disks, and what follows for two disks
//! that differ. Pure.
//!
//! A new generation is begun at every writable mount and whenever a disk leaves. The record that declares
//! it still belongs to the old generation, and nobody is answered before the new one has a record of its
//! own. So a record of a generation at or behind the epoch at which another disk ended that generation was
//! never answered for, unless it is the very declaration; and a record that was answered for is in a
//! generation that a disk which was not there has never heard of.

use std::collections::BTreeMap;

use crate::ids::Epoch;

/// No volume comes so far: a higher epoch was not written by it. So much is left that adding to one cannot overflow.
pub(super) const EPOCH_MAX: Epoch = Epoch(1 << 62);

/// A moment in a volume's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The durable transactions up to here.
    pub epoch: Epoch,
    /// The generation of the last of them.
    pub generation: u64,
    /// The checksum of the last one's header, and so of everything before it.
    pub fingerprint: u64,
}

impl Mark {
    /// Whether both are one moment: the checksum tells, and the generation is only a name.
    pub(super) fn is_same_as(self, other: Mark) -> bool {
        (self.epoch, self.fingerprint) == (other.epoch, other.fingerprint)
    }
}

/// What one disk knows of the past.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// Its newest moment.
    pub(super) head: Mark,
    /// The fingerprints of the epochs it has records of.
    pub(super) known: BTreeMap<Epoch, u64>,
    /// The generations by the epochs that declared them.
    pub(super) generations: BTreeMap<Epoch, u64>,
}

/// What a disk is beside one whose history is taken for true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// The same, or an earlier moment of it.
    Behind,
    /// It has records that were never answered for, and is otherwise behind.
    UnansweredTail,
    /// It goes on where the other one ends.
    Ahead,
    /// Something else was answered for here than there.
    Diverged,
}

impl History {
    /// What a disk with history `other` is if this one is true.
    pub(super) fn relation(&self, other: &History) -> Relation {
        let theirs = other.head;
        let mine = self.known.get(&theirs.epoch);
        if mine == Some(&theirs.fingerprint) {
            return Relation::Behind;
        }
        let declared = self
            .generations
            .iter()
            .find(|(_, generation)| **generation == theirs.generation);
        let Some((declared, _)) = declared else {
            return Relation::Diverged;
        };
        let ended = self
            .generations
            .range((
                std::ops::Bound::Excluded(declared),
                std::ops::Bound::Unbounded,
            ))
            .next();
        match ended {
            // The declaration itself, at `end`, is no longer answered for.
            Some((end, _)) if theirs.epoch >= *end => Relation::UnansweredTail,
            None if theirs.epoch > self.head.epoch => Relation::Ahead,
            // The same moment, and different things happened.
            _ if mine.is_some() => Relation::Diverged,
            _ => Relation::Behind,
        }
    }
}

/// Which of the histories is the volume's, or the two that cannot be joined. None of none.
pub(super) fn winner(histories: &[History]) -> Option<std::result::Result<usize, (usize, usize)>> {
    let mut order: Vec<(usize, &History)> = histories.iter().enumerate().collect();
    order.sort_by_key(|(_, history)| std::cmp::Reverse(history.head.epoch));
    let mut refused = None;
    for (candidate, history) in &order {
        let opposed = order.iter().find(|(other, theirs)| {
            other != candidate
                && matches!(
                    history.relation(theirs),
                    Relation::Diverged | Relation::Ahead
                )
        });
        match opposed {
            None => return Some(Ok(*candidate)),
            Some((other, _)) => refused = refused.or(Some((*candidate, *other))),
        }
    }
    refused.map(Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history from its records: epoch, generation, fingerprint, and which generation it declares.
    fn history(records: &[(u64, u64, u64, Option<u64>)]) -> History {
        let mut history = History::default();
        for &(epoch, generation, fingerprint, declares) in records {
            let epoch = Epoch(epoch);
            history.head = Mark {
                epoch,
                generation,
                fingerprint,
            };
            history.known.insert(epoch, fingerprint);
            if let Some(declares) = declares {
                history.generations.insert(epoch, declares);
            }
        }
        history
    }

    /// Three epochs that all disks share; generation 1 from the first on.
    const SHARED: [(u64, u64, u64, Option<u64>); 3] =
        [(1, 1, 11, Some(1)), (2, 1, 12, None), (3, 1, 13, None)];

    fn with(more: &[(u64, u64, u64, Option<u64>)]) -> History {
        history(&[&SHARED, more].concat())
    }

    #[test]
    fn a_disk_that_was_away_is_behind() {
        let away = with(&[]);
        let ahead = with(&[(4, 1, 14, Some(2)), (5, 2, 15, None)]);
        assert_eq!(ahead.relation(&away), Relation::Behind);
        assert_eq!(away.relation(&ahead), Relation::Diverged);
        assert_eq!(winner(&[away, ahead]), Some(Ok(1)));
    }

    #[test]
    fn behind_even_where_the_journal_no_longer_reaches_back() {
        let away = with(&[]);
        let mut ahead = with(&[(4, 1, 14, Some(2)), (9, 2, 15, None)]);
        ahead.known.retain(|epoch, _| epoch.0 > 5);
        assert_eq!(ahead.relation(&away), Relation::Behind);
    }

    #[test]
    fn an_unanswered_record_is_dropped_when_the_others_went_on() {
        // One disk took epoch 4 and nobody was answered; then the others mounted without it.
        let tail = with(&[(4, 1, 99, None)]);
        let went_on = with(&[(4, 1, 14, Some(2)), (5, 2, 15, None)]);
        assert_eq!(went_on.relation(&tail), Relation::UnansweredTail);
        assert_eq!(winner(&[tail, went_on]), Some(Ok(1)));
    }

    #[test]
    fn an_unanswered_mount_is_dropped_when_the_others_went_on() {
        for tail in [
            with(&[(4, 1, 99, Some(7))]),
            with(&[(4, 1, 99, Some(7)), (5, 7, 98, None)]),
        ] {
            let only_declared = tail.head.epoch.0 == 4;
            let went_on = with(&[(4, 1, 14, Some(2)), (5, 2, 15, None)]);
            let expected = if only_declared {
                Relation::UnansweredTail
            } else {
                // Its mount was answered.
                Relation::Diverged
            };
            assert_eq!(went_on.relation(&tail), expected);
        }
    }

    #[test]
    fn a_crash_between_declaration_and_first_record() {
        // Both took the declaration of 2, one the first record of 2; the other mounts alone.
        let tail = with(&[(4, 1, 14, Some(2)), (5, 2, 99, None)]);
        let went_on = with(&[(4, 1, 14, Some(2)), (5, 2, 15, Some(3)), (6, 3, 16, None)]);
        assert_eq!(went_on.relation(&tail), Relation::UnansweredTail);
        let declared = with(&[(4, 1, 14, Some(2))]);
        assert_eq!(went_on.relation(&declared), Relation::Behind);
        assert_eq!(winner(&[went_on, tail, declared]), Some(Ok(0)));
    }

    #[test]
    fn the_next_record_of_the_same_generation_is_ahead() {
        let behind = with(&[]);
        let ahead = with(&[(4, 1, 14, None)]);
        assert_eq!(behind.relation(&ahead), Relation::Ahead);
        assert_eq!(winner(&[behind, ahead]), Some(Ok(1)));
    }

    #[test]
    fn two_that_were_both_answered_are_refused() {
        let one = with(&[(4, 1, 14, Some(2)), (5, 2, 15, None)]);
        let other = with(&[(4, 1, 24, Some(3)), (5, 3, 25, None), (6, 3, 26, None)]);
        let bystander = with(&[]);
        assert_eq!(winner(&[bystander, one, other]), Some(Err((2, 1))));
    }

    #[test]
    fn different_records_of_one_moment_are_refused() {
        let one = with(&[(4, 1, 14, None)]);
        let other = with(&[(4, 1, 24, None)]);
        assert_eq!(one.relation(&other), Relation::Diverged);
    }
}
