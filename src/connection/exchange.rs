//! Exchange with a backend: brings one handshake there, and gets the answer.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::head::{self, HeadError};
use crate::backend::Lease;
use crate::backend::dial::{dial, graver};
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
/// 503 at once where this process has no descriptors left, and after all attempts where one found
/// no local port; 504 if every attempt timed out; otherwise 502.
async fn connect(
    reactor: &Rc<Reactor>,
    section: &Section,
) -> Result<(Lease, Socket), ErrorResponse> {
    let settings = section.settings.dial();
    let mut gravest: Option<io::Error> = None;
    for lease in section.pool.pick() {
        match dial(reactor, lease.backend(), settings).await {
            Ok(socket) => return Ok((lease, socket)),
            Err(error) if net::out_of_descriptors(&error) => {
                Event::OutOfDescriptors { backend: lease.backend(), error: &error }.emit();
                return Err(ErrorResponse::out_of_descriptors());
            }
            Err(error) => {
                Event::BackendUnreachable { backend: lease.backend(), error: &error }.emit();
                gravest = [gravest, Some(error)].into_iter().flatten().reduce(graver);
            }
        }
    }
    Err(unreached(gravest.as_ref()))
}

/// Returns the response for the gravest error of all backends.
fn unreached(gravest: Option<&io::Error>) -> ErrorResponse {
    match gravest {
        Some(error) if net::out_of_ports(error) => ErrorResponse::out_of_ports(),
        Some(error) if error.kind() == io::ErrorKind::TimedOut => ErrorResponse::connect_timeout(),
        _ => ErrorResponse::unreachable(),
    }
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

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn the_gravest_error_of_all_backends_chooses_the_response() {
        let (time, refused) = (Errno::TIMEDOUT, Errno::CONNREFUSED);
        let no_ports = Errno::ADDRNOTAVAIL;
        for (errors, status, reason) in [
            (&[time, time][..], 504, "connect_timeout"),
            (&[time, refused], 502, "unreachable"),
            (&[refused, time], 502, "unreachable"),
            (&[no_ports], 503, "out_of_ports"),
            (&[no_ports, refused, time], 503, "out_of_ports"),
            (&[time, refused, no_ports], 503, "out_of_ports"),
        ] {
            let gravest = errors.iter().map(|&error| error.into()).reduce(graver);
            let response = unreached(gravest.as_ref());
            assert_eq!((response.status, response.reason), (status, reason), "{errors:?}");
        }
        // An address that this host cannot dial at all is no shortage.
        let not_here = io::Error::new(io::ErrorKind::AddrNotAvailable, "no address");
        assert_eq!(unreached(Some(&not_here)).status, 502);
    }
}
