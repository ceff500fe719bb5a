//! A health check of a port for WebSockets, and its command `ws-proxy probe`, which is `ws-proxy
//! health HOST:PORT` now, and stays for manifests that have it.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, RecvFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

use crate::Failure;
use crate::cli::Probe;

/// Succeeds if the proxy ends a connection on which nothing is sent.
///
/// That takes a live accept loop and a live worker, while the kernel alone completes a connect. No
/// backend is used, and nothing is logged at `info`.
pub(crate) fn run(probe: &Probe) -> Result<(), Failure> {
    probe_address(&probe.address, timeout(probe.timeout_ms)?)
}

/// Returns the time that a command gives a proxy to answer.
pub(crate) fn timeout(ms: u64) -> Result<Duration, Failure> {
    if ms == 0 {
        return Err(Failure::Usage(
            "--timeout-ms: 0 leaves no time to answer; the default is 2000".to_owned(),
        ));
    }
    Ok(Duration::from_millis(ms))
}

/// Probes the section that listens on `host:port`, or on `unix:/path`.
pub(crate) fn probe_address(address: &str, timeout: Duration) -> Result<(), Failure> {
    if let Some(path) = address.strip_prefix("unix:") {
        let result = ask_unix(path, Instant::now() + timeout);
        return result.map_err(|error| unanswered(address, &error, Some(timeout)));
    }
    let found = address.to_socket_addrs().map_err(|error| {
        Failure::Usage(format!("{address}: {error}; write host:port, as in 127.0.0.1:8080"))
    })?;
    let deadline = Instant::now() + timeout;
    // All addresses of a name are tried; the last one's error is reported.
    let mut result = Err(io::Error::new(ErrorKind::NotFound, "no address has this name"));
    for found in found {
        result = ask(reachable(found), deadline);
        if result.is_ok() {
            break;
        }
    }
    result.map_err(|error| unanswered(address, &error, Some(timeout)))
}

/// Returns the failure of an address that gives no answer in time.
pub(crate) fn unanswered(address: &str, error: &io::Error, timeout: Option<Duration>) -> Failure {
    let problem = match (error.kind(), timeout) {
        (ErrorKind::TimedOut | ErrorKind::WouldBlock, Some(timeout)) => {
            format!("no answer within {} ms", timeout.as_millis())
        }
        _ => error.to_string(),
    };
    Failure::Runtime(format!("{address}: {problem}"))
}

/// Returns an address under which this machine reaches a listener.
pub(crate) fn reachable(local: SocketAddr) -> SocketAddr {
    match local.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, local.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, local.port()).into(),
        _ => local,
    }
}

/// Connects to a port, and waits for the proxy's end.
fn ask(address: SocketAddr, deadline: Instant) -> io::Result<()> {
    let connection = TcpStream::connect_timeout(&address, left(deadline)?)?;
    refuse_itself(&connection)?;
    wait_for_end(&connection.into(), deadline)
}

/// Connects to a path, and waits for the proxy's end.
fn ask_unix(path: &str, deadline: Instant) -> io::Result<()> {
    let kind = (AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC);
    let socket = rustix::net::socket_with(kind.0, kind.1, kind.2, None)?;
    // It bounds the connect as well, which waits for room in the backlog.
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(left(deadline)?))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    wait_for_end(&socket, deadline)
}

/// Returns the time that is left.
///
/// # Errors
///
/// `TimedOut` if none is.
fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// Ends the sending, and waits for the proxy's end.
fn wait_for_end(connection: &OwnedFd, deadline: Instant) -> io::Result<()> {
    let read_on = || -> io::Result<()> {
        rustix::net::shutdown(connection, Shutdown::Write)?;
        let mut answer = [0; 512];
        // A proxy that is full sends a 503 before it ends.
        loop {
            sockopt::set_socket_timeout(connection, Timeout::Recv, Some(left(deadline)?))?;
            if rustix::net::recv(connection, &mut answer, RecvFlags::empty())?.0 == 0 {
                return Ok(());
            }
        }
    };
    match read_on() {
        // One that is fuller still closes at once.
        Err(error)
            if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::NotConnected) =>
        {
            Ok(())
        }
        end => end,
    }
}

/// Refuses a connection that has met itself, as one to a port of the ephemeral range where nobody
/// listens may do (RFC 9293, 3.5): it would answer itself. A reset keeps the port free.
pub(crate) fn refuse_itself(connection: &TcpStream) -> io::Result<()> {
    if connection.local_addr()? != connection.peer_addr()? {
        return Ok(());
    }
    sockopt::set_socket_linger(connection, Some(Duration::ZERO))?;
    Err(io::Error::new(ErrorKind::ConnectionRefused, "nobody listens: the probe met itself"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

    use super::*;

    #[test]
    fn a_probe_that_meets_itself_is_no_answer() {
        // A socket that is bound to a port and dials it meets itself every time.
        let itself = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&itself, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let itself = TcpStream::from(itself);
        let address = itself.local_addr().unwrap();
        connect(&itself, &address).unwrap();
        let error = refuse_itself(&itself).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        drop(itself);
        // No TIME-WAIT holds the port.
        let listener = TcpListener::bind(address).unwrap();
        assert!(
            refuse_itself(&TcpStream::connect(listener.local_addr().unwrap()).unwrap()).is_ok()
        );
    }
}
