//! Memory of failed dials of one backend. Pure: time is an argument.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::answers::in_turn;
use crate::lock::lock;

/// Time for which what has failed is tried after everything else.
const MEMORY: Duration = Duration::from_secs(10);

/// The recent failures of a backend, for all workers. While there are none, nobody takes the lock:
/// handshakes with backends that are well do not meet in it.
#[derive(Debug, Default)]
pub(super) struct SharedFailures {
    are_any: AtomicBool,
    recent: Mutex<RecentFailures>,
}

impl SharedFailures {
    /// Reads or changes the failures.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut RecentFailures) -> T) -> T {
        let mut recent = lock(&self.recent);
        let done = f(&mut recent);
        // Relaxed: what the flag tells of is read under the lock.
        self.are_any.store(!recent.is_empty(), Ordering::Relaxed);
        done
    }

    /// Reads or changes the failures, if there are any.
    pub(super) fn with_any<T>(&self, f: impl FnOnce(&mut RecentFailures) -> T) -> Option<T> {
        self.are_any.load(Ordering::Relaxed).then(|| self.with(f))
    }
}

/// Recent failures of a backend, each with its time.
#[derive(Debug, Default)]
pub(super) struct RecentFailures {
    /// Addresses that failed, or were overtaken by the next one.
    addresses: Vec<(SocketAddr, Instant)>,
    /// Latest dial that failed as a whole.
    backend: Option<Instant>,
}

impl RecentFailures {
    /// Returns the order in which the dial number `turn` tries these addresses: those that have
    /// failed lately come last.
    pub(super) fn order(
        &self,
        addresses: &[SocketAddr],
        turn: usize,
        now: Instant,
    ) -> Vec<SocketAddr> {
        let has_failed = |address: &SocketAddr| {
            self.addresses.iter().any(|(failed, at)| failed == address && is_recent(*at, now))
        };
        let (failed, good): (Vec<_>, Vec<_>) =
            addresses.iter().copied().partition(|address| has_failed(address));
        let mut order = in_turn(&good, turn);
        order.extend(in_turn(&failed, turn));
        order
    }

    /// Records that an address has failed, and forgets what is no longer recent.
    pub(super) fn record(&mut self, address: SocketAddr, now: Instant) {
        self.addresses.retain(|(other, at)| *other != address && is_recent(*at, now));
        self.addresses.push((address, now));
    }

    /// Records that a dial has failed: no address has accepted.
    pub(super) fn record_dial(&mut self, now: Instant) {
        self.backend = Some(now);
    }

    /// Forgets the failures of an address that has accepted, and with them those of the backend.
    pub(super) fn forget(&mut self, address: SocketAddr) {
        self.addresses.retain(|(other, _)| *other != address);
        self.backend = None;
    }

    /// Forgets that the dials of a backend without IP addresses have failed.
    pub(super) fn forget_dial(&mut self) {
        self.backend = None;
    }

    /// Returns whether a dial has failed lately, and none has succeeded since.
    pub(super) fn is_down(&self, now: Instant) -> bool {
        self.backend.is_some_and(|at| is_recent(at, now))
    }

    fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.backend.is_none()
    }
}

fn is_recent(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < MEMORY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 80))
    }

    #[test]
    fn an_address_that_has_failed_comes_last_for_a_while() {
        let (start, all) = (Instant::now(), [1, 2, 3].map(address));
        let mut failures = RecentFailures::default();
        failures.record(all[0], start);
        let order = |failures: &RecentFailures, turn, now| {
            failures
                .order(&all, turn, now)
                .iter()
                .map(|one| match one {
                    SocketAddr::V4(v4) => v4.ip().octets()[3],
                    SocketAddr::V6(_) => 0,
                })
                .collect::<Vec<_>>()
        };
        let last = start + MEMORY - Duration::from_nanos(1);
        // The turns are those of the others: the neighbour does not get twice as many.
        let orders = [0, 1, 2, 3].map(|turn| order(&failures, turn, last));
        assert_eq!(orders, [[2, 3, 1], [3, 2, 1], [2, 3, 1], [3, 2, 1]]);
        assert_eq!(order(&failures, 0, start + MEMORY), [1, 2, 3]);
        failures.record(all[1], last);
        assert_eq!(order(&failures, 0, last), [3, 1, 2]);
        failures.record(all[2], last);
        assert_eq!(order(&failures, 0, last), [1, 2, 3]);
        failures.forget(all[1]);
        assert_eq!(order(&failures, 0, last), [2, 1, 3]);
    }

    #[test]
    fn what_is_no_longer_recent_takes_no_memory() {
        let (start, mut failures) = (Instant::now(), RecentFailures::default());
        (0..9).for_each(|number| failures.record(address(number), start));
        failures.record(address(3), start);
        assert_eq!(failures.addresses.len(), 9);
        failures.record(address(1), start + MEMORY);
        assert_eq!(failures.addresses, [(address(1), start + MEMORY)]);
    }

    #[test]
    fn a_backend_is_down_for_a_while_after_a_failed_dial_unless_one_succeeds() {
        let (start, mut failures) = (Instant::now(), RecentFailures::default());
        assert!(!failures.is_down(start));
        failures.record_dial(start);
        let last = start + MEMORY - Duration::from_nanos(1);
        assert!(failures.is_down(last) && !failures.is_down(start + MEMORY));
        failures.forget(address(1));
        assert!(!failures.is_down(start));
        failures.record_dial(start);
        failures.forget_dial();
        assert!(!failures.is_down(start));
    }

    #[test]
    fn only_where_something_has_failed_is_the_lock_taken() {
        let (start, failures) = (Instant::now(), SharedFailures::default());
        let is_down = |at| failures.with_any(|failures| failures.is_down(at));
        {
            let _held = lock(&failures.recent);
            // With the lock taken it would wait for ever.
            assert_eq!(is_down(start), None);
        }
        failures.with(|failures| failures.record_dial(start));
        assert_eq!(is_down(start), Some(true));
        failures.with(|failures| failures.record(address(1), start));
        failures.with_any(|failures| failures.forget(address(2)));
        // One of its addresses has failed still.
        assert_eq!(is_down(start), Some(false));
        failures.with_any(|failures| failures.forget(address(1)));
        assert_eq!(is_down(start), None);
    }
}
