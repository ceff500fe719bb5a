//! Tunnels: after the backend has switched, both sockets leave their task for the tunnels of the
//! same event loop.
//!
//! [`tunnels`] gives each tunnel with news its turn; a [`tunnel`] is two sockets and two directions
//! ([`direction`]), which move bytes through memory ([`buffers`]) or through pipes ([`splice`]),
//! and hold those that are [`pending`]. Pure parts decide: [`filter`] follows the frames
//! ([`frames`], [`counters`], [`limits`], [`rate`]), takes out the [`pongs`] to the proxy's Pings,
//! and inserts its own frames ([`control`]); [`closing`] is the end of a tunnel ([`reason`] its
//! causes and names), [`keepalive`] its time, counted in [`ticks`]; [`policy`] is what the section
//! asks for. A [`group`] is what drains and ends together, an [`account`] the owner of one tunnel,
//! a [`selection`] chooses among them.

mod account;
mod buffers;
mod closing;
pub(crate) mod control;
mod counters;
mod direction;
mod end;
pub(crate) mod filter;
mod filtered;
mod flow;
pub(crate) mod frames;
mod group;
mod keepalive;
mod limits;
#[cfg(any(test, feature = "internals"))]
pub(crate) mod model;
mod pending;
pub(crate) mod policy;
mod pongs;
mod progress;
mod rate;
mod reason;
mod selection;
mod side;
mod splice;
mod tally;
mod ticks;
mod totals;
#[expect(clippy::module_inception, reason = "the tunnel among the parts of a tunnel")]
mod tunnel;
mod tunnels;
#[cfg(feature = "admin")]
mod view;

pub(crate) use self::account::Account;
pub(crate) use self::end::TunnelEnd;
pub(crate) use self::group::Group;
pub(crate) use self::reason::{CloseOrder, OrderCause, Reason};
pub(crate) use self::selection::{Identity, TunnelFilter};
pub(crate) use self::side::{PerSide, Side};
pub(crate) use self::tunnel::NewTunnel;
pub(crate) use self::tunnels::{Ordered, Tunnels};
#[cfg(feature = "admin")]
pub(crate) use self::view::{Description, TunnelView};
