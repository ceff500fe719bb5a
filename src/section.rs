//! The section: what the connections of one listener share, as long as its settings stay.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use crate::backend::pool::{BackendSettings, Pool, Succession};
use crate::lock::lock;
use crate::net::name::{BoundAddress, Peer};
use crate::settings::{Drain, Settings};
use crate::shutdown::Shutdown;
use crate::stats::SectionStats;

/// Most clients over `max_connections` that are answered at the same time. Others are closed
/// without an answer.
const REFUSALS_MAX: usize = 256;

/// The settings of one section, and the state that goes with them. A reload makes a successor, for
/// the connections that come after it.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) settings: Settings,
    pub(crate) drain: Drain,
    /// Name in the log.
    pub(crate) name: String,
    /// Address that it listens on.
    pub(crate) local: BoundAddress,
    pub(crate) pool: Arc<Pool>,
    /// Connections that are served, from the handshake to the tunnel's end.
    pub(crate) connections: Permits,
    /// Connections over the limit that are told so.
    pub(crate) refusals: Permits,
    has_hinted_at_host: AtomicBool,
    /// Begins when another section follows this one.
    pub(crate) superseded: Shutdown,
    /// Counts for metrics; `None` where nobody asks for them.
    pub(crate) stats: Option<Arc<SectionStats>>,
    /// The same for all that follow each other.
    pub(crate) life: Arc<Life>,
}

/// What the connections of a listener, and those who watch it, are told of its life.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// Its accept loop runs.
    pub(crate) is_accepting: Flag,
    /// Its drain has begun.
    pub(crate) is_draining: Flag,
    /// Begins when its port is closed: connections that wait for a request are to end.
    pub(crate) closing: Shutdown,
    /// The section with the settings in force.
    newest: Mutex<Weak<Section>>,
}

/// A truth about a section that its threads tell each other.
#[derive(Debug, Default)]
pub(crate) struct Flag(AtomicBool);

/// One accepted connection.
#[derive(Debug)]
pub(crate) struct Client {
    /// Number in the log, unique in this process.
    pub(crate) id: u64,
    pub(crate) peer: Peer,
    pub(crate) accepted: Instant,
    pub(crate) section: Arc<Section>,
}

/// Counts connections against a limit.
#[derive(Debug)]
pub(crate) struct Permits {
    taken: Arc<AtomicUsize>,
    limit: Option<usize>,
}

/// One counted connection. Its drop makes room for another.
#[derive(Debug)]
pub(crate) struct Permit(Arc<AtomicUsize>);

impl Section {
    /// Creates a section without connections that listens on `local`, which is its name unless
    /// the settings have one.
    pub(crate) fn new(
        (settings, drain): (Settings, Drain),
        local: BoundAddress,
        stats: Option<Arc<SectionStats>>,
    ) -> Self {
        Self {
            name: settings.name.clone().unwrap_or_else(|| local.to_string()),
            local,
            pool: Pool::new(settings.backends.iter().cloned(), settings.pool_rules()),
            connections: Permits::new(settings.max_connections),
            refusals: Permits::new(Some(REFUSALS_MAX)),
            has_hinted_at_host: AtomicBool::new(false),
            superseded: Shutdown::new(),
            stats,
            life: Arc::default(),
            settings,
            drain,
        }
    }

    /// Creates the section that follows this one with other settings, of which `backends` are what
    /// the names among them have come to; returns what is different in its pool as well. Counts go
    /// on.
    pub(crate) fn successor(
        &self,
        (settings, drain): (Settings, Drain),
        backends: Vec<BackendSettings>,
        now: Instant,
    ) -> (Self, Succession) {
        let succession = self.pool.successor(backends, settings.pool_rules(), now);
        let section = Self {
            name: settings.name.clone().unwrap_or_else(|| self.local.to_string()),
            local: self.local.clone(),
            pool: Arc::clone(&succession.pool),
            connections: self.connections.with_limit(settings.max_connections),
            refusals: self.refusals.with_limit(self.refusals.limit),
            has_hinted_at_host: AtomicBool::new(self.has_hinted_at_host.load(Ordering::Relaxed)),
            superseded: Shutdown::new(),
            stats: self.stats.clone(),
            life: Arc::clone(&self.life),
            settings,
            drain,
        };
        (section, succession)
    }

    /// Returns the reason for which new clients should go elsewhere, if there is one.
    pub(crate) fn unready_reason(&self, now: Instant) -> Option<String> {
        let (name, pool) = (&self.name, &self.pool);
        if self.life.is_draining.is_set() {
            return Some("draining".to_owned());
        }
        if !self.life.is_accepting.is_set() {
            return Some(format!("section {name:?}: its listener is not up"));
        }
        (!pool.has_usable(now)).then(|| {
            format!(
                "section {name:?}: no backend is in use and could be connected to lately ({pool})"
            )
        })
    }

    /// Returns true once, for the one hint at the `host` setting that a section gives.
    pub(crate) fn may_hint_at_host(&self) -> bool {
        !self.has_hinted_at_host.swap(true, Ordering::Relaxed)
    }
}

impl Life {
    /// Returns whether connections are to end after the answer that is due.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_draining.is_set() || self.closing.has_begun()
    }

    /// Notes the section with the settings in force.
    pub(crate) fn follow(&self, newest: &Arc<Section>) {
        *lock(&self.newest) = Arc::downgrade(newest);
    }
}

impl Flag {
    pub(crate) fn set(&self, value: bool) {
        self.0.store(value, Ordering::Release);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Client {
    /// Gives a connection from `peer`, accepted now, the next number.
    pub(crate) fn new(peer: Peer, accepted: Instant, section: &Arc<Section>) -> Self {
        // Not every 32-bit machine has atomics of 64 bits; there, the numbers begin anew after 2^32
        // connections.
        static NEXT_ID: AtomicUsize = AtomicUsize::new(1);
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed) as u64,
            peer,
            accepted,
            section: Arc::clone(section),
        }
    }

    /// Has the connection go on with the settings in force, for a request that begins now.
    pub(crate) fn begin_anew(&mut self, now: Instant) {
        self.accepted = now;
        if self.section.superseded.has_begun() {
            let newest = lock(&self.section.life.newest).upgrade();
            self.section = newest.unwrap_or_else(|| Arc::clone(&self.section));
        }
    }
}

impl Permits {
    /// Allows `limit` connections at the same time; `None` is no limit.
    pub(crate) fn new(limit: Option<usize>) -> Self {
        Self { taken: Arc::default(), limit }
    }

    /// Returns permits that count the same connections against another limit.
    pub(crate) fn with_limit(&self, limit: Option<usize>) -> Self {
        Self { taken: Arc::clone(&self.taken), limit }
    }

    /// Returns the number of connections that are counted.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Returns the number of connections that there may be.
    #[cfg(feature = "admin")]
    pub(crate) fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// Counts one connection, or returns `None` if the limit is reached.
    pub(crate) fn take(&self) -> Option<Permit> {
        let permit = Permit(Arc::clone(&self.taken));
        // Counted first, then judged: two callers cannot both see the last place free. A permit
        // too many is dropped here, which takes it off the count.
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        self.limit.is_none_or(|limit| before < limit).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_end_at_the_limit_and_come_back() {
        let permits = Permits::new(Some(2));
        let (first, second) = (permits.take(), permits.take());
        assert!(first.is_some() && second.is_some());
        assert!(permits.take().is_none());
        drop(first);
        assert!(permits.take().is_some());
        // A lower limit counts those that are there already.
        let lower = permits.with_limit(Some(1));
        assert!(lower.taken() == 1 && lower.take().is_none());
        assert!(permits.take().is_some());
        assert!(Permits::new(None).take().is_some());
        assert!(Permits::new(Some(0)).take().is_none());
    }
}
