//! A small WebSocket reverse proxy, made to sit beside a WebSocket app.
//!
//! `ws-proxy` listens for HTTP/1.1, accepts WebSocket upgrades (RFC 6455), brings each to one of
//! its backends, verifies the backend's own 101, and then relays every byte both ways until both
//! sides are done. Other requests are refused, or forwarded as well ([`WsProxy::plain_http`]).
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
//! [`WsProxy::bind`] blocks the calling thread. To know the port, to stop again, or to run on an
//! executor of your own, use [`WsProxy::listen`] or [`WsProxy::from_listener`], then
//! [`BoundProxy::run`]; a [`Shutdown`] stops any number of proxies together.
//!
//! # Features
//!
//! All are on by default; an embedder needs none of them.
//!
//! - `admin`: `Admin`, a listener by which proxies are watched and drained.
//! - `config`: `Config`, which reads the settings of one or more proxies from TOML.
//! - `metrics`: [`Metrics`] as text, in Prometheus' formats. `admin` implies it.
//! - `cli`: the program `ws-proxy`. It implies the others.
//!
//! # Log
//!
//! Each event is one record of the [`log`] crate with a target in `ws_proxy`. Its message is the
//! event's name, such as `tunnel_end`; everything else is in its key-values (`log`'s feature
//! `kv`), such as `section`, `id`, `client`, `backend`, `reason`. A logger that shows only
//! messages shows only names. Text in a value is as it came, and may hold quotes and line breaks:
//! the logger must escape it, as the program's does.
//!
//! # The life of a connection
//!
//! 1. `listener` accepts it, within the section's limit, and starts a task on the `worker` with
//!    the fewest connections. `connection` is that task's story, on the event loop of `net`.
//! 2. `head` reads bytes up to the blank line, under one deadline, while
//!    `handshake::scan` looks for the end.
//! 3. `handshake::http` parses the head, `handshake::upgrade` and `handshake::origin` judge it. A
//!    request that may not pass gets a `handshake::error_response`; no backend hears of it.
//!    Where other requests are forwarded, `connection::plain` has answered them before.
//! 4. `backend::pool` picks a backend, `backend::dial` connects to it. Meanwhile the client is
//!    not read, but an end of its connection ends the attempt.
//! 5. `handshake::forward` writes the head for the backend; `connection::exchange` brings it there
//!    and gets the `answer`, `handshake::response` verifies it.
//! 6. An answer that is no 101 is forwarded by `connection::response`, with `handshake::body` to
//!    find its end.
//! 7. At the 101 the task ends, and the sockets become a tunnel of the same worker:
//!    `tunnel::tunnels` gives it its turns, `tunnel::direction` relays one direction of it,
//!    `tunnel::filter` follows the frames, `tunnel::closing` and `tunnel::keepalive` decide on its
//!    end and its pings.
//! 8. `events` tells how it ended.
//!
//! Around them, `config` and `settings` read and check what is asked for, `builder` collects it,
//! and `proxy` runs it. `admin` answers those who watch and steer it, on a thread of its own.

#![forbid(unsafe_code)]
// On docs.rs each item tells the feature that it needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "admin")]
mod admin;
mod answer;
mod backend;
mod builder;
#[cfg(feature = "config")]
mod config;
mod connection;
mod digits;
#[cfg(feature = "admin")]
mod endings;
mod events;
mod handle;
mod handshake;
mod head;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod listener;
mod live;
mod lock;
mod metrics;
mod net;
mod proxy;
mod section;
mod settings;
mod shutdown;
mod stats;
mod tunnel;
mod upkeep;
mod worker;

#[cfg(feature = "admin")]
pub use admin::{Admin, AdminServer};
pub use backend::balance::Balance;
pub use builder::WsProxy;
#[cfg(feature = "config")]
pub use config::{Config, ConfigError, SectionConfig};
pub use handle::{BackendStats, ProxyHandle, ProxyStats};
pub use handshake::forward::{Forwarded, HostHeader};
pub use metrics::Metrics;
#[cfg(feature = "metrics")]
pub use metrics::MetricsFormat;
pub use proxy::{BoundProxy, Error};
#[cfg(feature = "admin")]
pub use settings::AdminConfig;
#[cfg(feature = "config")]
pub use settings::LogFormat;
pub use settings::{
    BackendConfig, CheckKind, HealthCheck, OnRemoved, OnUnhealthy, PlainHttp, Resolve,
};
pub use shutdown::Shutdown;
pub use tunnel::policy::RateAction;
pub use worker::Workers;
