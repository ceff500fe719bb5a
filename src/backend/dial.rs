//! Connects to one backend.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use super::Backend;
use super::answers::in_turn;
use super::failures::RecentFailures;
use crate::net;
use crate::net::reactor::Reactor;
use crate::net::socket::Socket;
use crate::net::timer::{Timer, io_within};

/// Time for which an address is given to accept before the next one is tried beside it (RFC 8305,
/// 5: Connection Attempt Delay).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Settings of a section for its connections to backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DialSettings {
    /// Time for the look-up of a name, and for each attempt to connect: one timeout for all of them
    /// would let a dead first address use up the time of the others.
    pub(crate) timeout: Duration,
    /// Time for which the addresses of a name are used.
    pub(crate) resolve_interval: Duration,
    /// [Limit](net::listen::limit_buffers) of each of the socket's buffers, in bytes.
    pub(crate) buffer: Option<usize>,
}

/// An attempt to connect to one address.
struct Attempt {
    address: SocketAddr,
    outcome: Pin<Box<dyn Future<Output = io::Result<Socket>>>>,
}

/// Connects to the first address of a backend that accepts. Each address of a name is tried first
/// in its turn, but one that has failed in the last 10 s comes last.
///
/// # Errors
///
/// - An error that [`net::out_of_descriptors`] or [`net::out_of_memory`] recognises, at once: no
///   other address could fare better.
/// - Otherwise the [gravest](graver) error of all addresses, the first of several: `TimedOut` only
///   if nothing but time failed, in every attempt or in the look-up.
pub(crate) async fn dial(
    reactor: &Rc<Reactor>,
    backend: &Backend,
    settings: DialSettings,
) -> io::Result<Socket> {
    // Relaxed: the counter guards no other memory.
    let turn = || backend.next_dial.fetch_add(1, Ordering::Relaxed);
    dial_in(turn, reactor, backend, settings).await
}

/// Connects as [`dial`] does, beside the turns of handshakes: if checks took every other one, of
/// two addresses one would get the checks and the other one the clients. The first address is
/// chosen at random.
///
/// # Errors
///
/// Those of [`dial`].
pub(crate) async fn dial_out_of_turn(
    reactor: &Rc<Reactor>,
    backend: &Backend,
    settings: DialSettings,
) -> io::Result<Socket> {
    dial_in(|| fastrand::usize(..), reactor, backend, settings).await
}

/// Connects to a backend, whose addresses are tried in the order of the turn.
async fn dial_in(
    turn: impl FnOnce() -> usize,
    reactor: &Rc<Reactor>,
    backend: &Backend,
    settings: DialSettings,
) -> io::Result<Socket> {
    let result = match backend.address.path() {
        Some(path) => connect_unix(reactor, backend, path, settings).await,
        None => match addresses(turn, reactor, backend, settings).await {
            Ok(order) => connect_first(reactor, backend, order, settings).await,
            Err(error) => Err(error),
        },
    };
    match &result {
        Err(error) if !is_shortage(error) => {
            backend.failures.with(|failures| failures.record_dial(reactor.now()));
        }
        _ => {}
    }
    result
}

/// Returns the gravest error of failed attempts, the first of equal ones, from that of the earlier
/// attempts and that of the next one. Time-outs give way to other errors, and those to a shortage
/// of local ports, with which the backend may be well.
pub(crate) fn graver(gravest: Option<io::Error>, next: io::Error) -> io::Error {
    let rank = |error: &io::Error| match error.kind() {
        io::ErrorKind::TimedOut => 0,
        _ if net::out_of_ports(error) => 2,
        _ => 1,
    };
    match gravest {
        Some(gravest) if rank(&gravest) >= rank(&next) => gravest,
        _ => next,
    }
}

/// Returns the socket addresses of a backend in the order of this dial. An IP address is not looked
/// up.
async fn addresses(
    turn: impl FnOnce() -> usize,
    reactor: &Rc<Reactor>,
    backend: &Backend,
    settings: DialSettings,
) -> io::Result<Vec<SocketAddr>> {
    let port = backend.address.port().unwrap_or_default();
    let Some(name) = &backend.name else {
        return Ok(backend.address.ip().map(|ip| SocketAddr::new(ip, port)).into_iter().collect());
    };
    let found = name.resolve(reactor, settings.timeout, settings.resolve_interval).await?;
    let mut found = found.to_vec();
    found.iter_mut().for_each(|address| address.set_port(port));
    let turn = turn();
    let order = backend.failures.with_any(|failures| failures.order(&found, turn, reactor.now()));
    Ok(order.unwrap_or_else(|| in_turn(&found, turn)))
}

/// Connects to the Unix socket at a path, which may be another one each time.
async fn connect_unix(
    reactor: &Rc<Reactor>,
    backend: &Backend,
    path: &Path,
    settings: DialSettings,
) -> io::Result<Socket> {
    let connecting = Socket::connect_unix(reactor, path, settings.buffer);
    let socket = io_within(reactor, settings.timeout, connecting).await?;
    backend.failures.with_any(RecentFailures::forget_dial);
    Ok(socket)
}

/// Tries the addresses in this order, the next one as soon as one fails, or beside the others if
/// none has accepted for 250 ms (RFC 8305, 5).
async fn connect_first(
    reactor: &Rc<Reactor>,
    backend: &Backend,
    order: Vec<SocketAddr>,
    settings: DialSettings,
) -> io::Result<Socket> {
    let mut waiting = order.into_iter();
    let mut running: Vec<Attempt> = Vec::new();
    let mut gravest: Option<io::Error> = None;
    loop {
        running.extend(waiting.next().map(|address| attempt(reactor, address, settings)));
        if running.is_empty() {
            return Err(gravest.unwrap_or_else(|| io::ErrorKind::NotFound.into()));
        }
        let is_last = waiting.len() == 0;
        let Some((index, result)) = first_of(reactor, &mut running, is_last).await else {
            continue;
        };
        let address = running.remove(index).address;
        match result {
            Ok(socket) => {
                // Those that began earlier had more time, and have been overtaken.
                for Attempt { address, .. } in &running[..index] {
                    backend.failures.with(|failures| failures.record(*address, reactor.now()));
                }
                backend.failures.with_any(|failures| failures.forget(address));
                return Ok(socket);
            }
            Err(error) if is_out_of_sockets(&error) => return Err(error),
            Err(error) => {
                if !is_shortage(&error) {
                    backend.failures.with(|failures| failures.record(address, reactor.now()));
                }
                gravest = Some(graver(gravest, error));
            }
        }
    }
}

/// Waits for the first attempt that ends, and returns its index and outcome; `None` if the time has
/// come for another one, which there is unless `is_last`.
async fn first_of(
    reactor: &Rc<Reactor>,
    running: &mut [Attempt],
    is_last: bool,
) -> Option<(usize, io::Result<Socket>)> {
    let mut delay = Timer::after(reactor, ATTEMPT_DELAY);
    poll_fn(|context| {
        for (index, attempt) in running.iter_mut().enumerate() {
            if let Poll::Ready(result) = attempt.outcome.as_mut().poll(context) {
                return Poll::Ready(Some((index, result)));
            }
        }
        if is_last {
            return Poll::Pending;
        }
        Pin::new(&mut delay).poll(context).map(|()| None)
    })
    .await
}

fn attempt(reactor: &Rc<Reactor>, address: SocketAddr, settings: DialSettings) -> Attempt {
    let reactor = Rc::clone(reactor);
    let DialSettings { timeout, buffer, .. } = settings;
    let outcome =
        Box::pin(
            async move { io_within(&reactor, timeout, connect(&reactor, address, buffer)).await },
        );
    Attempt { address, outcome }
}

async fn connect(
    reactor: &Rc<Reactor>,
    address: SocketAddr,
    buffer: Option<usize>,
) -> io::Result<Socket> {
    let stream = Socket::connect(reactor, address, buffer).await?;
    net::listen::prepare(&stream)?;
    Ok(stream)
}

/// Returns whether an error is this host's and tells nothing of the backend.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    is_out_of_sockets(error) || net::out_of_ports(error)
}

/// Returns whether this host can open no socket, for whatever address.
fn is_out_of_sockets(error: &io::Error) -> bool {
    net::out_of_descriptors(error) || net::out_of_memory(error)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;
    use crate::net::timer::tests::run;

    /// A timeout that no test waits for.
    const NEVER: Duration = Duration::MAX;

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// A listener to which connecting takes for ever, since its queue is full.
    pub(crate) fn silent() -> (TcpListener, SocketAddr) {
        let (listener, address) = listener();
        rustix::net::listen(&listener, 0).unwrap();
        let brief = Duration::from_millis(100);
        while TcpStream::connect_timeout(&address, brief).is_ok() {}
        (listener, address)
    }

    /// Tries these addresses in their order; gives the backend with its memory of it as well.
    fn connect_to(order: &[SocketAddr], timeout: Duration) -> (Backend, io::Result<SocketAddr>) {
        let reactor = Rc::new(Reactor::new().unwrap().0);
        let settings = DialSettings { timeout, resolve_interval: NEVER, buffer: None };
        let (with, order) = (Rc::clone(&reactor), order.to_vec());
        run(&reactor, async move {
            let backend = Backend::at("127.0.0.1:1");
            let result = connect_first(&with, &backend, order, settings).await;
            let peer = result.and_then(|socket| Ok(rustix::net::getpeername(&socket)?));
            (backend, peer.map(|peer| SocketAddr::try_from(peer.unwrap()).unwrap()))
        })
    }

    #[test]
    fn a_dial_out_of_turn_takes_no_turn_of_the_others() {
        let reactor = Rc::new(Reactor::new().unwrap().0);
        let settings = DialSettings { timeout: NEVER, resolve_interval: NEVER, buffer: None };
        let (_listener, address) = listener();
        let backend = Backend::at(&format!("localhost:{}", address.port()));
        let with = Rc::clone(&reactor);
        let turns = run(&reactor, async move {
            let turns = || backend.next_dial.load(Ordering::Relaxed);
            dial_out_of_turn(&with, &backend, settings).await.unwrap();
            let before = turns();
            dial(&with, &backend, settings).await.unwrap();
            [before, turns()]
        });
        assert_eq!(turns, [0, 1]);
    }

    #[test]
    fn a_shortage_of_this_host_is_no_failure_of_the_backend() {
        use rustix::io::Errno;
        for (error, is_ours) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::NOMEM, true),
            (Errno::NOBUFS, true),
            (Errno::ADDRNOTAVAIL, true),
            (Errno::CONNREFUSED, false),
            (Errno::HOSTUNREACH, false),
            (Errno::TIMEDOUT, false),
        ] {
            assert_eq!(is_shortage(&error.into()), is_ours, "{error:?}");
        }
    }

    #[test]
    fn the_next_address_is_tried_beside_one_that_is_silent() {
        let ((_one, silent), (_other, good)) = (silent(), listener());
        let begin = Instant::now();
        let (backend, peer) = connect_to(&[silent, good], NEVER);
        assert_eq!(peer.unwrap(), good);
        assert!(begin.elapsed() >= ATTEMPT_DELAY, "{:?}", begin.elapsed());
        // The silent one was overtaken, and comes last from now on.
        let order = backend.failures.with(|all| all.order(&[silent, good], 0, Instant::now()));
        assert_eq!(order, [good, silent]);
    }

    #[test]
    fn the_next_address_is_tried_at_once_after_one_that_refuses() {
        let ((closed, refusing), (_other, good)) = (listener(), listener());
        drop(closed);
        let (backend, peer) = connect_to(&[refusing, good], NEVER);
        assert_eq!(peer.unwrap(), good);
        let order = backend.failures.with(|all| all.order(&[refusing, good], 0, Instant::now()));
        assert_eq!(order, [good, refusing]);
    }

    #[test]
    fn each_attempt_has_its_own_time_and_the_gravest_error_is_told() {
        let ((_one, silent), (closed, refusing)) = (silent(), listener());
        drop(closed);
        let time = 2 * ATTEMPT_DELAY;
        for (order, kind) in [
            (&[silent, refusing][..], io::ErrorKind::ConnectionRefused),
            (&[refusing, silent], io::ErrorKind::ConnectionRefused),
            (&[silent], io::ErrorKind::TimedOut),
            (&[], io::ErrorKind::NotFound),
        ] {
            let begin = Instant::now();
            let (_, peer) = connect_to(order, time);
            assert_eq!(peer.unwrap_err().kind(), kind, "{order:?}");
            assert!(order.is_empty() || begin.elapsed() >= time, "{:?}", begin.elapsed());
        }
    }
}
