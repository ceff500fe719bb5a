//! The builder: settings of one proxy, until it listens.

use futures_lite::future;

use crate::handshake::forward::{Forwarded, HostHeader};
use crate::net;
use crate::proxy::{BoundProxy, Error};
use crate::settings::{Drain, Invalid, RawDrain, RawSection, Settings};
use crate::tunnel::policy::RateAction;
use crate::worker::Workers;

/// A WebSocket reverse proxy on one port, while its settings may still be changed.
///
/// Nothing is checked or opened before [`bind`](WsProxy::bind) or [`listen`](WsProxy::listen).
///
/// ```no_run
/// use ws_proxy::WsProxy;
///
/// // Blocks this thread, and serves.
/// WsProxy::new(["chat-backend:9000", "chat-backend:9001"])
///     .connect_timeout_ms(3_000)
///     .bind("0.0.0.0:8080")
///     .unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct WsProxy {
    raw: RawSection,
    drain: RawDrain,
    workers: Option<Workers>,
}

impl From<RawSection> for WsProxy {
    fn from(raw: RawSection) -> Self {
        Self { raw, drain: RawDrain::default(), workers: None }
    }
}

impl WsProxy {
    /// A proxy in front of these backends, each `host`, `host:port` or `ws://host:port`, IPv6 addresses in
    /// brackets; a missing port is 80. Handshakes go to them in turn.
    ///
    /// Names are looked up anew at each connect.
    pub fn new<I>(backends: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        let backends = backends.into_iter().map(Into::into).collect();
        Self::from(RawSection { backends: Some(backends), ..RawSection::default() })
    }

    /// What the log calls this proxy. Default: the address that it listens on.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.raw.name = Some(name.into());
        self
    }

    /// How long, in milliseconds, each attempt to connect to a backend may take, and each look-up of its name.
    /// Default: 5,000. Zero is an error.
    #[must_use]
    pub fn connect_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.connect_timeout_ms = Some(number(ms));
        self
    }

    /// How long, in milliseconds, the client may take to send its whole upgrade request. Default: 30,000. Zero is
    /// an error.
    ///
    /// It is over with the request: an established tunnel may be silent for as long as it likes.
    #[must_use]
    pub fn read_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.read_timeout_ms = Some(number(ms));
        self
    }

    /// How long, in milliseconds, a backend may take to answer the handshake. Default: what
    /// [`read_timeout_ms`](WsProxy::read_timeout_ms) is. Zero is an error.
    #[must_use]
    pub fn response_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.response_timeout_ms = Some(number(ms));
        self
    }

    /// Whose name the backend finds in `Host`. Default: [`HostHeader::Backend`].
    #[must_use]
    pub fn host(mut self, host: HostHeader) -> Self {
        self.raw.host = Some(host);
        self
    }

    /// What becomes of the `X-Forwarded` fields. Default: [`Forwarded::Append`].
    #[must_use]
    pub fn forwarded(mut self, forwarded: Forwarded) -> Self {
        self.raw.forwarded = Some(forwarded);
        self
    }

    /// The origins that may open a WebSocket (RFC 6455, 10.2): `scheme://host[:port]`, `scheme://*.domain[:port]`
    /// for all hosts below a domain, `null`, and `none` for clients that send no origin. All others get 403.
    /// Default: everyone may. An empty list is an error.
    #[must_use]
    pub fn origins<I>(mut self, origins: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.raw.origins = Some(origins.into_iter().map(Into::into).collect());
        self
    }

    /// How many connections there may be at once, handshakes included; the one too many gets 503 with
    /// `Retry-After`. Default: 0, no limit.
    #[must_use]
    pub fn max_connections(mut self, connections: u64) -> Self {
        self.raw.max_connections = Some(number(connections));
        self
    }

    /// How many bytes the kernel may keep for each socket of a tunnel in each direction, besides what it needs to manage
    /// them (socket(7), `SO_RCVBUF` and `SO_SNDBUF`). A tunnel then carries no more than this in each round trip.
    /// Default: 0, as the system has it: mostly up to 6 MB received and 4 MB to be sent. Less than 4,096 is an error; more
    /// than `net.core.rmem_max` and `wmem_max` has no effect, which the log says.
    #[must_use]
    pub fn socket_buffer_bytes(mut self, bytes: u64) -> Self {
        self.raw.socket_buffer_bytes = Some(number(bytes));
        self
    }

    /// After how many milliseconds without a byte from a side it gets a Ping (RFC 6455, 5.5.2). Default: 0, none.
    #[must_use]
    pub fn ping_interval_ms(mut self, ms: u64) -> Self {
        self.raw.ping_interval_ms = Some(number(ms));
        self
    }

    /// How long, in milliseconds, a side may stay silent after a Ping before it is taken for dead and the tunnel is
    /// ended. Default, and 0: what [`ping_interval_ms`](WsProxy::ping_interval_ms) is.
    #[must_use]
    pub fn pong_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.pong_timeout_ms = Some(number(ms));
        self
    }

    /// After how many milliseconds without a data frame in either direction a tunnel is closed with 1001; pings and
    /// pongs do not count. Default: 0, never.
    #[must_use]
    pub fn idle_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.idle_timeout_ms = Some(number(ms));
        self
    }

    /// After how many milliseconds, a tenth more or less, a tunnel is closed. Default: 0, never.
    #[must_use]
    pub fn max_lifetime_ms(mut self, ms: u64) -> Self {
        self.raw.max_lifetime_ms = Some(number(ms));
        self
    }

    /// The close code at the end of the [lifetime](WsProxy::max_lifetime_ms). Default: 1001. A code that no endpoint
    /// may send is an error.
    #[must_use]
    pub fn lifetime_close_code(mut self, code: u16) -> Self {
        self.raw.lifetime_close_code = Some(code.into());
        self
    }

    /// How many bytes of payload a message may have, all its fragments together; the sender of a larger one gets
    /// 1009 before it passes. Default: 0, no limit.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: u64) -> Self {
        self.raw.max_message_bytes = Some(number(bytes));
        self
    }

    /// How many bytes of payload a frame may have; the sender of a larger one gets 1009 before it passes. Default: 0,
    /// no limit.
    #[must_use]
    pub fn max_frame_bytes(mut self, bytes: u64) -> Self {
        self.raw.max_frame_bytes = Some(number(bytes));
        self
    }

    /// How many messages a client may send within a second. Default: 0, no limit.
    #[must_use]
    pub fn max_messages_per_second(mut self, messages: u64) -> Self {
        self.raw.max_messages_per_second = Some(number(messages));
        self
    }

    /// What becomes of a client that sends [more](WsProxy::max_messages_per_second). Default: [`RateAction::Pause`].
    #[must_use]
    pub fn rate_action(mut self, action: RateAction) -> Self {
        self.raw.rate_action = Some(action);
        self
    }

    /// Whether frames that are against RFC 6455 end the tunnel with 1002, instead of being left to the endpoints.
    /// Default: no.
    #[must_use]
    pub fn strict_frames(mut self, strict: bool) -> Self {
        self.raw.strict_frames = Some(strict);
        self
    }

    /// Sets the close code for a client whose backend vanished without a Close: its connection ended or broke.
    /// Default: 0, the bare end is relayed. 1014 (bad gateway), 1011 and 1012 are the usual choices; several client
    /// libraries show a 1014 as a protocol error. A code that no endpoint may send is an error.
    #[must_use]
    pub fn backend_lost_code(mut self, code: u16) -> Self {
        self.raw.backend_lost_code = Some(code.into());
        self
    }

    /// Sets the close code for a backend whose client vanished without a Close. Default: 0, the bare end is relayed:
    /// frameworks treat it as 1006, and a Close 1001 as a polite leave. A code that no endpoint may send is an error.
    #[must_use]
    pub fn client_lost_code(mut self, code: u16) -> Self {
        self.raw.client_lost_code = Some(code.into());
        self
    }

    /// How long, in milliseconds, it still accepts after a shutdown was asked for. Default: 0.
    #[must_use]
    pub fn drain_delay_ms(mut self, ms: u64) -> Self {
        self.drain.delay_ms = Some(number(ms));
        self
    }

    /// Over how many milliseconds the tunnels are then closed, each at a time of its own. Default: 5,000; 0: all at
    /// once. It is shortened to what the [timeout](WsProxy::drain_timeout_ms) leaves.
    #[must_use]
    pub fn drain_spread_ms(mut self, ms: u64) -> Self {
        self.drain.spread_ms = Some(number(ms));
        self
    }

    /// After how many milliseconds, all in all, the tunnels that are left are cut. Default: 8,000. Zero is an error.
    #[must_use]
    pub fn drain_timeout_ms(mut self, ms: u64) -> Self {
        self.drain.timeout_ms = Some(number(ms));
        self
    }

    /// The close code that clients get then. Default: 1001; 1012 (service restart) is the usual other choice. A code
    /// that no endpoint may send is an error.
    #[must_use]
    pub fn drain_close_code(mut self, code: u16) -> Self {
        self.drain.close_code = Some(code.into());
        self
    }

    /// How long, in milliseconds, a tunnel may take to end after it has been closed, by whomever. Default: 2,000; 0:
    /// a moment.
    #[must_use]
    pub fn close_grace_ms(mut self, ms: u64) -> Self {
        self.drain.close_grace_ms = Some(number(ms));
        self
    }

    /// All of `[drain]` at once.
    pub(crate) fn with_drain(mut self, drain: RawDrain) -> Self {
        self.drain = drain;
        self
    }

    /// The worker threads that carry the tunnels, to have several proxies share them. Default: threads of its own,
    /// one per CPU.
    #[must_use]
    pub fn workers(mut self, workers: &Workers) -> Self {
        self.workers = Some(workers.clone());
        self
    }

    /// Listens on `host:port` and serves for ever, on the calling thread. Port 0 takes any that is free.
    ///
    /// # Errors
    ///
    /// See [`Error`]: a setting that cannot be used, a backend that is no address, a port that is taken. There is no
    /// other way back than an error.
    pub fn bind(self, address: &str) -> Result<(), Error> {
        let bound = self.listen(address)?;
        smol::block_on(bound.run(future::pending()));
        Ok(())
    }

    /// Listens on `host:port` without serving, for callers that want to know the port, have an executor of their
    /// own, or want to stop it again. Port 0 takes any that is free.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn listen(self, address: &str) -> Result<BoundProxy, Error> {
        let (settings, drain) = self.settings(address)?;
        let failed = |source| Error::Bind { address: address.to_owned(), source };
        let listener =
            net::listen::listen(&settings.bind, settings.socket_buffer).map_err(failed)?;
        let workers = match self.workers {
            Some(workers) => workers,
            None => Workers::start(0).map_err(|source| Error::Workers { source })?,
        };
        BoundProxy::new(listener, settings, drain, workers).map_err(failed)
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

    /// The settings of the section, if they can all be used.
    pub(crate) fn settings(&self, address: &str) -> Result<(Settings, Drain), Invalid> {
        let drain = self.drain.check()?;
        let raw = RawSection { bind: Some(address.to_owned()), ..self.raw.clone() };
        Ok((raw.check(&drain)?, drain))
    }
}

/// The builder's numbers as the checks take them; what does not fit is far out of every range that makes sense.
fn number(given: u64) -> i64 {
    i64::try_from(given).unwrap_or(i64::MAX)
}
