//! A small WebSocket reverse proxy, made to sit beside a WebSocket app.
//!
//! `ws-proxy` listens for HTTP/1.1, lets nothing pass but WebSocket upgrades (RFC 6455), brings each to one of its
//! backends in turn, verifies the backend's 101, and then carries every byte both ways until both sides are done.
//!
//! ```no_run
//! use ws_proxy::WsProxy;
//!
//! WsProxy::new(["chat-backend:9000", "chat-backend:9001"])
//!     .connect_timeout_ms(3_000)
//!     .bind("0.0.0.0:8080")
//!     .unwrap();
//! ```
//!
//! [`WsProxy::bind`] blocks the calling thread. To know the port, to stop again, or to run on an executor of your own,
//! use [`WsProxy::listen`] and [`BoundProxy::run`]. [`Config`] reads the same settings from TOML.
//!
//! # The life of a connection, and the files that it meets
//!
//! 1. `server` accepts it, within the section's limit, and starts a task for it on the `worker` whose turn it is;
//!    `connection` is that task's story, on the event loop of `net`.
//! 2. `head` reads bytes up to the blank line, under one deadline, while `handshake::scan` looks for the end.
//! 3. `handshake::http` parses the head, `handshake::upgrade` judges it, `handshake::origin` where it comes from; what does not pass becomes a
//!    `handshake::error_response`, and no backend hears of it.
//! 4. `backend::rotation` says whose turn it is, `backend::dial` connects. Meanwhile `early` keeps what the client
//!    sends, and notices if it goes away.
//! 5. `handshake::forward` writes the head that goes on; `head` reads the answer, `handshake::response` verifies it.
//! 6. Anything but a good 101 is passed on by `connection::pass_on`, with `handshake::body` to find its end.
//! 7. At the 101 the task ends, and the sockets become a `tunnel`, which the same worker gives its turns:
//!    `tunnel::half` carries one direction, and `tunnel::gate` follows its frames.
//! 8. `outcome` is what became of it, and the log's line.
//!
//! Around them: `config` and `settings` read and check what is asked for, `proxy` turns it into something that runs.

// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod backend;
mod builder;
mod config;
mod connection;
mod events;
mod handshake;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod listener;
mod net;
mod proxy;
mod section;
mod settings;
mod shutdown;
mod tunnel;
mod worker;

pub use builder::WsProxy;
pub use config::{Config, ConfigError, SectionConfig};
pub use handshake::forward::{Forwarded, HostHeader};
pub use proxy::{BoundProxy, Error};
pub use shutdown::Shutdown;
pub use tunnel::policy::RateAction;
pub use worker::Workers;
