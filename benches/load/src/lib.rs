//! What `benches/compare.sh` measures proxies with.
//!
//! Two programs stand on it, one thread each, so that each can be pinned to a CPU of its own:
//!
//! - `load` is the clients AND the backend: everything that is not the proxy.
//! - `bare` is the floor: a relay that knows nothing of HTTP.
//!
//! In the order in which a message meets them:
//!
//! - [`wire`]    the heads and frames that are sent, made once
//! - [`engine`]  the sockets of both sides on one epoll
//! - `plain`     the same for plain HTTP, a connection to the backend for each exchange
//! - [`modes`]   what is done with them: busy, idle, bulk, handshakes, many, plain
//! - [`gate`]    how the harness learns when the measured stretch begins and ends
//! - [`system`]  limits and epoll, shared with `bare`

#![warn(missing_docs)]

pub mod engine;
pub mod gate;
pub mod modes;
mod plain;
pub mod system;
pub mod wire;

/// An error that ends the program with its text.
pub type Failure = Box<dyn std::error::Error>;

/// Puts what was being done before an error.
pub(crate) fn while_doing<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> Failure {
    move |error| format!("{what}: {error}").into()
}
