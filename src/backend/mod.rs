//! Backends, and the leases on them: every connection to a backend holds a [`Lease`] to its end.
//!
//! The [`pool`] chooses by the rules of [`balance`] among those whose [`health`] allows it, or has
//! a handshake wait in the [`queue`]; [`affinity`] leads sessions back to theirs. [`rebalance`]
//! tells which tunnels are to be moved. [`resolve`] looks a name up and keeps its [`answers`],
//! [`names`] makes backends of them, [`dial`] connects and remembers [`failures`].

mod affinity;
mod answers;
pub(crate) mod balance;
pub(crate) mod dial;
mod failures;
pub(crate) mod health;
pub(crate) mod names;
pub(crate) mod pool;
pub(crate) mod queue;
pub(crate) mod rebalance;
pub(crate) mod resolve;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::balance::SharedCount;
use self::failures::SharedFailures;
use self::health::reasons::{CheckError, FailureKind};
use self::health::shared::{HealthView, SharedHealth};
use self::health::states::{HealthChange, Usage};
use self::health::{BackendHealth, HealthRules};
use self::pool::Lineage;
use self::resolve::{Name, Resolver};
use crate::lock::lock;
use crate::net::address::Address;
use crate::stats::{Count, NamedCounts};

/// A server that handshakes are brought to.
#[derive(Debug)]
pub(crate) struct Backend {
    id: usize,
    address: Address,
    /// The name as it is configured whose address this is; `None` for a backend that is configured
    /// as it is.
    watched: Option<Arc<str>>,
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
    health: SharedHealth,
    ejections: Count,
    /// Active checks, by their result.
    checks: NamedCounts,
    lineage: Arc<Lineage>,
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

/// The trial connection of a backend that was ejected, given up if it is dropped before its outcome
/// is known.
#[derive(Debug)]
pub(crate) struct Trial {
    backend: Arc<Backend>,
    /// The change of state with which it has begun.
    pub(crate) begun: HealthChange,
}

/// Labels of the results of checks.
const CHECK_RESULTS: [&str; 2] = ["success", "failure"];

impl Backend {
    /// Creates a backend that nobody has a lease on.
    fn new(
        address: Address,
        watched: Option<Arc<str>>,
        health: BackendHealth,
        lineage: &Arc<Lineage>,
    ) -> Self {
        static NEXT_ID: AtomicUsize = AtomicUsize::new(1);
        let host = address.host().filter(|_| address.ip().is_none());
        let name = host.map(|host| Resolver::of_process().name(host));
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            address,
            watched,
            name,
            next_dial: AtomicUsize::new(0),
            failures: SharedFailures::default(),
            leases: lineage.counts.take(),
            tunnels: AtomicUsize::new(0),
            connect_failures: NamedCounts::new(&FAILURE_KINDS),
            health: SharedHealth::new(health),
            ejections: Count::default(),
            checks: NamedCounts::new(&CHECK_RESULTS),
            lineage: Arc::clone(lineage),
            warned: Mutex::default(),
        }
    }

    /// Creates a backend of no pool.
    #[cfg(test)]
    pub(crate) fn at(address: &str) -> Self {
        let (address, health) = (Address::backend(address).unwrap(), HealthRules::default());
        Self::new(address, None, BackendHealth::new(health), &Arc::default())
    }

    /// Returns its number, unique in this process. Unlike its name, a backend of another section,
    /// or a later one at the same address, does not have it.
    pub(crate) fn id(&self) -> usize {
        self.id
    }

    /// Name in the log: the address as it is configured, or as its name was looked up.
    pub(crate) fn name(&self) -> &str {
        &self.address.authority
    }

    /// Value of the Host field where the section rewrites it.
    pub(crate) fn host(&self) -> &str {
        // A path is no host, and a server at one expects none of its own.
        match &self.watched {
            Some(name) => name,
            None if self.address.path().is_some() => "localhost",
            None => &self.address.authority,
        }
    }

    /// Returns whether a dial has failed in the last 10 s, and none has succeeded since.
    pub(crate) fn is_down(&self, now: Instant) -> bool {
        self.failures.with_any(|failures| failures.is_down(now)) == Some(true)
    }

    /// Returns whether this is the backend of a name as it is configured.
    fn is_name(&self, name: Option<&str>) -> bool {
        self.watched.is_none() && Some(&*self.address.authority) == name
    }

    /// Returns the name whose address this is, if that is watched.
    #[cfg(feature = "admin")]
    pub(crate) fn watched_name(&self) -> Option<&str> {
        self.watched.as_deref()
    }

    /// Returns the health at `now`.
    pub(crate) fn health(&self, now: Instant) -> HealthView {
        self.health.view(now)
    }

    /// Records that it has answered a handshake by itself.
    pub(crate) fn on_success(&self, now: Instant) -> Option<HealthChange> {
        if self.health.is_steady() {
            return None;
        }
        self.judged(self.health.change(now, |health| health.on_success(now)))
    }

    /// Records a failure of a handshake, or an early reset.
    pub(crate) fn on_failure(&self, kind: FailureKind, now: Instant) -> Option<HealthChange> {
        // What has been removed is judged no more.
        let pool = self.lineage.current().filter(|pool| pool.has(self))?;
        let judging = lock(&self.lineage.judging);
        let change = self.health.change(now, |health| {
            health.on_failure(kind, now, || pool.may_eject(self, now), fastrand::u64(..))
        });
        drop(judging);
        self.judged(change)
    }

    /// Records that a tunnel is over that was not reset early.
    pub(crate) fn on_lasting_tunnel(&self, now: Instant) -> Option<HealthChange> {
        if self.health.is_steady() {
            return None;
        }
        self.judged(self.health.change(now, |health| health.on_lasting_tunnel(now)))
    }

    /// Records the result of an active check.
    pub(crate) fn on_check(
        &self,
        result: Result<(), CheckError>,
        now: Instant,
    ) -> Option<HealthChange> {
        self.checks.inc(CHECK_RESULTS[usize::from(result.is_err())]);
        self.judged(self.health.change(now, |health| health.on_check(result, now)))
    }

    /// Replaces the rules.
    fn set_rules(&self, rules: HealthRules, now: Instant) -> Option<HealthChange> {
        self.judged(self.health.change(now, |health| health.set_rules(rules, now)))
    }

    /// Starts slowly, as one that joins others.
    fn start_slowly(&self, now: Instant) {
        self.health.change(now, |health| {
            health.start_slowly(now);
            None
        });
    }

    /// Has everybody know of a change of state.
    fn judged(&self, change: Option<HealthChange>) -> Option<HealthChange> {
        if let Some(change) = &change {
            if change.is_ejection() {
                self.ejections.inc();
            }
            self.lineage.note_change();
            self.lineage.serve();
        }
        change
    }

    /// Takes what a handshake needs to be brought here, besides a place: nothing, or the trial of a
    /// backend that was ejected. `None` if it is out of use.
    fn admit(self: &Arc<Self>, now: Instant) -> Option<Option<Trial>> {
        if self.health.is_steady() {
            return Some(None);
        }
        match self.health.view(now).usage {
            Usage::Share(_) => Some(None),
            Usage::Trial => {
                let begun = self.health.change(now, |health| health.begin_trial(now))?;
                self.lineage.note_change();
                Some(Some(Trial { backend: Arc::clone(self), begun }))
            }
            Usage::Out => None,
        }
    }

    /// Returns the ejections until now.
    #[cfg(feature = "metrics")]
    pub(crate) fn ejections(&self) -> u64 {
        self.ejections.get()
    }

    /// Returns the active checks until now, by their result.
    #[cfg(feature = "metrics")]
    pub(crate) fn checks(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.checks.iter()
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

    /// Returns the number of leases: tunnels and handshakes.
    pub(crate) fn leases(&self) -> u32 {
        self.leases.get()
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
        self.backend.lineage.serve();
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if self.backend.health.give_up_trial(Instant::now()) {
            self.backend.lineage.note_change();
        }
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
