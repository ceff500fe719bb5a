//! What became of one connection, and the line that the log has of it.

use std::net::SocketAddr;
use std::time::Duration;

use crate::handshake::reject::Reject;
use crate::tunnel::{Cause, TunnelEnd};

/// How far a connection had come when its client went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Within its head.
    Head,
    /// While the backend was being dialled, or was thinking.
    Handshake,
    /// While a refusal of the backend was being passed on.
    Refusal,
}

/// What became of one connection.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It was a tunnel.
    Tunnel {
        backend: String,
        /// From the accept to the verified 101.
        handshake: Duration,
        /// From the accept to the end.
        lifetime: Duration,
        /// How many of the bytes for the client were the 101.
        head_len: usize,
        end: TunnelEnd,
    },
    /// It got an answer of ours.
    Rejected(Reject),
    /// It got the backend's own answer, which was not a 101; `fault` is why not all of it.
    PassedOn { backend: String, status: u16, fault: Option<String> },
    /// The client's connection broke before there was an answer.
    ClientGone { stage: Stage },
    /// The client never sent a byte.
    Silent { ended_by: &'static str },
}

impl Outcome {
    /// Writes the line.
    pub(crate) fn log(&self, section: &str, id: u64, peer: SocketAddr) {
        match self {
            Self::Tunnel { backend, handshake, lifetime, head_len, end } => {
                let (ended_by, how) = match end.cause {
                    Cause::Eof(side) => (side.name(), "eof"),
                    Cause::Reset(side) => (side.name(), "reset"),
                    Cause::Cut => ("proxy", "cut"),
                };
                log::info!(
                    "event=tunnel_end section={section} id={id} client={peer} backend={backend} status=101 \
                     handshake_ms={:.1} lifetime_ms={} bytes_to_backend={} bytes_to_client={} ended_by={ended_by} how={how}",
                    handshake.as_secs_f64() * 1_000.0,
                    lifetime.as_millis(),
                    end.to_backend,
                    end.to_client.saturating_sub(*head_len as u64),
                );
            }
            Self::Rejected(reject) => log::info!(
                "event=refused section={section} id={id} client={peer} status={} reason={} detail={:?}",
                reject.status,
                reject.reason,
                reject.detail,
            ),
            Self::PassedOn { backend, status, fault: None } => log::info!(
                "event=refused section={section} id={id} client={peer} backend={backend} status={status} \
                 reason=backend_status",
            ),
            Self::PassedOn { backend, status, fault: Some(fault) } => log::info!(
                "event=refused section={section} id={id} client={peer} backend={backend} status={status} \
                 reason=backend_status fault={fault:?}",
            ),
            Self::ClientGone { stage } => {
                let stage = match stage {
                    Stage::Head => "head",
                    Stage::Handshake => "handshake",
                    Stage::Refusal => "refusal",
                };
                log::info!("event=client_gone section={section} id={id} client={peer} stage={stage}");
            }
            Self::Silent { ended_by } => {
                log::debug!("event=silent section={section} id={id} client={peer} ended_by={ended_by}");
            }
        }
    }
}
