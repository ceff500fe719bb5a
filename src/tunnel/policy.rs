//! What a section asks of its tunnels, beyond relaying bytes.

use std::time::Duration;

use super::control::code;

/// Action against a client that sends more messages or frames than it may; the key `rate_action`
/// of a section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize, serde::Serialize),
    serde(rename_all = "lowercase")
)]
#[non_exhaustive]
pub enum RateAction {
    /// What it sends above the rate waits until it is within it again. The default.
    #[default]
    Pause,
    /// The client gets a Close with 1008 (policy violation), the backend one with 1001.
    Close,
}

/// Policy for the tunnels of one section. `None` turns a rule off.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// Silence of a side after which it is pinged.
    pub(crate) ping_interval: Option<Duration>,
    /// Silence of a side after a Ping at which it is dead.
    pub(crate) pong_timeout: Duration,
    /// Time without a data frame in either direction after which a tunnel is closed.
    pub(crate) idle_timeout: Option<Duration>,
    /// Time for which a side may take no bytes of those that wait for it.
    pub(crate) blocked_timeout: Option<Duration>,
    /// Age at which a tunnel is closed, a tenth more or less.
    pub(crate) max_lifetime: Option<Duration>,
    /// Close code for the client at that age.
    pub(crate) lifetime_close_code: u16,
    /// Most payload bytes of a message, all its fragments together.
    pub(crate) max_message: Option<u64>,
    /// Most payload bytes of a frame.
    pub(crate) max_frame: Option<u64>,
    /// Most messages of the client within a second.
    pub(crate) max_messages_per_second: Option<u32>,
    /// Most frames of the client within a second, control frames included.
    pub(crate) max_frames_per_second: Option<u32>,
    pub(crate) rate_action: RateAction,
    /// Whether frames that violate RFC 6455 end the tunnel.
    pub(crate) strict_frames: bool,
    /// Close code for the client whose backend was lost without a Close.
    pub(crate) backend_lost_code: Option<u16>,
    /// Close code for the backend whose client was lost without a Close.
    pub(crate) client_lost_code: Option<u16>,
    /// Time for a tunnel to end after its closing has begun.
    pub(crate) close_grace: Duration,
    /// Close code for clients when the proxy shuts down.
    pub(crate) drain_close_code: u16,
}

impl Policy {
    /// Returns whether headers are judged before their frames pass.
    pub(crate) fn judges_frames(&self) -> bool {
        self.max_message.is_some()
            || self.max_frame.is_some()
            || self.limits_rate()
            || self.strict_frames
    }

    /// Returns whether time ends tunnels, has them pinged, or read again.
    pub(crate) fn watches_time(&self) -> bool {
        self.ping_interval.is_some()
            || self.idle_timeout.is_some()
            || self.max_lifetime.is_some()
            || self.blocked_timeout.is_some()
            || self.limits_rate()
    }

    /// Returns whether the client may send only so much within a second.
    pub(crate) fn limits_rate(&self) -> bool {
        self.max_messages_per_second.is_some() || self.max_frames_per_second.is_some()
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ping_interval: None,
            pong_timeout: Duration::ZERO,
            idle_timeout: None,
            blocked_timeout: None,
            max_lifetime: None,
            lifetime_close_code: code::GOING_AWAY,
            max_message: None,
            max_frame: None,
            max_messages_per_second: None,
            max_frames_per_second: None,
            rate_action: RateAction::Pause,
            strict_frames: false,
            backend_lost_code: None,
            client_lost_code: None,
            close_grace: Duration::from_secs(2),
            drain_close_code: code::GOING_AWAY,
        }
    }
}
