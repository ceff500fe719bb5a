//! What a handler is given.

use std::net::SocketAddr;

use super::request::Request;
use super::site::Site;

/// A request, and what its handler may use.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) site: &'a Site,
    pub(super) request: &'a Request,
    pub(super) peer: SocketAddr,
}
