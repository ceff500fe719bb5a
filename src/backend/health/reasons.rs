//! Failures of a backend, and the reasons for which its health changes, in the words of the log.

use std::fmt;
use std::io;

/// A failure of a backend that was met by a client's handshake, or by its tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// Refused, unreachable, or no address of the name.
    Connect,
    ConnectTimeout,
    /// Its connection ended without a byte of an answer.
    NoAnswer,
    ResponseTimeout,
    /// 502, 503 or 504.
    Status(u16),
    /// A 101 that is not valid, or an answer that is not HTTP.
    InvalidResponse,
    /// It reset a tunnel within the section's `early_reset_ms` of its 101.
    EarlyReset,
}

/// Failure of an active check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckError {
    /// Refused or unreachable.
    Connect,
    /// The check was not over within its `timeout_ms`.
    Timeout,
    /// The connection ended before the answer did.
    Closed,
    /// A status outside of the expected ones; for a WebSocket check any but 101.
    Status(u16),
    /// An answer that is not HTTP, or a 101 that is not valid.
    InvalidResponse,
}

/// Reason for a change of health. Its text is written to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HealthReason {
    /// Failures in a row. `is_uniform`: all of them of the kind of the last one.
    Failures {
        count: u32,
        is_uniform: bool,
        last: FailureKind,
    },
    /// The trial connection failed, or was reset early.
    TrialFailed(FailureKind),
    TrialSucceeded,
    /// One connection is to decide.
    EjectionOver,
    HandshakeSucceeded,
    /// After early resets, a tunnel was not reset early.
    TunnelLasted,
    /// Checks that failed in a row.
    ChecksFailed {
        count: u32,
        last: CheckError,
    },
    /// Checks that passed in a row.
    ChecksPassed {
        count: u32,
    },
    /// The settings no longer know the rule by which it was out of use.
    SettingsChanged,
}

/// Failures without a success between them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FailureRow {
    pub(super) count: u32,
    last: Option<FailureKind>,
    is_mixed: bool,
    /// One of them came after the connection.
    pub(super) is_beyond_connect: bool,
}

impl FailureKind {
    /// Returns the kind of a failure to connect.
    pub(crate) fn of_connect(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::ConnectTimeout,
            _ => Self::Connect,
        }
    }

    /// Returns whether the backend's port did not even accept.
    pub(super) fn is_of_connect(self) -> bool {
        matches!(self, Self::Connect | Self::ConnectTimeout)
    }

    /// Writes several of this kind.
    fn write_plural(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer => f.write_str("connections closed without an answer"),
            Self::Status(status) => write!(f, "responses with status {status}"),
            kind => write!(f, "{kind}s"),
        }
    }
}

impl FailureRow {
    pub(super) fn add(&mut self, kind: FailureKind) {
        self.count = self.count.saturating_add(1);
        self.is_mixed |= self.last.is_some_and(|last| last != kind);
        self.last = Some(kind);
        self.is_beyond_connect |= !kind.is_of_connect();
    }

    /// Returns the row as a reason; `last` is its last failure.
    pub(super) fn reason(self, last: FailureKind) -> HealthReason {
        HealthReason::Failures { count: self.count, is_uniform: !self.is_mixed, last }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect failure",
            Self::ConnectTimeout => "connect timeout",
            Self::NoAnswer => "closed without an answer",
            Self::ResponseTimeout => "response timeout",
            Self::Status(status) => return write!(f, "status {status}"),
            Self::InvalidResponse => "invalid response",
            Self::EarlyReset => "early reset",
        })
    }
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect failure",
            Self::Timeout => "timeout",
            Self::Closed => "closed before the end of the answer",
            Self::Status(status) => return write!(f, "status {status}"),
            Self::InvalidResponse => "invalid response",
        })
    }
}

impl fmt::Display for HealthReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failures { count: 1, last, .. } => write!(f, "{last}"),
            Self::Failures { count, is_uniform: true, last } => {
                write!(f, "{count} ")?;
                last.write_plural(f)?;
                f.write_str(" in a row")
            }
            Self::Failures { count, last, .. } => {
                write!(f, "{count} failures in a row, the last: {last}")
            }
            Self::TrialFailed(kind) => write!(f, "trial failed: {kind}"),
            Self::EjectionOver => f.write_str("ejection over"),
            Self::TrialSucceeded => f.write_str("trial succeeded"),
            Self::HandshakeSucceeded => f.write_str("handshake succeeded"),
            Self::TunnelLasted => f.write_str("tunnel not reset early"),
            Self::ChecksFailed { count: 1, last } => write!(f, "check failed: {last}"),
            Self::ChecksFailed { count, last } => {
                write!(f, "{count} checks failed in a row, the last: {last}")
            }
            Self::ChecksPassed { count: 1 } => f.write_str("check passed"),
            Self::ChecksPassed { count } => write!(f, "{count} checks passed in a row"),
            Self::SettingsChanged => f.write_str("settings changed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_text() {
        let failures = |count, is_uniform, last| HealthReason::Failures { count, is_uniform, last };
        let checks = |count, last| HealthReason::ChecksFailed { count, last };
        let rows = [
            (failures(3, true, FailureKind::Connect), "3 connect failures in a row"),
            (failures(3, true, FailureKind::ConnectTimeout), "3 connect timeouts in a row"),
            (failures(2, true, FailureKind::ResponseTimeout), "2 response timeouts in a row"),
            (
                failures(3, true, FailureKind::NoAnswer),
                "3 connections closed without an answer in a row",
            ),
            (failures(3, true, FailureKind::Status(503)), "3 responses with status 503 in a row"),
            (failures(3, true, FailureKind::InvalidResponse), "3 invalid responses in a row"),
            (failures(3, true, FailureKind::EarlyReset), "3 early resets in a row"),
            (
                failures(3, false, FailureKind::Status(502)),
                "3 failures in a row, the last: status 502",
            ),
            (failures(1, true, FailureKind::NoAnswer), "closed without an answer"),
            (HealthReason::TrialFailed(FailureKind::EarlyReset), "trial failed: early reset"),
            (checks(1, CheckError::Timeout), "check failed: timeout"),
            (checks(2, CheckError::Status(404)), "2 checks failed in a row, the last: status 404"),
            (HealthReason::ChecksPassed { count: 1 }, "check passed"),
            (HealthReason::ChecksPassed { count: 2 }, "2 checks passed in a row"),
        ];
        for (reason, text) in rows {
            assert_eq!(reason.to_string(), text);
        }
    }
}
