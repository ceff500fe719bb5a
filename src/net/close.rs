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
/// Time for a peer that is to end a connection first.
const SECOND_TIME: Duration = Duration::from_secs(1);
/// Bytes that a peer may still send after our sending ended.
const LINGER_BYTES: usize = 256 * 1024;

/// Ends the sending, then reads and drops what the peer still sends, at most 2 s and 256 KiB, and
/// closes.
pub(crate) async fn linger(socket: Socket) {
    let read_on = async {
        socket.end_sending()?;
        drop_rest(&socket).await
    };
    if let Some(Err(error)) = within(socket.reactor(), LINGER_TIME, read_on).await {
        // The socket is closed either way.
        log::debug!(error:% = error; "close_failed");
    }
}

/// Waits for the peer's end, at most 1 s and 256 KiB of what it still sends, and closes. Whoever
/// ends a connection first keeps its ports for a minute (TIME-WAIT: RFC 9293, 3.6.1), of which a
/// proxy has few for each backend.
pub(crate) async fn close_second(socket: Socket) {
    // In time or not, with an error or without: it is closed now.
    let _ = within(socket.reactor(), SECOND_TIME, drop_rest(&socket)).await;
}

/// Reads and drops what the peer still sends, up to its end or 256 KiB.
async fn drop_rest(mut socket: &Socket) -> io::Result<()> {
    // On the heap: every handshake's future has room for this one, which few ever run.
    let mut scratch = vec![0; 1_024];
    let mut left = LINGER_BYTES;
    while left > 0 {
        match socket.read(&mut scratch).await? {
            0 => break,
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

/// Drops what has come already, at most 256 KiB, without waiting for more, and ends the sending: by
/// itself, or where the peer has ended too, by the close that the caller is to do next.
pub(crate) fn linger_now(socket: &Socket, scratch: &mut [u8]) {
    let mut left = LINGER_BYTES;
    while left > 0 {
        match socket.try_read(scratch) {
            Ok(Some(count @ 1..)) => left = left.saturating_sub(count),
            Ok(None) => break,
            // Nothing is left that could turn the close into a reset.
            Ok(Some(_)) | Err(_) => return,
        }
    }
    // An error changes nothing: the connection is closed next.
    let _ = socket.end_sending();
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::rc::Rc;

    use super::*;
    use crate::net::reactor::Reactor;
    use crate::net::timer::tests::run;

    #[test]
    fn what_was_sent_last_arrives_though_the_peer_sent_more() {
        for ends in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            let reactor = Rc::new(Reactor::new().unwrap().0);
            let socket = Socket::new(&reactor, stream).unwrap();
            peer.write_all(&[0; 10_000]).unwrap();
            if ends {
                peer.shutdown(Shutdown::Write).unwrap();
            }
            run(&reactor, async move {
                if ends {
                    socket.ended().await;
                }
                assert_eq!(socket.try_write(b"last").unwrap(), Some(4));
                linger_now(&socket, &mut [0; 1_024]);
            });
            let mut got = String::new();
            peer.read_to_string(&mut got).unwrap();
            assert_eq!(got, "last", "{ends}");
            // A reset after the end would show here.
            assert!(peer.take_error().unwrap().is_none(), "{ends}");
        }
    }
}
