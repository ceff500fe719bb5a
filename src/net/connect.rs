//! Errors of connecting that the system calls something else, and resets.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::LazyLock;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt;

/// Returns the error for EADDRNOTAVAIL, which has two causes: no local port is left, or this host
/// has no address of its own for such a destination, as for `::1` where IPv6 is disabled.
pub(super) fn not_available(address: SocketAddr) -> io::Error {
    // Connecting UDP sends nothing, chooses a source address, and has ports of its own.
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let route = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address));
    match route.map_err(|error| error.kind()) {
        Err(ErrorKind::AddrNotAvailable) => {
            io::Error::new(ErrorKind::AddrNotAvailable, "this host has no address to dial it from")
        }
        _ => Errno::ADDRNOTAVAIL.into(),
    }
}

/// Returns whether the system may dial from this port, so that a dial to it may meet itself
/// (ip(7), `ip_local_port_range`).
fn may_be_dialled_from(port: u16) -> bool {
    static RANGE: LazyLock<RangeInclusive<u16>> = LazyLock::new(|| {
        let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        // Where it is not told, it may be any.
        text.ok().and_then(|text| port_range(&text)).unwrap_or(0..=u16::MAX)
    });
    RANGE.contains(&port)
}

fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut ports = text.split_ascii_whitespace().map(str::parse);
    Some(ports.next()?.ok()?..=ports.next()?.ok()?)
}

/// Refuses a connection to `port` whose two ends have the same address.
///
/// Where nobody listens on a port of the ephemeral range, the kernel may give the dialler that very
/// port, and both SYNs cross (RFC 9293, 3.5, simultaneous open). An orderly close would keep the
/// port in TIME-WAIT, and its server from binding it; a reset leaves nothing behind.
///
/// # Errors
///
/// `ConnectionRefused` for such a connection; those of getsockname(2) and getpeername(2).
pub(super) fn refuse_itself(socket: impl AsFd, port: u16) -> io::Result<()> {
    if !may_be_dialled_from(port) {
        return Ok(());
    }
    let local = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
    // The peer is asked for, since 0.0.0.0 dials the loopback address.
    if local.port() != port || rustix::net::getpeername(&socket)? != Some(local.into()) {
        return Ok(());
    }
    set_reset_on_close(&socket, true)?;
    Err(io::Error::new(ErrorKind::ConnectionRefused, "nobody listens: the dial met itself"))
}

/// Has the close of a connection reset it, or not, with what is still to be sent.
///
/// # Errors
///
/// Those of setsockopt(2).
pub(super) fn set_reset_on_close(socket: impl AsFd, resets: bool) -> io::Result<()> {
    Ok(sockopt::set_socket_linger(socket, resets.then_some(Duration::ZERO))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_ports_is_read_as_the_kernel_writes_it() {
        assert_eq!(port_range("32768\t60999\n"), Some(32_768..=60_999));
        for text in ["", "32768", "32768 x", "1 65536"] {
            assert_eq!(port_range(text), None, "{text:?}");
        }
    }
}
