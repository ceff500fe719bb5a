//! The tunnel: once the backend has switched, its two sockets leave their task for the tunnels of the same event loop
//! ([`carrier`]), which gives each ([`pair`]) its turns; a tunnel is two directions ([`half`]) between two sockets
//! ([`socket`]), through memory or through [`pipes`].

pub(crate) mod carrier;
mod half;
mod pair;
mod pipes;
mod socket;

use crate::net::stream::Detached;

/// Two connections between which all bytes are to flow.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) client: Detached,
    pub(crate) backend: Detached,
    /// What the backend gets first: the client's bytes that have been read already.
    pub(crate) for_backend: Vec<u8>,
    /// What the client gets first: the 101, and the backend's bytes that have been read already.
    pub(crate) for_client: Vec<u8>,
}

/// One of the two ends of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Backend,
}

/// How a tunnel came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Both sides ended their sending; this one was first.
    Eof(Side),
    /// The connection to this side broke.
    Reset(Side),
    /// The proxy ended it.
    Cut,
}

/// What is known of a tunnel when it is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TunnelEnd {
    /// Bytes that were written to the backend.
    pub(crate) to_backend: u64,
    /// Bytes that were written to the client.
    pub(crate) to_client: u64,
    pub(crate) cause: Cause,
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
