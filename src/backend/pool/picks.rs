//! The backends for one handshake, one after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Member, Pool};
use crate::backend::balance::Order;
use crate::backend::{Lease, Trial};

/// A backend that a handshake is to be brought to.
#[derive(Debug)]
pub(crate) struct Pick {
    /// Dropped first: whoever takes the place of the lease may take the trial as well.
    pub(crate) trial: Option<Trial>,
    pub(crate) lease: Lease,
}

/// The picks for one handshake, in the order in which they are to be tried.
pub(crate) struct Picks<'a> {
    pool: &'a Pool,
    /// The backend that the key belongs to.
    bound: Option<usize>,
    /// The choice among those in use.
    order: Option<Order<'a>>,
    /// Those that the choice has not named: spare ones, and those that are out of use.
    rest: std::vec::IntoIter<usize>,
    /// The one that was tried first. Mostly it is the only one.
    first: Option<usize>,
    /// Those that were tried after it.
    tried: Vec<usize>,
    pub(super) now: Instant,
}

impl<'a> Picks<'a> {
    pub(super) fn new(
        pool: &'a Pool,
        bound: Option<usize>,
        order: Order<'a>,
        now: Instant,
    ) -> Self {
        let (rest, tried) = (Vec::new().into_iter(), Vec::new());
        Self { pool, bound, order: Some(order), rest, first: None, tried, now }
    }

    /// Takes the backend that the key belongs to, if it is in use and has a place.
    pub(super) fn take_bound(&mut self) -> Option<Pick> {
        let index = self.bound.take()?;
        let pick = self.pool.take(index, self.now)?;
        self.first = Some(index);
        Some(pick)
    }

    /// Goes on after a pick that was not taken here: it is not to be tried again.
    pub(crate) fn go_on_after(&mut self, pick: &Pick) {
        let is_same = |member: &Member| Arc::ptr_eq(&member.backend, &pick.lease.backend);
        // One of other settings stands for none of these.
        self.first = Some(self.pool.members.iter().position(is_same).unwrap_or(usize::MAX));
    }

    /// Returns whether there is a backend in use that was not tried: where no pick is left, a full
    /// one.
    pub(crate) fn leave_one_in_use(&self) -> bool {
        let board = &self.pool.board;
        (0..board.len()).any(|index| board.weight(index) > 0 && !self.has_tried(index))
    }

    fn has_tried(&self, index: usize) -> bool {
        self.first == Some(index) || self.tried.contains(&index)
    }

    /// Returns those that have not been named yet: those in use first, which are spare, then those
    /// that are out of use, in turn where none is in use. Where those in use are only full, there
    /// is no rest: they are waited for.
    fn rest(&self) -> Vec<usize> {
        let pool = self.pool;
        let count = pool.members.len();
        let first = match self.first {
            None if pool.has_one_in_use() => return Vec::new(),
            None => pool.next_out.fetch_add(1, Ordering::Relaxed) % count.max(1),
            Some(_) => 0,
        };
        let left = (0..count).map(|step| (first + step) % count);
        let (mut in_use, out): (Vec<_>, Vec<_>) = left
            .filter(|&index| !self.has_tried(index))
            .partition(|&index| pool.board.weight(index) > 0);
        in_use.extend(out);
        in_use
    }
}

impl Iterator for Picks<'_> {
    type Item = Pick;

    fn next(&mut self) -> Option<Pick> {
        if let Some(pick) = self.take_bound() {
            return Some(pick);
        }
        loop {
            let (index, pick) = match self.order.as_mut().map(Iterator::next) {
                Some(Some(index)) if self.has_tried(index) => continue,
                Some(Some(index)) => (index, self.pool.take(index, self.now)),
                Some(None) => {
                    // A trial that another handshake has taken counts as out of use by now.
                    self.pool.update_weights(self.now);
                    self.rest = self.rest().into_iter();
                    self.order = None;
                    continue;
                }
                None => {
                    let index = self.rest.next()?;
                    (index, self.pool.take_out_of_use(index))
                }
            };
            if let Some(pick) = pick {
                match self.first {
                    None => self.first = Some(index),
                    Some(_) => self.tried.push(index),
                }
                return Some(pick);
            }
        }
    }
}
