//! Brings one handshake to a backend, and gets its answer.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::pass_on::Refusal;
use crate::backend::dial::{DialError, Dialed, dial};
use crate::handshake::body::Framing;
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::forward::{Hop, refusal_head, request_head, switching_head};
use crate::handshake::http::ResponseHead;
use crate::handshake::response::Answer;
use crate::handshake::upgrade::UpgradeRequest;
use crate::head::{self, NoHead};
use crate::net;
use crate::net::reactor::Reactor;
use crate::net::socket::Socket;
use crate::net::timer::Timer;
use crate::section::Section;

/// Longest head of an answer, with the interim answers before it.
const RESPONSE_HEAD_MAX: usize = 64 * 1024;
/// Interim answers (1xx) that are skipped before the final one.
const INTERIM_MAX: usize = 16;

/// What the backend said to a handshake, ready to go on to the client.
pub(super) enum Answered {
    /// A verified 101.
    Switched {
        backend: Socket,
        /// Which of the section's backends it is.
        index: usize,
        /// The 101 for the client.
        head: Vec<u8>,
        /// What the backend has sent already behind it.
        for_client: Vec<u8>,
        /// Whether it chose an extension.
        is_extended: bool,
    },
    /// Any other answer.
    Refused(Refusal),
}

/// An attempt that came to no answer, or to none that can be passed on.
pub(super) struct Failed {
    /// What the client is told.
    pub(super) reject: ErrorResponse,
    /// The backend that is at fault, if one was reached. It is to be closed in order.
    pub(super) backend: Option<Socket>,
}

/// Dials the backends in turn, gives the handshake to the one that accepts, and judges its answer.
///
/// Dropped before its end, it closes the connection to the backend.
///
/// # Errors
///
/// See [`Failed`].
pub(super) async fn attempt(
    reactor: &Rc<Reactor>,
    request: &UpgradeRequest<'_>,
    peer: SocketAddr,
    section: &Section,
) -> Result<Answered, Failed> {
    let settings = &section.settings;
    let order = section.rotation.turn(settings.backends.len());
    let dialed =
        dial(reactor, &settings.backends, order, settings.connect_timeout, settings.socket_buffer)
            .await;
    let Dialed { index, socket: backend } = dialed.map_err(|error| {
        let reject = match error {
            DialError::Unreachable => ErrorResponse::unreachable(),
            DialError::TimedOut => ErrorResponse::connect_timeout(),
            DialError::OutOfDescriptors => {
                ErrorResponse::full("this proxy is out of file descriptors")
            }
        };
        Failed { reject, backend: None }
    })?;

    let name = section.backend_name(index);
    let hop = Hop {
        client: peer.ip(),
        backend: name,
        host: settings.host,
        forwarded: settings.forwarded,
    };
    let head = request_head(request, &hop);
    match converse(&backend, &head, request, settings.response_timeout).await {
        Ok(Final::Switching { head, for_client, is_extended }) => {
            Ok(Answered::Switched { backend, index, head, for_client, is_extended })
        }
        Ok(Final::Refusal { status, head, rest, framing }) => {
            Ok(Answered::Refused(Refusal { backend, index, status, head, rest, framing }))
        }
        Err(reject) => {
            log::warn!(
                "event=backend_faulty backend={name} reason={} error={:?}",
                reject.reason,
                reject.detail
            );
            Err(Failed { reject, backend: Some(backend) })
        }
    }
}

/// A final answer, as it goes on to the client.
enum Final {
    Switching { head: Vec<u8>, for_client: Vec<u8>, is_extended: bool },
    Refusal { status: u16, head: Vec<u8>, rest: Vec<u8>, framing: Framing },
}

/// Sends the head and reads the backend's answers up to the final one: each under one deadline, and one bound on
/// the bytes of all answers.
async fn converse(
    mut backend: &Socket,
    head: &[u8],
    request: &UpgradeRequest<'_>,
    timeout: Duration,
) -> Result<Final, ErrorResponse> {
    net::write_within(timeout, backend, head).await.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => ErrorResponse::response_timeout(),
        _ => ErrorResponse::bad_answer(CLOSED_EARLY),
    })?;

    let mut deadline = Timer::after(backend.reactor(), timeout);
    let mut left = RESPONSE_HEAD_MAX;
    let mut rest = Vec::new();
    for _ in 0..=INTERIM_MAX {
        let head = head::read(&mut backend, rest, left, &mut deadline).await.map_err(bad_head)?;
        let response =
            ResponseHead::parse(head.bytes()).map_err(|_| ErrorResponse::bad_answer(NOT_HTTP))?;
        match Answer::judge(response, request).map_err(ErrorResponse::bad_answer)? {
            Answer::Interim => {
                left = left.saturating_sub(head.bytes().len());
                rest = head.rest().to_vec();
            }
            Answer::Switching(response) => {
                let is_extended = response.fields.list("Sec-WebSocket-Extensions").next().is_some();
                let for_client = head.rest().to_vec();
                return Ok(Final::Switching {
                    head: switching_head(&response),
                    for_client,
                    is_extended,
                });
            }
            Answer::Refusal(response, framing) => {
                let (status, rest) = (response.status, head.rest().to_vec());
                return Ok(Final::Refusal { status, head: refusal_head(&response), rest, framing });
            }
        }
    }
    Err(ErrorResponse::bad_answer("the backend sends one interim answer after another"))
}

/// Detail for a backend that does not answer in HTTP/1.
const NOT_HTTP: &str = "the backend's answer is not HTTP/1.1";
/// What is said of a backend that hangs up.
const CLOSED_EARLY: &str = "the backend closed the connection before it answered";

fn bad_head(no_head: NoHead) -> ErrorResponse {
    match no_head {
        NoHead::TimedOut { .. } => ErrorResponse::response_timeout(),
        NoHead::Ended { begun: false } | NoHead::Broken { .. } => {
            ErrorResponse::bad_answer(CLOSED_EARLY)
        }
        NoHead::Ended { begun: true } => {
            ErrorResponse::bad_answer("the backend closed the connection within its answer's head")
        }
        NoHead::TooLong { .. } => {
            ErrorResponse::bad_answer("the head of the backend's answer is too long")
        }
        NoHead::Malformed(_) => ErrorResponse::bad_answer(NOT_HTTP),
    }
}
