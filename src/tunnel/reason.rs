//! Causes for which the proxy closes a tunnel, and reasons by which its end is named.

use std::time::Duration;

use super::control::code;
use super::limits::Violation;
use super::policy::Policy;
use super::side::{PerSide, Side};

/// Reason for the end of a tunnel: a closed set, for the log and for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// This side was the first to send a Close.
    Close(Side),
    /// This side was the first to end its sending, and no Close came before.
    Eof(Side),
    /// The connection to this side broke, and no Close came before.
    Reset(Side),
    /// No data frames for the idle timeout.
    Idle,
    /// The tunnel reached its maximum lifetime.
    Lifetime,
    /// A side did not answer a Ping.
    PongTimeout,
    /// A side took no bytes.
    Blocked,
    /// A frame or message was larger than allowed.
    MessageTooBig,
    /// The client sent more messages than allowed.
    Rate,
    /// A frame violated RFC 6455.
    Protocol,
    /// The proxy is shutting down.
    Drain,
    /// The operator ordered it, or the proxy cut the tunnel.
    Admin,
    /// The tunnel's backend was removed.
    BackendRemoved,
    /// The tunnel's backend failed its checks.
    BackendUnhealthy,
    /// The tunnel was one too many for its backend, after another one was added.
    Rebalance,
}

/// Cause for which the proxy closes a tunnel by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// This side sent a frame that may not pass.
    Violation(Side, Violation),
    /// The proxy shuts down.
    Drain,
    /// The tunnel is as old as it may get.
    Lifetime,
    /// No data frame has come for too long.
    Idle,
    /// This side has not answered a Ping.
    PongTimeout(Side),
    /// This side takes no bytes.
    Blocked(Side),
    /// An order with this code has come.
    Order(OrderCause, u16),
}

/// Stands in a Close for the reason of the order, which the machines do not know.
pub(super) const BY_ORDER: &str = "closed by the operator";

/// A Close that tunnels are to end with, by an order from outside of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CloseOrder {
    pub(crate) cause: OrderCause,
    pub(crate) code: u16,
    /// Reason for the client, at most 123 bytes of it.
    pub(crate) reason: String,
    /// Time over which the tunnels are closed, each at a random moment.
    pub(crate) spread: Duration,
}

/// Cause of an order. It names the end of the tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OrderCause {
    /// The operator's will, by the admin listener.
    #[cfg_attr(not(feature = "admin"), expect(dead_code, reason = "nobody gives such an order"))]
    Operator,
    BackendRemoved,
    BackendUnhealthy,
    Rebalance,
}

/// Close frame of the proxy: a code and a reason (RFC 6455, 5.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CloseFrame {
    pub(super) code: u16,
    pub(super) reason: &'static str,
}

impl Cause {
    /// Returns the reason for the end that this cause begins.
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::Violation(_, Violation::MessageTooBig) => Reason::MessageTooBig,
            Self::Violation(_, Violation::Protocol) => Reason::Protocol,
            Self::Violation(_, Violation::Rate) => Reason::Rate,
            Self::Drain => Reason::Drain,
            Self::Lifetime => Reason::Lifetime,
            Self::Idle => Reason::Idle,
            Self::PongTimeout(_) => Reason::PongTimeout,
            Self::Blocked(_) => Reason::Blocked,
            Self::Order(cause, _) => cause.reason(),
        }
    }

    /// Returns whether the cause bounds how long the endpoints may take to end the tunnel among
    /// themselves: a time has run out, or an order has come.
    pub(super) fn is_timed(self) -> bool {
        matches!(
            self,
            Self::Drain | Self::Lifetime | Self::Idle | Self::Blocked(_) | Self::Order(..)
        )
    }

    /// Returns the Close frame for each side; `None` for a side that is not told.
    ///
    /// On a drain, by an order, or at the end of a lifetime only the client is told: its answer
    /// reaches the backend as a normal end.
    pub(super) fn close_frames(self, policy: &Policy) -> PerSide<Option<CloseFrame>> {
        let frame = |code, reason| Some(CloseFrame { code, reason });
        match self {
            Self::Violation(side, violation) => {
                let (code, reason) = match violation {
                    Violation::MessageTooBig => (code::MESSAGE_TOO_BIG, "message too big"),
                    Violation::Protocol => (code::PROTOCOL_ERROR, "protocol error"),
                    Violation::Rate => (code::POLICY_VIOLATION, "too many messages"),
                };
                PerSide::with(side, frame(code, reason), frame(code::GOING_AWAY, reason))
            }
            Self::Drain => {
                PerSide { client: frame(policy.drain_close_code, "shutting down"), backend: None }
            }
            Self::Lifetime => PerSide {
                client: frame(policy.lifetime_close_code, "maximum lifetime reached"),
                backend: None,
            },
            Self::Order(_, code) => PerSide { client: frame(code, BY_ORDER), backend: None },
            Self::Idle => PerSide {
                client: frame(code::GOING_AWAY, "idle"),
                backend: frame(code::GOING_AWAY, "idle"),
            },
            Self::PongTimeout(Side::Client) => {
                PerSide { client: None, backend: frame(code::GOING_AWAY, "the client is dead") }
            }
            Self::PongTimeout(Side::Backend) => {
                PerSide { client: frame(code::BAD_GATEWAY, "the backend is dead"), backend: None }
            }
            Self::Blocked(Side::Client) => {
                PerSide { client: None, backend: frame(code::GOING_AWAY, "the client is stuck") }
            }
            Self::Blocked(Side::Backend) => {
                PerSide { client: frame(code::BAD_GATEWAY, "the backend is stuck"), backend: None }
            }
        }
    }
}

impl CloseOrder {
    /// Creates an order of the proxy itself, with the reason that goes with the cause.
    pub(crate) fn by_proxy(cause: OrderCause, code: u16, spread: Duration) -> Self {
        Self { cause, code, reason: cause.text().to_owned(), spread }
    }
}

impl OrderCause {
    /// Returns the reason for the Close that the client gets.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Operator => BY_ORDER,
            Self::BackendRemoved => "backend removed",
            Self::BackendUnhealthy => "backend unhealthy",
            Self::Rebalance => "rebalancing",
        }
    }

    fn reason(self) -> Reason {
        match self {
            Self::Operator => Reason::Admin,
            Self::BackendRemoved => Reason::BackendRemoved,
            Self::BackendUnhealthy => Reason::BackendUnhealthy,
            Self::Rebalance => Reason::Rebalance,
        }
    }
}

impl Reason {
    /// Names of all reasons.
    pub(crate) const NAMES: [&str; 18] = [
        "client_close",
        "backend_close",
        "client_eof",
        "backend_eof",
        "client_reset",
        "backend_reset",
        "idle",
        "lifetime",
        "pong_timeout",
        "blocked",
        "message_too_big",
        "rate",
        "protocol",
        "drain",
        "admin",
        "backend_removed",
        "backend_unhealthy",
        "rebalance",
    ];

    /// Returns the name for logs and metrics.
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
            Self::Blocked => "blocked",
            Self::MessageTooBig => "message_too_big",
            Self::Rate => "rate",
            Self::Protocol => "protocol",
            Self::Drain => "drain",
            Self::Admin => "admin",
            Self::BackendRemoved => "backend_removed",
            Self::BackendUnhealthy => "backend_unhealthy",
            Self::Rebalance => "rebalance",
        }
    }

    /// Returns whether an endpoint ended the tunnel, and not the proxy.
    pub(super) fn is_of_endpoints(self) -> bool {
        matches!(self, Self::Close(_) | Self::Eof(_) | Self::Reset(_))
    }

    /// Returns who ended the tunnel: `client`, `backend` or `proxy`.
    pub(crate) fn ended_by(self) -> &'static str {
        match self {
            Self::Close(side) | Self::Eof(side) | Self::Reset(side) => side.name(),
            _ => "proxy",
        }
    }
}
