//! The backends of one section.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::balance::RoundRobin;
use super::{Backend, Lease};
use crate::net::address::Address;

/// The backends of a section, and the rule by which handshakes are spread over them.
#[derive(Debug)]
pub(crate) struct Pool {
    backends: Vec<Arc<Backend>>,
    /// Backends of earlier settings, for as long as a connection holds one.
    removed: Vec<Weak<Backend>>,
    balance: RoundRobin,
}

impl Pool {
    pub(crate) fn new(addresses: impl IntoIterator<Item = Address>) -> Self {
        let backends = addresses.into_iter().map(Backend::new).map(Arc::new).collect();
        Self { backends, removed: Vec::new(), balance: RoundRobin::default() }
    }

    /// Creates the pool that follows this one, with these addresses. A backend that stays, or comes
    /// back while a connection holds it, keeps its counts and its failures; the turns go on.
    pub(crate) fn successor(&self, addresses: impl IntoIterator<Item = Address>) -> Self {
        let mut known: Vec<_> = self.backends.iter().cloned().chain(self.removed()).collect();
        let backends = addresses.into_iter().map(|address| {
            match known.iter().position(|backend| backend.name() == address.authority) {
                Some(index) => known.remove(index),
                None => Arc::new(Backend::new(address)),
            }
        });
        let backends = backends.collect();
        let removed = known.iter().map(Arc::downgrade).collect();
        Self { backends, removed, balance: self.balance.successor() }
    }

    /// Returns the leases for one handshake in the order in which they are to be tried, each
    /// backend once: those whose dials have failed in the last 10 s come after the others. A lease
    /// is taken only when the iterator reaches it.
    pub(crate) fn pick(&self, now: Instant) -> impl Iterator<Item = Lease> {
        let (mut down, mut up): (Vec<_>, Vec<_>) =
            self.backends.iter().partition(|backend| backend.is_down(now));
        if up.is_empty() {
            std::mem::swap(&mut up, &mut down);
        }
        // The turns are those of the backends that are up: none of them takes over all those of one
        // that is down.
        let order: Vec<_> = self.balance.order(up.len()).map(|index| up[index]).collect();
        if let Some(first) = order.first() {
            first.failures.with_any(|failures| failures.try_again(now));
        }
        order.into_iter().chain(down).map(Lease::new)
    }

    /// Returns whether there is a backend whose dials have not failed in the last 10 s.
    #[cfg(feature = "admin")]
    pub(crate) fn has_usable(&self, now: Instant) -> bool {
        self.backends.iter().any(|backend| !backend.is_down(now))
    }

    /// Returns all backends, in their order.
    pub(crate) fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().map(|backend| &**backend)
    }

    /// Returns the backends of earlier settings that are still there.
    fn removed(&self) -> impl Iterator<Item = Arc<Backend>> {
        self.removed.iter().filter_map(Weak::upgrade)
    }

    /// Returns the backends of earlier settings to which tunnels are open.
    #[cfg(feature = "metrics")]
    pub(crate) fn leaving(&self) -> impl Iterator<Item = Arc<Backend>> {
        self.removed().filter(|backend| backend.tunnels() > 0)
    }

    /// Returns the number of open tunnels, those to backends of earlier settings included.
    pub(crate) fn tunnels(&self) -> usize {
        let removed: usize = self.removed().map(|backend| backend.tunnels()).sum();
        removed + self.backends().map(Backend::tunnels).sum::<usize>()
    }
}

impl fmt::Display for Pool {
    /// Writes the backends' names, separated by commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, backend) in self.backends.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}", backend.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pool(backends: &[&str]) -> Pool {
        Pool::new(backends.iter().map(|backend| Address::backend(backend).unwrap()))
    }

    #[test]
    fn each_handshake_begins_one_backend_further() {
        let (pool, now) = (pool(&["a:1", "b:2", "c:3"]), Instant::now());
        let names = || -> Vec<_> {
            pool.pick(now).map(|lease| lease.backend().name().to_owned()).collect()
        };
        assert_eq!(names(), ["a:1", "b:2", "c:3"]);
        assert_eq!(names(), ["b:2", "c:3", "a:1"]);
        assert_eq!(pool.to_string(), "a:1,b:2,c:3");
    }

    #[test]
    fn a_backend_that_has_failed_comes_last_and_the_others_share_its_turns() {
        let (pool, start) = (pool(&["a:1", "b:2", "c:3"]), Instant::now());
        let order = |now| -> Vec<_> {
            pool.pick(now).map(|lease| lease.backend().name()[..1].to_owned()).collect()
        };
        pool.backends[1].failures.with(|failures| failures.record_dial(start));
        let orders = [(); 4].map(|()| order(start).concat());
        assert_eq!(orders, ["acb", "cab", "acb", "cab"]);
        #[cfg(feature = "admin")]
        assert!(pool.has_usable(start));
        // Later one handshake tries it in its turn, and the others wait for what comes of that.
        let later = start + Duration::from_secs(10);
        let orders = [(); 4].map(|()| order(later).concat());
        assert_eq!(orders.iter().filter(|order| order.starts_with('b')).count(), 1, "{orders:?}");
        // If all have failed, they take turns as ever.
        for backend in &pool.backends {
            backend.failures.with(|failures| failures.record_dial(later));
        }
        #[cfg(feature = "admin")]
        assert_eq!([9, 10].map(|s| pool.has_usable(later + Duration::from_secs(s))), [false, true]);
        let mut firsts = [(); 3].map(|()| order(later)[0].clone());
        firsts.sort_unstable();
        assert_eq!(firsts, ["a", "b", "c"]);
    }

    #[test]
    fn a_successor_keeps_turns_and_counts_and_what_is_still_held() {
        let now = Instant::now();
        let addresses = |names: &[&str]| -> Vec<_> {
            names.iter().map(|name| Address::backend(name).unwrap()).collect()
        };
        let names = |pool: &Pool| -> Vec<_> {
            pool.pick(now).map(|lease| lease.backend().name().to_owned()).collect()
        };
        let first = pool(&["a:1", "b:2", "c:3"]);
        let tunnel = first.pick(now).next().unwrap().into_tunnel();
        let second = first.successor(addresses(&["c:3", "b:2"]));
        // The turn that comes next begins with the second one.
        assert_eq!(names(&second), ["b:2", "c:3"]);
        assert!(Arc::ptr_eq(&second.backends[0], &first.backends[2]));
        assert_eq!(second.tunnels(), 1);
        drop(first);
        // Back again, it has the tunnel that it has had all the while.
        let third = second.successor(addresses(&["b:2"])).successor(addresses(&["a:1", "a:1"]));
        assert_eq!(third.backends.iter().map(|one| one.tunnels()).collect::<Vec<_>>(), [1, 0]);
        let fourth = third.successor(addresses(&["b:2"]));
        drop((second, third));
        assert_eq!(fourth.removed().map(|one| one.name().to_owned()).collect::<Vec<_>>(), ["a:1"]);
        #[cfg(feature = "metrics")]
        assert_eq!(fourth.leaving().count(), 1);
        drop(tunnel);
        assert_eq!((fourth.tunnels(), fourth.removed().count()), (0, 0));
        assert_eq!(fourth.successor(addresses(&["b:2"])).removed.len(), 0);
    }

    #[test]
    fn a_lease_is_taken_when_its_backend_is_reached() {
        let pool = pool(&["a:1", "b:2"]);
        let held = |index: usize| Arc::strong_count(&pool.backends[index]) - 1;
        let mut candidates = pool.pick(Instant::now());
        assert_eq!((held(0), held(1)), (0, 0));
        let first = candidates.next().unwrap();
        assert_eq!((held(0), held(1)), (1, 0));
        drop((first, candidates));
        assert_eq!((held(0), held(1)), (0, 0));
    }
}
