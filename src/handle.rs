//! Steering a proxy while it serves.

use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::builder::WsProxy;
use crate::live::LiveSection;
use crate::net::listen::set_mode;
use crate::net::name::BoundAddress;
use crate::proxy::{BoundProxy, Error};

/// A handle to a proxy, by which it is changed and watched while it serves.
///
/// All clones steer the same proxy, and none keeps it running.
///
/// ```
/// use ws_proxy::{Shutdown, WsProxy};
///
/// let bound = WsProxy::new(["127.0.0.1:9000"]).listen("127.0.0.1:0")?;
/// let handle = bound.handle();
/// let serving = std::thread::spawn(|| smol::block_on(bound.run(std::future::pending())));
///
/// // Another backend for new clients; open tunnels stay as they are.
/// handle.reload(WsProxy::new(["127.0.0.1:9001"]).connect_timeout_ms(500))?;
/// println!("{} tunnels are open", handle.stats().tunnels);
///
/// handle.drain();
/// serving.join().unwrap();
/// # Ok::<(), ws_proxy::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ProxyHandle(Weak<LiveSection>);

/// The state of a proxy at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxyStats {
    /// Whether it accepts clients. Without that, it has yet to run, retires, drains or has stopped.
    pub is_accepting: bool,
    /// Whether its drain has begun.
    pub is_draining: bool,
    /// Connections of clients, from the accept to the end: handshakes and tunnels.
    pub connections: usize,
    /// Open tunnels, also those to backends that it has no more.
    pub tunnels: usize,
    /// Its backends in their order.
    pub backends: Vec<BackendStats>,
}

/// The state of a backend at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendStats {
    /// Address as it is configured.
    pub address: String,
    /// Open tunnels to it.
    pub tunnels: usize,
    /// Whether nothing is known against it: neither failures in a row nor a failed check.
    pub is_up: bool,
}

impl BoundProxy {
    /// Returns a handle to steer the proxy by, before and while it [runs](BoundProxy::run).
    #[must_use]
    pub fn handle(&self) -> ProxyHandle {
        ProxyHandle(Arc::downgrade(self.live()))
    }
}

impl ProxyHandle {
    /// Replaces all settings by those of another builder, for the clients that are accepted from
    /// now on and for the next drain. The listener stays and loses no client, tunnels keep the
    /// settings that they began with, backends that stay keep their turns and counts.
    ///
    /// The [workers](WsProxy::workers) and [metrics](WsProxy::metrics) of the other builder are not
    /// looked at. Buffers that were [limited](WsProxy::socket_buffer_bytes) cannot be left to the
    /// system again without a restart, which the log tells.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] with the first setting that cannot be used; [`Error::Bind`] if the file
    /// of a Unix socket cannot get another [mode](WsProxy::socket_mode); [`Error::Stopped`].
    /// Nothing is changed then.
    pub fn reload(&self, proxy: WsProxy) -> Result<(), Error> {
        let live = self.0.upgrade().ok_or(Error::Stopped)?;
        let settings = proxy.settings(&live.bind)?;
        let before = live.current();
        let (old, new) = (before.settings.socket_mode, settings.0.socket_mode);
        let mode = new.filter(|_| new != old);
        if let (BoundAddress::Unix(path), Some(mode)) = (&before.local, mode) {
            set_mode(path, mode)
                .map_err(|source| Error::Bind { address: before.local.to_string(), source })?;
        }
        if before.settings.socket_buffer.is_some() && settings.0.socket_buffer.is_none() {
            let key = "socket_buffer_bytes";
            log::warn!(section:% = before.name, key; "restart_needed");
        }
        live.reload(settings);
        Ok(())
    }

    /// Completes when the proxy accepts clients, or cannot; at once if it has stopped.
    pub async fn started(&self) {
        // Not the section, which must not be kept alive by those who wait.
        let start = self.0.upgrade().map(|live| live.start.clone());
        if let Some(start) = start {
            start.begun().await;
        }
    }

    /// Closes the port, and leaves the tunnels alone: [`BoundProxy::run`] completes when the last
    /// one has ended. A drain may follow.
    pub fn retire(&self) {
        if let Some(live) = self.0.upgrade() {
            live.retirement.begin();
        }
    }

    /// Begins the drain of this proxy, as the end of what was given to [`BoundProxy::run`] does.
    pub fn drain(&self) {
        if let Some(live) = self.0.upgrade() {
            live.shutdown.begin();
        }
    }

    /// Returns whether its last connection has ended after a shutdown, a drain or a retirement, or
    /// it was dropped.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.0.strong_count() == 0
    }

    /// Returns the state of the proxy; that of one that has stopped is the default, all zero.
    #[must_use]
    pub fn stats(&self) -> ProxyStats {
        let Some(live) = self.0.upgrade() else { return ProxyStats::default() };
        let (section, now) = (live.current(), Instant::now());
        let backends = section.pool.backends().map(|backend| BackendStats {
            address: backend.name().to_owned(),
            tunnels: backend.tunnels(),
            is_up: backend.health(now).state.is_well(),
        });
        ProxyStats {
            is_accepting: live.life.is_accepting.is_set(),
            is_draining: live.life.is_draining.is_set(),
            connections: section.connections.taken(),
            tunnels: section.pool.tunnels(),
            backends: backends.collect(),
        }
    }
}
