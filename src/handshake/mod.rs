//! The opening handshake as bytes and values: nothing in here knows a socket or a clock.
//!
//! In the order of a connection: [`scan`] finds the end of a head; [`http`] parses it; [`upgrade`]
//! judges the client's, with its [`target`] and its way ([`via`]); [`origin`] decides who may come;
//! [`forward`] writes the heads that go on; [`response`] judges the backend's; [`body`] finds the
//! end of a body that is forwarded with any other answer than a 101; [`error_response`] is the
//! proxy's own answer to a client that gets no tunnel, [`probe`] that to a load balancer. [`trace`]
//! is what a request is known by, [`summary`] what the log tells of it.
//!
//! [`plain`] judges requests that are no upgrades, and their answers; [`reframe`] writes their
//! bodies anew.

pub(crate) mod asked;
pub(crate) mod body;
pub(crate) mod error_response;
pub(crate) mod fields;
pub(crate) mod forward;
pub(crate) mod hash_on;
pub(crate) mod http;
pub(crate) mod learn_from;
pub(crate) mod origin;
pub(crate) mod plain;
pub(crate) mod probe;
pub(crate) mod reframe;
pub(crate) mod response;
pub(crate) mod retry;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod scan;
pub(crate) mod summary;
pub(crate) mod target;
pub(crate) mod trace;
pub(crate) mod upgrade;
mod via;
