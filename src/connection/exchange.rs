//! Exchange with a backend: brings one handshake there, and gets the answer.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::head::{self, HeadError};
use crate::backend::Lease;
use crate::backend::dial::dial;
use crate::events::Event;
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::forward::{ForwardPolicy, request_head};
use crate::handshake::http::ResponseHead;
use crate::handshake::response::Answer;
use crate::handshake::upgrade::UpgradeRequest;
use crate::net;
use crate::net::reactor::Reactor;
use crate::net::socket::Socket;
use crate::net::timer::Timer;
use crate::section::{Client, Section};

/// Most bytes of a response head, together with the interim responses before it.
const RESPONSE_HEAD_MAX: usize = 64 * 1024;
/// Interim responses (1xx) that are skipped before the final one.
const INTERIM_MAX: usize = 16;

/// A backend that has answered a handshake.
pub(super) struct Exchanged {
    pub(super) lease: Lease,
    pub(super) backend: Socket,
    pub(super) answer: Answer,
    /// Bytes that came after the head of the answer.
    pub(super) rest: Vec<u8>,
}

/// A handshake that got no answer, or none that can be forwarded.
pub(super) struct Failed {
    /// Response for the client.
    pub(super) response: ErrorResponse,
    /// The backend at fault, if one was reached. It is closed in order: it may be in the middle of
    /// writing.
    pub(super) backend: Option<(Lease, Socket)>,
}

/// Connects to a backend, gives it the handshake, and judges its answer.
///
/// Dropped before its end, it closes the connection to the backend.
///
/// # Errors
///
/// See [`Failed`].
pub(super) async fn exchange(
    reactor: &Rc<Reactor>,
    request: &UpgradeRequest<'_>,
    client: &Client,
) -> Result<Exchanged, Failed> {
    let settings = &client.section.settings;
    let (lease, backend) = connect(reactor, &client.section)
        .await
        .map_err(|response| Failed { response, backend: None })?;
    let policy = ForwardPolicy {
        client: client.peer.ip(),
        backend: lease.backend().name(),
        host: settings.host,
        forwarded: settings.forwarded,
    };
    let head = request_head(request, &policy);
    match converse(&backend, &head, request, settings.response_timeout).await {
        Ok((answer, rest)) => Ok(Exchanged { lease, backend, answer, rest }),
        Err(response) => {
            Event::BackendFaulty { backend: lease.backend(), response: &response }.emit();
            Err(Failed { response, backend: Some((lease, backend)) })
        }
    }
}

/// Connects to the first backend that accepts, in the pool's order.
///
/// # Errors
///
/// 503 at once where this process has no descriptors left; 504 if every attempt timed out;
/// otherwise 502.
async fn connect(
    reactor: &Rc<Reactor>,
    section: &Section,
) -> Result<(Lease, Socket), ErrorResponse> {
    let (timeout, buffer) = (section.settings.connect_timeout, section.settings.socket_buffer);
    let mut only_time_failed = true;
    for lease in section.pool.pick() {
        match dial(reactor, lease.backend(), timeout, buffer).await {
            Ok(socket) => return Ok((lease, socket)),
            Err(error) if net::out_of_descriptors(&error) => {
                Event::OutOfDescriptors { backend: lease.backend(), error: &error }.emit();
                return Err(ErrorResponse::full("this proxy is out of file descriptors"));
            }
            Err(error) => {
                only_time_failed &= error.kind() == io::ErrorKind::TimedOut;
                Event::BackendUnreachable { backend: lease.backend(), error: &error }.emit();
            }
        }
    }
    Err(match only_time_failed {
        true => ErrorResponse::connect_timeout(),
        false => ErrorResponse::unreachable(),
    })
}

/// Sends the head and reads responses up to the final one: all under one deadline, and with one
/// bound on their bytes. Returns the answer, and the bytes that came after its head.
async fn converse(
    mut backend: &Socket,
    head: &[u8],
    request: &UpgradeRequest<'_>,
    timeout: Duration,
) -> Result<(Answer, Vec<u8>), ErrorResponse> {
    net::write_within(timeout, backend, head).await.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => ErrorResponse::response_timeout(),
        _ => ErrorResponse::bad_answer(CLOSED_EARLY),
    })?;

    let mut deadline = Timer::after(backend.reactor(), timeout);
    let mut left = RESPONSE_HEAD_MAX;
    let mut rest = Vec::new();
    for _ in 0..=INTERIM_MAX {
        let read = head::read(&mut backend, rest, left, &mut deadline).await.map_err(no_head)?;
        let response = ResponseHead::parse(read.bytes())
            .map_err(|_| ErrorResponse::bad_answer("the backend's answer is not HTTP/1.1"))?;
        rest = read.rest().to_vec();
        if let Some(answer) =
            Answer::judge(&response, request).map_err(ErrorResponse::bad_answer)?
        {
            return Ok((answer, rest));
        }
        left = left.saturating_sub(read.bytes().len());
    }
    Err(ErrorResponse::bad_answer("the backend sends one interim answer after another"))
}

/// Explanation for a backend that hangs up.
const CLOSED_EARLY: &str = "the backend closed the connection before it answered";

fn no_head(error: HeadError) -> ErrorResponse {
    match error {
        HeadError::TimedOut { .. } => ErrorResponse::response_timeout(),
        HeadError::Ended { begun: false } | HeadError::Broken { .. } => {
            ErrorResponse::bad_answer(CLOSED_EARLY)
        }
        HeadError::Ended { begun: true } => {
            ErrorResponse::bad_answer("the backend closed the connection within its answer's head")
        }
        HeadError::TooLong { .. } => {
            ErrorResponse::bad_answer("the head of the backend's answer is too long")
        }
        HeadError::Malformed(_) => {
            ErrorResponse::bad_answer("the backend's answer is not HTTP/1.1")
        }
    }
}
