//! The builder: settings of one proxy, until it listens. [`backends`] has those of its backends,
//! [`tunnels`] those of its tunnels, [`plain`] those of requests that are no upgrades.

mod backends;
mod plain;
mod tunnels;

use std::net::TcpListener;

use futures_lite::future;

use crate::handshake::forward::{Forwarded, HostHeader};
use crate::metrics::Metrics;
use crate::net;
use crate::net::listen::BoundListener;
use crate::proxy::{BoundProxy, Error};
use crate::settings::{BackendConfig, Drain, Invalid, RawDrain, RawSection, Settings};
use crate::worker::Workers;

/// A WebSocket reverse proxy on one port, while its settings may still be changed.
///
/// Nothing is checked or opened before [`bind`](WsProxy::bind) or [`listen`](WsProxy::listen).
///
/// ```no_run
/// # use ws_proxy::WsProxy;
/// // Blocks this thread, and serves.
/// let proxy = WsProxy::new(["chat-backend:9000", "chat-backend:9001"]).connect_timeout_ms(3_000);
/// proxy.bind("0.0.0.0:8080").unwrap();
/// ```
#[derive(Clone, Debug)]
#[must_use = "a proxy does nothing before it listens"]
pub struct WsProxy {
    raw: RawSection,
    drain: RawDrain,
    workers: Option<Workers>,
    metrics: Option<Metrics>,
}

impl From<RawSection> for WsProxy {
    fn from(raw: RawSection) -> Self {
        Self { raw, drain: RawDrain::default(), workers: None, metrics: None }
    }
}

impl WsProxy {
    /// Creates a proxy before these backends, each `host`, `host:port` or `ws://host:port`, IPv6
    /// addresses in brackets; a missing port is 80; or `unix:/path`, the absolute path of a Unix
    /// socket. Handshakes go to them in turn.
    ///
    /// Names are looked up again and again, see
    /// [`resolve_interval_ms`](WsProxy::resolve_interval_ms).
    pub fn new<I>(backends: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<BackendConfig>,
    {
        let backends = backends.into_iter().map(Into::into).collect();
        Self::from(RawSection { backends: Some(backends), ..RawSection::default() })
    }

    /// Sets the name of this proxy in the log. Default: the address that it listens on.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.raw.name = Some(name.into());
        self
    }

    /// Sets the time for each attempt to connect to a backend, and for each look-up of its name, in
    /// milliseconds. Default: 5,000. Zero is an error.
    pub fn connect_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.connect_timeout_ms = Some(number(ms));
        self
    }

    /// Sets the time for a client to send its whole upgrade request, in milliseconds. Default:
    /// 30,000. Zero is an error.
    ///
    /// It ends with the request: an established tunnel may be silent for any time.
    pub fn read_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.read_timeout_ms = Some(number(ms));
        self
    }

    /// Sets the time for a backend to answer the handshake, in milliseconds. Default: the value of
    /// [`read_timeout_ms`](WsProxy::read_timeout_ms). Zero is an error.
    pub fn response_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.response_timeout_ms = Some(number(ms));
        self
    }

    /// Sets the `Host` field that the backend gets. Default: [`HostHeader::Backend`].
    pub fn host(mut self, host: HostHeader) -> Self {
        self.raw.host = Some(host);
        self
    }

    /// Sets the treatment of the `X-Forwarded` fields. Default: [`Forwarded::Append`].
    pub fn forwarded(mut self, forwarded: Forwarded) -> Self {
        self.raw.forwarded = Some(forwarded);
        self
    }

    /// Sets the origins that may open a WebSocket (RFC 6455, 10.2): `scheme://host[:port]`,
    /// `scheme://*.domain[:port]` for all hosts below a domain, `null`, and `none` for clients that
    /// send no origin. All others get 403. Default: every client may. An empty list is an error.
    pub fn origins<I>(mut self, origins: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.raw.origins = Some(origins.into_iter().map(Into::into).collect());
        self
    }

    /// Refuses handshakes that deviate from RFC 6455 or RFC 9112 as some programs in use do, and in
    /// which nothing can be smuggled: a `Sec-WebSocket-Key` of another length, a `Host` with a bare
    /// IPv6 address where it is rewritten, characters beyond ASCII in the target (400); a backend's
    /// 101 with a subprotocol or an extension that was not offered, or with lines that end in LF
    /// (502). Default: false, they pass, and the log warns of a backend's choice once a minute.
    pub fn strict_handshake(mut self, strict: bool) -> Self {
        self.raw.strict_handshake = Some(strict);
        self
    }

    /// Limits the request head, its blank line included, in bytes; a longer one gets 431. Default:
    /// 8,192. Less than 256 or more than 1,048,576 is an error.
    pub fn max_head_bytes(mut self, bytes: u64) -> Self {
        self.raw.max_head_bytes = Some(number(bytes));
        self
    }

    /// Limits the connections at the same time, handshakes included; one too many gets 503 with
    /// `Retry-After`. Default: 0, no limit.
    pub fn max_connections(mut self, connections: u64) -> Self {
        self.raw.max_connections = Some(number(connections));
        self
    }

    /// Limits the kernel's buffers of each socket of a tunnel, in bytes for each direction
    /// (socket(7), `SO_RCVBUF` and `SO_SNDBUF`). A tunnel then relays no more than this in each
    /// round trip. Default: 0, left to the system: mostly up to 6 MB received and 4 MB to be sent.
    /// Less than 4,096 is an error; more than `net.core.rmem_max` and `wmem_max` has no effect,
    /// which the log tells.
    pub fn socket_buffer_bytes(mut self, bytes: u64) -> Self {
        self.raw.socket_buffer_bytes = Some(number(bytes));
        self
    }

    /// Sets the permissions of the socket's file where it listens on `unix:/path`, as text in octal
    /// digits: `"0660"`. Default: as the process's umask has it. An error with any other address.
    pub fn socket_mode(mut self, mode: impl Into<String>) -> Self {
        self.raw.socket_mode = Some(mode.into());
        self
    }

    /// Has the log tell of each tunnel when it opens, and not only when it ends. Default: false.
    pub fn tunnel_start(mut self, logs: bool) -> Self {
        self.raw.tunnel_start = Some(logs);
        self
    }

    /// Sets all of `[drain]`.
    #[cfg(feature = "config")]
    pub(crate) fn with_drain(mut self, drain: RawDrain) -> Self {
        self.drain = drain;
        self
    }

    /// Sets the worker threads that relay the tunnels, so that several proxies can share them.
    /// Default: threads of its own, one per CPU.
    pub fn workers(mut self, workers: &Workers) -> Self {
        self.workers = Some(workers.clone());
        self
    }

    /// Has the proxy counted for these metrics, which several proxies can share. Default: nothing
    /// is counted.
    pub fn metrics(mut self, metrics: &Metrics) -> Self {
        self.metrics = Some(metrics.clone());
        self
    }

    /// Listens on `host:port` or `unix:/path` and serves, on the calling thread. Port 0 takes any
    /// that is free.
    ///
    /// Despite its name, it does not come back: it is `listen` and `run` in one call.
    ///
    /// # Errors
    ///
    /// See [`Error`]: a setting that cannot be used, a backend that is no address, a port in use.
    /// Returns only on error.
    #[doc(alias("serve", "run", "start", "listen_and_serve"))]
    pub fn bind(self, address: &str) -> Result<(), Error> {
        let bound = self.listen(address)?;
        smol::block_on(bound.run(future::pending()));
        Ok(())
    }

    /// Listens on `host:port` or `unix:/path` without serving, for callers that want to know the
    /// port, have an executor of their own, or want to stop it again. Port 0 takes any that is
    /// free. The file of a Unix socket is removed when the port is closed; one that nobody listens
    /// on any more is replaced.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn listen(self, address: &str) -> Result<BoundProxy, Error> {
        let settings = self.settings(address)?;
        let failed = |source| Error::Bind { address: address.to_owned(), source };
        let Settings { bind, socket_buffer, socket_mode, .. } = &settings.0;
        let listener = net::listen::listen(bind, *socket_buffer, *socket_mode).map_err(failed)?;
        let workers = self.own_workers()?;
        let listener = (listener, address.to_owned());
        Ok(BoundProxy::new(listener, settings, (workers, self.metrics.as_ref())))
    }

    /// Takes a socket that listens already, instead of opening one: for socket activation, for
    /// sockets inherited from a parent, and for tests.
    ///
    /// The socket is made non-blocking and gets the options that [`listen`](WsProxy::listen) sets,
    /// which accepted sockets inherit; its address and its backlog stay as they are. With a
    /// [buffer limit](WsProxy::socket_buffer_bytes), clients that have connected before keep the
    /// buffers that they have.
    ///
    /// ```
    /// use std::net::TcpListener;
    /// use ws_proxy::WsProxy;
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    /// let bound = WsProxy::new(["127.0.0.1:9000"]).from_listener(listener)?;
    /// println!("listening on {}", bound.local_addr());
    /// # Ok::<(), ws_proxy::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Bind`] if the socket is not a listening TCP socket; otherwise those of
    /// [`listen`](WsProxy::listen).
    pub fn from_listener(self, listener: TcpListener) -> Result<BoundProxy, Error> {
        let local = listener.local_addr().map_err(|source| Error::Bind {
            address: "the socket that was passed".to_owned(),
            source,
        })?;
        let settings = self.settings(&local.to_string())?;
        let failed = |source| Error::Bind { address: local.to_string(), source };
        net::listen::adopt(&listener, settings.0.socket_buffer).map_err(failed)?;
        let workers = self.own_workers()?;
        let listener = (BoundListener::tcp(listener).map_err(failed)?, local.to_string());
        Ok(BoundProxy::new(listener, settings, (workers, self.metrics.as_ref())))
    }

    /// Checks everything that can be checked without opening anything.
    ///
    /// # Errors
    ///
    /// The first [`Error::Setting`] that [`listen`](WsProxy::listen) would give for this address.
    pub fn check(&self, address: &str) -> Result<(), Error> {
        self.settings(address)?;
        Ok(())
    }

    /// Returns the checked settings.
    pub(crate) fn settings(&self, address: &str) -> Result<(Settings, Drain), Invalid> {
        let drain = self.drain.check()?;
        let raw = RawSection { bind: Some(address.to_owned()), ..self.raw.clone() };
        Ok((raw.check(&drain)?, drain))
    }

    /// Returns the tables of the settings with every default.
    #[cfg(feature = "config")]
    pub(crate) fn effective(&self, address: &str) -> Result<(RawSection, RawDrain), Invalid> {
        let (settings, drain) = self.settings(address)?;
        let given = RawSection { bind: Some(address.to_owned()), ..self.raw.clone() };
        Ok((settings.to_raw(&given), drain.to_raw()))
    }

    /// Returns the workers that were set, or starts some.
    fn own_workers(&self) -> Result<Workers, Error> {
        match &self.workers {
            Some(workers) => Ok(workers.clone()),
            None => Workers::start(0).map_err(|source| Error::Workers { source }),
        }
    }
}

/// Returns a number of the builder as the checks take it. One that does not fit is far out of every
/// range.
fn number(given: u64) -> i64 {
    i64::try_from(given).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(feature = "config")]
    fn every_key_has_its_method() {
        use crate::settings::{RawDrain, RawSection};

        const SOURCES: [&str; 4] = [
            include_str!("mod.rs"),
            include_str!("backends.rs"),
            include_str!("plain.rs"),
            include_str!("tunnels.rs"),
        ];
        // `bind` ends the building, `backends` begins it.
        let of_section = RawSection::KEYS.iter().filter(|&&key| key != "backends");
        let of_drain = RawDrain::KEYS.iter().map(|&key| match key {
            "close_grace_ms" => key.to_owned(),
            key => format!("drain_{key}"),
        });
        let methods: Vec<String> = of_section.map(|&key| key.to_owned()).chain(of_drain).collect();
        assert!(methods.len() > 20);
        for method in methods {
            let is_there = ["(", "<"].map(|next| format!("    pub fn {method}{next}"));
            let is_in = |source: &&str| is_there.iter().any(|start| source.contains(start));
            assert!(SOURCES.iter().any(is_in), "{method} is no method");
        }
    }
}
