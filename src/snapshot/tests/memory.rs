//! What a map costs: at most 2 bytes a page for a paused guest, whatever its pages are.

use crate::snapshot::address::Gpa;
use crate::snapshot::layout::{Layout, RamRange};
use crate::snapshot::map::PageMap;
use crate::snapshot::runs::{Geometry, Kind, RunLog};

const PAGES: u64 = 1 << 20;

/// The bytes a page of a map whose pages are of the kinds that the function says; none is absent.
fn cost(geometry: Geometry, mut kind: impl FnMut(u64) -> Option<Kind>) -> f64 {
    let mut log = RunLog::new(geometry, 0);
    log.framing(1000);
    for page in 0..PAGES {
        if let Some(kind) = kind(page) {
            log.one(kind, page);
        }
    }
    assert!(log.is_ordered());
    let ram = RamRange {
        gpa: Gpa(0),
        ram: 0,
        length: PAGES * 4096,
    };
    let layouts = Layout::new("", [ram]).into_iter().collect();
    let end = log.end();
    let map = PageMap::new(log, Vec::new(), layouts, Vec::new(), end).unwrap();
    map.memory() as f64 / PAGES as f64
}

#[test]
fn a_paused_guest_takes_at_most_two_bytes_a_page() {
    let stream = Geometry {
        lead: 8,
        zero_record: 9,
        ..Geometry::PLAIN
    };
    let mut random = 1_u64;
    let mut coin = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random.is_multiple_of(2)
    };
    let either = |first, one, other| Some(if first { one } else { other });
    let costs = [
        ("all pages", cost(stream, |_| Some(Kind::Page)), 0.001),
        (
            "zeros in every second stretch of 40",
            cost(stream, |page| {
                either(page / 40 % 2 == 0, Kind::Page, Kind::Zero)
            }),
            0.2,
        ),
        (
            "zeros at random",
            cost(stream, |_| either(coin(), Kind::Page, Kind::Zero)),
            0.65,
        ),
        (
            "a zero after every page",
            cost(stream, |page| either(page % 2 == 0, Kind::Page, Kind::Zero)),
            1.25,
        ),
        (
            "every second page absent",
            cost(stream, |page| (page % 2 == 0).then_some(Kind::Page)),
            1.25,
        ),
        (
            "every second bit set",
            cost(Geometry::PLAIN, |page| {
                either(page % 2 == 0, Kind::Page, Kind::EmptySlot)
            }),
            1.25,
        ),
    ];
    for (name, cost, bound) in costs {
        println!("{name}: {cost:.4} bytes a page");
        assert!(cost <= bound, "{name}: {cost}");
    }
}
