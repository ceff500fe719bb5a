//! The story of one client, from its first byte to its last.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_net::TcpStream;
use futures_lite::{AsyncReadExt, future};
use smol::Timer;

use crate::backend::dial::{DialError, dial};
use crate::early::Early;
use crate::handshake::body::{Body, Framing, Progress};
use crate::handshake::forward::{Hop, refusal_head, request_head, switching_head};
use crate::handshake::reject::Reject;
use crate::handshake::request::UpgradeRequest;
use crate::handshake::response::Answer;
use crate::head::{self, Head, NoHead};
use crate::net;
use crate::outcome::{Outcome, Stage};
use crate::server::Section;
use crate::tunnel::Tunnel;

/// Longest head of a request, its blank line included.
const REQUEST_HEAD_MAX: usize = 8_192;
/// Longest head of an answer, with the interim answers before it.
const RESPONSE_HEAD_MAX: usize = 64 * 1024;
/// Interim answers (1xx) that are skipped before the final one.
const INTERIM_MAX: usize = 16;
/// How long a client may take to receive an answer of ours.
const REJECT_TIME: Duration = Duration::from_secs(5);

/// What the backend said to a handshake, ready to go on to the client.
enum Answered {
    /// A verified 101.
    Switched {
        backend: TcpStream,
        /// The 101 for the client, and behind it what the backend sent already.
        for_client: Vec<u8>,
        /// How much of it is the 101.
        head_len: usize,
        /// The backend's name.
        name: String,
    },
    /// Any other answer.
    Refused(Refusal),
}

/// An answer of the backend that is no switch.
struct Refusal {
    backend: TcpStream,
    name: String,
    status: u16,
    /// The head for the client.
    head: Vec<u8>,
    /// What came of the body together with the head.
    rest: Vec<u8>,
    framing: Framing,
}

/// Carries one client from its first byte to its last.
pub(crate) async fn serve(mut client: TcpStream, peer: SocketAddr, section: &Section) -> Outcome {
    let started = Instant::now();

    // The whole head, under one deadline.
    let deadline = Timer::after(section.settings.read_timeout);
    let head = match head::read(&mut client, Vec::new(), REQUEST_HEAD_MAX, deadline).await {
        Ok(head) => head,
        Err(no_head) => return without_head(client, no_head).await,
    };

    // No backend hears of a request that is not good.
    let request = match judge(head.bytes(), section) {
        Ok(request) => request,
        Err(rejected) => return reject(client, rejected).await,
    };

    // While the backend is dialled and thinks, the client is listened to: what it sends is kept, and if its
    // connection breaks the attempt is dropped, with the backend's connection in it.
    let mut early = Early::new(head.rest());
    let attempt = async { Some(open(&request, peer, section).await) };
    let watch = async {
        early.watch(&client).await;
        None
    };
    let answered = match future::or(attempt, watch).await {
        Some(Ok(answered)) => answered,
        Some(Err(rejected)) => return reject(client, rejected).await,
        None => return Outcome::ClientGone { stage: Stage::Handshake },
    };

    match answered {
        Answered::Refused(refusal) => {
            section.note_refusal(refusal.status, &request);
            pass_on(client, early, refusal, section.settings.response_timeout).await
        }
        // The client gets the backend's own 101 as the first bytes of the tunnel.
        Answered::Switched { backend, for_client, head_len, name } => {
            let handshake = started.elapsed();
            let for_backend = early.into_bytes();
            // The buffers of the handshake are not needed for the hours of the tunnel.
            drop(request);
            drop(head);
            let tunnel = Tunnel { client, backend, for_backend, for_client };
            let end = tunnel.run().await;
            Outcome::Tunnel {
                backend: name,
                handshake,
                lifetime: started.elapsed(),
                head_len: head_len as u64,
                end,
            }
        }
    }
}

/// Whether a complete head is an upgrade that may pass.
fn judge<'a>(head: &'a [u8], section: &Section) -> Result<UpgradeRequest<'a>, Reject> {
    let request = UpgradeRequest::parse(head)?;
    let origin = request.origin()?;
    match &section.settings.origins {
        Some(origins) if !origins.allows(origin) => Err(Reject::origin(match origin {
            Some(_) => "this origin may not open a WebSocket here",
            None => "a WebSocket from here needs an Origin",
        })),
        _ => Ok(request),
    }
}

/// Brings the handshake to a backend and gets its answer.
async fn open(request: &UpgradeRequest<'_>, peer: SocketAddr, section: &Section) -> Result<Answered, Reject> {
    let settings = &section.settings;
    let order =
        section.rotation.turn(settings.backends.len()).filter_map(|index| settings.backends.get(index));
    let dialed = dial(order, settings.connect_timeout).await.map_err(|error| match error {
        DialError::Unreachable => Reject::unreachable(),
        DialError::TimedOut => Reject::connect_timeout(),
        DialError::OutOfDescriptors => Reject::full("this proxy is out of file descriptors"),
    })?;
    let (name, mut backend) = (dialed.backend.to_string(), dialed.socket);

    let hop = Hop { client: peer.ip(), backend: &name, host: settings.host, forwarded: settings.forwarded };
    let outgoing = request_head(request, &hop);
    net::write_within(settings.response_timeout, &mut backend, &outgoing).await.map_err(
        |error| match error.kind() {
            io::ErrorKind::TimedOut => Reject::response_timeout(),
            _ => Reject::bad_answer("the backend closed the connection before it answered"),
        },
    )?;

    match answer(&mut backend, request, settings.response_timeout).await {
        Ok((answer_head, kind)) => Ok(match kind {
            Kind::Switching { mut for_client } => {
                let head_len = for_client.len();
                for_client.extend_from_slice(answer_head.rest());
                Answered::Switched { backend, for_client, head_len, name }
            }
            Kind::Refusal { status, head, framing } => {
                let rest = answer_head.rest().to_vec();
                Answered::Refused(Refusal { backend, name, status, head, rest, framing })
            }
        }),
        Err(rejected) => {
            log::warn!(
                "event=backend_faulty backend={name} reason={} error={:?}",
                rejected.reason,
                rejected.detail
            );
            Err(rejected)
        }
    }
}

/// A final answer, with its head as the client gets it.
enum Kind {
    Switching { for_client: Vec<u8> },
    Refusal { status: u16, head: Vec<u8>, framing: Framing },
}

/// Reads the backend's answers up to the final one, under one deadline and one bound for all of them.
async fn answer(
    backend: &mut TcpStream,
    request: &UpgradeRequest<'_>,
    timeout: Duration,
) -> Result<(Head, Kind), Reject> {
    let mut deadline = Timer::after(timeout);
    let mut left = RESPONSE_HEAD_MAX;
    let mut rest = Vec::new();
    for _ in 0..=INTERIM_MAX {
        let head = head::read(backend, rest, left, &mut deadline).await.map_err(bad_head)?;
        let kind = match Answer::parse(head.bytes(), request).map_err(Reject::bad_answer)? {
            Answer::Switching(response) => Kind::Switching { for_client: switching_head(&response) },
            Answer::Refusal(response, framing) => {
                Kind::Refusal { status: response.status, head: refusal_head(&response), framing }
            }
            Answer::Interim => {
                left = left.saturating_sub(head.bytes().len());
                rest = head.rest().to_vec();
                continue;
            }
        };
        return Ok((head, kind));
    }
    Err(Reject::bad_answer("the backend sends one interim answer after another"))
}

fn bad_head(no_head: NoHead) -> Reject {
    match no_head {
        NoHead::TimedOut { .. } => Reject::response_timeout(),
        NoHead::Ended { begun: false } | NoHead::Broken => {
            Reject::bad_answer("the backend closed the connection before it answered")
        }
        NoHead::Ended { begun: true } => {
            Reject::bad_answer("the backend closed the connection within its answer's head")
        }
        NoHead::TooLong { .. } => Reject::bad_answer("the head of the backend's answer is too long"),
        NoHead::Malformed(_) => Reject::bad_answer("the backend's answer is not HTTP/1.1"),
    }
}

/// Passes a refusal on, head and body, and ends both connections after it, in order.
async fn pass_on(mut client: TcpStream, mut early: Early, refusal: Refusal, timeout: Duration) -> Outcome {
    let Refusal { mut backend, name, status, head, rest, framing } = refusal;
    let listened_to = client.clone();
    let body = async { Some(pass_body(&mut client, &mut backend, head, rest, framing, timeout).await) };
    let watch = async {
        early.watch(&listened_to).await;
        None
    };
    let passed = future::or(body, watch).await;
    drop(listened_to);
    // A backend that is still writing is read on for a while and not reset: some die of that.
    match &passed {
        Some(_) => {
            future::zip(net::close_in_stages(client), net::close_in_stages(backend)).await;
        }
        None => net::close_in_stages(backend).await,
    }
    match passed {
        Some(Ok(())) => Outcome::PassedOn { backend: name, status, fault: None },
        Some(Err(fault)) => Outcome::PassedOn { backend: name, status, fault: Some(fault.to_string()) },
        None => Outcome::ClientGone { stage: Stage::Refusal },
    }
}

/// Passes a body on up to its end.
async fn pass_body(
    client: &mut TcpStream,
    backend: &mut TcpStream,
    head: Vec<u8>,
    mut bytes: Vec<u8>,
    framing: Framing,
    timeout: Duration,
) -> io::Result<()> {
    let cut = |what: &'static str| io::Error::new(io::ErrorKind::UnexpectedEof, what);
    let mut body = Body::new(framing);
    let mut outgoing = head;
    loop {
        let progress = body.advance(&bytes);
        let passing = match progress {
            Progress::More => bytes.len(),
            Progress::End(end) => end,
            Progress::Fault => 0,
        };
        outgoing.extend_from_slice(&bytes[..passing]);
        net::write_within(timeout, client, &outgoing).await?;
        outgoing.clear();
        match progress {
            Progress::More => {}
            Progress::End(_) => return Ok(()),
            Progress::Fault => return Err(cut("the backend's body has broken chunks")),
        }
        bytes.resize(16 * 1024, 0);
        let read = net::within(timeout, backend.read(&mut bytes)).await;
        let count = read.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))?;
        bytes.truncate(count);
        if count == 0 {
            return if body.may_end_here() { Ok(()) } else { Err(cut("the backend's body is cut short")) };
        }
    }
}

/// Answers a client whose head did not come.
async fn without_head(client: TcpStream, no_head: NoHead) -> Outcome {
    let rejected = match no_head {
        // Probes that only connect, and clients that opened a connection in advance, are owed no answer.
        NoHead::TimedOut { begun: false } => return Outcome::Silent { ended_by: "timeout" },
        NoHead::Ended { begun: false } => return Outcome::Silent { ended_by: "client" },
        NoHead::Broken => return Outcome::ClientGone { stage: Stage::Head },
        NoHead::Ended { begun: true } => Reject::malformed("the request head is not complete"),
        NoHead::TimedOut { begun: true } => Reject::timeout(),
        NoHead::TooLong { first_line_ends: false } => Reject::line_too_long(REQUEST_HEAD_MAX),
        NoHead::TooLong { first_line_ends: true } => Reject::head_too_long(REQUEST_HEAD_MAX),
        NoHead::Malformed(what) => Reject::malformed(format!("the request head has {what}")),
    };
    reject(client, rejected).await
}

/// Gives the client an answer of ours, and sees to it that it can arrive.
pub(crate) async fn reject(mut client: TcpStream, rejected: Reject) -> Outcome {
    match net::write_within(REJECT_TIME, &mut client, &rejected.response()).await {
        Ok(()) => net::close_in_stages(client).await,
        Err(error) => log::debug!("event=answer_failed error={:?}", error.to_string()),
    }
    Outcome::Rejected(rejected)
}
