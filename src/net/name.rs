//! Names of the ends of a connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Address of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// [Canonical](super::canonical) address of a TCP connection, and its port: less than the
    /// system's form of both, which every idle tunnel would hold.
    Ip(IpAddr, u16),
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
            Self::Ip(ip, _) => Some(ip),
            Self::Unix => None,
        }
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        let address = super::canonical(address);
        Self::Ip(address.ip(), address.port())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Ip(ip, port) => SocketAddr::new(ip, port).fmt(f),
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
