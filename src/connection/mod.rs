//! The story of one client, from its first byte to its last.

mod attempt;
mod pass_on;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::future;

use self::attempt::{Answered, Failed, attempt};
use self::pass_on::pass_on;
use crate::early::Early;
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::http::RequestHead;
use crate::handshake::upgrade::UpgradeRequest;
use crate::head::{self, Head, NoHead};
use crate::net;
use crate::net::socket::Socket;
use crate::net::timer::Timer;
use crate::outcome::{Outcome, Stage};
use crate::section::Section;
use crate::tunnel::{NewTunnel, PerSide};

/// Longest head of a request, its blank line included.
const REQUEST_HEAD_MAX: usize = 8_192;
/// How long a client may take to receive an answer of ours.
const REJECT_TIME: Duration = Duration::from_secs(5);

/// A tunnel that is ready to be carried, and what the handshake leaves to be told at its end.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) tunnel: NewTunnel,
    /// Which of the section's backends it is.
    pub(crate) index: usize,
    /// When the client was accepted.
    pub(crate) started: Instant,
    /// From then to the verified 101.
    pub(crate) handshake: Duration,
}

/// Reads a client's whole head, under one deadline.
///
/// # Errors
///
/// See [`NoHead`], which is for [`serve`] as well.
pub(crate) async fn read_head(mut client: &Socket, section: &Section) -> Result<Head, NoHead> {
    let deadline = Timer::after(client.reactor(), section.settings.read_timeout);
    head::read(&mut client, Vec::new(), REQUEST_HEAD_MAX, deadline).await
}

/// Brings one client, accepted at `started`, from its head to its tunnel.
///
/// # Errors
///
/// How the connection ended, if it came to no tunnel.
pub(crate) async fn serve(
    client: Socket,
    started: Instant,
    request_head: Result<Head, NoHead>,
    peer: SocketAddr,
    section: &Section,
) -> Result<Established, Outcome> {
    let reactor = Rc::clone(client.reactor());
    let request_head = match request_head {
        Ok(head) => head,
        Err(no_head) => return Err(without_head(client, no_head).await),
    };

    // No backend hears of a request that is not good.
    let parsed = match RequestHead::parse(request_head.bytes()) {
        Ok(parsed) => parsed,
        Err(error) => return Err(reject(client, error.into()).await),
    };
    let request = match judge(&parsed, section) {
        Ok(request) => request,
        Err(rejected) => return Err(reject(client, rejected).await),
    };

    // While the backend is dialled and thinks, the client is listened to: what it sends is kept, and if its
    // connection breaks the attempt is dropped, with the backend's connection in it.
    let mut early = Early::new(request_head.rest());
    let answered = async { Some(attempt(&reactor, &request, peer, section).await) };
    let client_is_gone = async {
        early.watch(&client).await;
        None
    };
    let answered = match future::or(answered, client_is_gone).await {
        Some(Ok(answered)) => answered,
        Some(Err(Failed { reject: rejected, backend })) => {
            // A backend at fault is not reset either: it may be in the middle of writing.
            let close = async {
                if let Some(backend) = backend {
                    net::close::linger(backend).await;
                }
            };
            let (outcome, ()) = future::zip(reject(client, rejected), close).await;
            return Err(outcome);
        }
        None => return Err(Outcome::ClientGone { stage: Stage::Handshake }),
    };

    match answered {
        Answered::Refused(refusal) => {
            section.note_refusal(refusal.status, &request);
            Err(pass_on(client, early, refusal, section.settings.response_timeout).await)
        }
        // The client gets the backend's own 101 as the first bytes of the tunnel.
        Answered::Switched { backend, index, head, for_client, is_extended } => {
            let handshake = reactor.now().saturating_duration_since(started);
            let tunnel = NewTunnel {
                sockets: PerSide { client, backend },
                head,
                early: PerSide { client: early.into_bytes(), backend: for_client },
                is_extended,
                policy: Arc::clone(&section.settings.policy),
            };
            Ok(Established { tunnel, index, started, handshake })
        }
    }
}

/// Whether a parsed head is an upgrade that may pass.
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
async fn without_head(client: Socket, no_head: NoHead) -> Outcome {
    let rejected = match no_head {
        // Probes that only connect, which some end by a reset, and clients that opened a connection in advance, are
        // owed no answer.
        NoHead::TimedOut { begun: false } => return Outcome::Silent { ended_by: "timeout" },
        NoHead::Ended { begun: false } | NoHead::Broken { begun: false } => {
            return Outcome::Silent { ended_by: "client" };
        }
        NoHead::Broken { begun: true } => return Outcome::ClientGone { stage: Stage::Head },
        NoHead::Ended { begun: true } => {
            ErrorResponse::malformed("the request head is not complete")
        }
        NoHead::TimedOut { begun: true } => ErrorResponse::timeout(),
        NoHead::TooLong { first_line_ends: false } => {
            ErrorResponse::line_too_long(REQUEST_HEAD_MAX)
        }
        NoHead::TooLong { first_line_ends: true } => ErrorResponse::head_too_long(REQUEST_HEAD_MAX),
        NoHead::Malformed(what) => ErrorResponse::malformed(format!("the request head has {what}")),
    };
    reject(client, rejected).await
}

/// Gives the client an answer of ours, and sees to it that it can arrive.
pub(crate) async fn reject(client: Socket, rejected: ErrorResponse) -> Outcome {
    match net::write_within(REJECT_TIME, &client, &rejected.to_bytes()).await {
        Ok(()) => net::close::linger(client).await,
        Err(error) => log::debug!("event=answer_failed error={:?}", error.to_string()),
    }
    Outcome::Rejected(rejected)
}
