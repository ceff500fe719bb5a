//! What a section asks of its tunnels, beyond carrying bytes.

use std::time::Duration;

/// What becomes of a client that sends more messages than it may; the key `rate_action` of a section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RateAction {
    /// It is not read until the next second. The default.
    #[default]
    Pause,
    /// It gets a Close with 1008 (policy violation).
    Close,
}

/// The rules of one section's tunnels. `None` is for off.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// A side that has been silent for so long gets a Ping.
    pub(crate) ping_interval: Option<Duration>,
    /// A side that has been silent for so long after a Ping is dead.
    pub(crate) pong_timeout: Duration,
    /// A tunnel without data frames in either direction for so long is closed.
    pub(crate) idle_timeout: Option<Duration>,
    /// A tunnel that is so old, a tenth more or less, is closed.
    pub(crate) max_lifetime: Option<Duration>,
    pub(crate) lifetime_close_code: u16,
    /// Bytes of all fragments of a message together.
    pub(crate) max_message: Option<u64>,
    pub(crate) max_frame: Option<u64>,
    /// Messages of the client.
    pub(crate) max_messages_per_second: Option<u32>,
    pub(crate) rate_action: RateAction,
    /// What violates RFC 6455 ends the tunnel.
    pub(crate) strict_frames: bool,
    /// Close code for the client whose backend was lost without a Close.
    pub(crate) backend_lost_code: Option<u16>,
    /// Close code for the backend whose client was lost without a Close.
    pub(crate) client_lost_code: Option<u16>,
    /// How long a tunnel that has been closed may take to end.
    pub(crate) close_grace: Duration,
    /// What clients are told when the proxy leaves.
    pub(crate) drain_close_code: u16,
}

impl Rules {
    /// Whether headers must be judged before their frames pass.
    pub(crate) fn judge_frames(&self) -> bool {
        self.max_message.is_some()
            || self.max_frame.is_some()
            || self.max_messages_per_second.is_some()
            || self.strict_frames
    }

    /// Whether time ends tunnels, or has them pinged or read again.
    pub(crate) fn watch_time(&self) -> bool {
        self.ping_interval.is_some()
            || self.idle_timeout.is_some()
            || self.max_lifetime.is_some()
            || self.max_messages_per_second.is_some()
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            ping_interval: None,
            pong_timeout: Duration::ZERO,
            idle_timeout: None,
            max_lifetime: None,
            lifetime_close_code: 1001,
            max_message: None,
            max_frame: None,
            max_messages_per_second: None,
            rate_action: RateAction::Pause,
            strict_frames: false,
            backend_lost_code: None,
            client_lost_code: None,
            close_grace: Duration::from_secs(2),
            drain_close_code: 1001,
        }
    }
}
