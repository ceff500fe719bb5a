//! Rules and states of a backend's health, as they are configured and shown.

use std::fmt;
use std::time::{Duration, Instant};

use super::reasons::HealthReason;

/// Settings of a section on the health of its backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HealthRules {
    /// Failures in a row that eject a backend. 0 disables ejections.
    pub(crate) max_failures: u32,
    /// Time of the first ejection.
    pub(crate) eject: Duration,
    /// Time after which the outcome of a trial is no longer awaited. Longer than a handshake takes
    /// with all its timeouts.
    pub(crate) trial_timeout: Duration,
    /// Whether early resets are failures, and the ends of all tunnels are therefore reported.
    pub(crate) has_early_resets: bool,
    /// Time in which a backend that came or came back is brought to its full share. 0 disables.
    pub(crate) slow_start: Duration,
    /// Rules of the active checks; `None` without them.
    pub(crate) checks: Option<CheckRules>,
}

/// Settings on the results of active checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckRules {
    /// Passed checks in a row that bring a backend back.
    pub(crate) healthy_threshold: u32,
    /// Failed checks in a row that take a backend out.
    pub(crate) unhealthy_threshold: u32,
    /// Whether a check sees more than that the port accepts: false for `kind = "tcp"`.
    pub(crate) is_beyond_connect: bool,
}

/// Health of a backend as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HealthState {
    /// Neither handshakes nor checks have told anything yet. In use.
    Unknown,
    Healthy,
    /// By a check: out of use. Not by a check: it fails, but the pool cannot do without it.
    Unhealthy {
        by_check: bool,
    },
    /// Out of use. From `until` on it waits for its trial.
    Ejected {
        until: Instant,
    },
    /// One connection is under way that decides.
    OnTrial,
}

/// A change of state, for one line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HealthChange {
    pub(crate) from: HealthState,
    pub(crate) to: HealthState,
    pub(crate) reason: HealthReason,
}

/// Use that may be made of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    /// None.
    Out,
    /// One connection, for the caller to whom `begin_trial` returns true.
    Trial,
    /// This many 256ths of its weight; at least 1.
    Share(u32),
}

impl HealthState {
    /// Returns whether nothing is known against the backend.
    pub(crate) fn is_well(self) -> bool {
        matches!(self, Self::Unknown | Self::Healthy)
    }

    /// Returns whether the backend has failed, and nobody tries whether it is well again.
    pub(crate) fn is_bad(self) -> bool {
        matches!(self, Self::Unhealthy { .. } | Self::Ejected { .. })
    }

    /// Returns whether the backend counts as an ejected one.
    pub(crate) fn is_ejected(self) -> bool {
        matches!(self, Self::Ejected { .. } | Self::OnTrial)
    }

    /// Returns whether checks have taken the backend out.
    pub(crate) fn fails_checks(self) -> bool {
        self == Self::Unhealthy { by_check: true }
    }
}

impl HealthChange {
    /// Returns whether the backend is ejected by it, be it again, after a failed trial.
    pub(crate) fn is_ejection(&self) -> bool {
        matches!(self.to, HealthState::Ejected { .. })
    }
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy { .. } => "unhealthy",
            Self::Ejected { .. } => "ejected",
            Self::OnTrial => "on_trial",
        })
    }
}
