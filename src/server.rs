//! The accept loop of one section.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_net::{TcpListener, TcpStream};
use futures_lite::future;
use smol::channel::Sender;
use smol::{Executor, Timer};

use crate::backend::rotation::Rotation;
use crate::connection;
use crate::handshake::forward::HostHeader;
use crate::handshake::reject::Reject;
use crate::handshake::request::UpgradeRequest;
use crate::net;
use crate::settings::Settings;

/// Connections over the limit that are told so at once. Those over this number too are just closed.
const REFUSALS: usize = 256;
/// After so many accepts in a row the connections themselves get a turn.
const ACCEPTS_IN_A_ROW: u32 = 32;
/// How long accepting pauses after a first failure, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Failures of accept are logged no more often than this.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Numbers the connections of the process, for the log.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What the connections of one section have in common.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) settings: Settings,
    /// What the log calls it.
    pub(crate) name: String,
    pub(crate) rotation: Rotation,
    open: Arc<AtomicUsize>,
    refusing: Arc<AtomicUsize>,
    told_of_host: AtomicBool,
}

impl Section {
    /// A section without connections, that listens on `local`.
    pub(crate) fn new(settings: Settings, local: SocketAddr) -> Self {
        Self {
            name: settings.name.clone().unwrap_or_else(|| local.to_string()),
            settings,
            rotation: Rotation::default(),
            open: Arc::default(),
            refusing: Arc::default(),
            told_of_host: AtomicBool::new(false),
        }
    }

    /// Tells once what the likely reason is when a backend refuses a browser behind a rewritten Host.
    pub(crate) fn note_refusal(&self, status: u16, request: &UpgradeRequest<'_>) {
        let is_likely = matches!(status, 403 | 404)
            && self.settings.host == HostHeader::Backend
            && request.fields.values("Origin").next().is_some();
        if is_likely && !self.told_of_host.swap(true, Ordering::Relaxed) {
            log::warn!(
                "event=hint section={} status={status} hint={:?}",
                self.name,
                "the backend refused a handshake with an Origin; if it compares Origin with Host, set host = \"preserve\" in this section",
            );
        }
    }
}

/// One of a limited number of connections; counted for as long as it lives.
struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// `None` if there are `limit` already.
    fn take(count: &Arc<AtomicUsize>, limit: Option<usize>) -> Option<Self> {
        let permit = Self(Arc::clone(count));
        let before = count.fetch_add(1, Ordering::Relaxed);
        limit.is_none_or(|limit| before < limit).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts clients for ever, and runs each as a task of its own on `executor`. Every task holds a clone of `alive`
/// until it ends. Dropping this future stops the accepting and closes the listener; the tasks go on.
pub(crate) async fn accept(
    listener: TcpListener,
    section: Arc<Section>,
    executor: &Executor<'static>,
    alive: Sender<()>,
) {
    let mut failures = Failures::default();
    let mut in_a_row = 0;
    loop {
        match listener.accept().await {
            Ok((client, peer)) => {
                failures.clear();
                spawn(client, net::canonical(peer), &section, executor, alive.clone());
            }
            Err(error) => failures.back_off(&section.name, &error).await,
        }
        in_a_row += 1;
        if in_a_row % ACCEPTS_IN_A_ROW == 0 {
            future::yield_now().await;
        }
    }
}

/// Starts the task of one client.
fn spawn(
    client: TcpStream,
    peer: SocketAddr,
    section: &Arc<Section>,
    executor: &Executor<'static>,
    alive: Sender<()>,
) {
    let section = Arc::clone(section);
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = net::prepare(&client) {
        // Reset before it was accepted.
        log::debug!(
            "event=client_gone section={} id={id} client={peer} error={:?}",
            section.name,
            error.to_string()
        );
        return;
    }
    let Some(permit) = Permit::take(&section.open, section.settings.max_connections) else {
        return refuse(client, peer, id, section, executor, alive);
    };
    let task = async move {
        let outcome = connection::serve(client, peer, &section).await;
        outcome.log(&section.name, id, peer);
        drop((permit, alive));
    };
    executor.spawn(task).detach();
}

/// Tells one client too many to come again later.
fn refuse(
    client: TcpStream,
    peer: SocketAddr,
    id: u64,
    section: Arc<Section>,
    executor: &Executor<'static>,
    alive: Sender<()>,
) {
    let Some(permit) = Permit::take(&section.refusing, Some(REFUSALS)) else {
        log::debug!("event=dropped section={} id={id} client={peer} reason=full", section.name);
        return;
    };
    let task = async move {
        let outcome =
            connection::reject(client, Reject::full("too many connections, come again later")).await;
        outcome.log(&section.name, id, peer);
        drop((permit, alive));
    };
    executor.spawn(task).detach();
}

/// Consecutive failures to accept.
#[derive(Debug, Default)]
struct Failures {
    pause: Option<Duration>,
    logged: Option<Instant>,
    unlogged: u64,
}

impl Failures {
    fn clear(&mut self) {
        self.pause = None;
    }

    /// Waits, longer each time: most failures mean that descriptors or memory are short, and trying again at once
    /// would only burn the CPU that the tunnels need to end and give some back.
    async fn back_off(&mut self, section: &str, error: &io::Error) {
        let (first, most) = BACKOFF;
        let pause = self.pause.map_or(first, |pause| (pause * 2).min(most));
        self.pause = Some(pause);
        self.unlogged += 1;
        if self.logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY) {
            let (failures, pause_ms) = (self.unlogged, pause.as_millis());
            let error = error.to_string();
            log::error!(
                "event=accept_failed section={section} failures={failures} pause_ms={pause_ms} error={error:?}"
            );
            self.logged = Some(Instant::now());
            self.unlogged = 0;
        }
        Timer::after(pause).await;
    }
}
