//! Bytes that a client sends after its head, before the backend has switched.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};

use futures_lite::AsyncRead;

use crate::net::socket::Socket;

/// Most bytes that are kept. A client that sends more is not read for the time being.
const MAX: usize = 64 * 1024;

/// The early bytes of one client.
///
/// They are held back until a 101 has been verified: sent before it, they would reach a backend
/// that may take them for another request.
#[derive(Debug)]
pub(super) struct ReadAhead {
    bytes: Vec<u8>,
    /// The client has ended its sending. It may still receive.
    has_ended: bool,
}

impl ReadAhead {
    /// Begins with the bytes that came together with the head.
    pub(super) fn new(rest: &[u8]) -> Self {
        Self { bytes: rest.to_vec(), has_ended: false }
    }

    /// Keeps what the client sends, and returns only when its connection breaks.
    ///
    /// Dropped at any time, it loses nothing.
    pub(super) async fn watch(&mut self, mut client: &Socket) -> io::Error {
        while !self.has_ended && self.bytes.len() < MAX {
            let read = poll_fn(|context| {
                // On the stack, so that a handshake that waits holds no room for it.
                let mut scratch = [0; 1_024];
                let count = ready!(Pin::new(&mut client).poll_read(context, &mut scratch))?;
                self.bytes.extend_from_slice(&scratch[..count]);
                Poll::Ready(io::Result::Ok(count))
            });
            match read.await {
                Ok(count) => self.has_ended = count == 0,
                Err(error) => return error,
            }
        }
        client.broken().await
    }

    /// Returns the bytes, which begin the tunnel.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
