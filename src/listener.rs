//! The accept loop of one section.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_lite::future;
use smol::channel::{Receiver, Sender};

use crate::connection::{self, Established};
use crate::handshake::error_response::ErrorResponse;
use crate::net;
use crate::net::reactor::Reactor;
use crate::net::socket::{Listener, Socket};
use crate::net::timer::Timer;
use crate::outcome::Outcome;
use crate::section::{Permit, Section};
use crate::worker::Handle;

/// Connections over the limit that are told so at once. Those over this number too are just closed.
const REFUSALS: usize = 256;
/// After so many accepts in a row the connections themselves get a turn.
const ACCEPTS_IN_A_ROW: u64 = 32;
/// How long accepting pauses after a first failure, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Failures of accept are logged no more often than this.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Numbers the connections of the process, for the log.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Accepts clients until `stop` is closed, and starts a task for each on the worker whose turn it is. Each holds a
/// clone of `alive` until its connection ends, and this loop one of `listening` until its socket is closed.
pub(crate) async fn accept(
    handle: Handle,
    listener: TcpListener,
    section: Arc<Section>,
    alive: Sender<()>,
    listening: Sender<()>,
    stop: Receiver<()>,
) {
    let listener = match Listener::new(handle.reactor(), listener) {
        Ok(listener) => listener,
        Err(error) => {
            log::error!(
                "event=listen_failed section={} error={:?}",
                section.name,
                error.to_string()
            );
            return;
        }
    };
    let accepting = async {
        let mut failures = Failures::default();
        for accepted in 1_u64.. {
            match listener.accept().await {
                Ok((client, peer)) => {
                    failures.clear();
                    start(&handle, client, net::canonical(peer), &section, alive.clone());
                }
                Err(error) => failures.back_off(handle.reactor(), &section.name, &error).await,
            }
            if accepted.is_multiple_of(ACCEPTS_IN_A_ROW) {
                future::yield_now().await;
            }
        }
    };
    let stopped = async {
        // Nobody sends on it: it is closed when it is time.
        while stop.recv().await.is_ok() {}
    };
    future::or(stopped, accepting).await;
    drop(listener);
    drop(listening);
}

/// Starts the task of one client.
fn start(
    handle: &Handle,
    client: TcpStream,
    peer: SocketAddr,
    section: &Arc<Section>,
    alive: Sender<()>,
) {
    let section = Arc::clone(section);
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    match Permit::take(&section.open, section.settings.max_connections) {
        Some(permit) => handle.start_next(move |handle| async move {
            let waiting = alive.downgrade();
            drop(alive);
            let Some(client) = register(&handle, client, peer, id, &section) else { return };
            let started = handle.reactor().now();
            let head = connection::read_head(&client, &section).await;
            // A client that has not asked for anything yet keeps no proxy from leaving.
            let Some(alive) = waiting.upgrade() else { return };
            match connection::serve(client, started, head, peer, &section).await {
                Ok(established) => carry(&handle, established, section, id, peer, (permit, alive)),
                Err(outcome) => outcome.log(&section, id, peer),
            }
        }),
        // One too many is told to come again later; if there are too many of those, they are only closed.
        None => match Permit::take(&section.refusing, Some(REFUSALS)) {
            Some(permit) => handle.start_next(move |handle| async move {
                let Some(client) = register(&handle, client, peer, id, &section) else { return };
                let full = ErrorResponse::full("too many connections, come again later");
                connection::reject(client, full).await.log(&section, id, peer);
                drop((permit, alive));
            }),
            None => log::debug!(
                "event=dropped section={} id={id} client={peer} reason=full",
                section.name
            ),
        },
    }
}

/// Gives a client's socket to the worker that its task runs on.
fn register(
    handle: &Handle,
    client: TcpStream,
    peer: SocketAddr,
    id: u64,
    section: &Section,
) -> Option<Socket> {
    let registered = Socket::new(handle.reactor(), client);
    if let Err(error) = &registered {
        let error = error.to_string();
        log::error!(
            "event=register_failed section={} id={id} client={peer} error={error:?}",
            section.name
        );
    }
    registered.ok()
}

/// Leaves a tunnel to the worker. The task of its handshake ends here, and gives its memory back.
fn carry(
    handle: &Handle,
    established: Established,
    section: Arc<Section>,
    id: u64,
    peer: SocketAddr,
    guards: (Permit, Sender<()>),
) {
    let Established { tunnel, index: backend, started, handshake } = established;
    let on_end = Box::new(move |end| {
        let lifetime = started.elapsed();
        Outcome::Tunnel { backend, handshake, lifetime, end }.log(&section, id, peer);
        drop(guards);
    });
    handle.open_tunnel(tunnel, on_end);
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
    async fn back_off(&mut self, reactor: &Rc<Reactor>, section: &str, error: &io::Error) {
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
        Timer::after(reactor, pause).await;
    }
}
