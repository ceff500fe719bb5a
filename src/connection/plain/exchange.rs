//! Exchange of one request that is no upgrade with a backend.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::io;

use futures_lite::future;

use super::relay::{BodyError, relay, write};
use super::told::Told;
use crate::answer::{AnswerError, AnswerReader};
use crate::backend::Trial;
use crate::backend::balance::key_of;
use crate::backend::dial::dial;
use crate::backend::pool::Pick;
use crate::connection::exchange::{
    Failed, Faults, hash_key, outcome_of, policy_for, response_for, tell_faulty, tell_unreachable,
};
use crate::connection::report;
use crate::connection::turn::Turns;
use crate::connection::unanswered::Unanswered;
use crate::handshake::body::{Body, Framing};
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::forward::plain_request_head;
use crate::handshake::http::{ResponseHead, Version};
use crate::handshake::learn_from::{LearnFrom, percent_encoded};
use crate::handshake::plain::{FinalAnswer, PlainAnswer, PlainRequest, Sent};
use crate::handshake::reframe::{BodyFault, Reframer};
use crate::handshake::scan::HeadScan;
use crate::net::close::close_second;
use crate::net::socket::Socket;
use crate::net::timer::Timer;
use crate::worker::Handle;

/// End of an exchange whose answer the client has got.
pub(super) struct Whole {
    pub(super) closes: bool,
}

/// Reason for which an exchange has no whole answer.
pub(super) enum Unserved {
    /// The client is to get this response: no byte of an answer has gone to it.
    Refused(ErrorResponse),
    /// The client went away.
    Gone,
    /// The answer had begun.
    Cut(io::Error),
}

/// Brings one request to a backend, and its answer to the client.
pub(super) struct Exchange<'a> {
    handle: &'a Handle,
    unanswered: &'a Unanswered<'a>,
    request: &'a PlainRequest<'a>,
    request_id: &'a str,
    /// What [`Balance::Hash`](crate::Balance::Hash) chooses by.
    key: Option<u64>,
    told: &'a Told<'a>,
    /// Bytes that came after the request; `None` while it has not ended.
    pub(super) rest: RefCell<Option<Vec<u8>>>,
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
    pub(super) fn new(
        handle: &'a Handle,
        unanswered: &'a Unanswered<'a>,
        request: &'a PlainRequest<'a>,
        request_id: &'a str,
        told: &'a Told<'a>,
    ) -> Self {
        let key = hash_key(request.asked(), unanswered.client);
        let (rest, is_answered) = Default::default();
        Self { handle, unanswered, request, request_id, key, told, rest, is_answered }
    }

    /// Brings the request to the first backend that accepts, in the pool's order, and to the next
    /// one as well after one that hangs up, if the request is [repeatable]. `early` are bytes that
    /// came with its head.
    ///
    /// [repeatable]: PlainRequest::is_repeatable
    pub(super) async fn run(&self, early: &[u8]) -> Result<Whole, Unserved> {
        let &Unanswered { socket, client, .. } = self.unanswered;
        let mut turns = Turns::new(socket.reactor(), &client.section, self.key);
        let mut faults = Faults::default();
        loop {
            let connected = async { self.connect(&mut turns, &mut faults).await };
            let gone = async { Err(self.client_gone().await) };
            let connected = future::or(gone, connected).await?;
            match self.converse(&connected.backend, early.to_vec()).await {
                Err(None) => {
                    faults.has_hung_up = true;
                    // Another request may need its place while this one waits for one.
                    drop(connected);
                    self.told.release();
                }
                Ok(whole) => {
                    self.leave(connected.backend);
                    return Ok(whole);
                }
                Err(Some(failure)) => return Err(failure),
            }
        }
    }

    /// Closes the connection to a backend whose answer is whole: after the backend, which was told
    /// to.
    fn leave(&self, backend: Socket) {
        if !backend.has_ended() {
            self.handle.start_task(close_second(backend));
        }
    }

    /// Connects to the next backend that accepts.
    async fn connect(
        &self,
        turns: &mut Turns<'_>,
        faults: &mut Faults,
    ) -> Result<Connected, Unserved> {
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
                    told.map_err(|Failed { response, .. }| Unserved::Refused(response))?;
                    faults.add(error);
                }
            }
        }
        Err(Unserved::Refused(faults.response(turns.ended_full())))
    }

    /// Relays the request to a backend, and the answer to the client, both at once.
    ///
    /// # Errors
    ///
    /// `None` where the backend hung up without a byte, and another one may be asked.
    async fn converse(&self, backend: &Socket, early: Vec<u8>) -> Result<Whole, Option<Unserved>> {
        let failed = async { Err(Some(self.send_request(backend, early).await)) };
        let answered = async {
            match self.forward_answer(backend).await {
                Err(Unanswerable::Backend(error)) => Err(self.tell_fault(error)),
                Err(Unanswerable::Cut(fault)) => Err(Some(Unserved::Cut(fault))),
                Err(Unanswerable::Gone) => Err(Some(Unserved::Gone)),
                Ok(whole) => Ok(whole),
            }
        };
        future::or(answered, failed).await
    }

    /// Sends the request, and waits for a reason to give the exchange up.
    async fn send_request(&self, backend: &Socket, early: Vec<u8>) -> Unserved {
        // Also while the backend takes nothing, so that nothing is read which would tell.
        future::or(self.send_whole_request(backend, early), self.client_gone()).await
    }

    /// Waits for the end of the client.
    async fn client_gone(&self) -> Unserved {
        self.unanswered.socket.ended().await;
        Unserved::Gone
    }

    /// Does the same, but for a client that ends its connection after its request.
    async fn send_whole_request(&self, backend: &Socket, early: Vec<u8>) -> Unserved {
        let &Unanswered { socket, client, .. } = self.unanswered;
        let settings = &client.section.settings;
        let head = {
            let lease = self.told.lease.borrow();
            lease.as_ref().map(|lease| {
                let policy = policy_for(lease.backend(), self.request_id, client);
                plain_request_head(self.request, &policy)
            })
        };
        let body = Reframer::of_request(self.request.framing, settings.plain.max_body);
        let mut out = head.unwrap_or_default();
        let timeout = settings.plain.body_timeout;
        match relay(socket, backend, (&mut out, early), body, timeout, |_| {}).await {
            Ok(rest) => drop(self.rest.replace(Some(rest))),
            // Its answer, if there is one, tells why.
            Err(BodyError::Sink(error)) if error.kind() != io::ErrorKind::TimedOut => {}
            Err(error) => return self.failure_of_request(error),
        }
        Timer::after(socket.reactor(), settings.response_timeout).await;
        if self.is_answered.get() {
            pending::<()>().await;
        }
        Unserved::Refused(self.faulty(AnswerError::TimedOut))
    }

    /// Returns what becomes of the client after an error in its request's body.
    fn failure_of_request(&self, error: BodyError) -> Unserved {
        let max = self.unanswered.client.section.settings.plain.max_body.unwrap_or_default();
        let response = match error {
            BodyError::Ended => return Unserved::Gone,
            BodyError::Source(error) if error.kind() != io::ErrorKind::TimedOut => {
                return Unserved::Gone;
            }
            BodyError::Source(_) => ErrorResponse::body_timeout(),
            BodyError::Sink(_) => ErrorResponse::response_timeout(),
            BodyError::Body(BodyFault::TooLarge) => ErrorResponse::body_too_large(max),
            BodyError::Body(BodyFault::Broken) => {
                ErrorResponse::malformed("the request's body has broken chunks")
            }
        };
        if self.is_answered.get() {
            return Unserved::Cut(io::Error::other(response.detail));
        }
        Unserved::Refused(response)
    }

    /// Reads the backend's answers, and forwards them.
    async fn forward_answer(&self, backend: &Socket) -> Result<Whole, Unanswerable> {
        let &Unanswered { socket, client, .. } = self.unanswered;
        let mut answers = AnswerReader::new(HeadScan::default());
        let answer = self.final_answer(backend, &mut answers).await?;
        let status = answer.status;
        if let Some(lease) = self.told.lease.borrow().as_ref() {
            let now = socket.reactor().now();
            report::handshake(&client.section, lease.backend(), outcome_of(status), now);
        }
        self.is_answered.set(true);
        self.unanswered.begin_answer();
        self.told.status.set(Some(status));

        let (closes, is_delimited_by_end) = (answer.closes, answer.is_delimited_by_end());
        if is_delimited_by_end {
            // A FIN would say that the body is whole (RFC 9112, 8), also where this task is cut.
            socket.reset_on_close(true);
        }
        self.forward_body(backend, answer, answers.into_rest()).await?;
        if is_delimited_by_end {
            socket.reset_on_close(false);
        }
        self.told.end(Some(status), "whole", None);
        Ok(Whole { closes })
    }

    /// Reads answers up to the final one, and forwards the interim ones.
    async fn final_answer(
        &self,
        backend: &Socket,
        answers: &mut AnswerReader,
    ) -> Result<FinalAnswer, Unanswerable> {
        let &Unanswered { socket, client, .. } = self.unanswered;
        let settings = &client.section.settings;
        loop {
            // No scan but one that allows it passes a bare LF.
            let judge = |response: &ResponseHead<'_>, _: bool| {
                // What the client still sends of a body cannot be told from a next request.
                let closes = self.rest.borrow().is_none() || client.section.life.is_leaving();
                let judged = PlainAnswer::judge(response, self.request, closes)?;
                let learn_from = settings.learn_from.as_ref();
                if let Some(value) = learn_from.and_then(|part| part.in_head(response)) {
                    self.bind(value);
                }
                Ok(judged)
            };
            match answers.next(backend, pending::<()>(), judge).await? {
                PlainAnswer::Final(answer) => return Ok(answer),
                // HTTP/1.0 has none (RFC 9110, 15.2).
                PlainAnswer::Interim { .. } if self.request.version == Version::Http10 => {}
                PlainAnswer::Interim { head } => {
                    let written = write(socket, &head, settings.plain.body_timeout).await;
                    written.map_err(|_| Unanswerable::Gone)?;
                }
            }
        }
    }

    /// Sends the head of the final answer, and relays its body, which begins with `early`.
    async fn forward_body(
        &self,
        backend: &Socket,
        answer: FinalAnswer,
        early: Vec<u8>,
    ) -> Result<(), Unanswerable> {
        let &Unanswered { socket, client, .. } = self.unanswered;
        let settings = &client.section.settings;
        let FinalAnswer { status, head: mut out, framing, sent, .. } = answer;
        // A request that has a value is of a session that has begun.
        let begins = self.key.is_none() && (200..300).contains(&status);
        let seeker = settings.learn_from.as_ref().filter(|_| begins).and_then(LearnFrom::seeker);
        let body = Body::new(framing.unwrap_or(Framing::Length(0)));
        let body = Reframer::new(body, sent == Sent::Body(Framing::Chunked), None).seeking(seeker);
        let (bytes, timeout) = ((&mut out, early), settings.plain.body_timeout);
        match relay(backend, socket, bytes, body, timeout, |value| self.bind_text(value)).await {
            Ok(_) => Ok(()),
            Err(BodyError::Ended) => Err(Unanswerable::cut("the backend's body is cut short")),
            Err(BodyError::Body(_)) => {
                // The head may be in it: a client that got no byte could take the connection for
                // one that was closed while idle, and ask again.
                let written = write(socket, &out, timeout).await;
                written.map_err(|_| Unanswerable::Gone)?;
                Err(Unanswerable::cut("the backend's body has broken chunks"))
            }
            Err(BodyError::Source(error)) => Err(Unanswerable::Cut(error)),
            Err(BodyError::Sink(_)) => Err(Unanswerable::Gone),
        }
    }

    /// Has the requests with this text of a body come to the backend that has the request.
    fn bind_text(&self, text: &[u8]) {
        self.bind(text);
        if let Some(encoded) = percent_encoded(text) {
            self.bind(&encoded);
        }
    }

    /// Has the requests with this value come to the backend that has the request.
    fn bind(&self, value: &[u8]) {
        if let Some(lease) = self.told.lease.borrow().as_ref() {
            self.unanswered.client.section.pool.bind(key_of(value), lease.backend());
        }
    }

    /// Tells that a backend has not answered; `None` where another one may be asked.
    fn tell_fault(&self, error: AnswerError) -> Option<Unserved> {
        let response = self.faulty(error);
        // An idempotent request goes on to the next one; any other one may have been acted on.
        let is_repeated = error == AnswerError::HungUp && self.request.is_repeatable();
        (!is_repeated).then_some(Unserved::Refused(response))
    }

    /// Tells of the fault of the backend that has the request; returns the response for the client.
    fn faulty(&self, error: AnswerError) -> ErrorResponse {
        let &Unanswered { socket, client, .. } = self.unanswered;
        match self.told.lease.borrow().as_ref() {
            Some(lease) => {
                tell_faulty(&client.section, lease.backend(), error, socket.reactor().now())
            }
            None => response_for(error),
        }
    }
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
