//! Tasks and tunnels that drain and end together: those of one section.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::stats::{SectionStats, Traffic};

/// A group of tasks and tunnels on any number of event loops.
///
/// Clones are the same group. It is one counted value, so nothing remembers a group once its last
/// member is gone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group(Arc<Membership>);

#[derive(Debug, Default)]
struct Membership {
    flags: AtomicU8,
    /// Counts of the section, if it has any.
    stats: Option<Arc<SectionStats>>,
}

const DRAINING: u8 = 1;
const CUT: u8 = 2;

impl Group {
    /// Creates a group whose tunnels add to these counts.
    pub(crate) fn new(stats: Option<Arc<SectionStats>>) -> Self {
        Self(Arc::new(Membership { flags: AtomicU8::default(), stats }))
    }

    /// Returns the counts of the group's tunnels on this worker.
    pub(super) fn traffic(&self, worker: usize) -> Option<&Traffic> {
        self.0.stats.as_ref()?.traffic.get(worker)
    }

    /// Has tunnels that join from now on closed at once.
    pub(crate) fn drain(&self) {
        self.0.flags.fetch_or(DRAINING, Ordering::Relaxed);
    }

    /// Returns whether [`drain`](Group::drain) was called.
    pub(crate) fn is_draining(&self) -> bool {
        self.0.flags.load(Ordering::Relaxed) & DRAINING != 0
    }

    /// Has nothing start in the group any more.
    pub(crate) fn cut(&self) {
        self.0.flags.fetch_or(CUT, Ordering::Relaxed);
    }

    /// Returns whether [`cut`](Group::cut) was called.
    pub(crate) fn is_cut(&self) -> bool {
        self.0.flags.load(Ordering::Relaxed) & CUT != 0
    }

    /// Returns whether both are the same group.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns the number of clones.
    #[cfg(test)]
    pub(crate) fn members(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl PartialEq for Group {
    fn eq(&self, other: &Self) -> bool {
        self.is(other)
    }
}

impl Eq for Group {}
