//! End-to-end tests: literal bytes and real WebSocket libraries over real sockets on 127.0.0.1,
//! port 0.
//!
//! Nothing here sleeps to let something happen: each step waits for the event that it needs, and
//! fails after [`support::PATIENCE`].

mod support;

mod admin;
mod backends;
mod balance;
mod closing;
mod commands;
mod documents;
mod event_loop;
mod frames;
mod handshake;
mod health;
mod keepalive;
mod libraries;
mod library;
mod logs;
mod metrics;
mod names;
mod plain;
mod process;
mod program;
mod queue;
mod rebalance;
mod relay;
mod reload;
mod resets;
mod smuggling;
mod stalled_log;
mod systemd;
mod unix;
