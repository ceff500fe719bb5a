//! Responses that end a connection: the proxy's own, and a backend's that is no 101.

use std::io;
use std::time::Duration;

use futures_lite::{AsyncReadExt, future};

use crate::events::Event;
use crate::handshake::body::{Body, BodyProgress, Framing};
use crate::net;
use crate::net::close::linger;
use crate::net::socket::Socket;
use crate::net::timer::io_within;

/// Time for a client to take a response of the proxy.
const RESPONSE_TIME: Duration = Duration::from_secs(5);
/// Most bytes of a body that one read takes.
const STEP: usize = 16 * 1024;

/// A backend's response other than a 101, ready for the client.
pub(super) struct Declined {
    pub(super) backend: Socket,
    /// Head for the client.
    pub(super) head: Vec<u8>,
    /// Bytes of the body that came together with the head.
    pub(super) rest: Vec<u8>,
    pub(super) framing: Framing,
}

/// End of a forwarded response.
pub(super) enum ForwardEnd {
    /// The client got all of it.
    Whole,
    /// The client got a part of it, because of this fault.
    Part(io::Error),
    /// The client's connection broke.
    ClientGone,
}

/// Sends a response of the proxy, the last one, and closes such that it can arrive.
pub(super) async fn send_last(client: Socket, response: &[u8]) {
    if send(&client, response).await {
        linger(client).await;
    }
}

/// Sends a response of the proxy; returns whether the client has taken it.
pub(super) async fn send(client: &Socket, response: &[u8]) -> bool {
    let sent = net::write_within(RESPONSE_TIME, client, response).await;
    if let Err(error) = &sent {
        Event::AnswerFailed { error }.emit();
    }
    sent.is_ok()
}

/// Both connections of a response that has been forwarded.
pub(super) struct ToClose {
    /// `None` if it was reset.
    client: Option<Socket>,
    backend: Socket,
}

impl ToClose {
    /// Closes both in order.
    pub(super) async fn close(self) {
        let close_client = async {
            if let Some(client) = self.client {
                linger(client).await;
            }
        };
        // A backend that is still writing is read on for a while and not reset: some die of that.
        future::zip(close_client, linger(self.backend)).await;
    }
}

/// Forwards head and body. `timeout` bounds each wait for the backend, and for the client to take
/// what it gets. The connections are still to be closed.
///
/// A body that only the connection's end delimits and that is not whole ends in a reset of the
/// client, since a FIN would say that it is (RFC 9112, 8).
pub(super) async fn forward_response(
    client: Socket,
    declined: Declined,
    timeout: Duration,
) -> (ForwardEnd, ToClose) {
    let Declined { backend, head, rest, framing } = declined;
    let is_delimited_by_end = framing == Framing::UntilClose;
    if is_delimited_by_end {
        // From the start, so that it holds as well where this task is cut.
        client.reset_on_close(true);
    }
    let forwarded = forward(&client, &backend, head, (framing, rest), timeout);
    let client_is_gone = async {
        // Its end is no break: it may still read.
        client.broken().await;
        ForwardEnd::ClientGone
    };
    let end = future::or(forwarded, client_is_gone).await;
    let is_whole = matches!(end, ForwardEnd::Whole);
    if is_delimited_by_end && is_whole {
        client.reset_on_close(false);
    }
    (end, ToClose { client: (is_whole || !is_delimited_by_end).then_some(client), backend })
}

/// Forwards everything up to the end of the body, whose first bytes have come already.
async fn forward(
    client: &Socket,
    mut backend: &Socket,
    head: Vec<u8>,
    (framing, mut bytes): (Framing, Vec<u8>),
    timeout: Duration,
) -> ForwardEnd {
    let fault =
        |what: &'static str| ForwardEnd::Part(io::Error::new(io::ErrorKind::InvalidData, what));
    let mut body = Body::new(framing);
    let mut outgoing = head;
    loop {
        let progress = body.advance(&bytes);
        let passing = match progress {
            BodyProgress::More => bytes.len(),
            BodyProgress::End(end) | BodyProgress::Fault(end) => end,
        };
        outgoing.extend_from_slice(&bytes[..passing]);
        match net::write_within(timeout, client, &outgoing).await {
            Ok(()) => {}
            Err(fault) if fault.kind() == io::ErrorKind::TimedOut => {
                return ForwardEnd::Part(fault);
            }
            // A write that waits for room learns of the break before anyone else.
            Err(_) => return ForwardEnd::ClientGone,
        }
        outgoing.clear();
        match progress {
            BodyProgress::More => {}
            BodyProgress::End(_) => return ForwardEnd::Whole,
            BodyProgress::Fault(_) => return fault("the backend's body has broken chunks"),
        }
        bytes.resize(STEP, 0);
        let count = match io_within(client.reactor(), timeout, backend.read(&mut bytes)).await {
            Ok(count) => count,
            Err(fault) => return ForwardEnd::Part(fault),
        };
        bytes.truncate(count);
        if count == 0 {
            let is_whole = body.may_end_here();
            return if is_whole {
                ForwardEnd::Whole
            } else {
                fault("the backend's body is cut short")
            };
        }
    }
}
