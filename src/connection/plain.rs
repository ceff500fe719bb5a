//! The requests of a client that are no upgrades, one after the other.
//!
//! Each has a connection of its own to a backend, on which its body and the answer are relayed at
//! once, with one buffer for each direction. [`serve`] tells the story, [`Exchange`] that of one
//! request, [`relay`] moves a body.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};

use super::exchange::{
    Failed, hash_key, kind_of, outcome_of, policy_for, response_for, tell_unreachable, unanswered,
};
use super::report;
use super::response::send;
use super::turn::Turns;
use super::unanswered::Unanswered;
use crate::answer::{AnswerError, Answers};
use crate::backend::dial::{dial, graver};
use crate::backend::pool::Pick;
use crate::backend::{Lease, Trial};
use crate::events::{self, Event, Exchanged};
use crate::handshake::body::{Body, Framing};
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::forward::plain_request_head;
use crate::handshake::http::{RequestHead, ResponseHead, Version};
use crate::handshake::plain::{PlainAnswer, PlainRequest, Sent, is_upgrade};
use crate::handshake::probe::is_probe;
use crate::handshake::reframe::{BodyFault, Reframed, Reframer};
use crate::handshake::scan::HeadScan;
use crate::handshake::summary::Summary;
use crate::handshake::trace::request_id;
use crate::head::{Head, HeadError};
use crate::net::close::{linger, linger_now};
use crate::net::reactor::Reactor;
use crate::net::socket::Socket;
use crate::net::timer::{Timer, io_within};
use crate::section::{Client, Section};
use crate::settings::PlainHttp;
use crate::shutdown::{Guard, WeakGuard};
use crate::worker::Handle;

/// Most bytes of a body that one read takes.
const STEP: usize = 16 * 1024;
/// Bytes that are read of the next request while a connection waits for it.
const FIRST_STEP: usize = 1_024;

/// A client whose next request is for the handshake: an upgrade, or what has no answer but the
/// proxy's own.
pub(super) struct Handshake {
    pub(super) socket: Socket,
    pub(super) client: Client,
    /// The head, or why there is none.
    pub(super) head: Result<Head, HeadError>,
    /// Bytes that have come where there is no head.
    pub(super) bytes: Vec<u8>,
    pub(super) alive: Guard,
}

/// What becomes of a connection after a request.
enum After {
    /// The request is none of these.
    Handshake,
    /// The next one follows, and begins with these bytes.
    Next(Vec<u8>),
    /// The answer was the last one.
    Last,
    /// The connection is of no use any more.
    Broken,
}

/// Answers a client's requests, up to one that is for the handshake; `None` where the connection
/// ends before.
pub(super) async fn serve(
    handle: &Handle,
    socket: Socket,
    mut client: Client,
    waiting: &WeakGuard,
) -> Option<Handshake> {
    let mut bytes = Vec::new();
    loop {
        let unanswered = Unanswered::new(&socket, &client);
        unanswered.note(&bytes);
        let head = super::read_head(&unanswered, handle, &client.section, &mut bytes).await;
        let alive = waiting.upgrade()?;
        let after = match &head {
            Ok(head) => answer(&unanswered, head).await,
            Err(_) => After::Handshake,
        };
        unanswered.begin_answer();
        drop(unanswered);
        match after {
            After::Handshake => return Some(Handshake { socket, client, head, bytes, alive }),
            After::Next(rest) => bytes = rest,
            After::Last => {
                linger(socket).await;
                return None;
            }
            After::Broken => return None,
        }
        // A client that has not begun its next request does not keep the proxy from stopping.
        drop((head, alive));
        if !has_next(&socket, &client.section, &mut bytes).await {
            return None;
        }
        client.begin_anew(handle.reactor().now());
    }
}

/// Waits for the first bytes of the next request; returns false where none come in time, or the
/// connection is to end before.
async fn has_next(socket: &Socket, section: &Section, bytes: &mut Vec<u8>) -> bool {
    if !bytes.is_empty() {
        return true;
    }
    // A connection that waits holds little.
    *bytes = vec![0; FIRST_STEP];
    let count = {
        let mut source = socket;
        let read = async { source.read(bytes).await.unwrap_or(0) };
        let late = async {
            Timer::after(socket.reactor(), section.settings.plain.keep_alive_timeout).await;
            0
        };
        let leaving = async {
            section.life.closing.begun().await;
            0
        };
        future::or(read, future::or(late, leaving)).await
    };
    bytes.truncate(count);
    count > 0
}

/// Answers one request, by way of a backend if it may pass.
async fn answer(unanswered: &Unanswered<'_>, head: &Head) -> After {
    let client = unanswered.client;
    let settings = &client.section.settings;
    // The handshake has an answer for whatever cannot be parsed.
    let Ok(parsed) = RequestHead::parse(head.bytes()) else { return After::Handshake };
    let asks_for_health =
        settings.plain.health_path.as_ref().is_some_and(|path| is_probe(&parsed, path));
    // A reload may have turned plain HTTP off since the connection began.
    if asks_for_health || is_upgrade(&parsed) || settings.plain.treatment == PlainHttp::Reject {
        return After::Handshake;
    }
    let request_id = &*request_id(&parsed.fields, fastrand::u128(..));
    if events::tells_of_tunnels() {
        unanswered.set_summary(Summary::of(&parsed, settings.forwarded, request_id));
    }
    let told = Told::new(unanswered, parsed.method);
    let (rules, max_body) = (settings.handshake_rules(), settings.plain.max_body);
    let request = match PlainRequest::judge(&parsed, rules, max_body) {
        Ok(request) => request,
        Err(response) => return refuse(unanswered, &told, response.to(head.bytes())).await,
    };
    let exchange = Exchange::new(unanswered, &request, request_id, &told);
    match exchange.run(head.rest()).await {
        Ok(Whole { closes: false }) => {
            // Where the request has not ended, the answer has closed the connection.
            exchange.rest.take().map_or(After::Last, After::Next)
        }
        Ok(Whole { closes: true }) => After::Last,
        Err(Failure::Refused(response)) => {
            refuse(unanswered, &told, response.to(head.bytes())).await
        }
        Err(Failure::Gone) => {
            told.end(None, "client_gone", None);
            After::Broken
        }
        Err(Failure::Cut(fault)) => {
            told.end(told.status.get(), "cut", Some(fault.to_string()));
            After::Broken
        }
    }
}

/// Sends a client a response of the proxy, the last one.
async fn refuse(unanswered: &Unanswered<'_>, told: &Told<'_>, response: ErrorResponse) -> After {
    unanswered.begin_answer();
    told.is_own.set(true);
    let bytes = response.to_bytes();
    told.end(Some(response.status), response.reason, Some(response.detail));
    if send(unanswered.socket, &bytes).await { After::Last } else { After::Broken }
}

/// End of an exchange whose answer the client has got.
struct Whole {
    closes: bool,
}

/// Reason for which an exchange has no whole answer.
enum Failure {
    /// The client is to get this response: no byte of an answer has gone to it.
    Refused(ErrorResponse),
    /// The client went away.
    Gone,
    /// The answer had begun.
    Cut(io::Error),
}

/// Brings one request to a backend, and its answer to the client.
struct Exchange<'a> {
    unanswered: &'a Unanswered<'a>,
    request: &'a PlainRequest<'a>,
    request_id: &'a str,
    told: &'a Told<'a>,
    /// Bytes that came after the request; `None` while it has not ended.
    rest: RefCell<Option<Vec<u8>>>,
    /// The head of the final answer has come.
    is_answered: Cell<bool>,
}

/// A backend that was connected to.
struct Connected {
    backend: Socket,
    /// Given up by its drop if the exchange tells nothing of the backend.
    _trial: Option<Trial>,
}

impl<'a> Exchange<'a> {
    fn new(
        unanswered: &'a Unanswered<'a>,
        request: &'a PlainRequest<'a>,
        request_id: &'a str,
        told: &'a Told<'a>,
    ) -> Self {
        let (rest, is_answered) = Default::default();
        Self { unanswered, request, request_id, told, rest, is_answered }
    }

    /// Brings the request to the first backend that accepts, in the pool's order, and to the next
    /// one as well after one that hangs up, if the request is [repeatable]. `early` are bytes that
    /// came with its head.
    ///
    /// [repeatable]: PlainRequest::is_repeatable
    async fn run(&self, early: &[u8]) -> Result<Whole, Failure> {
        let &Unanswered { socket, client, .. } = self.unanswered;
        let key = hash_key(self.request.asked(), client);
        let mut turns = Turns::new(socket.reactor(), &client.section, key);
        let mut faults = Faults::default();
        loop {
            let connected = async { self.connect(&mut turns, &mut faults).await };
            let gone = async {
                socket.ended().await;
                Err(Failure::Gone)
            };
            let connected = future::or(gone, connected).await?;
            match self.converse(&connected.backend, early.to_vec()).await {
                Err(None) => faults.has_hung_up = true,
                Ok(whole) => {
                    linger_now(&connected.backend, &mut [0; 4_096]);
                    return Ok(whole);
                }
                Err(Some(failure)) => return Err(failure),
            }
        }
    }

    /// Connects to the next backend that accepts.
    async fn connect(
        &self,
        turns: &mut Turns<'_>,
        faults: &mut Faults,
    ) -> Result<Connected, Failure> {
        let &Unanswered { socket, client, .. } = self.unanswered;
        let (section, reactor) = (&client.section, socket.reactor());
        while let Some(Pick { lease, trial }) = turns.next(true).await {
            report::trial(section, lease.backend(), trial.as_ref());
            match dial(reactor, lease.backend(), section.settings.dial()).await {
                Ok(backend) => {
                    self.told.lease.replace(Some(lease));
                    return Ok(Connected { backend, _trial: trial });
                }
                Err(error) => {
                    let told = tell_unreachable(section, lease.backend(), &error, reactor.now());
                    told.map_err(|Failed { response, .. }| Failure::Refused(response))?;
                    faults.gravest = Some(graver(faults.gravest.take(), error));
                }
            }
        }
        Err(Failure::Refused(if turns.ended_full() {
            ErrorResponse::backends_full()
        } else {
            unanswered(faults.gravest.as_ref(), faults.has_hung_up)
        }))
    }

    /// Relays the request to a backend, and the answer to the client, both at once.
    ///
    /// # Errors
    ///
    /// `None` where the backend hung up without a byte, and another one may be asked.
    async fn converse(&self, backend: &Socket, early: Vec<u8>) -> Result<Whole, Option<Failure>> {
        let failed = async { Err(Some(self.send_request(backend, early).await)) };
        let answered = async {
            match self.forward_answer(backend).await {
                Err(Unanswerable::Backend(error)) => Err(self.tell_fault(error)),
                Err(Unanswerable::Cut(fault)) => Err(Some(Failure::Cut(fault))),
                Err(Unanswerable::Gone) => Err(Some(Failure::Gone)),
                Ok(whole) => Ok(whole),
            }
        };
        future::or(answered, failed).await
    }

    /// Sends the request, and waits for a reason to give the exchange up.
    async fn send_request(&self, backend: &Socket, early: Vec<u8>) -> Failure {
        let &Unanswered { socket, client, .. } = self.unanswered;
        let settings = &client.section.settings;
        let head = {
            let lease = self.told.lease.borrow();
            lease.as_ref().map(|lease| {
                let policy = policy_for(lease.backend(), self.request_id, client);
                plain_request_head(self.request, &policy)
            })
        };
        let framing = self.request.framing.unwrap_or(Framing::Length(0));
        let is_chunked = framing == Framing::Chunked;
        let body = Reframer::new(Body::strict(framing), is_chunked, settings.plain.max_body);
        let out = head.unwrap_or_default();
        match relay(socket, backend, (out, early), body, settings.plain.body_timeout).await {
            Ok(rest) => drop(self.rest.replace(Some(rest))),
            // Its answer, if there is one, tells why.
            Err(RelayError::Sink(error)) if error.kind() != io::ErrorKind::TimedOut => {}
            Err(error) => return self.failure_of_request(error),
        }
        let gone = async {
            socket.ended().await;
            Failure::Gone
        };
        let late = async {
            Timer::after(socket.reactor(), settings.response_timeout).await;
            if self.is_answered.get() {
                pending::<()>().await;
            }
            let lease = self.told.lease.borrow();
            if let Some(lease) = lease.as_ref() {
                self.report_fault(lease, AnswerError::TimedOut);
            }
            Failure::Refused(ErrorResponse::response_timeout())
        };
        future::or(gone, late).await
    }

    /// Returns what becomes of the client after an error in its request's body.
    fn failure_of_request(&self, error: RelayError) -> Failure {
        let max = self.unanswered.client.section.settings.plain.max_body.unwrap_or_default();
        let response = match error {
            RelayError::Ended => return Failure::Gone,
            RelayError::Source(error) if error.kind() != io::ErrorKind::TimedOut => {
                return Failure::Gone;
            }
            RelayError::Source(_) => ErrorResponse::body_timeout(),
            RelayError::Sink(_) => ErrorResponse::response_timeout(),
            RelayError::Body(BodyFault::TooLarge) => ErrorResponse::body_too_large(max),
            RelayError::Body(BodyFault::Broken) => {
                ErrorResponse::malformed("the request's body has broken chunks")
            }
        };
        if self.is_answered.get() {
            return Failure::Cut(io::Error::other(response.detail));
        }
        Failure::Refused(response)
    }

    /// Reads the backend's answers, and forwards them.
    async fn forward_answer(&self, backend: &Socket) -> Result<Whole, Unanswerable> {
        let &Unanswered { socket, client, .. } = self.unanswered;
        let timeout = client.section.settings.plain.body_timeout;
        let mut answers = Answers::new(HeadScan::default());
        let (status, head, framing, sent, closes) = loop {
            // No scan but one that allows it passes a bare LF.
            let judge = |response: &ResponseHead<'_>, _: bool| {
                // What the client still sends of a body cannot be told from a next request.
                let closes = self.rest.borrow().is_none() || client.section.life.is_leaving();
                PlainAnswer::judge(response, self.request, closes)
            };
            match answers.next(backend, pending::<()>(), judge).await? {
                PlainAnswer::Interim { head } => {
                    // HTTP/1.0 has none (RFC 9110, 15.2).
                    if self.request.version == Version::Http11 {
                        let written = write(socket, &head, timeout).await;
                        written.map_err(|_| Unanswerable::Gone)?;
                    }
                }
                PlainAnswer::Final { status, head, framing, sent, closes } => {
                    break (status, head, framing, sent, closes);
                }
            }
        };
        if let Some(lease) = self.told.lease.borrow().as_ref() {
            let now = socket.reactor().now();
            report::handshake(&client.section, lease.backend(), outcome_of(status), now);
        }
        self.is_answered.set(true);
        self.unanswered.begin_answer();
        self.told.status.set(Some(status));

        let is_delimited_by_end = sent == Sent::Body(Framing::UntilClose);
        if is_delimited_by_end {
            // A FIN would say that the body is whole (RFC 9112, 8), also where this task is cut.
            socket.reset_on_close(true);
        }
        let framing = framing.unwrap_or(Framing::Length(0));
        let body = Reframer::new(Body::new(framing), sent == Sent::Body(Framing::Chunked), None);
        let rest = answers.into_rest();
        match relay(backend, socket, (head, rest), body, timeout).await {
            Ok(_) => {
                if is_delimited_by_end {
                    socket.reset_on_close(false);
                }
                self.told.end(Some(status), "whole", None);
                Ok(Whole { closes })
            }
            Err(RelayError::Ended) => Err(Unanswerable::cut("the backend's body is cut short")),
            Err(RelayError::Body(_)) => {
                Err(Unanswerable::cut("the backend's body has broken chunks"))
            }
            Err(RelayError::Source(error)) => Err(Unanswerable::Cut(error)),
            Err(RelayError::Sink(_)) => Err(Unanswerable::Gone),
        }
    }

    /// Tells that a backend has not answered; `None` where another one may be asked.
    fn tell_fault(&self, error: AnswerError) -> Option<Failure> {
        // An idempotent request goes on to the next one; any other one may have been acted on.
        if let Some(lease) = self.told.lease.borrow().as_ref() {
            self.report_fault(lease, error);
        }
        let is_repeated = error == AnswerError::HungUp && self.request.is_repeatable();
        (!is_repeated).then(|| Failure::Refused(response_for(error)))
    }

    fn report_fault(&self, lease: &Lease, error: AnswerError) {
        let &Unanswered { socket, client, .. } = self.unanswered;
        let (backend, response) = (lease.backend(), &response_for(error));
        Event::BackendFaulty { backend, response }.emit();
        let now = socket.reactor().now();
        report::handshake(&client.section, backend, Err(kind_of(error)), now);
    }
}

/// Faults of the backends of one exchange.
#[derive(Default)]
struct Faults {
    gravest: Option<io::Error>,
    has_hung_up: bool,
}

/// Reason for which an answer does not come to its end.
enum Unanswerable {
    /// There is none.
    Backend(AnswerError),
    /// It had begun.
    Cut(io::Error),
    /// The client takes nothing of it.
    Gone,
}

impl Unanswerable {
    fn cut(what: &'static str) -> Self {
        Self::Cut(io::Error::new(io::ErrorKind::InvalidData, what))
    }
}

impl From<AnswerError> for Unanswerable {
    fn from(error: AnswerError) -> Self {
        Self::Backend(error)
    }
}

/// Reason for which a body was not relayed to its end.
enum RelayError {
    Source(io::Error),
    Sink(io::Error),
    /// The source ended before the body did.
    Ended,
    Body(BodyFault),
}

/// Relays a body, after what is in `out`, and beginning with `bytes` that have come already;
/// returns the bytes that came after it. At most one buffer of it is held. `timeout` bounds each
/// wait.
async fn relay(
    mut from: &Socket,
    to: &Socket,
    (mut out, mut bytes): (Vec<u8>, Vec<u8>),
    mut body: Reframer,
    timeout: Option<Duration>,
) -> Result<Vec<u8>, RelayError> {
    loop {
        let reframed = body.advance(&bytes, &mut out).map_err(RelayError::Body)?;
        write(to, &out, timeout).await.map_err(RelayError::Sink)?;
        out.clear();
        if let Reframed::End(end) = reframed {
            return Ok(bytes.split_off(end));
        }
        bytes.resize(STEP, 0);
        let read = in_time(from.reactor(), timeout, from.read(&mut bytes)).await;
        let count = read.map_err(RelayError::Source)?;
        bytes.truncate(count);
        if count == 0 {
            if !body.end_by_close(&mut out) {
                return Err(RelayError::Ended);
            }
            write(to, &out, timeout).await.map_err(RelayError::Sink)?;
            return Ok(bytes);
        }
    }
}

/// Writes all bytes. `timeout` bounds the wait for room for some of them.
async fn write(mut to: &Socket, bytes: &[u8], timeout: Option<Duration>) -> io::Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        let count = in_time(to.reactor(), timeout, to.write(left)).await?;
        left = &left[count..];
    }
    Ok(())
}

async fn in_time<T>(
    reactor: &Rc<Reactor>,
    timeout: Option<Duration>,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    io_within(reactor, timeout.unwrap_or(Duration::MAX), work).await
}

/// Tells of an exchange when it is over, also where its task is cut.
struct Told<'a> {
    unanswered: &'a Unanswered<'a>,
    method: &'a str,
    began: Instant,
    /// The backend that has the request.
    lease: RefCell<Option<Lease>>,
    /// Status that the client gets.
    status: Cell<Option<u16>>,
    /// It is the proxy's.
    is_own: Cell<bool>,
    is_told: Cell<bool>,
}

impl<'a> Told<'a> {
    fn new(unanswered: &'a Unanswered<'a>, method: &'a str) -> Self {
        let began = unanswered.socket.reactor().now();
        let (lease, status, is_own, is_told) = Default::default();
        Self { unanswered, method, began, lease, status, is_own, is_told }
    }

    /// Tells of the end, once.
    fn end(&self, status: Option<u16>, reason: &'static str, fault: Option<String>) {
        if self.is_told.replace(true) {
            return;
        }
        let lease = self.lease.borrow();
        let exchanged = Exchanged {
            method: self.method,
            lease: lease.as_ref(),
            status,
            reason,
            fault: fault.as_deref(),
            is_own: self.is_own.get(),
            duration: self.unanswered.socket.reactor().now().saturating_duration_since(self.began),
        };
        let &Unanswered { client, .. } = self.unanswered;
        let summary = self.unanswered.summary();
        Event::Exchange { client, exchanged: &exchanged, summary }.emit();
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        // Before its answer, the guard of the client tells.
        if let Some(status) = self.status.get() {
            self.end(Some(status), "cut", Some("this proxy is shutting down".to_owned()));
        }
    }
}
