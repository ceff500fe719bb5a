//! Settings of the tunnels and of their end.

use super::{WsProxy, number};
use crate::tunnel::policy::RateAction;

impl WsProxy {
    /// Sets the silence of a side after which it is sent a Ping (RFC 6455, 5.5.2), in milliseconds.
    /// The Pong is not forwarded. Default: 0, no Pings.
    pub fn ping_interval_ms(mut self, ms: u64) -> Self {
        self.raw.ping_interval_ms = Some(number(ms));
        self
    }

    /// Sets the silence of a side after a Ping at which it is dead and the tunnel ends, in
    /// milliseconds. Default, and 0: the value of [`ping_interval_ms`](WsProxy::ping_interval_ms).
    pub fn pong_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.pong_timeout_ms = Some(number(ms));
        self
    }

    /// Closes a tunnel with 1001 after this time without a data frame in either direction, in
    /// milliseconds; Pings and Pongs do not count. Default: 0, never.
    pub fn idle_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.idle_timeout_ms = Some(number(ms));
        self
    }

    /// Closes a tunnel one side of which has taken no bytes for this time while some wait for it,
    /// in milliseconds. Default: 0, never.
    pub fn blocked_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.blocked_timeout_ms = Some(number(ms));
        self
    }

    /// Closes a tunnel at this age, a tenth more or less, in milliseconds. Default: 0, never.
    pub fn max_lifetime_ms(mut self, ms: u64) -> Self {
        self.raw.max_lifetime_ms = Some(number(ms));
        self
    }

    /// Sets the close code at the end of the [lifetime](WsProxy::max_lifetime_ms). Default: 1001. A
    /// code that no endpoint may send is an error.
    pub fn lifetime_close_code(mut self, code: u16) -> Self {
        self.raw.lifetime_close_code = Some(code.into());
        self
    }

    /// Limits the payload of a message, all its fragments together, in bytes; the sender of a
    /// larger one gets 1009 before it passes. Default: 0, no limit.
    pub fn max_message_bytes(mut self, bytes: u64) -> Self {
        self.raw.max_message_bytes = Some(number(bytes));
        self
    }

    /// Limits the payload of a frame, in bytes; the sender of a larger one gets 1009 before it
    /// passes. Default: 0, no limit.
    pub fn max_frame_bytes(mut self, bytes: u64) -> Self {
        self.raw.max_frame_bytes = Some(number(bytes));
        self
    }

    /// Limits the messages that a client may send within a second; one second's worth may come at
    /// once. Default: 0, no limit.
    pub fn max_messages_per_second(mut self, messages: u64) -> Self {
        self.raw.max_messages_per_second = Some(number(messages));
        self
    }

    /// Limits the frames that a client may send within a second, control frames and fragments
    /// included; a Close always passes. Default, and 0: ten times
    /// [`max_messages_per_second`](WsProxy::max_messages_per_second), where that is set.
    pub fn max_frames_per_second(mut self, frames: u64) -> Self {
        self.raw.max_frames_per_second = Some(number(frames));
        self
    }

    /// Sets the action against a client that sends [more](WsProxy::max_messages_per_second).
    /// Default: [`RateAction::Pause`].
    pub fn rate_action(mut self, action: RateAction) -> Self {
        self.raw.rate_action = Some(action);
        self
    }

    /// Ends tunnels with 1002 over frames that violate RFC 6455, instead of leaving them to the
    /// endpoints. Default: false.
    pub fn strict_frames(mut self, strict: bool) -> Self {
        self.raw.strict_frames = Some(strict);
        self
    }

    /// Sets the close code for a client whose backend vanished without a Close: its connection
    /// ended or broke. Default: 0, the bare end is relayed. 1014 (bad gateway), 1011 and 1012 are
    /// the usual choices; several client libraries show a 1014 as a protocol error. A code that no
    /// endpoint may send is an error.
    pub fn backend_lost_code(mut self, code: u16) -> Self {
        self.raw.backend_lost_code = Some(code.into());
        self
    }

    /// Sets the close code for a backend whose client vanished without a Close. Default: 0, the
    /// bare end is relayed: frameworks treat it as 1006, and a Close 1001 as a polite leave. A code
    /// that no endpoint may send is an error.
    pub fn client_lost_code(mut self, code: u16) -> Self {
        self.raw.client_lost_code = Some(code.into());
        self
    }

    /// Sets the time in which clients are still accepted after a shutdown has begun, in
    /// milliseconds. Default: 0.
    pub fn drain_delay_ms(mut self, ms: u64) -> Self {
        self.drain.delay_ms = Some(number(ms));
        self
    }

    /// Sets the time over which the tunnels are then closed, each at a random time, in
    /// milliseconds. Default: 5,000; 0 closes all at once. It is shortened to what the
    /// [timeout](WsProxy::drain_timeout_ms) leaves.
    pub fn drain_spread_ms(mut self, ms: u64) -> Self {
        self.drain.spread_ms = Some(number(ms));
        self
    }

    /// Sets the time from the beginning of a shutdown after which the tunnels that are left are
    /// cut, in milliseconds. Default: 8,000. Zero is an error.
    pub fn drain_timeout_ms(mut self, ms: u64) -> Self {
        self.drain.timeout_ms = Some(number(ms));
        self
    }

    /// Sets the close code for clients at a shutdown. Default: 1001; 1012 (service restart) is the
    /// usual other choice. A code that no endpoint may send is an error.
    pub fn drain_close_code(mut self, code: u16) -> Self {
        self.drain.close_code = Some(code.into());
        self
    }

    /// Sets the time for a tunnel to end after its closing has begun, whoever began it, in
    /// milliseconds. Default: 2,000; 0 is a moment.
    pub fn close_grace_ms(mut self, ms: u64) -> Self {
        self.drain.close_grace_ms = Some(number(ms));
        self
    }
}
