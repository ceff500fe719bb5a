//! Connects to the first backend that can be reached.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use crate::net;
use crate::net::address::Address;
use crate::net::reactor::Reactor;
use crate::net::socket::Socket;
use crate::net::timer::within;

/// A connection to a backend that nothing has been sent on yet.
#[derive(Debug)]
pub(crate) struct Dialed {
    /// Which of the backends it is.
    pub(crate) index: usize,
    pub(crate) socket: Socket,
}

/// Why no backend was connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DialError {
    /// At least one attempt failed for another reason than time.
    Unreachable,
    /// Every attempt ran out of time.
    TimedOut,
    /// This process has no descriptor left for the connection.
    OutOfDescriptors,
}

/// Tries backends in the given order, and of each all its addresses, until one accepts.
///
/// Each look-up of a name and each attempt to connect has `timeout`; `buffer` [limits](net::listen::limit_buffers) the
/// socket's buffers. Failures are logged where they happen.
///
/// # Errors
///
/// See [`DialError`].
pub(crate) async fn dial(
    reactor: &Rc<Reactor>,
    backends: &[Address],
    order: impl Iterator<Item = usize>,
    timeout: Duration,
    buffer: Option<usize>,
) -> Result<Dialed, DialError> {
    let mut only_time_failed = true;
    for (index, backend) in order.filter_map(|index| Some((index, backends.get(index)?))) {
        match connect_to(reactor, backend, timeout, buffer).await {
            Ok(socket) => return Ok(Dialed { index, socket }),
            Err(error) if net::out_of_descriptors(&error) => {
                log::error!(
                    "event=out_of_descriptors backend={backend} error={:?}",
                    error.to_string()
                );
                return Err(DialError::OutOfDescriptors);
            }
            Err(error) => {
                log::warn!(
                    "event=backend_unreachable backend={backend} error={:?}",
                    error.to_string()
                );
                only_time_failed &= error.kind() == io::ErrorKind::TimedOut;
            }
        }
    }
    Err(if only_time_failed { DialError::TimedOut } else { DialError::Unreachable })
}

/// Connects to one of the backend's addresses. The error is `TimedOut` only if all that failed was time.
async fn connect_to(
    reactor: &Rc<Reactor>,
    backend: &Address,
    timeout: Duration,
    buffer: Option<usize>,
) -> io::Result<Socket> {
    let addresses = or_timed_out(within(reactor, timeout, net::resolve(backend)).await)?;
    let mut worst: Option<io::Error> = None;
    for address in addresses {
        match or_timed_out(within(reactor, timeout, connect(reactor, address, buffer)).await) {
            Ok(socket) => return Ok(socket),
            Err(error) if net::out_of_descriptors(&error) => return Err(error),
            Err(error) => {
                if worst.as_ref().is_none_or(|worst| worst.kind() == io::ErrorKind::TimedOut) {
                    worst = Some(error);
                }
            }
        }
    }
    Err(worst.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

async fn connect(
    reactor: &Rc<Reactor>,
    address: SocketAddr,
    buffer: Option<usize>,
) -> io::Result<Socket> {
    let stream = Socket::connect(reactor, address, buffer).await?;
    net::listen::prepare(&stream)?;
    Ok(stream)
}

fn or_timed_out<T>(result: Option<io::Result<T>>) -> io::Result<T> {
    result.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}
