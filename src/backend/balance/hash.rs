//! Weighted rendezvous hashing, in integers: the same choice on all machines.
//!
//! Each pair of key and backend has a hash `v` in [0, 1), and the backend with the least
//! `-ln(1 - v) / weight` is chosen: the first of independent exponential arrivals, whose rates are
//! the weights. A backend that comes, goes or changes its weight moves only the keys that it gains
//! or loses. <https://en.wikipedia.org/wiki/Rendezvous_hashing#Weighted_rendezvous_hash>

use std::ops::Range;

use super::Tried;
use super::board::{Board, Tier};

/// Returns the 64-bit hash of a key or a backend's name: FNV-1a, then the finalizer of MurmurHash3.
/// Fixed for ever: proxies of different versions send a key to the same backend.
pub(crate) fn key_of(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

/// Returns the eligible backend of a tier that a key belongs to, of those not yet tried.
pub(super) fn choose(board: &Board, tier: Tier, key: u64, tried: &Tried) -> Option<usize> {
    let mut search = Search {
        board,
        key,
        tried,
        is_uniform: board.is_uniform(tier),
        limit: 1 << LIMIT_BITS,
        least: (u64::MAX, 1),
        chosen: None,
    };
    let rest = search.scan::<false>(board.range(tier));
    search.scan::<true>(rest);
    search.chosen
}

/// A search for the least score.
struct Search<'a> {
    board: &'a Board,
    key: u64,
    tried: &'a Tried,
    /// Whether all weights above 0 are equal.
    is_uniform: bool,
    /// Above the least score, in units of 2^-38; times the greatest weight still below 2^63.
    limit: u64,
    /// Numerator and denominator of the least score.
    least: (u64, u32),
    chosen: Option<usize>,
}

/// Fractional bits of [`Search::limit`].
const LIMIT_BITS: u32 = 38;

/// Number of full backends that are met as possible winners, at the price of a mispredicted branch
/// each, before the counts are read first.
const FULL_MAX: usize = 16;

impl Search<'_> {
    /// Searches a range. With `FULL`, full backends are sorted out at once: faster if they are
    /// most. Without it, only possible winners are looked at, and if many of them are full the
    /// search stops and returns the rest of the range.
    #[inline]
    fn scan<const FULL: bool>(&mut self, range: Range<usize>) -> Range<usize> {
        let (board, key, tried, end) = (self.board, self.key, self.tried, range.end);
        let (mut limit, mut full) = (self.limit, 0);
        let weights = board.open_weights::<FULL>(range.clone());
        for ((index, weight), &id) in weights.zip(&board.ids()[range]) {
            if FULL && weight == 0 {
                continue;
            }
            let hash = mix(key, id);
            // As -ln(1 - v) >= v. Of n backends about ln n pass.
            if hash >> (64 - LIMIT_BITS) < limit * u64::from(weight) && !tried.contains(index) {
                if FULL || !board.is_full(index) {
                    self.compare(index, hash, weight);
                    limit = self.limit;
                } else if full == FULL_MAX {
                    return index + 1..end;
                } else {
                    full += 1;
                }
            }
        }
        end..end
    }

    /// Takes a backend if its score is less than the least so far.
    #[inline]
    fn compare(&mut self, index: usize, hash: u64, weight: u32) {
        // The logarithm is monotonic: equal weights do without it. Both are in units of 2^-58.
        let score = if self.is_uniform { hash >> (64 - SCORE_BITS) } else { exponential(hash) };
        let (numerator, denominator) = self.least;
        let is_less = u128::from(score) * u128::from(denominator)
            < u128::from(numerator) * u128::from(weight);
        if is_less {
            (self.least, self.chosen) = ((score, weight), Some(index));
            let limit = (score >> (SCORE_BITS - LIMIT_BITS)) / u64::from(weight) + 1;
            self.limit = limit.min(1 << LIMIT_BITS);
        }
    }
}

/// Returns the hash of a key for a backend, as if drawn at random for each pair of them. Both are
/// well mixed already.
#[inline]
fn mix(key: u64, id: u64) -> u64 {
    let product = u128::from(key ^ id) * 0x9e37_79b9_7f4a_7c15;
    (product >> 64) as u64 ^ product as u64
}

/// Fractional bits of [`exponential`], which is at most 44.4.
const SCORE_BITS: u32 = 58;

/// Returns `-ln(1 - v)` with `v` in units of 2^-64, in units of 2^-58. The relative error is below
/// 2^-28 where `v` is above 2^-28, and the result is never below `v`.
fn exponential(v: u64) -> u64 {
    /// ln 2 in units of 2^-58.
    const LN_2: u64 = 0x02c5_c85f_df47_3de6;
    if v == 0 {
        return 0;
    }
    // 1 - v = m / 2^zeros, with m in [1/2, 1) in units of 2^-64.
    let remainder = v.wrapping_neg();
    let zeros = remainder.leading_zeros();
    let m = remainder << zeros;
    // -ln m = 2 artanh z, with z = (1 - m) / (1 + m) in (0, 1/3], here in units of 2^-63. All bits
    // of the numerator are used, since it may be small.
    let numerator = m.wrapping_neg();
    let shift = numerator.leading_zeros();
    let z = (((numerator << shift) / ((1 << 32) + (m >> 32))) << 31) >> shift;
    // artanh z = z (1 + z^2 / 3 + z^4 / 5 + ...), the sum in units of 2^-32.
    let square = ((z >> 31) * (z >> 31)) >> 32;
    let sum = (0..9).rev().fold(0, |sum, term| ((sum * square) >> 32) + (1 << 32) / (2 * term + 1));
    // Twice the product, from units of 2^-95 to 2^-58.
    let minus_ln_m = ((u128::from(z) * u128::from(sum)) >> 36) as u64;
    (u64::from(zeros) * LN_2 + minus_ln_m).max(v >> 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_same_for_ever() {
        // The first three are the published vectors of FNV-1a, mixed.
        let keys =
            ["", "a", "foobar", "192.0.2.1", "chat-1:9000"].map(|key| key_of(key.as_bytes()));
        let expected = [
            0xefd0_1f60_ba99_2926,
            0x82a2_a958_a9be_ce5b,
            0x2c22_1949_22d1_672b,
            0x8fc4_3361_6f77_3343,
            0x0a84_8d08_b768_b620,
        ];
        assert_eq!(keys, expected);
    }

    #[test]
    fn the_logarithm_is_near_the_true_one() {
        assert_eq!(exponential(0), 0);
        let mut worst: f64 = 0.0;
        for number in 0..200_000_u64 {
            // All magnitudes from 2^-28 to 1, those next to 1 included.
            let v = key_of(&number.to_le_bytes()) >> (number % 28);
            let v = if number % 56 < 28 { v.max(1 << 36) } else { !v };
            let exact = -(-(v as f64) / 2_f64.powi(64)).ln_1p();
            // Near 1, `v as f64` has too few bits.
            let exact = if v > 1 << 63 {
                -((v.wrapping_neg()) as f64).ln() + 64.0 * 2_f64.ln()
            } else {
                exact
            };
            let score = exponential(v) as f64 / 2_f64.powi(SCORE_BITS as i32);
            worst = worst.max((score / exact - 1.0).abs());
            assert!(exponential(v) >= v >> 6);
        }
        assert!(worst < 2_f64.powi(-28), "2^{}", worst.log2());
        assert!(exponential(u64::MAX) > 44 << SCORE_BITS);
    }
}
