//! From settings to a running proxy.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use futures_lite::future;
use smol::Timer;
use smol::channel::{Receiver, bounded};

use crate::listener;
use crate::section::Section;
use crate::settings::{Drain, Invalid};
use crate::worker::Workers;

/// A proxy that has its port and does not serve yet.
///
/// Clients can connect already; they are served as soon as [`run`](BoundProxy::run) is.
#[derive(Debug)]
pub struct BoundProxy {
    pub(crate) listener: TcpListener,
    pub(crate) local: SocketAddr,
    pub(crate) section: Section,
    pub(crate) workers: Workers,
    pub(crate) drain: Drain,
}

/// Why a proxy could not be started.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A setting cannot be used.
    Setting {
        /// Its key in a section, as in the README's table.
        key: &'static str,
        /// What is wrong with it, and what to write instead.
        problem: String,
    },
    /// The address cannot be listened on: taken, not of this machine, or not permitted.
    Bind {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The worker threads cannot be started.
    Workers {
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting { key, problem } => write!(f, "{key}: {problem}"),
            Self::Bind { address, source } => write!(f, "cannot listen on {address}: {source}"),
            Self::Workers { source } => write!(f, "cannot start the worker threads: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Setting { .. } => None,
            Self::Bind { source, .. } | Self::Workers { source } => Some(source),
        }
    }
}

impl From<Invalid> for Error {
    fn from(Invalid { key, problem, .. }: Invalid) -> Self {
        Self::Setting { key, problem }
    }
}

impl BoundProxy {
    /// The address that it listens on, with the port that was chosen.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Serves until `shutdown` completes, on whatever executor polls it. Then it stops accepting, after the
    /// [delay](crate::WsProxy::drain_delay_ms), and closes its tunnels, each at a time of its own within the
    /// [spread](crate::WsProxy::drain_spread_ms). It completes when the last one has ended, or after the
    /// [timeout](crate::WsProxy::drain_timeout_ms), at which those that are left are cut. Dropping the future cuts all of them.
    ///
    /// ```
    /// use ws_proxy::WsProxy;
    ///
    /// let bound = WsProxy::new(["127.0.0.1:9000"]).listen("127.0.0.1:0")?;
    /// println!("listening on {}", bound.local_addr());
    ///
    /// let (stop, stopped) = smol::channel::bounded::<()>(1);
    /// let serving = std::thread::spawn(|| {
    ///     smol::block_on(bound.run(async move {
    ///         let _ = stopped.recv().await;
    ///     }))
    /// });
    /// // … and when it is time to go:
    /// drop(stop);
    /// serving.join().unwrap();
    /// # Ok::<(), ws_proxy::Error>(())
    /// ```
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, local, section, workers, drain } = self;
        let section = Arc::new(section);
        let backends: Vec<&str> =
            section.settings.backends.iter().map(|backend| &*backend.authority).collect();
        log::info!(
            "event=listening section={} address={local} backends={}",
            section.name,
            backends.join(",")
        );

        // Nobody sends on these channels: each tells when the other side has dropped its last end of it.
        let (alive, ended) = bounded(1);
        let (listening, closed) = bounded(1);
        let (stop, stopped) = bounded(1);
        let group = workers.group();
        let accepting = Arc::clone(&section);
        group.start_task(move |handle| {
            listener::accept(handle, listener, accepting, alive, listening, stopped)
        });

        // Until it is time; then for the delay, in which clients still come; then until they find the port closed.
        future::or(shutdown, until_closed(&closed)).await;
        let mut deadline = Timer::after(drain.timeout);
        if !drain.delay.is_zero() {
            log::info!(
                "event=lame_duck section={} delay_ms={}",
                section.name,
                drain.delay.as_millis()
            );
            let delay = async {
                Timer::after(drain.delay).await;
            };
            future::or(delay, future::or(until_closed(&closed), until(&mut deadline))).await;
        }
        drop(stop);
        until_closed(&closed).await;

        // Every tunnel is closed in its turn, also those whose handshake is under way.
        log::info!(
            "event=draining section={} spread_ms={}",
            section.name,
            drain.spread.as_millis()
        );
        group.drain(drain.spread);
        let all_ended = async {
            until_closed(&ended).await;
            true
        };
        let too_late = async {
            until(&mut deadline).await;
            false
        };
        let in_time = future::or(all_ended, too_late).await;
        // What is left is cut, and waited for.
        drop(group);
        until_closed(&ended).await;
        log::info!("event=stopped section={} all_ended={in_time}", section.name);
    }
}

async fn until(deadline: &mut Timer) {
    deadline.await;
}

/// Waits until nobody can send any more.
async fn until_closed(receiver: &Receiver<()>) {
    while receiver.recv().await.is_ok() {}
}
