//! Passes a backend's refusal on to the client, and ends both connections after it.

use std::io;
use std::time::Duration;

use futures_lite::{AsyncReadExt, future};

use crate::early::Early;
use crate::handshake::body::{Body, Framing, Progress};
use crate::net;
use crate::net::socket::Socket;
use crate::net::timer::within;
use crate::outcome::{Outcome, Stage};

/// Most of a body that is read at once.
const STEP: usize = 16 * 1024;

/// An answer of the backend that is no switch.
pub(super) struct Refusal {
    pub(super) backend: Socket,
    /// Which of the section's backends it is.
    pub(super) index: usize,
    pub(super) status: u16,
    /// The head for the client.
    pub(super) head: Vec<u8>,
    /// What came of the body together with the head.
    pub(super) rest: Vec<u8>,
    pub(super) framing: Framing,
}

/// Passes head and body on, then ends both connections, in order. Each wait for the backend, and for the client to
/// take what it gets, has `timeout`.
pub(super) async fn pass_on(
    client: Socket,
    mut early: Early,
    refusal: Refusal,
    timeout: Duration,
) -> Outcome {
    let Refusal { backend, index, status, head, rest, framing } = refusal;
    let passed = async { Some(pass(&client, &backend, head, rest, framing, timeout).await) };
    let client_is_gone = async {
        early.watch(&client).await;
        None
    };
    let passed = future::or(passed, client_is_gone).await;

    // A backend that is still writing is read on for a while and not reset: some die of that.
    future::zip(net::close::linger(client), net::close::linger(backend)).await;
    match passed {
        Some(Ok(())) => Outcome::PassedOn { backend: index, status, fault: None },
        Some(Err(fault)) => {
            Outcome::PassedOn { backend: index, status, fault: Some(fault.to_string()) }
        }
        None => Outcome::ClientGone { stage: Stage::Refusal },
    }
}

/// Passes everything on up to the end of the body.
async fn pass(
    client: &Socket,
    mut backend: &Socket,
    head: Vec<u8>,
    mut bytes: Vec<u8>,
    framing: Framing,
    timeout: Duration,
) -> io::Result<()> {
    let fault = |what: &'static str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    let mut body = Body::new(framing);
    let mut outgoing = head;
    loop {
        let progress = body.advance(&bytes);
        let passing = match progress {
            Progress::More => bytes.len(),
            Progress::End(end) | Progress::Fault(end) => end,
        };
        outgoing.extend_from_slice(&bytes[..passing]);
        net::write_within(timeout, client, &outgoing).await?;
        outgoing.clear();
        match progress {
            Progress::More => {}
            Progress::End(_) => return Ok(()),
            Progress::Fault(_) => return fault("the backend's body has broken chunks"),
        }
        bytes.resize(STEP, 0);
        let read = within(client.reactor(), timeout, backend.read(&mut bytes)).await;
        let count = read.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))?;
        bytes.truncate(count);
        if count == 0 {
            return if body.may_end_here() {
                Ok(())
            } else {
                fault("the backend's body is cut short")
            };
        }
    }
}
