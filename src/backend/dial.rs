//! Connects to one backend.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::Backend;
use super::resolve::resolve;
use crate::net;
use crate::net::reactor::Reactor;
use crate::net::socket::Socket;
use crate::net::timer::within;

/// Connects to the first address of a backend that accepts.
///
/// The look-up of its name has `timeout`, and so has each attempt to connect: one timeout for all
/// of them would let a dead first address use up the time of the others. `buffer`
/// [limits](net::listen::limit_buffers) the socket's buffers, in bytes.
///
/// # Errors
///
/// - An error that [`net::out_of_descriptors`] recognises, at once: no other address could fare
///   better.
/// - `TimedOut` if only time failed: every address that was tried, or the look-up.
/// - Otherwise the first error that was no time-out.
pub(crate) async fn dial(
    reactor: &Rc<Reactor>,
    backend: &Backend,
    timeout: Duration,
    buffer: Option<usize>,
) -> io::Result<Socket> {
    let addresses = or_timed_out(within(reactor, timeout, resolve(backend.address())).await)?;
    let mut worst: Option<io::Error> = None;
    for address in addresses {
        match or_timed_out(within(reactor, timeout, connect(reactor, address, buffer)).await) {
            Ok(stream) => return Ok(stream),
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
