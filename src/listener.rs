//! The accept loop of one section.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::future;

use crate::connection;
use crate::events::Event;
use crate::live::{Latest, LiveSection};
use crate::net::listen::{BoundListener, limit_buffers};
use crate::net::reactor::Reactor;
use crate::net::socket::Listener;
use crate::net::timer::Timer;
use crate::section::{Client, Section};
use crate::shutdown::{Guard, Shutdown};
use crate::worker::Handle;

/// Accepts in a row after which the connections themselves get a turn.
const ACCEPTS_IN_A_ROW: u64 = 32;
/// Pause in accepting after a first failure, and the longest one.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Least time between two log records of failures to accept.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Accepts clients until `shutdown` begins, and then closes the listening socket. Each client gets
/// a task on the worker with the fewest connections, and a clone of `alive` to hold until its
/// connection ends. It has the settings that are in force when it is accepted.
pub(crate) async fn accept(
    handle: Handle,
    listener: BoundListener,
    live: Arc<LiveSection>,
    alive: Guard,
    shutdown: Shutdown,
) {
    let mut latest = Latest::of(&live);
    let listener = match Listener::new(handle.reactor(), listener) {
        Ok(listener) => listener,
        Err(error) => {
            live.start.begin();
            return Event::ListenFailed { section: latest.get(), error: &error }.emit();
        }
    };
    live.life.is_accepting.set(true);
    live.start.begin();
    let accepting = async {
        let mut failures = Failures::default();
        let mut buffer = latest.get().settings.socket_buffer;
        for accepted in 1_u64.. {
            match listener.accept().await {
                Ok((socket, peer)) => {
                    failures.clear();
                    let section = latest.get();
                    if section.settings.socket_buffer != buffer {
                        buffer = section.settings.socket_buffer;
                        change_buffers(&listener, &socket, section);
                    }
                    let client = Client::new(peer, handle.reactor().now(), section);
                    if let Some(stats) = &section.stats {
                        stats.accepted.inc();
                    }
                    start(&handle, socket, client, alive.clone());
                }
                Err(error) => {
                    back_off(&mut failures, handle.reactor(), latest.get(), &error).await;
                }
            }
            if accepted.is_multiple_of(ACCEPTS_IN_A_ROW) {
                future::yield_now().await;
            }
        }
    };
    future::or(shutdown.begun(), accepting).await;
    live.life.is_accepting.set(false);
}

/// Gives the listener the buffers that a reload asks for, which accepted sockets inherit, and the
/// first such socket too.
fn change_buffers(listener: &Listener, accepted: &OwnedFd, section: &Section) {
    let buffer = section.settings.socket_buffer;
    let changed = limit_buffers(listener, buffer).and_then(|()| limit_buffers(accepted, buffer));
    if let Err(error) = changed {
        log::warn!(section:% = section.name, error:%; "socket_buffer_unchanged");
    }
}

/// Starts the task of one client, on the worker with the fewest connections: of its handshake or,
/// where the section is full, of its refusal.
fn start(handle: &Handle, socket: OwnedFd, client: Client, alive: Guard) {
    if let Some(permit) = client.section.connections.take() {
        handle.start_connection(move |handle, load| {
            connection::serve(handle, socket, client, (permit, load), alive)
        });
    } else if let Some(permit) = client.section.refusals.take() {
        handle.start_connection(move |handle, load| {
            connection::turn_away(handle, socket, client, (permit, load, alive))
        });
    } else {
        Event::Dropped { client: &client }.emit();
    }
}

/// Consecutive failures to accept.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// The last pause; `None` after a success.
    pause: Option<Duration>,
    /// Time of the last log record.
    logged: Option<Instant>,
    /// Failures since then.
    unlogged: u64,
}

impl Failures {
    /// Notes that accepting has succeeded.
    pub(crate) fn clear(&mut self) {
        self.pause = None;
    }

    /// Counts a failure. Returns the pause after it, longer each time, and the number of failures
    /// that the log is to be told of now, if it is.
    ///
    /// Most failures mean that descriptors or memory are short, and trying again at once would only
    /// burn the CPU that the tunnels need to end and give some back.
    pub(crate) fn count(&mut self) -> (Duration, Option<u64>) {
        let (first, most) = BACKOFF;
        let pause = self.pause.map_or(first, |pause| (pause * 2).min(most));
        self.pause = Some(pause);
        self.unlogged += 1;
        let is_told = self.logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY);
        let told = is_told.then(|| {
            self.logged = Some(Instant::now());
            std::mem::take(&mut self.unlogged)
        });
        (pause, told)
    }
}

/// Logs a failure to accept, and waits.
async fn back_off(
    failures: &mut Failures,
    reactor: &Rc<Reactor>,
    section: &Section,
    error: &io::Error,
) {
    let (pause, told) = failures.count();
    if let Some(failures) = told {
        Event::AcceptFailed { section, failures, pause, error }.emit();
    }
    Timer::after(reactor, pause).await;
}
