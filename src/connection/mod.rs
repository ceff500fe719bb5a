//! The story of one client, from its first byte to its tunnel or its last response.
//!
//! [`serve`] tells it. [`mod@exchange`] brings the handshake to a backend, [`response`] ends what
//! comes to no tunnel, [`unanswered`] what is cut before its answer. [`plain`] has the requests
//! that are no upgrades.

mod account;
mod exchange;
mod plain;
mod report;
mod response;
mod turn;
mod unanswered;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_lite::future;

use self::account::{Guards, TunnelAccount};
use self::exchange::{Exchanged, Failed, exchange};
use self::response::{Declined, ForwardEnd, forward_response, send_last};
use self::unanswered::Unanswered;
use crate::backend::Lease;
use crate::events::{self, Event, Stage};
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::forward::HostHeader;
use crate::handshake::http::RequestHead;
use crate::handshake::probe::{ProbeAnswer, is_probe};
use crate::handshake::response::Answer;
use crate::handshake::scan::HeadScan;
use crate::handshake::summary::Summary;
use crate::handshake::trace::request_id;
use crate::handshake::upgrade::UpgradeRequest;
use crate::head::{self, Head, HeadError};
use crate::net::close::linger;
use crate::net::socket::Socket;
use crate::net::timer::Timer;
use crate::section::{Client, Permit, Section};
use crate::settings::PlainHttp;
use crate::shutdown::Guard;
use crate::tunnel::{NewTunnel, PerSide};
use crate::worker::{Handle, Load};

/// Outcome of a handshake, before the client has heard of it.
enum Outcome {
    /// A backend has answered.
    Answered {
        exchanged: Exchanged,
        /// Bytes that came together with the client's head.
        early: Vec<u8>,
    },
    /// No backend has, or none was asked.
    Failed(Failed),
    /// The client asked whether this section is ready.
    Probed(ProbeAnswer),
    /// The client went away.
    Gone(Stage),
    /// The client never sent a byte; for [`Event::Silent`].
    Silent(&'static str),
}

/// Serves a client: reads its head, brings the handshake to a backend, and leaves the tunnel to
/// this worker. The task ends there, and gives its memory back. `counted` is held to the
/// connection's end.
pub(crate) async fn serve(
    handle: Handle,
    stream: OwnedFd,
    mut client: Client,
    counted: (Permit, Load),
    alive: Guard,
) {
    // A client that has not sent a whole request does not keep the proxy from stopping.
    let waiting = alive.downgrade();
    drop(alive);
    let Some(mut socket) = register(&handle, stream, &client) else { return };
    let mut bytes = Vec::new();
    // Requests before an upgrade, if any may come. Boxed: handshakes need no room for them.
    let mut upgrade = None;
    if client.section.settings.plain.treatment == PlainHttp::Forward {
        let served = Box::pin(plain::serve(&handle, socket, client, &waiting)).await;
        let Some(handshake) = served else { return };
        (socket, client, bytes) = (handshake.socket, handshake.client, handshake.bytes);
        upgrade = Some((handshake.head, handshake.alive));
    }
    // Up to its answer, a client whose task is cut is told so.
    let unanswered = Unanswered::new(&socket, &client);
    let (head, alive) = match upgrade {
        None => {
            let head = read_head(&unanswered, &handle, &client.section, &mut bytes).await;
            let Some(alive) = waiting.upgrade() else { return };
            (head, alive)
        }
        Some((head, alive)) => {
            unanswered.note(head.as_ref().map_or(&*bytes, Head::bytes));
            (head, alive)
        }
    };
    let outcome = match head {
        Ok(head) => ask(&unanswered, &head).await,
        Err(error) => without_head(error, &bytes, &client.section),
    };
    let summary = unanswered.settle();
    conclude(&handle, socket, client, (outcome, summary), (counted, alive)).await;
}

/// Does what has become of a handshake: leaves the tunnel to this worker, or ends the connection.
async fn conclude(
    handle: &Handle,
    socket: Socket,
    client: Client,
    (outcome, summary): (Outcome, Option<Summary>),
    guards: Guards,
) {
    match outcome {
        Outcome::Answered { exchanged, early } => match exchanged.answer {
            Answer::Switched { head, is_extended, .. } => {
                let Exchanged { lease, backend, rest, .. } = exchanged;
                let tunnel = NewTunnel {
                    sockets: PerSide { client: socket, backend },
                    // The client gets the backend's own 101 as the first bytes of the tunnel.
                    head,
                    // What it has sent early follows: first what came with its head, then what
                    // the tunnel finds in the socket.
                    early: PerSide { client: early, backend: rest },
                    is_extended,
                    policy: Arc::clone(&client.section.settings.policy),
                };
                open_tunnel(handle, tunnel, (client, lease, summary), guards);
            }
            Answer::Declined { status, head, framing } => {
                let Exchanged { lease, backend, rest, .. } = exchanged;
                let declined = Declined { backend, head, rest, framing };
                let told = (&lease, status, summary.as_ref());
                decline(socket, declined, &client, told).await;
            }
        },
        Outcome::Failed(failed) => fail(socket, failed, &client, summary.as_ref()).await,
        Outcome::Probed(answer) => {
            Event::Probed { client: &client, status: answer.status }.emit();
            send_last(socket, &answer.bytes).await;
        }
        Outcome::Gone(stage) => {
            Event::ClientGone { client: &client, stage, summary: summary.as_ref() }.emit();
        }
        Outcome::Silent(ended_by) => Event::Silent { client: &client, ended_by }.emit(),
    }
}

/// Answers a client for which there is no room with a 503. `guards` are held to the end.
pub(crate) async fn turn_away(
    handle: Handle,
    stream: OwnedFd,
    client: Client,
    guards: (Permit, Load, Guard),
) {
    if let Some(socket) = register(&handle, stream, &client) {
        let full = ErrorResponse::full("too many connections, come again later");
        refuse(socket, full, &client, None).await;
    }
    drop(guards);
}

/// Registers a client's socket with the worker that its task runs on.
fn register(handle: &Handle, stream: OwnedFd, client: &Client) -> Option<Socket> {
    match Socket::new(handle.reactor(), stream) {
        Ok(socket) => Some(socket),
        Err(error) => {
            Event::RegisterFailed { client, error: &error }.emit();
            None
        }
    }
}

/// Reads a client's whole head, under one deadline.
async fn read_head(
    mut client: &Unanswered<'_>,
    handle: &Handle,
    section: &Section,
    bytes: &mut Vec<u8>,
) -> Result<Head, HeadError> {
    let deadline = Timer::after(handle.reactor(), section.settings.read_timeout);
    let bound = (section.settings.max_head, HeadScan::default());
    head::read(&mut client, bytes, bound, deadline).await
}

/// Brings a client's handshake to a backend, if its head may pass.
async fn ask(unanswered: &Unanswered<'_>, head: &Head) -> Outcome {
    let &Unanswered { socket, client, .. } = unanswered;
    // Parse, then judge: no backend hears of a request that may not pass.
    let parsed = match RequestHead::parse(head.bytes()) {
        Ok(parsed) => parsed,
        Err(error) => return refused(error.into(), head.bytes()),
    };
    if let Some(path) = &client.section.settings.plain.health_path
        && is_probe(&parsed, path)
    {
        let reason = client.section.unready_reason(socket.reactor().now());
        return Outcome::Probed(ProbeAnswer::new(&parsed, reason.as_deref()));
    }
    // Made once: each backend that is asked gets it, and each line of the log tells it.
    let request_id = &*request_id(&parsed.fields, fastrand::u128(..));
    if events::tells_of_tunnels() || client.section.stats.is_some() {
        let forwarded = client.section.settings.forwarded;
        unanswered.set_summary(Summary::of(&parsed, forwarded, request_id));
    }
    let request = match judge(&parsed, &client.section) {
        Ok(request) => request,
        Err(response) => return refused(response, head.bytes()),
    };

    // While the backend is dialled and thinks, the client is not read: what it sends early waits in
    // the kernel, under TCP's own bounds. If it ends, nobody waits for the answer any more: the
    // exchange is dropped, with the backend's connection in it.
    let asked = (&request, request_id);
    let exchanged = async { Some(exchange(socket.reactor(), asked, client).await) };
    let client_is_gone = async {
        socket.ended().await;
        None
    };
    match future::or(client_is_gone, exchanged).await {
        Some(Ok(exchanged)) => {
            if let Answer::Declined { status, .. } = exchanged.answer {
                hint_at_host(status, &request, &client.section);
            }
            Outcome::Answered { exchanged, early: head.rest().to_vec() }
        }
        Some(Err(failed)) => Outcome::Failed(failed),
        None => Outcome::Gone(Stage::Handshake),
    }
}

/// Leaves a tunnel to its worker. `guards` are held to its end.
fn open_tunnel(
    handle: &Handle,
    tunnel: NewTunnel,
    (client, lease, summary): (Client, Lease, Option<Summary>),
    guards: Guards,
) {
    // From the accept to the verified 101.
    let handshake = handle.reactor().now().saturating_duration_since(client.accepted);
    let lease = lease.into_tunnel();
    {
        let (client, lease, summary) = (&client, lease.lease(), summary.as_ref());
        Event::TunnelStarted { client, lease, handshake, summary }.emit();
    }
    let account = TunnelAccount::new(client, lease, summary, handshake, guards);
    handle.open_tunnel(tunnel, Box::new(account));
}

/// Returns the request of a head that is an upgrade and may pass (RFC 6455, 4.2.1 and 10.2).
fn judge<'a>(
    head: &'a RequestHead<'a>,
    section: &Section,
) -> Result<UpgradeRequest<'a>, ErrorResponse> {
    let request = UpgradeRequest::judge(head, section.settings.handshake_rules())?;
    let origin = request.origin()?;
    match &section.settings.origins {
        Some(origins) if !origins.allows(origin) => Err(ErrorResponse::origin(match origin {
            Some(_) => "this origin may not open a WebSocket here",
            None => "a WebSocket from here needs an Origin",
        })),
        _ => Ok(request),
    }
}

/// Returns what becomes of a client whose head did not come, but for these bytes.
fn without_head(error: HeadError, bytes: &[u8], section: &Section) -> Outcome {
    let max = section.settings.max_head;
    let response = match error {
        // Probes that only connect, which some end by a reset, and clients that opened a connection
        // in advance, are owed no response.
        HeadError::TimedOut { begun: false } => return Outcome::Silent("timeout"),
        HeadError::Ended { begun: false } | HeadError::Broken { begun: false } => {
            return Outcome::Silent("client");
        }
        HeadError::Broken { begun: true } => return Outcome::Gone(Stage::Head),
        HeadError::Ended { begun: true } => {
            ErrorResponse::malformed("the request head is not complete")
        }
        HeadError::TimedOut { begun: true } => ErrorResponse::timeout(),
        HeadError::TooLong { first_line_ends: false } => ErrorResponse::line_too_long(max),
        HeadError::TooLong { first_line_ends: true } => ErrorResponse::head_too_long(max),
        HeadError::Malformed(what) => {
            ErrorResponse::malformed(format!("the request head has {what}"))
        }
    };
    refused(response, bytes)
}

/// Returns the outcome of a request that no backend has heard of, and that begins with these bytes.
fn refused(response: ErrorResponse, request: &[u8]) -> Outcome {
    Outcome::Failed(Failed { response: response.to(request), backend: None })
}

/// Sends a client a response of the proxy.
async fn refuse(
    socket: Socket,
    response: ErrorResponse,
    client: &Client,
    summary: Option<&Summary>,
) {
    // Told first: a task that is cut while its client takes the response would not tell it.
    Event::Refused { client, response: &response, summary }.emit();
    send_last(socket, &response.to_bytes()).await;
}

/// Tells a client of a failed exchange, and closes the backend at fault in order.
async fn fail(socket: Socket, failed: Failed, client: &Client, summary: Option<&Summary>) {
    let Failed { response, backend } = failed;
    let close = async {
        if let Some((_lease, backend)) = backend {
            linger(backend).await;
        }
    };
    future::zip(refuse(socket, response, client, summary), close).await;
}

/// Forwards a backend's refusal, and closes both connections.
async fn decline(
    socket: Socket,
    declined: Declined,
    client: &Client,
    (lease, status, summary): (&Lease, u16, Option<&Summary>),
) {
    let fault = io::Error::other("this proxy is shutting down");
    let mut told = DeclinedOnDrop { client, lease, status, summary, end: ForwardEnd::Part(fault) };
    let timeout = client.section.settings.response_timeout;
    let (end, sockets) = forward_response(socket, declined, timeout).await;
    told.end = end;
    drop(told);
    sockets.close().await;
}

/// Tells of a forwarded refusal, however it ends: with the fault that it begins with where its task
/// is cut.
struct DeclinedOnDrop<'a> {
    client: &'a Client,
    lease: &'a Lease,
    status: u16,
    summary: Option<&'a Summary>,
    end: ForwardEnd,
}

impl Drop for DeclinedOnDrop<'_> {
    fn drop(&mut self) {
        let Self { client, lease, status, summary, .. } = *self;
        let fault = match &self.end {
            ForwardEnd::Whole => None,
            ForwardEnd::Part(fault) => Some(fault),
            ForwardEnd::ClientGone => {
                return Event::ClientGone { client, stage: Stage::Refusal, summary }.emit();
            }
        };
        Event::Declined { client, lease, status, fault, summary }.emit();
    }
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
