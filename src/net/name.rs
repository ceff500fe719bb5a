//! Names of the ends of a connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Address of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// [Canonical](super::canonical) address of a TCP connection.
    Ip(SocketAddr),
    /// A process of this machine, of which a Unix socket tells no address.
    Unix,
}

/// Address that a listener is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BoundAddress {
    Ip(SocketAddr),
    Unix(PathBuf),
}

impl Peer {
    /// Returns the IP address, if it has one.
    pub(crate) fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
