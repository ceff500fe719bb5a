//! Reload of the configuration while the program serves.
//!
//! The new one is checked as a whole and its new ports are opened before anything is changed. What
//! fails until then changes nothing.

use std::convert::Infallible;

use futures_lite::future;
use smol::Executor;
use smol::channel::{Receiver, Sender, WeakSender, bounded, unbounded};
use ws_proxy::{
    Admin, AdminServer, BoundProxy, Config, Error, Metrics, OnRemoved, ProxyHandle, SectionConfig,
    Shutdown, Workers,
};

use crate::source::Source;
use crate::{logging, systemd};

/// Lines to be told of a reload, or the error for which nothing has changed.
type Outcome = Result<Vec<String>, String>;

/// The sections that are served, each by a task.
pub(crate) struct Served<'s, 'e> {
    executor: &'s Executor<'e>,
    shutdown: &'e Shutdown,
    /// Held by each task, to its end.
    alive: WeakSender<Infallible>,
}

/// Replaces the configuration whenever it is asked to.
pub(crate) struct Reloader {
    /// Source of the configuration in force.
    source: Source,
    workers: Workers,
    /// Address as given and handle of each section, in the order of the configuration.
    sections: Vec<(String, ProxyHandle)>,
    /// Requests of the admin listener, with the place for their answers.
    requests: (Sender<Sender<Outcome>>, Receiver<Sender<Outcome>>),
    hang_ups: Receiver<()>,
}

impl<'s, 'e> Served<'s, 'e> {
    /// Serves these proxies until `shutdown`. The receiver is closed when all have ended.
    pub(crate) fn start(
        executor: &'s Executor<'e>,
        shutdown: &'e Shutdown,
        proxies: Vec<BoundProxy>,
    ) -> (Self, Receiver<Infallible>) {
        let (alive, all_ended) = bounded(1);
        let served = Self { executor, shutdown, alive: alive.downgrade() };
        for proxy in proxies {
            served.spawn(proxy, alive.clone());
        }
        (served, all_ended)
    }

    fn spawn(&self, proxy: BoundProxy, alive: Sender<Infallible>) {
        let run = proxy.run(self.shutdown.begun());
        let task = self.executor.spawn(async move {
            run.await;
            drop(alive);
        });
        task.detach();
    }
}

impl Reloader {
    /// Creates the reloader of these proxies, which have been bound from the source. `hang_ups` are
    /// the signals that ask for a reload.
    pub(crate) fn new(
        source: Source,
        workers: Workers,
        proxies: &[BoundProxy],
        hang_ups: Receiver<()>,
    ) -> Self {
        let binds = source.config.sections.iter().map(|section| section.bind.clone());
        let sections = binds.zip(proxies.iter().map(BoundProxy::handle)).collect();
        Self { source, workers, sections, requests: unbounded(), hang_ups }
    }

    /// Has this listener tell the configuration, and its `POST /reload` ask here.
    pub(crate) fn tell(&self, admin: &mut Admin) {
        admin.set_config(self.source.text());
        let requests = self.requests.0.clone();
        admin.on_reload(move || {
            let (answer, outcome) = bounded(1);
            // The other end lives as long as the listener answers.
            let asked = requests.try_send(answer);
            async move {
                let gone = || Err("this proxy is stopping".to_owned());
                if asked.is_err() {
                    gone()
                } else {
                    outcome.recv().await.unwrap_or_else(|_| gone())
                }
            }
        });
    }

    /// Reloads whenever a signal, the admin listener or a change of the file asks for it. Never
    /// completes.
    pub(crate) async fn run(mut self, served: &Served<'_, '_>, admin: Option<&AdminServer>) -> ! {
        loop {
            let (by, answer) = self.next().await;
            systemd::reloading().await;
            let outcome = self.reload(served, admin);
            // New ports are open, and ready as soon as their clients are accepted.
            for (_, handle) in &self.sections {
                handle.started().await;
            }
            systemd::ready().await;
            // Whoever reads the line finds it counted.
            if let Some(admin) = admin {
                admin.metrics().record_reload(outcome.as_ref().map(drop).map_err(String::clone));
            }
            match &outcome {
                Ok(_) => log::info!(by, sections = self.sections.len(); "config_reloaded"),
                Err(error) => log::error!(by, error; "config_reload_failed"),
            }
            if let Some(answer) = answer {
                // A client that has gone needs no answer.
                let _ = answer.try_send(outcome);
            }
        }
    }

    /// Waits for the next reason to reload.
    async fn next(&mut self) -> (&'static str, Option<Sender<Outcome>>) {
        let Self { source, requests, hang_ups, .. } = self;
        let asked = async {
            match requests.1.recv().await {
                Ok(answer) => ("admin", Some(answer)),
                Err(_) => future::pending().await,
            }
        };
        let hung_up = async {
            match hang_ups.recv().await {
                Ok(()) => ("signal", None),
                Err(_) => future::pending().await,
            }
        };
        let changed = async {
            source.changed().await;
            ("watch", None)
        };
        future::or(asked, future::or(hung_up, changed)).await
    }

    /// Replaces the configuration, or changes nothing.
    fn reload(&mut self, served: &Served<'_, '_>, admin: Option<&AdminServer>) -> Outcome {
        let alive = served.alive.upgrade().filter(|_| !served.shutdown.has_begun());
        let Some(alive) = alive else { return Err("this proxy is draining".to_owned()) };
        let mut next = self.source.reread()?;
        let keys = take_back(&self.source.config, &mut next.config);
        let plan = self.plan(&next, admin)?;
        if let (Some(server), Some(config)) = (admin, &next.config.admin) {
            server.reload(config).map_err(|error| format!("[admin]: {error}"))?;
        }

        // From here on nothing fails. New ports are open by now, and old ones close last.
        let mut sections = Vec::new();
        for (section, step) in next.config.sections.iter().zip(plan.steps) {
            let handle = match step {
                Step::Keep(handle) => {
                    // One that ends at this very moment is opened anew by the next reload.
                    if let Err(error) = handle.reload(section.proxy.clone()) {
                        log::error!(bind = section.bind, error:%; "section_not_reloaded");
                    }
                    handle
                }
                Step::Open(proxy) => {
                    let handle = proxy.handle();
                    if let Some(server) = admin {
                        server.watch(&proxy);
                    }
                    served.spawn(proxy, alive.clone());
                    handle
                }
            };
            sections.push((section.bind.clone(), handle));
        }
        for handle in plan.removed {
            handle.retire();
            if next.config.on_removed == OnRemoved::Drain {
                handle.drain();
            }
        }
        logging::change(next.log());
        if let Some(server) = admin {
            server.set_config(next.text());
        }
        for key in &keys {
            log::warn!(key; "restart_needed");
        }
        self.sections = sections;
        self.source = next;
        Ok(keys.iter().map(|key| format!("{key}: takes effect after a restart")).collect())
    }

    /// Finds the section that serves each address, and opens those that none serves yet.
    fn plan(&self, next: &Source, admin: Option<&AdminServer>) -> Result<Plan, String> {
        let serving = self.sections.iter().filter(|(_, handle)| !handle.has_stopped());
        let mut left: Vec<_> = serving.collect();
        let mut keep = |section: &SectionConfig| {
            let is_same = |(bind, _): &&(String, ProxyHandle)| bind == &section.bind;
            left.iter().position(is_same).map(|index| left.remove(index).1.clone())
        };
        let kept: Vec<_> = next.config.sections.iter().map(&mut keep).collect();
        let open = |section: &SectionConfig| {
            let metrics = admin.map(AdminServer::metrics);
            bind_section(section, &self.workers, metrics).map_err(|error| {
                let port = |bind: &str| bind.rsplit(':').next().map(str::to_owned);
                let is_held =
                    |(bind, _): &&(String, ProxyHandle)| port(bind) == port(&section.bind);
                match left.iter().find(|one| is_held(one)) {
                    Some((bind, _)) => format!(
                        "{error}; the section at {bind} has this port until it is removed: do that \
                         in a reload before, or restart"
                    ),
                    None => error.to_string(),
                }
            })
        };
        let steps = next.config.sections.iter().zip(kept).map(|(section, kept)| match kept {
            Some(handle) => Ok(Step::Keep(handle)),
            None => open(section).map(Step::Open),
        });
        let steps = steps.collect::<Result<_, _>>()?;
        let removed = left.into_iter().map(|(_, handle)| handle.clone()).collect();
        Ok(Plan { steps, removed })
    }
}

/// Listens for a section.
pub(crate) fn bind_section(
    section: &SectionConfig,
    workers: &Workers,
    metrics: Option<&Metrics>,
) -> Result<BoundProxy, Error> {
    let proxy = section.proxy.clone().workers(workers);
    let proxy = match metrics {
        Some(metrics) => proxy.metrics(metrics),
        None => proxy,
    };
    proxy.listen(&section.bind)
}

/// Changes that a reload comes to.
struct Plan {
    /// For each section of the new configuration, in its order.
    steps: Vec<Step>,
    /// Sections that it has no more.
    removed: Vec<ProxyHandle>,
}

/// Change of one section.
enum Step {
    /// Gets the new settings, and keeps its port.
    Keep(ProxyHandle),
    /// Is new, and has its port.
    Open(BoundProxy),
}

/// Takes back the changes that take effect only after a restart, and returns their keys.
fn take_back(running: &Config, next: &mut Config) -> Vec<&'static str> {
    let mut keys = Vec::new();
    if next.workers != running.workers {
        next.workers = running.workers;
        keys.push("workers");
    }
    let bind = |config: &Config| config.admin.as_ref().map(|one| one.bind_address().to_owned());
    if bind(next) != bind(running) {
        next.admin = match (next.admin.take(), &running.admin) {
            // Its names and its token can change.
            (Some(next), Some(running)) => Some(next.bind(running.bind_address())),
            (_, running) => running.clone(),
        };
        keys.push("[admin] bind");
    }
    keys
}
