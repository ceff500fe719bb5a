//! Smooth weighted round-robin.
//!
//! nginx's algorithm: at each choice the current value of each backend grows by its weight, and
//! the greatest is chosen and falls by the sum of the weights. The weights 5, 1, 1 give
//! a a b a c a a. <https://github.com/nginx/nginx/commit/52327e0627f49dbda1e8db695e63a4b0af4448b1>

use std::collections::HashMap;
use std::ops::Range;

use super::Tried;
use super::board::{Board, Tier};

/// Greatest sum of the weights of a tier, so that no current value leaves its type.
const SUM_MAX: u64 = 1 << 28;

/// Bound of the current values. Without backends that fill up they stay within one sum.
const CURRENT_MAX: i32 = 1 << 29;

/// Backends per step of a choice.
const BLOCK: usize = 64;

/// The current values of the backends of one board.
#[derive(Debug, Default)]
pub(super) struct Smooth {
    /// Version of the board that `weights` were read from.
    version: usize,
    /// The board's weights, scaled down where their sum is above [`SUM_MAX`].
    weights: Vec<i32>,
    currents: Vec<i32>,
}

impl Smooth {
    /// Creates the state for the board `to` that goes on where this one, of the board `from`, is.
    pub(super) fn successor(&self, from: &Board, to: &Board) -> Self {
        let currents: HashMap<_, _> = from.ids().iter().zip(&self.currents).collect();
        let current = |id| currents.get(id).map_or(0, |&&current| current);
        Self { currents: to.ids().iter().map(current).collect(), ..Self::default() }
    }

    /// Returns the backend of a tier whose turn it is, of those that are eligible and not tried.
    pub(super) fn choose(&mut self, board: &Board, tier: Tier, tried: &Tried) -> Option<usize> {
        self.refresh(board);
        let range = board.range(tier);
        let (mut sum, mut greatest, mut chosen) = (0, i32::MIN, None);
        for first in range.clone().step_by(BLOCK) {
            let block = first..range.end.min(first + BLOCK);
            let mut weights = &self.weights[block.clone()];
            let mut open = [0; BLOCK];
            if board.has_caps() || !tried.is_empty() {
                weights = open_weights(board, block.clone(), tried, weights, &mut open);
            }
            let currents = &mut self.currents[block];
            let (sum_of_block, greatest_of_block) = grow(currents, weights);
            sum += sum_of_block;
            if greatest_of_block > greatest {
                greatest = greatest_of_block;
                let mut pairs = currents.iter().zip(weights);
                chosen = pairs.position(|(&current, &weight)| weight > 0 && current == greatest);
                chosen = chosen.map(|index| first + index);
            }
        }
        let chosen = chosen?;
        self.currents[chosen] = (greatest - sum).max(-CURRENT_MAX);
        Some(chosen)
    }

    /// Reads the weights, if they have changed.
    fn refresh(&mut self, board: &Board) {
        let version = board.version();
        if self.version == version {
            return;
        }
        self.version = version;
        self.weights.resize(board.len(), 0);
        self.currents.resize(board.len(), 0);
        for tier in [Tier::Primary, Tier::Backup] {
            self.refresh_tier(board, board.range(tier));
        }
    }

    /// Reads the weights of a tier. So that the turns of the new weights are not upset by what was
    /// due by the old ones, each current value begins within a cycle of them, and their sum near 0.
    fn refresh_tier(&mut self, board: &Board, range: Range<usize>) {
        let weights: Vec<_> = range.clone().map(|index| board.weight(index)).collect();
        let sum: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        let shift = (sum / SUM_MAX).checked_ilog2().map_or(0, |log| log + 1);
        let scaled = |&weight: &u32| if weight > 0 { (weight >> shift).max(1) as i32 } else { 0 };
        let own = &mut self.weights[range.clone()];
        own.iter_mut().zip(&weights).for_each(|(own, weight)| *own = scaled(weight));
        let sum: i32 = own.iter().sum();
        let in_use = own.iter().filter(|&&weight| weight > 0).count().max(1) as i64;
        let currents = &mut self.currents[range];
        for (current, &weight) in currents.iter_mut().zip(&*own) {
            *current = if weight > 0 { *current } else { 0 };
        }
        let mean = currents.iter().map(|&current| i64::from(current)).sum::<i64>() / in_use;
        for (current, &weight) in currents.iter_mut().zip(&*own) {
            let centred = i64::from(*current) - if weight > 0 { mean } else { 0 };
            *current = centred.clamp(i64::from(-sum), i64::from(sum)) as i32;
        }
    }
}

/// Writes the weights of a block to `open`, 0 for backends that are full or tried.
fn open_weights<'o>(
    board: &Board,
    block: Range<usize>,
    tried: &Tried,
    weights: &[i32],
    open: &'o mut [i32; BLOCK],
) -> &'o [i32] {
    let open = &mut open[..weights.len()];
    open.copy_from_slice(weights);
    if board.has_caps() {
        for (open, (_, weight)) in open.iter_mut().zip(board.open_weights::<true>(block.clone())) {
            *open = if weight > 0 { *open } else { 0 };
        }
    }
    if !tried.is_empty() {
        for (open, index) in open.iter_mut().zip(block) {
            *open = if tried.contains(index) { 0 } else { *open };
        }
    }
    open
}

/// Adds the weights to the current values. Returns the sum of the weights, and the greatest current
/// value of those with a weight above 0. Without a branch, so that the compiler makes vectors of
/// it.
fn grow(currents: &mut [i32], weights: &[i32]) -> (i32, i32) {
    let (mut sum, mut greatest) = (0, i32::MIN);
    for (current, &weight) in currents.iter_mut().zip(weights) {
        *current = (*current + weight).min(CURRENT_MAX);
        greatest = greatest.max(if weight > 0 { *current } else { i32::MIN });
        sum += weight;
    }
    (sum, greatest)
}
