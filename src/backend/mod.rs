//! Backends, and the leases on them: every connection to a backend holds a [`Lease`] to its end.
//!
//! The [`pool`] chooses by the rules of [`balance`]; [`resolve`] looks a name up and keeps its
//! [`answers`], [`dial`] connects and remembers [`failures`].

mod answers;
pub(crate) mod balance;
pub(crate) mod dial;
mod failures;
pub(crate) mod health;
pub(crate) mod pool;
pub(crate) mod queue;
pub(crate) mod rebalance;
mod resolve;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::balance::SharedCount;
use self::failures::SharedFailures;
use self::resolve::{Name, Resolver};
use crate::lock::lock;
use crate::net::address::Address;
use crate::stats::NamedCounts;

/// A server that handshakes are brought to.
#[derive(Debug)]
pub(crate) struct Backend {
    id: usize,
    address: Address,
    /// Host to look up; `None` for an IP address, and for a path.
    name: Option<Arc<Name>>,
    /// Number of the next dial, for the turns of its addresses.
    next_dial: AtomicUsize,
    failures: SharedFailures,
    /// Number of leases that are held.
    leases: SharedCount,
    /// Number of tunnels that are open.
    tunnels: AtomicUsize,
    /// Failures to connect, by their kind.
    connect_failures: NamedCounts,
    /// Time of the last warning that its answers deviate.
    warned: Mutex<Option<Instant>>,
}

/// Least time between two warnings that a backend's answers deviate.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// A claim on a backend, counted from its creation to its drop.
///
/// A handshake takes one before it connects, and the tunnel that comes of it owns the lease to
/// its end.
#[derive(Debug)]
pub(crate) struct Lease {
    backend: Arc<Backend>,
}

/// A lease for a tunnel. A type of its own, since every idle tunnel holds one.
#[derive(Debug)]
pub(crate) struct TunnelLease(Lease);

impl Backend {
    /// Creates a backend that nobody has a lease on. Its failures are counted in `failing`.
    fn new(address: Address, leases: SharedCount, failing: &Arc<AtomicUsize>) -> Self {
        static NEXT_ID: AtomicUsize = AtomicUsize::new(1);
        let host = address.host().filter(|_| address.ip().is_none());
        let name = host.map(|host| Resolver::of_process().name(host));
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            address,
            name,
            next_dial: AtomicUsize::new(0),
            failures: SharedFailures::counted_in(failing),
            leases,
            tunnels: AtomicUsize::new(0),
            connect_failures: NamedCounts::new(&FAILURE_KINDS),
            warned: Mutex::default(),
        }
    }

    /// Creates a backend of no pool.
    #[cfg(test)]
    pub(crate) fn at(address: &str) -> Self {
        let address = Address::backend(address).unwrap();
        Self::new(address, balance::CountSlab::default().take(), &Arc::default())
    }

    /// Returns its number, unique in this process. Unlike its name, a backend of another section,
    /// or a later one at the same address, does not have it.
    pub(crate) fn id(&self) -> usize {
        self.id
    }

    /// Name in the log: the address as it is configured.
    pub(crate) fn name(&self) -> &str {
        &self.address.authority
    }

    /// Value of the Host field where the section rewrites it.
    pub(crate) fn host(&self) -> &str {
        // A path is no host, and a server at one expects none of its own.
        if self.address.path().is_some() { "localhost" } else { &self.address.authority }
    }

    /// Returns whether it is to be tried after the others: its dials have failed lately.
    pub(crate) fn is_down(&self, now: Instant) -> bool {
        self.failures.with_any(|failures| failures.is_down(now)) == Some(true)
    }

    /// Counts a failure to connect.
    pub(crate) fn count_failure(&self, error: &io::Error) {
        self.connect_failures.inc(failure_kind(error));
    }

    /// Returns the failures to connect, by their kind.
    #[cfg(feature = "metrics")]
    pub(crate) fn connect_failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.connect_failures.iter()
    }

    /// Returns the number of tunnels that are open.
    pub(crate) fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::Relaxed)
    }

    /// Returns whether the log may be told now that an answer of this backend deviates.
    pub(crate) fn may_warn_of_deviation(&self, now: Instant) -> bool {
        let mut warned = lock(&self.warned);
        let may = warned.is_none_or(|last| now.saturating_duration_since(last) >= WARN_EVERY);
        if may {
            *warned = Some(now);
        }
        may
    }
}

impl Lease {
    /// Takes over a lease that has been counted.
    fn counted(backend: &Arc<Backend>) -> Self {
        Self { backend: Arc::clone(backend) }
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Counts the lease as a tunnel from now on.
    pub(crate) fn into_tunnel(self) -> TunnelLease {
        self.backend.tunnels.fetch_add(1, Ordering::Relaxed);
        TunnelLease(self)
    }
}

impl TunnelLease {
    /// Returns the lease as that of any connection.
    pub(crate) fn lease(&self) -> &Lease {
        &self.0
    }
}

impl Drop for TunnelLease {
    fn drop(&mut self) {
        self.0.backend.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.backend.leases.decrement();
    }
}

/// Kinds of failures to connect.
const FAILURE_KINDS: [&str; 5] = ["refused", "timeout", "unreachable", "shortage", "other"];

fn failure_kind(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    match error.kind() {
        _ if dial::is_shortage(error) => "shortage",
        Kind::ConnectionRefused => "refused",
        Kind::TimedOut => "timeout",
        Kind::HostUnreachable
        | Kind::NetworkUnreachable
        | Kind::ConnectionReset
        | Kind::NotFound => "unreachable",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_at_one_address_have_numbers_of_their_own() {
        let [first, second] = [(); 2].map(|()| Backend::at("192.0.2.1:80"));
        assert_eq!(first.name(), second.name());
        assert_ne!(first.id(), second.id());
    }

    #[test]
    fn a_backend_is_warned_of_once_a_minute() {
        let backend = Backend::at("192.0.2.1:80");
        let start = Instant::now();
        let at = |seconds| backend.may_warn_of_deviation(start + Duration::from_secs(seconds));
        assert_eq!(
            [0, 0, 59, 60, 61, 119, 120].map(at),
            [true, false, false, true, false, false, true]
        );
    }
}
