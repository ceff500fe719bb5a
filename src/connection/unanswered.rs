//! A client that has no answer yet.

use std::cell::{Cell, OnceCell};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_lite::AsyncRead;

use crate::events::Event;
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::summary::Summary;
use crate::net::close::linger_now;
use crate::net::socket::Socket;
use crate::section::Client;

/// Guards a client from its accept until its answer or its tunnel begins.
///
/// Dropped before that, as with a task that the end of the drain cuts, it answers a client that has
/// begun to ask, without waiting, and tells of it.
#[derive(Debug)]
pub(super) struct Unanswered<'a> {
    pub(super) socket: &'a Socket,
    pub(super) client: &'a Client,
    /// First bytes of the request, as many as it takes to know a HEAD.
    start: Cell<[u8; START]>,
    /// Number of the bytes that have come, up to these.
    have: Cell<usize>,
    /// Set once its head is parsed, if the log tells of it.
    summary: OnceCell<Summary>,
    is_settled: Cell<bool>,
}

impl<'a> Unanswered<'a> {
    /// Guards a client of which nothing has been read.
    pub(super) fn new(socket: &'a Socket, client: &'a Client) -> Self {
        let (start, have, summary, is_settled) = Default::default();
        Self { socket, client, start, have, summary, is_settled }
    }

    /// Keeps what the log tells of the request.
    pub(super) fn set_summary(&self, summary: Summary) {
        // There is one request.
        let _ = self.summary.set(summary);
    }

    /// Notes bytes of the request.
    pub(super) fn note(&self, bytes: &[u8]) {
        let (mut start, have) = (self.start.get(), self.have.get());
        for (place, &byte) in start[have..].iter_mut().zip(bytes) {
            *place = byte;
        }
        self.start.set(start);
        self.have.set((have + bytes.len()).min(START));
    }

    /// Ends the guard: from now on the client is somebody else's. Returns what the log tells of its
    /// request.
    pub(super) fn settle(mut self) -> Option<Summary> {
        self.begin_answer();
        self.summary.take()
    }

    /// Ends the guard likewise, for one who goes on with the client's socket.
    pub(super) fn begin_answer(&self) {
        self.is_settled.set(true);
    }

    /// Ends the guard of a client that has begun to ask: answers it without waiting, and returns
    /// the answer; `None` where the guard has ended before.
    pub(super) fn turn_away(&self) -> Option<ErrorResponse> {
        if self.is_settled.replace(true) {
            return None;
        }
        let start = self.start.get();
        let response = ErrorResponse::draining().to(&start[..self.have.get()]);
        // Nothing was sent before, so there is room for all of it; where the connection broke,
        // nobody reads it.
        let _ = self.socket.try_write(&response.to_bytes());
        linger_now(self.socket, &mut [0; 1_024]);
        Some(response)
    }

    /// Returns what the log tells of the request.
    pub(super) fn summary(&self) -> Option<&Summary> {
        self.summary.get()
    }
}

/// Bytes of a request that tell its method, an empty line before them included.
const START: usize = b"\r\nHEAD ".len();

/// Reads the client's socket.
impl AsyncRead for &Unanswered<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut socket = self.socket;
        let count = ready!(Pin::new(&mut socket).poll_read(context, buffer))?;
        self.note(&buffer[..count]);
        Poll::Ready(Ok(count))
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if self.is_settled.get() {
            return;
        }
        let Self { socket, client, .. } = &*self;
        // A first byte that came just now is a beginning too.
        if self.have.get() == 0 {
            let mut scratch = [0; START];
            match socket.try_read(&mut scratch) {
                Ok(Some(count @ 1..)) => self.note(&scratch[..count]),
                _ => return Event::Silent { client, ended_by: "proxy" }.emit(),
            }
        }
        if let Some(response) = &self.turn_away() {
            Event::Refused { client, response, summary: self.summary() }.emit();
        }
    }
}
