//! What became of one connection, and the line that the log has of it.

use std::net::SocketAddr;
use std::time::Duration;

use crate::handshake::error_response::ErrorResponse;
use crate::section::Section;
use crate::tunnel::TunnelEnd;

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
        /// Which of the section's backends.
        backend: usize,
        /// From the accept to the verified 101.
        handshake: Duration,
        /// From the accept to the end.
        lifetime: Duration,
        end: TunnelEnd,
    },
    /// It got an answer of ours.
    Rejected(ErrorResponse),
    /// It got the backend's own answer, which was not a 101; `fault` is why not all of it.
    PassedOn { backend: usize, status: u16, fault: Option<String> },
    /// The client's connection broke before there was an answer.
    ClientGone { stage: Stage },
    /// The client never sent a byte.
    Silent { ended_by: &'static str },
}

impl Outcome {
    /// Writes the line.
    pub(crate) fn log(&self, of: &Section, id: u64, peer: SocketAddr) {
        let section = &of.name;
        match self {
            Self::Tunnel { backend, handshake, lifetime, end } => {
                let backend = of.backend_name(*backend);
                let (up, down) = (&end.sent_by.client, &end.sent_by.backend);
                let code = |code: Option<u16>| code.map_or("-".to_owned(), |code| code.to_string());
                log::info!(
                    "event=tunnel_end section={section} id={id} client={peer} backend={backend} status=101 \
                     handshake_ms={:.1} lifetime_ms={} bytes_to_backend={} bytes_to_client={} ended_by={} reason={} \
                     client_close={} backend_close={} client_messages={} backend_messages={} opaque={}",
                    handshake.as_secs_f64() * 1_000.0,
                    lifetime.as_millis(),
                    end.written_to.backend,
                    end.written_to.client,
                    end.reason.ended_by(),
                    end.reason.name(),
                    code(up.close_code()),
                    code(down.close_code()),
                    up.messages(),
                    down.messages(),
                    end.opaque,
                );
                log::debug!(
                    "event=tunnel_frames section={section} id={id} client_text={} client_binary={} client_pings={} \
                     client_pongs={} client_frames={} client_payload={} backend_text={} backend_binary={} \
                     backend_pings={} backend_pongs={} backend_frames={} backend_payload={}",
                    up.text,
                    up.binary,
                    up.pings,
                    up.pongs,
                    up.frames,
                    up.payload,
                    down.text,
                    down.binary,
                    down.pings,
                    down.pongs,
                    down.frames,
                    down.payload,
                );
            }
            Self::Rejected(reject) => log::info!(
                "event=refused section={section} id={id} client={peer} status={} reason={} detail={:?}",
                reject.status,
                reject.reason,
                reject.detail,
            ),
            Self::PassedOn { backend, status, fault } => {
                let backend = of.backend_name(*backend);
                let fault =
                    fault.as_ref().map(|fault| format!(" fault={fault:?}")).unwrap_or_default();
                log::info!(
                    "event=refused section={section} id={id} client={peer} backend={backend} status={status} \
                     reason=backend_status{fault}",
                );
            }
            Self::ClientGone { stage } => {
                let stage = match stage {
                    Stage::Head => "head",
                    Stage::Handshake => "handshake",
                    Stage::Refusal => "refusal",
                };
                log::info!(
                    "event=client_gone section={section} id={id} client={peer} stage={stage}"
                );
            }
            Self::Silent { ended_by } => {
                log::debug!(
                    "event=silent section={section} id={id} client={peer} ended_by={ended_by}"
                );
            }
        }
    }
}
