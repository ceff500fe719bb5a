//! The health of a backend as all workers share it. Pure: time is an argument.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::reasons::HealthReason;
use super::states::{HealthChange, Usage};
use super::{BackendHealth, HealthState};
use crate::lock::lock;

/// The health of a backend. While it is steady, no handshake takes the lock.
#[derive(Debug)]
pub(crate) struct SharedHealth {
    /// Neither a success nor time changes anything.
    is_steady: AtomicBool,
    health: Mutex<Recorded>,
}

/// Health, and its latest change.
#[derive(Debug)]
struct Recorded {
    health: BackendHealth,
    latest: Option<(Instant, HealthReason)>,
}

/// The health of a backend at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HealthView {
    pub(crate) state: HealthState,
    pub(crate) usage: Usage,
    /// Time at which the usage changes by itself.
    pub(crate) next_change: Option<Instant>,
    /// Time of the latest change of state, and its reason.
    #[cfg_attr(not(feature = "admin"), expect(dead_code, reason = "only shown"))]
    pub(crate) latest: Option<(Instant, HealthReason)>,
}

impl SharedHealth {
    pub(crate) fn new(health: BackendHealth) -> Self {
        // Nobody knows yet, so that the first success is recorded.
        Self {
            is_steady: AtomicBool::new(false),
            health: Mutex::new(Recorded { health, latest: None }),
        }
    }

    /// Returns whether a success would change nothing, and the usage is the full one.
    pub(crate) fn is_steady(&self) -> bool {
        // Relaxed: it guards no other memory.
        self.is_steady.load(Ordering::Relaxed)
    }

    /// Changes the health by an event at `now`; returns the change of its state.
    pub(crate) fn change(
        &self,
        now: Instant,
        event: impl FnOnce(&mut BackendHealth) -> Option<HealthChange>,
    ) -> Option<HealthChange> {
        let mut recorded = lock(&self.health);
        let change = event(&mut recorded.health);
        if let Some(change) = &change {
            recorded.latest = Some((now, change.reason));
        }
        self.is_steady.store(recorded.health.is_steady(now), Ordering::Relaxed);
        change
    }

    /// Gives the trial up that has no outcome; returns false if there is none.
    pub(crate) fn give_up_trial(&self, now: Instant) -> bool {
        let health = &mut lock(&self.health).health;
        let is_on_trial = health.state(now) == HealthState::OnTrial;
        health.give_up_trial();
        is_on_trial
    }

    /// Returns the health at `now`.
    pub(crate) fn view(&self, now: Instant) -> HealthView {
        let Recorded { health, latest } = &*lock(&self.health);
        HealthView {
            state: health.state(now),
            usage: health.usage(now),
            next_change: health.next_change_at(now),
            latest: *latest,
        }
    }
}
