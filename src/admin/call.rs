//! What a handler is given.

use super::request::Request;
use super::site::Site;
use crate::net::name::Peer;
use crate::section::Permits;

/// A request, and what its handler may use.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) site: &'a Site,
    /// Long lists of tunnels, from the question to the end of their response.
    pub(super) long_lists: &'a Permits,
    pub(super) request: &'a Request,
    pub(super) peer: Peer,
}
