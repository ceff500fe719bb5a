//! What a pool shares with those that follow it: the section's backends change, these stay.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use super::{Pick, Pool};
use crate::backend::affinity::SharedAffinity;
use crate::backend::balance::CountSlab;
use crate::backend::queue::HandshakeQueue;
use crate::lock::lock;

/// What a pool and its successors share.
#[derive(Debug, Default)]
pub(in crate::backend) struct Lineage {
    /// Counts of leases.
    pub(in crate::backend) counts: CountSlab,
    /// Handshakes that wait while all backends are full.
    pub(in crate::backend) queue: Arc<HandshakeQueue<Pick>>,
    /// Keys that belong to a backend, whatever their hash is.
    pub(super) affinity: SharedAffinity,
    /// Pool that new handshakes choose from.
    current: Mutex<Weak<Pool>>,
    /// Number of changes of the usage of a backend.
    changes: AtomicUsize,
    /// Held while failures are judged: of two backends that could be the last one in use, only one
    /// may be ejected.
    pub(in crate::backend) judging: Mutex<()>,
}

impl Lineage {
    /// Has new handshakes, and those that wait, choose from this pool.
    pub(in crate::backend) fn set_current(&self, pool: &Arc<Pool>) {
        *lock(&self.current) = Arc::downgrade(pool);
        self.serve();
    }

    /// Returns the pool that new handshakes choose from.
    pub(in crate::backend) fn current(&self) -> Option<Arc<Pool>> {
        lock(&self.current).upgrade()
    }

    /// Returns the number of changes until now.
    pub(in crate::backend) fn changes(&self) -> usize {
        self.changes.load(Ordering::Acquire)
    }

    /// Notes that the usage of a backend has changed.
    pub(in crate::backend) fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Gives places to the handshakes that wait. To be called after one has become free, by whoever
    /// holds no lock; while nobody waits it costs a fence and a load.
    pub(in crate::backend) fn serve(&self) {
        if !self.queue.has_waiting() {
            return;
        }
        if let Some(pool) = self.current() {
            let now = Instant::now();
            self.queue.serve(|| pool.pick(now, None).next());
        }
    }
}
