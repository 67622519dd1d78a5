//! Lost shards out of any `k` others.
//!
//! Not with the library's decoder: it evaluates a polynomial over all 65536 field elements at every call,
//! whatever the length (see the figures in `docs/coding.md`), and gives back columns only. A code of at
//! most 32 shards is better served by its matrix. The generator is read off the library's *encoder*, one
//! unit vector at a time, so that both always speak of the same code; a `k` by `k` inverse then says which
//! combination of the present shards each wanted one is.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use reed_solomon_simd::ReedSolomonEncoder;
use reed_solomon_simd::engine::tables::{self, ExpLog};
use reed_solomon_simd::engine::{DefaultEngine, Engine, GF_MODULUS, GfElement};

use super::{ALIGN, ParityError, check_code};
use crate::store::records::Code;

/// Units of 64 bytes that are worked on at once: 8 KiB of source and as much of the result stay in the
/// first-level cache.
const TILE: usize = 128;

/// The wanted shards of an aligned range, in the order asked for, from `k` or more present shards of the
/// same range: pairs of a shard's number (columns from 0, parity from `k`) and its bytes. All are of one
/// length, a multiple of `PARITY_ALIGN`. Only the first `k` are used.
pub fn reconstruct(
    code: Code,
    present: &[(usize, &[u8])],
    wanted: &[usize],
) -> Result<Vec<Vec<u8>>, ParityError> {
    let (k, m) = check_code(code)?;
    let used = present.get(..k).ok_or(ParityError::TooFew {
        code,
        found: present.len(),
    })?;
    let length = used.first().map_or(0, |(_, bytes)| bytes.len());
    for (place, &(shard, bytes)) in used.iter().enumerate() {
        if shard >= k + m || used.iter().take(place).any(|&(other, _)| other == shard) {
            return Err(ParityError::Shard { code, shard });
        }
        if bytes.len() != length || bytes.len() % ALIGN != 0 {
            return Err(ParityError::Length {
                expected: length.next_multiple_of(ALIGN),
                found: bytes.len(),
            });
        }
    }
    if let Some(&shard) = wanted.iter().find(|&&shard| shard >= k + m) {
        return Err(ParityError::Shard { code, shard });
    }
    if k == 1 {
        let copy = used.first().map_or(&[][..], |(_, bytes)| bytes);
        return Ok(wanted.iter().map(|_| copy.to_vec()).collect());
    }
    DECODER.with_borrow_mut(|decoder| {
        let decoder = decoder.get_or_insert_with(Decoder::new);
        let generator = decoder.generator(code)?;
        let numbers: Vec<usize> = used.iter().map(|&(shard, _)| shard).collect();
        let weights = weights(decoder.field, &generator, k, &numbers, wanted)
            .ok_or(ParityError::Shard { code, shard: k + m })?;
        Ok(weights
            .iter()
            .map(|weights| decoder.combine(used, weights, length))
            .collect())
    })
}

thread_local! {
    static DECODER: RefCell<Option<Decoder>> = const { RefCell::new(None) };
}

struct Decoder {
    engine: DefaultEngine,
    field: &'static ExpLog,
    generators: HashMap<Code, Rc<Matrix>>,
    scratch: Vec<[u8; ALIGN]>,
}

impl Decoder {
    fn new() -> Self {
        Decoder {
            engine: DefaultEngine::new(),
            field: tables::get_exp_log(),
            generators: HashMap::new(),
            scratch: vec![[0; ALIGN]; TILE],
        }
    }

    /// `m` rows of `k`: what each column adds to each parity shard.
    fn generator(&mut self, code: Code) -> Result<Rc<Matrix>, ParityError> {
        if let Some(known) = self.generators.get(&code) {
            return Ok(known.clone());
        }
        let refused = |source| ParityError::Library { code, source };
        let (k, m) = (usize::from(code.k), usize::from(code.m));
        let mut rows = vec![vec![0; k]; m];
        if m > 0 {
            // The first field element of a unit is spread over bytes 0 and 32.
            let [low, high] = one(self.field).to_le_bytes();
            let mut unit = [0; ALIGN];
            unit[0] = low;
            unit[32] = high;
            let mut encoder = ReedSolomonEncoder::new(k, m, ALIGN).map_err(refused)?;
            for column in 0..k {
                for other in 0..k {
                    let shard = if other == column { unit } else { [0; ALIGN] };
                    encoder.add_original_shard(shard).map_err(refused)?;
                }
                let result = encoder.encode().map_err(refused)?;
                for (row, shard) in rows.iter_mut().zip(result.recovery_iter()) {
                    if let (Some(weight), Some(low), Some(high)) =
                        (row.get_mut(column), shard.first(), shard.get(32))
                    {
                        *weight = GfElement::from_le_bytes([*low, *high]);
                    }
                }
            }
        }
        let rows = Rc::new(rows);
        self.generators.insert(code, rows.clone());
        Ok(rows)
    }

    /// The sum of the shards, each times its weight.
    fn combine(
        &mut self,
        used: &[(usize, &[u8])],
        weights: &[GfElement],
        length: usize,
    ) -> Vec<u8> {
        let mut out = vec![0; length];
        let (out_units, _) = out.as_chunks_mut::<ALIGN>();
        for (tile, out) in out_units.chunks_mut(TILE).enumerate() {
            for (&(_, shard), &weight) in used.iter().zip(weights) {
                if weight == 0 {
                    continue;
                }
                let (units, _) = shard.as_chunks::<ALIGN>();
                let units = units.iter().skip(tile * TILE).take(out.len());
                let room = self.scratch.iter_mut().zip(units);
                room.for_each(|(room, unit)| *room = *unit);
                let Some(product) = self.scratch.get_mut(..out.len()) else {
                    continue;
                };
                if weight != one(self.field) {
                    self.engine.mul(product, log(self.field, weight));
                }
                for (sum, product) in out.iter_mut().zip(product) {
                    sum.iter_mut().zip(product).for_each(|(a, b)| *a ^= *b);
                }
            }
        }
        out
    }
}

type Matrix = Vec<Vec<GfElement>>;

fn one(field: &ExpLog) -> GfElement {
    field.exp.first().copied().unwrap_or_default()
}

fn log(field: &ExpLog, x: GfElement) -> GfElement {
    field.log.get(usize::from(x)).copied().unwrap_or_default()
}

fn times(field: &ExpLog, x: GfElement, y: GfElement) -> GfElement {
    if y == 0 {
        return 0;
    }
    tables::mul(x, log(field, y), &field.exp, &field.log)
}

/// `1 / x` for an `x` other than 0.
fn inverse(field: &ExpLog, x: GfElement) -> GfElement {
    let log = (GF_MODULUS - log(field, x)) % GF_MODULUS;
    field.exp.get(usize::from(log)).copied().unwrap_or_default()
}

/// For each wanted shard, the weight of each present one; `None` when the present ones do not determine it,
/// which `k` different shards of this code always do.
fn weights(
    field: &ExpLog,
    generator: &Matrix,
    k: usize,
    present: &[usize],
    wanted: &[usize],
) -> Option<Matrix> {
    let row = |shard: usize| -> Option<Vec<GfElement>> {
        if shard < k {
            let unit = |column| if column == shard { one(field) } else { 0 };
            Some((0..k).map(unit).collect())
        } else {
            generator.get(shard - k).cloned()
        }
    };
    let rows: Option<Matrix> = present.iter().map(|&shard| row(shard)).collect();
    let inverted = invert(field, rows?)?;
    wanted
        .iter()
        .map(|&shard| {
            let wanted = row(shard)?;
            let weight = |place: usize| -> Option<GfElement> {
                wanted.iter().zip(&inverted).try_fold(0, |sum, (&a, row)| {
                    Some(sum ^ times(field, *row.get(place)?, a))
                })
            };
            (0..k).map(weight).collect()
        })
        .collect()
}

/// Gauss and Jordan, the unit matrix beside it.
fn invert(field: &ExpLog, mut rows: Matrix) -> Option<Matrix> {
    let k = rows.len();
    for (place, row) in rows.iter_mut().enumerate() {
        row.extend((0..k).map(|column| if column == place { one(field) } else { 0 }));
    }
    for pivot in 0..k {
        let found = (pivot..k).find(|&row| entry(&rows, row, pivot) != 0)?;
        rows.swap(pivot, found);
        let scale = inverse(field, entry(&rows, pivot, pivot));
        let mut leading = std::mem::take(rows.get_mut(pivot)?);
        leading
            .iter_mut()
            .for_each(|x| *x = times(field, *x, scale));
        for row in &mut rows {
            // The row taken out is empty here, and so passed over.
            let Some(&factor) = row.get(pivot).filter(|&&factor| factor != 0) else {
                continue;
            };
            for (x, &lead) in row.iter_mut().zip(&leading) {
                *x ^= times(field, lead, factor);
            }
        }
        *rows.get_mut(pivot)? = leading;
    }
    for row in &mut rows {
        row.drain(..k);
    }
    Some(rows)
}

fn entry(rows: &Matrix, row: usize, column: usize) -> GfElement {
    rows.get(row)
        .and_then(|row| row.get(column))
        .copied()
        .unwrap_or_default()
}
