//! The running proxies, as the admin listener sees them.

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use futures_lite::future;
use smol::Timer;

use super::configuration::Configuration;
use crate::live::LiveSection;
use crate::lock::lock;
use crate::metrics::Metrics;
use crate::proxy::BoundProxy;
use crate::shutdown::Shutdown;
use crate::tunnel::{CloseOrder, TunnelFilter, TunnelView};
use crate::worker::watch::Watch;

/// Time within which the loop of a worker that is well answers.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(1);

/// Proxies that are watched and steered together.
pub(super) struct Site {
    watched: Mutex<Watched>,
    pub(super) configuration: Configuration,
    pub(super) metrics: Metrics,
    /// Begins the drain of all sections.
    pub(super) shutdown: Shutdown,
    /// Begins when all sections have stopped.
    pub(super) stopped: Shutdown,
}

/// The proxies and their threads.
#[derive(Default)]
struct Watched {
    sections: Vec<Weak<LiveSection>>,
    /// One for each set of workers.
    workers: Vec<Arc<Watch>>,
}

impl Site {
    /// Collects what is to be known of these proxies before they run.
    pub(super) fn new<'a>(
        proxies: impl IntoIterator<Item = &'a BoundProxy>,
        (configuration, metrics): (Configuration, Metrics),
        shutdown: Shutdown,
        stopped: Shutdown,
    ) -> Self {
        let site = Self { watched: Mutex::default(), configuration, metrics, shutdown, stopped };
        proxies.into_iter().for_each(|proxy| site.add(proxy));
        site
    }

    /// Adds a proxy, to the end of its last connection.
    pub(super) fn add(&self, proxy: &BoundProxy) {
        let mut watched = self.lock();
        watched.sections.retain(|known| known.strong_count() > 0);
        watched.sections.push(Arc::downgrade(proxy.live()));
        if !watched.workers.iter().any(|known| known.is_of(proxy.workers())) {
            watched.workers.push(Arc::new(Watch::new(proxy.workers())));
        }
    }

    /// Returns the sections that are there, in the order in which they came.
    pub(super) fn sections(&self) -> Vec<Arc<LiveSection>> {
        self.lock().sections.iter().filter_map(Weak::upgrade).collect()
    }

    fn workers(&self) -> Vec<Arc<Watch>> {
        self.lock().workers.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        lock(&self.watched)
    }

    /// Asks every worker, and returns a line for each that does not answer.
    pub(super) async fn stalled_workers(&self) -> Vec<String> {
        let workers = self.workers();
        let asked: Vec<_> = { workers.iter() }
            .flat_map(|set| (0..set.count()).map(move |index| (set, index)))
            .map(|(set, index)| (set, index, set.ask(index, Instant::now())))
            .collect();
        let mut lines = Vec::new();
        for (set, index, question) in asked {
            let answered = async { Some(set.answer(index, &question).await) };
            let too_late = async {
                // Of a question that has waited for long, nothing more is awaited.
                Timer::at(question.asked + ANSWER_TIME).await;
                None
            };
            match future::or(answered, too_late).await {
                Some(true) => {}
                Some(false) => lines.push(format!("worker-{index} has ended")),
                None => {
                    lines.push(format!("worker-{index} has not answered for {ANSWER_TIME:?}"));
                }
            }
        }
        lines
    }

    /// Returns the newest tunnels of those that are meant, at most so many, the newest first;
    /// `None` if a worker does not answer.
    pub(super) async fn tunnels(
        &self,
        filter: &TunnelFilter,
        limit: usize,
    ) -> Option<Vec<TunnelView>> {
        in_time(async {
            let mut views = Vec::new();
            for set in self.workers() {
                views.extend(set.list(filter, limit).await);
            }
            views.sort_unstable_by_key(|view| Reverse(view.description.id));
            views.truncate(limit);
            views
        })
        .await
    }

    /// Closes the tunnels that are meant; returns their number, or `None` if a worker does not
    /// answer, which closes its own as soon as it goes on.
    pub(super) async fn close(&self, filter: &TunnelFilter, order: CloseOrder) -> Option<usize> {
        let order = Arc::new(order);
        in_time(async {
            let mut count = 0;
            for set in self.workers() {
                count += set.close(filter, &order).await;
            }
            count
        })
        .await
    }

    /// Returns a line for each reason for which new clients should go elsewhere.
    pub(super) fn unready_reasons(&self, now: Instant) -> Vec<String> {
        let mut sections = self.sections();
        // One that a reload has removed is missed by nobody.
        sections.retain(|live| !live.retirement.has_begun());
        if self.shutdown.has_begun() || sections.iter().any(|one| one.life.is_draining.is_set()) {
            return vec!["draining".to_owned()];
        }
        sections.iter().filter_map(|live| live.current().unready_reason(now)).collect()
    }
}

/// Awaits what workers answer, for as long as one that is well may take.
async fn in_time<T>(answer: impl Future<Output = T>) -> Option<T> {
    future::or(async { Some(answer.await) }, async {
        Timer::after(ANSWER_TIME).await;
        None
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::builder::WsProxy;
    use crate::worker::Workers;

    #[test]
    fn a_stalled_worker_is_named_and_forgiven_when_it_goes_on() {
        let workers = Workers::start(1).unwrap();
        let proxy = WsProxy::new(["127.0.0.1:1"]).workers(&workers).listen("127.0.0.1:0").unwrap();
        let told = (Configuration::default(), Metrics::new());
        let site = Site::new([&proxy, &proxy], told, Shutdown::new(), Shutdown::new());
        let stalled = || future::block_on(site.stalled_workers());
        assert!(stalled().is_empty());

        let (begins, has_begun) = mpsc::channel();
        let (go_on, told) = mpsc::channel::<()>();
        let group = workers.group(None);
        group.start_task(move |_| async move {
            begins.send(()).unwrap();
            told.recv().unwrap_err();
        });
        has_begun.recv().unwrap();
        assert_eq!(stalled(), ["worker-0 has not answered for 1s"]);
        // The question that waits already is not waited for again.
        let start = Instant::now();
        assert_eq!(stalled().len(), 1);
        assert!(start.elapsed() < ANSWER_TIME);
        let tunnels = || future::block_on(site.tunnels(&TunnelFilter::default(), 1));
        assert!(tunnels().is_none(), "no worker is waited for without end");
        drop(go_on);
        while !stalled().is_empty() {}
    }

    #[test]
    fn a_section_that_does_not_accept_is_not_ready() {
        let proxy = WsProxy::new(["127.0.0.1:1"]).name("chat").listen("127.0.0.1:0").unwrap();
        let shutdown = Shutdown::new();
        let told = (Configuration::default(), Metrics::new());
        let site = Site::new([&proxy], told, shutdown.clone(), Shutdown::new());
        let reasons = || site.unready_reasons(Instant::now());
        assert_eq!(reasons(), ["section \"chat\": its listener is not up"]);
        proxy.live().life.is_accepting.set(true);
        assert!(reasons().is_empty());
        // A drain of one of them, of which no shutdown here tells.
        proxy.live().life.is_draining.set(true);
        assert_eq!(reasons(), ["draining"]);
        // A section that was removed takes no part, even if it drains.
        proxy.live().retirement.begin();
        assert!(reasons().is_empty());
        shutdown.begin();
        assert_eq!(reasons(), ["draining"]);
    }
}
