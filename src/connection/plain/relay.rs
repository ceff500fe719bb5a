//! Moves a body from one socket to another.

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt};

use crate::handshake::reframe::{BodyFault, Reframed, Reframer};
use crate::net::reactor::Reactor;
use crate::net::socket::Socket;
use crate::net::timer::io_within;

/// Most bytes of a body that one read takes.
const STEP: usize = 16 * 1024;

/// Reason for which a body was not relayed to its end.
pub(super) enum BodyError {
    Source(io::Error),
    Sink(io::Error),
    /// The source ended before the body did.
    Ended,
    Body(BodyFault),
}

/// Relays a body, after what is in `out`, and beginning with `bytes` that have come already;
/// returns the bytes that came after it. At most one buffer of it is held. `timeout` bounds each
/// wait. `found` gets what the body [is sought for](Reframer::seeking), before it goes on.
///
/// # Errors
///
/// The reason why the body has no end. After [`BodyError::Body`] `out` has what came before the
/// fault, and was not sent.
pub(super) async fn relay(
    mut from: &Socket,
    to: &Socket,
    (out, mut bytes): (&mut Vec<u8>, Vec<u8>),
    mut body: Reframer,
    timeout: Option<Duration>,
    found: impl Fn(&[u8]),
) -> Result<Vec<u8>, BodyError> {
    loop {
        let reframed = body.advance(&bytes, out).map_err(BodyError::Body)?;
        if let Some(value) = body.take_found() {
            found(&value);
        }
        write(to, out, timeout).await.map_err(BodyError::Sink)?;
        out.clear();
        if let Reframed::End(end) = reframed {
            return Ok(bytes.split_off(end));
        }
        bytes.resize(STEP, 0);
        let read = in_time(from.reactor(), timeout, from.read(&mut bytes)).await;
        let count = read.map_err(BodyError::Source)?;
        bytes.truncate(count);
        if count == 0 {
            if !body.end_by_close(out) {
                return Err(BodyError::Ended);
            }
            write(to, out, timeout).await.map_err(BodyError::Sink)?;
            return Ok(bytes);
        }
    }
}

/// Writes all bytes. `timeout` bounds the wait for room for some of them.
pub(super) async fn write(
    mut to: &Socket,
    bytes: &[u8],
    timeout: Option<Duration>,
) -> io::Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        let count = in_time(to.reactor(), timeout, to.write(left)).await?;
        left = &left[count..];
    }
    Ok(())
}

async fn in_time<T>(
    reactor: &Rc<Reactor>,
    timeout: Option<Duration>,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    io_within(reactor, timeout.unwrap_or(Duration::MAX), work).await
}
