//! Sockets and the event loop that they wait in. Nothing in here knows what the bytes mean.

pub(crate) mod address;
pub(crate) mod reactor;
pub(crate) mod readiness;
pub(crate) mod stream;
pub(crate) mod timer;

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use self::stream::Stream;
use self::timer::within;
use crate::net::address::Address;

/// Connections that may wait for their accept. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;
/// A tunnel that carries nothing for this long is probed by TCP.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// How long a peer may take to end its side after we ended ours.
const LINGER_TIME: Duration = Duration::from_secs(2);
/// How much a peer may still send after we ended our side.
const LINGER_BYTES: usize = 256 * 1024;

/// Opens a listening socket on the first of the host's addresses that lets itself be bound.
///
/// # Errors
///
/// Those of the name's look-up, or of the last address that was tried.
pub(crate) fn listen(bind: &Address, buffer: Option<usize>) -> io::Result<TcpListener> {
    let mut error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in (bind.host.as_str(), bind.port).to_socket_addrs()? {
        match listen_on(address, buffer) {
            Ok(listener) => return Ok(listener),
            Err(failed) => error = failed,
        }
    }
    Err(error)
}

/// The standard library's own `bind` has a backlog of 128, too short for a storm of reconnects.
fn listen_on(address: SocketAddr, buffer: Option<usize>) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections of a predecessor that are still in TIME_WAIT do not hold the port.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Every accepted socket inherits these, which saves it system calls.
    prepare(&socket)?;
    limit_buffers(&socket, buffer)?;
    if let Some(wanted) = buffer {
        // The kernel doubles what it is given, for its own needs.
        let given = sockopt::socket_recv_buffer_size(&socket)?
            .min(sockopt::socket_send_buffer_size(&socket)?)
            / 2;
        if given < wanted {
            log::warn!(
                "event=socket_buffer_capped address={address} wanted={wanted} bytes={given} hint={:?}",
                "net.core.rmem_max and net.core.wmem_max permit no more",
            );
        }
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Sets what every socket of a tunnel has: no delay for small messages, and probes for a peer that is gone.
///
/// # Errors
///
/// Those of the system, as when the peer has reset the connection already.
pub(crate) fn prepare(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    Ok(())
}

/// Has the kernel keep no more than so many bytes of a socket in each direction. Before it is connected: the peer is
/// told then how much it may ever send at once.
///
/// # Errors
///
/// Those of the system.
pub(crate) fn limit_buffers(socket: impl AsFd, buffer: Option<usize>) -> io::Result<()> {
    if let Some(bytes) = buffer {
        sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
        sockopt::set_socket_send_buffer_size(&socket, bytes)?;
    }
    Ok(())
}

/// The addresses of a host, looked up without blocking the caller's thread.
///
/// # Errors
///
/// Those of the resolver; a name without addresses is `NotFound`.
pub(crate) async fn resolve(address: &Address) -> io::Result<Vec<SocketAddr>> {
    if let Some(ip) = address.ip() {
        return Ok(vec![SocketAddr::new(ip, address.port)]);
    }
    let found = async_net::resolve((address.host.as_str(), address.port)).await?;
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses"));
    }
    Ok(found)
}

/// Ends our side, and then reads and drops what the peer still sends, for a bounded time and amount, so that it
/// gets to read what it was sent: a socket closed with unread bytes in it resets the connection, which throws away
/// what is on its way (RFC 9112, 9.6).
pub(crate) async fn close_in_stages(socket: Stream) {
    let stages = async {
        end_sending(socket.socket())?;
        // Not within the future: every handshake has room for this one, which few ever run.
        let mut scratch = vec![0; 1_024];
        let mut left = LINGER_BYTES;
        while left > 0 {
            match (&socket).read(&mut scratch).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        io::Result::Ok(())
    };
    if let Some(Err(error)) = within(socket.reactor(), LINGER_TIME, stages).await {
        // It is closed either way.
        log::debug!("event=close_failed error={:?}", error.to_string());
    }
}

/// Ends our sending side. That the peer has ended or reset the connection at the same moment is no fault.
///
/// # Errors
///
/// Those of the system otherwise.
pub(crate) fn end_sending(socket: &TcpStream) -> io::Result<()> {
    match socket.shutdown(Shutdown::Write) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotConnected | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Writes everything within a time.
///
/// # Errors
///
/// `TimedOut` if the peer does not take it; those of the socket.
pub(crate) async fn write_within(
    time: Duration,
    mut socket: &Stream,
    bytes: &[u8],
) -> io::Result<()> {
    let reactor = Rc::clone(socket.reactor());
    within(&reactor, time, socket.write_all(bytes))
        .await
        .unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}

/// Whether an error says that this process, or the system, has no descriptors left.
pub(crate) fn out_of_descriptors(error: &io::Error) -> bool {
    let code = rustix::io::Errno::from_io_error(error);
    matches!(code, Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE))
}

/// The address of a peer as people know it: an IPv4 client of an IPv6 socket is an IPv4 client.
pub(crate) fn canonical(peer: SocketAddr) -> SocketAddr {
    match peer.ip() {
        IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), peer.port()),
        IpAddr::V4(_) => peer,
    }
}
