//! Answers that are made before they are asked for. The kernel reads ahead of a program that goes through a file, with a few
//! requests at a time, and has the next ones only when the program has come so far; the disks and the processors would wait
//! with it. So the answers to those are put together meanwhile, and handed over if the file has the same bytes there when
//! they are asked for. Knows how requests follow each other; what an answer is made of is known to `answer.rs`.

mod answer;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

pub(super) use answer::Answer;

/// The most answers of one reader that are planned, in the making or ready.
const ANSWERS: usize = 16;

/// The largest answer that is made ahead: what the kernel asks for at once. With `ANSWERS` it bounds the memory of one reader.
pub(super) const LARGEST: usize = 1 << 20;

/// Requests of one length, each near the one before, that make a reader one that goes on.
const SEQUENTIAL: u32 = 3;

/// How far requests of one reader may overtake each other, in bytes: the kernel has several under way.
const ASIDE: u64 = 8 << 20;

/// Requests in a row that were none of those planned, after which no more are planned for them.
const MISSES: u32 = 8;

/// How many answers may be there for all readers of a volume.
#[derive(Debug)]
pub(super) struct Shelf {
    free: AtomicUsize,
}

impl Shelf {
    /// Room for answers that together take `bytes` of memory.
    pub(super) fn new(bytes: u64) -> Arc<Shelf> {
        let places = usize::try_from(bytes / LARGEST as u64).unwrap_or(usize::MAX);
        Arc::new(Shelf {
            free: AtomicUsize::new(places),
        })
    }

    fn place(self: &Arc<Self>) -> Option<Place> {
        let one_less = |free: usize| free.checked_sub(1);
        self.free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .ok()?;
        Some(Place(Arc::clone(self)))
    }
}

/// Room for one answer.
#[derive(Debug)]
struct Place(Arc<Shelf>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is made ahead of one reader.
#[derive(Debug)]
pub(super) struct Ahead {
    shelf: Arc<Shelf>,
    state: Mutex<State>,
    made: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Where the furthest request ended.
    reached: u64,
    /// The length of the last one.
    length: usize,
    /// Requests in a row of that length, and near each other.
    streak: u32,
    /// Requests in a row for which nothing was planned although there were plans.
    misses: u32,
    /// As far as answers are planned.
    upto: u64,
    /// How many answers were planned.
    planned: u64,
    answers: VecDeque<Prepared>,
    /// Threads that make some.
    makers: usize,
    /// Somebody has asked since the last look.
    asked: bool,
}

#[derive(Debug)]
struct Prepared {
    /// No two are the same: what nobody wants any more may be planned again while a thread is still at it.
    number: u64,
    offset: u64,
    length: usize,
    stage: Stage,
    _place: Place,
}

#[derive(Debug)]
enum Stage {
    /// Nobody is at it.
    Planned,
    /// A thread is.
    Making,
    /// A thread is, and nobody wants it any more.
    Unwanted,
    Ready(Answer),
}

impl Prepared {
    fn is_wanted(&self) -> bool {
        !matches!(self.stage, Stage::Unwanted)
    }
}

impl Ahead {
    /// Nothing yet, for a new reader.
    pub(super) fn new(shelf: &Arc<Shelf>) -> Ahead {
        Ahead {
            shelf: Arc::clone(shelf),
            state: Mutex::default(),
            made: Condvar::new(),
        }
    }

    /// Plans what comes after a request, in a file of `size` bytes. Returns how many threads are to begin making answers
    /// (`next`), so that there are `most` at the most.
    fn plan(&self, offset: u64, length: usize, size: u64, most: usize) -> usize {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.asked = true;
        let end = offset.saturating_add(length as u64);
        if offset.abs_diff(state.reached) > ASIDE || length != state.length {
            state.begin_anew();
            (state.reached, state.length) = (end, length);
            return 0;
        }
        state.streak = state.streak.saturating_add(1);
        state.reached = state.reached.max(end);
        let behind = state.reached.saturating_sub(ASIDE);
        state.forget(|answer| answer.offset < behind);
        if state.streak < SEQUENTIAL || state.misses >= MISSES {
            return 0;
        }
        state.upto = state.upto.max(state.reached);
        while state.answers.len() < ANSWERS && state.upto.saturating_add(length as u64) <= size {
            let Some(place) = self.shelf.place() else {
                break;
            };
            state.planned += 1;
            state.answers.push_back(Prepared {
                number: state.planned,
                offset: state.upto,
                length,
                stage: Stage::Planned,
                _place: place,
            });
            state.upto += length as u64;
        }
        let more = state
            .planned()
            .count()
            .min(most)
            .saturating_sub(state.makers);
        state.makers += more;
        more
    }

    /// The answer to a request, if it is ready or a thread is at it. What is planned only is left to whoever asks.
    fn take(&self, offset: u64, length: usize) -> Option<Answer> {
        let mut state = self.state.lock();
        loop {
            let found = state.find(offset);
            let fits = found.filter(|&place| state.answers[place].length == length);
            let Some(place) = fits else {
                state.missed();
                return None;
            };
            if matches!(state.answers[place].stage, Stage::Making) {
                self.made.wait(&mut state);
                continue;
            }
            state.misses = 0;
            return match state.answers.remove(place)?.stage {
                Stage::Ready(answer) => Some(answer),
                Stage::Planned | Stage::Making | Stage::Unwanted => None,
            };
        }
    }

    /// The turn to make the next answer. `None` ends the thread's work, and there is one less.
    fn next(&self) -> Option<Turn<'_>> {
        let mut state = self.state.lock();
        let planned = |answer: &&mut Prepared| matches!(answer.stage, Stage::Planned);
        match state.answers.iter_mut().find(planned) {
            Some(answer) => {
                answer.stage = Stage::Making;
                Some(Turn {
                    ahead: self,
                    number: answer.number,
                    offset: answer.offset,
                    length: answer.length,
                    answer: None,
                })
            }
            None => {
                state.makers -= 1;
                None
            }
        }
    }

    /// It is made, or cannot be.
    fn put(&self, number: u64, answer: Option<Answer>) {
        let mut state = self.state.lock();
        let mut all = state.answers.iter();
        if let Some(place) = all.position(|answer| answer.number == number) {
            match (answer, &mut state.answers[place].stage) {
                (Some(answer), stage @ Stage::Making) => *stage = Stage::Ready(answer),
                _ => {
                    state.answers.remove(place);
                }
            }
        }
        self.made.notify_all();
    }

    /// Lets go what is there for a reader who has gone.
    pub(super) fn end(&self) {
        self.state.lock().begin_anew();
    }

    /// Lets go what is there for a reader who has asked for nothing since the last time.
    pub(super) fn rest(&self) {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.asked) {
            state.begin_anew();
        }
    }
}

impl State {
    fn find(&self, offset: u64) -> Option<usize> {
        self.answers
            .iter()
            .position(|answer| answer.offset == offset && answer.is_wanted())
    }

    fn planned(&self) -> impl Iterator<Item = &Prepared> {
        let planned = |answer: &&Prepared| matches!(answer.stage, Stage::Planned);
        self.answers.iter().filter(planned)
    }

    /// Nobody had thought of a request.
    fn missed(&mut self) {
        if self.answers.iter().any(Prepared::is_wanted) {
            self.misses += 1;
            if self.misses == MISSES {
                self.forget(|_| true);
            }
        }
    }

    fn begin_anew(&mut self) {
        self.forget(|_| true);
        (self.streak, self.misses, self.upto) = (0, 0, 0);
    }

    fn forget(&mut self, which: impl Fn(&Prepared) -> bool) {
        self.answers.retain_mut(|answer| {
            if !which(answer) {
                return true;
            }
            match answer.stage {
                Stage::Planned | Stage::Ready(_) => false,
                // Its place is taken as long as a thread is at it.
                Stage::Making | Stage::Unwanted => {
                    answer.stage = Stage::Unwanted;
                    true
                }
            }
        });
    }
}

/// An answer in the making. Whoever waits for it goes on when this is dropped, whatever has happened.
struct Turn<'a> {
    ahead: &'a Ahead,
    number: u64,
    offset: u64,
    length: usize,
    answer: Option<Answer>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.ahead.put(self.number, self.answer.take());
    }
}
