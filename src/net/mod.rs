//! Sockets, addresses and the event loop that they wait in. Nothing here knows what the bytes mean.
//!
//! [`reactor`] is the event loop of one thread, with the [`readiness`] of each socket and its
//! [`timer`]s; [`socket`] is a connection or a listener on it; [`listen`] opens listeners,
//! [`connect`] names the errors of connecting, [`close`] ends connections, [`address`] reads
//! them, [`name`] tells them.

pub(crate) mod address;
pub(crate) mod close;
mod connect;
pub(crate) mod listen;
pub(crate) mod name;
pub(crate) mod reactor;
mod readiness;
pub(crate) mod socket;
pub(crate) mod timer;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_lite::AsyncWriteExt;
use rustix::io::Errno;

use self::socket::Socket;
use self::timer::io_within;

/// Writes all bytes within a time.
///
/// # Errors
///
/// `TimedOut` if the peer does not take them; those of the socket.
pub(crate) async fn write_within(
    time: Duration,
    mut socket: &Socket,
    bytes: &[u8],
) -> io::Result<()> {
    io_within(socket.reactor(), time, socket.write_all(bytes)).await
}

/// Returns whether an error says that this process, or the system, has no descriptors left.
pub(crate) fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Returns whether an error says that the system has no memory left for a socket.
pub(crate) fn out_of_memory(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOMEM | Errno::NOBUFS))
}

/// Returns whether an error says that this host has no local port left for a destination.
/// [`Socket::connect`] keeps other causes of EADDRNOTAVAIL apart.
pub(crate) fn out_of_ports(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::ADDRNOTAVAIL)
}

/// Returns a peer's address as people know it: an IPv4 client of an IPv6 socket has an IPv4
/// address.
pub(crate) fn canonical(peer: SocketAddr) -> SocketAddr {
    match peer.ip() {
        IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), peer.port()),
        IpAddr::V4(_) => peer,
    }
}
