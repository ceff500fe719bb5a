//! Connects to the first backend that can be reached.

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::time::Duration;

use async_net::TcpStream;
use smol::Async;

use super::address::Address;
use crate::net::{self, within};

/// A connection to a backend that nothing has been sent on yet.
#[derive(Debug)]
pub(crate) struct Dialed<'a> {
    pub(crate) backend: &'a Address,
    pub(crate) socket: TcpStream,
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
/// Each look-up of a name and each attempt to connect has `timeout`. Failures are logged where they happen.
///
/// # Errors
///
/// See [`DialError`].
pub(crate) async fn dial<'a>(
    order: impl Iterator<Item = &'a Address>,
    timeout: Duration,
) -> Result<Dialed<'a>, DialError> {
    let mut only_time_failed = true;
    for backend in order {
        match connect_to(backend, timeout).await {
            Ok(socket) => return Ok(Dialed { backend, socket }),
            Err(error) if net::out_of_descriptors(&error) => {
                log::error!("event=out_of_descriptors backend={backend} error={:?}", error.to_string());
                return Err(DialError::OutOfDescriptors);
            }
            Err(error) => {
                log::warn!("event=backend_unreachable backend={backend} error={:?}", error.to_string());
                only_time_failed &= error.kind() == io::ErrorKind::TimedOut;
            }
        }
    }
    Err(if only_time_failed { DialError::TimedOut } else { DialError::Unreachable })
}

/// Connects to one of the backend's addresses. The error is `TimedOut` only if all that failed was time.
async fn connect_to(backend: &Address, timeout: Duration) -> io::Result<TcpStream> {
    let addresses = or_timed_out(within(timeout, net::resolve(backend)).await)?;
    let mut worst: Option<io::Error> = None;
    for address in addresses {
        match or_timed_out(within(timeout, connect(address)).await) {
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

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Async::<StdTcpStream>::connect(address).await?;
    net::prepare(&socket)?;
    Ok(socket.into())
}

fn or_timed_out<T>(result: Option<io::Result<T>>) -> io::Result<T> {
    result.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}
