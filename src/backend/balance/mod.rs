//! The choice of the backend of a new tunnel.
//!
//! A [`Board`] holds what choosing reads of the backends of a pool, a [`Chooser`] the rule and its
//! turns. A backend is eligible if its weight is above 0 and its count below its cap; backups
//! take part only while no primary is eligible. Pure: no clock, no sockets, no random numbers.

mod board;
mod counts;
mod hash;
mod smooth;
#[cfg(test)]
mod tests;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub(crate) use self::board::{Board, Candidate, NO_CAP, WEIGHT_ONE};
pub(crate) use self::counts::{CountSlab, SharedCount};
pub(crate) use self::hash::key_of;

use self::board::Tier;
use self::smooth::Smooth;
use crate::lock::lock;

/// Rule by which a backend is chosen for a handshake; the key `balance` of a section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize, serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Balance {
    /// In turn, as often as their weights say. The default.
    #[default]
    RoundRobin,
    /// The one with the fewest tunnels for its weight; those with equally few take turns.
    LeastTunnels,
    /// The one that a part of the request belongs to, see
    /// [`hash_on`](crate::WsProxy::hash_on). Requests without that part go round.
    Hash,
}

/// Chooses backends of a [`Board`]. All workers share it.
#[derive(Debug, Default)]
pub(crate) struct Chooser {
    rule: Balance,
    /// Those with the fewest tunnels are chosen instead of the next in turn.
    evens_out: AtomicBool,
    /// The index after the one chosen last, per tier. Counters of the choices would give the turns
    /// of a missing backend to the next one; thus all share them.
    turns: [AtomicUsize; 2],
    /// Counts further tries of handshakes, per tier: those who have met a backend that is lost are
    /// spread over all others, and not left to its neighbour.
    further: [AtomicUsize; 2],
    /// The turns of unequal weights.
    smooth: Mutex<Smooth>,
}

/// The eligible backends of a board, each once, the best first. One is chosen only when the
/// iterator reaches it, by the counts and weights of that moment.
#[derive(Debug)]
pub(crate) struct Order<'a> {
    chooser: &'a Chooser,
    board: &'a Board,
    key: Option<u64>,
    last: Option<usize>,
    tried: Tried,
}

/// A set of backends that have been tried.
#[derive(Debug, Default)]
struct Tried(Vec<u64>);

impl Chooser {
    pub(crate) fn new(rule: Balance) -> Self {
        Self { rule, ..Self::default() }
    }

    /// Creates the chooser that follows this one when the board `from` gives way to the board `to`.
    /// The turns go on.
    pub(crate) fn successor(&self, rule: Balance, from: &Board, to: &Board) -> Self {
        let turn = |turn: &AtomicUsize| AtomicUsize::new(turn.load(Ordering::Relaxed));
        let smooth = lock(&self.smooth).successor(from, to);
        let evens_out = AtomicBool::new(self.evens_out.load(Ordering::Relaxed));
        let [turns, further] = [&self.turns, &self.further].map(|all| all.each_ref().map(turn));
        Self { rule, evens_out, turns, further, smooth: Mutex::new(smooth) }
    }

    /// Has [`Balance::RoundRobin`] choose as [`Balance::LeastTunnels`] does, or no longer. What has
    /// a key in [`Balance::Hash`] stays where it belongs.
    pub(crate) fn even_out(&self, is_on: bool) {
        self.evens_out.store(is_on, Ordering::Relaxed);
    }

    /// Returns the best eligible backend.
    #[cfg(test)]
    fn first(&self, board: &Board, key: Option<u64>) -> Option<usize> {
        self.order(board, key).next()
    }

    /// Returns the order in which one handshake tries the eligible backends. `key` is that of
    /// [`Balance::Hash`], by [`key_of`]. Backends of one tier only: if any primary is eligible,
    /// no backup follows.
    pub(crate) fn order<'a>(&'a self, board: &'a Board, key: Option<u64>) -> Order<'a> {
        Order { chooser: self, board, key, last: None, tried: Tried::default() }
    }

    /// Chooses among the eligible backends of a tier that have not been tried; `last` was chosen
    /// before.
    fn choose(
        &self,
        board: &Board,
        tier: Tier,
        key: Option<u64>,
        last: Option<usize>,
        tried: &Tried,
    ) -> Option<usize> {
        match (self.rule, key, last) {
            (Balance::Hash, Some(key), _) => hash::choose(board, tier, key, tried),
            (rule, ..) if rule == Balance::LeastTunnels || self.evens_out() => {
                self.in_turn(tier, |start| board.least(tier, start, tried))
            }
            _ if !board.is_uniform(tier) => lock(&self.smooth).choose(board, tier, tried),
            // Further tries of a handshake take no turn of others.
            (.., Some(last)) => {
                let number = self.further[tier as usize].fetch_add(1, Ordering::Relaxed);
                let range = board.range(tier);
                // One of the others, each as often.
                let ahead = 1 + number % range.len().saturating_sub(1).max(1);
                let start = range.start + (last - range.start + ahead) % range.len();
                board.next(tier, start, tried)
            }
            (.., None) => self.in_turn(tier, |start| board.next(tier, start, tried)),
        }
    }

    fn evens_out(&self) -> bool {
        self.evens_out.load(Ordering::Relaxed)
    }

    /// Takes a turn: `find` returns the first backend from an index that is good enough. Two
    /// threads never take the same turn, since the one that comes second searches again.
    fn in_turn(&self, tier: Tier, find: impl Fn(usize) -> Option<usize>) -> Option<usize> {
        let turn = &self.turns[tier as usize];
        // Relaxed: the turn guards no other memory.
        let mut start = turn.load(Ordering::Relaxed);
        loop {
            let index = find(start)?;
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            match turn.compare_exchange(start, index + 1, success, failure) {
                Ok(_) => return Some(index),
                Err(taken) => start = taken,
            }
        }
    }
}

impl Iterator for Order<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let choose =
            |tier, tried: &Tried| self.chooser.choose(self.board, tier, self.key, self.last, tried);
        let index = match self.last {
            None => {
                choose(Tier::Primary, &self.tried).or_else(|| choose(Tier::Backup, &self.tried))
            }
            Some(last) => {
                self.tried.insert(last, self.board.len());
                choose(self.board.tier(last), &self.tried)
            }
        };
        self.last = index.or(self.last);
        index
    }
}

impl Tried {
    /// Adds one of `len` backends. The empty set owns no memory: mostly the first one is good.
    fn insert(&mut self, index: usize, len: usize) {
        self.0.resize(len.div_ceil(64), 0);
        self.0[index / 64] |= 1 << (index % 64);
    }

    #[inline]
    fn contains(&self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|bits| bits & (1 << (index % 64)) != 0)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
