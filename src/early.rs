//! What the client sends behind its head, before the backend has switched.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};

use futures_lite::AsyncRead;

use crate::net::socket::Socket;

/// Most that is kept; a client that sends more is just not read for the moment.
const MAX: usize = 64 * 1024;

/// The early bytes of one client.
///
/// They are held back until a 101 has been verified: sent before it, they would reach a backend that may take them
/// for another request.
#[derive(Debug)]
pub(crate) struct Early {
    bytes: Vec<u8>,
    /// The client has ended its sending side: no more will come, but it may still receive.
    ended: bool,
}

impl Early {
    /// Begins with what came together with the head.
    pub(crate) fn new(rest: &[u8]) -> Self {
        Self { bytes: rest.to_vec(), ended: false }
    }

    /// Keeps what the client sends, until its connection breaks; it returns only then.
    ///
    /// It may be dropped at any time, and loses nothing then.
    pub(crate) async fn watch(&mut self, mut client: &Socket) -> io::Error {
        while !self.ended && self.bytes.len() < MAX {
            let read = poll_fn(|context| {
                // On the stack, so that a handshake that waits holds no room for it.
                let mut scratch = [0; 1_024];
                let count = ready!(Pin::new(&mut client).poll_read(context, &mut scratch))?;
                self.bytes.extend_from_slice(&scratch[..count]);
                Poll::Ready(io::Result::Ok(count))
            });
            match read.await {
                Ok(count) => self.ended = count == 0,
                Err(error) => return error,
            }
        }
        client.broken().await
    }

    /// The bytes, in their order, for the tunnel to begin with.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
