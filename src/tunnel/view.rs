//! Tunnels as the admin listener sees them: what each is for, and what it has relayed.

use std::time::{Duration, Instant};

use super::side::PerSide;
use super::totals::SideTotals;
use crate::net::name::Peer;

/// What a tunnel is for.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) id: u64,
    pub(crate) section: String,
    pub(crate) client: Peer,
    pub(crate) backend: String,
    pub(crate) accepted: Instant,
    /// Path without query, host, forwarded client, request id and trace, as far as they are known.
    pub(crate) request: [Option<String>; 5],
}

/// A tunnel at one moment.
#[derive(Clone, Debug)]
pub(crate) struct TunnelView {
    pub(crate) description: Description,
    /// Time without a byte of either side, in steps of 250 ms; `None` where nothing is counted.
    pub(crate) idle: Option<Duration>,
    /// What each side has sent.
    pub(crate) sent_by: PerSide<SideTotals>,
    pub(crate) state: TunnelState,
}

/// State of a tunnel, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TunnelState {
    Open,
    /// The client has to wait, since it is above its rate.
    Paused,
    /// A side takes no bytes.
    Blocked,
    /// Its end has begun.
    Closing,
}

impl TunnelState {
    /// Returns the state's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Paused => "paused",
            Self::Blocked => "blocked",
            Self::Closing => "closing",
        }
    }
}
