//! The admin listener: a port by which proxies are watched and steered, apart from all clients.
//!
//! [`Admin`] listens, an [`AdminServer`] answers on a thread of its own, so that no tunnel waits
//! for it. [`server`] speaks HTTP, with each [`request`] and [`reply`] as a value; [`access`]
//! decides who may do what; [`routes`] is the table of what there is, of which [`site`] tells.

mod access;
mod call;
mod configuration;
mod page;
mod places;
mod reload;
mod reply;
mod request;
mod routes;
mod sections;
mod server;
mod site;
mod status;
mod tunnels;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_lite::future;
use smol::Timer;

use self::access::Access;
use self::configuration::Configuration;
use self::routes::Router;
use self::server::Limits;
use self::site::Site;
use crate::metrics::Metrics;
use crate::net;
use crate::net::listen::BoundListener;
use crate::net::name::BoundAddress;
use crate::proxy::{BoundProxy, Error};
use crate::section::Permits;
use crate::settings::{AdminConfig, AdminSettings};
use crate::shutdown::{AllDropped, Shutdown, guard};
use crate::worker::{WorkGroup, Workers};

/// Time for the last responses after the sections have stopped.
const LAST_RESPONSES: Duration = Duration::from_secs(1);

/// An admin listener that has its port and does not answer yet.
///
/// ```
/// use ws_proxy::{Admin, AdminConfig, Shutdown, WsProxy};
///
/// let admin = Admin::bind(&AdminConfig::new("127.0.0.1:0"))?;
/// println!("GET http://{}/metrics", admin.local_addr());
/// let proxy = WsProxy::new(["127.0.0.1:9000"]).metrics(admin.metrics());
/// let bound = proxy.listen("127.0.0.1:0")?;
/// let shutdown = Shutdown::new();
/// let server = admin.start([&bound], &shutdown)?;
///
/// # shutdown.begin();
/// smol::block_on(async {
///     // Until the shutdown begins, be it by POST /drain:
///     bound.run(shutdown.begun()).await;
///     server.finish().await;
/// });
/// # Ok::<(), ws_proxy::Error>(())
/// ```
#[derive(Debug)]
pub struct Admin {
    listener: BoundListener,
    local: SocketAddr,
    settings: AdminSettings,
    metrics: Metrics,
    configuration: Configuration,
}

/// An admin listener that answers, on a thread of its own. Dropping it ends it at once.
pub struct AdminServer {
    local: SocketAddr,
    router: Arc<Router>,
    /// Begins when all sections have stopped.
    stopped: Shutdown,
    /// Waits for the responses that are under way.
    answered: AllDropped,
    /// Held for its drop, which ends all connections.
    _group: WorkGroup,
}

impl Admin {
    /// Checks the settings, reads the token, and listens.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] with the first setting that cannot be used, [`Error::Bind`] if the
    /// address cannot be listened on.
    pub fn bind(config: &AdminConfig) -> Result<Self, Error> {
        let settings = config.check()?;
        let failed = |source| Error::Bind { address: settings.bind.to_string(), source };
        let listener = net::listen::listen(&settings.bind, None, None).map_err(failed)?;
        let BoundAddress::Ip(local) = listener.local else {
            return Err(failed(std::io::ErrorKind::Unsupported.into()));
        };
        let (metrics, configuration) = (Metrics::with_endings(), Configuration::default());
        Ok(Self { listener, local, settings, metrics, configuration })
    }

    /// Returns the address that it listens on, with the port that was chosen.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Returns the metrics that `GET /metrics` tells: those of the proxies that are
    /// [given](crate::WsProxy::metrics) them before they listen, and of the process.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Sets the text that `GET /config` answers. Default: none, and 404.
    pub fn set_config(&self, toml: impl Into<String>) {
        self.configuration.set_text(toml.into());
    }

    /// Has `POST /reload` call this, and answer 200 with the lines that come of it, or 422 with the
    /// error. The future runs on the listener's thread, which answers nobody else while it is
    /// polled: the work belongs to another one. Default: 422.
    pub fn on_reload<F, R>(&mut self, reload: F)
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Vec<String>, String>> + Send + 'static,
    {
        self.configuration.set_reload(Box::new(move || Box::pin(reload())));
    }

    /// Answers from now on for these proxies, which are yet to [run](BoundProxy::run) with this
    /// `shutdown`: a drain that is asked for begins it.
    ///
    /// # Errors
    ///
    /// [`Error::Workers`] if its thread cannot be started.
    pub fn start<'a>(
        self,
        proxies: impl IntoIterator<Item = &'a BoundProxy>,
        shutdown: &Shutdown,
    ) -> Result<AdminServer, Error> {
        let Self { listener, local, settings, metrics, configuration } = self;
        let workers =
            Workers::start_named(1, "admin").map_err(|source| Error::Workers { source })?;
        let stopped = Shutdown::new();
        let router = Arc::new(Router {
            access: Mutex::new(Access::new(local, settings.hosts, settings.token)),
            site: Site::new(proxies, (configuration, metrics), shutdown.clone(), stopped.clone()),
            long_lists: Permits::new(Some(tunnels::LONG_LISTS)),
        });
        let group = workers.group(None);
        let (alive, answered) = guard();
        let until = (alive, stopped.clone());
        let service = Arc::clone(&router);
        group.start_task(move |handle| {
            server::accept(handle, listener, service, Limits::default(), until)
        });
        log::info!(address:% = local; "admin_listening");
        Ok(AdminServer { local, router, stopped, answered, _group: group })
    }
}

impl AdminServer {
    /// Returns the address that it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Returns the metrics that `GET /metrics` tells, for proxies that are yet to listen.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.router.site.metrics
    }

    /// Answers for this proxy as well, which is yet to run, until it has stopped.
    pub fn watch(&self, proxy: &BoundProxy) {
        self.router.site.add(proxy);
    }

    /// Replaces the text that `GET /config` answers.
    pub fn set_config(&self, toml: impl Into<String>) {
        self.router.site.configuration.set_text(toml.into());
    }

    /// Replaces the hosts and the token, which is read anew. The address that it listens on stays
    /// what it is.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] with the first setting that cannot be used; nothing is changed then.
    pub fn reload(&self, config: &AdminConfig) -> Result<(), Error> {
        let AdminSettings { hosts, token, .. } = config.check()?;
        *self.router.access() = Access::new(self.local, hosts, token);
        Ok(())
    }

    /// Tells those who wait for the end of the drain that all proxies have stopped, and completes
    /// when they have their responses, after one second at the latest. Connections that wait for no
    /// response keep nobody waiting.
    pub async fn finish(self) {
        self.stopped.begin();
        let too_late = async {
            Timer::after(LAST_RESPONSES).await;
        };
        future::or(self.answered.wait(), too_late).await;
    }
}

impl fmt::Debug for AdminServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminServer").field("local", &self.local).finish_non_exhaustive()
    }
}
