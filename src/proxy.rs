//! A proxy that has its port: it listens, serves, and drains.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::future;
use smol::Timer;

use crate::backend::resolve::Resolver;
use crate::events::{Event, OUTCOMES};
use crate::listener;
use crate::live::LiveSection;
use crate::metrics::Metrics;
use crate::net::listen::BoundListener;
use crate::net::name::BoundAddress;
use crate::section::Section;
use crate::settings::{Drain, Invalid, Settings};
use crate::shutdown::{AllDropped, Shutdown, guard};
use crate::stats::SectionStats;
use crate::tunnel::Reason;
use crate::upkeep;
use crate::worker::{WorkGroup, Workers};

/// A proxy that has its port and does not serve yet.
///
/// Clients can connect already; they are served as soon as [`run`](BoundProxy::run) is.
#[derive(Debug)]
pub struct BoundProxy {
    listener: BoundListener,
    live: Arc<LiveSection>,
    workers: Workers,
}

/// The error of a proxy that could not be started or reloaded.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A setting cannot be used.
    Setting {
        /// Its key in a section, as in the README's table.
        key: &'static str,
        /// The fault in it, and the value to write instead.
        problem: String,
    },
    /// The address cannot be listened on: taken, not of this machine, or not permitted.
    Bind {
        /// The address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// The worker threads cannot be started.
    Workers {
        /// The system's error.
        source: io::Error,
    },
    /// The proxy has stopped, so that it cannot be reloaded.
    Stopped,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting { key, problem } => write!(f, "{key}: {problem}"),
            Self::Bind { address, source } => write!(f, "cannot listen on {address}: {source}"),
            Self::Workers { source } => write!(f, "cannot start the worker threads: {source}"),
            Self::Stopped => f.write_str("the proxy has stopped: start another one"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Setting { .. } | Self::Stopped => None,
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
    /// Puts a socket that listens on `bind` and checked settings together.
    pub(crate) fn new(
        (listener, bind): (BoundListener, String),
        settings: (Settings, Drain),
        (workers, metrics): (Workers, Option<&Metrics>),
    ) -> Self {
        let local = listener.local.clone();
        let stats = metrics.map(|metrics| {
            let stats = SectionStats::new(&OUTCOMES, &Reason::NAMES, workers.count());
            Arc::new(metrics.complete(stats))
        });
        let live = Arc::new(LiveSection::new(bind, Section::new(settings, local, stats)));
        if let Some(metrics) = metrics {
            metrics.add(&live);
        }
        Self { listener, live, workers }
    }

    /// Returns the address that it listens on, with the port that was chosen; `0.0.0.0:0` if that
    /// is a [path](BoundProxy::local_path).
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        match self.live.local() {
            BoundAddress::Ip(address) => address,
            BoundAddress::Unix(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        }
    }

    /// Returns the path of the Unix socket that it listens on, if it is one.
    #[must_use]
    pub fn local_path(&self) -> Option<PathBuf> {
        match self.live.local() {
            BoundAddress::Ip(_) => None,
            BoundAddress::Unix(path) => Some(path),
        }
    }

    /// Returns its section, which lives as long as it serves.
    pub(crate) fn live(&self) -> &Arc<LiveSection> {
        &self.live
    }

    /// Returns the threads that it runs on.
    #[cfg(feature = "admin")]
    pub(crate) fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Serves until `shutdown` completes, on whatever executor polls it. Then it stops accepting,
    /// after the [delay](crate::WsProxy::drain_delay_ms), and closes its tunnels, each at a time
    /// of its own within the [spread](crate::WsProxy::drain_spread_ms). It completes when the last
    /// one has ended, or after the [timeout](crate::WsProxy::drain_timeout_ms), at which those
    /// that are left are cut. Dropping the future cuts all of them.
    ///
    /// `shutdown` may be any future; a [`Shutdown`] is one signal for several proxies.
    ///
    /// ```
    /// use ws_proxy::{Shutdown, WsProxy};
    ///
    /// let bound = WsProxy::new(["127.0.0.1:9000"]).listen("127.0.0.1:0")?;
    /// println!("listening on {}", bound.local_addr());
    ///
    /// let shutdown = Shutdown::new();
    /// let stop = shutdown.clone();
    /// let serving = std::thread::spawn(|| {
    ///     smol::block_on(bound.run(async move { stop.begun().await }))
    /// });
    /// // … and when it is time to go:
    /// shutdown.begin();
    /// serving.join().unwrap();
    /// # Ok::<(), ws_proxy::Error>(())
    /// ```
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let running = self.start();
        let live = Arc::clone(&running.live);
        let mut shutdown = pin!(future::or(shutdown, live.shutdown.begun()));

        // Serves until it is asked to stop or to retire, or cannot accept any more.
        let asked_to_stop = async {
            shutdown.as_mut().await;
            true
        };
        let alone = async {
            future::or(live.retirement.begun(), running.port_closed.wait()).await;
            false
        };
        let is_asked_to_stop = future::or(asked_to_stop, alone).await;
        if live.retirement.has_begun() {
            running.close_port().await;
            Event::Retired { section: &live.current() }.emit();
            // The last tunnel may end long before the shutdown.
            if !is_asked_to_stop && running.all_end_before(shutdown).await {
                return Event::Stopped { section: &live.current(), all_ended: true }.emit();
            }
        }
        live.life.is_draining.set(true);
        // A reload may have changed it until now.
        let Drain { delay, spread, timeout, .. } = live.current().drain;
        let deadline = Deadline::after(timeout);
        running.lame_duck(delay, &deadline).await;
        running.close_port().await;
        running.drain(spread, &deadline).await;
    }

    /// Starts the accept loop and the upkeep, each on a worker.
    fn start(self) -> Running {
        let Self { listener, live, workers } = self;
        let section = live.current();
        Event::Listening { section: &section }.emit();

        let group = workers.group(section.stats.clone());
        let (alive, ended) = guard();
        let (listening, port_closed) = guard();
        let stop = Shutdown::new();
        let (accepting, stopping) = (Arc::clone(&live), stop.clone());
        group.start_task(move |handle| async move {
            listener::accept(handle, listener, accepting, alive, stopping).await;
            drop(listening);
        });
        let kept_up = Arc::downgrade(&live);
        let resolver = Arc::clone(Resolver::of_process());
        group.start_task(move |handle| upkeep::run(handle, kept_up, resolver));
        Running { live, group, stop, port_closed, ended }
    }
}

/// A proxy that serves. Dropping it cuts its connections.
struct Running {
    live: Arc<LiveSection>,
    group: WorkGroup,
    /// Stops the accept loop.
    stop: Shutdown,
    /// Waits for the accept loop to have closed the listening socket.
    port_closed: AllDropped,
    /// Waits for the accept loop, the handshakes and the tunnels to have ended.
    ended: AllDropped,
}

impl Running {
    /// Goes on accepting for `delay`, while load balancers learn that this proxy is leaving.
    async fn lame_duck(&self, delay: Duration, deadline: &Deadline) {
        if delay.is_zero() {
            return;
        }
        Event::LameDuck { section: &self.live.current(), delay }.emit();
        let delayed = async {
            Timer::after(delay).await;
        };
        future::or(delayed, future::or(self.port_closed.wait(), deadline.passed())).await;
    }

    /// Stops accepting, and waits until new clients find the port closed.
    async fn close_port(&self) {
        self.stop.begin();
        self.port_closed.wait().await;
        self.live.life.closing.begin();
    }

    /// Waits for all connections to end, or for `shutdown`; returns whether they have ended.
    async fn all_end_before(&self, shutdown: impl Future<Output = ()>) -> bool {
        let ended = async {
            self.ended.wait().await;
            true
        };
        let shut_down = async {
            shutdown.await;
            false
        };
        future::or(ended, shut_down).await
    }

    /// Closes the tunnels, each at a time of its own within `spread`, waits for them, and cuts
    /// those that are left at the deadline.
    async fn drain(self, spread: Duration, deadline: &Deadline) {
        let Self { live, group, ended, .. } = self;
        let section = live.current();
        // This closes every tunnel, also those whose handshake is under way.
        Event::Draining { section: &section, spread }.emit();
        group.drain(spread);
        let in_time = async {
            ended.wait().await;
            true
        };
        let too_late = async {
            deadline.passed().await;
            false
        };
        let all_ended = future::or(in_time, too_late).await;
        // Cuts what is left. Its sockets are closed when this wait is over.
        drop(group);
        ended.wait().await;
        Event::Stopped { section: &section, all_ended }.emit();
    }
}

/// End of a drain. Once passed it stays so, for everyone who waits for it; `None` lies beyond all
/// times.
struct Deadline(Option<Instant>);

impl Deadline {
    fn after(time: Duration) -> Self {
        Self(Instant::now().checked_add(time))
    }

    /// Completes when the time has come, or at once if it has.
    async fn passed(&self) {
        self.0.map_or_else(Timer::never, Timer::at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_stays_passed() {
        let deadline = Deadline::after(Duration::from_millis(5));
        let start = Instant::now();
        // A second wait that did not end would hang here.
        smol::block_on(deadline.passed());
        smol::block_on(deadline.passed());
        assert!(start.elapsed() >= Duration::from_millis(5));
        let never = Deadline::after(Duration::MAX);
        assert!(smol::block_on(future::poll_once(never.passed())).is_none());
    }
}
