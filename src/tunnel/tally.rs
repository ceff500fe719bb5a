//! What of each tunnel the counts of its section have already.
//!
//! A message only notes that its tunnel has news; once a tick, the news of all tunnels are added.

use super::group::Group;
use super::ticks::{Clock, Tick};
use super::totals::{Totals, publish};
use super::tunnel::Tunnel;

/// The tallies of one event loop's tunnels, as far as somebody counts them.
pub(super) struct Tallies {
    /// By the tunnel's key.
    tallies: Vec<Tally>,
    /// Keys of tunnels with news. One may have ended, and its key be another tunnel's by now, for
    /// which a look too many does no harm.
    changed: Vec<usize>,
    /// Number of the worker, whose counts they are.
    worker: usize,
}

/// What has been counted of one tunnel.
#[derive(Clone, Default)]
struct Tally {
    totals: Totals,
    is_blocked: bool,
    /// Tick at which the last byte was found.
    active: Tick,
}

impl Tallies {
    /// Creates an empty table for a worker.
    pub(super) fn new(worker: usize) -> Self {
        Self { tallies: Vec::new(), changed: Vec::new(), worker }
    }

    /// Begins with a new tunnel; returns whether it is counted.
    pub(super) fn begin(&mut self, key: usize, group: &Group, clock: &Clock) -> bool {
        let is_counted = group.traffic(self.worker).is_some();
        if is_counted {
            if self.tallies.len() <= key {
                self.tallies.resize_with(key + 1, Tally::default);
            }
            self.tallies[key] = Tally { active: clock.now(), ..Tally::default() };
        }
        is_counted
    }

    /// Notes that a tunnel that is counted has news.
    pub(super) fn note(&mut self, key: usize) {
        self.changed.push(key);
    }

    /// Takes the keys of those that have news.
    pub(super) fn take_changed(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.changed)
    }

    /// Adds what is new of a tunnel to the counts of its section; returns whether it is counted.
    pub(super) fn add(&mut self, key: usize, group: &Group, tunnel: &Tunnel, now: Tick) -> bool {
        let Some(traffic) = group.traffic(self.worker) else { return false };
        let Some(tally) = self.tallies.get_mut(key) else { return false };
        let totals = tunnel.totals();
        if publish(&tally.totals, &totals, traffic) {
            tally.active = now;
            tally.totals = totals;
        }
        let is_blocked = tunnel.is_blocked();
        if is_blocked != std::mem::replace(&mut tally.is_blocked, is_blocked) {
            if is_blocked { traffic.blocked.add(1) } else { traffic.blocked.dec() }
        }
        true
    }

    /// Adds the last of a tunnel, which is over.
    pub(super) fn end(&mut self, key: usize, group: &Group, tunnel: &Tunnel, clock: &Clock) {
        let Some(traffic) = group.traffic(self.worker) else { return };
        self.add(key, group, tunnel, clock.now());
        if self.tallies.get_mut(key).is_some_and(|tally| std::mem::take(tally).is_blocked) {
            traffic.blocked.dec();
        }
    }

    /// Returns the tick of the last byte of a tunnel; `None` if nobody counts it.
    #[cfg(feature = "admin")]
    pub(super) fn active(&self, key: usize, group: &Group) -> Option<Tick> {
        group.traffic(self.worker)?;
        self.tallies.get(key).map(|tally| tally.active)
    }
}
