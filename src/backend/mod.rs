//! Backends: whose turn it is ([`rotation`]), and how one is reached ([`dial`]).

pub(crate) mod dial;
pub(crate) mod rotation;
