//! Connects to one backend.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Backend;
use super::answers::in_turn;
use crate::net;
use crate::net::address::Address;
use crate::net::reactor::Reactor;
use crate::net::socket::Socket;
use crate::net::timer::within;

/// Settings of a section for its connections to backends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DialSettings {
    /// Time for the look-up of a name, and for each attempt to connect: one timeout for all of them
    /// would let a dead first address use up the time of the others.
    pub(crate) timeout: Duration,
    /// Time for which the addresses of a name are used.
    pub(crate) resolve_interval: Duration,
    /// [Limit](net::listen::limit_buffers) of each of the socket's buffers, in bytes.
    pub(crate) buffer: Option<usize>,
}

/// Connects to the first address of a backend that accepts. Each address of a name is tried first
/// in its turn.
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
    settings: DialSettings,
) -> io::Result<Socket> {
    let DialSettings { timeout, buffer, .. } = settings;
    let mut gravest: Option<io::Error> = None;
    for address in addresses(reactor, backend, settings).await? {
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

/// Returns the socket addresses of a backend in the order of this dial. An IP address is not looked
/// up.
async fn addresses(
    reactor: &Rc<Reactor>,
    backend: &Backend,
    settings: DialSettings,
) -> io::Result<Vec<SocketAddr>> {
    let Address { port, .. } = backend.address;
    let Some(name) = &backend.name else {
        return Ok(backend.address.ip().map(|ip| SocketAddr::new(ip, port)).into_iter().collect());
    };
    let found = name.resolve(reactor, settings.timeout, settings.resolve_interval).await?;
    // Relaxed: the counter guards no other memory.
    let mut order = in_turn(&found, backend.next_dial.fetch_add(1, Ordering::Relaxed));
    order.iter_mut().for_each(|address| address.set_port(port));
    Ok(order)
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
