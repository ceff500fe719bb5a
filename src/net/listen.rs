//! Listening sockets, and the options that every socket of a tunnel has.

use std::fs::{self, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, ipproto, sockopt};

use super::address::{Address, Endpoint};
use super::name::BoundAddress;

/// Connections that may wait to be accepted. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;
/// Flags of every socket, of those that are accepted too.
pub(super) const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);
/// Silence after which TCP itself probes a peer.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// A socket that listens.
#[derive(Debug)]
pub(crate) struct BoundListener {
    pub(crate) fd: OwnedFd,
    pub(crate) local: BoundAddress,
    /// File of a Unix socket.
    pub(super) file: Option<SocketFile>,
}

/// The file of a Unix socket, removed on drop unless another one is in its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

/// Opens a listening socket on the first of the host's addresses that can be bound, or at a path,
/// whose file gets these permissions.
///
/// # Errors
///
/// Those of the look-up, or of the last address tried; those of bind(2) and chmod(2).
pub(crate) fn listen(
    bind: &Address,
    buffer: Option<usize>,
    mode: Option<u32>,
) -> io::Result<BoundListener> {
    let (host, port) = match &bind.place {
        Endpoint::Tcp(host, port) => (host.as_str(), *port),
        Endpoint::Unix(path) => return listen_at(path, buffer, mode),
    };
    let mut error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in (host, port).to_socket_addrs()? {
        match listen_on(address, buffer).and_then(BoundListener::tcp) {
            Ok(listener) => return Ok(listener),
            Err(failed) => error = failed,
        }
    }
    Err(error)
}

/// Listens at a path. A file that a process has left there, which listens no more, is replaced.
fn listen_at(path: &Path, buffer: Option<usize>, mode: Option<u32>) -> io::Result<BoundListener> {
    let socket = open_unix()?;
    limit_buffers(&socket, buffer)?;
    let address = SocketAddrUnix::new(path)?;
    match rustix::net::bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            remove_stale(path)?;
            rustix::net::bind(&socket, &address)?;
        }
        result => result?,
    }
    let metadata = fs::symlink_metadata(path)?;
    let identity = (metadata.dev(), metadata.ino());
    // From here on an error removes it again.
    let file = SocketFile { path: path.to_owned(), identity };
    if let Some(mode) = mode {
        // Nobody can connect before it listens.
        set_mode(path, mode)?;
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(BoundListener { fd: socket, local: BoundAddress::Unix(path.to_owned()), file: Some(file) })
}

/// Sets the permissions of a socket's file.
///
/// # Errors
///
/// Those of chmod(2).
pub(crate) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Removes a socket's file on which nobody listens.
///
/// # Errors
///
/// `AddrInUse` if somebody does; `AlreadyExists` for a file that is no socket.
fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        let problem = "there is a file that is no socket: remove it, or name another path";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        // A full backlog is somebody's as well.
        _ => Err(Errno::ADDRINUSE.into()),
    }
}

impl BoundListener {
    /// Takes a socket that listens on TCP.
    ///
    /// # Errors
    ///
    /// Those of getsockname(2).
    pub(crate) fn tcp(listener: TcpListener) -> io::Result<Self> {
        let local = BoundAddress::Ip(listener.local_addr()?);
        Ok(Self { fd: listener.into(), local, file: None })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            log::debug!(path:% = self.path.display(), error:%; "socket_file_left");
        }
    }
}

/// The standard library's own `bind` has a backlog of 128, too short for a storm of reconnects.
fn listen_on(address: SocketAddr, buffer: Option<usize>) -> io::Result<TcpListener> {
    let socket = open(address)?;
    // Connections of a predecessor in TIME_WAIT do not hold the port.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Accepted sockets inherit these, which saves each its system calls.
    prepare(&socket)?;
    limit_buffers(&socket, buffer)?;
    warn_if_capped(&socket, address, buffer)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Opens a non-blocking TCP socket of the address's family.
///
/// # Errors
///
/// Those of socket(2).
pub(super) fn open(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(rustix::net::socket_with(family, SocketType::STREAM, FLAGS, None)?)
}

/// Opens a non-blocking Unix socket.
///
/// # Errors
///
/// Those of socket(2).
pub(super) fn open_unix() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?)
}

/// Prepares a listening socket that somebody else has opened: what [`listen`] sets, except for the
/// address and the backlog.
///
/// # Errors
///
/// `InvalidInput` if it is not a listening TCP socket; those of setsockopt(2) and fcntl(2).
pub(crate) fn adopt(listener: &TcpListener, buffer: Option<usize>) -> io::Result<()> {
    let is_tcp = sockopt::socket_protocol(listener)? == Some(ipproto::TCP);
    if !is_tcp || !sockopt::socket_acceptconn(listener)? {
        let problem = "it is not a listening TCP socket: call listen(2) on it first";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    listener.set_nonblocking(true)?;
    prepare(listener)?;
    limit_buffers(listener, buffer)?;
    warn_if_capped(listener, listener.local_addr()?, buffer)
}

/// Logs that the system grants smaller buffers than were asked for.
fn warn_if_capped(socket: impl AsFd, address: SocketAddr, buffer: Option<usize>) -> io::Result<()> {
    let Some(wanted) = buffer else { return Ok(()) };
    let receive = sockopt::socket_recv_buffer_size(&socket)?;
    let send = sockopt::socket_send_buffer_size(&socket)?;
    // The kernel doubles what it is given, for its bookkeeping (socket(7)).
    let granted = receive.min(send) / 2;
    if granted < wanted {
        let hint = "net.core.rmem_max and net.core.wmem_max permit no more";
        log::warn!(address:%, wanted, bytes = granted, hint; "socket_buffer_capped");
    }
    Ok(())
}

/// Sets the options of every socket of a tunnel: no delay for small messages, and TCP's probes for
/// a peer that is gone.
///
/// # Errors
///
/// Those of setsockopt(2), such as when the peer has reset the connection already.
pub(crate) fn prepare(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    Ok(())
}

/// Bounds the kernel's buffers of a socket to this many bytes in each direction; `None` leaves them
/// to the system.
///
/// It must come before the connection: the peer is told then how much it may ever send at once (RFC
/// 7323, 2).
///
/// # Errors
///
/// Those of setsockopt(2).
pub(crate) fn limit_buffers(socket: impl AsFd, buffer: Option<usize>) -> io::Result<()> {
    if let Some(bytes) = buffer {
        sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
        sockopt::set_socket_send_buffer_size(&socket, bytes)?;
    }
    Ok(())
}
