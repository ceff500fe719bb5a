//! Ends of connections, such that what was sent last still arrives.
//!
//! A socket closed with unread bytes in it resets the connection, and the reset discards what is on
//! its way to the peer (RFC 9112, 9.6). So the sending ends first, and the peer is read until it
//! ends too, within bounds.

use std::io;
use std::time::Duration;

use futures_lite::AsyncReadExt;

use super::socket::Socket;
use super::timer::within;

/// Time for a peer to end its sending after ours ended.
const LINGER_TIME: Duration = Duration::from_secs(2);
/// Bytes that a peer may still send after our sending ended.
const LINGER_BYTES: usize = 256 * 1024;

/// Ends the sending, then reads and drops what the peer still sends, at most 2 s and 256 KiB, and
/// closes.
pub(crate) async fn linger(socket: Socket) {
    let read_on = async {
        socket.end_sending()?;
        // On the heap: every handshake's future has room for this one, which few ever run.
        let mut scratch = vec![0; 1_024];
        let mut left = LINGER_BYTES;
        while left > 0 {
            match (&socket).read(&mut scratch).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        io::Result::Ok(())
    };
    if let Some(Err(error)) = within(socket.reactor(), LINGER_TIME, read_on).await {
        // The socket is closed either way.
        log::debug!(error:% = error; "close_failed");
    }
}

/// Ends the sending and drops what has come already, at most 256 KiB, without waiting for more.
pub(crate) fn linger_now(socket: &Socket, scratch: &mut [u8]) {
    // An error changes nothing: the connection is closed next.
    if socket.end_sending().is_err() {
        return;
    }
    let mut left = LINGER_BYTES;
    while let Ok(Some(count @ 1..)) = socket.try_read(scratch) {
        left = left.saturating_sub(count);
        if left == 0 {
            return;
        }
    }
}
