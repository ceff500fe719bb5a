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
/// - Otherwise the [gravest](graver) error of all addresses, the first of several: `TimedOut` only
///   if nothing but time failed, in every attempt or in the look-up.
pub(crate) async fn dial(
    reactor: &Rc<Reactor>,
    backend: &Backend,
    timeout: Duration,
    buffer: Option<usize>,
) -> io::Result<Socket> {
    let addresses = or_timed_out(within(reactor, timeout, resolve(backend.address())).await)?;
    let mut gravest: Option<io::Error> = None;
    for address in addresses {
        match or_timed_out(within(reactor, timeout, connect(reactor, address, buffer)).await) {
            Ok(stream) => return Ok(stream),
            Err(error) if net::out_of_descriptors(&error) => return Err(error),
            Err(error) => {
                gravest = [gravest, Some(error)].into_iter().flatten().reduce(graver);
            }
        }
    }
    Err(gravest.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// Returns the graver one of two failed attempts' errors, the first of equal ones: time-outs give
/// way to other errors, and those to a shortage of local ports, with which the backend may be well.
pub(crate) fn graver(one: io::Error, other: io::Error) -> io::Error {
    let rank = |error: &io::Error| match error.kind() {
        io::ErrorKind::TimedOut => 0,
        _ if net::out_of_ports(error) => 2,
        _ => 1,
    };
    if rank(&one) < rank(&other) { other } else { one }
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
