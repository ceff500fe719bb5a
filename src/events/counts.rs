//! Counts that events add to.

use super::{Event, Stage};
use crate::stats::SectionStats;

/// Outcomes of handshakes: the reasons of the proxy's own refusals, and what else may come of one.
pub(crate) const OUTCOMES: [&str; 21] = [
    "switched",
    "backend_status",
    "client_gone",
    "malformed",
    "not_websocket",
    "origin",
    "method",
    "head_timeout",
    "too_large",
    "version",
    "unreachable",
    "bad_answer",
    "full",
    "backends_full",
    "draining",
    "out_of_descriptors",
    "out_of_memory",
    "out_of_ports",
    "connect_timeout",
    "response_timeout",
    "loop",
];

/// Returns the class of a status (RFC 9110, 15), a label of the counts of requests.
fn status_class(status: Option<u16>) -> &'static str {
    match status {
        None => "none",
        Some(..=299) => "2xx",
        Some(..=399) => "3xx",
        Some(..=499) => "4xx",
        Some(_) => "5xx",
    }
}

impl Event<'_> {
    /// Adds the event to the counts of its section.
    pub(super) fn count(&self, stats: &SectionStats) {
        match self {
            Self::TunnelStarted { handshake, .. } => {
                stats.handshakes.inc("switched");
                stats.handshake_time.observe(*handshake);
            }
            Self::Refused { response, .. } => stats.handshakes.inc(response.reason),
            Self::Exchange { exchanged, .. } => {
                stats.requests.inc(status_class(exchanged.status));
                stats.request_time.observe(exchanged.duration);
            }
            Self::Dropped { .. } => stats.handshakes.inc("full"),
            Self::Declined { .. } | Self::ClientGone { stage: Stage::Refusal, .. } => {
                stats.handshakes.inc("backend_status");
            }
            Self::ClientGone { .. } => stats.handshakes.inc("client_gone"),
            Self::TunnelEnded { lifetime, end, .. } => {
                stats.ended.inc(end.reason.name());
                stats.tunnel_time.observe(*lifetime);
                let [client, backend, proxy] = &stats.closes;
                let sent = [(client, &end.sent_by.client), (backend, &end.sent_by.backend)];
                for (counts, sent) in sent {
                    if sent.has_close() {
                        // 1005 stands for a Close without a code (RFC 6455, 7.1.5).
                        counts.inc(sent.close_code().unwrap_or(1_005));
                    }
                }
                let codes = [end.closed_with.client, end.closed_with.backend];
                codes.into_iter().flatten().for_each(|code| proxy.inc(code));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::error_response::ErrorResponse;

    #[test]
    fn every_refusal_of_ours_is_an_outcome() {
        let all = ErrorResponse::all_for_tests();
        assert!(all.len() > 10);
        for response in all {
            assert!(OUTCOMES.contains(&response.reason), "{}", response.reason);
        }
    }
}
