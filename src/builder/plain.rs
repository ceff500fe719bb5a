//! Settings of requests that are no upgrades.

use super::{WsProxy, number};
use crate::settings::PlainHttp;

impl WsProxy {
    /// Sets the treatment of requests that are no upgrades. Default: [`PlainHttp::Reject`].
    ///
    /// [`PlainHttp::Forward`] is for the HTTP that comes with WebSockets, as Socket.IO's long
    /// polling: each request has a connection of its own to a backend.
    pub fn plain_http(mut self, treatment: PlainHttp) -> Self {
        self.raw.plain_http = Some(treatment);
        self
    }

    /// Limits the body of a request that is forwarded, in bytes; a larger one gets 413. Default: 0,
    /// no limit.
    pub fn max_body_bytes(mut self, bytes: u64) -> Self {
        self.raw.max_body_bytes = Some(number(bytes));
        self
    }

    /// Sets the time in which a client may begin its next request, before its connection is closed,
    /// in milliseconds. Default: 60,000. Zero is an error.
    pub fn keep_alive_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.keep_alive_timeout_ms = Some(number(ms));
        self
    }

    /// Sets the time without a byte of a body, a request's or an answer's, after which the exchange
    /// ends, in milliseconds. Default: 60,000. Zero is no limit.
    pub fn body_timeout_ms(mut self, ms: u64) -> Self {
        self.raw.body_timeout_ms = Some(number(ms));
        self
    }

    /// Sets the path at which GET and HEAD are answered by this proxy itself: 200 while new clients
    /// should come, else 503 with the reason, as by `/readyz` of the admin listener. For load
    /// balancers that can only ask for a page. Default: none. One that does not begin with `/`, or
    /// has a query, is an error.
    pub fn health_path(mut self, path: impl Into<String>) -> Self {
        self.raw.health_path = Some(path.into());
        self
    }
}
