//! What is told of an exchange.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use crate::backend::Lease;
use crate::connection::unanswered::Unanswered;
use crate::events::{Event, ExchangeEnd};
use crate::handshake::error_response::ErrorResponse;

/// Tells of an exchange when it is over, also where its task is cut.
pub(super) struct Told<'a> {
    unanswered: &'a Unanswered<'a>,
    method: &'a str,
    began: Instant,
    /// The backend that has the request.
    pub(super) lease: RefCell<Option<Lease>>,
    /// Name of the backend that had it before.
    last: RefCell<Option<String>>,
    /// Status that the client gets.
    pub(super) status: Cell<Option<u16>>,
    /// It is the proxy's.
    is_own: Cell<bool>,
    is_told: Cell<bool>,
}

impl<'a> Told<'a> {
    pub(super) fn new(unanswered: &'a Unanswered<'a>, method: &'a str) -> Self {
        let began = unanswered.socket.reactor().now();
        let (lease, last, status, is_own, is_told) = Default::default();
        Self { unanswered, method, began, lease, last, status, is_own, is_told }
    }

    /// Gives back the place at a backend that has hung up.
    pub(super) fn release(&self) {
        let lease = self.lease.take();
        self.last.replace(lease.map(|lease| lease.backend().name().to_owned()));
    }

    /// Tells that the client gets a response of the proxy.
    pub(super) fn refused(&self, response: &ErrorResponse) {
        self.is_own.set(true);
        self.end(Some(response.status), response.reason, Some(response.detail.to_string()));
    }

    /// Tells of the end, once.
    pub(super) fn end(&self, status: Option<u16>, reason: &'static str, fault: Option<String>) {
        if self.is_told.replace(true) {
            return;
        }
        let (lease, last) = (self.lease.borrow(), self.last.borrow());
        let exchanged = ExchangeEnd {
            method: self.method,
            backend: lease.as_ref().map(|lease| lease.backend().name()).or(last.as_deref()),
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
        if self.is_told.get() {
            return;
        }
        match (self.status.get(), self.unanswered.turn_away()) {
            (None, Some(response)) => self.refused(&response),
            (status, _) => self.end(status, "cut", Some("this proxy is shutting down".to_owned())),
        }
    }
}
