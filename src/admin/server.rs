//! Serves HTTP/1 to the few who watch and steer a proxy: the accept loop, and the story of one
//! connection. Knows no route.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::{AsyncReadExt, future};

use super::places::{Place, Places};
use super::reply::Reply;
use super::request::{Announced, Method, Request};
use crate::handshake::scan::HeadScan;
use crate::head::{self, Head, HeadError};
use crate::listener::Failures;
use crate::net::close::linger;
use crate::net::listen::BoundListener;
use crate::net::name::Peer;
use crate::net::socket::{Listener, Socket};
use crate::net::timer::{Timer, io_within};
use crate::net::write_within;
use crate::section::{Permit, Permits};
use crate::shutdown::{Guard, Shutdown, WeakGuard};
use crate::worker::Handle;

/// Most bytes of a head, its blank line included.
const HEAD_MAX: usize = 8_192;
/// Most connections over the limit that are told so at the same time.
const REFUSALS_MAX: usize = 16;

/// Answers whole requests.
pub(super) trait Service: Send + Sync + 'static {
    /// Answers a request from `peer`, a client.
    fn answer(&self, request: Request, peer: Peer) -> impl Future<Output = Reply>;
}

/// Bounds on what clients may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at a time.
    pub(super) connections: usize,
    /// Time for a head, for a body, for a client to take a response, and for the response to one
    /// that has ended its sending.
    pub(super) step: Duration,
    /// Time between two requests of a connection.
    pub(super) idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 64, step: Duration::from_secs(10), idle: Duration::from_secs(60) }
    }
}

/// Accepts clients until `shutdown` begins. `alive` is held to that end, and by each connection
/// from a whole request to its response: one that waits for a request keeps nobody waiting.
pub(super) async fn accept<S: Service>(
    handle: Handle,
    listener: BoundListener,
    service: Arc<S>,
    limits: Limits,
    (alive, shutdown): (Guard, Shutdown),
) {
    let listener = match Listener::new(handle.reactor(), listener) {
        Ok(listener) => listener,
        Err(error) => return log::error!(error:%; "admin_listen_failed"),
    };
    let places = Places::new(limits.connections);
    let refusals = Permits::new(Some(REFUSALS_MAX));
    let accepting = async {
        let mut failures = Failures::default();
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    let (pause, told) = failures.count();
                    if let Some(failures) = told {
                        log::warn!(failures, error:%; "admin_accept_failed");
                    }
                    Timer::after(handle.reactor(), pause).await;
                    continue;
                }
            };
            failures.clear();
            if let Some(place) = places.take() {
                let (service, waiting) = (Arc::clone(&service), alive.downgrade());
                handle.start_connection(move |handle, load| async move {
                    let held = (place, waiting);
                    serve(handle, stream, (&*service, peer), limits, held).await;
                    drop(load);
                });
            } else if let Some(permit) = refusals.take() {
                handle.start_connection(move |handle, load| async move {
                    turn_away(handle, stream, limits, permit).await;
                    drop(load);
                });
            }
        }
    };
    future::or(shutdown.begun(), accepting).await;
}

/// Serves a connection: one request after the other, each answered before the next is looked at.
/// It ends where its place is needed while it waits for the client.
async fn serve(
    handle: Handle,
    stream: OwnedFd,
    (service, peer): (&impl Service, Peer),
    limits: Limits,
    (mut place, waiting): (Place, WeakGuard),
) {
    let socket = match Socket::new(handle.reactor(), stream) {
        Ok(socket) => socket,
        Err(error) => return log::warn!(error:%; "admin_register_failed"),
    };
    let mut bytes = Vec::new();
    let mut is_first = true;
    loop {
        let next = next_request(&socket, &mut bytes, (limits, is_first));
        let Some(Some(request)) = place.lend(next).await else { return };
        is_first = false;
        // A whole request is answered before the process ends; a new one is not taken then.
        let Some(alive) = waiting.upgrade() else { return };
        let (reply, is_to_head, closes) = match request {
            Ok(request) => {
                let (method, closes) = (request.method, !request.keeps_alive);
                // One that nobody waits for any more gives its place back.
                let gone = async {
                    future::or(left(&socket, limits), async { drop(socket.broken().await) }).await;
                    None
                };
                let answer = async { Some(service.answer(request, peer).await) };
                let Some(reply) = future::or(gone, answer).await else { return };
                (reply, method == Method::Head, closes)
            }
            Err(Some(reply)) => (reply, false, true),
            Err(None) => return,
        };
        // The body is not kept beside the response while the client takes its time.
        let (response, held) =
            if is_to_head { reply.without_body(closes) } else { reply.into_bytes(closes) };
        match place.lend(write_within(limits.step, &socket, &response)).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                return log::debug!(client:% = peer, error:%; "admin_answer_failed");
            }
            None => return,
        }
        drop((alive, held));
        if closes {
            place.lend(linger(socket)).await;
            return;
        }
    }
}

/// Waits until the client has ended its sending, and after that for the time of a step. It may
/// still read, but no client waits for long that cannot ask for anything any more.
async fn left(socket: &Socket, limits: Limits) {
    socket.ended().await;
    Timer::after(socket.reactor(), limits.step).await;
}

/// Answers a connection for which there is no room.
async fn turn_away(handle: Handle, stream: OwnedFd, limits: Limits, _permit: Permit) {
    let Ok(socket) = Socket::new(handle.reactor(), stream) else { return };
    let problem = format!(
        "all {} connections of the admin listener are taken: close some",
        limits.connections
    );
    let reply = Reply::error(503, problem).with("Retry-After", "1");
    if write_within(limits.step, &socket, &reply.into_bytes(true).0).await.is_ok() {
        linger(socket).await;
    }
}

/// Waits for the next request; `None` if none begins.
async fn next_request(
    socket: &Socket,
    bytes: &mut Vec<u8>,
    (limits, is_first): (Limits, bool),
) -> Option<Result<Request, Option<Reply>>> {
    if !is_first && bytes.is_empty() && !next_begins(socket, bytes, limits).await {
        return None;
    }
    Some(read_request(socket, bytes, limits).await)
}

/// Waits for the first bytes of the next request; returns false if none come.
async fn next_begins(mut socket: &Socket, bytes: &mut Vec<u8>, limits: Limits) -> bool {
    let mut first = [0; 1_024];
    match io_within(socket.reactor(), limits.idle, socket.read(&mut first)).await {
        Ok(count) => {
            bytes.extend_from_slice(&first[..count]);
            count > 0
        }
        Err(_) => false,
    }
}

/// Reads a whole request, which begins with `bytes`, and leaves there what came after it.
///
/// # Errors
///
/// The answer to a client that sends none, if it is owed one. Its connection has to end.
async fn read_request(
    mut socket: &Socket,
    bytes: &mut Vec<u8>,
    limits: Limits,
) -> Result<Request, Option<Reply>> {
    let head = read_head(socket, bytes, limits).await?;
    let Announced { mut request, body, awaits_continue } = Announced::parse(head.bytes())?;
    let mut rest = head.rest().to_vec();
    if awaits_continue && rest.is_empty() {
        let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
        write_within(limits.step, socket, interim).await.map_err(|_| None)?;
    }
    let had = rest.len();
    if had < body {
        // At most 16 KiB, as the head was judged.
        rest.resize(body, 0);
        let reactor = socket.reactor();
        let read = io_within(reactor, limits.step, socket.read_exact(&mut rest[had..])).await;
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::TimedOut => {
                Some(Reply::error(408, "the body did not arrive in time: send it at once"))
            }
            _ => None,
        })?;
    }
    *bytes = rest.split_off(body);
    request.body = rest;
    Ok(request)
}

/// Reads a head under one deadline.
async fn read_head(
    mut socket: &Socket,
    bytes: &mut Vec<u8>,
    limits: Limits,
) -> Result<Head, Option<Reply>> {
    let deadline = Timer::after(socket.reactor(), limits.step);
    let bound = (HEAD_MAX, HeadScan::default());
    head::read(&mut socket, bytes, bound, deadline).await.map_err(|error| {
        let reply = match error {
            HeadError::TimedOut { begun: true } => {
                Reply::error(408, "the request head did not arrive in time: send it at once")
            }
            HeadError::TooLong { .. } => {
                let problem =
                    format!("the request head is longer than {HEAD_MAX} bytes: send fewer fields");
                Reply::error(431, problem)
            }
            HeadError::Malformed(what) => {
                Reply::error(400, format!("the request head has {what}: send HTTP/1.1"))
            }
            HeadError::Ended { begun: true } => {
                Reply::error(400, "the request head is not complete: end it with a blank line")
            }
            HeadError::TimedOut { begun: false }
            | HeadError::Ended { begun: false }
            | HeadError::Broken { .. } => return None,
        };
        Some(reply)
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Ipv6Addr, Shutdown as Half, SocketAddr, TcpListener, TcpStream};

    use super::*;
    use crate::shutdown::{AllDropped, guard};
    use crate::worker::{WorkGroup, Workers};

    /// Answers with the path, with much at `/much`, and with the client's address at `/peer`.
    struct Echo;

    impl Service for Echo {
        async fn answer(&self, request: Request, peer: Peer) -> Reply {
            match &*request.path {
                "/never" => future::pending().await,
                "/much" => Reply::ok("text/plain", vec![b'.'; 64 * 1024 * 1024]),
                "/peer" => {
                    Reply::text(200, &[peer.ip().map(|ip| ip.to_string()).unwrap_or_default()])
                }
                path => Reply::text(200, &[path]),
            }
        }
    }

    /// A server that is ended with the test.
    struct Running {
        address: SocketAddr,
        stop: Shutdown,
        ended: AllDropped,
        _group: WorkGroup,
    }

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(600);

    fn start(limits: Limits) -> Running {
        start_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), limits)
    }

    fn start_on(listener: TcpListener, limits: Limits) -> Running {
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let group = Workers::start(1).unwrap().group(None);
        let (alive, ended) = guard();
        let stop = Shutdown::new();
        let until = (alive, stop.clone());
        let listener = BoundListener::tcp(listener).unwrap();
        group.start_task(move |handle| accept(handle, listener, Arc::new(Echo), limits, until));
        Running { address, stop, ended, _group: group }
    }

    fn connect(server: &Running) -> TcpStream {
        let stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends these bytes; returns all that comes up to the end of the connection.
    fn exchange(server: &Running, bytes: &str) -> String {
        let mut stream = connect(server);
        stream.write_all(bytes.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn slow_clients_are_cut_off() {
        let server = start(Limits { step: SHORT, idle: LONG, ..Limits::default() });
        assert_eq!(exchange(&server, ""), "");
        let head = exchange(&server, "GET / HTTP/1.1\r\nHost: a\r\n");
        assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
        let body = exchange(&server, "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n1");
        assert!(body.starts_with("HTTP/1.1 408 "), "{body}");
    }

    #[test]
    fn a_reader_that_takes_nothing_is_cut_off() {
        let server = start(Limits { step: SHORT, idle: LONG, ..Limits::default() });
        let mut greedy = connect(&server);
        greedy.write_all(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        greedy.read_exact(&mut [0]).unwrap();
        // The end waits for a response that is under way.
        server.stop.begin();
        future::block_on(server.ended.wait());
    }

    #[test]
    fn those_that_wait_for_their_clients_give_way() {
        let server = start(Limits { step: LONG, idle: LONG, connections: 3 });
        let ends = |stream: &mut TcpStream| {
            let mut text = Vec::new();
            // What it had sent may have the kernel reset it.
            let _ = stream.read_to_end(&mut text);
        };
        let ask = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut idle = connect(&server);
        idle.write_all(ask.as_bytes()).unwrap();
        idle.read_exact(&mut [0]).unwrap();
        let mut slow = connect(&server);
        slow.write_all(b"GET /").unwrap();
        let mut greedy = connect(&server);
        greedy.write_all(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        greedy.read_exact(&mut [0]).unwrap();
        // Each new one stays, and is the last to give way.
        let mut new: Vec<_> = (0..3).map(|_| connect(&server)).collect();
        ends(&mut idle);
        ends(&mut slow);
        ends(&mut greedy);
        for stream in &mut new {
            stream.write_all(ask.as_bytes()).unwrap();
            let mut start = [0; 12];
            stream.read_exact(&mut start).unwrap();
            assert_eq!(&start, b"HTTP/1.1 200");
        }
    }

    #[test]
    fn a_client_that_has_left_gives_its_place_back() {
        let server = start(Limits { step: SHORT, idle: LONG, ..Limits::default() });
        let half_closed = |path: &str| {
            let mut stream = connect(&server);
            write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            stream.shutdown(Half::Write).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        assert!(half_closed("/x").ends_with("\r\n\r\n/x\n"));
        assert_eq!(half_closed("/never"), "");
    }

    #[test]
    fn an_idle_connection_is_closed_after_its_own_time() {
        let server = start(Limits { step: LONG, idle: SHORT, ..Limits::default() });
        let text = exchange(&server, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\n\r\n/x\n"), "{text}");
    }

    #[test]
    fn a_client_that_resets_gives_its_place_back() {
        let limits = Limits { step: LONG, idle: LONG, connections: 1 };
        let server = start(limits);
        let mut waiting = connect(&server);
        let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        waiting.write_all((ask("/x") + &ask("/never")).as_bytes()).unwrap();
        // The second one is being answered as soon as the first one is.
        waiting.read_exact(&mut [0]).unwrap();
        assert!(exchange(&server, "").starts_with("HTTP/1.1 503 "));
        rustix::net::sockopt::set_socket_linger(&waiting, Some(Duration::ZERO)).unwrap();
        drop(waiting);
        let ask = "GET /x HTTP/1.0\r\n\r\n";
        while !exchange(&server, ask).starts_with("HTTP/1.1 200 ") {
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_ipv4_client_of_an_ipv6_listener_has_its_own_address() {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut server = start_on(listener, Limits::default());
        server.address = (Ipv4Addr::LOCALHOST, port).into();
        let text = exchange(&server, "GET /peer HTTP/1.0\r\n\r\n");
        assert!(text.ends_with("\r\n\r\n127.0.0.1\n"), "{text}");
    }

    #[test]
    fn few_of_those_that_are_too_many_are_told_so() {
        let server = start(Limits { step: LONG, idle: LONG, connections: 0 });
        // Each stays for the two seconds that it has to end its side.
        let mut refused: Vec<_> = (0..=REFUSALS_MAX).map(|_| connect(&server)).collect();
        let told = refused.iter_mut().map(|stream| {
            let mut text = String::new();
            stream.read_to_string(&mut text).map_or(0, |_| text.len())
        });
        let told: Vec<_> = told.collect();
        let (last, first) = told.split_last().unwrap();
        assert!(*last == 0 && first.iter().all(|&length| length > 0), "{told:?}");
    }

    #[test]
    fn a_client_that_stays_after_its_last_response_does_not_hold_up_the_end() {
        let server = start(Limits { step: LONG, idle: LONG, ..Limits::default() });
        let mut stays = connect(&server);
        stays.write_all(b"GET /x HTTP/1.0\r\n\r\n").unwrap();
        stays.read_to_end(&mut Vec::new()).unwrap();
        let asked = std::time::Instant::now();
        server.stop.begin();
        future::block_on(server.ended.wait());
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    }

    #[test]
    fn connections_between_requests_do_not_hold_up_the_end() {
        let server = start(Limits { step: LONG, idle: LONG, ..Limits::default() });
        let mut idle = connect(&server);
        idle.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut byte = [0];
        idle.read_exact(&mut byte).unwrap();
        let _silent = connect(&server);
        let mut begun = connect(&server);
        begun.write_all(b"GET /").unwrap();
        begun.shutdown(Half::Read).unwrap();
        server.stop.begin();
        future::block_on(server.ended.wait());
    }
}
