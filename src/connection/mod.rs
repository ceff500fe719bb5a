//! The story of one client, from its first byte to its tunnel or its last response.
//!
//! [`serve`] tells it. [`head`] reads the request, [`mod@exchange`] brings the handshake to a
//! backend, [`response`] ends what comes to no tunnel.

mod exchange;
mod head;
mod response;

use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future;

use self::exchange::{Exchanged, Failed, exchange};
use self::head::{Head, HeadError};
use self::response::{Declined, ForwardEnd, forward_response, send_error};
use crate::backend::Lease;
use crate::events::{Event, Stage};
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::forward::HostHeader;
use crate::handshake::http::RequestHead;
use crate::handshake::response::Answer;
use crate::handshake::upgrade::UpgradeRequest;
use crate::net::close::linger;
use crate::net::socket::Socket;
use crate::net::timer::Timer;
use crate::section::{Client, Permit, Section};
use crate::shutdown::Guard;
use crate::tunnel::{NewTunnel, PerSide};
use crate::worker::Handle;

/// Most bytes of a request head, its blank line included.
const REQUEST_HEAD_MAX: usize = 8_192;

/// A client whose backend has switched.
struct Upgraded {
    tunnel: NewTunnel,
    lease: Lease,
    /// From the accept to the verified 101.
    handshake: Duration,
}

/// Serves a client: reads its head, brings the handshake to a backend, and leaves the tunnel to
/// this worker. The task ends there, and gives its memory back.
pub(crate) async fn serve(
    handle: Handle,
    stream: TcpStream,
    client: Client,
    permit: Permit,
    alive: Guard,
) {
    // A client that has not sent a whole request does not keep the proxy from stopping.
    let waiting = alive.downgrade();
    drop(alive);
    let Some(socket) = register(&handle, stream, &client) else { return };
    let head = read_head(&socket, &client.section).await;
    let Some(alive) = waiting.upgrade() else { return };

    if let Some(upgraded) = upgrade(socket, head, &client).await {
        open_tunnel(&handle, upgraded, client, (permit, alive));
    }
}

/// Answers a client for which there is no room with a 503. `guards` are held to the end.
pub(crate) async fn turn_away(
    handle: Handle,
    stream: TcpStream,
    client: Client,
    guards: (Permit, Guard),
) {
    if let Some(socket) = register(&handle, stream, &client) {
        let full = ErrorResponse::full("too many connections, come again later");
        refuse::<()>(socket, full, &client).await;
    }
    drop(guards);
}

/// Registers a client's socket with the worker that its task runs on.
fn register(handle: &Handle, stream: TcpStream, client: &Client) -> Option<Socket> {
    match Socket::new(handle.reactor(), stream) {
        Ok(socket) => Some(socket),
        Err(error) => {
            Event::RegisterFailed { client, error: &error }.emit();
            None
        }
    }
}

/// Reads a client's whole head, under one deadline.
async fn read_head(mut socket: &Socket, section: &Section) -> Result<Head, HeadError> {
    let deadline = Timer::after(socket.reactor(), section.settings.read_timeout);
    head::read(&mut socket, Vec::new(), REQUEST_HEAD_MAX, deadline).await
}

/// Brings a client from its head to its tunnel; `None` if it comes to none, which an event tells.
async fn upgrade(
    socket: Socket,
    head: Result<Head, HeadError>,
    client: &Client,
) -> Option<Upgraded> {
    let reactor = Rc::clone(socket.reactor());
    let head = match head {
        Ok(head) => head,
        Err(error) => return without_head(socket, error, client).await,
    };
    // Parse, then judge: no backend hears of a request that may not pass.
    let parsed = match RequestHead::parse(head.bytes()) {
        Ok(parsed) => parsed,
        Err(error) => return refuse(socket, error.into(), client).await,
    };
    let request = match judge(&parsed, &client.section) {
        Ok(request) => request,
        Err(response) => return refuse(socket, response, client).await,
    };

    // While the backend is dialled and thinks, the client is not read: what it sends early waits in
    // the kernel, under TCP's own bounds. If it ends, nobody waits for the answer any more: the
    // exchange is dropped, with the backend's connection in it.
    let exchanged = async { Some(exchange(&reactor, &request, client).await) };
    let client_is_gone = async {
        socket.ended().await;
        None
    };
    let exchanged = match future::or(client_is_gone, exchanged).await {
        Some(Ok(exchanged)) => exchanged,
        Some(Err(failed)) => return fail(socket, failed, client).await,
        None => return gone(client, Stage::Handshake),
    };

    match exchanged.answer {
        // The client gets the backend's own 101 as the first bytes of the tunnel.
        // What it has sent early follows: first what came with its head, then what the tunnel finds
        // in the socket.
        Answer::Switched { head: answer, is_extended } => {
            let Exchanged { lease, backend, rest, .. } = exchanged;
            let early = PerSide { client: head.rest().to_vec(), backend: rest };
            let sockets = PerSide { client: socket, backend };
            let policy = Arc::clone(&client.section.settings.policy);
            let tunnel = NewTunnel { sockets, head: answer, early, is_extended, policy };
            let handshake = reactor.now().saturating_duration_since(client.accepted);
            Some(Upgraded { tunnel, lease, handshake })
        }
        Answer::Declined { status, head, framing } => {
            hint_at_host(status, &request, &client.section);
            let Exchanged { lease, backend, rest, .. } = exchanged;
            let declined = Declined { backend, head, rest, framing };
            let timeout = client.section.settings.response_timeout;
            let fault = match forward_response(socket, declined, timeout).await {
                ForwardEnd::Whole => None,
                ForwardEnd::Part(fault) => Some(fault),
                ForwardEnd::ClientGone => return gone(client, Stage::Refusal),
            };
            Event::Declined { client, lease: &lease, status, fault: fault.as_ref() }.emit();
            None
        }
    }
}

/// Leaves a tunnel to its worker. `guards` are held to its end.
fn open_tunnel(handle: &Handle, upgraded: Upgraded, client: Client, guards: (Permit, Guard)) {
    let Upgraded { tunnel, lease, handshake } = upgraded;
    let on_end = Box::new(move |end| {
        let (client, end, lifetime) = (&client, &end, client.accepted.elapsed());
        Event::TunnelEnded { client, lease: &lease, handshake, lifetime, end }.emit();
        Event::TunnelFrames { client, end }.emit();
        drop((lease, guards));
    });
    handle.open_tunnel(tunnel, on_end);
}

/// Returns the request of a head that is an upgrade and may pass (RFC 6455, 4.2.1 and 10.2).
fn judge<'a>(
    head: &'a RequestHead<'a>,
    section: &Section,
) -> Result<UpgradeRequest<'a>, ErrorResponse> {
    let request = UpgradeRequest::judge(head)?;
    let origin = request.origin()?;
    match &section.settings.origins {
        Some(origins) if !origins.allows(origin) => Err(ErrorResponse::origin(match origin {
            Some(_) => "this origin may not open a WebSocket here",
            None => "a WebSocket from here needs an Origin",
        })),
        _ => Ok(request),
    }
}

/// Answers a client whose head did not come.
async fn without_head<T>(socket: Socket, error: HeadError, client: &Client) -> Option<T> {
    let response = match error {
        // Probes that only connect, which some end by a reset, and clients that opened a connection
        // in advance, are owed no response.
        HeadError::TimedOut { begun: false } => {
            Event::Silent { client, ended_by: "timeout" }.emit();
            return None;
        }
        HeadError::Ended { begun: false } | HeadError::Broken { begun: false } => {
            Event::Silent { client, ended_by: "client" }.emit();
            return None;
        }
        HeadError::Broken { begun: true } => return gone(client, Stage::Head),
        HeadError::Ended { begun: true } => {
            ErrorResponse::malformed("the request head is not complete")
        }
        HeadError::TimedOut { begun: true } => ErrorResponse::timeout(),
        HeadError::TooLong { first_line_ends: false } => {
            ErrorResponse::line_too_long(REQUEST_HEAD_MAX)
        }
        HeadError::TooLong { first_line_ends: true } => {
            ErrorResponse::head_too_long(REQUEST_HEAD_MAX)
        }
        HeadError::Malformed(what) => {
            ErrorResponse::malformed(format!("the request head has {what}"))
        }
    };
    refuse(socket, response, client).await
}

/// Sends a client a response of the proxy. There is no tunnel then: `None`.
async fn refuse<T>(socket: Socket, response: ErrorResponse, client: &Client) -> Option<T> {
    send_error(socket, &response).await;
    Event::Refused { client, response: &response }.emit();
    None
}

/// Tells a client of a failed exchange, and closes the backend at fault in order.
async fn fail<T>(socket: Socket, failed: Failed, client: &Client) -> Option<T> {
    let Failed { response, backend } = failed;
    let close = async {
        if let Some((_lease, backend)) = backend {
            linger(backend).await;
        }
    };
    future::zip(refuse(socket, response, client), close).await.0
}

/// Notes that a client's connection broke.
fn gone<T>(client: &Client, stage: Stage) -> Option<T> {
    Event::ClientGone { client, stage }.emit();
    None
}

/// Hints once at the likely reason for which a backend declines a browser after Host was rewritten.
fn hint_at_host(status: u16, request: &UpgradeRequest<'_>, section: &Section) {
    let is_likely = matches!(status, 403 | 404)
        && section.settings.host == HostHeader::Backend
        && request.fields.values("Origin").next().is_some();
    if is_likely && section.may_hint_at_host() {
        Event::Hint { section, status }.emit();
    }
}
