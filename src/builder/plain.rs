//! Settings of requests that are no upgrades.

use super::WsProxy;

impl WsProxy {
    /// Sets the path at which GET and HEAD are answered by this proxy itself: 200 while new clients
    /// should come, else 503 with the reason, as by `/readyz` of the admin listener. For load
    /// balancers that can only ask for a page. Default: none. One that does not begin with `/`, or
    /// has a query, is an error.
    pub fn health_path(mut self, path: impl Into<String>) -> Self {
        self.raw.health_path = Some(path.into());
        self
    }
}
