//! Exchange with a backend: brings one handshake there, and gets the answer.

use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::report;
use super::turn::Turns;
use crate::answer::{AnswerError, HUNG_UP, NOT_HTTP, converse};
use crate::backend::balance::key_of;
use crate::backend::dial::{dial, graver, is_shortage};
use crate::backend::health::reasons::FailureKind;
use crate::backend::pool::Pick;
use crate::backend::{Backend, Lease};
use crate::events::Event;
use crate::handshake::asked::Asked;
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::forward::{ForwardPolicy, request_head};
use crate::handshake::hash_on::Value;
use crate::handshake::response::Answer;
use crate::handshake::retry::RetryOn;
use crate::handshake::scan::HeadScan;
use crate::handshake::upgrade::{HandshakeRules, UpgradeRequest};
use crate::net;
use crate::net::close::linger_now;
use crate::net::reactor::Reactor;
use crate::net::socket::Socket;
use crate::section::{Client, Section};

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

/// Brings the handshake to the first backend that accepts and answers, in the pool's order, and
/// judges its answer.
///
/// An opening handshake is a GET that nobody has acted on before it is answered, so it may go to
/// another backend (RFC 9110, 9.2.2). Each one gets it once.
///
/// Dropped before its end, it closes the connection to the backend.
///
/// # Errors
///
/// See [`Failed`]. 503 at once where this host has no descriptors or no memory left, and after all
/// backends where there was no local port for one; the answer's fault at once, or after the next
/// answer where that is retried on; otherwise 504 if every attempt to connect timed out, and 502.
/// 503 as well where all backends are full, and no place has become free in time.
pub(super) async fn exchange(
    reactor: &Rc<Reactor>,
    (request, request_id): (&UpgradeRequest<'_>, &str),
    client: &Client,
) -> Result<Exchanged, Failed> {
    let (section, settings) = (&client.section, &client.section.settings);
    let mut faults = Faults::default();
    // The answer after which another backend is asked, if there is one. Boxed: few need the room.
    let mut first: Option<Box<Result<Exchanged, Failed>>> = None;
    let mut turns = Turns::new(reactor, section, hash_key(request.asked(), client));
    // A trial that ends without a report, as its client has left, is given up by its drop.
    while let Some(Pick { lease, trial }) = turns.next(first.is_none()).await {
        report::trial(section, lease.backend(), trial.as_ref());
        let backend = match dial(reactor, lease.backend(), settings.dial()).await {
            Ok(backend) => backend,
            Err(error) => {
                tell_unreachable(section, lease.backend(), &error, reactor.now())?;
                faults.add(error);
                continue;
            }
        };
        let head = request_head(request, &policy_for(lease.backend(), request_id, client));
        let (rules, time) = (settings.handshake_rules(), settings.response_timeout);
        let answered = match ask(&backend, &head, (request, rules), time).await {
            Ok((answer, rest)) => {
                report::handshake(section, lease.backend(), outcome(&answer), reactor.now());
                tell_of_deviation(&answer, lease.backend(), reactor);
                Ok(Exchanged { lease, backend, answer, rest })
            }
            Err(error) => {
                let response = tell_faulty(section, lease.backend(), error, reactor.now());
                if error == AnswerError::HungUp {
                    faults.has_hung_up = true;
                    continue;
                }
                Err(Failed { response, backend: Some((lease, backend)) })
            }
        };
        match first {
            None if is_retried(&answered, &settings.retry_on) => first = Some(Box::new(answered)),
            first => {
                first.iter().for_each(|first| leave(first));
                return answered;
            }
        }
    }
    let response = match first {
        Some(first) => return *first,
        None => faults.response(turns.ended_full()),
    };
    Err(Failed { response, backend: None })
}

/// Faults of the backends that one request has come to.
#[derive(Default)]
pub(super) struct Faults {
    gravest: Option<io::Error>,
    pub(super) has_hung_up: bool,
}

impl Faults {
    /// Adds the error of an attempt to connect.
    pub(super) fn add(&mut self, error: io::Error) {
        self.gravest = Some(graver(self.gravest.take(), error));
    }

    /// Returns the response for a client where no backend is left, or all that are left are full.
    pub(super) fn response(&self, are_full: bool) -> ErrorResponse {
        if are_full {
            return ErrorResponse::backends_full();
        }
        unanswered(self.gravest.as_ref(), self.has_hung_up)
    }
}

/// Tells that a backend gave no answer, or none that can be forwarded; returns the response for the
/// client.
pub(super) fn tell_faulty(
    section: &Section,
    backend: &Backend,
    error: AnswerError,
    now: Instant,
) -> ErrorResponse {
    let response = response_for(error);
    Event::BackendFaulty { backend, response: &response }.emit();
    report::handshake(section, backend, Err(kind_of(error)), now);
    response
}

/// Tells that a backend could not be connected to.
///
/// # Errors
///
/// The response for the client, where no other backend could fare better.
pub(super) fn tell_unreachable(
    section: &Section,
    backend: &Backend,
    error: &io::Error,
    now: Instant,
) -> Result<(), Failed> {
    if let Some(response) = out_of_sockets(error) {
        Event::Shortage { backend, error, response: &response }.emit();
        return Err(Failed { response, backend: None });
    }
    backend.count_failure(error);
    Event::BackendUnreachable { backend, error }.emit();
    // A shortage of ports is this host's.
    if !is_shortage(error) {
        report::handshake(section, backend, Err(FailureKind::of_connect(error)), now);
    }
    Ok(())
}

/// Returns what an answer tells of the backend: 502, 503 and 504 that it cannot serve.
fn outcome(answer: &Answer) -> Result<(), FailureKind> {
    match answer {
        Answer::Declined { status, .. } => outcome_of(*status),
        _ => Ok(()),
    }
}

/// Returns what a final status tells of the backend, likewise.
pub(super) fn outcome_of(status: u16) -> Result<(), FailureKind> {
    match status {
        502..=504 => Err(FailureKind::Status(status)),
        _ => Ok(()),
    }
}

/// Returns what a missing answer tells of the backend.
fn kind_of(error: AnswerError) -> FailureKind {
    match error {
        AnswerError::HungUp => FailureKind::NoAnswer,
        AnswerError::TimedOut => FailureKind::ResponseTimeout,
        AnswerError::Cut(_) | AnswerError::Invalid(_) => FailureKind::InvalidResponse,
    }
}

/// Returns whether the next backend is asked after this answer.
fn is_retried(answered: &Result<Exchanged, Failed>, retry_on: &RetryOn) -> bool {
    match answered {
        Ok(Exchanged { answer: Answer::Declined { status, .. }, .. }) => {
            retry_on.has_status(*status)
        }
        Ok(_) => false,
        Err(failed) => failed.response.reason == "bad_answer" && retry_on.has_bad_answer(),
    }
}

/// Closes the connection to a backend whose answer nobody gets, without waiting for its end.
fn leave(answered: &Result<Exchanged, Failed>) {
    let socket = match answered {
        Ok(exchanged) => Some(&exchanged.backend),
        Err(failed) => failed.backend.as_ref().map(|(_, socket)| socket),
    };
    if let Some(socket) = socket {
        linger_now(socket, &mut [0; 4_096]);
    }
}

/// Returns the key by which the section's backends are chosen, if it has such a rule and the
/// request such a part.
pub(super) fn hash_key(request: Asked<'_>, client: &Client) -> Option<u64> {
    let part = client.section.settings.hash_on.as_ref()?;
    Some(match part.value(request, client.peer.ip())? {
        Value::Bytes(bytes) => key_of(bytes),
        Value::Ip(IpAddr::V4(ip)) => key_of(&ip.octets()),
        Value::Ip(IpAddr::V6(ip)) => key_of(&ip.octets()),
    })
}

/// Warns of a choice of the backend that is passed on though it may not be made, once a minute.
fn tell_of_deviation(answer: &Answer, backend: &Backend, reactor: &Reactor) {
    if let Answer::Switched { deviation: Some(detail), .. } = answer
        && backend.may_warn_of_deviation(reactor.now())
    {
        Event::HandshakeDeviation { backend, detail }.emit();
    }
}

/// Returns the changes that are made to a client's head for this backend.
pub(super) fn policy_for<'a>(
    backend: &'a Backend,
    request_id: &'a str,
    client: &Client,
) -> ForwardPolicy<'a> {
    let settings = &client.section.settings;
    ForwardPolicy {
        client: client.peer.ip(),
        backend: backend.host(),
        host: settings.host,
        forwarded: settings.forwarded,
        request_id,
    }
}

/// Returns the response for an error with which no other backend could fare better: this host can
/// open no socket.
fn out_of_sockets(error: &io::Error) -> Option<ErrorResponse> {
    if net::out_of_descriptors(error) {
        return Some(ErrorResponse::out_of_descriptors());
    }
    net::out_of_memory(error).then(ErrorResponse::out_of_memory)
}

/// Returns the response for the gravest error of all attempts to connect; `has_hung_up` tells that
/// a backend was connected and hung up.
fn unanswered(gravest: Option<&io::Error>, has_hung_up: bool) -> ErrorResponse {
    match gravest {
        Some(error) if net::out_of_ports(error) => ErrorResponse::out_of_ports(),
        _ if has_hung_up => ErrorResponse::bad_answer(HUNG_UP),
        Some(error) if error.kind() == io::ErrorKind::TimedOut => ErrorResponse::connect_timeout(),
        _ => ErrorResponse::unreachable(),
    }
}

/// Brings the head to a connected backend, and judges its answer. Returns it, and the bytes that
/// came after its head.
async fn ask(
    backend: &Socket,
    head: &[u8],
    (request, rules): (&UpgradeRequest<'_>, HandshakeRules),
    timeout: Duration,
) -> Result<(Answer, Vec<u8>), AnswerError> {
    let scan = if rules.is_strict { HeadScan::default() } else { HeadScan::allowing_lf() };
    converse(backend, head, (scan, timeout), |response, has_bare_lf| {
        // Only a 101 is taken so: what another answer's body is, its lines have to tell.
        if has_bare_lf && response.status != 101 {
            return Err(NOT_HTTP);
        }
        Answer::judge(response, request, rules)
    })
    .await
}

/// Returns the response for a backend that gave no answer, or none that can be forwarded.
pub(super) fn response_for(error: AnswerError) -> ErrorResponse {
    match error {
        AnswerError::HungUp => ErrorResponse::bad_answer(HUNG_UP),
        AnswerError::TimedOut => ErrorResponse::response_timeout(),
        AnswerError::Cut(detail) | AnswerError::Invalid(detail) => {
            ErrorResponse::bad_answer(detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_host_that_can_open_no_socket_says_what_it_lacks() {
        for (error, reason) in [
            (Errno::MFILE, Some("out_of_descriptors")),
            (Errno::NFILE, Some("out_of_descriptors")),
            (Errno::NOMEM, Some("out_of_memory")),
            (Errno::NOBUFS, Some("out_of_memory")),
            (Errno::ADDRNOTAVAIL, None),
            (Errno::CONNREFUSED, None),
        ] {
            let response = out_of_sockets(&error.into());
            let expected = reason.map(|reason| (503, reason));
            assert_eq!(response.map(|one| (one.status, one.reason)), expected, "{error:?}");
        }
    }

    #[test]
    fn the_gravest_fault_of_all_backends_chooses_the_response() {
        let (time, refused) = (Errno::TIMEDOUT, Errno::CONNREFUSED);
        let no_ports = Errno::ADDRNOTAVAIL;
        for (errors, has_hung_up, status, reason) in [
            (&[time, time][..], false, 504, "connect_timeout"),
            (&[time, refused], false, 502, "unreachable"),
            (&[refused, time], false, 502, "unreachable"),
            (&[], true, 502, "bad_answer"),
            (&[time], true, 502, "bad_answer"),
            (&[refused], true, 502, "bad_answer"),
            (&[no_ports], false, 503, "out_of_ports"),
            (&[no_ports], true, 503, "out_of_ports"),
            (&[no_ports, refused, time], false, 503, "out_of_ports"),
            (&[time, refused, no_ports], false, 503, "out_of_ports"),
        ] {
            let next = |gravest, &error: &Errno| Some(graver(gravest, error.into()));
            let gravest = errors.iter().fold(None, next);
            let response = unanswered(gravest.as_ref(), has_hung_up);
            assert_eq!((response.status, response.reason), (status, reason), "{errors:?}");
        }
        // An address that this host cannot dial at all is no shortage.
        let not_here = io::Error::new(io::ErrorKind::AddrNotAvailable, "no address");
        assert_eq!(unanswered(Some(&not_here), false).status, 502);
    }
}
