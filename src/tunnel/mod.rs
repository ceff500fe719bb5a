//! The tunnel: once the backend has switched, its two sockets leave their task for the tunnels of the same event loop
//! ([`carrier`]), which gives each ([`pair`]) its turns; a tunnel is two directions ([`half`]) between two sockets
//! ([`socket`]), through memory or through [`pipes`].
//!
//! What passes is followed frame by frame ([`gate`], [`frames`]), counted ([`tally`]), and ended in order
//! ([`control`]), by the [`rules`] of the section.

pub(crate) mod carrier;
mod clock;
pub(crate) mod control;
pub(crate) mod frames;
pub(crate) mod gate;
mod half;
mod pair;
mod pipes;
pub(crate) mod rules;
mod socket;
pub(crate) mod tally;

use std::sync::Arc;

use self::rules::Rules;
use self::tally::Tally;
use crate::net::stream::Detached;

/// Two connections between which all bytes are to flow.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) client: Detached,
    pub(crate) backend: Detached,
    /// The client's frames that have been read already.
    pub(crate) for_backend: Vec<u8>,
    /// What the client gets before anything else: the 101.
    pub(crate) head: Vec<u8>,
    /// The backend's frames that have been read already.
    pub(crate) for_client: Vec<u8>,
    /// Whether an extension has been negotiated.
    pub(crate) is_extended: bool,
    pub(crate) rules: Arc<Rules>,
}

/// One of the two ends of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Backend,
}

/// Why a tunnel ended: a closed set, for the log and for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// This side was the first to send a Close.
    Close(Side),
    /// This side was the first to end its sending, and no Close came before.
    Eof(Side),
    /// The connection to this side broke, and no Close came before.
    Reset(Side),
    /// No data frames for too long.
    Idle,
    /// Its time was up.
    Lifetime,
    /// A side was dead.
    PongTimeout,
    MessageTooBig,
    /// Too many messages.
    Rate,
    /// Frames that are against RFC 6455.
    Protocol,
    /// The proxy is leaving.
    Drain,
    /// The proxy cut it.
    Admin,
}

/// What is known of a tunnel when it is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TunnelEnd {
    /// Bytes that were written to the backend.
    pub(crate) to_backend: u64,
    /// Bytes that were written to the client, without the 101.
    pub(crate) to_client: u64,
    pub(crate) reason: Reason,
    /// What the client sent.
    pub(crate) up: Tally,
    /// What the backend sent.
    pub(crate) down: Tally,
    /// Directions whose frames could not be followed to the end.
    pub(crate) blind: u8,
}

impl Reason {
    /// The word for the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Close(Side::Client) => "client_close",
            Self::Close(Side::Backend) => "backend_close",
            Self::Eof(Side::Client) => "client_eof",
            Self::Eof(Side::Backend) => "backend_eof",
            Self::Reset(Side::Client) => "client_reset",
            Self::Reset(Side::Backend) => "backend_reset",
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
            Self::PongTimeout => "pong_timeout",
            Self::MessageTooBig => "message_too_big",
            Self::Rate => "rate",
            Self::Protocol => "protocol",
            Self::Drain => "drain",
            Self::Admin => "admin",
        }
    }

    /// Who ended the tunnel, for the log.
    pub(crate) fn ended_by(self) -> &'static str {
        match self {
            Self::Close(side) | Self::Eof(side) | Self::Reset(side) => side.name(),
            _ => "proxy",
        }
    }
}

impl Side {
    /// The word for the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Backend => "backend",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }
}
