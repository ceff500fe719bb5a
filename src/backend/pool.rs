//! The backends of one section.

use std::fmt;
use std::sync::Arc;

use super::balance::RoundRobin;
use super::{Backend, Lease};
use crate::net::address::Address;

/// The backends of a section, and the rule by which handshakes are spread over them.
#[derive(Debug)]
pub(crate) struct Pool {
    backends: Vec<Arc<Backend>>,
    balance: RoundRobin,
}

impl Pool {
    pub(crate) fn new(addresses: impl IntoIterator<Item = Address>) -> Self {
        let backends = addresses.into_iter().map(Backend::new).map(Arc::new).collect();
        Self { backends, balance: RoundRobin::default() }
    }

    /// Returns the leases for one handshake in the order in which they are to be tried, each
    /// backend once. A lease is taken only when the iterator reaches it.
    pub(crate) fn pick(&self) -> impl Iterator<Item = Lease> {
        self.balance.order(self.backends.len()).map(|index| Lease::new(&self.backends[index]))
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
    use super::*;

    fn pool(backends: &[&str]) -> Pool {
        Pool::new(backends.iter().map(|backend| Address::backend(backend).unwrap()))
    }

    #[test]
    fn each_handshake_begins_one_backend_further() {
        let pool = pool(&["a:1", "b:2", "c:3"]);
        let names =
            || -> Vec<_> { pool.pick().map(|lease| lease.backend().name().to_owned()).collect() };
        assert_eq!(names(), ["a:1", "b:2", "c:3"]);
        assert_eq!(names(), ["b:2", "c:3", "a:1"]);
        assert_eq!(pool.to_string(), "a:1,b:2,c:3");
    }

    #[test]
    fn a_lease_is_taken_when_its_backend_is_reached() {
        let pool = pool(&["a:1", "b:2"]);
        let held = |index: usize| Arc::strong_count(&pool.backends[index]) - 1;
        let mut candidates = pool.pick();
        assert_eq!((held(0), held(1)), (0, 0));
        let first = candidates.next().unwrap();
        assert_eq!((held(0), held(1)), (1, 0));
        drop((first, candidates));
        assert_eq!((held(0), held(1)), (0, 0));
    }
}
