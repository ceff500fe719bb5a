//! Sends a request to a backend, and reads its final response's head.

use std::borrow::Cow;
use std::future::Future;
use std::io;
use std::time::Duration;

use crate::handshake::http::ResponseHead;
use crate::handshake::scan::{HeadScan, with_crlf};
use crate::head::{self, HeadError};
use crate::net;
use crate::net::socket::Socket;
use crate::net::timer::Timer;

/// Most bytes of a response head, together with the interim responses before it.
const RESPONSE_HEAD_MAX: usize = 64 * 1024;
/// Interim responses (1xx) that are skipped before the final one.
const INTERIM_MAX: usize = 16;

/// Explanation for a backend that hangs up.
pub(crate) const HUNG_UP: &str = "the backend closed the connection before it answered";
/// Explanation for bytes that are no head of HTTP.
pub(crate) const NOT_HTTP: &str = "the backend's answer is not HTTP/1.1";

/// Reason for which there is no answer. The texts are for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerError {
    /// The backend hung up without a byte of an answer: the port of a program that is not there,
    /// such as that of a container's network proxy.
    HungUp,
    /// The connection ended, or broke, after the answer had begun.
    Cut(&'static str),
    /// The answer was not there in time.
    TimedOut,
    /// The answer is not HTTP, too long, or not valid.
    Invalid(&'static str),
}

/// Sends a head and reads responses up to the final one: all under one deadline, and with one bound
/// on their bytes. Returns the verdict on it, and the bytes that came after its head.
///
/// `judge` gets each head, and whether a line of it ended in LF alone, which only a scan that
/// [allows it](HeadScan::allowing_lf) passes. It returns `None` for an interim response, which
/// another head follows (RFC 9110, 15.2).
///
/// # Errors
///
/// See [`AnswerError`]; an error of `judge` makes the answer invalid.
pub(crate) async fn converse<T>(
    backend: &Socket,
    head: &[u8],
    (scan, timeout): (HeadScan, Duration),
    judge: impl Fn(&ResponseHead<'_>, bool) -> Result<Option<T>, &'static str>,
) -> Result<(T, Vec<u8>), AnswerError> {
    match net::write_within(timeout, backend, head).await {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            return Err(AnswerError::TimedOut);
        }
        // After any other error there may still be an answer to read: Linux keeps what came before
        // a reset.
        _ => {}
    }

    let mut deadline = Timer::after(backend.reactor(), timeout);
    let mut answers = AnswerReader::new(scan);
    loop {
        if let Some(verdict) = answers.next(backend, &mut deadline, &judge).await? {
            return Ok((verdict, answers.into_rest()));
        }
    }
}

/// The heads of a backend's answers to one request, in their order: interim ones and the final one,
/// with one bound on their bytes and on their number.
pub(crate) struct AnswerReader {
    scan: HeadScan,
    /// Bytes that may still come.
    left: usize,
    /// Heads that have come.
    count: usize,
    rest: Vec<u8>,
}

impl AnswerReader {
    /// Creates one for answers that have not begun, and that this scan passes.
    pub(crate) fn new(scan: HeadScan) -> Self {
        Self { scan, left: RESPONSE_HEAD_MAX, count: 0, rest: Vec::new() }
    }

    /// Returns the verdict on the next head.
    ///
    /// # Errors
    ///
    /// See [`AnswerError`]; an error of `judge` makes the answer invalid.
    pub(crate) async fn next<T>(
        &mut self,
        mut backend: &Socket,
        deadline: impl Future,
        judge: impl Fn(&ResponseHead<'_>, bool) -> Result<T, &'static str>,
    ) -> Result<T, AnswerError> {
        if self.count > INTERIM_MAX {
            let problem = "the backend sends one interim answer after another";
            return Err(AnswerError::Invalid(problem));
        }
        let bound = (self.left, self.scan.clone());
        let read = head::read(&mut backend, &mut self.rest, bound, deadline).await;
        let read = read.map_err(|error| match error {
            HeadError::Ended { begun: false } | HeadError::Broken { begun: false }
                if self.count == 0 =>
            {
                AnswerError::HungUp
            }
            error => no_head(error),
        })?;
        let has_bare_lf = read.has_bare_lf();
        let head =
            if has_bare_lf { Cow::from(with_crlf(read.bytes())) } else { Cow::from(read.bytes()) };
        let response = ResponseHead::parse(&head).map_err(|_| AnswerError::Invalid(NOT_HTTP))?;
        self.rest = read.rest().to_vec();
        let verdict = judge(&response, has_bare_lf).map_err(AnswerError::Invalid)?;
        self.left = self.left.saturating_sub(read.bytes().len());
        self.count += 1;
        Ok(verdict)
    }

    /// Returns the bytes that came after the last head.
    pub(crate) fn into_rest(self) -> Vec<u8> {
        self.rest
    }
}

fn no_head(error: HeadError) -> AnswerError {
    match error {
        HeadError::TimedOut { .. } => AnswerError::TimedOut,
        HeadError::Ended { begun: false } | HeadError::Broken { .. } => AnswerError::Cut(HUNG_UP),
        HeadError::Ended { begun: true } => {
            AnswerError::Cut("the backend closed the connection within its answer's head")
        }
        HeadError::TooLong { .. } => {
            AnswerError::Invalid("the head of the backend's answer is too long")
        }
        HeadError::Malformed(_) => AnswerError::Invalid(NOT_HTTP),
    }
}
